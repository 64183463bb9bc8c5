// SPDX-License-Identifier: Apache-2.0
// decode_merge.cuh: partial results of the decode kernel: how they are kept, combined and written.
//
// O of 16 rows (head_dim) and 8 columns is a block: one float4 a lane, the fragment of the matrix
// instruction: x, y = O[g][2c, 2c+1], z, w = O[g+8][2c, 2c+1] of lane 4*g + c. A partial result is
// NT * D/16 blocks and m, l of each column; it stays in this order in shared memory and in the
// workspace, so that combining is elementwise. m is the maximum of the logits, times log2(e), l the
// sum of exp2(logit - m); -infinity and 0 where no key was seen.
//
// Invariant: partial results are combined in the order of the line, in groups that depend only on how
// many there are. The end of a launch is a chain that nothing hides: parts are read at once, and few
// instructions are between a barrier and the result.
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
        v_scale = a.v_scales ? __ldg(a.v_scales + place_head(what)) : a.v_scale;
    bool wants_lse = write_lse && a.lse && lane < 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float max = m[e], sum = l[e], up = 1;
        uint32_t j = 0, head = 0;
        bool there =
            (a.sinks || wants_lse) && decode_column(a, what, column0 + lane % 4 * 2 + e, j, head);
        if (a.sinks && there) {
            float sink = __ldg(a.sinks + head) * DECODE_LOG2E;
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

// --- the partial results of a CTA ----------------------------------------------------------------

// What a warp leaves of a segment that is not a whole item: flags: there, begins an item, ends one.
struct decode_note {
    uint32_t flags, q0, what, unused;
};
static constexpr uint32_t NOTE_THERE = 1, NOTE_BEGINS = 2, NOTE_ENDS = 4;

// Where warp w's two partial results, their m, l and notes are in shared memory.
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
    __device__ __forceinline__ struct decode_note *notes(uint32_t w) const {
        return reinterpret_cast<struct decode_note *>(own(w) + O + Q + 2 * ML);
    }
    // 32 bytes apart
    __device__ __forceinline__ struct decode_place *place(uint32_t w, uint32_t stage) const {
        return reinterpret_cast<struct decode_place *>(own(w) + O + Q + 2 * ML + 32 + stage * 32);
    }
    // Has this CTA come last to the item shared with earlier ones, with later ones?
    __device__ __forceinline__ uint32_t *last() const {
        return reinterpret_cast<uint32_t *>(own(warps));
    }
};

// Where the parts of an item are: in the slots of this CTA's warps, from `slot` on (after it, the first slots
// of the next warps), or in the workspace (CTA `first`'s second part, then the first ones of those after it).
template <class C> struct parts_here {
    static constexpr bool MANY = false; // never more than DECODE_MAX_WARPS
    const struct decode_shared<C> &shared;
    uint32_t slot;
    __device__ __forceinline__ const float4 *o(uint32_t k) const {
        return shared.o(slot / 2 + k, k ? 0 : slot % 2);
    }
    __device__ __forceinline__ const float4 *ml(uint32_t k) const {
        return shared.ml(slot / 2 + k, k ? 0 : slot % 2);
    }
};
template <class C> struct parts_of_ctas {
    static constexpr bool MANY = true;
    static constexpr uint32_t BYTES = decode_partial_bytes(C::D, C::NT);
    const unsigned char *first; // CTA first's first part
    __device__ __forceinline__ const float4 *o(uint32_t k) const {
        return reinterpret_cast<const float4 *>(first + (uint64_t)(k ? 2 * k : 1) * BYTES);
    }
    __device__ __forceinline__ const float4 *ml(uint32_t k) const {
        return o(k) + decode_o_bytes(C::D, C::NT) / 16;
    }
};

enum { PARTS = 8 }; // that are read at once
static_assert((int)PARTS == (int)DECODE_MAX_WARPS, "a CTA's parts are read at once");

// Place `at` of O of parts k .. k + PARTS; of part n and later ones nothing.
template <class P>
static __device__ __forceinline__ void read_parts(const P &parts, uint32_t k, uint32_t n,
                                                  uint32_t at, float4 (&ret)[PARTS]) {
#pragma unroll
    for (uint32_t i = 0; i < PARTS; i++) {
        ret[i] = {0, 0, 0, 0};
        if (k + i < n)
            ret[i] = parts.o(k + i)[at];
    }
}

