// SPDX-License-Identifier: Apache-2.0
// ops_trace.c: TRACE, and what a trace says of requests and sequences: read out of messages and core
// here, written by trace.c.
//
// Invariants
//  1. A sequence is traced from SEQ_OPEN on; those made otherwise have no known prompt.
//  2. Nothing here changes core or can fail a request.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#include <time.h>

int fd_trace(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg, int *ret_fd,
             struct proto_trace_reply *ret, struct err *err) {
    struct timespec now;
    if (!session_is_admin(conn->user))
        return err_set(err, KVPOOL_E_PERM, "traces are for root and the daemon's own user");
    int status =
        trace_add(&d->trace, (msg->body.trace.flags & PROTO_TRACE_TOKENS) != 0, ret_fd, err);
    if (status != 0)
        return status;
    clock_gettime(CLOCK_REALTIME, &now);
    *ret = (struct proto_trace_reply){.started_ns = (uint64_t)now.tv_sec * 1000000000u +
                                                    (uint64_t)now.tv_nsec};
    return 0;
}

// --- requests ---------------------------------------------------------------------------------

static uint32_t items_tokens(const struct proto_msg *msg) {
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < msg->count; i++) {
        struct proto_batch_item item;
        proto_record(msg, i, &item);
        tokens += item.tokens;
    }
    return tokens;
}

static void count_attention(struct dispatch *d, const struct request *r, struct trace_request *t) {
    struct core_batch batch;
    const struct proto_attn *a =
        r->msg.header.op == PROTO_ATTEND ? &r->msg.body.attend.attn : &r->msg.body.attn;
    if (a->step == 0) {
        t->n = r->msg.count;
        t->tokens = items_tokens(&r->msg);
    } else if (r->session != NULL &&
               core_step_batch(d->core, r->session->handle, a->step, &batch, NULL) == 0) {
        t->n = batch.n;
        t->tokens = batch.tokens;
    }
}

void trace_answer(struct dispatch *d, const struct request *r, int status, const void *body) {
    struct trace_request t = {
        .op = "?", .pid = r->req->pid, .started_ns = r->traced_ns, .status = status};
    if (r->traced_ns == 0)
        return;
    if (r->header_ok)
        t.op = proto_op_name(r->msg.header.op);
    if (r->status == 0) { // then the whole message is readable
        t.op = proto_op_name(attention_op(&r->msg));
        switch (attention_op(&r->msg)) {
        case PROTO_SEQ_CREATE:
            t.n = r->msg.body.seq_create.n;
            break;
        case PROTO_SEQ_FORK:
            t.n = r->msg.body.seq_fork.n;
            break;
        case PROTO_SEQ_FREE:
        case PROTO_SEQ_RELEASE:
            t.n = r->msg.count;
            break;
        case PROTO_SEQ_OPEN:
            t.n = 1;
            t.tokens = r->msg.num_tokens;
            break;
        case PROTO_STEP_BEGIN:
        case PROTO_STEP_BEGIN_TOKENS:
            t.n = r->msg.count;
            t.tokens = items_tokens(&r->msg);
            break;
        case PROTO_STEP_COMMIT:
            if (body != NULL)
                t.tokens = ((const struct proto_step_reply *)body)->tokens;
            break;
        case PROTO_APPEND:
        case PROTO_PREFILL:
        case PROTO_DECODE:
            count_attention(d, r, &t);
            break;
        default:
            break;
        }
    }
    trace_request(&d->trace, &t);
}

// --- sequences --------------------------------------------------------------------------------

void trace_opened(struct dispatch *d, const struct request *r, uint64_t seq, uint32_t ns,
                  const uint32_t *tokens, uint32_t matched) {
    const struct proto_seq_open *o = &r->msg.body.seq_open;
    struct core_pool_info pool;
    if (core_pool_stat(d->core, o->pool, &pool, NULL) != 0)
        return;
    struct trace_open open = {.seq = seq,
                              .session = r->session->handle,
                              .pid = r->session->pid,
                              .pool = pool.config.name,
                              .ns = ns,
                              .page_size = pool.config.page_size,
                              .tokens = tokens,
                              .n = r->msg.num_tokens,
                              .matched = matched,
                              .extra = o->extra,
                              .extra_size = o->extra_size};
    trace_seq_open(&d->trace, &open);
}

static void note_length(struct dispatch *d, uint64_t seq) {
    struct core_seq_info info;
    if (core_seq_stat(d->core, 0, seq, &info, NULL) == 0)
        trace_seq_length(&d->trace, seq, info.length);
}

void trace_freeing(struct dispatch *d, uint32_t n, const uint64_t *seqs) {
    for (uint32_t i = 0; i < n; i++)
        note_length(d, seqs[i]);
}

void trace_freed(struct dispatch *d, uint32_t n, const uint64_t *seqs) {
    for (uint32_t i = 0; i < n; i++)
        trace_seq_end(&d->trace, seqs[i]);
}

void trace_closing(struct dispatch *d, uint64_t session) {
    uint32_t cursor = 0;
    for (uint64_t seq; (seq = trace_seq_next(&d->trace, session, &cursor)) != 0;)
        note_length(d, seq);
}

void trace_closed(struct dispatch *d, uint64_t session) {
    uint32_t cursor = 0;
    for (uint64_t seq; (seq = trace_seq_next(&d->trace, session, &cursor)) != 0;)
        trace_seq_end(&d->trace, seq);
}
