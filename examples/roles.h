// SPDX-License-Identifier: Apache-2.0
// roles.h: the three things an example worker can do with its sequence after the prefill.
//
// The prompt: as much of it as any worker of the same model has computed is there already
// (kvpool_seq_open_with); only the rest is prefilled.
//
//   plain      prompt --> t t t t t ...                        one step a token
//   fork       prompt +-> a t t t ...   four forks with four different first tokens,
//                     +-> b t t t ...   decoded as one batch; then the parent goes on alone,
//                     +-> c t t t ...   undisturbed by what its forks wrote
//                     +-> d t t t ...
//   truncate   prompt --> t t t t x x   the last 32 are taken back, another token is forced in
//                             |         their place, and decoding goes on from there, with
//                             +-> y t t   requests submitted rather than called
//
// Every generated token is checked against a full recompute (transcript.h).
// Threads: one at a time.
#ifndef KVPOOL_EXAMPLES_ROLES_H
#define KVPOOL_EXAMPLES_ROLES_H

#include "examples/transcript.h"

#include <kvpool/kvpool.h>

enum role { ROLE_PLAIN, ROLE_FORK, ROLE_TRUNCATE };

bool role_parse(const char *name, enum role *ret);

struct role_args {
    const struct llama *m;
    const uint32_t *prompt; // [prompt_len], each below the vocabulary
    uint32_t prompt_len;    // at least 1
    uint64_t weights;       // names the model's weights: K and V of others are of no use to it
    uint32_t tokens;        // steps to decode, of every branch
    uint32_t chunk;         // prefill at most so many tokens a step
    uint32_t page_size;     // of the pool
};

// Does all of it in the pool; frees what it made. 0, or -1 after saying on stderr what failed.
// A mismatch is not a failure: it is in the tally.
int role_run(enum role role, kvpool_client *client, kvpool_pool pool, const struct role_args *args,
             struct tally *tally);

#endif
