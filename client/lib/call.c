// SPDX-License-Identifier: Apache-2.0
// call.c: see call.h.
#include "client/lib/call.h"

#include "client/lib/sock.h"

#define SEND_ATTEMPTS 3 // connections that break before one byte was sent

static int learn_step(kvpool_client *c, const struct call *call, bool *ret_added, struct err *err) {
    pthread_mutex_lock(&c->lock);
    bool ok = steptab_add(&c->steps, call->step, call->pool, ret_added);
    pthread_mutex_unlock(&c->lock);
    return ok ? 0 : err_set(err, KVPOOL_E_NOMEM, "no memory for a step");
}

static void forget_step(kvpool_client *c, kvpool_step step) {
    pthread_mutex_lock(&c->lock);
    steptab_remove(&c->steps, step);
    pthread_mutex_unlock(&c->lock);
}

static bool is_begin(uint16_t op) {
    return op == PROTO_STEP_BEGIN || op == PROTO_STEP_BEGIN_TOKENS;
}

int call_start(kvpool_client *c, const struct call *call, bool nowait, int64_t deadline_ns,
               struct kvpool_op **ret, struct err *err) {
    for (int attempt = 0; attempt < SEND_ATTEMPTS; attempt++) {
        uint64_t link, session;
        bool learned = false;
        int rc = client_ensure(c, call->need, deadline_ns, &link, &session, err);
        if (rc != 0)
            return rc;
        if (call->feature != 0 && !client_can(c, call->feature)) {
            if (!fdsock_alive(c->fdsock)) { // what another instance can is not known yet
                transport_break(c->transport, "the session's fd socket is gone");
                continue;
            }
            return err_set(err, KVPOOL_E_UNSUPPORTED, "this daemon has no %s (%s)",
                           call->feature == PROTO_FEATURE_PREFIX ? "prefix sharing"
                                                                 : "fp8 pools, scales or sinks",
                           proto_op_name(call->message.op));
        }
        if (is_begin(call->message.op)) {
            rc = learn_step(c, call, &learned, err);
            if (rc != 0)
                return rc;
        }
        rc = transport_submit(c->transport, link, &call->message, nowait, deadline_ns, ret, err);
        if (rc == 0) {
            (*ret)->step = call->step;
            (*ret)->step_learned = learned;
            (*ret)->session = session;
            return 0;
        }
        if (learned)
            forget_step(c, call->step);
        if (rc != TRANSPORT_GONE)
            return rc;
    }
    return err_set(err, KVPOOL_E_CONN, "the daemon closes every connection at once");
}

int call_finish(kvpool_client *c, struct kvpool_op *op, struct proto_msg *ret, struct err *err) {
    int status = op->status;
    bool ended = status == 0 || status == KVPOOL_E_ABORTED || status == KVPOOL_E_NOTFOUND;
    if (is_begin(op->op) && op->step_learned && status != 0 && !op->broken)
        forget_step(c, op->step);
    if ((op->op == PROTO_STEP_COMMIT || op->op == PROTO_STEP_ABORT) && ended)
        forget_step(c, op->step);
    if (status == 0 && ret != NULL)
        *ret = op->reply;
    if (status != 0 && err != NULL)
        *err = op->err;
    transport_release(c->transport, op);
    return status;
}

int call_run(kvpool_client *c, const struct call *call, int64_t deadline_ns, struct proto_msg *ret,
             struct err *err) {
    if (deadline_ns == 0)
        deadline_ns = client_deadline(c);
    for (bool repeat = call->repeat;; repeat = false) {
        struct kvpool_op *op;
        int rc = call_start(c, call, false, deadline_ns, &op, err);
        if (rc != 0)
            return rc;
        if (transport_wait(c->transport, op, deadline_ns) != 0) {
            transport_release(c->transport, op);
            return err_set(err, KVPOOL_E_TIMEOUT,
                           "no reply to %s in time: the daemon may still carry it out",
                           proto_op_name(call->message.op));
        }
        bool broken = op->broken;
        uint64_t before = op->session, after;
        rc = call_finish(c, op, ret, err);
        if (!broken || !repeat)
            return rc;
        struct err reconnecting;
        int ensured = client_ensure(c, CLIENT_HANDLE, deadline_ns, NULL, &after, &reconnecting);
        if (ensured == KVPOOL_E_LOST && err != NULL)
            *err = reconnecting;
        if (ensured == KVPOOL_E_LOST)
            return ensured;
        if (ensured != 0 || after != before)
            return rc;
    }
}

int call_simple(kvpool_client *c, enum client_need need, uint16_t op, const void *body,
                size_t body_len, struct proto_msg *ret, struct err *err) {
    struct call call = {.message = {.op = op, .body = body, .body_len = body_len}, .need = need};
    return call_run(c, &call, 0, ret, err);
}
