// SPDX-License-Identifier: Apache-2.0
// dispatch.c: see dispatch.h and dispatch_impl.h. The way of a request to its op and back; opening
// and closing of everything that dispatch owns.
#include "daemon/dispatch.h"

#include "daemon/dispatch_impl.h"
#include "daemon/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#define ORDER_LIMIT_NS 1000000000ull // a request waits this long for an earlier seq
#define ORDER_CHECK_MS 100
#define TICK_MS 1000            // leaked pipes, expired pins
#define HELLO_NS 5000000000ull  // an fd connection has this long to say FD_HELLO
#define STUCK_NS 30000000000ull // no slice began or ended for longer than this: not healthy
#define EXTRA_CONNS 16          // fd connections beside those of the sessions
#define EXTRA_JOBS 256
#define RETRY_NS 1000000u // of a connection without a session
#define LEAST_SHARE 2u    // requests that a client may always have
#define READY_EFFECTS 64  // effects jobs made at start
#define VERIFY_MAX_PAGES 4096

struct op {
    op_fn run;
    bool needs_session;
};

static const struct op ops[] = {
    [PROTO_HELLO] = {op_hello, false},
    [PROTO_PING] = {op_ping, false},
    [PROTO_STATS] = {op_stats, true},
    [PROTO_POOL_CREATE] = {op_pool_create, true},
    [PROTO_POOL_OPEN] = {op_pool_open, true},
    [PROTO_POOL_DESTROY] = {op_pool_destroy, true},
    [PROTO_POOL_STAT] = {op_pool_stat, true},
    [PROTO_POOL_LIST] = {op_pool_list, true},
    [PROTO_SEQ_CREATE] = {op_seq_create, true},
    [PROTO_SEQ_FORK] = {op_seq_fork, true},
    [PROTO_SEQ_TRUNCATE] = {op_seq_truncate, true},
    [PROTO_SEQ_FREE] = {op_seq_free, true},
    [PROTO_SEQ_STAT] = {op_seq_stat, true},
    [PROTO_SEQ_LIST] = {op_seq_list, true},
    [PROTO_STEP_BEGIN] = {op_step_begin, true},
    [PROTO_STEP_COMMIT] = {op_step_commit, true},
    [PROTO_STEP_ABORT] = {op_step_abort, true},
    [PROTO_APPEND] = {op_attention, true},
    [PROTO_PREFILL] = {op_attention, true},
    [PROTO_DECODE] = {op_attention, true},
    [PROTO_CLIENT_LIST] = {op_client_list, true},
    [PROTO_SEQ_OPEN] = {op_seq_open, true},
    [PROTO_STEP_BEGIN_TOKENS] = {op_step_begin, true},
    [PROTO_SEQ_RELEASE] = {op_seq_release, true},
    [PROTO_SEQ_PRIORITY] = {op_seq_priority, true},
    [PROTO_PREFIX_PIN] = {op_prefix_pin, true},
    [PROTO_PREFIX_UNPIN] = {op_prefix_unpin, true},
    [PROTO_POOL_USAGE] = {op_pool_usage, true},
    [PROTO_CACHE_CLEAR] = {op_cache_clear, true},
    [PROTO_POOL_CREATE_AS] = {op_pool_create, true},
    [PROTO_ATTEND] = {op_attention, true},
};

// --- answers ----------------------------------------------------------------------------------

static void answered(struct dispatch *d, struct request *r, size_t len, int status) {
    stats_answered(&d->stats, r->header_ok ? r->msg.header.op : 0, status, uv_hrtime());
    if (r->session != NULL)
        r->session->inflight--;
    struct server_req *req = r->req;
    r->next = d->free_requests;
    d->free_requests = r;
    d->outstanding--;
    if (d->server != NULL)
        server_reply(d->server, req, d->reply, len);
}

void request_fail(struct dispatch *d, struct request *r, const struct err *err) {
    const struct proto_header *header = r->header_ok ? &r->msg.header : NULL;
    if (log_enabled(LOG_DEBUG))
        log_debug("request.error", "op=%s pid=%u status=%s error=\"%s\"",
                  header != NULL ? proto_op_name(header->op) : "?", r->req->pid,
                  kvpool_status_name((kvpool_status)err->status), err->text);
    if (d->trace.count != 0)
        trace_answer(d, r, err->status, NULL);
    size_t len = proto_write_error(d->reply, sizeof d->reply, header, d->epoch, err);
    answered(d, r, len, err->status);
}

