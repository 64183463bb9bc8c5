// SPDX-License-Identifier: Apache-2.0
// engine.c: see engine.h.
//
//   submitted --(device thread takes all)--> backend->submit --accepted--> completed() -> finished
//                                                  \--refused or failed before--> refused
//   finished, refused --(uv_async, loop thread)--> job->done
//
// Invariants (beside engine.h's)
//  1. `accepted` counts jobs taken by the device thread whose completion is in no queue yet.
//  2. Once a program was refused none is submitted any more, and refused jobs are delivered only
//     when accepted is 0: so `done` keeps the order of every stream.
//  3. uv_async_send is called with the lock held: who has seen accepted == 0 under the lock may
//     close the async handle.
#include "daemon/engine.h"

#include "daemon/log.h"

#include <stdatomic.h>
#include <stdlib.h>

struct queue {
    struct engine_job *head, *tail;
};

struct engine {
    uv_async_t async;
    const struct backend_ops *ops;
    struct backend *backend;
    uv_thread_t thread;
    uv_mutex_t lock;
    uv_cond_t wake; // the device thread: something to do
    uv_cond_t idle; // engine_stop: accepted is 0
    // Under the lock.
    struct queue submitted, finished, refused;
    uint32_t accepted;
    bool stopping;                    // set by engine_stop: end when `submitted` is empty
    bool refusing;                    // the backend refused a program
    uint32_t unfinished;              // submitted or accepted
    atomic_uint_least64_t stalled_ns; // written under the lock, see engine_stalled_since
    // The loop thread's.
    struct engine_job *oldest, *newest;
    uint32_t inflight;
    bool failed;  // a job was done with an error
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

static struct queue queue_take(struct queue *q) {
    struct queue taken = *q;
    *q = (struct queue){NULL, NULL};
    return taken;
}

// A job is finished: the clock of stalled_ns begins anew. Under the lock.
static void advance(struct engine *e) {
    atomic_store(&e->stalled_ns, --e->unfinished > 0 ? uv_hrtime() : 0);
}

// backend_done_fn: any thread, possibly inside submit.
static void completed(void *arg, int status) {
    struct engine_job *job = arg;
    struct engine *e = job->engine;
    uv_mutex_lock(&e->lock);
    job->status = status;
    queue_push(&e->finished, job);
    advance(e);
    if (--e->accepted == 0)
        uv_cond_signal(&e->idle);
    uv_async_send(&e->async);
    uv_mutex_unlock(&e->lock);
}

static void refuse(struct engine *e, struct engine_job *job) {
    uv_mutex_lock(&e->lock);
    e->refusing = true;
    job->status = KVPOOL_E_BACKEND;
    queue_push(&e->refused, job);
    advance(e);
    if (--e->accepted == 0)
        uv_cond_signal(&e->idle);
    uv_async_send(&e->async);
    uv_mutex_unlock(&e->lock);
}

static void device_main(void *arg) {
    struct engine *e = arg;
    bool refusing = false; // of refuse(): only this thread sets it
    for (;;) {
        uv_mutex_lock(&e->lock);
        while (e->submitted.head == NULL && !e->stopping)
            uv_cond_wait(&e->wake, &e->lock);
        struct engine_job *job = queue_take(&e->submitted).head;
        for (struct engine_job *j = job; j != NULL; j = j->next)
            e->accepted++;
        uv_mutex_unlock(&e->lock);
        if (job == NULL)
            return; // stopping, and nothing left
        while (job != NULL) {
            struct engine_job *next = job->next; // the job may be done and reused after submit
            struct err err = {0};
            if (refusing) {
                refuse(e, job);
            } else if (e->ops->submit(e->backend, job->stream, &job->program, completed, job,
                                      &err) != 0) {
                log_error("engine.submit", "backend=%s error=\"%s\"", e->ops->name, err.text);
                refusing = true;
                refuse(e, job);
            }
            job = next;
        }
    }
}

static void unlink_live(struct engine *e, struct engine_job *job) {
    if (job->older != NULL)
        job->older->newer = job->newer;
    else
        e->oldest = job->newer;
    if (job->newer != NULL)
        job->newer->older = job->older;
    else
        e->newest = job->older;
    e->inflight--;
}

static void deliver_queue(struct engine *e, struct engine_job *job) {
    while (job != NULL) {
        struct engine_job *next = job->next;
        int status = job->status;
        if (status != 0 && status != KVPOOL_E_SHUTDOWN && !e->failed) {
            e->failed = true;
            log_error("engine.failed", "backend=%s every later job fails too", e->ops->name);
        }
        if (e->failed)
            status = KVPOOL_E_BACKEND;
        unlink_live(e, job);
        job->done(job, status);
        job = next;
    }
}

static void deliver(struct engine *e) {
    uv_mutex_lock(&e->lock);
    struct engine_job *finished = queue_take(&e->finished).head;
    struct engine_job *refused = NULL;
    if (e->accepted == 0)
        refused = queue_take(&e->refused).head;
    uv_mutex_unlock(&e->lock);
    deliver_queue(e, finished);
    deliver_queue(e, refused);
}

static void on_async(uv_async_t *async) {
    deliver(async->data);
}

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

void engine_submit(struct engine *e, struct engine_job *job) {
    job->engine = e;
    job->since_ns = uv_hrtime();
    job->newer = NULL;
    job->older = e->newest;
    if (e->newest != NULL)
        e->newest->newer = job;
    else
        e->oldest = job;
    e->newest = job;
    e->inflight++;
    uv_mutex_lock(&e->lock);
    if (e->stopping) {
        job->status = KVPOOL_E_SHUTDOWN;
        queue_push(&e->refused, job);
        uv_async_send(&e->async);
    } else {
        queue_push(&e->submitted, job);
        if (e->unfinished++ == 0)
            atomic_store(&e->stalled_ns, job->since_ns);
        uv_cond_signal(&e->wake);
    }
    uv_mutex_unlock(&e->lock);
}

uint32_t engine_inflight(const struct engine *e) {
    return e->inflight;
}

uint64_t engine_busy_since(const struct engine *e) {
    return e->oldest != NULL ? e->oldest->since_ns : 0;
}

uint64_t engine_stalled_since(const struct engine *e) {
    return atomic_load(&e->stalled_ns);
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
        while (e->accepted > 0)
            uv_cond_wait(&e->idle, &e->lock);
        uv_mutex_unlock(&e->lock);
        deliver(e);
    }
}

void engine_close(struct engine *e) {
    if (e == NULL)
        return;
    engine_stop(e);
    e->ops->close(e->backend);
    uv_close((uv_handle_t *)&e->async, on_async_closed);
}
