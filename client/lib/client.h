// SPDX-License-Identifier: Apache-2.0
// client.h: the connection as a whole: session, reconnecting, what earlier handles are worth, and
// the frame of every public call.
//
//   fd socket alive, control connection broken -> new control connection, HELLO: same session
//   fd socket gone, PROTO_FEATURE_RESUME       -> FD_OPEN, then the same: same session
//   fd socket gone without it, or refused      -> new session: every handle of the old one is lost
//   nobody there                               -> KVPOOL_E_CONN; the next call tries again
//
// Invariants
//  1. Of the threads that find the connection broken one connects, the others wait for it.
//  2. `lost` is set when a new session replaces one that had given out handles, and cleared by the
//     call that answers KVPOOL_E_LOST for it.
//  3. A child of fork() touches no lock, socket or memory of a client: client_enter() comes first
//     in every public function.
//  4. A thread's last message is kept per thread and client (last_error.h), by client_leave().
// Threads: any. `lock` guards what stands below it and is never held in a system call that could
// wait. Lock order: client, then transport.
#ifndef KVPOOL_CLIENT_LIB_CLIENT_H
#define KVPOOL_CLIENT_LIB_CLIENT_H

#include "client/lib/fdsock.h"
#include "client/lib/steptab.h"
#include "client/lib/transport.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define CLIENT_DIR_SIZE 108
#define CLIENT_TIMEOUT_MS 10000u
#define CLIENT_POOLS 32u // geometries remembered

struct pool_shape { // what dense strides need
    kvpool_pool pool;
    uint32_t kv_heads, head_dim;
};

struct kvpool_client {
    uint64_t id; // never reused in the process
    pid_t pid;
    uint32_t timeout_ms;
    char dir[CLIENT_DIR_SIZE];
    char name[PROTO_NAME_SIZE];
    char credential[PROTO_CREDENTIAL_SIZE]; // "": none
    struct transport *transport;
    struct fdsock *fdsock;
    _Atomic uint64_t last_step; // highest step id given out or seen
    _Atomic uint64_t last_ping;

    pthread_mutex_t lock;
    pthread_cond_t connected; // a connecting thread has ended its attempt
    bool connecting;
    bool has_handles; // the session has given out handles
    bool lost;
    uint64_t session; // number of sessions so far: regions and ops remember theirs
    struct proto_fd_hello_reply identity;
    uint64_t features; // PROTO_FEATURE_* that the connection has
    struct kvpool_daemon_info info;
    struct steptab steps;
    struct pool_shape pools[CLIENT_POOLS];
    uint32_t num_pools; // ever put there; the table is a ring
    struct kvpool_region *regions;
    struct kvpool_region *owed; // ended, but for the daemon: region_end.c
};

// The first thing of every public function: INVAL for NULL, FORKED in a child.
int client_enter(const kvpool_client *c, struct err *err);

// The last thing: keeps the message of a failure for kvpool_last_error(). Returns the status.
kvpool_status client_leave(const kvpool_client *c, int status, const struct err *err);

int64_t client_deadline(const kvpool_client *c);
// After a request that the daemon answered AGAIN: waits as long as it says, and true; false, at once:
// another answer might then come after the deadline.
bool client_wait_again(int64_t deadline_ns, const struct err *err);

enum client_need {
    CLIENT_ANY,    // the request names no handle
    CLIENT_HANDLE, // it does: LOST, once, if they are gone
};

// Makes sure of a connection, reconnecting when there is none. *ret_link and *ret_session may be
// NULL. Errors: CONN, LOST, TIMEOUT, VERSION, LIMIT, SHUTDOWN, PROTO.
int client_ensure(kvpool_client *c, enum client_need need, int64_t deadline_ns, uint64_t *ret_link,
                  uint64_t *ret_session, struct err *err);

// The session has given out a handle.
void client_gave_handle(kvpool_client *c);
// Number of the present session.
uint64_t client_session(kvpool_client *c);
uint32_t client_max_batch(kvpool_client *c);
// Whether the connection has an ability, PROTO_FEATURE_*.
bool client_can(kvpool_client *c, uint64_t feature);
// Before the end of a client: gets a lost fd socket back, so that the session can be ended on it.
void client_resume_last(kvpool_client *c, int64_t deadline_ns);

void client_pool_learn(kvpool_client *c, const struct pool_shape *shape);
bool client_pool_known(kvpool_client *c, kvpool_pool pool, struct pool_shape *ret);

#endif
