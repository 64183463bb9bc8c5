// SPDX-License-Identifier: Apache-2.0
// The order of eviction under random operations, as naive_cache.h predicts it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/cache_impl.h"
#include "naive_cache.h"

#if defined(__SANITIZE_THREAD__) // there is one thread
#define ROUNDS 2000
#else
#define ROUNDS 20000
#endif

static uint64_t random_state = 88172645463325252u;

static uint32_t next_random(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 33) % n);
}

struct pair {
    struct cache *real;
    struct naive_cache naive;
};

static void compare(const struct pair *p) {
    const struct naive_cache *n = &p->naive;
    assert_int_equal(cache_check(p->real), 0);
    for (uint32_t ns = 0; ns < NAIVE_NAMESPACES; ns++) {
        assert_int_equal(cache_count(p->real, ns), naive_count(n, ns));
    }
    for (uint32_t page = 0; page < n->num_pages; page++) {
        const struct naive_page *q = &n->pages[page];
        assert_int_equal(cache_is_sealed(p->real, page), q->sealed);
        assert_int_equal(cache_is_cached(p->real, page), q->sealed && !q->referenced);
        if (q->sealed) {
            assert_int_equal(cache_children(p->real, page), naive_children(n, page));
            assert_int_equal(cache_parent(p->real, page), q->parent);
            assert_int_equal(cache_ns(p->real, page), q->ns);
            assert_int_equal(cache_class(p->real, page), q->class_);
        }
    }
}

static void evict_both(struct pair *p, uint32_t ns, uint32_t n) {
    uint32_t real[NAIVE_PAGES];
    uint32_t naive[NAIVE_PAGES];
    uint32_t parents[NAIVE_PAGES] = {0};
    bool sealed[NAIVE_PAGES] = {false};
    for (uint32_t page = 0; page < p->naive.num_pages; page++) {
        parents[page] = p->naive.pages[page].parent;
        sealed[page] = p->naive.pages[page].sealed;
    }
    uint32_t evicted = naive_evict(&p->naive, ns, n, naive);
    assert_int_equal(cache_evict(p->real, ns, n, real), evicted);
    for (uint32_t i = 0; i < evicted; i++) {
        assert_int_equal(real[i], naive[i]);
        sealed[real[i]] = false;
        for (uint32_t page = 0; page < p->naive.num_pages; page++) {
            assert_false(sealed[page] && parents[page] == real[i]); // no child is left behind
        }
    }
}

// A random page that is sealed and referenced, cached, or not sealed; NAIVE_NONE: 30 tries in vain.
static uint32_t pick(const struct naive_cache *n, bool sealed, bool referenced) {
    for (uint32_t i = 0; i < 30; i++) {
        uint32_t page = next_random(n->num_pages);
        if (n->pages[page].sealed == sealed &&
            (!sealed || n->pages[page].referenced == referenced)) {
            return page;
        }
    }
    return NAIVE_NONE;
}

// Tags come again and again, differ in buckets and in upper halves.
static uint64_t some_tag(void) {
    return (uint64_t)next_random(12) << 32 | next_random(NAIVE_PAGES);
}

static void release_both(struct pair *p, uint32_t page) {
    cache_release(p->real, page);
    naive_release(&p->naive, page);
}

static void reference_both(struct pair *p, uint32_t page, uint32_t ns) {
    cache_prefetch(p->real, page);
    cache_reference(p->real, page, ns);
    naive_reference(&p->naive, page, ns);
}

static void seal_both(struct pair *p, uint32_t page, uint32_t parent, uint32_t ns) {
    uint64_t tag = some_tag();
    cache_seal(p->real, page, parent, ns, tag);
    naive_seal(&p->naive, page, parent, ns, tag);
}

// A sequence: matches a path of the forest from its root, or begins one, continues it with pages of
// its own, and later releases all, last page first, perhaps with a priority.
static void run_sequence(struct pair *p) {
    uint32_t ns = next_random(NAIVE_NAMESPACES);
    uint32_t path[NAIVE_PAGES];
    uint32_t n = 0;
    for (uint32_t at = next_random(p->naive.num_pages);
         at != NAIVE_NONE && p->naive.pages[at].sealed; at = p->naive.pages[at].parent) {
        path[n++] = at;
    }
    for (uint32_t i = 0; i < n / 2; i++) {
        uint32_t page = path[i];
        path[i] = path[n - 1 - i];
        path[n - 1 - i] = page;
    }
    bool taken[NAIVE_PAGES] = {false};
    for (uint32_t i = 0; i < n; i++) {
        if (p->naive.pages[path[i]].referenced) {
            cache_hit(p->real, path[i]);
            naive_hit(&p->naive, path[i]);
        } else {
            reference_both(p, path[i], ns);
            taken[i] = true;
        }
    }
    for (uint32_t more = next_random(6); more > 0; more--) {
        uint32_t page = pick(&p->naive, false, false);
        if (page == NAIVE_NONE) {
            evict_both(p, ns, 1);
            continue;
        }
        seal_both(p, page, n == 0 ? NAIVE_NONE : path[n - 1], ns);
        taken[n] = true;
        path[n++] = page;
    }
    compare(p);
    uint32_t class_ = next_random(CACHE_CLASSES);
    for (uint32_t i = n; i-- > 0;) {
        if (taken[i] && next_random(20) > 0) {
            cache_raise(p->real, path[i], class_);
            naive_raise(&p->naive, path[i], class_);
            release_both(p, path[i]);
        }
    }
}

static void run_single(struct pair *p, uint32_t kind) {
    uint32_t ns = next_random(NAIVE_NAMESPACES);
    uint32_t page = pick(&p->naive, kind > 0, kind < 5);
    if (page == NAIVE_NONE) {
        return;
    }
    switch (kind) {
    case 0: {
        uint32_t parent = pick(&p->naive, true, next_random(2) == 0);
        seal_both(p, page, next_random(3) == 0 ? NAIVE_NONE : parent, ns);
        break;
    }
    case 1: {
        uint32_t class_ = next_random(CACHE_CLASSES);
        cache_raise(p->real, page, class_);
        naive_raise(&p->naive, page, class_);
        break;
    }
    case 2:
        cache_hit(p->real, page);
        naive_hit(&p->naive, page);
        break;
    case 3:
    case 4:
        release_both(p, page);
        break;
    case 5:
        reference_both(p, page, ns);
        break;
    default:
        assert_int_equal(cache_forget(p->real, page), naive_forget(&p->naive, page));
        break;
    }
}

static void random_operations(uint32_t policy, uint32_t num_pages, bool sequences) {
    struct pair p = {.real = cache_open(policy, num_pages)};
    assert_non_null(p.real);
    naive_open(&p.naive, policy == S3FIFO, num_pages);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t kind = next_random(8);
        if (kind == 7) {
            evict_both(&p, next_random(NAIVE_NAMESPACES), 1 + next_random(6));
        } else if (sequences && kind > 2) {
            run_sequence(&p);
        } else {
            run_single(&p, kind);
        }
        compare(&p);
    }
    cache_close(p.real);
}

static void random_operations_go_as_predicted(void **state) {
    static const uint32_t sizes[] = {1, 2, 5, 16, 31, NAIVE_PAGES};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (uint32_t policy = 0; policy < CACHE_POLICIES; policy++) {
            random_operations(policy, sizes[s], false);
            random_operations(policy, sizes[s], true);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_go_as_predicted),
    };
    return cmocka_run_group_tests_name("core/cache_model", tests, NULL, NULL);
}
