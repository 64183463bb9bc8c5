// SPDX-License-Identifier: Apache-2.0
// fake_cuda.h: a libcuda.so.1 that a test scripts: one device allocation, one context, and a count of
// what is mapped. The test program is linked with it, so that libkvpool's dlopen() finds it.
//
// Invariants
//  1. What libkvpool may call is there, with the driver's own signatures.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_CLIENT_FAKE_CUDA_H
#define KVPOOL_TESTS_UNIT_CLIENT_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

#define FAKE_CUDA_API __attribute__((visibility("default")))
#define FAKE_BASE 0x700000000000ull
#define FAKE_BYTES (6ull << 20)
#define FAKE_MAPPED 0x500000000000ull // where imports go
#define FAKE_OPENED 0x600000000000ull // where IPC handles go

struct fake_cuda {
    const char *fails; // name of the call that fails, NULL: none
    int error;         // with this
    void *current;     // context
    void *owner;       // context of the allocation; NULL: memory of cuMemCreate
    unsigned memory_type, managed, incapable;
    void *mempool;
    // What was done.
    int pushed;   // contexts pushed and not popped
    int mappings; // made and not undone, of all kinds
    int imported_fd;
    size_t mapped_bytes;
    unsigned char opened[64];
    void *registered;
};
FAKE_CUDA_API extern struct fake_cuda fake_cuda;
FAKE_CUDA_API void fake_cuda_reset(void);

#endif
