// SPDX-License-Identifier: Apache-2.0
// region.c: see region.h.
#include "daemon/region.h"

#include "proto/proto.h"

#include <inttypes.h>
#include <stdlib.h>

#define NO_SLOT UINT32_MAX

struct slot {
    struct region *region; // NULL: free
    uint32_t generation;   // of the region, or of the next one
    uint32_t next_free;
};

struct regions {
    struct engine *engine;
    struct backend *backend;
    const struct backend_ops *ops;
    struct slot *slots;
    uint32_t num_slots, first_free, count;
    uint32_t first_generation;
};

static uint32_t next_generation(uint32_t generation) {
    return generation == UINT32_MAX ? 1 : generation + 1;
}

int regions_open(struct engine *engine, uint64_t epoch, struct regions **ret, struct err *err) {
    struct regions *rs = calloc(1, sizeof *rs);
    if (rs == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "regions: no memory");
    rs->engine = engine;
    rs->backend = engine_backend(engine);
    rs->ops = engine_ops(engine);
    rs->first_free = NO_SLOT;
    rs->first_generation = (uint32_t)(epoch >> 32) | 1;
    *ret = rs;
    return 0;
}

// Makes sure that a slot is free. Slots are reused, so the table grows with the most regions that
// ever existed at once.
static int grow(struct regions *rs, struct err *err) {
    if (rs->first_free != NO_SLOT)
        return 0;
    uint32_t n = rs->num_slots == 0 ? 16 : rs->num_slots * 2;
    struct slot *slots = n < NO_SLOT / 2
                             ? reallocarray(rs->slots, n, sizeof *slots)
                             : NULL; // NOLINT(bugprone-suspicious-realloc-usage): another variable
    if (slots == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "region table: no memory");
    for (uint32_t i = n; i-- > rs->num_slots;) {
        slots[i] = (struct slot){NULL, rs->first_generation, rs->first_free};
        rs->first_free = i;
    }
    rs->slots = slots;
    rs->num_slots = n;
    return 0;
}

static int get_memory(struct regions *rs, const struct region_source *source, uint64_t bytes,
                      struct backend_mem **ret, struct err *err) {
    const struct backend_handle *import = source->import;
    if (import == NULL)
        return rs->ops->mem_alloc(rs->backend, bytes, source->place, source->how, ret, err);
    if (rs->ops->mem_import == NULL)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "the %s backend cannot open a client's device memory", rs->ops->name);
    if (import->offset > import->bytes || bytes > import->bytes - import->offset)
        return err_set(err, KVPOOL_E_INVAL,
                       "%" PRIu64 " bytes at offset %" PRIu64 " leave an allocation of %" PRIu64,
                       bytes, import->offset, import->bytes);
    // Tensors are checked against their region: were it to begin where no element may lie, neither would
    // they, and on a GPU that costs everybody the device.
    if (import->offset % PROTO_REGION_ALIGN != 0)
        return err_set(err, KVPOOL_E_INVAL,
                       "offset %" PRIu64 ": a client's memory begins at a multiple of %d of its "
                       "allocation; name more of it, and the rest as the offset of a tensor",
                       import->offset, PROTO_REGION_ALIGN);
    return rs->ops->mem_import(rs->backend, import, bytes, ret, err);
}

int region_create(struct regions *rs, uint64_t session, struct region_quota *quota,
                  const struct region_limits *limits, const struct region_source *source,
                  uint64_t bytes, struct region **ret, struct err *err) {
    if (bytes == 0)
        return err_set(err, KVPOOL_E_INVAL, "bytes: a region has at least 1 byte");
    if (quota->count >= limits->count)
        return err_set(err, KVPOOL_E_LIMIT, "this client has %u regions, the limit", quota->count);
    if (quota->bytes > limits->bytes || bytes > limits->bytes - quota->bytes)
        return err_set(err, KVPOOL_E_LIMIT,
                       "%" PRIu64 " bytes: this client has %" PRIu64 " of at most %" PRIu64, bytes,
                       quota->bytes, limits->bytes);
    int status = grow(rs, err);
    if (status != 0)
        return status;
    struct region *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "region: no memory");
    status = get_memory(rs, source, bytes, &r->mem, err);
    if (status != 0) {
        free(r);
        return status;
    }
    uint32_t i = rs->first_free;
    struct slot *slot = &rs->slots[i];
    rs->first_free = slot->next_free;
    slot->region = r;
    r->handle = (uint64_t)slot->generation << 32 | i;
    r->session = session;
    // Of a client's own memory what it named, even if the backend had to open more.
    r->bytes = source->import != NULL ? bytes : rs->ops->mem_bytes(r->mem);
    r->imported = source->import != NULL;
    r->quota = quota;
    quota->count++;
    quota->bytes += r->bytes;
    rs->count++;
    *ret = r;
    return 0;
}

int region_find(const struct regions *rs, uint64_t session, uint64_t handle, struct region **ret,
                struct err *err) {
    uint32_t i = (uint32_t)handle;
    struct region *r = i < rs->num_slots ? rs->slots[i].region : NULL;
    if (r == NULL || r->handle != handle)
        return err_set(err, KVPOOL_E_STALE, "region 0x%" PRIx64 " does not exist", handle);
    if (r->session != session)
        return err_set(err, KVPOOL_E_PERM, "region 0x%" PRIx64 " is another client's", handle);
    *ret = r;
    return 0;
}

static void release_memory(struct regions *rs, struct region *r) {
    if (r->close != NULL)
        engine_mem_close(rs->engine, r->mem, r->close);
    else
        rs->ops->mem_free(rs->backend, r->mem);
    r->quota->count--;
    r->quota->bytes -= r->bytes;
    free(r);
}

void region_hold(struct region *r) {
    r->holds++;
}

void region_put(struct regions *rs, struct region *r) {
    if (--r->holds == 0 && r->freed)
        release_memory(rs, r);
}

void region_close(struct regions *rs, struct region *r, struct engine_close *close) {
    uint32_t i = (uint32_t)r->handle;
    struct slot *slot = &rs->slots[i];
    slot->region = NULL;
    slot->generation = next_generation(slot->generation);
    slot->next_free = rs->first_free;
    rs->first_free = i;
    rs->count--;
    r->freed = true;
    r->close = close;
    if (r->holds == 0)
        release_memory(rs, r);
}

void region_free(struct regions *rs, struct region *r) {
    region_close(rs, r, NULL);
}

void region_free_all(struct regions *rs, uint64_t session) {
    for (uint32_t i = 0; i < rs->num_slots; i++)
        if (rs->slots[i].region != NULL && rs->slots[i].region->session == session)
            region_free(rs, rs->slots[i].region);
}

uint32_t regions_count(const struct regions *rs) {
    return rs->count;
}

void regions_close(struct regions *rs) {
    if (rs == NULL)
        return;
    for (uint32_t i = 0; i < rs->num_slots; i++)
        if (rs->slots[i].region != NULL)
            region_free(rs, rs->slots[i].region);
    free(rs->slots);
    free(rs);
}
