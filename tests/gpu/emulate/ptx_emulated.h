// SPDX-License-Identifier: Apache-2.0
// ptx_emulated.h: the functions of kernels/cuda/ptx.cuh on the emulator. Included by ptx.cuh alone.
#ifndef KVPOOL_TESTS_GPU_EMULATE_PTX_EMULATED_H
#define KVPOOL_TESTS_GPU_EMULATE_PTX_EMULATED_H

#include "tests/gpu/emulate/vocabulary.h"

static inline uint32_t smem_address(const void *p) {
    return emu_smem_address(p);
}

static inline void cp_async_16(uint32_t dst, const void *src, bool valid) {
    emu_cp_async_16(dst, src, valid);
}
static inline void cp_async_commit() {
    emu_cp_async_commit();
}
template <int N> static inline void cp_async_wait() {
    emu_cp_async_wait(N);
}

static inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    emu_ldmatrix_x4(r, address, false);
}
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
    emu_ldmatrix_x4(r, address, true);
}
static inline uint32_t movmatrix_trans(uint32_t a) {
    return emu_movmatrix(a);
}
template <class T>
static inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    static_assert(std::is_same_v<T, fp16> || std::is_same_v<T, bf16>, "fp16 or bf16");
    emu_mma_16816(std::is_same_v<T, bf16>, d, a, b0, b1);
}

static inline float divide_fast(float x, float y) {
    return x / y;
}
static inline uint4 load_now(const void *p) {
    return *(const uint4 *)p;
}
static inline uint32_t load_word(const uint32_t *p) {
    return *p;
}
static inline void prefetch_l2(const void *) {}
static inline float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y; // NaN stays
}
template <class T> static inline uint32_t pack2(float low, float high) {
    if constexpr (std::is_same_v<T, fp16>)
        return (uint32_t)emu_fp32_to_fp16(low) | (uint32_t)emu_fp32_to_fp16(high) << 16;
    else
        return (uint32_t)emu_fp32_to_bf16(low) | (uint32_t)emu_fp32_to_bf16(high) << 16;
}
template <class T> static inline float2 unpack2(uint32_t x) {
    if constexpr (std::is_same_v<T, fp16>)
        return make_float2(emu_fp16_to_fp32((uint16_t)x), emu_fp16_to_fp32((uint16_t)(x >> 16)));
    else
        return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}
static inline uint32_t e4m3x2_to_fp16x2(uint32_t x) {
    return pack2<fp16>(emu_e4m3_to_fp32((uint8_t)x), emu_e4m3_to_fp32((uint8_t)(x >> 8)));
}
static inline uint32_t pack2_e4m3(float low, float high) {
    return (uint32_t)emu_fp32_to_e4m3(low) | (uint32_t)emu_fp32_to_e4m3(high) << 8;
}

static inline uint32_t atomic_inc_acq_rel(uint32_t *p, uint32_t limit) {
    return atomicInc(p, limit);
}
static inline void store_posted(void *p, uint4 x) {
    *(uint4 *)p = x;
}
static inline uint4 load_posted(const void *p) {
    emu_yield();
    return *(const uint4 *)p;
}
static inline void wait_previous_kernel() {}
static inline void start_next_kernel() {}

#endif
