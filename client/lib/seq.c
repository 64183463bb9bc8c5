// SPDX-License-Identifier: Apache-2.0
// seq.c: the public functions of sequences.
#include "client/lib/args.h"
#include "client/lib/call.h"
#include "client/lib/convert.h"

static int check_n(kvpool_client *c, uint32_t n, const void *seqs, struct err *err) {
    if (seqs == NULL)
        return err_set(err, KVPOOL_E_INVAL, "the array of sequences is NULL");
    uint32_t max = client_max_batch(c);
    if (n == 0 || n > max)
        return err_set(err, KVPOOL_E_INVAL, "n is %u, not 1 to %u", n, max);
    return 0;
}

// A request whose reply is n new handles, which go to the caller only when all is well.
static int make_seqs(kvpool_client *c, uint16_t op, const void *body, size_t body_len, uint32_t n,
                     kvpool_seq *ret, struct err *err) {
    int rc = check_n(c, n, ret, err);
    if (rc != 0)
        return rc;
    kvpool_seq made[PROTO_MAX_BATCH];
    struct call call = {.message = {.op = op,
                                    .body = body,
                                    .body_len = body_len,
                                    .ret_records = made,
                                    .ret_cap = n * sizeof made[0]},
                        .need = CLIENT_HANDLE};
    struct proto_msg msg;
    rc = call_run(c, &call, 0, &msg, err);
    if (rc != 0)
        return rc;
    if (msg.count != n)
        return err_set(err, KVPOOL_E_PROTO, "the daemon made %u sequences, not %u", msg.count, n);
    memcpy(ret, made, n * sizeof made[0]);
    client_gave_handle(c);
    return 0;
}

kvpool_status kvpool_seq_create(kvpool_client *client, kvpool_pool pool, uint32_t n,
                                kvpool_seq *ret_seqs) {
    struct err err = {0};
    struct proto_seq_create body = {.pool = pool, .n = n};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = make_seqs(client, PROTO_SEQ_CREATE, &body, sizeof body, n, ret_seqs, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_seq_fork(kvpool_client *client, kvpool_seq seq, uint32_t n,
                              kvpool_seq *ret_seqs) {
    struct err err = {0};
    struct proto_seq_fork body = {.seq = seq, .n = n};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = make_seqs(client, PROTO_SEQ_FORK, &body, sizeof body, n, ret_seqs, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_seq_truncate(kvpool_client *client, kvpool_seq seq, uint32_t length) {
    struct err err = {0};
    struct proto_seq_truncate body = {.seq = seq, .length = length};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = call_simple(client, CLIENT_HANDLE, PROTO_SEQ_TRUNCATE, &body, sizeof body, NULL, &err);
    return client_leave(client, rc, &err);
}

// body says n.
static int free_seqs(kvpool_client *c, uint16_t op, uint64_t feature, const void *body,
                     size_t body_len, uint32_t n, const kvpool_seq *seqs, struct err *err) {
    int rc = check_n(c, n, seqs, err);
    if (rc != 0)
        return rc;
    struct call call = {
        .message = {.op = op, .body = body, .body_len = body_len, .handles = seqs, .count = n},
        .need = CLIENT_HANDLE,
        .feature = feature};
    return call_run(c, &call, 0, NULL, err);
}

kvpool_status kvpool_seq_free(kvpool_client *client, uint32_t n, const kvpool_seq *seqs) {
    struct err err = {0};
    struct proto_count body = {.count = n};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = free_seqs(client, PROTO_SEQ_FREE, 0, &body, sizeof body, n, seqs, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_seq_release(kvpool_client *client, uint32_t n, const kvpool_seq *seqs,
                                 kvpool_free_hint hint) {
    struct err err = {0};
    struct proto_seq_release body = {.count = n, .hint = (uint32_t)hint};
    int rc = client_enter(client, &err);
    if (rc == 0 && hint != KVPOOL_FREE_KEEP && hint != KVPOOL_FREE_DROP)
        rc = err_set(&err, KVPOOL_E_INVAL, "hint is %u, which is no kvpool_free_hint", body.hint);
    if (rc == 0)
        rc = free_seqs(client, PROTO_SEQ_RELEASE, PROTO_FEATURE_PREFIX, &body, sizeof body, n, seqs,
                       &err);
    return client_leave(client, rc, &err);
}

static int do_set_priority(kvpool_client *c, kvpool_seq seq, kvpool_priority priority,
                           struct err *err) {
    struct proto_seq_priority body = {.seq = seq, .priority = (uint32_t)priority};
    if (body.priority > KVPOOL_PRIORITY_HIGH)
        return err_set(err, KVPOOL_E_INVAL, "priority is %u, which is no kvpool_priority",
                       body.priority);
    struct call call = {
        .message = {.op = PROTO_SEQ_PRIORITY, .body = &body, .body_len = sizeof body},
        .need = CLIENT_HANDLE,
        .feature = PROTO_FEATURE_PREFIX};
    return call_run(c, &call, 0, NULL, err);
}

kvpool_status kvpool_seq_set_priority(kvpool_client *client, kvpool_seq seq,
                                      kvpool_priority priority) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_set_priority(client, seq, priority, &err);
    return client_leave(client, rc, &err);
}

static int do_stat(kvpool_client *c, kvpool_seq seq, kvpool_seq_info *ret, struct err *err) {
    int rc = args_check(sizeof *ret, ret, "ret", err);
    if (rc != 0)
        return rc;
    struct proto_handle body = {.handle = seq};
    struct proto_msg msg;
    rc = call_simple(c, CLIENT_HANDLE, PROTO_SEQ_STAT, &body, sizeof body, &msg, err);
    if (rc == 0)
        convert_seq_info(&msg.body.seq_info, ret);
    return rc;
}

kvpool_status kvpool_seq_stat(kvpool_client *client, kvpool_seq seq, kvpool_seq_info *ret) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_stat(client, seq, ret, &err);
    return client_leave(client, rc, &err);
}
