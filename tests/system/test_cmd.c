// SPDX-License-Identifier: Apache-2.0
// test_cmd.c: the `kvpool` command against a live daemon, and without one.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <string.h>

static char out[1 << 16];

static int setup(void **state) {
    (void)state;
    daemon_prepare(&kvd);
    daemon_start(&kvd, NULL);
    return 0;
}

static int kvpool(const char *a, const char *b, const char *c, const char *d) {
    char program[512];
    snprintf(program, sizeof program, "%s", program_path("kvpool"));
    const char *const argv[] = {program, "--dir", kvd.dir, a, b, c, d, NULL};
    return program_run(out, sizeof out, 30000, argv);
}

static void expect_output(const char *part) {
    if (strstr(out, part) == NULL) {
        fail_msg("no \"%s\" in:\n%s", part, out);
    }
}

static void commands_show_a_live_daemon(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "shown", 77, 9);
    assert_non_null(load);
    for (unsigned i = 0; i < 40; i++) {
        expect_ok(client, load_round(load));
    }
    assert_int_equal(kvpool("status", NULL, NULL, NULL), 0);
    expect_output("shown");
    expect_output("77");
    expect_output(daemon_backend());
    assert_int_equal(kvpool("--json", "status", NULL, NULL), 0);
    expect_output("\"pools\"");
    expect_output("\"free_pages\"");
    expect_output("\"queue_depth\"");
    assert_int_equal(kvpool("ping", "-c", "3", NULL), 0);
    expect_output("p50");
    assert_int_equal(kvpool("sequences", NULL, NULL, NULL), 0);
    expect_output("shown");
    assert_int_equal(kvpool("--json", "sequences", NULL, NULL), 0);
    assert_int_equal(out[0], '[');
    assert_int_equal(kvpool("doctor", NULL, NULL, NULL), 0);
    expect_output("ok");
    assert_null(strstr(out, "FAIL"));
    assert_int_equal(kvpool("top", "-n", "2", "--delay=0.2"), 0);
    expect_output("shown");
    char count[16];
    snprintf(count, sizeof count, "%d", 2000 / SLOWNESS);
    assert_int_equal(kvpool("bench", "-n", count, NULL), 0);
    expect_output("P50");
    expect_output("decode");
    load_close(load);
    kvpool_close(client);
}

static void commands_without_a_daemon_say_so_and_fail(void **state) {
    (void)state;
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
    assert_int_equal(kvpool("status", NULL, NULL, NULL), 1);
    expect_output(kvd.dir);
    assert_int_equal(kvpool("ping", NULL, NULL, NULL), 1);
    assert_int_equal(kvpool("doctor", NULL, NULL, NULL), 1);
    expect_output("FAIL");
    assert_int_equal(kvpool("nonsense", NULL, NULL, NULL), 64);
    assert_int_equal(kvpool("--help", NULL, NULL, NULL), 0);
    expect_output("doctor");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_show_a_live_daemon),
        cmocka_unit_test(commands_without_a_daemon_say_so_and_fail),
    };
    return cmocka_run_group_tests_name("cmd", tests, setup, kvd_teardown);
}
