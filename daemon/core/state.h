// SPDX-License-Identifier: Apache-2.0
// state.h: struct core: the mapped block, and beside it the derived tables that every part of core
// shares. Internal to daemon/core.
//
//     session_live  -- first_seq -->  seq_live  <-> seq_live ...     (chains of what it owns)
//                   -- first_step --> step_live <-> step_live ...
//     (session, step id) -- bucket --> step_live -> step_live ...    (open steps only)
//     pool_live     -- pages (free, references), rows (free, owner)
//                   -- index (key -> sealed page), cache (order of eviction)
//                   -- ns_live: the account of each namespace
//
// Invariants
//  1. Everything here follows from the block alone, but for pins and holds (work in flight), which
//     are 0 after an attach.
//  2. The arrays are allocated when core is opened, those of a pool when it is created: no
//     operation on sequences or steps allocates.
//  3. Chains are indices, LAYOUT_NONE ends them.
//  4. A page is known to the cache and the index, and marked sealed in `pages`, exactly while its
//     record says sealed.
//  5. active of a namespace counts the referenced pages that are its own: sealed ones by their
//     record's ns, others by the namespace of the sequence that took them; `promised` is the sum
//     over all namespaces of max(active, reserve).
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_STATE_H
#define KVPOOL_DAEMON_CORE_STATE_H

#include "daemon/core/cache.h"
#include "daemon/core/handle.h"
#include "daemon/core/ids.h"
#include "daemon/core/index.h"
#include "daemon/core/layout.h"
#include "daemon/core/pages.h"

#define CORE_MAX_TOKENS ((uint32_t)INT32_MAX) // of a sequence, and of a batch

struct chain { // neighbours in the owner's chain
    uint32_t prev, next;
};

struct session_live {
    uint32_t first_seq, first_step;
    uint32_t seqs, steps;
    uint64_t busy; // pins and holds of all it owns
};

struct seq_live {
    struct chain chain;
    uint32_t pins;
};

struct step_live {
    struct chain chain;
    uint32_t bucket_next;
    uint32_t holds;
};

struct ns_live {
    uint32_t active; // referenced pages
    uint32_t seqs, pins;
    struct prefix_value root; // of sequences without extra key material
    struct core_ns_counters counters;
};

struct pool_live {
    struct pages pages;
    struct index index;
    struct cache *cache;
    struct page_rec *recs;  // its span in the block
    uint32_t *tokens;       // its span in the block, [num_pages][page_size]
    struct ns_rec *ns_recs; // its span in the block, [CORE_MAX_NAMESPACES]
    struct ns_live *ns;     // [CORE_MAX_NAMESPACES]
    uint32_t num_ns;        // the first ones are live
    uint64_t promised;
    uint32_t *probed; // [row_entries] scratch of matching
    uint32_t pins;
    struct ids rows;
    uint32_t *row_seqs; // [max_seqs] index + 1 of the sequence that has the row, 0: free
    uint32_t *table;    // its span in the block
    uint32_t row_entries;
    uint32_t page_shift, page_mask;
    uint32_t seqs;
};

struct core {
    struct tables t;
    struct core_limits limits;
    void *block;
    size_t block_size;

    struct ids session_ids, seq_ids, step_ids, pin_ids;
    struct session_live *sessions;
    struct seq_live *seqs;
    struct step_live *steps;
    struct pool_live *pools;
    uint32_t num_pools;
    uint32_t *buckets; // heads of open steps by (session, id)
    uint32_t bucket_mask;

    // Marks of "seen in this batch": seen[seq] == stamp. A new batch takes a new stamp.
    uint64_t *seen;
    uint64_t stamp;

    // What operations hand out, each [max_batch] (qo_indptr: one more).
    struct core_delta *deltas;
    struct core_copy *copies;
    uint32_t *rows, *kv_len, *qo_indptr;

    core_event_fn event_fn; // NULL: nobody listens
    void *event_arg;
};

static inline uint32_t pool_pages(const struct pool_live *pool, uint32_t tokens) {
    return (tokens >> pool->page_shift) + ((tokens & pool->page_mask) != 0);
}

static inline uint32_t *pool_tokens(const struct pool_live *pool, uint32_t page) {
    return pool->tokens + ((size_t)page << pool->page_shift);
}

static inline uint32_t *pool_row(const struct pool_live *pool, uint32_t row) {
    return pool->table + (size_t)row * pool->row_entries;
}

// Derived tables of one pool whose record is filled and checked. False: out of memory.
bool core_pool_live_init(struct core *c, uint32_t pool);
void core_pool_live_fini(struct core *c, uint32_t pool);

// The index of the object that a handle names. Errors: STALE; for a sequence PERM when it is not
// session's (an index).
int core_find_session(const struct core *c, uint64_t handle, uint32_t *ret, struct err *err);
int core_find_pool(const struct core *c, uint64_t handle, uint32_t *ret, struct err *err);
int core_find_seq(const struct core *c, uint32_t session, uint64_t handle, uint32_t *ret,
                  struct err *err);
// The next sequence of a batch on `pool`, named for the first time since `stamp` was new. Errors: as
// above; INVAL (another pool, twice), BUSY (in an open step).
int core_batch_seq(struct core *c, uint32_t session, uint32_t pool, uint64_t handle, uint64_t stamp,
                   uint32_t *ret, struct err *err);

