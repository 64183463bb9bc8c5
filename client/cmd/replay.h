// SPDX-License-Identifier: Apache-2.0
// replay.h: drives a daemon with the sequences of a trace.
//
//   worker threads, a connection each:
//     take the next line -> its time has come -> open with the looked-up tokens of the prompt
//       -> steps that append the rest of it, a chunk each -> steps that append the output -> free
//
// Token ids are made from (hash id, position in the block) and, for the output, from (line, position):
// equal blocks have equal tokens, outputs are everybody's own. K and V are made from the token and its
// layer (replay_kv.h), and really written.
//
// Invariants
//  1. One worker runs the lines one after the other, in the order of the file.
//  2. A worker that is out of pages frees its sequence before it waits, so that no two wait for each
//     other; it begins the line again when another one's is done. With nobody else at work the line
//     is an error.
//  3. Every line that was begun is counted once: done, or an error.
// Thread: replay_run is called from one thread and starts its own.
#ifndef KVPOOL_CMD_REPLAY_H
#define KVPOOL_CMD_REPLAY_H

#include "client/cmd/trace_line.h"

#include <kvpool/kvpool.h>

struct replay_args {
    kvpool_connect_args connect;
    kvpool_pool_info pool; // geometry; each worker opens it by name
    const struct trace_file *file;
    uint32_t workers;
    uint32_t chunk;           // tokens of one step, at most
    double speed;             // of the trace's clock; 0: as fast as possible
    bool check;               // compute attention over each whole sequence, and compare it
    const volatile int *stop; // not 0: no further lines
};

struct replay_result {
    uint64_t requests;       // done
    uint64_t errors;         // lines that were given up
    uint64_t again, nospace; // times that a request was refused with AGAIN, a line begun again
    uint64_t input, looked_up, hit; // tokens: prompts, what of them was looked up, what was found
    uint64_t output;
    uint64_t wrong; // lines, of those done, whose attention was not what it must be
    double seconds;
    double open_p50_us, open_p99_us, request_p50_us, request_p99_us;
    char first_error[256]; // "": none
};

// Returns 0, or 1 after saying on stderr why not a single line could be run.
int replay_run(const struct replay_args *args, struct replay_result *ret);

// The ids of the first n tokens of a line's prompt, n <= input.
void replay_prompt(const struct trace_line *line, uint32_t n, uint32_t *ret);

#endif
