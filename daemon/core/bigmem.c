// SPDX-License-Identifier: Apache-2.0
// bigmem.c: see bigmem.h.
#include "daemon/core/bigmem.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SMALL 65536u // bytes, below which pages of its own are not worth the system calls

static bool is_small(size_t n, size_t size) {
    return n * size < SMALL;
}

static void *open_small(size_t bytes) {
    size_t rounded = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, rounded);
    return memory != NULL ? memset(memory, 0, rounded) : NULL;
}

void *bigmem_open(size_t n, size_t size) {
    if (n == 0 || size > SIZE_MAX / n) {
        return NULL;
    }
    if (is_small(n, size)) {
        return open_small(n * size);
    }
    void *memory = mmap(NULL, n * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(memory, n * size, MADV_HUGEPAGE); // refused: small pages
    return memory;
}

void bigmem_close(void *memory, size_t n, size_t size) {
    if (memory == NULL) {
        return;
    }
    if (is_small(n, size)) {
        free(memory);
    } else {
        munmap(memory, n * size);
    }
}
