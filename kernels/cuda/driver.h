// SPDX-License-Identifier: Apache-2.0
// driver.h: what the backend calls of CUDA beyond the kernels' launchers, and errors as text.
//
// cudart is linked statically; the driver's own functions are looked up in it at run time, so that
// the same binary starts where no driver is. All that the backend uses:
//
//   cudart   cudaDriverGetVersion cudaGetDeviceCount cudaSetDevice cudaGetDeviceProperties
//            cudaGetErrorString cudaGetLastError cudaGetDriverEntryPointByVersion cudaMemGetInfo
//            cudaMalloc cudaFree cudaHostAlloc cudaFreeHost cudaHostRegister cudaHostUnregister
//            cudaHostGetDevicePointer cudaMemcpyAsync cudaMemsetAsync cudaPointerGetAttributes
//            cudaIpcGetMemHandle cudaIpcOpenMemHandle cudaIpcCloseMemHandle
//            cudaStreamCreateWithPriority cudaDeviceGetStreamPriorityRange
//            cudaStreamDestroy cudaStreamSynchronize cudaStreamQuery cudaStreamWaitEvent
//            cudaEventCreateWithFlags cudaEventRecord cudaEventQuery cudaEventDestroy
//   driver   CUDA_DRIVER_FUNCTIONS
//
// Invariants
//  1. cuda_driver_load fails before any of its functions is NULL.
//  2. An error that was turned into text is no longer the thread's last error.
// Any thread.
#ifndef KVPOOL_KERNELS_CUDA_DRIVER_H
#define KVPOOL_KERNELS_CUDA_DRIVER_H

#include "proto/err.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

// X(name, suffix of its type in cudaTypedefs.h)
#define CUDA_DRIVER_FUNCTIONS(X)              \
    X(cuGetErrorString, v6000)                \
    X(cuMemGetAllocationGranularity, v10020)  \
    X(cuMemCreate, v10020)                    \
    X(cuMemRelease, v10020)                   \
    X(cuMemAddressReserve, v10020)            \
    X(cuMemAddressFree, v10020)               \
    X(cuMemMap, v10020)                       \
    X(cuMemUnmap, v10020)                     \
    X(cuMemSetAccess, v10020)                 \
    X(cuMemExportToShareableHandle, v10020)   \
    X(cuMemImportFromShareableHandle, v10020) \
    X(cuMemGetAddressRange, v3020)

// Names are only pasted and quoted, so that cuda.h does not rename them (cuX to cuX_v2).
struct cuda_driver {
#define CUDA_DRIVER_FIELD(name, version) PFN_##name##_##version p_##name;
    CUDA_DRIVER_FUNCTIONS(CUDA_DRIVER_FIELD)
#undef CUDA_DRIVER_FIELD
};

// Checks that the device can be used and makes it the thread's. Errors: BACKEND, with a text that
// says what is missing: driver, device, a newer driver, a newer device.
int cuda_device_find(int device, char *ret_description, size_t size, struct err *err);
// Whether a device that this build can use is there. Sets nothing.
bool cuda_device_present(void);

// Errors: BACKEND (names the function that the driver lacks).
int cuda_driver_load(struct cuda_driver *ret, struct err *err);

// "what: text (number)", as `status`.
int cuda_error(struct err *err, int status, const char *what, cudaError_t e);
int cuda_driver_error(const struct cuda_driver *driver, struct err *err, int status,
                      const char *what, CUresult e);

#endif
