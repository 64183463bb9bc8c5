// SPDX-License-Identifier: Apache-2.0
// model_cache.c: the model's sealed pages: who finds them, who pays for them, who goes first. See
// model.h; the rules are those of daemon/core/core.h and cache.h.
#include "model.h"

#include <string.h>

static void problem(struct model *m, const char *text) {
    m->problem = m->problem != NULL ? m->problem : text;
}

// --- accounts ---------------------------------------------------------------------------------

bool model_cached(const struct model *m, int pool, uint32_t symbol) {
    return m->pools[pool].pages[symbol].sealed && m->pools[pool].counts[symbol] == 0;
}

uint32_t model_active(const struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        n += p->counts[i] > 0 && p->pages[i].ns == ns;
    }
    return n;
}

uint32_t model_used(const struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t n = model_active(m, pool, ns);
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        n += model_cached(m, pool, i) && p->pages[i].ns == ns;
    }
    return n;
}

uint32_t model_limit(const struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t limit = p->ns[ns].config.limit;
    return limit == 0 || limit > p->config.num_pages ? p->config.num_pages : limit;
}

uint32_t model_room(const struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t room = p->config.num_pages;
    for (uint32_t i = 0; i < p->num_ns; i++) {
        if (i != ns) {
            uint32_t active = model_active(m, pool, i);
            uint32_t reserve = p->ns[i].config.reserve;
            room -= active > reserve ? active : reserve;
        }
    }
    uint32_t limit = model_limit(m, pool, ns);
    return (limit < room ? limit : room) - model_active(m, pool, ns);
}

// --- events -----------------------------------------------------------------------------------

static struct model_event *expect(struct model *m, int pool, enum core_event_kind kind,
                                  uint32_t symbol) {
    static struct model_event none;
    if (m->num_expected == MODEL_EVENTS) {
        problem(m, "too many events for the model");
        return &none;
    }
    struct model_pool *p = &m->pools[pool];
    struct model_event *e = &m->expected[m->num_expected++];
    const struct model_page *page = &p->pages[symbol];
    uint32_t page_size = p->config.page_size;
    *e = (struct model_event){.kind = kind,
                              .pool = p->handle,
                              .ns = page->ns,
                              .page_size = page_size,
                              .symbol = (int)symbol};
    memcpy(e->key, page->key, sizeof e->key);
    if (page->parent >= 0) {
        memcpy(e->parent, p->pages[page->parent].key, sizeof e->parent);
    }
    memcpy(e->tokens, page->text.ids + page->len - page_size, page_size * sizeof *e->tokens);
    return e;
}

// The next page that core says it removed, -1: there is none.
static int next_removed(struct model *m, int pool) {
    struct model_pool *p = &m->pools[pool];
    while (m->next_seen < m->num_seen && m->seen[m->next_seen].kind != CORE_REMOVED) {
        m->next_seen++;
    }
    if (m->next_seen == m->num_seen) {
        return -1;
    }
    const struct model_event *e = &m->seen[m->next_seen++];
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        if (p->pages[i].sealed && memcmp(p->pages[i].key, e->key, sizeof e->key) == 0) {
            return (int)i;
        }
    }
    problem(m, "core removed a page that is not sealed");
    return -1;
}

// --- the index --------------------------------------------------------------------------------

// Namespaces of one group find each other's pages.
static bool same_salt(const struct model_pool *p, uint32_t a, uint32_t b) {
    const char *group = p->ns[a].config.group;
    return a == b || (group[0] != '\0' && strcmp(group, p->ns[b].config.group) == 0);
}

int model_find(const struct model *m, int pool, const struct model_text *text, uint32_t len) {
    const struct model_pool *p = &m->pools[pool];
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        const struct model_page *page = &p->pages[i];
        if (page->sealed && page->len == len && same_salt(p, page->text.ns, text->ns) &&
            page->text.extra_size == text->extra_size &&
            memcmp(page->text.extra, text->extra, text->extra_size) == 0 &&
            memcmp(page->text.ids, text->ids, len * sizeof *text->ids) == 0) {
            return (int)i;
        }
    }
    return -1;
}

uint32_t model_match(const struct model *m, int pool, const struct model_text *text, uint32_t n,
                     uint32_t *symbols) {
    uint32_t page_size = m->pools[pool].config.page_size;
    uint32_t pages = 0;
    while ((pages + 1) * page_size <= n) {
        int symbol = model_find(m, pool, text, (pages + 1) * page_size);
        if (symbol < 0) {
            break;
        }
        if (symbols != NULL) {
            symbols[pages] = (uint32_t)symbol;
        }
        pages++;
    }
    return pages;
}

void model_seal(struct model *m, int pool, uint32_t symbol, int parent,
                const struct model_text *text, uint32_t len) {
    struct model_page *page = &m->pools[pool].pages[symbol];
    page->sealed = true;
    page->parent = parent;
    page->class_ = 0;
    page->len = len;
    page->text = *text;
    page->listed = page->blocked = false;
    memset(page->key, 0, sizeof page->key); // the event will say
    expect(m, pool, CORE_STORED, symbol);
}

