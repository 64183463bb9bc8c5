// SPDX-License-Identifier: Apache-2.0
// shapes.c: the tables of the GPU bench. See shapes.h.
#include "bench/gpu/shapes.h"

#include "kernels/cuda/launch.h"

#include <math.h>

// 32 query heads on 8 K/V heads of 128, pages of 16, bf16.
#define DECODE(table, name, n, len, n2, len2, seed) \
    { table, name, n, len, n2, len2, 1, 32, 8, 128, 16, CUDA_BF16, CUDA_BF16, seed }
#define BATCH(name, n, longest, qo, kv) \
    { "batches", name, n, 0, 0, longest, 1, qo, kv, 128, 16, CUDA_BF16, CUDA_BF16, 0 }
#define DRAFT(name, n, len, longest, q, qo) \
    { "draft", name, n, len, 0, longest, q, qo, 8, 128, 16, CUDA_BF16, CUDA_BF16, 0 }
#define HEADS(table, name, n, qo, kv) \
    { table, name, n, 4096, 0, 0, 1, qo, kv, 128, 16, CUDA_BF16, CUDA_BF16, 0 }
#define PAGE(name, size) \
    { "pages", name, 16, 4096, 0, 0, 1, 32, 8, 128, size, CUDA_BF16, CUDA_BF16, 0 }
#define FP8(name, n, len, kv) \
    { "fp8", name, n, len, 0, 0, 1, 32, 8, 128, 16, CUDA_BF16, kv, 0 }
#define PREFILL(name, n, q, len) \
    { "prefill", name, n, len, 0, 0, q, 32, 8, 128, 16, CUDA_BF16, CUDA_BF16, 0 }
#define APPEND(name, n, q, len) \
    { "append", name, n, len, 0, 0, q, 32, 8, 128, 16, CUDA_BF16, CUDA_BF16, 0 }
#define STEP(name, n, len) \
    { "step", name, n, len, 0, 0, 1, 32, 8, 128, 16, CUDA_BF16, CUDA_BF16, 0 }

