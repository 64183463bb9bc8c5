// SPDX-License-Identifier: Apache-2.0
// decode_post.cuh: parts of an item that a CTA of the decode kernel, or a warp, leaves in the workspace for a later one.
//
// Invariants
//  1. A word that is 0 is not there yet: a word that is not is itself the news. No fence, no counter, no flag.
//  2. Posted parts are zeros between launches: their reader clears them. Every word has one reader.
//  3. Who waits does so for earlier CTAs alone. CTAs start in the order of their numbers: those run, or have ended.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_POST_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_POST_CUH

#include "kernels/cuda/decode_state.cuh"

// A word that is 0 is not there yet. Others are posted inverted: no result has all bits set, a NaN that has
// becomes another one.
static __device__ __forceinline__ uint32_t posted_word(float x) {
    return ~min(__float_as_uint(x), 0xfffffffeu);
}
static __device__ __forceinline__ uint4 posted_words(float4 x) {
    return {posted_word(x.x), posted_word(x.y), posted_word(x.z), posted_word(x.w)};
}
static __device__ __forceinline__ float4 posted_floats(uint4 x) {
    return {__uint_as_float(~x.x), __uint_as_float(~x.y), __uint_as_float(~x.z),
            __uint_as_float(~x.w)};
}

// Block `block` of a part, and m, l of its columns (lanes 0 to 3), as posted words; live: not padding.
static __device__ __forceinline__ void post(unsigned char *part, uint32_t block, bool live, uint4 o,
                                            uint4 ml) {
    uint32_t lane = threadIdx.x % 32;
    unsigned char *to = part + block * DECODE_POST_BLOCK + lane * 16;
    if (!live)
        return;
    store_posted(to, o);
    if (lane < 4)
        store_posted(to + 32 * 16, ml);
}

// One block of N posted parts: O of each, m and l as read_ml has them. Of fewer, the last one again; of columns
// that are padding, nothing.
template <int N> struct decode_posted { uint4 o[N], ml; };
// What is there of n parts, DECODE_POST_BYTES apart; p: the block of the first; live: the lane's columns are not
// padding.
template <int N>
static __device__ __forceinline__ void look(const unsigned char *p, uint32_t n, bool live,
                                            struct decode_posted<N> &ret) {
    uint32_t lane = threadIdx.x % 32;
    ret.ml = posted_words({minus_infinity(), 0, minus_infinity(), 0});
    if (live && lane / 4 < n)
        ret.ml = load_posted(p + lane / 4 * DECODE_POST_BYTES + 32 * 16 + lane % 4 * 16);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
        ret.o[i] = {~0u, ~0u, ~0u, ~0u};
        if (live)
            ret.o[i] = load_posted(p + min(i, n - 1) * DECODE_POST_BYTES + lane * 16);
    }
}
static __device__ __forceinline__ uint32_t least(uint4 x) {
    return min(min(x.x, x.y), min(x.z, x.w));
}
// Waits for what was not there, and clears all of it for the next launch. Every word has one reader.
template <int N>
static __device__ __forceinline__ void take(unsigned char *p, uint32_t n, bool live,
                                            struct decode_posted<N> &ret) {
    uint32_t lane = threadIdx.x % 32;
    while (true) {
        uint32_t word = least(ret.ml);
#pragma unroll
        for (int i = 0; i < N; i++)
            word = min(word, least(ret.o[i]));
        if (__all_sync(ALL_LANES, word != 0))
            break;
        look(p, n, live, ret);
    }
    if (!live)
        return;
    if (lane / 4 < n)
        store_posted(p + lane / 4 * DECODE_POST_BYTES + 32 * 16 + lane % 4 * 16, {0, 0, 0, 0});
#pragma unroll 1
    for (uint32_t i = 0; i < n && i < N; i++)
        store_posted(p + i * DECODE_POST_BYTES + lane * 16, {0, 0, 0, 0});
}

// The part that CTA `cta` posts; of eight lines, that the warp does.
template <class C>
static __device__ __forceinline__ unsigned char *part_of_cta(const struct decode_args &a,
                                                             uint32_t cta, bool lines) {
    constexpr uint32_t BYTES = decode_post_bytes(C::D, C::NT);
    static_assert((C::LINES ? DECODE_MAX_WARPS : 1) * BYTES <= DECODE_POST_BYTES,
                  "room for a part, or for one of each line");
    return a.posts + (uint64_t)cta * DECODE_POST_BYTES + (lines ? threadIdx.x / 32 * BYTES : 0);
}

// A posted part, by its only warp.
template <class C>
static __device__ __forceinline__ void
post_state(const struct decode_args &a, const struct decode_place &place,
           const struct decode_state<C> &state, unsigned char *part) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        bool live = is_live<C>(a, nt, place.what);
        uint4 ml = posted_words({state.m[nt][0], state.l[nt][0], state.m[nt][1], state.l[nt][1]});
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            const float(&x)[4] = state.o[nt][dt];
            post(part, nt * C::DT + dt, live, posted_words({x[0], x[1], x[2], x[3]}), ml);
        }
    }
}

#endif
