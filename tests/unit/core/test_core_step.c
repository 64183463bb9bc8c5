// SPDX-License-Identifier: Apache-2.0
// Steps: begin, marking, commit, abort; copy-on-write; what is refused; repeats.
#include "fixture.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const uint32_t *row_of(const struct fixture *f, uint64_t seq) {
    return core_row(f->core, f->pool, fixture_stat(f, seq).row);
}

static void a_step_appends_when_committed(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 6);
    uint64_t b = fixture_seq(f, f->session, 0);
    struct core_item items[2] = {{a, 11}, {b, 3}};
    assert_ok(f, core_step_begin(f->core, f->session, 1, f->pool, 2, items, NULL, &f->info,
                                 &f->effects, &f->err));
    assert_int_equal(f->info.step, 1);
    assert_int_equal(f->info.pool, f->pool);
    assert_int_equal(f->info.tokens, 14);
    assert_int_equal(f->info.pages, 3);
    assert_false(f->info.repeated);
    assert_int_equal(f->effects.pool, f->pool);
    assert_int_equal(f->effects.num_copies, 0);
    assert_int_equal(f->effects.num_deltas, 2);
    assert_int_equal(f->effects.deltas[0].row, fixture_stat(f, a).row);
    assert_int_equal(f->effects.deltas[0].first, 1); // the partial page is a's alone
    assert_int_equal(f->effects.deltas[0].count, 2);
    assert_int_equal(f->effects.deltas[1].row, fixture_stat(f, b).row);
    assert_int_equal(f->effects.deltas[1].first, 0);
    assert_int_equal(f->effects.deltas[1].count, 1);
    struct core_batch batch;
    assert_ok(f, core_step_batch(f->core, f->session, 1, &batch, &f->err));
    const uint32_t kv_len[] = {17, 3};
    const uint32_t indptr[] = {0, 11, 14};
    assert_int_equal(batch.n, 2);
    assert_int_equal(batch.tokens, 14);
    assert_int_equal(batch.max_q_len, 11);
    assert_memory_equal(batch.kv_len, kv_len, sizeof kv_len);
    assert_memory_equal(batch.qo_indptr, indptr, sizeof indptr);
    assert_int_equal(fixture_stat(f, a).length, 6); // nothing uncommitted is visible
    assert_int_equal(fixture_stat(f, a).pages, 1);
    fixture_check(f);
    fixture_mark(f, f->session, 1);
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_int_equal(f->info.tokens, 14);
    assert_int_equal(f->info.pages, 3);
    assert_false(f->info.repeated);
    assert_int_equal(fixture_stat(f, a).length, 17);
    assert_int_equal(fixture_stat(f, b).length, 3);
    assert_false(fixture_stat(f, a).in_step);
}

static void an_aborted_step_never_happened(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 6);
    uint32_t free_pages = fixture_free_pages(f);
    assert_ok(f, fixture_begin(f, 1, a, 30));
    assert_int_equal(fixture_free_pages(f), free_pages - 4);
    assert_ok(f, core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    assert_int_equal(f->effects.num_deltas, 0); // the row's committed entries never changed
    assert_int_equal(fixture_free_pages(f), free_pages);
    assert_int_equal(fixture_stat(f, a).length, 6);
    assert_false(fixture_stat(f, a).in_step);
}