// --- references and the order of eviction -----------------------------------------------------

uint32_t model_children(const struct model *m, int pool, uint32_t symbol) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        n += p->pages[i].sealed && p->pages[i].parent == (int)symbol;
    }
    return n;
}

// A cached page without children is free.
static void forget(struct model *m, int pool, uint32_t symbol, bool dropped) {
    struct model_pool *p = &m->pools[pool];
    struct model_page *page = &p->pages[symbol];
    expect(m, pool, CORE_REMOVED, symbol);
    struct core_ns_counters *counters = &p->ns[page->ns].counters;
    *(dropped ? &counters->dropped : &counters->evicted) += 1;
    page->sealed = page->listed = page->blocked = false;
    page->id = UINT32_MAX;
    struct model_page *parent = page->parent >= 0 ? &p->pages[page->parent] : NULL;
    if (parent != NULL && parent->blocked && model_children(m, pool, (uint32_t)page->parent) == 0) {
        parent->blocked = false;
        parent->listed = true;
        parent->stamp = --p->oldest;
    }
}

void model_reference(struct model *m, int pool, uint32_t symbol, uint32_t ns) {
    struct model_pool *p = &m->pools[pool];
    if (p->counts[symbol]++ == 0) {
        p->pages[symbol].ns = ns;
        p->pages[symbol].listed = p->pages[symbol].blocked = false;
    }
}

void model_release(struct model *m, int pool, uint32_t symbol, int priority, bool drop) {
    struct model_pool *p = &m->pools[pool];
    struct model_page *page = &p->pages[symbol];
    p->counts[symbol]--;
    if (!page->sealed) {
        page->id = p->counts[symbol] == 0 ? UINT32_MAX : page->id;
        return;
    }
    if (!drop && priority > (int)page->class_) {
        page->class_ = (uint32_t)priority;
    }
    if (p->counts[symbol] > 0) {
        return;
    }
    if (drop && model_children(m, pool, symbol) == 0) {
        forget(m, pool, symbol, true);
    } else {
        page->listed = true;
        page->stamp = ++p->newest;
    }
}

// LRU: the page of the namespace that goes first, -1: none. Pages with children that it comes to are
// taken out of their list.
static int lru_victim(struct model *m, int pool, uint32_t ns) {
    struct model_pool *p = &m->pools[pool];
    for (uint32_t class_ = 0; class_ < CORE_PRIORITIES; class_++) {
        for (;;) {
            int tail = -1;
            for (uint32_t i = 0; i < p->config.num_pages; i++) {
                const struct model_page *page = &p->pages[i];
                if (page->sealed && page->listed && page->ns == ns && page->class_ == class_ &&
                    (tail < 0 || page->stamp < p->pages[tail].stamp)) {
                    tail = (int)i;
                }
            }
            if (tail < 0) {
                break;
            }
            if (model_children(m, pool, (uint32_t)tail) == 0) {
                return tail;
            }
            p->pages[tail].listed = false;
            p->pages[tail].blocked = true;
        }
    }
    return -1;
}

// The lowest class of which the namespace has a page that can be evicted; CORE_PRIORITIES: none.
static uint32_t lowest_class(const struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t lowest = CORE_PRIORITIES;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        if (model_cached(m, pool, i) && p->pages[i].ns == ns && p->pages[i].class_ < lowest &&
            model_children(m, pool, i) == 0) {
            lowest = p->pages[i].class_;
        }
    }
    return lowest;
}

// S3-FIFO: the page that core says it evicted, if it may be one of the namespace.
static int told_victim(struct model *m, int pool, uint32_t ns) {
    struct model_pool *p = &m->pools[pool];
    uint32_t class_ = lowest_class(m, pool, ns);
    if (class_ == CORE_PRIORITIES) {
        return -1;
    }
    int symbol = next_removed(m, pool);
    if (symbol < 0) {
        problem(m, "core evicted fewer pages");
    } else if (!model_cached(m, pool, (uint32_t)symbol)) {
        problem(m, "core evicted a page that is referred to");
    } else if (model_children(m, pool, (uint32_t)symbol) > 0) {
        problem(m, "core evicted a page before its children");
    } else if (p->pages[symbol].ns != ns) {
        problem(m, "core evicted a page of another namespace");
    } else if (p->pages[symbol].class_ != class_) {
        problem(m, "core evicted a page of a higher class");
    }
    return m->problem != NULL ? -1 : symbol;
}

static bool evict_one(struct model *m, int pool, uint32_t ns) {
    bool lru = m->pools[pool].config.policy == CORE_LRU;
    int victim = lru ? lru_victim(m, pool, ns) : told_victim(m, pool, ns);
    if (victim >= 0) {
        forget(m, pool, (uint32_t)victim, false);
    }
    return victim >= 0;
}

