// SPDX-License-Identifier: Apache-2.0
// decode_state.cuh: softmax and O of a segment in the decode kernel: as a warp has them in registers, how they are
// kept in shared memory, and how they are written where they are a whole item's.
//
// O of 16 rows (head_dim) and 8 columns is a block: one float4 a lane, the fragment of the matrix
// instruction: x, y = O[g][2c, 2c+1], z, w = O[g+8][2c, 2c+1] of lane 4*g + c. A partial result is
// NT * D/16 blocks and m, l of each column; it stays in this order in shared memory and in the
// workspace, so that combining is elementwise. m is the maximum of the logits, times log2(e), l the
// sum of exp2(logit - m); -infinity and 0 where no key was seen.
//
// Invariant: columns that are padding are neither written nor posted.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_STATE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_STATE_CUH

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
static __device__ __forceinline__ void add_part(float4 &sum, float2 w, float4 x) {
    sum.x += w.x * x.x;
    sum.y += w.y * x.y;
    sum.z += w.x * x.z;
    sum.w += w.y * x.w;
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

template <class C>
static __device__ __forceinline__ void reset_state(struct decode_state<C> &state) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++) {
#pragma unroll
        for (int dt = 0; dt < C::DT; dt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                state.o[nt][dt][i] = 0;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            state.m[nt][e] = minus_infinity();
            state.l[nt][e] = 0;
        }
    }
}

// l of the lanes together, at the end of a segment.
template <class C> static __device__ __forceinline__ void sum_lanes(struct decode_state<C> &state) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int by = 4; by < 32; by *= 2)
                state.l[nt][e] += __shfl_xor_sync(ALL_LANES, state.l[nt][e], by);
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

#endif