// Both sides of a fork write to the shared partial page, in separate steps.
static void the_first_writer_copies_the_last_holder_does_not(void **state) {
    struct fixture *f = *state;
    for (int parent_first = 0; parent_first < 2; parent_first++) {
        uint64_t a = fixture_seq(f, f->session, 12);
        uint64_t b = 0;
        assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
        uint64_t first = parent_first ? a : b;
        uint64_t second = parent_first ? b : a;
        uint32_t shared = row_of(f, a)[1];
        assert_ok(f, fixture_begin(f, (uint64_t)parent_first * 2 + 1, first, 6));
        assert_int_equal(f->info.pages, 2); // the copy, and one beyond
        assert_int_equal(f->effects.num_copies, 1);
        assert_int_equal(f->effects.copies[0].src, shared);
        assert_int_equal(f->effects.copies[0].dst, row_of(f, first)[1]);
        assert_int_equal(f->effects.num_deltas, 1);
        assert_int_equal(f->effects.deltas[0].first, 1);
        assert_int_equal(f->effects.deltas[0].count, 2);
        assert_int_not_equal(row_of(f, first)[1], shared);
        assert_int_equal(row_of(f, second)[1], shared);
        assert_int_equal(row_of(f, first)[0], row_of(f, second)[0]);
        assert_int_equal(fixture_stat(f, first).shared_pages, 2); // still by its committed tokens
        assert_int_equal(fixture_stat(f, second).shared_pages, 2);
        fixture_check(f);
        fixture_mark(f, f->session, (uint64_t)parent_first * 2 + 1);
        assert_ok(f, core_step_commit(f->core, f->session, (uint64_t)parent_first * 2 + 1, &f->info,
                                      &f->effects, &f->err));
        assert_int_equal(f->info.pages, 1); // added: 12 tokens have two pages, 18 three
        assert_int_equal(fixture_stat(f, second).shared_pages, 1);
        assert_ok(f, fixture_begin(f, (uint64_t)parent_first * 2 + 2, second, 1));
        assert_int_equal(f->effects.num_copies + f->effects.num_deltas, 0);
        assert_int_equal(row_of(f, second)[1], shared);
        assert_ok(f, core_step_abort(f->core, f->session, (uint64_t)parent_first * 2 + 2,
                                     &f->effects, &f->err));
        uint64_t both[2] = {a, b};
        assert_ok(f, core_seq_free(f->core, f->session, 2, both, CORE_KEEP, &f->err));
        assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES);
    }
}

static void holders_in_one_step_all_copy(void **state) {
    struct fixture *f = *state;
    for (uint64_t step = 1; step <= 2; step++) { // the first is committed, the second aborted
        uint64_t s[3] = {fixture_seq(f, f->session, 4)};
        assert_ok(f, core_seq_fork(f->core, f->session, s[0], 2, s + 1, &f->effects, &f->err));
        uint32_t shared = row_of(f, s[0])[0];
        struct core_item items[3] = {{s[0], 1}, {s[1], 1}, {s[2], 1}};
        assert_ok(f, core_step_begin(f->core, f->session, step, f->pool, 3, items, NULL, &f->info,
                                     &f->effects, &f->err));
        assert_int_equal(f->effects.num_copies, 3);
        assert_int_equal(f->effects.num_deltas, 3);
        for (uint32_t i = 0; i < 3; i++) {
            assert_int_equal(f->effects.copies[i].src, shared);
            assert_int_equal(f->effects.copies[i].dst, row_of(f, s[i])[0]);
            assert_int_not_equal(row_of(f, s[i])[0], shared);
            assert_int_not_equal(row_of(f, s[i])[0], row_of(f, s[(i + 1) % 3])[0]);
        }
        fixture_check(f);
        if (step == 1) {
            assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 4);
            fixture_mark(f, f->session, step);
            assert_ok(f,
                      core_step_commit(f->core, f->session, step, &f->info, &f->effects, &f->err));
            assert_int_equal(f->info.pages, 0);
            assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 3); // nobody has it any more
        } else {
            assert_ok(f, core_step_abort(f->core, f->session, step, &f->effects, &f->err));
            assert_int_equal(f->effects.num_deltas, 3); // the rows name the shared page again
            for (uint32_t i = 0; i < 3; i++) {
                assert_int_equal(f->effects.deltas[i].row, fixture_stat(f, s[i]).row);
                assert_int_equal(f->effects.deltas[i].first, 0);
                assert_int_equal(f->effects.deltas[i].count, 1);
                assert_int_equal(row_of(f, s[i])[0], shared);
            }
            assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 1);
        }
        fixture_check(f);
        assert_ok(f, core_seq_free(f->core, f->session, 3, s, CORE_KEEP, &f->err));
        assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES);
    }
}

static void the_other_side_may_be_freed_while_its_page_is_being_copied(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 4);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    uint32_t shared = row_of(f, a)[0];
    assert_ok(f, fixture_begin(f, 1, b, 1));
    assert_ok(f, core_seq_free(f->core, f->session, 1, &a, CORE_KEEP, &f->err));
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 2); // the step still names it
    fixture_check(f);
    assert_ok(f, core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    assert_int_equal(row_of(f, b)[0], shared);
    assert_int_equal(fixture_stat(f, b).shared_pages, 0);
    assert_int_equal(fixture_free_pages(f), FIXTURE_PAGES - 1);
}

