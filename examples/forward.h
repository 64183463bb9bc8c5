// SPDX-License-Identifier: Apache-2.0
// forward.h: the model's forward pass with kvpool as its KV cache: one call is one kvpool step.
//
//   begin ---- layer 0 --------- layer 1 ------- ... --- commit ----> logits
//              q,k,v -> region   q,k,v -> region
//              append + attend   append + attend         (in kvpoold)
//              out <- region     out <- region
//
// Invariants
//  1. A call that fails has aborted its step: the sequences are as before.
//  2. The worker never holds K or V of a past token: all it knows of the past is in kvpoold.
// Threads: one thread at a time for one struct forward.
#ifndef KVPOOL_EXAMPLES_FORWARD_H
#define KVPOOL_EXAMPLES_FORWARD_H

#include "examples/llama.h"

#include <kvpool/kvpool.h>

struct forward; // opaque

struct forward_batch {
    uint32_t n;                 // sequences
    const kvpool_seq *seqs;     // [n]
    const uint32_t *start;      // [n] tokens already committed: position of the first new one
    const uint32_t *new_tokens; // [n] how many new tokens each, at least 1
    const uint32_t *tokens;     // all new tokens, sequence after sequence
};

// Allocates the region for q, k, v and out of up to max_tokens new tokens a call.
kvpool_status forward_open(const struct llama *m, kvpool_client *client, kvpool_pool pool,
                           uint32_t max_tokens, struct forward **ret);
void forward_close(struct forward *f);

// Runs the new tokens through the model and commits them. ret_logits[n][vocab]: after the last new
// token of each sequence. With `submit`, requests go through kvpool_submit, and begin and commit
// are not waited for: begin travels while layer 0 is computed, commit while the classifier is.
// INVAL: more than max_tokens, or a position past the model's seq_len.
kvpool_status forward_step(struct forward *f, const struct forward_batch *batch, bool submit,
                           float *ret_logits);

#endif
