// SPDX-License-Identifier: Apache-2.0
// peers.h: who is at the other end of each NNG pipe: id -> pid, uid. A chained table of entries
// that the caller allocates.
//
// Invariants
//  1. One entry per pipe id; a new entry replaces an older one of the same id.
//  2. An entry in the table is the table's until it is taken out.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_PEERS_H
#define KVPOOL_DAEMON_PEERS_H

#include <stdint.h>

#define PEERS_BUCKETS 1024

struct peer {
    struct peer *next; // in its bucket
    uint32_t pipe;     // NNG's id
    uint32_t pid, uid;
};

struct peers {
    struct peer *bucket[PEERS_BUCKETS];
    uint32_t n;
};

struct peer *peers_find(const struct peers *p, uint32_t pipe); // NULL: unknown
struct peer *peers_add(struct peers *p, struct peer *peer);    // the one it replaced, or NULL
struct peer *peers_take(struct peers *p, uint32_t pipe);       // out of the table; NULL: unknown
struct peer *peers_take_any(struct peers *p);                  // NULL: empty

#endif
