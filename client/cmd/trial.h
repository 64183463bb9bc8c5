// SPDX-License-Identifier: Apache-2.0
// trial.h: a private small pool with one filled sequence in a running daemon, to time decodes on.
// Used by `kvpool bench` and `kvpool-bench control`.
//
//     pool "trial-PID" (1 layer, 2 kv heads, head_dim 64, bf16) -> 1 sequence of 64 tokens
//     region: q | k | v | out of at most TRIAL_LEN tokens
//
// Invariants
//  1. trial_open leaves nothing behind when it fails; trial_close destroys what it made.
//  2. A failed call's message is the client's kvpool_last_error().
// Thread: one at a time.
#ifndef KVPOOL_CMD_TRIAL_H
#define KVPOOL_CMD_TRIAL_H

#include <kvpool/kvpool.h>

#define TRIAL_LEN 64u     // tokens in the sequence
#define TRIAL_QO_HEADS 8u // query heads
#define TRIAL_KV_HEADS 2u
#define TRIAL_HEAD_DIM 64u

struct trial; // opaque

kvpool_status trial_open(kvpool_client *client, struct trial **ret);

// Attention alone: one query token over the TRIAL_LEN committed ones. One round trip.
kvpool_status trial_decode(struct trial *t);

// One whole decode step of one token: begin, append + attention, commit, and the token taken back,
// so that the length stays TRIAL_LEN. Four round trips.
kvpool_status trial_step(struct trial *t);

void trial_close(struct trial *t); // NULL is ignored

#endif