static void zero_new_tokens_copy_nothing(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 4);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 1, b, 0));
    assert_int_equal(f->effects.num_copies + f->effects.num_deltas, 0);
    assert_int_equal(f->info.pages + f->info.tokens, 0);
    assert_true(fixture_stat(f, b).in_step);
    assert_int_equal(fixture_stat(f, b).shared_pages, 1);
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects,
                                  &f->err)); // needs no layers
    assert_int_equal(fixture_stat(f, b).length, 4);
}

static void full_pages_are_shared_without_copies(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 16);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 1, b, 1));
    assert_int_equal(f->effects.num_copies, 0);
    assert_int_equal(f->effects.num_deltas, 1);
    assert_int_equal(f->effects.deltas[0].first, 2);
    assert_int_equal(f->effects.deltas[0].count, 1);
}

static void nospace_says_how_many_pages_and_changes_nothing(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 76); // 10 of 16 pages
    uint64_t forks[2];
    assert_ok(f, core_seq_fork(f->core, f->session, a, 2, forks, &f->effects, &f->err));
    uint64_t c = fixture_seq(f, f->session, 0);
    uint64_t d = fixture_seq(f, f->session, 0);
    // Two copies of the tail, 5 pages for c, 3 for d: 10, and 6 are free.
    struct core_item items[4] = {{forks[0], 4}, {forks[1], 1}, {c, 33}, {d, 24}};
    int rc = core_step_begin(f->core, f->session, 1, f->pool, 4, items, NULL, &f->info, &f->effects,
                             &f->err);
    assert_int_equal(f->err.detail, 4);
    assert_fails(f, KVPOOL_E_NOSPACE, "needs 10 pages, pool \"p\" has 6 free", rc);
    struct core_batch batch;
    assert_fails(f, KVPOOL_E_NOTFOUND, "step 1",
                 core_step_batch(f->core, f->session, 1, &batch, &f->err));
    assert_int_equal(fixture_free_pages(f), 6);
    assert_false(fixture_stat(f, c).in_step);
    items[3].tokens = 0;
    items[2].tokens = 32; // 6: fits exactly
    assert_ok(f, core_step_begin(f->core, f->session, 1, f->pool, 4, items, NULL, &f->info,
                                 &f->effects, &f->err));
    assert_int_equal(fixture_free_pages(f), 0);
    assert_ok(f, core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    assert_int_equal(fixture_free_pages(f), 6);
}

static void bad_begins_are_refused(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    uint64_t b = fixture_seq(f, f->session, 1);
    struct core_pool_config config = fixture_config("q");
    uint64_t q = 0;
    uint64_t in_q = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &config, &q, &created, &f->err));
    assert_ok(f, core_seq_create(f->core, f->session, q, 0, 1, &in_q, &f->err));
    struct core_item items[6] = {{a, 1}, {b, 1}};
#define BEGIN(id, pool, n) \
    core_step_begin(f->core, f->session, id, pool, n, items, NULL, &f->info, &f->effects, &f->err)
    assert_fails(f, KVPOOL_E_INVAL, "step id 0", BEGIN(0, f->pool, 1));
    assert_fails(f, KVPOOL_E_INVAL, "empty", BEGIN(1, f->pool, 0));
    assert_fails(f, KVPOOL_E_TOOBIG, "the limit is 5", BEGIN(1, f->pool, 6));
    assert_fails(f, KVPOOL_E_STALE, "pool", BEGIN(1, f->pool + (1ull << 32), 1));
    items[1].seq = a;
    assert_fails(f, KVPOOL_E_INVAL, "twice", BEGIN(1, f->pool, 2));
    items[1].seq = in_q;
    assert_fails(f, KVPOOL_E_INVAL, "another pool", BEGIN(1, f->pool, 2));
    items[1] = (struct core_item){b, 96};
    assert_fails(f, KVPOOL_E_INVAL, "would have 97 tokens, the limit is 96 (max_seq_len)",
                 BEGIN(1, f->pool, 2));
    items[1].tokens = UINT32_MAX;
    assert_fails(f, KVPOOL_E_INVAL, "4294967296 tokens", BEGIN(1, f->pool, 2));
    items[1].tokens = 95;
    assert_ok(f, BEGIN(1, f->pool, 2)); // exactly max_seq_len
    assert_fails(f, KVPOOL_E_BUSY, "open step 1", BEGIN(2, f->pool, 1));
