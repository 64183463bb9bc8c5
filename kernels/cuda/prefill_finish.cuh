// SPDX-License-Identifier: Apache-2.0
// prefill_finish.cuh: what becomes of an item's O: rows of out, or a partial result, which the CTA that
// is last of its tile's merges with the others' in order of the splits.
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_FINISH_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_FINISH_CUH

#include "kernels/cuda/prefill_softmax.cuh"

// The query row `packed` of a sequence: where it is in the tensors.
struct prefill_row {
    uint32_t token, head;
    __device__ __forceinline__ prefill_row(const prefill_args &p, const prefill_record &r,
                                           uint32_t packed) {
        uint32_t j = packed / p.group;
        token = r.q_first + j;
        head = r.head * p.group + (packed - j * p.group);
    }
    __device__ __forceinline__ unsigned char *out(const prefill_args &p) const {
        return p.out + (int64_t)token * p.out_token + (int64_t)head * p.out_head;
    }
    __device__ __forceinline__ void store_lse(const prefill_args &p, float lse) const {
        if (p.lse != nullptr)
            p.lse[(int64_t)token * p.lse_token + (int64_t)head * p.lse_head] = lse;
    }
    __device__ __forceinline__ float sink(const prefill_args &p) const {
        return p.sinks != nullptr ? p.sinks[head] * 1.44269504088896341f : -INFINITY;
    }
};

static __device__ __forceinline__ float prefill_v_scale(const prefill_args &p, uint32_t head) {
    return p.v_scales != nullptr ? p.v_scales[head] : p.v_scale;
}

// Every warp turns its rows to T where its rows of Q were, and stores them in whole chunks.
template <class S>
static __device__ __forceinline__ void
prefill_store(const prefill_args &p, const prefill_record &r, unsigned char *smem,
              const float (&o)[S::MT][S::D / 8][4], const prefill_softmax<S> &softmax) {
    uint32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * (S::MT * 16);
    uint32_t rows = r.q_len * p.group;
    float v_scale = prefill_v_scale(p, r.head);
    __syncwarp(); // the warp's reads of Q are done
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t at = warp_row + m * 16 + h * 8 + lane / 4, packed = r.first_row + at;
            float scale = 0, lse;
            if (packed < rows) {
                prefill_row row(p, r, packed);
                scale = prefill_row_scale(softmax.base[m][h], softmax.sum[m][h], row.sink(p), &lse);
                scale *= v_scale;
                if (lane % 4 == 0)
                    row.store_lse(p, lse);
            }
#pragma unroll
            for (int n = 0; n < S::D / 8; n++)
                *(uint32_t *)(smem + at * S::PITCH + ((n ^ (at & 7)) << 4) + lane % 4 * 4) =
                    pack2<typename S::T>(o[m][n][2 * h] * scale, o[m][n][2 * h + 1] * scale);
        }
    __syncwarp();
    constexpr int CHUNKS = S::D / 8;
#pragma unroll 4
    for (uint32_t i = lane; i < S::MT * 16 * CHUNKS; i += 32) {
        uint32_t at = warp_row + i / CHUNKS, chunk = i % CHUNKS, packed = r.first_row + at;
        if (packed < rows)
            *(uint4 *)(prefill_row(p, r, packed).out(p) + chunk * 16) =
                *(const uint4 *)(smem + at * S::PITCH + ((chunk ^ (at & 7)) << 4));
    }
}

// All threads: the tile's partial results to rows of out.
template <class S>
static __device__ __forceinline__ void prefill_merge(const prefill_args &p, const prefill_record &r,
                                                     size_t slot) {
    constexpr int LANES = S::D / 4; // threads of a row, 4 elements each
    size_t apart = (size_t)p.kv_heads * p.slot_rows; // rows from a split to the next
    uint32_t rows = min((uint32_t)S::ROWS, r.q_len * p.group - r.first_row);
    float v_scale = prefill_v_scale(p, r.head);
    for (uint32_t at = threadIdx.x / LANES; at < rows; at += S::THREADS / LANES) {
        const float2 *sums = p.sums + slot * p.slot_rows + at;
        const float *part = p.partial + (slot * p.slot_rows + at) * S::D + threadIdx.x % LANES * 4;
        float base = -INFINITY, sum = 0;
        for (uint32_t i = 0; i < r.splits; i++)
            base = fmaxf(base, sums[i * apart].x);
        float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (uint32_t i = 0; i < r.splits; i++) {
            float2 one = sums[i * apart];
            float4 x = *(const float4 *)(part + i * apart * S::D);
            float weight = one.x == base ? 1.0f : exp2_fast(one.x - base);
            sum += one.y * weight;
            o.x += x.x * weight;
            o.y += x.y * weight;
            o.z += x.z * weight;
            o.w += x.w * weight;
        }
        prefill_row row(p, r, r.first_row + at);
        float lse, scale = prefill_row_scale(base, sum, row.sink(p), &lse) * v_scale;
        uint2 packed = make_uint2(pack2<typename S::T>(o.x * scale, o.y * scale),
                                  pack2<typename S::T>(o.z * scale, o.w * scale));
        *(uint2 *)(row.out(p) + threadIdx.x % LANES * 8) = packed;
        if (threadIdx.x % LANES == 0)
            row.store_lse(p, lse);
    }
}

template <class S>
static __device__ __forceinline__ void
prefill_store_part(const prefill_args &p, const prefill_record &r, unsigned char *smem, const float (&o)[S::MT][S::D / 8][4],
                   const prefill_softmax<S> &softmax) {
    uint32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * (S::MT * 16);
    uint32_t rows = r.q_len * p.group;
    size_t slot = (size_t)r.slot * p.kv_heads + r.head;
    size_t mine = slot + (size_t)r.split * p.kv_heads;
#pragma unroll
    for (int m = 0; m < S::MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t at = warp_row + m * 16 + h * 8 + lane / 4;
            if (r.first_row + at >= rows)
                continue;
            float *to = p.partial + (mine * p.slot_rows + at) * S::D + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < S::D / 8; n++)
                *(float2 *)(to + n * 8) = make_float2(o[m][n][2 * h], o[m][n][2 * h + 1]);
            if (lane % 4 == 0)
                p.sums[mine * p.slot_rows + at] =
                    make_float2(softmax.base[m][h], softmax.sum[m][h]);
        }
    __threadfence();
    __syncthreads();
    uint32_t *word = (uint32_t *)(smem + S::WORD_AT);
    if (threadIdx.x == 0)
        *word = atomic_inc_acq_rel(p.counters + slot, r.splits - 1);
    __syncthreads();
    if (*word == r.splits - 1)
        prefill_merge<S>(p, r, slot);
}

#endif
