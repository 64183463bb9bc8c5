// SPDX-License-Identifier: Apache-2.0
// decode_lines.cuh: sums of a batch with eight lines, at the end of the decode kernel: a warp adds all blocks of what
// warps of earlier CTAs have posted of an item that ends in its run.
//
// Invariant: parts are added in the order of the runs.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_LINES_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_LINES_CUH

#include "kernels/cuda/decode_post.cuh"

// A posted part of one of eight lines, all of its blocks.
template <class C> struct decode_whole {
    static constexpr uint32_t BLOCKS = C::NT * C::DT, MLS = (BLOCKS + 7) / 8;
    uint4 o[BLOCKS], ml[MLS]; // m and l of block 8 * j + lane / 4
};
// What is there of it.
template <class C>
static __device__ __forceinline__ void look(const struct decode_args &a, uint32_t what,
                                            const unsigned char *part,
                                            struct decode_whole<C> &ret) {
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t j = 0; j < ret.MLS; j++) {
        uint32_t block = 8 * j + lane / 4;
        ret.ml[j] = {~0u, ~0u, ~0u, ~0u};
        if (block < ret.BLOCKS && is_live<C>(a, block / C::DT, what))
            ret.ml[j] = load_posted(part + block * DECODE_POST_BLOCK + 32 * 16 + lane % 4 * 16);
    }
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        bool live = is_live<C>(a, nt, what);
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            uint32_t b = nt * C::DT + dt;
            ret.o[b] = {~0u, ~0u, ~0u, ~0u};
            if (live)
                ret.o[b] = load_posted(part + b * DECODE_POST_BLOCK + lane * 16);
        }
    }
}
// For the next launch. Every word has one reader.
template <class C>
static __device__ __forceinline__ void clear(const struct decode_args &a, uint32_t what,
                                             unsigned char *part) {
    constexpr uint32_t BLOCKS = decode_whole<C>::BLOCKS, MLS = decode_whole<C>::MLS;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t j = 0; j < MLS; j++) {
        uint32_t block = 8 * j + lane / 4;
        if (block < BLOCKS && is_live<C>(a, block / C::DT, what))
            store_posted(part + block * DECODE_POST_BLOCK + 32 * 16 + lane % 4 * 16, {0, 0, 0, 0});
    }
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
        if (is_live<C>(a, nt, what))
#pragma unroll
            for (int dt = 0; dt < C::DT; dt++)
                store_posted(part + (nt * C::DT + dt) * DECODE_POST_BLOCK + lane * 16,
                             {0, 0, 0, 0});
}
template <class C>
static __device__ __forceinline__ bool is_there(const struct decode_whole<C> &part) {
    uint32_t word = ~0u;
#pragma unroll
    for (uint32_t j = 0; j < part.MLS; j++)
        word = min(word, least(part.ml[j]));
#pragma unroll
    for (uint32_t b = 0; b < part.BLOCKS; b++)
        word = min(word, least(part.o[b]));
    return __all_sync(ALL_LANES, word != 0);
}
template <class C>
static __device__ __forceinline__ void add_whole(struct decode_state<C> &state,
                                                 const struct decode_whole<C> &part) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        int from = (int)(nt * C::DT % 8 * 4 + threadIdx.x % 4);
        const uint4 &x = part.ml[nt * C::DT / 8];
        float4 ml =
            posted_floats({__shfl_sync(ALL_LANES, x.x, from), __shfl_sync(ALL_LANES, x.y, from),
                           __shfl_sync(ALL_LANES, x.z, from), __shfl_sync(ALL_LANES, x.w, from)});
        float m[2] = {ml.x, ml.z}, l[2] = {ml.y, ml.w}, up[2], w[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float max = fmaxf(state.m[nt][e], m[e]);
            up[e] = exp2_fast(state.m[nt][e] - finite_or_0(max));
            w[e] = exp2_fast(m[e] - finite_or_0(max));
            state.m[nt][e] = max;
            state.l[nt][e] = state.l[nt][e] * up[e] + l[e] * w[e];
        }
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            float(&sum)[4] = state.o[nt][dt];
            float4 y = posted_floats(part.o[nt * C::DT + dt]);
            sum[0] = sum[0] * up[0] + y.x * w[0];
            sum[1] = sum[1] * up[1] + y.y * w[1];
            sum[2] = sum[2] * up[0] + y.z * w[0];
            sum[3] = sum[3] * up[1] + y.w * w[1];
        }
    }
}

// Of eight lines, an item that ends in this warp's run: what the run has of it (its first segment, kept in shared
// memory), then what the runs before have posted, in their order. The warp sums all of it, and looks for a part
// while it adds the one before; it waits for earlier CTAs alone.
template <class C>
static __device__ __forceinline__ void merge_line(const struct decode_args &a,
                                                  const struct decode_shared<C> &shared,
                                                  const struct decode_merge *merges) {
    uint32_t warp = threadIdx.x / 32;
    struct decode_merge merge = merges[MERGE_BACK];
    uint32_t n = warp_uniform(merge.posted);
    if (n == 0)
        return;
    unsigned char *part = part_of_cta<C>(a, merge.from, true);
    constexpr bool AHEAD = C::NT * C::DT <= 8; // two parts of more are too many registers
    struct decode_state<C> state;
    struct decode_whole<C> now, next;
    if constexpr (AHEAD)
        look(a, merge.what, part, next);
    load_state<C>(state, shared.o(warp, 0), shared.ml(warp, 0));
#pragma unroll 1
    for (; n > 0; n--) {
        if constexpr (AHEAD) {
            now = next;
            if (n > 1)
                look(a, merge.what, part + DECODE_POST_BYTES, next);
            while (!is_there(now))
                look(a, merge.what, part, now);
        } else {
            do
                look(a, merge.what, part, now);
            while (!is_there(now));
        }
        add_whole(state, now);
        clear<C>(a, merge.what, part);
        part += DECODE_POST_BYTES;
    }
    struct decode_place place = {0, 0, merge.q0, merge.what, 0};
    write_state<C>(a, place, state);
}

#endif
