// SPDX-License-Identifier: Apache-2.0
// ops_step.c: begin, commit and abort of steps.
//
//   begin   core reserves pages -> effects job (holds the step) -> reply at once
//   commit  core, or parked until the step's last job is done; then an effects job that puts the
//           pages that were there already into the rows, in place of duplicates
//   abort   as commit, then an effects job that undoes copy-on-write in the page table
//
// Later work of the session runs behind an effects job on the same stream, so nobody waits for it.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

static void reply_step(struct dispatch *d, struct request *r, const struct core_step_info *info) {
    struct proto_step_reply reply = {
        .step = info->step, .tokens = info->tokens, .pages = info->pages};
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
}

// STEP_BEGIN or STEP_BEGIN_TOKENS.
struct begin {
    uint64_t pool, step;
    const uint32_t *ids; // NULL: not known
};

static struct begin read_begin(struct dispatch *d, const struct request *r) {
    if (r->msg.header.op == PROTO_STEP_BEGIN)
        return (struct begin){r->msg.body.step_begin.pool, r->msg.body.step_begin.step, NULL};
    proto_tokens(&r->msg, d->tokens);
    return (struct begin){r->msg.body.step_begin_tokens.pool, r->msg.body.step_begin_tokens.step,
                          d->tokens};
}

// What begin may take at most, so that nothing can fail once core has begun.
static size_t most_pages(const struct dispatch *d, uint32_t n, uint64_t pool) {
    const struct pool *p = pools_find(d->pools, pool);
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < n; i++)
        tokens += d->items[i].tokens;
    uint64_t pages = 2 * (uint64_t)n + tokens / KVPOOL_MIN_PAGE_SIZE; // a copied one, a rest
    return p != NULL && p->num_pages < pages ? p->num_pages : pages;
}

int op_step_begin(struct dispatch *d, struct request *r, struct err *err) {
    struct session *s = r->session;
    const struct begin b = read_begin(d, r);
    if (d->draining)
        return err_set(err, KVPOOL_E_SHUTDOWN, "no new steps");
    if (r->msg.count > d->max_batch)
        return err_set(err, KVPOOL_E_TOOBIG, "%u sequences, at most %u in one step", r->msg.count,
                       d->max_batch);
    for (uint32_t i = 0; i < r->msg.count; i++) {
        struct proto_batch_item item;
        proto_record(&r->msg, i, &item);
        d->items[i] = (struct core_item){.seq = item.seq, .tokens = item.tokens};
    }
    struct job *job;
    uint32_t ns;
    int status = session_pool_ns(s, b.pool, &ns, err);
    if (status == 0)
        status = job_get_effects(s, &job, err);
    if (status != 0)
        return status;
    struct core_step_info info;
    struct core_effects effects = {0};
    status = job_reserve(job, r->msg.count, most_pages(d, r->msg.count, b.pool), err);
    if (status == 0)
        status = core_step_begin(d->core, s->handle, b.step, b.pool, r->msg.count, d->items, b.ids,
                                 &info, &effects, err);
    if (status != 0 || info.repeated)
        job_put(d->jobs, job);
    if (status != 0)
        return status;
    if (info.repeated) {
        reply_step(d, r, &info);
        return 0;
    }
    uint64_t pool = effects.pool;
    status = job_set_effects(job, d->core, &effects, err);
    if (status == 0 && job->engine.program.n > 0) {
        status = core_step_hold(d->core, s->handle, b.step, err);
        job->step = b.step;
    }
    assert(status == 0); // reserved, and the step is open
    dispatch_verify(d);
    step_clock_begin(d->step_clock, s->handle, b.step, uv_hrtime());
    job_submit_effects(job, d, s, pool);
    reply_step(d, r, &info);
    return 0;
}

int op_step_commit(struct dispatch *d, struct request *r, struct err *err) {
    uint64_t step = r->msg.body.handle.handle;
    struct session *s = r->session;
    struct job *job;
    int status = job_get_effects(s, &job, err);
    if (status != 0)
        return status;
    // What deduplication may need at most, so that nothing can fail once core has committed.
    struct core_batch batch;
    struct core_step_info info;
    struct core_effects effects = {0};
    if (core_step_batch(d->core, s->handle, step, &batch, NULL) == 0)
        status = job_reserve(job, batch.n, batch.n + batch.tokens / KVPOOL_MIN_PAGE_SIZE, err);
    if (status == 0)
        status = core_step_commit(d->core, s->handle, step, &info, &effects, err);
    if (status != 0) {
        job_put(d->jobs, job);
        if (status != KVPOOL_E_BUSY)
            return status;
        session_park(s, r);
        return 0;
    }
    status = job_set_effects(job, d->core, &effects, err);
    assert(status == 0); // reserved
    dispatch_verify(d);
    if (!info.repeated) {
        d->stats.commits++;
        d->stats.tokens += info.tokens;
        uint64_t began;
        if (step_clock_end(d->step_clock, r->session->handle, step, &began))
            histogram_add(&d->step_time, uv_hrtime() - began);
    }
    job->writes_rows = true;
    job_submit_effects(job, d, s, effects.pool);
    reply_step(d, r, &info);
    return 0;
}

int op_step_abort(struct dispatch *d, struct request *r, struct err *err) {
    uint64_t step = r->msg.body.handle.handle;
    struct session *s = r->session;
    struct job *job;
    int status = job_get_effects(s, &job, err);
    if (status != 0)
        return status;
    // What undoing may need at most, so that nothing can fail once core has aborted: one page id
    // for each sequence, whose last page had been copied.
    struct core_batch batch;
    struct core_effects effects = {0};
    bool open = core_step_batch(d->core, s->handle, step, &batch, NULL) == 0;
    if (open)
        status = job_reserve(job, batch.n, batch.n, err);
    if (status == 0)
        status = core_step_abort(d->core, s->handle, step, &effects, err);
    if (status != 0) {
        job_put(d->jobs, job);
        if (status != KVPOOL_E_BUSY)
            return status;
        session_park(s, r);
        return 0;
    }
    d->stats.aborts += open;
    uint64_t began;
    step_clock_end(d->step_clock, s->handle, step, &began);
    status = job_set_effects(job, d->core, &effects, err);
    assert(status == 0); // reserved
    dispatch_verify(d);
    job->writes_rows = true;
    job_submit_effects(job, d, s, effects.pool);
    request_reply(d, r, NULL, 0, NULL, 0);
    return 0;
}
