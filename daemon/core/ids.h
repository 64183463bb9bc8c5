// SPDX-License-Identifier: Apache-2.0
// ids.h: which of the ids 0..cap-1 are free: a stack of returned ids, and above it the range that
// was never used. Pages, page-table rows and record slots are all given out by one of these.
//
//     0 ............ fresh ........... cap
//     |  used, or on  |  never used:  |
//     |  the stack    |  all free     |
//
// Invariants
//  1. Every id on the stack is < fresh, and on it once.
//  2. Free are the ids on the stack and those >= fresh; the others are used.
//  3. Taking and giving is O(1); memory is touched only as far as ids were used.
// Thread: the caller's (the loop thread).
#ifndef KVPOOL_DAEMON_CORE_IDS_H
#define KVPOOL_DAEMON_CORE_IDS_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ids {
    uint32_t *stack; // [cap], the first `top` are free
    uint32_t top;
    uint32_t fresh; // lowest id never used
    uint32_t cap;
};

// All of 0..cap-1 free. False: out of memory.
bool ids_init(struct ids *ids, uint32_t cap);
void ids_fini(struct ids *ids); // a zeroed struct is fine

// Rebuilding, after ids_init: ids_seen() for every used id in any order, then ids_fill() with a
// function that knows the used ones, which puts the gaps on the stack, lowest on top.
static inline void ids_seen(struct ids *ids, uint32_t id) {
    assert(id < ids->cap);
    if (id >= ids->fresh) {
        ids->fresh = id + 1;
    }
}
typedef bool (*ids_used_fn)(const void *arg, uint32_t id);
void ids_fill(struct ids *ids, ids_used_fn used, const void *arg);

// Compares with what `used` says. 0: invariants 1 and 2 hold; 1: *ret_bad is an id for which they
// do not; -1: out of memory.
int ids_check(const struct ids *ids, ids_used_fn used, const void *arg, uint32_t *ret_bad);

static inline uint32_t ids_free(const struct ids *ids) {
    return ids->top + (ids->cap - ids->fresh);
}

static inline uint32_t ids_used(const struct ids *ids) {
    return ids->fresh - ids->top;
}

// The id that ids_take would return; there must be one.
static inline uint32_t ids_peek(const struct ids *ids) {
    assert(ids_free(ids) > 0);
    return ids->top > 0 ? ids->stack[ids->top - 1] : ids->fresh;
}

static inline uint32_t ids_take(struct ids *ids) {
    assert(ids_free(ids) > 0);
    return ids->top > 0 ? ids->stack[--ids->top] : ids->fresh++;
}

static inline void ids_give(struct ids *ids, uint32_t id) {
    assert(id < ids->fresh && ids->top < ids->fresh);
    ids->stack[ids->top++] = id;
}

#endif
