// SPDX-License-Identifier: Apache-2.0
// space.c: taking pages and letting go of them. Every change of a reference count passes here, and
// with it the account of the namespace, the cache and the index. See core.h, "the cache", for the
// order in which pages go.
//
//     core_reserve  limit of the taker -> free list long enough? -> evict, namespace by namespace
//     core_unref    last reference: sealed -> cached (or dropped); not sealed -> free
#include "daemon/core/state.h"

#include <string.h>

#define EVICT_BATCH 32u

void core_emit(const struct core *c, enum core_event_kind kind, uint32_t pool, uint32_t page) {
    if (c->event_fn == NULL) {
        return;
    }
    const struct pool_live *live = &c->pools[pool];
    struct core_event event = {
        .kind = kind,
        .pool = core_pool_handle(c, pool),
        .pool_name = c->t.pools[pool].name,
        .page_size = c->t.pools[pool].page_size,
    };
    if (kind != CORE_CLEARED) {
        const struct page_rec *rec = &live->recs[page];
        struct prefix_key key = prefix_key_of(&rec->value);
        memcpy(event.key, &key, sizeof event.key);
        if (rec->parent != LAYOUT_NONE) {
            key = prefix_key_of(&live->recs[rec->parent].value);
            memcpy(event.parent, &key, sizeof event.parent);
        }
        event.ns = rec->ns;
        event.ns_name = live->ns_recs[rec->ns].name;
        event.tokens = kind == CORE_STORED ? pool_tokens(live, page) : NULL;
    }
    c->event_fn(c->event_arg, &event);
}

// A page that the cache has forgotten is sealed no more, and free.
static void unseal(struct core *c, uint32_t pool, uint32_t page) {
    struct pool_live *live = &c->pools[pool];
    core_emit(c, CORE_REMOVED, pool, page);
    index_remove(&live->index, page);
    live->recs[page].state = RECORD_FREE;
    pages_unseal(&live->pages, page);
    pages_give(&live->pages, page);
}

// Evicts up to n pages of a namespace; returns how many.
static uint32_t evict(struct core *c, uint32_t pool, uint32_t ns, uint32_t n) {
    struct pool_live *live = &c->pools[pool];
    uint32_t done = 0;
    while (done < n) {
        uint32_t batch[EVICT_BATCH];
        uint32_t want = n - done < EVICT_BATCH ? n - done : EVICT_BATCH;
        uint32_t got = cache_evict(live->cache, ns, want, batch);
        for (uint32_t i = 0; i < got; i++) {
            __builtin_prefetch(&live->recs[batch[i]], 1);
        }
        for (uint32_t i = 0; i < got; i++) {
            index_prefetch(&live->index, batch[i]);
        }
        for (uint32_t i = 0; i < got; i++) {
            unseal(c, pool, batch[i]);
        }
        done += got;
        if (got < want) {
            break;
        }
    }
    live->ns[ns].counters.evicted += done;
    return done;
}

// Do they find each other's pages?
static bool is_shared(const struct pool_live *live, uint32_t a, uint32_t b) {
    const struct ns_rec *recs = live->ns_recs;
    return a == b ||
           (recs[a].group[0] != '\0' && strncmp(recs[a].group, recs[b].group, CORE_NAME_SIZE) == 0);
}

// One page of the namespace; when children are in its way, of its group, the lowest number first: the
// children are there. False when it has no cached page.
static bool evict_near(struct core *c, uint32_t pool, uint32_t ns) {
    const struct pool_live *live = &c->pools[pool];
    if (cache_count(live->cache, ns) == 0) {
        return false;
    }
    bool done = evict(c, pool, ns, 1) == 1;
    for (uint32_t i = 0; !done && i < live->num_ns; i++) {
        done = is_shared(live, ns, i) && evict(c, pool, i, 1) == 1;
    }
    assert(done);
    return done;
}

// One page of any namespace, the lowest number first.
static bool evict_any(struct core *c, uint32_t pool) {
    for (uint32_t ns = 0; ns < c->pools[pool].num_ns; ns++) {
        if (evict(c, pool, ns, 1) == 1) {
            return true;
        }
    }
    return false;
}

// What a namespace has beyond its reserve, if it has something to evict.
static uint32_t borrowed(const struct pool_live *live, uint32_t ns) {
    uint32_t used = ns_used(live, ns);
    uint32_t reserve = live->ns_recs[ns].reserve;
    return cache_count(live->cache, ns) > 0 && used > reserve ? used - reserve : 0;
}

// The namespace that has borrowed most for its weight, LAYOUT_NONE when none has anything to evict.
static uint32_t greatest_borrower(const struct pool_live *live) {
    uint32_t best = LAYOUT_NONE;
    uint64_t most = 0;
    for (uint32_t ns = 0; ns < live->num_ns; ns++) {
        uint64_t has = borrowed(live, ns);
        if (has > 0 && (best == LAYOUT_NONE ||
                        has * live->ns_recs[best].weight > most * live->ns_recs[ns].weight)) {
            best = ns;
            most = has;
        }
    }
    return best;
}

