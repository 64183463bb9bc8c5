// SPDX-License-Identifier: Apache-2.0
// cpu_threads.h: a fixed set of threads that share the iterations of a loop.
//
// Invariants
//  1. cpu_threads_run returns when every index 0..n-1 has been run exactly once, and all that the
//     iterations wrote is visible to the caller.
//  2. Which thread runs which index is open: iterations must not depend on it.
//  3. The caller works too; with one thread, or n == 1, it works alone and nobody is woken.
//  4. Nobody waits for a worker that has not begun: a late wake-up costs nothing.
// Threads: one run at a time; iterations must not call cpu_threads_run on the same object.
#ifndef KVPOOL_KERNELS_CPU_THREADS_H
#define KVPOOL_KERNELS_CPU_THREADS_H

#include <stdint.h>

struct cpu_threads;

// `worker` is 0 for the caller, 1..count-1 for the others: an index of per-thread scratch memory.
typedef void (*cpu_threads_fn)(void *arg, uint32_t index, uint32_t worker);

// count: threads with the caller, at least 1; 0: one per CPU of the affinity mask. NULL when the
// threads cannot be made.
struct cpu_threads *cpu_threads_new(uint32_t count);
void cpu_threads_free(struct cpu_threads *t);
uint32_t cpu_threads_count(const struct cpu_threads *t);

void cpu_threads_run(struct cpu_threads *t, uint32_t n, cpu_threads_fn fn, void *arg);

#endif
