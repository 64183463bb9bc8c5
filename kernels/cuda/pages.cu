// SPDX-License-Identifier: Apache-2.0
// pages.cu: whole pages, all layers in one launch: copies, and pages filled with a pattern. See launch.h.
//
// A block has one piece of a page at a time: eight 16-byte vectors a thread, 32 KB with 256 threads;
// pages that are smaller than that get fewer threads. The grid is pieces x pages in x (as many blocks
// as there are pieces: the hardware hands them out as multiprocessors become free), layers in y; both
// wrap around, so that no list is too long.
//
//   page:  | piece 0: 8 x threads x 16 B | piece 1 | ... | last, maybe short |
//
// Invariants
//  1. A thread has all its loads of a piece in flight before its first store.
//  2. Nothing outside the destination pages is written; the list is read, never written.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

namespace {

constexpr uint32_t VECTORS = 8; // a thread
constexpr uint32_t MAX_THREADS = 256;

struct pages_args {
    char *base;
    uint64_t plane_bytes, page_bytes;
    uint32_t layers, n;
    uint32_t pieces; // of a page
};

// Calls work(entry of the list, layer, first vector of the piece, vectors left in the page) for every
// piece of this block.
template <class F> static __device__ __forceinline__ void each_piece(const pages_args &a, F work) {
    uint64_t vectors = a.page_bytes / 16;
    for (uint64_t x = blockIdx.x; x < (uint64_t)a.pieces * a.n; x += gridDim.x) {
        uint32_t entry = a.pieces == 1 ? (uint32_t)x : (uint32_t)(x / a.pieces);
        uint64_t first = (x - (uint64_t)entry * a.pieces) * blockDim.x * VECTORS;
        for (uint32_t layer = blockIdx.y; layer < a.layers; layer += gridDim.y)
            work(entry, layer, first, vectors - first);
    }
}

__global__ void __launch_bounds__(MAX_THREADS, 3)
    copy_kernel(const __grid_constant__ pages_args a, const uint32_t *__restrict__ pairs) {
    each_piece(a, [&](uint32_t entry, uint32_t layer, uint64_t first, uint64_t left) {
        char *plane = a.base + layer * a.plane_bytes;
        const uint4 *from = (const uint4 *)(plane + pairs[2 * (uint64_t)entry] * a.page_bytes);
        uint4 *to = (uint4 *)(plane + pairs[2 * (uint64_t)entry + 1] * a.page_bytes);
        from += first + threadIdx.x;
        to += first + threadIdx.x;
        uint4 x[VECTORS];
        if (left >= blockDim.x * VECTORS) {
#pragma unroll
            for (uint32_t i = 0; i < VECTORS; i++)
                x[i] = from[i * blockDim.x];
#pragma unroll
            for (uint32_t i = 0; i < VECTORS; i++)
                to[i * blockDim.x] = x[i];
        } else {
#pragma unroll
            for (uint32_t i = 0; i < VECTORS; i++)
                if (i * blockDim.x + threadIdx.x < left)
                    x[i] = from[i * blockDim.x];
#pragma unroll
            for (uint32_t i = 0; i < VECTORS; i++)
                if (i * blockDim.x + threadIdx.x < left)
                    to[i * blockDim.x] = x[i];
        }
    });
}

__global__ void __launch_bounds__(MAX_THREADS, 4)
    scrub_kernel(const __grid_constant__ pages_args a, const uint32_t *__restrict__ ids,
                 uint32_t pattern) {
    uint4 x = make_uint4(pattern, pattern, pattern, pattern);
    each_piece(a, [&](uint32_t entry, uint32_t layer, uint64_t first, uint64_t left) {
        uint4 *to = (uint4 *)(a.base + layer * a.plane_bytes + ids[entry] * a.page_bytes) + first;
#pragma unroll
        for (uint32_t i = 0; i < VECTORS; i++)
            if (i * blockDim.x + threadIdx.x < left)
                to[i * blockDim.x + threadIdx.x] = x;
    });
}

struct shape {
    pages_args args;
    dim3 grid, block;
};

shape shape_of(const struct cuda_planes *p, uint32_t n) {
    uint64_t vectors = p->page_bytes / 16;
    uint32_t threads = MAX_THREADS;
    while (threads > 32 && vectors <= (uint64_t)threads / 2 * VECTORS)
        threads /= 2;
    uint64_t piece = (uint64_t)threads * VECTORS;
    uint64_t pieces = (vectors + piece - 1) / piece;
    uint64_t blocks = pieces * n;
    shape s;
    s.args = {(char *)p->base, p->plane_bytes, p->page_bytes, p->layers, n, (uint32_t)pieces};
    s.grid = dim3(blocks < INT32_MAX ? (uint32_t)blocks : INT32_MAX,
                  p->layers < 65535 ? p->layers : 65535);
    s.block = dim3(threads);
    return s;
}

bool nothing(const struct cuda_planes *p, uint32_t n) {
    return n == 0 || p->layers == 0 || p->page_bytes == 0;
}

} // namespace

int cuda_copy_pages(const struct cuda_device *d, const struct cuda_planes *p, const uint32_t *pairs,
                    uint32_t n, void *stream) {
    (void)d;
    if (nothing(p, n))
        return 0;
    shape s = shape_of(p, n);
    return start_kernel(copy_kernel, s.grid, s.block, 0, stream, false, s.args, pairs);
}

int cuda_scrub_pages(const struct cuda_device *d, const struct cuda_planes *p, const uint32_t *ids,
                     uint32_t n, uint32_t pattern, void *stream) {
    (void)d;
    if (nothing(p, n))
        return 0;
    shape s = shape_of(p, n);
    return start_kernel(scrub_kernel, s.grid, s.block, 0, stream, false, s.args, ids, pattern);
}
