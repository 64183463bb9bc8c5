// SPDX-License-Identifier: Apache-2.0
// Sequences: create, fork, truncate, free, stat; batches without a step, pins.
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

static void created_sequences_are_empty_distinct_and_listed(void **state) {
    struct fixture *f = *state;
    uint64_t seqs[4];
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 4, seqs, &f->err));
    bool row_seen[6] = {false};
    for (uint32_t i = 0; i < 4; i++) {
        struct core_seq_info info;
        assert_ok(f, core_seq_stat(f->core, f->session, seqs[i], &info, &f->err));
        assert_int_equal(info.seq, seqs[i]);
        assert_int_equal(info.pool, f->pool);
        assert_int_equal(info.session, f->session);
        assert_int_equal(info.owner_pid, 101);
        assert_int_equal(info.length + info.pages + info.shared_pages, 0);
        assert_true(info.row < 6 && !row_seen[info.row]);
        assert_false(info.in_step);
        row_seen[info.row] = true;
    }
    struct core_seq_info info;
    uint32_t cursor = 0;
    uint32_t n = 0;
    while (core_seq_next(f->core, &cursor, &info)) {
        assert_int_equal(info.seq, seqs[n++]);
    }
    assert_int_equal(n, 4);
}

static void creating_beyond_a_limit_creates_none(void **state) {
    struct fixture *f = *state;
    uint64_t seqs[8] = {0};
    assert_fails(f, KVPOOL_E_INVAL, "n 0 is outside 1..5",
                 core_seq_create(f->core, f->session, f->pool, 0, 0, seqs, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "n 6 is outside 1..5",
                 core_seq_create(f->core, f->session, f->pool, 0, 6, seqs, &f->err));
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 3, seqs, &f->err));
    void *before = fixture_snapshot(f);
    assert_fails(f, KVPOOL_E_LIMIT, "3 of 6 sequences",
                 core_seq_create(f->core, f->session, f->pool, 0, 4, seqs + 3, &f->err));
    assert_fails(f, KVPOOL_E_LIMIT, "max_seqs",
                 core_seq_fork(f->core, f->session, seqs[0], 4, seqs + 3, &f->effects, &f->err));
    fixture_unchanged(f, before);
    struct core_pool_config c = fixture_config("q");
    c.max_seqs = 9;
    uint64_t q = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &c, &q, &created, &f->err));
    assert_ok(f, core_seq_create(f->core, f->session, q, 0, 5, seqs + 3, &f->err));
    assert_fails(f, KVPOOL_E_LIMIT, "8 of 10 sequences exist",
                 core_seq_create(f->core, f->session, q, 0, 3, seqs, &f->err));
}

