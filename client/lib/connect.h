// SPDX-License-Identifier: Apache-2.0
// connect.h: the handshakes that make a usable connection: FD_HELLO or FD_OPEN on the fd socket, then
// the SP greeting and HELLO on the control socket.
//
// Invariants
//  1. The first message on a control connection is HELLO, unnumbered (seq 0); it is answered before
//     the connection is used for anything else.
//  2. On an error nothing stays open that was not open before.
// Threads: one at a time per fdsock.
#ifndef KVPOOL_CLIENT_LIB_CONNECT_H
#define KVPOOL_CLIENT_LIB_CONNECT_H

#include "client/lib/fdsock.h"
#include "client/lib/transport.h"

struct connection {
    int fd; // of the control socket, owned by the caller
    struct proto_fd_hello_reply identity;
    struct link_info link;
    struct kvpool_daemon_info info;
};

// Opens a new session and its control connection; fills in all of *ret.
// Errors: those of sock_connect and fdsock_open, PROTO, TIMEOUT, CONN.
int connect_session(struct fdsock *f, const char *dir, const struct fdsock_who *who,
                    int64_t deadline_ns, struct connection *ret, struct err *err);

// Opens a control connection of the session in ret->identity; fills in the rest of *ret. While the
// fd socket is alive, a control socket that is not there (being re-created) is waited for a little.
// Errors: CONN, TIMEOUT, PROTO, and the daemon's own about the session.
int connect_control(struct fdsock *f, const char *dir, int64_t deadline_ns, struct connection *ret,
                    struct err *err);

#endif
