// SPDX-License-Identifier: Apache-2.0
// fake_kvpool.h: the calls of kvpool.h that the example worker makes, in one process and without
// pages: every sequence is a plain array of K and V. It can be told to go wrong in ways a real
// cache could, to see that the worker's check notices.
//
// Invariants
//  1. At most one step is open, and what it appends is visible to later steps after commit only.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_EXAMPLES_FAKE_KVPOOL_H
#define KVPOOL_TESTS_UNIT_EXAMPLES_FAKE_KVPOOL_H

#include <kvpool/kvpool.h>

enum fake_fault {
    FAKE_NONE,
    FAKE_SKIPS_OLDEST_PAGE, // attention does not see tokens 0..15
    FAKE_SHARES_FORKS,      // forks write into one another's memory
    FAKE_SWAPS_BRANCHES,    // in a batch, sequence 0 reads what sequence 1 has
    FAKE_IGNORES_TRUNCATE,  // a truncated sequence keeps its old K and V
    FAKE_WRITES_NAN,        // out is NaN
    FAKE_OUT_OF_PAGES,      // the third begin fails
    FAKE_FAILS_LAYER,       // the third attention fails
    FAKE_FAILS_COMMIT,      // the third commit fails
    FAKE_WRONG_LENGTH,      // seq_stat is off by one
    FAKE_FAILS_OPEN,        // a sequence cannot be opened
    FAKE_MATCHES_ANYTHING,  // opening finds the cached prefix, whatever is asked for
};

// The sequence that was freed last is the cache: opening on its tokens finds whole pages of 16.
//
// Forgets everything, and sets the geometry of the one pool (handle 1).
void fake_reset(enum fake_fault fault, uint32_t layers, uint32_t kv_heads, uint32_t head_dim);

// What is left behind: live sequences, open steps, regions, ops not waited for.
uint32_t fake_leftovers(void);

uint32_t fake_submitted(void); // requests that came through kvpool_submit

#endif
