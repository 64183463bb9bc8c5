// SPDX-License-Identifier: Apache-2.0
// naive_cache.h: the text of daemon/core/cache.h played with plain arrays and searches from end to
// end, to compare the real one with.
#ifndef KVPOOL_TESTS_UNIT_CORE_NAIVE_CACHE_H
#define KVPOOL_TESTS_UNIT_CORE_NAIVE_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#define NAIVE_PAGES 48u
#define NAIVE_NAMESPACES 3u
#define NAIVE_NONE UINT32_MAX

struct naive_page {
    bool sealed, referenced;
    bool was_released; // once at least since it was sealed
    bool blocked;
    uint32_t parent, ns, class_, freq;
    uint64_t tag;
};

struct naive_list {
    uint32_t pages[NAIVE_PAGES]; // the newest first
    uint32_t n;
};

struct naive_ghost {
    uint64_t tag;
    uint64_t time;
};

struct naive_cache {
    bool s3;
    uint32_t num_pages;
    struct naive_page pages[NAIVE_PAGES];
    struct naive_list lists[NAIVE_NAMESPACES][3][2]; // [ns][class][0: S, or LRU's; 1: M]
    struct naive_ghost ghosts[NAIVE_PAGES];          // those that are remembered, in no order
    uint32_t num_ghosts;
    uint64_t time;
};

void naive_open(struct naive_cache *c, bool s3, uint32_t num_pages);
void naive_seal(struct naive_cache *c, uint32_t page, uint32_t parent, uint32_t ns, uint64_t tag);
void naive_raise(struct naive_cache *c, uint32_t page, uint32_t class_);
void naive_release(struct naive_cache *c, uint32_t page);
void naive_reference(struct naive_cache *c, uint32_t page, uint32_t ns);
void naive_hit(struct naive_cache *c, uint32_t page);
uint32_t naive_evict(struct naive_cache *c, uint32_t ns, uint32_t n, uint32_t *ret_pages);
bool naive_forget(struct naive_cache *c, uint32_t page);
uint32_t naive_count(const struct naive_cache *c, uint32_t ns);
uint32_t naive_children(const struct naive_cache *c, uint32_t page);

#endif
