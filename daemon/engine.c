// SPDX-License-Identifier: Apache-2.0
// engine.c: see engine.h.
//
//   client's queue --(device thread: sched_pick, one slice)--> backend->submit --> completed()
//        |                                                                            |
//        |                            not the job's last slice: nothing -- the last one --> finished
//        |--(a slice was refused, or failed)--> refused
//        \--(the client was cancelled)--------> finished
//
//   A slice done with NOMEM has not failed: the job goes on, and ends with that.
//
//   finished, refused --(uv_async, loop thread)--> job->done
//
// Invariants (beside engine.h's)
//  1. `flying` counts slices taken by the device thread whose completion was not seen.
//  2. Once a slice was refused or failed none is submitted any more, and refused jobs are delivered
//     only when `flying` is 0: so `done` keeps the order of every client.
//  3. A job is in its client's queue until its last slice is taken, and in no queue from then until
//     it is finished or refused. Jobs of a cancelled client leave it when none of its slices flies.
//  4. A slice is charged at its estimate when it is taken and corrected when it is done, so that
//     the clients' shares are shares of measured time.
//  5. uv_async_send is called with the lock held: who has seen flying == 0 under the lock may close
//     the async handle.
#include "daemon/engine.h"

#include "daemon/log.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>

#define RETRY_LEAST_NS 100000u
#define RETRY_MOST_NS 1000000000u

struct queue {
    struct engine_job *head, *tail;
};

struct engine_client {
    struct sched_client sched; // first
    struct engine *engine;
    struct engine_client *next; // in the engine's list
    struct queue queue;
    uint32_t flying;    // of the engine's
    bool cancelled;     // what is queued is not run
    uint64_t queued_ns; // estimate of its unfinished slices
    uint32_t jobs;      // unfinished; the loop thread's
};

struct engine {
    uv_async_t async;
    const struct backend_ops *ops;
    struct backend *backend;
    uint32_t window, lanes;
    uv_thread_t thread;
    uv_mutex_t lock;
    uv_cond_t wake; // the device thread: something to do
    uv_cond_t idle; // engine_stop: flying is 0
    // Under the lock.
    struct engine_client *clients;
    struct sched sched;
    struct cost_rates rates;
    struct queue finished, refused;
    struct backend_close *closed; // in engine_close records, to be told
    uint32_t queued;              // jobs in the clients' queues
    uint32_t flying;
    uint32_t flying_bulk, bulk_window; // of BULK jobs: now, at most
    uint64_t last_done_ns;
    bool stopping; // set by engine_stop: end when nothing is queued
    bool refusing; // the backend refused or failed a slice
    // Written under the lock, read by anybody.
    atomic_uint_fast64_t busy_since_ns; // 0: idle
    atomic_uint_fast64_t progress_ns;
    // The loop thread's.
    struct engine_stats stats;
    uint32_t inflight;
    bool failed;  // a job was done with an error, or the backend says that it is lost
    bool stopped; // the device thread has ended
};

static void queue_push(struct queue *q, struct engine_job *job) {
    job->next = NULL;
    if (q->tail != NULL)
        q->tail->next = job;
    else
        q->head = job;
    q->tail = job;
}

static struct engine_job *queue_pop(struct queue *q) {
    struct engine_job *job = q->head;
    q->head = job->next;
    if (q->head == NULL)
        q->tail = NULL;
    return job;
}

static struct queue queue_take(struct queue *q) {
    struct queue taken = *q;
    *q = (struct queue){NULL, NULL};
    return taken;
}

// Of the backend.
static bool failure(int status) {
    return status != 0 && status != KVPOOL_E_NOMEM && status != KVPOOL_E_SHUTDOWN;
}

// --- the device thread's side, under the lock -------------------------------------------------

static void progress(struct engine *e, uint64_t now) {
    atomic_store(&e->progress_ns, now);
    if (e->queued == 0 && e->flying == 0)
        atomic_store(&e->busy_since_ns, 0);
}

static void landed(struct engine *e, enum sched_class class) {
    if (class == SCHED_BULK)
        e->flying_bulk--;
    if (--e->flying > 0)
        return;
    uv_cond_signal(&e->idle);
    if (e->refused.head != NULL)
        uv_async_send(&e->async);
}

