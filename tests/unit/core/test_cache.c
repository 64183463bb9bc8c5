// SPDX-License-Identifier: Apache-2.0
// The order of eviction in small scenes, its cost, and what cache_check finds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/cache_impl.h"

#include <stdlib.h>
#include <string.h>

// --- out of memory: the linker sends all calls of bigmem_open here -------------------------------

static uint32_t memory_left = UINT32_MAX;        // calls that still succeed
void *__real_bigmem_open(size_t n, size_t size); // NOLINT(bugprone-reserved-identifier)
void *__wrap_bigmem_open(size_t n, size_t size); // NOLINT(bugprone-reserved-identifier)

void *__wrap_bigmem_open(size_t n, size_t size) { // NOLINT(bugprone-reserved-identifier)
    return memory_left-- == 0 ? NULL : __real_bigmem_open(n, size);
}

static void without_memory_it_does_not_open(void **state) {
    (void)state;
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        uint32_t needed = policy == LRU ? 1 : 3;
        for (uint32_t n = 0; n <= needed; n++) {
            memory_left = n;
            struct cache *c = cache_open(policy, 10);
            memory_left = UINT32_MAX;
            assert_int_equal(c != NULL, n == needed);
            cache_close(c);
        }
    }
}

// --- scenes ---------------------------------------------------------------------------------------

// Pages first..first+n of class 0, each the parent of the next, sealed and referenced.
static void seal_chain(struct cache *c, uint32_t first, uint32_t n, uint32_t ns) {
    for (uint32_t page = first; page < first + n; page++) {
        cache_seal(c, page, page == first ? CACHE_NONE : page - 1, ns, page * UINT64_C(1000000007));
    }
}

static void release_chain(struct cache *c, uint32_t first, uint32_t n) {
    for (uint32_t page = first + n; page-- > first;) {
        cache_release(c, page);
    }
}

static void cached_chain(struct cache *c, uint32_t first, uint32_t n, uint32_t ns) {
    seal_chain(c, first, n, ns);
    release_chain(c, first, n);
}

// Evicts n pages and expects these.
#define expect_evicted(c, ns, n, ...)                                                        \
    do {                                                                                     \
        const uint32_t expected_[] = {__VA_ARGS__};                                          \
        uint32_t got_[64];                                                                   \
        assert_int_equal(cache_evict(c, ns, n, got_), sizeof expected_ / sizeof *expected_); \
        for (size_t i_ = 0; i_ < sizeof expected_ / sizeof *expected_; i_++) {               \
            assert_int_equal(got_[i_], expected_[i_]);                                       \
        }                                                                                    \
        assert_int_equal(cache_check(c), 0);                                                 \
    } while (0)

static void expect_none(struct cache *c, uint32_t ns) {
    uint32_t pages[1];
    assert_int_equal(cache_evict(c, ns, 1, pages), 0);
    assert_int_equal(cache_check(c), 0);
}

static void lru_evicts_the_oldest_chain_from_its_end(void **state) {
    struct cache *c = cache_open(LRU, 32);
    (void)state;
    cached_chain(c, 0, 3, 0);
    cached_chain(c, 10, 3, 0);
    cached_chain(c, 20, 2, 0);
    for (uint32_t page = 0; page < 2; page++) { // a hit on two pages of the first
        cache_reference(c, page, 0);
    }
    assert_int_equal(cache_count(c, 0), 6);
    release_chain(c, 0, 2);
    expect_evicted(c, 0, 4, 2, 12, 11, 10);
    expect_evicted(c, 0, 64, 21, 20, 1, 0);
    assert_int_equal(cache_count(c, 0), 0);
    expect_none(c, 0);
    cache_close(c);
}

static void a_page_knows_what_it_was_told(void **state) {
    (void)state;
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        struct cache *c = cache_open(policy, 4);
        assert_false(cache_is_sealed(c, 1));
        assert_false(cache_is_cached(c, 1));
        assert_int_equal(cache_parent(c, 1), CACHE_NONE);
        assert_int_equal(cache_children(c, 1), 0);
        cache_seal(c, 0, CACHE_NONE, 63, 1);
        cache_seal(c, 1, 0, 63, 2);
        assert_true(cache_is_sealed(c, 1));
        assert_false(cache_is_cached(c, 1));
        assert_int_equal(cache_parent(c, 1), 0);
        assert_int_equal(cache_children(c, 0), 1);
        assert_int_equal(cache_ns(c, 1), 63);
        assert_int_equal(cache_class(c, 1), 0);
        cache_raise(c, 1, 2);
        cache_raise(c, 1, 1); // does not lower it
        assert_int_equal(cache_class(c, 1), 2);
        cache_release(c, 1);
        assert_true(cache_is_cached(c, 1));
        assert_int_equal(cache_count(c, 63), 1);
        cache_reference(c, 1, 5);
        assert_int_equal(cache_ns(c, 1), 5);
        assert_int_equal(cache_count(c, 63), 0);
        cache_release(c, 1);
        assert_int_equal(cache_count(c, 5), 1);
        assert_true(cache_forget(c, 1));
        assert_false(cache_is_sealed(c, 1));
        assert_int_equal(cache_parent(c, 1), CACHE_NONE);
        assert_int_equal(cache_children(c, 0), 0);
        assert_int_equal(cache_check(c), 0);
        cache_close(c);
    }
    cache_close(NULL);
}

