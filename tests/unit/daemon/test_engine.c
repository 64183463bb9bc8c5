// SPDX-License-Identifier: Apache-2.0
// test_engine.c: jobs reach the backend in order and come back on the loop in order, also when the
// backend completes late, from another thread, inside submit, or fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_rig.h"

#include <string.h>

#define JOBS 500

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
    rig_open();
    rig_submit(0, JOBS);
    assert_int_equal(engine_inflight(engine), JOBS);
    rig_run_until(JOBS);
    in_order(JOBS, 0);
    assert_int_equal(engine_inflight(engine), 0);
    rig_close();
}

static void jobs_completed_by_another_thread_come_back_in_order(void **state) {
    (void)state;
    rig.late = true;
    rig.window = 4;
    rig_open();
    for (int i = 0; i < JOBS; i += 10) {
        rig_submit(i, i + 10);
        uv_run(&rig_loop, UV_RUN_NOWAIT);
    }
    rig_run_until(JOBS);
    in_order(JOBS, 0);
    rig_close();
}

static void done_may_submit_again(void **state) {
    (void)state;
    rig_open();
    for (int round = 0; round < 100; round++) {
        num_done = 0;
        rig_submit(0, 5); // the same jobs, over and over
        rig_run_until(5);
        in_order(5, 0);
    }
    rig_close();
}

static void the_device_thread_tells_whether_it_advances(void **state) {
    (void)state;
    struct engine_progress p;
    rig.late = rig.held = true;
    rig_open();
    engine_progress(engine, &p);
    assert_false(p.busy);
    uint64_t before = uv_hrtime();
    rig_submit(0, 2);
    engine_progress(engine, &p);
    assert_true(p.busy && p.busy_since_ns >= before);
    uint64_t since = p.busy_since_ns;
    while (rig_submitted() < 1)
        uv_sleep(1);
    engine_progress(engine, &p);
    uint64_t stuck = p.last_ns;
    uv_sleep(20); // nothing is released: it does not advance
    rig_submit(2, 3);
    engine_progress(engine, &p);
    assert_true(p.busy && p.busy_since_ns == since && p.last_ns == stuck);
    rig_release(1);
    while (rig_submitted() < 2)
        uv_sleep(1);
    engine_progress(engine, &p);
    assert_true(p.busy && p.busy_since_ns == since && p.last_ns >= stuck + 20000000);
    rig_release(SIZE_MAX);
    rig_run_until(3);
    engine_progress(engine, &p);
    assert_false(p.busy);
    rig_close();
}

static void waits_and_runs_are_counted_by_kind(void **state) {
    (void)state;
    rig.spin_ns = 300000;
    rig_open();
    rig_job(0, 0, 4, SCHED_BULK, 1000);
    rig_gate = true;
    rig_submit(0, 3); // a prefill of four slices, then two decodes
    rig_gate = false;
    rig_run_until(3);
    const struct engine_stats *s = engine_stats(engine);
    assert_int_equal(s->run[COST_PREFILL].total, 1);
    assert_true(s->run[COST_PREFILL].sum_ns >= UINT64_C(4) * 300000);
    assert_int_equal(s->run[COST_DECODE].total, 2);
    assert_true(s->run[COST_DECODE].sum_ns >= UINT64_C(2) * 300000);
    assert_true(s->wait[COST_DECODE].sum_ns >= UINT64_C(8) * 300000); // behind the prefill
    assert_int_equal(s->wait[COST_DECODE].total, 2);
    assert_int_equal(s->run[COST_EFFECTS].total, 0);
    rig_close();
}

static void a_refused_program_fails_it_and_all_later_ones(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig.window = 8;
    rig.refuse_at = 3;
    rig_open();
    rig_submit(0, 6);
    while (num_done == 0) { // refused ones wait for the accepted ones before them
        rig_release(SIZE_MAX);
        uv_run(&rig_loop, UV_RUN_ONCE);
    }
    rig_run_until(6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(order[i], i);
        assert_int_equal(jobs[i].status, i < 2 ? 0 : KVPOOL_E_BACKEND);
    }
    rig_submit(6, 7);
    rig_run_until(7);
    assert_int_equal(jobs[6].status, KVPOOL_E_BACKEND);
    rig_close();
}

