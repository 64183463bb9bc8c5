// SPDX-License-Identifier: Apache-2.0
// pipes.h: the NNG connections that are bound to a session, by pipe id.
//
//   HELLO --pipes_bind--> BOUND --the session ends--> ORPHAN --NNG says it is gone--> (no record)
//                           \-------NNG says it is gone------------------------------/
//   An ORPHAN of a client that died, not reported gone within 5 s, counts as leaked (NNG before
//   1.10 loses such events, and with them a context's memory).
//
// Invariants
//  1. A record exists only for a pipe that was bound once: connections that never say HELLO, the
//     daemon's self-probe among them, cost nothing.
//  2. A session is bound to at most one pipe, a pipe to at most one session.
//  3. Only a bound pipe has parked requests.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_PIPES_H
#define KVPOOL_DAEMON_PIPES_H

#include "daemon/order.h"
#include "proto/err.h"

#define PIPES_LEAK_NS 5000000000ull

struct pipes;
struct session;

struct pipe {
    uint32_t id;
    struct order order;
    struct session *session; // NULL: orphan
};

int pipes_open(struct pipes **ret, struct err *err);
void pipes_close(struct pipes *ps); // NULL is ignored

struct pipe *pipes_find(const struct pipes *ps, uint32_t id);                     // or NULL
int pipes_add(struct pipes *ps, uint32_t id, struct pipe **ret, struct err *err); // new or orphan
void pipes_remove(struct pipes *ps, struct pipe *p);
void pipes_orphan(struct pipes *ps, struct pipe *p, uint64_t now_ns); // its client died
void pipes_tick(struct pipes *ps, uint64_t now_ns);                   // finds leaks
uint64_t pipes_leaked(const struct pipes *ps);

// Walks all records; *p NULL at first. The current one may be removed.
struct pipe *pipes_first(const struct pipes *ps);
struct pipe *pipes_after(const struct pipe *p);

#endif
