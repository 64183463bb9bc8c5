// SPDX-License-Identifier: Apache-2.0
// fdsock.h: the seqpacket connection that opens a session and carries file descriptors. Its being
// open is what keeps the session: when it ends, the session is over, at once or, with
// PROTO_FEATURE_RESUME, unless another connection of this process resumes it in time.
//
// Invariants
//  1. One request at a time: its thread has the *turn*; others wait for the turn, not in a lock.
//  2. A received descriptor is close-on-exec and is either returned or closed, on every path.
//  3. A reply that comes after its time-out is dropped; a region that it brings is freed.
// Threads: any.
#ifndef KVPOOL_CLIENT_LIB_FDSOCK_H
#define KVPOOL_CLIENT_LIB_FDSOCK_H

#include "proto/proto.h"

struct fdsock;

// Starts without a connection. Errors: NOMEM.
int fdsock_create(struct fdsock **ret, struct err *err);
void fdsock_destroy(struct fdsock *f); // no other call may be running

struct fdsock_who {
    const char *name;
    const char *credential; // "": none
};

// Connects to <dir>/fd.sock and opens a session; an earlier connection is closed.
// Errors: those of sock_connect; the daemon's (VERSION, LIMIT, SHUTDOWN, PERM); UNSUPPORTED (a
// credential for a daemon that takes none); PROTO, TIMEOUT.
int fdsock_open(struct fdsock *f, const char *dir, const struct fdsock_who *who,
                int64_t deadline_ns, struct proto_fd_hello_reply *ret, struct err *err);

// The same, for the session in *id, which goes on. Errors: those of sock_connect; STALE (another
// session came); the daemon's own; PROTO, TIMEOUT.
int fdsock_resume(struct fdsock *f, const char *dir, const char *name,
                  const struct proto_fd_hello_reply *id, int64_t deadline_ns, struct err *err);

// Whether the connection is open and the daemon has not closed it.
bool fdsock_alive(struct fdsock *f);

// Closes the connection, if any.
void fdsock_close(struct fdsock *f);

// One request and its reply. *ret_fd (NULL: none may come) is a descriptor, or -1.
// Returns the reply's status. Errors of its own: CONN (*ret_sent says whether the daemon may have
// got the request), TIMEOUT, PROTO. After CONN and PROTO the connection is closed.
int fdsock_call(struct fdsock *f, uint16_t op, const void *body, size_t body_len,
                int64_t deadline_ns, struct proto_msg *ret, int *ret_fd, bool *ret_sent,
                struct err *err);

#endif
