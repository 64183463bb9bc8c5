// SPDX-License-Identifier: Apache-2.0
// test_engine_clients.c: several clients on one device: the order of each, their shares, what runs
// between the slices of another's job, and what becomes of queued work at the end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_rig.h"

#include <string.h>

static int client_of(const struct rig_submitted *s) {
    return (int)(s->stream - streams);
}

static void wait_submitted(size_t n) {
    while (rig_submitted() < n)
        uv_sleep(1);
}

// Lets one more program finish and returns whose comes next.
static int next_client(void) {
    size_t n = rig_submitted();
    rig_release(1);
    wait_submitted(n + 1);
    assert_int_equal(rig_submitted(), n + 1); // the window is 1
    return client_of(&submitted[n]);
}

static void a_client_keeps_its_order_whatever_runs_between(void **state) {
    (void)state;
    uint32_t slice[RIG_CLIENTS] = {0};
    int job[RIG_CLIENTS], last[RIG_CLIENTS];
    rig.late = true;
    rig.window = 4;
    rig_open();
    for (int i = 0; i < RIG_JOBS; i++) {
        uint32_t hash = (uint32_t)i * 2654435761u >> 16;
        rig_job(i, (int)(hash % RIG_CLIENTS), i < 1000 ? 1 + hash % 3 : 1,
                hash % 5 < 2 ? SCHED_BULK : SCHED_LATENCY, 1000);
    }
    rig_submit(0, RIG_JOBS);
    rig_run_until(RIG_JOBS);
    for (int i = 0; i < RIG_CLIENTS; i++)
        job[i] = last[i] = -1;
    for (int i = 0; i < RIG_JOBS; i++) { // done in order
        int c = jobs[order[i]].client;
        assert_true(order[i] > last[c]);
        assert_int_equal(jobs[order[i]].status, 0);
        last[c] = order[i];
    }
    for (size_t i = 0; i < rig_submitted(); i++) { // slice after slice of job after job
        int c = client_of(&submitted[i]);
        if (slice[c] == 0) {
            do
                job[c]++;
            while (jobs[job[c]].client != c);
        }
        assert_int_equal(submitted[i].n, slice[c] + 1);
        slice[c] = slice[c] + 1 == jobs[job[c]].job.num_slices ? 0 : slice[c] + 1;
    }
    rig_close();
}

// Shares of measured time: the machine may take the processor away in the middle of a slice, for
// longer than many slices, and then they are off for a while. Once undisturbed they are right.
static void undisturbed(bool (*try)(void)) {
    bool ok = false;
    for (int i = 0; i < 20 && !ok; i++) {
        rig_open();
        ok = try();
        rig_close();
    }
    assert_true(ok);
}

static bool shares_are_right(void) {
    uint64_t ns[3] = {0};
    engine_client_set_weight(clients[1], 2);
    engine_client_set_weight(clients[2], 4);
    for (int i = 0; i < 1500; i++)
        rig_job(i, i % 3, 1, SCHED_LATENCY, 1000); // the estimate is wrong by a hundred times
    rig_gate = true;
    rig_submit(0, 1500);
    rig_gate = false;
    rig_run_until(1500);
    size_t end = rig_submitted();
    while (client_of(&submitted[end - 1]) != 2) // until then all three waited
        end--;
    for (size_t i = 0; i < end; i++)
        ns[client_of(&submitted[i])] += submitted[i].ns;
    double total = (double)(ns[0] + ns[1] + ns[2]);
    bool ok = true;
    for (int i = 0; i < 3; i++) {
        double share = (double)ns[i] / total * 7 / (1 << i);
        ok = ok && share > 0.9 && share < 1.1;
        print_message("client %d had %.2f of its share\n", i, share);
    }
    return ok;
}

static void time_is_shared_by_weight(void **state) {
    (void)state;
    rig.spin_ns = 100000;
    undisturbed(shares_are_right);
}

// A decode's slice that this program is kept from releasing for milliseconds earns the prefill a turn.
static bool a_decode_runs_between(void) {
    rig_job(0, 0, 4, SCHED_BULK, 1000000);
    rig_job(1, 1, 2, SCHED_LATENCY, 1000);
    rig_submit(0, 1);
    wait_submitted(1);
    uv_sleep(5);
    bool ok = rig_submitted() == 1; // one at a time
    rig_submit(1, 2);
    ok = next_client() == 1 && ok;
    ok = next_client() == 1 && ok;
    ok = next_client() == 0 && ok;
    rig_release(SIZE_MAX);
    rig_run_until(2);
    return ok && order[0] == 1 && order[1] == 0;
}

static void a_decode_runs_between_the_slices_of_a_prefill(void **state) {
    (void)state;
    rig.late = rig.held = true;
    undisturbed(a_decode_runs_between);
}

