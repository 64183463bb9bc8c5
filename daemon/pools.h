// SPDX-License-Identifier: Apache-2.0
// pools.h: the backend's half of each pool, beside core's: planes, device page table, geometry.
//
// Invariants
//  1. An entry exists exactly for the pools that core has: created and destroyed together.
//  2. A pool has the namespaces of the configuration from the beginning.
//  3. The bytes of all pools stay within max_bytes.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_POOLS_H
#define KVPOOL_DAEMON_POOLS_H

#include "daemon/access.h"
#include "daemon/core/core.h"
#include "kernels/backend.h"

struct pools;

struct pool { // read only, but for inflight
    uint64_t handle;
    struct kv_geometry geometry;
    uint32_t num_pages;
    struct backend_pool *backend;
    uint32_t inflight; // jobs that use it
};

struct pools_config {
    struct core *core;
    struct backend *backend;
    const struct backend_ops *ops;
    const struct access_rules *access; // the namespaces of pools; outlives struct pools
    uint32_t max_pools;
    uint64_t max_bytes; // of K and V, all pools; 0: what the backend can allocate
};

int pools_open(const struct pools_config *config, struct pools **ret, struct err *err);
void pools_close(struct pools *ps); // NULL is ignored; the backend's pools only, core keeps its own

// See core_pool_create; also the errors of core_ns_set for its namespaces, and NOMEM when max_bytes or the backend cannot hold it.
int pools_create(struct pools *ps, const struct core_pool_config *config, uint64_t *ret_pool,
                 struct err *err);
int pools_destroy(struct pools *ps, uint64_t handle, struct err *err); // BUSY, STALE
struct pool *pools_find(struct pools *ps, uint64_t handle);            // or NULL
uint64_t pools_bytes(const struct pools *ps, uint64_t handle);         // K and V; 0: no such pool
uint64_t pools_total_pages(const struct pools *ps);

#endif
