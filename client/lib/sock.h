// SPDX-License-Identifier: Apache-2.0
// sock.h: Unix sockets with deadlines, and what a newcomer must read when connecting fails.
//
// Invariants
//  1. Every socket made here is close-on-exec; no call here blocks past its deadline.
//  2. A deadline is a time of clock_now_ns(); one that has passed means "do not wait".
// Threads: any, no state.
#ifndef KVPOOL_CLIENT_LIB_SOCK_H
#define KVPOOL_CLIENT_LIB_SOCK_H

#include "proto/err.h"

// Longest path that fits into a socket address, without the terminator.
#define SOCK_PATH_MAX 107

int64_t clock_now_ns(void);                      // CLOCK_MONOTONIC
int64_t clock_deadline(uint32_t ms);             // now + ms
struct timespec clock_timespec(int64_t time_ns); // for pthread_cond_timedwait
void clock_sleep_until(int64_t time_ns);         // may return early on a signal

// Waits for events. Returns poll's revents (> 0), 0 when the deadline passed, -errno on failure.
int sock_poll(int fd, short events, int64_t deadline_ns);

// Connects a socket of `type` (SOCK_STREAM, SOCK_SEQPACKET) to <dir>/<file>.
// Errors: INVAL (path too long), CONN (says whether the directory or the socket is missing, may not
// be used by this user, or has no daemon behind it), TIMEOUT, SYSTEM.
int sock_connect(const char *dir, const char *file, int type, int64_t deadline_ns, int *ret_fd,
                 struct err *err);

#endif
