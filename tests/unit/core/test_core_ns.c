// SPDX-License-Identifier: Apache-2.0
// Namespaces in core: whose pages they find, what they may have, and who gives when space is needed.
#include "prefix_rig.h"

#include <stdio.h>
#include <string.h>

// --- namespaces -------------------------------------------------------------------------------

static void namespaces_do_not_find_each_others_pages(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "", 0, 0);
    uint32_t b = set_ns(f, "b", "", 0, 0);
    uint32_t c = set_ns(f, "c", "team", 0, 0);
    uint32_t d = set_ns(f, "d", "team", 0, 0);
    uint32_t e = set_ns(f, "team", "", 0, 0); // a name is not a group
    make(f, a, 1, 16);
    uint64_t seq = make(f, c, 2, 16);
    assert_int_equal(probe(f, a, 1, 16), 16);
    assert_int_equal(probe(f, b, 1, 16), 0);
    assert_int_equal(probe(f, 0, 1, 16), 0);
    assert_int_equal(probe(f, c, 2, 16), 16);
    assert_int_equal(probe(f, d, 2, 16), 16);
    assert_int_equal(probe(f, e, 2, 16), 0);
    release(f, seq, CORE_KEEP);
    make(f, d, 2, 16); // cached pages move to who matches them
    assert_int_equal(ns_of(f, c).cached, 0);
    assert_int_equal(ns_of(f, d).active, 2);
}

static void a_reserve_is_always_obtainable(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "", 6, 0);
    make(f, 0, 1, (FIXTURE_PAGES - 8) * PAGE);
    release(f, make(f, 0, 2, 16), CORE_KEEP); // borrowed space, to the last page
    uint64_t seq = 0;
    assert_ok(f, core_seq_create(f->core, f->session, f->pool, 0, 1, &seq, &f->err));
    const struct core_item item = {seq, 3 * PAGE};
    assert_fails(f, KVPOOL_E_NOSPACE, "2 free for namespace \"default\"",
                 core_step_begin(f->core, f->session, 5, f->pool, 1, &item, NULL, &f->info,
                                 &f->effects, &f->err));
    make(f, a, 1, 6 * PAGE);
    assert_int_equal(ns_of(f, a).active, 6);
    make(f, a, 3, 2 * PAGE); // borrows too: what is cached goes
    assert_int_equal(ns_of(f, 0).cached, 0);
}

static void a_limit_counts_cached_pages(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "", 0, 4);
    release(f, make(f, a, 1, 3 * PAGE), CORE_KEEP);
    release(f, make(f, a, 2, 3 * PAGE), CORE_KEEP);
    assert_int_equal(ns_of(f, a).cached, 4);
    assert_int_equal(probe(f, a, 1, 24), 8);
    assert_int_equal(probe(f, a, 2, 24), 24);
    set_ns(f, "a", "", 0, 2);
    assert_int_equal(ns_of(f, a).cached, 2);
    assert_int_equal(pool_of(f).free_pages, FIXTURE_PAGES - 2);
}

static void the_greatest_borrower_gives_first(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "", 0, 0);
    uint32_t b = set_ns(f, "b", "", 4, 0);
    release(f, make(f, b, 1, 5 * PAGE), CORE_KEEP); // one beyond its reserve, and the oldest
    release(f, make(f, a, 2, 4 * PAGE), CORE_KEEP);
    make(f, 0, 3, (FIXTURE_PAGES - 9 + 3) * PAGE);
    assert_int_equal(ns_of(f, a).cached, 1);
    assert_int_equal(ns_of(f, b).cached, 5);
}

static void a_match_takes_no_more_than_there_is_room_for(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "", 0, 4);
    release(f, make(f, a, 1, 4 * PAGE), CORE_KEEP);
    uint64_t seq = make(f, a, 2, 2 * PAGE); // evicts two
    assert_int_equal(probe(f, a, 1, 32), 16);
    release(f, seq, CORE_KEEP);
    make(f, a, 3, 3 * PAGE);
    uint32_t matched = 0;
    uint32_t found = probe(f, a, 2, 16);
    open_on(f, a, 2, 16, &matched);
    assert_true(matched <= found && matched <= 8);
    assert_ok(f, core_check(f->core, &f->err));
}

