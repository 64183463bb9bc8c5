// SPDX-License-Identifier: Apache-2.0
// driver_emulated.cpp: the driver's functions for memory that a file descriptor opens: a memfd each.
//
// Invariants
//  1. An allocation lives until it is released and no longer mapped; the device's memory is counted
//     so long.
//  2. Mapped memory is reached only after cuMemSetAccess.
// Threads: any.
#include "tests/gpu/emulate/cudart_emulated.h"
#include "tests/gpu/emulate/device_memory.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GRANULARITY = 2 << 20 };

struct allocation {
    int fd;
    size_t bytes;
    uint32_t users; // the handle, each mapping
    bool handle;
    bool imported; // its maker counts it
};
struct reserved {
    size_t bytes;
    allocation *mapped;
};
static std::map<CUmemGenericAllocationHandle, allocation *> handles;
static std::map<unsigned char *, reserved> ranges;
static CUmemGenericAllocationHandle last_handle;

static unsigned char *at(CUdeviceptr p) {
    return reinterpret_cast<unsigned char *>(p);
}

static CUresult get_error_string(CUresult error, const char **ret) {
    *ret = cudaGetErrorString((cudaError_t)error); // the numbers are the same
    return CUDA_SUCCESS;
}
static bool usable(const CUmemAllocationProp *prop) {
    return prop != nullptr && prop->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
           prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE && prop->location.id >= 0 &&
           prop->location.id < emu_device_count();
}
static CUresult granularity(size_t *ret, const CUmemAllocationProp *prop,
                            CUmemAllocationGranularity_flags) {
    if (ret == nullptr || !usable(prop))
        return CUDA_ERROR_INVALID_VALUE;
    *ret = GRANULARITY;
    return CUDA_SUCCESS;
}

static void put(allocation *a) {
    if (--a->users > 0)
        return;
    if (!a->imported)
        emu_memory_used -= a->bytes;
    close(a->fd);
    delete a;
}
static CUmemGenericAllocationHandle new_handle(allocation *a) {
    handles[++last_handle] = a;
    return last_handle;
}
static CUresult mem_create(CUmemGenericAllocationHandle *ret, size_t size,
                           const CUmemAllocationProp *prop, unsigned long long flags) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (!usable(prop) || size == 0 || size % GRANULARITY != 0 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (size > emu_memory_limit() || emu_memory_used + size > emu_memory_limit())
        return CUDA_ERROR_OUT_OF_MEMORY;
    int fd = emu_memory_file(size);
    if (fd < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    emu_memory_used += size;
    *ret = new_handle(new allocation{fd, size, 1, true, false});
    return CUDA_SUCCESS;
}
static CUresult mem_release(CUmemGenericAllocationHandle handle) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto found = handles.find(handle);
    if (found == handles.end())
        return CUDA_ERROR_INVALID_VALUE;
    put(found->second);
    handles.erase(found);
    return CUDA_SUCCESS;
}

static CUresult address_reserve(CUdeviceptr *ret, size_t size, size_t, CUdeviceptr,
                                unsigned long long) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (size == 0 || size % GRANULARITY != 0)
        return CUDA_ERROR_INVALID_VALUE;
    void *p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    ranges[static_cast<unsigned char *>(p)] = reserved{size, nullptr};
    *ret = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}
