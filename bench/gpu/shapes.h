// SPDX-License-Identifier: Apache-2.0
// shapes.h: what the GPU bench measures, in one place for the native tool and the Python one.
//
// Invariants
//  1. A shape is `n` sequences of kv_len tokens and, where n2 > 0, n2 more of kv_len2. kv_len 0:
//     lengths spread evenly in the logarithm over 100 .. kv_len2 (n2 is then 0).
//  2. kv_len counts the new tokens: q_len of each sequence.
//  3. Names and tables are unique words for JSON and for --only.
// Any thread.
#ifndef KVPOOL_BENCH_GPU_SHAPES_H
#define KVPOOL_BENCH_GPU_SHAPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpu_shape {
    // "even", "ragged", "short", "batches", "draft", "heads", "groups", "pages", "fp8", "prefill", "append", "step"
    const char *table;
    const char *name;
    uint32_t n, kv_len, n2, kv_len2;
    uint32_t q_len;
    uint32_t qo_heads, kv_heads, head_dim, page_size;
    uint32_t dtype, kv_dtype; // CUDA_*
    float seed_us;            // the published two-stage Triton kernel on an H100, 0: none
};

// The shapes in order of measurement; returns their number.
size_t gpu_shapes(const struct gpu_shape **ret);
// Sequences of the shape; their lengths, kv_len[gpu_shape_batch()].
uint32_t gpu_shape_batch(const struct gpu_shape *s);
void gpu_shape_lengths(const struct gpu_shape *s, uint32_t *kv_len);
// Bytes of K and V that attention over the shape reads; floating-point operations of causal
// attention (2 products, 2 each).
double gpu_shape_kv_bytes(const struct gpu_shape *s);
double gpu_shape_flops(const struct gpu_shape *s);

#ifdef __cplusplus
}
#endif
#endif
