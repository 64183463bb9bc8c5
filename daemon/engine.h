// SPDX-License-Identifier: Apache-2.0
// engine.h: the device thread: takes jobs from the loop thread, runs their slices on the backend,
// now of this client, now of that, and brings completions back to the loop.
//
//   loop thread:   engine_submit(job) -> queue of its client
//   device thread: sched_pick -> next slice of that client's first job -> backend->submit;
//                  the last slice's done -> completion queue -> uv_async
//   loop thread:   job->done(job, status)
//
// Invariants
//  1. What the threads share is under one lock; a job belongs to exactly one side at a time.
//  2. Jobs of one client run in the order of engine_submit, slice after slice; done is called in
//     that order, on the loop. Those of different clients may run in any order.
//  3. After a sticky backend failure every job is done with KVPOOL_E_BACKEND. A job one of whose slices is
//     done with KVPOOL_E_NOMEM (backend.h) has all its slices run and is done with that, alone.
//  4. At most `window` slices (backend_ops.window) are with the backend at once, and of BULK jobs at
//     most half of them, or ENGINE_BULK: enough to keep a device busy, and room is left for what is in
//     a hurry.
//  5. engine_close returns only when the device thread has ended; nothing is in flight by then.
// Threads: all functions are the loop thread's, but engine_progress, which is anybody's.
#ifndef KVPOOL_DAEMON_ENGINE_H
#define KVPOOL_DAEMON_ENGINE_H

#include "daemon/histogram.h"
#include "daemon/sched.h"
#include "daemon/slice.h"

#include <uv.h>

enum { ENGINE_BULK = 4 };

struct engine;
struct engine_client; // one queue: one session, one stream

struct engine_job {
    struct engine_client *client;
    struct backend_stream *stream;
    struct backend_program program; // all of it; arrays live until done
    struct slice *slices;           // it, cut: at least one; the engine writes to them
    uint32_t num_slices;
    enum sched_class class;
    enum cost_kind kind; // for the histograms
    void (*done)(struct engine_job *job, int status);
    // The engine's from here on.
    struct engine_job *next; // in a queue
    uint32_t next_slice;     // to be submitted
    uint32_t unfinished;     // slices
    uint64_t since_ns;       // uv_hrtime() of engine_submit
    uint64_t started_ns;     // of its first slice; 0: none
    uint64_t ran_ns;         // the backend's time for it
    int status;
};

// How long jobs waited for their first slice, and how long the backend worked on them.
struct engine_stats {
    struct histogram wait[COST_KINDS], run[COST_KINDS];
};

// Whether the device thread advances. last_ns moves whenever a slice begins or ends.
struct engine_progress {
    bool busy; // there is work, queued or with the backend
    uint64_t busy_since_ns, last_ns;
};

int engine_open(uv_loop_t *loop, const struct backend_ops *ops, const struct backend_config *config,
                struct engine **ret, struct err *err);
struct backend *engine_backend(struct engine *e);
const struct backend_ops *engine_ops(const struct engine *e);

// weight: of its share among clients of a class, at least 1. Errors: NOMEM.
int engine_client_open(struct engine *e, uint32_t weight, struct engine_client **ret,
                       struct err *err);
void engine_client_close(
    struct engine_client *c); // NULL is ignored; none of its jobs is unfinished
// Its process is gone: jobs of which not every slice was submitted are done with
// KVPOOL_E_SHUTDOWN, as soon as those before them are done; so are all that come later.
void engine_client_cancel(struct engine_client *c);
void engine_client_set_weight(struct engine_client *c, uint32_t weight);
// After how long a job of the client will have finished, by what is queued, what it costs, and the
// client's share: 100 us .. 1 s.
uint64_t engine_client_retry_ns(struct engine_client *c);

// Memory that is closed: in the caller's own, which stays until `done`.
struct engine_close {
    struct backend_close close; // first
    struct engine *engine;
    void (*done)(struct engine_close *c); // on the loop, later, or in engine_close
};
// Gives up memory of the backend, which is no job's any more; c->done when it is not open here any more
// (backend_ops.mem_close).
void engine_mem_close(struct engine *e, struct backend_mem *mem, struct engine_close *c);

// What a job for a pool is cut with, by what was measured so far.
void engine_slicer(struct engine *e, const struct kv_geometry *geometry, struct backend_pool *pool,
                   struct slicer *ret);
void engine_submit(struct engine *e, struct engine_job *job);
uint32_t engine_inflight(const struct engine *e);
// The backend has failed, in a job or beside them, and only a new process can use its device again.
bool engine_lost(struct engine *e);
const struct engine_stats *engine_stats(const struct engine *e);
void engine_progress(const struct engine *e, struct engine_progress *ret);
// Ends the device thread, runs what is queued, waits for what is in flight and calls every
// outstanding `done`; jobs submitted from then on are done with KVPOOL_E_SHUTDOWN. After it the
// backend's objects may be closed. Idempotent. With engine_close the only function that blocks.
void engine_stop(struct engine *e);
void engine_close(struct engine *e); // engine_stop, then closes the backend; no object remains

#endif
