// SPDX-License-Identifier: Apache-2.0
// step.c: the public functions that run a step, one request at a time.
#include "client/lib/request.h"

static int do_begin(kvpool_client *c, const kvpool_step_args *args, kvpool_step *ret_step,
                    uint64_t *ret_missing, struct err *err) {
    if (ret_step == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_step is NULL");
    union request_body body;
    struct call call;
    struct proto_msg msg;
    int rc = request_begin(c, args, &body, &call, err);
    if (rc == 0)
        rc = call_run(c, &call, 0, &msg, err);
    if (rc == 0)
        *ret_step = call.step;
    if (rc == KVPOOL_E_NOSPACE && ret_missing != NULL)
        *ret_missing = err->detail;
    return rc;
}

kvpool_status kvpool_step_begin(kvpool_client *client, const kvpool_step_args *args,
                                kvpool_step *ret_step, uint64_t *ret_missing_pages) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_begin(client, args, ret_step, ret_missing_pages, &err);
    return client_leave(client, rc, &err);
}

static kvpool_status end_step(kvpool_client *client, uint16_t op, kvpool_step step) {
    struct err err = {0};
    union request_body body;
    struct call call;
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = request_end(op, step, &body, &call, &err);
    if (rc == 0)
        rc = call_run(client, &call, 0, NULL, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_step_commit(kvpool_client *client, kvpool_step step) {
    return end_step(client, PROTO_STEP_COMMIT, step);
}

kvpool_status kvpool_step_abort(kvpool_client *client, kvpool_step step) {
    return end_step(client, PROTO_STEP_ABORT, step);
}

static kvpool_status attend(kvpool_client *client, uint16_t op, const kvpool_attn_args *args) {
    struct err err = {0};
    union request_body body;
    struct call call;
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = request_attn(client, op, args, &body, &call, &err);
    if (rc == 0)
        rc = call_run(client, &call, 0, NULL, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_append(kvpool_client *client, const kvpool_attn_args *args) {
    return attend(client, PROTO_APPEND, args);
}

kvpool_status kvpool_prefill(kvpool_client *client, const kvpool_attn_args *args) {
    return attend(client, PROTO_PREFILL, args);
}

kvpool_status kvpool_decode(kvpool_client *client, const kvpool_attn_args *args) {
    return attend(client, PROTO_DECODE, args);
}
