// SPDX-License-Identifier: Apache-2.0
// memory.c: see memory.h.
#include "kernels/cuda/memory.h"

#include "kernels/cuda/import.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define IPC_BLOCK ((uint64_t)2 << 20) // CUDA IPC shares memory in whole blocks of this
#define RETRY_NS 2000000u             // after AGAIN
#define PATIENCE_NS 1000000000u       // of the reaper, about
#define LOOK_NS 200000u

static CUmemAllocationProp properties(const struct cuda_memory *m) {
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = m->device},
    };
}

// --- the reaper's calls -------------------------------------------------------------------------

static void started(void *arg) {
    const struct cuda_memory *m = arg;
    cudaSetDevice(m->device);
}

// Until no program is with the device. One that comes between this and the release costs a wait.
static void await_pause(void *arg) {
    struct cuda_memory *m = arg;
    const struct timespec pause = {.tv_nsec = LOOK_NS};
    for (uint32_t looks = PATIENCE_NS / LOOK_NS; looks > 0; looks--) {
        if (cuda_flights_idle(m->flights) || atomic_load(&m->wanted) || atomic_load(&m->closes) > 0)
            break;
        nanosleep(&pause, NULL);
    }
    atomic_store(&m->wanted, false);
}

// A lost device fails every call: it may show here first.
static void released(void *arg) {
    struct cuda_memory *m = arg;
    cudaError_t e = cudaStreamQuery(m->stream);
    if (e != cudaSuccess && e != cudaErrorNotReady) {
        struct err err;
        cuda_error(&err, KVPOOL_E_BACKEND, "releasing memory of the GPU", e);
        cuda_flights_fail(m->flights, err.text);
    }
    cudaGetLastError();
}

// --- open and close -----------------------------------------------------------------------------

int cuda_memory_open(struct cuda_memory *m, int device, struct cuda_flights *flights,
                     struct err *err) {
    struct cuda_memory memory = {.device = device, .flights = flights};
    int status = cuda_driver_load(&memory.driver, err);
    if (status != 0)
        return status;
    const CUmemAllocationProp prop = properties(&memory);
    size_t unit = 0;
    CUresult found = memory.driver.p_cuMemGetAllocationGranularity(
        &unit, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (found != CUDA_SUCCESS)
        return cuda_driver_error(&memory.driver, err, KVPOOL_E_BACKEND,
                                 "the GPU has no memory that can be shared", found);
    memory.unit = unit > 0 ? unit : IPC_BLOCK;
    // The loop waits for what is put on it, and not behind attention.
    int least, most;
    cudaError_t e = cudaDeviceGetStreamPriorityRange(&least, &most);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithPriority(&memory.stream, cudaStreamNonBlocking, most);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, "a stream", e);
    *m = memory;
    pthread_mutex_init(&m->lock, NULL);
    const struct cuda_reaper_calls calls = {
        .started = started, .ready = await_pause, .released = released, .arg = m};
    status = cuda_reaper_open(&calls, &m->reaper, err);
    if (status != 0) {
        pthread_mutex_destroy(&m->lock);
        cudaStreamDestroy(m->stream);
    }
    return status;
}

void cuda_memory_close(struct cuda_memory *m) {
    cuda_reaper_close(m->reaper);
    pthread_mutex_destroy(&m->lock);
    cudaStreamDestroy(m->stream);
}

void cuda_close_begin(struct cuda_memory *m, const struct backend_close *close) {
    if (close != NULL)
        atomic_fetch_add(&m->closes, 1);
}

void cuda_close_end(struct cuda_memory *m, struct backend_close *closes) {
    while (closes != NULL) {
        struct backend_close *next = closes->next;
        atomic_fetch_sub(&m->closes, 1);
        closes->done(closes);
        closes = next;
    }
}

// --- too little memory --------------------------------------------------------------------------

struct room {
    uint64_t available; // bytes, less what is spared
    uint64_t pending;   // that the reaper still has
};

static int again(const char *what, struct err *err) {
    return err_set_detail(err, KVPOOL_E_AGAIN, RETRY_NS,
                          "%s: memory that was freed is still being taken back", what);
}

int cuda_memory_pending(struct cuda_memory *m, const char *what, struct err *err) {
    atomic_store(&m->wanted, true);
    return again(what, err);
}

