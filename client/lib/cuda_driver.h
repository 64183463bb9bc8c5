// SPDX-License-Identifier: Apache-2.0
// cuda_driver.h: the CUDA driver, found at run time: device memory that came to this process, or that
// leaves it.
//
// Invariants
//  1. libkvpool does not link CUDA: libcuda.so.1 is opened at the first use and never closed. Without
//     it, or without a GPU, everything here answers UNSUPPORTED and nothing else of the library
//     changes.
//  2. The context that is current in the calling thread is the same after every call.
//  3. A failing call of the driver is named in the message, with the driver's own word for it.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_CUDA_DRIVER_H
#define KVPOOL_CLIENT_LIB_CUDA_DRIVER_H

#include "proto/err.h"

#define CUDA_IPC_SIZE 64

struct cuda_share { // how another process opens an allocation of this one
    unsigned char ipc[CUDA_IPC_SIZE];
    uint64_t offset; // of the address in the allocation
    uint64_t bytes;  // of the allocation
};

// Errors: INVAL (no device memory, or less than `bytes` from there), UNSUPPORTED (no driver; memory
// that CUDA IPC cannot share), BACKEND.
int cuda_share_find(const void *ptr, uint64_t bytes, struct cuda_share *ret, struct err *err);

enum cuda_map_kind {
    CUDA_MAP_NONE,
    CUDA_MAP_FD,       // memory of cuMemCreate, mapped
    CUDA_MAP_IPC,      // an opened handle
    CUDA_MAP_HOST,     // host memory, registered here
    CUDA_MAP_BORROWED, // nothing to undo
};
struct cuda_map {
    enum cuda_map_kind kind;
    void *context;              // current when it was mapped
    unsigned long long address; // of what the handle opens, in the device's address space
    void *host;                 // CUDA_MAP_HOST
    uint64_t bytes;
};

// Maps into the current context. Errors: UNSUPPORTED (no driver), STATE (no current context),
// BACKEND.
int cuda_map_fd(int fd, uint64_t bytes, struct cuda_map *ret, struct err *err);
int cuda_map_ipc(const unsigned char ipc[CUDA_IPC_SIZE], uint64_t bytes, struct cuda_map *ret,
                 struct err *err);
int cuda_map_host(void *host, uint64_t bytes, struct cuda_map *ret, struct err *err);
// Whether the map is of the current context. Errors: STATE.
int cuda_map_check(const struct cuda_map *map, struct err *err);
void cuda_unmap(struct cuda_map *map);

#endif
