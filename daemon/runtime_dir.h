// SPDX-License-Identifier: Apache-2.0
// runtime_dir.h: the directory of the daemon's sockets, and the lock that makes it ours.
//
//   <dir>/kvpoold.lock   flock()ed while a daemon lives, holds its pid; never removed
//   <dir>/kvpool.sock    <dir>/fd.sock
//
// Invariants
//  1. Nothing listens and nothing is removed in the directory before the lock is held.
//  2. The lock ends with the process, however it ends.
//  3. A file that is not a socket is never removed.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_RUNTIME_DIR_H
#define KVPOOL_DAEMON_RUNTIME_DIR_H

#include "proto/err.h"

struct runtime_dir;

// Creates the directory with `mode` when it is missing (its parent must exist), takes the lock and
// removes sockets that an earlier daemon left. Errors: BUSY (held by a live daemon), SYSTEM, INVAL
// (not a directory, something that is no socket in a socket's place), NOMEM.
int runtime_dir_open(const char *dir, uint32_t mode, struct runtime_dir **ret, struct err *err);

// True when others than owner and group may enter and write: strangers could connect.
bool runtime_dir_is_open_to_all(const struct runtime_dir *d);

void runtime_dir_close(struct runtime_dir *d); // gives the lock back; NULL is allowed

#endif