static void the_lowest_class_goes_first(void **state) {
    (void)state;
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        struct cache *c = cache_open(policy, 8);
        for (uint32_t page = 0; page < 6; page++) {
            cache_seal(c, page, CACHE_NONE, 0, page);
            cache_raise(c, page, 2 - page / 2);
            cache_release(c, page);
        }
        expect_evicted(c, 0, 6, 4, 5, 2, 3, 0, 1);
        cache_close(c);
    }
}

static void another_namespace_is_left_alone(void **state) {
    (void)state;
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        struct cache *c = cache_open(policy, 8);
        cached_chain(c, 0, 2, 0);
        cached_chain(c, 2, 2, 1);
        expect_evicted(c, 1, 8, 3, 2);
        assert_int_equal(cache_count(c, 0), 2);
        expect_none(c, 2);
        cache_close(c);
    }
}

static void a_page_with_children_elsewhere_waits_for_them(void **state) {
    struct cache *c = cache_open(LRU, 8);
    (void)state;
    cache_seal(c, 0, CACHE_NONE, 0, 0);
    cache_seal(c, 1, 0, 1, 1); // another namespace continues page 0
    cache_seal(c, 2, 0, 1, 2);
    cache_release(c, 0);
    cache_release(c, 1);
    cache_release(c, 2);
    cache_seal(c, 3, CACHE_NONE, 0, 3);
    cache_release(c, 3);
    expect_evicted(c, 0, 8, 3); // comes to 0 first
    assert_int_equal(cache_count(c, 0), 1);
    assert_false(cache_forget(c, 0));
    expect_evicted(c, 1, 1, 1);
    expect_none(c, 0); // one child is left
    cache_seal(c, 4, CACHE_NONE, 0, 4);
    cache_release(c, 4);
    expect_evicted(c, 1, 1, 2);
    expect_evicted(c, 0, 8, 0, 4); // at the tail again
    cache_close(c);
}

static void a_blocked_page_that_is_referenced_comes_back_by_its_release(void **state) {
    (void)state;
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        struct cache *c = cache_open(policy, 8);
        cache_seal(c, 0, CACHE_NONE, 0, 0);
        cache_seal(c, 1, 0, 1, 1);
        cache_release(c, 0);
        expect_none(c, 0);
        cache_reference(c, 0, 0);
        cache_release(c, 1);
        assert_true(cache_forget(c, 1)); // the last child: page 0 is referenced, and stays out
        assert_int_equal(cache_check(c), 0);
        expect_none(c, 0);
        cache_release(c, 0);
        expect_evicted(c, 0, 8, 0);
        cache_close(c);
    }
}

static void s3fifo_keeps_what_was_hit(void **state) {
    struct cache *c = cache_open(S3FIFO, 64);
    (void)state;
    for (uint32_t page = 0; page < 20; page++) {
        cache_seal(c, page, CACHE_NONE, 0, (uint64_t)page << 32 | page);
        if (page == 0) {
            cache_hit(c, page); // before it entered: forgotten
        }
        cache_release(c, page);
    }
    cache_reference(c, 3, 0); // stays in its place
    cache_hit(c, 3);
    cache_release(c, 3);
    cache_reference(c, 5, 0);
    expect_evicted(c, 0, 5, 0, 1, 2, 4, 6); // 3 came to M, 5 is out
    cache_release(c, 5);                    // to M, with freq 1
    expect_evicted(c, 0, 12, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18);
    // S has page 19 alone: more than a tenth of three, so it goes before those in M.
    expect_evicted(c, 0, 3, 19, 3, 5);
    cache_close(c);
}

// Exactly a tenth of the pages in S is not more than a tenth.
static void s3fifo_leaves_a_tenth_to_new_pages(void **state) {
    struct cache *c = cache_open(S3FIFO, 64);
    (void)state;
    for (uint32_t page = 0; page < 10; page++) {
        cache_seal(c, page, CACHE_NONE, 0, page);
        cache_release(c, page);
        cache_reference(c, page, 0);
        cache_release(c, page);
    }
    expect_evicted(c, 0, 1, 0); // all ten came to M first
    cache_seal(c, 20, CACHE_NONE, 0, 20);
    cache_release(c, 20); // one in S, nine in M
    expect_evicted(c, 0, 1, 1);
    expect_evicted(c, 0, 9, 20, 2, 3, 4, 5, 6, 7, 8, 9); // one to eight: more than a tenth
    cache_close(c);
}

