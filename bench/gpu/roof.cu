// SPDX-License-Identifier: Apache-2.0
// roof.cu: see roof.h. A block of 256 threads works on tiles of 32 KB; each thread has its eight 16-byte
// loads of a tile in flight before it uses the first.
#include "bench/gpu/roof.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t LOADS = 8;
constexpr uint32_t TILE = THREADS * LOADS; // vectors of 16 bytes

// One tile: every load is issued before the first value is used; the last tile may be short.
__device__ __forceinline__ void load_tile(uint4 (&x)[LOADS], const uint4 *from, uint64_t left) {
    if (left >= TILE) {
#pragma unroll
        for (uint32_t i = 0; i < LOADS; i++)
            x[i] = __ldg(from + i * THREADS + threadIdx.x);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < LOADS; i++)
            x[i] = i * THREADS + threadIdx.x < left ? __ldg(from + i * THREADS + threadIdx.x)
                                                    : make_uint4(0, 0, 0, 0);
    }
}

__global__ void __launch_bounds__(THREADS, 4)
    read_all(const uint4 *__restrict__ from, uint64_t vectors, uint32_t *words) {
    uint4 sum = make_uint4(0, 0, 0, 0);
    for (uint64_t tile = (uint64_t)blockIdx.x * TILE; tile < vectors;
         tile += (uint64_t)gridDim.x * TILE) {
        uint4 x[LOADS];
        load_tile(x, from + tile, vectors - tile);
#pragma unroll
        for (uint32_t i = 0; i < LOADS; i++)
            sum = make_uint4(sum.x ^ x[i].x, sum.y ^ x[i].y, sum.z ^ x[i].z, sum.w ^ x[i].w);
    }
    uint32_t word = sum.x ^ sum.y ^ sum.z ^ sum.w;
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        word ^= __shfl_xor_sync(0xffffffffu, word, step);
    if (threadIdx.x % 32 == 0)
        atomicXor(&words[(blockIdx.x * (THREADS / 32) + threadIdx.x / 32) % CUDA_ROOF_WORDS], word);
}

__global__ void __launch_bounds__(THREADS, 4)
    copy_all(uint4 *__restrict__ to, const uint4 *__restrict__ from, uint64_t vectors) {
    for (uint64_t tile = (uint64_t)blockIdx.x * TILE; tile < vectors;
         tile += (uint64_t)gridDim.x * TILE) {
        uint4 x[LOADS];
        load_tile(x, from + tile, vectors - tile);
#pragma unroll
        for (uint32_t i = 0; i < LOADS; i++)
            if (i * THREADS + threadIdx.x < vectors - tile)
                to[tile + i * THREADS + threadIdx.x] = x[i];
    }
}

uint32_t blocks(const struct cuda_device *d, uint64_t vectors, uint32_t ctas_per_sm) {
    uint64_t tiles = (vectors + TILE - 1) / TILE;
    uint64_t most = ctas_per_sm == 0 ? INT32_MAX : (uint64_t)d->sms * ctas_per_sm;
    return (uint32_t)(tiles < most ? tiles : most);
}

} // namespace

int cuda_roof_read(const struct cuda_device *d, const void *from, uint64_t bytes,
                   uint32_t ctas_per_sm, uint32_t *words, void *stream) {
    uint64_t vectors = bytes / 16;
    if (vectors == 0)
        return 0;
    return start_kernel(read_all, dim3(blocks(d, vectors, ctas_per_sm)), dim3(THREADS), 0, stream,
                        false, (const uint4 *)from, vectors, words);
}

int cuda_roof_copy(const struct cuda_device *d, void *to, const void *from, uint64_t bytes,
                   uint32_t ctas_per_sm, void *stream) {
    uint64_t vectors = bytes / 16;
    if (vectors == 0)
        return 0;
    return start_kernel(copy_all, dim3(blocks(d, vectors, ctas_per_sm)), dim3(THREADS), 0, stream,
                        false, (uint4 *)to, (const uint4 *)from, vectors);
}
