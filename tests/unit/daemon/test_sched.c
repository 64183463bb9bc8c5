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

static void bulk_is_held_back_after_latency_work_for_a_moment(void **state) {
    (void)state;
    bool contended;
    assert_int_equal(sched_held(&s, 1000), 0); // nothing to wait for
    sched_hold(&s, 1000);
    assert_int_equal(sched_held(&s, 1000), 0); // and nobody to hold back
    sched_wait(&s, &c[0], SCHED_BULK, 1000);
    assert_int_equal(sched_held(&s, 1000), SCHED_HOLD_NS);
    assert_int_equal(sched_held(&s, 101000), SCHED_HOLD_NS - 100000);
    assert_int_equal(sched_held(&s, 1000 + SCHED_HOLD_NS), 0);
    assert_int_equal(sched_held(&s, 1001), 0); // it is over for good
    assert_ptr_equal(sched_pick(&s, &contended), &c[0]);
    sched_hold(&s, 1000000);
    assert_int_not_equal(sched_held(&s, 1000000), 0);
    sched_wait(&s, &c[1], SCHED_LATENCY, 1050000);
    assert_int_equal(sched_held(&s, 1050000), 0);
    assert_ptr_equal(sched_pick(&s, &contended), &c[1]);
    assert_true(contended);
}

// A client that sends the next short piece of LATENCY work 100 us after the last was done: BULK's
// pieces are in its way for an eighth of the time and no more.
static void an_eighth_is_bulks_beside_short_work_that_comes_back(void **state) {
    (void)state;
    const uint64_t total = 2000000000, gap = 100000, short_ns = 20000, long_ns = 700000;
    uint64_t now = 0, next = 0, bulk = 0, served = 0;
    sched_wait(&s, &c[0], SCHED_BULK, 0);
    while (now < total) {
        if (now >= next)
            sched_wait(&s, &c[1], SCHED_LATENCY, now);
        uint64_t wait = sched_held(&s, now);
        if (wait > 0) {
            now += next - now < wait ? next - now : wait;
            continue;
        }
        bool contended;
        if (sched_pick(&s, &contended) == &c[0]) {
            sched_charge(&s, &c[0], SCHED_BULK, contended, (int64_t)long_ns);
            now += long_ns;
            bulk += long_ns;
        } else {
            sched_charge(&s, &c[1], SCHED_LATENCY, contended, (int64_t)short_ns);
            now += short_ns;
            served++;
            sched_leave(&s, &c[1], now);
            sched_hold(&s, now);
            next = now + gap;
        }
    }
    about(total / 8, bulk);
    about((total - total / 8) / (gap + short_ns), served);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(time_is_shared_by_weight_whatever_the_pieces, setup),
        cmocka_unit_test_setup(pieces_of_many_quanta_are_shared_by_weight, setup),
        cmocka_unit_test_setup(latency_goes_first_and_bulk_has_an_eighth, setup),
        cmocka_unit_test_setup(bulk_has_all_that_latency_leaves, setup),
        cmocka_unit_test_setup(an_idle_client_keeps_no_credit_and_its_debt_fades, setup),
        cmocka_unit_test_setup(a_client_changes_its_class, setup),
        cmocka_unit_test_setup(bulk_is_held_back_after_latency_work_for_a_moment, setup),
        cmocka_unit_test_setup(an_eighth_is_bulks_beside_short_work_that_comes_back, setup),
        cmocka_unit_test_setup(slowdown_says_what_others_leave, setup),
    };
    return cmocka_run_group_tests_name("sched", tests, NULL, NULL);
}
