// SPDX-License-Identifier: Apache-2.0
// decode_queries.cuh: Q of the items that a warp of the decode kernel works on, as fragments of the matrix instructions.
//
// Invariant: columns that are padding are zeros.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_QUERIES_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_QUERIES_CUH

#include "kernels/cuda/decode_state.cuh"

// Fragments of Q: in registers, or in shared memory that each lane reads and writes for itself.
template <class C, bool SHARED> struct decode_queries;
template <class C> struct decode_queries<C, false> {
    uint2 b[C::NT][C::DT];
    __device__ __forceinline__ explicit decode_queries(uint2 *) {}
    __device__ __forceinline__ void put(int nt, int dt, uint2 x) { b[nt][dt] = x; }
    __device__ __forceinline__ uint2 get(int nt, int dt) const { return b[nt][dt]; }
};
template <class C> struct decode_queries<C, true> {
    uint2 *own;
    __device__ __forceinline__ explicit decode_queries(uint2 *q) : own(q + threadIdx.x % 32) {}
    __device__ __forceinline__ void put(int nt, int dt, uint2 x) {
        own[(nt * C::DT + dt) * 32] = x;
    }
    __device__ __forceinline__ uint2 get(int nt, int dt) const {
        return own[(nt * C::DT + dt) * 32];
    }
};

// Q of a run's first item is copied before its tiles, to where O of its first segment will be; that of later
// items is brought to the L2 when their first tile is fetched. A read behind all copies under way would
// wait for them.
template <class C> struct decode_first_q {
    static constexpr uint32_t ROW = C::D * 2 + 16; // bytes: 8 columns are in different banks
    static_assert(ROW <= C::D * 4, "room for O is room for Q");
};

template <class C>
static __device__ __forceinline__ void copy_queries(const struct decode_args &a, uint32_t to,
                                                    uint32_t q0, uint32_t what) {
    constexpr uint32_t CHUNKS = C::D / 8; // of a row
    uint32_t lane = threadIdx.x % 32, chunk = lane % CHUNKS, first = lane / CHUNKS;
    to += first * decode_first_q<C>::ROW + chunk * 16;
    if (place_q_len(what) == 1) { // columns are heads
        uint32_t column = place_block(what) * C::NT * 8 + first;
        const unsigned char *from = a.q + q0 * a.q_token_stride +
                                    (place_head(what) * a.group + column) * a.q_head_stride +
                                    chunk * 16;
#pragma unroll
        for (uint32_t k = 0; k < 8 * C::NT; k += 32 / CHUNKS) {
            cp_async_16(to + k * decode_first_q<C>::ROW, from, column + k < a.group);
            from += 32 / CHUNKS * a.q_head_stride;
        }
        return;
    }
#pragma unroll 1
    for (uint32_t k = 0; k < 8 * C::NT; k += 32 / CHUNKS) {
        uint32_t j, head;
        bool there = decode_column(a, what, place_block(what) * C::NT * 8 + first + k, j, head);
        cp_async_16(to + k * decode_first_q<C>::ROW,
                    a.q + (q0 + j) * a.q_token_stride + head * a.q_head_stride + chunk * 16, there);
    }
}

template <class C>
static __device__ __forceinline__ void prefetch_queries(const struct decode_args &a, uint32_t q0,
                                                        uint32_t what) {
    constexpr uint32_t LINES = (C::D + 63) / 64; // of a row
#pragma unroll 1
    for (uint32_t i = threadIdx.x % 32; i < 8 * C::NT * LINES; i += 32) {
        uint32_t j, head;
        if (decode_column(a, what, place_block(what) * C::NT * 8 + i / LINES, j, head))
            prefetch_l2(a.q + (q0 + j) * a.q_token_stride + head * a.q_head_stride +
                        i % LINES * 128);
    }
}

// Q of an item; copied: what copy_queries has left, NULL: from a.q. Elements of step dt that a lane holds:
// 16*dt + 2c, +1, +8, +9; of 8-bit K, whose fragments come 4 neighbours at a time, 16*dt + 4c .. 4c+3.
template <class C, class Q>
static __device__ __forceinline__ void load_queries(const struct decode_args &a,
                                                    const unsigned char *copied, uint32_t q0,
                                                    uint32_t what, Q &queries) {
    uint32_t lane = threadIdx.x % 32, c = lane % 4;
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        uint32_t j, head;
        bool there =
            decode_column(a, what, (place_block(what) * C::NT + nt) * 8 + lane / 4, j, head);
        const unsigned char *row = a.q + (q0 + j) * a.q_token_stride + head * a.q_head_stride;
        if (copied)
            row = copied + (nt * 8 + lane / 4) * decode_first_q<C>::ROW;
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            uint2 x = {0, 0};
            if constexpr (C::KV8) {
                if (there)
                    x = *reinterpret_cast<const uint2 *>(row + dt * 32 + c * 8);
                float2 low = unpack2<typename C::T>(x.x), high = unpack2<typename C::T>(x.y);
                x = {pack2<fp16>(low.x, low.y), pack2<fp16>(high.x, high.y)};
            } else if (there) {
                x.x = *reinterpret_cast<const uint32_t *>(row + dt * 32 + c * 4);
                x.y = *reinterpret_cast<const uint32_t *>(row + dt * 32 + 16 + c * 4);
            }
            queries.put(nt, dt, x);
        }
    }
}

#endif
