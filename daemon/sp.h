// SPDX-License-Identifier: Apache-2.0
// sp.h: connects to an NNG listener as a peer would, without NNG: the self-probes of the control
// socket (probe.h) and of the event sockets (feed.c) look with it whether a listener lives.
//
//   connect -> write [0 'S' 'P' 0 | protocol (2, big-endian) | 0 0], and what follows it
//
// Invariants
//  1. Nothing here waits.
//  2. The handshake and what follows it leave in one write or not at all.
// Threads: any.
#ifndef KVPOOL_DAEMON_SP_H
#define KVPOOL_DAEMON_SP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

enum { SP_HANDSHAKE = 8 };
enum sp_protocol { SP_SUB = 0x21, SP_REQ = 0x30, SP_REP = 0x31 };

enum sp_answer {
    SP_CONNECTED,
    SP_BUSY,    // the backlog is full: to be tried again
    SP_UNTRIED, // for want of memory or descriptors here
    SP_GONE,    // the kernel says that nobody listens there
    SP_REFUSED, // somebody does, but takes no connection or not what is written
};

void sp_handshake(enum sp_protocol protocol, uint8_t ret[SP_HANDSHAKE]);

// Connects and writes the handshake of a socket of `protocol`, then `more`. *ret_fd does not block;
// it is set when SP_CONNECTED.
enum sp_answer sp_connect(const struct sockaddr_un *addr, enum sp_protocol protocol,
                          const void *more, size_t len, int *ret_fd);

#endif
