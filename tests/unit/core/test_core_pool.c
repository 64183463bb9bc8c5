// SPDX-License-Identifier: Apache-2.0
// Pools and sessions: geometry limits, names, spans of the page-table arena, slots, handles.
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void geometry_limits_name_the_field_and_the_limit(void **state) {
    struct fixture *f = *state;
    const struct core_pool_config good = fixture_config("g");
    struct core_pool_config c;
    const struct {
        size_t field;
        uint32_t bad;
        const char *text;
    } cases[] = {
        {offsetof(struct core_pool_config, layers), 0, "layers 0 is outside 1..512"},
        {offsetof(struct core_pool_config, layers), 513, "layers 513 is outside 1..512"},
        {offsetof(struct core_pool_config, kv_heads), 0, "kv_heads 0 is outside 1..256"},
        {offsetof(struct core_pool_config, kv_heads), 257, "kv_heads 257 is outside 1..256"},
        {offsetof(struct core_pool_config, head_dim), 0,
         "head_dim 0 is not a multiple of 8 (8..576)"},
        {offsetof(struct core_pool_config, head_dim), 100,
         "head_dim 100 is not a multiple of 8 (8..576)"},
        {offsetof(struct core_pool_config, head_dim), 584,
         "head_dim 584 is not a multiple of 8 (8..576)"},
        {offsetof(struct core_pool_config, page_size), 0,
         "page_size 0 is not a power of two (8..256)"},
        {offsetof(struct core_pool_config, page_size), 4,
         "page_size 4 is not a power of two (8..256)"},
        {offsetof(struct core_pool_config, page_size), 24,
         "page_size 24 is not a power of two (8..256)"},
        {offsetof(struct core_pool_config, page_size), 512,
         "page_size 512 is not a power of two (8..256)"},
        {offsetof(struct core_pool_config, dtype), 0, "dtype 0"},
        {offsetof(struct core_pool_config, dtype), 4, "dtype 4 is none of fp16 (1)"},
        {offsetof(struct core_pool_config, kv_dtype), 5, "kv_dtype 5 is neither dtype (0)"},
        {offsetof(struct core_pool_config, kv_dtype),
         good.dtype == KVPOOL_FP16 ? KVPOOL_BF16 : KVPOOL_FP16, "nor fp8_e4m3 (4)"},
        {offsetof(struct core_pool_config, export), 3, "export 3 is none of fd (1), ipc (2)"},
        {offsetof(struct core_pool_config, num_pages), 0, "num_pages 0 is outside 1..2147483647"},
        {offsetof(struct core_pool_config, num_pages), UINT32_MAX, "num_pages 4294967295"},
        {offsetof(struct core_pool_config, max_seqs), (1u << 20) + 1,
         "max_seqs 1048577 is outside 1..1048576"},
        {offsetof(struct core_pool_config, max_seq_len), 1u << 31,
         "max_seq_len 2147483648 is outside 1..2147483647"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        c = good;
        memcpy((char *)&c + cases[i].field, &cases[i].bad, sizeof cases[i].bad);
        assert_fails(f, KVPOOL_E_INVAL, cases[i].text, core_pool_config_check(&c, &f->err));
        uint64_t pool = 0;
        bool created = false;
        assert_fails(f, KVPOOL_E_INVAL, cases[i].text,
                     core_pool_create(f->core, &c, &pool, &created, &f->err));
        assert_int_equal(pool, 0);
    }
}

static void geometry_accepts_every_edge(void **state) {
    struct fixture *f = *state;
    const uint32_t dims[] = {8, 80, 96, 128, 256, 512, 576};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++) {
        for (uint32_t page = 8; page <= 256; page *= 2) {
            for (uint32_t dtype = 1; dtype <= 3; dtype++) {
                struct core_pool_config c = fixture_config("g");
                c.layers = d % 2 == 0 ? 1 : 512;
                c.kv_heads = d % 2 == 0 ? 256 : 1;
                c.head_dim = dims[d];
                c.page_size = page;
                c.dtype = dtype;
                assert_ok(f, core_pool_config_check(&c, &f->err));
            }
        }
    }
}

