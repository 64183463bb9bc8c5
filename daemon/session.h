// SPDX-License-Identifier: Apache-2.0
// session.h: a client as the daemon sees it, beside core's record of it: the process, its two
// connections, its stream, its regions, its work in flight.
//
//   FD_HELLO -> LIVE --process ended | fd connection ended | BYE | shutdown--> DYING
//   DYING: new requests are refused, waiting ones answered; when jobs is 0 the session is closed:
//          core_session_close (pages free), regions, stream, record
//
// Invariants
//  1. session_end has an effect once, whichever event comes first.
//  2. Nothing of a session is freed while a job of it is in the engine.
//  3. `row_writes` counts jobs that write page-table rows which no step holds (fork, abort). While
//     it is not 0 no sequence of the session is freed, so that its row cannot go to another session
//     whose stream might overtake the write.
//  4. parked requests are retried in order whenever a job of the session is done.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_SESSION_H
#define KVPOOL_DAEMON_SESSION_H

#include "daemon/core/core.h"
#include "daemon/engine.h"
#include "daemon/fdsock.h"
#include "daemon/pipes.h"
#include "daemon/presence.h"
#include "daemon/region.h"

struct dispatch;
struct request;

enum session_end_reason {
    SESSION_BYE,      // it said so
    SESSION_PROCESS,  // its process ended
    SESSION_HANGUP,   // its fd connection ended
    SESSION_SHUTDOWN, // the daemon ends
};

struct session {
    struct dispatch *d;
    uint64_t handle; // core's; its index is this record's slot
    uint8_t token[CORE_TOKEN_SIZE];
    char name[CORE_NAME_SIZE];
    uint32_t pid, uid;
    struct fdsock_conn *conn; // NULL: gone
    struct presence *presence;
    struct pipe *pipe; // NULL: not bound
    struct backend_stream *stream;
    struct engine_client *engine; // its queue
    struct region_quota quota;
    uint32_t inflight;                         // requests received and not answered
    uint32_t jobs;                             // in the engine
    uint32_t row_writes;                       // of those, see invariant 3
    uint64_t requests;                         // received
    struct request *parked_head, *parked_tail; // waiting for jobs
    bool dying;
    enum session_end_reason reason;
    uint64_t ended_ns;
};

struct session_table {
    struct session **slots; // [max] by core's session index
    uint32_t max, count;
};

// Opens a session for the process at the other end of `conn`. Errors: SHUTDOWN, LIMIT, PERM, CONN,
// SYSTEM, NOMEM, BACKEND.
int session_open(struct dispatch *d, struct fdsock_conn *conn, const char *name,
                 struct session **ret, struct err *err);
struct session *session_find(const struct dispatch *d, uint64_t handle); // or NULL

// Binds the session to a connection, in place of the one it had. seq: of the HELLO.
int session_bind(struct session *s, uint32_t pipe, uint64_t seq, struct err *err);

// `since_ns`: when the event was seen.
void session_end(struct session *s, enum session_end_reason reason, uint64_t since_ns);

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
