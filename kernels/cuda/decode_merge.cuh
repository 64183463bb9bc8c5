// SPDX-License-Identifier: Apache-2.0
// decode_merge.cuh: partial results of the decode kernel: how they are kept, combined and written.
//
// O of 16 rows (head_dim) and 8 columns is a block: one float4 a lane, the fragment of the matrix
// instruction: x, y = O[g][2c, 2c+1], z, w = O[g+8][2c, 2c+1] of lane 4*g + c. A partial result is
// NT * D/16 blocks and m, l of each column; it stays in this order in shared memory and in the
// workspace, so that combining is elementwise. m is the maximum of the logits, times log2(e), l the
// sum of exp2(logit - m); -infinity and 0 where no key was seen.
//
// Invariants
//  1. Partial results are combined in an order that depends only on the plan.
//  2. Of an item that several CTAs have parts of, the last one waits for those of the others and writes. CTAs
//     start in the order of their numbers: those that one waits for run, or have ended.
//  3. Posted parts are zeros between launches: their reader clears them.
// The end of a launch is a chain that nothing hides: the plan says what each warp sums, parts are read at once,
// and few instructions are between a barrier and the result.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_MERGE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_MERGE_CUH

#include "kernels/cuda/decode_tiles.cuh"

static constexpr float DECODE_LOG2E = 1.4426950408889634f;
static constexpr float DECODE_LN2 = 0.6931471805599453f;

static __device__ __forceinline__ float minus_infinity() {
    return __uint_as_float(0xff800000u);
}
// What to subtract from logits of which m is the maximum.
static __device__ __forceinline__ float finite_or_0(float m) {
    return m == minus_infinity() ? 0.0f : m;
}

// --- the result ----------------------------------------------------------------------------------

// One n-tile: factors of columns 2c, 2c+1, and the row that the lane writes, of column g (NULL: the
// column is padding).
struct decode_rows {
    float scale[2];
    unsigned char *out;
};

// Column `column` of the item: its token and query head; false: padding.
static __device__ __forceinline__ bool decode_column(const struct decode_args &a, uint32_t what,
                                                     uint32_t column, uint32_t &j, uint32_t &head) {
    j = column * a.group_inverse >> 16;
    head = place_head(what) * a.group + column - j * a.group;
    return j < place_q_len(what);
}

// Columns 2c and 2c+1 of n-tile nt are not both padding.
template <class C>
static __device__ __forceinline__ bool is_live(const struct decode_args &a, uint32_t nt,
                                               uint32_t what) {
    uint32_t j, head;
    return decode_column(a, what, (place_block(what) * C::NT + nt) * 8 + threadIdx.x % 4 * 2, j,
                         head);
}

// The row of n-tile nt that the lane writes.
template <class C>
static __device__ __forceinline__ unsigned char *row_of(const struct decode_args &a, uint32_t nt,
                                                        uint32_t q0, uint32_t what) {
    uint32_t j, head;
    bool there = decode_column(a, what, (place_block(what) * C::NT + nt) * 8 + threadIdx.x % 32 / 4,
                               j, head);
    return there ? a.out + (q0 + j) * a.out_token_stride + head * a.out_head_stride : nullptr;
}

// Ends n-tile nt of an item: m and l are those of columns 2c and 2c+1. write_lse: of these columns.
template <class C>
static __device__ __forceinline__ struct decode_rows
end_columns(const struct decode_args &a, uint32_t nt, uint32_t q0, uint32_t what, const float *m,
            const float *l, unsigned char *out, bool write_lse) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t column0 = (place_block(what) * C::NT + nt) * 8;
    struct decode_rows ret = {{0, 0}, out};
    float v_scale = 1;
    if constexpr (C::KV8)
        v_scale = a.v_scales ? a.v_scales[place_head(what)] : a.v_scale;
    bool wants_lse = write_lse && a.lse && lane < 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float max = m[e], sum = l[e], up = 1;
        uint32_t j = 0, head = 0;
        bool there =
            (a.sinks || wants_lse) && decode_column(a, what, column0 + lane % 4 * 2 + e, j, head);
        if (a.sinks && there) {
            float sink = a.sinks[head] * DECODE_LOG2E;
            max = fmaxf(max, sink);
            up = exp2_fast(m[e] - finite_or_0(max));
            sum = sum * up + exp2_fast(sink - finite_or_0(max));
        }
        ret.scale[e] = sum == 0 ? 0 : divide_fast(v_scale * up, sum);
        if (wants_lse && there)
            a.lse[(q0 + j) * a.lse_token_stride + head * a.lse_head_stride] =
                sum == 0 ? minus_infinity() : (max + log2f(sum)) * DECODE_LN2;
    }
    return ret;
}

// Writes block dt (16 elements of each column) of the n-tile: transposed, the lanes of a column are
// neighbours.
template <class C>
static __device__ __forceinline__ void write_block(const struct decode_rows &rows, uint32_t dt,
                                                   float4 o) {
    uint32_t c = threadIdx.x % 4;
    uint32_t low = movmatrix_trans(pack2<typename C::T>(o.x * rows.scale[0], o.y * rows.scale[1]));
    uint32_t high = movmatrix_trans(pack2<typename C::T>(o.z * rows.scale[0], o.w * rows.scale[1]));
    if (!rows.out)
        return;
    if constexpr (C::KV8) { // rows g and g+8 are elements 2g and 2g+1
        uint2 both = {(low & 0xffff) | high << 16, low >> 16 | (high & 0xffff0000u)};
        *reinterpret_cast<uint2 *>(rows.out + dt * 32 + c * 8) = both;
    } else {
        *reinterpret_cast<uint32_t *>(rows.out + dt * 32 + c * 4) = low;
        *reinterpret_cast<uint32_t *>(rows.out + dt * 32 + 16 + c * 4) = high;
    }
}

