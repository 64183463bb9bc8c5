// SPDX-License-Identifier: Apache-2.0
// cudart_emulated.cpp: the CUDA runtime of the emulator: one device whose memory is this process's.
//
// Invariants
//  1. Every call has done its work when it returns; streams and events are only handles.
//  2. Device memory is not initialised: 0xff. An access outside an allocation faults (pages without
//     access on both sides; AddressSanitizer's red zones where it is there).
//  3. A wrong handle, pointer or size is refused as the runtime does, not followed.
// Threads: any.
#include "cuda_runtime_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>

enum { PAGE = 4096, ALIGNMENT = 256, DEVICE_SMS = 7 };

static std::mutex lock;
struct allocation {
    size_t bytes;
    unsigned char *map;
    size_t map_bytes;
};
static std::map<unsigned char *, allocation> device_memory, host_memory;
static std::map<unsigned char *, size_t> registered;
static size_t allocated;
static thread_local cudaError_t last;

static cudaError_t result(cudaError_t e) {
    if (e != cudaSuccess)
        last = e;
    return e;
}

static size_t limit() {
    const char *text = getenv("KVPOOL_EMULATE_MEMORY"); // bytes of the device
    return text != nullptr ? strtoull(text, nullptr, 0) : (size_t)8 << 30;
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
const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
cudaError_t cudaPeekAtLastError(void) { return last; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last;
    last = cudaSuccess;
    return e;
}

// --- the device -------------------------------------------------------------------------------------

static int device_count() {
    const char *text = getenv("KVPOOL_EMULATE_DEVICES"); // 0: none
    return text != nullptr ? atoi(text) : 1;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return result(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return result(device_count() == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaSetDevice(int device) {
    return result(device < 0 || device >= device_count() ? cudaErrorInvalidDevice : cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device) {
    if (device < 0 || device >= device_count())
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
    if (device < 0 || device >= device_count())
        return result(cudaErrorInvalidDevice);
    struct cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "emulated");
    memcpy(p.uuid.bytes, "kvpool emulated", 16);
    p.totalGlobalMem = limit();
    p.multiProcessorCount = DEVICE_SMS;
    p.major = 8;
    p.l2CacheSize = 1 << 20;
    p.sharedMemPerBlockOptin = 227 * 1024;
    p.canMapHostMemory = p.unifiedAddressing = 1;
    *prop = p;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    std::lock_guard<std::mutex> hold(lock);
    *total = limit();
    *free_bytes = limit() > allocated ? limit() - allocated : 0;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = device_count() == 0 ? 0 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

// --- memory -----------------------------------------------------------------------------------------

static cudaError_t allocate(std::map<unsigned char *, allocation> *in, void **ret, size_t bytes) {
    std::lock_guard<std::mutex> hold(lock);
    if (bytes == 0) {
        *ret = nullptr;
        return cudaSuccess;
    }
    if (bytes > limit() || allocated + bytes > limit())
        return result(cudaErrorMemoryAllocation);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    allocation a = {bytes, nullptr, 0};
    unsigned char *p;
#if defined(__SANITIZE_ADDRESS__)
    p = static_cast<unsigned char *>(aligned_alloc(ALIGNMENT, rounded));
    if (p == nullptr)
        return result(cudaErrorMemoryAllocation);
    memset(p, 0xff, rounded);
#else
    size_t pages = (rounded + PAGE - 1) / PAGE * PAGE;
    a.map_bytes = pages + 2 * PAGE;
    void *map = mmap(nullptr, a.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return result(cudaErrorMemoryAllocation);
    a.map = static_cast<unsigned char *>(map);
    if (mprotect(a.map + PAGE, pages, PROT_READ | PROT_WRITE) != 0) {
        munmap(map, a.map_bytes);
        return result(cudaErrorMemoryAllocation);
    }
    p = a.map + PAGE + pages - rounded; // its end meets the page without access
    memset(p, 0xff, rounded);
#endif
    allocated += bytes;
    (*in)[p] = a;
    *ret = p;
    return cudaSuccess;
}
static cudaError_t release(std::map<unsigned char *, allocation> *in, void *p) {
    std::lock_guard<std::mutex> hold(lock);
    if (p == nullptr)
        return cudaSuccess;
    auto at = in->find(static_cast<unsigned char *>(p));
    if (at == in->end())
        return result(cudaErrorInvalidValue);
    allocated -= at->second.bytes;
    if (at->second.map != nullptr)
        munmap(at->second.map, at->second.map_bytes);
    else
        free(p);
    in->erase(at);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) { return allocate(&device_memory, p, bytes); }
cudaError_t cudaFree(void *p) { return release(&device_memory, p); }
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int) {
    return allocate(&host_memory, p, bytes);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return allocate(&host_memory, p, bytes); }
cudaError_t cudaFreeHost(void *p) { return release(&host_memory, p); }

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned int) {
    std::lock_guard<std::mutex> hold(lock);
    if (p == nullptr || bytes == 0)
        return result(cudaErrorInvalidValue);
    unsigned char *at = static_cast<unsigned char *>(p);
    for (const auto &r : registered)
        if (at < r.first + r.second && r.first < at + bytes)
            return result(cudaErrorHostMemoryAlreadyRegistered);
    registered[at] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    std::lock_guard<std::mutex> hold(lock);
    return result(registered.erase(static_cast<unsigned char *>(p)) == 1
                      ? cudaSuccess
                      : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags) {
    std::lock_guard<std::mutex> hold(lock);
    unsigned char *at = static_cast<unsigned char *>(host);
    bool known = false;
    for (const auto &r : registered)
        known = known || (at >= r.first && at < r.first + r.second);
    for (const auto &r : host_memory)
        known = known || (at >= r.first && at < r.first + r.second.bytes);
    if (!known || flags != 0)
        return result(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    if ((bytes != 0 && (dst == nullptr || src == nullptr)) || kind < 0 || kind > cudaMemcpyDefault)
        return result(cudaErrorInvalidValue);
    memmove(dst, src, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    if (bytes != 0 && p == nullptr)
        return result(cudaErrorInvalidValue);
    memset(p, value, bytes);
    return cudaSuccess;
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
    return check(s) == cudaSuccess ? cudaMemcpy(dst, src, bytes, kind) : last;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
    return check(s) == cudaSuccess ? cudaMemset(p, value, bytes) : last;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned int, int) {
    std::lock_guard<std::mutex> hold(lock);
    cudaStream_t s = new CUstream_st();
    streams.insert(s);
    *ret = s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *ret) { return cudaStreamCreateWithPriority(ret, 0, 0); }
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
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return check(s); }
cudaError_t cudaStreamQuery(cudaStream_t s) { return check(s); }
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
cudaError_t cudaEventCreate(cudaEvent_t *ret) { return cudaEventCreateWithFlags(ret, 0); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    if (!event_known(e) || !stream_known(s))
        return result(cudaErrorInvalidResourceHandle);
    e->recorded = true;
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return result(event_known(e) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaEventSynchronize(e); }
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
