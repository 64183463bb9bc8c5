// SPDX-License-Identifier: Apache-2.0
// test_engine.c: jobs reach the backend in order and come back on the loop in order, also when the
// backend completes late, from another thread, inside submit, or fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/engine.h"

#include <pthread.h>
#include <stdlib.h>

#define JOBS 500

// --- a backend that does nothing but complete -------------------------------------------------

struct backend {
    pthread_t thread; // completes what submit queued, when `late`
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct {
        backend_done_fn done;
        void *arg;
    } queue[JOBS * 2];
    size_t head, tail, submitted;
    bool stop, held;
};
struct backend_stream {
    int unused;
};

static bool late;            // complete from another thread
static bool start_held;      // ... and only after release()
static size_t refuse_at;     // submit refuses from this program on, 0: never
static int complete_status;  // of every program
static int opened;           // backends open
static struct backend *live; // the one

static void *completer(void *arg) {
    struct backend *b = arg;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (!b->stop && (b->held || b->head == b->tail))
            pthread_cond_wait(&b->wake, &b->lock);
        if (b->head == b->tail)
            break;
        size_t i = b->head++;
        pthread_mutex_unlock(&b->lock);
        b->queue[i].done(b->queue[i].arg, complete_status);
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
    b->held = start_held;
    pthread_create(&b->thread, NULL, completer, b);
    opened++;
    live = *ret = b;
    return 0;
}

static void fake_close(struct backend *b) {
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    assert_int_equal(b->head, b->tail); // nothing was in flight
    free(b);
    opened--;
}

static void release(struct backend *b) {
    pthread_mutex_lock(&b->lock);
    b->held = false;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
}

static int fake_submit(struct backend *b, struct backend_stream *s,
                       const struct backend_program *program, backend_done_fn done, void *arg,
                       struct err *err) {
    (void)s;
    (void)program;
    if (refuse_at != 0 && b->submitted + 1 >= refuse_at)
        return err_set(err, KVPOOL_E_BACKEND, "device lost");
    b->submitted++;
    if (!late) {
        done(arg, complete_status);
        return 0;
    }
    pthread_mutex_lock(&b->lock);
    b->queue[b->tail].done = done;
    b->queue[b->tail++].arg = arg;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
    return 0;
}

static const struct backend_ops fake = {.name = "fake",
                                        .api_version = BACKEND_API_VERSION,
                                        .open = fake_open,
                                        .close = fake_close,
                                        .submit = fake_submit};

// --- fixture ----------------------------------------------------------------------------------

struct test_job {
    struct engine_job job; // first
    int number, status;
};

static uv_loop_t loop;
static struct engine *engine;
static struct test_job jobs[JOBS];
static int order[JOBS], num_done;
static struct backend_stream stream;

static void on_done(struct engine_job *job, int status) {
    struct test_job *t = (struct test_job *)job;
    t->status = status;
    order[num_done++] = t->number;
}

static void open_engine(void) {
    const struct backend_config config = {0};
    struct err err;
    num_done = 0;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(engine_open(&loop, &fake, &config, &engine, &err), 0);
    for (int i = 0; i < JOBS; i++)
        jobs[i] = (struct test_job){
            .job = {.stream = &stream, .done = on_done}, .number = i, .status = 1};
}

static void submit(int from, int to) {
    for (int i = from; i < to; i++)
        engine_submit(engine, &jobs[i].job);
}

static void run_until(int n) {
    while (num_done < n)
        uv_run(&loop, UV_RUN_ONCE);
}

static void close_engine(void) {
    engine_close(engine);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(opened, 0);
}

static int setup(void **state) {
    (void)state;
    late = start_held = false;
    refuse_at = 0;
    complete_status = 0;
    return 0;
}

static void in_order(int n, int status) {
    assert_int_equal(num_done, n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(order[i], i);
        assert_int_equal(jobs[i].status, status);
    }
}

// --- tests ------------------------------------------------------------------------------------

static void jobs_come_back_in_order(void **state) {
    (void)state;
    open_engine();
    submit(0, JOBS);
    assert_int_equal(engine_inflight(engine), JOBS);
    run_until(JOBS);
    in_order(JOBS, 0);
    assert_int_equal(engine_inflight(engine), 0);
    close_engine();
}

