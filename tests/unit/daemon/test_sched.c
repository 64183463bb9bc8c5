// SPDX-License-Identifier: Apache-2.0
// test_sched.c: shares of clients and classes, on a clock of the test's own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/sched.h"

#define QUANTUM 500000

static struct sched s;
static struct sched_client c[4];
static uint64_t ran[4];

// Runs pieces of cost[i] for client i, of class[i], all always waiting, for `total` ns.
static void run(uint32_t n, const enum sched_class *class, const int64_t *cost, uint64_t total) {
    uint64_t now = 0;
    for (uint32_t i = 0; i < n; i++) {
        ran[i] = 0;
        sched_wait(&s, &c[i], class[i], 0);
    }
    while (now < total) {
        bool contended;
        uint32_t i = (uint32_t)(sched_pick(&s, &contended) - c);
        assert_true(i < n);
        // Charged at an estimate that is too low, then corrected.
        sched_charge(&s, &c[i], class[i], contended, cost[i] / 4);
        sched_charge(&s, &c[i], class[i], contended, cost[i] - cost[i] / 4);
        ran[i] += (uint64_t)cost[i];
        now += (uint64_t)cost[i];
        sched_wait(&s, &c[i], class[i], now); // it has more
    }
}

static int setup(void **state) {
    (void)state;
    sched_init(&s, QUANTUM);
    for (int i = 0; i < 4; i++)
        sched_client_init(&c[i], 1);
    return 0;
}

static void about(uint64_t expected, uint64_t got) {
    assert_in_range(got, expected - expected / 10, expected + expected / 10);
}

static void time_is_shared_by_weight_whatever_the_pieces(void **state) {
    (void)state;
    const enum sched_class class[] = {SCHED_BULK, SCHED_BULK, SCHED_BULK, SCHED_BULK};
    const int64_t cost[] = {100000, 3000, 7000000, 480000}; // one of many quanta among them
    sched_set_weight(&s, &c[1], 2);
    sched_set_weight(&s, &c[2], 4);
    run(4, class, cost, 1600000000);
    about(200000000, ran[0]);
    about(400000000, ran[1]);
    about(800000000, ran[2]);
    about(200000000, ran[3]);
    sched_set_weight(&s, &c[1], 8); // while it waits
    run(4, class, cost, 1400000000);
    about(100000000, ran[0]);
    about(800000000, ran[1]);
}

static void pieces_of_many_quanta_are_shared_by_weight(void **state) {
    (void)state;
    const enum sched_class class[] = {SCHED_LATENCY, SCHED_LATENCY};
    const int64_t cost[] = {20000000, 15000000};
    sched_set_weight(&s, &c[1], 3);
    run(2, class, cost, 8000000000);
    about(2000000000, ran[0]);
    about(6000000000, ran[1]);
}

static void latency_goes_first_and_bulk_has_an_eighth(void **state) {
    (void)state;
    const enum sched_class class[] = {SCHED_LATENCY, SCHED_BULK, SCHED_LATENCY, SCHED_BULK};
    const int64_t cost[] = {300000, 2000000, 100000, 500000};
    bool contended;
    sched_wait(&s, &c[1], SCHED_BULK, 0);
    sched_wait(&s, &c[0], SCHED_LATENCY, 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[0]);
    assert_true(contended);
    run(4, class, cost, 1600000000);
    about(700000000, ran[0]);
    about(700000000, ran[2]);
    about(100000000, ran[1]);
    about(100000000, ran[3]);
    assert_true(ran[1] + ran[3] >= 1600000000 / SCHED_BULK_SHARE - 2000000 - QUANTUM);
}

