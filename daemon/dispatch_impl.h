// SPDX-License-Identifier: Apache-2.0
// dispatch_impl.h: what dispatch.c and the operations (ops_*.c, session.c) share.
//
//   dispatch_request -> parse -> order -> turns -> ops table -> op(d, r, err)
//                                                        |-- request_reply      at once
//                                                        |-- job -> ... -> request_reply
//                                                        |-- session_park -> ... -> op again
//                                                        `-- status != 0 -> request_fail
//
// Invariants
//  1. A struct request exists from dispatch_request to request_reply / request_fail; its message's
//     bytes are the server's and stay until then.
//  2. An op that returns 0 has answered its request, parked it or given it to a job; one that
//     returns an error has done nothing.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_DISPATCH_IMPL_H
#define KVPOOL_DAEMON_DISPATCH_IMPL_H

#include "daemon/credentials.h"
#include "daemon/dispatch.h"
#include "daemon/engine.h"
#include "daemon/fdsock.h"
#include "daemon/histogram.h"
#include "daemon/job.h"
#include "daemon/order.h"
#include "daemon/pipes.h"
#include "daemon/pools.h"
#include "daemon/region.h"
#include "daemon/session.h"
#include "daemon/stats.h"
#include "daemon/step_clock.h"
#include "daemon/trace.h"
#include "proto/proto.h"

#include <assert.h>

struct request {
    struct order_item order; // first
    struct request *next;    // free list, or the session's parked list
    struct server_req *req;
    struct proto_msg msg;
    bool header_ok;
    bool over_limit;         // the client had max_inflight requests when it came,
    bool over_share;         // or more than its share of the daemon's
    int status;              // of parsing
    struct err err;          // with it
    struct session *session; // of the connection it came on; in its inflight count. Or NULL
    uint64_t traced_ns;      // when it came; 0: nobody traced then
};

#define TURN_TOKENS 65536u // ids in requests that run in one iteration of the loop: under 1 ms

struct turns { // see turns.c
    uv_idle_t idle;
    struct session *last; // of the ring; NULL: nobody has late requests
    uint32_t used;        // of TURN_TOKENS, in this iteration of the loop
};

// An operation of the control socket.
typedef int (*op_fn)(struct dispatch *d, struct request *r, struct err *err);

struct dispatch {
    uv_loop_t *loop;
    const struct config *config; // the caller's, live: SIGHUP may change what can change
    struct server *server;       // NULL: replies are dropped
    uint64_t epoch, started_ns;
    void *block; // core's
    size_t block_size;
    struct core *core;
    struct engine *engine;
    struct pools *pools;
    struct regions *regions;
    struct jobs *jobs;
    struct pipes *pipes;
    struct fdsock *fdsock;
    struct freeing *freeing; // REGION_FREE requests that are not answered yet: ops_fd.c
    struct session_table sessions;
    struct credentials *credentials; // NULL: none configured
    struct log_limit refused;        // of session.refused
    struct stats stats;
    struct step_clock *step_clock;
    struct histogram step_time; // begin to commit
    struct trace trace;
    struct request *requests; // [num_requests]
    struct request *free_requests;
    uint32_t num_requests, outstanding, waiting; // waiting: for an earlier seq
    uv_timer_t tick;                             // every second: leaks
    uv_timer_t order_timer;                      // while requests wait for an earlier seq
    uv_timer_t grace_timer;                      // while sessions are detached
    struct turns turns;
    int handles_open; // timers and turns'
    bool draining, closing;
    uint32_t max_batch; // of one request: core's limit and the protocol's
    char describe[320];
    // Scratch, used within one call.
    struct core_item items[PROTO_MAX_BATCH];
    uint64_t handles[PROTO_MAX_BATCH];
    uint32_t tokens[PROTO_MAX_TOKENS];
    _Alignas(8) uint8_t records[PROTO_MAX_LIST * sizeof(struct proto_ns_info)];
    uint8_t reply[PROTO_MAX_MESSAGE];
};

// dispatch_open with a backend of the caller's (tests).
int dispatch_open_with(uv_loop_t *loop, const struct config *config,
                       const struct backend_ops *backend, struct dispatch **ret, struct err *err);

// Answers with a result (body and records may be NULL with length 0) or an error; r is gone.
void request_reply(struct dispatch *d, struct request *r, const void *body, size_t body_len,
                   const void *records, size_t records_len);
void request_fail(struct dispatch *d, struct request *r, const struct err *err);
// Runs the op of a started request, and answers if it fails.
void request_run(struct dispatch *d, struct request *r);
// turns.c. The same now or, when it or one before it costs much, later / before turns_init's handle
// is closed / answers those of a session that wait for their turn.
void request_start(struct dispatch *d, struct request *r);
void turns_init(struct dispatch *d);
void turns_drop(struct session *s, const struct err *err);