void request_reply(struct dispatch *d, struct request *r, const void *body, size_t body_len,
                   const void *records, size_t records_len) {
    if (d->trace.count != 0)
        trace_answer(d, r, KVPOOL_OK, body);
    struct proto_header header = proto_reply_header(&r->msg.header, KVPOOL_OK, d->epoch);
    size_t len =
        proto_write(d->reply, sizeof d->reply, &header, body, body_len, records, records_len);
    assert(len > 0); // the limits on counts keep every reply below PROTO_MAX_MESSAGE
    answered(d, r, len, 0);
}

// After how long a request that was answered KVPOOL_E_AGAIN is worth another try.
static uint64_t retry_ns(const struct session *s) {
    return s != NULL ? engine_client_retry_ns(s->engine) : RETRY_NS;
}

// Some clients' floods must not take every slot: while more than three quarters are taken, nobody
// has more than an even share of those three quarters.
static bool over_share(const struct dispatch *d, const struct session *s) {
    uint32_t most = d->num_requests - d->num_requests / 4;
    if (d->outstanding <= most)
        return false;
    uint32_t share = most / d->sessions.count;
    return s->inflight >= (share > LEAST_SHARE ? share : LEAST_SHARE);
}

// Too many requests for the table: only a server with more slots than configured could do that.
static void refuse(struct dispatch *d, struct server_req *req) {
    struct proto_msg msg;
    struct err err;
    bool header_ok = false;
    (void)proto_parse_request(PROTO_ON_CONTROL, req->bytes, req->len, &msg, &header_ok, NULL);
    struct pipe *p = pipes_find(d->pipes, req->pipe);
    err_set_detail(&err, KVPOOL_E_AGAIN, retry_ns(p != NULL ? p->session : NULL),
                   "the daemon has %u requests, its limit", d->num_requests);
    size_t len = proto_write_error(d->reply, sizeof d->reply, header_ok ? &msg.header : NULL,
                                   d->epoch, &err);
    stats_answered(&d->stats, header_ok ? msg.header.op : 0, err.status, uv_hrtime());
    if (d->server != NULL)
        server_reply(d->server, req, d->reply, len);
}

// --- from a message to its op -----------------------------------------------------------------

static int run(struct dispatch *d, struct request *r, struct err *err) {
    if (r->status != 0) {
        *err = r->err;
        return r->status;
    }
    const struct proto_header *header = &r->msg.header;
    if (header->epoch != 0 && header->epoch != d->epoch)
        return err_set(err, KVPOOL_E_LOST, "the daemon was restarted since");
    if (d->closing)
        return err_set(err, KVPOOL_E_SHUTDOWN, "the daemon ends");
    const struct op *op = header->op < sizeof ops / sizeof ops[0] ? &ops[header->op] : NULL;
    if (op == NULL || op->run == NULL)
        return err_set(err, KVPOOL_E_UNSUPPORTED, "operation %u", header->op);
    if (r->over_limit)
        return err_set_detail(err, KVPOOL_E_AGAIN, retry_ns(r->session),
                              "this client has %u requests in flight, its limit",
                              d->config->max_inflight);
    if (r->over_share)
        return err_set_detail(err, KVPOOL_E_AGAIN, retry_ns(r->session),
                              "the daemon is busy, and this client has its share of the %u slots",
                              d->num_requests);
    if (op->needs_session) {
        if (r->session == NULL)
            return pipes_find(d->pipes, r->req->pipe) != NULL
                       ? err_set(err, KVPOOL_E_STALE, "the session of this connection has ended")
                       : err_set(err, KVPOOL_E_STATE, "this connection has no session: say HELLO");
        if (r->session->dying)
            return err_set(err, KVPOOL_E_STALE, "the session of this connection is ending");
    }
    int status = op->run(d, r, err);
    if (status == KVPOOL_E_AGAIN && err->detail == 0)
        err->detail = retry_ns(r->session);
    return status;
}

void request_run(struct dispatch *d, struct request *r) {
    struct err err = {0};
    if (run(d, r, &err) != 0)
        request_fail(d, r, &err);
}

