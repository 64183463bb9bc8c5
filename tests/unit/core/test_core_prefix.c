// SPDX-License-Identifier: Apache-2.0
// Prefix sharing in core: sealing, matching, deduplication, copy-on-write of sealed pages, eviction,
// priorities, hints, pins. The model test covers their mixtures.
#include "prefix_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- sealing and matching ---------------------------------------------------------------------

static void what_is_computed_once_is_found_again(void **state) {
    struct fixture *f = *state;
    assert_int_equal(probe(f, 0, 1, 30), 0);
    uint64_t first = make(f, 0, 1, 30); // 3 full pages and 6 tokens
    assert_int_equal(f->info.sealed, 3);
    assert_int_equal(probe(f, 0, 1, 30), 24);
    assert_int_equal(probe(f, 0, 1, 23), 16);
    assert_int_equal(probe(f, 0, 2, 30), 0);
    uint32_t matched = 0;
    uint64_t second = open_on(f, 0, 1, 30, &matched);
    assert_int_equal(matched, 24);
    assert_int_equal(f->effects.num_deltas, 1);
    assert_int_equal(f->effects.deltas[0].count, 3);
    struct core_seq_info a;
    struct core_seq_info b;
    assert_ok(f, core_seq_stat(f->core, f->session, first, &a, &f->err));
    assert_ok(f, core_seq_stat(f->core, f->session, second, &b, &f->err));
    assert_int_equal(b.length, 24);
    assert_int_equal(b.tracked, 24);
    assert_int_equal(b.shared_pages, 3);
    assert_memory_equal(core_row(f->core, f->pool, a.row), core_row(f->core, f->pool, b.row), 12);
    assert_int_equal(ns_of(f, 0).counters.hit_tokens, 24);
    assert_int_equal(ns_of(f, 0).counters.miss_tokens, 30 + 6);
    release(f, first, CORE_KEEP);
    release(f, second, CORE_KEEP);
    assert_int_equal(pool_of(f).cached_pages, 3);
    assert_int_equal(pool_of(f).free_pages, FIXTURE_PAGES - 3);
    assert_int_equal(probe(f, 0, 1, 30), 24);
}

static void other_key_material_is_another_prefix(void **state) {
    struct fixture *f = *state;
    make(f, 0, 1, 16);
    struct core_open open = opening(0, document(1, 16), 16);
    open.extra = "lora-7";
    open.extra_size = 6;
    uint32_t matched = 1;
    assert_ok(f, core_seq_probe(f->core, f->pool, &open, &matched, &f->err));
    assert_int_equal(matched, 0);
    uint64_t seq = 0;
    assert_ok(f, core_seq_open(f->core, f->session, f->pool, &open, &seq, &matched, &f->effects,
                               &f->err));
    append(f, seq, 1, 0, 16);
    assert_int_equal(f->info.sealed, 2);
    assert_int_equal(f->info.deduplicated, 0);
    open.tokens = document(1, 16);
    assert_ok(f, core_seq_probe(f->core, f->pool, &open, &matched, &f->err));
    assert_int_equal(matched, 16);
}

static void a_step_without_ids_ends_tracking(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 12);
    const struct core_item item = {seq, 12};
    assert_ok(f, core_step_begin(f->core, f->session, 5, f->pool, 1, &item, NULL, &f->info,
                                 &f->effects, &f->err));
    for (uint32_t layer = 0; layer < pool_of(f).config.layers; layer++) {
        assert_ok(f, core_step_mark(f->core, f->session, 5, layer, true, &f->err));
    }
    assert_ok(f, core_step_commit(f->core, f->session, 5, &f->info, &f->effects, &f->err));
    assert_int_equal(f->info.sealed, 0);
    append(f, seq, 1, 24, 32);
    assert_int_equal(f->info.sealed, 0);
    struct core_seq_info info;
    assert_ok(f, core_seq_stat(f->core, f->session, seq, &info, &f->err));
    assert_int_equal(info.length, 32);
    assert_int_equal(info.tracked, 12);
    assert_int_equal(probe(f, 0, 1, 32), 8);
}

