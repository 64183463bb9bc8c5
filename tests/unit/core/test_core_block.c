// SPDX-License-Identifier: Apache-2.0
// The block: limits, formatting, attaching to a good and to a damaged one, ids.
#include "fixture.h"

#include "daemon/core/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__) // there is one thread
#define TRIALS 10000
#else
#define TRIALS 20000
#endif

static void limits_out_of_range_have_no_block_size(void **state) {
    (void)state;
    assert_true(core_block_size(&core_limits_default) > 0);
    assert_true(core_block_size(&core_limits_default) % 4096 == 0);
    for (int i = 0; i < 20; i++) {
        struct core_limits l = core_limits_default;
        uint32_t *field[] = {&l.max_pools,         &l.max_sessions, &l.max_seqs, &l.max_steps,
                             &l.max_session_steps, &l.max_batch,    &l.max_pins};
        uint64_t *wide[] = {&l.max_table_entries, &l.max_pages, &l.max_page_tokens};
        if (i / 2 < 7) {
            *field[i / 2] = i % 2 == 0 ? 0 : UINT32_MAX;
        } else {
            *wide[i / 2 - 7] = i % 2 == 0 ? 0 : UINT64_MAX;
        }
        assert_int_equal(core_block_size(&l), 0);
    }
}

static void create_refuses_bad_memory_and_limits(void **state) {
    struct fixture *f = *state;
    struct core *core = NULL;
    uint8_t *block = fixture_block(f->size + 4096);
    assert_fails(f, KVPOOL_E_INVAL, "aligned",
                 core_create(block + 64, f->size, &f->limits, 1, fixture_secret, &core, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "aligned",
                 core_create(NULL, f->size, &f->limits, 1, fixture_secret, &core, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "bytes",
                 core_create(block, f->size - 1, &f->limits, 1, fixture_secret, &core, &f->err));
    struct core_limits bad = f->limits;
    bad.max_batch = 0;
    assert_fails(f, KVPOOL_E_INVAL, "limit",
                 core_create(block, f->size, &bad, 1, fixture_secret, &core, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "not zeroed",
                 core_create(f->block, f->size, &f->limits, 1, fixture_secret, &core, &f->err));
    memset(block + 256, 0xA5, f->size - 256); // a zero header, the rest not
    assert_fails(f, KVPOOL_E_INVAL, "damaged",
                 core_create(block, f->size, &f->limits, 1, fixture_secret, &core, &f->err));
    uint8_t zero[256] = {0};
    assert_memory_equal(block, zero, sizeof zero); // as it was
    assert_null(core);
    free(block);
}

static void attach_refuses_another_layout_version(void **state) {
    struct fixture *f = *state;
    struct core *core = NULL;
    struct header_rec *copy = fixture_block(f->size);
    memcpy(copy, f->block, f->size);
    copy->version = LAYOUT_VERSION + 1;
    assert_fails(f, KVPOOL_E_VERSION, "layout version 4",
                 core_attach(copy, f->size, &core, &f->err));
    copy->version = LAYOUT_VERSION - 1; // whose pools do not say how they are stored
    assert_fails(f, KVPOOL_E_VERSION, "layout version 2",
                 core_attach(copy, f->size, &core, &f->err));
    assert_null(core);
    free(copy);
}

static void attach_refuses_a_block_without_header_or_cut_short(void **state) {
    struct fixture *f = *state;
    struct core *core = NULL;
    void *zero = fixture_block(f->size);
    assert_fails(f, KVPOOL_E_INVAL, "damaged", core_attach(zero, f->size, &core, &f->err));
    free(zero);
    assert_fails(f, KVPOOL_E_INVAL, "bytes", core_attach(f->block, 100, &core, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "bytes", core_attach(f->block, f->size - 1, &core, &f->err));
    struct header_rec *copy = fixture_block(f->size);
    memcpy(copy, f->block, f->size);
    copy->limits.max_seqs = 1u << 20; // tables would leave the block
    assert_fails(f, KVPOOL_E_INVAL, "header", core_attach(copy, f->size, &core, &f->err));
    free(copy);
}

static void attach_finds_everything_and_steps_stay_open(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 13);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 7, b, 20));
    assert_ok(f, core_step_mark(f->core, f->session, 7, 1, true, &f->err));
    assert_ok(f, core_step_hold(f->core, f->session, 7, &f->err));
    struct core_item pin = {a, 0};
    assert_ok(f, core_seq_pin(f->core, f->session, 1, &pin, &f->err));
    uint32_t free_pages = fixture_free_pages(f);

    void *copy = fixture_block(f->size);
    memcpy(copy, f->block, f->size);
    struct core *live = f->core;
    void *block = f->block;
    assert_ok(f, core_attach(copy, f->size, &f->core, &f->err));
    f->block = copy;
    fixture_check(f);
    assert_int_equal(fixture_free_pages(f), free_pages);
    assert_int_equal(fixture_stat(f, a).length, 13);
    assert_true(fixture_stat(f, b).in_step);
    struct core_session_info session;
    assert_ok(f, core_session_stat(f->core, f->session, &session, &f->err));
    assert_int_equal(session.seqs, 2);
    assert_int_equal(session.steps, 1);
    assert_int_equal(session.pid, 101);
    assert_string_equal(session.name, "one");
    // Holds and pins were work in flight of the instance that is gone.
    assert_ok(f, core_step_mark(f->core, f->session, 7, 0, true, &f->err));
    assert_ok(f, core_step_commit(f->core, f->session, 7, &f->info, &f->effects, &f->err));
    assert_int_equal(fixture_stat(f, b).length, 33);
    assert_ok(f, core_seq_free(f->core, f->session, 1, &a, CORE_KEEP, &f->err));
    core_close(live);
    free(block);
}

// Every kind of damage that an attach can name, made by hand in a block with an open step.
static void attach_names_what_is_damaged(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 12);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 7, b, 20));
    uint32_t sa = (uint32_t)a;
    uint32_t sb = (uint32_t)b;
    uint8_t *copy = fixture_block(f->size);
    struct tables t;
    for (int damage = 0;; damage++) {
        memcpy(copy, f->block, f->size);
        assert_int_equal(layout_open(copy, f->size, &t, NULL), 0);
        struct step_items items = tables_items(&t, t.seqs[sb].step);
        struct step_rec *step = &t.steps[t.seqs[sb].step];
        uint32_t *row_a = t.entries + (size_t)t.seqs[sa].row * t.pools[0].row_entries;
        uint32_t *row_b = t.entries + (size_t)t.seqs[sb].row * t.pools[0].row_entries;
        const char *part = NULL;
        switch (damage) {
        case 0:
            part = "pool 0", t.pools[0].num_pages++;
            break;
        case 1:
            part = "state", t.pools[1].state = 2;
            break;
        case 2:
            part = "pool 0", t.pools[0].generation = 0;
            break;
        case 3:
            part = "leaves the block", t.pools[0].first_entry = 250;
            t.pools[0].checksum = layout_pool_checksum(&t.pools[0]);
            break;
        case 4:
            part = "configuration", t.pools[0].page_size = 24;
            t.pools[0].checksum = layout_pool_checksum(&t.pools[0]);
            break;
        case 5:
            part = "overlap", t.pools[1] = t.pools[0];
            break;
        case 6:
            part = "configuration", t.pools[0].row_entries++;
            t.pools[0].checksum = layout_pool_checksum(&t.pools[0]);
            break;
        case 7:
            part = "session 1 has state", t.sessions[1].state = 9;
            break;
        case 8:
            part = "session 0", t.sessions[0].next_finished = CORE_FINISHED;
            break;
        case 9:
            part = "outcome", t.sessions[0].finished_ids[3] = 5;
            break;
        case 10:
            part = "session 0", memset(t.sessions[0].name, 'x', CORE_NAME_SIZE);
            break;
        case 11:
            part = "sequence 9 has state", t.seqs[9].state = 5;
            break;
        case 12:
            part = "sequence", t.seqs[sa].pool = 1;
            break;
        case 13:
            part = "sequence", t.seqs[sa].session = 2;
            break;
        case 14:
            part = "row", t.seqs[sa].row = t.seqs[sb].row;
            break;
        case 15:
            part = "row", t.seqs[sa].row = 6;
            break;
        case 16:
            part = "tokens", t.seqs[sa].length = 97;
            break;
        case 17:
            part = "step", t.seqs[sa].step = 99;
            break;
        case 18:
            part = "does not have it", t.seqs[sa].step = t.seqs[sb].step;
            break;
        case 19:
            part = "item", t.seqs[sb].step = LAYOUT_NONE;
            break;
        case 20:
            part = "step", step->n = 6;
            break;
        case 21:
            part = "step", step->n = 0;
            break;
        case 22:
            part = "item 1", step->n = 2;
            break;
        case 23:
            part = "step", step->id = 0;
            break;
        case 24:
            part = "sums", step->tokens++;
            break;
        case 25:
            part = "sums", step->max_q_len++;
            break;
        case 26:
            part = "sums", step->reserved_pages++;
            break;
        case 27:
            part = "sums", step->written[0] = 4;
            break; // a layer beyond the pool's two
        case 28:
            part = "item", items.seqs[0] = UINT32_MAX;
            break;
        case 29:
            part = "item", items.rows[0]++;
            break;
        case 30:
            part = "item", items.kv_len[0]++;
            break;
        case 31:
            part = "item", items.old_pages[0] = FIXTURE_PAGES;
            break;
        case 32:
            part = "item", items.qo_indptr[0] = 1;
            break;
        case 33:
            part = "names page 16", row_a[0] = FIXTURE_PAGES;
            break;
        case 34:
            part = "names page", row_a[1] = row_a[0];
            break;
        case 35:
            part = "names page", row_b[2] = row_b[1];
            break; // reserved, and the copy
        case 36:
            part = "old page", row_b[1] = items.old_pages[0];
            break;
        case 37:
            part = "step", t.steps[3] = *step;
            break; // the id twice
        case 38:
            part = "step", t.sessions[0].finished_ids[1] = 7;
            t.sessions[0].finished[1].outcome = OUTCOME_ABORTED;
            break;
        case 39:
            part = "step 2 has state", t.steps[2].state = 2;
            break;
        case 40:
            part = "sequence", t.seqs[sa].generation = 0;
            break;
        case 41:
            part = "old page", items.old_pages[0] = row_b[0];
            break;
        case 42: // written in place although a has it too
            part = "references", row_b[1] = row_a[1];
            items.old_pages[0] = LAYOUT_NONE;
            step->reserved_pages--;
            break;
        default:
            break;
        }
        if (part == NULL) {
            assert_int_equal(damage, 43);
            break;
        }
        struct core *core = NULL;
        int rc = core_attach(copy, f->size, &core, &f->err);
        if (rc != KVPOOL_E_INVAL) {
            fail_msg("damage %d: %s", damage, kvpool_status_name((kvpool_status)rc));
        }
        assert_fails(f, KVPOOL_E_INVAL, part, rc);
    }
    free(copy);
    assert_ok(f, core_step_abort(f->core, f->session, 7, &f->effects, &f->err));
}

