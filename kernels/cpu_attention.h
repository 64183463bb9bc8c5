// SPDX-License-Identifier: Apache-2.0
// cpu_attention.h: attention of a batch over paged K and V: cuts it into units, runs them on all
// threads, merges what was cut along the keys.
//
// Invariants
//  1. How a sequence is cut depends on its own lengths and the head counts only: its bits do not
//     depend on the number of threads nor on the other sequences of the batch. A part of it
//     (backend_attend_op) that begins between two blocks of rows is cut as it is in the whole.
//  2. Memory does not grow with the batch: the units are run in waves of bounded size.
// Thread: one at a time per object.
#ifndef KVPOOL_KERNELS_CPU_ATTENTION_H
#define KVPOOL_KERNELS_CPU_ATTENTION_H

#include "kernels/cpu_cache.h"
#include "kernels/cpu_threads.h"

#define CPU_ATTENTION_ROW_BLOCK 120u // backend_ops.row_block

struct cpu_attention;

// The kernel is the best this CPU has, or the one that KVPOOL_CPU_ISA names (generic, avx2, avx512,
// avx512bf16). Errors: NOMEM, BACKEND (no such kernel, or not on this CPU).
int cpu_attention_open(struct cpu_threads *threads, struct cpu_attention **ret, struct err *err);
void cpu_attention_close(struct cpu_attention *a);
const char *cpu_attention_isa(const struct cpu_attention *a);

// Addresses of the op's tensors; NULL: none.
struct cpu_attention_tensors {
    const char *q;
    char *out, *lse;
    const char *sinks, *scales; // scales: op->scales.heads
};
void cpu_attention_run(struct cpu_attention *a, const struct cpu_cache *cache,
                       const struct backend_attend_op *op,
                       const struct cpu_attention_tensors *tensors);

#endif
