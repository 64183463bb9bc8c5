// SPDX-License-Identifier: Apache-2.0
// cpu_append.h: K and V of new tokens into pages; whole pages into others.
//
// Invariants
//  1. Bits are copied as they are; into e4m3 planes a token's elements are narrowed, see struct
//     backend_scales. Nothing but the new tokens' slots (the destination pages) is written.
//  2. Page ids of positions below a sequence's kv_len are below num_pages.
// Thread: the one that runs the program.
#ifndef KVPOOL_KERNELS_CPU_APPEND_H
#define KVPOOL_KERNELS_CPU_APPEND_H

#include "kernels/cpu_cache.h"
#include "kernels/cpu_threads.h"

// k, v and scales (those of each head; NULL: none): addresses of the op's tensors.
void cpu_append(const struct cpu_cache *cache, struct cpu_threads *threads,
                const struct backend_append_op *op, const char *k, const char *v,
                const char *scales);

void cpu_copy_pages(const struct cpu_cache *cache, struct cpu_threads *threads,
                    const struct backend_copy_op *op);

#endif
