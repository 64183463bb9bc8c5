// SPDX-License-Identifier: Apache-2.0
// test_input.c: bad input by name, through the public API against a real daemon: a typed error each
// time, and nothing changed by it.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <string.h>

// A client with a pool, two sequences of 20 committed tokens, a region, and well-formed arguments.
struct scene {
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_seq seqs[2];
    kvpool_region *region;
    uint32_t one[2];
    kvpool_attn_args attn; // attention alone over both sequences, one query each
};

static kvpool_pool_config pool_config(const char *name) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = name;
    config.layers = 1;
    config.kv_heads = 2;
    config.head_dim = 16;
    config.page_size = 16;
    config.dtype = KVPOOL_FP32;
    config.num_pages = 32;
    config.max_seq_len = 256;
    return config;
}

static void add_tokens(struct scene *s, uint32_t tokens) {
    const uint32_t news[2] = {tokens, tokens};
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = s->pool;
    begin.n = 2;
    begin.seqs = s->seqs;
    begin.new_tokens = news;
    kvpool_step step;
    expect_ok(s->client, kvpool_step_begin(s->client, &begin, &step, NULL));
    kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
    append.step = step;
    append.k = append.v = (kvpool_tensor){s->region, 0, 0, 0};
    expect_ok(s->client, kvpool_append(s->client, &append));
    expect_ok(s->client, kvpool_step_commit(s->client, step));
}

static void scene_open(struct scene *s) {
    memset(s, 0, sizeof *s);
    s->client = client_open(&kvd);
    kvpool_pool_config config = pool_config("input");
    expect_ok(s->client, kvpool_pool_create(s->client, &config, &s->pool));
    expect_ok(s->client, kvpool_seq_create(s->client, s->pool, 2, s->seqs));
    expect_ok(s->client, kvpool_region_create(s->client, 65536, &s->region));
    add_tokens(s, 20);
    s->one[0] = s->one[1] = 1;
    s->attn = (kvpool_attn_args)KVPOOL_ATTN_ARGS_INIT;
    s->attn.pool = s->pool;
    s->attn.n = 2;
    s->attn.seqs = s->seqs;
    s->attn.q_len = s->one;
    s->attn.qo_heads = 4;
    s->attn.q = (kvpool_tensor){s->region, 0, 0, 0};
    s->attn.out = (kvpool_tensor){s->region, 8192, 0, 0};
    s->attn.lse = (kvpool_tensor){s->region, 16384, 0, 0};
}

static void scene_close(struct scene *s) {
    kvpool_pool_info info = {.size = sizeof info};
    kvpool_seq_info seq = {.size = sizeof seq};
    for (unsigned i = 0; i < 2; i++) { // nothing was changed by what was refused
        expect_ok(s->client, kvpool_seq_stat(s->client, s->seqs[i], &seq));
        assert_int_equal(seq.length, 20);
        assert_int_equal(seq.in_step, 0);
    }
    expect_ok(s->client, kvpool_pool_stat(s->client, s->pool, &info));
    assert_int_equal(info.free_pages, info.num_pages - 4);
    expect_ok(s->client, kvpool_seq_free(s->client, 2, s->seqs));
    expect_ok(s->client, kvpool_pool_stat(s->client, s->pool, &info));
    assert_int_equal(info.free_pages, info.num_pages);
    kvpool_region_free(s->region);
    kvpool_close(s->client);
}

static void expect_message(const kvpool_client *client, const char *part) {
    char text[256];
    kvpool_last_error(client, text, sizeof text);
    if (strstr(text, part) == NULL) {
        fail_msg("message \"%s\" does not name \"%s\"", text, part);
    }
}

