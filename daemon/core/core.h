// SPDX-License-Identifier: Apache-2.0
// core.h: the truth of the cache as plain data: sessions, pools, pages, sequences, page tables,
// steps. No I/O, no clock, no libuv, no NNG, no CUDA; it decides, the daemon's shells carry out.
//
// Memory
//   *block*    authoritative tables, pointer-free (indices only), versioned, in memory that the
//   caller
//              gives: pools, sequences, page-table rows, lengths, steps, sessions.
//   *derived*  free list, reference counts, ownership lists: rebuilt from the block by
//   core_attach()
//              and core_rebuild(), never trusted across a restart.
//
// Invariants (checked by core_check)
//  1. A page's reference count is the number of page-table entries (committed, plus reserved and
//     copied-from entries of open steps) that name it; it is on the free list exactly when that is
//     0.
//  2. A sequence of length L has exactly ceil(L / page_size) committed pages in its row.
//  3. A sequence is in at most one open step, of the same session and pool.
//  4. A step's reserved pages have reference count 1 and are invisible to every other operation.
//  5. Only a page with reference count 1 is ever written: begin replaces a shared partial last page
//     by a fresh one (copy-on-write) and keeps the old one referenced until commit or abort.
//  6. A handle is generation << 32 | index, generation never 0; the generation changes whenever the
//     slot is freed, and starts from the epoch so that handles of another instance are stale.
//  7. An operation that fails has changed nothing.
//  8. No heap allocation after core_create/core_attach and core_pool_create; every page is
//  allocated
//     and released in O(1).
// Thread: the loop thread alone (core has no locks).
#ifndef KVPOOL_DAEMON_CORE_CORE_H
#define KVPOOL_DAEMON_CORE_CORE_H

#include "proto/err.h"

#define CORE_NAME_SIZE 32
#define CORE_TOKEN_SIZE 16
#define CORE_FINISHED 64 // finished step ids remembered per session

struct core; // opaque

struct core_limits {
    uint32_t max_pools;
    uint32_t max_sessions;
    uint32_t max_seqs;          // of all pools
    uint32_t max_steps;         // open at once
    uint32_t max_session_steps; // open at once in one session
    uint32_t max_batch;         // sequences in one step
    uint64_t max_table_entries; // page-table entries of all pools (max_seqs x row length each)
};
extern const struct core_limits core_limits_default;

// Bytes of the block for these limits; 0 when a limit is out of range.
size_t core_block_size(const struct core_limits *limits);

// Formats a zeroed block (page aligned, size as above) and opens it. `epoch` seeds generations.
// Errors: INVAL, NOMEM (derived tables).
int core_create(void *block, size_t size, const struct core_limits *limits, uint64_t epoch,
                struct core **ret, struct err *err);

// Opens a block that an earlier core filled: checks it, rebuilds what is derived. Steps stay open.
// Errors: VERSION (another layout), INVAL (damaged: says what), NOMEM.
int core_attach(void *block, size_t size, struct core **ret, struct err *err);

void core_close(struct core *c); // the block stays as it is

// Verifies the invariants above. 0, or INTERNAL with the first violation. O(everything).
int core_check(const struct core *c, struct err *err);

// Rebuilds the derived tables from the block into fresh memory and compares them with the live
// ones: reference counts equal, free list the same set. 0 or INTERNAL; the live tables are
// untouched.
int core_rebuild_compare(const struct core *c, struct err *err);

// --- sessions ---------------------------------------------------------------------------------

int core_session_open(struct core *c, uint32_t pid, uint32_t uid, const char *name,
                      const uint8_t token[CORE_TOKEN_SIZE], uint64_t *ret_session, struct err *err);

// Aborts the session's steps, frees its sequences. Errors: STALE, BUSY (a step or sequence has work
// in flight, see core_step_hold: wait for it and call again).
int core_session_close(struct core *c, uint64_t session, struct err *err);

struct core_session_info {
    uint64_t session;
    uint32_t pid, uid, seqs, steps;
    char name[CORE_NAME_SIZE];
    uint8_t token[CORE_TOKEN_SIZE];
};
int core_session_stat(const struct core *c, uint64_t session, struct core_session_info *ret,
                      struct err *err);

// --- pools ------------------------------------------------------------------------------------

struct core_pool_config {
    char name[CORE_NAME_SIZE];
    uint32_t layers, kv_heads, head_dim, page_size, dtype, num_pages;
    uint32_t max_seqs;    // 0: core's default, 1024
    uint32_t max_seq_len; // tokens; 0: num_pages * page_size
};

// Checks a configuration and fills in its zeros. Errors: INVAL, naming the field and the limit.
int core_pool_config_check(struct core_pool_config *config, struct err *err);

// Errors: INVAL, LIMIT (pools, table entries), NOMEM, EXISTS (the name, with other properties). An
// equal pool of that name is returned, with *ret_created false.
int core_pool_create(struct core *c, const struct core_pool_config *config, uint64_t *ret_pool,
                     bool *ret_created, struct err *err);
int core_pool_find(const struct core *c, const char *name, uint64_t *ret_pool, struct err *err);
int core_pool_destroy(struct core *c, uint64_t pool, struct err *err); // BUSY: sequences exist

