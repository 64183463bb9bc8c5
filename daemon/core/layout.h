// SPDX-License-Identifier: Apache-2.0
// layout.h: the block: core's authoritative tables in one piece of memory without pointers, so that
// a keeper can hold it while the daemon is away and the next daemon can go on with it.
//
//     offset
//     0      +----------+
//            | header   |  256 bytes: magic, layout version, limits, epoch, offsets, checksum
//            +----------+
//            | pools    |  max_pools    x 128   geometry, spans in the last three tables, checksum
//            +----------+
//            | ns       |  max_pools x 64 x 128 namespaces: name, group, reserve, limit, weight
//            +----------+
//            | sessions |  max_sessions x 2176  who, token, the last 64 finished steps
//            +----------+
//            | seqs     |  max_seqs     x 80    pool, session, row, lengths, open step, hash root
//            +----------+
//            | pins     |  max_pins     x 32    pool, last page, until
//            +----------+
//            | steps    |  max_steps    x 128   id, session, pool, sums, layers written
//            +----------+
//            | items    |  max_steps    x  one array each of max_batch u32 (qo_indptr: one more):
//            |          |      | seqs | rows | kv_len | old_pages | qo_indptr |
//            +----------+
//            | entries  |  max_table_entries x u32: the page tables
//            +----------+
//            | pages    |  max_pages    x 64    sealed: parent, namespace, chaining value
//            +----------+
//            | tokens   |  max_page_tokens x u32: token ids, [page][page_size]
//            +----------+
//
//     entries:  |    span of pool 2     | free |        span of pool 0        | free        |
//               | row 0 | row 1 | ...   |      | row 0 | row 1 | row 2 | ...  |
//     row:      | page | page | ... | page | anything |     row_entries long, max_seqs rows a span
//                 committed       reserved
//
// Invariants
//  1. A record is free (state 0) or live (state 1); all zero is free. Free records keep their
//     generation (0: never used), the rest of them means nothing.
//  2. Every table begins at a multiple of 64 bytes; offsets follow from the limits alone.
//  3. Spans of live pools do not overlap. Free space is what no live pool's span covers.
//  4. In a row the first ceil(length / page_size) entries are the committed pages, and while the
//     sequence is in a step those up to ceil(kv_len / page_size) are reserved. If the step has an
//     old page for the sequence, the last committed page is that one, and the row names its copy.
//  5. The block is sparse memory: nothing writes where nothing was ever used.
//  6. Token ids mean something in a sealed page, and up to a sequence's tracked length in the pages
//     of its row.
// A change of any record is a new LAYOUT_VERSION.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_LAYOUT_H
#define KVPOOL_DAEMON_CORE_LAYOUT_H

#include "daemon/core/core.h"
#include "daemon/core/prefix_hash.h"

#define LAYOUT_MAGIC 0x3145524F4350564Bull // bytes "KVPCORE1"
#define LAYOUT_VERSION 3u
#define LAYOUT_ALIGN 4096u // of the block itself
#define LAYOUT_NONE UINT32_MAX

enum record_state { RECORD_FREE = 0, RECORD_LIVE = 1 };
enum outcome { OUTCOME_COMMITTED = 1, OUTCOME_ABORTED = 2 };

struct layout { // byte offsets
    uint64_t pools, ns, sessions, seqs, pins, steps, items, entries, pages, tokens;
    uint64_t size;
    uint64_t item_words; // u32 of one step's items
};

struct header_rec {
    uint64_t magic;
    uint32_t version;
    uint32_t reserved;
    uint64_t epoch;
    struct core_limits limits;
    struct layout layout;
    uint8_t secret[CORE_SECRET_SIZE]; // see core_create
    uint8_t padding[40];
    uint64_t checksum; // of all the above
};

struct pool_rec {
    uint32_t state;
    uint32_t generation;
    uint32_t end_page; // every sealed page is below it
    uint32_t reserved;
    uint32_t layers, kv_heads, head_dim, page_size, dtype, num_pages, max_seqs, max_seq_len;
    uint32_t row_entries; // ceil(max_seq_len / page_size)
    uint32_t policy;
    uint64_t first_entry; // of its span, which is max_seqs * row_entries long
    uint64_t first_page;  // of its span, num_pages long
    uint64_t first_token; // of its span, num_pages * page_size long
    char name[CORE_NAME_SIZE];
    uint32_t kv_dtype, export; // kv_dtype 0: as dtype
    uint64_t checksum; // of all from layers to export: none of it changes while the pool lives
};

struct ns_rec { // of one pool [CORE_MAX_NAMESPACES]; number 0 is always live
    uint32_t state;
    uint32_t reserve, limit, weight; // limit and weight never 0
    char name[CORE_NAME_SIZE];
    char group[CORE_NAME_SIZE];
    uint8_t padding[40];
    uint64_t checksum; // of all the above
};