// Starts what waited for the request that just ran.
static void start_ready(struct dispatch *d, uint32_t pipe) {
    for (;;) {
        struct pipe *p = pipes_find(d->pipes, pipe); // again: an op may have dropped it
        struct order_item *item = p != NULL ? order_pop(&p->order) : NULL;
        if (item == NULL)
            return;
        d->waiting--;
        request_start(d, (struct request *)item);
    }
}

static void on_order_timer(uv_timer_t *timer) {
    struct dispatch *d = timer->data;
    uint64_t now = uv_hrtime();
    for (struct pipe *p = pipes_first(d->pipes); p != NULL; p = pipes_after(p)) {
        struct order_item *item;
        while ((item = order_expire(&p->order, now, ORDER_LIMIT_NS)) != NULL) {
            struct err err;
            err_set(&err, KVPOOL_E_PROTO, "request %" PRIu64 " waited in vain for an earlier one",
                    item->seq);
            d->waiting--;
            request_fail(d, (struct request *)item, &err);
            start_ready(d, p->id);
        }
    }
    if (d->waiting == 0)
        uv_timer_stop(&d->order_timer);
}

// A request of a bound connection, in the order of its seq.
static void run_in_order(struct dispatch *d, struct pipe *p, struct request *r) {
    uint32_t id = p->id;
    uint64_t seq = r->msg.header.seq;
    struct err err;
    switch (order_arrive(&p->order, &r->order, seq, uv_hrtime())) {
    case ORDER_START:
        request_start(d, r);
        start_ready(d, id);
        return;
    case ORDER_PARKED:
        d->waiting++;
        if (r->over_limit ||
            r->over_share) { // would only take up a slot; the gap closes by its time limit
            order_remove(&p->order, &r->order);
            d->waiting--;
            request_run(d, r);
        } else if (!uv_is_active((uv_handle_t *)&d->order_timer)) {
            uv_timer_start(&d->order_timer, on_order_timer, ORDER_CHECK_MS, ORDER_CHECK_MS);
        }
        return;
    case ORDER_PASSED:
        err_set(&err, KVPOOL_E_PROTO, "seq %" PRIu64 " is used or given up, %" PRIu64 " is next",
                seq, p->order.next);
        request_fail(d, r, &err);
        return;
    }
}

void dispatch_request(void *arg_dispatch, struct server_req *req) {
    struct dispatch *d = arg_dispatch;
    struct request *r = d->free_requests;
    if (r == NULL) {
        refuse(d, req);
        return;
    }
    d->free_requests = r->next;
    d->outstanding++;
    r->req = req;
    r->next = NULL;
    r->over_limit = r->over_share = false;
    r->header_ok = false;
    r->traced_ns = d->trace.count != 0 ? uv_hrtime() : 0;
    r->err = (struct err){0};
    r->status = proto_parse_request(PROTO_ON_CONTROL, req->bytes, req->len, &r->msg, &r->header_ok,
                                    &r->err);
    struct pipe *p = pipes_find(d->pipes, req->pipe);
    struct session *s = r->session = p != NULL ? p->session : NULL;
    if (s != NULL) {
        r->over_limit = s->inflight >= d->config->max_inflight;
        r->over_share = over_share(d, s);
        s->inflight++;
        s->requests++;
        s->heard_ns = uv_hrtime();
    }
    if (s != NULL && !s->dying && r->header_ok && r->msg.header.seq != 0)
        run_in_order(d, p, r);
    else
        request_start(d, r);
}

void dispatch_pipe(void *arg_dispatch, uint32_t pipe, uint32_t pid, bool gone) {
    struct dispatch *d = arg_dispatch;
    (void)pid;
    struct pipe *p = pipes_find(d->pipes, pipe);
    // A new connection with the id of an orphan: that one is gone for sure.
    if (p != NULL && (gone || p->session == NULL))
        session_drop_pipe(d, p);
}

// --- jobs -------------------------------------------------------------------------------------

static void count_done(struct stats *stats, uint16_t op) {
    stats->appends += op == PROTO_APPEND;
    stats->prefills += op == PROTO_PREFILL;
    stats->decodes += op == PROTO_DECODE;
}

