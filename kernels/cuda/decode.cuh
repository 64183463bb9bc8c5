// SPDX-License-Identifier: Apache-2.0
// decode.cuh: attention of few query tokens a sequence over paged K and V. One CTA on each
// multiprocessor, of independent warps: each streams the tiles of its run through its own ring in
// shared memory and keeps its own softmax. docs/kernels.md, "Decode".
//
// A tile: S (tokens x columns) = K Q, on the matrix unit with K as the first operand, so that 8
// columns are enough to fill it; online softmax over the tokens; O (head_dim x columns) += V P. The
// columns of S, P and O are the same lanes' (2c, 2c+1 of lane 4*g + c), so that m, l and the scaling
// of O need no exchange between lanes.
//
// Invariants
//  1. Warps need not meet in the loop; they do once, after all of them have read their tiles. Where all of a CTA
//     have runs of one length they meet every DECODE_STEP tiles.
//  2. A stage is copied to only after __syncwarp behind its last read.
//  3. STAGES copies are committed at any time (empty ones past the end), so that waiting for all but
//     STAGES - 1 waits for the oldest.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_CUH

#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/start.cuh"

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

// --- Q -------------------------------------------------------------------------------------------

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

// --- one tile ------------------------------------------------------------------------------------

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

// S = K Q.
template <class C, class Q>
static __device__ __forceinline__ void
times_queries(uint32_t stage, const struct decode_lanes &lanes, const Q &queries,
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
                s[mt][nt][i] = CHAINS == 2 ? sum[0][mt][nt][i] + sum[CHAINS - 1][mt][nt][i]
                                           : sum[0][mt][nt][i];
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

// --- ends of segments ----------------------------------------------------------------------------

template <class C> static __device__ __forceinline__ void sum_lanes(struct decode_state<C> &state) {
#pragma unroll
    for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int by = 4; by < 32; by *= 2)
                state.l[nt][e] += __shfl_xor_sync(ALL_LANES, state.l[nt][e], by);
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

// The end of a segment: a whole item is written; what others have parts of is kept in shared memory, or posted
// where its CTA has no other part of it.
template <class C>
static __device__ __forceinline__ void
end_segment(const struct decode_args &a, const struct decode_shared<C> &shared,
            const struct decode_place &place, struct decode_state<C> &state, bool begun,
            bool first_segment, bool alone, bool lines) {
    uint32_t warp = threadIdx.x / 32, slot = first_segment ? 0 : 1;
    bool ended = place.what & 2;
    sum_lanes<C>(state);
    if (place_pieces(place.what) > 1)
        end_piece<C>(a, place, state);
    else if (begun && ended)
        write_state<C>(a, place, state);
    else if (alone && !ended)
        post_state<C>(a, place, state, part_of_cta<C>(a, blockIdx.x, lines));
    else
        keep_state<C>(state, shared.o(warp, slot), shared.ml(warp, slot));
}

// --- the kernel ----------------------------------------------------------------------------------

template <class T, class KV, int D, int NT>
__global__ void __launch_bounds__(DECODE_MAX_WARPS * 32, 1)
    decode_kernel(const __grid_constant__ struct decode_args a) {
    using C = decode_config<T, KV, D, NT>;
    KVPOOL_SHARED smem[];
    struct decode_shared<C> shared = {
        smem, a.run_warps
    };
    uint32_t lane = threadIdx.x % 32, warp = warp_uniform(threadIdx.x / 32);

    wait_previous_kernel();
    start_next_kernel();

    const struct decode_work *work = a.works + blockIdx.x * DECODE_MAX_WARPS + warp;
    struct decode_lane<C::GROUPS> tiles = decode_load_first<C>(work);
    uint4 begin = load_now(&work->run), more = load_now(&work->run.line_shift);
    const struct decode_copier copier = decode_copier_of<C>(a);
    const uint32_t line_shift = warp_uniform(more.x);
    const bool alone = warp_uniform(more.y), in_step = warp_uniform(more.z);
    struct decode_cursor at = {begin.x,    begin.y,
                               begin.z,    warp & ((1u << line_shift) - 1),
                               line_shift, decode_load(&work->run.sequence)};
    // No tile is at DECODE_NOWHERE: to look ties the reads together, else they would be one after the other,
    // the tiles' behind the count's.
    uint32_t count = warp_uniform(
        tiles.place.token != DECODE_NOWHERE ? begin.w : 0); // 0: the warp only helps to sum
    uint32_t ring = smem_address(smem) + warp * shared.RING;
    const unsigned char *copied = shared.own(warp);

    // The plan's tiles, and, between the first and the others, Q and what the warp has to sum.
    static_assert(C::STAGES <= DECODE_FIRST, "the plan finds the first tiles");
#pragma unroll 1
    for (uint32_t stage = 0; stage < C::STAGES; stage++) {
        if (stage < count) {
            uint32_t from = 32 - DECODE_FIRST + stage;
            uint32_t what = decode_fetch<C>(a, copier, tiles, from, ring + stage * C::TILE,
                                            shared.place(warp, stage));
            uint32_t q0 = __shfl_sync(ALL_LANES, tiles.place.q0, (int)from);
            if (stage > 0) {
                if (what & 1)
                    prefetch_queries<C>(a, q0, what);
            } else {
                copy_queries<C>(a, smem_address(copied), q0, what);
                if (lane < DECODE_MERGES * 2)
                    cp_async_16(
                        smem_address(shared.merge(warp)) + lane * 16,
                        reinterpret_cast<const unsigned char *>(work->run.merge) + lane * 16, true);
            }
        }
        cp_async_commit();
    }

    struct decode_lanes lanes = decode_lanes_of<C>();
    struct decode_queries<C, C::Q_SHARED> queries(shared.q(warp));
    struct decode_state<C> state;
    float before = 1, after = 1; // of tanh; k_scale is in them
    bool is_new = true, begun = false, first_segment = true;
    uint32_t stage = 0;
#pragma unroll 1
    for (uint32_t turn = 0; turn < count; turn++) {
        uint32_t bytes = ring + stage * C::TILE;
        if (first_segment) { // Q comes with the first tile
            cp_async_wait<C::STAGES - 1>();
            __syncwarp();
        }
        struct decode_place place = *shared.place(warp, stage);
        place.what = warp_uniform(place.what);
        if (is_new) {
            load_queries<C>(a, first_segment ? copied : nullptr, place.q0, place.what, queries);
            reset_state<C>(state);
            before = a.sm_scale;
            if constexpr (C::KV8)
                before *= a.k_scales ? a.k_scales[place_head(place.what)] : a.k_scale;
            if (a.soft_cap > 0) {
                before = divide_fast(before, a.soft_cap);
                after = a.soft_cap * DECODE_LOG2E;
            } else {
                before *= DECODE_LOG2E;
            }
            begun = place.what & 1;
            is_new = false;
        }
        if (!first_segment) {
            cp_async_wait<C::STAGES - 1>();
            __syncwarp();
        }

        float s[C::MT][C::NT][4];
        times_queries<C>(bytes, lanes, queries, s);
#pragma unroll
        for (int mt = 0; mt < C::MT; mt++)
#pragma unroll
            for (int nt = 0; nt < C::NT; nt++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    s[mt][nt][j] *= before;
        if (a.soft_cap > 0)
            cap_tile<C>(after, s);
        if (needs_mask<C>(a, place))
            mask_tile<C>(a, place, s);
        weigh<C>(s, state);
        add_values<C>(bytes, lanes, s, state);
        __syncwarp();

        // Warps that work on the heads of the same pages stay side by side: pages are then read whole.
        if (in_step && turn % DECODE_STEP == DECODE_STEP - 1)
            __syncthreads();
        uint32_t next = turn + C::STAGES;
        if (next < count) {
            // The plan's tiles are in the last lanes: they end with one.
            uint32_t from = (next - DECODE_FIRST) % 32;
            if (from == 0)
                decode_find<C>(a, at, count - next, tiles);
            uint32_t what =
                decode_fetch<C>(a, copier, tiles, from, bytes, shared.place(warp, stage));
            if (what & 1)
                prefetch_queries<C>(a, __shfl_sync(ALL_LANES, tiles.place.q0, (int)from), what);
        }
        cp_async_commit();
        if (place.what & 2 || turn + 1 == count) {
            end_segment<C>(a, shared, place, state, begun, first_segment, alone, line_shift > 0);
            first_segment = false;
            is_new = true;
        }
        __syncwarp();
        stage = stage + 1 == C::STAGES ? 0 : stage + 1;
    }
    const struct decode_merge *merges = count > 0 ? shared.merge(warp) : work->run.merge;
    const bool lines = C::LINES && line_shift > 0;
    merge_cut<C>(a, shared, merges, lines);
    if constexpr (C::LINES)
        if (lines)
            merge_line<C>(a, shared, merges);
}

// Instances are explicit: one file a few of them.
#define DECODE_INSTANCE(T, KV, D, NT)                                                             \
    template <>                                                                                   \
    int decode_start<T, KV, D, NT>(const struct decode_args &args, uint32_t ctas, void *stream,   \
                                   bool after_previous) {                                         \
        return start_kernel(decode_kernel<T, KV, D, NT>, dim3(ctas), dim3(DECODE_MAX_WARPS * 32), \
                            decode_smem_bytes(D, decode_is_8bit<KV>::value, NT, args.run_warps),  \
                            stream, after_previous, args);                                        \
    }

#endif