static const struct gpu_shape shapes[] = {
    DECODE("even", "1x1024", 1, 1024, 0, 0, 10.7f),
    DECODE("even", "1x8192", 1, 8192, 0, 0, 26.7f),
    DECODE("even", "1x32768", 1, 32768, 0, 0, 60.0f),
    DECODE("even", "1x131072", 1, 131072, 0, 0, 192.3f),
    DECODE("even", "4x8192", 4, 8192, 0, 0, 53.7f),
    DECODE("even", "8x4096", 8, 4096, 0, 0, 53.0f),
    DECODE("even", "16x2048", 16, 2048, 0, 0, 53.5f),
    DECODE("even", "16x8192", 16, 8192, 0, 0, 185.0f),
    DECODE("even", "64x1024", 64, 1024, 0, 0, 106.9f),
    DECODE("even", "64x4096", 64, 4096, 0, 0, 394.3f),
    DECODE("even", "128x1024", 128, 1024, 0, 0, 186.9f),
    DECODE("even", "128x8192", 128, 8192, 0, 0, 1418.3f),
    DECODE("even", "256x2048", 256, 2048, 0, 0, 722.9f),

    DECODE("ragged", "1x65536+31x4096", 1, 65536, 31, 4096, 1175.3f),
    DECODE("ragged", "1x16384+63x128", 1, 16384, 63, 128, 1044.2f),
    DECODE("ragged", "64xlog100..32768", 64, 0, 0, 32768, 1969.3f),
    DECODE("short", "256x128", 256, 128, 0, 0, 59.8f),
    DECODE("short", "512x256", 512, 256, 0, 0, 200.7f),
    DECODE("short", "64x300", 64, 300, 0, 0, 38.3f),
    DECODE("short", "1x100", 1, 100, 0, 0, 9.6f),
    DECODE("short", "2x500", 2, 500, 0, 0, 10.8f),
    DECODE("short", "32x4096", 32, 4096, 0, 0, 184.7f),

    // Of no bar: what a server's batches are, any number of sequences, of one length or of many.
    DECODE("batches", "3x8192", 3, 8192, 0, 0, 0),
    DECODE("batches", "20x4096", 20, 4096, 0, 0, 0),
    DECODE("batches", "47x4096", 47, 4096, 0, 0, 0),
    DECODE("batches", "135x1024", 135, 1024, 0, 0, 0),
    DECODE("batches", "200x1024", 200, 1024, 0, 0, 0),
    DECODE("batches", "48xlog100..8192", 48, 0, 0, 8192, 0),
    DECODE("batches", "128xlog100..8192", 128, 0, 0, 8192, 0),
    DECODE("batches", "256xlog100..4096", 256, 0, 0, 4096, 0),

    BATCH("128xlog..8192-28/4", 128, 8192, 28, 4),
    BATCH("128xlog..8192-48/4", 128, 8192, 48, 4),
    BATCH("256xlog..4096-16/2", 256, 4096, 16, 2),

    // Of no bar: speculative decoding, several query tokens a sequence.
    DRAFT("1x4096-q4", 1, 4096, 0, 4, 32),
    DRAFT("32x4096-q4", 32, 4096, 0, 4, 32),
    DRAFT("32x4096-q8", 32, 4096, 0, 8, 32),
    DRAFT("32x4096-q4-64/8", 32, 4096, 0, 4, 64),
    DRAFT("128x1024-q4", 128, 1024, 0, 4, 32),
    DRAFT("64xlog..8192-q4", 64, 0, 8192, 4, 32),

    HEADS("heads", "40/8", 32, 40, 8),
    HEADS("heads", "28/4", 32, 28, 4),
    HEADS("heads", "48/4", 32, 48, 4),
    HEADS("heads", "64/8", 32, 64, 8),
    HEADS("heads", "8/8", 32, 8, 8),
    HEADS("heads", "32/32", 32, 32, 32),
    HEADS("heads", "8/1", 32, 8, 1),
    HEADS("heads", "32/1", 32, 32, 1),

    // The same bytes: only the group differs.
    HEADS("groups", "group5", 32, 40, 8),
    HEADS("groups", "group7", 32, 56, 8),
    HEADS("groups", "group12", 32, 96, 8),
    HEADS("groups", "group8", 32, 64, 8),

    PAGE("page8", 8),
    PAGE("page16", 16),
    PAGE("page32", 32),
    PAGE("page64", 64),
    PAGE("page128", 128),

    // 1 GiB of bf16 K and V, and the same tokens in fp8.
    FP8("bf16-64x4096", 64, 4096, CUDA_BF16),
    FP8("e4m3-64x4096", 64, 4096, CUDA_E4M3),

    PREFILL("1x2048", 1, 2048, 2048),
    PREFILL("1x8192", 1, 8192, 8192),
    PREFILL("1x32768", 1, 32768, 32768),
    PREFILL("8x2048", 8, 2048, 2048),
    PREFILL("16x1024", 16, 1024, 1024),
    PREFILL("1x2048@6144", 1, 2048, 8192),
    PREFILL("4x512@7680", 4, 512, 8192),

    APPEND("1", 1, 1, 1000),
    APPEND("64", 64, 1, 1000),
    APPEND("256", 256, 1, 1000),
    APPEND("2048", 1, 2048, 2048),
    APPEND("16384", 8, 2048, 2048),

    STEP("1x1024", 1, 1024),
    STEP("1x8192", 1, 8192),
    STEP("1x32768", 1, 32768),
    STEP("1x131072", 1, 131072),
    STEP("4x8192", 4, 8192),
    STEP("8x4096", 8, 4096),
    STEP("16x2048", 16, 2048),
    STEP("16x8192", 16, 8192),
    STEP("64x1024", 64, 1024),
};

size_t gpu_shapes(const struct gpu_shape **ret) {
    *ret = shapes;
    return sizeof(shapes) / sizeof(shapes[0]);
}

uint32_t gpu_shape_batch(const struct gpu_shape *s) {
    return s->n + s->n2;
}

void gpu_shape_lengths(const struct gpu_shape *s, uint32_t *kv_len) {
    for (uint32_t i = 0; i < s->n; i++) {
        // Neighbours in the batch are not neighbours in length: 37 is coprime to powers of two.
        double at = s->n > 1 ? (double)(i * 37 % s->n) / (s->n - 1) : 0;
        kv_len[i] =
            s->kv_len != 0 ? s->kv_len : (uint32_t)lround(100.0 * pow(s->kv_len2 / 100.0, at));
    }
    for (uint32_t i = 0; i < s->n2; i++)
        kv_len[s->n + i] = s->kv_len2;
}

static double tokens(const struct gpu_shape *s) {
    double sum = 0;
    uint32_t n = gpu_shape_batch(s);
    uint32_t lengths[1024];
    gpu_shape_lengths(s, lengths);
    for (uint32_t i = 0; i < n; i++)
        sum += lengths[i];
    return sum;
}

double gpu_shape_kv_bytes(const struct gpu_shape *s) {
    double element = s->kv_dtype == CUDA_E4M3 ? 1 : s->kv_dtype == CUDA_FP32 ? 4 : 2;
    return tokens(s) * 2 * s->kv_heads * s->head_dim * element;
}

double gpu_shape_flops(const struct gpu_shape *s) {
    // Query j of q_len sees kv_len - q_len + j + 1 tokens.
    double q = s->q_len, seen = tokens(s) * q - gpu_shape_batch(s) * (q * (q - 1) / 2);
    return 4 * seen * s->qo_heads * s->head_dim;
}
