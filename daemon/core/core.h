// SPDX-License-Identifier: Apache-2.0
// core.h: the truth of the cache as plain data: sessions, pools, namespaces, pages, sequences, page
// tables, steps, sealed prefixes. No I/O, no clock, no libuv, no NNG, no CUDA; it decides, the
// daemon's shells carry out.
//
// Memory
//   *block*    authoritative tables, pointer-free (indices only), versioned, in memory that the
//              caller gives: pools, namespaces, sequences, page-table rows, lengths, steps,
//              sessions, pins, sealed pages and the token ids of every page.
//   *derived*  free list, reference counts, prefix index, eviction order, accounts: rebuilt from the
//              block by core_attach() and core_rebuild(), never trusted across a restart.
//
// The life of a page
//
//              begin               commit: full, its tokens known, every layer written
//     FREE ----------> ACTIVE ------------------------------------------------> SEALED, referenced
//      ^                 | last reference gone                      last reference gone |   ^ match
//      |<----------------+                                                              v   |
//      +<------- evicted (space is needed), or dropped --------------------- SEALED, cached-+
//
//   A sealed page is never written again. It is found by its key: the hash of all tokens up to its
//   end, under the namespace's salt (prefix_hash.h). A page that is sealed while the index has its
//   key is a duplicate: the row is redirected to the page that is there, and the duplicate is free.
//
// Invariants (checked by core_check)
//  1. A page's reference count is the number of page-table entries (committed, plus reserved and
//     copied-from entries of open steps) and pins that name it. It is on the free list exactly when
//     that is 0 and it is not sealed.
//  2. A sequence of length L has exactly ceil(L / page_size) committed pages in its row.
//  3. A sequence is in at most one open step, of the same session and pool.
//  4. A step's reserved pages have reference count 1, are not sealed, and are invisible to every
//     other operation.
//  5. Only a page with reference count 1 that is not sealed is ever written: begin replaces a shared
//     or sealed last page by a fresh copy and keeps the old one referenced until commit or abort.
//  6. A handle is generation << 32 | index, generation never 0; the generation changes whenever the
//     slot is freed, and starts from the epoch so that handles of another instance are stale.
//  7. An operation that fails has changed nothing.
//  8. No heap allocation after core_create/core_attach and core_pool_create; every page is
//     allocated, matched, sealed, evicted and released in O(1) (amortised).
//  9. Of a sequence the first `tracked` tokens are known by id. Page i of its row is sealed when
//     (i + 1) * page_size <= tracked, and its parent is page i - 1 of the row.
// 10. A sealed page's parent is sealed: children are evicted and dropped before their parent. Two
//     sealed pages of a pool never have the same key.
// 11. With active(n) the referenced pages of namespace n and used(n) the cached ones too:
//     used(n) <= limit(n), and the sum over all n of max(active(n), reserve(n)) <= num_pages. So
//     what a namespace reserves is always obtainable.
// Thread: the loop thread alone (core has no locks).
#ifndef KVPOOL_DAEMON_CORE_CORE_H
#define KVPOOL_DAEMON_CORE_CORE_H

#include "proto/err.h"

#define CORE_NAME_SIZE 32
#define CORE_TOKEN_SIZE 16
#define CORE_FINISHED 64 // finished step ids remembered per session
#define CORE_SECRET_SIZE 32
#define CORE_KEY_SIZE 16
#define CORE_EXTRA_MAX 64      // bytes of extra key material of a sequence
#define CORE_MAX_NAMESPACES 64 // of one pool; 0 is "default" and always there

enum core_priority { CORE_LOW, CORE_NORMAL, CORE_HIGH, CORE_PRIORITIES };
enum core_policy { CORE_LRU, CORE_S3FIFO, CORE_POLICIES };

struct core; // opaque

