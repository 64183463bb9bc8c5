// SPDX-License-Identifier: Apache-2.0
// ops_pool.c: create, open, destroy, stat and list of pools.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#include <inttypes.h>

_Static_assert(PROTO_NAME_SIZE == CORE_NAME_SIZE, "names are copied whole");

static void reply_handle(struct dispatch *d, struct request *r, uint64_t handle) {
    struct proto_handle reply = {.handle = handle};
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
}

int op_pool_create(struct dispatch *d, struct request *r, struct err *err) {
    const bool as = r->msg.header.op == PROTO_POOL_CREATE_AS;
    const struct proto_pool_create_as *more = as ? &r->msg.body.pool_create_as : NULL;
    const struct proto_pool_create *c = as ? &more->create : &r->msg.body.pool_create;
    struct core_pool_config config = {.layers = c->layers,
                                      .kv_heads = c->kv_heads,
                                      .head_dim = c->head_dim,
                                      .page_size = c->page_size,
                                      .dtype = c->dtype,
                                      .num_pages = c->num_pages,
                                      .max_seqs = c->max_seqs,
                                      .max_seq_len = c->max_seq_len,
                                      .policy = d->config->policy,
                                      .kv_dtype = as ? more->kv_dtype : 0,
                                      .export = as ? more->export : 0};
    memcpy(config.name, c->name, sizeof config.name);
    uint64_t pool;
    int status = session_pool_name_seen(r->session, config.name, err);
    if (status == 0)
        status = pools_create(d->pools, &config, &pool, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    reply_handle(d, r, pool);
    return 0;
}

int op_pool_open(struct dispatch *d, struct request *r, struct err *err) {
    uint64_t pool;
    // Before the pool is looked for: a name tells strangers nothing.
    int status = session_pool_name_seen(r->session, r->msg.body.name.name, err);
    if (status == 0)
        status = core_pool_find(d->core, r->msg.body.name.name, &pool, err);
    if (status != 0)
        return status;
    reply_handle(d, r, pool);
    return 0;
}

int op_pool_destroy(struct dispatch *d, struct request *r, struct err *err) {
    struct core_pool_info info;
    int status = session_pool_seen(r->session, r->msg.body.handle.handle, &info, err);
    if (status == 0 && !session_is_admin(r->session) &&
        access_has_tenants(&d->config->access, info.config.name)) // others have cached pages there
        status = err_set(err, KVPOOL_E_PERM,
                         "pool %s belongs to several tenants: root or the daemon's user may "
                         "destroy it",
                         info.config.name);
    if (status == 0)
        status = pools_destroy(d->pools, r->msg.body.handle.handle, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    request_reply(d, r, NULL, 0, NULL, 0);
    return 0;
}

// A client that has not the feature finds 0 where it knows of nothing.
static void fill(const struct dispatch *d, const struct session *s,
                 const struct core_pool_info *info, struct proto_pool_info *ret) {
    const struct core_pool_config *c = &info->config;
    *ret = (struct proto_pool_info){.pool = info->pool,
                                    .layers = c->layers,
                                    .kv_heads = c->kv_heads,
                                    .head_dim = c->head_dim,
                                    .page_size = c->page_size,
                                    .dtype = c->dtype,
                                    .num_pages = c->num_pages,
                                    .max_seqs = c->max_seqs,
                                    .max_seq_len = c->max_seq_len,
                                    .free_pages = info->free_pages,
                                    .shared_pages = info->shared_pages,
                                    .seqs = info->seqs,
                                    .bytes = pools_bytes(d->pools, info->pool)};
    memcpy(ret->name, c->name, sizeof ret->name);
    if ((s->features & PROTO_FEATURE_DEVICE) != 0) {
        ret->kv_dtype = (uint16_t)c->kv_dtype;
        ret->export = (uint16_t)c->export;
    }
}

int op_pool_stat(struct dispatch *d, struct request *r, struct err *err) {
    struct core_pool_info info;
    int status = session_pool_seen(r->session, r->msg.body.handle.handle, &info, err);
    if (status != 0)
        return status;
    struct proto_pool_info reply;
    fill(d, r->session, &info, &reply);
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

int op_pool_list(struct dispatch *d, struct request *r, struct err *err) {
    uint32_t cursor = r->msg.body.list.cursor, max = r->msg.body.list.max, n = 0;
    if (max == 0 || max > PROTO_MAX_LIST)
        return err_set(err, KVPOOL_E_INVAL, "max: 1..%u records", PROTO_MAX_LIST);
    struct core_pool_info info;
    while (n < max && core_pool_next(d->core, &cursor, &info)) {
        struct proto_pool_info record;
        if (session_pool_name_seen(r->session, info.config.name, NULL) != 0)
            continue;
        fill(d, r->session, &info, &record);
        memcpy(d->records + n++ * sizeof record, &record, sizeof record);
    }
    struct proto_list_reply reply = {.count = n, .cursor = cursor};
    request_reply(d, r, &reply, sizeof reply, d->records, n * sizeof(struct proto_pool_info));
    return 0;
}