static void s3fifo_remembers_what_it_evicted(void **state) {
    struct cache *c = cache_open(S3FIFO, 8);
    (void)state;
    for (uint32_t page = 0; page < 8; page++) {
        cache_seal(c, page, CACHE_NONE, 0, (uint64_t)page << 32 | page);
        cache_release(c, page);
    }
    expect_evicted(c, 0, 3, 0, 1, 2);
    cache_seal(c, 0, CACHE_NONE, 0, (uint64_t)1 << 32 | 1); // what page 1 was
    cache_release(c, 0);
    cache_seal(c, 1, CACHE_NONE, 0, (uint64_t)77 << 32 | 1); // new
    cache_release(c, 1);
    expect_evicted(c, 0, 7, 3, 4, 5, 6, 7, 1, 0); // M's page last
    // It was forgotten when it came back, and M leaves no ghosts.
    cache_seal(c, 0, CACHE_NONE, 0, (uint64_t)1 << 32 | 1);
    cache_release(c, 0);
    cache_seal(c, 1, CACHE_NONE, 0, (uint64_t)78 << 32);
    cache_release(c, 1);
    expect_evicted(c, 0, 2, 0, 1);
    cache_close(c);
}

static void a_page_in_a_list_moves_with_its_namespace_and_class(void **state) {
    struct cache *c = cache_open(S3FIFO, 8);
    (void)state;
    for (uint32_t page = 0; page < 4; page++) {
        cache_seal(c, page, CACHE_NONE, page / 2, page);
        cache_release(c, page);
    }
    cache_reference(c, 0, 1);
    cache_reference(c, 3, 1);
    cache_raise(c, 3, 1);
    cache_raise(c, 0, 0);
    cache_release(c, 0);
    cache_release(c, 3);
    assert_int_equal(cache_check(c), 0);
    assert_int_equal(cache_count(c, 0), 1);
    assert_int_equal(cache_count(c, 1), 3);
    expect_evicted(c, 0, 8, 1);
    expect_evicted(c, 1, 8, 2, 0, 3);
    cache_close(c);
}

static void ghosts_of_one_bucket_push_each_other_out(void **state) {
    struct ghosts g = {0};
    (void)state;
    ghosts_fini(&g);
    assert_true(ghosts_init(&g, 100)); // 128 buckets
    assert_int_equal(g.mask, 127);
    assert_false(ghosts_forget(&g, 0)); // nothing is remembered, not even zero
    for (uint64_t i = 0; i < 5; i++) {
        ghosts_remember(&g, i << 32 | 9);
    }
    ghosts_remember(&g, UINT64_C(1) << 32 | 9); // again: the newest now
    ghosts_remember(&g, UINT64_C(7) << 32 | 9); // the fifth
    assert_false(ghosts_forget(&g, UINT64_C(0) << 32 | 9));
    assert_false(ghosts_forget(&g, UINT64_C(2) << 32 | 9));
    assert_true(ghosts_forget(&g, UINT64_C(3) << 32 | 9));
    assert_false(ghosts_forget(&g, UINT64_C(3) << 32 | 9));
    assert_false(ghosts_forget(&g, UINT64_C(4) << 32 | 8)); // another bucket
    for (uint64_t i = 0; i < 98; i++) {                     // 7 is the 99th last, 1 the 100th
        ghosts_remember(&g, UINT64_C(9) << 32 | (10 + i));
    }
    assert_true(ghosts_forget(&g, UINT64_C(7) << 32 | 9));
    assert_true(ghosts_forget(&g, UINT64_C(1) << 32 | 9));
    assert_false(ghosts_forget(&g, UINT64_C(4) << 32 | 9)); // the 101st
    ghosts_fini(&g);
}

// --- cost --------------------------------------------------------------------------------------------

