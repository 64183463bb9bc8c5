// SPDX-License-Identifier: Apache-2.0
// engine_rig.c: see engine_rig.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_rig.h"

#include <pthread.h>
#include <stdlib.h>

struct rig_backend rig;
atomic_bool rig_gate;
uv_loop_t rig_loop;
struct engine *engine;
struct engine_client *clients[RIG_CLIENTS];
struct rig_job jobs[RIG_JOBS];
int order[RIG_SUBMITTED], num_done;
struct rig_submitted submitted[RIG_SUBMITTED];

struct backend_stream streams[RIG_CLIENTS];

struct backend {
    pthread_t thread; // completes what submit queued, when `late`
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct {
        backend_done_fn done;
        void *arg;
        int status;
    } queue[RIG_SUBMITTED];
    size_t head, tail, submitted, released;
    bool stop;
};
static struct backend *live; // the one

static void *completer(void *arg) {
    struct backend *b = arg;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (!b->stop && (b->head == b->tail || b->head >= b->released))
            pthread_cond_wait(&b->wake, &b->lock);
        if (b->head == b->tail)
            break;
        size_t i = b->head++;
        pthread_mutex_unlock(&b->lock);
        b->queue[i].done(b->queue[i].arg, b->queue[i].status);
        pthread_mutex_lock(&b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static int fake_open(const struct backend_config *config, struct backend **ret, struct err *err) {
    if (config->device != 0)
        return err_set(err, KVPOOL_E_BACKEND, "no device %d", config->device);
    struct backend *b = calloc(1, sizeof *b);
    assert_non_null(b);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    b->released = rig.held ? 0 : SIZE_MAX;
    pthread_create(&b->thread, NULL, completer, b);
    live = *ret = b;
    return 0;
}

static struct backend_close *closing;

static void fake_mem_free(struct backend *b, struct backend_mem *mem) {
    (void)b;
    (void)mem;
}

static void fake_mem_close(struct backend *b, struct backend_mem *mem,
                           struct backend_close *close) {
    (void)b;
    (void)mem;
    close->next = closing;
    closing = close;
}

static void *close_all(void *arg) {
    while (closing != NULL) {
        struct backend_close *close = closing;
        closing = close->next;
        close->done(close);
    }
    return arg;
}

void rig_closed(void) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, close_all, NULL), 0);
    pthread_join(thread, NULL);
}

static void fake_close(struct backend *b) {
    rig_closed();
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    assert_int_equal(b->head, b->tail); // nothing was in flight
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->lock);
    free(b);
    live = NULL;
}

void rig_release(size_t programs) {
    pthread_mutex_lock(&live->lock);
    live->released = programs == SIZE_MAX ? SIZE_MAX : live->released + programs;
    pthread_cond_signal(&live->wake);
    pthread_mutex_unlock(&live->lock);
}

size_t rig_submitted(void) {
    pthread_mutex_lock(&live->lock);
    size_t n = live->submitted;
    pthread_mutex_unlock(&live->lock);
    return n;
}

static int fake_submit(struct backend *b, struct backend_stream *s,
                       const struct backend_program *program, backend_done_fn done, void *arg,
                       struct err *err) {
    uint64_t begin = uv_hrtime(), spin = begin;
    while (rig_gate) {
        uv_sleep(1);
        spin = uv_hrtime();
    }
    pthread_mutex_lock(&b->lock);
    size_t i = b->submitted;
    if (rig.refuse_at != 0 && i + 1 >= rig.refuse_at) {
        pthread_mutex_unlock(&b->lock);
        return err_set(err, KVPOOL_E_BACKEND, "device lost");
    }
    int status = i + 1 == rig.fail_at    ? KVPOOL_E_BACKEND
                 : i + 1 == rig.nomem_at ? KVPOOL_E_NOMEM
                                         : rig.complete_status;
    while (uv_hrtime() - spin < rig.spin_ns) {
    }
    submitted[i] = (struct rig_submitted){s, program->n, uv_hrtime() - begin};
    b->submitted++;
    if (rig.late) {
        b->queue[b->tail].done = done;
        b->queue[b->tail].status = status;
        b->queue[b->tail++].arg = arg;
        pthread_cond_signal(&b->wake);
    }
    pthread_mutex_unlock(&b->lock);
    if (!rig.late)
        done(arg, status);
    return 0;
}

static const char *fake_failure(const struct backend *b) {
    (void)b;
    return rig.failure;
}

const struct backend_ops rig_ops = {.name = "fake",
                                    .api_version = BACKEND_API_VERSION,
                                    .open = fake_open,
                                    .close = fake_close,
                                    .failure = fake_failure,
                                    .mem_free = fake_mem_free,
                                    .submit = fake_submit};
static struct backend_ops used_ops;

void rig_done(struct engine_job *job, int status) {
    struct rig_job *t = (struct rig_job *)job;
    t->status = status;
    order[num_done++] = t->number;
}

void rig_job(int number, int client, uint32_t slices, enum sched_class class, uint64_t ns) {
    struct rig_job *t = &jobs[number];
    *t = (struct rig_job){.number = number, .client = client, .status = 1};
    t->job = (struct engine_job){.client = clients[client],
                                 .stream = &streams[client],
                                 .slices = t->slices,
                                 .num_slices = slices,
                                 .class = class,
                                 .kind = class == SCHED_BULK ? COST_PREFILL : COST_DECODE,
                                 .done = rig_done};
    for (uint32_t i = 0; i < slices; i++)
        t->slices[i] = (struct slice){.program = {.n = i + 1}, .estimate_ns = ns};
}

int rig_setup(void **state) {
    (void)state;
    rig = (struct rig_backend){.window = 1};
    return 0;
}

void rig_open(void) {
    const struct backend_config config = {0};
    struct err err;
    num_done = 0;
    used_ops = rig_ops;
    used_ops.window = rig.window;
    used_ops.fatal = rig.fatal;
    used_ops.mem_close = rig.late_close ? fake_mem_close : NULL;
    assert_int_equal(uv_loop_init(&rig_loop), 0);
    assert_int_equal(engine_open(&rig_loop, &used_ops, &config, &engine, &err), 0);
    for (int i = 0; i < RIG_CLIENTS; i++)
        assert_int_equal(engine_client_open(engine, 1, &clients[i], &err), 0);
    for (int i = 0; i < RIG_JOBS; i++)
        rig_job(i, 0, 1, SCHED_LATENCY, 1000);
}

void rig_submit(int from, int to) {
    for (int i = from; i < to; i++)
        engine_submit(engine, &jobs[i].job);
}

void rig_run_until(int n) {
    while (num_done < n)
        uv_run(&rig_loop, UV_RUN_ONCE);
}

void rig_close(void) {
    engine_stop(engine);
    for (int i = 0; i < RIG_CLIENTS; i++)
        engine_client_close(clients[i]);
    engine_close(engine);
    uv_run(&rig_loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&rig_loop), 0);
    assert_null(live);
}