static void bulk_has_all_that_latency_leaves(void **state) {
    (void)state;
    bool contended;
    sched_wait(&s, &c[1], SCHED_BULK, 0);
    for (int i = 0; i < 100; i++) {
        assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
        assert_false(contended);
        sched_charge(&s, &c[1], SCHED_BULK, contended, 5000000);
    }
    // Time that nobody else wanted is not held against it, nor is it due more of it.
    sched_wait(&s, &c[0], SCHED_LATENCY, 0);
    for (int i = 0; i < 7; i++) {
        assert_ptr_equal(sched_pick(&s, &contended), &c[0]);
        sched_charge(&s, &c[0], SCHED_LATENCY, contended, QUANTUM + 7);
    }
    assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
}

static void an_idle_client_keeps_no_credit_and_its_debt_fades(void **state) {
    (void)state;
    bool contended;
    sched_wait(&s, &c[0], SCHED_LATENCY, 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[0]);
    sched_charge(&s, &c[0], SCHED_LATENCY, contended, 1000);
    assert_true(c[0].credit_ns > 0);
    sched_leave(&s, &c[0], 0);
    assert_null(sched_pick(&s, &contended));
    sched_wait(&s, &c[0], SCHED_LATENCY, 10);
    assert_int_equal(c[0].credit_ns, 0);
    sched_charge(&s, &c[0], SCHED_LATENCY, false, 10000000);
    sched_leave(&s, &c[0], 1000);
    sched_wait(&s, &c[0], SCHED_LATENCY, 1000 + 4000000);
    assert_int_equal(c[0].credit_ns, -6000000);
    sched_wait(&s, &c[1], SCHED_LATENCY, 0); // without debt: first, for twelve quanta
    for (int i = 0; i < 11; i++) {
        assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
        sched_charge(&s, &c[1], SCHED_LATENCY, contended, QUANTUM);
    }
    sched_leave(&s, &c[0], 0);
    sched_wait(&s, &c[0], SCHED_LATENCY, 1000000000);
    assert_int_equal(c[0].credit_ns, 0);
}

static void a_client_changes_its_class(void **state) {
    (void)state;
    bool contended;
    sched_wait(&s, &c[0], SCHED_BULK, 0);
    sched_wait(&s, &c[1], SCHED_LATENCY, 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
    sched_wait(&s, &c[1], SCHED_BULK, 0);
    sched_wait(&s, &c[0], SCHED_LATENCY, 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[0]);
    sched_leave(&s, &c[0], 0);
    sched_leave(&s, &c[0], 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
    assert_false(contended);
    sched_leave(&s, &c[1], 0);
    assert_null(sched_pick(&s, &contended));
    assert_int_equal(s.weights[SCHED_LATENCY] + s.weights[SCHED_BULK], 0);
}

static void slowdown_says_what_others_leave(void **state) {
    (void)state;
    assert_true(sched_slowdown(&s, &c[0]) == 1);
    sched_wait(&s, &c[0], SCHED_BULK, 0);
    assert_true(sched_slowdown(&s, &c[0]) == 1);
    sched_wait(&s, &c[1], SCHED_BULK, 0);
    sched_set_weight(&s, &c[1], 3);
    assert_true(sched_slowdown(&s, &c[0]) == 4);
    sched_wait(&s, &c[2], SCHED_LATENCY, 0);
    assert_true(sched_slowdown(&s, &c[0]) == 4 * SCHED_BULK_SHARE);
    assert_true(sched_slowdown(&s, &c[2]) == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(time_is_shared_by_weight_whatever_the_pieces, setup),
        cmocka_unit_test_setup(pieces_of_many_quanta_are_shared_by_weight, setup),
        cmocka_unit_test_setup(latency_goes_first_and_bulk_has_an_eighth, setup),
        cmocka_unit_test_setup(bulk_has_all_that_latency_leaves, setup),
        cmocka_unit_test_setup(an_idle_client_keeps_no_credit_and_its_debt_fades, setup),
        cmocka_unit_test_setup(a_client_changes_its_class, setup),
        cmocka_unit_test_setup(slowdown_says_what_others_leave, setup),
    };
    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
