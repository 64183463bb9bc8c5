// SPDX-License-Identifier: Apache-2.0
// cache.c: see cache.h and cache_impl.h.
#include "daemon/core/bigmem.h"
#include "daemon/core/cache_impl.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct cache *cache_open(uint32_t policy, uint32_t num_pages) {
    assert(policy < CACHE_POLICIES && num_pages > 0);
    struct cache *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->policy = policy;
    c->num_pages = num_pages;
    c->entries = bigmem_open(num_pages, sizeof *c->entries);
    if (c->entries == NULL) {
        goto fail;
    }
    for (uint32_t i = 0; i < CACHE_NAMESPACES * CACHE_CLASSES * KINDS; i++) {
        struct list *l = &c->lists[0][0][0] + i;
        *l = (struct list){.head = CACHE_NONE, .tail = CACHE_NONE};
        memset(l->recent, 0xff, sizeof l->recent); // CACHE_NONE
    }
    if (policy == S3FIFO) {
        c->tags = bigmem_open(num_pages, sizeof *c->tags);
        if (c->tags == NULL || !ghosts_init(&c->ghosts, num_pages)) {
            goto fail;
        }
    }
    return c;
fail:
    cache_close(c);
    return NULL;
}

void cache_close(struct cache *c) {
    if (c != NULL) {
        ghosts_fini(&c->ghosts);
        bigmem_close(c->tags, c->num_pages, sizeof *c->tags);
        bigmem_close(c->entries, c->num_pages, sizeof *c->entries);
        free(c);
    }
}

// --- lists ------------------------------------------------------------------------------------

static struct list *list_of(struct cache *c, const struct entry *e) {
    assert(e->where != OUT);
    return &c->lists[e->ns][e->class_][e->where - 1];
}

static void push_head(struct cache *c, uint32_t page, uint32_t where) {
    struct entry *e = &c->entries[page];
    assert(e->where == OUT);
    e->where = where & 3u;
    struct list *l = list_of(c, e);
    e->prev = CACHE_NONE;
    e->next = l->head;
    *(l->head != CACHE_NONE ? &c->entries[l->head].prev : &l->tail) = page;
    l->head = page;
    l->count++;
    uint32_t *oldest = &l->recent[l->turn++ % AHEAD];
    if (*oldest != CACHE_NONE) {
        c->entries[*oldest].ahead = page;
    }
    e->ahead = CACHE_NONE;
    *oldest = page;
}

static void push_tail(struct cache *c, uint32_t page, uint32_t where) {
    struct entry *e = &c->entries[page];
    assert(e->where == OUT);
    e->where = where & 3u;
    struct list *l = list_of(c, e);
    e->next = CACHE_NONE;
    e->prev = l->tail;
    *(l->tail != CACHE_NONE ? &c->entries[l->tail].next : &l->head) = page;
    l->tail = page;
    l->count++;
}

static void take_out(struct cache *c, uint32_t page) {
    struct entry *e = &c->entries[page];
    struct list *l = list_of(c, e);
    *(e->prev != CACHE_NONE ? &c->entries[e->prev].next : &l->head) = e->next;
    *(e->next != CACHE_NONE ? &c->entries[e->next].prev : &l->tail) = e->prev;
    l->count--;
    e->where = OUT;
}

// --- the life of a page -----------------------------------------------------------------------

void cache_seal(struct cache *c, uint32_t page, uint32_t parent, uint32_t ns, uint64_t tag) {
    assert(page < c->num_pages && ns < CACHE_NAMESPACES && !c->entries[page].sealed);
    c->entries[page] =
        (struct entry){.parent = parent, .ns = ns & 63u, .sealed = 1, .referenced = 1};
    if (parent != CACHE_NONE) {
        assert(parent < c->num_pages && c->entries[parent].sealed);
        c->entries[parent].children++;
    }
    if (c->policy == S3FIFO) {
        c->tags[page] = tag;
    }
}

static void hit(const struct cache *c, struct entry *e) {
    if (c->policy == S3FIFO && e->freq < MAX_FREQ) {
        e->freq = (e->freq + 1u) & 3u;
    }
}

// Gives the page another namespace and class; in a list, it comes to the head of the one that this
// makes the right one.
static void move(struct cache *c, uint32_t page, uint32_t ns, uint32_t class_) {
    struct entry *e = &c->entries[page];
    uint32_t where = e->where;
    if (e->ns == ns && e->class_ == class_) {
        return;
    }
    if (where != OUT) {
        take_out(c, page);
    }
    e->ns = ns & 63u;
    e->class_ = class_ & 3u;
    if (where != OUT) {
        push_head(c, page, where);
    }
}

void cache_raise(struct cache *c, uint32_t page, uint32_t class_) {
    struct entry *e = &c->entries[page];
    assert(e->sealed && e->referenced && class_ < CACHE_CLASSES);
    if (class_ > e->class_) {
        move(c, page, e->ns, class_);
    }
}

void cache_release(struct cache *c, uint32_t page) {
    struct entry *e = &c->entries[page];
    assert(e->sealed && e->referenced);
    e->referenced = 0;
    c->cached[e->ns]++;
    if (e->where != OUT) {
        return;
    }
    if (c->policy == LRU) {
        push_head(c, page, S);
    } else if (e->entered) {
        push_head(c, page, M);
    } else {
        e->entered = 1;
        e->freq = 0;
        push_head(c, page, ghosts_forget(&c->ghosts, c->tags[page]) ? M : S);
    }
}