static void pool_geometry_limits_are_named(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    static const struct {
        const char *field;
        size_t offset;
        uint32_t bad[5];
    } cases[] = {
        {"layers", offsetof(kvpool_pool_config, layers), {0, 513, UINT_MAX}},
        {"kv_heads", offsetof(kvpool_pool_config, kv_heads), {0, 257, UINT_MAX}},
        {"head_dim", offsetof(kvpool_pool_config, head_dim), {0, 4, 12, 584, UINT_MAX}},
        {"page_size", offsetof(kvpool_pool_config, page_size), {0, 4, 24, 512, UINT_MAX}},
        {"dtype", offsetof(kvpool_pool_config, dtype), {0, 4, UINT_MAX}},
        {"num_pages", offsetof(kvpool_pool_config, num_pages), {0}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (size_t i = 0; i < 5 && (i == 0 || cases[c].bad[i] != 0); i++) {
            kvpool_pool_config config = pool_config("limits");
            memcpy((char *)&config + cases[c].offset, &cases[c].bad[i], sizeof(uint32_t));
            kvpool_pool pool = 0;
            expect_status(client, KVPOOL_E_INVAL, kvpool_pool_create(client, &config, &pool));
            expect_message(client, cases[c].field);
            assert_true(pool == 0);
        }
    }
    static const char *const names[] = {"", "a b", "x/y", "0123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kvpool_pool_config config = pool_config(names[i]);
        kvpool_pool pool;
        expect_status(client, KVPOOL_E_INVAL, kvpool_pool_create(client, &config, &pool));
        expect_message(client, "name");
    }
    kvpool_pool pool;
    expect_status(client, KVPOOL_E_NOTFOUND, kvpool_pool_open(client, "nosuch", &pool));
    kvpool_close(client);
}

static void a_pool_larger_than_memory_is_refused(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    kvpool_pool_config config = pool_config("huge");
    config.layers = 512;
    config.kv_heads = 256;
    config.head_dim = 576;
    config.page_size = 256;
    config.num_pages = 1000000;
    config.max_seq_len = 4096;
    config.max_seqs = 16;
    kvpool_pool pool;
    expect_status(client, KVPOOL_E_NOMEM, kvpool_pool_create(client, &config, &pool));
    expect_message(client, "bytes");
    config.num_pages = 32; // the name is still free
    config.layers = 1;
    config.kv_heads = config.page_size = 8;
    config.head_dim = 8;
    config.max_seq_len = 64;
    expect_ok(client, kvpool_pool_create(client, &config, &pool));
    config.head_dim = 16;
    expect_status(client, KVPOOL_E_EXISTS, kvpool_pool_create(client, &config, &pool));
    expect_ok(client, kvpool_pool_destroy(client, pool));
    kvpool_close(client);
}

static void numbers_that_make_no_sense_are_refused(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    expect_ok(s.client, kvpool_decode(s.client, &s.attn)); // the well-formed one
    const float bad_scale[] = {NAN, -1.0f, INFINITY, -INFINITY};
    for (size_t i = 0; i < 4; i++) {
        kvpool_attn_args a = s.attn;
        a.sm_scale = bad_scale[i];
        expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
        expect_message(s.client, "sm_scale");
        a = s.attn;
        a.soft_cap = bad_scale[i];
        expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
        expect_message(s.client, "soft_cap");
    }
    const uint32_t bad_heads[] = {0, 1, 3, 5, 4098, UINT_MAX};
    for (size_t i = 0; i < 6; i++) {
        kvpool_attn_args a = s.attn;
        a.qo_heads = bad_heads[i];
        expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
        expect_message(s.client, "heads");
    }
    kvpool_attn_args a = s.attn;
    a.layer = 1;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    expect_message(s.client, "layer");
    a = s.attn;
    a.window_left = -2;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    expect_message(s.client, "window_left");
    a = s.attn;
    a.flags |= 0x100;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    a = s.attn;
    a.reserved = 1;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    a = s.attn;
    const uint32_t nine[2] = {9, 1};
    a.q_len = nine;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    expect_message(s.client, "prefill");
    scene_close(&s);
}

static void batches_that_make_no_sense_are_refused(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    kvpool_attn_args a = s.attn;
    a.n = 0;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    const kvpool_seq twice[2] = {s.seqs[0], s.seqs[0]};
    a = s.attn;
    a.seqs = twice;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_decode(s.client, &a));
    expect_message(s.client, "twice");
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_step step = 0;
    begin.pool = s.pool;
    begin.seqs = s.seqs;
    begin.new_tokens = s.one;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_step_begin(s.client, &begin, &step, NULL));
    begin.n = 2;
    begin.seqs = twice;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_step_begin(s.client, &begin, &step, NULL));
    begin.seqs = s.seqs;
    const uint32_t too_long[2] = {1, 237}; // max_seq_len is 256
    begin.new_tokens = too_long;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_step_begin(s.client, &begin, &step, NULL));
    expect_message(s.client, "max_seq_len");
    const uint32_t wrap[2] = {UINT_MAX, UINT_MAX};
    begin.new_tokens = wrap;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_step_begin(s.client, &begin, &step, NULL));
    begin.n = 1u << 30;
    expect_status(s.client, KVPOOL_E_TOOBIG, kvpool_step_begin(s.client, &begin, &step, NULL));
    begin.n = 2;
    begin.new_tokens = s.one;
    begin.flags = 4;
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_step_begin(s.client, &begin, &step, NULL));
    assert_true(step == 0);
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_seq_truncate(s.client, s.seqs[0], 21));
    expect_status(s.client, KVPOOL_E_INVAL, kvpool_seq_free(s.client, 2, twice));
    scene_close(&s);
}

