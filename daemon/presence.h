// SPDX-License-Identifier: Apache-2.0
// presence.h: watches a process by its pidfd and says when it has ended.
//
// Invariants
//  1. The pidfd names the process at the other end of the socket it was made from, even if that
//     process's pid was reused meanwhile: presence_pidfd checks it.
//  2. `ended` is called at most once, and never after presence_close.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_PRESENCE_H
#define KVPOOL_DAEMON_PRESENCE_H

#include "proto/err.h"

#include <uv.h>

struct presence;
typedef void (*presence_ended_fn)(void *arg);

// A pidfd of the peer of a connected Unix socket whose SO_PEERCRED pid is `pid`.
// Errors: CONN (the peer is gone), SYSTEM.
int presence_pidfd(int socket, uint32_t pid, int *ret_fd, struct err *err);

// Takes over `pidfd` on success. Errors: NOMEM, SYSTEM.
int presence_open(uv_loop_t *loop, int pidfd, presence_ended_fn ended, void *arg,
                  struct presence **ret, struct err *err);
void presence_close(struct presence *p); // NULL is ignored; memory goes when the loop runs

#endif
