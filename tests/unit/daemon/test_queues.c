// SPDX-License-Identifier: Apache-2.0
// test_queues.c: the inbox between NNG's threads and the loop, and the table of peers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/inbox.h"
#include "daemon/peers.h"

#include <pthread.h>
#include <stdlib.h>

enum { THREADS = 4, PER_THREAD = 5000 };

struct note { // item.kind is the thread
    struct inbox_item item;
    int number;
};

static struct {
    uv_loop_t loop;
    struct inbox *inbox;
    int next[THREADS]; // number expected of each thread
    int wrong, total;
} box;

static void on_item(void *arg, struct inbox_item *item) {
    struct note *note = (struct note *)item;
    (void)arg;
    box.wrong += note->number != box.next[item->kind];
    box.next[item->kind] = note->number + 1;
    box.total++;
    free(note);
    if (box.total == THREADS * PER_THREAD) {
        inbox_close(box.inbox);
    }
}

static bool push(int kind, int number) {
    struct note *note = malloc(sizeof *note);
    note->item.kind = kind;
    note->number = number;
    if (!inbox_push(box.inbox, &note->item)) {
        free(note);
        return false;
    }
    return true;
}

static void *push_many(void *arg) {
    for (int i = 0; i < PER_THREAD; i++) {
        push((int)(intptr_t)arg, i);
    }
    return NULL;
}

static void items_of_each_thread_arrive_in_order_and_none_is_lost(void **state) {
    pthread_t threads[THREADS];
    struct err err;
    (void)state;
    uv_loop_init(&box.loop);
    assert_int_equal(0, inbox_open(&box.loop, on_item, NULL, &box.inbox, &err));
    for (intptr_t i = 0; i < THREADS; i++) {
        assert_int_equal(0, pthread_create(&threads[i], NULL, push_many, (void *)i));
    }
    uv_run(&box.loop, UV_RUN_DEFAULT); // ends with inbox_close
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(THREADS * PER_THREAD, box.total);
    assert_int_equal(0, box.wrong);
    assert_int_equal(0, uv_loop_close(&box.loop));
}

static void a_shut_inbox_takes_nothing(void **state) {
    struct err err;
    (void)state;
    box.total = 0;
    uv_loop_init(&box.loop);
    assert_int_equal(0, inbox_open(&box.loop, on_item, NULL, &box.inbox, &err));
    box.next[0] = 0;
    assert_true(push(0, 0));
    inbox_shut(box.inbox);
    assert_false(push(0, 1));
    inbox_drain(box.inbox); // what was there is still handed out
    assert_int_equal(1, box.total);
    inbox_close(box.inbox);
    uv_run(&box.loop, UV_RUN_DEFAULT);
    assert_int_equal(0, uv_loop_close(&box.loop));
}

static void peers_are_found_replaced_and_taken(void **state) {
    static struct peers peers;
    static struct peer p[3000];
    struct peer twin = {.pipe = 7, .pid = 99};
    (void)state;
    for (uint32_t i = 0; i < 3000; i++) { // several in each bucket
        p[i].pipe = i + 1;
        p[i].pid = 1000 + i;
        assert_null(peers_add(&peers, &p[i]));
    }
    assert_int_equal(3000, peers.n);
    assert_ptr_equal(&p[6], peers_find(&peers, 7));
    assert_ptr_equal(&p[6], peers_add(&peers, &twin));
    assert_int_equal(99, peers_find(&peers, 7)->pid);
    assert_int_equal(3000, peers.n);
    assert_null(peers_find(&peers, 5000));
    assert_null(peers_take(&peers, 5000));
    assert_ptr_equal(&twin, peers_take(&peers, 7));
    assert_null(peers_take(&peers, 7));
    for (int i = 0; i < 2999; i++) {
        assert_non_null(peers_take_any(&peers));
    }
    assert_null(peers_take_any(&peers));
    assert_int_equal(0, peers.n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_of_each_thread_arrive_in_order_and_none_is_lost),
        cmocka_unit_test(a_shut_inbox_takes_nothing),
        cmocka_unit_test(peers_are_found_replaced_and_taken),
    };
    return cmocka_run_group_tests_name("queues", tests, NULL, NULL);
}
