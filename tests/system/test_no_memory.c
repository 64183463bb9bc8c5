// SPDX-License-Identifier: Apache-2.0
// test_no_memory.c: kvpoold on a GPU whose memory is nearly used up: a client's batch-invariant attention
// that does not fit fails alone, while other clients, and that one with what fits, go on. On the emulated
// device, which has as much memory as is wanted.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

// Batch-invariant, MOST_HEADS query heads and TOKENS query tokens of one sequence need 516 MB; free are
// 512 MB at least when a pool has been made, and SPARE less when the region is there.
enum {
    LAYERS = 2,
    KV_HEADS = 128,
    MOST_HEADS = 4096,
    HEAD_DIM = 256,
    TOKENS = 8,
    KV_BYTES = TOKENS * KV_HEADS * HEAD_DIM * 2,
    Q_BYTES = TOKENS * MOST_HEADS * HEAD_DIM * 2,
    K_AT = 0,
    V_AT = KV_BYTES,
    Q_AT = 2 * KV_BYTES,
    OUT_AT = Q_AT + Q_BYTES,
    END = OUT_AT + Q_BYTES,
    SPARE = 64 << 20,
};
#define GPU_MEMORY "0x23000000" // 560 MB

static kvpool_pool large_pool(kvpool_client *client) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool pool = 0;
    config.name = "large";
    config.layers = LAYERS;
    config.kv_heads = KV_HEADS;
    config.head_dim = HEAD_DIM;
    config.page_size = 16;
    config.dtype = KVPOOL_BF16;
    config.num_pages = 2;
    expect_ok(client, kvpool_pool_create(client, &config, &pool));
    return pool;
}

static kvpool_attn_args attention(kvpool_region *region, uint32_t qo_heads, bool invariant) {
    kvpool_attn_args a = KVPOOL_ATTN_ARGS_INIT;
    a.qo_heads = qo_heads;
    a.flags |= invariant ? KVPOOL_ATTN_BATCH_INVARIANT : 0;
    a.q = (kvpool_tensor){.region = region, .offset = Q_AT};
    a.out = (kvpool_tensor){.region = region, .offset = OUT_AT};
    return a;
}

static void no_memory(kvpool_client *client, const kvpool_attn_args *a, bool appends) {
    char text[256] = "";
    expect_status(client, KVPOOL_E_NOMEM, kvpool_decode(client, a));
    kvpool_last_error(client, text, sizeof text);
    check(strstr(text, "no memory") != NULL);
    check((strstr(text, "appended") != NULL) == appends);
}

// Attention over what the step appended: V's mean, 2.
static void fits(kvpool_client *client, kvpool_attn_args *a, unsigned char *data) {
    const uint16_t two = 0x4000;
    memset(data + OUT_AT, 0xff, (size_t)KV_HEADS * HEAD_DIM * 2);
    expect_ok(client, kvpool_decode(client, a));
    for (size_t i = 0; i < (size_t)KV_HEADS * HEAD_DIM; i++)
        check(memcmp(data + OUT_AT + 2 * i, &two, 2) == 0);
}

static int other_client(void *arg) {
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "small", 64, *(const unsigned *)arg);
    check(load != NULL);
    for (unsigned i = 0; i < 60; i++)
        expect_ok(client, load_round(load));
    load_close(load);
    kvpool_close(client);
    return 0;
}

static void attention_without_memory_fails_alone(void **state) {
    (void)state;
    static unsigned seed = 1;
    kvpool_client *client = client_open(&kvd);
    const kvpool_pool pool = large_pool(client);
    const uint32_t tokens = TOKENS, one = 1;
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    kvpool_region *used, *region;
    kvpool_step step;
    kvpool_seq seq;
    struct load *load = load_open(client, "small", 64, 2); // makes the pool
    assert_non_null(load);
    load_close(load);
    args.bytes = SPARE;
    expect_ok(client, kvpool_region_alloc(client, &args, &used));
    expect_ok(client, kvpool_region_create(client, END, &region));
    unsigned char *data = kvpool_region_data(region);
    for (size_t i = 0; i < KV_BYTES; i += 2)
        data[V_AT + i + 1] = 0x40; // bf16 2; K and q are 0

    pid_t other = worker_start(other_client, &seed);
    expect_ok(client, kvpool_seq_create(client, pool, 1, &seq));
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &tokens;
    expect_ok(client, kvpool_step_begin(client, &begin, &step, NULL));
    kvpool_attn_args a = attention(region, MOST_HEADS, true);
    a.step = step;
    a.k = (kvpool_tensor){.region = region, .offset = K_AT};
    a.v = (kvpool_tensor){.region = region, .offset = V_AT};
    for (a.layer = 0; a.layer < LAYERS; a.layer++)
        no_memory(client, &a, true);
    expect_ok(client, kvpool_step_commit(client, step)); // every layer was appended to

    kvpool_attn_args alone = attention(region, MOST_HEADS, true);
    alone.pool = pool;
    alone.n = 1;
    alone.seqs = &seq;
    alone.q_len = &tokens;
    for (int i = 0; i < 20; i++)
        no_memory(client, &alone, false);
    alone = attention(region, KV_HEADS, true);
    alone.pool = pool;
    alone.n = 1;
    alone.seqs = &seq;
    alone.q_len = &one;
    for (alone.layer = 0; alone.layer < LAYERS; alone.layer++)
        fits(client, &alone, data);
    assert_int_equal(process_wait(other, 60000), 0);
    assert_int_equal(process_wait(worker_start(other_client, &seed), 60000), 0); // nor later
    assert_non_null(strstr(daemon_log(&kvd), "attention.nomem"));
    assert_null(strstr(daemon_log(&kvd), "engine.failed"));
    expect_ok(client, kvpool_seq_free(client, 1, &seq));
    kvpool_region_free(region);
    kvpool_region_free(used);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_without_memory_fails_alone),
    };
    if (setenv("KVPOOL_EMULATE_MEMORY", GPU_MEMORY, 1) != 0) // the daemon's
        return 1;
    return cmocka_run_group_tests_name("no memory", tests, kvd_setup, kvd_teardown);
}