// Hands a job back that is not, or not wholly, submitted.
static void give_back(struct engine *e, struct engine_job *job, struct queue *to, int status) {
    for (uint32_t i = job->next_slice; i < job->num_slices; i++)
        job->client->queued_ns -= job->slices[i].estimate_ns;
    job->status = status;
    queue_push(to, job);
    uv_async_send(&e->async);
}

static void drop_cancelled(struct engine *e, struct engine_client *c) {
    for (; c->queue.head != NULL; e->queued--)
        give_back(e, queue_pop(&c->queue), &e->finished, KVPOOL_E_SHUTDOWN);
}

static void refuse_queued(struct engine *e, uint64_t now) {
    for (struct engine_client *c = e->clients; c != NULL; c = c->next) {
        for (; c->queue.head != NULL; e->queued--)
            give_back(e, queue_pop(&c->queue), &e->refused, KVPOOL_E_BACKEND);
        sched_leave(&e->sched, &c->sched, now);
    }
    progress(e, now);
}

// The next slice to run, or NULL: then wait, at most *ret_wait_ns if that is not 0.
static struct slice *take_slice(struct engine *e, uint64_t now, uint64_t *ret_wait_ns) {
    bool contended;
    *ret_wait_ns = e->window == 1 && !e->stopping ? sched_held(&e->sched, now) : 0;
    if (*ret_wait_ns > 0)
        return NULL;
    struct engine_client *c = NULL;
    if (e->flying < e->window && e->flying_bulk < e->bulk_window)
        c = (struct engine_client *)sched_pick(&e->sched, &contended);
    else if (e->flying < e->window)
        c = (struct engine_client *)sched_pick_latency(&e->sched, &contended);
    if (c == NULL)
        return NULL;
    struct engine_job *job = c->queue.head;
    struct slice *slice = &job->slices[job->next_slice++];
    slice->job = job;
    slice->started_ns = now;
    slice->contended = contended;
    if (job->started_ns == 0)
        job->started_ns = now;
    sched_charge(&e->sched, &c->sched, job->class, contended, (int64_t)slice->estimate_ns);
    e->flying++;
    e->flying_bulk += job->class == SCHED_BULK;
    c->flying++;
    if (job->next_slice == job->num_slices) {
        queue_pop(&c->queue);
        e->queued--;
        if (c->queue.head != NULL)
            sched_wait(&e->sched, &c->sched, c->queue.head->class, now);
        else
            sched_leave(&e->sched, &c->sched, now);
    }
    progress(e, now);
    return slice;
}

// backend_done_fn: any thread, possibly inside submit.
static void completed(void *arg, int status) {
    struct slice *slice = arg;
    struct engine_job *job = slice->job;
    struct engine_client *c = job->client;
    struct engine *e = c->engine;
    uint64_t now = uv_hrtime();
    uv_mutex_lock(&e->lock);
    uint64_t since = slice->started_ns > e->last_done_ns ? slice->started_ns : e->last_done_ns;
    uint64_t ran = now > since ? now - since : 0;
    e->last_done_ns = now;
    if (status == 0) // else some of it did not run
        cost_learn(&e->rates, &slice->cost, ran);
    sched_charge(&e->sched, &c->sched, job->class, slice->contended,
                 (int64_t)ran - (int64_t)slice->estimate_ns);
    c->queued_ns -= slice->estimate_ns;
    job->ran_ns += ran;
    if (failure(status) || job->status == 0)
        job->status = status;
    e->refusing = e->refusing || failure(status);
    if (--job->unfinished == 0) {
        if (job->class == SCHED_LATENCY && job->kind != COST_EFFECTS)
            sched_hold(&e->sched, now);
        queue_push(&e->finished, job);
        uv_async_send(&e->async);
    }
    if (--c->flying == 0 && c->cancelled)
        drop_cancelled(e, c);
    landed(e, job->class);
    progress(e, now);
    uv_cond_signal(&e->wake);
    uv_mutex_unlock(&e->lock);
}

