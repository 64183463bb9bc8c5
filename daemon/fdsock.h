// SPDX-License-Identifier: Apache-2.0
// fdsock.h: the listener at <dir>/fd.sock (SOCK_SEQPACKET): packets in, packets with at most one
// file descriptor out. What packets mean is the user's business.
//
//   accept -> connection (NEW) --fdsock_admit--> ADMITTED --EOF, error, too slow--> gone() ->
//   closed
//                   \--nothing said for 5 s--> closed
//
// Invariants
//  1. At most `max_conns` connections exist; more are accepted and closed at once.
//  2. File descriptors that a peer sends are closed, whatever else happens to its packet.
//  3. Nothing here waits: a peer that does not read its replies is closed.
//  4. `gone` is called once for every connection that `packet` was called for, unless the user
//     closed it (fdsock_conn_close).
//  5. What a peer can make happen again and again is a line a minute in the log.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_FDSOCK_H
#define KVPOOL_DAEMON_FDSOCK_H

#include "proto/err.h"

#include <uv.h>

struct fdsock;

struct fdsock_conn {        // the user may read it
    uint64_t id;            // no other connection's, ever
    int fd;                 // for presence_pidfd and groups_of_peer
    uint32_t pid, uid, gid; // SO_PEERCRED
    void *user;             // the user's own, NULL at first
};

struct fdsock_packet {
    const uint8_t *bytes;
    size_t len;
    bool truncated; // longer than PROTO_MAX_MESSAGE
    bool had_fds;   // file descriptors came with it (they are closed already)
};

struct fdsock_handler {
    void (*packet)(void *arg, struct fdsock_conn *conn, const struct fdsock_packet *packet);
    void (*gone)(void *arg, struct fdsock_conn *conn); // conn is freed after it
    void *arg;
};

struct fdsock_config {
    const char *dir;
    uint32_t mode; // of the socket file
    uint32_t max_conns;
    uint64_t hello_ns; // time a connection has until fdsock_admit
};

// Replaces a socket file left over by a dead daemon: the caller holds the directory's lock.
// Errors: INVAL (path too long), SYSTEM, NOMEM.
int fdsock_open(uv_loop_t *loop, const struct fdsock_config *config,
                const struct fdsock_handler *handler, struct fdsock **ret, struct err *err);

void fdsock_admit(struct fdsock_conn *conn); // it said who it is

// Sends one packet, with `fd` (-1: none; it stays the caller's). When the peer is gone or does not
// read, the connection is closed: after the current packet callback, or at once where there is none.
void fdsock_send(struct fdsock_conn *conn, const void *bytes, size_t len, int fd);

void fdsock_conn_close(struct fdsock_conn *conn); // no `gone`; at once or after the callback
uint32_t fdsock_conns(const struct fdsock *f);
void fdsock_close(struct fdsock *f); // with all connections, without `gone`; removes the file

#endif
