// SPDX-License-Identifier: Apache-2.0
// request.h: arguments of steps and attention to calls, for the synchronous functions and for
// kvpool_submit alike.
//
// Invariants
//  1. What is refused here needs no daemon: NULLs, sizes, unknown flags, a region of another
//     client, arithmetic that overflows. What depends on the daemon's state is left to it.
//  2. A call refers to the body and to the caller's arrays: both outlive it.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_REQUEST_H
#define KVPOOL_CLIENT_LIB_REQUEST_H

#include "client/lib/call.h"

union request_body {
    struct proto_step_begin begin;
    struct proto_step_begin_tokens begin_tokens;
    struct proto_handle handle;
    struct proto_attend attend;
};

// With args->step 0 a new id is taken.
int request_begin(kvpool_client *c, const kvpool_step_args *args, union request_body *body,
                  struct call *ret, struct err *err);

// op: PROTO_STEP_COMMIT or PROTO_STEP_ABORT.
int request_end(uint16_t op, kvpool_step step, union request_body *body, struct call *ret,
                struct err *err);

// op: PROTO_APPEND, _PREFILL, _DECODE. May ask the daemon for a pool's geometry once.
int request_attn(kvpool_client *c, uint16_t op, const kvpool_attn_args *args,
                 union request_body *body, struct call *ret, struct err *err);

#endif
