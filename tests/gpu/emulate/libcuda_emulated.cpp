// SPDX-License-Identifier: Apache-2.0
// libcuda_emulated.cpp: a libcuda.so.1 for workers of an emulated kvpoold: a driver with one device whose
// memory other processes open as they open a GPU's. It runs no kernels.
//
// Invariants
//  1. What works in a context is refused where none is current; a new thread has none.
//  2. cuMemAlloc's memory lies in blocks of 2 MiB. Small allocations share one, and who opens the handle
//     of one has the whole block.
//  3. Memory of cuMemCreate has no context, and that, managed memory and memory of a pool have no IPC
//     handle.
// The memory: device_memory.cpp; what file descriptors open: driver_emulated.cpp.
// Threads: any.
#include "tests/gpu/emulate/cudart_emulated.h"
#include "tests/gpu/emulate/device_memory.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

enum { BLOCK = 2 << 20, SMALL = 1 << 20, UNIT = 512 };

// --- what the files of the runtime want from each other -----------------------------------------------

cudaError_t emu_result(cudaError_t e) {
    return e;
}
int emu_device_count() {
    const char *text = getenv("KVPOOL_EMULATE_DEVICES");
    return text != nullptr ? atoi(text) : 1;
}
const char *cudaGetErrorString(cudaError_t) {
    return "an error of the emulated driver";
}

static unsigned char *address_of(CUdeviceptr ptr) {
    return reinterpret_cast<unsigned char *>(ptr);
}
// The errors' numbers are the same.
static CUresult result_of(cudaError_t e) {
    return static_cast<CUresult>(e);
}

// --- device, contexts ----------------------------------------------------------------------------------

struct CUctx_st {
    CUdevice device;
};
static CUctx_st primary;
static bool started;
static thread_local std::vector<CUcontext> contexts; // the last one is current

static bool no_context() {
    return contexts.empty() || contexts.back() == nullptr;
}

