// SPDX-License-Identifier: Apache-2.0
// probe.cu: see probe.h.
#include "bench/gpu/probe.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

namespace {

__global__ void empty() {}

__device__ uint32_t mix(uint32_t x) { // a bijection of 32 bits
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// The sum of the four bytes of a hash and of another's: 8 uniform numbers, scaled to variance 1.
__device__ float normal(uint64_t i, uint32_t seed) {
    uint32_t a = mix((uint32_t)i ^ seed), b = mix(a + (uint32_t)(i >> 32) + 0x9e3779b9u);
    int sum = 0;
    for (int k = 0; k < 4; k++)
        sum += (int)(a >> 8 * k & 255) + (int)(b >> 8 * k & 255);
    return (float)(sum - 1020) * (1.0f / 209.0f);
}

template <class T> __global__ void fill(T *p, uint64_t n, uint32_t dtype, uint32_t seed) {
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float x = normal(i, seed);
        if (dtype == CUDA_FP32)
            p[i] = (T)__float_as_uint(x);
        else if (dtype == CUDA_BF16)
            p[i] = (T)(pack2<bf16>(x, x) & 0xffffu);
        else if (dtype == CUDA_FP16)
            p[i] = (T)(pack2<fp16>(x, x) & 0xffffu);
        else
            p[i] = (T)(pack2_e4m3(x, x) & 0xffu);
    }
}

} // namespace

int gpu_probe_empty(void *stream) {
    return start_kernel(empty, dim3(1), dim3(32), 0, stream, false);
}

int gpu_probe_fill(void *p, uint64_t elements, uint32_t dtype, uint32_t seed, void *stream) {
    dim3 grid(2048), block(256);
    if (dtype == CUDA_FP32)
        return start_kernel(fill<uint32_t>, grid, block, 0, stream, false, (uint32_t *)p, elements,
                            dtype, seed);
    if (dtype == CUDA_E4M3)
        return start_kernel(fill<uint8_t>, grid, block, 0, stream, false, (uint8_t *)p, elements,
                            dtype, seed);
    return start_kernel(fill<uint16_t>, grid, block, 0, stream, false, (uint16_t *)p, elements,
                        dtype, seed);
}
