// SPDX-License-Identifier: Apache-2.0
// The thread pool: every index once, its writes visible, no wake-up lost in thousands of short
// runs.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cpu_threads.h"

#include <string.h>

enum { MAX_INDICES = 5000 };

struct job {
    uint32_t seen[MAX_INDICES]; // plain memory: a race here is a race in the pool
    uint32_t workers, wrong_workers;
};

static void mark(void *arg, uint32_t index, uint32_t worker) {
    struct job *job = arg;
    job->seen[index]++;
    if (worker >= job->workers)
        job->wrong_workers = 1;
}

static void check_run(struct cpu_threads *t, struct job *job, uint32_t n) {
    memset(job, 0, sizeof *job);
    job->workers = cpu_threads_count(t);
    cpu_threads_run(t, n, mark, job);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(job->seen[i], 1);
    assert_int_equal(job->wrong_workers, 0);
}

static void test_every_index_runs_once(void **state) {
    (void)state;
    static struct job job;
    for (uint32_t count = 1; count <= 5; count++) {
        struct cpu_threads *t = cpu_threads_new(count);
        assert_non_null(t);
        assert_int_equal(cpu_threads_count(t), count);
        const uint32_t sizes[] = {0, 1, 2, 3, 17, MAX_INDICES};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_run(t, &job, sizes[i]);
        cpu_threads_free(t);
    }
}

static void test_thousands_of_short_runs(void **state) {
    (void)state;
    static struct job job;
    struct cpu_threads *t = cpu_threads_new(4);
    assert_non_null(t);
    for (uint32_t i = 0; i < 3000; i++)
        check_run(t, &job, 2 + i % 7);
    cpu_threads_free(t);
}

static void test_zero_means_one_per_cpu(void **state) {
    (void)state;
    struct cpu_threads *t = cpu_threads_new(0);
    assert_non_null(t);
    assert_true(cpu_threads_count(t) >= 1);
    cpu_threads_free(t);
}

static void test_a_pool_that_never_ran_can_be_freed(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++)
        cpu_threads_free(cpu_threads_new(3));
    cpu_threads_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_index_runs_once),
        cmocka_unit_test(test_thousands_of_short_runs),
        cmocka_unit_test(test_zero_means_one_per_cpu),
        cmocka_unit_test(test_a_pool_that_never_ran_can_be_freed),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