static void a_stale_sequence_is_never_another_one(void **state) {
    struct fixture *f = *state;
    uint64_t old = fixture_seq(f, f->session, 5);
    assert_ok(f, core_seq_free(f->core, f->session, 1, &old, CORE_KEEP, &f->err));
    uint64_t young = fixture_seq(f, f->session, 5);
    assert_int_equal((uint32_t)old, (uint32_t)young);
    struct core_item item = {old, 1};
    struct core_batch batch;
    struct core_seq_info info;
    uint64_t fork = 0;
    struct core *c = f->core;
    uint64_t s = f->session;
    uint64_t handles[] = {old, 0, UINT64_MAX, young + 1, (uint64_t)1 << 32, young ^ (1ull << 63)};
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) {
        uint64_t h = handles[i];
        item.seq = h;
        assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_stat(c, s, h, &info, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_stat(c, 0, h, &info, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_truncate(c, s, h, 0, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_free(c, s, 1, &h, CORE_KEEP, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence",
                     core_seq_fork(c, s, h, 1, &fork, &f->effects, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence", fixture_begin(f, 1, h, 1));
        assert_fails(f, KVPOOL_E_STALE, "sequence",
                     core_batch_make(c, s, f->pool, 1, &item, &batch, &f->err));
        assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_pin(c, s, 1, &item, &f->err));
    }
    assert_int_equal(fixture_stat(f, young).length, 5);
}

static void a_foreign_sequence_is_refused(void **state) {
    struct fixture *f = *state;
    uint64_t foreign = fixture_seq(f, f->other, 5);
    struct core_item item = {foreign, 1};
    struct core_batch batch;
    struct core_seq_info info;
    uint64_t fork = 0;
    struct core *c = f->core;
    uint64_t s = f->session;
    assert_fails(f, KVPOOL_E_PERM, "another session", core_seq_stat(c, s, foreign, &info, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session", core_seq_truncate(c, s, foreign, 0, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session",
                 core_seq_free(c, s, 1, &foreign, CORE_KEEP, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session",
                 core_seq_fork(c, s, foreign, 1, &fork, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session", fixture_begin(f, 1, foreign, 1));
    assert_fails(f, KVPOOL_E_PERM, "another session",
                 core_batch_make(c, s, f->pool, 1, &item, &batch, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session", core_seq_pin(c, s, 1, &item, &f->err));
    assert_int_equal(fixture_stat(f, foreign).owner_pid, 102); // session 0: whoever owns it
}

static void a_fork_shares_all_pages_and_tells_the_rows(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 20);
    uint32_t free_pages = fixture_free_pages(f);
    uint64_t forks[3];
    assert_ok(f, core_seq_fork(f->core, f->session, a, 3, forks, &f->effects, &f->err));
    assert_int_equal(f->effects.pool, f->pool);
    assert_int_equal(f->effects.num_copies, 0);
    assert_int_equal(f->effects.num_deltas, 3);
    const uint32_t *row = core_row(f->core, f->pool, fixture_stat(f, a).row);
    for (uint32_t i = 0; i < 3; i++) {
        struct core_seq_info info = fixture_stat(f, forks[i]);
        assert_int_equal(info.length, 20);
        assert_int_equal(info.pages, 3);
        assert_int_equal(info.shared_pages, 3);
        assert_int_equal(f->effects.deltas[i].row, info.row);
        assert_int_equal(f->effects.deltas[i].first, 0);
        assert_int_equal(f->effects.deltas[i].count, 3);
        assert_memory_equal(core_row(f->core, f->pool, info.row), row, 3 * sizeof *row);
    }
    assert_int_equal(fixture_free_pages(f), free_pages);
    struct core_pool_info pool;
    assert_ok(f, core_pool_stat(f->core, f->pool, &pool, &f->err));
    assert_int_equal(pool.shared_pages, 3);
    assert_int_equal(pool.seqs, 4);
    // The last of them gives the pages back.
    assert_ok(f, core_seq_free(f->core, f->session, 3, forks, CORE_KEEP, &f->err));
    assert_int_equal(fixture_free_pages(f), free_pages);
    assert_int_equal(fixture_stat(f, a).shared_pages, 0);
    assert_ok(f, core_seq_free(f->core, f->session, 1, &a, CORE_KEEP, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES);
}

static void a_fork_of_nothing_has_no_effects(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 0);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_int_equal(f->effects.num_deltas, 0);
    assert_int_equal(f->effects.num_copies, 0);
    assert_fails(f, KVPOOL_E_INVAL, "n 0",
                 core_seq_fork(f->core, f->session, a, 0, &b, &f->effects, &f->err));
}

static void truncation_frees_the_pages_beyond(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 33); // 5 pages
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 5);
    void *before = fixture_snapshot(f);
    assert_fails(f, KVPOOL_E_INVAL, "33 tokens to 34",
                 core_seq_truncate(f->core, f->session, a, 34, &f->err));
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 33, &f->err));
    fixture_unchanged(f, before);
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 32, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 4);
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 25, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 4);
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 1, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 1);
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 0, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES);
    fixture_append(f, f->session, a, 9);
    assert_int_equal(fixture_stat(f, a).length, 9);
}