static void equal_pages_become_one(void **state) {
    struct fixture *f = *state;
    uint64_t seqs[2];
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 2, seqs, &f->err));
    append(f, seqs[0], 1, 0, 16);
    append(f, seqs[1], 1, 0, 20);
    assert_int_equal(f->info.deduplicated, 2);
    assert_int_equal(f->effects.num_deltas, 1);
    assert_int_equal(f->effects.deltas[0].first, 0);
    assert_int_equal(f->effects.deltas[0].count, 2);
    assert_int_equal(pool_of(f).free_pages, FIXTURE_PAGES - 3);
    assert_int_equal(pool_of(f).shared_pages, 2);
    assert_int_equal(ns_of(f, 0).counters.deduplicated, 2);
}

static void a_begin_with_other_ids_is_no_repeat(void **state) {
    struct fixture *f = *state;
    uint64_t seq = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &seq, &f->err));
    const struct core_item item = {seq, 10};
    assert_ok(f, core_step_begin(f->core, f->session, 5, f->pool, 1, &item, document(1, 10),
                                 &f->info, &f->effects, &f->err));
    assert_ok(f, core_step_begin(f->core, f->session, 5, f->pool, 1, &item, document(1, 10),
                                 &f->info, &f->effects, &f->err));
    assert_true(f->info.repeated);
    assert_fails(f, KVPOOL_E_EXISTS, "another batch",
                 core_step_begin(f->core, f->session, 5, f->pool, 1, &item, document(2, 10),
                                 &f->info, &f->effects, &f->err));
    assert_fails(f, KVPOOL_E_EXISTS, "another batch",
                 core_step_begin(f->core, f->session, 5, f->pool, 1, &item, NULL, &f->info,
                                 &f->effects, &f->err));
}

// --- copy-on-write ----------------------------------------------------------------------------

static void truncating_into_a_sealed_page_copies_what_is_kept(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 16);
    assert_ok(f, core_seq_truncate(f->core, f->session, seq, 11, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
    struct core_seq_info info;
    assert_ok(f, core_seq_stat(f->core, f->session, seq, &info, &f->err));
    uint32_t sealed = core_row(f->core, f->pool, info.row)[1];
    const struct core_item item = {seq, 5};
    const uint32_t ids[] = {token(1, 11), token(1, 12), 77, 78, 79};
    assert_ok(f, core_step_begin(f->core, f->session, 5, f->pool, 1, &item, ids, &f->info,
                                 &f->effects, &f->err));
    assert_int_equal(f->effects.num_copies, 1);
    assert_int_equal(f->effects.copies[0].src, sealed);
    assert_int_not_equal(f->effects.copies[0].dst, sealed);
    for (uint32_t layer = 0; layer < pool_of(f).config.layers; layer++) {
        assert_ok(f, core_step_mark(f->core, f->session, 5, layer, true, &f->err));
    }
    assert_ok(f, core_step_commit(f->core, f->session, 5, &f->info, &f->effects, &f->err));
    assert_int_equal(f->info.sealed, 1); // the kept three tokens' ids were known
    assert_int_equal(probe(f, 0, 1, 16), 16);
    uint32_t tokens[16];
    memcpy(tokens, document(1, 13), 13 * sizeof *tokens);
    memcpy(tokens + 11, ids, sizeof ids);
    const struct core_open open = opening(0, tokens, 16);
    uint32_t matched = 0;
    assert_ok(f, core_seq_probe(f->core, f->pool, &open, &matched, &f->err));
    assert_int_equal(matched, 16);
}

static void computing_the_same_again_comes_back_to_the_sealed_page(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 16);
    assert_ok(f, core_seq_truncate(f->core, f->session, seq, 13, &f->err));
    append(f, seq, 1, 13, 16);
    assert_int_equal(f->info.deduplicated, 1);
    assert_int_equal(pool_of(f).free_pages, FIXTURE_PAGES - 2);
}

// --- eviction ---------------------------------------------------------------------------------

static void the_oldest_chain_goes_first_from_its_end(void **state) {
    struct fixture *f = *state;
    struct heard heard = {0};
    release(f, make(f, 0, 1, 24), CORE_KEEP);
    release(f, make(f, 0, 2, 24), CORE_KEEP);
    core_observe(f->core, hear, &heard);
    uint64_t big = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &big, &f->err));
    append(f, big, 3, 0, (FIXTURE_PAGES - 4) * PAGE); // two pages more than are free
    assert_int_equal(heard.events[0].kind, CORE_REMOVED);
    assert_int_equal(heard.events[1].kind, CORE_REMOVED);
    assert_memory_equal(heard.events[0].parent, heard.events[1].key, CORE_KEY_SIZE);
    assert_int_equal(probe(f, 0, 1, 24), 8);
    assert_int_equal(probe(f, 0, 2, 24), 24);
    assert_int_equal(ns_of(f, 0).counters.evicted, 2);
    core_observe(f->core, NULL, NULL);
}

