// SPDX-License-Identifier: Apache-2.0
// harness.h: real processes for the system tests: a daemon in a private directory, workers,
// deadlines.
//
// Invariants
//  1. Every process started here is a child of the test, dies with it (PR_SET_PDEATHSIG) and is
//     signalled by pid only.
//  2. Inside worker_start's function only check() and expect_*() are used: there they end the
//  process
//     with status 3 instead of jumping into cmocka.
//  3. Every wait has a deadline; passing it fails the test with the daemon's log on stderr.
// Thread: the test's main thread.
#ifndef KVPOOL_TESTS_SYSTEM_HARNESS_H
#define KVPOOL_TESTS_SYSTEM_HARNESS_H

#include <kvpool/kvpool.h>
#include <stdio.h>
#include <sys/types.h>

struct daemon {
    pid_t pid;
    char dir[128]; // of the sockets
    char log[160]; // stderr of every instance, appended
};

// mkdtemp; no daemon yet.
void daemon_prepare(struct daemon *d);
// Of daemons that are started: $KVPOOL_TEST_BACKEND, else cpu.
const char *daemon_backend(void);
// Starts kvpoold --backend B --dir <dir> plus `extra` (NULL-terminated, may be NULL) and waits until it
// answers a ping. B: $KVPOOL_TEST_BACKEND, else cpu.
void daemon_start(struct daemon *d, const char *const *extra);
// Starts it and waits for its end instead: returns the exit status (128 + signal when killed).
int daemon_run_to_end(struct daemon *d, const char *const *extra, unsigned timeout_ms);
// Signals and waits for the end, at most timeout_ms; returns the exit status.
int daemon_end(struct daemon *d, int sig, unsigned timeout_ms);
// Ends whatever still runs and removes the directory.
void daemon_cleanup(struct daemon *d);
// The daemon of the test program, and group or test fixtures that start it with no options and end it.
extern struct daemon kvd;
int kvd_setup(void **state);
int kvd_teardown(void **state);
// The whole log (static buffer), for strstr.
const char *daemon_log(const struct daemon *d);

// Runs fn(arg) in a child process; its return value is the exit status.
pid_t worker_start(int (*fn)(void *arg), void *arg);
// Exit status, 128 + signal when killed; fails the test after timeout_ms.
int process_wait(pid_t pid, unsigned timeout_ms);
// Runs a program to its end with stdout and stderr in buf; returns the exit status.
int program_run(char *buf, size_t cap, unsigned timeout_ms, const char *const *argv);
// Path of a program of this build, static buffer per call site use: copied at once.
const char *program_path(const char *name);

// Connects to the daemon, fails the test when it cannot.
kvpool_client *client_open(const struct daemon *d);
// The same with a time-out per call.
kvpool_client *client_open_timeout(const struct daemon *d, uint32_t timeout_ms);

uint64_t now_ns(void);
void sleep_ms(unsigned ms);
unsigned random_seed(void); // $KVPOOL_SEED or the clock; printed

#define check(condition) check_at((condition), #condition, __FILE__, __LINE__)
void check_at(bool ok, const char *what, const char *file, int line);

// Fails with the kvpool message when status is not the expected one.
#define expect_status(client, expected, call) \
    expect_status_at((client), (expected), (call), #call, __FILE__, __LINE__)
void expect_status_at(const kvpool_client *client, kvpool_status expected, kvpool_status got,
                      const char *what, const char *file, int line);
#define expect_ok(client, call) expect_status(client, KVPOOL_OK, call)

// How many times slower this build runs than a plain one (sanitizers): for counts, never for
// results.
#if defined(__SANITIZE_THREAD__)
#define SLOWNESS 8
#elif defined(__SANITIZE_ADDRESS__)
#define SLOWNESS 3
#else
#define SLOWNESS 1
#endif

#endif
