// SPDX-License-Identifier: Apache-2.0
// roles.h: the other processes of `kvpool-bench control`. NNG does not survive a fork, so each is
// this program executed anew: `kvpool-bench role:NAME ...`.
//
//     role:echo URL              a bare NNG REP server that sends back what it gets
//     role:ping DIR SLOT FDS     one client of many: connects, waits for the start, pings
//
// A pinging client writes a byte to the ready pipe, waits for the start pipe's end of file, and
// leaves its samples in its slot of a shared memfd, where they survive its crash.
//
// Invariants
//  1. A role ends when its parent does (PR_SET_PDEATHSIG).
//  2. slot.sent counts a ping before it is made, slot.received after its reply came: what is lost
//     is their difference, also when the client is killed.
#ifndef KVPOOL_BENCH_ROLES_H
#define KVPOOL_BENCH_ROLES_H

#include <stdint.h>

#define ROLE_PREFIX "role:"
#define ROLE_ECHO "role:echo"
#define ROLE_PING "role:ping"
#define ROLE_MAX_PINGS 1024

struct role_slot {             // of one client, in the shared memfd
    uint32_t count;            // pings to make, set by the parent
    uint32_t connected;        // 1: kvpool_connect succeeded
    uint32_t sent, received;   // pings
    double us[ROLE_MAX_PINGS]; // [received]
    char error[256];           // of the first failure, "" = none
};

// argv[0] is the role's name. Returns the exit status.
int role_main(int argc, char **argv);

#endif