// The live tables are compared with rebuilt ones: what they say differently is found.
static void check_finds_live_tables_that_differ(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 20);
    uint64_t b = 0;
    assert_ok(f, core_seq_fork(f->core, f->session, a, 1, &b, &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 7, b, 1));
    struct core *c = f->core;
    struct pool_live *pool = &c->pools[0];
    const struct {
        uint32_t *word;
        const char *part;
        bool pages;
    } damages[] = {
        {&pool->pages.refs[0], "references", true},
        {&pool->pages.shared, "shared", true},
        {&pool->pages.free.fresh, "free pages", true},
        {&pool->pages.free.top, "free pages", true},
        {&pool->seqs, "sequences", false},
        {&pool->row_seqs[0], "row 0", false},
        {&pool->rows.fresh, "row", false},
        {&c->seq_ids.fresh, "free sequences", false},
        {&c->step_ids.fresh, "free steps", false},
        {&c->session_ids.fresh, "free sessions", false},
        {&c->num_pools, "pools", false},
        {&c->sessions[0].seqs, "session 0", false},
        {&c->sessions[0].steps, "session 0", false},
        {&c->sessions[0].first_seq, "chain of sequences", false},
        {&c->sessions[0].first_step, "chain of steps", false},
        {&c->seqs[(uint32_t)b].pins, "pins", false},
        {&c->steps[0].holds, "holds", false},
    };
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        uint32_t was = (*damages[i].word)++;
        struct err err = {0};
        int rc = core_check(c, &err);
        int pages = core_rebuild_compare(c, NULL);
        *damages[i].word = was;
        assert_int_equal(rc, KVPOOL_E_INTERNAL);
        assert_int_equal(pages, damages[i].pages ? KVPOOL_E_INTERNAL : 0);
        if (strstr(err.text, damages[i].part) == NULL) {
            fail_msg("damage %zu: %s", i, err.text);
        }
    }
    fixture_check(f);
}

