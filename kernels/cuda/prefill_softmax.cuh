// SPDX-License-Identifier: Apache-2.0
// prefill_softmax.cuh: the online softmax of a warp's MT * 16 rows, on the fragments of S.
//
// Lane t holds of row tile m the rows t / 4 and t / 4 + 8 (half 0 and 1), columns 2 * (t % 4), + 1 of
// every 8. Logits are in units of ln 2 once multiplied by `factor`.
//
//   p = 2^(s * factor - base)     sum = sum of p     O = sum of p * V
//
// Invariants
//  1. Lanes of a row have one `base`; `sum` is the lane's own part until the end.
//  2. base is -infinity while a row has seen nothing, else a logit that it has seen, and no later one
//     is more than SLACK above it: what comes out does not depend on which, but for rounding, and O is
//     rescaled only when a logit outgrows it.
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_SOFTMAX_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_SOFTMAX_CUH

#include "kernels/cuda/prefill_shape.cuh"

template <class S> struct prefill_softmax {
    static constexpr float SLACK = 8.0f; // p <= 2^8
    static constexpr int NT = S::TOKENS / 8, DT = S::D / 8;

    float base[S::MT][2], sum[S::MT][2];

    __device__ __forceinline__ void init() {
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                base[m][h] = -INFINITY;
                sum[m][h] = 0;
            }
    }

    // s becomes cap * tanh(logit / cap) in units of ln 2, the logit being s * factor in those units:
    // tanh(y) = 1 - 2 / (e^2y + 1).
    static __device__ __forceinline__ void cap(float (&s)[S::MT][NT][4], float factor, float cap) {
        float in = __fdividef(2 * factor, cap), out = cap * 1.44269504088896341f;
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[m][n][e] =
                        out - __fdividef(2 * out, exp2_fast(fminf(s[m][n][e] * in, 126.0f)) + 1);
    }

    // Takes in the tile's logits: afterwards no s * factor - base is above SLACK.
    __device__ __forceinline__ void rise(const float (&s)[S::MT][NT][4], float (&o)[S::MT][DT][4],
                                         float factor) {
        float most[S::MT][2];
        bool outgrown = false;
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
                for (int n = 1; n < NT; n++)
                    x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                most[m][h] = x * factor;
                outgrown |= most[m][h] > base[m][h] + SLACK;
            }
        if (!__any_sync(0xffffffffu, outgrown))
            return;
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = most[m][h];
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
                x = fmaxf(x, base[m][h]);
                float alpha = x == -INFINITY ? 1.0f : exp2_fast(base[m][h] - x);
                base[m][h] = x;
                sum[m][h] *= alpha;
#pragma unroll
                for (int n = 0; n < DT; n++) {
                    o[m][n][2 * h] *= alpha;
                    o[m][n][2 * h + 1] *= alpha;
                }
            }
    }

    __device__ __forceinline__ float shift(int m, int h) const {
        return base[m][h] == -INFINITY ? 0.0f : base[m][h];
    }

    // The sums of whole rows, in all their lanes.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int m = 0; m < S::MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 1);
                sum[m][h] += __shfl_xor_sync(0xffffffffu, sum[m][h], 2);
            }
    }
};

// A row's factor of O and its lse. sink: a logit more without a value, in units of ln 2; -infinity: none.
static __device__ __forceinline__ float prefill_row_scale(float base, float sum, float sink,
                                                          float *ret_lse) {
    float top = fmaxf(base, sink);
    if (top == -INFINITY && sum == 0) { // a NaN sum stays
        *ret_lse = -INFINITY;
        return 0;
    }
    float down = base == top ? 1.0f : exp2_fast(base - top);
    float all = sum * down + (sink == -INFINITY ? 0.0f : exp2_fast(sink - top));
    *ret_lse = (top + log2f(all)) * 0.69314718055994531f;
    return down / all;
}

#endif
