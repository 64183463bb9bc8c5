// SPDX-License-Identifier: Apache-2.0
// policy_sim.c: see policy_sim.h.
#include "tests/system/policy_sim.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
#define OWN_CONTENT (1ull << 63) // keys of pages that only one request can have

enum { NOWHERE, IN_S, IN_M, LISTS }; // LRU has M alone

struct page {
    uint64_t key;
    uint32_t parent, children;
    uint32_t prev, next; // in its list: prev is nearer to the head
    uint8_t list, freq;
    bool sealed, referenced;
    bool entered; // S3-FIFO: it was in a list before
};

struct list {
    uint32_t head, tail, count;
};

struct entry { // everything ever sealed, by content
    uint64_t key;
    uint32_t page;       // where it is, NONE: gone
    uint64_t ghost_time; // 0: no ghost; else the number of the ghost
    bool used;
};

struct policy_sim {
    enum sim_policy policy;
    uint32_t num_pages, page_size;
    struct page *pages;
    uint32_t *free_pages, num_free;
    struct list lists[LISTS];
    struct entry *table; // open addressing
    uint64_t table_size, table_used;
    uint64_t ghosts;   // remembered so far
    uint64_t contents; // of single requests, so far
    uint64_t evicted;
    uint32_t *row, row_len, row_cap; // of the running request
};

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (p == NULL) {
        abort();
    }
    return p;
}

// --- contents ---------------------------------------------------------------------------------

static struct entry *entry_of(struct policy_sim *s, uint64_t key) {
    uint64_t i = (key * 0x9e3779b97f4a7c15u >> 17) & (s->table_size - 1);
    while (s->table[i].used && s->table[i].key != key) {
        i = (i + 1) & (s->table_size - 1);
    }
    return &s->table[i];
}

static struct entry *entry_make(struct policy_sim *s, uint64_t key) {
    if (2 * s->table_used >= s->table_size) {
        struct entry *old = s->table;
        uint64_t old_size = s->table_size;
        s->table_size *= 2;
        s->table = allocate(s->table_size, sizeof s->table[0]);
        for (uint64_t i = 0; i < old_size; i++) {
            if (old[i].used) {
                *entry_of(s, old[i].key) = old[i];
            }
        }
        free(old);
    }
    struct entry *e = entry_of(s, key);
    if (!e->used) {
        *e = (struct entry){.key = key, .page = NONE, .used = true};
        s->table_used++;
    }
    return e;
}

static uint32_t find(struct policy_sim *s, uint64_t key) {
    const struct entry *e = entry_of(s, key);
    return e->used ? e->page : NONE;
}

// --- lists ------------------------------------------------------------------------------------

static void take_out(struct policy_sim *s, uint32_t p) {
    struct page *page = &s->pages[p];
    struct list *l = &s->lists[page->list];
    if (page->list == NOWHERE) {
        return;
    }
    *(page->prev != NONE ? &s->pages[page->prev].next : &l->head) = page->next;
    *(page->next != NONE ? &s->pages[page->next].prev : &l->tail) = page->prev;
    l->count--;
    page->list = NOWHERE;
}

static void put_head(struct policy_sim *s, uint32_t p, uint8_t list) {
    struct list *l = &s->lists[list];
    s->pages[p].list = list;
    s->pages[p].prev = NONE;
    s->pages[p].next = l->head;
    *(l->head != NONE ? &s->pages[l->head].prev : &l->tail) = p;
    l->head = p;
    l->count++;
}

static void put_tail(struct policy_sim *s, uint32_t p, uint8_t list) {
    struct list *l = &s->lists[list];
    s->pages[p].list = list;
    s->pages[p].next = NONE;
    s->pages[p].prev = l->tail;
    *(l->tail != NONE ? &s->pages[l->tail].next : &l->head) = p;
    l->tail = p;
    l->count++;
}

// --- the policies -----------------------------------------------------------------------------

static void reference(struct policy_sim *s, uint32_t p) {
    struct page *page = &s->pages[p];
    page->referenced = true;
    if (s->policy == SIM_LRU) {
        take_out(s, p);
    } else if (page->freq < 3) {
        page->freq++;
    }
}

static void release(struct policy_sim *s, uint32_t p) {
    struct page *page = &s->pages[p];
    page->referenced = false;
    if (s->policy == SIM_LRU) {
        put_head(s, p, IN_M);
        return;
    }
    if (page->list != NOWHERE) {
        return;
    }
    if (page->entered) { // eviction took it out
        put_head(s, p, IN_M);
        return;
    }
    struct entry *e = entry_of(s, page->key);
    bool ghost = e->ghost_time != 0 && s->ghosts - e->ghost_time < s->num_pages;
    e->ghost_time = 0;
    page->entered = true;
    page->freq = 0;
    put_head(s, p, ghost ? IN_M : IN_S);
}

static void evict(struct policy_sim *s, uint32_t p) {
    struct page *page = &s->pages[p];
    struct entry *e = entry_of(s, page->key);
    e->page = NONE;
    if (s->policy == SIM_S3FIFO && page->list == IN_S) {
        e->ghost_time = ++s->ghosts;
    }
    take_out(s, p);
    uint32_t parent = page->parent;
    *page = (struct page){.parent = NONE};
    s->free_pages[s->num_free++] = p;
    s->evicted++;
    if (parent != NONE) {
        struct page *up = &s->pages[parent];
        if (--up->children == 0 && !up->referenced && up->list == NOWHERE) {
            put_tail(s, parent, IN_M);
        }
    }
}

