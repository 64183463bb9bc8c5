// SPDX-License-Identifier: Apache-2.0
// driver.c: see driver.h.
#include "kernels/cuda/driver.h"

#include <stdio.h>
#include <string.h>

enum {
    LEAST_MAJOR = 8,           // compute capability that the kernels are compiled for
    FUNCTIONS_VERSION = 12000, // the driver's functions are as they were in CUDA 12.0
};

int cuda_error(struct err *err, int status, const char *what, cudaError_t e) {
    cudaGetLastError();
    return err_set(err, status, "%s: %s (CUDA error %d)", what, cudaGetErrorString(e), (int)e);
}

int cuda_driver_error(const struct cuda_driver *driver, struct err *err, int status,
                      const char *what, CUresult e) {
    const char *text = NULL;
    if (driver->p_cuGetErrorString(e, &text) != CUDA_SUCCESS || text == NULL)
        text = "unknown error";
    return err_set(err, status, "%s: %s (CUDA driver error %d)", what, text, (int)e);
}

// What it means that there are no devices.
static int no_devices(cudaError_t e, struct err *err) {
    int version = 0;
    cudaGetLastError();
    if (cudaDriverGetVersion(&version) != cudaSuccess)
        version = 0;
    if (version == 0)
        return err_set(err, KVPOOL_E_BACKEND, "this machine has no NVIDIA driver");
    if (e == cudaErrorInsufficientDriver)
        return err_set(
            err, KVPOOL_E_BACKEND,
            "the NVIDIA driver is too old: it supports CUDA %d.%d, this build needs %d.%d",
            version / 1000, version % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorNoDevice)
        return err_set(err, KVPOOL_E_BACKEND, "the NVIDIA driver shows no GPU");
    return cuda_error(err, KVPOOL_E_BACKEND, "the NVIDIA driver does not start", e);
}

int cuda_device_find(int device, char *ret_description, size_t size, struct err *err) {
    int count = 0;
    struct cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return no_devices(e != cudaSuccess ? e : cudaErrorNoDevice, err);
    if (device < 0 || device >= count)
        return err_set(err, KVPOOL_E_BACKEND, "there is no GPU %d: the last of this machine is %d",
                       device, count - 1);
    memset(&prop, 0, sizeof prop);
    e = cudaGetDeviceProperties(&prop, device);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, "properties of the GPU", e);
    if (prop.major < LEAST_MAJOR)
        return err_set(err, KVPOOL_E_BACKEND,
                       "GPU %d, %s, has compute capability %d.%d: this build needs %d.0 or more",
                       device, prop.name, prop.major, prop.minor, LEAST_MAJOR);
    e = cudaSetDevice(device);
    if (e != cudaSuccess) {
        char what[64];
        snprintf(what, sizeof what, "GPU %d cannot be used", device);
        return cuda_error(err, KVPOOL_E_BACKEND, what, e);
    }
    snprintf(ret_description, size, "cuda: device %d, %s, %d SMs, sm_%d%d", device, prop.name,
             prop.multiProcessorCount, prop.major, prop.minor);
    return 0;
}

bool cuda_device_present(void) {
    int count = 0;
    struct cudaDeviceProp prop;
    bool found = false;
    if (cudaGetDeviceCount(&count) == cudaSuccess)
        for (int i = 0; i < count && !found; i++)
            found = cudaGetDeviceProperties(&prop, i) == cudaSuccess && prop.major >= LEAST_MAJOR;
    cudaGetLastError();
    return found;
}

static int look_up(const char *name, void **ret, struct err *err) {
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaError_t e =
        cudaGetDriverEntryPointByVersion(name, ret, FUNCTIONS_VERSION, cudaEnableDefault, &found);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, name, e);
    if (found != cudaDriverEntryPointSuccess || *ret == NULL)
        return err_set(err, KVPOOL_E_BACKEND, "the NVIDIA driver has no function %s", name);
    return 0;
}

int cuda_driver_load(struct cuda_driver *ret, struct err *err) {
    struct cuda_driver driver;
    void *function = NULL;
    int status;
#define CUDA_DRIVER_LOOK_UP(name, version)   \
    status = look_up(#name, &function, err); \
    if (status != 0)                         \
        return status;                       \
    memcpy(&driver.p_##name, &function, sizeof function);
    CUDA_DRIVER_FUNCTIONS(CUDA_DRIVER_LOOK_UP)
#undef CUDA_DRIVER_LOOK_UP
    *ret = driver;
    return 0;
}
