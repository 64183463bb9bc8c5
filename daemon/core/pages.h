// SPDX-License-Identifier: Apache-2.0
// pages.h: the pages of one pool as numbers: who is free, and how many page-table entries name each
// of the others. Derived memory: rebuilt from the block, never part of it.
//
// Invariants
//  1. refs[page] is 0 when the page is free, and when it is sealed and cached (cache.h).
//  2. `shared` is the number of pages with refs > 1.
//  3. Every operation on one page is O(1) and allocates nothing.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_PAGES_H
#define KVPOOL_DAEMON_CORE_PAGES_H

#include "daemon/core/ids.h"

struct pages {
    struct ids free;
    uint32_t *refs;   // [num_pages]
    uint64_t *sealed; // [num_pages] bits
    uint32_t shared;
};

bool pages_init(struct pages *p, uint32_t num_pages); // false: out of memory
void pages_fini(struct pages *p);                     // a zeroed struct is fine

// Rebuilding, after pages_init: pages_count() for every reference, pages_keep() for every sealed
// page, then pages_fill() with a function that knows the pages that are not free.
void pages_count(struct pages *p, uint32_t page);
static inline void pages_keep(struct pages *p, uint32_t page) {
    ids_seen(&p->free, page);
    p->sealed[page / 64] |= UINT64_C(1) << (page % 64);
}
static inline void pages_fill(struct pages *p, ids_used_fn used, const void *arg) {
    ids_fill(&p->free, used, arg);
}

static inline uint32_t pages_free(const struct pages *p) {
    return ids_free(&p->free);
}

// What the page's record in the block says too, in memory that fits the processor's caches: it is
// asked whenever a reference goes.
static inline bool pages_is_sealed(const struct pages *p, uint32_t page) {
    return (p->sealed[page / 64] >> (page % 64) & 1) != 0;
}
static inline void pages_seal(struct pages *p, uint32_t page) {
    assert(!pages_is_sealed(p, page));
    p->sealed[page / 64] |= UINT64_C(1) << (page % 64);
}
static inline void pages_unseal(struct pages *p, uint32_t page) {
    assert(pages_is_sealed(p, page));
    p->sealed[page / 64] &= ~(UINT64_C(1) << (page % 64));
}

static inline void pages_ref(struct pages *p, uint32_t page) {
    assert(p->refs[page] > 0);
    if (p->refs[page]++ == 1) {
        p->shared++;
    }
}

// A cached page gets its first reference.
static inline void pages_revive(struct pages *p, uint32_t page) {
    assert(p->refs[page] == 0);
    p->refs[page] = 1;
}

// How many references are left. At 0 the page is cached, or given back with pages_give.
static inline uint32_t pages_unref(struct pages *p, uint32_t page) {
    assert(p->refs[page] > 0);
    uint32_t refs = --p->refs[page];
    p->shared -= refs == 1;
    return refs;
}

// A page without references that is not sealed is free.
static inline void pages_give(struct pages *p, uint32_t page) {
    assert(p->refs[page] == 0 && !pages_is_sealed(p, page));
    ids_give(&p->free, page);
}

// n free pages, at most pages_free(), with one reference each.
void pages_take_n(struct pages *p, uint32_t n, uint32_t *ret_pages);
void pages_ref_n(struct pages *p, uint32_t n, const uint32_t *pages);

#endif
