// SPDX-License-Identifier: Apache-2.0
// device_test.h: what the tests of workers with a GPU share: whether there is one, and counters that all
// their processes see.
//
// Invariants
//  1. The test's own process does not touch CUDA: a process that has may not fork.
// Thread: the main thread of the test and of its workers.
#ifndef KVPOOL_TESTS_SYSTEM_DEVICE_TEST_H
#define KVPOOL_TESTS_SYSTEM_DEVICE_TEST_H

#include "tests/system/device_load.h"
#include "tests/system/harness.h"

#include <stdatomic.h>

#define MIB ((uint64_t)1 << 20)
enum { DEVICE_LIMIT_MS = 60000 };

struct device_shared { // all 0 when a test begins
    atomic_uint arrived, ready, stop, rounds;
    kvpool_region_handle handles[2];
};
extern struct device_shared *device_shared;

// Before the tests. 0; 77, after saying so, where they need a GPU (or the emulated one) that is not there or
// that $KVPOOL_TEST_BACKEND does not name; else 1.
int device_prepare(void);
// The setup of every test.
int device_setup(void **state);

// Waits until `count` is n or more.
void device_await(atomic_uint *count, unsigned n);
void device_gpu(void); // gpu_start(), which must work
void device_join(pid_t pid,
                 const char *what); // the process ends well, or the daemon's log is shown

#endif
