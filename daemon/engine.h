// SPDX-License-Identifier: Apache-2.0
// engine.h: the device thread: takes programs from the loop thread, runs them on the backend, and
// brings completions back to the loop.
//
//   loop thread:   engine_submit(job) -> queue (lock, push, signal)
//   device thread: take all pending -> backend->submit; backend's done -> completion queue ->
//   uv_async loop thread:   job->done(job, status)
//
// Invariants
//  1. Only the two queues are shared; a job belongs to exactly one side at a time.
//  2. Jobs of one stream run in the order of engine_submit; done is called in that order, on the
//  loop.
//  3. After a sticky backend failure every job is done with KVPOOL_E_BACKEND.
//  4. engine_close returns only when the device thread has ended; nothing is in flight by then.
// Threads: all functions are the loop thread's, but for engine_stalled_since.
#ifndef KVPOOL_DAEMON_ENGINE_H
#define KVPOOL_DAEMON_ENGINE_H

#include "kernels/backend.h"

#include <uv.h>

struct engine;
struct engine_job {
    struct backend_stream *stream;
    struct backend_program program; // arrays live until done
    void (*done)(struct engine_job *job, int status);
    // The engine's from here on.
    struct engine *engine;
    struct engine_job *next;          // in a queue
    struct engine_job *older, *newer; // in the list of unfinished jobs
    uint64_t since_ns;                // uv_hrtime() of engine_submit
    int status;
};

int engine_open(uv_loop_t *loop, const struct backend_ops *ops, const struct backend_config *config,
                struct engine **ret, struct err *err);
struct backend *engine_backend(struct engine *e);
const struct backend_ops *engine_ops(const struct engine *e);
void engine_submit(struct engine *e, struct engine_job *job);
uint32_t engine_inflight(const struct engine *e);
// uv_hrtime() since when the oldest unfinished job has been running; 0 when idle. For health.
uint64_t engine_busy_since(const struct engine *e);
// uv_hrtime() since when the device thread has had work without finishing any; 0: no work. Any
// thread, at once.
uint64_t engine_stalled_since(const struct engine *e);
// Ends the device thread, waits for what is in flight and calls every outstanding `done`; jobs
// submitted from then on are done with KVPOOL_E_SHUTDOWN. After it the backend's objects may be
// closed. Idempotent. With engine_close the only function that blocks.
void engine_stop(struct engine *e);
void engine_close(struct engine *e); // engine_stop, then closes the backend; no object remains

#endif
