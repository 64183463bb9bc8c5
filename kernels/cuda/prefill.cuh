// SPDX-License-Identifier: Apache-2.0
// prefill.cuh: the attention kernel for many query tokens, by mma.sync (sm_80 and up).
//
// An item (prefill_work.cuh) is a tile of ROWS packed query rows and a range of keys, walked from right
// to left in tiles of TOKENS. A tile's step, tile t in shared memory, one barrier:
//
//   wait for the copies of t | barrier | S = Q K(t), between its MMAs the copies of t - 1 start |
//   page ids of t - 2 | mask, where the tile needs it | rise | P of 16 keys, then O += P V(t) of 16
//   keys, between its MMAs P of the next 16
//
// e4m3: the copies land as bytes, every thread widens its own to fp16 after the barrier, a second
// barrier follows.
//
// Invariants
//  1. A warp has whole rows: nothing but K and V passes between warps, except in a merge.
//  2. O, S, base and sum stay in registers; S becomes the A operand of P V in place.
//  3. The order of every sum is fixed: tiles from right to left; splits in order.
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_CUH

#include "kernels/cuda/prefill_finish.cuh"
#include "kernels/cuda/prefill_load.cuh"
#include "kernels/cuda/prefill_softmax.cuh"

// Row of the tile that the lane holds in row tile m, half h.
template <class S> static __device__ __forceinline__ uint32_t prefill_lane_row(int m, int h) {
    return (threadIdx.x / 32) * (S::MT * 16) + m * 16 + h * 8 + threadIdx.x % 32 / 4;
}

// Logits that a row does not see become -infinity.
template <class S>
static __device__ __forceinline__ void prefill_mask(float (&s)[S::MT][S::TOKENS / 8][4],
                                                    const prefill_args &p, const prefill_item &r,
                                                    int tile) {
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int position = (int)r.kv_len - (int)r.q_len +
                           (int)((r.first_row + prefill_lane_row<S>(m, h)) / p.group);
            int end = p.causal ? min((int)r.kv_len, position + 1) : (int)r.kv_len;
            int begin = p.window >= 0 ? position - p.window : 0;
            int first = tile * S::TOKENS + (threadIdx.x % 4) * 2;
            end -= first;
            begin -= first;
#pragma unroll
            for (int n = 0; n < S::TOKENS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (n * 8 + e >= end || n * 8 + e < begin)
                        s[m][n][2 * h + e] = -INFINITY;
        }
}

// One thread: item i of the list.
static __device__ __forceinline__ void prefill_find(const prefill_args &p, uint32_t i,
                                                    prefill_item *ret) {
    uint32_t at = i / p.kv_heads, head = i - at * p.kv_heads;
    *(prefill_record *)ret = p.records[at];
    ret->head = head;
    float scale = p.k_scales != nullptr ? p.k_scales[head] : p.k_scale;
    float factor = p.sm_scale * scale * 1.44269504088896341f;
    ret->factor = factor == 0 ? 0x1p-126f : factor; // 0 times a masked logit would be NaN
}

