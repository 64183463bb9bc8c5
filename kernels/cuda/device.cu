// SPDX-License-Identifier: Apache-2.0
// device.cu: what the launchers need to know of the device. See launch.h.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/start.cuh"

static cudaError_t attribute(int32_t *ret, enum cudaDeviceAttr which, int device) {
    int value;
    cudaError_t e = cudaDeviceGetAttribute(&value, which, device);
    if (e == cudaSuccess)
        *ret = value;
    return e;
}

int cuda_device_init(struct cuda_device *ret) {
    struct cuda_device d;
    int device;
    cudaError_t e = cudaGetDevice(&device);
    if (e != cudaSuccess)
        return (int)e;
    d.ordinal = device;
    if ((e = attribute(&d.sms, cudaDevAttrMultiProcessorCount, device)) != cudaSuccess ||
        (e = attribute(&d.major, cudaDevAttrComputeCapabilityMajor, device)) != cudaSuccess ||
        (e = attribute(&d.minor, cudaDevAttrComputeCapabilityMinor, device)) != cudaSuccess ||
        (e = attribute(&d.smem_optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) !=
            cudaSuccess ||
        (e = attribute(&d.l2_bytes, cudaDevAttrL2CacheSize, device)) != cudaSuccess)
        return (int)e;
    *ret = d;
    return 0;
}