// m and l of part k + lane / 4, columns 2c and 2c+1, c = lane % 4.
template <class P>
static __device__ __forceinline__ float4 read_ml(const P &parts, uint32_t k, uint32_t n,
                                                 uint32_t nt) {
    uint32_t lane = threadIdx.x % 32;
    float4 x = {minus_infinity(), 0, minus_infinity(), 0};
    if (k + lane / 4 < n)
        x = parts.ml(k + lane / 4)[nt * 4 + lane % 4];
    return x;
}

// Weights of parts k .. k + PARTS for the lane's columns, from their m; lane 4*i + c has those of part k + i.
static __device__ __forceinline__ void weigh_parts(const float (&m)[2], const float (&max)[2],
                                                   float (&ret)[PARTS][2]) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float w = exp2_fast(m[e] - finite_or_0(max[e]));
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            ret[i][e] = __shfl_sync(ALL_LANES, w, i * 4 + (int)(threadIdx.x % 4));
    }
}

static __device__ __forceinline__ void add_parts(float4 &sum, const float (&w)[PARTS][2],
                                                 const float4 (&x)[PARTS]) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        sum.x += w[i][0] * x[i].x;
        sum.y += w[i][1] * x[i].y;
        sum.z += w[i][0] * x[i].z;
        sum.w += w[i][1] * x[i].w;
    }
}

// Sums an item's n parts in the order of the line, by `split` warps of which this is number `sub`: n-tiles
// are divided first, a lane works out the weight of one part for two columns, once an n-tile. To the result,
// or to a part in the workspace.
template <class C, class P>
static __device__ __forceinline__ void sum_item(const struct decode_args &a, const P &parts,
                                                uint32_t n, uint32_t q0, uint32_t what,
                                                unsigned char *to, uint32_t sub, uint32_t split) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t nts = min(split, (uint32_t)C::NT), step = split / nts, dt0 = sub / nts;
    if (dt0 >= min(step, (uint32_t)C::DT))
        return;
#pragma unroll 1
    for (uint32_t nt = sub % nts; nt < C::NT; nt += nts) {
        uint32_t at = (nt * C::DT + dt0) * 32 + lane;
        float4 ml = read_ml(parts, 0, n, nt), x[PARTS];
        read_parts(parts, 0, n, at, x);
        unsigned char *row = to ? nullptr : row_of<C>(a, nt, q0, what);
        float m[2] = {ml.x, ml.z}, max[2] = {m[0], m[1]}, sum_l[2], w[PARTS][2];
        if (P::MANY) {
#pragma unroll 1
            for (uint32_t k = PARTS; k < n; k += PARTS) {
                float4 more = read_ml(parts, k, n, nt);
                max[0] = fmaxf(max[0], more.x);
                max[1] = fmaxf(max[1], more.z);
            }
        }
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int by = 4; by < 32; by *= 2)
                max[e] = fmaxf(max[e], __shfl_xor_sync(ALL_LANES, max[e], by));
        sum_l[0] = ml.y * exp2_fast(m[0] - finite_or_0(max[0]));
        sum_l[1] = ml.w * exp2_fast(m[1] - finite_or_0(max[1]));
        if (P::MANY) {
#pragma unroll 1
            for (uint32_t k = PARTS; k < n; k += PARTS) {
                float4 more = read_ml(parts, k, n, nt);
                sum_l[0] += more.y * exp2_fast(more.x - finite_or_0(max[0]));
                sum_l[1] += more.w * exp2_fast(more.z - finite_or_0(max[1]));
            }
        }
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int by = 4; by < 32; by *= 2)
                sum_l[e] += __shfl_xor_sync(ALL_LANES, sum_l[e], by);
        weigh_parts(m, max, w);
        struct decode_rows rows = {{0, 0}, nullptr};
        if (!to)
            rows = end_columns<C>(a, nt, q0, what, max, sum_l, row, dt0 == 0);
        else if (dt0 == 0 && lane < 4)
            reinterpret_cast<float4 *>(to)[decode_o_bytes(C::D, C::NT) / 16 + nt * 4 + lane] = {
                max[0], sum_l[0], max[1], sum_l[1]};