struct core_limits {
    uint32_t max_pools;
    uint32_t max_sessions;
    uint32_t max_seqs;          // of all pools
    uint32_t max_steps;         // open at once
    uint32_t max_session_steps; // open at once in one session
    uint32_t max_batch;         // sequences in one step
    uint64_t max_table_entries; // page-table entries of all pools (max_seqs x row length each)
    uint64_t max_pages;         // of all pools
    uint64_t max_page_tokens;   // num_pages x page_size of all pools
    uint32_t max_pins;          // at once
    uint32_t reserved;          // 0
};
extern const struct core_limits core_limits_default;

// Bytes of the block for these limits; 0 when a limit is out of range.
size_t core_block_size(const struct core_limits *limits);

// Formats a zeroed block (page aligned, size as above) and opens it. `epoch` seeds generations,
// `secret` (random, never shown to anybody) the salts of the namespaces.
// Errors: INVAL, NOMEM (derived tables).
int core_create(void *block, size_t size, const struct core_limits *limits, uint64_t epoch,
                const uint8_t secret[CORE_SECRET_SIZE], struct core **ret, struct err *err);

// Opens a block that an earlier core filled: checks it, rebuilds what is derived. Steps stay open.
// What the block does not say begins again: counters are 0, and every sealed page is of class low;
// cached pages are in the order as if the deepest of all chains had been released first (of one
// depth, the highest page number), and a session's sequences are as old as their slots.
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
    uint32_t policy;      // enum core_policy; of the pool's creator, not compared when it exists
    uint32_t kv_dtype;    // of the pages: KVPOOL_FP8_E4M3; 0, or dtype itself: as dtype
    uint32_t export;      // kvpool_export; 0: FD, or what the pool has if it exists
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
    uint32_t row_entries;  // of its page table: ceil(max_seq_len / page_size)
    uint32_t free_pages;   // on the free list
    uint32_t cached_pages; // sealed and unreferenced: evicted when space is needed
    uint32_t shared_pages; // referenced more than once
    uint32_t sealed_pages; // in the index: cached ones and referenced ones
    uint32_t seqs, pins;
};
int core_pool_stat(const struct core *c, uint64_t pool, struct core_pool_info *ret,
                   struct err *err);
// Walks live pools in slot order: *cursor is the first slot to look at, advanced past the one
// returned. False when there is none.
bool core_pool_next(const struct core *c, uint32_t *cursor, struct core_pool_info *ret);

// --- namespaces -------------------------------------------------------------------------------
//
// A namespace is a tenant of a pool: its own salt, and an account of pages. Every page belongs to
// the namespace of the sequence that took it, until it is free again.

struct core_ns_config {
    char name[CORE_NAME_SIZE];
    char group[CORE_NAME_SIZE]; // namespaces of the same non-empty group find each other's pages
    uint32_t reserve;           // pages it can always have
    uint32_t limit;             // pages it has at most, cached ones included; 0: all of the pool
    uint32_t weight;            // of what it borrows, against the others; 0: 1
};

// Makes a namespace of the pool, or gives the one of that name new numbers (also "default").
// Errors: STALE, INVAL (name, reserve over limit, reserves over num_pages, weight > 1000), EXISTS
// (another group), LIMIT (namespaces), NOSPACE (others' referenced pages leave no room for the
// reserve, or more pages are referenced than the new limit).
int core_ns_set(struct core *c, uint64_t pool, const struct core_ns_config *config,
                uint32_t *ret_ns, struct err *err);

struct core_ns_counters {             // since create or attach; hits and misses in tokens
    uint64_t hit_tokens, miss_tokens; // of core_seq_open: matched, and asked for in vain
    uint64_t sealed, deduplicated;    // pages
    uint64_t evicted, dropped;        // pages
    uint64_t refused;                 // begins that got NOSPACE
};
struct core_ns_info {
    uint32_t ns;
    struct core_ns_config config;
    uint32_t active, cached; // pages
    uint32_t seqs;
    struct core_ns_counters counters;
};
// Walks the namespaces of a pool, as core_pool_next. Errors of stat: STALE, NOTFOUND.
int core_ns_stat(const struct core *c, uint64_t pool, uint32_t ns, struct core_ns_info *ret,
                 struct err *err);
