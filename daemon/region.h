// SPDX-License-Identifier: Apache-2.0
// region.h: memory that the daemon shares with one client, its own or the client's: tensors live in it.
//
//   handle = generation << 32 | slot         slot -> region { memory, owner, holds }
//
// Invariants
//  1. A handle names a region from region_create to region_free, and never another one: the
//     generation of a slot changes at every free, and starts from the daemon's epoch.
//  2. The memory is given up when the handle is gone and holds is 0: never under a job. The backend may
//     take it back a little later; region_close tells when.
//  3. A quota counts regions and bytes until their memory is given up.
//  4. A region begins where elements of every type may lie.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_REGION_H
#define KVPOOL_DAEMON_REGION_H

#include "daemon/engine.h"

struct regions;

struct region_quota { // of one client, in the client's record
    uint32_t count;   // regions whose memory exists
    uint64_t bytes;
};

struct region { // read only
    uint64_t handle, session;
    uint64_t bytes;
    struct backend_mem *mem;
    struct region_quota *quota;
    uint32_t holds;
    bool imported;              // the client's own memory
    bool freed;                 // the handle is gone
    struct engine_close *close; // of region_close, or NULL
};

struct region_limits { // of one client
    uint32_t count;
    uint64_t bytes;
};

int regions_open(struct engine *engine, uint64_t epoch, struct regions **ret, struct err *err);
void regions_close(struct regions *rs); // NULL is ignored; frees what is left
uint32_t regions_count(const struct regions *rs);

struct region_source { // where the memory comes from
    enum backend_place place;
    enum backend_export how;
    const struct backend_handle *import; // not NULL: the client's own, bytes at its offset
};

// Errors: INVAL (0 bytes; a range outside the import, a handle of another device), LIMIT, NOMEM, AGAIN,
// UNSUPPORTED (the backend has no such memory).
int region_create(struct regions *rs, uint64_t session, struct region_quota *quota,
                  const struct region_limits *limits, const struct region_source *source,
                  uint64_t bytes, struct region **ret, struct err *err);
// Errors: STALE, PERM (another session's).
int region_find(const struct regions *rs, uint64_t session, uint64_t handle, struct region **ret,
                struct err *err);
void region_hold(struct region *r);
void region_put(struct regions *rs, struct region *r);
void region_free(struct regions *rs, struct region *r); // the handle, at once
// The same; close->done when its memory is not open here any more: after the last hold, and when the
// backend has closed it (engine_mem_close).
void region_close(struct regions *rs, struct region *r, struct engine_close *close);
void region_free_all(struct regions *rs, uint64_t session);

#endif