API cuInit(unsigned flags) {
    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    started = emu_device_count() > 0;
    return started ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
API cuGetErrorName(CUresult error, const char **ret) {
    switch (error) {
    case CUDA_ERROR_INVALID_VALUE:
        *ret = "CUDA_ERROR_INVALID_VALUE";
        break;
    case CUDA_ERROR_OUT_OF_MEMORY:
        *ret = "CUDA_ERROR_OUT_OF_MEMORY";
        break;
    case CUDA_ERROR_INVALID_CONTEXT:
        *ret = "CUDA_ERROR_INVALID_CONTEXT";
        break;
    default:
        *ret = "CUDA_ERROR_UNKNOWN";
    }
    return CUDA_SUCCESS;
}
API cuDeviceGet(CUdevice *ret, int ordinal) {
    if (!started)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= emu_device_count())
        return CUDA_ERROR_INVALID_DEVICE;
    *ret = ordinal;
    return CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int *ret, CUdevice_attribute attribute, CUdevice) {
    if (attribute != CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
        return CUDA_ERROR_INVALID_VALUE;
    *ret = 1;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRetain(CUcontext *ret, CUdevice device) {
    if (!started)
        return CUDA_ERROR_NOT_INITIALIZED;
    primary.device = device;
    *ret = &primary;
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext context) {
    if (contexts.empty())
        contexts.push_back(nullptr);
    contexts.back() = context;
    return CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext *ret) {
    *ret = contexts.empty() ? nullptr : contexts.back();
    return started ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}
API cuCtxGetDevice(CUdevice *ret) {
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret = contexts.back()->device;
    return CUDA_SUCCESS;
}
API cuCtxPushCurrent_v2(CUcontext context) {
    if (context == nullptr)
        return CUDA_ERROR_INVALID_VALUE;
    contexts.push_back(context);
    return CUDA_SUCCESS;
}
API cuCtxPopCurrent_v2(CUcontext *ret) {
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    *ret = contexts.back();
    contexts.pop_back();
    return CUDA_SUCCESS;
}
API cuCtxSynchronize(void) {
    return no_context() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

// --- memory of cuMemAlloc and its like -------------------------------------------------------------------

enum kind { SHARED, MANAGED, OF_POOL };
struct block {
    unsigned char *base;
    size_t bytes, used;
    int fd;
    uint32_t users; // allocations, and being `common`
    kind what;
};
static std::map<unsigned char *, block *> blocks; // by allocation
static block *common;                             // where small allocations go

static block *new_block(size_t bytes, kind what) {
    bytes = (bytes + BLOCK - 1) / BLOCK * BLOCK;
    int fd = emu_memory_file(bytes);
    if (fd < 0)
        return nullptr;
    void *base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        close(fd);
        return nullptr;
    }
    memset(base, 0xff, bytes);
    return new block{static_cast<unsigned char *>(base), bytes, 0, fd, 0, what};
}
static void put(block *b) {
    if (b == nullptr || --b->users > 0)
        return;
    munmap(b->base, b->bytes);
    close(b->fd);
    delete b;
}
static CUresult allocate(CUdeviceptr *ret, size_t bytes, kind what) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    bool small = what == SHARED && bytes <= SMALL;
    block *b = small && common != nullptr && common->bytes - common->used >= bytes
                   ? common
                   : new_block(bytes, what);
    if (b == nullptr)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (small && b != common) {
        put(common);
        common = b;
        b->users++;
    }
    unsigned char *p = b->base + b->used;
    const int fd = what == SHARED ? b->fd : -1;
    emu_memory[p] = emu_allocation{bytes, nullptr, 0, fd, false, true, b->used};
    emu_memory_used += bytes;
    blocks[p] = b;
    b->users++;
    b->used += (bytes + UNIT - 1) / UNIT * UNIT;
    *ret = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}
API cuMemAlloc_v2(CUdeviceptr *ret, size_t bytes) {
    return allocate(ret, bytes, SHARED);
}
API cuMemAllocManaged(CUdeviceptr *ret, size_t bytes, unsigned) {
    return allocate(ret, bytes, MANAGED);
}
API cuMemAllocAsync(CUdeviceptr *ret, size_t bytes, CUstream) {
    return allocate(ret, bytes, OF_POOL);
}
API cuMemFree_v2(CUdeviceptr ptr) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto found = blocks.find(address_of(ptr));
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    if (found == blocks.end())
        return CUDA_ERROR_INVALID_VALUE;
    emu_memory_used -= emu_memory[found->first].bytes;
    emu_memory.erase(found->first);
    put(found->second);
    blocks.erase(found);
    return CUDA_SUCCESS;
}

static CUresult copy(CUdeviceptr device, void *host, size_t bytes, bool out) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(address_of(device));
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    if (a != nullptr && bytes > a->second.bytes - (size_t)(address_of(device) - a->first))
        return CUDA_ERROR_INVALID_VALUE;
    if (a == nullptr && (!emu_memory_registered(address_of(device)) ||
                         !emu_memory_registered(address_of(device) + bytes - 1)))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(out ? host : address_of(device), out ? address_of(device) : host, bytes);
    return CUDA_SUCCESS;
}
API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    return copy(to, const_cast<void *>(from), bytes, false);
}
API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    return copy(from, to, bytes, true);
}

