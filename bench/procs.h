// SPDX-License-Identifier: Apache-2.0
// procs.h: the child processes of a bench: started, stopped and reaped, whatever happens.
//
// Invariants
//  1. A child dies with the bench (PR_SET_PDEATHSIG), and procs_stop leaves no child behind.
//  2. Only children of this list are ever signalled, by their pid, before they are reaped.
// Thread: the bench's main thread (whose end is what PR_SET_PDEATHSIG watches).
#ifndef KVPOOL_BENCH_PROCS_H
#define KVPOOL_BENCH_PROCS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROCS_MAX 80

struct procs {
    pid_t pids[PROCS_MAX];
    size_t n;
};

// Starts argv[0] (a path) with stdin from /dev/null, stdout and stderr into `log_path` (NULL:
// stdout to stderr). Returns the pid, or -1 after saying why on stderr. File descriptors without
// FD_CLOEXEC are inherited.
pid_t procs_start(struct procs *p, const char *const *argv, const char *log_path);

// True while child `pid` runs; reaps it when it ended.
bool procs_alive(struct procs *p, pid_t pid);

// Waits until all children ended by themselves. False: after timeout_ms some still run.
bool procs_wait(struct procs *p, uint32_t timeout_ms);

// SIGTERM, up to patience_ms for an orderly end, then SIGKILL; all are reaped.
void procs_stop(struct procs *p, uint32_t patience_ms);

// Path of a program of this project: $KVPOOL_BIN/name; without that variable beside this
// program, or in ../sbin of there (an installed tree).
bool procs_find(const char *name, char *ret, size_t size);

#endif