static void prefills_leave_room_in_the_window(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig.window = 16;
    rig_open();
    for (int i = 0; i < 20; i++)
        rig_job(i, i % 2, 1, SCHED_BULK, 1000);
    rig_job(20, 2, 2, SCHED_LATENCY, 1000);
    rig_submit(0, 20);
    wait_submitted(ENGINE_BULK);
    uv_sleep(5);
    assert_int_equal(rig_submitted(), ENGINE_BULK);
    rig_submit(20, 21);
    wait_submitted(ENGINE_BULK + 2);
    assert_int_equal(client_of(&submitted[ENGINE_BULK]), 2);
    assert_int_equal(client_of(&submitted[ENGINE_BULK + 1]), 2);
    rig_release(1); // one prefill goes, one comes
    wait_submitted(ENGINE_BULK + 3);
    assert_int_not_equal(client_of(&submitted[ENGINE_BULK + 2]), 2);
    rig_release(SIZE_MAX);
    rig_run_until(21);
    rig_close();
}

static void a_decode_behind_its_own_prefill_waits(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig_open();
    rig_job(0, 0, 2, SCHED_BULK, 1000);
    rig_job(1, 0, 1, SCHED_LATENCY, 1000);
    rig_job(2, 1, 2, SCHED_LATENCY, 1000);
    rig_submit(0, 1);
    wait_submitted(1);
    rig_submit(1, 3);
    rig_release(SIZE_MAX);
    rig_run_until(3);
    const int expected[] = {2, 0, 1};
    assert_memory_equal(order, expected, sizeof expected);
    rig_close();
}

static void a_decode_behind_a_finished_prefill_goes_first(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig_open();
    rig_job(0, 0, 1, SCHED_BULK, 1000);
    rig_job(1, 0, 1, SCHED_BULK, 5000000);
    rig_job(2, 0, 1, SCHED_LATENCY, 1000);
    for (int i = 3; i < 100; i++) // more than the first job's debt lasts for
        rig_job(i, 1, RIG_SLICES, SCHED_BULK, 600000);
    rig_submit(0, 1);
    wait_submitted(1);
    rig_submit(1, 100);
    while (next_client() != 0) { // until job 1
    }
    assert_int_equal(next_client(), 0);
    assert_int_equal(next_client(), 1);
    rig_release(SIZE_MAX);
    rig_run_until(100);
    rig_close();
}

static bool an_eighth(void) {
    uint64_t ns[2] = {0};
    for (int i = 0; i < 1000; i++)
        rig_job(i, i < 900 ? 0 : 1, i < 900 ? 1 : RIG_SLICES, i < 900 ? SCHED_LATENCY : SCHED_BULK,
                200000);
    rig_gate = true;
    rig_submit(900, 1000);
    rig_submit(0, 900);
    rig_gate = false;
    rig_run_until(1000);
    size_t end = rig_submitted(), begin = 0;
    while (client_of(&submitted[end - 1]) == 1)
        end--;
    while (client_of(&submitted[begin]) == 1)
        begin++;
    for (size_t i = begin; i < end; i++)
        ns[client_of(&submitted[i])] += submitted[i].ns;
    double share = (double)ns[1] / (double)(ns[0] + ns[1]);
    print_message("the prefill had %.3f of the time\n", share);
    return share > 0.9 / 8 && share < 1.1 / 8;
}

static void a_prefill_has_an_eighth_beside_decodes(void **state) {
    (void)state;
    rig.spin_ns = 200000;
    undisturbed(an_eighth);
}

static void the_backend_has_at_most_its_window(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig.window = 4;
    rig_open();
    rig_job(0, 0, 8, SCHED_BULK, 1000);
    for (int i = 1; i < 20; i++)
        rig_job(i, i % RIG_CLIENTS, 1, SCHED_LATENCY, 1000);
    rig_submit(0, 20);
    wait_submitted(4);
    uv_sleep(10);
    assert_int_equal(rig_submitted(), 4);
    rig_release(2);
    wait_submitted(6);
    uv_sleep(10);
    assert_int_equal(rig_submitted(), 6);
    rig_release(SIZE_MAX);
    rig_run_until(20);
    rig_close();
}

static void stop_runs_what_is_queued(void **state) {
    (void)state;
    rig.late = true;
    rig_open();
    for (int i = 0; i < 200; i++)
        rig_job(i, i % RIG_CLIENTS, 1 + (uint32_t)i % RIG_SLICES,
                i % 2 ? SCHED_BULK : SCHED_LATENCY, 1000);
    rig_submit(0, 200);
    engine_stop(engine); // the loop does not run
    assert_int_equal(num_done, 200);
    for (int i = 0; i < 200; i++)
        assert_int_equal(jobs[i].status, 0);
    rig_close();
}

// Every job is done once, and each client's in order; returns how many succeeded.
static int check_failed(int n) {
    int last[RIG_CLIENTS] = {-1, -1, -1, -1}, good = 0;
    assert_int_equal(num_done, n);
    for (int i = 0; i < n; i++) {
        const struct rig_job *t = &jobs[order[i]];
        assert_true(order[i] > last[t->client]);
        last[t->client] = order[i];
        assert_true(t->status == 0 || t->status == KVPOOL_E_BACKEND);
        good += t->status == 0;
    }
    return good;
}