#undef BEGIN
}

static void a_batch_of_too_many_tokens_is_refused(void **state) {
    (void)state;
    struct fixture fx = {.limits = core_limits_default};
    struct fixture *f = &fx;
    f->limits.max_table_entries = UINT64_C(1) << 25;
    f->limits.max_seqs = 4;
    f->limits.max_steps = 1;
    f->size = core_block_size(&f->limits);
    f->block = mmap(NULL, f->size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); // only its head is touched
    assert_true(f->block != MAP_FAILED);
    assert_ok(f, core_create(f->block, f->size, &f->limits, 1, fixture_secret, &f->core, &f->err));
    const uint8_t token[CORE_TOKEN_SIZE] = {0};
    assert_ok(f, core_session_open(f->core, 1, 1, "x", token, &f->session, &f->err));
    struct core_pool_config config = {.name = "big",
                                      .layers = 1,
                                      .kv_heads = 1,
                                      .head_dim = 8,
                                      .page_size = 256,
                                      .dtype = KVPOOL_FP16,
                                      .num_pages = 1000,
                                      .max_seqs = 2,
                                      .max_seq_len = INT32_MAX};
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &config, &f->pool, &created, &f->err));
    uint64_t seqs[2];
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 2, seqs, &f->err));
    struct core_item items[2] = {{seqs[0], INT32_MAX}, {seqs[1], 1}};
    assert_fails(f, KVPOOL_E_TOOBIG, "tokens",
                 core_step_begin(f->core, f->session, 1, f->pool, 2, items, NULL, &f->info,
                                 &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_NOSPACE, "needs 8388608 pages",
                 core_step_begin(f->core, f->session, 1, f->pool, 1, items, NULL, &f->info,
                                 &f->effects, &f->err));
    core_close(f->core);
    munmap(f->block, f->size);
}

static void open_steps_have_limits(void **state) {
    struct fixture *f = *state;
    uint64_t s[4];
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 4, s, &f->err));
    uint64_t o[2];
    assert_ok(f, core_seq_create(f->core, f->other, f->pool, 0, 2, o, &f->err));
    for (uint64_t i = 0; i < 3; i++) {
        assert_ok(f, fixture_begin(f, i + 1, s[i], 1));
    }
    assert_fails(f, KVPOOL_E_LIMIT, "max_session_steps", fixture_begin(f, 4, s[3], 1));
    struct core_item item = {o[0], 1};
    assert_ok(f,
              core_step_begin(f->core, f->other, 1, f->pool, 1, &item, NULL, &f->info, &f->effects,
                              &f->err)); // ids are per session
    item.seq = o[1];
    assert_fails(f, KVPOOL_E_LIMIT, "(max_steps)",
                 core_step_begin(f->core, f->other, 2, f->pool, 1, &item, NULL, &f->info,
                                 &f->effects, &f->err));
}