static void geometry_fills_in_its_zeros(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("g");
    c.max_seqs = 0;
    c.max_seq_len = 0;
    assert_ok(f, core_pool_config_check(&c, &f->err));
    assert_int_equal(c.max_seqs, 1024);
    assert_int_equal(c.max_seq_len, 16 * 8);
    c.num_pages = INT32_MAX; // num_pages * page_size is more than a length can be
    c.max_seq_len = 0;
    assert_ok(f, core_pool_config_check(&c, &f->err));
    assert_int_equal(c.max_seq_len, INT32_MAX);
}

static void geometry_refuses_more_bytes_than_a_file_can_have(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("g");
    c.layers = 512;
    c.kv_heads = 256;
    c.head_dim = 576;
    c.page_size = 256;
    c.dtype = KVPOOL_FP32;
    c.num_pages = INT32_MAX;
    assert_fails(f, KVPOOL_E_INVAL, "larger than 2^63 bytes", core_pool_config_check(&c, &f->err));
    c.num_pages = 1000000;
    assert_ok(f, core_pool_config_check(&c, &f->err));
    const uint64_t page = UINT64_C(2) * 512 * 256 * 256 * 576; // elements; fp8: bytes
    c.kv_dtype = KVPOOL_FP8_E4M3;
    c.num_pages = (uint32_t)(INT64_MAX / page);
    assert_ok(f, core_pool_config_check(&c, &f->err));
    c.num_pages++;
    assert_fails(f, KVPOOL_E_INVAL, "larger than 2^63 bytes", core_pool_config_check(&c, &f->err));
}

static void pool_names_are_checked(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("");
    assert_fails(f, KVPOOL_E_INVAL, "name", core_pool_config_check(&c, &f->err));
    memset(c.name, 'x', sizeof c.name); // unterminated
    assert_fails(f, KVPOOL_E_INVAL, "1..31 bytes", core_pool_config_check(&c, &f->err));
    const char *bad[] = {"a b", "a/b", "\x80", "a\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        c = fixture_config(bad[i]);
        assert_fails(f, KVPOOL_E_INVAL, "A-Za-z0-9_.-", core_pool_config_check(&c, &f->err));
    }
    c = fixture_config("Llama-3.1_8B");
    assert_ok(f, core_pool_config_check(&c, &f->err));
    memset(c.name, 'x', sizeof c.name - 1);
    assert_ok(f, core_pool_config_check(&c, &f->err));
}

static void an_equal_pool_is_opened_another_refused(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("p");
    memset(c.name + 2, 'j', 5); // bytes after the name's end mean nothing
    uint64_t pool = 0;
    bool created = true;
    assert_ok(f, core_pool_create(f->core, &c, &pool, &created, &f->err));
    assert_int_equal(pool, f->pool);
    assert_false(created);
    c.num_pages++;
    pool = 0;
    assert_fails(f, KVPOOL_E_EXISTS, "\"p\"",
                 core_pool_create(f->core, &c, &pool, &created, &f->err));
    assert_int_equal(pool, 0);
}

static void pages_of_another_type_are_another_pool(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("fp8");
    struct core_pool_info info;
    uint64_t pool = 0, other = 0;
    bool created = false;
    c.kv_dtype = KVPOOL_FP8_E4M3;
    c.export = KVPOOL_EXPORT_IPC;
    assert_ok(f, core_pool_create(f->core, &c, &pool, &created, &f->err));
    assert_ok(f, core_pool_stat(f->core, pool, &info, &f->err));
    assert_int_equal(info.config.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(info.config.export, KVPOOL_EXPORT_IPC);
    c.kv_dtype = c.dtype; // the same as none
    assert_fails(f, KVPOOL_E_EXISTS, "\"fp8\"",
                 core_pool_create(f->core, &c, &other, &created, &f->err));
    c.kv_dtype = KVPOOL_FP8_E4M3;
    c.export = KVPOOL_EXPORT_FD;
    assert_fails(f, KVPOOL_E_EXISTS, "\"fp8\"",
                 core_pool_create(f->core, &c, &other, &created, &f->err));
    c.export = 0; // whatever it has
    assert_ok(f, core_pool_create(f->core, &c, &other, &created, &f->err));
    assert_int_equal(other, pool);
    assert_false(created);
    c = fixture_config("p"); // the fixture's, of its dtype
    c.kv_dtype = c.dtype;
    assert_ok(f, core_pool_create(f->core, &c, &other, &created, &f->err));
    assert_int_equal(other, f->pool);
}

static void pools_are_found_listed_and_described(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("q");
    c.num_pages = 3;
    c.max_seqs = 2;
    c.max_seq_len = 9;
    uint64_t q = 0;
    uint64_t found = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &c, &q, &created, &f->err));
    assert_ok(f, core_pool_find(f->core, "q", &found, &f->err));
    assert_int_equal(found, q);
    assert_fails(f, KVPOOL_E_NOTFOUND, "\"r\"", core_pool_find(f->core, "r", &found, &f->err));
    struct core_pool_info info;
    assert_ok(f, core_pool_stat(f->core, q, &info, &f->err));
    assert_int_equal(info.index, 1);
    assert_int_equal(info.row_entries, 2);
    assert_int_equal(info.free_pages, 3);
    assert_int_equal(info.config.export, KVPOOL_EXPORT_FD); // the default
    c.export = KVPOOL_EXPORT_FD;
    assert_memory_equal(&info.config, &c, sizeof c);
    uint32_t cursor = 0;
    assert_true(core_pool_next(f->core, &cursor, &info));
    assert_int_equal(info.pool, f->pool);
    assert_true(core_pool_next(f->core, &cursor, &info));
    assert_int_equal(info.pool, q);
    assert_false(core_pool_next(f->core, &cursor, &info));
    struct core_totals totals;
    core_totals(f->core, &totals);
    assert_int_equal(totals.pools, 2);
    assert_int_equal(totals.sessions, 2);
}

