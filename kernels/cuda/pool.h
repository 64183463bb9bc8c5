// SPDX-License-Identifier: Apache-2.0
// pool.h: the planes of a pool and its page table, on the device.
//
// Invariants
//  1. A page of layer l is page_bytes at planes.base + l * planes.plane_bytes + id * page_bytes.
//  2. New planes hold nothing that another process wrote.
// Threads: open, close, read and write: those of cuda_memory. `marks` is the submitting thread's.
#ifndef KVPOOL_KERNELS_CUDA_POOL_H
#define KVPOOL_KERNELS_CUDA_POOL_H

#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"

struct backend_pool {
    struct cuda_garbage garbage; // first
    struct kv_geometry geometry;
    struct cuda_block block;
    struct cuda_planes planes;
    uint32_t *table; // the device's, [rows][row_entries]
    uint64_t table_bytes;
    uint32_t row_entries;
    uint64_t id; // unique in the process
    // Updates of the table, in order: `generation` is that being gathered, marks[row] the last one that
    // wrote the row (0: none).
    uint64_t *marks;
    uint64_t generation;
};

// Errors: NOMEM (the bytes wanted and available), AGAIN, UNSUPPORTED, BACKEND.
int cuda_pool_open(struct cuda_memory *m, const struct kv_geometry *geometry,
                   enum backend_export how, uint32_t num_pages, uint32_t rows, uint32_t row_entries,
                   struct backend_pool **ret, struct err *err);
// Gives it to the reaper.
void cuda_pool_close(struct cuda_memory *m, struct backend_pool *pool);

// Address of `offset` in the plane of a layer.
char *cuda_pool_at(const struct backend_pool *pool, uint32_t layer, uint64_t offset);

// How kernels see the plane of a layer.
struct cuda_kv cuda_pool_kv(const struct backend_pool *pool, uint32_t layer);

#endif