static void a_match_makes_a_chain_young_again(void **state) {
    struct fixture *f = *state;
    release(f, make(f, 0, 1, 24), CORE_KEEP);
    release(f, make(f, 0, 2, 24), CORE_KEEP);
    release(f, make(f, 0, 1, 24), CORE_KEEP);
    uint64_t big = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &big, &f->err));
    append(f, big, 3, 0, (FIXTURE_PAGES - 3) * PAGE);
    assert_int_equal(probe(f, 0, 1, 24), 24);
    assert_int_equal(probe(f, 0, 2, 24), 0);
}

static void a_higher_class_outlives_a_younger_lower_one(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 24);
    assert_ok(f, core_seq_set_priority(f->core, f->session, seq, CORE_HIGH, &f->err));
    release(f, seq, CORE_KEEP);
    release(f, make(f, 0, 2, 24), CORE_KEEP);
    uint64_t big = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &big, &f->err));
    append(f, big, 3, 0, (FIXTURE_PAGES - 3) * PAGE);
    assert_int_equal(probe(f, 0, 1, 24), 24);
    assert_int_equal(probe(f, 0, 2, 24), 0);
}

static void a_dropped_sequence_leaves_what_others_continue(void **state) {
    struct fixture *f = *state;
    uint64_t first = make(f, 0, 1, 24);
    uint64_t fork = 0;
    assert_ok(f, core_seq_truncate(f->core, f->session, first, 8, &f->err));
    assert_ok(f, core_seq_fork(f->core, f->session, first, 1, &fork, &f->effects, &f->err));
    append(f, fork, 5, 8, 16); // a sibling of document 1's second page
    release(f, make(f, 0, 1, 24), CORE_DROP);
    assert_int_equal(probe(f, 0, 1, 24), 8); // still used
    release(f, fork, CORE_KEEP);
    release(f, first, CORE_DROP);
    assert_int_equal(probe(f, 0, 1, 24), 8); // continued by the fork's page
    assert_int_equal(ns_of(f, 0).counters.dropped, 2);
    assert_int_equal(pool_of(f).cached_pages, 2);
}

static void a_full_pool_of_used_pages_is_out_of_space(void **state) {
    struct fixture *f = *state;
    make(f, 0, 1, 24);
    release(f, make(f, 0, 2, 8), CORE_KEEP);
    uint64_t big = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &big, &f->err));
    const struct core_item item = {big, (FIXTURE_PAGES - 2) * PAGE};
    int rc = core_step_begin(f->core, f->session, 5, f->pool, 1, &item, NULL, &f->info, &f->effects,
                             &f->err);
    assert_int_equal(f->err.detail, 1);
    assert_fails(f, KVPOOL_E_NOSPACE, "13 free", rc);
    assert_int_equal(probe(f, 0, 2, 8), 8); // nothing was evicted in vain
    assert_int_equal(ns_of(f, 0).counters.refused, 1);
}

