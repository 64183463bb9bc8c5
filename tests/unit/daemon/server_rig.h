// SPDX-License-Identifier: Apache-2.0
// server_rig.h: a server on a private directory, run by the test's thread, that echoes or holds
// what it gets; and clients of it: threads with REQ sockets of their own, or raw Unix sockets.
//
// Invariants
//  1. A client is used once: a test that failed leaves threads behind that write to theirs.
//  2. The self-probe's pings are echoed and counted apart; they are never held.
// Thread: the test's, except raw_client.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_SERVER_RIG_H
#define KVPOOL_TESTS_UNIT_DAEMON_SERVER_RIG_H

#include "daemon/server.h"
#include "tests/unit/daemon/tmpdir.h"

#include <nng/nng.h>
#include <pthread.h>
#include <stdatomic.h>

enum { MAX_HELD = 64 };

struct rig {
    struct tmpdir dir;
    char path[128], url[144];
    uv_loop_t loop;
    uv_timer_t tick; // so that run_until looks at its condition
    struct config config;
    struct server *server;
    bool hold; // requests are kept instead of answered
    struct server_req *held[MAX_HELD];
    unsigned num_held, requests, pings, came, went;
    uint32_t last_pid, last_uid, last_pipe, came_pid;
    atomic_int done; // client threads that ended
};
extern struct rig rig;

struct client {
    pthread_t thread;
    int calls;          // to make
    size_t len;         // of each message
    int timeout_ms;     // of each call
    int retry_ms;       // keep trying to connect and call for so long
    int ok, error;      // calls answered rightly; the last nng error
    uint64_t waited_ns; // until the first answer
};

int setup(void **state); // of cmocka; rig.config may be changed before open_server
int teardown(void **state);
void open_server(void);
bool close_server(void);
// Server callbacks with `arg` = &rig.
void on_request(void *arg, struct server_req *req);
void on_pipe(void *arg, uint32_t pipe, uint32_t pid, bool gone);

// Runs the loop until *value reaches `want`, or the time is over.
bool run_until(const unsigned *value, unsigned want, unsigned ms);
void run_for(unsigned ms);
bool run_until_idle(void); // a reply is with its client before NNG says that it was sent

struct client *clients(int n);                       // fresh
struct client *client(int timeout_ms, int retry_ms); // one; timeout 0: 10 s
void start(struct client *c, int calls, size_t len); // its thread
bool finish(struct client *c, int n, unsigned ms);   // runs the loop until n threads have ended
int open_req(nng_socket *ret, int timeout_ms);
void *raw_client(void *arg); // a thread: calls until the server ends the connection
int raw_connect(void);       // non-blocking, or -1
extern const uint8_t handshake[8];

#endif
