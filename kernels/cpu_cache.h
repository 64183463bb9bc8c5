// SPDX-License-Identifier: Apache-2.0
// cpu_cache.h: where the pages of a pool lie in memory, as append, attention and copy see them.
//
//   base --> plane 0            plane 1 ...     page --> K of head 0: [page_size][head_dim]
//            [page 0][page 1]   [page 0]                 K of head 1
//                                                        V of head 0 ...
//
// Invariant: a page's K slabs of all heads come first, then its V slabs; nothing is padded. Any
// thread; the table is changed by BACKEND_TABLE ops only.
#ifndef KVPOOL_KERNELS_CPU_CACHE_H
#define KVPOOL_KERNELS_CPU_CACHE_H

#include "kernels/backend.h"

#include <stdbool.h>
#include <string.h>

struct cpu_cache {
    struct kv_geometry geometry;
    char *base;
    size_t plane_stride; // bytes from plane to plane
    size_t page_bytes;   // K and V of all heads of one page
    size_t slab_bytes;   // K of one head of one page
    size_t row_bytes;    // K of one head of one token
    uint32_t page_shift; // log2 of page_size
    uint32_t num_pages;
    uint32_t row_entries;
    uint32_t *table; // [rows][row_entries] page ids
};

static inline bool cpu_cache_is_fp8(const struct cpu_cache *c) {
    return kv_plane_dtype(&c->geometry) == KVPOOL_FP8_E4M3 && c->geometry.dtype != KVPOOL_FP8_E4M3;
}

// What the stored K (value 0) or V (1) of a head is multiplied with: 1 where planes have the tensors'
// dtype. per_head: address of scales->heads, NULL: none.
static inline float cpu_cache_scale(const struct cpu_cache *c, const struct backend_scales *scales,
                                    const char *per_head, uint32_t value, uint32_t head) {
    float scale = value == 0 ? scales->k : scales->v;
    if (!cpu_cache_is_fp8(c))
        return 1;
    if (per_head != NULL)
        memcpy(&scale, per_head + ((size_t)value * c->geometry.kv_heads + head) * sizeof scale,
               sizeof scale);
    return scale == 0 ? 1 : scale;
}

static inline const uint32_t *cpu_cache_row(const struct cpu_cache *c, uint32_t row) {
    return c->table + (size_t)row * c->row_entries;
}
static inline char *cpu_cache_plane(const struct cpu_cache *c, uint32_t layer) {
    return c->base + layer * c->plane_stride;
}

#endif