static void a_failed_program_fails_all_later_ones(void **state) {
    (void)state;
    rig.complete_status = KVPOOL_E_BACKEND;
    rig_open();
    rig_submit(0, 2);
    rig_run_until(2);
    in_order(2, KVPOOL_E_BACKEND);
    rig.complete_status = 0; // the backend may say what it likes from now on
    rig_submit(2, 4);
    rig_run_until(4);
    in_order(4, KVPOOL_E_BACKEND);
    rig_close();
}

static void a_failure_is_final_only_where_the_backend_says_so(void **state) {
    (void)state;
    for (int fatal = 0; fatal < 2; fatal++) {
        rig = (struct rig_backend){.window = 1, .fatal = fatal != 0, .fail_at = 2};
        rig_open();
        rig_submit(0, 1);
        rig_run_until(1);
        assert_false(engine_lost(engine));
        rig_submit(1, 2);
        rig_run_until(2);
        assert_int_equal(jobs[1].status, KVPOOL_E_BACKEND);
        assert_int_equal(engine_lost(engine), fatal != 0);
        rig_close();
    }
}

static void a_failure_beside_the_jobs_is_seen_too(void **state) {
    (void)state;
    for (int fatal = 0; fatal < 2; fatal++) {
        rig = (struct rig_backend){.window = 1, .fatal = fatal != 0};
        rig_open();
        assert_false(engine_lost(engine));
        rig.failure = "the device is lost";
        assert_int_equal(engine_lost(engine), fatal != 0);
        rig_submit(0, 1);
        rig_run_until(1);
        assert_int_equal(jobs[0].status, fatal != 0 ? KVPOOL_E_BACKEND : 0);
        rig_close();
    }
}

static void a_job_without_memory_fails_alone(void **state) {
    (void)state;
    for (int late = 0; late < 2; late++) {
        rig = (struct rig_backend){
            .window = 4, .late = late != 0, .fatal = true, .nomem_at = 3, .spin_ns = 1000};
        rig_open();
        rig_job(1, 0, 3, SCHED_BULK, 1000); // programs 2 to 4
        for (int i = 2; i < 6; i++)
            rig_job(i, i % RIG_CLIENTS, 1, SCHED_BULK, 1000);
        rig_submit(0, 2);
        rig_run_until(2);
        rig_submit(2, 6);
        rig_run_until(6);
        for (int i = 0; i < 6; i++)
            assert_int_equal(jobs[i].status, i == 1 ? KVPOOL_E_NOMEM : 0);
        assert_int_equal(rig_submitted(), 8); // all slices of job 1, too
        assert_false(engine_lost(engine));
        num_done = 0;
        rig_submit(1, 2); // again
        rig_run_until(1);
        assert_int_equal(jobs[1].status, 0);
        rig_close();
    }
}

static void a_failure_says_more_than_no_memory(void **state) {
    (void)state;
    static const struct rig_backend ways[] = {
        {.nomem_at = 1, .fail_at = 2},
        {.nomem_at = 2, .fail_at = 1},
        {.nomem_at = 1, .refuse_at = 2},
    };
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++)
        for (int held = 0; held < 2; held++) {
            rig = ways[way];
            rig.window = 8;
            rig.late = rig.held = held != 0; // else one after another
            rig.fatal = true;
            rig_open();
            rig_job(0, 0, 2, SCHED_BULK, 1000);
            rig_submit(0, 2);
            while (held != 0 && rig_submitted() < (rig.refuse_at != 0 ? 1 : 2)) // both slices fly
                uv_sleep(1);
            if (held != 0)
                rig_release(SIZE_MAX);
            rig_run_until(2);
            in_order(2, KVPOOL_E_BACKEND);
            assert_true(engine_lost(engine));
            rig_close();
        }
}

static void a_program_without_memory_teaches_no_cost(void **state) {
    (void)state;
    struct slicer before, after;
    rig.nomem_at = 1;
    rig.spin_ns = 100000; // longer than what any program takes
    rig_open();
    for (int i = 0; i < 2; i++)
        jobs[i].slices[0].cost.units[COST_DECODE] = UINT64_C(1) << 40;
    engine_slicer(engine, NULL, NULL, &before);
    rig_submit(0, 1);
    rig_run_until(1);
    engine_slicer(engine, NULL, NULL, &after);
    assert_true(after.rates.ns[COST_DECODE] == before.rates.ns[COST_DECODE]);
    rig_submit(1, 2);
    rig_run_until(2);
    engine_slicer(engine, NULL, NULL, &after);
    assert_true(after.rates.ns[COST_DECODE] != before.rates.ns[COST_DECODE]);
    rig_close();
}

