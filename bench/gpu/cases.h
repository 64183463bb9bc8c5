// SPDX-License-Identifier: Apache-2.0
// cases.h: a shape made real on the device: pages in random order, a page table, queries, new tokens,
// and the arguments of the launchers.
//
// Invariants
//  1. Page ids are a random permutation of the pool's pages, the same for equal shapes.
//  2. Entries of the table past a sequence's last page are no page ids.
// One thread, with the device current; failures end the process (measure.h).
#ifndef KVPOOL_BENCH_GPU_CASES_H
#define KVPOOL_BENCH_GPU_CASES_H

#include "bench/gpu/measure.h"
#include "bench/gpu/shapes.h"

struct gpu_case {
    const struct cuda_device *device;
    struct cuda_attention attention;
    struct cuda_append append;
    bool decode; // else prefill
    uint64_t out_elements;
    // Owned, on the device.
    void *table, *rows, *kv_len, *qo_indptr, *q, *out, *k, *v, *plan, *workspace;
};

// pool: filled memory of pool_bytes for the pages of the shape. NULL; or, with nothing opened, why the
// shape cannot be measured.
const char *gpu_case_open(struct gpu_case *c, const struct cuda_device *d,
                          const struct gpu_shape *s, void *pool, uint64_t pool_bytes);
void gpu_case_close(struct gpu_case *c);

// Bodies for gpu_measure_run; arg is the case.
int gpu_case_plan(void *arg, void *stream);
int gpu_case_attend(void *arg, void *stream);
int gpu_case_append(void *arg, void *stream);

// Runs the kernel and the generic one, and compares what they give: the largest difference as a part
// of what rounding may cost (0.02 of the result itself, and 0.02 of the root mean square of its row:
// of a token and a head). 1 or less is right.
double gpu_case_error(struct gpu_case *c, void *stream);

#endif
