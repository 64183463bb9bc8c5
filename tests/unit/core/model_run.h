// SPDX-License-Identifier: Apache-2.0
// model_run.h: one run of core beside the model: random operations with mostly sensible, sometimes
// bad arguments, and what the model says should come of them.
#ifndef KVPOOL_TESTS_UNIT_CORE_MODEL_RUN_H
#define KVPOOL_TESTS_UNIT_CORE_MODEL_RUN_H

#include "fixture.h"
#include "model.h"

#include <inttypes.h>

struct scale {
    struct core_limits limits;
    struct core_pool_config pools[MODEL_POOLS];
    uint32_t check_every;  // core_check
    uint32_t verify_every; // all tokens, all counts
    uint32_t attach_every; // open a copy of the block
};

#define MAX_PINS 8
struct pin { // work in flight that reads sequences
    uint32_t n;
    struct core_item items[2];
};

struct run;
// A call of core that may allocate, as something that can be tried again. Returns core's status.
typedef int (*run_call_fn)(struct run *r, void *arg);

struct run_hooks { // each may be NULL
    // Carries the call out, after trying what happens when it runs out of memory: then it has to
    // return `want`.
    int (*try_out)(struct run *r, run_call_fn call, void *arg, int want);
    uint64_t (*allocations)(void); // how many were made so far
};

struct run {
    const struct scale *scale;
    struct run_hooks hooks;
    struct model m;
    struct core *core;
    void *block;
    size_t size;
    uint64_t random, seed;
    uint64_t op;
    const char *op_name;
    uint64_t clock;
    struct pin pins[MAX_PINS];
    uint32_t num_pins;
    uint64_t dead_session, dead_pool, dead_pin;
    struct err err;
    uint64_t results[64];         // how often each status was seen
    struct core_ns_counters sums; // of all pools that were destroyed, and in the end of all
};

#define WHERE "seed %" PRIu64 " op %" PRIu64 " %s: "
#define AT(r) (r)->seed, (r)->op, (r)->op_name

// Carries out a call that may allocate.
int run_try(struct run *r, run_call_fn call, void *arg, int want_without_memory);

uint32_t run_below(struct run *r, uint32_t n); // 0..n-1
bool run_chance(struct run *r, uint32_t percent);

// Both fail the test when core and model differ. run_status returns whether the call succeeded.
bool run_status(struct run *r, int got, int want);
void run_same(struct run *r, const char *what, uint64_t got, uint64_t want);

// Arguments (model_pick.c).
uint64_t run_pick_session(struct run *r);
uint64_t run_pick_pool(struct run *r);
uint32_t run_pick_ns(struct run *r, int pool);
// Mostly a sequence of that session (and pool, unless -1).
uint64_t run_pick_seq(struct run *r, int session, int pool);
// A session and a step id: mostly of an open step, else finished, forgotten or new.
uint64_t run_pick_step(struct run *r, uint64_t *ret_session);
// Fills a batch, mostly of different sequences of one namespace of the session and pool; returns its
// size.
uint32_t run_pick_items(struct run *r, int session, int pool, struct core_item *items);
// Ids for a batch's new tokens; NULL: not known.
const uint32_t *run_pick_ids(struct run *r, uint32_t n, const struct core_item *items);
// Token `position` of one of a few documents, which begin alike.
uint32_t run_token(uint32_t doc, uint32_t position);
#define RUN_DOCS 12

// The status that the model expects (model_want.c).
int run_want_seq(const struct run *r, int session, uint64_t handle);
int run_want_idle_seq(const struct run *r, int session, uint64_t handle);
int run_want_ns(const struct run *r, int pool, uint32_t ns);
int run_want_room(const struct run *r, int pool, uint32_t n);
int run_want_open(const struct run *r, int session, uint64_t id);
int run_want_items(const struct run *r, int session, int pool, uint32_t n,
                   const struct core_item *items, uint32_t max_len);
int run_want_begin(struct run *r, int s, uint64_t id, uint64_t pool, uint32_t n,
                   const struct core_item *items, const uint32_t *ids, bool *ret_repeated,
                   uint64_t *ret_missing);
int run_want_session_close(const struct run *r, int session);

// Operations on both sides.
void run_new_handle(struct run *r, uint64_t handle); // fails when it was seen before
uint32_t run_row_of(struct run *r, uint64_t seq);
void run_open_session(struct run *r); // model_ops.c
void run_open_pool(struct run *r, int p);
// Adds the counters of a pool to the sums of the run.
void run_sum_counters(struct run *r, int p);
void run_close_pool(struct run *r, int p); // in the model; core's is destroyed
void run_create(struct run *r);
void run_fork(struct run *r);
void run_truncate(struct run *r);
void run_free(struct run *r);
void run_pin_seqs(struct run *r);
void run_session(struct run *r);
void run_pool(struct run *r);
void run_begin(struct run *r); // model_ops_step.c
void run_mark(struct run *r);
void run_commit(struct run *r);
void run_abort(struct run *r);
void run_hold(struct run *r);
void run_batch(struct run *r);
void run_open(struct run *r); // model_ops_cache.c
void run_probe(struct run *r);
void run_priority(struct run *r);
void run_prefix_pin(struct run *r);
void run_prefix_unpin(struct run *r);
void run_expire(struct run *r);
void run_ns(struct run *r);
void run_clear(struct run *r);

// All that core shows of itself against the model (model_compare.c).
// `counters` false: but for the counters of namespaces.
void run_compare(struct run *r, const struct core *core, bool counters);

// The whole run (model_run.c).
void run_model(const struct scale *scale, uint64_t num_ops, const struct run_hooks *hooks);

#define RUN_GEOMETRY(name_, layers_, page_size_)                                             \
    .name = name_, .layers = layers_, .kv_heads = 1, .head_dim = 8, .page_size = page_size_, \
    .dtype = KVPOOL_BF16

// The limits and pools of a configuration so small that everything in it can be checked after every
// operation.
#define RUN_SMALL                                                                                 \
    .limits = {.max_pools = 2,                                                                    \
               .max_sessions = 4,                                                                 \
               .max_seqs = 24,                                                                    \
               .max_steps = 7,                                                                    \
               .max_session_steps = 3,                                                            \
               .max_batch = 6,                                                                    \
               .max_table_entries = 512,                                                          \
               .max_pages = 80,                                                                   \
               .max_page_tokens = 800,                                                            \
               .max_pins = 5},                                                                    \
    .pools = {{RUN_GEOMETRY("small", 2, 8), .num_pages = 64, .max_seqs = 20, .max_seq_len = 100}, \
              {RUN_GEOMETRY("other", 3, 16), .num_pages = 16, .max_seqs = 8, .max_seq_len = 90,   \
               .policy = CORE_S3FIFO}}

#endif
