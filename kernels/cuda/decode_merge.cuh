// SPDX-License-Identifier: Apache-2.0
// decode_merge.cuh: how the warps of a CTA sum what is not one warp's, at the end of the decode kernel: parts in shared
// memory, and those that earlier CTAs have posted.
//
// Invariants
//  1. Partial results are combined in an order that depends only on the plan.
//  2. Of an item that several CTAs have parts of, the last one waits for those of the others and writes.
// The end of a launch is a chain that nothing hides: the plan says what each warp sums, parts are read at once,
// and few instructions are between a barrier and the result.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_MERGE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_MERGE_CUH

#include "kernels/cuda/decode_post.cuh"

enum { PARTS = 8 }; // that are read at once: the lanes of a warp hold their m and l
static_assert((int)PARTS == (int)DECODE_MAX_WARPS, "a CTA's parts are read at once");

// m and l of part lane / 4 of those from `slot` on (after it, the first slots of the next warps), columns 2c and
// 2c+1, c = lane % 4.
template <class C>
static __device__ __forceinline__ float4 read_ml(const struct decode_shared<C> &shared,
                                                 uint32_t slot, uint32_t n, uint32_t nt) {
    uint32_t i = threadIdx.x % 32 / 4;
    float4 ret = {minus_infinity(), 0, minus_infinity(), 0};
    if (i < n)
        ret = shared.ml(slot / 2 + i, i ? 0 : slot % 2)[nt * 4 + threadIdx.x % 4];
    return ret;
}

// --- sums ----------------------------------------------------------------------------------------

static __device__ __forceinline__ void max_of_parts(float (&m)[2]) {
#pragma unroll
    for (int by = 4; by < 32; by *= 2)
#pragma unroll
        for (int e = 0; e < 2; e++)
            m[e] = fmaxf(m[e], __shfl_xor_sync(ALL_LANES, m[e], by));
}
static __device__ __forceinline__ void sum_of_parts(float (&l)[2]) {
#pragma unroll
    for (int by = 4; by < 32; by *= 2)
#pragma unroll
        for (int e = 0; e < 2; e++)
            l[e] += __shfl_xor_sync(ALL_LANES, l[e], by);
}
// exp2(m - max) of the lane's part.
static __device__ __forceinline__ float2 weights_of(float4 ml, const float (&max)[2]) {
    return {exp2_fast(ml.x - finite_or_0(max[0])), exp2_fast(ml.z - finite_or_0(max[1]))};
}
// Part i's weights for the lane's columns; lane 4*i + c has them.
static __device__ __forceinline__ float2 weight_of(float2 w, uint32_t i) {
    uint32_t from = i * 4 + threadIdx.x % 4;
    return {__shfl_sync(ALL_LANES, w.x, (int)from), __shfl_sync(ALL_LANES, w.y, (int)from)};
}
// N parts in shared memory: one at `first`, part i > 0 at others + i * stride.
template <int N>
static __device__ __forceinline__ void add_own(float4 &sum, float2 w, const unsigned char *first,
                                               const unsigned char *others, uint32_t stride) {
    float4 x[N];
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        x[i] = *reinterpret_cast<const float4 *>(i ? others + i * stride : first);
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        add_part(sum, weight_of(w, i), x[i]);
}

