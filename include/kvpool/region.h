// SPDX-License-Identifier: Apache-2.0
// region.h: regions, memory that a worker and the daemon share, and the tensors in them. Conventions:
// kvpool.h.
#ifndef KVPOOL_REGION_H
#define KVPOOL_REGION_H

#include <kvpool/base.h>

#ifdef __cplusplus
extern "C" {
#endif

// Allocates `bytes` (rounded up to the system's page size) of memory shared with the daemon,
// zeroed, which CPU and the daemon's device both reach. Owned by the caller: kvpool_region_free().
// Where memory that was freed, by anybody, would do, and a busy device has not taken it back yet, it waits
// for that; for memory of the device also while the device is just taking some back.
// Errors: INVAL (0), NOMEM (nor would that do), LIMIT (per-client limits), AGAIN (it was not over before the
// client's time-out: nothing was made, and a later call may do).
KVPOOL_API kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                              kvpool_region **ret_region);

typedef enum kvpool_place {
    KVPOOL_PLACE_HOST = 1,   // the CPU and the device reach it
    KVPOOL_PLACE_DEVICE = 2, // memory of the daemon's device; of the backend "cpu": as HOST
} kvpool_place;

typedef struct kvpool_region_args {
    size_t size;
    uint64_t bytes;     // 1 or more; rounded up to what the device allocates
    uint32_t place;     // kvpool_place; 0: DEVICE
    uint32_t export_as; // kvpool_export, how it comes to this process; 0: FD
} kvpool_region_args;
#define KVPOOL_REGION_ARGS_INIT \
    { sizeof(kvpool_region_args), 0, 0, 0 }

// The same with a choice of place and export, and with a handle: kvpool_region_export(). The memory
// is zeroed. A region that is exported by IPC shares whole blocks of 2 MiB: its bytes are rounded up
// to them.
// Errors: INVAL, NOMEM, LIMIT, AGAIN (as kvpool_region_create()), UNSUPPORTED (what the daemon's backend
// has not: IPC of host memory, or of "cpu"; a daemon without regions of device memory).
KVPOOL_API kvpool_status kvpool_region_alloc(kvpool_client *client, const kvpool_region_args *args,
                                             kvpool_region **ret_region);

// Makes a region of this process's own device memory, where it is (a tensor of PyTorch, say), so
// that nothing is copied. `device_ptr` need not be the start of its allocation: the library finds
// that, and sends the allocation's CUDA IPC handle and the offset.
//
// CUDA shares whole blocks of 2 MiB by IPC: small allocations that happen to lie in the same block
// become readable and writable for the daemon too. Allocate in multiples of 2 MiB to avoid it.
// The memory must stay allocated until kvpool_region_free() has returned KVPOOL_OK: then the daemon has
// closed its handle. After TIMEOUT or CONN the daemon may have it open as after kvpool_region_free() that
// returned one of these. What the process's own streams write into it must be complete (synchronized)
// before a request that reads it is sent.
//
// The process needs a CUDA driver and `device_ptr` must be of the daemon's device and a multiple of 4
// (of 16 for full speed): of a tensor that begins elsewhere register from before it, and give the rest
// as kvpool_tensor.offset. Errors: INVAL (no device memory, no multiple of 4, 0 bytes, more bytes than
// the allocation has from there; of another device),
// LIMIT, NOMEM, AGAIN (as kvpool_region_create(); or the daemon was still closing this memory when the
// time-out came), UNSUPPORTED (no CUDA driver; the daemon's backend is not cuda; memory that CUDA IPC
// cannot share: managed, of a memory pool (cudaMallocAsync), or of cuMemCreate, which is what
// PyTorch's "expandable segments" are: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False, or
// use kvpool_region_alloc() and kvpool_region_device_ptr()).
KVPOOL_API kvpool_status kvpool_region_register(kvpool_client *client, const void *device_ptr,
                                                uint64_t bytes, kvpool_region **ret_region);

