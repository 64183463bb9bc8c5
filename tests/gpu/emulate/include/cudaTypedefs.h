// SPDX-License-Identifier: Apache-2.0
// cudaTypedefs.h of the emulator: types of the driver's functions.
#ifndef KVPOOL_TESTS_GPU_EMULATE_CUDATYPEDEFS_H
#define KVPOOL_TESTS_GPU_EMULATE_CUDATYPEDEFS_H

#include <cuda.h>

typedef CUresult (*PFN_cuGetErrorString_v6000)(CUresult error, const char **ret);
typedef CUresult (*PFN_cuMemGetAllocationGranularity_v10020)(
    size_t *ret, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option);
typedef CUresult (*PFN_cuMemCreate_v10020)(CUmemGenericAllocationHandle *ret, size_t size,
                                           const CUmemAllocationProp *prop,
                                           unsigned long long flags);
typedef CUresult (*PFN_cuMemRelease_v10020)(CUmemGenericAllocationHandle handle);
typedef CUresult (*PFN_cuMemAddressReserve_v10020)(CUdeviceptr *ret, size_t size, size_t alignment,
                                                   CUdeviceptr address, unsigned long long flags);
typedef CUresult (*PFN_cuMemAddressFree_v10020)(CUdeviceptr address, size_t size);
typedef CUresult (*PFN_cuMemMap_v10020)(CUdeviceptr address, size_t size, size_t offset,
                                        CUmemGenericAllocationHandle handle,
                                        unsigned long long flags);
typedef CUresult (*PFN_cuMemUnmap_v10020)(CUdeviceptr address, size_t size);
typedef CUresult (*PFN_cuMemSetAccess_v10020)(CUdeviceptr address, size_t size,
                                              const CUmemAccessDesc *access, size_t count);
typedef CUresult (*PFN_cuMemExportToShareableHandle_v10020)(void *ret,
                                                            CUmemGenericAllocationHandle handle,
                                                            CUmemAllocationHandleType type,
                                                            unsigned long long flags);
typedef CUresult (*PFN_cuMemImportFromShareableHandle_v10020)(CUmemGenericAllocationHandle *ret,
                                                              void *os_handle,
                                                              CUmemAllocationHandleType type);
typedef CUresult (*PFN_cuMemGetAddressRange_v3020)(CUdeviceptr *base, size_t *size,
                                                   CUdeviceptr address);

#endif