static void jobs_completed_by_another_thread_come_back_in_order(void **state) {
    (void)state;
    late = true;
    open_engine();
    for (int i = 0; i < JOBS; i += 10) {
        submit(i, i + 10);
        uv_run(&loop, UV_RUN_NOWAIT);
    }
    run_until(JOBS);
    in_order(JOBS, 0);
    close_engine();
}

static void done_may_submit_again(void **state) {
    (void)state;
    open_engine();
    for (int round = 0; round < 100; round++) {
        num_done = 0;
        submit(0, 5); // the same jobs, over and over
        run_until(5);
        in_order(5, 0);
    }
    close_engine();
}

static void the_oldest_unfinished_job_tells_since_when(void **state) {
    (void)state;
    late = start_held = true;
    open_engine();
    assert_int_equal(engine_busy_since(engine), 0);
    uint64_t before = uv_hrtime();
    submit(0, 1);
    uint64_t between = uv_hrtime();
    submit(1, 3);
    uint64_t since = engine_busy_since(engine);
    assert_true(since >= before && since <= between);
    release(live);
    run_until(3);
    assert_int_equal(engine_busy_since(engine), 0);
    close_engine();
}

static void a_refused_program_fails_it_and_all_later_ones(void **state) {
    (void)state;
    late = start_held = true;
    refuse_at = 3;
    open_engine();
    submit(0, 6);
    while (num_done == 0) { // refused ones wait for the accepted ones before them
        release(live);
        uv_run(&loop, UV_RUN_ONCE);
    }
    run_until(6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(order[i], i);
        assert_int_equal(jobs[i].status, i < 2 ? 0 : KVPOOL_E_BACKEND);
    }
    submit(6, 7);
    run_until(7);
    assert_int_equal(jobs[6].status, KVPOOL_E_BACKEND);
    close_engine();
}

static void a_failed_program_fails_all_later_ones(void **state) {
    (void)state;
    complete_status = KVPOOL_E_BACKEND;
    open_engine();
    submit(0, 2);
    run_until(2);
    in_order(2, KVPOOL_E_BACKEND);
    complete_status = 0; // the backend may say what it likes from now on
    submit(2, 4);
    run_until(4);
    in_order(4, KVPOOL_E_BACKEND);
    close_engine();
}

static void stop_waits_for_what_is_in_flight(void **state) {
    (void)state;
    late = true;
    open_engine();
    submit(0, JOBS);
    engine_stop(engine); // the loop does not run
    in_order(JOBS, 0);
    engine_stop(engine);
    close_engine();
}

static void close_without_stop_calls_every_done(void **state) {
    (void)state;
    open_engine();
    submit(0, JOBS);
    close_engine();
    in_order(JOBS, 0);
}

static void resubmit(struct engine_job *job, int status) {
    on_done(job, status);
    if (status == 0)
        engine_submit(engine, job);
}

static void a_job_submitted_while_stopping_is_refused(void **state) {
    (void)state;
    open_engine();
    jobs[0].job.done = resubmit;
    submit(0, 1);
    engine_stop(engine);
    assert_true(num_done >= 2);
    assert_int_equal(jobs[0].status, KVPOOL_E_SHUTDOWN);
    close_engine();
}

static void a_backend_that_does_not_open_is_reported(void **state) {
    (void)state;
    const struct backend_config config = {.device = 3};
    struct err err;
    struct engine *e = NULL;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(engine_open(&loop, &fake, &config, &e, &err), KVPOOL_E_BACKEND);
    assert_string_equal(err.text, "no device 3");
    assert_null(e);
    struct backend_ops other = fake;
    other.api_version++;
    assert_int_equal(engine_open(&loop, &other, &config, &e, &err), KVPOOL_E_BACKEND);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(jobs_come_back_in_order, setup),
        cmocka_unit_test_setup(jobs_completed_by_another_thread_come_back_in_order, setup),
        cmocka_unit_test_setup(done_may_submit_again, setup),
        cmocka_unit_test_setup(the_oldest_unfinished_job_tells_since_when, setup),
        cmocka_unit_test_setup(a_refused_program_fails_it_and_all_later_ones, setup),
        cmocka_unit_test_setup(a_failed_program_fails_all_later_ones, setup),
        cmocka_unit_test_setup(stop_waits_for_what_is_in_flight, setup),
        cmocka_unit_test_setup(close_without_stop_calls_every_done, setup),
        cmocka_unit_test_setup(a_job_submitted_while_stopping_is_refused, setup),
        cmocka_unit_test_setup(a_backend_that_does_not_open_is_reported, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