static void out_of_pages_says_how_many_and_changes_nothing(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    kvpool_seq more[2];
    expect_ok(s.client, kvpool_seq_create(s.client, s.pool, 2, more));
    const kvpool_seq seqs[4] = {s.seqs[0], s.seqs[1], more[0], more[1]};
    const uint32_t news[4] = {236, 236, 160, 16}; // 14 + 14 + 10 + 1 pages of 28 free ones
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = s.pool;
    begin.n = 4;
    begin.seqs = seqs;
    begin.new_tokens = news;
    kvpool_step step;
    uint64_t missing = 0;
    expect_status(s.client, KVPOOL_E_NOSPACE, kvpool_step_begin(s.client, &begin, &step, &missing));
    assert_int_equal(missing, 11);
    begin.n = 2;
    expect_ok(s.client, kvpool_step_begin(s.client, &begin, &step, &missing));
    expect_ok(s.client, kvpool_step_abort(s.client, step));
    expect_ok(s.client, kvpool_seq_free(s.client, 2, more));
    scene_close(&s);
}

static void tensors_that_leave_their_region_or_overlap_are_refused(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    const struct {
        size_t which;
        kvpool_tensor tensor;
        const char *what;
    } cases[] = {
        {offsetof(kvpool_attn_args, q), {s.region, 65536, 0, 0}, "past the end"},
        {offsetof(kvpool_attn_args, q), {s.region, 65536 - 508, 0, 0}, "last element outside"},
        {offsetof(kvpool_attn_args, q), {s.region, UINT64_MAX - 3, 0, 0}, "offset that wraps"},
        {offsetof(kvpool_attn_args, q), {s.region, 0, UINT64_MAX / 2, 16}, "stride that wraps"},
        {offsetof(kvpool_attn_args, q), {s.region, 0, 1u << 20, 16}, "long stride"},
        {offsetof(kvpool_attn_args, q), {s.region, 2, 0, 0}, "misaligned"},
        {offsetof(kvpool_attn_args, lse), {s.region, 16386, 0, 0}, "misaligned lse"},
        {offsetof(kvpool_attn_args, out), {s.region, 0, 0, 0}, "out on q"},
        {offsetof(kvpool_attn_args, out), {s.region, 508, 0, 0}, "out on the end of q"},
        {offsetof(kvpool_attn_args, lse), {s.region, 8192, 0, 0}, "lse on out"},
        {offsetof(kvpool_attn_args, out), {s.region, 8192, 64, 8}, "out on itself (heads)"},
        {offsetof(kvpool_attn_args, out), {s.region, 8192, 16, 16}, "out on itself (tokens)"},
        {offsetof(kvpool_attn_args, out), {NULL, 0, 0, 0}, "no out"},
        {offsetof(kvpool_attn_args, q), {NULL, 0, 0, 0}, "no q"},
        {offsetof(kvpool_attn_args, k), {s.region, 0, 0, 0}, "k without v or step"},
    };
    unsigned char *data = kvpool_region_data(s.region);
    memset(data, 0x5a, 65536);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kvpool_attn_args a = s.attn;
        memcpy((char *)&a + cases[i].which, &cases[i].tensor, sizeof(kvpool_tensor));
        kvpool_status status = kvpool_decode(s.client, &a);
        if (status != KVPOOL_E_INVAL) {
            fail_msg("%s: %s", cases[i].what, kvpool_status_name(status));
        }
    }
    for (size_t i = 0; i < 65536; i++) { // refused before any work started
        assert_int_equal(data[i], 0x5a);
    }
    // What only looks like an overlap is legal: out in its own columns of the rows that hold q.
    kvpool_attn_args a = s.attn;
    a.q = (kvpool_tensor){s.region, 0, 128, 16};
    a.out = (kvpool_tensor){s.region, 256, 128, 16};
    memset(data, 0, 65536);
    expect_ok(s.client, kvpool_decode(s.client, &a));
    scene_close(&s);
}