static void clearing_drops_what_nobody_uses(void **state) {
    struct fixture *f = *state;
    make(f, 0, 1, 8);
    release(f, make(f, 0, 2, 24), CORE_KEEP);
    uint32_t pages = 0;
    assert_ok(f, core_cache_clear(f->core, f->pool, UINT32_MAX, &pages, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
    assert_int_equal(pages, 3);
    assert_int_equal(probe(f, 0, 1, 8), 8);
    assert_int_equal(probe(f, 0, 2, 24), 0);
    assert_fails(f, KVPOOL_E_NOTFOUND, "namespace 3",
                 core_cache_clear(f->core, f->pool, 3, &pages, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "pool",
                 core_cache_clear(f->core, f->pool + 1, 0, &pages, &f->err));
}

// --- pins -------------------------------------------------------------------------------------

static void a_pinned_prefix_stays_until_its_time(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 24);
    uint64_t pin = 0;
    uint32_t tokens = 0;
    assert_fails(f, KVPOOL_E_STATE, "no sealed page",
                 core_prefix_pin(f->core, f->session, seq, 7, 100, &pin, &tokens, &f->err));
    assert_ok(f, core_prefix_pin(f->core, f->session, seq, 17, 100, &pin, &tokens, &f->err));
    assert_int_equal(tokens, 16);
    release(f, seq, CORE_DROP);
    assert_int_equal(probe(f, 0, 1, 24), 16);
    assert_int_equal(pool_of(f).pins, 1);
    assert_int_equal(ns_of(f, 0).active, 2);
    assert_int_equal(core_pins_expire(f->core, 99), 0);
    assert_int_equal(core_pins_expire(f->core, 100), 1);
    assert_ok(f, core_check(f->core, &f->err));
    assert_int_equal(ns_of(f, 0).active, 0);
    assert_int_equal(ns_of(f, 0).cached, 2);
    assert_fails(f, KVPOOL_E_STALE, "pin", core_prefix_unpin(f->core, f->pool, 0, pin, &f->err));
}

static void pins_have_a_limit_and_an_owner(void **state) {
    struct fixture *f = *state;
    uint32_t other = set_ns(f, "other", "", 0, 0);
    uint64_t seq = make(f, 0, 1, 8);
    uint64_t pins[5];
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < 3; i++) {
        assert_ok(f, core_prefix_pin(f->core, f->session, seq, 0, 1, &pins[i], &tokens, &f->err));
    }
    struct core *again = NULL; // the share is known after an attach, too
    assert_ok(f, core_attach(f->block, f->size, &again, &f->err));
    assert_fails(f, KVPOOL_E_LIMIT, "max_pins",
                 core_prefix_pin(again, f->session, seq, 0, 1, &pins[4], &tokens, &f->err));
    core_close(again);
    assert_fails(f, KVPOOL_E_LIMIT, "max_pins",
                 core_prefix_pin(f->core, f->session, seq, 0, 1, &pins[4], &tokens, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another session",
                 core_prefix_pin(f->core, f->other, seq, 0, 1, &pins[4], &tokens, &f->err));
    assert_fails(f, KVPOOL_E_PERM, "another namespace",
                 core_prefix_unpin(f->core, f->pool, other, pins[0], &f->err));
    uint64_t others = make(f, other, 2, 8); // finds one left
    assert_ok(f, core_prefix_pin(f->core, f->session, others, 0, 1, &pins[3], &tokens, &f->err));
    assert_ok(f, core_prefix_unpin(f->core, f->pool, 0, pins[0], &f->err));
    assert_ok(f, core_check(f->core, &f->err));
    release(f, others, CORE_KEEP);
    release(f, seq, CORE_KEEP);
    assert_ok(f, core_pool_destroy(f->core, f->pool, &f->err)); // pins end with their pool
    assert_ok(f, core_check(f->core, &f->err));
    struct core_totals totals;
    core_totals(f->core, &totals);
    assert_int_equal(totals.pins, 0);
}

// The fixture, with room for many pins.
static int setup_pins(void **state) {
    fixture_setup(state);
    struct fixture *f = *state;
    struct core_pool_config config = fixture_config("p");
    uint8_t token[CORE_TOKEN_SIZE] = {0};
    bool created = false;
    core_close(f->core);
    free(f->block);
    f->limits.max_pins = 8192;
    f->size = core_block_size(&f->limits);
    f->block = fixture_block(f->size);
    assert_ok(f, core_create(f->block, f->size, &f->limits, 1, fixture_secret, &f->core, &f->err));
    assert_ok(f, core_session_open(f->core, 1, 1, "one", token, &f->session, &f->err));
    assert_ok(f, core_session_open(f->core, 2, 1, "two", token, &f->other, &f->err));
    assert_ok(f, core_pool_create(f->core, &config, &f->pool, &created, &f->err));
    return 0;
}

static void pins_of_many_pages_end_in_several_calls(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 96);
    uint64_t pin = 0;
    uint32_t tokens = 0;
    for (int i = 0; i < 6000; i++) {
        assert_ok(f, core_prefix_pin(f->core, f->session, seq, 0, 1, &pin, &tokens, &f->err));
    }
    uint32_t first = core_pins_expire(f->core, 1);
    assert_in_range(first, 1000, 5999);
    assert_ok(f, core_check(f->core, &f->err));
    assert_int_equal(core_pins_expire(f->core, 1), 6000 - first);
    assert_int_equal(core_pins_expire(f->core, 1), 0);
}

static void bad_openings_are_refused(void **state) {
    struct fixture *f = *state;
    uint64_t seq = 0;
    uint32_t matched = 0;
    struct core_open open = opening(1, document(1, 8), 8);
#define OPEN \
    core_seq_open(f->core, f->session, f->pool, &open, &seq, &matched, &f->effects, &f->err)
    assert_fails(f, KVPOOL_E_NOTFOUND, "namespace 1", OPEN);
    assert_fails(f, KVPOOL_E_NOTFOUND, "namespace 1",
                 core_seq_probe(f->core, f->pool, &open, &matched, &f->err));
    open.ns = 0;
    open.priority = 3;
    assert_fails(f, KVPOOL_E_INVAL, "priority", OPEN);
    open.priority = CORE_LOW;
    open.extra_size = CORE_EXTRA_MAX + 1;
    assert_fails(f, KVPOOL_E_INVAL, "key material", OPEN);
    open.extra_size = 0;
    open.n = FIXTURE_PAGES * PAGE + 1;
    assert_fails(f, KVPOOL_E_INVAL, "max_seq_len", OPEN);
    open.n = 8;
    open.only_matched = true;
    assert_ok(f, OPEN);
    assert_int_equal(seq, 0);
    open.only_matched = false;
    for (uint32_t i = 0; i < 6; i++) {
        assert_ok(f, OPEN);
    }
    assert_fails(f, KVPOOL_E_LIMIT, "max_seqs", OPEN);
    assert_fails(f, KVPOOL_E_INVAL, "priority",
                 core_seq_set_priority(f->core, f->session, seq, 3, &f->err));
    assert_fails(f, KVPOOL_E_INVAL, "hint",
                 core_seq_free(f->core, f->session, 1, &seq, (enum core_hint)2, &f->err));
#undef OPEN
}

// --- across a restart -------------------------------------------------------------------------

static void sealed_pages_survive_an_attach(void **state) {
    struct fixture *f = *state;
    uint64_t seq = make(f, 0, 1, 24);
    uint64_t pin = 0;
    uint32_t tokens = 0;
    assert_ok(f, core_prefix_pin(f->core, f->session, seq, 8, 5, &pin, &tokens, &f->err));
    release(f, make(f, 0, 2, 24), CORE_KEEP);
    core_close(f->core);
    assert_ok(f, core_attach(f->block, f->size, &f->core, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
    assert_int_equal(probe(f, 0, 1, 24), 24);
    assert_int_equal(probe(f, 0, 2, 24), 24);
    assert_int_equal(pool_of(f).cached_pages, 3);
    assert_int_equal(pool_of(f).pins, 1);
    release(f, seq, CORE_KEEP);
    assert_int_equal(core_pins_expire(f->core, 5), 1);
    assert_int_equal(pool_of(f).cached_pages, 6);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, prefix_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        T(what_is_computed_once_is_found_again),
        T(other_key_material_is_another_prefix),
        T(a_step_without_ids_ends_tracking),
        T(equal_pages_become_one),
        T(a_begin_with_other_ids_is_no_repeat),
        T(truncating_into_a_sealed_page_copies_what_is_kept),
        T(computing_the_same_again_comes_back_to_the_sealed_page),
        T(the_oldest_chain_goes_first_from_its_end),
        T(a_match_makes_a_chain_young_again),
        T(a_higher_class_outlives_a_younger_lower_one),
        T(a_dropped_sequence_leaves_what_others_continue),
        T(a_full_pool_of_used_pages_is_out_of_space),
        T(clearing_drops_what_nobody_uses),
        T(a_pinned_prefix_stays_until_its_time),
        T(pins_have_a_limit_and_an_owner),
        T(bad_openings_are_refused),
        T(sealed_pages_survive_an_attach),
        cmocka_unit_test_setup_teardown(pins_of_many_pages_end_in_several_calls, setup_pins,
                                        fixture_teardown),
    };
#undef T
    return cmocka_run_group_tests_name("core prefix", tests, NULL, NULL);
}
