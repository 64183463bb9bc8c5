// SPDX-License-Identifier: Apache-2.0
// groups.h: the groups of the process at the other end of a Unix socket.
//
// Invariants
//  1. They are what the kernel knew when the peer connected: nothing the peer says.
// Thread: any; no state.
#ifndef KVPOOL_DAEMON_GROUPS_H
#define KVPOOL_DAEMON_GROUPS_H

#include "proto/err.h"

// The peer's group (SO_PEERCRED's `gid`) and behind it its supplementary ones (SO_PEERGROUPS);
// free(*ret). Errors: NOMEM, SYSTEM.
int groups_of_peer(int socket, uint32_t gid, uint32_t **ret, uint32_t *ret_n, struct err *err);

#endif