static void a_destroyed_pool_is_stale_also_when_its_slot_lives_again(void **state) {
    struct fixture *f = *state;
    assert_ok(f, core_pool_destroy(f->core, f->pool, &f->err));
    struct core_pool_info info;
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_stat(f->core, f->pool, &info, &f->err));
    uint64_t old = f->pool;
    bool created = false;
    struct core_pool_config c = fixture_config("p");
    assert_ok(f, core_pool_create(f->core, &c, &f->pool, &created, &f->err));
    assert_int_equal((uint32_t)f->pool, (uint32_t)old);
    assert_int_not_equal(f->pool, old);
    uint64_t seq = 0;
    assert_fails(f, KVPOOL_E_STALE, "pool",
                 core_seq_create(f->core, f->session, old, 0, 1, &seq, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_destroy(f->core, old, &f->err));
    assert_null(core_row(f->core, old, 0));
    assert_null(core_row(f->core, f->pool, 6));
    assert_non_null(core_row(f->core, f->pool, 5));
    assert_fails(f, KVPOOL_E_STALE, "pool",
                 core_pool_stat(f->core, f->pool + 1, &info, &f->err)); // another slot
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_stat(f->core, 0, &info, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_stat(f->core, UINT64_MAX, &info, &f->err));
}

static void a_pool_with_sequences_is_busy(void **state) {
    struct fixture *f = *state;
    uint64_t seq = fixture_seq(f, f->session, 0);
    void *before = fixture_snapshot(f);
    assert_fails(f, KVPOOL_E_BUSY, "1 sequences", core_pool_destroy(f->core, f->pool, &f->err));
    fixture_unchanged(f, before);
    assert_ok(f, core_seq_free(f->core, f->session, 1, &seq, CORE_KEEP, &f->err));
    assert_ok(f, core_pool_destroy(f->core, f->pool, &f->err));
}

// The arena has 256 entries, pool "p" (6 rows of 12) the first 72.
static void page_tables_are_placed_by_first_fit(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("q");
    c.max_seqs = 10;
    c.max_seq_len = 80; // 10 x 10 = 100 entries: [72, 172)
    uint64_t q = 0;
    uint64_t r = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &c, &q, &created, &f->err));
    c = fixture_config("r");
    c.max_seqs = 17;
    c.max_seq_len = 33; // 17 x 5 = 85: one more than is left
    assert_fails(f, KVPOOL_E_LIMIT, "max_table_entries",
                 core_pool_create(f->core, &c, &r, &created, &f->err));
    assert_ok(f, core_pool_destroy(f->core, f->pool, &f->err)); // [0, 72) is free
    assert_fails(f, KVPOOL_E_LIMIT, "85 page-table entries",
                 core_pool_create(f->core, &c, &r, &created, &f->err));
    c.max_seqs = 14; // 70
    assert_ok(f, core_pool_create(f->core, &c, &r, &created, &f->err));
    assert_ptr_equal(core_row(f->core, r, 0) + 72, core_row(f->core, q, 0));
    c = fixture_config("p");
    c.max_seqs = 7; // 7 x 12 = 84: the rest
    assert_ok(f, core_pool_create(f->core, &c, &f->pool, &created, &f->err));
    assert_ptr_equal(core_row(f->core, f->pool, 0), core_row(f->core, q, 0) + 100);
    c = fixture_config("s");
    assert_fails(f, KVPOOL_E_LIMIT, "all 3 pools",
                 core_pool_create(f->core, &c, &r, &created, &f->err));
}