// --- random damage ------------------------------------------------------------------------------

static uint64_t rng;
static uint32_t below(uint32_t n) {
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng >> 33) % n);
}

static void check(const struct core *c) {
    struct err err = {0};
    if (core_check(c, &err) != 0) {
        fail_msg("%s", err.text);
    }
}

// Uses a core that was attached to a damaged block: nothing may crash or leave its memory.
static void exercise(struct core *c) {
    uint64_t sessions[3];
    uint64_t pools[3];
    uint64_t seqs[10];
    uint32_t n = 0;
    uint32_t cursor = 0;
    struct core_pool_info pool;
    struct core_seq_info seq;
    struct core_effects effects;
    struct core_step_info info;
    struct core_batch batch;
    for (uint32_t i = 0; i < 3; i++) {
        sessions[i] = core_session_handle(c, i);
        pools[i] = core_pool_handle(c, i);
    }
    while (core_pool_next(c, &cursor, &pool)) {
    }
    cursor = 0;
    while (core_seq_next(c, &cursor, &seq)) {
        seqs[n++] = seq.seq;
    }
    for (uint32_t i = 0; i < 30 && n > 0; i++) {
        uint64_t session = sessions[below(3)];
        struct core_item items[2] = {{seqs[below(n)], below(40)}, {seqs[below(n)], below(40)}};
        uint64_t fork = 0;
        core_step_batch(c, session, 1 + below(9), &batch, NULL);
        core_step_mark(c, session, 1 + below(9), below(2), true, NULL);
        core_step_commit(c, session, 1 + below(9), &info, &effects, NULL);
        core_step_abort(c, session, 1 + below(9), &effects, NULL);
        core_step_begin(c, session, 1 + below(9), pools[below(3)], 1 + below(2), items, NULL, &info,
                        &effects, NULL);
        core_seq_fork(c, session, seqs[below(n)], 1, &fork, &effects, NULL);
        core_seq_truncate(c, session, seqs[below(n)], below(60), NULL);
        core_batch_make(c, session, pools[below(3)], 1, items, &batch, NULL);
    }
    check(c);
    for (uint32_t i = 0; i < 3; i++) {
        core_session_close(c, sessions[i], NULL);
        core_pool_destroy(c, pools[i], NULL);
    }
    check(c);
}