// Eviction never comes to more pages than were released, hit or unblocked, however unluckily they
// were: referenced, with children, or hit as often as counts.
static void the_cost_of_eviction_is_bounded(void **state) {
    enum { PAGES = 4096 };
    uint32_t *pages = malloc(PAGES * sizeof *pages);
    (void)state;
    assert_non_null(pages);
    for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
        struct cache *c = cache_open(policy, PAGES);
        uint64_t allowed = 0;
        assert_non_null(c);
        for (uint32_t page = 0; page < PAGES; page++) { // the even ones in namespace 0
            cache_seal(c, page, page % 2 == 0 ? CACHE_NONE : page - 1, page % 2, page);
        }
        for (uint32_t round = 0; round < 5; round++) {
            for (uint32_t page = 0; page < PAGES; page++) {
                cache_release(c, page);
                allowed++;
            }
            for (uint32_t i = 0; i < 100; i++) { // all blocked: the first call comes to them
                assert_int_equal(cache_evict(c, 0, 1, pages), 0);
            }
            assert_true(c->looked_at <= allowed);
            for (uint32_t page = 0; page < PAGES; page++) {
                cache_reference(c, page, page % 2);
                cache_hit(c, page);
                allowed += 2;
            }
            for (uint32_t i = 0; i < 100; i++) { // all referenced
                assert_int_equal(cache_evict(c, 0, PAGES, pages), 0);
                assert_int_equal(cache_evict(c, 1, 1, pages), 0);
            }
            assert_true(c->looked_at <= allowed);
        }
        for (uint32_t page = 0; page < PAGES; page++) {
            cache_release(c, page);
            allowed++;
        }
        assert_int_equal(cache_evict(c, 0, 1, pages), 0);
        for (uint32_t i = 0; i < PAGES / 2; i++) {
            assert_int_equal(cache_evict(c, 1, 1, pages), 1);
            allowed++; // its parent's last child
        }
        assert_int_equal(cache_evict(c, 0, PAGES, pages), PAGES / 2);
        assert_true(c->looked_at <= allowed);
        assert_true(c->looked_at >= PAGES);
        assert_int_equal(cache_check(c), 0);
        cache_close(c);
    }
    free(pages);
}

// --- cache_check ---------------------------------------------------------------------------------

static void the_check_finds_what_is_wrong(void **state) {
    struct cache *c = cache_open(LRU, 8);
    struct entry *e = c->entries;
    struct entry good[8];
    struct list *l = &c->lists[0][0][S - 1];
    (void)state;
    cached_chain(c, 0, 4, 0);
    seal_chain(c, 4, 2, 0);
    assert_int_equal(cache_check(c), 0);
    memcpy(good, e, sizeof good);
#define expect_bad(change)                   \
    do {                                     \
        change;                              \
        assert_true(cache_check(c) > 0);     \
        memcpy(e, good, sizeof good);        \
        assert_int_equal(cache_check(c), 0); \
    } while (0)
    expect_bad(e[1].prev = 3);
    expect_bad(e[1].next = 1);
    expect_bad(e[1].next = 8);
    expect_bad(e[3].next = 0);
    expect_bad(e[0].next = CACHE_NONE);
    expect_bad(e[1].where = M);
    expect_bad(e[1].where = OUT);
    expect_bad(e[6].where = S);
    expect_bad(e[1].ns = 1);
    expect_bad(e[1].class_ = 1);
    expect_bad(e[1].sealed = 0);
    expect_bad(e[1].referenced = 1);
    expect_bad(e[4].referenced = 0);
    expect_bad(e[1].blocked = 1);
    expect_bad(e[4].blocked = 1);
    expect_bad(e[6].blocked = 1);
    expect_bad(e[2].children = 0);
    expect_bad(e[3].children = 1);
    expect_bad(e[2].parent = 0);
    expect_bad(e[2].parent = 7);
    expect_bad(e[2].parent = 8);
#undef expect_bad
    l->count++;
    assert_true(cache_check(c) > 0);
    l->count--;
    l->tail = 0;
    assert_true(cache_check(c) > 0);
    l->tail = 3;
    l->head = 9;
    assert_true(cache_check(c) > 0);
    l->head = 0;
    c->cached[0]++;
    assert_true(cache_check(c) > 0);
    c->cached[0]--;
    assert_int_equal(cache_check(c), 0);
    cache_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_memory_it_does_not_open),
        cmocka_unit_test(lru_evicts_the_oldest_chain_from_its_end),
        cmocka_unit_test(a_page_knows_what_it_was_told),
        cmocka_unit_test(the_lowest_class_goes_first),
        cmocka_unit_test(another_namespace_is_left_alone),
        cmocka_unit_test(a_page_with_children_elsewhere_waits_for_them),
        cmocka_unit_test(a_blocked_page_that_is_referenced_comes_back_by_its_release),
        cmocka_unit_test(s3fifo_keeps_what_was_hit),
        cmocka_unit_test(s3fifo_leaves_a_tenth_to_new_pages),
        cmocka_unit_test(s3fifo_remembers_what_it_evicted),
        cmocka_unit_test(a_page_in_a_list_moves_with_its_namespace_and_class),
        cmocka_unit_test(ghosts_of_one_bucket_push_each_other_out),
        cmocka_unit_test(the_cost_of_eviction_is_bounded),
        cmocka_unit_test(the_check_finds_what_is_wrong),
    };
    return cmocka_run_group_tests_name("core/cache", tests, NULL, NULL);
}
