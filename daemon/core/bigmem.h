// SPDX-License-Identifier: Apache-2.0
// bigmem.h: memory of derived tables that are read at random: zeroed, and in huge pages where the
// system gives them on request, because at a million pages half the price of a look at a table is
// the walk to find out where it is.
//
// Invariants
//  1. Zeroed, aligned to 64 bytes at least; physical memory of a large table comes with the first
//     touch.
// Thread: any.
#ifndef KVPOOL_DAEMON_CORE_BIGMEM_H
#define KVPOOL_DAEMON_CORE_BIGMEM_H

#include <stddef.h>

void *bigmem_open(size_t n, size_t size);               // n elements, not 0; NULL: out of memory
void bigmem_close(void *memory, size_t n, size_t size); // NULL is ignored; n and size as at open

#endif
