// SPDX-License-Identifier: Apache-2.0
// last_error.h: the message of a thread's last failure, per client, and when to try again.
//
// Invariants
//  1. Everything is thread-local: no lock, nothing to free, valid in a forked child.
//  2. A thread remembers the failures of its most recently failing clients, and of connecting.
// Threads: any; each sees its own.
#ifndef KVPOOL_CLIENT_LIB_LAST_ERROR_H
#define KVPOOL_CLIENT_LIB_LAST_ERROR_H

#include "proto/err.h"

#define LAST_ERROR_CONNECT 0 // the id that stands for kvpool_connect

#define LAST_ERROR_RETRY_NS 1000000u        // hint of an AGAIN that comes without one
#define LAST_ERROR_RETRY_MIN_NS 1000u       // what a daemon says is
#define LAST_ERROR_RETRY_MAX_NS 1000000000u // taken to be between these

// Keeps err->text, or the status's own text where it is empty; of AGAIN also err->detail as the hint.
void last_error_keep(uint64_t client_id, int status, const struct err *err);

// The text, "" when there is none. Valid until the thread's next failure.
const char *last_error_text(uint64_t client_id);

// Nanoseconds after which to try again; 0 when the last failure was not AGAIN, or there was none.
uint64_t last_error_retry_ns(uint64_t client_id);

#endif