static void handles_stale_and_foreign_are_told_apart(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    kvpool_client *other = client_open(&kvd);
    kvpool_pool pool;
    expect_ok(other, kvpool_pool_open(other, "input", &pool));
    kvpool_seq own, copy;
    kvpool_seq_info info = {.size = sizeof info};
    expect_ok(other, kvpool_seq_create(other, pool, 1, &own));
    // Another client's sequence.
    expect_status(other, KVPOOL_E_PERM, kvpool_seq_truncate(other, s.seqs[0], 0));
    expect_status(other, KVPOOL_E_PERM, kvpool_seq_free(other, 1, &s.seqs[0]));
    expect_status(other, KVPOOL_E_PERM, kvpool_seq_fork(other, s.seqs[0], 1, &copy));
    expect_status(other, KVPOOL_E_PERM, kvpool_seq_stat(other, s.seqs[0], &info));
    // Another client's region.
    kvpool_attn_args a = s.attn;
    a.seqs = &own;
    a.n = 1;
    expect_status(other, KVPOOL_E_PERM, kvpool_decode(other, &a));
    // Stale, and never valid.
    expect_ok(other, kvpool_seq_free(other, 1, &own));
    expect_status(other, KVPOOL_E_STALE, kvpool_seq_free(other, 1, &own));
    expect_status(other, KVPOOL_E_STALE, kvpool_seq_truncate(other, own, 0));
    kvpool_seq zero = 0;
    expect_status(other, KVPOOL_E_STALE, kvpool_seq_free(other, 1, &zero));
    expect_status(other, KVPOOL_E_STALE, kvpool_seq_create(other, 0x123456789abcdefu, 1, &own));
    // A slot that is used again has another handle.
    kvpool_seq again;
    expect_ok(other, kvpool_seq_create(other, pool, 1, &again));
    assert_true(again != own);
    kvpool_close(other);
    scene_close(&s);
}

static void steps_keep_their_order(void **state) {
    (void)state;
    struct scene s;
    scene_open(&s);
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = s.pool;
    begin.n = 2;
    begin.seqs = s.seqs;
    begin.new_tokens = s.one;
    kvpool_step step, second;
    expect_status(s.client, KVPOOL_E_NOTFOUND, kvpool_step_commit(s.client, 999));
    expect_ok(s.client, kvpool_step_begin(s.client, &begin, &step, NULL));
    // A sequence is in one step at most, and its own operations wait.
    expect_status(s.client, KVPOOL_E_BUSY, kvpool_step_begin(s.client, &begin, &second, NULL));
    expect_status(s.client, KVPOOL_E_BUSY, kvpool_seq_truncate(s.client, s.seqs[0], 0));
    expect_status(s.client, KVPOOL_E_BUSY, kvpool_seq_free(s.client, 1, s.seqs));
    expect_status(s.client, KVPOOL_E_BUSY, kvpool_decode(s.client, &s.attn));
    // begin is idempotent by id; the same id with another batch is not the same step.
    begin.step = step;
    expect_ok(s.client, kvpool_step_begin(s.client, &begin, &second, NULL));
    assert_true(second == step);
    begin.n = 1;
    expect_status(s.client, KVPOOL_E_EXISTS, kvpool_step_begin(s.client, &begin, &second, NULL));
    // A layer is missing.
    expect_status(s.client, KVPOOL_E_STATE, kvpool_step_commit(s.client, step));
    expect_message(s.client, "layer 0");
    expect_ok(s.client, kvpool_step_abort(s.client, step));
    expect_ok(s.client, kvpool_step_abort(s.client, step));
    expect_status(s.client, KVPOOL_E_ABORTED, kvpool_step_commit(s.client, step));
    kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
    append.step = step;
    append.k = append.v = (kvpool_tensor){s.region, 0, 0, 0};
    expect_status(s.client, KVPOOL_E_ABORTED, kvpool_append(s.client, &append));
    append.step = 12345;
    expect_status(s.client, KVPOOL_E_NOTFOUND, kvpool_append(s.client, &append));
    // Commit is idempotent too.
    begin.n = 2;
    begin.step = 0;
    expect_ok(s.client, kvpool_step_begin(s.client, &begin, &step, NULL));
    append.step = step;
    expect_ok(s.client, kvpool_append(s.client, &append));
    expect_ok(s.client, kvpool_step_commit(s.client, step));
    expect_ok(s.client, kvpool_step_commit(s.client, step));
    expect_status(s.client, KVPOOL_E_STATE, kvpool_step_abort(s.client, step));
    for (unsigned i = 0; i < 2; i++) {
        expect_ok(s.client, kvpool_seq_truncate(s.client, s.seqs[i], 20));
    }
    scene_close(&s);
}