// A CTA's own parts of an item, and where its sum goes.
template <class C> struct decode_sum {
    const struct decode_args &a;
    const struct decode_shared<C> &shared;
    const struct decode_merge &merge;
    unsigned char *parts, *part; // posted by others; the CTA's
    uint32_t n, slot, posted, block, end;
    bool ends;
    struct decode_rows rows;
    uint4 ml_words;

    __device__ __forceinline__ decode_sum(const struct decode_args &a_,
                                          const struct decode_shared<C> &shared_,
                                          const struct decode_merge &merge_, unsigned char *parts_,
                                          unsigned char *part_)
        : a(a_), shared(shared_), merge(merge_), parts(parts_), part(part_),
          n(merge_parts(merge.how)), slot(merge_slot(merge.how)), posted(merge.posted),
          block(merge_block(merge.how)), end(merge_end(merge.how)),
          ends(merge_ends(merge.how)), rows{{0, 0}, nullptr}, ml_words{} {}

    __device__ __forceinline__ bool live(uint32_t at) const {
        return is_live<C>(a, at / C::DT, merge.what);
    }
    // The place of part k of a block among those that are posted.
    __device__ __forceinline__ unsigned char *post_of(uint32_t k, uint32_t at) const {
        return parts + (uint64_t)k * DECODE_POST_BYTES + at * DECODE_POST_BLOCK;
    }
    __device__ __forceinline__ void add(float4 &sum, float2 w) const {
        constexpr uint32_t OWN = decode_shared<C>::OWN;
        uint32_t at = (block * 32 + threadIdx.x % 32) * 16;
        const unsigned char *others =
                                reinterpret_cast<const unsigned char *>(shared.o(slot / 2, 0)) + at,
                            *first = reinterpret_cast<const unsigned char *>(
                                         shared.o(slot / 2, slot % 2)) +
                                     at;
        if (n == 8) {
            add_own<8>(sum, w, first, others, OWN);
        } else if (n == 4) {
            add_own<4>(sum, w, first, others, OWN);
        } else {
            add_own<1>(sum, w, first, nullptr, 0);
#pragma unroll 1
            for (uint32_t i = 1; i < n; i++)
                add_part(sum, weight_of(w, i), *reinterpret_cast<const float4 *>(others + i * OWN));
        }
    }
    __device__ __forceinline__ void finish(bool is_new, const float (&m)[2], const float (&l)[2],
                                           float4 sum) {
        uint32_t nt = block / C::DT;
        if (ends) {
            if (is_new)
                rows = end_columns<C>(a, nt, merge.q0, merge.what, m, l,
                                      row_of<C>(a, nt, merge.q0, merge.what), block % C::DT == 0);
            write_block<C>(rows, block % C::DT, sum);
        } else {
            if (is_new)
                ml_words = posted_words({m[0], l[0], m[1], l[1]});
            post(part, block, live(block), posted_words(sum), ml_words);
        }
    }
};