// The item in shared memory. What the loop needs of it is read there: registers are O's and S's.
template <class S>
static __device__ __forceinline__ void prefill_attend(const prefill_args &p, unsigned char *smem) {
    constexpr int MT = S::MT, NT = S::TOKENS / 8, DT = S::D / 8;
    const prefill_item &r = *(const prefill_item *)(smem + S::ITEM_AT);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t shared = smem_address(smem);

    prefill_load<S> load;
    load.init(p, r, shared);
    int tile = (int)r.end - 1;
    if (tile >= (int)r.begin) { // else no barrier comes between these and what is stored over Q
        load.fetch_ids(p, r, tile);
        prefill_load<S>::q(p, r, smem);
#pragma unroll
        for (int i = 0; i < S::LOADS; i++)
            load.row_of_tile(p, tile, 0, i, r.kv_len);
    }
    cp_async_commit();
    load.fetch_ids(p, r, tile - 1);

    // Where the lane's ldmatrix rows begin. Chunk c of a row r is at (c ^ (r & 7)) * 16, and r & 7 is
    // lane & 7 in all of them.
    uint32_t q_at = shared + (warp * (MT * 16) + lane % 16) * S::PITCH;
    uint32_t q_chunk = ((lane / 16) ^ (lane & 7)) << 4;
    uint32_t k_row = ((lane & 7) + (lane / 16) * 8) * S::PITCH;
    uint32_t k_chunk = ((lane / 8 & 1) ^ (lane & 7)) << 4;
    uint32_t v_row = (lane & 15) * S::PITCH;
    uint32_t v_chunk = q_chunk;

    float o[MT][DT][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < DT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[m][n][e] = 0;
    prefill_softmax<S> softmax;
    softmax.init();

    int stage = 0;
    for (; tile >= (int)r.begin; tile--) {
        cp_async_wait<0>();
        __syncthreads();
        if constexpr (S::BYTES) {
            load.widen(smem);
            __syncthreads();
        }
        uint32_t k_at = shared + S::KV_AT + stage * 2 * S::TILE + k_row;
        uint32_t v_at = shared + S::KV_AT + stage * 2 * S::TILE + S::TILE + v_row;
        int next_stage = S::STAGES == 2 ? stage ^ 1 : 0;
        uint32_t limit = tile > (int)r.begin ? r.kv_len : 0;

        float s[MT][NT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[m][n][e] = 0;
        constexpr int KS = S::D / 16;
#pragma unroll
        for (int ks = 0; ks < KS; ks++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
                ldmatrix_x4(a[m], q_at + m * 16 * S::PITCH + (q_chunk ^ (ks * 32)));
#pragma unroll
            for (int n = 0; n < NT / 2; n++) {
                uint32_t b[4];
                ldmatrix_x4(b, k_at + n * 16 * S::PITCH + (k_chunk ^ (ks * 32)));
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16816<typename S::MMA>(s[m][2 * n], a[m], b[0], b[1]);
                    mma_16816<typename S::MMA>(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
#pragma unroll
            for (int i = ks * S::LOADS / KS; i < (ks + 1) * S::LOADS / KS; i++)
                load.row_of_tile(p, tile - 1, next_stage, i, limit);
        }
        cp_async_commit();
        load.fetch_ids(p, r, tile - 2);

        float factor = r.factor;
        if (p.soft_cap > 0) {
            softmax.cap(s, factor, p.soft_cap);
            factor = 1;
        }
        if (tile >= (int)r.whole_end || tile < (int)r.whole_begin)
            prefill_mask<S>(s, p, r, tile);
        softmax.rise(s, o, factor);

        float shift[MT][2];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            shift[m][0] = softmax.shift(m, 0);
            shift[m][1] = softmax.shift(m, 1);
        }
        // Element i of the lane's MT * 8 of 16 keys becomes a probability.
        auto power = [&](int k16, int i) {
            int m = i / 8, n = 2 * k16 + i / 4 % 2, e = i % 4;
            float x = exp2_fast(fmaf(s[m][n][e], factor, -shift[m][e / 2]));
            s[m][n][e] = x;
            softmax.sum[m][e / 2] += x;
        };
#pragma unroll
        for (int i = 0; i < MT * 8; i++)
            power(0, i);
#pragma unroll
        for (int k16 = 0; k16 < S::TOKENS / 16; k16++) {
            uint32_t a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float *x = s[m][2 * k16 + j / 2];
                    a[m][j] = pack2<typename S::MMA>(x[2 * (j % 2)], x[2 * (j % 2) + 1]);
                }
#pragma unroll
            for (int n = 0; n < DT / 2; n++) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_at + k16 * 16 * S::PITCH + (v_chunk ^ (n * 32)));
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16816<typename S::MMA>(o[m][2 * n], a[m], b[0], b[1]);
                    mma_16816<typename S::MMA>(o[m][2 * n + 1], a[m], b[2], b[3]);
                }
                if (k16 + 1 < S::TOKENS / 16) {
#pragma unroll
                    for (int i = n * MT * 8 / (DT / 2); i < (n + 1) * MT * 8 / (DT / 2); i++)
                        power(k16 + 1, i);
                }
            }
        }
        stage = next_stage;
    }
    cp_async_wait<0>();
    softmax.finish();
    if (r.splits == 1)
        prefill_store<S>(p, r, smem, o, softmax);
    else
        prefill_store_part<S>(p, r, smem, o, softmax);
}

template <class S>
static __global__ void __launch_bounds__(S::THREADS, S::CTAS)
    prefill_kernel(const __grid_constant__ prefill_args p) {
    KVPOOL_SHARED prefill_smem[];
    wait_previous_kernel();
    start_next_kernel();
    uint32_t items = p.plan->records * p.kv_heads;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        if (threadIdx.x == 0)
            prefill_find(p, item, (prefill_item *)(prefill_smem + S::ITEM_AT));
        __syncthreads();
        prefill_attend<S>(p, prefill_smem);
        __syncthreads(); // shared memory is free for the next item
    }
}

template <class S>
int prefill_start(const struct prefill_args *a, uint32_t ctas, bool after_previous, void *stream) {
    return start_kernel(prefill_kernel<S>, dim3(ctas), dim3(S::THREADS), S::SMEM, stream,
                        after_previous, *a);
}

#endif
