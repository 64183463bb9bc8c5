// SPDX-License-Identifier: Apache-2.0
// device_memory.cpp: memory of the emulated runtime: cudaMalloc, host memory, CUDA IPC.
//
// Invariants
//  1. Device memory is not initialised: 0xff. An access outside an allocation faults (pages without
//     access on both sides; AddressSanitizer's red zones where it is there).
//  2. An allocation of a multiple of 2 MiB is a memfd, which an IPC handle names by process and
//     descriptor. Others have no IPC handle here (a GPU shares the whole block around them, and so does
//     libcuda_emulated.cpp). The file is opened whole; the handle says where in it the allocation is.
//  3. While the file $KVPOOL_EMULATE_BUSY exists the device counts as busy: calls that take memory back,
//     which may wait for all work on a GPU, wait until it is gone, and cudaMemsetAsync with them. The first
//     to wait makes $..._BUSY.waiting. While $..._BUSY.programs exists no event is over.
// Threads: any.
#include "tests/gpu/emulate/device_memory.h"
#include "tests/gpu/emulate/cudart_emulated.h"

#include <atomic>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, ALIGNMENT = 256, IPC_BLOCK = 2 << 20 };

std::mutex emu_memory_lock;
std::map<unsigned char *, emu_allocation> emu_memory;
size_t emu_memory_used;
static std::map<unsigned char *, size_t> registered;

size_t emu_memory_limit() {
    const char *text = getenv("KVPOOL_EMULATE_MEMORY");
    return text != nullptr ? strtoull(text, nullptr, 0) : (size_t)8 << 30;
}

int emu_memory_file(size_t bytes) {
    int fd = memfd_create("kvpool-emulated-device", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}
bool emu_memory_is_file(int fd, size_t *ret_bytes) {
    char path[64], name[64] = {};
    struct stat st;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (readlink(path, name, sizeof name - 1) < 0 || fstat(fd, &st) != 0 ||
        strncmp(name, "/memfd:kvpool-emulated-device", 29) != 0)
        return false;
    *ret_bytes = (size_t)st.st_size;
    return true;
}
bool emu_programs_last() {
    const char *busy = getenv("KVPOOL_EMULATE_BUSY");
    char path[512];
    if (busy == nullptr)
        return false;
    snprintf(path, sizeof path, "%s.programs", busy);
    return access(path, F_OK) == 0;
}
static std::atomic<int> waiting; // threads in emu_memory_wait_idle
void emu_memory_wait_idle() {
    const char *busy = getenv("KVPOOL_EMULATE_BUSY");
    char path[512];
    if (busy == nullptr || access(busy, F_OK) != 0)
        return;
    snprintf(path, sizeof path, "%s.waiting", busy);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    waiting++;
    while (access(busy, F_OK) == 0)
        usleep(1000);
    waiting--;
}
void emu_memory_wait_others() {
    while (waiting > 0)
        usleep(1000);
}
const std::pair<unsigned char *const, emu_allocation> *emu_memory_find(const void *p) {
    unsigned char *at = static_cast<unsigned char *>(const_cast<void *>(p));
    auto next = emu_memory.upper_bound(at);
    if (next == emu_memory.begin())
        return nullptr;
    --next;
    return at < next->first + next->second.bytes ? &*next : nullptr;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    *total = emu_memory_limit();
    *free_bytes = *total > emu_memory_used ? *total - emu_memory_used : 0;
    return cudaSuccess;
}

// --- allocations --------------------------------------------------------------------------------

// Pages without access, then the memory, its end at pages without access again.
static unsigned char *map_guarded(size_t rounded, emu_allocation *a) {
    size_t pages = (rounded + PAGE - 1) / PAGE * PAGE;
    a->map_bytes = pages + 2 * PAGE;
    void *map =
        mmap(nullptr, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return nullptr;
    a->map = static_cast<unsigned char *>(map);
    int flags = MAP_FIXED | (a->fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    if (mmap(a->map + PAGE, pages, PROT_READ | PROT_WRITE, flags, a->fd, 0) == MAP_FAILED) {
        munmap(map, a->map_bytes);
        return nullptr;
    }
    return a->map + PAGE + pages - rounded;
}

static cudaError_t allocate(void **ret, size_t bytes, bool host) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (emu_result(cudaSuccess) != cudaSuccess)
        return cudaErrorIllegalAddress;
    if (bytes == 0) {
        *ret = nullptr;
        return cudaSuccess;
    }
    if (bytes > emu_memory_limit() || (!host && emu_memory_used + bytes > emu_memory_limit()))
        return emu_result(cudaErrorMemoryAllocation);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    emu_allocation a = {bytes, nullptr, 0, -1, host, !host};
    unsigned char *p = nullptr;
    if (!host && bytes % IPC_BLOCK == 0) {
        a.fd = emu_memory_file(bytes);
        if (a.fd < 0)
            return emu_result(cudaErrorMemoryAllocation);
        p = map_guarded(bytes, &a);
        if (p == nullptr)
            close(a.fd);
    } else {
#if defined(__SANITIZE_ADDRESS__)
        p = static_cast<unsigned char *>(aligned_alloc(ALIGNMENT, rounded));
#else
        p = map_guarded(rounded, &a);
#endif
    }
    if (p == nullptr)
        return emu_result(cudaErrorMemoryAllocation);
    memset(p, 0xff, bytes);
    emu_memory_used += host ? 0 : bytes;
    emu_memory[p] = a;
    *ret = p;
    return cudaSuccess;
}
static cudaError_t release(void *p, bool host) {
    if (p != nullptr)
        emu_memory_wait_idle();
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (p == nullptr)
        return cudaSuccess;
    auto at = emu_memory.find(static_cast<unsigned char *>(p));
    if (at == emu_memory.end() || at->second.host != host || (!host && !at->second.counted))
        return emu_result(cudaErrorInvalidValue);
    emu_memory_used -= host ? 0 : at->second.bytes;
    if (at->second.fd >= 0)
        close(at->second.fd);
    if (at->second.map != nullptr)
        munmap(at->second.map, at->second.map_bytes);
    else
        free(p);
    emu_memory.erase(at);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) {
    return allocate(p, bytes, false);
}
cudaError_t cudaFree(void *p) {
    return release(p, false);
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned int) {
    return allocate(p, bytes, true);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    return allocate(p, bytes, true);
}
cudaError_t cudaFreeHost(void *p) {
    return release(p, true);
}

// --- host memory that the device reaches --------------------------------------------------------

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned int) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    if (p == nullptr || bytes == 0)
        return emu_result(cudaErrorInvalidValue);
    unsigned char *at = static_cast<unsigned char *>(p);
    for (const auto &r : registered)
        if (at < r.first + r.second && r.first < at + bytes)
            return emu_result(cudaErrorHostMemoryAlreadyRegistered);
    registered[at] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    emu_memory_wait_idle();
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    return emu_result(registered.erase(static_cast<unsigned char *>(p)) == 1
                          ? cudaSuccess
                          : cudaErrorHostMemoryNotRegistered);
}
bool emu_memory_registered(const void *p) {
    const unsigned char *at = static_cast<const unsigned char *>(p);
    for (const auto &r : registered)
        if (at >= r.first && at < r.first + r.second)
            return true;
    return false;
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(host);
    if (flags != 0 || !(emu_memory_registered(host) || (a != nullptr && a->second.host)))
        return emu_result(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *ret, const void *p) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(p);
    struct cudaPointerAttributes attributes = {cudaMemoryTypeUnregistered, -2, nullptr,
                                               const_cast<void *>(p)};
    if (a != nullptr || emu_memory_registered(p)) {
        bool host = a == nullptr || a->second.host;
        attributes.type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
        attributes.device = 0;
        attributes.devicePointer = const_cast<void *>(p);
        attributes.hostPointer = host ? const_cast<void *>(p) : nullptr;
    }
    *ret = attributes;
    return cudaSuccess;
}

