// SPDX-License-Identifier: Apache-2.0
// test_crowd.c: 64 clients at once, each checked; more clients than sessions; threads on one
// client.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

static int work(void *arg) {
    const unsigned *seed = arg;
    kvpool_client *client = client_open_timeout(&kvd, 60000);
    struct load *load = load_open(client, "crowd", 512, *seed);
    check(load != NULL);
    load_allow_pins(load);
    for (unsigned i = 0; i < 60 / SLOWNESS + 4; i++) {
        expect_ok(client, load_round(load));
    }
    load_close(load);
    kvpool_close(client);
    return 0;
}

static void sixty_four_clients_at_once_are_all_served_right(void **state) {
    (void)state;
    pid_t pids[64];
    unsigned seed = random_seed();
    for (unsigned i = 0; i < 64; i++) {
        seed++;
        pids[i] = worker_start(work, &seed);
    }
    unsigned bad = 0;
    for (unsigned i = 0; i < 64; i++) {
        bad += process_wait(pids[i], 170000) != 0;
    }
    assert_int_equal(bad, 0);
    kvpool_client *client = client_open(&kvd);
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    assert_int_equal(stats.seqs, 0);
    assert_int_equal(stats.clients, 1);
    assert_int_equal(stats.leaked_pipes, 0);
    kvpool_close(client);
}

struct thread_arg {
    kvpool_client *client;
    unsigned seed;
    int status;
};

static void *thread_work(void *arg) {
    struct thread_arg *t = arg;
    struct load *load = load_open(t->client, "threads", 512, t->seed);
    t->status = load == NULL ? -100 : 0;
    for (unsigned i = 0; t->status == 0 && i < 200 / SLOWNESS; i++) {
        t->status = load_round(load);
    }
    if (load != NULL) {
        load_close(load);
    }
    return NULL;
}

static void eight_threads_share_one_client(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    pthread_t threads[8];
    struct thread_arg args[8];
    unsigned seed = random_seed();
    for (unsigned i = 0; i < 8; i++) {
        args[i] = (struct thread_arg){client, seed + i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, thread_work, &args[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(args[i].status, 0);
    }
    kvpool_close(client);
}

static void a_client_over_the_session_limit_gets_a_typed_error(void **state) {
    (void)state;
    struct daemon small;
    daemon_prepare(&small);
    const char *const extra[] = {"--max-sessions", "3", NULL};
    daemon_start(&small, extra);
    sleep_ms(100); // the session of daemon_start's own ping ends
    kvpool_client *clients[3];
    for (unsigned i = 0; i < 3; i++) {
        clients[i] = client_open(&small);
    }
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = small.dir;
    kvpool_client *more = NULL;
    expect_status(NULL, KVPOOL_E_LIMIT, kvpool_connect(&args, &more));
    assert_null(more);
    kvpool_close(clients[0]);
    sleep_ms(100);
    expect_status(NULL, KVPOOL_OK, kvpool_connect(&args, &more));
    kvpool_close(more);
    kvpool_close(clients[1]);
    kvpool_close(clients[2]);
    daemon_cleanup(&small);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sixty_four_clients_at_once_are_all_served_right),
        cmocka_unit_test(eight_threads_share_one_client),
        cmocka_unit_test(a_client_over_the_session_limit_gets_a_typed_error),
    };
    return cmocka_run_group_tests_name("crowd", tests, kvd_setup, kvd_teardown);
}