static void a_slice_that_is_refused_or_fails_ends_everything(void **state) {
    for (uint32_t window = 1; window <= 4; window += 3)
        for (size_t at = 1; at < 40; at++)
            for (int way = 0; way < 4; way++) {
                rig_setup(state);
                rig.window = window;
                rig.late = way & 1;
                *(way & 2 ? &rig.fail_at : &rig.refuse_at) = at;
                rig_open();
                for (int i = 0; i < 24; i++)
                    rig_job(i, i % RIG_CLIENTS, 1 + (uint32_t)i % 3,
                            i % 5 ? SCHED_LATENCY : SCHED_BULK, 1000);
                rig_submit(0, 24);
                rig_run_until(24);
                assert_in_range(check_failed(24), 0, at); // 48 slices in all
                for (int i = 0; i < RIG_CLIENTS; i++)     // nothing is left in the queues
                    assert_int_equal(engine_client_retry_ns(clients[i]), 100000);
                num_done = 0;
                rig_submit(0, 1);
                rig_run_until(1);
                assert_int_equal(jobs[0].status, KVPOOL_E_BACKEND);
                struct engine_progress p;
                engine_progress(engine, &p);
                assert_false(p.busy);
                rig_close();
            }
}

static void a_cancelled_clients_queue_is_dropped_and_others_go_on(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig.window = 4; // half of it for prefills
    rig_open();
    rig_job(0, 0, 1, SCHED_BULK, 1000);
    rig_job(1, 0, RIG_SLICES, SCHED_BULK, 1000);
    for (int i = 2; i < 50; i++)
        rig_job(i, 0, 3, SCHED_BULK, 1000);
    rig_submit(0, 50);
    wait_submitted(2); // job 0, and the first slice of job 1
    engine_client_cancel(clients[0]);
    uv_run(&rig_loop, UV_RUN_NOWAIT);
    assert_int_equal(num_done, 0); // what flies still reads their arrays
    rig_job(50, 0, 1, SCHED_BULK, 1000);
    rig_job(51, 1, 2, SCHED_BULK, 1000);
    rig_submit(50, 52);
    rig_release(2);
    rig_run_until(51);
    for (int i = 0; i <= 50; i++) {
        assert_int_equal(order[i], i);
        assert_int_equal(jobs[i].status, i == 0 ? 0 : KVPOOL_E_SHUTDOWN);
    }
    assert_int_equal(engine_client_retry_ns(clients[0]), 100000);
    rig_release(SIZE_MAX);
    rig_run_until(52);
    assert_int_equal(jobs[51].status, 0);
    assert_int_equal(rig_submitted(), 4);
    num_done = 0;
    rig_submit(50, 51); // idle, and cancelled for good
    rig_run_until(1);
    assert_int_equal(jobs[50].status, KVPOOL_E_SHUTDOWN);
    rig_close();
}

static void the_retry_hint_follows_queue_and_share(void **state) {
    (void)state;
    rig.late = rig.held = true;
    rig_open();
    assert_int_equal(engine_client_retry_ns(clients[0]), 100000); // at least
    rig_job(0, 0, 4, SCHED_BULK, 2000000);
    rig_job(1, 0, 4, SCHED_BULK, 2000000);
    rig_submit(0, 2);
    wait_submitted(1);
    assert_int_equal(engine_client_retry_ns(clients[0]), 8000000); // a job alone
    rig_job(2, 1, 1, SCHED_BULK, 1000000);
    rig_submit(2, 3);
    assert_int_equal(engine_client_retry_ns(clients[0]), 16000000); // half of the device
    engine_client_set_weight(clients[0], 3);
    assert_int_equal(engine_client_retry_ns(clients[0]), 8000000 * 4 / 3);
    rig_job(3, 2, 1, SCHED_LATENCY, 1000000); // an eighth of that
    rig_submit(3, 4);
    assert_int_equal(engine_client_retry_ns(clients[0]), 64000000 * 4 / 3);
    rig_job(4, 0, 8, SCHED_BULK, 1000000000);
    rig_submit(4, 5);
    assert_int_equal(engine_client_retry_ns(clients[0]), 1000000000); // at most
    rig_release(SIZE_MAX);
    rig_run_until(5);
    rig_close();
}

#define TEST(name) cmocka_unit_test_setup(name, rig_setup)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_client_keeps_its_order_whatever_runs_between),
        TEST(time_is_shared_by_weight),
        TEST(a_decode_runs_between_the_slices_of_a_prefill),
        TEST(prefills_leave_room_in_the_window),
        TEST(a_decode_behind_its_own_prefill_waits),
        TEST(a_decode_behind_a_finished_prefill_goes_first),
        TEST(a_prefill_has_an_eighth_beside_decodes),
        TEST(the_backend_has_at_most_its_window),
        TEST(stop_runs_what_is_queued),
        TEST(a_slice_that_is_refused_or_fails_ends_everything),
        TEST(a_cancelled_clients_queue_is_dropped_and_others_go_on),
        TEST(the_retry_hint_follows_queue_and_share),
    };
    return cmocka_run_group_tests_name("engine clients", tests, NULL, NULL);
}
