// SPDX-License-Identifier: Apache-2.0
// roof.h: what the device's memory gives when nothing else is asked of it: a kernel that only reads a
// buffer and one that only copies it. Every bandwidth is given as a part of these two.
//
// Invariants
//  1. Every byte is read (and written) exactly once.
//  2. The result of a read depends on every bit that was read, so that no load can be left out.
// Launchers as in kernels/cuda/launch.h: 0 or the cudaError_t. Any thread, with the device current.
#ifndef KVPOOL_BENCH_GPU_ROOF_H
#define KVPOOL_BENCH_GPU_ROOF_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

// Words of the result of a read. The xor of them all, xor what they held before, is the xor of the
// buffer's 32-bit words.
enum { CUDA_ROOF_WORDS = 1024 };

// bytes: a multiple of 16; addresses too. ctas_per_sm: 0: a block for each 32 KB; else so many blocks
// on each multiprocessor that take turns. Which is fastest differs between devices and sizes: the roof
// is the best of 0, 2, 4 and 8.
int cuda_roof_read(const struct cuda_device *d, const void *from, uint64_t bytes,
                   uint32_t ctas_per_sm, uint32_t *words, void *stream);
int cuda_roof_copy(const struct cuda_device *d, void *to, const void *from, uint64_t bytes,
                   uint32_t ctas_per_sm, void *stream);

#ifdef __cplusplus
}
#endif
#endif
