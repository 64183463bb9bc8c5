// SPDX-License-Identifier: Apache-2.0
// last_error.h: the message of a thread's last failure, per client.
//
// Invariants
//  1. Everything is thread-local: no lock, nothing to free, valid in a forked child.
//  2. A thread remembers the failures of its most recently failing clients, and of connecting.
// Threads: any; each sees its own.
#ifndef KVPOOL_CLIENT_LIB_LAST_ERROR_H
#define KVPOOL_CLIENT_LIB_LAST_ERROR_H

#include "proto/err.h"

#define LAST_ERROR_CONNECT 0 // the id that stands for kvpool_connect

// Keeps err->text, or the status's own text where it is empty.
void last_error_keep(uint64_t client_id, int status, const struct err *err);

// The text, "" when there is none. Valid until the thread's next failure.
const char *last_error_text(uint64_t client_id);

#endif
