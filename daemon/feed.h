// SPDX-License-Identifier: Apache-2.0
// feed.h: the event stream of the daemon: events (events.h) over two sockets that only root and the
// daemon's own user can reach, since events tell of all tenants.
//
//   <dir>/private/            0700
//     events.sock   NNG PUB   one message = one line; a reader that is too slow misses some
//     replay.sock   NNG REP   "FROM" or "FROM MAX" in decimal ->
//                             {"type":"Replay","epoch":"0x..","oldest":O,"newest":N}
//                             and the lines from FROM on, up to 1 MiB; none when FROM < O
//
//   A reader sees a gap by the sequence numbers, fills it by replay, and sees a restart by the epoch.
//
// Invariants
//  1. Two threads of the feed's own publish and answer: no reader, however slow, makes the loop
//     wait.
//  2. A listener that NNG lost is made again within seconds.
//  3. The sockets are gone when feed_close has returned.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_FEED_H
#define KVPOOL_DAEMON_FEED_H

#include "daemon/events.h"

#define FEED_DIR "private"
#define FEED_EVENTS_SOCKET FEED_DIR "/events.sock"
#define FEED_REPLAY_SOCKET FEED_DIR "/replay.sock"
#define FEED_REPLY_BYTES (1u << 20)

struct feed;

// `dir` is the daemon's directory, whose lock the caller holds; `events` must outlive the feed.
// Errors: INVAL (path too long, something else in the way), PERM (private/ is another user's),
// SYSTEM, NOMEM.
int feed_open(const char *dir, struct events *events, struct feed **ret, struct err *err);

// Ends the event readers (events_stop), both sockets and threads. Never hangs: false when NNG did
// not end within 3 s; then the feed and `events` must be left to process exit.
bool feed_close(struct feed *f); // NULL is allowed

#endif
