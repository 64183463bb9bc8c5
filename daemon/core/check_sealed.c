// SPDX-License-Identifier: Apache-2.0
// check_sealed.c: the part of core_check that is about sealed pages: cache, index and accounts of a
// live core against those of one that was rebuilt from the same block.
#include "daemon/core/soundness.h"

static int compare_page(const struct pool_live *a, const struct pool_live *b, uint32_t pool,
                        uint32_t page, struct err *err) {
    const struct page_rec *rec = &a->recs[page];
    bool sealed = rec->state == RECORD_LIVE;
    if (cache_is_sealed(a->cache, page) != sealed || pages_is_sealed(&a->pages, page) != sealed) {
        return core_violated(err, "page %u of pool %u: what is derived and its record differ", page,
                             pool);
    }
    if (!sealed) {
        return 0;
    }
    bool cached = a->pages.refs[page] == 0;
    if (cache_is_cached(a->cache, page) != cached ||
        cache_children(a->cache, page) != cache_children(b->cache, page) ||
        cache_parent(a->cache, page) != rec->parent || cache_ns(a->cache, page) != rec->ns) {
        return core_violated(err, "page %u of pool %u is otherwise in the cache", page, pool);
    }
    if (index_find(&a->index, prefix_key_of(&rec->value)) != page) {
        return core_violated(err, "the index of pool %u does not find page %u", pool, page);
    }
    return 0;
}

static int compare_ns(const struct pool_live *a, const struct pool_live *b, uint32_t pool,
                      struct err *err) {
    for (uint32_t ns = 0; ns < a->num_ns; ns++) {
        if (a->ns[ns].active != b->ns[ns].active || a->ns[ns].seqs != b->ns[ns].seqs ||
            a->ns[ns].pins != b->ns[ns].pins ||
            cache_count(a->cache, ns) != cache_count(b->cache, ns)) {
            return core_violated(err,
                                 "namespace %u of pool %u counts %u active and %u cached pages and"
                                 " %u sequences, has %u, %u and %u",
                                 ns, pool, a->ns[ns].active, cache_count(a->cache, ns),
                                 a->ns[ns].seqs, b->ns[ns].active, cache_count(b->cache, ns),
                                 b->ns[ns].seqs);
        }
    }
    return 0;
}

static int compare_pool(const struct core *live, const struct core *want, uint32_t pool,
                        struct err *err) {
    const struct pool_live *a = &live->pools[pool];
    const struct pool_live *b = &want->pools[pool];
    if (a->num_ns != b->num_ns || a->promised != b->promised || a->pins != b->pins ||
        a->index.count != b->index.count) {
        return core_violated(err, "namespaces, promises, pins or index of pool %u", pool);
    }
    int rc = compare_ns(a, b, pool, err);
    uint32_t end =
        a->pages.free.fresh > b->pages.free.fresh ? a->pages.free.fresh : b->pages.free.fresh;
    for (uint32_t page = 0; rc == 0 && page < end; page++) {
        rc = compare_page(a, b, pool, page, err);
    }
    uint32_t bad = rc == 0 ? cache_check(a->cache) : 0;
    return bad == 0 ? rc : core_violated(err, "lists of the cache of pool %u at %u", pool, bad - 1);
}

int core_compare_cache(const struct core *live, const struct core *want, struct err *err) {
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < live->limits.max_pools; i++) {
        rc = live->t.pools[i].state == RECORD_LIVE ? compare_pool(live, want, i, err) : 0;
    }
    return rc;
}