API cuPointerGetAttribute(void *ret, CUpointer_attribute attribute, CUdeviceptr ptr) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(address_of(ptr));
    const bool host = a != nullptr ? a->second.host : emu_memory_registered(address_of(ptr));
    if (!started)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (a == nullptr && !host)
        return CUDA_ERROR_INVALID_VALUE;
    auto own = a != nullptr ? blocks.find(a->first) : blocks.end();
    const kind what = own != blocks.end() ? own->second->what : SHARED;
    const bool imported = a != nullptr && !a->second.counted && a->second.fd >= 0;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {
        CUcontext context = host || own != blocks.end() || imported ? &primary : nullptr;
        memcpy(ret, &context, sizeof context);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: {
        unsigned type = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        memcpy(ret, &type, sizeof type);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: {
        const bool managed = what == MANAGED;
        memcpy(ret, &managed, sizeof managed);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: {
        const bool capable = own != blocks.end() && what == SHARED;
        memcpy(ret, &capable, sizeof capable);
        return CUDA_SUCCESS;
    }
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: {
        const void *pool = what == OF_POOL ? &primary : nullptr;
        memcpy(ret, &pool, sizeof pool);
        return CUDA_SUCCESS;
    }
    }
    return CUDA_ERROR_INVALID_VALUE;
}

// --- other processes' memory, the host's ---------------------------------------------------------------

API cuIpcGetMemHandle(CUipcMemHandle *ret, CUdeviceptr ptr) {
    cudaIpcMemHandle_t handle;
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    cudaError_t e = cudaIpcGetMemHandle(&handle, address_of(ptr));
    static_assert(sizeof handle == sizeof *ret, "a handle");
    if (e == cudaSuccess)
        memcpy(ret, &handle, sizeof handle);
    return result_of(e);
}
API cuIpcOpenMemHandle_v2(CUdeviceptr *ret, CUipcMemHandle handle, unsigned flags) {
    cudaIpcMemHandle_t same;
    void *p = nullptr;
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    memcpy(&same, &handle, sizeof same);
    cudaError_t e = cudaIpcOpenMemHandle(&p, same, flags);
    if (e == cudaSuccess)
        *ret = (CUdeviceptr)(uintptr_t)p;
    return result_of(e);
}
API cuIpcCloseMemHandle(CUdeviceptr ptr) {
    return no_context() ? CUDA_ERROR_INVALID_CONTEXT
                        : result_of(cudaIpcCloseMemHandle(address_of(ptr)));
}
API cuMemHostAlloc(void **ret, size_t bytes, unsigned flags) {
    return no_context() ? CUDA_ERROR_INVALID_CONTEXT : result_of(cudaHostAlloc(ret, bytes, flags));
}
API cuMemHostRegister_v2(void *host, size_t bytes, unsigned flags) {
    return no_context() ? CUDA_ERROR_INVALID_CONTEXT
                        : result_of(cudaHostRegister(host, bytes, flags));
}
API cuMemHostUnregister(void *host) {
    return no_context() ? CUDA_ERROR_INVALID_CONTEXT : result_of(cudaHostUnregister(host));
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr *ret, void *host, unsigned flags) {
    void *p = nullptr;
    if (no_context())
        return CUDA_ERROR_INVALID_CONTEXT;
    cudaError_t e = cudaHostGetDevicePointer(&p, host, flags);
    if (e == cudaSuccess)
        *ret = (CUdeviceptr)(uintptr_t)p;
    return result_of(e);
}

// --- those of driver_emulated.cpp ----------------------------------------------------------------------

template <typename F> static F find(const char *name) {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult status;
    cudaGetDriverEntryPointByVersion(name, &function, 0, 0, &status);
    return reinterpret_cast<F>(function);
}
#define FORWARD(name, version, parameters, ...)                  \
    API name parameters {                                        \
        return find<PFN_##name##_##version>(#name)(__VA_ARGS__); \
    }
FORWARD(cuMemCreate, v10020,
        (CUmemGenericAllocationHandle * ret, size_t size, const CUmemAllocationProp *prop,
         unsigned long long flags),
        ret, size, prop, flags)
FORWARD(cuMemRelease, v10020, (CUmemGenericAllocationHandle handle), handle)
FORWARD(cuMemAddressReserve, v10020,
        (CUdeviceptr * ret, size_t size, size_t alignment, CUdeviceptr wish,
         unsigned long long flags),
        ret, size, alignment, wish, flags)
FORWARD(cuMemAddressFree, v10020, (CUdeviceptr address, size_t size), address, size)
FORWARD(cuMemMap, v10020,
        (CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
         unsigned long long flags),
        address, size, offset, handle, flags)
FORWARD(cuMemUnmap, v10020, (CUdeviceptr address, size_t size), address, size)
FORWARD(cuMemSetAccess, v10020,
        (CUdeviceptr address, size_t size, const CUmemAccessDesc *access, size_t count), address,
        size, access, count)
FORWARD(cuMemImportFromShareableHandle, v10020,
        (CUmemGenericAllocationHandle * ret, void *os_handle, CUmemAllocationHandleType type), ret,
        os_handle, type)
API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address) {
    return no_context()
               ? CUDA_ERROR_INVALID_CONTEXT
               : find<PFN_cuMemGetAddressRange_v3020>("cuMemGetAddressRange")(base, size, address);
}
