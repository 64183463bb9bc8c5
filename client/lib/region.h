// SPDX-License-Identifier: Apache-2.0
// region.h: regions: memory of the daemon's, received as a file descriptor and mapped.
//
// Invariants
//  1. A region is of the session in which it was made; in a later one it is stale, though still
//     mapped until it is freed.
//  2. The descriptor is closed as soon as the memory is mapped.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_REGION_H
#define KVPOOL_CLIENT_LIB_REGION_H

#include "client/lib/client.h"

// The wire handle of a caller's region. Errors: PERM (of another client), STALE (of an earlier
// session).
int region_handle(kvpool_client *c, const kvpool_region *region, const char *what, uint64_t *ret,
                  struct err *err);

// Unmaps and frees what is left, for the end of a client.
void region_unmap_all(kvpool_client *c);

#endif
