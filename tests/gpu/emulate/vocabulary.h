// SPDX-License-Identifier: Apache-2.0
// vocabulary.h: CUDA C's keywords, built-in variables, vector types and functions for a C++ compiler,
// as far as kernels here use them. Semantics are CUDA's; collectives and atomics are the emulator's.
// Kernels include it by ptx.cuh or start.cuh.
#ifndef KVPOOL_TESTS_GPU_EMULATE_VOCABULARY_H
#define KVPOOL_TESTS_GPU_EMULATE_VOCABULARY_H

// The standard's headers come before the keywords: some of them have attributes of these names.
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"
#include "tests/gpu/emulate/emulator.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Static shared arrays: those of the running block; not in templates (use KVPOOL_SHARED there).
#define __shared__ static __attribute__((section("emu_shared")))
#define KVPOOL_SHARED extern unsigned char

#define threadIdx (emu_at->thread)
#define blockIdx (emu_at->block)
#define blockDim (emu_at->block_dim)
#define gridDim (emu_at->grid_dim)

// --- vectors ----------------------------------------------------------------------------------------
#define EMU_VECTOR(name, type, size2, size4)                               \
    struct __attribute__((aligned(size2))) name##2 {                       \
        type x, y;                                                         \
    };                                                                     \
    struct __attribute__((aligned(size4))) name##4 {                       \
        type x, y, z, w;                                                   \
    };                                                                     \
    static inline name##2 make_##name##2(type x, type y) {                 \
        return name##2 {x, y};                                             \
    }                                                                      \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { \
        return name##4 {x, y, z, w};                                       \
    }
EMU_VECTOR(uint, unsigned, 8, 16)
EMU_VECTOR(float, float, 8, 16)
#undef EMU_VECTOR

// --- bits -------------------------------------------------------------------------------------------
template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) {
    return emu_bits<unsigned>(x);
}
static inline float __uint_as_float(unsigned x) {
    return emu_bits<float>(x);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline int __clz(int x) {
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
static inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((unsigned long long)x * y >> 32);
}

// --- numbers ----------------------------------------------------------------------------------------
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return (T)fmin((T)a, (T)b);
    else
        return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return (T)fmax((T)a, (T)b);
    else
        return (T)a > (T)b ? (T)a : (T)b;
}
static inline float __fdividef(float x, float y) {
    return x / y;
}
static inline float __fdiv_rn(float x, float y) {
    return x / y;
}

// --- memory -----------------------------------------------------------------------------------------
template <class T> static inline T emu_load(const T *p) {
    if ((uintptr_t)p % alignof(T) != 0)
        emu_die("load of %zu bytes from misaligned %p", sizeof(T), (const void *)p);
    return *p;
}
template <class T> static inline T __ldg(const T *p) {
    return emu_load(p);
}
template <class T> static inline T __ldcg(const T *p) {
    return emu_load(p);
}
static inline void __threadfence() {
    emu_yield();
}

template <class T, class F> static inline T emu_atomic(T *p, F next) {
    emu_yield();
    T old = emu_load(p);
    *p = next(old);
    return old;
}
template <class T> using emu_same = std::common_type_t<T>; // not deduced
template <class T> static inline T atomicAdd(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old + x); });
}
template <class T> static inline T atomicMax(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return x > old ? x : old; });
}
template <class T> static inline T atomicXor(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old ^ x); });
}
static inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return emu_atomic(p, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// --- collectives ------------------------------------------------------------------------------------
template <class T>
static inline T emu_shfl_any(emu_shuffle how, unsigned mask, T value, unsigned by, int width) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    uint64_t raw = 0;
    memcpy(&raw, &value, sizeof value);
    raw = emu_shfl(how, mask, raw, by, (uint32_t)width);
    memcpy(&value, &raw, sizeof value);
    return value;
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int lane, int width = 32) {
    return emu_shfl_any(EMU_SHFL, m, v, (unsigned)lane, width);
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned by, int width = 32) {
    return emu_shfl_any(EMU_SHFL_UP, m, v, by, width);
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned by, int width = 32) {
    return emu_shfl_any(EMU_SHFL_DOWN, m, v, by, width);
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int by, int width = 32) {
    return emu_shfl_any(EMU_SHFL_XOR, m, v, (unsigned)by, width);
}
static inline unsigned __ballot_sync(unsigned m, int p) {
    return emu_ballot(m, p != 0);
}
static inline int __any_sync(unsigned m, int p) {
    return emu_ballot(m, p != 0) != 0;
}
static inline int __all_sync(unsigned m, int p) {
    return emu_ballot(m, p != 0) == m;
}
static inline unsigned __activemask() {
    return emu_activemask();
}
static inline void __syncwarp(unsigned m = 0xffffffffu) {
    emu_syncwarp(m);
}
template <class T> static inline unsigned __match_any_sync(unsigned m, T v) {
    uint64_t raw = 0;
    memcpy(&raw, &v, sizeof v);
    return emu_match_any(m, raw);
}
static inline unsigned __reduce_add_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_ADD, false, m, v);
}
static inline int __reduce_add_sync(unsigned m, int v) {
    return (int)emu_reduce(EMU_ADD, true, m, (unsigned)v);
}
static inline unsigned __reduce_min_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_MIN, false, m, v);
}
static inline int __reduce_min_sync(unsigned m, int v) {
    return (int)emu_reduce(EMU_MIN, true, m, (unsigned)v);
}
static inline unsigned __reduce_max_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_MAX, false, m, v);
}
static inline int __reduce_max_sync(unsigned m, int v) {
    return (int)emu_reduce(EMU_MAX, true, m, (unsigned)v);
}
static inline unsigned __reduce_and_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_AND, false, m, v);
}
static inline unsigned __reduce_or_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_OR, false, m, v);
}
static inline unsigned __reduce_xor_sync(unsigned m, unsigned v) {
    return emu_reduce(EMU_XOR, false, m, v);
}
static inline void __syncthreads() {
    emu_barrier(0, 0, true);
}
static inline int __syncthreads_count(int p) {
    return (int)emu_barrier_count(p != 0);
}

#endif
