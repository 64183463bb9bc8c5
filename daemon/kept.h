// SPDX-License-Identifier: Apache-2.0
// kept.h: the descriptors that NNG keeps of listeners that were replaced. NNG 1.5 shuts down what a
// closed listener had accepted and not handed on, so the peers see the end, but never closes it, nor
// then the listener itself.
//
//   nng_listener_close -> kept_mark -> listen anew -> ... what NNG closes goes ... -> kept_count
//
// The mark is on the sockets (SO_PRIORITY, which means nothing to a Unix socket): nothing is
// remembered here, and nothing is done to a descriptor that could disturb its owner.
//
// Invariants
//  1. Only sockets bound to the path, the listener's and those it accepted, are marked or counted.
//  2. A number that NNG closes and gives to another file meanwhile is not counted: the mark went with
//     the socket.
// Threads: any.
#ifndef KVPOOL_DAEMON_KEPT_H
#define KVPOOL_DAEMON_KEPT_H

#include <stdint.h>

void kept_mark(const char *path);      // all there are now: of listeners that are closed
uint32_t kept_count(const char *path); // that are marked and still open
#endif
