// SPDX-License-Identifier: Apache-2.0
// transcript.h: what one sequence consists of, which of its tokens the model chose, and whether a
// full recompute chooses the same ones.
//
//   tokens   | prompt ................ | forced | generated ............... |
//              positions 0 .. length-1; the first `committed` of them are in the cache
//
// What "the same ones" means. With the cache and without it, the same sums are formed in another
// order, so logits differ in their last bits: by a few 1e-6 of the largest logit with the seeded
// weights (max_error says how much it was). A generated token is a mismatch unless
//   its logit is what the recompute gives, within TRANSCRIPT_TOLERANCE of the row's largest logit;
//   and it is the recompute's argmax, or below it by no more than that (a tie: counted, shown).
// The first alone is far stricter than comparing tokens: attention that misses a page, or reads a
// wrong one, moves logits ten thousand times as far.
//
// Invariants
//  1. Token p is marked generated only if it was the argmax of the logits after token p - 1.
//  2. committed < length: the newest token is never in the cache, its step comes next.
// Threads: one at a time for one transcript.
#ifndef KVPOOL_EXAMPLES_TRANSCRIPT_H
#define KVPOOL_EXAMPLES_TRANSCRIPT_H

#include "examples/llama.h"

#define TRANSCRIPT_TOLERANCE 1e-4f

struct transcript {
    uint32_t *tokens;   // [capacity]
    float *logit;       // [capacity] of a generated token: its logit when chosen
    bool *generated;    // [capacity]
    uint32_t length;    // tokens known
    uint32_t committed; // of those, in the cache
    uint32_t capacity;
};

// What the checks of a worker came to.
struct tally {
    uint32_t tokens;     // generated tokens checked
    uint32_t mismatches; // of those, not what the recompute gives
    uint32_t ties;       // of those, not its argmax, but within the tolerance of it
    uint32_t reused;     // prompt tokens whose K and V some worker had computed before
    float max_error;     // largest difference of a generated token's logit to the recomputed one,
                         // relative to the largest logit of its row
};

// 0 or -1 (no memory). `copy`: a transcript to start from, or NULL.
int transcript_open(uint32_t capacity, const struct transcript *copy, struct transcript *ret);
void transcript_close(struct transcript *t);

// Appends a token; logits (may be NULL: a forced or prompt token) are those it is the argmax of.
// 0 or -1 (full, said on stderr).
int transcript_push(struct transcript *t, uint32_t token, const float *logits);

// Takes back all tokens from `length` on; length <= committed, which becomes length.
void transcript_truncate(struct transcript *t, uint32_t length);

// Recomputes the whole sequence and adds every generated token at or after `from` to the tally.
// 0 or -1 (said on stderr).
int transcript_check(const struct transcript *t, const struct llama *m, uint32_t from,
                     struct tally *tally);

#endif
