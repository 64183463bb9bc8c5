// SPDX-License-Identifier: Apache-2.0
// prefill_load.cuh: rows of K and V from pages to shared memory, and of Q.
//
// Tile t of a sequence is its tokens t * TOKENS ..; every thread copies its chunk of LOADS rows of K and
// of V. The page ids of a tile are fetched one tile ahead, a token's by a lane, and handed out by
// shuffles.
//
// Invariants
//  1. Rows at positions >= kv_len are zero in shared memory; page ids past the last page are not read.
//  2. All threads of a warp take part in every function.
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_LOAD_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_LOAD_CUH

#include "kernels/cuda/prefill_shape.cuh"

// A query row of the item's head: where it is in the tensors.
struct prefill_row {
    uint32_t token, head;
    uint32_t in_group; // head - the group's first
    __device__ __forceinline__ prefill_row(const prefill_args &p, const prefill_item &r,
                                           uint32_t packed) {
        uint32_t j = packed / p.group;
        in_group = packed - j * p.group;
        token = r.q_first + j;
        head = r.head * p.group + in_group;
    }
    // To the row `by` further.
    __device__ __forceinline__ void advance(const prefill_args &p, uint32_t by) {
        uint32_t tokens = by / p.group, heads = by - tokens * p.group; // the same for all calls
        bool over = in_group + heads >= p.group;
        token += tokens + (over ? 1 : 0);
        heads -= over ? p.group : 0;
        in_group += heads;
        head += heads;
    }
    __device__ __forceinline__ unsigned char *out(const prefill_args &p) const {
        return p.out + (int64_t)token * p.out_token + (int64_t)head * p.out_head;
    }
    __device__ __forceinline__ void store_lse(const prefill_args &p, float lse) const {
        if (p.lse != nullptr)
            p.lse[(int64_t)token * p.lse_token + (int64_t)head * p.lse_head] = lse;
    }
    __device__ __forceinline__ float sink(const prefill_args &p) const {
        return p.sinks != nullptr ? p.sinks[head] * 1.44269504088896341f : -INFINITY;
    }
};

template <class S> struct prefill_load {
    const unsigned char *k;    // page 0 of the head
    const uint32_t *table;     // the sequence's page ids
    uint32_t row;              // this thread's first row of a tile
    uint32_t to;               // its chunk of that row, in K of stage 0 (e4m3: of what is loaded)
    uint32_t ids[S::ID_WORDS]; // of the tile to be loaded next

    __device__ __forceinline__ void init(const prefill_args &p, const prefill_item &r,
                                         uint32_t smem) {
        uint32_t chunk = threadIdx.x % S::CHUNKS;
        row = threadIdx.x / S::CHUNKS;
        k = p.k + (int64_t)r.head * p.head;
        table = p.table + (size_t)r.row * p.row_entries;
        to = S::BYTES ? smem + S::BYTES_AT + row * S::D + chunk * 16
                      : smem + S::KV_AT + row * S::PITCH + ((chunk ^ (row & 7)) << 4);
    }

    __device__ __forceinline__ void fetch_ids(const prefill_args &p, const prefill_item &r,
                                              int tile) {
#pragma unroll
        for (int w = 0; w < S::ID_WORDS; w++) {
            uint32_t token = (uint32_t)tile * S::TOKENS + w * 32 + threadIdx.x % 32;
            ids[w] = token < r.kv_len ? load_word(table + (token >> p.page_shift)) : 0;
        }
    }

    // Starts the copies of this thread's rows i .. of `tile`; zeros where the token is not below
    // `limit` (kv_len, or 0: no such tile).
    __device__ __forceinline__ void row_of_tile(const prefill_args &p, int tile, int stage, int i,
                                                uint32_t limit) {
        uint32_t token = (uint32_t)tile * S::TOKENS + i * S::STEP + row;
        uint32_t id = __shfl_sync(0xffffffffu, ids[i * S::STEP / 32], i * S::STEP % 32 + row);
        uint32_t slot = token & ((1u << p.page_shift) - 1);
        uint32_t in_page = slot * p.token + threadIdx.x % S::CHUNKS * 16;
        const unsigned char *from = k + (uint64_t)id * p.page + in_page;
        constexpr int K_ROWS = S::BYTES ? S::STEP * S::D : S::STEP * S::PITCH;
        constexpr int V_FROM_K = S::BYTES ? S::TOKENS * S::D : S::TILE;
        // A step of fewer than 8 rows changes the row's place in the swizzle.
        constexpr uint32_t TURN = S::BYTES ? 0 : 7;
        uint32_t at = (to ^ ((i * S::STEP & TURN) << 4)) + stage * 2 * S::TILE + i * K_ROWS;
        cp_async_16(at, from, token < limit);
        cp_async_16(at + V_FROM_K, from + p.value, token < limit);
    }

    // e4m3: what this thread has loaded, as fp16 in the tiles of K and V.
    __device__ __forceinline__ void widen(unsigned char *smem) {
        uint32_t chunk = threadIdx.x % S::CHUNKS;
#pragma unroll
        for (int which = 0; which < 2; which++)
#pragma unroll
            for (int i = 0; i < S::LOADS; i++) {
                uint32_t r = row + i * S::STEP;
                uint4 x = *(const uint4 *)(smem + S::BYTES_AT + which * S::TOKENS * S::D +
                                           r * S::D + chunk * 16);
                unsigned char *to_row = smem + S::KV_AT + which * S::TILE + r * S::PITCH;
                uint4 low = make_uint4(e4m3x2_to_fp16x2(x.x & 0xffff), e4m3x2_to_fp16x2(x.x >> 16),
                                       e4m3x2_to_fp16x2(x.y & 0xffff), e4m3x2_to_fp16x2(x.y >> 16));
                uint4 high =
                    make_uint4(e4m3x2_to_fp16x2(x.z & 0xffff), e4m3x2_to_fp16x2(x.z >> 16),
                               e4m3x2_to_fp16x2(x.w & 0xffff), e4m3x2_to_fp16x2(x.w >> 16));
                *(uint4 *)(to_row + (((2 * chunk) ^ (r & 7)) << 4)) = low;
                *(uint4 *)(to_row + (((2 * chunk + 1) ^ (r & 7)) << 4)) = high;
            }
    }

    // Q's rows first_row .. of the tile; zeros where there is no row.
    static __device__ __forceinline__ void q(const prefill_args &p, const prefill_item &r,
                                             unsigned char *smem) {
        constexpr int CHUNKS = S::D / 8, STEP = S::THREADS / CHUNKS;
        uint32_t chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
        uint32_t rows = r.q_len * p.group - r.first_row;
        prefill_row row(p, r, r.first_row + first);
#pragma unroll
        for (int i = 0; i < S::ROWS / STEP; i++, row.advance(p, STEP)) {
            uint32_t at = first + i * STEP;
            bool valid = at < rows;
            const unsigned char *from =
                p.q + (int64_t)row.token * p.q_token + (int64_t)row.head * p.q_head + chunk * 16;
            unsigned char *to = smem + at * S::PITCH + ((chunk ^ (at & 7)) << 4);
            if constexpr (S::Q_AS_IS) {
                cp_async_16(smem_address(to), from, valid);
            } else {
                uint4 x = valid ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
                *(uint4 *)to = make_uint4(convert(x.x), convert(x.y), convert(x.z), convert(x.w));
            }
        }
    }

  private:
    static __device__ __forceinline__ uint32_t convert(uint32_t x) {
        float2 y = unpack2<typename S::T>(x);
        return pack2<typename S::MMA>(y.x, y.y);
    }
};

#endif
