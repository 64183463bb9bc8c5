// SPDX-License-Identifier: Apache-2.0
// replay_kv.c: see replay_kv.h.
#include "client/cmd/replay_kv.h"

#include "client/cmd/format.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 0.02 // of a mean of numbers below 2, in fp16 or bf16

static uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

size_t replay_kv_bytes(const kvpool_pool_info *pool) {
    return (size_t)pool->kv_heads * pool->head_dim * dtype_bytes(pool->dtype);
}

// Eight bytes of elements at `at` of a token's K or V: sign and mantissa from the hash, the exponent
// that of 0.5 or 1.
static uint64_t word(uint32_t dtype, uint32_t token, uint32_t layer, bool is_v, size_t at) {
    uint64_t x = mix((uint64_t)token << 32 | layer << 20 | at);
    x = is_v ? mix(x) : x;
    switch (dtype) {
    case KVPOOL_FP16:
        return (x & 0xbfffbfffbfffbfffu) | 0x3800380038003800u;
    case KVPOOL_BF16:
        return (x & 0xbfffbfffbfffbfffu) | 0x3f003f003f003f00u;
    default:
        return (x & 0xbfffffffbfffffffu) | 0x3f0000003f000000u;
    }
}

void replay_kv_fill(const kvpool_pool_info *pool, uint32_t token, uint32_t layer, void *k,
                    void *v) {
    const size_t bytes = replay_kv_bytes(pool); // a multiple of 16: head_dim is one of 8
    for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
        uint64_t words[2] = {word(pool->dtype, token, layer, false, at),
                             word(pool->dtype, token, layer, true, at)};
        memcpy((char *)k + at, &words[0], sizeof(words[0]));
        memcpy((char *)v + at, &words[1], sizeof(words[1]));
    }
}

// A number of 1 + exponent + mantissa bits.
static double decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (int)(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    double value = exponent == 0
                       ? ldexp(mantissa, 1 - bias - mantissa_bits)
                       : ldexp(mantissa | 1u << mantissa_bits, exponent - bias - mantissa_bits);
    return (bits >> (exponent_bits + mantissa_bits) & 1) != 0 ? -value : value;
}

// Element i of an array of the pool's type.
static double element(uint32_t dtype, const void *array, size_t i) {
    uint16_t half = 0;
    float single = 0;
    if (dtype == KVPOOL_FP32) {
        memcpy(&single, (const char *)array + i * sizeof(single), sizeof(single));
        return (double)single;
    }
    memcpy(&half, (const char *)array + i * sizeof(half), sizeof(half));
    return dtype == KVPOOL_FP16 ? decode(half, 5, 10) : decode(half, 8, 7);
}

void replay_kv_query(const kvpool_pool_info *pool, void *q) {
    const uint16_t half = pool->dtype == KVPOOL_FP16 ? 0x3C00 : 0x3F80;
    const float single = 1;
    const bool is_single = pool->dtype == KVPOOL_FP32;
    const size_t size = dtype_bytes(pool->dtype);
    for (size_t i = 0; i < (size_t)pool->kv_heads * pool->head_dim; i++) {
        memcpy((char *)q + i * size, is_single ? (const void *)&single : (const void *)&half, size);
    }
}

bool replay_kv_check(const kvpool_pool_info *pool, const uint32_t *tokens, uint32_t n,
                     uint32_t layer, const void *out) {
    const size_t dim = pool->head_dim;
    const size_t bytes = replay_kv_bytes(pool);
    char *kv = cmd_realloc(NULL, 2 * bytes);
    double *sum = cmd_realloc(NULL, dim * pool->kv_heads * sizeof(sum[0]));
    double *weights = cmd_realloc(NULL, pool->kv_heads * sizeof(weights[0]));
    bool right = true;
    memset(sum, 0, dim * pool->kv_heads * sizeof(sum[0]));
    memset(weights, 0, pool->kv_heads * sizeof(weights[0]));
    for (uint32_t t = 0; t < n;
         t++) { // logits are below 2 sqrt(head_dim) = 48: exp needs no maximum
        replay_kv_fill(pool, tokens[t], layer, kv, kv + bytes);
        for (uint32_t h = 0; h < pool->kv_heads; h++) {
            double logit = 0;
            for (size_t d = 0; d < dim; d++) {
                logit += element(pool->dtype, kv, h * dim + d);
            }
            double weight = exp(logit / sqrt((double)dim));
            weights[h] += weight;
            for (size_t d = 0; d < dim; d++) {
                sum[h * dim + d] += weight * element(pool->dtype, kv + bytes, h * dim + d);
            }
        }
    }
    for (uint32_t h = 0; h < pool->kv_heads; h++) {
        for (size_t i = h * dim; i < (h + 1) * dim; i++) {
            double difference = weights[h] * element(pool->dtype, out, i) - sum[i];
            right = right && fabs(difference) < weights[h] * TOLERANCE; // false for NaN
        }
    }
    free(weights);
    free(sum);
    free(kv);
    return right;
}
