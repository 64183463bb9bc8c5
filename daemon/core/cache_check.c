// SPDX-License-Identifier: Apache-2.0
// cache_check.c: cache_check, see cache.h.
#include "daemon/core/cache_impl.h"

// A page of its own that contradicts itself.
static bool is_odd(const struct cache *c, const struct entry *e) {
    bool listed = e->where != OUT;
    if (!e->sealed) {
        return listed || e->blocked;
    }
    if (e->parent != CACHE_NONE && (e->parent >= c->num_pages || !c->entries[e->parent].sealed)) {
        return true;
    }
    if (e->referenced) {
        return e->blocked || (listed && c->policy == LRU);
    }
    return e->blocked ? listed || e->children == 0 : !listed;
}

// Follows one list; adds its pages to *listed.
static uint32_t check_list(const struct cache *c, const struct list *l, uint32_t ns,
                           uint32_t class_, uint32_t where, uint32_t *listed) {
    uint32_t newer = CACHE_NONE;
    uint32_t count = 0;
    for (uint32_t page = l->head; page != CACHE_NONE; page = c->entries[page].next) {
        if (page >= c->num_pages) {
            return newer == CACHE_NONE ? 1 : newer + 1;
        }
        const struct entry *e = &c->entries[page];
        if (e->prev != newer || e->ns != ns || e->class_ != class_ || e->where != where ||
            ++count > l->count) {
            return page + 1;
        }
        newer = page;
    }
    if (l->tail != newer || count != l->count) {
        return newer == CACHE_NONE ? 1 : newer + 1;
    }
    *listed += count;
    return 0;
}

// Every page's children are as many as name it as their parent. Takes them off the counts and puts
// them back, for want of memory beside the entries.
static uint32_t check_children(const struct cache *c) {
    uint32_t bad = 0;
    for (uint32_t page = 0; page < c->num_pages; page++) {
        const struct entry *e = &c->entries[page];
        if (e->sealed && e->parent != CACHE_NONE) {
            c->entries[e->parent].children--;
        }
    }
    for (uint32_t page = 0; page < c->num_pages && bad == 0; page++) {
        if (c->entries[page].sealed && c->entries[page].children != 0) {
            bad = page + 1;
        }
    }
    for (uint32_t page = 0; page < c->num_pages; page++) {
        const struct entry *e = &c->entries[page];
        if (e->sealed && e->parent != CACHE_NONE) {
            c->entries[e->parent].children++;
        }
    }
    return bad;
}

uint32_t cache_check(const struct cache *c) {
    uint32_t cached[CACHE_NAMESPACES] = {0};
    uint32_t listed = 0;
    uint32_t followed = 0;
    for (uint32_t page = 0; page < c->num_pages; page++) {
        const struct entry *e = &c->entries[page];
        if (is_odd(c, e)) {
            return page + 1;
        }
        listed += e->where != OUT;
        cached[e->ns] += e->sealed && !e->referenced;
    }
    uint32_t bad = check_children(c);
    for (uint32_t ns = 0; ns < CACHE_NAMESPACES && bad == 0; ns++) {
        for (uint32_t class_ = 0; class_ < CACHE_CLASSES && bad == 0; class_++) {
            for (uint32_t where = S; where <= M && bad == 0; where++) {
                bad = check_list(c, &c->lists[ns][class_][where - 1], ns, class_, where, &followed);
            }
        }
        if (bad == 0 && cached[ns] != c->cached[ns]) {
            bad = 1;
        }
    }
    return bad != 0 ? bad : listed != followed;
}