static inline uint64_t core_session_handle(const struct core *c, uint32_t session) {
    return handle_make(c->t.sessions[session].generation, session);
}
static inline uint64_t core_pool_handle(const struct core *c, uint32_t pool) {
    return handle_make(c->t.pools[pool].generation, pool);
}
static inline uint64_t core_seq_handle(const struct core *c, uint32_t seq) {
    return handle_make(c->t.seqs[seq].generation, seq);
}

// A slot's generation when it is used: the first one of its kind if it never was.
static inline uint32_t core_generation(const struct core *c, uint32_t recorded,
                                       enum handle_kind kind) {
    return recorded != 0 ? recorded : handle_first(c->t.header->epoch, kind);
}

// --- space.c: pages and their references, in the accounts of the namespaces ---

#define SPACE_NO_CLASS UINT32_MAX

// How many more pages the namespace could refer to.
uint64_t core_room(const struct core *c, uint32_t pool, uint32_t ns);
// Makes n pages free (n <= core_room), evicting what must go, and puts them on the account.
// pages_take_n is the caller's, at once.
void core_reserve(struct core *c, uint32_t pool, uint32_t ns, uint32_t n);
// Evicts own cached pages while the namespace has more pages than its limit.
void core_trim(struct core *c, uint32_t pool, uint32_t ns);
// A reference from matching: the page is sealed, and if it is cached, room for it was checked.
void core_ref_sealed(struct core *c, uint32_t pool, uint32_t ns, uint32_t page);

struct release { // who lets go of pages
    uint32_t pool;
    uint32_t ns;       // of the sequence: the account of pages that are not sealed
    uint32_t priority; // raises the class of sealed pages; SPACE_NO_CLASS: does not
    bool drop;         // sealed pages are dropped when nothing needs them
};
void core_unref(struct core *c, const struct release *by, uint32_t page);
// From the last to the first.
void core_unref_n(struct core *c, const struct release *by, uint32_t n, const uint32_t *pages);

void core_emit(const struct core *c, enum core_event_kind kind, uint32_t pool, uint32_t page);

// The account of a namespace changes by `delta` referenced pages.
static inline void ns_active_add(struct pool_live *live, uint32_t ns, int32_t delta) {
    struct ns_live *n = &live->ns[ns];
    uint32_t reserve = live->ns_recs[ns].reserve;
    live->promised -= n->active > reserve ? n->active : reserve;
    n->active = (uint32_t)((int32_t)n->active + delta);
    live->promised += n->active > reserve ? n->active : reserve;
}
static inline uint32_t ns_used(const struct pool_live *live, uint32_t ns) {
    return live->ns[ns].active + cache_count(live->cache, ns);
}

// --- prefix.c ---

// Seals the pages of a sequence that became full and known since it had `tracked` tokens. Returns
// the range of row entries that were redirected in *ret_first, *ret_count (0: none); adds to the
// counts of *info.
void core_seal(struct core *c, uint32_t seq, uint32_t tracked, uint32_t *ret_first,
               uint32_t *ret_count, struct core_step_info *info);

// --- ns.c ---

// Namespace 0 of a new pool; and what is derived of a live namespace's record.
void core_ns_init(struct core *c, uint32_t pool);
void core_ns_derive(struct core *c, uint32_t pool, uint32_t ns);
int core_find_ns(const struct core *c, uint32_t pool, uint32_t ns, struct err *err);
// The root of sequences of the namespace with that key material.
void core_ns_root(const struct core *c, uint32_t pool, uint32_t ns, const void *extra,
                  uint32_t extra_size, struct prefix_value *ret);

// --- pins.c ---

void core_pins_end(struct core *c, uint32_t pool); // all of the pool's

// --- seq.c ---

// Room for n more sequences in core and in the pool? Errors: INVAL, LIMIT.
int core_seq_room(const struct core *c, uint32_t pool, uint32_t n, struct err *err);
// An empty sequence; there is room.
uint32_t core_seq_new(struct core *c, uint32_t session, uint32_t pool, uint32_t ns,
                      uint32_t priority, const struct prefix_value *root);

// Puts a live sequence / open step at the head of its session's chain (and of its bucket).
void core_link_seq(struct core *c, uint32_t seq);
void core_unlink_seq(struct core *c, uint32_t seq);
void core_link_step(struct core *c, uint32_t step);
void core_unlink_step(struct core *c, uint32_t step);

// The open step of that id, LAYOUT_NONE when there is none.
uint32_t core_open_step(const struct core *c, uint32_t session, uint64_t id);

// Ring slot of a finished step's id, LAYOUT_NONE when it is not remembered.
uint32_t core_finished_step(const struct core *c, uint32_t session, uint64_t id);

// Frees a sequence that is in no step and not pinned: its pages, row and slot.
void core_release_seq(struct core *c, uint32_t seq, enum core_hint hint);

// Gives an open step's pages back, restores its rows and frees its slot; remembers nothing. With
// deltas (room for n of the step), writes the restored entries there and returns how many.
uint32_t core_drop_step(struct core *c, uint32_t step, struct core_delta *deltas);

// Rebuilds every derived table of a newly opened core from its block, which may hold anything.
// Errors: INVAL (damaged: says what), NOMEM.
int core_rebuild(struct core *c, struct err *err);
int core_rebuild_pages(struct core *c, struct err *err); // its last part

// check.c and check_sealed.c: the live tables against those of a core rebuilt from the same block.
int core_compare_cache(const struct core *live, const struct core *want, struct err *err);

#endif