// Why a job has not been done; status is not 0.
static const char *job_error(const struct job *job, int status) {
    if (status == KVPOOL_E_NOMEM)
        return job->appends ? "the backend has no memory for this attention; k and v were appended"
                            : "the backend has no memory for this attention";
    return status != KVPOOL_E_SHUTDOWN ? "the backend has failed"
           : job->session->dying       ? "the session is ending"
                                       : "the daemon ends";
}

// A client can make this happen as fast as it can ask.
static void log_nomem(const struct job *job, const char *why) {
    struct session *s = job->session;
    uint64_t suppressed;
    if (log_limit_passes(&s->nomem, uv_hrtime(), &suppressed))
        log_warn("attention.nomem",
                 "session=0x%" PRIx64 " pid=%u pool=0x%" PRIx64 " layer=%u suppressed=%" PRIu64
                 " error=\"%s\"",
                 s->handle, s->pid, job->pool->handle, job->layer, suppressed, why);
}

static void on_job_done(struct engine_job *engine_job, int status) {
    struct job *job = (struct job *)engine_job;
    struct dispatch *d = job->d;
    struct session *s = job->session;
    struct request *r = job->request;
    const char *why = status != 0 ? job_error(job, status) : NULL;
    if (status == KVPOOL_E_NOMEM)
        log_nomem(job, why);
    if (job->step != 0) {
        struct err err = {0};
        bool appended = status == 0 || status == KVPOOL_E_NOMEM; // backend_done_fn
        if ((job->appends &&
             core_step_mark(d->core, s->handle, job->step, job->layer, appended, &err) != 0) ||
            core_step_release(d->core, s->handle, job->step, &err) != 0)
            log_error("job.release", "step=%" PRIu64 " error=\"%s\"", job->step, err.text);
    }
    if (job->num_items > 0)
        core_seq_unpin(d->core, job->num_items, job->items);
    for (uint32_t i = 0; i < job->num_regions; i++)
        region_put(d->regions, job->regions[i]);
    job->pool->inflight--;
    s->jobs--;
    s->row_writes -= job->writes_rows;
    job_put(d->jobs, job);
    dispatch_verify(d);
    if (r != NULL && status == 0) {
        count_done(&d->stats, attention_op(&r->msg));
        request_reply(d, r, NULL, 0, NULL, 0);
    } else if (r != NULL) {
        struct err err;
        err_set(&err, status, "%s", why);
        request_fail(d, r, &err);
    }
    if (!session_reap(s) && s->parked_head != NULL)
        session_retry_parked(s);
}

int job_get_effects(const struct session *s, struct job **ret, struct err *err) {
    if (s->jobs > jobs_left(s->d->jobs, JOB_EFFECTS))
        return err_set(err, KVPOOL_E_AGAIN, "this client has %u jobs in flight, more than are left",
                       s->jobs);
    return job_get(s->d->jobs, JOB_EFFECTS, ret, err);
}

struct slicer dispatch_slicer(struct dispatch *d, const struct pool *pool) {
    struct slicer slicer;
    engine_slicer(d->engine, &pool->geometry, pool->backend, &slicer);
    return slicer;
}

void job_submit(struct job *job) {
    if (job->kind == JOB_EFFECTS) {
        struct slicer slicer = dispatch_slicer(job->d, job->pool);
        job_cut_effects(job, &slicer);
    }
    job->engine.client = job->session->engine;
    job->engine.stream = job->session->stream;
    job->engine.done = on_job_done;
    job->pool->inflight++;
    job->session->jobs++;
    job->session->row_writes += job->writes_rows;
    engine_submit(job->d->engine, &job->engine);
}

void job_submit_effects(struct job *job, struct dispatch *d, struct session *s, uint64_t pool) {
    if (job->engine.program.n == 0) {
        job_put(d->jobs, job);
        return;
    }
    job->d = d;
    job->session = s;
    job->pool = pools_find(d->pools, pool);
    job_submit(job);
}

// --- open and close ---------------------------------------------------------------------------

#ifndef NDEBUG
void dispatch_verify(const struct dispatch *d) {
    struct err err = {0};
    if (pools_total_pages(d->pools) > VERIFY_MAX_PAGES || core_check(d->core, &err) == 0)
        return;
    log_error("core.check", "error=\"%s\"", err.text);
    abort();
}
#endif

