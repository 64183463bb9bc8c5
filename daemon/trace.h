// SPDX-License-Identifier: Apache-2.0
// trace.h: what the daemon is asked and what its sequences look like, as lines of JSON for whoever
// holds the other end of a pipe (docs/operations.md, "Traces").
//
//   trace_add -> tracer: pipe, key of its own --reader closes the pipe--> gone
//   trace_request                    one line for each tracer
//   trace_seq_open -> record -> trace_seq_length -> trace_seq_end: one line for each tracer that was
//                                                   there when the sequence was opened
//
// Invariants
//  1. Nothing waits: a line that does not fit into a tracer's pipe is left out and counted, and the
//     next line that fits is preceded by {"dropped":n}. Lines are never torn: the rest of a line that
//     was begun is kept and goes first.
//  2. With count 0 nobody traces: callers look at it before they gather anything, and no record
//     exists.
//  3. A tracer's hash ids are made with a random key of its own: equal prefixes (of one pool and
//     namespace) have equal ids in one trace, and an id tells nothing of the tokens. They have 53
//     bits, so that readers which keep numbers as doubles keep them.
//  4. Records take at most TRACE_MAX_BYTES; sequences beyond that are counted as dropped lines.
// Thread: the loop thread. SIGPIPE is ignored.
#ifndef KVPOOL_DAEMON_TRACE_H
#define KVPOOL_DAEMON_TRACE_H

#include "proto/err.h"

#include <uv.h>

#define TRACE_MAX 4u                 // tracers at once
#define TRACE_MAX_BYTES (256u << 20) // of records
#define TRACE_POOL_SIZE 32

struct tracer;
struct trace_seq;

struct trace_text { // a line that is being written
    char *bytes;
    size_t len, cap;
    bool failed; // out of memory
};

struct trace {
    uint32_t count; // tracers
    uint32_t max_seqs;
    uv_loop_t *loop;
    struct tracer *tracers[TRACE_MAX]; // NULL: free
    uint64_t last_serial;              // of a tracer
    struct trace_seq **seqs; // [max_seqs] by index of the handle; NULL until the first tracer
    size_t bytes;            // of records
    struct trace_text text;
};

// max_seqs: bound of the low halves of sequence handles.
void trace_init(struct trace *t, uv_loop_t *loop, uint32_t max_seqs);
void trace_fini(
    struct trace *t); // ends all tracers; their handles close on the loop. Zeroed is fine

// A new tracer. *ret_fd: the pipe's end to read from, the caller's to close. Errors: LIMIT, NOMEM,
// SYSTEM.
int trace_add(struct trace *t, bool with_tokens, int *ret_fd, struct err *err);

struct trace_request {
    const char *op;      // its name
    uint32_t pid;        // of the client
    uint32_t n, tokens;  // sequences and tokens that it is about; 0: none, or not known
    uint64_t started_ns; // uv_hrtime
    int status;
};
void trace_request(struct trace *t, const struct trace_request *r);

struct trace_open {
    uint64_t seq;     // handle
    uint64_t session; // its owner
    uint32_t pid;
    const char *pool; // name
    uint32_t ns;
    uint32_t page_size; // a multiple of 8
    const uint32_t *tokens;
    uint32_t n, matched;
    const void *extra;
    uint32_t extra_size;
};
void trace_seq_open(struct trace *t, const struct trace_open *open);
void trace_seq_length(struct trace *t, uint64_t seq, uint32_t length); // as it is now
void trace_seq_end(struct trace *t, uint64_t seq);                     // an unknown one is ignored

// Walks the recorded sequences of a session: *cursor 0 at first. 0: no more.
uint64_t trace_seq_next(const struct trace *t, uint64_t session, uint32_t *cursor);

#endif