// A job for effects, which nobody waits for: many may be in the engine for one session, but not so
// many that others find none. Errors: as job_get.
int job_get_effects(const struct session *s, struct job **ret, struct err *err);
// Gives the job to the engine on its session's stream; it holds session and pool from here on.
void job_submit(struct job *job);
// The same for an effects job, which may turn out to have nothing to do.
void job_submit_effects(struct job *job, struct dispatch *d, struct session *s, uint64_t pool);

// What a job for the pool is cut with.
struct slicer dispatch_slicer(struct dispatch *d, const struct pool *pool);

// After an operation that changed core: verifies its invariants in builds with assertions.
#ifdef NDEBUG
static inline void dispatch_verify(const struct dispatch *d) {
    (void)d;
}
#else
void dispatch_verify(const struct dispatch *d);
#endif

// ops_session.c
int op_hello(struct dispatch *d, struct request *r, struct err *err);
int op_ping(struct dispatch *d, struct request *r, struct err *err);
int op_stats(struct dispatch *d, struct request *r, struct err *err);
int op_client_list(struct dispatch *d, struct request *r, struct err *err);
// ops_pool.c
int op_pool_create(struct dispatch *d, struct request *r, struct err *err);
int op_pool_open(struct dispatch *d, struct request *r, struct err *err);
int op_pool_destroy(struct dispatch *d, struct request *r, struct err *err);
int op_pool_stat(struct dispatch *d, struct request *r, struct err *err);
int op_pool_list(struct dispatch *d, struct request *r, struct err *err);
// ops_seq.c
int op_seq_create(struct dispatch *d, struct request *r, struct err *err);
int op_seq_fork(struct dispatch *d, struct request *r, struct err *err);
int op_seq_truncate(struct dispatch *d, struct request *r, struct err *err);
int op_seq_free(struct dispatch *d, struct request *r, struct err *err);
int op_seq_stat(struct dispatch *d, struct request *r, struct err *err);
int op_seq_list(struct dispatch *d, struct request *r, struct err *err);
int op_seq_release(struct dispatch *d, struct request *r, struct err *err);
// ops_prefix.c
int op_seq_open(struct dispatch *d, struct request *r, struct err *err);
int op_seq_priority(struct dispatch *d, struct request *r, struct err *err);
int op_prefix_pin(struct dispatch *d, struct request *r, struct err *err);
int op_prefix_unpin(struct dispatch *d, struct request *r, struct err *err);
int op_cache_clear(struct dispatch *d, struct request *r, struct err *err);
int op_pool_usage(struct dispatch *d, struct request *r, struct err *err);
// ops_step.c
int op_step_begin(struct dispatch *d, struct request *r, struct err *err);
int op_step_commit(struct dispatch *d, struct request *r, struct err *err);
int op_step_abort(struct dispatch *d, struct request *r, struct err *err);
// ops_attn.c
int op_attention(struct dispatch *d, struct request *r, struct err *err);
// ops_fd.c
void fd_packet(void *arg_dispatch, struct fdsock_conn *conn, const struct fdsock_packet *packet);
void fd_gone(void *arg_dispatch, struct fdsock_conn *conn);
// ops_trace.c
int fd_trace(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg, int *ret_fd,
             struct proto_trace_reply *ret, struct err *err);
// Call these only when d->trace.count is not 0.
void trace_answer(struct dispatch *d, const struct request *r, int status, const void *body);
void trace_opened(struct dispatch *d, const struct request *r, uint64_t seq, uint32_t ns,
                  const uint32_t *tokens, uint32_t matched); // SEQ_OPEN made a sequence
// Before and after sequences are freed (the second only when they were).
void trace_freeing(struct dispatch *d, uint32_t n, const uint64_t *seqs);
void trace_freed(struct dispatch *d, uint32_t n, const uint64_t *seqs);
// The same for all sequences of a session.
void trace_closing(struct dispatch *d, uint64_t session);
void trace_closed(struct dispatch *d, uint64_t session);

// APPEND, PREFILL or DECODE of an attention request, in whichever form it came; else the op itself.
static inline uint16_t attention_op(const struct proto_msg *msg) {
    return msg->header.op == PROTO_ATTEND ? (uint16_t)msg->body.attend.op : msg->header.op;
}

// Agrees on a protocol version. Errors: VERSION (with both ranges).
int negotiate(uint32_t min, uint32_t max, uint32_t *ret_version, struct err *err);

#endif