bool core_ns_next(const struct core *c, uint64_t pool, uint32_t *cursor, struct core_ns_info *ret);

// --- observation ------------------------------------------------------------------------------

enum core_event_kind {
    CORE_STORED,  // a page was sealed
    CORE_REMOVED, // a sealed page was evicted or dropped
    CORE_CLEARED, // a pool was destroyed, and with it all of its pages
};
struct core_event {
    enum core_event_kind kind;
    uint64_t pool;
    const char *pool_name;
    const char *ns_name; // NULL: of all namespaces (CLEARED)
    uint32_t ns, page_size;
    uint8_t key[CORE_KEY_SIZE];
    uint8_t parent[CORE_KEY_SIZE]; // all zero: the first page of its chain
    const uint32_t *tokens;        // [page_size], STORED only; valid during the call
};
typedef void (*core_event_fn)(void *arg, const struct core_event *event);
// Called from inside operations, before they return; must not call core. fn NULL: nobody.
void core_observe(struct core *c, core_event_fn fn, void *arg);

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

// n empty sequences of namespace `ns`, priority normal. Errors: STALE, NOTFOUND (ns), INVAL, LIMIT.
int core_seq_create(struct core *c, uint64_t session, uint64_t pool, uint32_t ns, uint32_t n,
                    uint64_t *ret_seqs, struct err *err);

struct core_open {
    uint32_t ns;
    uint32_t priority;      // enum core_priority
    const uint32_t *tokens; // [n] what the sequence is to begin with
    uint32_t n;
    const void *extra; // more key material: other bytes, other keys (a LoRA's id, an image's hash)
    uint32_t extra_size; // 0..CORE_EXTRA_MAX
    bool only_matched;   // no sequence when nothing matches: *ret_seq is 0
};
// Makes a sequence of the longest prefix of `tokens`, in whole pages, that is sealed and that the
// namespace has room to refer to. Cached pages of another namespace of the group become this one's.
// Matched are at most floor(n / page_size) pages. Counts hits and misses. Effects: one delta.
// Errors: STALE, NOTFOUND (ns), INVAL (priority, extra, n over max_seq_len), LIMIT.
int core_seq_open(struct core *c, uint64_t session, uint64_t pool, const struct core_open *open,
                  uint64_t *ret_seq, uint32_t *ret_matched, struct core_effects *ret_effects,
                  struct err *err);
// How many tokens core_seq_open would match, were there room. Changes and counts nothing.
int core_seq_probe(struct core *c, uint64_t pool, const struct core_open *open,
                   uint32_t *ret_matched, struct err *err);

// Copies share everything: pages, known tokens, namespace, priority, key material.
int core_seq_fork(struct core *c, uint64_t session, uint64_t seq, uint32_t n, uint64_t *ret_seqs,
                  struct core_effects *ret_effects, struct err *err);
// A length inside a sealed page leaves that page in the row; the next begin copies it.
int core_seq_truncate(struct core *c, uint64_t session, uint64_t seq, uint32_t length,
                      struct err *err);

enum core_hint {
    CORE_KEEP, // sealed pages stay cached
    CORE_DROP, // sealed pages that nothing refers to and nothing continues are free at once
};
int core_seq_free(struct core *c, uint64_t session, uint32_t n, const uint64_t *seqs,
                  enum core_hint hint, struct err *err);
int core_seq_set_priority(struct core *c, uint64_t session, uint64_t seq, uint32_t priority,
                          struct err *err);

struct core_seq_info {
    uint64_t seq, pool, session;
    uint32_t length, tracked, pages, shared_pages, row, owner_pid, ns, priority;
    bool in_step;
};
// session 0: whoever owns it.
int core_seq_stat(const struct core *c, uint64_t session, uint64_t seq, struct core_seq_info *ret,
                  struct err *err);