static int no_memory(struct cuda_memory *m, const char *what, uint64_t bytes,
                     const struct room *room, struct err *err) {
    if (room->pending > 0 && bytes <= room->available + room->pending)
        return cuda_memory_pending(m, what, err);
    return err_set(err, KVPOOL_E_NOMEM,
                   "%s wants %" PRIu64 " bytes, %" PRIu64 " are available on the GPU", what, bytes,
                   room->available);
}

// Rounds up to `unit` and checks against what is free. Holds the reaper, until cuda_reaper_let.
static int reserve(struct cuda_memory *m, const char *what, uint64_t *bytes, uint64_t unit,
                   uint64_t spare, struct room *ret, struct err *err) {
    size_t available = 0;
    size_t total = 0;
    // First: what comes back in between is then counted twice, and not missed.
    const uint64_t pending = cuda_reaper_bytes(m->reaper, BACKEND_DEVICE);
    cudaError_t e = cudaMemGetInfo(&available, &total);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, "free memory of the GPU", e);
    *ret = (struct room){available > spare ? available - spare : 0, pending};
    if (*bytes > ret->available)
        return no_memory(m, what, *bytes, ret, err);
    // Without programs what the reaper does takes no time.
    if (!cuda_reaper_hold(m->reaper, cuda_flights_idle(m->flights)))
        return again(what, err);
    *bytes = (*bytes + unit - 1) / unit * unit;
    return 0;
}

