// SPDX-License-Identifier: Apache-2.0
// model.h: a naive model of the cache, written without regard to speed, that core is compared with.
//
// A sequence is the list of its token values, and a list of *symbols* for its pages: equal symbols
// are one page. How often a page is referred to is recounted from all the lists whenever it
// matters. Beside it stands what a backend would have: for each pool a store of real token values
// by core's page ids, and a mirror of the page tables that is only ever told deltas and copies. A
// sequence reads, through mirror and store, exactly its tokens; a page wrongly shared, reused or
// not copied shows as a wrong token.
#ifndef KVPOOL_TESTS_UNIT_CORE_MODEL_H
#define KVPOOL_TESTS_UNIT_CORE_MODEL_H

#include "daemon/core/core.h"

#define MODEL_POOLS 2
#define MODEL_SESSIONS 12
#define MODEL_SEQS 256
#define MODEL_STEPS 32
#define MODEL_BATCH 48
#define MODEL_LEN 768 // tokens of a sequence
#define MODEL_ROW (MODEL_LEN / 8)
#define MODEL_DEAD 64

struct model_pool {
    bool live;
    uint64_t handle;
    struct core_pool_config config;
    uint32_t row_entries;
    uint32_t *store;  // [num_pages][page_size] token values
    uint32_t *mirror; // [max_seqs][row_entries] page ids
    uint32_t *counts; // [num_pages] by symbol, see model_recount
};

struct model_seq {
    bool live;
    uint64_t handle;
    int session, pool;
    int step; // -1: in none
    uint32_t row, pins;
    uint32_t len;               // committed
    uint32_t tokens[MODEL_LEN]; // those of the open step behind the committed ones
    uint32_t num_pages;         // committed
    uint32_t pages[MODEL_ROW];  // symbols
    // In an open step: pages taken by begin. With `copied` the first of them replaces the last
    // committed page.
    bool copied;
    uint32_t num_taken;
    uint32_t taken[MODEL_ROW + 1];
};

struct model_step {
    bool live;
    uint64_t id;
    int session, pool;
    uint32_t n, tokens, taken, added, holds;
    int seqs[MODEL_BATCH];
    uint32_t q_len[MODEL_BATCH];
    uint32_t written; // layers, a bit each
};

struct model_finished {
    uint64_t id;
    bool committed;
    uint32_t tokens, added;
    uint64_t pool;
};

struct model_session {
    bool live;
    uint64_t handle;
    uint64_t next_id;
    uint32_t num_finished;
    struct model_finished finished[CORE_FINISHED]; // oldest first
};

struct model {
    struct core_limits limits;
    struct model_pool pools[MODEL_POOLS];
    struct model_session sessions[MODEL_SESSIONS];
    struct model_seq seqs[MODEL_SEQS];
    struct model_step steps[MODEL_STEPS];
    uint64_t dead[MODEL_DEAD]; // handles of freed sequences
    uint32_t num_dead;
    uint32_t last_token;
};

void model_pool_open(struct model *m, int pool, uint64_t handle,
                     const struct core_pool_config *config);
void model_pool_close(struct model *m, int pool);

// Index of what a handle or id names, -1: nothing.
int model_session(const struct model *m, uint64_t handle);
int model_pool(const struct model *m, uint64_t handle);
int model_seq(const struct model *m, uint64_t handle);
int model_step(const struct model *m, int session, uint64_t id);
const struct model_finished *model_finished(const struct model *m, int session, uint64_t id);

// Counts references of every symbol of a pool into pool->counts; returns how many are free, and
// (may be NULL) how many are named more than once.
uint32_t model_recount(struct model *m, int pool, uint32_t *ret_shared);
// Committed pages of a sequence that others have too; after model_recount.
uint32_t model_shared_pages(const struct model *m, int seq);

uint32_t model_count_seqs(const struct model *m, int session, int pool); // -1: any
uint32_t model_count_steps(const struct model *m, int session);

// A live sequence of no tokens.
int model_seq_add(struct model *m, uint64_t handle, int session, int pool, uint32_t row);
void model_seq_drop(struct model *m, int seq);
void model_seq_truncate(struct model *m, int seq, uint32_t length);

// Pages that begin needs for q_len new tokens, and whether the last committed one is copied; after
// model_recount.
uint32_t model_pages_needed(const struct model *m, int seq, uint32_t q_len, bool *ret_copied);
// Opens a step whose need is known to be there.
int model_step_open(struct model *m, int session, uint64_t id, int pool, uint32_t n,
                    const int *seqs, const uint32_t *q_len);
void model_step_finish(struct model *m, int step, bool commit);
void model_session_drop(struct model *m, int session);

// What a backend does.
void model_apply(struct model *m, const struct core *core, const struct core_effects *effects);
void model_append(struct model *m, int step); // writes new token values through the mirror

// The first sequence that does not read its own tokens, -1: all do.
int model_first_wrong(const struct model *m);

#endif
