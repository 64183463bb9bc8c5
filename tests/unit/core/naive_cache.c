// SPDX-License-Identifier: Apache-2.0
// naive_cache.c: see naive_cache.h.
#include "naive_cache.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

enum { S, M };

void naive_open(struct naive_cache *c, bool s3, uint32_t num_pages) {
    assert(num_pages <= NAIVE_PAGES);
    memset(c, 0, sizeof *c);
    c->s3 = s3;
    c->num_pages = num_pages;
}

uint32_t naive_children(const struct naive_cache *c, uint32_t page) {
    uint32_t children = 0;
    for (uint32_t i = 0; i < c->num_pages; i++) {
        children += c->pages[i].sealed && c->pages[i].parent == page;
    }
    return children;
}

uint32_t naive_count(const struct naive_cache *c, uint32_t ns) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->num_pages; i++) {
        count += c->pages[i].sealed && !c->pages[i].referenced && c->pages[i].ns == ns;
    }
    return count;
}

// --- lists ------------------------------------------------------------------------------------

static void put(struct naive_list *l, uint32_t at, uint32_t page) {
    for (uint32_t i = l->n; i > at; i--) {
        l->pages[i] = l->pages[i - 1];
    }
    l->pages[at] = page;
    l->n++;
}

static void put_head(struct naive_cache *c, uint32_t page, uint32_t kind) {
    put(&c->lists[c->pages[page].ns][c->pages[page].class_][kind], 0, page);
}

static void put_tail(struct naive_cache *c, uint32_t page, uint32_t kind) {
    struct naive_list *l = &c->lists[c->pages[page].ns][c->pages[page].class_][kind];
    put(l, l->n, page);
}

// The kind of the list that the page was in, or -1.
static int pull(struct naive_cache *c, uint32_t page) {
    for (uint32_t i = 0; i < NAIVE_NAMESPACES * 3 * 2; i++) {
        struct naive_list *l = &c->lists[i / 6][i / 2 % 3][i % 2];
        for (uint32_t at = 0; at < l->n; at++) {
            if (l->pages[at] == page) {
                for (l->n--; at < l->n; at++) {
                    l->pages[at] = l->pages[at + 1];
                }
                return (int)(i % 2);
            }
        }
    }
    return -1;
}

static bool is_listed(struct naive_cache *c, uint32_t page) {
    struct naive_cache copy = *c;
    return pull(&copy, page) >= 0;
}

// --- ghosts -----------------------------------------------------------------------------------

static uint32_t bucket(const struct naive_cache *c, uint64_t tag) {
    uint32_t buckets = 1;
    while (buckets < c->num_pages) {
        buckets *= 2;
    }
    return (uint32_t)(tag % buckets);
}

static bool same(const struct naive_cache *c, uint64_t a, uint64_t b) {
    return bucket(c, a) == bucket(c, b) && a >> 32 == b >> 32;
}

static bool drop_ghost(struct naive_cache *c, uint64_t tag) {
    for (uint32_t i = 0; i < c->num_ghosts; i++) {
        if (same(c, c->ghosts[i].tag, tag)) {
            c->ghosts[i] = c->ghosts[--c->num_ghosts];
            return true;
        }
    }
    return false;
}

static void add_ghost(struct naive_cache *c, uint64_t tag) {
    drop_ghost(c, tag);
    uint32_t in_bucket = 0;
    uint32_t oldest = NAIVE_NONE;
    for (uint32_t i = 0; i < c->num_ghosts; i++) {
        if (bucket(c, c->ghosts[i].tag) == bucket(c, tag)) {
            in_bucket++;
            if (oldest == NAIVE_NONE || c->ghosts[i].time < c->ghosts[oldest].time) {
                oldest = i;
            }
        }
    }
    if (in_bucket == 4) {
        c->ghosts[oldest] = c->ghosts[--c->num_ghosts];
    }
    for (uint32_t i = 0; i < c->num_ghosts; i++) { // the last num_pages times, the new one included
        if (c->time - c->ghosts[i].time >= c->num_pages) {
            c->ghosts[i] = c->ghosts[--c->num_ghosts];
            break; // at most one gets too old at a time
        }
    }
    assert(c->num_ghosts < NAIVE_PAGES);
    c->ghosts[c->num_ghosts++] = (struct naive_ghost){tag, c->time++};
}

