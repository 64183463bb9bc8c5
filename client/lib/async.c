// SPDX-License-Identifier: Apache-2.0
// async.c: the public functions for many requests in flight.
#include "client/lib/args.h"
#include "client/lib/request.h"
#include "client/lib/sock.h"

kvpool_step kvpool_step_id(kvpool_client *client) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc != 0) {
        client_leave(client, rc, &err);
        return 0;
    }
    return atomic_fetch_add(&client->last_step, 1) + 1;
}

static int make_call(kvpool_client *c, const kvpool_request *r, union request_body *body,
                     struct call *ret, struct err *err) {
    switch (r->kind) {
    case KVPOOL_OP_APPEND:
        return request_attn(c, PROTO_APPEND, r->attn, body, ret, err);
    case KVPOOL_OP_PREFILL:
        return request_attn(c, PROTO_PREFILL, r->attn, body, ret, err);
    case KVPOOL_OP_DECODE:
        return request_attn(c, PROTO_DECODE, r->attn, body, ret, err);
    case KVPOOL_OP_BEGIN: {
        int rc = request_begin(c, r->begin, body, ret, err);
        if (rc == 0 && r->begin->step == 0)
            return err_set(err, KVPOOL_E_INVAL, "a submitted begin needs a kvpool_step_id()");
        return rc;
    }
    case KVPOOL_OP_COMMIT:
        return request_end(PROTO_STEP_COMMIT, r->step, body, ret, err);
    case KVPOOL_OP_ABORT:
        return request_end(PROTO_STEP_ABORT, r->step, body, ret, err);
    default:
        return err_set(err, KVPOOL_E_INVAL, "kind is %u, which is no kvpool_op_kind", r->kind);
    }
}

static int do_submit(kvpool_client *c, const kvpool_request *user_request, kvpool_op **ret,
                     struct err *err) {
    kvpool_request request;
    int rc = args_read(&request, sizeof request, user_request, "request", err);
    if (rc != 0)
        return rc;
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_op is NULL");
    if (request.flags != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", request.flags);
    union request_body body;
    struct call call;
    rc = make_call(c, &request, &body, &call, err);
    if (rc != 0)
        return rc;
    return call_start(c, &call, true, client_deadline(c), ret, err);
}

kvpool_status kvpool_submit(kvpool_client *client, const kvpool_request *request,
                            kvpool_op **ret_op) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_submit(client, request, ret_op, &err);
    return client_leave(client, rc, &err);
}

static int do_wait(kvpool_client *c, kvpool_op *op, uint32_t timeout_ms, struct err *err) {
    if (op == NULL || !transport_owns(c->transport, op))
        return err_set(err, KVPOOL_E_INVAL, "not an outstanding op of this client");
    uint32_t ms = timeout_ms == UINT32_MAX ? c->timeout_ms : timeout_ms;
    if (transport_wait(c->transport, op, clock_deadline(ms)) != 0)
        return err_set(err, KVPOOL_E_TIMEOUT, "%s is not done yet", proto_op_name(op->op));
    return call_finish(c, op, NULL, err);
}

kvpool_status kvpool_wait(kvpool_client *client, kvpool_op *op, uint32_t timeout_ms) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_wait(client, op, timeout_ms, &err);
    return client_leave(client, rc, &err);
}