// Evicts at least one page for `taker`, at most n. There is one.
static void evict_for(struct core *c, uint32_t pool, uint32_t taker, uint32_t n) {
    const struct pool_live *live = &c->pools[pool];
    bool done;
    if (live->num_ns == 1) {
        done = evict(c, pool, 0, n) > 0;
    } else {
        uint32_t from = greatest_borrower(live);
        done = (from != LAYOUT_NONE && evict_near(c, pool, from)) || evict_near(c, pool, taker) ||
               evict_any(c, pool);
    }
    assert(done);
    (void)done;
}

static void trim_to(struct core *c, uint32_t pool, uint32_t ns, uint64_t most) {
    struct pool_live *live = &c->pools[pool];
    while (ns_used(live, ns) > most) {
        uint32_t excess = (uint32_t)(ns_used(live, ns) - most);
        if (evict(c, pool, ns, excess) == 0 && !evict_near(c, pool, ns)) {
            assert(false); // what is active is within the limit
            return;
        }
    }
}

void core_trim(struct core *c, uint32_t pool, uint32_t ns) {
    trim_to(c, pool, ns, c->pools[pool].ns_recs[ns].limit);
}

uint64_t core_room(const struct core *c, uint32_t pool, uint32_t ns) {
    const struct pool_live *live = &c->pools[pool];
    const struct ns_rec *rec = &live->ns_recs[ns];
    uint32_t active = live->ns[ns].active;
    uint64_t own = rec->limit - active;
    uint64_t shared = c->t.pools[pool].num_pages - live->promised;
    shared += rec->reserve > active ? rec->reserve - active : 0;
    return own < shared ? own : shared;
}

void core_reserve(struct core *c, uint32_t pool, uint32_t ns, uint32_t n) {
    struct pool_live *live = &c->pools[pool];
    assert(n <= core_room(c, pool, ns));
    trim_to(c, pool, ns, live->ns_recs[ns].limit - n);
    uint32_t available;
    while ((available = pages_free(&live->pages)) < n) {
        evict_for(c, pool, ns, n - available);
    }
    ns_active_add(live, ns, (int32_t)n);
}

void core_ref_sealed(struct core *c, uint32_t pool, uint32_t ns, uint32_t page) {
    struct pool_live *live = &c->pools[pool];
    if (live->pages.refs[page] > 0) {
        pages_ref(&live->pages, page);
        cache_hit(live->cache, page);
        return;
    }
    cache_reference(live->cache, page, ns);
    live->recs[page].ns = ns;
    pages_revive(&live->pages, page);
    ns_active_add(live, ns, 1);
}

void core_unref(struct core *c, const struct release *by, uint32_t page) {
    struct pool_live *live = &c->pools[by->pool];
    uint32_t left = pages_unref(&live->pages, page);
    if (!pages_is_sealed(&live->pages, page)) {
        if (left == 0) {
            ns_active_add(live, by->ns, -1);
            pages_give(&live->pages, page);
        }
        return;
    }
    if (by->priority != SPACE_NO_CLASS && !by->drop) {
        cache_raise(live->cache, page, by->priority);
    }
    if (left > 0) {
        return;
    }
    uint32_t ns = live->recs[page].ns;
    ns_active_add(live, ns, -1);
    cache_release(live->cache, page);
    if (by->drop && cache_forget(live->cache, page)) {
        live->ns[ns].counters.dropped++;
        unseal(c, by->pool, page);
    }
}

void core_unref_n(struct core *c, const struct release *by, uint32_t n, const uint32_t *pages) {
    while (n > 0) {
        core_unref(c, by, pages[--n]);
    }
}

int core_cache_clear(struct core *c, uint64_t pool_handle, uint32_t ns, uint32_t *ret_pages,
                     struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc == 0 && ns != UINT32_MAX) {
        rc = core_find_ns(c, pool, ns, err);
    }
    if (rc != 0) {
        return rc;
    }
    struct pool_live *live = &c->pools[pool];
    uint32_t first = ns == UINT32_MAX ? 0 : ns;
    uint32_t end = ns == UINT32_MAX ? live->num_ns : ns + 1;
    uint32_t total = 0;
    uint32_t before;
    do { // again: children of one namespace may have been in the way of another's
        before = total;
        for (uint32_t i = first; i < end; i++) {
            uint32_t done = evict(c, pool, i, cache_count(live->cache, i));
            live->ns[i].counters.evicted -= done;
            live->ns[i].counters.dropped += done;
            total += done;
        }
    } while (total > before);
    *ret_pages = total;
    return 0;
}
