// SPDX-License-Identifier: Apache-2.0
// test_road.c: the whole road in order: one daemon, checked workers, nothing lost at the end.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void expect_all_free(kvpool_client *client, kvpool_pool pool) {
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_pool_stat(client, pool, &info));
    assert_int_equal(load_active(client, pool), 0); // the rest is free, or cached
    assert_int_equal(info.seqs, 0);
    assert_int_equal(info.shared_pages, 0);
}

static void every_answer_of_a_long_random_load_is_right(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "road", 40, random_seed());
    assert_non_null(load);
    for (unsigned i = 0; i < 3000 / SLOWNESS; i++) {
        expect_ok(client, load_round(load));
    }
    assert_true(load_tokens(load) > 500 / SLOWNESS);
    kvpool_pool pool = load_pool(load);
    load_close(load);
    expect_all_free(client, pool);
    kvpool_close(client);
}

static int work(void *arg) {
    const unsigned *seed = arg;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "shared", 48, *seed);
    check(load != NULL);
    for (unsigned i = 0; i < 800 / SLOWNESS; i++) {
        expect_ok(client, load_round(load));
    }
    load_close(load);
    kvpool_close(client);
    return 0;
}

static void workers_that_share_a_small_pool_do_not_disturb_each_other(void **state) {
    (void)state;
    pid_t pids[4];
    unsigned seed = random_seed();
    for (unsigned i = 0; i < 4; i++) {
        seed++;
        pids[i] = worker_start(work, &seed);
    }
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(process_wait(pids[i], 120000), 0);
    }
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool;
    expect_ok(client, kvpool_pool_open(client, "shared", &pool));
    expect_all_free(client, pool);
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    assert_int_equal(stats.seqs, 0);
    assert_int_equal(stats.steps, 0);
    assert_int_equal(stats.sessions_died, 0);
    assert_true(stats.tokens > 0 && stats.commits > 0);
    expect_ok(client, kvpool_pool_destroy(client, pool));
    expect_status(client, KVPOOL_E_STALE, kvpool_pool_destroy(client, pool));
    kvpool_close(client);
}

// A whole step of several layers in flight at once from one thread, many times over.
static void a_whole_step_may_be_in_flight(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = "flight";
    config.layers = 8;
    config.kv_heads = 2;
    config.head_dim = 32;
    config.page_size = 16;
    config.dtype = KVPOOL_FP32;
    config.num_pages = 64;
    kvpool_pool pool;
    expect_ok(client, kvpool_pool_create(client, &config, &pool));
    kvpool_seq seq;
    expect_ok(client, kvpool_seq_create(client, pool, 1, &seq));
    kvpool_region *region;
    expect_ok(client, kvpool_region_create(client, 1 << 16, &region));
    float *data = kvpool_region_data(region);
    const uint32_t rounds = 50, one = 1;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t i = 0; i < 64; i++) {
            data[i] = 0.01f * (float)i;            // q
            data[64 + i] = 0.02f * (float)(i % 7); // k
            data[128 + i] = (float)(round + 1);    // v: every channel of every head
        }
        kvpool_op *ops[10];
        unsigned n = 0;
        kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
        begin.pool = pool;
        begin.n = 1;
        begin.seqs = &seq;
        begin.new_tokens = &one;
        begin.step = kvpool_step_id(client);
        kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
        expect_ok(client, kvpool_submit(client, &request, &ops[n++]));
        for (uint32_t layer = 0; layer < config.layers; layer++) {
            kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
            attn.step = begin.step;
            attn.layer = layer;
            attn.qo_heads = 2;
            attn.q = (kvpool_tensor){region, 0, 0, 0};
            attn.k = (kvpool_tensor){region, 256, 0, 0};
            attn.v = (kvpool_tensor){region, 512, 0, 0};
            attn.out = (kvpool_tensor){region, 1024 + layer * 256, 0, 0};
            request =
                (kvpool_request){.size = sizeof request, .kind = KVPOOL_OP_DECODE, .attn = &attn};
            expect_ok(client, kvpool_submit(client, &request, &ops[n++]));
        }
        request =
            (kvpool_request){.size = sizeof request, .kind = KVPOOL_OP_COMMIT, .step = begin.step};
        expect_ok(client, kvpool_submit(client, &request, &ops[n++]));
        while (n > 0) { // the last first: waiting in any order is allowed
            expect_ok(client, kvpool_wait(client, ops[--n], UINT32_MAX));
        }
        // Every key is the same, so the output is the mean of 1..round+1.
        for (uint32_t i = 0; i < config.layers * 64; i++) {
            float want = (float)(round + 2) / 2.0f;
            assert_true(data[256 + i] > want - 1e-3f && data[256 + i] < want + 1e-3f);
        }
    }
    kvpool_seq_info info = {.size = sizeof info};
    expect_ok(client, kvpool_seq_stat(client, seq, &info));
    assert_int_equal(info.length, rounds);
    kvpool_region_free(region);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_answer_of_a_long_random_load_is_right),
        cmocka_unit_test(workers_that_share_a_small_pool_do_not_disturb_each_other),
        cmocka_unit_test(a_whole_step_may_be_in_flight),
    };
    return cmocka_run_group_tests_name("road", tests, kvd_setup, kvd_teardown);
}