struct finished_rec {
    uint64_t pool; // handle
    uint32_t tokens;
    uint32_t pages; // added by commit
    uint32_t outcome;
    uint32_t reserved;
};

struct session_rec {
    uint32_t state;
    uint32_t generation;
    uint32_t pid, uid;
    char name[CORE_NAME_SIZE];
    uint8_t token[CORE_TOKEN_SIZE];
    uint32_t next_finished; // ring slot to be used next
    uint32_t reserved[15];
    uint64_t finished_ids[CORE_FINISHED]; // 0: empty
    struct finished_rec finished[CORE_FINISHED];
};

struct seq_rec {
    uint32_t state;
    uint32_t generation;
    uint32_t pool;    // index
    uint32_t session; // index
    uint32_t row;
    uint32_t length;  // committed tokens
    uint32_t step;    // index, LAYOUT_NONE: in no step
    uint32_t tracked; // of the committed tokens the first ones whose ids are known
    uint32_t ns, priority;
    uint32_t reserved[2];
    struct prefix_value root; // the chaining value before its first page
};

struct pin_rec {
    uint32_t state;
    uint32_t generation;
    uint32_t pool; // index
    uint32_t ns;   // of who made it
    uint64_t until;
    uint32_t page; // the last one: the others are its parents
    uint32_t reserved;
};

struct page_rec {
    uint32_t state; // live: sealed
    uint32_t ns;
    uint32_t parent; // page, LAYOUT_NONE: none
    uint32_t depth;  // pages before it in its chain
    struct prefix_value value;
    uint32_t reserved[4];
};

#define LAYOUT_LAYER_WORDS (KVPOOL_MAX_LAYERS / 64)
struct step_rec {
    uint64_t id;
    uint32_t state;
    uint32_t session; // index
    uint32_t pool;    // index
    uint32_t n;
    uint32_t tokens;
    uint32_t max_q_len;
    uint32_t reserved_pages; // taken by begin
    uint32_t added_pages;    // of those, not in place of an old page
    uint64_t written[LAYOUT_LAYER_WORDS];
    uint32_t ns;
    uint32_t ids_known; // 1: the token ids of the new tokens stand in the pages
    uint32_t reserved[4];
};

_Static_assert(sizeof(struct core_limits) == 56, "core_limits");
_Static_assert(sizeof(struct layout) == 96, "layout");
_Static_assert(sizeof(struct header_rec) == 256, "header_rec");
_Static_assert(sizeof(struct pool_rec) == 128, "pool_rec");
_Static_assert(sizeof(struct finished_rec) == 24, "finished_rec");
_Static_assert(sizeof(struct session_rec) == 2176, "session_rec");
_Static_assert(sizeof(struct ns_rec) == 128, "ns_rec");
_Static_assert(sizeof(struct seq_rec) == 80, "seq_rec");
_Static_assert(sizeof(struct pin_rec) == 32, "pin_rec");
_Static_assert(sizeof(struct page_rec) == 64, "page_rec");
_Static_assert(sizeof(struct step_rec) == 128, "step_rec");

// The block, mapped.
struct tables {
    struct header_rec *header;
    struct pool_rec *pools;
    struct ns_rec *ns; // [max_pools][CORE_MAX_NAMESPACES]
    struct session_rec *sessions;
    struct seq_rec *seqs;
    struct pin_rec *pins;
    struct step_rec *steps;
    uint32_t *items;
    uint32_t *entries;
    struct page_rec *pages;
    uint32_t *tokens;
    size_t item_words;
    uint32_t max_batch;
};

struct step_items { // of one step; all but qo_indptr are [max_batch]
    uint32_t *seqs; // index
    uint32_t *rows;
    uint32_t *kv_len;
    uint32_t *old_pages; // copied-from page, LAYOUT_NONE: none
    uint32_t *qo_indptr; // [max_batch + 1]
};

static inline struct step_items tables_items(const struct tables *t, uint32_t step) {
    uint32_t *base = t->items + t->item_words * step;
    size_t n = t->max_batch;
    return (struct step_items){base, base + n, base + 2 * n, base + 3 * n, base + 4 * n};
}

// False when a limit is out of range.
bool layout_make(const struct core_limits *limits, struct layout *ret);

// Writes the header into a block whose header is zero. Errors: INVAL (limits, size, alignment, not
// zeroed).
int layout_format(void *block, size_t size, const struct core_limits *limits, uint64_t epoch,
                  const uint8_t secret[CORE_SECRET_SIZE], struct err *err);

// Checks the header of a block that may hold anything and maps its tables.
// Errors: VERSION, INVAL.
int layout_open(void *block, size_t size, struct tables *ret, struct err *err);

uint64_t layout_pool_checksum(const struct pool_rec *pool);
uint64_t layout_ns_checksum(const struct ns_rec *ns);

#endif
