// SPDX-License-Identifier: Apache-2.0
// model.h: a naive model of the cache, written without regard to speed, that core is compared with.
//
// A sequence is the list of its tokens, and a list of *symbols* for its pages: equal symbols are one
// page. How often a page is referred to is recounted from all the lists whenever it matters. A
// sealed page carries the whole list of token ids up to its end: two are the same prefix when the
// lists are. The order of eviction is a stamp on every page.
//
// Beside it stands what a backend would have: for each pool a store of values by core's page ids,
// and a mirror of the page tables that is only ever told deltas and copies. The value of a token is
// made from all ids up to it, who may read it and the extra key material (of a token whose id is
// not known: a number of its own). A sequence reads, through mirror and store, exactly its values:
// a page wrongly shared, evicted, reused or not copied shows as a wrong one.
//
// Events: whatever the model does is also noted as the events that core must have sent. Where the
// policy's choice cannot be told from outside (S3-FIFO; the order of a cleared cache) the model
// reads it from the events that came, and checks that it was allowed.
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
#define MODEL_PAGE 32    // tokens of a page
#define MODEL_PAGES 1024 // of a pool
#define MODEL_DEAD 64
#define MODEL_PINS 16
#define MODEL_EVENTS 2048 // of one operation

// What a prefix is found by: who may find it, and the token ids.
struct model_text {
    uint32_t ns;
    uint32_t extra_size;
    uint8_t extra[CORE_EXTRA_MAX];
    uint32_t ids[MODEL_LEN];
};

struct model_page { // by symbol
    uint32_t ns;    // whose it is, while it is not free
    uint32_t id;    // core's, once a row showed it; UINT32_MAX: not seen yet
    bool sealed;
    // While it is sealed:
    int parent; // symbol, -1: none
    uint32_t class_;
    uint32_t len; // tokens up to its end
    struct model_text text;
    uint8_t key[CORE_KEY_SIZE]; // as the event said
    bool listed, blocked;       // in its list of eviction; taken out because of its children
    int64_t stamp;              // while listed: the least of its list goes first
};

struct model_ns {
    struct core_ns_config config;
    struct core_ns_counters counters;
};

struct model_pool {
    bool live;
    uint64_t handle;
    struct core_pool_config config;
    uint32_t row_entries;
    uint32_t *store;          // [num_pages][page_size] values
    uint32_t *mirror;         // [max_seqs][row_entries] page ids
    uint32_t *counts;         // [num_pages] by symbol, see model_recount
    struct model_page *pages; // [num_pages] by symbol
    struct model_ns ns[CORE_MAX_NAMESPACES];
    uint32_t num_ns;
    int64_t newest, oldest; // stamps
};

