// SPDX-License-Identifier: Apache-2.0
// index.h: from key to sealed page: one hash table a pool, open addressing, linear probing.
//
//     slot:  | tag: low half of key.a | page + 1 |      0: empty
//     home slot = the upper bits of the tag, as many as the table's size has
//
// The whole key stands in the page's own record (`values`, by page): a slot whose tag matches is
// confirmed there. Nothing else reads records: slots know their own home, so that deletion does not
// have to ask the records of all the neighbours that it may move.
//
// Invariants
//  1. At most half of the slots are used: capacity is the next power of two >= 2 * num_pages, and at
//     least 2. num_pages is at most 2^31.
//  2. Between a page's home slot and its slot no slot is empty (deletion shifts back).
//  3. No key is in the table twice: index_insert is for keys that index_find did not find.
//  4. No allocation after index_init.
// Keys are outputs of a keyed cryptographic hash: nobody can choose them to collide.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_INDEX_H
#define KVPOOL_DAEMON_CORE_INDEX_H

#include "daemon/core/prefix_hash.h"

#include <stdbool.h>

#define INDEX_NONE UINT32_MAX
#define INDEX_BATCH 16u // keys that index_find_n looks up at once

// Where the pages' chaining values are: that of page p begins at base + p * stride.
struct index_values {
    const uint8_t *base;
    size_t stride;
};

struct index {
    uint64_t *slots;
    uint64_t mask;
    uint32_t bits; // mask + 1 == 1 << bits
    uint32_t count;
    struct index_values values;
};

bool index_init(struct index *x, uint32_t num_pages, struct index_values values);
void index_fini(struct index *x); // a zeroed struct is fine

uint32_t index_find(const struct index *x, struct prefix_key key); // page or INDEX_NONE

// Looks up keys[0..n), n <= INDEX_BATCH, with their memory accesses overlapped; ret_pages[i] is the
// page or INDEX_NONE.
void index_find_n(const struct index *x, const struct prefix_key *keys, uint32_t n,
                  uint32_t *ret_pages);

// Hints that the key is looked up soon.
void index_prefetch_key(const struct index *x, struct prefix_key key);

// The page's value is in its record already.
void index_insert(struct index *x, uint32_t page);
// The page is in the table, and its value still in its record.
void index_remove(struct index *x, uint32_t page);
// Hints that index_remove(page) follows soon: fetches its slot (its value should be in cache).
void index_prefetch(const struct index *x, uint32_t page);

#endif