static CUresult address_free(CUdeviceptr address, size_t size) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto range = ranges.find(at(address));
    if (range == ranges.end() || range->second.bytes != size || range->second.mapped != nullptr)
        return CUDA_ERROR_INVALID_VALUE;
    munmap(range->first, size);
    ranges.erase(range);
    return CUDA_SUCCESS;
}
// One allocation in a range, from its beginning.
static CUresult mem_map(CUdeviceptr address, size_t size, size_t offset,
                        CUmemGenericAllocationHandle handle, unsigned long long) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto range = ranges.find(at(address));
    auto found = handles.find(handle);
    if (range == ranges.end() || found == handles.end() || range->second.mapped != nullptr ||
        size > range->second.bytes || offset != 0 || size > found->second->bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (mmap(range->first, size, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second->fd, 0) ==
        MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    found->second->users++;
    range->second.mapped = found->second;
    emu_memory[range->first] = emu_allocation{size, nullptr, 0, -1, false, false};
    return CUDA_SUCCESS;
}
static CUresult mem_unmap(CUdeviceptr address, size_t size) {
    emu_memory_wait_idle();
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto range = ranges.find(at(address));
    if (range == ranges.end() || range->second.mapped == nullptr ||
        emu_memory[range->first].bytes != size)
        return CUDA_ERROR_INVALID_VALUE;
    mmap(range->first, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
         0);
    put(range->second.mapped);
    range->second.mapped = nullptr;
    emu_memory.erase(range->first);
    return CUDA_SUCCESS;
}
static CUresult set_access(CUdeviceptr address, size_t size, const CUmemAccessDesc *access,
                           size_t count) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto range = ranges.find(at(address));
    if (range == ranges.end() || range->second.mapped == nullptr || size > range->second.bytes ||
        count != 1 || access->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        access->location.id >= emu_device_count())
        return CUDA_ERROR_INVALID_VALUE;
    int how = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE
              : access->flags == CU_MEM_ACCESS_FLAGS_PROT_READ    ? PROT_READ
                                                                  : PROT_NONE;
    return mprotect(range->first, size, how) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult export_handle(void *ret, CUmemGenericAllocationHandle handle,
                              CUmemAllocationHandleType type, unsigned long long flags) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    auto found = handles.find(handle);
    if (found == handles.end() || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    int fd = dup(found->second->fd);
    if (fd < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(ret, &fd, sizeof fd);
    return CUDA_SUCCESS;
}
static CUresult import_handle(CUmemGenericAllocationHandle *ret, void *os_handle,
                              CUmemAllocationHandleType type) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    int fd = (int)(intptr_t)os_handle;
    size_t bytes = 0;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !emu_memory_is_file(fd, &bytes))
        return CUDA_ERROR_INVALID_VALUE;
    fd = dup(fd);
    if (fd < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *ret = new_handle(new allocation{fd, bytes, 1, true, true});
    return CUDA_SUCCESS;
}
static CUresult address_range(CUdeviceptr *base, size_t *size, CUdeviceptr address) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(at(address));
    if (a == nullptr || a->second.host)
        return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr)
        *base = (CUdeviceptr)(uintptr_t)a->first;
    if (size != nullptr)
        *size = a->second.bytes;
    return CUDA_SUCCESS;
}

// --- finding them -----------------------------------------------------------------------------------

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **ret, unsigned int,
                                             unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *status) {
#define ENTRY(name, version, function) \
    { #name, reinterpret_cast < void *>(static_cast <PFN_##name##_##version>(function)) }
    static const struct {
        const char *name;
        void *function;
    } entries[] = {
        ENTRY(cuGetErrorString, v6000, get_error_string),
        ENTRY(cuMemGetAllocationGranularity, v10020, granularity),
        ENTRY(cuMemCreate, v10020, mem_create),
        ENTRY(cuMemRelease, v10020, mem_release),
        ENTRY(cuMemAddressReserve, v10020, address_reserve),
        ENTRY(cuMemAddressFree, v10020, address_free),
        ENTRY(cuMemMap, v10020, mem_map),
        ENTRY(cuMemUnmap, v10020, mem_unmap),
        ENTRY(cuMemSetAccess, v10020, set_access),
        ENTRY(cuMemExportToShareableHandle, v10020, export_handle),
        ENTRY(cuMemImportFromShareableHandle, v10020, import_handle),
        ENTRY(cuMemGetAddressRange, v3020, address_range),
    };
#undef ENTRY
    for (const auto &e : entries)
        if (strcmp(e.name, symbol) == 0) {
            *ret = e.function;
            *status = cudaDriverEntryPointSuccess;
            return cudaSuccess;
        }
    *ret = nullptr;
    *status = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
