// SPDX-License-Identifier: Apache-2.0
// call.h: one request from a public function to its reply: connect when needed, send, wait.
//
// Invariants
//  1. A request is written at most once, except that begin and commit, which the daemon knows by
//     their step id, are repeated once when the control connection broke and the session did not.
//  2. The step table follows what is known of a step: in with begin, out with the reply that ends
//     it.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_CALL_H
#define KVPOOL_CLIENT_LIB_CALL_H

#include "client/lib/client.h"

struct call {
    struct message message;
    enum client_need need;
    bool repeat;      // invariant 1
    uint64_t feature; // PROTO_FEATURE_* that the connection must have, or 0
    kvpool_step step; // STEP_BEGIN, _COMMIT, _ABORT: its id
    kvpool_pool pool; // STEP_BEGIN: its pool
};

// Sends. Errors: those of client_ensure and transport_submit; UNSUPPORTED.
int call_start(kvpool_client *c, const struct call *call, bool nowait, int64_t deadline_ns,
               struct kvpool_op **ret, struct err *err);

// Takes the result of a DONE op and releases it. ret (may be NULL) is written on 0.
int call_finish(kvpool_client *c, struct kvpool_op *op, struct proto_msg *ret, struct err *err);

// Sends and waits until the client's time-out, or `deadline_ns` when it is not 0.
int call_run(kvpool_client *c, const struct call *call, int64_t deadline_ns, struct proto_msg *ret,
             struct err *err);

// call_run of a request that is just an op and a body.
int call_simple(kvpool_client *c, enum client_need need, uint16_t op, const void *body,
                size_t body_len, struct proto_msg *ret, struct err *err);

#endif