static void on_tick(uv_timer_t *timer) {
    struct dispatch *d = timer->data;
    pipes_tick(d->pipes, uv_hrtime());
    if (core_pins_expire(d->core, uv_hrtime()) > 0) {
        dispatch_verify(d);
        uv_timer_start(&d->tick, on_tick, 1, TICK_MS); // there may be more
    }
}

static int open_core(struct dispatch *d, struct err *err) {
    const struct core_limits *limits = &d->config->limits;
    while (d->epoch == 0)
        if (getrandom(&d->epoch, sizeof d->epoch, 0) != (ssize_t)sizeof d->epoch)
            return err_set(err, KVPOOL_E_SYSTEM, "getrandom failed");
    d->block_size = core_block_size(limits);
    if (d->block_size == 0)
        return err_set(err, KVPOOL_E_INVAL, "a limit of the configuration is out of range");
    void *block = mmap(NULL, d->block_size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); // sparse: core.h
    if (block == MAP_FAILED)
        return err_set(err, KVPOOL_E_NOMEM, "core tables: cannot map %zu bytes", d->block_size);
    d->block = block;
    uint8_t secret[CORE_SECRET_SIZE];
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return err_set(err, KVPOOL_E_SYSTEM, "getrandom failed");
    return core_create(block, d->block_size, limits, d->epoch, secret, &d->core, err);
}

static int open_tables(struct dispatch *d, struct err *err) {
    const struct config *config = d->config;
    uint32_t batch = config->limits.max_batch;
    d->max_batch = batch < PROTO_MAX_BATCH ? batch : PROTO_MAX_BATCH;
    d->num_requests = config->slots;
    d->requests = calloc(d->num_requests, sizeof *d->requests);
    d->sessions.max = config->limits.max_sessions;
    // NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers
    d->sessions.slots = calloc(d->sessions.max, sizeof *d->sessions.slots);
    if (d->requests == NULL || d->sessions.slots == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "requests and sessions: no memory");
    for (uint32_t i = d->num_requests; i-- > 0;) {
        d->requests[i].next = d->free_requests;
        d->free_requests = &d->requests[i];
    }
    int status = pipes_open(&d->pipes, err);
    if (status == 0)
        status = step_clock_open(config->limits.max_steps, &d->step_clock, err);
    if (status != 0)
        return status;
    uint32_t max_jobs = config->slots + 2 * config->limits.max_steps + EXTRA_JOBS;
    const uint32_t ready[JOB_KINDS] = {
        [JOB_ATTENTION] = config->slots, [JOB_EFFECTS] = READY_EFFECTS};
    return jobs_open(ready, max_jobs, d->max_batch, &d->jobs, err);
}

static int open_backend(struct dispatch *d, const struct backend_ops *backend, struct err *err) {
    const struct config *config = d->config;
    struct backend_config backend_config = {.threads = config->threads, .device = config->device};
    int status = engine_open(d->loop, backend, &backend_config, &d->engine, err);
    if (status != 0)
        return status;
    struct backend *b = engine_backend(d->engine);
    snprintf(d->describe, sizeof d->describe, "%s", backend->describe(b));
    status = regions_open(d->engine, d->epoch, &d->regions, err);
    if (status != 0)
        return status;
    struct pools_config pools_config = {.core = d->core,
                                        .backend = b,
                                        .ops = backend,
                                        .access = &config->access,
                                        .max_pools = config->limits.max_pools,
                                        .max_bytes = config->max_pool_bytes};
    status = pools_open(&pools_config, &d->pools, err);
    for (uint32_t i = 0; i < config->num_pools && status == 0; i++) {
        uint64_t pool;
        status = pools_create(d->pools, &config->pools[i], &pool, err);
    }
    return status;
}

