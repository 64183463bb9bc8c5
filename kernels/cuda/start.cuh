// SPDX-License-Identifier: Apache-2.0
// start.cuh: starting a kernel: one function for every launcher. Host code; any thread.
#ifndef KVPOOL_KERNELS_CUDA_START_CUH
#define KVPOOL_KERNELS_CUDA_START_CUH

#ifdef KVPOOL_EMULATE
#include "tests/gpu/emulate/start_emulated.h"
#else

#include <cuda_runtime.h>

// Enqueues kernel(args...). smem: bytes of dynamic shared memory, raised over 48 KB as needed.
// after_previous: programmatic dependent launch. Returns the cudaError_t.
template <class... P, class... A>
static int start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, void *stream,
                        bool after_previous, A &&...args) {
    if (smem > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return (int)e;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = (cudaStream_t)stream;
    cudaLaunchAttribute attribute;
    if (after_previous) {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    return (int)cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

#endif
#endif
