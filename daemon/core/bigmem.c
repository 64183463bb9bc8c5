// SPDX-License-Identifier: Apache-2.0
// bigmem.c: see bigmem.h.
#include "daemon/core/bigmem.h"

#include <stdint.h>
#include <sys/mman.h>

void *bigmem_open(size_t n, size_t size) {
    if (n == 0 || size > SIZE_MAX / n) {
        return NULL;
    }
    void *memory = mmap(NULL, n * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(memory, n * size, MADV_HUGEPAGE); // refused: small pages
    return memory;
}

void bigmem_close(void *memory, size_t n, size_t size) {
    if (memory != NULL) {
        munmap(memory, n * size);
    }
}