struct core_pool_info {
    uint64_t pool;
    uint32_t index; // slot, < max_pools: what shells keep beside it is indexed by this
    struct core_pool_config config;
    uint32_t row_entries; // of its page table: ceil(max_seq_len / page_size)
    uint32_t free_pages, shared_pages, seqs;
};
int core_pool_stat(const struct core *c, uint64_t pool, struct core_pool_info *ret,
                   struct err *err);
// Walks live pools in slot order: *cursor is the first slot to look at, advanced past the one
// returned. False when there is none.
bool core_pool_next(const struct core *c, uint32_t *cursor, struct core_pool_info *ret);

// --- effects ----------------------------------------------------------------------------------
// What the backend must be told after an operation, in this order: table entries, then page copies.
// The ids of a delta are core_row(...)[first .. first + count), valid until the next call on core.

struct core_delta {
    uint32_t row, first, count;
};
struct core_copy {
    uint32_t src, dst;
};
struct core_effects { // arrays are core's own, valid until the next call on core
    uint64_t pool;
    const struct core_delta *deltas;
    const struct core_copy *copies;
    uint32_t num_deltas, num_copies;
};
const uint32_t *core_row(const struct core *c, uint64_t pool, uint32_t row);

// --- sequences --------------------------------------------------------------------------------

int core_seq_create(struct core *c, uint64_t session, uint64_t pool, uint32_t n, uint64_t *ret_seqs,
                    struct err *err);
int core_seq_fork(struct core *c, uint64_t session, uint64_t seq, uint32_t n, uint64_t *ret_seqs,
                  struct core_effects *ret_effects, struct err *err);
int core_seq_truncate(struct core *c, uint64_t session, uint64_t seq, uint32_t length,
                      struct err *err);
int core_seq_free(struct core *c, uint64_t session, uint32_t n, const uint64_t *seqs,
                  struct err *err);

struct core_seq_info {
    uint64_t seq, pool, session;
    uint32_t length, pages, shared_pages, row, owner_pid;
    bool in_step;
};
// session 0: whoever owns it.
int core_seq_stat(const struct core *c, uint64_t session, uint64_t seq, struct core_seq_info *ret,
                  struct err *err);
bool core_seq_next(const struct core *c, uint32_t *cursor, struct core_seq_info *ret);

// --- steps ------------------------------------------------------------------------------------

struct core_item {
    uint64_t seq;
    uint32_t tokens;
};

// A step or a batch as arrays, valid until the next call on core that changes something.
struct core_batch {
    uint64_t pool;
    uint32_t n;
    uint32_t tokens; // sum of q_len
    uint32_t max_q_len;
    const uint32_t *rows;      // [n]
    const uint32_t *kv_len;    // [n] with the new tokens
    const uint32_t *qo_indptr; // [n + 1]
};

struct core_step_info {
    uint64_t step;
    uint64_t pool;
    uint32_t tokens;
    uint32_t pages; // reserved by begin / added by commit
    bool repeated;  // begin or commit was a repeat: no effects
};

// Opens step `step` (not 0) of the session. All-or-nothing. See kvpool_step_begin for the errors;
// NOSPACE has the missing pages in err->detail.
int core_step_begin(struct core *c, uint64_t session, uint64_t step, uint64_t pool, uint32_t n,
                    const struct core_item *items, struct core_step_info *ret,
                    struct core_effects *ret_effects, struct err *err);

// The step's batch. Errors: NOTFOUND, ABORTED, STATE (finished).
int core_step_batch(const struct core *c, uint64_t session, uint64_t step, struct core_batch *ret,
                    struct err *err);

// Work in flight of a step: commit, abort and session close answer BUSY while held > 0.
// mark: the layer's K and V of all new tokens are written.
int core_step_hold(struct core *c, uint64_t session, uint64_t step, struct err *err);
int core_step_release(struct core *c, uint64_t session, uint64_t step, struct err *err);
int core_step_mark(struct core *c, uint64_t session, uint64_t step, uint32_t layer, bool written,
                   struct err *err);

// Errors: NOTFOUND, ABORTED, BUSY (held), STATE (names the first layer not written; a step without
// new tokens needs none).
int core_step_commit(struct core *c, uint64_t session, uint64_t step, struct core_step_info *ret,
                     struct err *err);
// Effects: table entries of undone copy-on-write. Errors: NOTFOUND, BUSY, STATE (committed).
int core_step_abort(struct core *c, uint64_t session, uint64_t step,
                    struct core_effects *ret_effects, struct err *err);

// --- batches without a step (attention alone over committed tokens) ----------------------------

// kv_len is the committed length; more query tokens than that are allowed (the first see nothing).
// Errors: STALE, PERM, INVAL (empty, duplicate, another pool), BUSY (in an open step), TOOBIG.
// The arrays are core's.
int core_batch_make(struct core *c, uint64_t session, uint64_t pool, uint32_t n,
                    const struct core_item *items, struct core_batch *ret, struct err *err);
// Work in flight that reads a sequence: free, truncate and session close answer BUSY while pins > 0
// (begin may go on: a session's work runs in order on one stream). All n or none.
int core_seq_pin(struct core *c, uint64_t session, uint32_t n, const struct core_item *items,
                 struct err *err);
void core_seq_unpin(struct core *c, uint32_t n, const struct core_item *items);

// --- totals -----------------------------------------------------------------------------------

struct core_totals {
    uint32_t pools, sessions, seqs, steps;
};
void core_totals(const struct core *c, struct core_totals *ret);

#endif
