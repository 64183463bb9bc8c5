// SPDX-License-Identifier: Apache-2.0
// slice.h: cuts the ops of a job into pieces of bounded cost, so that the engine can run another
// client's work between two of them.
//
//   ATTEND   | s0 s1 s2 | s3: queries 0..60 | s3: 60..120 | s3: 120..130, s4 | ...   sequences, and
//            where one costs too much and the mask is causal, blocks of its queries
//   APPEND   the same, a sequence by tokens
//   COPY     by pages
//   TABLE    not cut
//
// Queries a..b of a sequence under a causal mask are a batch of their own: q_len = b - a and
// kv_len = kv_len - (q_len - b), so that every query keeps its position, and with it what mask and
// window let it see. The tensors' offsets move along.
//
// Invariants
//  1. The pieces, one after another, do what the whole op does, to the bit: an ATTEND is cut where
//     the backend's blocks of rows end (backend_ops.row_block).
//  2. Nothing is cut that fits the budget; a piece exceeds it only where a finer cut is not allowed.
//  3. slice_need's numbers are enough for slice_cut with the same slicer and op.
// Pure functions over the caller's arrays.
#ifndef KVPOOL_DAEMON_SLICE_H
#define KVPOOL_DAEMON_SLICE_H

#include "daemon/cost.h"

#define SLICE_BUDGET_NS 500000u

struct slicer {
    const struct kv_geometry *geometry;
    struct backend_pool *pool;
    struct cost_rates rates;
    uint64_t budget_ns;
    uint32_t row_block, lanes; // of the backend
};

struct engine_job;

// A program of its own, as the engine hands it to the backend.
struct slice {
    struct backend_program program;
    struct cost cost;
    uint64_t estimate_ns;
    // The engine's.
    struct engine_job *job;
    uint64_t started_ns;
    bool contended;
};

struct slice_need {
    size_t ops;   // at most as many slices
    size_t words; // of the pieces' own arrays
};

// Adds what cutting `op` takes.
void slice_need(const struct slicer *s, const struct backend_op *op, struct slice_need *add);

// Writes the pieces of `op`, whose arrays must stay, and returns their number; *words moves on.
uint32_t slice_cut(const struct slicer *s, const struct backend_op *op, struct backend_op *ret_ops,
                   uint32_t **words);

// Makes slices of n ops, in order, several to a slice while they fit the budget; returns how many.
uint32_t slice_group(const struct slicer *s, const struct backend_op *ops, uint32_t n,
                     struct slice *ret);

#endif