// The namespace that has borrowed most for its weight, UINT32_MAX: none that has cached pages.
static uint32_t greatest_borrower(const struct model *m, int pool) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t best = UINT32_MAX;
    uint64_t most = 0;
    for (uint32_t i = 0; i < p->num_ns; i++) {
        uint64_t used = model_used(m, pool, i);
        uint32_t reserve = p->ns[i].config.reserve;
        if (used > reserve && used > model_active(m, pool, i)) { // compared as fractions
            uint64_t over = used - reserve;
            if (best == UINT32_MAX ||
                over * p->ns[best].config.weight > most * p->ns[i].config.weight) {
                best = i;
                most = over;
            }
        }
    }
    return best;
}

// Of a namespace, or else of its group: that one of them has cached pages is enough.
static bool evict_near(struct model *m, int pool, uint32_t ns) {
    const struct model_pool *p = &m->pools[pool];
    bool done = evict_one(m, pool, ns);
    bool cached = model_used(m, pool, ns) > model_active(m, pool, ns);
    for (uint32_t i = 0; cached && !done && i < p->num_ns; i++) {
        done = same_salt(p, ns, i) && evict_one(m, pool, i);
    }
    return done;
}

static bool evict_any(struct model *m, int pool) {
    for (uint32_t i = 0; i < m->pools[pool].num_ns; i++) {
        if (evict_one(m, pool, i)) {
            return true;
        }
    }
    return false;
}

static bool evict_for(struct model *m, int pool, uint32_t taker) {
    uint32_t from = greatest_borrower(m, pool);
    return (from != UINT32_MAX && evict_near(m, pool, from)) || evict_near(m, pool, taker) ||
           evict_any(m, pool);
}

static uint32_t free_pages(const struct model *m, int pool) {
    const struct model_pool *p = &m->pools[pool];
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        n += p->counts[i] == 0 && !p->pages[i].sealed;
    }
    return n;
}

void model_make_room(struct model *m, int pool, uint32_t ns, uint32_t n, bool free_too) {
    uint32_t limit = model_limit(m, pool, ns);
    while (m->problem == NULL && model_used(m, pool, ns) + n > limit) {
        if (!evict_near(m, pool, ns)) {
            problem(m, "nothing can be evicted for the limit");
        }
    }
    while (free_too && m->problem == NULL && free_pages(m, pool) < n) {
        if (!evict_for(m, pool, ns)) {
            problem(m, "nothing can be evicted");
        }
    }
}

uint32_t model_clear(struct model *m, int pool, uint32_t ns) {
    struct model_pool *p = &m->pools[pool];
    uint32_t cleared = 0;
    for (int symbol = next_removed(m, pool); symbol >= 0; symbol = next_removed(m, pool)) {
        if (!model_cached(m, pool, (uint32_t)symbol) ||
            model_children(m, pool, (uint32_t)symbol) > 0 ||
            (ns != UINT32_MAX && p->pages[symbol].ns != ns)) {
            problem(m, "core dropped a page that it should not");
            break;
        }
        forget(m, pool, (uint32_t)symbol, true);
        cleared++;
    }
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        struct model_page *page = &p->pages[i];
        if (model_cached(m, pool, i) && (ns == UINT32_MAX || page->ns == ns)) {
            if (model_children(m, pool, i) == 0) {
                problem(m, "core left a cached page that it should drop");
            }
            page->blocked = true; // by children of another namespace
            page->listed = false;
        }
    }
    return cleared;
}

// Was page a released before b, as far as an attached core knows?
static bool released_before(const struct model_page *a, const struct model_page *b) {
    return a->len != b->len ? a->len > b->len : a->id > b->id;
}

void model_reattached(struct model *m) {
    for (int pool = 0; pool < MODEL_POOLS; pool++) {
        struct model_pool *p = &m->pools[pool];
        if (!p->live) {
            continue;
        }
        model_recount(m, pool, NULL);
        p->newest = p->oldest = 0;
        for (uint32_t i = 0; i < p->config.num_pages; i++) {
            struct model_page *page = &p->pages[i];
            page->class_ = CORE_LOW;
            page->blocked = false;
            page->listed = model_cached(m, pool, i);
            page->stamp = 0;
            for (uint32_t k = 0; page->listed && k < p->config.num_pages; k++) {
                page->stamp += model_cached(m, pool, k) && released_before(&p->pages[k], page);
            }
            p->newest = page->listed && page->stamp > p->newest ? page->stamp : p->newest;
        }
        for (uint32_t i = 0; i < p->num_ns; i++) {
            p->ns[i].counters = (struct core_ns_counters){0};
        }
    }
    for (int i = 0; i < MODEL_SEQS; i++) { // the order of their slots
        m->seqs[i].born = (uint32_t)m->seqs[i].handle;
    }
    m->last_born = (uint64_t)UINT32_MAX + 1;
}