static void attach_survives_random_damage(void **state) {
    struct fixture *f = *state;
    uint64_t a = fixture_seq(f, f->session, 13);
    uint64_t b[2];
    assert_ok(f, core_seq_fork(f->core, f->session, a, 2, b, &f->effects, &f->err));
    struct core_item both[2] = {{a, 9}, {b[0], 3}};
    assert_ok(f, core_step_begin(f->core, f->session, 7, f->pool, 2, both, NULL, &f->info,
                                 &f->effects, &f->err));
    assert_ok(f, fixture_begin(f, 3, b[1], 2));
    fixture_seq(f, f->other, 17);
    struct core_pool_config config = fixture_config("q");
    uint64_t q = 0;
    uint64_t qs[2];
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &config, &q, &created, &f->err));
    assert_ok(f, core_seq_create(f->core, f->other, q, 0, 2, qs, &f->err));

    const char *seed = getenv("KVPOOL_SEED");
    rng = seed != NULL ? strtoull(seed, NULL, 0) : 1;
    print_message("seed %llu\n", (unsigned long long)rng);
    uint8_t *copy = fixture_block(f->size);
    uint32_t refused = 0;
    uint32_t taken = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        memcpy(copy, f->block, f->size);
        // Mostly single bytes of the tables; sometimes several, sometimes with a good header sum.
        uint32_t bytes = trial % 4 == 0 ? 1 + below(8) : 1;
        for (uint32_t i = 0; i < bytes; i++) {
            uint32_t at = below((uint32_t)f->size);
            copy[at] = (uint8_t)(trial % 3 == 0 ? copy[at] ^ (1u << below(8)) : below(256));
        }
        if (trial % 5 == 0) { // a believable but wrong word in a record
            struct tables t;
            if (layout_open(copy, f->size, &t, NULL) == 0) {
                uint32_t *words[] = {(uint32_t *)&t.seqs[below(10)], (uint32_t *)&t.steps[below(4)],
                                     t.items + below(2) * t.item_words, t.entries};
                words[below(4)][below(26)] = below(20);
            }
        }
        struct core *core = NULL;
        int rc = core_attach(copy, f->size, &core, &f->err);
        if (rc == 0) {
            taken++;
            exercise(core);
            core_close(core);
        } else {
            refused++;
            assert_true(rc == KVPOOL_E_INVAL || rc == KVPOOL_E_VERSION);
            assert_int_equal(f->err.status, rc);
        }
    }
    print_message("refused %u, taken %u\n", refused, taken);
    assert_true(refused > 1000 && taken > 1000);
    f->err = (struct err){0};
    free(copy);
}

