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
struct pin {
    uint32_t n;
    struct core_item items[2];
};

struct run {
    const struct scale *scale;
    struct model m;
    struct core *core;
    void *block;
    size_t size;
    uint64_t random, seed;
    uint64_t op;
    const char *op_name;
    struct pin pins[MAX_PINS];
    uint32_t num_pins;
    uint64_t dead_session, dead_pool;
    struct err err;
    uint64_t results[64]; // how often each status was seen
};

#define WHERE "seed %" PRIu64 " op %" PRIu64 " %s: "
#define AT(r) (r)->seed, (r)->op, (r)->op_name

uint32_t run_below(struct run *r, uint32_t n); // 0..n-1
bool run_chance(struct run *r, uint32_t percent);

// Both fail the test when core and model differ. run_status returns whether the call succeeded.
bool run_status(struct run *r, int got, int want);
void run_same(struct run *r, const char *what, uint64_t got, uint64_t want);

// Arguments (model_pick.c).
uint64_t run_pick_session(struct run *r);
uint64_t run_pick_pool(struct run *r);
// Mostly a sequence of that session (and pool, unless -1).
uint64_t run_pick_seq(struct run *r, int session, int pool);
// A session and a step id: mostly of an open step, else finished, forgotten or new.
uint64_t run_pick_step(struct run *r, uint64_t *ret_session);
// Fills a batch, mostly of different sequences of the session and pool; returns its size.
uint32_t run_pick_items(struct run *r, int session, int pool, struct core_item *items);

// The status that the model expects (model_pick.c).
int run_want_seq(const struct run *r, int session, uint64_t handle);
int run_want_idle_seq(const struct run *r, int session, uint64_t handle);
int run_want_room(const struct run *r, int pool, uint32_t n);
int run_want_open(const struct run *r, int session, uint64_t id);
int run_want_items(const struct run *r, int session, int pool, uint32_t n,
                   const struct core_item *items, uint32_t max_len);
int run_want_begin(struct run *r, int s, uint64_t id, uint64_t pool, uint32_t n,
                   const struct core_item *items, bool *ret_repeated, uint64_t *ret_missing);

// Operations on both sides (model_ops.c).
void run_open_session(struct run *r);
void run_open_pool(struct run *r, int p);
void run_random_op(struct run *r);

#endif
