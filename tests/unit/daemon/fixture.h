// SPDX-License-Identifier: Apache-2.0
// fixture.h: a whole dispatch in the test's process: real core, protocol, engine and CPU backend,
// real fd socket in a private directory; the NNG server is a double that hands requests in and
// collects replies. The backend can hold programs back, or fail.
//
// Invariants
//  1. Every request handed in is answered exactly once by the time of fixture_stop (asserted).
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_FIXTURE_H
#define KVPOOL_TESTS_UNIT_DAEMON_FIXTURE_H

#include "daemon/dispatch_impl.h"

#include <stdio.h>

struct call { // one request handed in
    struct server_req req;
    uint8_t *bytes;
    bool answered;
    uint8_t *reply;
    size_t reply_len;
    uint16_t op;
    struct call *next;
};

struct client {
    int fd; // connected to fd.sock, nonblocking
    uint32_t pid, pipe;
    uint64_t session, epoch, seq; // seq: of the last request, 0 at first
    uint8_t token[PROTO_TOKEN_SIZE];
};

struct fixture {
    uv_loop_t loop;
    struct config config;
    struct dispatch *d;
    struct call *calls;
    uint64_t features; // that clients say they have
};

// config may be changed between init and start.
void fixture_init(struct fixture *f);
void fixture_start(struct fixture *f);
void fixture_start_with(struct fixture *f, const struct backend_ops *ops); // `held`, changed
void fixture_stop(struct fixture *f);

// Lets the loop run until `*flag` or `until(arg)`; fails the test after 10 s.
void pump_until(struct fixture *f, bool (*until)(void *arg), void *arg);
void pump(struct fixture *f, uint32_t ms);

// --- the backend: that of the CPU, but ---------------------------------------------------------
void backend_hold(bool hold);         // programs wait from now on / all waiting ones run
uint32_t backend_held(void);          // how many wait
void backend_fail(bool fail);         // submit refuses
extern const struct backend_ops held; // for dispatch_open_with

// Allocations that this program's own code (not libuv, not the doubles) made on the loop thread
// since the last call.
uint32_t allocations(void);
// The nth of them from now on fails; 0: none does.
void allocation_fails(uint32_t nth);

// --- the fd socket ------------------------------------------------------------------------------
int fd_connect(struct fixture *f);
// Sends one message; extra_fd -1: none.
void fd_send(int fd, uint16_t op, const void *body, size_t len, int extra_fd);
// Receives one reply of `op` and returns its status. *ret_fd (may be NULL): the fd that came, or
// -1. KVPOOL_E_CONN: the daemon closed the connection.
int fd_recv(struct fixture *f, int fd, uint16_t op, struct proto_msg *ret, int *ret_fd);
// A session of this process (pid, pipe set), bound by HELLO.
void client_open(struct fixture *f, struct client *c, uint32_t pipe);
// HELLO with the client's token on its pipe, as process `pid`.
int client_hello(struct fixture *f, struct client *c, struct proto_msg *ret);
uint64_t client_region(struct fixture *f, struct client *c, uint64_t bytes, void **ret_data);
int client_region_free(struct fixture *f, struct client *c, uint64_t region);
void client_bye(struct fixture *f, struct client *c);

void server_keeps(uint32_t n); // server_kept() from now on

// --- the control socket -------------------------------------------------------------------------
// Hands a request in, without waiting. seq UINT64_MAX: the client's next.
struct call *call_start(struct fixture *f, struct client *c, uint64_t seq, uint16_t op,
                        const void *body, size_t len, const void *records, size_t records_len);
struct call *call_raw(struct fixture *f, struct client *c, const void *bytes, size_t len);
// Waits for the answer, parses it (*ret may be NULL) and forgets the call; the request's status.
// *err has the message of an error.
int call_end(struct fixture *f, struct call *call, struct proto_msg *ret, struct err *err);
// Both.
int call(struct fixture *f, struct client *c, uint16_t op, const void *body, size_t len,
         const void *records, size_t records_len, struct proto_msg *ret, struct err *err);

// --- operations in one line ----------------------------------------------------------------------
uint64_t make_pool(struct fixture *f, struct client *c, const char *name, uint32_t pages);
void make_seqs(struct fixture *f, struct client *c, uint64_t pool, uint32_t n, uint64_t *ret);
int begin(struct fixture *f, struct client *c, uint64_t step, uint64_t pool, uint32_t n,
          const uint64_t *seqs, uint32_t tokens, struct err *err);
int by_handle(struct fixture *f, struct client *c, uint16_t op, uint64_t handle, struct err *err);
uint32_t free_pages(struct fixture *f, struct client *c, uint64_t pool);

// One PING, whose payload must come back / one STATS: the reply's status.
int client_ping(struct fixture *f, struct client *c);
int client_stats(struct fixture *f, struct client *c, struct proto_stats *ret);

#endif