// --- ids ----------------------------------------------------------------------------------------

static bool odd_used(const void *arg, uint32_t id) {
    (void)arg;
    return id % 2 == 1;
}

static void ids_give_each_id_once_and_rebuild_lowest_first(void **state) {
    (void)state;
    struct ids ids;
    assert_true(ids_init(&ids, 8));
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(ids_peek(&ids), i);
        assert_int_equal(ids_take(&ids), i);
    }
    assert_int_equal(ids_free(&ids), 0);
    assert_int_equal(ids_used(&ids), 8);
    ids_give(&ids, 3);
    ids_give(&ids, 5);
    assert_int_equal(ids_take(&ids), 5);
    assert_int_equal(ids_take(&ids), 3);
    ids_fini(&ids);

    assert_true(ids_init(&ids, 8));
    ids_seen(&ids, 5);
    ids_seen(&ids, 1);
    ids_seen(&ids, 3);
    ids_fill(&ids, odd_used, NULL);
    uint32_t bad = 0;
    assert_int_equal(ids_check(&ids, odd_used, NULL, &bad), 0);
    assert_int_equal(ids_free(&ids), 5);
    assert_int_equal(ids_take(&ids), 0);
    assert_int_equal(ids_take(&ids), 2);
    assert_int_equal(ids_take(&ids), 4);
    assert_int_equal(ids_take(&ids), 6);
    assert_int_equal(ids_check(&ids, odd_used, NULL, &bad), 1);
    ids.stack[0] = ids.stack[1] = 2; // one id twice
    ids.top = 2;
    assert_int_equal(ids_check(&ids, odd_used, NULL, &bad), 1);
    assert_int_equal(bad, 2);
    ids_fini(&ids);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_out_of_range_have_no_block_size),
        T(create_refuses_bad_memory_and_limits),
        T(attach_refuses_another_layout_version),
        T(attach_refuses_a_block_without_header_or_cut_short),
        T(attach_finds_everything_and_steps_stay_open),
        T(attach_names_what_is_damaged),
        T(check_finds_live_tables_that_differ),
        T(attach_survives_random_damage),
        cmocka_unit_test(ids_give_each_id_once_and_rebuild_lowest_first),
    };
    return cmocka_run_group_tests_name("core block", tests, NULL, NULL);
}
