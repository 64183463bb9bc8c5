// SPDX-License-Identifier: Apache-2.0
// dtype.h: fp16 and bf16 to and from fp32, one element at a time.
//
// Invariants
//  1. Widening is exact; narrowing rounds to nearest, ties to even; overflow gives infinity.
//  2. Denormals are kept in both directions. A NaN stays a NaN (quiet, sign and upper payload
//     kept).
// Any thread; no state.
#ifndef KVPOOL_KERNELS_DTYPE_H
#define KVPOOL_KERNELS_DTYPE_H

#include <kvpool/kvpool.h>
#include <string.h>

static inline float dtype_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint32_t dtype_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float dtype_bf16_to_fp32(uint16_t h) {
    return dtype_from_bits((uint32_t)h << 16);
}

static inline uint16_t dtype_fp32_to_bf16(float x) {
    uint32_t bits = dtype_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float dtype_fp16_to_fp32(uint16_t h);
uint16_t dtype_fp32_to_fp16(float x);

// Element i of an array of `dtype`.
float dtype_load(kvpool_dtype dtype, const void *array, size_t i);
void dtype_store(kvpool_dtype dtype, void *array, size_t i, float x);

#endif