static void a_sequence_in_a_step_is_busy(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    assert_ok(f, fixture_begin(f, 1, a, 1));
    uint64_t b = 0;
    assert_fails(f, KVPOOL_E_BUSY, "open step",
                 core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "open step",
                 core_seq_truncate(f->core, f->session, a, 0, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "open step",
                 core_seq_free(f->core, f->session, 1, &a, CORE_KEEP, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "sequences", core_pool_destroy(f->core, f->pool, &f->err));
}

static void commit_needs_every_layer(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 0);
    assert_ok(f, fixture_begin(f, 1, a, 1));
    assert_fails(f, KVPOOL_E_STATE, "layer 0 of step 1",
                 core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_ok(f, core_step_mark(f->core, f->session, 1, 0, true, &f->err));
    assert_fails(f, KVPOOL_E_STATE, "layer 1 of step 1",
                 core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_ok(f, core_step_mark(f->core, f->session, 1, 1, true, &f->err));
    assert_ok(f, core_step_mark(f->core, f->session, 1, 0, false, &f->err)); // its append failed
    assert_fails(f, KVPOOL_E_STATE, "layer 0 of step 1",
                 core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "layer 2 is outside 0..1",
                 core_step_mark(f->core, f->session, 1, 2, true, &f->err));
    assert_ok(f, core_step_mark(f->core, f->session, 1, 0, true, &f->err));
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
}

static void commit_needs_all_of_512_layers(void **state) {
    struct fixture *f = *state;
    const uint32_t counts[] = {63, 64, 65, 512};
    for (uint32_t i = 0; i < 4; i++) {
        struct core_pool_config config = fixture_config("deep");
        config.layers = counts[i];
        uint64_t deep = 0;
        uint64_t seq = 0;
        bool created = false;
        assert_ok(f, core_pool_create(f->core, &config, &deep, &created, &f->err));
        assert_ok(f, core_seq_create(f->core, f->session, deep, 0, 1, &seq, &f->err));
        struct core_item item = {seq, 1};
        assert_ok(f, core_step_begin(f->core, f->session, 1 + i, deep, 1, &item, NULL, &f->info,
                                     &f->effects, &f->err));
        for (uint32_t layer = 0; layer < counts[i]; layer++) {
            assert_fails(
                f, KVPOOL_E_STATE, "layer",
                core_step_commit(f->core, f->session, 1 + i, &f->info, &f->effects, &f->err));
            assert_ok(f, core_step_mark(f->core, f->session, 1 + i, layer, true, &f->err));
        }
        assert_ok(f, core_step_commit(f->core, f->session, 1 + i, &f->info, &f->effects, &f->err));
        assert_ok(f, core_seq_free(f->core, f->session, 1, &seq, CORE_KEEP, &f->err));
        assert_ok(f, core_pool_destroy(f->core, deep, &f->err));
    }
}

static void a_held_step_is_busy(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 0);
    assert_ok(f, fixture_begin(f, 1, a, 1));
    fixture_mark(f, f->session, 1);
    assert_ok(f, core_step_hold(f->core, f->session, 1, &f->err));
    assert_ok(f, core_step_hold(f->core, f->session, 1, &f->err));
    assert_ok(f, core_step_release(f->core, f->session, 1, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "1 requests in flight",
                 core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_BUSY, "1 requests in flight",
                 core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    assert_ok(f, core_step_release(f->core, f->session, 1, &f->err));
    assert_fails(f, KVPOOL_E_STATE, "not held", core_step_release(f->core, f->session, 1, &f->err));
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
}

static void repeats_are_harmless(void **state) {
    struct fixture *f = *state;
    uint64_t s[2] = {fixture_seq(f, f->session, 4)};
    assert_ok(f, core_seq_fork(f->core, f->session, s[0], 1, s + 1, &f->effects, &f->err));
    struct core_item items[2] = {{s[0], 9}, {s[1], 0}};
#define BEGIN(id, n)                                                                         \
    core_step_begin(f->core, f->session, id, f->pool, n, items, NULL, &f->info, &f->effects, \
                    &f->err)
    assert_ok(f, BEGIN(1, 2));
    struct core_step_info first = f->info;
    void *before = fixture_snapshot(f);
    assert_ok(f, BEGIN(1, 2));
    assert_true(f->info.repeated);
    assert_int_equal(f->info.pages, first.pages);
    assert_int_equal(f->info.tokens, first.tokens);
    assert_int_equal(f->effects.num_copies + f->effects.num_deltas, 0);
    // Another batch under the same id.
    assert_fails(f, KVPOOL_E_EXISTS, "another batch", BEGIN(1, 1));
    items[1].tokens = 1;
    assert_fails(f, KVPOOL_E_EXISTS, "another batch", BEGIN(1, 2));
    items[1] = items[0];
    items[0] = (struct core_item){s[1], 0};
    assert_fails(f, KVPOOL_E_EXISTS, "another batch", BEGIN(1, 2));
    fixture_unchanged(f, before);

    fixture_mark(f, f->session, 1);
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    struct core_step_info committed = f->info;
    before = fixture_snapshot(f);
    assert_ok(f, core_step_commit(f->core, f->session, 1, &f->info, &f->effects, &f->err));
    assert_true(f->info.repeated);
    assert_int_equal(f->info.step, 1);
    assert_int_equal(f->info.pool, f->pool);
    assert_int_equal(f->info.pages, committed.pages);
    assert_int_equal(f->info.tokens, committed.tokens);
    assert_fails(f, KVPOOL_E_STATE, "already committed", BEGIN(1, 2));
    assert_fails(f, KVPOOL_E_STATE, "already committed",
                 core_step_abort(f->core, f->session, 1, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_STATE, "already committed",
                 core_step_mark(f->core, f->session, 1, 0, true, &f->err));
    assert_fails(f, KVPOOL_E_STATE, "already committed",
                 core_step_hold(f->core, f->session, 1, &f->err));
    fixture_unchanged(f, before);

    assert_ok(f, BEGIN(2, 2));
    assert_ok(f, core_step_abort(f->core, f->session, 2, &f->effects, &f->err));
    before = fixture_snapshot(f);
    assert_ok(f, core_step_abort(f->core, f->session, 2, &f->effects, &f->err));
    assert_int_equal(f->effects.num_deltas + f->effects.num_copies, 0);
    struct core_batch batch;
    assert_fails(f, KVPOOL_E_ABORTED, "step 2",
                 core_step_commit(f->core, f->session, 2, &f->info, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_ABORTED, "step 2",
                 core_step_batch(f->core, f->session, 2, &batch, &f->err));
    assert_fails(f, KVPOOL_E_STATE, "already aborted", BEGIN(2, 2));
    fixture_unchanged(f, before);
#undef BEGIN
}

static void an_unknown_step_is_not_found(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 4);
    assert_ok(f, fixture_begin(f, 1, a, 1));
    struct core_batch batch;
    const struct {
        uint64_t session, step;
    } cases[] = {{f->session, 2}, {f->session, 0}, {f->other, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t s = cases[i].session;
        uint64_t step = cases[i].step;
        int nf = KVPOOL_E_NOTFOUND;
        assert_fails(f, nf, "does not exist",
                     core_step_commit(f->core, s, step, &f->info, &f->effects, &f->err));
        assert_fails(f, nf, "does not exist",
                     core_step_abort(f->core, s, step, &f->effects, &f->err));
        assert_fails(f, nf, "does not exist", core_step_batch(f->core, s, step, &batch, &f->err));
        assert_fails(f, nf, "does not exist", core_step_hold(f->core, s, step, &f->err));
        assert_fails(f, nf, "does not exist", core_step_release(f->core, s, step, &f->err));
        assert_fails(f, nf, "does not exist", core_step_mark(f->core, s, step, 0, true, &f->err));
    }
}

static void the_last_64_finished_steps_are_remembered(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->other, 0); // the other session's: this one's ring is empty
    struct core_item item = {a, 0};
    for (uint64_t id = 1; id <= CORE_FINISHED + 1; id++) {
        assert_ok(f, core_step_begin(f->core, f->other, id, f->pool, 1, &item, NULL, &f->info,
                                     &f->effects, &f->err));
        assert_ok(f, core_step_commit(f->core, f->other, id, &f->info, &f->effects, &f->err));
    }
    for (uint64_t id = 2; id <= CORE_FINISHED + 1; id++) {
        assert_ok(f, core_step_commit(f->core, f->other, id, &f->info, &f->effects, &f->err));
        assert_true(f->info.repeated);
    }
    assert_fails(f, KVPOOL_E_NOTFOUND, "step 1 ",
                 core_step_commit(f->core, f->other, 1, &f->info, &f->effects, &f->err));
    fixture_check(f);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        T(a_step_appends_when_committed),
        T(an_aborted_step_never_happened),
        T(the_first_writer_copies_the_last_holder_does_not),
        T(holders_in_one_step_all_copy),
        T(the_other_side_may_be_freed_while_its_page_is_being_copied),
        T(zero_new_tokens_copy_nothing),
        T(full_pages_are_shared_without_copies),
        T(nospace_says_how_many_pages_and_changes_nothing),
        T(bad_begins_are_refused),
        cmocka_unit_test(a_batch_of_too_many_tokens_is_refused),
        T(open_steps_have_limits),
        T(a_sequence_in_a_step_is_busy),
        T(commit_needs_every_layer),
        T(commit_needs_all_of_512_layers),
        T(a_held_step_is_busy),
        T(repeats_are_harmless),
        T(an_unknown_step_is_not_found),
        T(the_last_64_finished_steps_are_remembered),
    };
    return cmocka_run_group_tests_name("core steps", tests, NULL, NULL);
}
