// SPDX-License-Identifier: Apache-2.0
// cache.c: see cache.h.
//
//     entries[page]:  parent, children        the forest of sealed pages
//                     prev, next              neighbours in a list; prev is newer
//     lists[ns][class][S or M]                S is LRU's only list
//     ghosts                                  S3-FIFO's; see below
#include "daemon/core/cache.h"

#include <assert.h>
#include <stdlib.h>

enum { LRU, S3FIFO };            // policies
enum { OUT, S, M, KINDS = M };   // where a page is; lists[..][S - 1], lists[..][M - 1]
enum { MAX_FREQ = 3, WAYS = 4 }; // WAYS: of a bucket of ghosts

struct entry {
    uint32_t prev, next;
    uint32_t parent, children;
    uint32_t ns : 6;
    uint32_t class_ : 2;
    uint32_t where : 2;
    uint32_t freq : 2;
    uint32_t sealed : 1;
    uint32_t referenced : 1;
    uint32_t blocked : 1; // taken out by eviction because of its children
    uint32_t entered : 1; // has been in a list since it was sealed
};
_Static_assert(sizeof(struct entry) <= 24, "small entries");

struct list {
    uint32_t head, tail, count;
};

struct ghost {
    uint32_t tag; // upper half of the page's tag
    uint32_t time;
};

struct cache {
    uint32_t policy, num_pages;
    struct entry *entries;
    uint64_t *tags;       // [num_pages], S3-FIFO only
    struct ghost *ghosts; // [ghost_mask + 1][WAYS], S3-FIFO only; the bucket is the tag's low bits
    uint32_t ghost_mask;
    uint32_t time; // of the next ghost
    uint32_t cached[CACHE_NAMESPACES];
    struct list lists[CACHE_NAMESPACES][CACHE_CLASSES][KINDS];
};

struct cache *cache_open(uint32_t policy, uint32_t num_pages) {
    assert(policy < CACHE_POLICIES && num_pages > 0);
    struct cache *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->policy = policy;
    c->num_pages = num_pages;
    c->entries = calloc(num_pages, sizeof *c->entries);
    if (c->entries == NULL) {
        goto fail;
    }
    for (uint32_t i = 0; i < CACHE_NAMESPACES * CACHE_CLASSES * KINDS; i++) {
        (&c->lists[0][0][0])[i] = (struct list){.head = CACHE_NONE, .tail = CACHE_NONE};
    }
    if (policy == S3FIFO) {
        while (c->ghost_mask < num_pages - 1) {
            c->ghost_mask = c->ghost_mask * 2 + 1;
        }
        c->time = num_pages + 1; // so that the zeroed ghosts are too old
        c->tags = calloc(num_pages, sizeof *c->tags);
        c->ghosts = calloc((size_t)c->ghost_mask + 1, sizeof *c->ghosts * WAYS);
        if (c->tags == NULL || c->ghosts == NULL) {
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
        free(c->ghosts);
        free(c->tags);
        free(c->entries);
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

// --- ghosts -----------------------------------------------------------------------------------

static struct ghost *bucket_of(struct cache *c, uint64_t tag) {
    return &c->ghosts[(size_t)((uint32_t)tag & c->ghost_mask) * WAYS];
}

static bool is_ghost(const struct cache *c, const struct ghost *g, uint64_t tag) {
    return c->time - g->time <= c->num_pages && g->tag == (uint32_t)(tag >> 32);
}

// True when the tag was remembered; it is no longer.
static bool forget_ghost(struct cache *c, uint64_t tag) {
    struct ghost *bucket = bucket_of(c, tag);
    for (uint32_t i = 0; i < WAYS; i++) {
        if (is_ghost(c, &bucket[i], tag)) {
            bucket[i].time = c->time - c->num_pages - 1;
            return true;
        }
    }
    return false;
}

static void remember_ghost(struct cache *c, uint64_t tag) {
    struct ghost *bucket = bucket_of(c, tag);
    struct ghost *place = bucket;
    for (uint32_t i = 0; i < WAYS; i++) {
        if (is_ghost(c, &bucket[i], tag)) {
            place = &bucket[i];
            break;
        }
        if (c->time - bucket[i].time > c->time - place->time) {
            place = &bucket[i];
        }
    }
    *place = (struct ghost){.tag = (uint32_t)(tag >> 32), .time = c->time++};
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
        push_head(c, page, forget_ghost(c, c->tags[page]) ? M : S);
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
            remember_ghost(c, c->tags[page]);
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

// --- cache_check ------------------------------------------------------------------------------

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