#pragma unroll 1
        for (uint32_t dt = dt0; dt < C::DT; dt += step, at += step * 32) {
            float4 sum = {0, 0, 0, 0};
            add_parts(sum, w, x);
            if (P::MANY) {
#pragma unroll 1
                for (uint32_t k = PARTS; k < n; k += PARTS) {
                    float4 more = read_ml(parts, k, n, nt), y[PARTS];
                    read_parts(parts, k, n, at, y);
                    float more_m[2] = {more.x, more.z}, more_w[PARTS][2];
                    weigh_parts(more_m, max, more_w);
                    add_parts(sum, more_w, y);
                }
            }
            read_parts(parts, 0, dt + step < C::DT ? n : 0, at + step * 32, x);
            if (to)
                reinterpret_cast<float4 *>(to)[at] = sum;
            else
                write_block<C>(rows, dt, sum);
        }
    }
}

// Combines what the warps of the CTA left and writes items that end here; of items shared with other
// CTAs, the last CTA to come merges the partial results of all.
template <class C>
static __device__ __forceinline__ void merge_block(const struct decode_args &a,
                                                   const struct decode_shared<C> &shared,
                                                   const struct decode_span &span) {
    constexpr uint32_t BYTES = decode_partial_bytes(C::D, C::NT);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, cta = blockIdx.x;
    __syncthreads();
    uint32_t flags = lane < 2 * shared.warps ? shared.notes(lane / 2)[lane % 2].flags : 0;
    uint32_t there = __ballot_sync(ALL_LANES, (flags & NOTE_THERE) != 0);
    uint32_t begins = __ballot_sync(ALL_LANES, (flags & NOTE_BEGINS) != 0);
    uint32_t ends = __ballot_sync(ALL_LANES, (flags & NOTE_ENDS) != 0);
    if (!there)
        return;
    // An item's slots: the first is one behind an end, or one that begins; the others are the first slots of
    // the next warps.
    uint32_t before = there & ((1u << lane) - 1);
    bool is_first = there >> lane & 1 &&
                    (!before || begins >> lane & 1 || ends >> (31 - __clz((int)before)) & 1);
    uint32_t starts = __ballot_sync(ALL_LANES, is_first);
    // The slot of the item that is shared with CTAs before, and with those after.
    int back = __ffs((int)starts) - 1, forward = 31 - __clz((int)starts);
    if (ends >> forward || !(begins >> forward & 1))
        forward = -1;
    if (begins >> back & 1)
        back = -1;
    // The warps are divided among the items.
    uint32_t split = max(shared.warps / (uint32_t)__popc((int)starts), 1u);
    uint32_t groups = shared.warps / split, skip = warp / split, rest = skip < groups ? starts : 0;
#pragma unroll 1
    while (true) {
        for (; skip > 0; skip--)
            rest &= rest - 1;
        if (!rest)
            break;
        skip = groups;
        uint32_t slot = (uint32_t)__ffs((int)rest) - 1, next = rest & (rest - 1);
        uint32_t mask = (next ? (next & (0 - next)) - 1 : ALL_LANES) & there & (ALL_LANES << slot);
        uint32_t n = (uint32_t)__popc((int)mask);
        bool begun = begins >> slot & 1, whole = begun && (ends & mask) != 0;
        const struct decode_note *note = &shared.notes(slot / 2)[slot % 2];
        sum_item<C>(a, parts_here<C>{shared, slot}, n, note->q0, note->what,
                    whole ? nullptr : a.partials + (uint64_t)(2 * cta + begun) * BYTES,
                    warp % split, split);
    }
    if (back < 0 && forward < 0)
        return;

    __syncthreads();
    if (threadIdx.x < 2) {
        bool shared_item = back >= 0;
        uint32_t first = span.back_first, n = span.back_last - first + 1;
        if (threadIdx.x == 1) {
            shared_item = forward >= 0;
            first = cta;
            n = span.forward_last - cta + 1;
        }
        shared.last()[threadIdx.x] =
            shared_item && atomic_inc_acq_rel(a.counters + first, n - 1) == n - 1;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        if (!shared.last()[i])
            continue;
        uint32_t slot = (uint32_t)(i ? forward : back), first = i ? cta : span.back_first;
        uint32_t n = (i ? span.forward_last : span.back_last) - first + 1;
        const struct decode_note *note = &shared.notes(slot / 2)[slot % 2];
        sum_item<C>(a, parts_of_ctas<C>{a.partials + (uint64_t)(2 * first) * BYTES}, n, note->q0,
                    note->what, nullptr, warp, shared.warps);
    }
}

#endif