// The backend refused the slice: its job first, then all that are queued.
static void refused(struct engine *e, struct slice *slice) {
    struct engine_job *job = slice->job;
    job->client->queued_ns -= slice->estimate_ns;
    if (job->next_slice == job->num_slices) // else it is the first of its client's queue
        give_back(e, job, &e->refused, KVPOOL_E_BACKEND);
    e->refusing = true;
    job->client->flying--;
    landed(e, job->class);
    progress(e, uv_hrtime());
}

static void device_main(void *arg) {
    struct engine *e = arg;
    uv_mutex_lock(&e->lock);
    for (;;) {
        uint64_t now = uv_hrtime();
        if (e->refusing && e->queued > 0)
            refuse_queued(e, now);
        uint64_t wait_ns;
        struct slice *slice = take_slice(e, now, &wait_ns);
        if (slice == NULL) {
            if (e->stopping && e->queued == 0)
                break;
            if (wait_ns > 0)
                uv_cond_timedwait(&e->wake, &e->lock, wait_ns);
            else
                uv_cond_wait(&e->wake, &e->lock);
            continue;
        }
        uv_mutex_unlock(&e->lock);
        struct err err = {0};
        // The job may be done and reused after submit.
        bool ok = e->ops->submit(e->backend, slice->job->stream, &slice->program, completed, slice,
                                 &err) == 0;
        if (!ok)
            log_error("engine.submit", "backend=%s error=\"%s\"", e->ops->name, err.text);
        uv_mutex_lock(&e->lock);
        if (!ok)
            refused(e, slice);
    }
    uv_mutex_unlock(&e->lock);
}

// --- completions on the loop ------------------------------------------------------------------

static void count(struct engine *e, const struct engine_job *job) {
    if (job->started_ns == 0)
        return; // it never ran
    histogram_add(&e->stats.wait[job->kind], job->started_ns - job->since_ns);
    histogram_add(&e->stats.run[job->kind], job->ran_ns);
}

static const char *backend_failure(const struct engine *e) {
    return e->ops->failure != NULL ? e->ops->failure(e->backend) : NULL;
}

static void fail(struct engine *e, const char *why) {
    e->failed = true;
    log_error("engine.failed", "backend=%s error=\"%s\" every later job fails too", e->ops->name,
              why);
}

static void deliver_queue(struct engine *e, struct engine_job *job) {
    while (job != NULL) {
        struct engine_job *next = job->next;
        int status = job->status;
        if (failure(status) && !e->failed) {
            const char *why = backend_failure(e);
            fail(e, why != NULL ? why : "see above");
        }
        if (e->failed)
            status = KVPOOL_E_BACKEND;
        count(e, job);
        e->inflight--;
        job->client->jobs--;
        job->done(job, status);
        job = next;
    }
}

static void deliver_closed(struct backend_close *closed) {
    while (closed != NULL) {
        struct engine_close *c = (struct engine_close *)closed;
        closed = closed->next;
        c->done(c);
    }
}

static void deliver(struct engine *e) {
    uv_mutex_lock(&e->lock);
    struct engine_job *finished = queue_take(&e->finished).head;
    struct engine_job *refused_jobs = NULL;
    if (e->flying == 0)
        refused_jobs = queue_take(&e->refused).head;
    struct backend_close *closed = e->closed;
    e->closed = NULL;
    uv_mutex_unlock(&e->lock);
    deliver_queue(e, finished);
    deliver_queue(e, refused_jobs);
    deliver_closed(closed);
}

static void on_async(uv_async_t *async) {
    deliver(async->data);
}

// --- open and close ---------------------------------------------------------------------------

static void on_async_closed(uv_handle_t *handle) {
    struct engine *e = handle->data;
    uv_cond_destroy(&e->idle);
    uv_cond_destroy(&e->wake);
    uv_mutex_destroy(&e->lock);
    free(e);
}