// Softmax and O of the segment at hand, of one lane.
template <class C> struct decode_state {
    float o[C::NT][C::DT][4];
    float m[C::NT][2], l[C::NT][2];
};

template <class C>
static __device__ __forceinline__ void write_state(const struct decode_args &a,
                                                   const struct decode_place &place,
                                                   const struct decode_state<C> &state) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        struct decode_rows rows =
            end_columns<C>(a, nt, place.q0, place.what, state.m[nt], state.l[nt],
                           row_of<C>(a, nt, place.q0, place.what), true);
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            const float(&o)[4] = state.o[nt][dt];
            write_block<C>(rows, dt, {o[0], o[1], o[2], o[3]});
        }
    }
}

template <class C>
static __device__ __forceinline__ void keep_state(const struct decode_state<C> &state, float4 *o,
                                                  float4 *ml) {
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            const float(&x)[4] = state.o[nt][dt];
            o[(nt * C::DT + dt) * 32 + lane] = {x[0], x[1], x[2], x[3]};
        }
        if (lane < 4)
            ml[nt * 4 + lane] = {state.m[nt][0], state.l[nt][0], state.m[nt][1], state.l[nt][1]};
    }
}

template <class C>
static __device__ __forceinline__ void load_state(struct decode_state<C> &state, const float4 *o,
                                                  const float4 *ml) {
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
        float4 x = ml[nt * 4 + lane % 4];
        state.m[nt][0] = x.x;
        state.l[nt][0] = x.y;
        state.m[nt][1] = x.z;
        state.l[nt][1] = x.w;
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++) {
            float4 y = o[(nt * C::DT + dt) * 32 + lane];
            state.o[nt][dt][0] = y.x;
            state.o[nt][dt][1] = y.y;
            state.o[nt][dt][2] = y.z;
            state.o[nt][dt][3] = y.w;
        }
    }
}

// --- partial results in shared memory ------------------------------------------------------------

// Where warp w's two partial results, their m and l, and its merges are in shared memory.
template <class C> struct decode_shared {
    static constexpr uint32_t RING = C::STAGES * C::TILE;
    static constexpr uint32_t O = decode_o_bytes(C::D, C::NT), ML = decode_ml_bytes(C::NT);
    static constexpr uint32_t Q = C::Q_SHARED ? C::NT * C::D * 16 : 0;
    static constexpr uint32_t OWN = decode_own_bytes(C::D, C::KV8, C::NT);
    unsigned char *base;
    uint32_t warps;

    __device__ __forceinline__ unsigned char *ring(uint32_t w) const { return base + w * RING; }
    __device__ __forceinline__ unsigned char *own(uint32_t w) const {
        return base + warps * RING + w * OWN;
    }
    // of slot 0 (a run's first segment) or 1 (its last one, where the ring was)
    __device__ __forceinline__ float4 *o(uint32_t w, uint32_t slot) const {
        return reinterpret_cast<float4 *>(slot ? ring(w) : own(w));
    }
    __device__ __forceinline__ uint2 *q(uint32_t w) const {
        return reinterpret_cast<uint2 *>(own(w) + O);
    }
    __device__ __forceinline__ float4 *ml(uint32_t w, uint32_t slot) const {
        return reinterpret_cast<float4 *>(own(w) + O + Q + slot * ML);
    }
    __device__ __forceinline__ struct decode_merge *merge(uint32_t w) const {
        return reinterpret_cast<struct decode_merge *>(own(w) + O + Q + 2 * ML);
    }
    // 32 bytes apart
    __device__ __forceinline__ struct decode_place *place(uint32_t w, uint32_t stage) const {
        return reinterpret_cast<struct decode_place *>(own(w) + O + Q + 2 * ML +
                                                       DECODE_MERGES * 32 + stage * 32);
    }
};

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

// --- posted ones ---------------------------------------------------------------------------------

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
static __device__ __forceinline__ void add_part(float4 &sum, float2 w, float4 x) {
    sum.x += w.x * x.x;
    sum.y += w.y * x.y;
    sum.z += w.x * x.z;
    sum.w += w.y * x.w;
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

// The part that CTA `cta` posts; of eight lines, that the warp does.
template <class C>
static __device__ __forceinline__ unsigned char *part_of_cta(const struct decode_args &a,
                                                             uint32_t cta, bool lines) {
    constexpr uint32_t BYTES = decode_post_bytes(C::D, C::NT);
    static_assert((C::LINES ? DECODE_MAX_WARPS : 1) * BYTES <= DECODE_POST_BYTES,
                  "room for a part, or for one of each line");
    return a.posts + (uint64_t)cta * DECODE_POST_BYTES + (lines ? threadIdx.x / 32 * BYTES : 0);
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

// --- eight lines ---------------------------------------------------------------------------------

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
