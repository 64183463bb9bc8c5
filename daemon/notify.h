// SPDX-License-Identifier: Apache-2.0
// notify.h: sd_notify without a library: one datagram to $NOTIFY_SOCKET, newline-separated
// assignments (READY=1, STATUS=..., WATCHDOG=1, STOPPING=1, RELOADING=1).
//
// Invariants
//  1. Without NOTIFY_SOCKET every call does nothing and succeeds.
//  2. Nothing here blocks or raises SIGPIPE.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_NOTIFY_H
#define KVPOOL_DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

// Sends the formatted state. False when there is a manager and it could not be reached.
__attribute__((format(printf, 1, 2))) bool notify_send(const char *fmt, ...);

// WATCHDOG_USEC when it is meant for this process (WATCHDOG_PID), else 0.
uint64_t notify_watchdog_us(void);

#endif
