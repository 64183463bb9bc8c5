// SPDX-License-Identifier: Apache-2.0
// gpu.c: see gpu.h. Types and numbers are those of cuda.h, which need not be installed.
#include "tests/system/gpu.h"

#include "tests/system/harness.h"

#include <dlfcn.h>
#include <string.h>

typedef unsigned long long cu_memory; // CUmemGenericAllocationHandle
struct cu_location {                  // CUmemLocation
    int type, id;
};
struct cu_properties { // CUmemAllocationProp
    int type, handle_types;
    struct cu_location location;
    void *win32;
    unsigned char flags[8];
};
struct cu_access { // CUmemAccessDesc
    struct cu_location location;
    int flags;
};
struct cu_ipc { // CUipcMemHandle, passed by value
    unsigned char bytes[64];
};
enum {
    PINNED = 1,            // CU_MEM_ALLOCATION_TYPE_PINNED
    LOCATION_GPU = 1,      // CU_MEM_LOCATION_TYPE_DEVICE
    READ_WRITE = 3,        // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    ATTACH_GLOBAL = 1,     // CU_MEM_ATTACH_GLOBAL
    POOLS_SUPPORTED = 115, // CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
    LAZY_PEER = 1,         // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
    BLOCK = 2 << 20,       // multiple of the granularity of every GPU
};

// X(symbol, field, parameters)
#define GPU_MAP(X)                                                                             \
    X("cuInit", init, (unsigned flags))                                                        \
    X("cuDeviceGet", device_get, (int *ret, int ordinal))                                      \
    X("cuDeviceGetAttribute", device_attribute, (int *ret, int attribute, int device))         \
    X("cuDevicePrimaryCtxRetain", retain, (void **ret, int device))                            \
    X("cuCtxSetCurrent", set_current, (void *context))                                         \
    X("cuCtxSynchronize", synchronize, (void))                                                 \
    X("cuMemAlloc_v2", alloc, (gpu_ptr * ret, size_t bytes))                                   \
    X("cuMemFree_v2", free, (gpu_ptr ptr))                                                     \
    X("cuMemAllocManaged", alloc_managed, (gpu_ptr * ret, size_t bytes, unsigned flags))       \
    X("cuMemAllocAsync", alloc_async, (gpu_ptr * ret, size_t bytes, void *stream))             \
    X("cuIpcOpenMemHandle_v2", open, (gpu_ptr * ret, struct cu_ipc handle, unsigned flags))    \
    X("cuIpcCloseMemHandle", close, (gpu_ptr opened))                                          \
    X("cuMemHostAlloc", alloc_host, (void **ret, size_t bytes, unsigned flags))                \
    X("cuMemcpyHtoD_v2", put, (gpu_ptr to, const void *from, size_t bytes))                    \
    X("cuMemcpyDtoH_v2", get, (void *to, gpu_ptr from, size_t bytes))                          \
    X("cuMemCreate", create,                                                                   \
      (cu_memory * ret, size_t bytes, const struct cu_properties *properties,                  \
       unsigned long long flags))                                                              \
    X("cuMemAddressReserve", reserve,                                                          \
      (gpu_ptr * ret, size_t bytes, size_t alignment, gpu_ptr wish, unsigned long long flags)) \
    X("cuMemMap", map,                                                                         \
      (gpu_ptr ptr, size_t bytes, size_t offset, cu_memory memory, unsigned long long flags))  \
    X("cuMemSetAccess", set_access,                                                            \
      (gpu_ptr ptr, size_t bytes, const struct cu_access *access, size_t count))

static struct {
    void *context;
    int device;
#define GPU_FIELD(symbol, field, parameters) int(*field) parameters;
    GPU_MAP(GPU_FIELD)
#undef GPU_FIELD
} gpu;

static void done(int result, const char *call) {
    if (result != 0)
        fprintf(stderr, "%s: CUDA error %d\n", call, result);
    check(result == 0);
}
#define CALL(field, ...) done(gpu.field(__VA_ARGS__), #field)

static void find(void *library) {
#define GPU_FIND(symbol, field, parameters)          \
    {                                                \
        void *found = dlsym(library, symbol);        \
        memcpy(&gpu.field, &found, sizeof found);    \
        if (found == NULL)                           \
            fprintf(stderr, "no %s here\n", symbol); \
        check(found != NULL);                        \
    }
    GPU_MAP(GPU_FIND)
#undef GPU_FIND
}

bool gpu_start(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "no NVIDIA driver here: %s\n",
                dlerror()); // NOLINT(concurrency-mt-unsafe): of this thread in glibc
        return false;
    }
    find(library);
    int result = gpu.init(0);
    if (result == 0)
        result = gpu.device_get(&gpu.device, 0);
    if (result != 0) {
        fprintf(stderr, "no GPU here: CUDA error %d\n", result);
        return false;
    }
    CALL(retain, &gpu.context, gpu.device);
    gpu_use(true);
    return true;
}

void gpu_use(bool yes) {
    CALL(set_current, yes ? gpu.context : NULL);
}

gpu_ptr gpu_alloc(size_t bytes) {
    gpu_ptr ptr = 0;
    CALL(alloc, &ptr, bytes);
    return ptr;
}

void gpu_free(gpu_ptr ptr) {
    CALL(free, ptr);
}

gpu_ptr gpu_alloc_managed(size_t bytes) {
    gpu_ptr ptr = 0;
    CALL(alloc_managed, &ptr, bytes, ATTACH_GLOBAL);
    return ptr;
}

gpu_ptr gpu_alloc_from_pool(size_t bytes) {
    gpu_ptr ptr = 0;
    int supported = 0;
    CALL(device_attribute, &supported, POOLS_SUPPORTED, gpu.device);
    if (supported == 0)
        return 0;
    CALL(alloc_async, &ptr, bytes, NULL);
    CALL(synchronize);
    return ptr;
}

gpu_ptr gpu_alloc_segment(size_t bytes) {
    const struct cu_properties properties = {.type = PINNED,
                                             .location = {LOCATION_GPU, gpu.device}};
    const struct cu_access access = {{LOCATION_GPU, gpu.device}, READ_WRITE};
    cu_memory memory = 0;
    gpu_ptr ptr = 0;
    bytes = (bytes + BLOCK - 1) / BLOCK * BLOCK;
    CALL(create, &memory, bytes, &properties, 0);
    CALL(reserve, &ptr, bytes, 0, 0, 0);
    CALL(map, ptr, bytes, 0, memory, 0);
    CALL(set_access, ptr, bytes, &access, 1);
    return ptr;
}

gpu_ptr gpu_alloc_host(size_t bytes) {
    void *host = NULL;
    CALL(alloc_host, &host, bytes, 0);
    return (gpu_ptr)(uintptr_t)host; // the same address on the device
}

gpu_ptr gpu_open(const unsigned char ipc[64]) {
    struct cu_ipc handle;
    gpu_ptr ptr = 0;
    memcpy(handle.bytes, ipc, sizeof handle.bytes);
    CALL(open, &ptr, handle, LAZY_PEER);
    return ptr;
}

void gpu_close(gpu_ptr opened) {
    CALL(close, opened);
}

// A copy from pageable memory may return before the device has it.
void gpu_put(gpu_ptr to, const void *from, size_t bytes) {
    CALL(put, to, from, bytes);
    CALL(synchronize);
}

void gpu_get(void *to, gpu_ptr from, size_t bytes) {
    CALL(get, to, from, bytes);
}
