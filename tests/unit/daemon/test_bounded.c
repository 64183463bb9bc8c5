// SPDX-License-Identifier: Apache-2.0
// test_bounded.c: a call with a time limit, kept or missed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/bounded.h"

#include <semaphore.h>
#include <time.h>

static sem_t go, gone;

static void count(void *arg) {
    ++*(int *)arg;
}

static void wait_for_go(void *arg) {
    (void)arg;
    sem_wait(&go);
    sem_post(&gone);
}

static void a_call_that_returns_is_done_and_visible(void **state) {
    int n = 0;
    (void)state;
    for (int i = 0; i < 100; i++) {
        assert_true(bounded_run(count, &n, 10));
        assert_int_equal(i + 1, n);
    }
}

static void a_call_that_hangs_is_left_behind_in_time(void **state) {
    struct timespec begin, end;
    (void)state;
    sem_init(&go, 0, 0);
    sem_init(&gone, 0, 0);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_false(bounded_run(wait_for_go, NULL, 1));
    clock_gettime(CLOCK_MONOTONIC, &end);
    assert_in_range(end.tv_sec - begin.tv_sec, 1, 10);
    sem_post(&go); // late, but it may still end
    sem_wait(&gone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_that_returns_is_done_and_visible),
        cmocka_unit_test(a_call_that_hangs_is_left_behind_in_time),
    };
    return cmocka_run_group_tests_name("bounded", tests, NULL, NULL);
}
