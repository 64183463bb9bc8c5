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
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Static shared arrays: those of the running block; not in templates (use KVPOOL_SHARED there).
#define __shared__ static __attribute__((section("emu_shared")))
#define KVPOOL_SHARED extern unsigned char

#define threadIdx (emu_at->thread)
#define blockIdx (emu_at->block)
#define blockDim (emu_at->block_dim)
#define gridDim (emu_at->grid_dim)
#define warpSize 32

// --- vectors ----------------------------------------------------------------------------------------
#define EMU_VECTOR(name, type, size2, size4)                                                       \
    struct __attribute__((aligned(size2))) name##2 { type x, y; };                                 \
    struct __attribute__((aligned(size4))) name##4 { type x, y, z, w; };                           \
    static inline name##2 make_##name##2(type x, type y) { return name##2{x, y}; }                 \
    static inline name##4 make_##name##4(type x, type y, type z, type w) {                         \
        return name##4{x, y, z, w};                                                                \
    }
EMU_VECTOR(uchar, unsigned char, 2, 4)
EMU_VECTOR(ushort, unsigned short, 4, 8)
EMU_VECTOR(short, short, 4, 8)
EMU_VECTOR(int, int, 8, 16)
EMU_VECTOR(uint, unsigned, 8, 16)
EMU_VECTOR(float, float, 8, 16)
EMU_VECTOR(longlong, long long, 16, 16)
EMU_VECTOR(ulonglong, unsigned long long, 16, 16)
#undef EMU_VECTOR
struct float3 { float x, y, z; };
static inline float3 make_float3(float x, float y, float z) { return float3{x, y, z}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return uint3{x, y, z}; }

// --- bits -------------------------------------------------------------------------------------------
template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = s >> 4 * i & 0xfu;
        unsigned byte = (unsigned)(both >> 8 * (pick & 7u)) & 0xffu;
        if (pick & 8u)
            byte = byte & 0x80u ? 0xffu : 0;
        r |= byte << 8 * i;
    }
    return r;
}
static inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((unsigned long long)x * y >> 32);
}
static inline int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (by & 31u) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31u));
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
// The C library has functions of these names.
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline int __float2int_rn(float x) { return (int)lrintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

struct __half { uint16_t bits; };
struct __attribute__((aligned(4))) __half2 { __half x, y; };
struct __nv_bfloat16 { uint16_t bits; };
struct __attribute__((aligned(4))) __nv_bfloat162 { __nv_bfloat16 x, y; };
typedef __half half;
typedef __half2 half2;
static inline float __half2float(__half h) { return emu_fp16_to_fp32(h.bits); }
static inline __half __float2half_rn(float x) { return __half{emu_fp32_to_fp16(x)}; }
static inline __half __float2half(float x) { return __float2half_rn(x); }
static inline __half __ushort_as_half(unsigned short x) { return __half{x}; }
static inline unsigned short __half_as_ushort(__half h) { return h.bits; }
static inline __half __low2half(__half2 h) { return h.x; }
static inline __half __high2half(__half2 h) { return h.y; }
static inline __half2 __halves2half2(__half x, __half y) { return __half2{x, y}; }
static inline float2 __half22float2(__half2 h) {
    return make_float2(__half2float(h.x), __half2float(h.y));
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return __half2{__float2half_rn(x), __float2half_rn(y)};
}
static inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
static inline __half2 __hmul2(__half2 a, __half2 b) {
    return __floats2half2_rn(__half2float(a.x) * __half2float(b.x),
                             __half2float(a.y) * __half2float(b.y));
}
static inline float __bfloat162float(__nv_bfloat16 h) {
    return __uint_as_float((unsigned)h.bits << 16);
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return __nv_bfloat16{emu_fp32_to_bf16(x)};
}
static inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16{x}; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }

// --- memory -----------------------------------------------------------------------------------------
template <class T> static inline T emu_load(const T *p) {
    if ((uintptr_t)p % alignof(T) != 0)
        emu_die("load of %zu bytes from misaligned %p", sizeof(T), (const void *)p);
    return *p;
}
template <class T> static inline void emu_store(T *p, T x) {
    if ((uintptr_t)p % alignof(T) != 0)
        emu_die("store of %zu bytes to misaligned %p", sizeof(T), (const void *)p);
    *p = x;
}
template <class T> static inline T __ldg(const T *p) { return emu_load(p); }
template <class T> static inline T __ldca(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcg(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcs(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcv(const T *p) { return emu_load(p); }
template <class T> static inline T __ldlu(const T *p) { return emu_load(p); }
template <class T> static inline void __stcg(T *p, std::common_type_t<T> x) { emu_store(p, x); }
template <class T> static inline void __stcs(T *p, std::common_type_t<T> x) { emu_store(p, x); }
template <class T> static inline void __stwb(T *p, std::common_type_t<T> x) { emu_store(p, x); }
template <class T> static inline void __stwt(T *p, std::common_type_t<T> x) { emu_store(p, x); }
static inline void __threadfence() { emu_yield(); }
static inline void __threadfence_block() { emu_yield(); }
static inline void __threadfence_system() { emu_yield(); }

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
template <class T> static inline T atomicSub(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old - x); });
}
template <class T> static inline T atomicExch(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T) { return x; });
}
template <class T> static inline T atomicMin(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return x < old ? x : old; });
}
template <class T> static inline T atomicMax(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return x > old ? x : old; });
}
template <class T> static inline T atomicAnd(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old & x); });
}
template <class T> static inline T atomicOr(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old | x); });
}
template <class T> static inline T atomicXor(T *p, emu_same<T> x) {
    return emu_atomic(p, [x](T old) { return (T)(old ^ x); });
}
template <class T> static inline T atomicCAS(T *p, emu_same<T> expected, emu_same<T> x) {
    return emu_atomic(p, [=](T old) { return old == expected ? x : old; });
}
static inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return emu_atomic(p, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}
static inline unsigned atomicDec(unsigned *p, unsigned limit) {
    return emu_atomic(p, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
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
static inline unsigned __ballot_sync(unsigned m, int p) { return emu_ballot(m, p != 0); }
static inline int __any_sync(unsigned m, int p) { return emu_ballot(m, p != 0) != 0; }
static inline int __all_sync(unsigned m, int p) { return emu_ballot(m, p != 0) == m; }
static inline unsigned __activemask() { return emu_activemask(); }
static inline void __syncwarp(unsigned m = 0xffffffffu) { emu_syncwarp(m); }
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
static inline void __syncthreads() { emu_barrier(0, 0, true); }
static inline int __syncthreads_count(int p) { return (int)emu_barrier_count(p != 0); }
static inline int __syncthreads_or(int p) { return emu_barrier_count(p != 0) != 0; }
static inline int __syncthreads_and(int p) {
    return emu_barrier_count(p != 0) ==
           emu_at->block_dim.x * emu_at->block_dim.y * emu_at->block_dim.z;
}
static inline void __barrier_sync(unsigned id) { emu_barrier(id, 0, true); }
static inline void __barrier_sync_count(unsigned id, unsigned n) { emu_barrier(id, n, true); }
static inline void __nanosleep(unsigned) { emu_yield(); }
[[noreturn]] static inline void __trap() { emu_die("__trap"); }

#endif
