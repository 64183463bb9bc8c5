// SPDX-License-Identifier: Apache-2.0
// sched.h: whose turn it is on the device: two classes, and within a class a deficit round-robin
// over the clients, in nanoseconds of device time.
//
//   LATENCY  decode, page tables     all of the time, but 1/8 while BULK waits  --> sched_pick
//   BULK     prefill, long appends   what LATENCY leaves, at least 1/8          -->
//
//   ring of a class:   turn -> c1 <-> c2 <-> c3      a client in its turn gets quantum x weight
//
// When a piece of LATENCY work is finished BULK is held back for a moment (sched_hold): on a machine
// whose processors also carry the answer to the client and its next request back, work that begins at
// once would be in the way of both, and the next request would wait for it ("anticipatory scheduling",
// Iyer, Druschel, SOSP 2001). That time counts as LATENCY's.
//
// The cost of work is charged when it is picked, and corrected when it was measured: a client whose
// work took longer than its credit is in debt, and waits for as many rounds as that takes.
//
// Invariants
//  1. A client is in the ring of one class while it has work to be picked, and in none otherwise.
//  2. While both classes wait, BULK gets an eighth of the time that is charged, short of one
//     quantum and one piece of work.
//  3. A client that has no work keeps no credit; its debt fades with the time that it is idle.
//  4. sched_pick takes time in proportion to the clients of one class, at most.
// Pure data; the caller locks.
#ifndef KVPOOL_DAEMON_SCHED_H
#define KVPOOL_DAEMON_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#define SCHED_BULK_SHARE 8 // one part in so many
#define SCHED_HOLD_NS 250000u

enum sched_class { SCHED_LATENCY, SCHED_BULK, SCHED_CLASSES };

struct sched_client {
    struct sched_client *next, *prev; // in a ring
    int64_t credit_ns;                // < 0: debt
    uint64_t idle_since_ns;
    uint32_t weight;
    enum sched_class class;
    bool waiting; // in the ring of `class`
};

struct sched {
    struct sched_client *turn[SCHED_CLASSES]; // NULL: nobody waits
    uint64_t weights[SCHED_CLASSES];          // of those who wait
    uint64_t quantum_ns;
    int64_t owed_ns;        // device time that BULK should have had
    uint64_t hold_since_ns; // 0: BULK is not held back
    bool owing;             // it was, but is owed its share
};

void sched_init(struct sched *s, uint64_t quantum_ns);
void sched_client_init(struct sched_client *c, uint32_t weight); // weight: 1..
void sched_set_weight(struct sched *s, struct sched_client *c, uint32_t weight);

// The client's next piece of work is of this class / it has none. Repeats are allowed.
void sched_wait(struct sched *s, struct sched_client *c, enum sched_class class, uint64_t now_ns);
void sched_leave(struct sched *s, struct sched_client *c, uint64_t now_ns);

// Whose next piece of work is to run; NULL: nobody waits. *ret_contended: both classes wait, or one
// is to come back at once (see sched_hold).
struct sched_client *sched_pick(struct sched *s, bool *ret_contended);

// The same, of LATENCY only.
struct sched_client *sched_pick_latency(struct sched *s, bool *ret_contended);

// A piece of LATENCY work that somebody waits for is finished.
void sched_hold(struct sched *s, uint64_t now_ns);
// How many ns BULK, which alone waits, is still to be held back; 0: call sched_pick.
uint64_t sched_held(struct sched *s, uint64_t now_ns);

// What that costs, or (ns < 0: less) what it cost beyond the charge before.
void sched_charge(struct sched *s, struct sched_client *c, enum sched_class class, bool contended,
                  int64_t ns);

// How many times longer than alone the client's work takes beside what waits now, at least 1.
double sched_slowdown(const struct sched *s, const struct sched_client *c);

#endif
