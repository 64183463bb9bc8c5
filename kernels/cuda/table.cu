// SPDX-License-Identifier: Apache-2.0
// table.cu: page ids into the resident page table, all segments of an update in one launch. See launch.h.
//
// A block has one segment (few segments: some blocks share one). The words may lie in host memory, where
// a read takes a microsecond or more, so what counts is the number of dependent reads: starts -> header
// and first ids at once, where the start of the next segment shows that they are there -> remaining ids,
// eight a thread at a time.
//
//   words:  | at, low | at, high | count | id 0 | id 1 | ... | next segment
//           ^ starts[i]                                      ^ starts[i + 1]
//
// Invariants
//  1. No word behind the last segment's ids is read.
//  2. An id is read once; a header once for each block of its segment.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

namespace {

constexpr uint32_t THREADS = 128;
constexpr uint32_t IDS = 8;    // a thread has so many in flight
constexpr uint32_t HEADER = 3; // words

__global__ void __launch_bounds__(THREADS)
    table_kernel(uint32_t *__restrict__ table, const uint32_t *__restrict__ words,
                 const uint32_t *__restrict__ starts, uint32_t n) {
    __shared__ uint32_t header[HEADER];
    uint32_t segment = blockIdx.x;
    uint32_t start = starts[segment];
    // Words that are certainly of this segment.
    uint32_t known = segment + 1 < n ? starts[segment + 1] - start : HEADER;
    const uint32_t *at = words + start;
    // Block 0 of a segment takes the ids that come with the header.
    uint32_t early = blockIdx.y == 0 ? known : HEADER;
    early = early < THREADS ? early : THREADS;
    uint32_t word = threadIdx.x < early ? at[threadIdx.x] : 0;
    if (threadIdx.x < HEADER)
        header[threadIdx.x] = word;
    __syncthreads();
    uint32_t *row = table + ((uint64_t)header[1] << 32 | header[0]);
    uint32_t count = header[2];
    if (threadIdx.x >= HEADER && threadIdx.x < early && threadIdx.x - HEADER < count)
        row[threadIdx.x - HEADER] = word;

    uint32_t done = (known < THREADS ? known : THREADS) - HEADER; // by block 0
    uint64_t step = (uint64_t)gridDim.y * THREADS * IDS;
    for (uint64_t first = done + (uint64_t)blockIdx.y * THREADS * IDS; first < count;
         first += step) {
        uint32_t ids[IDS];
#pragma unroll
        for (uint32_t i = 0; i < IDS; i++) {
            uint64_t id = first + i * THREADS + threadIdx.x;
            ids[i] = id < count ? at[HEADER + id] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < IDS; i++) {
            uint64_t id = first + i * THREADS + threadIdx.x;
            if (id < count)
                row[id] = ids[i];
        }
    }
}

} // namespace

int cuda_table_update(const struct cuda_device *d, uint32_t *table, const uint32_t *words,
                      const uint32_t *starts, uint32_t n, void *stream) {
    (void)d;
    if (n == 0)
        return 0;
    return start_kernel(table_kernel, dim3(n, n < 16 ? 8 : 1), dim3(THREADS), 0, stream, false,
                        table, words, starts, n);
}
