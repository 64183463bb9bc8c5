// SPDX-License-Identifier: Apache-2.0
// engine_rig.h: an engine on a backend that computes nothing: it records what was submitted,
// completes inside submit or from another thread, spins for a while, refuses or fails.
//
// Invariants
//  1. A job's `number` is its place in `jobs`; its slices' programs have n = their number + 1.
//  2. Nothing is in flight when the backend is closed (asserted).
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_ENGINE_RIG_H
#define KVPOOL_TESTS_UNIT_DAEMON_ENGINE_RIG_H

#include "daemon/engine.h"

#include <stdatomic.h>

#define RIG_JOBS 2000
#define RIG_SLICES 8
#define RIG_CLIENTS 4
#define RIG_SUBMITTED (RIG_JOBS * 4)

// How the backend behaves; set before rig_open.
struct rig_backend {
    bool late;           // complete from another thread
    bool held;           // ... and only after rig_release
    size_t refuse_at;    // submit refuses from this program on, 0: never
    size_t fail_at;      // this program is completed with KVPOOL_E_BACKEND, 0: none
    size_t nomem_at;     // this one with KVPOOL_E_NOMEM, 0: none
    int complete_status; // of every other program
    uint64_t spin_ns;    // in submit
    const char *failure;
    uint32_t window;
    bool fatal;      // only a new process could use the device again
    bool late_close; // memory is closed by rig_closed or at the backend's end; else within the call
};
extern struct rig_backend rig;
extern atomic_bool rig_gate; // closed: submit waits; its time is the program's

struct rig_job {
    struct engine_job job; // first
    struct slice slices[RIG_SLICES];
    int number, client, status;
};

struct backend_stream {
    int unused;
};

extern uv_loop_t rig_loop;
extern struct engine *engine;
extern struct engine_client *clients[RIG_CLIENTS]; // of weight 1
extern struct backend_stream streams[RIG_CLIENTS];
extern struct rig_job jobs[RIG_JOBS];
extern int order[RIG_SUBMITTED], num_done; // numbers, in the order of done

// What reached the backend, in order.
struct rig_submitted {
    const struct backend_stream *stream;
    uint32_t n; // of the program
    uint64_t ns;
};
extern struct rig_submitted submitted[RIG_SUBMITTED];
size_t rig_submitted(void); // how many

extern const struct backend_ops rig_ops; // for engine_open
int rig_setup(void **state);             // the default behaviour
void rig_open(void);                     // every job: client 0, one slice, LATENCY
void rig_close(void);
// Makes `jobs[number]` a job of the client, of so many slices, each estimated at `ns`.
void rig_job(int number, int client, uint32_t slices, enum sched_class class, uint64_t ns);
void rig_submit(int from, int to);
void rig_done(struct engine_job *job, int status); // every job's `done`
void rig_run_until(int n);                         // so many jobs are done
void rig_closed(void);                             // all memory is closed, in another thread
void rig_release(size_t programs); // of those that are held; SIZE_MAX: all, for good

#endif
