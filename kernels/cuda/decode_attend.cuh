// SPDX-License-Identifier: Apache-2.0
// decode_attend.cuh: one tile of the decode kernel, from its stage in shared memory: S = K Q, cap and masks, softmax,
// O += V P. docs/kernels.md, "One tile".
//
// Invariant: a column's bits do not depend on NT, nor on the other columns.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_ATTEND_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_ATTEND_CUH

#include "kernels/cuda/decode_state.cuh"

// Shared addresses inside a stage, of this lane: row of the first 8x8 matrix row it names and
// swizzled chunk. Step s (32 bytes): row + (32 * s ^ chunk).
struct decode_lanes {
    uint32_t k_row, k_chunk, v_row, v_chunk;
};
template <class C> static __device__ __forceinline__ struct decode_lanes decode_lanes_of() {
    uint32_t lane = threadIdx.x % 32;
    uint32_t upper = lane >> 3 & 1, right = lane >> 4;
    uint32_t k = (lane & 7) + upper * 8; // matrices 0..3: rows 0, 8, 0, 8; chunks 0, 0, 1, 1
    uint32_t v = C::KV8 ? k : (lane & 7) + right * 8; // rows 0, 0, 8, 8; chunks 0, 1, 0, 1
    return {k * C::ROW, (right ^ decode_swizzle<C>(k)) * 16, v * C::ROW,
            ((C::KV8 ? right : upper) ^ decode_swizzle<C>(v)) * 16};
}

// Four bytes of e4m3 as 2 + 2 fp16: the first and third, the second and fourth.
static __device__ __forceinline__ uint32_t even_bytes(uint32_t x) {
    return e4m3x2_to_fp16x2((x & 0xff) | (x >> 8 & 0xff00));
}
static __device__ __forceinline__ uint32_t odd_bytes(uint32_t x) {
    return e4m3x2_to_fp16x2((x >> 8 & 0xff) | (x >> 16 & 0xff00));
}

// S = K Q, times the scale.
template <class C, class Q>
static __device__ __forceinline__ void
times_queries(uint32_t stage, const struct decode_lanes &lanes, const Q &queries, float scale,
              float (&s)[C::MT][C::NT][4]) {
    // Independent sums. Not a matter of NT: a column's bits are the same in all instances.
    constexpr int CHAINS = C::MT == 1 ? 2 : 1;
    float sum[CHAINS][C::MT][C::NT][4] = {};
#pragma unroll
    for (int dt = 0; dt < C::DT; dt += C::KV8 ? 2 : 1)
#pragma unroll
        for (int mt = 0; mt < C::MT; mt++) {
            uint32_t k[4];
            ldmatrix_x4(k, stage + lanes.k_row + mt * 16 * C::ROW +
                               ((C::KV8 ? 16 : 32) * (uint32_t)dt ^ lanes.k_chunk));
#pragma unroll
            for (int half = 0; half < (C::KV8 ? 2 : 1); half++) {
                uint32_t f[4] = {k[0], k[1], k[2], k[3]};
                if constexpr (C::KV8) {
                    f[0] = e4m3x2_to_fp16x2(k[2 * half] & 0xffff);
                    f[1] = e4m3x2_to_fp16x2(k[2 * half + 1] & 0xffff);
                    f[2] = e4m3x2_to_fp16x2(k[2 * half] >> 16);
                    f[3] = e4m3x2_to_fp16x2(k[2 * half + 1] >> 16);
                }
#pragma unroll
                for (int nt = 0; nt < C::NT; nt++) {
                    uint2 q = queries.get(nt, dt + half);
                    mma_16816<typename C::M>(sum[(dt + half) % CHAINS][mt][nt], f, q.x, q.y);
                }
            }
        }
#pragma unroll
    for (int mt = 0; mt < C::MT; mt++)
#pragma unroll
        for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[mt][nt][i] = (CHAINS == 2 ? sum[0][mt][nt][i] + sum[CHAINS - 1][mt][nt][i]
                                            : sum[0][mt][nt][i]) *
                               scale;
}

// Keys that a column does not see become -infinity.
template <class C>
static __device__ __forceinline__ void mask_tile(const struct decode_args &a,
                                                 const struct decode_place &place,
                                                 float (&s)[C::MT][C::NT][4]) {
    uint32_t lane = threadIdx.x % 32;
    int kv_len = (int)place.kv_len, first = kv_len - (int)place_q_len(place.what);
    int token = (int)place.token + (int)(lane / 4);
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t column = (place_block(place.what) * C::NT + nt) * 8 + lane % 4 * 2 + e;
            int p = first + (int)(column * a.group_inverse >> 16);
            int end = a.causal ? min(p + 1, kv_len) : kv_len;
            int begin = a.window_left < 0 ? 0 : p - min(a.window_left, kv_len);
#pragma unroll
            for (int mt = 0; mt < C::MT; mt++)
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    int t = token + mt * 16 + row * 8;
                    if (t < begin || t >= end)
                        s[mt][nt][row * 2 + e] = minus_infinity();
                }
        }
}