// What any other user of the memory opens it with.
typedef struct kvpool_region_handle {
    size_t size;
    uint32_t place;        // kvpool_place where it came to be: HOST when the CPU can map it
    uint32_t export_as;    // kvpool_export
    int32_t fd;            // FD: borrowed, valid until kvpool_region_free(): dup() it to keep or to
                           // send it. HOST: to be mmap()ed, DEVICE: for
                           // cuMemImportFromShareableHandle(). IPC: -1
    uint32_t reserved;     // 0
    unsigned char ipc[64]; // IPC: for cudaIpcOpenMemHandle(); else 0
    uint64_t offset;       // of the region in what the handle opens, bytes
    uint64_t bytes;        // of what the handle opens
} kvpool_region_handle;

// The handle of a region made by kvpool_region_alloc() or kvpool_region_register(). ret->size must
// be set. Errors: INVAL, STATE (of kvpool_region_create(), which keeps no descriptor), FORKED.
KVPOOL_API kvpool_status kvpool_region_export(kvpool_region *region, kvpool_region_handle *ret);

// Address of the region for kernels of this process, in the CUDA context that is current in the
// calling thread (with the CUDA runtime: call cudaFree(0) or any other call first). Mapped at the
// first call, valid until kvpool_region_free(). Host memory is registered with CUDA; memory of
// kvpool_region_register() is where it was.
// Errors: INVAL, FORKED, UNSUPPORTED (no CUDA driver), STATE (no current context; or mapped already
// in another one), BACKEND (CUDA cannot map it there: the message says which call failed and how).
KVPOOL_API kvpool_status kvpool_region_device_ptr(kvpool_region *region, void **ret_ptr);

// Address in this process (page aligned; NULL: memory that the CPU does not reach), and size in
// bytes (after rounding). Valid until kvpool_region_free(), also when the daemon has gone. NULL and
// 0 in a forked child.
KVPOOL_API void *kvpool_region_data(const kvpool_region *region);
KVPOOL_API uint64_t kvpool_region_size(const kvpool_region *region);

// Unmaps and frees, whatever it returns: `region` is gone. Requests in flight that name it finish first in
// the daemon. NULL is ignored. kvpool_close() frees the regions that are left: not to be called after it.
// No kernel of this process may still use its device address, whose context must still exist.
//
// Memory of kvpool_region_register() is the caller's to free when this has returned KVPOOL_OK: the daemon
// has closed its handle, or keeps it for another region of the same allocation only. That waits for requests
// in flight that name it, and may wait for everybody's work on the device; other calls of this client that
// make or free regions wait with it. After an error the daemon may still have the memory open, and what
// freeing it then does CUDA leaves undefined.
// Errors (for registered memory; for other memory KVPOOL_OK): TIMEOUT, CONN, NOMEM (of the daemon): it closes
// the memory later, at the latest after the session's end. To know when, register the memory once more, with
// no request in flight that names the old region, and free the new one: KVPOOL_OK then holds for both.
// STALE: the region is of an earlier session; the daemon has closed it, or does so soon. FORKED, for any.
KVPOOL_API kvpool_status kvpool_region_free(kvpool_region *region);

// A tensor [tokens][heads][head_dim] inside a region. Element (t, h, d) is at
//     offset + ((t * token_stride) + (h * head_stride) + d) * element size
// Both strides count elements. 0 means dense: head_stride = head_dim, token_stride = heads *
// head_stride. For `lse`, an fp32 tensor [tokens][qo_heads], dense is head_stride = 1, token_stride
// = qo_heads. `offset` must be a multiple of the element size.
typedef struct kvpool_tensor {
    kvpool_region *region; // NULL: no tensor
    uint64_t offset;       // bytes
    uint64_t token_stride; // elements
    uint64_t head_stride;  // elements
} kvpool_tensor;

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_REGION_H