bool core_seq_next(const struct core *c, uint32_t *cursor, struct core_seq_info *ret);
// The same, but only whose it is: in O(1), while the above looks at every page.
bool core_seq_next_owner(const struct core *c, uint32_t *cursor, uint64_t *ret_seq,
                         uint64_t *ret_session);

// --- the cache --------------------------------------------------------------------------------
//
// The order of references. Whatever releases a sequence's pages (free, truncate, session close)
// releases them from the last to the first; sessions release their sequences from the newest to the
// oldest, lists in the order given; a pin releases as a sequence does. A page whose last reference
// goes is thereby behind its children. Its class becomes the greatest priority of all sequences
// that released it since it was sealed (pins, and frees with CORE_DROP: none).
//
// Eviction, when n pages are taken and fewer are free, one page after the other:
//   1. While the taker's used pages would exceed its limit: its own cached pages.
//   2. Then from the namespace with cached pages whose (used - reserve) / weight is greatest among
//      those with used > reserve, the lower index first; if there is none, the taker's own; if
//      it has none, of any namespace, the lowest index first.
//   When the cached pages of the chosen namespace all have children in other namespaces, these are of
//   its group: of the group's namespaces then, the lowest index first. So nobody outside loses pages.
//   A namespace that is over its limit by what core_seq_open or core_ns_set did evicts as in 1.
//   Within a namespace: the lowest class with cached pages, and there what the policy says
//   (cache.h).

// Keeps the sealed pages of the sequence's first `tokens` tokens (rounded down to pages; 0: all of
// its sealed pages) referenced until `until` (the caller's clock), whatever happens to the sequence.
// *ret_tokens: how many that are. Errors: STALE, PERM, STATE (no sealed page), LIMIT (the
// namespace's share of max_pins: three times as many as are free).
int core_prefix_pin(struct core *c, uint64_t session, uint64_t seq, uint32_t tokens, uint64_t until,
                    uint64_t *ret_pin, uint32_t *ret_tokens, struct err *err);
// Errors: STALE, PERM (another namespace's).
int core_prefix_unpin(struct core *c, uint64_t pool, uint32_t ns, uint64_t pin, struct err *err);
// Ends pins with until <= now, in the order of their slots; returns how many. Not all of them when
// they hold many pages: call again until it is 0.
uint32_t core_pins_expire(struct core *c, uint64_t now);

// Drops every cached page of a namespace, or of all (ns UINT32_MAX), children first.
// *ret_pages: how many. Errors: STALE, NOTFOUND.
int core_cache_clear(struct core *c, uint64_t pool, uint32_t ns, uint32_t *ret_pages,
                     struct err *err);

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
    uint32_t pages;        // reserved by begin / added by commit
    uint32_t sealed;       // by commit (a repeat: 0): pages that entered the index, and
    uint32_t deduplicated; // pages that were there already
    bool repeated;         // begin or commit was a repeat: no effects
};

// Opens step `step` (not 0) of the session. All-or-nothing. ids: the token ids of all new tokens,
// one sequence after the other, or NULL: not known, then the sequences are tracked no further.
// All sequences must be of one namespace. See kvpool_step_begin for the errors; NOSPACE has the
// missing pages in err->detail.
int core_step_begin(struct core *c, uint64_t session, uint64_t step, uint64_t pool, uint32_t n,
                    const struct core_item *items, const uint32_t *ids, struct core_step_info *ret,
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

// Seals what became full, sequence after sequence, first page first. Effects: table entries of
// duplicates. Errors: NOTFOUND, ABORTED, BUSY (held), STATE (names the first layer not written; a
// step without new tokens needs none).
int core_step_commit(struct core *c, uint64_t session, uint64_t step, struct core_step_info *ret,
                     struct core_effects *ret_effects, struct err *err);
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
    uint32_t pools, sessions, seqs, steps, pins;
};
void core_totals(const struct core *c, struct core_totals *ret);

#endif
