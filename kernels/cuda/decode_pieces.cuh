// SPDX-License-Identifier: Apache-2.0
// decode_pieces.cuh: batch-invariant: pieces of an item in the workspace, and their sum, by the warp of the decode kernel
// that brings the last one.
//
// Invariant: pieces are added in their order, two at a time, in all instances: so are the bits.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_PIECES_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_PIECES_CUH

#include "kernels/cuda/decode_state.cuh"

// Merges the n pieces at `parts`, all blocks. Two parts of several blocks are loaded at once. Not inlined: it is 20 KB
// behind a branch that the compiler takes for one that parts the warp.
template <class C>
static __device__ __noinline__ void merge_pieces(const struct decode_args &a, uint32_t q0,
                                                 uint32_t what, const unsigned char *parts,
                                                 uint32_t n) {
    constexpr uint32_t BYTES = decode_partial_bytes(C::D, C::NT);
    constexpr int TWO = 2; // the same in all instances: so are the bits
    constexpr int MOST = C::NT == 1 ? 8 : 2, BLOCKS = C::DT < MOST ? C::DT : MOST;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t block = 0; block < C::NT * C::DT; block += BLOCKS) {
        uint32_t nt = block / C::DT;
        float4 sum[BLOCKS];
        float m[2] = {minus_infinity(), minus_infinity()}, l[2] = {0, 0};
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            sum[b] = {0, 0, 0, 0};
#pragma unroll 1
        for (uint32_t k = 0; k < n; k += TWO) {
            float4 o[TWO][BLOCKS], ml[TWO];
#pragma unroll
            for (int i = 0; i < TWO; i++) {
                const unsigned char *p = parts + (uint64_t)(k + i) * BYTES;
                bool there = k + i < n;
                ml[i] = {minus_infinity(), 0, minus_infinity(), 0};
                if (there)
                    ml[i] = reinterpret_cast<const float4 *>(
                        p + decode_o_bytes(C::D, C::NT))[nt * 4 + lane % 4];
#pragma unroll
                for (int b = 0; b < BLOCKS; b++) {
                    o[i][b] = {0, 0, 0, 0};
                    if (there)
                        o[i][b] = reinterpret_cast<const float4 *>(p)[(block + b) * 32 + lane];
                }
            }
            float up[2], w[TWO][2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float max = m[e];
#pragma unroll
                for (int i = 0; i < TWO; i++)
                    max = fmaxf(max, e ? ml[i].z : ml[i].x);
                up[e] = exp2_fast(m[e] - finite_or_0(max));
                m[e] = max;
                l[e] *= up[e];
#pragma unroll
                for (int i = 0; i < TWO; i++) {
                    w[i][e] = exp2_fast((e ? ml[i].z : ml[i].x) - finite_or_0(max));
                    l[e] += w[i][e] * (e ? ml[i].w : ml[i].y);
                }
            }
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                float4 x = {sum[b].x * up[0], sum[b].y * up[1], sum[b].z * up[0], sum[b].w * up[1]};
#pragma unroll
                for (int i = 0; i < TWO; i++)
                    add_part(x, {w[i][0], w[i][1]}, o[i][b]);
                sum[b] = x;
            }
        }
        struct decode_rows rows =
            end_columns<C>(a, nt, q0, what, m, l, row_of<C>(a, nt, q0, what), block % C::DT == 0);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            write_block<C>(rows, block % C::DT + b, sum[b]);
    }
}

// A piece (batch-invariant): to the workspace; the warp that brings the last one of its item, as a counter
// tells, merges them.
template <class C>
static __device__ __forceinline__ void end_piece(const struct decode_args &a,
                                                 const struct decode_place &place,
                                                 const struct decode_state<C> &state) {
    uint32_t lane = threadIdx.x % 32, n = place_pieces(place.what);
    uint32_t blocks = (place_q_len(place.what) * a.group + 8 * C::NT - 1) / (8 * C::NT);
    uint32_t item =
        place.slot * a.items + place_head(place.what) * blocks + place_block(place.what);
    constexpr uint32_t BYTES = decode_partial_bytes(C::D, C::NT);
    unsigned char *parts = a.pieces + (uint64_t)item * DECODE_MAX_PIECES * BYTES;
    unsigned char *p = parts + place_piece(place.what) * BYTES;
    keep_state<C>(state, reinterpret_cast<float4 *>(p),
                  reinterpret_cast<float4 *>(p + decode_o_bytes(C::D, C::NT)));
    __syncwarp();
    uint32_t old = 0;
    if (lane == 0)
        old = atomic_inc_acq_rel(a.counters + item, n - 1);
    old = __shfl_sync(ALL_LANES, old, 0);
    __syncwarp(); // what lane 0 has acquired is the others' too
    if (old == n - 1)
        merge_pieces<C>(a, place.q0, place.what, parts, n);
}

#endif