static int zero(struct cuda_memory *m, void *address, uint64_t bytes, struct err *err) {
    cudaError_t e = cudaMemsetAsync(address, 0, bytes, m->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(m->stream);
    return e == cudaSuccess ? 0 : cuda_error(err, KVPOOL_E_BACKEND, "zeroing memory", e);
}

// --- BACKEND_FD ---------------------------------------------------------------------------------

// Gives block->allocation an address. Undoes what it did on failure.
static CUresult map(struct cuda_memory *m, struct cuda_block *block, uint64_t bytes) {
    const struct cuda_driver *driver = &m->driver;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = m->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    CUdeviceptr address = 0;
    CUresult e = driver->p_cuMemAddressReserve(&address, bytes, 0, 0, 0);
    if (e != CUDA_SUCCESS)
        return e;
    e = driver->p_cuMemMap(address, bytes, 0, block->allocation, 0);
    if (e != CUDA_SUCCESS)
        goto free_address;
    e = driver->p_cuMemSetAccess(address, bytes, &access, 1);
    if (e != CUDA_SUCCESS)
        goto unmap;
    block->mapping = address;
    block->mapped_bytes = bytes;
    return CUDA_SUCCESS;

unmap:
    driver->p_cuMemUnmap(address, bytes);
free_address:
    driver->p_cuMemAddressFree(address, bytes);
    return e;
}

static void unmap(struct cuda_memory *m, struct cuda_block *block) {
    m->driver.p_cuMemUnmap(block->mapping, block->mapped_bytes);
    m->driver.p_cuMemAddressFree(block->mapping, block->mapped_bytes);
}

static int create(struct cuda_memory *m, const char *what, uint64_t bytes, const struct room *room,
                  struct cuda_block *ret, struct err *err) {
    const CUmemAllocationProp prop = properties(m);
    struct cuda_block block = {.how = BACKEND_FD, .fd = -1};
    int status;
    CUresult e = m->driver.p_cuMemCreate(&block.allocation, bytes, &prop, 0);
    if (e == CUDA_ERROR_OUT_OF_MEMORY)
        return no_memory(m, what, bytes, room, err);
    if (e != CUDA_SUCCESS)
        return cuda_driver_error(&m->driver, err, KVPOOL_E_BACKEND, "cuMemCreate", e);
    e = map(m, &block, bytes);
    if (e != CUDA_SUCCESS) {
        status = cuda_driver_error(&m->driver, err, KVPOOL_E_NOMEM, "mapping memory", e);
        goto release;
    }
    e = m->driver.p_cuMemExportToShareableHandle(&block.fd, block.allocation,
                                                 CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (e != CUDA_SUCCESS) {
        status = cuda_driver_error(&m->driver, err, KVPOOL_E_BACKEND, "exporting memory", e);
        goto unmap;
    }
    fcntl(block.fd, F_SETFD, FD_CLOEXEC);
    block.address = (char *)(uintptr_t)block.mapping;
    block.bytes = bytes;
    status = zero(m, block.address, bytes, err);
    if (status != 0)
        goto close_fd;
    *ret = block;
    return 0;

close_fd:
    close(block.fd);
unmap:
    unmap(m, &block);
release:
    m->driver.p_cuMemRelease(block.allocation);
    return status;
}

static int open_fd(struct cuda_memory *m, const char *what, uint64_t bytes, uint64_t spare,
                   struct cuda_block *ret, struct err *err) {
    struct room room = {0};
    int status = reserve(m, what, &bytes, m->unit, spare, &room, err);
    if (status != 0)
        return status;
    status = create(m, what, bytes, &room, ret, err);
    cuda_reaper_let(m->reaper);
    return status;
}

static int import_fd(struct cuda_memory *m, const struct backend_handle *handle, uint64_t bytes,
                     struct cuda_block *ret, struct err *err) {
    struct cuda_block block = {.how = BACKEND_FD, .fd = -1, .bytes = bytes};
    if (handle->bytes == 0 || handle->bytes % m->unit != 0)
        return err_set(err, KVPOOL_E_INVAL,
                       "%" PRIu64 " bytes: device memory behind a file descriptor is a multiple of "
                       "%" PRIu64,
                       handle->bytes, m->unit);
    if (handle->offset > handle->bytes || bytes > handle->bytes - handle->offset)
        return err_set(err, KVPOOL_E_INVAL,
                       "%" PRIu64 " bytes at %" PRIu64 " are outside of the memory's %" PRIu64,
                       bytes, handle->offset, handle->bytes);
    if (fcntl(handle->fd, F_GETFD) < 0)
        return err_set(err, KVPOOL_E_INVAL, "%d is not a file descriptor", handle->fd);
    CUresult e = m->driver.p_cuMemImportFromShareableHandle(
        &block.allocation, (void *)(uintptr_t)handle->fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    if (e != CUDA_SUCCESS)
        return cuda_driver_error(&m->driver, err, KVPOOL_E_INVAL,
                                 "the file descriptor opens no memory of this GPU", e);
    e = map(m, &block, handle->bytes);
    if (e != CUDA_SUCCESS) {
        m->driver.p_cuMemRelease(block.allocation);
        if (e == CUDA_ERROR_OUT_OF_MEMORY && cuda_reaper_bytes(m->reaper, BACKEND_DEVICE) > 0)
            return cuda_memory_pending(m, "imported memory", err);
        return cuda_driver_error(&m->driver, err,
                                 e == CUDA_ERROR_OUT_OF_MEMORY ? KVPOOL_E_NOMEM : KVPOOL_E_INVAL,
                                 "mapping imported memory (of the stated size)", e);
    }
    block.offset = handle->offset;
    block.address = (char *)(uintptr_t)block.mapping + handle->offset;
    *ret = block;
    return 0;
}

// --- BACKEND_IPC --------------------------------------------------------------------------------

static int zeroed(struct cuda_memory *m, const char *what, uint64_t bytes, const struct room *room,
                  void **ret, struct err *err) {
    void *address = NULL;
    cudaError_t e = cudaMalloc(&address, bytes);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return no_memory(m, what, bytes, room, err);
    }
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, what, e);
    int status = zero(m, address, bytes, err);
    if (status != 0) {
        cudaFree(address);
        return status;
    }
    *ret = address;
    return 0;
}

// cudaMalloc, zeroed; not less than a block of its own when `bytes` is a multiple of IPC_BLOCK.
static int allocate(struct cuda_memory *m, const char *what, uint64_t *bytes, uint64_t unit,
                    uint64_t spare, void **ret, struct err *err) {
    struct room room = {0};
    int status = reserve(m, what, bytes, unit, spare, &room, err);
    if (status != 0)
        return status;
    status = zeroed(m, what, *bytes, &room, ret, err);
    cuda_reaper_let(m->reaper);
    return status;
}

int cuda_private_open(struct cuda_memory *m, const char *what, uint64_t bytes, void **ret,
                      struct err *err) {
    return allocate(m, what, &bytes, 1, 0, ret, err);
}

CUresult cuda_memory_range(const struct cuda_memory *m, const void *address, char **ret_base,
                           uint64_t *ret_bytes) {
    CUdeviceptr base = 0;
    size_t bytes = 0;
    CUresult e = m->driver.p_cuMemGetAddressRange(&base, &bytes, (CUdeviceptr)(uintptr_t)address);
    if (e == CUDA_SUCCESS) {
        *ret_base = (char *)(uintptr_t)base;
        *ret_bytes = bytes;
    }
    return e;
}

static int open_ipc(struct cuda_memory *m, const char *what, uint64_t bytes, uint64_t spare,
                    struct cuda_block *ret, struct err *err) {
    struct cuda_block block = {.how = BACKEND_IPC, .fd = -1};
    void *address = NULL;
    char *base = NULL;
    uint64_t size = 0;
    int status = allocate(m, what, &bytes, IPC_BLOCK, spare, &address, err);
    if (status != 0)
        return status;
    block.address = address;
    block.bytes = bytes;
    CUresult found = cuda_memory_range(m, address, &base, &size);
    if (found != CUDA_SUCCESS) {
        status = cuda_driver_error(&m->driver, err, KVPOOL_E_BACKEND, "range of memory", found);
        goto free_memory;
    }
    block.offset = (uint64_t)(block.address - base);
    cudaError_t e = cudaIpcGetMemHandle(&block.ipc, address);
    if (e != cudaSuccess) {
        status = cuda_error(err, KVPOOL_E_BACKEND, "exporting memory", e);
        goto free_memory;
    }
    *ret = block;
    return 0;

free_memory:
    cudaFree(address);
    return status;
}

static int import_ipc(struct cuda_memory *m, const struct backend_handle *handle, uint64_t bytes,
                      struct cuda_block *ret, struct err *err) {
    int status = 0;
    struct cuda_import *import = cuda_import_get(m, handle->ipc, &status, err);
    if (import == NULL)
        return status;
    if (handle->offset > import->bytes || bytes > import->bytes - handle->offset) {
        status =
            err_set(err, KVPOOL_E_INVAL,
                    "%" PRIu64 " bytes at %" PRIu64 " are outside of the allocation's %" PRIu64,
                    bytes, handle->offset, import->bytes);
        cuda_import_put(m, import, NULL);
        return status;
    }
    *ret = (struct cuda_block){.address = import->base + handle->offset,
                               .bytes = bytes,
                               .how = BACKEND_IPC,
                               .fd = -1,
                               .ipc = import->handle,
                               .offset = handle->offset,
                               .import = import};
    return 0;
}

// --- both ---------------------------------------------------------------------------------------

int cuda_block_open(struct cuda_memory *m, const char *what, uint64_t bytes, uint64_t spare,
                    enum backend_export how, struct cuda_block *ret, struct err *err) {
    return how == BACKEND_FD ? open_fd(m, what, bytes, spare, ret, err)
                             : open_ipc(m, what, bytes, spare, ret, err);
}

int cuda_block_import(struct cuda_memory *m, const struct backend_handle *handle, uint64_t bytes,
                      struct cuda_block *ret, struct err *err) {
    if (handle->place != BACKEND_DEVICE)
        return err_set(err, KVPOOL_E_INVAL, "only memory of a GPU can be imported");
    return handle->how == BACKEND_FD ? import_fd(m, handle, bytes, ret, err)
                                     : import_ipc(m, handle, bytes, ret, err);
}

bool cuda_block_put(struct cuda_memory *m, struct cuda_block *block, struct backend_close *close) {
    if (block->import == NULL)
        return false;
    cuda_import_put(m, block->import, close);
    return true;
}

void cuda_block_release(struct cuda_memory *m, struct cuda_block *block) {
    if (block->how == BACKEND_FD) {
        if (block->fd >= 0)
            close(block->fd);
        unmap(m, block);
        m->driver.p_cuMemRelease(block->allocation);
    } else {
        cudaFree(block->address);
    }
}

void cuda_block_handle(const struct cuda_block *block, struct backend_handle *ret) {
    *ret = (struct backend_handle){.place = BACKEND_DEVICE,
                                   .how = block->how,
                                   .fd = block->fd,
                                   .offset = block->offset,
                                   .bytes = block->bytes};
    if (block->how == BACKEND_IPC) {
        _Static_assert(sizeof ret->ipc == sizeof block->ipc, "an IPC handle fits");
        memcpy(ret->ipc, &block->ipc, sizeof ret->ipc);
    }
}

int cuda_memory_copy(struct cuda_memory *m, void *to, const void *from, uint64_t bytes,
                     struct err *err) {
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, m->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(m->stream);
    return e == cudaSuccess ? 0 : cuda_error(err, KVPOOL_E_BACKEND, "copying memory", e);
}
