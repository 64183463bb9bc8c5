// SPDX-License-Identifier: Apache-2.0
// region.h: regions: memory of the daemon's, received as a file descriptor or a handle and mapped, or
// this process's own, of which the daemon was told.
//
// Invariants
//  1. A region is of the session in which it was made; in a later one it is stale, though still
//     mapped until it is freed.
//  2. The descriptor of kvpool_region_create() is closed as soon as the memory is mapped; that of
//     kvpool_region_alloc() stays open as long as the region, for kvpool_region_export().
//  3. A region whose end the daemon does not know of, or could not do, is owed: it is asked again before the
//     next one's end, as long as the session goes on.
//  4. The map into a CUDA context is made at most once, under `lock`.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_REGION_H
#define KVPOOL_CLIENT_LIB_REGION_H

#include "client/lib/client.h"
#include "client/lib/cuda_driver.h"

struct kvpool_region {
    kvpool_client *client;
    pid_t pid;
    uint64_t session;
    uint64_t handle;
    void *data; // NULL: the CPU does not reach it
    uint64_t size;
    kvpool_region_handle shared; // export_as 0: it keeps no handle
    const void *own;             // of kvpool_region_register(): where it is
    pthread_mutex_t lock;
    struct cuda_map map;
    struct kvpool_region *prev, *next; // list of the client, under its lock
};

// The wire handle of a caller's region. Errors: PERM (of another client), STALE (of an earlier
// session).
int region_handle(kvpool_client *c, const kvpool_region *region, const char *what, uint64_t *ret,
                  struct err *err);

// Of a region that is in no list. Unmaps and frees it here.
void region_destroy(struct kvpool_region *r);
// The same, and the daemon is told; of this process's own memory it has closed the handle when this
// returns 0. Errors: TIMEOUT, CONN, NOMEM, STALE (of an earlier session); the daemon's.
int region_end(kvpool_client *c, struct kvpool_region *r, struct err *err);

// For the end of a client: the daemon closes what is left of this process's own memory, as far as it does
// by then; unmaps and frees what is left.
void region_close_own(kvpool_client *c, int64_t deadline_ns);
void region_unmap_all(kvpool_client *c);

#endif
