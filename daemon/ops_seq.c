// SPDX-License-Identifier: Apache-2.0
// ops_seq.c: create, fork, truncate, free, release, stat and list of sequences.
//
// A fork's page-table rows are written by a job that nobody waits for: later work of the session
// is behind it on the same stream. While such a job is in flight, a free waits (session.h,
// invariant 3).
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

static void reply_handles(struct dispatch *d, struct request *r, uint32_t n) {
    struct proto_count reply = {.count = n};
    request_reply(d, r, &reply, sizeof reply, d->handles, n * sizeof d->handles[0]);
}

static int check_n(const struct dispatch *d, uint32_t n, struct err *err) {
    if (n == 0 || n > d->max_batch)
        return err_set(err, KVPOOL_E_INVAL, "n: %u sequences, must be 1..%u", n, d->max_batch);
    return 0;
}

int op_seq_create(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_seq_create *c = &r->msg.body.seq_create;
    uint32_t ns;
    int status = check_n(d, c->n, err);
    if (status == 0)
        status = session_pool_ns(r->session, c->pool, &ns, err);
    if (status == 0)
        status = core_seq_create(d->core, r->session->handle, c->pool, ns, c->n, d->handles, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    reply_handles(d, r, c->n);
    return 0;
}

int op_seq_fork(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_seq_fork *f = &r->msg.body.seq_fork;
    struct session *s = r->session;
    struct job *job;
    struct core_effects effects = {0};
    int status = check_n(d, f->n, err);
    if (status == 0)
        status = job_get_effects(s, &job, err);
    if (status != 0)
        return status;
    status = core_seq_fork(d->core, s->handle, f->seq, f->n, d->handles, &effects, err);
    if (status != 0)
        goto put_job;
    uint64_t pool = effects.pool;
    status = job_set_effects(job, d->core, &effects, err);
    if (status != 0)
        goto free_seqs;
    dispatch_verify(d);
    job->writes_rows = true;
    job_submit_effects(job, d, s, pool);
    reply_handles(d, r, f->n);
    return 0;
free_seqs:
    core_seq_free(d->core, s->handle, f->n, d->handles, CORE_KEEP, NULL);
put_job:
    job_put(d->jobs, job);
    return status;
}

int op_seq_truncate(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_seq_truncate *t = &r->msg.body.seq_truncate;
    int status = core_seq_truncate(d->core, r->session->handle, t->seq, t->length, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    request_reply(d, r, NULL, 0, NULL, 0);
    return 0;
}

static int free_seqs(struct dispatch *d, struct request *r, enum core_hint hint, struct err *err) {
    if (r->session->row_writes > 0) {
        session_park(r->session, r);
        return 0;
    }
    for (uint32_t i = 0; i < r->msg.count; i++)
        proto_record(&r->msg, i, &d->handles[i]);
    if (d->trace.count != 0)
        trace_freeing(d, r->msg.count, d->handles);
    int status = core_seq_free(d->core, r->session->handle, r->msg.count, d->handles, hint, err);
    if (status != 0)
        return status;
    if (d->trace.count != 0)
        trace_freed(d, r->msg.count, d->handles);
    dispatch_verify(d);
    request_reply(d, r, NULL, 0, NULL, 0);
    return 0;
}

int op_seq_free(struct dispatch *d, struct request *r, struct err *err) {
    return free_seqs(d, r, CORE_KEEP, err);
}

int op_seq_release(struct dispatch *d, struct request *r, struct err *err) {
    uint32_t hint = r->msg.body.seq_release.hint;
    if (hint != KVPOOL_FREE_KEEP && hint != KVPOOL_FREE_DROP)
        return err_set(err, KVPOOL_E_INVAL, "hint %u is neither keep nor drop", hint);
    return free_seqs(d, r, hint == KVPOOL_FREE_DROP ? CORE_DROP : CORE_KEEP, err);
}

static void fill(const struct core_seq_info *info, struct proto_seq_info *ret) {
    *ret = (struct proto_seq_info){.seq = info->seq,
                                   .pool = info->pool,
                                   .length = info->length,
                                   .pages = info->pages,
                                   .shared_pages = info->shared_pages,
                                   .in_step = info->in_step,
                                   .owner_pid = info->owner_pid};
}

int op_seq_stat(struct dispatch *d, struct request *r, struct err *err) {
    struct core_seq_info info;
    int status = core_seq_stat(d->core, r->session->handle, r->msg.body.handle.handle, &info, err);
    if (status != 0)
        return status;
    struct proto_seq_info reply;
    fill(&info, &reply);
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

int op_seq_list(struct dispatch *d, struct request *r, struct err *err) {
    uint32_t cursor = r->msg.body.list.cursor, max = r->msg.body.list.max, n = 0;
    if (max == 0 || max > PROTO_MAX_LIST)
        return err_set(err, KVPOOL_E_INVAL, "max: 1..%u records", PROTO_MAX_LIST);
    uint64_t seq, session;
    while (n < max && core_seq_next_owner(d->core, &cursor, &seq, &session)) {
        struct core_seq_info info;
        struct proto_seq_info record;
        const struct session *owner = session_find(d, session);
        if ((!session_is_admin(r->session) &&
             (owner == NULL || !session_same_tenant(r->session, owner))) ||
            core_seq_stat(d->core, session, seq, &info, NULL) != 0)
            continue;
        fill(&info, &record);
        memcpy(d->records + n++ * sizeof record, &record, sizeof record);
    }
    struct proto_list_reply reply = {.count = n, .cursor = cursor};
    request_reply(d, r, &reply, sizeof reply, d->records, n * sizeof(struct proto_seq_info));
    return 0;
}