static bool evict_lru(struct policy_sim *s) {
    while (s->lists[IN_M].count > 0) {
        uint32_t p = s->lists[IN_M].tail;
        if (s->pages[p].children == 0) {
            evict(s, p);
            return true;
        }
        take_out(s, p);
    }
    return false;
}

static bool evict_s3fifo(struct policy_sim *s) {
    struct list *small = &s->lists[IN_S], *main = &s->lists[IN_M];
    while (small->count + main->count > 0) {
        bool from_small = 10 * small->count > small->count + main->count || main->count == 0;
        uint32_t p = from_small ? small->tail : main->tail;
        struct page *page = &s->pages[p];
        if (page->referenced || page->children > 0) {
            take_out(s, p);
        } else if (page->freq > 0) {
            page->freq = from_small ? 0 : (uint8_t)(page->freq - 1);
            take_out(s, p);
            put_head(s, p, IN_M);
        } else {
            evict(s, p);
            return true;
        }
    }
    return false;
}

static uint32_t take_page(struct policy_sim *s) {
    if (s->num_free == 0 && !(s->policy == SIM_LRU ? evict_lru(s) : evict_s3fifo(s))) {
        abort();
    }
    return s->free_pages[--s->num_free];
}

// --- requests ---------------------------------------------------------------------------------

// Content of page i of a request whose own contents begin at `own`.
static uint64_t key_of(const struct policy_sim *s, const struct trace_line *line, uint32_t i,
                       uint64_t own) {
    uint64_t at = (uint64_t)i * s->page_size;
    if (at + s->page_size > line->input) {
        return OWN_CONTENT | (own + i);
    }
    return line->ids[at / line->block_size] * (line->block_size / s->page_size) +
           at % line->block_size / s->page_size;
}

static void row_push(struct policy_sim *s, uint32_t page) {
    if (s->row_len == s->row_cap) {
        s->row_cap = s->row_cap == 0 ? 64 : 2 * s->row_cap;
        s->row = realloc(s->row, s->row_cap * sizeof s->row[0]);
        if (s->row == NULL) {
            abort();
        }
    }
    s->row[s->row_len++] = page;
}

// Page i of the row became full.
static void seal(struct policy_sim *s, uint32_t i, uint64_t key) {
    uint32_t p = s->row[i], there = find(s, key);
    if (there != NONE) {
        s->free_pages[s->num_free++] = p;
        s->row[i] = there;
        reference(s, there);
        return;
    }
    uint32_t parent = i > 0 ? s->row[i - 1] : NONE;
    s->pages[p] = (struct page){.key = key, .parent = parent, .sealed = true, .referenced = true};
    if (parent != NONE) {
        s->pages[parent].children++;
    }
    entry_make(s, key)->page = p;
}

uint32_t policy_sim_run(struct policy_sim *s, const struct trace_line *line, uint32_t chunk) {
    const uint32_t total = line->input + line->output;
    const uint64_t own = s->contents;
    s->contents += total / s->page_size + 1;
    s->row_len = 0;
    for (uint32_t i = 0, p; i < line->opened / s->page_size; i++) {
        if ((p = find(s, key_of(s, line, i, own))) == NONE) {
            break;
        }
        reference(s, p);
        row_push(s, p);
    }
    uint32_t matched = s->row_len * s->page_size;
    for (uint32_t at = matched; at < total;) {
        uint32_t end = at < line->input ? line->input : total;
        uint32_t next = end - at < chunk ? end : at + chunk;
        while (s->row_len * (uint64_t)s->page_size < next) {
            row_push(s, take_page(s));
        }
        for (uint32_t i = at / s->page_size; i < next / s->page_size; i++) {
            seal(s, i, key_of(s, line, i, own));
        }
        at = next;
    }
    while (s->row_len > 0) {
        uint32_t p = s->row[--s->row_len];
        if (s->pages[p].sealed) {
            release(s, p);
        } else {
            s->free_pages[s->num_free++] = p;
        }
    }
    return matched;
}

uint64_t policy_sim_evicted(const struct policy_sim *s) {
    return s->evicted;
}

struct policy_sim *policy_sim_open(enum sim_policy policy, uint32_t num_pages, uint32_t page_size) {
    struct policy_sim *s = allocate(1, sizeof *s);
    s->policy = policy;
    s->num_pages = num_pages;
    s->page_size = page_size;
    s->pages = allocate(num_pages, sizeof s->pages[0]);
    s->free_pages = allocate(num_pages, sizeof s->free_pages[0]);
    s->table_size = 1u << 12;
    s->table = allocate(s->table_size, sizeof s->table[0]);
    for (uint32_t i = 0; i < num_pages; i++) {
        s->free_pages[s->num_free++] = i;
    }
    for (int i = 0; i < LISTS; i++) {
        s->lists[i] = (struct list){NONE, NONE, 0};
    }
    return s;
}

void policy_sim_close(struct policy_sim *s) {
    free(s->row);
    free(s->table);
    free(s->free_pages);
    free(s->pages);
    free(s);
}
