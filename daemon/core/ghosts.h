// SPDX-License-Identifier: Apache-2.0
// ghosts.h: S3-FIFO's memory of pages that it evicted: the tags of the last `limit` of them.
//
//     table:  | tag's upper half, time | x 4 |     bucket = low bits of the tag
//             | tag's upper half, time | x 4 |     time   = how many were remembered before
//             | ...
//
// Approximate: a full bucket forgets its oldest, and tags that differ in bits that are neither in the
// bucket nor in the upper half are one.
//
// Invariants
//  1. What was remembered longer than `limit` tags ago is forgotten.
//  2. A tag is there at most once.
//  3. No allocation after ghosts_init; every operation looks at one bucket: half a cache line.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_GHOSTS_H
#define KVPOOL_DAEMON_CORE_GHOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GHOSTS_WAYS 4u

struct ghost {
    uint32_t tag;
    uint32_t time; // modulo 2^32
};

struct ghosts {
    struct ghost *table; // [mask + 1][GHOSTS_WAYS]
    uint32_t mask;
    uint32_t limit;
    uint32_t time; // of the next tag
};

bool ghosts_init(struct ghosts *g, uint32_t limit); // limit: 1..2^31
void ghosts_fini(struct ghosts *g);                 // a zeroed struct is fine

void ghosts_remember(struct ghosts *g, uint64_t tag); // one that is there becomes the newest
bool ghosts_forget(struct ghosts *g, uint64_t tag);   // whether it was there

static inline struct ghost *ghosts_bucket(const struct ghosts *g, uint64_t tag) {
    return &g->table[(size_t)((uint32_t)tag & g->mask) * GHOSTS_WAYS];
}
static inline void ghosts_prefetch(const struct ghosts *g, uint64_t tag) {
    __builtin_prefetch(ghosts_bucket(g, tag), 1);
}

#endif
