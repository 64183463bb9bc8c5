// SPDX-License-Identifier: Apache-2.0
// pool.c: the public functions of pools.
#include "client/lib/args.h"
#include "client/lib/call.h"
#include "client/lib/convert.h"

static int do_create(kvpool_client *c, const kvpool_pool_config *user_config, kvpool_pool *ret,
                     struct err *err) {
    kvpool_pool_config config;
    int rc = args_read_grown(&config, sizeof config, offsetof(kvpool_pool_config, kv_dtype),
                             user_config, "config", err);
    if (rc != 0)
        return rc;
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_pool is NULL");
    struct proto_pool_create_as body = {.create = {.layers = config.layers,
                                                   .kv_heads = config.kv_heads,
                                                   .head_dim = config.head_dim,
                                                   .page_size = config.page_size,
                                                   .dtype = config.dtype,
                                                   .num_pages = config.num_pages,
                                                   .max_seqs = config.max_seqs,
                                                   .max_seq_len = config.max_seq_len},
                                        .kv_dtype = config.kv_dtype,
                                        .export = config.export_as};
    rc = args_name(body.create.name, config.name, "name", err);
    if (rc != 0)
        return rc;
    struct proto_msg msg;
    struct call call = {
        .message = {.op = PROTO_POOL_CREATE_AS, .body = &body, .body_len = sizeof body},
        .feature = PROTO_FEATURE_DEVICE};
    if (config.kv_dtype == 0 && config.export_as == 0) // any daemon can
        call = (struct call){.message = {.op = PROTO_POOL_CREATE,
                                         .body = &body.create,
                                         .body_len = sizeof body.create}};
    int64_t deadline = client_deadline(c);
    do // again while memory that was freed is on its way back
        rc = call_run(c, &call, deadline, &msg, err);
    while (rc == KVPOOL_E_AGAIN && client_wait_again(deadline, err));
    if (rc != 0)
        return rc;
    *ret = msg.body.handle.handle;
    client_gave_handle(c);
    struct pool_shape shape = {*ret, config.kv_heads, config.head_dim};
    client_pool_learn(c, &shape);
    return 0;
}

kvpool_status kvpool_pool_create(kvpool_client *client, const kvpool_pool_config *config,
                                 kvpool_pool *ret_pool) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_create(client, config, ret_pool, &err);
    return client_leave(client, rc, &err);
}

static int do_open(kvpool_client *c, const char *name, kvpool_pool *ret, struct err *err) {
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_pool is NULL");
    struct proto_name body;
    int rc = args_name(body.name, name, "name", err);
    if (rc != 0)
        return rc;
    struct proto_msg msg;
    rc = call_simple(c, CLIENT_ANY, PROTO_POOL_OPEN, &body, sizeof body, &msg, err);
    if (rc != 0)
        return rc;
    *ret = msg.body.handle.handle;
    client_gave_handle(c);
    return 0;
}

kvpool_status kvpool_pool_open(kvpool_client *client, const char *name, kvpool_pool *ret_pool) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_open(client, name, ret_pool, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_pool_destroy(kvpool_client *client, kvpool_pool pool) {
    struct err err = {0};
    struct proto_handle body = {.handle = pool};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = call_simple(client, CLIENT_HANDLE, PROTO_POOL_DESTROY, &body, sizeof body, NULL, &err);
    return client_leave(client, rc, &err);
}

static int do_stat(kvpool_client *c, kvpool_pool pool, kvpool_pool_info *ret, struct err *err) {
    int rc = args_check_grown(sizeof *ret, offsetof(kvpool_pool_info, kv_dtype), ret, "ret", err);
    if (rc != 0)
        return rc;
    struct proto_handle body = {.handle = pool};
    struct proto_msg msg;
    rc = call_simple(c, CLIENT_HANDLE, PROTO_POOL_STAT, &body, sizeof body, &msg, err);
    if (rc == 0)
        convert_pool_info(&msg.body.pool_info, ret);
    return rc;
}

kvpool_status kvpool_pool_stat(kvpool_client *client, kvpool_pool pool, kvpool_pool_info *ret) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_stat(client, pool, ret, &err);
    return client_leave(client, rc, &err);
}
