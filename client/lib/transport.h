// SPDX-License-Identifier: Apache-2.0
// transport.h: the control connection: many requests in flight over one stream socket, without a
// thread of its own.
//
//   op:  FREE -> IDLE -> SENT -> DONE -> FREE        (SENT -> FREE: abandoned, a late reply is
//                  \-------------------> FREE         dropped by its request id)
//
// Whoever waits for a reply reads the socket: of the waiting threads one is the *reader*, which
// completes every op whose reply arrives and, when its own is done, hands the role to another
// waiter. So is one of the sending threads the *writer*, alone in numbering and writing a message.
// A writer whose message does not fit into the socket's buffer reads too when nobody does: the
// daemon may be waiting for room in the other direction.
//
// Invariants
//  1. seq of the messages written to one connection is 1, 2, 3 ... without a gap, in wire order: it
//     is given by the writer, and taken back if not one byte of the message was written.
//  2. A connection on which anything went wrong is *broken*: it never carries another byte, every
//     op in flight on it is DONE with KVPOOL_E_CONN, and it stays until transport_attach().
//  3. `link` counts connections: a message prepared for one is never sent on another.
//  4. Only the reader touches the receive buffer, only the writer the send buffer; the socket is
//     closed when neither exists. Everything else is under `lock`, which is never held in a system
//     call that could wait.
//  5. At most max_inflight ops are SENT.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_TRANSPORT_H
#define KVPOOL_CLIENT_LIB_TRANSPORT_H

#include "proto/proto.h"

struct transport;

// Of a message that was not carried: the connection is broken or another than `link`; nothing of it
// can have reached the daemon, so that it may be sent again on a new connection.
#define TRANSPORT_GONE 1

struct message { // a request; everything is copied before transport_submit returns
    uint16_t op;
    const void *body;
    size_t body_len;
    const uint64_t *handles; // [count] records: plain handles, or with `tokens` batch items
    const uint32_t *tokens;  // [count] or NULL
    uint32_t count;
    const uint32_t *ids; // [num_ids] token ids behind the records: written from where they stand
    uint32_t num_ids;    // at most PROTO_MAX_TOKENS
    void *ret_records;   // the reply's records go here; written before the op is DONE with status 0
    size_t ret_cap;      // bytes there
};

struct kvpool_op {
    // Read these when the op is DONE.
    int status;
    bool broken;            // status CONN: the connection went while the request was in flight
    struct proto_msg reply; // status 0; `records` is NULL: they went to ret_records
    struct err err;         // status other than 0
    // The caller's, not the transport's.
    uint64_t step;     // of a step's begin, commit or abort
    uint64_t session;  // in which it was sent
    bool step_learned; // this begin put the step into the table
    // The transport's.
    struct transport *owner;
    int state;
    uint16_t op;
    uint32_t slot, generation, id;
    uint64_t seq;
    void *ret_records;
    size_t ret_cap;
    struct op_wait *wait; // condition variable and list links
};

struct link_info { // of a connection after HELLO
    uint8_t version;
    uint64_t epoch;
    uint32_t max_inflight;
    size_t max_message; // of a message without token ids
    uint64_t features;  // PROTO_FEATURE_*, of both sides
};

// Starts without a connection. Errors: NOMEM.
int transport_create(struct transport **ret, struct err *err);

// Closes the connection and frees everything, ops included. No other call may be running.
void transport_destroy(struct transport *t);

// Takes over a connected socket on which HELLO was answered; the earlier one is broken and closed.
void transport_attach(struct transport *t, int fd, const struct link_info *info);

// Whether there is a connection that is not known to be broken; *ret_link is its number.
bool transport_up(struct transport *t, uint64_t *ret_link);

// Breaks the connection: ops in flight end with KVPOOL_E_CONN and this reason.
void transport_break(struct transport *t, const char *why);

// Sends a request on connection `link`. With max_inflight reached it waits for a free place, or
// answers AGAIN when `nowait`. The op is the caller's until transport_release().
// Errors: GONE, TOOBIG, AGAIN, TIMEOUT, NOMEM.
int transport_submit(struct transport *t, uint64_t link, const struct message *m, bool nowait,
                     int64_t deadline_ns, struct kvpool_op **ret, struct err *err);

// Waits until the op is DONE. 0, or TIMEOUT (without a message). One thread at a time for one op.
int transport_wait(struct transport *t, struct kvpool_op *op, int64_t deadline_ns);

// Gives the op back, done or not.
void transport_release(struct transport *t, struct kvpool_op *op);

// Whether `op` is one of t's that is not released.
bool transport_owns(struct transport *t, const struct kvpool_op *op);

#endif
