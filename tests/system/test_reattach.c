// SPDX-License-Identifier: Apache-2.0
// test_reattach.c: libkvpool and kvpoold when the connections between them are cut again and again,
// under load, inside a step and before the end; and prefix sharing through both. (test_resume.c: the
// daemon's grace.)
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { PAGE = 8, HEADS = 2, DIM = 16, PROMPT = 40 };

// Ends every connection of this process to the daemon; returns how many there were.
static unsigned cut(void) {
    unsigned n = 0;
    for (int fd = 0; fd < 256; fd++) {
        struct sockaddr_un peer;
        socklen_t len = sizeof peer;
        memset(&peer, 0, sizeof peer);
        if (getpeername(fd, (struct sockaddr *)&peer, &len) != 0 || peer.sun_family != AF_UNIX) {
            continue;
        }
        if (strncmp(peer.sun_path, kvd.dir, strlen(kvd.dir)) == 0) {
            shutdown(fd, SHUT_RDWR);
            n++;
        }
    }
    return n;
}

static kvpool_pool make_pool(kvpool_client *client) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = "reattach";
    config.layers = 1;
    config.kv_heads = HEADS;
    config.head_dim = DIM;
    config.page_size = PAGE;
    config.dtype = KVPOOL_FP32;
    config.num_pages = 64;
    config.max_seqs = 4;
    config.max_seq_len = KVPOOL_MAX_TOKENS;
    kvpool_pool pool = 0;
    expect_ok(client, kvpool_pool_create(client, &config, &pool));
    return pool;
}

static void a_load_does_not_notice(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "load", 64, random_seed());
    assert_non_null(load);
    for (unsigned i = 0; i < 300; i++) {
        if (i % 10 == 9) {
            assert_int_equal(cut(), 2);
        }
        assert_int_equal(load_round(load), KVPOOL_OK);
    }
    assert_true(load_tokens(load) > 0);
    load_close(load);
    assert_non_null(strstr(daemon_log(&kvd), "session.attach"));
    kvpool_close(client);
}

// A step that spans a cut; what it seals is found afterwards, by tokens.
static void a_step_goes_on_and_its_tokens_are_found(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool = make_pool(client);
    uint32_t *ids = malloc(KVPOOL_MAX_TOKENS * sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < KVPOOL_MAX_TOKENS; i++) {
        ids[i] = 1000 + i;
    }
    kvpool_region *region;
    expect_ok(client, kvpool_region_create(client, sizeof(float) * PROMPT * HEADS * DIM, &region));
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    open.pool = pool;
    open.tokens = ids;
    open.n = PROMPT;
    kvpool_seq seq, other;
    uint32_t matched, new_tokens = PROMPT;
    expect_ok(client, kvpool_seq_open_with(client, &open, &seq, &matched));
    assert_int_equal(matched, 0);

    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &new_tokens;
    begin.tokens = ids;
    kvpool_step step;
    expect_ok(client, kvpool_step_begin(client, &begin, &step, NULL));
    assert_int_equal(cut(), 2);
    kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
    append.step = step;
    append.k.region = append.v.region = region;
    expect_ok(client, kvpool_append(client, &append));
    assert_int_equal(cut(), 2);
    expect_ok(client, kvpool_step_commit(client, step));

    open.n = KVPOOL_MAX_TOKENS; // as long as one request may be
    expect_ok(client, kvpool_seq_match(client, &open, &other, &matched));
    assert_int_equal(matched, PROMPT / PAGE * PAGE);
    uint64_t pin;
    expect_ok(client, kvpool_prefix_pin(client, other, 0, 60000, &pin, &matched));
    assert_int_equal(matched, PROMPT / PAGE * PAGE);
    expect_ok(client, kvpool_prefix_unpin(client, pool, pin));
    expect_ok(client, kvpool_seq_set_priority(client, other, KVPOOL_PRIORITY_HIGH));
    kvpool_usage usage = {.size = sizeof usage};
    uint32_t cursor = 0, n = 0, pages;
    expect_ok(client, kvpool_list_usage(client, pool, &cursor, 1, &usage, &n));
    assert_int_equal(n, 1);
    assert_int_equal(usage.hit_tokens, PROMPT / PAGE * PAGE);
    expect_ok(client, kvpool_seq_release(client, 1, &other, KVPOOL_FREE_KEEP));
    expect_ok(client, kvpool_seq_release(client, 1, &seq, KVPOOL_FREE_KEEP));
    expect_ok(client, kvpool_cache_clear(client, pool, &pages));
    assert_int_equal(pages, PROMPT / PAGE);
    expect_ok(client, kvpool_seq_match(client, &open, &other, &matched));
    assert_int_equal(matched, 0);
    assert_int_equal(other, 0);
    kvpool_region_free(region);
    expect_ok(client, kvpool_pool_destroy(client, pool));
    free(ids);
    kvpool_close(client);
}

static void closing_after_a_cut_ends_the_session_at_once(void **state) {
    (void)state;
    kvpool_client *other = client_open(&kvd);
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool = make_pool(client);
    kvpool_seq seq;
    expect_ok(client, kvpool_seq_create(client, pool, 1, &seq));
    cut();
    kvpool_close(client);
    expect_ok(other, kvpool_pool_open(other, "reattach", &pool));
    expect_ok(other, kvpool_pool_destroy(other, pool)); // no sequence is left in it
    kvpool_close(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_load_does_not_notice),
        cmocka_unit_test(a_step_goes_on_and_its_tokens_are_found),
        cmocka_unit_test(closing_after_a_cut_ends_the_session_at_once),
    };
    return cmocka_run_group_tests_name("reattach", tests, kvd_setup, kvd_teardown);
}
