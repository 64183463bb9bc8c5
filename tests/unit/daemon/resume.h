// SPDX-License-Identifier: Apache-2.0
// resume.h: FD_OPEN in one line, and clients that connect as somebody else. Beside fixture.h.
//
// Invariants
//  1. Other users are this process with other effective ids while it connects: what the kernel
//     remembers of a connection. Needs root; skips the test without.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_RESUME_H
#define KVPOOL_TESTS_UNIT_DAEMON_RESUME_H

#include "fixture.h"

#include <sys/types.h>

// Between fixture_init and fixture_start: lets every user connect.
void allow_everybody(struct fixture *f);
// Connects as that user, group and one supplementary group.
int fd_connect_as(struct fixture *f, uid_t uid, gid_t gid, gid_t other);

// FD_OPEN on the connection; *ret (may be NULL) has the reply.
int fd_open(struct fixture *f, int fd, uint64_t session, const uint8_t token[PROTO_TOKEN_SIZE],
            const char *credential, struct proto_msg *ret);
// A new connection for the client's session, in place of its fd (which stays open).
int client_resume(struct fixture *f, struct client *c, struct proto_msg *ret);
// A session of that user, bound by HELLO. credential "": none.
void client_open_as(struct fixture *f, struct client *c, uint32_t pipe, uid_t uid, gid_t gid,
                    gid_t other, const char *credential);

#endif