// --- operations -------------------------------------------------------------------------------

void naive_seal(struct naive_cache *c, uint32_t page, uint32_t parent, uint32_t ns, uint64_t tag) {
    c->pages[page] = (struct naive_page){
        .sealed = true, .referenced = true, .parent = parent, .ns = ns, .tag = tag};
}

void naive_raise(struct naive_cache *c, uint32_t page, uint32_t class_) {
    if (class_ > c->pages[page].class_) {
        int kind = pull(c, page);
        c->pages[page].class_ = class_;
        if (kind >= 0) {
            put_head(c, page, (uint32_t)kind);
        }
    }
}

void naive_release(struct naive_cache *c, uint32_t page) {
    struct naive_page *p = &c->pages[page];
    p->referenced = false;
    if (!c->s3) {
        put_head(c, page, S);
    } else if (!p->was_released) {
        p->freq = 0;
        put_head(c, page, drop_ghost(c, p->tag) ? M : S);
    } else if (!is_listed(c, page)) {
        put_head(c, page, M);
    }
    p->was_released = true;
}

void naive_hit(struct naive_cache *c, uint32_t page) {
    if (c->s3 && c->pages[page].freq < 3) {
        c->pages[page].freq++;
    }
}

void naive_reference(struct naive_cache *c, uint32_t page, uint32_t ns) {
    struct naive_page *p = &c->pages[page];
    p->referenced = true;
    p->blocked = false;
    naive_hit(c, page);
    if (!c->s3) {
        pull(c, page);
        p->ns = ns;
    } else if (ns != p->ns) {
        int kind = pull(c, page);
        p->ns = ns;
        if (kind >= 0) {
            put_head(c, page, (uint32_t)kind);
        }
    }
}

static void end(struct naive_cache *c, uint32_t page) {
    uint32_t parent = c->pages[page].parent;
    c->pages[page].sealed = false;
    if (parent != NAIVE_NONE && c->pages[parent].blocked && naive_children(c, parent) == 0) {
        c->pages[parent].blocked = false;
        put_tail(c, parent, c->s3 ? M : S);
    }
}

bool naive_forget(struct naive_cache *c, uint32_t page) {
    if (naive_children(c, page) > 0) {
        return false;
    }
    pull(c, page);
    end(c, page);
    return true;
}

// The kind of list whose tail is next in a class that has pages.
static uint32_t next_kind(const struct naive_cache *c, const struct naive_list lists[2]) {
    if (!c->s3) {
        return S;
    }
    return 10 * lists[S].n > lists[S].n + lists[M].n || lists[M].n == 0 ? S : M;
}

uint32_t naive_evict(struct naive_cache *c, uint32_t ns, uint32_t n, uint32_t *ret_pages) {
    uint32_t evicted = 0;
    while (evicted < n) {
        uint32_t class_ = 0;
        while (class_ < 3 && c->lists[ns][class_][S].n + c->lists[ns][class_][M].n == 0) {
            class_++;
        }
        if (class_ == 3) {
            break;
        }
        uint32_t kind = next_kind(c, c->lists[ns][class_]);
        struct naive_list *l = &c->lists[ns][class_][kind];
        uint32_t page = l->pages[--l->n];
        struct naive_page *p = &c->pages[page];
        if (p->referenced) {
            continue;
        }
        if (naive_children(c, page) > 0) {
            p->blocked = true;
        } else if (kind == S && p->freq > 0) {
            p->freq = 0;
            put_head(c, page, M);
        } else if (kind == M && p->freq > 0) {
            p->freq--;
            put_head(c, page, M);
        } else {
            if (c->s3 && kind == S) {
                add_ghost(c, p->tag);
            }
            end(c, page);
            ret_pages[evicted++] = page;
        }
    }
    return evicted;
}