int engine_open(uv_loop_t *loop, const struct backend_ops *ops, const struct backend_config *config,
                struct engine **ret, struct err *err) {
    if (ops->api_version != BACKEND_API_VERSION)
        return err_set(err, KVPOOL_E_BACKEND, "backend %s has interface version %u, not %u",
                       ops->name, ops->api_version, BACKEND_API_VERSION);
    struct engine *e = calloc(1, sizeof *e);
    if (e == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "engine: no memory");
    e->ops = ops;
    int status = ops->open(config, &e->backend, err);
    if (status != 0)
        goto free_engine;
    e->window = ops->window > 0 ? ops->window : 1;
    e->bulk_window = e->window < 2 ? 1 : e->window / 2 < ENGINE_BULK ? e->window / 2 : ENGINE_BULK;
    e->lanes = ops->lanes != NULL ? ops->lanes(e->backend) : 1;
    sched_init(&e->sched, SLICE_BUDGET_NS);
    cost_rates_init(&e->rates);
    status = KVPOOL_E_SYSTEM;
    if (uv_mutex_init(&e->lock) != 0) {
        err_set(err, status, "engine: cannot create a mutex");
        goto close_backend;
    }
    if (uv_cond_init(&e->wake) != 0) {
        err_set(err, status, "engine: cannot create a condition");
        goto destroy_lock;
    }
    if (uv_cond_init(&e->idle) != 0) {
        err_set(err, status, "engine: cannot create a condition");
        goto destroy_wake;
    }
    int rc = uv_async_init(loop, &e->async, on_async);
    if (rc != 0) {
        err_set(err, status, "engine: uv_async_init: %s", uv_strerror(rc));
        goto destroy_idle;
    }
    e->async.data = e;
    rc = uv_thread_create(&e->thread, device_main, e);
    if (rc != 0) {
        err_set(err, status, "engine: cannot start the device thread: %s", uv_strerror(rc));
        ops->close(e->backend);
        uv_close((uv_handle_t *)&e->async, on_async_closed);
        return status;
    }
    *ret = e;
    return 0;
destroy_idle:
    uv_cond_destroy(&e->idle);
destroy_wake:
    uv_cond_destroy(&e->wake);
destroy_lock:
    uv_mutex_destroy(&e->lock);
close_backend:
    ops->close(e->backend);
free_engine:
    free(e);
    return status;
}

struct backend *engine_backend(struct engine *e) {
    return e->backend;
}

const struct backend_ops *engine_ops(const struct engine *e) {
    return e->ops;
}

void engine_stop(struct engine *e) {
    if (!e->stopped) {
        uv_mutex_lock(&e->lock);
        e->stopping = true;
        uv_cond_signal(&e->wake);
        uv_mutex_unlock(&e->lock);
        uv_thread_join(&e->thread);
        e->stopped = true;
    }
    while (e->inflight > 0) {
        uv_mutex_lock(&e->lock);
        while (e->flying > 0)
            uv_cond_wait(&e->idle, &e->lock);
        uv_mutex_unlock(&e->lock);
        deliver(e);
    }
}

void engine_close(struct engine *e) {
    if (e == NULL)
        return;
    engine_stop(e);
    assert(e->clients == NULL);
    e->ops->close(e->backend); // closes all memory
    deliver(e);
    uv_close((uv_handle_t *)&e->async, on_async_closed);
}

// --- clients and their jobs -------------------------------------------------------------------

int engine_client_open(struct engine *e, uint32_t weight, struct engine_client **ret,
                       struct err *err) {
    struct engine_client *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "engine client: no memory");
    sched_client_init(&c->sched, weight);
    c->engine = e;
    uv_mutex_lock(&e->lock);
    c->next = e->clients;
    e->clients = c;
    uv_mutex_unlock(&e->lock);
    *ret = c;
    return 0;
}

void engine_client_close(struct engine_client *c) {
    if (c == NULL)
        return;
    struct engine *e = c->engine;
    assert(c->jobs == 0);
    uv_mutex_lock(&e->lock);
    struct engine_client **at = &e->clients;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    uv_mutex_unlock(&e->lock);
    free(c);
}

void engine_client_cancel(struct engine_client *c) {
    struct engine *e = c->engine;
    uint64_t now = uv_hrtime();
    uv_mutex_lock(&e->lock);
    c->cancelled = true;
    sched_leave(&e->sched, &c->sched, now);
    if (c->flying == 0)
        drop_cancelled(e, c);
    progress(e, now);
    uv_cond_signal(&e->wake);
    uv_mutex_unlock(&e->lock);
}

