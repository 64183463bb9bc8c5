// SPDX-License-Identifier: Apache-2.0
// cpu_memory.h: shared memory of fixed size, and how much of it the machine can still give.
//
// Invariants
//  1. The size of the file behind a block is sealed: whoever gets the fd can neither shrink it
//     (which would make our accesses fault) nor grow it.
//  2. A block is zero when new. System pages are taken on first touch.
//  3. What earlier blocks were promised and have not touched yet is not promised a second time.
// Threads: one at a time for all functions on blocks of one ledger.
#ifndef KVPOOL_KERNELS_CPU_MEMORY_H
#define KVPOOL_KERNELS_CPU_MEMORY_H

#include "proto/err.h"

struct cpu_block {
    char *base;
    uint64_t bytes; // a multiple of the system's page size
    int fd;
    struct cpu_block *next, **link; // in the ledger
};

struct cpu_ledger { // all blocks of one backend
    struct cpu_block *first;
};

// Makes a block. `name` shows in /proc/PID/maps. Errors: NOMEM, which names the bytes wanted and
// available.
int cpu_block_open(struct cpu_ledger *ledger, const char *name, uint64_t bytes,
                   struct cpu_block *ret, struct err *err);
// Both of the following: takes it out of its ledger, so that nothing is promised to it any more; ends it, in
// any thread.
void cpu_block_close(struct cpu_block *block);
void cpu_block_unlink(struct cpu_block *block);
void cpu_block_unmap(struct cpu_block *block);

// Bytes that a new block may have: what the machine and this process's cgroups have available, less
// what the ledger's blocks have not touched yet.
uint64_t cpu_memory_available(const struct cpu_ledger *ledger);

#endif