int dispatch_open_with(uv_loop_t *loop, const struct config *config,
                       const struct backend_ops *backend, struct dispatch **ret, struct err *err) {
    struct dispatch *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "dispatch: no memory");
    d->loop = loop;
    d->config = config;
    d->started_ns = uv_hrtime();
    trace_init(&d->trace, loop, config->limits.max_seqs);
    uv_timer_init(loop, &d->tick);
    uv_timer_init(loop, &d->order_timer);
    uv_timer_init(loop, &d->grace_timer);
    turns_init(d);
    d->handles_open = 4;
    d->tick.data = d;
    d->grace_timer.data = d;
    d->order_timer.data = d;
    int status = open_core(d, err);
    if (status == 0 && config->credentials[0] != '\0')
        status = credentials_load(config->credentials, &d->credentials, err);
    if (status == 0)
        status = open_tables(d, err);
    if (status == 0)
        status = open_backend(d, backend, err);
    if (status == 0) {
        struct fdsock_config fd_config = {.dir = config->dir,
                                          .mode = config->socket_mode,
                                          .max_conns = config->limits.max_sessions + EXTRA_CONNS,
                                          .hello_ns = HELLO_NS};
        struct fdsock_handler handler = {.packet = fd_packet, .gone = fd_gone, .arg = d};
        status = fdsock_open(loop, &fd_config, &handler, &d->fdsock, err);
    }
    if (status != 0) {
        dispatch_close(d);
        return status;
    }
    uv_timer_start(&d->tick, on_tick, TICK_MS, TICK_MS);
    *ret = d;
    return 0;
}

int dispatch_open(uv_loop_t *loop, const struct config *config, struct dispatch **ret,
                  struct err *err) {
    const struct backend_ops *backend;
    int status = backend_find(config->backend, &backend, err);
    return status != 0 ? status : dispatch_open_with(loop, config, backend, ret, err);
}

void dispatch_server(struct dispatch *d, struct server *s) {
    d->server = s;
}

const char *dispatch_backend(const struct dispatch *d) {
    return d->describe;
}

uint64_t dispatch_leaked_pipes(const struct dispatch *d) {
    return pipes_leaked(d->pipes) + (d->server != NULL ? server_kept(d->server) : 0);
}

uint64_t dispatch_epoch(const struct dispatch *d) {
    return d->epoch;
}

bool dispatch_healthy(const struct dispatch *d) {
    struct engine_progress p;
    engine_progress(d->engine, &p);
    uint64_t now = uv_hrtime();
    return !p.busy || now < p.last_ns || now - p.last_ns < STUCK_NS;
}

bool dispatch_lost(const struct dispatch *d) {
    return engine_lost(d->engine);
}

void dispatch_reload(struct dispatch *d) {
    const char *path = d->config->credentials;
    struct credentials *fresh = NULL;
    struct err err;
    if (path[0] != '\0' && credentials_load(path, &fresh, &err) != 0) {
        log_error("credentials.reload", "result=kept error=\"%s\"", err.text);
    } else {
        credentials_free(d->credentials);
        d->credentials = fresh;
        if (fresh != NULL)
            log_info("credentials.reload", "result=ok secrets=%u", credentials_count(fresh));
    }
    session_grace_arm(d);
}

void dispatch_drain(struct dispatch *d) {
    d->draining = true;
}

bool dispatch_idle(const struct dispatch *d) {
    return d->outstanding == 0 && d->freeing == NULL && engine_inflight(d->engine) == 0;
}

static void on_handle_closed(uv_handle_t *handle) {
    struct dispatch *d = handle->data;
    if (--d->handles_open == 0)
        free(d);
}

void dispatch_close(struct dispatch *d) {
    if (d == NULL)
        return;
    d->draining = d->closing = true;
    for (uint32_t i = 0; d->sessions.slots != NULL && i < d->sessions.max; i++)
        if (d->sessions.slots[i] != NULL)
            session_end(d->sessions.slots[i], SESSION_SHUTDOWN, uv_hrtime());
    if (d->engine != NULL)
        engine_stop(d->engine); // finishes the jobs, and with them the sessions
    assert(d->sessions.count == 0);
    fdsock_close(d->fdsock);
    trace_fini(&d->trace);
    pools_close(d->pools);
    regions_close(d->regions);
    engine_close(d->engine);
    jobs_close(d->jobs);
    pipes_close(d->pipes);
    step_clock_close(d->step_clock);
    if (d->core != NULL)
        core_close(d->core);
    if (d->block != NULL)
        munmap(d->block, d->block_size);
    free(d->sessions.slots);
    free(d->requests);
    credentials_free(d->credentials);
    uv_close((uv_handle_t *)&d->tick, on_handle_closed);
    uv_close((uv_handle_t *)&d->grace_timer, on_handle_closed);
    uv_close((uv_handle_t *)&d->order_timer, on_handle_closed);
    uv_close((uv_handle_t *)&d->turns.idle, on_handle_closed);
}
