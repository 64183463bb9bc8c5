// SPDX-License-Identifier: Apache-2.0
// cost.h: what an op of the backend costs, before it runs: units of work by kind, and how long a
// unit takes by what was measured so far.
//
//   kind      unit
//   effects   byte of page table or of copied pages
//   append    byte of K and V
//   decode    query token x visible key x qo head x head_dim, of sequences with few queries, times
//             the pages' element size / the tensors':
//   prefill   the same of sequences with many:         limited by memory / by arithmetic
//
// Invariants
//  1. Every op costs something: an estimate is never 0.
//  2. A measurement moves a rate by a bounded factor, and a short one by less.
// Pure functions; a struct belongs to one thread at a time.
#ifndef KVPOOL_DAEMON_COST_H
#define KVPOOL_DAEMON_COST_H

#include "kernels/backend.h"

enum cost_kind { COST_EFFECTS, COST_APPEND, COST_DECODE, COST_PREFILL, COST_KINDS };

struct cost {
    uint64_t units[COST_KINDS];
};

struct cost_rates {
    double ns[COST_KINDS]; // of one unit
};

const char *cost_kind_name(enum cost_kind kind); // "effects" ...

// Before anything was measured: a slow machine's.
void cost_rates_init(struct cost_rates *r);

// Adds what an op on a pool of this geometry costs.
void cost_add_op(const struct kv_geometry *g, const struct backend_op *op, struct cost *ret);

// Adds queries a..b of sequence i of the op alone.
void cost_add_queries(const struct kv_geometry *g, const struct backend_attend_op *op, uint32_t i,
                      uint32_t a, uint32_t b, struct cost *ret);

uint64_t cost_estimate_ns(const struct cost_rates *r, const struct cost *cost);

// Work of this cost took `ns`.
void cost_learn(struct cost_rates *r, const struct cost *cost, uint64_t ns);

#endif
