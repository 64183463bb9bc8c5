// SPDX-License-Identifier: Apache-2.0
// dtype.c: see dtype.h.
#include "kernels/dtype.h"

float dtype_e4m3_to_fp32(uint8_t e) {
    uint32_t sign = (uint32_t)(e & 0x80u) << 24;
    uint32_t exponent = e >> 3 & 0xfu;
    uint32_t mantissa = e & 7u;
    if ((e & 0x7fu) == 0x7fu)
        return dtype_from_bits(sign | 0x7fc00000u);
    if (exponent != 0)
        return dtype_from_bits(sign | (exponent + 120) << 23 | mantissa << 20);
    float magnitude = (float)mantissa * 0x1p-9f; // exact: zero or denormal
    return dtype_from_bits(sign | dtype_to_bits(magnitude));
}

float dtype_fp16_to_fp32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) { // infinity; NaN made quiet
        uint32_t quiet = mantissa != 0 ? 0x400000u : 0;
        return dtype_from_bits(sign | 0x7f800000u | quiet | mantissa << 13);
    }
    if (exponent != 0)
        return dtype_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f; // exact: zero or denormal
    return dtype_from_bits(sign | dtype_to_bits(magnitude));
}

uint16_t dtype_fp32_to_fp16(float x) {
    uint32_t bits = dtype_to_bits(x);
    uint32_t sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) // NaN
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) // rounds to 2^16 or more
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude >= 0x38800000u) { // normal: rebias, round on the 13 dropped bits
        uint32_t rounded = magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u);
        return (uint16_t)(sign | rounded >> 13);
    }
    if (magnitude < 0x33000000u) // below half the smallest denormal
        return (uint16_t)sign;
    uint32_t shift = 126u - (magnitude >> 23); // 14..24 bits are dropped
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    uint32_t kept = mantissa >> shift;
    uint32_t dropped = mantissa & ((1u << shift) - 1u);
    uint32_t half = 1u << (shift - 1);
    if (dropped > half || (dropped == half && (kept & 1u) != 0))
        kept++;
    return (uint16_t)(sign | kept);
}

float dtype_load(kvpool_dtype dtype, const void *array, size_t i) {
    const char *at = array;
    uint16_t half;
    float x;
    if (dtype == KVPOOL_FP32) {
        memcpy(&x, at + i * 4, 4);
        return x;
    }
    if (dtype == KVPOOL_FP8_E4M3)
        return dtype_e4m3_to_fp32((uint8_t)at[i]);
    memcpy(&half, at + i * 2, 2);
    return dtype == KVPOOL_FP16 ? dtype_fp16_to_fp32(half) : dtype_bf16_to_fp32(half);
}

void dtype_store(kvpool_dtype dtype, void *array, size_t i, float x) {
    char *at = array;
    if (dtype == KVPOOL_FP32) {
        memcpy(at + i * 4, &x, 4);
        return;
    }
    if (dtype == KVPOOL_FP8_E4M3) {
        at[i] = (char)dtype_fp32_to_e4m3(x);
        return;
    }
    uint16_t half = dtype == KVPOOL_FP16 ? dtype_fp32_to_fp16(x) : dtype_fp32_to_bf16(x);
    memcpy(at + i * 2, &half, 2);
}
