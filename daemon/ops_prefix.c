// SPDX-License-Identifier: Apache-2.0
// ops_prefix.c: sequences on cached prefixes, what is worth keeping, and what a pool's tenants have.
//
// SEQ_OPEN writes a page-table row as a fork does (ops_seq.c): by a job that nobody waits for. What
// the job needs is reserved before core decides, so that nothing can fail afterwards.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#define NS_PER_MS 1000000ull

// The request as core's; its tokens are in d->tokens until the next request.
static int read_open(struct dispatch *d, struct request *r, struct core_open *ret,
                     struct err *err) {
    const struct proto_seq_open *o = &r->msg.body.seq_open;
    uint32_t ns;
    int status = session_pool_ns(r->session, o->pool, &ns, err);
    if (status != 0)
        return status;
    proto_tokens(&r->msg, d->tokens);
    *ret = (struct core_open){.ns = ns,
                              .priority = o->priority,
                              .tokens = d->tokens,
                              .n = r->msg.num_tokens,
                              .extra = o->extra,
                              .extra_size = o->extra_size,
                              .only_matched = (o->flags & PROTO_OPEN_MATCHED) != 0};
    return 0;
}

static void reply_open(struct dispatch *d, struct request *r, uint64_t seq, uint32_t matched) {
    struct proto_seq_open_reply reply = {.seq = seq, .matched = matched};
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
}

int op_seq_open(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_seq_open *o = &r->msg.body.seq_open;
    struct core_open open;
    struct job *job;
    uint64_t seq = 0;
    uint32_t matched = 0;
    int status = read_open(d, r, &open, err);
    if (status != 0)
        return status;
    if ((o->flags & PROTO_OPEN_PROBE) != 0) {
        status = core_seq_probe(d->core, o->pool, &open, &matched, err);
        if (status == 0)
            reply_open(d, r, 0, matched);
        return status;
    }
    status = job_get_effects(r->session, &job, err);
    if (status != 0)
        return status;
    struct core_effects effects = {0};
    status = job_reserve(job, 1, open.n / KVPOOL_MIN_PAGE_SIZE, err);
    if (status == 0)
        status = core_seq_open(d->core, r->session->handle, o->pool, &open, &seq, &matched,
                               &effects, err);
    if (status != 0) {
        job_put(d->jobs, job);
        return status;
    }
    status = job_set_effects(job, d->core, &effects, err);
    assert(status == 0); // reserved
    dispatch_verify(d);
    if (d->trace.count != 0 && seq != 0)
        trace_opened(d, r, seq, open.ns, d->tokens, matched);
    job->writes_rows = true;
    job_submit_effects(job, d, r->session, o->pool);
    reply_open(d, r, seq, matched);
    return 0;
}

int op_seq_priority(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_seq_priority *p = &r->msg.body.seq_priority;
    int status = core_seq_set_priority(d->core, r->session->handle, p->seq, p->priority, err);
    if (status == 0)
        request_reply(d, r, NULL, 0, NULL, 0);
    return status;
}

int op_prefix_pin(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_prefix_pin *p = &r->msg.body.prefix_pin;
    struct proto_prefix_pin_reply reply = {0};
    if (p->ttl_ms == 0)
        return err_set(err, KVPOOL_E_INVAL, "a pin needs a time to live of 1 ms or more");
    int status =
        core_prefix_pin(d->core, r->session->handle, p->seq, p->tokens,
                        uv_hrtime() + p->ttl_ms * NS_PER_MS, &reply.pin, &reply.tokens, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

int op_prefix_unpin(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_prefix_unpin *p = &r->msg.body.prefix_unpin;
    uint32_t ns;
    int status = session_pool_ns(r->session, p->pool, &ns, err);
    if (status == 0)
        status = core_prefix_unpin(d->core, p->pool, ns, p->pin, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    request_reply(d, r, NULL, 0, NULL, 0);
    return 0;
}

int op_cache_clear(struct dispatch *d, struct request *r, struct err *err) {
    uint64_t pool = r->msg.body.handle.handle;
    struct proto_cleared reply = {0};
    uint32_t ns;
    int status = session_pool_ns(r->session, pool, &ns, err);
    if (status == 0)
        status = core_cache_clear(d->core, pool, ns, &reply.pages, err);
    if (status != 0)
        return status;
    dispatch_verify(d);
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

static void fill_usage(const struct core_ns_info *ns, const struct core_pool_info *pool,
                       struct proto_ns_info *ret) {
    const struct core_ns_counters *c = &ns->counters;
    *ret = (struct proto_ns_info){.num_pages = pool->config.num_pages,
                                  .free_pages = pool->free_pages,
                                  .reserve = ns->config.reserve,
                                  .limit = ns->config.limit,
                                  .weight = ns->config.weight,
                                  .active = ns->active,
                                  .cached = ns->cached,
                                  .seqs = ns->seqs,
                                  .hit_tokens = c->hit_tokens,
                                  .miss_tokens = c->miss_tokens,
                                  .sealed = c->sealed,
                                  .deduplicated = c->deduplicated,
                                  .evicted = c->evicted,
                                  .dropped = c->dropped,
                                  .refused = c->refused};
    memcpy(ret->name, ns->config.name, sizeof ret->name);
    memcpy(ret->group, ns->config.group, sizeof ret->group);
}

_Static_assert(sizeof(struct proto_ns_info) * PROTO_MAX_LIST <= PROTO_MAX_MESSAGE - 64,
               "a list of namespaces fits into a reply");

int op_pool_usage(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_pool_usage *u = &r->msg.body.pool_usage;
    struct core_pool_info pool;
    uint32_t own = UINT32_MAX; // an admin needs none
    int status = session_pool_seen(r->session, u->pool, &pool, err);
    if (status == 0 && !session_is_admin(r->session))
        status = session_pool_ns(r->session, u->pool, &own, err);
    if (status != 0)
        return status;
    uint32_t cursor = u->cursor, n = 0;
    struct core_ns_info ns;
    while (n < u->max && core_ns_next(d->core, u->pool, &cursor, &ns)) {
        struct proto_ns_info record;
        if (own != UINT32_MAX && ns.ns != own)
            continue;
        fill_usage(&ns, &pool, &record);
        memcpy(d->records + n++ * sizeof record, &record, sizeof record);
    }
    struct proto_list_reply reply = {.count = n, .cursor = cursor};
    request_reply(d, r, &reply, sizeof reply, d->records, n * sizeof(struct proto_ns_info));
    return 0;
}
