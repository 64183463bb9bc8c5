// SPDX-License-Identifier: Apache-2.0
// test_order.c: requests of one connection start in the order of seq, a gap closes after its time
// limit; beside it the small records with a clock: connections that NNG never reports as gone, and
// the request rate.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/order.h"
#include "daemon/pipes.h"
#include "daemon/stats.h"
#include "proto/proto.h"

#define LIMIT 1000

static void requests_in_order_start_at_once(void **state) {
    (void)state;
    struct order o;
    struct order_item item;
    order_init(&o, 1);
    for (uint64_t seq = 1; seq < 10; seq++) {
        assert_int_equal(order_arrive(&o, &item, seq, 0), ORDER_START);
        assert_null(order_pop(&o));
    }
}

static void early_requests_wait_for_the_missing_one(void **state) {
    (void)state;
    struct order o;
    struct order_item items[6];
    order_init(&o, 1);
    assert_int_equal(order_arrive(&o, &items[4], 4, 0), ORDER_PARKED);
    assert_int_equal(order_arrive(&o, &items[2], 2, 0), ORDER_PARKED);
    assert_int_equal(order_arrive(&o, &items[5], 5, 0), ORDER_PARKED);
    assert_null(order_pop(&o));
    assert_int_equal(order_arrive(&o, &items[1], 1, 0), ORDER_START);
    assert_ptr_equal(order_pop(&o), &items[2]);
    assert_null(order_pop(&o)); // 3 is missing
    assert_int_equal(order_arrive(&o, &items[3], 3, 0), ORDER_START);
    assert_ptr_equal(order_pop(&o), &items[4]);
    assert_ptr_equal(order_pop(&o), &items[5]);
    assert_null(order_pop(&o));
}

static void a_seq_is_used_once(void **state) {
    (void)state;
    struct order o;
    struct order_item a, b;
    order_init(&o, 1);
    assert_int_equal(order_arrive(&o, &a, 1, 0), ORDER_START);
    assert_int_equal(order_arrive(&o, &b, 1, 0), ORDER_PASSED);
    assert_int_equal(order_arrive(&o, &a, 3, 0), ORDER_PARKED);
    assert_int_equal(order_arrive(&o, &b, 3, 0), ORDER_PASSED);
}

static void a_gap_is_given_up_after_the_limit(void **state) {
    (void)state;
    struct order o;
    struct order_item two, three, five, late;
    order_init(&o, 1);
    order_arrive(&o, &three, 3, 100);
    order_arrive(&o, &two, 2, 0);
    order_arrive(&o, &five, 5, 100);
    assert_null(order_expire(&o, LIMIT - 1, LIMIT));
    assert_ptr_equal(order_expire(&o, LIMIT, LIMIT), &two);
    assert_ptr_equal(order_pop(&o), &three); // what waited for 2 goes on
    assert_null(order_pop(&o));
    assert_null(order_expire(&o, LIMIT, LIMIT)); // 5 came later
    assert_int_equal(order_arrive(&o, &late, 1, LIMIT), ORDER_PASSED);
    assert_ptr_equal(order_expire(&o, LIMIT + 100, LIMIT), &five);
    assert_null(order_expire(&o, UINT64_MAX, LIMIT));
    assert_int_equal(order_arrive(&o, &late, 6, 0), ORDER_START);
}

static void a_removed_request_leaves_its_gap(void **state) {
    (void)state;
    struct order o;
    struct order_item two, three, again;
    order_init(&o, 1);
    order_arrive(&o, &two, 2, 0);
    order_arrive(&o, &three, 3, 0);
    order_remove(&o, &two);
    assert_int_equal(order_arrive(&o, &again, 2, 0), ORDER_PARKED);
    assert_ptr_equal(order_drop(&o), &again);
    assert_ptr_equal(order_drop(&o), &three);
    assert_null(order_drop(&o));
}

