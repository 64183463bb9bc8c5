// SPDX-License-Identifier: Apache-2.0
// test_histogram.c: buckets, sums and quantiles of durations.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/histogram.h"

static void bounds_are_inclusive_and_rise(void **state) {
    (void)state;
    for (uint32_t i = 0; i < HISTOGRAM_BOUNDS; i++) {
        struct histogram h = {0};
        uint64_t bound_ns = histogram_bounds_us[i] * UINT64_C(1000);
        if (i > 0)
            assert_true(histogram_bounds_us[i] > histogram_bounds_us[i - 1]);
        histogram_add(&h, bound_ns);
        histogram_add(&h, bound_ns + 1);
        assert_int_equal(1, h.count[i]);
        assert_int_equal(1, h.count[i + 1]);
        assert_int_equal(2, h.total);
        assert_int_equal(2 * bound_ns + 1, h.sum_ns);
    }
    assert_int_equal(10, histogram_bounds_us[0]);
    assert_int_equal(10000000, histogram_bounds_us[HISTOGRAM_BOUNDS - 1]);
}

static void buckets_add_up(void **state) {
    struct histogram h = {0};
    (void)state;
    histogram_add(&h, 0);
    histogram_add(&h, 30000);
    histogram_add(&h, 30000);
    histogram_add(&h, UINT64_C(3600000000000));
    assert_int_equal(1, histogram_below(&h, 0));
    assert_int_equal(1, histogram_below(&h, 1));
    assert_int_equal(3, histogram_below(&h, 2));
    assert_int_equal(3, histogram_below(&h, HISTOGRAM_BOUNDS - 1));
    assert_int_equal(4, histogram_below(&h, HISTOGRAM_BOUNDS));
}

static void a_quantile_is_the_bound_that_covers_it(void **state) {
    struct histogram h = {0};
    (void)state;
    assert_int_equal(0, histogram_quantile_us(&h, 0.5));
    for (int i = 0; i < 99; i++)
        histogram_add(&h, 40000);
    histogram_add(&h, 900000);
    assert_int_equal(50, histogram_quantile_us(&h, 0.5));
    assert_int_equal(50, histogram_quantile_us(&h, 0.99));
    assert_int_equal(1000, histogram_quantile_us(&h, 1));
    for (int i = 0; i < 10; i++)
        histogram_add(&h, UINT64_C(20000000000));
    assert_true(histogram_quantile_us(&h, 0.99) == UINT64_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounds_are_inclusive_and_rise),
        cmocka_unit_test(buckets_add_up),
        cmocka_unit_test(a_quantile_is_the_bound_that_covers_it),
    };
    return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
