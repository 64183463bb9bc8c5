// SPDX-License-Identifier: Apache-2.0
// The reaper: whoever gives does not wait, everything is released once and in order, what is pending is
// counted, nothing is released while it is held, and the end waits for all of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/reaper.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { GIVERS = 4, EACH = 2000 };

struct rig {
    atomic_bool shut; // nothing is released
    // The reaper's, and the test's after it: plain memory, where a race shows.
    uint32_t started, ready, released;
    uint32_t order[GIVERS * EACH]; // numbers, as they were released
};

struct object {
    struct cuda_garbage garbage; // first
    uint32_t number;
};

static struct rig rig;
static struct cuda_reaper *reaper;

static void on_started(void *arg) {
    struct rig *r = arg;
    r->started++;
}

static void on_ready(void *arg) {
    struct rig *r = arg;
    r->ready++;
}

static void on_released(void *arg) {
    struct rig *r = arg;
    r->released++;
}

static void release(void *arg, struct cuda_garbage *garbage) {
    struct rig *r = arg;
    struct object *o = (struct object *)garbage;
    while (atomic_load(&r->shut))
        usleep(100);
    r->order[r->released] = o->number;
    free(o);
}

static void give(uint32_t number, enum backend_place place, uint64_t bytes) {
    struct object *o = malloc(sizeof *o);
    assert_non_null(o);
    *o = (struct object){{.release = release, .place = place, .bytes = bytes}, number};
    cuda_reaper_give(reaper, &o->garbage);
}

static int setup(void **state) {
    (void)state;
    struct err err;
    rig = (struct rig){0};
    const struct cuda_reaper_calls calls = {on_started, on_ready, on_released, &rig};
    return cuda_reaper_open(&calls, &reaper, &err);
}

static void closes_with(uint32_t released) {
    cuda_reaper_close(reaper);
    assert_int_equal(rig.started, 1);
    assert_int_equal(rig.released, released);
}

static void test_an_idle_reaper_ends(void **state) {
    (void)state;
    closes_with(0);
    assert_int_equal(rig.ready, 0);
}

static void await_bytes(enum backend_place place, uint64_t bytes) {
    while (cuda_reaper_bytes(reaper, place) != bytes)
        usleep(100);
}

static void test_bytes_are_pending_until_they_are_released(void **state) {
    (void)state;
    atomic_store(&rig.shut, true);
    assert_int_equal(cuda_reaper_bytes(reaper, BACKEND_DEVICE), 0);
    give(0, BACKEND_DEVICE, 100);
    give(1, BACKEND_HOST, 7);
    give(2, BACKEND_DEVICE, 0);
    give(3, BACKEND_DEVICE, (uint64_t)1 << 40);
    usleep(20000); // the first is being released
    assert_int_equal(cuda_reaper_bytes(reaper, BACKEND_DEVICE), 100 + ((uint64_t)1 << 40));
    assert_int_equal(cuda_reaper_bytes(reaper, BACKEND_HOST), 7);
    atomic_store(&rig.shut, false);
    await_bytes(BACKEND_DEVICE, 0);
    await_bytes(BACKEND_HOST, 0);
    give(4, BACKEND_HOST, 9); // it goes on
    await_bytes(BACKEND_HOST, 0);
    closes_with(5);
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(rig.order[i], i);
    assert_true(rig.ready == 2 ||
                rig.ready == 3); // once for what was there: 0, 1..3 or 0..3, and 4
}

static void *open_soon(void *arg) {
    (void)arg;
    usleep(30000);
    atomic_store(&rig.shut, false);
    return NULL;
}

static void test_nothing_is_released_while_it_is_held(void **state) {
    (void)state;
    pthread_t opener;
    assert_true(cuda_reaper_hold(reaper, false));
    give(0, BACKEND_DEVICE, 100);
    usleep(20000);
    assert_int_equal(cuda_reaper_bytes(reaper, BACKEND_DEVICE), 100);
    atomic_store(&rig.shut, true);
    cuda_reaper_let(reaper);
    usleep(20000); // it is being released
    assert_false(cuda_reaper_hold(reaper, false));
    assert_int_equal(pthread_create(&opener, NULL, open_soon, NULL), 0);
    assert_true(cuda_reaper_hold(reaper, true));
    assert_false(atomic_load(&rig.shut)); // it has waited
    cuda_reaper_let(reaper);
    pthread_join(opener, NULL);
    closes_with(1);
}

static void test_the_end_waits_for_what_was_given(void **state) {
    (void)state;
    pthread_t opener;
    atomic_store(&rig.shut, true);
    for (uint32_t i = 0; i < 50; i++)
        give(i, BACKEND_DEVICE, 10);
    assert_int_equal(pthread_create(&opener, NULL, open_soon, NULL), 0);
    closes_with(50);
    pthread_join(opener, NULL);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(rig.order[i], i);
}

static void *giver(void *arg) {
    const uint32_t first = *(const uint32_t *)arg;
    for (uint32_t i = 0; i < EACH; i++)
        give(first + i, i % 2 == 0 ? BACKEND_DEVICE : BACKEND_HOST, i);
    return NULL;
}

static void test_many_give_at_once(void **state) {
    (void)state;
    pthread_t threads[GIVERS];
    uint32_t first[GIVERS], next[GIVERS];
    for (uint32_t i = 0; i < GIVERS; i++) {
        first[i] = next[i] = i * EACH;
        assert_int_equal(pthread_create(&threads[i], NULL, giver, &first[i]), 0);
    }
    for (uint32_t i = 0; i < GIVERS; i++)
        pthread_join(threads[i], NULL);
    await_bytes(BACKEND_DEVICE, 0);
    await_bytes(BACKEND_HOST, 0);
    closes_with(GIVERS * EACH);
    for (uint32_t i = 0; i < GIVERS * EACH; i++) { // each giver's in its order
        const uint32_t who = rig.order[i] / EACH;
        assert_int_equal(rig.order[i], next[who]);
        next[who]++;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_an_idle_reaper_ends, setup),
        cmocka_unit_test_setup(test_bytes_are_pending_until_they_are_released, setup),
        cmocka_unit_test_setup(test_nothing_is_released_while_it_is_held, setup),
        cmocka_unit_test_setup(test_the_end_waits_for_what_was_given, setup),
        cmocka_unit_test_setup(test_many_give_at_once, setup),
    };
    return cmocka_run_group_tests_name("reaper", tests, NULL, NULL);
}
