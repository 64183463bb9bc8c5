// SPDX-License-Identifier: Apache-2.0
// observe.c: the public functions that look at the daemon: counters and lists.
#include "client/lib/args.h"
#include "client/lib/call.h"
#include "client/lib/convert.h"

#define CHUNK 64u // records asked for at once

static int do_stats(kvpool_client *c, kvpool_stats *ret, struct err *err) {
    int rc = args_check(sizeof *ret, ret, "ret", err);
    if (rc != 0)
        return rc;
    struct proto_msg msg;
    rc = call_simple(c, CLIENT_ANY, PROTO_STATS, NULL, 0, &msg, err);
    if (rc == 0)
        convert_stats(&msg.body.stats, msg.header.epoch, ret);
    return rc;
}

kvpool_status kvpool_get_stats(kvpool_client *client, kvpool_stats *ret) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_stats(client, ret, &err);
    return client_leave(client, rc, &err);
}

union record { // of any list
    struct proto_pool_info pool;
    struct proto_seq_info seq;
    struct proto_client_info client;
    struct proto_ns_info ns;
};

struct list {
    uint16_t op;
    size_t record; // bytes on the wire
    size_t known;  // bytes of the public struct that this library knows
    size_t first;  // bytes of it in its first version
    bool of_pool;  // asks about one pool: prefix sharing
    void (*convert)(const void *in, void *ret);
};

static void pool_record(const void *in, void *ret) {
    convert_pool_info(in, ret);
}
static void seq_record(const void *in, void *ret) {
    convert_seq_info(in, ret);
}
static void client_record(const void *in, void *ret) {
    convert_client_info(in, ret);
}
static void usage_record(const void *in, void *ret) {
    convert_usage(in, ret);
}

static const struct list list_pools = {PROTO_POOL_LIST,
                                       sizeof(struct proto_pool_info),
                                       sizeof(kvpool_pool_info),
                                       offsetof(kvpool_pool_info, kv_dtype),
                                       false,
                                       pool_record};
static const struct list list_seqs = {PROTO_SEQ_LIST,
                                      sizeof(struct proto_seq_info),
                                      sizeof(kvpool_seq_info),
                                      sizeof(kvpool_seq_info),
                                      false,
                                      seq_record};
static const struct list list_clients = {PROTO_CLIENT_LIST,
                                         sizeof(struct proto_client_info),
                                         sizeof(kvpool_client_info),
                                         sizeof(kvpool_client_info),
                                         false,
                                         client_record};
static const struct list list_usage = {PROTO_POOL_USAGE,
                                       sizeof(struct proto_ns_info),
                                       sizeof(kvpool_usage),
                                       sizeof(kvpool_usage),
                                       true,
                                       usage_record};

static int check_list(const struct list *l, const uint32_t *cursor, uint32_t cap, const void *ret,
                      const uint32_t *ret_n, size_t *ret_stride, struct err *err) {
    if (cursor == NULL || ret_n == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", cursor == NULL ? "cursor" : "ret_n");
    if (cap == 0)
        return err_set(err, KVPOOL_E_INVAL, "cap is 0");
    int rc = args_check_grown(l->known, l->first, ret, "ret[0]", err);
    if (rc != 0)
        return rc;
    // The caller's array has structs of the caller's size.
    memcpy(ret_stride, ret, sizeof *ret_stride);
    for (uint32_t i = 1; i < cap; i++) {
        size_t size;
        memcpy(&size, (const char *)ret + i * *ret_stride, sizeof size);
        if (size != *ret_stride)
            return err_set(err, KVPOOL_E_INVAL, "ret[%u].size is %zu, that of ret[0] %zu", i, size,
                           *ret_stride);
    }
    return 0;
}

static int do_list(kvpool_client *c, const struct list *l, kvpool_pool pool, uint32_t *cursor,
                   uint32_t cap, void *ret, uint32_t *ret_n, struct err *err) {
    size_t stride = 0;
    int rc = check_list(l, cursor, cap, ret, ret_n, &stride, err);
    if (rc != 0)
        return rc;
    union record records[CHUNK];
    uint32_t n = 0, at = *cursor;
    while (n < cap) {
        uint32_t want = cap - n < CHUNK ? cap - n : CHUNK;
        struct proto_list body = {.cursor = at, .max = want};
        struct proto_pool_usage body_of_pool = {.pool = pool, .cursor = at, .max = want};
        struct call call = {.message = {.op = l->op,
                                        .body = &body,
                                        .body_len = sizeof body,
                                        .ret_records = records,
                                        .ret_cap = want * l->record}};
        if (l->of_pool) {
            call.message.body = &body_of_pool;
            call.message.body_len = sizeof body_of_pool;
            call.need = CLIENT_HANDLE;
            call.feature = PROTO_FEATURE_PREFIX;
        }
        struct proto_msg msg;
        rc = call_run(c, &call, 0, &msg, err);
        if (rc != 0)
            return rc;
        for (uint32_t i = 0; i < msg.count; i++)
            l->convert((const char *)records + i * l->record, (char *)ret + (n + i) * stride);
        n += msg.count;
        at = msg.body.list_reply.cursor;
        if (msg.count < want)
            break;
    }
    *cursor = at;
    *ret_n = n;
    return 0;
}

static kvpool_status list(kvpool_client *client, const struct list *l, kvpool_pool pool,
                          uint32_t *cursor, uint32_t cap, void *ret, uint32_t *ret_n) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_list(client, l, pool, cursor, cap, ret, ret_n, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_list_pools(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                kvpool_pool_info *ret, uint32_t *ret_n) {
    return list(client, &list_pools, 0, cursor, cap, ret, ret_n);
}

kvpool_status kvpool_list_seqs(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                               kvpool_seq_info *ret, uint32_t *ret_n) {
    return list(client, &list_seqs, 0, cursor, cap, ret, ret_n);
}

kvpool_status kvpool_list_usage(kvpool_client *client, kvpool_pool pool, uint32_t *cursor,
                                uint32_t cap, kvpool_usage *ret, uint32_t *ret_n) {
    return list(client, &list_usage, pool, cursor, cap, ret, ret_n);
}

kvpool_status kvpool_list_clients(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                  kvpool_client_info *ret, uint32_t *ret_n) {
    return list(client, &list_clients, 0, cursor, cap, ret, ret_n);
}