static void connect_arguments_are_checked(void **state) {
    (void)state;
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    kvpool_client *client = NULL;
    char path[300];
    memset(path, 'x', sizeof path - 1);
    path[0] = '/';
    path[sizeof path - 1] = 0;
    args.dir = path; // socket path too long
    expect_status(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &client));
    expect_message(NULL, "socket address");
    args.dir = "/nonexistent/kvpool";
    expect_status(NULL, KVPOOL_E_CONN, kvpool_connect(&args, &client));
    expect_message(NULL, "/nonexistent/kvpool");
    args.dir = kvd.dir;
    args.flags = 1;
    expect_status(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &client));
    args.flags = 0;
    args.name = "a name that is longer than the thirty-one bytes allowed";
    expect_status(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &client));
    args.name = NULL;
    args.size = 3;
    expect_status(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &client));
    assert_null(client);
}

static void region_limits_are_enforced(void **state) {
    (void)state;
    struct daemon small;
    daemon_prepare(&small);
    const char *const extra[] = {"--max-regions", "2", "--max-region-bytes", "1M", NULL};
    daemon_start(&small, extra);
    kvpool_client *client = client_open(&small);
    kvpool_region *a, *b, *c = NULL;
    expect_status(client, KVPOOL_E_INVAL, kvpool_region_create(client, 0, &c));
    expect_status(client, KVPOOL_E_LIMIT, kvpool_region_create(client, (1u << 20) + 1, &c));
    expect_ok(client, kvpool_region_create(client, 1 << 19, &a));
    expect_status(client, KVPOOL_E_LIMIT, kvpool_region_create(client, (1u << 19) + 1, &c));
    expect_ok(client, kvpool_region_create(client, 1, &b));
    expect_status(client, KVPOOL_E_LIMIT, kvpool_region_create(client, 1, &c));
    kvpool_region_free(b);
    expect_ok(client, kvpool_region_create(client, 1, &b));
    assert_true(kvpool_region_size(b) >= 1);
    kvpool_region_free(a);
    kvpool_region_free(b);
    kvpool_close(client);
    daemon_cleanup(&small);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_geometry_limits_are_named),
        cmocka_unit_test(a_pool_larger_than_memory_is_refused),
        cmocka_unit_test(numbers_that_make_no_sense_are_refused),
        cmocka_unit_test(batches_that_make_no_sense_are_refused),
        cmocka_unit_test(out_of_pages_says_how_many_and_changes_nothing),
        cmocka_unit_test(tensors_that_leave_their_region_or_overlap_are_refused),
        cmocka_unit_test(handles_stale_and_foreign_are_told_apart),
        cmocka_unit_test(steps_keep_their_order),
        cmocka_unit_test(connect_arguments_are_checked),
        cmocka_unit_test(region_limits_are_enforced),
    };
    return cmocka_run_group_tests_name("input", tests, kvd_setup, kvd_teardown);
}
