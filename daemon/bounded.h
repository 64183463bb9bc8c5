// SPDX-License-Identifier: Apache-2.0
// bounded.h: a call that may hang, with a time limit: it runs on a thread of its own.
//
// Invariants
//  1. True: fn has returned and all it did is visible to the caller. False: it is still running,
//  and
//     so is its thread; what it uses must stay alive.
// Threads: any.
#ifndef KVPOOL_DAEMON_BOUNDED_H
#define KVPOOL_DAEMON_BOUNDED_H

#include <stdbool.h>

// Without the memory for a thread, fn runs here and now, without a limit.
bool bounded_run(void (*fn)(void *arg), void *arg, unsigned seconds);

#endif