// --- CUDA IPC -----------------------------------------------------------------------------------

struct ipc {
    char magic[8];
    uint64_t bytes, inode, at;
    int32_t pid, fd;
};
static const char MAGIC[8] = {'e', 'm', 'u', 'l', 'i', 'p', 'c', '1'};

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *p) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(p);
    struct stat st;
    if (a == nullptr || a->second.fd < 0 || !a->second.counted || fstat(a->second.fd, &st) != 0)
        return emu_result(cudaErrorInvalidValue);
    struct ipc h = {};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.bytes = a->second.bytes;
    h.inode = (uint64_t)st.st_ino;
    h.at = a->second.at;
    h.pid = getpid();
    h.fd = a->second.fd;
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &h, sizeof h);
    return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void **ret, cudaIpcMemHandle_t handle, unsigned int flags) {
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    struct ipc h;
    struct stat st;
    size_t size = 0;
    memcpy(&h, &handle, sizeof h);
    if (flags != cudaIpcMemLazyEnablePeerAccess || memcmp(h.magic, MAGIC, sizeof h.magic) != 0)
        return emu_result(cudaErrorInvalidValue);
    if (h.pid == getpid())
        return emu_result(cudaErrorDeviceUninitialized);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
    emu_allocation a = {0, nullptr, 0, open(path, O_RDWR | O_CLOEXEC), false, false, h.at};
    if (a.fd < 0)
        return emu_result(cudaErrorMapBufferObjectFailed);
    unsigned char *p = nullptr;
    if (emu_memory_is_file(a.fd, &size) && h.at < size && h.bytes <= size - h.at &&
        fstat(a.fd, &st) == 0 && (uint64_t)st.st_ino == h.inode)
        p = map_guarded(size, &a);
    if (p == nullptr) {
        close(a.fd);
        return emu_result(cudaErrorMapBufferObjectFailed);
    }
    a.bytes = size; // what the driver knows of it: the whole block
    emu_memory[p] = a;
    *ret = p + h.at;
    return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void *p) {
    emu_memory_wait_idle();
    std::lock_guard<std::mutex> hold(emu_memory_lock);
    const auto *a = emu_memory_find(p);
    if (a == nullptr || a->second.counted || a->second.host || a->second.fd < 0 ||
        p != a->first + a->second.at)
        return emu_result(cudaErrorInvalidValue);
    close(a->second.fd);
    munmap(a->second.map, a->second.map_bytes);
    emu_memory.erase(a->first);
    return cudaSuccess;
}