void engine_client_set_weight(struct engine_client *c, uint32_t weight) {
    uv_mutex_lock(&c->engine->lock);
    sched_set_weight(&c->engine->sched, &c->sched, weight);
    uv_mutex_unlock(&c->engine->lock);
}

uint64_t engine_client_retry_ns(struct engine_client *c) {
    uv_mutex_lock(&c->engine->lock);
    double ns = (double)c->queued_ns * sched_slowdown(&c->engine->sched, &c->sched);
    uv_mutex_unlock(&c->engine->lock);
    if (c->jobs > 0)
        ns /= c->jobs; // until one of them has finished
    return ns < RETRY_LEAST_NS ? RETRY_LEAST_NS : ns > RETRY_MOST_NS ? RETRY_MOST_NS : (uint64_t)ns;
}

void engine_slicer(struct engine *e, const struct kv_geometry *geometry, struct backend_pool *pool,
                   struct slicer *ret) {
    *ret = (struct slicer){.geometry = geometry,
                           .pool = pool,
                           .budget_ns = SLICE_BUDGET_NS,
                           .row_block = e->ops->row_block,
                           .lanes = e->lanes};
    uv_mutex_lock(&e->lock);
    ret->rates = e->rates;
    uv_mutex_unlock(&e->lock);
}

void engine_submit(struct engine *e, struct engine_job *job) {
    struct engine_client *c = job->client;
    uint64_t now = uv_hrtime();
    job->next_slice = 0;
    job->unfinished = job->num_slices;
    job->since_ns = now;
    job->started_ns = 0;
    job->ran_ns = 0;
    job->status = 0;
    e->inflight++;
    c->jobs++;
    uv_mutex_lock(&e->lock);
    if (e->stopping) {
        job->status = KVPOOL_E_SHUTDOWN;
        queue_push(&e->refused, job);
        uv_async_send(&e->async);
    } else {
        for (uint32_t i = 0; i < job->num_slices; i++)
            c->queued_ns += job->slices[i].estimate_ns;
        if (e->queued == 0 && e->flying == 0) {
            atomic_store(&e->progress_ns, now);
            atomic_store(&e->busy_since_ns, now);
        }
        queue_push(&c->queue, job);
        e->queued++;
        if (c->cancelled && c->flying == 0)
            drop_cancelled(e, c);
        else if (c->queue.head == job && !c->cancelled)
            sched_wait(&e->sched, &c->sched, job->class, now);
        uv_cond_signal(&e->wake);
    }
    uv_mutex_unlock(&e->lock);
}

// Any thread.
static void on_closed(struct backend_close *close) {
    struct engine *e = ((struct engine_close *)close)->engine;
    uv_mutex_lock(&e->lock);
    close->next = e->closed;
    e->closed = close;
    uv_async_send(&e->async);
    uv_mutex_unlock(&e->lock);
}

void engine_mem_close(struct engine *e, struct backend_mem *mem, struct engine_close *c) {
    c->engine = e;
    c->close.done = on_closed;
    if (e->ops->mem_close != NULL) {
        e->ops->mem_close(e->backend, mem, &c->close);
        return;
    }
    e->ops->mem_free(e->backend, mem);
    on_closed(&c->close);
}

bool engine_lost(struct engine *e) {
    const char *why = e->ops->fatal && !e->failed ? backend_failure(e) : NULL;
    if (why != NULL) // without a job of ours
        fail(e, why);
    return e->failed && e->ops->fatal;
}

uint32_t engine_inflight(const struct engine *e) {
    return e->inflight;
}

const struct engine_stats *engine_stats(const struct engine *e) {
    return &e->stats;
}

void engine_progress(const struct engine *e, struct engine_progress *ret) {
    ret->busy_since_ns = atomic_load(&e->busy_since_ns);
    ret->last_ns = atomic_load(&e->progress_ns);
    ret->busy = ret->busy_since_ns != 0;
}
