// SPDX-License-Identifier: Apache-2.0
// job.h: a unit of work on its way through the engine: what it runs, and what must not change
// meanwhile.
//
//   attention job: [APPEND][ATTEND] over arrays of one batch          (has a request to answer)
//   effects job:   [TABLE]... [COPY] that core decided in begin, fork or abort   (nobody waits)
//
// On its way it is cut into slices (slice.h): the engine may run another client's between two.
//
// Invariants
//  1. A job owns every array its program points to.
//  2. While it is in the engine it holds: its session (session->jobs), its pool (inflight), its
//     regions, and its step (core_step_hold) or its sequences (core_seq_pin).
//  3. Jobs are reused with their buffers: the steady state allocates nothing.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_JOB_H
#define KVPOOL_DAEMON_JOB_H

#include "daemon/core/core.h"
#include "daemon/engine.h"
#include "daemon/pools.h"
#include "daemon/region.h"
#include "daemon/slice.h"

#define JOB_MAX_REGIONS 7 // q, k, v, scales, sinks, out, lse

struct dispatch;
struct request;
struct session;

enum job_kind { JOB_ATTENTION, JOB_EFFECTS, JOB_KINDS };

struct job {
    struct engine_job engine; // first
    struct job *next_free;
    enum job_kind kind;
    struct dispatch *d;
    struct session *session;
    struct request *request; // answered when done, NULL: none
    struct pool *pool;
    uint64_t step;    // held, 0: none
    bool appends;     // marks `layer` of the step
    bool writes_rows; // effects of fork or abort: see session->row_writes
    uint32_t layer;
    uint32_t num_items; // pinned
    uint32_t num_regions;
    struct region *regions[JOB_MAX_REGIONS];
    // Of an attention job: [max_batch] each, qo_indptr one more.
    struct core_item *items;
    uint32_t *rows, *kv_len, *qo_indptr;
    // The program and its slices; ids: page ids of effects, or the pieces' own arrays. Grown on
    // demand.
    struct backend_op *ops;
    struct slice *slices; // [ops_cap]
    uint32_t *ids;
    size_t ops_cap, ids_cap;
};

struct jobs;

// Makes `ready[kind]` jobs at once; at most `max` exist. max_batch: of the arrays.
int jobs_open(const uint32_t ready[JOB_KINDS], uint32_t max, uint32_t max_batch, struct jobs **ret,
              struct err *err);
void jobs_close(struct jobs *js); // NULL is ignored; all jobs are back

// A blank job of the kind, with its buffers. Errors: AGAIN (all in use), NOMEM.
int job_get(struct jobs *js, enum job_kind kind, struct job **ret, struct err *err);
void job_put(struct jobs *js, struct job *job);
uint32_t jobs_left(const struct jobs *js, enum job_kind kind); // that job_get could give

// Copies a batch of core's and points `ret` at the copy. batch->n <= max_batch.
void job_set_batch(struct job *job, const struct core_batch *batch, struct backend_batch *ret);

// Cuts n ops over the job's batch, which together are its program. Errors: NOMEM.
int job_set_ops(struct job *job, const struct slicer *slicer, const struct backend_op *ops,
                uint32_t n, struct err *err);

// Makes room for the effects of an operation on n sequences and num_ids page ids, so that
// job_set_effects cannot fail. Errors: NOMEM.
int job_reserve(struct job *job, size_t n, size_t num_ids, struct err *err);

// Copies core's effects as the job's program. Reserves by itself. Errors: NOMEM.
int job_set_effects(struct job *job, const struct core *core, const struct core_effects *effects,
                    struct err *err);

// Cuts the effects; their room was reserved.
void job_cut_effects(struct job *job, const struct slicer *slicer);

#endif
