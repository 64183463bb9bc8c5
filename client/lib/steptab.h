// SPDX-License-Identifier: Apache-2.0
// steptab.h: step id -> pool, of the steps that this client has begun and not finished: what the
// geometry of a step's tensors is looked up by.
//
//   slots: open addressing, linear probing, capacity a power of two, at most half full; id 0: empty
//
// Invariants
//  1. From the slot that an id hashes to, up to the slot that has it, no slot is empty (removal
//     moves later entries back).
//  2. No allocation except when the table grows.
// Threads: the caller's lock.
#ifndef KVPOOL_CLIENT_LIB_STEPTAB_H
#define KVPOOL_CLIENT_LIB_STEPTAB_H

#include <kvpool/kvpool.h>

struct steptab_slot {
    kvpool_step step;
    kvpool_pool pool;
};

struct steptab { // all zero: empty
    struct steptab_slot *slots;
    uint32_t capacity, count;
};

// Adds a step that is not there. *ret_added: it was not. Returns false when there is no memory.
bool steptab_add(struct steptab *t, kvpool_step step, kvpool_pool pool, bool *ret_added);
kvpool_pool steptab_find(const struct steptab *t, kvpool_step step); // 0: unknown
void steptab_remove(struct steptab *t, kvpool_step step);
void steptab_clear(struct steptab *t);
void steptab_fini(struct steptab *t);

#endif
