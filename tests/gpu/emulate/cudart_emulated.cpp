// SPDX-License-Identifier: Apache-2.0
// cudart_emulated.cpp: the CUDA runtime of the emulator: one device whose memory is this process's.
//
// Invariants
//  1. Every call has done its work when it returns; streams and events are only handles.
//  2. A wrong handle, pointer or size is refused as the runtime does, not followed.
// Memory: device_memory.cpp; the driver's part: driver_emulated.cpp.
// Threads: any.
#include "tests/gpu/emulate/cudart_emulated.h"
#include "cuda_runtime_api.h"
#include "tests/gpu/emulate/device_memory.h"
#include "tests/gpu/emulate/emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <set>

enum { DEVICE_SMS = 19 };

static std::mutex lock; // of streams and events
static thread_local cudaError_t last;

cudaError_t emu_result(cudaError_t e) {
    if (emu_device_loss_seen(false))
        e = cudaErrorIllegalAddress;
    if (e != cudaSuccess)
        last = e;
    return e;
}
static cudaError_t result(cudaError_t e) {
    return emu_result(e);
}

// --- errors -----------------------------------------------------------------------------------------

const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorNotSupported:
        return "operation not supported";
    case cudaErrorHostMemoryAlreadyRegistered:
        return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered:
        return "pointer does not correspond to a registered memory region";
    default:
        return "unknown error";
    }
}
const char *cudaGetErrorName(cudaError_t e) {
    return cudaGetErrorString(e);
}
cudaError_t cudaPeekAtLastError(void) {
    return emu_device_loss_seen(false) ? cudaErrorIllegalAddress : last;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = cudaPeekAtLastError();
    last = cudaSuccess;
    return e;
}

int emu_device_count() {
    const char *text = getenv("KVPOOL_EMULATE_DEVICES"); // 0: none
    return text != nullptr ? atoi(text) : 1;
}

// --- the device -------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int *count) {
    *count = emu_device_count();
    return result(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return result(emu_device_count() == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaSetDevice(int device) {
    return result(device < 0 || device >= emu_device_count() ? cudaErrorInvalidDevice
                                                             : cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    if (device < 0 || device >= emu_device_count())
        return result(cudaErrorInvalidDevice);
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = DEVICE_SMS; // few: work is split and merged by small cases too
        break;
    case cudaDevAttrL2CacheSize:
        *value = 1 << 20;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = 8;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = 227 * 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = 228 * 1024;
        break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported:
        *value = 1;
        break;
    default:
        return result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device) {
    if (device < 0 || device >= emu_device_count())
        return result(cudaErrorInvalidDevice);
    struct cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "emulated");
    memcpy(p.uuid.bytes, "kvpool emulated", 16);
    p.totalGlobalMem = emu_memory_limit();
    p.multiProcessorCount = DEVICE_SMS;
    p.major = 8;
    p.l2CacheSize = 1 << 20;
    p.sharedMemPerBlockOptin = 227 * 1024;
    p.canMapHostMemory = p.unifiedAddressing = 1;
    *prop = p;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    emu_device_loss_seen(true);
    return result(cudaSuccess);
}
cudaError_t cudaDeviceReset(void) {
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = emu_device_count() == 0 ? 0 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

// --- copies -----------------------------------------------------------------------------------------

static cudaError_t copy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    if ((bytes != 0 && (dst == nullptr || src == nullptr)) || kind < 0 || kind > cudaMemcpyDefault)
        return result(cudaErrorInvalidValue);
    if (!emu_device_lost())
        memmove(dst, src, bytes);
    return result(cudaSuccess);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    emu_device_loss_seen(true);
    return copy(dst, src, bytes, kind);
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (bytes != 0 && p == nullptr)
        return result(cudaErrorInvalidValue);
    if (!emu_device_lost())
        memset(p, value, bytes);
    return result(cudaSuccess);
}

// --- streams and events -----------------------------------------------------------------------------

struct CUstream_st {
    int unused;
};
struct CUevent_st {
    bool recorded;
    struct timespec at;
};
static std::set<cudaStream_t> streams;
static std::set<cudaEvent_t> events;

static bool stream_known(cudaStream_t s) {
    std::lock_guard<std::mutex> hold(lock);
    return s == nullptr || s == (cudaStream_t)1 || s == (cudaStream_t)2 || streams.count(s) == 1;
}
static bool event_known(cudaEvent_t e) {
    std::lock_guard<std::mutex> hold(lock);
    return events.count(e) == 1;
}
static cudaError_t check(cudaStream_t s) {
    return result(stream_known(s) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    return check(s) == cudaSuccess ? copy(dst, src, bytes, kind) : last;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
    emu_memory_wait_others();
    return check(s) == cudaSuccess ? cudaMemset(p, value, bytes) : last;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned int, int) {
    std::lock_guard<std::mutex> hold(lock);
    cudaStream_t s = new CUstream_st();
    streams.insert(s);
    *ret = s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *ret) {
    return cudaStreamCreateWithPriority(ret, 0, 0);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) {
    *least = 0;
    *most = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned int flags) {
    return cudaStreamCreateWithPriority(ret, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    std::lock_guard<std::mutex> hold(lock);
    if (streams.erase(s) != 1)
        return result(cudaErrorInvalidResourceHandle);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    emu_device_loss_seen(true);
    return check(s);
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    return cudaStreamSynchronize(s);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *arg) {
    if (check(s) != cudaSuccess)
        return last;
    f(arg);
    return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *arg, unsigned int) {
    if (check(s) != cudaSuccess)
        return last;
    f(s, cudaSuccess, arg);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned int) {
    std::lock_guard<std::mutex> hold(lock);
    cudaEvent_t e = new CUevent_st();
    events.insert(e);
    *ret = e;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *ret) {
    return cudaEventCreateWithFlags(ret, 0);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    if (!event_known(e) || !stream_known(s))
        return result(cudaErrorInvalidResourceHandle);
    e->recorded = true;
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    return result(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    emu_device_loss_seen(true);
    return result(event_known(e) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    return emu_programs_last() ? cudaErrorNotReady : cudaEventSynchronize(e);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!event_known(start) || !event_known(end) || !start->recorded || !end->recorded)
        return result(cudaErrorInvalidResourceHandle);
    *ms = (float)(end->at.tv_sec - start->at.tv_sec) * 1e3f +
          (float)(end->at.tv_nsec - start->at.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    std::lock_guard<std::mutex> hold(lock);
    if (events.erase(e) != 1)
        return result(cudaErrorInvalidResourceHandle);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned int) {
    return result(event_known(e) && stream_known(s) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
