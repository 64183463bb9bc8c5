// SPDX-License-Identifier: Apache-2.0
// dtype.h: fp16, bf16 and fp8 e4m3 to and from fp32, one element at a time.
//
// e4m3 is S.EEEE.MMM with bias 7: 2^-9 .. 2^-6 denormal, at most 448, no infinity; S.1111.111 is NaN.
//
// Invariants
//  1. Widening is exact; narrowing rounds to nearest, ties to even; overflow gives infinity, in
//     e4m3 +-448 (of an infinity as well).
//  2. Denormals are kept in both directions. A NaN stays a NaN (quiet, sign and upper payload kept;
//     in e4m3 all are 0x7f).
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

// Without branches, so that loops over it become vector code.
static inline uint8_t dtype_fp32_to_e4m3(float x) {
    uint32_t bits = dtype_to_bits(x);
    uint32_t sign = bits >> 24 & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t limited = magnitude < 0x43e00000u ? magnitude : 0x43e00000u; // 448
    // Normal: rebias, round on the 20 dropped bits.
    uint32_t normal = (limited - (120u << 23) + 0x7ffffu + (limited >> 20 & 1u)) >> 20;
    // Below 2^-6: a sum with 2^14, whose last bit is worth 2^-9, is rounded to that.
    uint32_t small = dtype_to_bits(dtype_from_bits(limited) + 0x1p14f) - 0x46800000u;
    uint32_t code = sign | (limited < 0x3c800000u ? small : normal);
    return (uint8_t)(magnitude > 0x7f800000u ? 0x7fu : code);
}

float dtype_e4m3_to_fp32(uint8_t e);
float dtype_fp16_to_fp32(uint16_t h);
uint16_t dtype_fp32_to_fp16(float x);

// Element i of an array of `dtype`.
float dtype_load(kvpool_dtype dtype, const void *array, size_t i);
void dtype_store(kvpool_dtype dtype, void *array, size_t i, float x);

#endif
