// SPDX-License-Identifier: Apache-2.0
// test_daemon.c: kvpoold as its operator meets it: configuration, signals, logs, a full disk.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int setup(void **state) {
    (void)state;
    daemon_prepare(&kvd);
    return 0;
}

static const char *write_file(const char *name, const char *text) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", kvd.dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void expect_config_refused(const char *text, const char *says) {
    const char *const extra[] = {"--config", write_file("bad.conf", text), "--check-config", NULL};
    truncate(kvd.log, 0);
    assert_int_equal(daemon_run_to_end(&kvd, extra, 10000), 1);
    if (strstr(daemon_log(&kvd), says) == NULL) {
        fail_msg("\"%s\" does not name \"%s\"", daemon_log(&kvd), says);
    }
}

static void contradictory_and_broken_configurations_are_refused_with_the_line(void **state) {
    (void)state;
    expect_config_refused("[kvpoold]\nslots = many\n", "slots");
    expect_config_refused("[kvpoold]\nno_such_key = 1\n", "no_such_key");
    expect_config_refused("[kvpoold]\nslots = 8\nmax_inflight = 9\n", "max_inflight");
    expect_config_refused("[pool a]\nlayers = 1\nkv_heads = 1\nhead_dim = 9\npage_size = 16\n"
                          "dtype = bf16\nnum_pages = 4\n",
                          "head_dim");
    expect_config_refused("[kvpoold]\nthis is not a setting\n", "bad.conf:2");
    const char *const missing[] = {"--config", "/nonexistent.conf", "--check-config", NULL};
    truncate(kvd.log, 0);
    assert_int_equal(daemon_run_to_end(&kvd, missing, 10000), 1);
    assert_non_null(strstr(daemon_log(&kvd), "/nonexistent.conf"));
}

static void a_socket_path_that_is_too_long_is_refused(void **state) {
    (void)state;
    char dir[150];
    memset(dir, 'd', sizeof dir - 1);
    dir[0] = '/';
    dir[sizeof dir - 1] = 0;
    const char *const extra[] = {"--dir", dir, NULL};
    assert_int_equal(daemon_run_to_end(&kvd, extra, 10000), 1);
    assert_non_null(strstr(daemon_log(&kvd), "107"));
}

static void backend_cuda_says_plainly_that_there_is_none(void **state) {
    (void)state;
    const char *const extra[] = {"--backend", "cuda", NULL};
    if (access("/dev/nvidiactl", F_OK) == 0)
        skip(); // this machine may well have one
    assert_int_equal(daemon_run_to_end(&kvd, extra, 10000), 1);
    assert_non_null(strstr(daemon_log(&kvd), "CUDA"));
}

static void pools_of_the_configuration_are_there_and_check_config_accepts(void **state) {
    (void)state;
    const char *path = write_file("good.conf", "[kvpoold]\nlog_level = debug\n"
                                               "[pool llama]\nlayers = 2\nkv_heads = 2\n"
                                               "head_dim = 64\npage_size = 16\ndtype = bf16\n"
                                               "num_pages = 100\n");
    const char *const check_only[] = {"--config", path, "--check-config", NULL};
    assert_int_equal(daemon_run_to_end(&kvd, check_only, 10000), 0);
    const char *const extra[] = {"--config", path, NULL};
    daemon_start(&kvd, extra);
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool;
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_pool_open(client, "llama", &pool));
    expect_ok(client, kvpool_pool_stat(client, pool, &info));
    assert_int_equal(info.num_pages, 100);
    assert_int_equal(info.bytes, 100u * 2 * 2 * 2 * 16 * 64 * 2);
    kvpool_close(client);
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
}

static void print_config_reads_back(void **state) {
    (void)state;
    const char *const extra[] = {"--slots", "100", "--print-config", NULL};
    truncate(kvd.log, 0);
    assert_int_equal(daemon_run_to_end(&kvd, extra, 10000), 0);
    const char *said = daemon_log(&kvd);
    assert_non_null(strstr(said, "slots = 100"));
    assert_non_null(strstr(said, "flag"));
    const char *path = write_file("printed.conf", said);
    const char *const again[] = {"--config", path, "--check-config", NULL};
    assert_int_equal(daemon_run_to_end(&kvd, again, 10000), 0);
}

