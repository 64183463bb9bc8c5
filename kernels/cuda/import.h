// SPDX-License-Identifier: Apache-2.0
// import.h: other processes' memory that CUDA IPC handles open.
//
//   cuda_import_get -> in use -- last cuda_import_put --> with the reaper -- it comes to it --> closed, gone
//                        ^                                      |
//                        '------------ cuda_import_get ---------'
//
// Invariants
//  1. A handle is opened once, however often it is imported, and closed after its last import.
//  2. While it is being closed it is not opened: AGAIN.
//  3. Who waits for a close is told when the handle is closed, or imported once more.
// Threads: those of cuda_memory.
#ifndef KVPOOL_KERNELS_CUDA_IMPORT_H
#define KVPOOL_KERNELS_CUDA_IMPORT_H

#include "kernels/cuda/memory.h"

struct cuda_import {
    struct cuda_garbage garbage; // first
    cudaIpcMemHandle_t handle;
    char *base;     // of the allocation
    uint64_t bytes; // from there to the end of what the driver has mapped
    // Under the memory's lock.
    uint32_t users;
    bool given;                   // the reaper has it
    bool closing;                 // and is at it
    struct backend_close *closes; // of imports that were given up, for this close of the handle
    struct cuda_import *next;
};

// The handle (a cudaIpcMemHandle_t), opened, with a user more; NULL: *ret_status says why. Errors: INVAL,
// NOMEM, AGAIN.
struct cuda_import *cuda_import_get(struct cuda_memory *m, const unsigned char *handle,
                                    int *ret_status, struct err *err);
// close: of mem_close, may be NULL.
void cuda_import_put(struct cuda_memory *m, struct cuda_import *import,
                     struct backend_close *close);

#endif