static void bad_namespaces_are_refused(void **state) {
    struct fixture *f = *state;
    uint32_t ns = 0;
    struct core_ns_config config = {.name = "a"};
    set_ns(f, "big", "g", 10, 0);
    config.reserve = FIXTURE_PAGES + 1;
    assert_fails(f, KVPOOL_E_INVAL, "reserves",
                 core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    config.reserve = 8;
    assert_fails(f, KVPOOL_E_INVAL, "reserve more",
                 core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    config.reserve = 0;
    config.weight = 1001;
    assert_fails(f, KVPOOL_E_INVAL, "weight", core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    config.weight = 1;
    config.name[0] = '/';
    assert_fails(f, KVPOOL_E_INVAL, "name", core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    config.name[0] = 'a';
    config.group[0] = ' ';
    assert_fails(f, KVPOOL_E_INVAL, "name", core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    snprintf(config.name, sizeof config.name, "big");
    snprintf(config.group, sizeof config.group, "h");
    assert_fails(f, KVPOOL_E_EXISTS, "group", core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    assert_fails(f, KVPOOL_E_STALE, "pool",
                 core_ns_set(f->core, f->pool + 1, &config, &ns, &f->err));
    make(f, 0, 1, 6 * PAGE);
    snprintf(config.name, sizeof config.name, "default");
    config.group[0] = '\0';
    config.limit = 5;
    assert_fails(f, KVPOOL_E_NOSPACE, "in use",
                 core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    for (uint32_t i = 2; i < CORE_MAX_NAMESPACES; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%u", i);
        set_ns(f, name, "", 0, 0);
    }
    config.limit = 0;
    snprintf(config.name, sizeof config.name, "more");
    assert_fails(f, KVPOOL_E_LIMIT, "namespaces",
                 core_ns_set(f->core, f->pool, &config, &ns, &f->err));
}

// The pages of document 1 in namespace a, but the last one in b: both only cached.
static void make_blocked(struct fixture *f, uint32_t a, uint32_t b, uint32_t pages) {
    uint32_t matched = 0;
    uint64_t parent = make(f, a, 1, (pages - 1) * PAGE);
    uint64_t child = open_on(f, b, 1, (pages - 1) * PAGE, &matched);
    append(f, child, 1, matched, pages * PAGE);
    release(f, child, CORE_KEEP);
    release(f, parent, CORE_KEEP);
    assert_int_equal(ns_of(f, a).cached, pages - 1);
    assert_int_equal(ns_of(f, b).cached, 1);
}

static void a_limit_costs_nobody_outside_the_group_pages(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "g", 0, 1);
    uint32_t b = set_ns(f, "b", "g", 0, 0);
    release(f, make(f, 0, 9, PAGE), CORE_KEEP);
    make_blocked(f, a, b, 2);
    make(f, a, 2, PAGE);
    assert_int_equal(ns_of(f, a).cached, 0);
    assert_int_equal(ns_of(f, b).cached, 0);
    assert_int_equal(ns_of(f, 0).cached, 1);
}

static void a_group_cannot_hide_what_it_borrowed(void **state) {
    struct fixture *f = *state;
    uint32_t a = set_ns(f, "a", "g", 0, 0);
    uint32_t b = set_ns(f, "b", "g", 1, 0);
    uint32_t c = set_ns(f, "c", "", 0, 0);
    assert_int_equal(set_ns(f, "default", "", 1, 0), 0);
    release(f, make(f, 0, 9, PAGE), CORE_KEEP);
    make_blocked(f, a, b, 14);
    make(f, c, 2, 3 * PAGE); // one page was free
    assert_int_equal(ns_of(f, 0).cached, 1);
    assert_int_equal(ns_of(f, b).cached, 0);
    assert_int_equal(ns_of(f, a).cached, 12);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, prefix_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        T(namespaces_do_not_find_each_others_pages),
        T(a_reserve_is_always_obtainable),
        T(a_limit_counts_cached_pages),
        T(the_greatest_borrower_gives_first),
        T(a_match_takes_no_more_than_there_is_room_for),
        T(bad_namespaces_are_refused),
        T(a_limit_costs_nobody_outside_the_group_pages),
        T(a_group_cannot_hide_what_it_borrowed),
    };
#undef T
    return cmocka_run_group_tests_name("core namespaces", tests, NULL, NULL);
}
