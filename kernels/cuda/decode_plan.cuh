// SPDX-License-Identifier: Apache-2.0
// decode_plan.cuh: the arguments of the plan kernel of decode_plan.cu. Any thread.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_PLAN_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_PLAN_CUH

#include "kernels/cuda/decode_shape.cuh"

enum { DECODE_PAD = 32 }; // records that lanes may read past the last sequence

struct decode_plan_args {
    const uint32_t *index, *rows, *kv_len, *qo_indptr, *table;
    uint32_t row_entries, page_shift;
    int64_t page_stride, head_stride, token_stride; // bytes
    uint32_t n, max_q_len;
    uint32_t kv_heads, group;
    uint32_t columns; // of a block: 8 * NT
    uint32_t blocks;  // of a partial result
    uint32_t tile_tokens;
    uint32_t least_run; // tiles, where several CTAs share an item
    int32_t window_left;
    bool batch_invariant;
    uint32_t ctas, cta_warps;
    struct decode_work *works;         // [ctas * cta_warps]
    struct decode_sequence *sequences; // [n + DECODE_PAD]
    uint64_t *sums;                    // [n]
};
int decode_plan_start(const struct decode_plan_args &args, void *stream, bool after_previous);

#endif
