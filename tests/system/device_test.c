// SPDX-License-Identifier: Apache-2.0
// device_test.c: see device_test.h.
#include "tests/system/device_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <sys/mman.h>

struct device_shared *device_shared;

static int probe(void *arg) {
    (void)arg;
    return gpu_start() ? 0 : 77;
}

int device_prepare(void) {
    int status = 77;
    if (strcmp(daemon_backend(), "cuda") == 0)
        status = process_wait(worker_start(probe, NULL), DEVICE_LIMIT_MS);
    if (status == 77)
        printf("skipped: needs KVPOOL_TEST_BACKEND=cuda and a GPU\n");
    if (status != 0)
        return status == 77 ? 77 : 1;
    device_shared = mmap(NULL, sizeof *device_shared, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return device_shared == MAP_FAILED;
}

int device_setup(void **state) {
    (void)state;
    memset(device_shared, 0, sizeof *device_shared);
    return 0;
}

void device_await(atomic_uint *count, unsigned n) {
    const uint64_t end = now_ns() + (uint64_t)DEVICE_LIMIT_MS * 1000000u;
    while (atomic_load(count) < n) {
        check(now_ns() < end);
        sleep_ms(1);
    }
}

void device_gpu(void) {
    check(gpu_start());
}

void device_join(pid_t pid, const char *what) {
    int status = process_wait(pid, DEVICE_LIMIT_MS);
    if (status != 0) {
        fprintf(stderr, "the daemon's log:\n%s\n", daemon_log(&kvd));
        fail_msg("%s ended with %d", what, status);
    }
}
