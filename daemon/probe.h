// SPDX-License-Identifier: Apache-2.0
// probe.h: asks the daemon's own control socket for a PING, as a client would. NNG before 1.6 loses
// its listener for good when a peer connects and goes away at the wrong moment; nothing but a new
// connection shows it.
//
//   connect -> write [SP handshake | one framed REQ message with a PROTO_PING]
//           -> read  [SP handshake] -> read [frame with our request id]
//
// It speaks the wire format (SP over IPC) itself instead of using NNG, so that it needs no thread,
// cannot hang, and does not depend on what it examines.
//
// Invariants
//  1. Every probe_start that returns true is followed by one probe_fn, within about 1.5 s.
//  2. A loop that was itself late does not make the verdict worse: one extension, and a last look
//     at the socket before giving up.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_PROBE_H
#define KVPOOL_DAEMON_PROBE_H

#include "proto/err.h"

#include <uv.h>

enum probe_result {
    PROBE_OK,       // the reply came
    PROBE_NO_REPLY, // accepted, handshake done, but no reply
    PROBE_DEAD,     // not accepted, refused, or closed on us
};
typedef void (*probe_fn)(void *arg, enum probe_result result);

struct probe;

int probe_open(uv_loop_t *loop, const char *path, probe_fn fn, void *arg, struct probe **ret,
               struct err *err);
bool probe_start(struct probe *p); // false while one is under way
bool probe_running(const struct probe *p);
void probe_close(struct probe *p); // no more probe_fn; handles close on the loop

#endif
