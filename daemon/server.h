// SPDX-License-Identifier: Apache-2.0
// server.h: the NNG side of the daemon: slots of (context, aio), handed to the loop thread and
// back.
//
//   NNG thread:  receive callback -> inbox (lock, push) -> uv_async_send      no parsing, no state
//   loop thread: drain the inbox -> server_request_fn(req) ... later server_reply(req) -> next
//   receive
//
// Invariants
//  1. A slot is in one state: RECEIVING, INBOX, HANDLING (between the callback and server_reply),
//     SENDING. The number of slots is the admission limit: with none RECEIVING, NNG stops reading.
//  2. Every request handed out gets exactly one server_reply.
//  3. NNG callbacks touch nothing but the inbox.
//  4. What requests take is bounded: one message of at most PROTO_MAX_REQUEST bytes a slot, and
//     one on its way in for each connection.
//  5. Close drains: no new receives, wait for HANDLING and SENDING (bounded), then close.
// Threads: all functions are the loop thread's.
#ifndef KVPOOL_DAEMON_SERVER_H
#define KVPOOL_DAEMON_SERVER_H

#include "daemon/config.h"

#include <uv.h>

struct server;

struct server_req {       // one request, valid until server_reply
    uint32_t pipe;        // NNG pipe id of the connection; never 0
    uint32_t pid, uid;    // of the peer
    const uint8_t *bytes; // the message
    size_t len;
    uint64_t received_ns; // uv_hrtime() when it left NNG
    void *user;           // the handler's own
};

typedef void (*server_request_fn)(void *arg, struct server_req *req);
// A connection came (gone = false) or went. A hint only: events can be lost with NNG before 1.10.
typedef void (*server_pipe_fn)(void *arg, uint32_t pipe, uint32_t pid, bool gone);

// Listens at <dir>/kvpool.sock (whose lock the caller holds). `config` is kept and must outlive the
// server (probe_interval_ms is read from it, and may change).
// Errors: SYSTEM, INVAL (socket path too long), NOMEM.
int server_open(uv_loop_t *loop, const struct config *config, server_request_fn on_request,
                server_pipe_fn on_pipe, void *arg, struct server **ret, struct err *err);

// Sends a reply (copied) and gives the slot back. The peer may be gone: the reply is then dropped.
void server_reply(struct server *s, struct server_req *req, const void *bytes, size_t len);

uint32_t server_busy(const struct server *s);      // slots not RECEIVING: the queue depth
uint64_t server_relistens(const struct server *s); // listener re-created by the self-probe
uint32_t server_kept(const struct server *s);      // descriptors that NNG kept of those before

// Stops taking requests; server_drained() turns true when every reply has left.
void server_drain(struct server *s);
bool server_drained(const struct server *s);

// Closes for good, drained or past its time limit: requests not replied to are abandoned, and
// server_reply must not be called again. The last handles close on the loop. Never hangs: false
// when NNG did not end within 3 s; the server's memory and threads are then left to process exit,
// which must be _exit().
bool server_close(struct server *s);

#endif
