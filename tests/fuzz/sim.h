// SPDX-License-Identifier: Apache-2.0
// sim.h: what the daemon does with a request that was parsed, as far as core sees it: which calls
// in which order, and work in flight that holds steps and pins sequences until it is completed.
// Tells model.h of everything that succeeded.
#ifndef KVPOOL_TESTS_FUZZ_SIM_H
#define KVPOOL_TESTS_FUZZ_SIM_H

#include "daemon/core/core.h"
#include "proto/proto.h"

#define SIM_JOBS 8
#define SIM_SEEN 16
#define SIM_TOKENS 512 // of one message

#define SIM_TENANT "tenant" // name of sessions, and of the namespace they are in

struct seen { // the last handles of a kind that core gave out, live or not
    uint64_t handles[SIM_SEEN];
    uint32_t next;
};

extern struct sim {
    struct core *core;
    struct seen pools, seqs, pins;
    uint64_t now; // the clock of pins
} sim;

void sim_reset(struct core *core);

// Carries out a request of *session, which FD_HELLO sets and BYE clears.
int sim_execute(uint64_t *session, const struct proto_msg *msg, struct err *err);

// The clock goes on; pins whose time has come end.
void sim_expire(uint64_t now);

// Closes it; work in flight is completed first if core says BUSY.
int sim_session_close(uint64_t *session, struct err *err);

// Ends work in flight. `ok` false: the backend failed.
void sim_complete(size_t job, bool ok);
void sim_complete_all(uint64_t session); // 0: of every session

#endif