static struct engine_close closes[3];
static int num_closed;

static void on_closed(struct engine_close *c) {
    assert_true(c >= closes && c < closes + 3);
    num_closed++;
    memset(c, 0xDD, sizeof *c); // it is ours again
}

static void mem_close(int i) {
    closes[i].done = on_closed;
    engine_mem_close(engine, NULL, &closes[i]);
}

static void memory_is_told_closed_on_the_loop(void **state) {
    (void)state;
    for (int late = 0; late < 2; late++) {
        num_closed = 0;
        rig.late_close = late != 0;
        rig_open();
        mem_close(0);
        mem_close(1);
        assert_int_equal(num_closed, 0); // never within the call
        if (late != 0) {
            uv_run(&rig_loop, UV_RUN_NOWAIT);
            assert_int_equal(num_closed, 0);
            rig_closed();
        }
        while (num_closed < 2)
            uv_run(&rig_loop, UV_RUN_ONCE);
        mem_close(2); // by the backend's end, at the latest
        rig_close();
        assert_int_equal(num_closed, 3);
    }
}

static void stop_waits_for_what_is_in_flight(void **state) {
    (void)state;
    rig.late = true;
    rig.window = 4;
    rig_open();
    rig_submit(0, JOBS);
    engine_stop(engine); // the loop does not run
    in_order(JOBS, 0);
    engine_stop(engine);
    rig_close();
}

static void close_without_stop_calls_every_done(void **state) {
    (void)state;
    rig_open();
    rig_submit(0, JOBS);
    rig_close();
    in_order(JOBS, 0);
}

static void resubmit(struct engine_job *job, int status) {
    rig_done(job, status);
    if (status == 0)
        engine_submit(engine, job);
}

static void a_job_submitted_while_stopping_is_refused(void **state) {
    (void)state;
    rig_open();
    jobs[0].job.done = resubmit;
    rig_submit(0, 1);
    engine_stop(engine);
    assert_true(num_done >= 2);
    assert_int_equal(jobs[0].status, KVPOOL_E_SHUTDOWN);
    rig_close();
}

static void a_backend_that_does_not_open_is_reported(void **state) {
    (void)state;
    const struct backend_config config = {.device = 3};
    struct err err;
    struct engine *e = NULL;
    assert_int_equal(uv_loop_init(&rig_loop), 0);
    assert_int_equal(engine_open(&rig_loop, &rig_ops, &config, &e, &err), KVPOOL_E_BACKEND);
    assert_string_equal(err.text, "no device 3");
    assert_null(e);
    struct backend_ops other = rig_ops;
    other.api_version++;
    assert_int_equal(engine_open(&rig_loop, &other, &config, &e, &err), KVPOOL_E_BACKEND);
    assert_int_equal(uv_loop_close(&rig_loop), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(jobs_come_back_in_order, rig_setup),
        cmocka_unit_test_setup(jobs_completed_by_another_thread_come_back_in_order, rig_setup),
        cmocka_unit_test_setup(done_may_submit_again, rig_setup),
        cmocka_unit_test_setup(the_device_thread_tells_whether_it_advances, rig_setup),
        cmocka_unit_test_setup(waits_and_runs_are_counted_by_kind, rig_setup),
        cmocka_unit_test_setup(a_refused_program_fails_it_and_all_later_ones, rig_setup),
        cmocka_unit_test_setup(a_failed_program_fails_all_later_ones, rig_setup),
        cmocka_unit_test_setup(a_failure_is_final_only_where_the_backend_says_so, rig_setup),
        cmocka_unit_test_setup(a_failure_beside_the_jobs_is_seen_too, rig_setup),
        cmocka_unit_test_setup(a_job_without_memory_fails_alone, rig_setup),
        cmocka_unit_test_setup(a_failure_says_more_than_no_memory, rig_setup),
        cmocka_unit_test_setup(a_program_without_memory_teaches_no_cost, rig_setup),
        cmocka_unit_test_setup(memory_is_told_closed_on_the_loop, rig_setup),
        cmocka_unit_test_setup(stop_waits_for_what_is_in_flight, rig_setup),
        cmocka_unit_test_setup(close_without_stop_calls_every_done, rig_setup),
        cmocka_unit_test_setup(a_job_submitted_while_stopping_is_refused, rig_setup),
        cmocka_unit_test_setup(a_backend_that_does_not_open_is_reported, rig_setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