static void sighup_applies_what_is_safe_and_names_what_is_not(void **state) {
    (void)state;
    const char *path =
        write_file("hup.conf", "[kvpoold]\nlog_level = info\nslots = 32\nmax_inflight = 16\n");
    const char *const extra[] = {"--config", path, NULL};
    daemon_start(&kvd, extra);
    write_file("hup.conf", "[kvpoold]\nlog_level = debug\nslots = 64\nmax_inflight = 16\n");
    truncate(kvd.log, 0);
    kill(kvd.pid, SIGHUP);
    uint64_t end = now_ns() + 5000000000u;
    while (now_ns() < end && strstr(daemon_log(&kvd), "restart") == NULL) {
        sleep_ms(20);
    }
    assert_non_null(strstr(daemon_log(&kvd), "log_level"));
    assert_non_null(strstr(daemon_log(&kvd), "slots"));
    assert_non_null(strstr(daemon_log(&kvd), "restart"));
    // A broken file changes nothing and ends nothing.
    write_file("hup.conf", "[kvpoold]\nslots = broken\n");
    kill(kvd.pid, SIGHUP);
    sleep_ms(200);
    kvpool_client *client = client_open(&kvd);
    expect_ok(client, kvpool_ping(client, NULL));
    kvpool_close(client);
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
}

static void a_full_disk_for_logs_stops_nothing(void **state) {
    (void)state;
    const char *const extra[] = {"--log-file", "/dev/full", "--log-level", "debug", NULL};
    daemon_start(&kvd, extra);
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "full", 32, 5);
    assert_non_null(load);
    for (unsigned i = 0; i < 100; i++) {
        expect_ok(client, load_round(load));
    }
    load_close(load);
    kvpool_close(client);
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
}

static void sockets_and_directory_are_closed_to_strangers(void **state) {
    (void)state;
    char dir[256], path[300];
    snprintf(dir, sizeof dir, "%s/run", kvd.dir);
    struct daemon inner = kvd;
    snprintf(inner.dir, sizeof inner.dir, "%.100s/run", kvd.dir);
    daemon_start(&inner, NULL);
    struct stat st;
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0750);
    snprintf(path, sizeof path, "%s/kvpool.sock", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    snprintf(path, sizeof path, "%s/fd.sock", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
    assert_int_equal(daemon_end(&inner, SIGINT, 10000), 0);
}

static void log_lines_are_single_and_have_priorities_under_journald(void **state) {
    (void)state;
    assert_int_equal(setenv("JOURNAL_STREAM", "8:1234", 1), 0);
    daemon_start(&kvd, NULL);
    unsetenv("JOURNAL_STREAM");
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = kvd.dir;
    args.name = "evil\n<0>name";
    kvpool_client *client;
    if (kvpool_connect(&args, &client) == KVPOOL_OK) {
        kvpool_close(client);
    }
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
    unsigned lines = 0;
    for (const char *p = daemon_log(&kvd); *p != 0; lines++) {
        assert_true(p[0] == '<' && p[1] >= '1' && p[1] <= '7' && p[2] == '>');
        const char *end = strchr(p, '\n');
        assert_non_null(end);
        p = end + 1;
    }
    assert_true(lines >= 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            contradictory_and_broken_configurations_are_refused_with_the_line, setup, kvd_teardown),
        cmocka_unit_test_setup_teardown(a_socket_path_that_is_too_long_is_refused, setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(backend_cuda_says_plainly_that_there_is_none, setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(
            pools_of_the_configuration_are_there_and_check_config_accepts, setup, kvd_teardown),
        cmocka_unit_test_setup_teardown(print_config_reads_back, setup, kvd_teardown),
        cmocka_unit_test_setup_teardown(sighup_applies_what_is_safe_and_names_what_is_not, setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_for_logs_stops_nothing, setup, kvd_teardown),
        cmocka_unit_test_setup_teardown(sockets_and_directory_are_closed_to_strangers, setup,
                                        kvd_teardown),
        cmocka_unit_test_setup_teardown(log_lines_are_single_and_have_priorities_under_journald,
                                        setup, kvd_teardown),
    };
    return cmocka_run_group_tests_name("daemon", tests, NULL, NULL);
}
