// SPDX-License-Identifier: Apache-2.0
// doctor.h: the checks of `kvpool doctor`, each a line: ok, warn or FAIL, what was found, and what
// to do about it.
//
//   doctor_machine.c   this machine and this process: limits, memfd, pidfd, CPU, clock
//   doctor_daemon.c    the daemon's directory, lock, sockets; the connection; the versions
//
// Invariants
//  1. Every check reports at least one line; warn and FAIL come with an advice.
//  2. Checks change nothing: no lock is taken, the NNG socket is reached through libkvpool only
//     (before NNG 1.6 a bare connect and close kills its listener).
// Thread: main.
#ifndef KVPOOL_CMD_DOCTOR_H
#define KVPOOL_CMD_DOCTOR_H

#include "client/cmd/json.h"

#include <kvpool/kvpool.h>

#include <stdio.h>

enum doctor_result { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL, DOCTOR_RESULTS };

struct doctor {
    FILE *out;
    struct json *json; // NULL: text
    unsigned counts[DOCTOR_RESULTS];
};

// Reports one line. `advice` is NULL exactly when result is DOCTOR_OK.
__attribute__((format(printf, 5, 6))) void doctor_report(struct doctor *d,
                                                         enum doctor_result result,
                                                         const char *check, const char *advice,
                                                         const char *fmt, ...);

void doctor_machine(struct doctor *d);

// Everything about the daemon of directory `dir`. Returns true when it answered.
bool doctor_daemon(struct doctor *d, const char *dir, uint32_t timeout_ms);

// The parts of doctor_daemon; each returns whether it makes sense to go on.
bool doctor_directory(struct doctor *d, const char *dir);
bool doctor_lock(struct doctor *d, const char *dir);
bool doctor_sockets(struct doctor *d, const char *dir);

// Compares "major.minor.patch" of the library and of the daemon.
void doctor_versions(struct doctor *d, const char *library, const char *daemon);

#endif