// Sums a warp's blocks of an item: the CTA's own parts and N that earlier ones have posted. Weights are worked out
// once for each n-tile; what is posted of the next block is looked for while the last is summed.
template <class C, int N> static __device__ __forceinline__ void sum_item(struct decode_sum<C> &s) {
    struct decode_posted<N> now;
    float m[2] = {0, 0}, l[2] = {0, 0};
    float2 w = {0, 0}, v = {0, 0};
    uint32_t seen = C::NT;
    if (s.block < s.end)
        look<N>(s.post_of(0, s.block), N, s.live(s.block), now);
#pragma unroll 1
    for (; s.block < s.end; s.block++) {
        bool is_new = s.block / C::DT != seen;
        seen = s.block / C::DT;
        take<N>(s.post_of(0, s.block), N, s.live(s.block), now);
        if (is_new) {
            float4 ml = read_ml(s.shared, s.slot, s.n, seen), more = posted_floats(now.ml);
            m[0] = fmaxf(ml.x, more.x);
            m[1] = fmaxf(ml.z, more.z);
            max_of_parts(m);
            w = weights_of(ml, m);
            v = weights_of(more, m);
            l[0] = v.x * more.y + w.x * ml.y;
            l[1] = v.y * more.w + w.y * ml.w;
            sum_of_parts(l);
        }
        float4 sum = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < N; i++)
            add_part(sum, weight_of(v, i), posted_floats(now.o[i]));
        if (s.block + 1 < s.end)
            look<N>(s.post_of(0, s.block + 1), N, s.live(s.block + 1), now);
        s.add(sum, w);
        s.finish(is_new, m, l, sum);
    }
}
// Any number that are posted, PARTS at a time, after the own ones: two times PARTS are looked for ahead.
template <class C> static __device__ __forceinline__ void sum_many(struct decode_sum<C> &s) {
    struct decode_posted<PARTS> now, later;
    float own_m[2] = {0, 0}, own_l[2] = {0, 0};
    float2 w = {0, 0};
    uint32_t seen = C::NT, ahead = s.posted > 0 ? s.block : s.end, ahead_k = 0;
    auto look_ahead = [&](struct decode_posted<PARTS> &to) {
        if (ahead >= s.end)
            return;
        look<PARTS>(s.post_of(ahead_k, ahead), s.posted - ahead_k, s.live(ahead), to);
        ahead_k += PARTS;
        if (ahead_k >= s.posted) {
            ahead_k = 0;
            ahead++;
        }
    };
    look_ahead(now);
    look_ahead(later);
#pragma unroll 1
    for (; s.block < s.end; s.block++) {
        bool is_new = s.block / C::DT != seen;
        seen = s.block / C::DT;
        if (is_new) {
            float4 ml = read_ml(s.shared, s.slot, s.n, seen);
            own_m[0] = ml.x;
            own_m[1] = ml.z;
            max_of_parts(own_m);
            w = weights_of(ml, own_m);
            own_l[0] = w.x * ml.y;
            own_l[1] = w.y * ml.w;
            sum_of_parts(own_l);
        }
        float4 sum = {0, 0, 0, 0};
        s.add(sum, w);
        float m[2] = {own_m[0], own_m[1]}, l[2] = {own_l[0], own_l[1]};
#pragma unroll 1
        for (uint32_t k = 0; k < s.posted; k += PARTS) {
            take<PARTS>(s.post_of(k, s.block), s.posted - k, s.live(s.block), now);
            float4 ml = posted_floats(now.ml), x[PARTS];
#pragma unroll
            for (int i = 0; i < PARTS; i++)
                x[i] = posted_floats(now.o[i]);
            now = later;
            look_ahead(later);
            float top[2] = {fmaxf(m[0], ml.x), fmaxf(m[1], ml.z)};
            max_of_parts(top);
            float2 theirs = weights_of(ml, top), up = weights_of({m[0], 0, m[1], 0}, top);
            float their_l[2] = {theirs.x * ml.y, theirs.y * ml.w};
            sum_of_parts(their_l);
            sum = {sum.x * up.x, sum.y * up.y, sum.z * up.x, sum.w * up.y};
#pragma unroll
            for (int i = 0; i < PARTS; i++)
                add_part(sum, weight_of(theirs, i), x[i]);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                m[e] = top[e];
                l[e] = l[e] * (e ? up.y : up.x) + their_l[e];
            }
        }
        s.finish(is_new, m, l, sum);
    }
}

// Combines what the warps of the CTA left of items that are not one warp's: writes those that end here, posts the
// others. A CTA waits for earlier ones alone: they have started before it. Of eight lines: nothing; and what is done
// there (merge_line) comes after this, here and so in the machine code: instructions that run once are fetched as
// they come.
template <class C>
static __device__ __forceinline__ void merge_cut(const struct decode_args &a,
                                                 const struct decode_shared<C> &shared,
                                                 const struct decode_merge *merges, bool lines) {
    if (lines)
        __syncwarp();
    else
        __syncthreads();
#pragma unroll 1
    for (int i = lines ? DECODE_MERGES : 0; i < DECODE_MERGES; i++) {
        struct decode_merge merge = merges[i];
        merge.how = warp_uniform(merge.how);
        merge.posted = warp_uniform(merge.posted);
        if (merge.how == 0)
            continue;
        struct decode_sum<C> sum(a, shared, merge, part_of_cta<C>(a, merge.from, false),
                                 part_of_cta<C>(a, blockIdx.x, false));
        if (merge.posted ==
            1) // what two and four CTAs that share an item wait for has code of its own
            sum_item<C, 1>(sum);
        else if (merge.posted == 3)
            sum_item<C, 3>(sum);
        else
            sum_many<C>(sum);
    }
}

#endif
