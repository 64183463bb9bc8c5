// SPDX-License-Identifier: Apache-2.0
// session.h: a client as the daemon sees it, beside core's record of it: the process and who it is,
// its two connections, its stream, its regions, its work in flight.
//
//                      FD_OPEN with session and token, from the same process
//                 +--------------------------------------------------------------+
//                 v                                                              |
//   FD_HELLO -> LIVE --fd connection ended (session_grace > 0)----------------> DETACHED
//   FD_OPEN       |                                                              |
//                 +--process ended | BYE | shutdown                              |
//                 |  | fd connection ended (session_grace = 0)                   |
//                 v                                                              |
//               DYING <---process ended | shutdown | no request for session_grace-+
//
//   A detached session goes on: its jobs, its open steps, requests on its control connection.
//   DYING: new requests are refused, waiting ones answered; when jobs is 0 the session is closed:
//          core_session_close (pages free), regions, stream, record
//
// Invariants
//  1. session_end has an effect once, whichever event comes first.
//  2. Nothing of a session is freed while a job of it is in the engine.
//  3. `row_writes` counts jobs that write page-table rows which no step holds (fork, abort). While
//     it is not 0 no sequence of the session is freed, so that its row cannot go to another session
//     whose stream might overtake the write.
//  4. uid, groups and identity are those of the beginning: whatever the process does later, and
//     whatever a new fd connection says.
//  5. parked requests are retried in order whenever a job of the session is done.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_SESSION_H
#define KVPOOL_DAEMON_SESSION_H

#include "daemon/access.h"
#include "daemon/core/core.h"
#include "daemon/engine.h"
#include "daemon/fdsock.h"
#include "daemon/log.h"
#include "daemon/pipes.h"
#include "daemon/presence.h"
#include "daemon/region.h"

struct dispatch;
struct request;

enum session_end_reason {
    SESSION_BYE,      // it said so
    SESSION_PROCESS,  // its process ended
    SESSION_HANGUP,   // its fd connection ended, and there is no grace
    SESSION_GRACE,    // its fd connection ended, and the grace is over
    SESSION_SHUTDOWN, // the daemon ends
};

#define SESSION_NS_CACHE 16

struct session_ns { // pool 0: empty
    uint64_t pool;
    uint32_t ns;
};

struct session {
    struct dispatch *d;
    uint64_t handle; // core's; its index is this record's slot
    uint8_t token[CORE_TOKEN_SIZE];
    char name[CORE_NAME_SIZE];
    char identity[CORE_NAME_SIZE]; // that a credential proved, "" = none
    uint32_t pid, uid, num_gids;
    uint32_t *gids; // [num_gids] its own and the supplementary ones
    struct session_ns ns_cache[SESSION_NS_CACHE];
    struct fdsock_conn *conn; // NULL: detached, or dying
    struct presence *presence;
    struct pipe *pipe; // NULL: not bound
    uint64_t features; // PROTO_FEATURE_* of that connection
    struct backend_stream *stream;
    struct engine_client *engine; // its queue
    struct region_quota quota;
    struct log_limit nomem;                    // of attention.nomem
    uint32_t inflight;                         // requests received and not answered
    uint32_t jobs;                             // in the engine
    uint32_t row_writes;                       // of those, see invariant 3
    uint64_t requests;                         // received
    struct request *parked_head, *parked_tail; // waiting for jobs
    struct request *late_head, *late_tail;     // waiting for their turn, see turns.c
    struct session *late_next;                 // in the ring of those who have some
    uint64_t heard_ns;                         // last request, or when it lost its connection
    bool detached, dying;
    enum session_end_reason reason;
    uint64_t ended_ns;
};

struct session_table {
    struct session **slots; // [max] by core's session index
    uint32_t max, count;
};

// Opens a session for the process at the other end of `conn`, which proved `identity` ("": none).
// Errors: SHUTDOWN, LIMIT, PERM, CONN, SYSTEM, NOMEM, BACKEND.
int session_open(struct dispatch *d, struct fdsock_conn *conn, const char *name,
                 const char *identity, struct session **ret, struct err *err);
struct session *session_find(const struct dispatch *d, uint64_t handle); // or NULL

// Binds the session to a connection, in place of the one it had. seq: of the HELLO.
int session_bind(struct session *s, uint32_t pipe, uint64_t seq, struct err *err);

// `since_ns`: when the event was seen.
void session_end(struct session *s, enum session_end_reason reason, uint64_t since_ns);

// session_grace.c: the fd connection ended / a new one takes its place, even if the old one seems
// alive. Errors: PERM (another process, another uid).
void session_detach(struct session *s);
int session_attach(struct session *s, struct fdsock_conn *conn, struct err *err);
// Sets the timer for the detached sessions: after each change of them or of session_grace.
void session_grace_arm(struct dispatch *d);

// session_access.c. An admin (root, the daemon's own user) sees everything; to use a pool it needs
// to be let in like everybody.
bool session_is_admin(const struct session *s);
// The two are one tenant: the same identity, or the same user and neither has one.
bool session_same_tenant(const struct session *s, const struct session *other);
// The namespace of the pool that the session works in. Errors: STALE, PERM.
int session_pool_ns(struct session *s, uint64_t pool, uint32_t *ret_ns, struct err *err);
// The session may use the pool, or is an admin. Errors: PERM; with a handle also STALE.
int session_pool_name_seen(const struct session *s, const char *name, struct err *err);
int session_pool_seen(const struct session *s, uint64_t pool, struct core_pool_info *ret,
                      struct err *err);

// Requests that wait for jobs of the session.
void session_park(struct session *s, struct request *r);
void session_retry_parked(struct session *s);
// A parked commit or abort of the step.
bool session_step_ends(const struct session *s, uint64_t step);

// Closes a dying session whose last job is done. True when *s is gone.
bool session_reap(struct session *s);

// The connection went away, or is replaced: answers what waits on it for an earlier seq.
void session_drop_pipe(struct dispatch *d, struct pipe *p);

#endif