static void the_largest_seq_does_not_wrap(void **state) {
    (void)state;
    struct order o;
    struct order_item item;
    order_init(&o, UINT64_MAX);
    assert_int_equal(order_arrive(&o, &item, UINT64_MAX, 0), ORDER_START);
    assert_int_equal(order_arrive(&o, &item, 1, 0), ORDER_PASSED);
}

static void an_orphan_not_reported_gone_counts_as_leaked(void **state) {
    (void)state;
    struct pipes *ps;
    struct pipe *a, *b;
    assert_int_equal(pipes_open(&ps, NULL), 0);
    assert_int_equal(pipes_add(ps, 7, &a, NULL), 0);
    assert_int_equal(pipes_add(ps, 8, &b, NULL), 0);
    assert_ptr_equal(pipes_find(ps, 7), a);
    assert_null(pipes_find(ps, 9));
    pipes_orphan(ps, a, 1000);
    pipes_orphan(ps, b, 1000);
    pipes_tick(ps, 1000 + PIPES_LEAK_NS - 1);
    assert_int_equal(pipes_leaked(ps), 0);
    pipes_remove(ps, b); // reported in time
    pipes_tick(ps, 1000 + PIPES_LEAK_NS);
    pipes_tick(ps, 1001 + PIPES_LEAK_NS); // counted once
    assert_int_equal(pipes_leaked(ps), 1);
    pipes_remove(ps, a); // reported late
    assert_int_equal(pipes_leaked(ps), 0);
    assert_null(pipes_first(ps));
    pipes_close(ps);
}

static void a_reused_orphan_is_no_leak(void **state) {
    (void)state;
    struct pipes *ps;
    struct pipe *p;
    assert_int_equal(pipes_open(&ps, NULL), 0);
    assert_int_equal(pipes_add(ps, 7, &p, NULL), 0);
    pipes_orphan(ps, p, 1);
    pipes_tick(ps, 2 + PIPES_LEAK_NS);
    assert_int_equal(pipes_leaked(ps), 1);
    assert_int_equal(pipes_add(ps, 7, &p, NULL), 0);
    assert_int_equal(pipes_leaked(ps), 0);
    pipes_tick(ps, 3 * PIPES_LEAK_NS);
    assert_int_equal(pipes_leaked(ps), 0);
    pipes_close(ps);
}

static void the_rate_is_that_of_the_last_second(void **state) {
    (void)state;
    struct stats s = {0};
    const uint64_t ms = 1000000, start = 5000 * ms;
    for (uint64_t t = 0; t < 2000; t++) // one a millisecond, for two seconds
        stats_answered(&s, PROTO_PING, t % 4 != 0 ? 0 : KVPOOL_E_INVAL, start + t * ms);
    assert_int_equal(s.requests, 2000);
    assert_int_equal(s.errors, 500);
    double rate = stats_rate(&s, start + 2000 * ms);
    assert_true(rate > 999 && rate < 1001);
    rate = stats_rate(&s, start + 2500 * ms);
    assert_true(rate > 499 && rate < 501);
    assert_true(stats_rate(&s, start + 3200 * ms) == 0);
}

static void the_slowest_reclaim_is_kept(void **state) {
    (void)state;
    struct stats s = {0};
    stats_reclaimed(&s, 50);
    stats_reclaimed(&s, 20);
    assert_int_equal(s.reclaim_max_ns, 50);
    assert_int_equal(s.reclaim_last_ns, 20);
    assert_int_equal(s.sessions_died, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_in_order_start_at_once),
        cmocka_unit_test(early_requests_wait_for_the_missing_one),
        cmocka_unit_test(a_seq_is_used_once),
        cmocka_unit_test(a_gap_is_given_up_after_the_limit),
        cmocka_unit_test(a_removed_request_leaves_its_gap),
        cmocka_unit_test(the_largest_seq_does_not_wrap),
        cmocka_unit_test(an_orphan_not_reported_gone_counts_as_leaked),
        cmocka_unit_test(a_reused_orphan_is_no_leak),
        cmocka_unit_test(the_rate_is_that_of_the_last_second),
        cmocka_unit_test(the_slowest_reclaim_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
