// SPDX-License-Identifier: Apache-2.0
// order.h: starts the requests of one connection in the order of their seq.
//
//   next = 5     parked: 6 -> 7 -> 9        5 arrives: start 5, 6, 7; 9 waits for 8
//
// NNG's threads may hand over two requests of one pipe in either order; the gap closes in
// microseconds. One that does not close is a peer's fault: after a time limit the first waiting
// request is answered with an error and what was missing before it is given up, so that one lost
// request does not stop the connection.
//
// Invariants
//  1. Every parked item has seq > next; the list is sorted and has no seq twice.
//  2. next only grows.
// No allocation; items belong to the caller. Thread: loop thread.
#ifndef KVPOOL_DAEMON_ORDER_H
#define KVPOOL_DAEMON_ORDER_H

#include <stdbool.h>
#include <stdint.h>

struct order_item {
    struct order_item *next;
    uint64_t seq;
    uint64_t since_ns;
};

struct order {
    uint64_t next;
    struct order_item *parked;
};

enum order_verdict {
    ORDER_START,  // its turn: next was advanced; call order_pop until NULL afterwards
    ORDER_PARKED, // linked until order_pop, order_expire or order_remove gives it back
    ORDER_PASSED, // that seq was used or given up before
};

void order_init(struct order *o, uint64_t next);
enum order_verdict order_arrive(struct order *o, struct order_item *item, uint64_t seq,
                                uint64_t now_ns);

// Unlinks the item whose turn it is, or returns NULL.
struct order_item *order_pop(struct order *o);

// Unlinks the first item if it has waited for `limit_ns`, and gives up what it waited for.
// Afterwards order_pop may have work.
struct order_item *order_expire(struct order *o, uint64_t now_ns, uint64_t limit_ns);

// Unlinks a parked item without giving up its seq.
void order_remove(struct order *o, struct order_item *item);

// Unlinks any item: for a connection that went away.
struct order_item *order_drop(struct order *o);

#endif