static void truncation_into_shared_pages_leaves_the_other_side_whole(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 32);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, core_seq_truncate(f->core, f->session, b, 12, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 4);
    assert_int_equal(fixture_stat(f, a).shared_pages, 2);
    uint32_t page = core_row(f->core, f->pool, fixture_stat(f, a).row)[1];
    // The page that b now fills partly is a's as well: writing to it needs a copy.
    assert_ok(f, fixture_begin(f, 1, b, 1));
    assert_int_equal(f->effects.num_copies, 1);
    assert_int_equal(f->effects.copies[0].src, page);
    fixture_mark(f, f->session, 1);
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_int_equal(core_row(f->core, f->pool, fixture_stat(f, a).row)[1], page);
    assert_int_equal(fixture_stat(f, a).length, 32);
    assert_int_equal(fixture_stat(f, a).shared_pages, 1);
}

static void a_list_to_free_is_freed_wholly_or_not(void **state) {
    struct fixture *f = *state;
    uint64_t mine[2] = {fixture_seq(f, f->session, 8), fixture_seq(f, f->session, 8)};
    uint64_t foreign = fixture_seq(f, f->other, 8);
    uint64_t in_step = fixture_seq(f, f->session, 8);
    uint64_t pinned = fixture_seq(f, f->session, 8);
    assert_ok(f, fixture_begin(f, 1, in_step, 1));
    struct core_item pin = {pinned, 0};
    assert_ok(f, core_seq_pin(f->core, f->session, 1, &pin, &f->err));
    const struct {
        uint64_t bad;
        int status;
        const char *text;
    } cases[] = {
        {mine[0], KVPOOL_E_INVAL, "twice"},
        {foreign, KVPOOL_E_PERM, "another session"},
        {mine[0] + (1ull << 32), KVPOOL_E_STALE, "does not exist"},
        {in_step, KVPOOL_E_BUSY, "open step"},
        {pinned, KVPOOL_E_BUSY, "in flight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t list[3] = {mine[0], mine[1], cases[i].bad};
        void *before = fixture_snapshot(f);
        assert_fails(f, cases[i].status, cases[i].text,
                     core_seq_free(f->core, f->session, 3, list, CORE_KEEP, &f->err));
        fixture_unchanged(f, before);
    }
    assert_fails(f, KVPOOL_E_INVAL, "empty",
                 core_seq_free(f->core, f->session, 0, mine, CORE_KEEP, &f->err));
    assert_ok(f, core_seq_free(f->core, f->session, 2, mine, CORE_KEEP, &f->err));
    core_seq_unpin(f->core, 1, &pin);
    assert_ok(f, core_seq_free(f->core, f->session, 1, &pinned, CORE_KEEP, &f->err));
}

static void pinned_sequences_stay_until_unpinned(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    struct core_item pin[2] = {{a, 0}, {a, 0}};
    assert_ok(f, core_seq_pin(f->core, f->session, 2, pin, &f->err)); // counted, not a flag
    core_seq_unpin(f->core, 1, pin);
    assert_fails(f, KVPOOL_E_BUSY, "in flight",
                 core_seq_truncate(f->core, f->session, a, 1, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "in flight",
                 core_seq_free(f->core, f->session, 1, &a, CORE_KEEP, &f->err));
    assert_ok(f, fixture_begin(f, 1, a, 1)); // work of one session runs in order
    assert_ok(f, core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    struct core_item bad[2] = {{b, 0}, {b + (1ull << 32), 0}};
    assert_fails(f, KVPOOL_E_STALE, "sequence", core_seq_pin(f->core, f->session, 2, bad, &f->err));
    assert_ok(f, core_seq_free(f->core, f->session, 1, &b, CORE_KEEP, &f->err)); // none was pinned
    core_seq_unpin(f->core, 1, pin);
    assert_ok(f, core_seq_truncate(f->core, f->session, a, 1, &f->err));
}

static void a_batch_has_rows_lengths_and_prefix_sums(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    uint64_t b = fixture_seq(f, f->session, 0);
    uint64_t c = fixture_seq(f, f->session, 3);
    struct core_item items[3] = {{c, 5}, {a, 0}, {b, 2}}; // more queries than tokens are allowed
    struct core_batch batch;
    assert_ok(f, core_batch_make(f->core, f->session, f->pool, 3, items, &batch, &f->err));
    assert_int_equal(batch.pool, f->pool);
    assert_int_equal(batch.n, 3);
    assert_int_equal(batch.tokens, 7);
    assert_int_equal(batch.max_q_len, 5);
    const uint32_t kv_len[] = {3, 12, 0};
    const uint32_t indptr[] = {0, 5, 5, 7};
    assert_memory_equal(batch.kv_len, kv_len, sizeof kv_len);
    assert_memory_equal(batch.qo_indptr, indptr, sizeof indptr);
    assert_int_equal(batch.rows[0], fixture_stat(f, c).row);
    assert_int_equal(batch.rows[1], fixture_stat(f, a).row);
    assert_int_equal(batch.rows[2], fixture_stat(f, b).row);
}

static void bad_batches_are_refused(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    uint64_t b = fixture_seq(f, f->session, 1);
    struct core_pool_config config = fixture_config("q");
    uint64_t q = 0;
    uint64_t in_q = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &config, &q, &created, &f->err));
    assert_ok(f, core_seq_create(f->core, f->session, q, 0, 1, &in_q, &f->err));
    struct core_batch batch;
    struct core_item items[6] = {{a, 1}, {b, 1}};
    struct core *c = f->core;
    uint64_t s = f->session;
    assert_fails(f, KVPOOL_E_INVAL, "empty",
                 core_batch_make(c, s, f->pool, 0, items, &batch, &f->err));
    assert_fails(f, KVPOOL_E_TOOBIG, "the limit is 5",
                 core_batch_make(c, s, f->pool, 6, items, &batch, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "pool",
                 core_batch_make(c, s, f->pool + (1ull << 32), 1, items, &batch, &f->err));
    items[1].seq = a;
    assert_fails(f, KVPOOL_E_INVAL, "twice",
                 core_batch_make(c, s, f->pool, 2, items, &batch, &f->err));
    items[1].seq = in_q;
    assert_fails(f, KVPOOL_E_INVAL, "another pool",
                 core_batch_make(c, s, f->pool, 2, items, &batch, &f->err));
    items[1] = (struct core_item){b, INT32_MAX}; // with a's one: over the limit of a batch
    assert_fails(f, KVPOOL_E_TOOBIG, "query tokens",
                 core_batch_make(c, s, f->pool, 2, items, &batch, &f->err));
    items[0].tokens = UINT32_MAX;
    items[1].tokens = UINT32_MAX; // the sum needs 33 bits
    assert_fails(f, KVPOOL_E_TOOBIG, "query tokens",
                 core_batch_make(c, s, f->pool, 2, items, &batch, &f->err));
    assert_ok(f, fixture_begin(f, 9, b, 1));
    items[0].tokens = items[1].tokens = 1;
    assert_fails(f, KVPOOL_E_BUSY, "open step 9",
                 core_batch_make(c, s, f->pool, 2, items, &batch, &f->err));
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        T(created_sequences_are_empty_distinct_and_listed),
        T(creating_beyond_a_limit_creates_none),
        T(a_stale_sequence_is_never_another_one),
        T(a_foreign_sequence_is_refused),
        T(a_fork_shares_all_pages_and_tells_the_rows),
        T(a_fork_of_nothing_has_no_effects),
        T(truncation_frees_the_pages_beyond),
        T(truncation_into_shared_pages_leaves_the_other_side_whole),
        T(a_list_to_free_is_freed_wholly_or_not),
        T(pinned_sequences_stay_until_unpinned),
        T(a_batch_has_rows_lengths_and_prefix_sums),
        T(bad_batches_are_refused),
    };
    return cmocka_run_group_tests_name("core sequences", tests, NULL, NULL);
}
