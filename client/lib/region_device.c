// SPDX-License-Identifier: Apache-2.0
// region_device.c: regions for the other users of their memory: handles, and addresses in a CUDA
// context of this process. See region.h.
#include "client/lib/args.h"
#include "client/lib/region.h"

#include <unistd.h>

// The first thing of each function here: a region of this process.
static int enter(const kvpool_region *region, struct err *err) {
    if (region == NULL)
        return err_set(err, KVPOOL_E_INVAL, "region is NULL");
    if (region->pid != getpid())
        return err_set(err, KVPOOL_E_FORKED, "the region belongs to the parent process");
    return 0;
}

static kvpool_status leave(const kvpool_region *region, int rc, const struct err *err) {
    const bool known = region != NULL && rc != KVPOOL_E_FORKED;
    return client_leave(known ? region->client : NULL, rc, err);
}

static int do_export(const kvpool_region *region, kvpool_region_handle *ret, struct err *err) {
    int rc = args_check(sizeof *ret, ret, "ret", err);
    if (rc != 0)
        return rc;
    if (region->shared.export_as == 0)
        return err_set(err, KVPOOL_E_STATE,
                       "a region of kvpool_region_create() has no handle: use "
                       "kvpool_region_alloc()");
    args_write(ret, &region->shared, sizeof region->shared);
    return 0;
}

kvpool_status kvpool_region_export(kvpool_region *region, kvpool_region_handle *ret) {
    struct err err = {0};
    int rc = enter(region, &err);
    if (rc == 0)
        rc = do_export(region, ret, &err);
    return leave(region, rc, &err);
}

// Under the region's lock.
static int map(kvpool_region *r, struct err *err) {
    if (r->map.kind != CUDA_MAP_NONE)
        return cuda_map_check(&r->map, err);
    if (r->data != NULL)
        return cuda_map_host(r->data, r->size, &r->map, err);
    if (r->shared.export_as == KVPOOL_EXPORT_FD)
        return cuda_map_fd(r->shared.fd, r->shared.bytes, &r->map, err);
    return cuda_map_ipc(r->shared.ipc, r->shared.bytes, &r->map, err);
}

static int do_device_ptr(kvpool_region *r, void **ret, struct err *err) {
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_ptr is NULL");
    if (r->own != NULL) {
        memcpy(ret, &r->own, sizeof *ret);
        return 0;
    }
    pthread_mutex_lock(&r->lock);
    int rc = map(r, err);
    if (rc == 0)
        *ret = (void *)(uintptr_t)(r->map.address + (r->data != NULL ? 0 : r->shared.offset));
    pthread_mutex_unlock(&r->lock);
    return rc;
}

kvpool_status kvpool_region_device_ptr(kvpool_region *region, void **ret_ptr) {
    struct err err = {0};
    int rc = enter(region, &err);
    if (rc == 0)
        rc = do_device_ptr(region, ret_ptr, &err);
    return leave(region, rc, &err);
}
