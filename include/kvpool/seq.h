// SPDX-License-Identifier: Apache-2.0
// seq.h: sequences, and the prefixes of theirs that clients share. Conventions: kvpool.h.
#ifndef KVPOOL_SEQ_H
#define KVPOOL_SEQ_H

#include <kvpool/base.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---------------------------------------------------------------------------------------------
// Sequences

// Creates n empty sequences in a pool, owned by this client: all or none. n in 1..max_batch.
// Errors: STALE, LIMIT (max_seqs), INVAL.
KVPOOL_API kvpool_status kvpool_seq_create(kvpool_client *client, kvpool_pool pool, uint32_t n,
                                           kvpool_seq *ret_seqs);

// Makes n copies of a sequence's committed tokens: all or none. No data is copied: all pages are
// shared by reference count, and a partial last page is copied when either side first appends.
// Errors: STALE, PERM, BUSY (in an open step), LIMIT, INVAL.
KVPOOL_API kvpool_status kvpool_seq_fork(kvpool_client *client, kvpool_seq seq, uint32_t n,
                                         kvpool_seq *ret_seqs);

// Takes tokens back: the sequence then has `length` tokens (0..its length). Pages that no other
// sequence shares are free at once.
// Errors: INVAL (longer than the sequence), STALE, PERM, BUSY (in an open step, or a batch in
// flight).
KVPOOL_API kvpool_status kvpool_seq_truncate(kvpool_client *client, kvpool_seq seq,
                                             uint32_t length);

// Frees n sequences: all or none. Errors: STALE, PERM, BUSY, INVAL (a duplicate in the list).
KVPOOL_API kvpool_status kvpool_seq_free(kvpool_client *client, uint32_t n, const kvpool_seq *seqs);

// How much a sequence's pages are worth keeping once nobody uses them: pages of a lower class are
// evicted before all pages of a higher one. A page has the highest class of the sequences that let go
// of it.
typedef enum kvpool_priority {
    KVPOOL_PRIORITY_LOW = 0,
    KVPOOL_PRIORITY_NORMAL = 1,
    KVPOOL_PRIORITY_HIGH = 2,
} kvpool_priority;

typedef enum kvpool_free_hint {
    KVPOOL_FREE_KEEP = 0, // sealed pages stay cached until the space is needed (as kvpool_seq_free)
    KVPOOL_FREE_DROP = 1, // sealed pages that nobody else uses or continues are free at once
} kvpool_free_hint;

// kvpool_seq_free with a hint. Errors: as there; INVAL (hint), UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_release(kvpool_client *client, uint32_t n,
                                            const kvpool_seq *seqs, kvpool_free_hint hint);

// Errors: STALE, PERM, INVAL, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_set_priority(kvpool_client *client, kvpool_seq seq,
                                                 kvpool_priority priority);

// ---------------------------------------------------------------------------------------------
// Prefix sharing
//
// When a sequence's tokens are known by id (kvpool_step_args.tokens) every page that becomes full is
// *sealed* at commit: immutable, and found by the tokens up to its end. Any client of the pool (and
// of the same namespace: the daemon's operator says who that is) that opens a sequence on the same
// tokens gets those pages, once in memory, whoever computed them. Sealed pages stay cached after
// their sequences, until the space is needed.
//
// The K and V of a token must depend on nothing but the tokens up to it (and `extra`): what computes
// them otherwise (another LoRA, an image behind a placeholder token) gives its id or hash as `extra`,
// or uses token ids made from it.

#define KVPOOL_EXTRA_MAX 64
#define KVPOOL_MAX_TOKENS 262144 // of one call; of a longer prompt the first ones are looked up

typedef struct kvpool_open_args {
    size_t size;
    kvpool_pool pool;
    const uint32_t *tokens; // [n], the prompt
    uint32_t n;
    uint32_t priority;   // kvpool_priority; KVPOOL_OPEN_ARGS_INIT: normal
    const void *extra;   // key material of the whole sequence, extra_size bytes; NULL: none
    uint32_t extra_size; // at most KVPOOL_EXTRA_MAX
    uint32_t flags;      // 0
} kvpool_open_args;
#define KVPOOL_OPEN_ARGS_INIT \
    { sizeof(kvpool_open_args), 0, NULL, 0, KVPOOL_PRIORITY_NORMAL, NULL, 0, 0 }

// Makes a sequence that begins with as much of `tokens` as is cached, in whole pages: *ret_matched
// tokens (0 or more; at most n). The rest is the caller's to compute: steps append it. To have at
// least one token to compute (its output is the next token's), give all but the last.
// Errors: STALE, LIMIT (max_seqs), INVAL (more tokens than the pool's max_seq_len, key material too
// long, priority), PERM (the pool's access list), UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_open_with(kvpool_client *client, const kvpool_open_args *args,
                                              kvpool_seq *ret_seq, uint32_t *ret_matched);

// The same, but makes no sequence (*ret_seq is 0) when nothing matches. With ret_seq NULL it only
// looks: nothing is held, so a later call may find less.
KVPOOL_API kvpool_status kvpool_seq_match(kvpool_client *client, const kvpool_open_args *args,
                                          kvpool_seq *ret_seq, uint32_t *ret_matched);

// Keeps the sealed pages of the sequence's first `tokens` tokens (0: all of them) in the cache for
// ttl_ms (1 or more), whatever becomes of the sequence and of this client: for a system prompt. They
// count as in use. *ret_tokens (may be NULL): how many tokens that are. *ret_pin (may be NULL) ends
// it earlier; any client of the namespace may do that.
// Errors: STALE, PERM, STATE (no sealed page), LIMIT (the namespace's share of max_pins), INVAL, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_prefix_pin(kvpool_client *client, kvpool_seq seq, uint32_t tokens,
                                           uint32_t ttl_ms, uint64_t *ret_pin,
                                           uint32_t *ret_tokens);
KVPOOL_API kvpool_status kvpool_prefix_unpin(kvpool_client *client, kvpool_pool pool, uint64_t pin);

// Drops every cached page of this client's namespace that nothing uses (when a model's weights
// change). ret_pages (may be NULL): how many. Errors: STALE, PERM, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_cache_clear(kvpool_client *client, kvpool_pool pool,
                                            uint32_t *ret_pages);

typedef struct kvpool_seq_info {
    size_t size;
    kvpool_seq seq;
    kvpool_pool pool;
    uint32_t length;       // committed tokens
    uint32_t pages;        // of the committed tokens
    uint32_t shared_pages; // of those, shared with other sequences
    uint32_t in_step;      // 1 while an open step has it
    uint32_t owner_pid;
    uint32_t reserved;
} kvpool_seq_info;

// Properties of one's own sequence. ret->size must be set. Errors: STALE, PERM.
KVPOOL_API kvpool_status kvpool_seq_stat(kvpool_client *client, kvpool_seq seq,
                                         kvpool_seq_info *ret);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_SEQ_H
