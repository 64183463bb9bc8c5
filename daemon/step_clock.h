// SPDX-License-Identifier: Apache-2.0
// step_clock.h: when each open step was begun, to tell how long it was open.
//
//   (session, step id) -> time    open addressing, linear probing, at most half full
//
// Invariants
//  1. An entry exists for a step from step_clock_begin to step_clock_end or the end of its session.
//  2. Nothing is allocated after step_clock_open; more steps than that are not timed.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_STEP_CLOCK_H
#define KVPOOL_DAEMON_STEP_CLOCK_H

#include "proto/err.h"

struct step_clock;

int step_clock_open(uint32_t max_steps, struct step_clock **ret, struct err *err);
void step_clock_close(struct step_clock *c); // NULL is ignored

void step_clock_begin(struct step_clock *c, uint64_t session, uint64_t step, uint64_t now_ns);
// Forgets the step. False when it was not timed.
bool step_clock_end(struct step_clock *c, uint64_t session, uint64_t step, uint64_t *ret_began_ns);
void step_clock_forget(struct step_clock *c, uint64_t session); // all steps of a session

#endif