static void a_page_table_larger_than_the_arena_is_refused(void **state) {
    struct fixture *f = *state;
    struct core_pool_config c = fixture_config("q");
    c.num_pages = INT32_MAX;
    c.max_seqs = 1u << 20;
    c.max_seq_len = INT32_MAX; // the product needs 48 bits
    uint64_t q = 0;
    bool created = false;
    assert_fails(f, KVPOOL_E_LIMIT, "281474976710656 page-table entries",
                 core_pool_create(f->core, &c, &q, &created, &f->err));
}

static void sessions_have_a_limit_and_stale_handles(void **state) {
    struct fixture *f = *state;
    uint8_t token[CORE_TOKEN_SIZE];
    memset(token, 9, sizeof token);
    uint64_t third = 0;
    uint64_t none = 0;
    const char *name = "a name of more than thirty-one bytes";
    assert_ok(f, core_session_open(f->core, 7, 8, name, token, &third, &f->err));
    assert_fails(f, KVPOOL_E_LIMIT, "all 3 sessions",
                 core_session_open(f->core, 7, 8, NULL, token, &none, &f->err));
    struct core_session_info info;
    assert_ok(f, core_session_stat(f->core, third, &info, &f->err));
    assert_int_equal(info.uid, 8);
    assert_memory_equal(info.token, token, sizeof token);
    assert_int_equal(strlen(info.name), 31);
    assert_ok(f, core_session_close(f->core, third, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "session", core_session_close(f->core, third, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "session", core_session_stat(f->core, third, &info, &f->err));
    uint64_t again = 0;
    assert_ok(f, core_session_open(f->core, 7, 8, NULL, token, &again, &f->err));
    assert_int_equal((uint32_t)again, (uint32_t)third);
    assert_int_not_equal(again, third);
    assert_ok(f, core_session_stat(f->core, again, &info, &f->err));
    assert_string_equal(info.name, "");
}

// A stale session is refused by every operation that takes one.
static void every_operation_refuses_a_stale_session(void **state) {
    struct fixture *f = *state;
    uint64_t seq = fixture_seq(f, f->other, 3);
    uint64_t s = f->session;
    assert_ok(f, core_session_close(f->core, s, &f->err));
    struct core_item item = {seq, 1};
    struct core_batch batch;
    struct core_seq_info info;
    uint64_t fork = 0;
    const char *text = "session";
    struct core *c = f->core;
    struct err *err = &f->err;
    int stale = KVPOOL_E_STALE;
    assert_fails(f, stale, text, core_seq_create(c, s, f->pool, 0, 1, &fork, err));
    assert_fails(f, stale, text, core_seq_fork(c, s, seq, 1, &fork, &f->effects, err));
    assert_fails(f, stale, text, core_seq_truncate(c, s, seq, 0, err));
    assert_fails(f, stale, text, core_seq_free(c, s, 1, &seq, CORE_KEEP, err));
    assert_fails(f, stale, text, core_seq_stat(c, s, seq, &info, err));
    assert_fails(f, stale, text,
                 core_step_begin(c, s, 1, f->pool, 1, &item, NULL, &f->info, &f->effects, err));
    assert_fails(f, stale, text, core_step_batch(c, s, 1, &batch, err));
    assert_fails(f, stale, text, core_step_hold(c, s, 1, err));
    assert_fails(f, stale, text, core_step_release(c, s, 1, err));
    assert_fails(f, stale, text, core_step_mark(c, s, 1, 0, true, err));
    assert_fails(f, stale, text, core_step_commit(c, s, 1, &f->info, &f->effects, err));
    assert_fails(f, stale, text, core_step_abort(c, s, 1, &f->effects, err));
    assert_fails(f, stale, text, core_batch_make(c, s, f->pool, 1, &item, &batch, err));
    assert_fails(f, stale, text, core_seq_pin(c, s, 1, &item, err));
    assert_int_equal(fixture_stat(f, seq).length, 3);
}

static void closing_a_session_frees_all_it_has_and_nothing_else(void **state) {
    struct fixture *f = *state;
    uint64_t other = fixture_seq(f, f->other, 10);
    uint32_t free_pages = fixture_free_pages(f);
    uint64_t a = fixture_seq(f, f->session, 20);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 5, b, 9));
    assert_ok(f, fixture_begin(f, 6, a, 1));
    struct core_totals totals;
    core_totals(f->core, &totals);
    assert_int_equal(totals.steps, 2);
    assert_int_equal(totals.seqs, 3);
    assert_ok(f, core_session_close(f->core, f->session, &f->err));
    core_totals(f->core, &totals);
    assert_int_equal(totals.steps, 0);
    assert_int_equal(totals.seqs, 1);
    assert_int_equal(totals.sessions, 1);
    assert_int_equal(fixture_free_pages(f), free_pages);
    assert_int_equal(fixture_stat(f, other).length, 10);
    fixture_check(f);
}

