// SPDX-License-Identifier: Apache-2.0
// memory.h: the device's memory in blocks that other processes can open, and theirs in this one.
//
//   BACKEND_FD   cuMemCreate memory, exported as a file descriptor: outlives this process
//   BACKEND_IPC  cudaMalloc memory in whole 2 MiB blocks, exported as a CUDA IPC handle
//
// Invariants
//  1. A new block is zero, or at least holds nothing that anybody else wrote, before it is returned.
//  2. An import lies inside what its handle opens, by what the driver says of it, not the handle.
//  3. What may wait for the device to take memory back is called on the reaper's thread only, but for
//     memory that failed to become a block.
//  4. The reaper takes memory back in a pause of the device, if one comes within PATIENCE_NS and nobody waits
//     for it, to have it or to know it closed: other threads' launches wait with a call that waits.
//  5. Memory that is too little, but would be enough with what the reaper still has: AGAIN, not NOMEM. So is
//     memory that is there while the reaper waits for programs: zeroing it is a launch.
// Threads: one at a time for all functions on one cuda_memory, and the reaper's beside it.
#ifndef KVPOOL_KERNELS_CUDA_MEMORY_H
#define KVPOOL_KERNELS_CUDA_MEMORY_H

#include "kernels/backend.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/flight.h"
#include "kernels/cuda/reaper.h"

#include <pthread.h>
#include <stdatomic.h>

struct cuda_import; // an opened IPC handle: import.h

struct cuda_memory {
    struct cuda_driver driver;
    int device;
    struct cuda_flights *flights; // are told when the device is lost
    struct cuda_reaper *reaper;   // its calls' argument is this cuda_memory
    atomic_bool wanted;           // somebody waits for what the reaper has
    atomic_uint closes;           // that somebody waits for
    cudaStream_t stream;          // for filling and copying by the host
    uint64_t unit;                // cuMemCreate's sizes are multiples of this
    pthread_mutex_t lock;         // of the imports
    struct cuda_import *imports;  // all opened IPC handles
};

struct cuda_block {
    char *address;  // the device's
    uint64_t bytes; // a multiple of 2 MiB; of an import: what was asked for
    enum backend_export how;
    // BACKEND_FD
    CUmemGenericAllocationHandle allocation;
    CUdeviceptr mapping;
    uint64_t mapped_bytes;
    int fd; // -1: of an import
    // BACKEND_IPC
    cudaIpcMemHandle_t ipc;
    uint64_t offset;            // of the address in what the handle opens
    struct cuda_import *import; // NULL: our own memory
};

// Looks up the driver, opens the stream and the reaper. *m stays where it is. Errors: NOMEM, BACKEND.
int cuda_memory_open(struct cuda_memory *m, int device, struct cuda_flights *flights,
                     struct err *err);
// No block remains but what the reaper has; releases that.
void cuda_memory_close(struct cuda_memory *m);

// Left free on the device: by pools for regions, plans, workspaces and the kernels' code; by regions, which
// any client may ask for, for all but regions: without it the daemon ends.
#define CUDA_POOL_SPARE ((uint64_t)512 << 20)
#define CUDA_REGION_SPARE ((uint64_t)256 << 20)

// `what` names it in errors. spare: bytes of the device's memory to leave free. Errors: NOMEM (the
// bytes wanted and free), AGAIN, BACKEND.
int cuda_block_open(struct cuda_memory *m, const char *what, uint64_t bytes, uint64_t spare,
                    enum backend_export how, struct cuda_block *ret, struct err *err);
// Another process's: `bytes` at handle->offset. Errors: INVAL, NOMEM, AGAIN (also: the handle is just
// being closed).
int cuda_block_import(struct cuda_memory *m, const struct backend_handle *handle, uint64_t bytes,
                      struct cuda_block *ret, struct err *err);
// Gives up an import by IPC handle, and the reaper its handle if it was the last; false, and nothing is
// done: the block is of another kind. close: as of mem_close, may be NULL.
bool cuda_block_put(struct cuda_memory *m, struct cuda_block *block, struct backend_close *close);
// Of a block of another kind. The reaper's thread: waits for the device.
void cuda_block_release(struct cuda_memory *m, struct cuda_block *block);
void cuda_block_handle(const struct cuda_block *block, struct backend_handle *ret);

// Where the allocation that holds an address begins and ends.
CUresult cuda_memory_range(const struct cuda_memory *m, const void *address, char **ret_base,
                           uint64_t *ret_bytes);

// AGAIN, for memory that `what` names: worth another try when the reaper has released more, which hurries.
int cuda_memory_pending(struct cuda_memory *m, const char *what, struct err *err);

// Between the two the reaper hurries. NULL is ignored; closes: a list, all of which are done.
void cuda_close_begin(struct cuda_memory *m, const struct backend_close *close);
void cuda_close_end(struct cuda_memory *m, struct backend_close *closes);

// Memory that is not exported, zeroed. Errors: as cuda_block_open.
int cuda_private_open(struct cuda_memory *m, const char *what, uint64_t bytes, void **ret,
                      struct err *err);

// Copies and waits. Errors: BACKEND.
int cuda_memory_copy(struct cuda_memory *m, void *to, const void *from, uint64_t bytes,
                     struct err *err);

#endif
