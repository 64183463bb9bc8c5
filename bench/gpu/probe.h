// SPDX-License-Identifier: Apache-2.0
// probe.h: small kernels that the GPU bench needs beside those it measures.
// Launchers as in kernels/cuda/launch.h: 0 or the cudaError_t. Any thread, with the device current.
#ifndef KVPOOL_BENCH_GPU_PROBE_H
#define KVPOOL_BENCH_GPU_PROBE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A kernel that does nothing: what two events around it measure is the cost of a launch.
int gpu_probe_empty(void *stream);
// Fills p with `elements` of about normal distribution, mean 0, variance 1; dtype: CUDA_FP16,
// CUDA_BF16, CUDA_FP32, CUDA_E4M3. Equal seeds give equal numbers.
int gpu_probe_fill(void *p, uint64_t elements, uint32_t dtype, uint32_t seed, void *stream);

#ifdef __cplusplus
}
#endif
#endif