void cache_reference(struct cache *c, uint32_t page, uint32_t ns) {
    struct entry *e = &c->entries[page];
    assert(e->sealed && !e->referenced && ns < CACHE_NAMESPACES);
    c->cached[e->ns]--;
    e->referenced = 1;
    e->blocked = 0;
    if (c->policy == LRU && e->where != OUT) {
        take_out(c, page);
    }
    hit(c, e);
    move(c, page, ns, e->class_);
}

void cache_hit(struct cache *c, uint32_t page) {
    assert(c->entries[page].sealed && c->entries[page].referenced);
    hit(c, &c->entries[page]);
}

void cache_prefetch(const struct cache *c, uint32_t page) {
    __asm__ volatile(""); // as in prefetch_ahead
    __builtin_prefetch(&c->entries[page], 1);
}

// A cached page that is in no list is no longer sealed.
static void forget(struct cache *c, uint32_t page) {
    struct entry *e = &c->entries[page];
    assert(e->sealed && !e->referenced && e->children == 0 && e->where == OUT);
    c->cached[e->ns]--;
    e->sealed = 0;
    if (e->parent != CACHE_NONE) {
        struct entry *parent = &c->entries[e->parent];
        if (--parent->children == 0 && parent->blocked) {
            parent->blocked = 0;
            push_tail(c, e->parent, c->policy == LRU ? S : M);
        }
    }
}

bool cache_forget(struct cache *c, uint32_t page) {
    struct entry *e = &c->entries[page];
    assert(e->sealed && !e->referenced);
    if (e->children > 0) {
        return false;
    }
    if (e->where != OUT) {
        take_out(c, page);
    }
    forget(c, page);
    return true;
}

// --- eviction ---------------------------------------------------------------------------------

// The tail that eviction looks at next; CACHE_NONE when the namespace has no page in a list.
static uint32_t next_tail(const struct cache *c, uint32_t ns) {
    for (uint32_t class_ = 0; class_ < CACHE_CLASSES; class_++) {
        const struct list *s = &c->lists[ns][class_][S - 1];
        const struct list *m = &c->lists[ns][class_][M - 1];
        uint64_t all = (uint64_t)s->count + m->count;
        if (all > 0) {
            return m->count == 0 || 10 * (uint64_t)s->count > all ? s->tail : m->tail;
        }
    }
    return CACHE_NONE;
}

// Eviction goes from tail to head: fetches what it will come to in AHEAD and in twice AHEAD steps.
static void prefetch_ahead(const struct cache *c, const struct entry *e) {
    __asm__ volatile(""); // GCC drops calls of a function that does nothing but prefetch
    if (e->ahead == CACHE_NONE) {
        return;
    }
    const struct entry *near = &c->entries[e->ahead];
    if (near->ahead != CACHE_NONE) {
        __builtin_prefetch(&c->entries[near->ahead], 1);
    }
    if (near->parent != CACHE_NONE) {
        __builtin_prefetch(&c->entries[near->parent], 1);
    }
    if (c->policy == S3FIFO) {
        if (near->ahead != CACHE_NONE) {
            __builtin_prefetch(&c->tags[near->ahead]);
        }
        ghosts_prefetch(&c->ghosts, c->tags[e->ahead]);
    }
}

uint32_t cache_evict(struct cache *c, uint32_t ns, uint32_t n, uint32_t *ret_pages) {
    uint32_t evicted = 0;
    assert(ns < CACHE_NAMESPACES);
    while (evicted < n) {
        uint32_t page = next_tail(c, ns);
        if (page == CACHE_NONE) {
            break;
        }
        struct entry *e = &c->entries[page];
        uint32_t where = e->where;
        c->looked_at++;
        prefetch_ahead(c, e);
        take_out(c, page);
        if (e->referenced) {
            continue;
        }
        if (e->children > 0) {
            e->blocked = 1;
            continue;
        }
        if (e->freq > 0) { // S3-FIFO
            e->freq = where == M ? (e->freq - 1u) & 3u : 0;
            push_head(c, page, M);
            continue;
        }
        if (c->policy == S3FIFO && where == S) {
            ghosts_remember(&c->ghosts, c->tags[page]);
        }
        forget(c, page);
        ret_pages[evicted++] = page;
    }
    return evicted;
}

// --- what is there ----------------------------------------------------------------------------

uint32_t cache_count(const struct cache *c, uint32_t ns) {
    return c->cached[ns];
}

bool cache_is_cached(const struct cache *c, uint32_t page) {
    return c->entries[page].sealed && !c->entries[page].referenced;
}

bool cache_is_sealed(const struct cache *c, uint32_t page) {
    return c->entries[page].sealed;
}

uint32_t cache_children(const struct cache *c, uint32_t page) {
    return c->entries[page].sealed ? c->entries[page].children : 0;
}

uint32_t cache_parent(const struct cache *c, uint32_t page) {
    return c->entries[page].sealed ? c->entries[page].parent : CACHE_NONE;
}

uint32_t cache_ns(const struct cache *c, uint32_t page) {
    return c->entries[page].ns;
}

uint32_t cache_class(const struct cache *c, uint32_t page) {
    return c->entries[page].class_;
}
