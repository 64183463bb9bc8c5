// SPDX-License-Identifier: Apache-2.0
// pools.c: see pools.h.
#include "daemon/pools.h"

#include "daemon/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct pools {
    struct pools_config config;
    uint64_t bytes, pages; // of all
    struct pool slots[];   // [max_pools], by core's pool index; handle 0: none
};

int pools_open(const struct pools_config *config, struct pools **ret, struct err *err) {
    struct pools *ps = calloc(1, sizeof *ps + config->max_pools * sizeof ps->slots[0]);
    if (ps == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "pools: no memory");
    ps->config = *config;
    *ret = ps;
    return 0;
}

// Bytes of K and V, UINT64_MAX when they do not fit into 64 bits.
static uint64_t wanted_bytes(const struct core_pool_config *config, const struct kv_geometry *g) {
    uint64_t bytes;
    if (__builtin_mul_overflow((uint64_t)kv_page_bytes(g), config->num_pages, &bytes) ||
        __builtin_mul_overflow(bytes, config->layers, &bytes))
        return UINT64_MAX;
    return bytes;
}

static int open_backend_pool(struct pools *ps, const struct core_pool_info *info, struct err *err) {
    const struct core_pool_config *c = &info->config;
    struct kv_geometry g = {.layers = c->layers,
                            .kv_heads = c->kv_heads,
                            .head_dim = c->head_dim,
                            .page_size = c->page_size,
                            .dtype = (kvpool_dtype)c->dtype,
                            .kv_dtype = (kvpool_dtype)c->kv_dtype};
    const enum backend_export how = c->export == KVPOOL_EXPORT_IPC ? BACKEND_IPC : BACKEND_FD;
    uint64_t bytes = wanted_bytes(c, &g);
    uint64_t max = ps->config.max_bytes;
    if (max != 0 && (ps->bytes > max || bytes > max - ps->bytes))
        return err_set(err, KVPOOL_E_NOMEM,
                       "pool %s needs %" PRIu64 " bytes; %" PRIu64 " of max_pool_bytes %" PRIu64
                       " are in use",
                       c->name, bytes, ps->bytes, max);
    struct backend_pool *backend;
    int status = ps->config.ops->pool_open(ps->config.backend, &g, how, c->num_pages, c->max_seqs,
                                           info->row_entries, &backend, err);
    if (status != 0)
        return status;
    ps->slots[info->index] = (struct pool){
        .handle = info->pool, .geometry = g, .num_pages = c->num_pages, .backend = backend};
    ps->bytes += ps->config.ops->pool_bytes(backend);
    ps->pages += c->num_pages;
    return 0;
}

static int make_namespaces(struct pools *ps, const struct core_pool_info *info, struct err *err) {
    const struct access_rules *rules = ps->config.access;
    for (uint32_t i = 0; i < rules->num_namespaces; i++) {
        const struct access_ns *ns = &rules->namespaces[i];
        if (strcmp(ns->pool, info->config.name) != 0)
            continue;
        struct core_ns_config config = {.reserve =
                                            access_pages(&ns->reserve, info->config.num_pages),
                                        .limit = access_pages(&ns->limit, info->config.num_pages),
                                        .weight = ns->weight};
        memcpy(config.name, ns->name, sizeof config.name);
        memcpy(config.group, ns->group, sizeof config.group);
        struct err why;
        uint32_t index;
        int status = core_ns_set(ps->config.core, info->pool, &config, &index, &why);
        if (status != 0)
            return err_set(err, status, "namespace %s/%s: %.120s", ns->pool, ns->name, why.text);
    }
    return 0;
}

int pools_create(struct pools *ps, const struct core_pool_config *config, uint64_t *ret_pool,
                 struct err *err) {
    uint64_t handle;
    bool created;
    struct core_pool_info info;
    int status = core_pool_create(ps->config.core, config, &handle, &created, err);
    if (status != 0)
        return status;
    if (created) {
        status = core_pool_stat(ps->config.core, handle, &info, err);
        if (status == 0)
            status = make_namespaces(ps, &info, err);
        if (status == 0)
            status = open_backend_pool(ps, &info, err);
        if (status != 0) {
            core_pool_destroy(ps->config.core, handle, NULL);
            return status;
        }
        log_info("pool.create", "pool=\"%s\" bytes=%" PRIu64, info.config.name,
                 pools_bytes(ps, handle));
    }
    *ret_pool = handle;
    return 0;
}

struct pool *pools_find(struct pools *ps, uint64_t handle) {
    uint32_t i = (uint32_t)handle; // core's index is the low half of the handle
    if (handle != 0 && i < ps->config.max_pools && ps->slots[i].handle == handle)
        return &ps->slots[i];
    return NULL;
}

int pools_destroy(struct pools *ps, uint64_t handle, struct err *err) {
    struct pool *p = pools_find(ps, handle);
    if (p != NULL && p->inflight > 0)
        return err_set(err, KVPOOL_E_BUSY, "the pool has work in flight");
    int status = core_pool_destroy(ps->config.core, handle, err);
    if (status != 0)
        return status;
    if (p != NULL) {
        ps->bytes -= ps->config.ops->pool_bytes(p->backend);
        ps->pages -= p->num_pages;
        ps->config.ops->pool_close(ps->config.backend, p->backend);
        *p = (struct pool){0};
    }
    log_info("pool.destroy", "pool=0x%" PRIx64, handle);
    return 0;
}

uint64_t pools_bytes(const struct pools *ps, uint64_t handle) {
    const struct pool *p = pools_find((struct pools *)(uintptr_t)ps, handle);
    return p != NULL ? ps->config.ops->pool_bytes(p->backend) : 0;
}

uint64_t pools_total_pages(const struct pools *ps) {
    return ps->pages;
}

void pools_close(struct pools *ps) {
    if (ps == NULL)
        return;
    for (uint32_t i = 0; i < ps->config.max_pools; i++)
        if (ps->slots[i].handle != 0)
            ps->config.ops->pool_close(ps->config.backend, ps->slots[i].backend);
    free(ps);
}