// tanh(x) to 2^-22, absolute; a few instructions.
static __device__ __forceinline__ float tanh_fast(float x) {
    return 1 - divide_fast(2, 1 + exp2_fast(x * (2 * DECODE_LOG2E)));
}
// Logits (divided by the cap) to capped ones, times log2(e).
template <class C>
static __device__ __forceinline__ void cap_tile(float after, float (&s)[C::MT][C::NT][4]) {
#pragma unroll
    for (int mt = 0; mt < C::MT; mt++)
#pragma unroll
        for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[mt][nt][j] = tanh_fast(s[mt][nt][j]) * after;
}

// Does some column of the item not see the whole tile?
template <class C>
static __device__ __forceinline__ bool needs_mask(const struct decode_args &a,
                                                  const struct decode_place &place) {
    int kv_len = (int)place.kv_len, token = (int)place.token;
    int end = a.causal ? kv_len - (int)place_q_len(place.what) + 1 : kv_len;
    bool cut = a.window_left >= 0 && token < kv_len - 1 - a.window_left;
    return token + C::TOKENS > end || cut;
}

// Logits (times log2 e) to weights; the state's m, l and O follow the growing maximum.
template <class C>
static __device__ __forceinline__ void weigh(float (&s)[C::MT][C::NT][4],
                                             struct decode_state<C> &state) {
    float max[C::NT][2];
    bool grew = false;
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            max[nt][e] = fmaxf(s[0][nt][e], s[0][nt][2 + e]);
            if constexpr (C::MT == 2)
                max[nt][e] = fmaxf(max[nt][e], fmaxf(s[C::MT - 1][nt][e], s[C::MT - 1][nt][2 + e]));
            grew = grew || max[nt][e] > state.m[nt][e];
        }
    if (__any_sync(ALL_LANES, grew)) {
#pragma unroll
        for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float m = max[nt][e];
                m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 4));
                m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 8));
                m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 16));
                m = fmaxf(m, state.m[nt][e]);
                float up = exp2_fast(state.m[nt][e] - finite_or_0(m));
                state.m[nt][e] = m;
                state.l[nt][e] *= up;
#pragma unroll
                for (int dt = 0; dt < C::DT; dt++) {
                    state.o[nt][dt][e] *= up;
                    state.o[nt][dt][2 + e] *= up;
                }
            }
    }
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float m = finite_or_0(state.m[nt][e]);
#pragma unroll
            for (int mt = 0; mt < C::MT; mt++)
#pragma unroll
                for (int row = 0; row < 2; row++) {
                    float p = exp2_fast(s[mt][nt][row * 2 + e] - m);
                    s[mt][nt][row * 2 + e] = p;
                    state.l[nt][e] += p;
                }
        }
}

// O += V P.
template <class C>
static __device__ __forceinline__ void add_values(uint32_t stage, const struct decode_lanes &lanes,
                                                  const float (&p)[C::MT][C::NT][4],
                                                  struct decode_state<C> &state) {
#pragma unroll
    for (int mt = 0; mt < C::MT; mt++) {
        uint32_t b[C::NT][2];
#pragma unroll
        for (int nt = 0; nt < C::NT; nt++) {
            const float(&x)[4] = p[mt][nt];
            b[nt][0] = movmatrix_trans(pack2<typename C::M>(x[0], x[1]));
            b[nt][1] = movmatrix_trans(pack2<typename C::M>(x[2], x[3]));
        }
#pragma unroll
        for (int dt = 0; dt < C::DT; dt += C::KV8 ? 2 : 1) {
            uint32_t v[4];
            ldmatrix_x4_trans(v, stage + C::TILE / 2 + lanes.v_row + mt * 16 * C::ROW +
                                     ((C::KV8 ? 16 : 32) * (uint32_t)dt ^ lanes.v_chunk));
#pragma unroll
            for (int half = 0; half < (C::KV8 ? 2 : 1); half++) {
                uint32_t f[4] = {v[0], v[1], v[2], v[3]};
                if constexpr (C::KV8) {
                    f[0] = even_bytes(v[2 * half]);
                    f[1] = odd_bytes(v[2 * half]);
                    f[2] = even_bytes(v[2 * half + 1]);
                    f[3] = odd_bytes(v[2 * half + 1]);
                }
#pragma unroll
                for (int nt = 0; nt < C::NT; nt++)
                    mma_16816<typename C::M>(state.o[nt][dt + half], f, b[nt][0], b[nt][1]);
            }
        }
    }
}

#endif