struct model_seq {
    bool live;
    uint64_t handle;
    uint64_t born; // order of the session's sequences
    int session, pool;
    int step; // -1: in none
    uint32_t row, pins, priority;
    uint32_t doc;               // what it is mostly told to go on with
    uint32_t len, tracked;      // committed
    struct model_text text;     // ids of the first `tracked`, and of the open step's
    uint32_t values[MODEL_LEN]; // those of the open step behind the committed ones
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
    bool known;       // by id
    uint32_t written; // layers, a bit each
    uint32_t sealed, deduplicated;
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

struct model_pin {
    bool live;
    uint64_t handle;
    int pool;
    uint32_t ns;
    uint64_t until;
    uint32_t num_pages;
    uint32_t pages[MODEL_ROW]; // symbols
};

struct model_event {
    enum core_event_kind kind;
    uint64_t pool;
    uint32_t ns, page_size;
    uint8_t key[CORE_KEY_SIZE], parent[CORE_KEY_SIZE];
    uint32_t tokens[MODEL_PAGE];
    int symbol; // expected ones: the page, -1: none
};

struct model {
    struct core_limits limits;
    struct model_pool pools[MODEL_POOLS];
    struct model_session sessions[MODEL_SESSIONS];
    struct model_seq seqs[MODEL_SEQS];
    struct model_step steps[MODEL_STEPS];
    struct model_pin pins[MODEL_PINS];
    uint64_t dead[MODEL_DEAD]; // handles of freed sequences
    uint32_t num_dead;
    uint32_t last_value;
    uint64_t last_born;
    // Of the operation under way.
    struct model_event seen[MODEL_EVENTS], expected[MODEL_EVENTS];
    uint32_t num_seen, num_expected;
    uint32_t next_seen;  // first of `seen` that no choice was read from
    const char *problem; // what the model could not follow; NULL: nothing
};

// --- what there is (model.c) ------------------------------------------------------------------

void model_pool_open(struct model *m, int pool, uint64_t handle,
                     const struct core_pool_config *config);
void model_pool_close(struct model *m, int pool); // with its pins

// Index of what a handle or id names, -1: nothing.
int model_session(const struct model *m, uint64_t handle);
int model_pool(const struct model *m, uint64_t handle);
int model_seq(const struct model *m, uint64_t handle);
int model_step(const struct model *m, int session, uint64_t id);
int model_pin(const struct model *m, int pool, uint64_t handle);
const struct model_finished *model_finished(const struct model *m, int session, uint64_t id);

// Counts references of every symbol of a pool into pool->counts; returns how many are free, and
// (may be NULL) how many are named more than once.
uint32_t model_recount(struct model *m, int pool, uint32_t *ret_shared);
// Committed pages of a sequence that others have too; after model_recount.
uint32_t model_shared_pages(const struct model *m, int seq);

uint32_t model_count_seqs(const struct model *m, int session, int pool); // -1: any
uint32_t model_count_steps(const struct model *m, int session);
uint32_t model_count_pins(const struct model *m, int pool);

// A live sequence of no tokens.
int model_seq_add(struct model *m, uint64_t handle, int session, int pool, uint32_t row,
                  const struct model_text *text);
void model_seq_drop(struct model *m, int seq, bool drop_pages);
void model_seq_truncate(struct model *m, int seq, uint32_t length);
void model_session_drop(struct model *m, int session);

// --- steps (model_step.c) ---------------------------------------------------------------------

// Pages that begin needs for q_len new tokens, and whether the last committed one is copied; after
// model_recount.
uint32_t model_pages_needed(const struct model *m, int seq, uint32_t q_len, bool *ret_copied);
// Opens a step whose need is known to be there. ids: of all new tokens, or NULL.
int model_step_open(struct model *m, int session, uint64_t id, int pool, uint32_t n,
                    const int *seqs, const uint32_t *q_len, const uint32_t *ids);
void model_step_finish(struct model *m, int step, bool commit);

// --- the cache (model_cache.c); after model_recount, and kept right by what is here -----------

// Active, and cached too, of a namespace.
uint32_t model_active(const struct model *m, int pool, uint32_t ns);
uint32_t model_used(const struct model *m, int pool, uint32_t ns);
uint32_t model_limit(const struct model *m, int pool, uint32_t ns); // in pages, never 0
bool model_cached(const struct model *m, int pool, uint32_t symbol);
uint32_t model_children(const struct model *m, int pool, uint32_t symbol);
// How many more pages the namespace may refer to.
uint32_t model_room(const struct model *m, int pool, uint32_t ns);

// The sealed page of the first len tokens, -1: none.
int model_find(const struct model *m, int pool, const struct model_text *text, uint32_t len);
// The sealed pages that `n` tokens begin with; returns how many. symbols may be NULL.
uint32_t model_match(const struct model *m, int pool, const struct model_text *text, uint32_t n,
                     uint32_t *symbols);

void model_reference(struct model *m, int pool, uint32_t symbol, uint32_t ns);
// priority -1: none (a pin). drop: free at once when it can be.
void model_release(struct model *m, int pool, uint32_t symbol, int priority, bool drop);
void model_seal(struct model *m, int pool, uint32_t symbol, int parent,
                const struct model_text *text, uint32_t len);
// Makes room for n pages that the namespace is about to take, or (free_too false) to refer to.
void model_make_room(struct model *m, int pool, uint32_t ns, uint32_t n, bool free_too);
// Drops all cached pages of a namespace (UINT32_MAX: of all) as the events say; returns how many.
uint32_t model_clear(struct model *m, int pool, uint32_t ns);
// Core was opened anew over its block: the order of eviction, the classes and the counters begin
// again.
void model_reattached(struct model *m);

// --- what a backend does (model_store.c) ------------------------------------------------------

void model_apply(struct model *m, const struct core *core, const struct core_effects *effects);
// Writes the values of new tokens through the mirror. False: into a sealed page.
bool model_append(struct model *m, int step);
// The values of the sequence's tokens [from, to), which are known by id.
void model_values(struct model *m, int seq, uint32_t from, uint32_t to);

// Symbols and core's page ids must go together one by one, for as long as a page is not free: what
// is shared is in memory once. The first symbol of a pool that has two ids, or shares one, -1: none.
// After model_recount.
int model_bind(struct model *m, int pool);

// The first sequence that does not read its own values, -1: all do.
int model_first_wrong(const struct model *m);

#endif
