// SPDX-License-Identifier: Apache-2.0
// test_bench_procs.c: the bench's children end and are reaped, whatever they do; and what
// kvpool-bench says when it cannot start a daemon.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bench/bench.h"
#include "bench/procs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t bench_now_ns(void) { // bench.c has the program's main and cannot be linked here
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static pid_t start_shell(struct procs *p, const char *script, const char *log) {
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    pid_t pid = procs_start(p, argv, log);
    assert_true(pid > 0);
    return pid;
}

static void expect_gone(pid_t pid) {
    assert_int_equal(waitpid(pid, NULL, WNOHANG), -1); // reaped: no child of ours any more
    assert_int_equal(errno, ECHILD);
}

static void a_child_that_ends_is_reaped(void **state) {
    struct procs p = {.n = 0};
    (void)state;
    pid_t pid = start_shell(&p, "exit 3", NULL);
    assert_true(procs_wait(&p, 5000));
    assert_int_equal(p.n, 0);
    assert_false(procs_alive(&p, pid));
    expect_gone(pid);
}

static void stop_ends_children_that_listen_to_sigterm(void **state) {
    struct procs p = {.n = 0};
    (void)state;
    pid_t pid = start_shell(&p, "exec sleep 60", NULL);
    assert_true(procs_alive(&p, pid));
    assert_false(procs_wait(&p, 20));
    procs_stop(&p, 5000);
    assert_int_equal(p.n, 0);
    expect_gone(pid);
}

static void stop_kills_children_that_ignore_sigterm(void **state) {
    struct procs p = {.n = 0};
    char log[] = "/tmp/kvpool-procs-XXXXXX";
    struct stat st = {0};
    int fd = mkstemp(log);
    (void)state;
    assert_true(fd >= 0);
    close(fd);
    pid_t pid = start_shell(&p, "trap '' TERM; echo ready; while :; do sleep 0.05; done", log);
    for (int i = 0; i < 500 && st.st_size == 0; i++) { // until the trap is set
        const struct timespec ts = {0, 10000000};
        nanosleep(&ts, NULL);
        assert_int_equal(stat(log, &st), 0);
    }
    assert_true(st.st_size > 0);
    procs_stop(&p, 100);
    assert_int_equal(p.n, 0);
    expect_gone(pid);
    unlink(log);
}

static void a_program_that_does_not_exist_ends_with_127(void **state) {
    const char *argv[] = {"/nonexistent/program", NULL};
    struct procs p = {.n = 0};
    int status = 0;
    (void)state;
    pid_t pid = procs_start(&p, argv, NULL);
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 127);
}

static void a_full_list_starts_nothing(void **state) {
    const char *argv[] = {"/bin/true", NULL};
    struct procs p = {.n = PROCS_MAX};
    (void)state;
    assert_int_equal(procs_start(&p, argv, NULL), -1);
    assert_int_equal(p.n, PROCS_MAX);
}

static void programs_are_found_in_kvpool_bin_only_when_it_is_set(void **state) {
    char path[512];
    char saved[512];
    char small[4];
    (void)state;
    snprintf(saved, sizeof(saved), "%s", getenv("KVPOOL_BIN"));
    assert_true(procs_find("kvpool-bench", path, sizeof(path)));
    assert_false(procs_find("no-such-program", path, sizeof(path)));
    assert_false(procs_find("kvpool-bench", small, sizeof(small)));
    setenv("KVPOOL_BIN", "/nonexistent", 1);
    assert_false(procs_find("kvpool-bench", path, sizeof(path)));
    setenv("KVPOOL_BIN", saved, 1);
}

// Runs kvpool-bench control with another $KVPOOL_BIN; it must fail and say `text`.
static void expect_failure(const char *bin, const char *text) {
    char line[1200];
    char said[8192];
    snprintf(line, sizeof(line), "exec 2>&1; KVPOOL_BIN=%s exec %s/kvpool-bench control --quick",
             bin, getenv("KVPOOL_BIN"));
    FILE *f = popen(line, "r"); // NOLINT(cert-env33-c): a command line of our own
    assert_non_null(f);
    size_t n = fread(said, 1, sizeof(said) - 1, f);
    said[n] = 0;
    int rc = pclose(f);
    if (!WIFEXITED(rc) || WEXITSTATUS(rc) != 1 || strstr(said, text) == NULL) {
        fail_msg("status %d, wanted '%s': %s", rc, text, said);
    }
}

static void without_a_daemon_program_the_bench_says_so(void **state) {
    (void)state;
    expect_failure("/nonexistent", "no kvpoold beside this program");
}

static void a_daemon_that_ends_at_once_is_quoted(void **state) {
    char dir[] = "/tmp/kvpool-procs-XXXXXX";
    char path[64];
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/kvpoold", dir);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs("#!/bin/sh\necho no luck today\nexit 1\n", f);
    fclose(f);
    assert_int_equal(chmod(path, 0700), 0);
    expect_failure(dir, "no luck today");
    unlink(path);
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_that_ends_is_reaped),
        cmocka_unit_test(stop_ends_children_that_listen_to_sigterm),
        cmocka_unit_test(stop_kills_children_that_ignore_sigterm),
        cmocka_unit_test(a_program_that_does_not_exist_ends_with_127),
        cmocka_unit_test(a_full_list_starts_nothing),
        cmocka_unit_test(programs_are_found_in_kvpool_bin_only_when_it_is_set),
        cmocka_unit_test(without_a_daemon_program_the_bench_says_so),
        cmocka_unit_test(a_daemon_that_ends_at_once_is_quoted),
    };
    return cmocka_run_group_tests_name("bench/procs", tests, NULL, NULL);
}
