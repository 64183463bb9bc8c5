// SPDX-License-Identifier: Apache-2.0
// test_restart.c: the daemon ends under load, is killed, comes back, is started twice.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

// Loads until the daemon is gone; the end must be a typed error that says so.
static int load_until_gone(void *arg) {
    const unsigned *seed = arg;
    kvpool_client *client = client_open_timeout(&kvd, 5000);
    struct load *load = load_open(client, "load", 64, *seed);
    check(load != NULL);
    for (;;) {
        int status = load_round(load);
        if (status != KVPOOL_OK) {
            char text[256];
            kvpool_last_error(client, text, sizeof text);
            if (status == KVPOOL_E_SHUTDOWN || status == KVPOOL_E_CONN) {
                return 0;
            }
            fprintf(stderr, "load ended with %s: %s\n",
                    status == 1 ? "a wrong output" : kvpool_status_name((kvpool_status)status),
                    text);
            return 5;
        }
    }
}

static void under_load(int sig, int expected) {
    pid_t pids[4];
    unsigned seed = random_seed();
    for (unsigned i = 0; i < 4; i++) {
        seed++;
        pids[i] = worker_start(load_until_gone, &seed);
    }
    sleep_ms(500);
    assert_int_equal(daemon_end(&kvd, sig, 15000), expected);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(process_wait(pids[i], 30000), 0);
    }
}

static void sigterm_under_load_drains_and_exits_0(void **state) {
    (void)state;
    under_load(SIGTERM, 0);
    char path[256];
    snprintf(path, sizeof path, "%s/kvpool.sock", kvd.dir);
    assert_int_equal(access(path, F_OK), -1);
    snprintf(path, sizeof path, "%s/fd.sock", kvd.dir);
    assert_int_equal(access(path, F_OK), -1);
}

static void sigkill_under_load_leaves_typed_errors_and_the_path_is_usable_again(void **state) {
    (void)state;
    under_load(SIGKILL, 128 + SIGKILL);
    daemon_start(&kvd, NULL);
    kvpool_client *client = client_open(&kvd);
    expect_ok(client, kvpool_ping(client, NULL));
    kvpool_close(client);
}

static void a_client_reconnects_by_itself_and_learns_that_its_sequences_are_gone(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "restart", 16, random_seed());
    assert_non_null(load);
    kvpool_pool old_pool = load_pool(load);
    kvpool_seq seq;
    expect_ok(client, kvpool_seq_create(client, old_pool, 1, &seq));
    kvpool_daemon_info before = {.size = sizeof before}, after = {.size = sizeof after};
    expect_ok(client, kvpool_daemon(client, &before));

    assert_int_equal(daemon_end(&kvd, SIGKILL, 5000), 128 + SIGKILL);
    expect_status(client, KVPOOL_E_CONN, kvpool_seq_truncate(client, seq, 0));
    expect_status(client, KVPOOL_E_CONN, kvpool_ping(client, NULL));

    daemon_start(&kvd, NULL);
    expect_status(client, KVPOOL_E_LOST, kvpool_seq_truncate(client, seq, 0));
    expect_status(client, KVPOOL_E_STALE, kvpool_seq_truncate(client, seq, 0));
    expect_status(client, KVPOOL_E_STALE, kvpool_seq_create(client, old_pool, 1, &seq));
    expect_ok(client, kvpool_daemon(client, &after));
    assert_int_not_equal(before.epoch, after.epoch);

    // The old region is unusable, a new one and new objects work.
    load_close(load);
    load = load_open(client, "restart", 16, 1);
    assert_non_null(load);
    for (unsigned i = 0; i < 50; i++) {
        expect_ok(client, load_round(load));
    }
    load_close(load);
    kvpool_close(client);
}

static void a_region_of_before_the_restart_is_refused(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    kvpool_region *old;
    expect_ok(client, kvpool_region_create(client, 4096, &old));
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
    daemon_start(&kvd, NULL);
    struct load *load = load_open(client, "region", 16, 1);
    if (load == NULL) { // the first call may be the one that says LOST
        load = load_open(client, "region", 16, 1);
    }
    assert_non_null(load);
    kvpool_seq seq;
    kvpool_status first = kvpool_seq_create(client, load_pool(load), 1, &seq);
    if (first == KVPOOL_E_LOST) {
        expect_ok(client, kvpool_seq_create(client, load_pool(load), 1, &seq));
    }
    const uint32_t one = 1;
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    attn.pool = load_pool(load);
    attn.n = 1;
    attn.seqs = &seq;
    attn.q_len = &one;
    attn.qo_heads = LOAD_QO_HEADS;
    attn.q = (kvpool_tensor){old, 0, 0, 0};
    attn.out = (kvpool_tensor){old, 1024, 0, 0};
    kvpool_status status = kvpool_decode(client, &attn);
    assert_true(status == KVPOOL_E_LOST || status == KVPOOL_E_STALE);
    kvpool_region_free(old);
    load_close(load);
    kvpool_close(client);
}

static void a_second_daemon_on_the_path_is_refused_and_the_first_goes_on(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "twice", 16, 7);
    assert_non_null(load);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(daemon_run_to_end(&kvd, NULL, 10000), 1);
        expect_ok(client, load_round(load));
    }
    char want[64];
    snprintf(want, sizeof want, "%d", (int)kvd.pid);
    const char *said = strstr(daemon_log(&kvd), "held by a live kvpoold");
    assert_non_null(said);
    assert_non_null(strstr(said, want));
    load_close(load);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(sigterm_under_load_drains_and_exits_0, kvd_setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(
            sigkill_under_load_leaves_typed_errors_and_the_path_is_usable_again, kvd_setup,
            kvd_teardown),
        cmocka_unit_test_setup_teardown(
            a_client_reconnects_by_itself_and_learns_that_its_sequences_are_gone, kvd_setup,
            kvd_teardown),
        cmocka_unit_test_setup_teardown(a_region_of_before_the_restart_is_refused, kvd_setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(
            a_second_daemon_on_the_path_is_refused_and_the_first_goes_on, kvd_setup, kvd_teardown),
    };
    return cmocka_run_group_tests_name("restart", tests, NULL, NULL);
}
