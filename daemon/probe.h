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
// Its time is counted in beats, not by the clock: a beat is something that NNG's threads and the loop
// have done since the last one, PROBE_BEAT_MS apart when they have time to spare. On a machine that
// starves them the answer comes late, and so do the beats: only who beats and does not answer is dead.
//
// Invariants
//  1. Every probe_start that returns true is followed by one probe_fn: after PROBE_BEATS beats at the
//     latest, or without beats after 30 s, as PROBE_UNKNOWN.
//  2. The socket is looked at a last time before the verdict.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_PROBE_H
#define KVPOOL_DAEMON_PROBE_H

#include "proto/err.h"

#include <uv.h>

enum probe_result {
    PROBE_OK,       // the reply came
    PROBE_NO_REPLY, // accepted, handshake done, but no reply
    PROBE_DEAD,     // not accepted, or closed on us
    PROBE_GONE,     // the kernel says that nobody listens there
    PROBE_UNKNOWN,  // it could not be tried, or NNG's threads do not run at all
};
enum { PROBE_BEATS = 8, PROBE_BEAT_MS = 100 };
typedef void (*probe_fn)(void *arg, enum probe_result result);

struct probe;

int probe_open(uv_loop_t *loop, const char *path, probe_fn fn, void *arg, struct probe **ret,
               struct err *err);
bool probe_start(struct probe *p); // false while one is under way
bool probe_running(const struct probe *p);
void probe_beat(struct probe *p);  // NNG's threads have run since the last call
void probe_close(struct probe *p); // no more probe_fn; handles close on the loop

#endif
