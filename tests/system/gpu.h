// SPDX-License-Identifier: Apache-2.0
// gpu.h: the GPU of a worker process, through the CUDA driver as libkvpool finds it (libcuda.so.1 at run
// time): a worker's memory of each kind, and copies to and from it.
//
// Invariants
//  1. What gpu_put wrote is in the device's memory when it returns, for any process to read.
//  2. A call of the driver that fails ends the test: check() of harness.h.
// Threads: those in which gpu_start or gpu_use was called. In a process that started it no fork may follow.
#ifndef KVPOOL_TESTS_SYSTEM_GPU_H
#define KVPOOL_TESTS_SYSTEM_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long long gpu_ptr; // CUdeviceptr

// The first GPU's primary context, current in this thread. false, with the reason on stderr: there is no
// GPU here.
bool gpu_start(void);
void gpu_use(bool yes); // whether the context is current in this thread

gpu_ptr gpu_alloc(size_t bytes); // cuMemAlloc
void gpu_free(gpu_ptr ptr);
// Memory that CUDA IPC cannot share. Never freed.
gpu_ptr gpu_alloc_managed(size_t bytes);   // cuMemAllocManaged
gpu_ptr gpu_alloc_from_pool(size_t bytes); // cuMemAllocAsync; 0: this GPU has no memory pools
gpu_ptr
gpu_alloc_segment(size_t bytes);      // cuMemCreate and cuMemMap, as PyTorch's expandable segments
gpu_ptr gpu_alloc_host(size_t bytes); // cuMemHostAlloc

gpu_ptr gpu_open(const unsigned char ipc[64]); // cuIpcOpenMemHandle
void gpu_close(gpu_ptr opened);

void gpu_put(gpu_ptr to, const void *from, size_t bytes);
void gpu_get(void *to, gpu_ptr from, size_t bytes);

#endif
