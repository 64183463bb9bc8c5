// SPDX-License-Identifier: Apache-2.0
// ptx.cuh: every instruction that CUDA C has no word for, one inline function each. Kernels contain
// no asm of their own. Under KVPOOL_EMULATE (tests run kernels on the CPU, one fibre a lane) the same
// functions come from the emulator.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16"), lane t, g = t / 4, c = t % 4:
//   A 16x16: a0 = A[g][2c,2c+1]  a1 = A[g+8][2c,2c+1]  a2 = A[g][2c+8,2c+9]  a3 = A[g+8][2c+8,2c+9]
//   B 16x8:  b0 = B[2c,2c+1][g]  b1 = B[2c+8,2c+9][g]
//   C 16x8:  c0,c1 = C[g][2c,2c+1]  c2,c3 = C[g+8][2c,2c+1]
#ifndef KVPOOL_KERNELS_CUDA_PTX_CUH
#define KVPOOL_KERNELS_CUDA_PTX_CUH

#include <stdint.h>

// Element types of tensors: tags for templates.
struct fp16 {};
struct bf16 {};
struct fp32 {};
struct e4m3 {};

#ifdef KVPOOL_EMULATE
#include "tests/gpu/emulate/ptx_emulated.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define KVPOOL_SHARED extern __shared__ __align__(1024) unsigned char

static __device__ __forceinline__ uint32_t smem_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// --- copies to shared memory -----------------------------------------------------------------

// 16 bytes; zeros where !valid (src is then not read). Through L2 only, which reads 256 bytes at a time.
static __device__ __forceinline__ void cp_async_16(uint32_t dst, const void *src, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src),
                 "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int N> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Words that a kernel before may write when this one has started already (wait_previous_kernel); read here and not
// where they are used. The read-only path (ld.global.nc: __ldg, const __restrict__) is not for them: it is for what
// does not change while the kernel runs, and the compiler moves such reads ahead of the wait.
static __device__ __forceinline__ uint4 load_now(const void *p) {
    uint4 r;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}
static __device__ __forceinline__ uint32_t load_word(const uint32_t *p) {
    uint32_t r;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];\n" : "=r"(r) : "l"(p));
    return r;
}

// --- matrices ----------------------------------------------------------------------------------

static __device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
// The 8x8 matrix of 16-bit elements whose fragment the warp holds, transposed.
static __device__ __forceinline__ uint32_t movmatrix_trans(uint32_t a) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(r) : "r"(a));
    return r;
}
template <class T>
static __device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1);
template <>
__device__ __forceinline__ void mma_16816<fp16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- numbers -----------------------------------------------------------------------------------

// 2^x, flushing denormals; -infinity gives 0.
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}
// x / y, to 2 units in the last place, for y up to 2^126.
static __device__ __forceinline__ float divide_fast(float x, float y) {
    return __fdividef(x, y);
}
// To the L2. Of an address that is not there, nothing.
static __device__ __forceinline__ void prefetch_l2(const void *p) {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p));
}
// Two fp32 to two 16-bit elements, the first in the low half. Round to nearest even.
template <class T> static __device__ __forceinline__ uint32_t pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t pack2<fp16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <class T> static __device__ __forceinline__ float2 unpack2(uint32_t x);
template <> __device__ __forceinline__ float2 unpack2<fp16>(uint32_t x) {
    return __half22float2(*reinterpret_cast<__half2 *>(&x));
}
template <> __device__ __forceinline__ float2 unpack2<bf16>(uint32_t x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}
// Two e4m3 bytes (low half of x) to two fp16, exactly.
static __device__ __forceinline__ uint32_t e4m3x2_to_fp16x2(uint32_t x) {
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)x, __NV_E4M3);
    return (uint32_t)h.x | (uint32_t)h.y << 16;
}
// Two fp32 to two e4m3 bytes, the first in the low one. Nearest even, saturated to +-448, NaN stays.
static __device__ __forceinline__ uint32_t pack2_e4m3(float low, float high) {
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

// --- between blocks and kernels ------------------------------------------------------------------

// *p = *p >= limit ? 0 : *p + 1; returns the old value. Orders memory both ways, device scope.
static __device__ __forceinline__ uint32_t atomic_inc_acq_rel(uint32_t *p, uint32_t limit) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;\n"
                 : "=r"(old)
                 : "l"(p), "r"(limit)
                 : "memory");
    return old;
}
// What one warp posts for one that waits for it, 16 bytes, on all of the device: each word is there or is still
// what it was before, whatever the order of words and of other accesses.
static __device__ __forceinline__ void store_posted(void *p, uint4 x) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w)
                 : "memory");
}
static __device__ __forceinline__ uint4 load_posted(const void *p) {
    uint4 r;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
}
// Programmatic dependent launch: waits for the kernel before, then lets the one after start, in this order, so that
// a kernel that has started runs beside the one before it and no other. No-ops on sm_80 and in kernels launched
// without it.
static __device__ __forceinline__ void wait_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
static __device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

#endif // KVPOOL_EMULATE
#endif