static void closing_a_session_with_work_in_flight_is_busy_and_changes_nothing(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 20);
    uint64_t b = fixture_seq(f, f->session, 4);
    assert_ok(f, fixture_begin(f, 5, a, 9));
    assert_ok(f, core_step_hold(f->core, f->session, 5, &f->err));
    void *before = fixture_snapshot(f);
    assert_fails(f, KVPOOL_E_BUSY, "in flight", core_session_close(f->core, f->session, &f->err));
    fixture_unchanged(f, before);
    assert_ok(f, core_step_release(f->core, f->session, 5, &f->err));
    struct core_item pin = {b, 0};
    assert_ok(f, core_seq_pin(f->core, f->session, 1, &pin, &f->err));
    before = fixture_snapshot(f);
    assert_fails(f, KVPOOL_E_BUSY, "in flight", core_session_close(f->core, f->session, &f->err));
    fixture_unchanged(f, before);
    core_seq_unpin(f->core, 1, &pin);
    assert_ok(f, core_session_close(f->core, f->session, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES);
}

static void handles_of_another_epoch_or_kind_are_stale(void **state) {
    struct fixture *f = *state;
    uint64_t seq = fixture_seq(f, f->session, 0);
    struct core_pool_info pool;
    struct core_seq_info info;
    struct core_session_info session;
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_stat(f->core, seq, &pool, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_stat(f->core, 0, f->pool, &info, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "session",
                 core_session_stat(f->core, f->pool, &session, &f->err));
    void *block = fixture_block(f->size);
    struct core *next = NULL;
    assert_ok(f, core_create(block, f->size, &f->limits, FIXTURE_EPOCH + 1, fixture_secret, &next,
                             &f->err));
    struct core_pool_config c = fixture_config("p");
    uint64_t next_pool = 0;
    bool created = false;
    assert_ok(f, core_pool_create(next, &c, &next_pool, &created, &f->err));
    assert_int_equal((uint32_t)next_pool, (uint32_t)f->pool);
    assert_fails(f, KVPOOL_E_STALE, "pool", core_pool_stat(next, f->pool, &pool, &f->err));
    core_close(next);
    free(block);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        T(geometry_limits_name_the_field_and_the_limit),
        T(geometry_accepts_every_edge),
        T(geometry_fills_in_its_zeros),
        T(geometry_refuses_more_bytes_than_a_file_can_have),
        T(pool_names_are_checked),
        T(an_equal_pool_is_opened_another_refused),
        T(pages_of_another_type_are_another_pool),
        T(pools_are_found_listed_and_described),
        T(a_destroyed_pool_is_stale_also_when_its_slot_lives_again),
        T(a_pool_with_sequences_is_busy),
        T(page_tables_are_placed_by_first_fit),
        T(a_page_table_larger_than_the_arena_is_refused),
        T(sessions_have_a_limit_and_stale_handles),
        T(every_operation_refuses_a_stale_session),
        T(closing_a_session_frees_all_it_has_and_nothing_else),
        T(closing_a_session_with_work_in_flight_is_busy_and_changes_nothing),
        T(handles_of_another_epoch_or_kind_are_stale),
    };
    return cmocka_run_group_tests_name("core pools and sessions", tests, NULL, NULL);
}
