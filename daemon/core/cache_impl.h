// SPDX-License-Identifier: Apache-2.0
// cache_impl.h: struct cache. Internal to cache.c and cache_check.c.
//
//     entries[page]:  parent, children        the forest of sealed pages
//                     prev, next              neighbours in a list; prev is newer
//                     ahead                   a hint, so that eviction need not wait for memory
//                                             page after page along the list
//     lists[ns][class][S or M]                S is LRU's only list
//
// Invariants (checked by cache_check)
//  1. A page is in at most one list, that of its namespace and class.
//  2. A cached page is in a list, or blocked and has children. LRU: a referenced one is in no list.
//  3. `children` is the number of sealed pages whose parent it is; a parent is sealed.
//  4. looked_at grows by at most as many as there were releases, hits and last children gone.
//  5. `ahead` is a page number or CACHE_NONE, and nothing else is relied upon.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_CACHE_IMPL_H
#define KVPOOL_DAEMON_CORE_CACHE_IMPL_H

#include "daemon/core/cache.h"
#include "daemon/core/ghosts.h"

enum { LRU, S3FIFO };          // policies
enum { OUT, S, M, KINDS = M }; // where a page is; lists[..][S - 1], lists[..][M - 1]
enum { MAX_FREQ = 3, AHEAD = 16 };

struct entry {
    uint32_t prev, next;
    uint32_t parent, children;
    uint32_t ahead; // a hint: the page that came to the head of the list AHEAD pages after this one
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
    uint32_t recent[AHEAD]; // the last pages that came to the head, in a ring
    uint32_t turn;          // where the oldest of them is
};

struct cache {
    uint32_t policy, num_pages;
    struct entry *entries;
    uint64_t *tags;       // [num_pages], S3-FIFO only
    struct ghosts ghosts; // S3-FIFO only
    uint64_t looked_at;   // pages that eviction has come to, evicted ones included
    uint32_t cached[CACHE_NAMESPACES];
    struct list lists[CACHE_NAMESPACES][CACHE_CLASSES][KINDS];
};

#endif
