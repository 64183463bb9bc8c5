// SPDX-License-Identifier: Apache-2.0
// test_resume.c: workers whose connections break while their processes live: within the daemon's
// session_grace nothing is lost, after it everything is given back and the worker is told.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GRACE_MS 1500
#define PAGES 64

static int setup(void **state) {
    (void)state;
    const char *const extra[] = {"--session-grace", "1500ms", NULL};
    daemon_prepare(&kvd);
    daemon_start(&kvd, extra);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    daemon_cleanup(&kvd);
    return 0;
}

// Breaks every connection of this process to the daemon, as a network would: both ends see it.
static unsigned break_connections(void) {
    DIR *fds = opendir("/proc/self/fd");
    unsigned n = 0;
    if (fds == NULL) {
        check(false);
        return 0;
    }
    for (struct dirent *e; (e = readdir(fds)) != NULL;) {
        struct sockaddr_un peer = {.sun_family = AF_UNSPEC};
        socklen_t size = sizeof peer;
        const int fd = (int)strtol(e->d_name, NULL, 10);
        if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0 && peer.sun_family == AF_UNIX &&
            strncmp(peer.sun_path, kvd.dir, strlen(kvd.dir)) == 0) {
            check(shutdown(fd, SHUT_RDWR) == 0);
            n++;
        }
    }
    closedir(fds);
    return n;
}

static uint32_t free_pages(kvpool_client *client, kvpool_pool pool) {
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_pool_stat(client, pool, &info));
    return info.free_pages;
}

// A sequence with `tokens` new tokens in an open step.
static kvpool_seq open_step(kvpool_client *client, kvpool_pool pool, uint32_t tokens,
                            kvpool_step *ret_step) {
    kvpool_seq seq = 0;
    expect_ok(client, kvpool_seq_create(client, pool, 1, &seq));
    kvpool_step_args args = {
        .size = sizeof args, .pool = pool, .n = 1, .seqs = &seq, .new_tokens = &tokens};
    expect_ok(client, kvpool_step_begin(client, &args, ret_step, NULL));
    return seq;
}

static void a_worker_goes_on_after_its_connections_broke(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "load", PAGES, random_seed());
    assert_non_null(load);
    for (unsigned i = 0; i < 20; i++) {
        kvpool_step step;
        kvpool_seq seq = open_step(client, load_pool(load), 9, &step);
        assert_true(break_connections() >= 2); // fd.sock and kvpool.sock
        expect_ok(client, kvpool_step_abort(client, step));
        expect_ok(client, kvpool_seq_free(client, 1, &seq));
        expect_ok(client, load_round(load)); // outputs over what was stored before
    }
    assert_null(strstr(daemon_log(&kvd), "reason=grace-over"));
    assert_non_null(strstr(daemon_log(&kvd), "session.attach"));
    load_close(load);
    kvpool_close(client);
}

static void a_silent_worker_gives_its_pages_back_and_is_told(void **state) {
    (void)state;
    kvpool_client *other = client_open(&kvd);
    struct load *load = load_open(other, "load", PAGES, 1);
    assert_non_null(load);
    kvpool_pool pool = load_pool(load);
    kvpool_step step;
    // In this process too, but on connections of its own, which break first.
    kvpool_client *client = client_open(&kvd);
    kvpool_seq seq = open_step(client, pool, 100, &step);
    assert_true(break_connections() >= 2);
    assert_int_equal(free_pages(other, pool), PAGES - 13);
    uint64_t until = now_ns() + 20000000000u;
    while (free_pages(other, pool) != PAGES) { // it speaks, and so lives on
        check(now_ns() < until);
        sleep_ms(50);
    }
    assert_non_null(strstr(daemon_log(&kvd), "reason=grace-over"));
    kvpool_seq_info info = {.size = sizeof info};
    expect_status(client, KVPOOL_E_LOST, kvpool_seq_stat(client, seq, &info));
    expect_status(client, KVPOOL_E_STALE, kvpool_seq_stat(client, seq, &info));
    open_step(client, pool, 8, &step);
    expect_ok(client, kvpool_step_abort(client, step));
    load_close(load);
    kvpool_close(client);
    kvpool_close(other);
}

static int break_and_wait(void *arg) {
    const int *report = arg;
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool;
    kvpool_step step;
    expect_ok(client, kvpool_pool_open(client, "load", &pool));
    open_step(client, pool, 100, &step);
    check(break_connections() >= 2);
    check(write(*report, "x", 1) == 1);
    pause();
    return 1;
}

static void a_worker_killed_within_its_grace_is_reclaimed_at_once(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "load", PAGES, 1);
    assert_non_null(load);
    int report[2];
    char byte;
    assert_int_equal(pipe(report), 0);
    pid_t pid = worker_start(break_and_wait, &report[1]);
    assert_int_equal(read(report[0], &byte, 1), 1);
    assert_int_equal(free_pages(client, load_pool(load)), PAGES - 13);
    const uint64_t since = now_ns();
    assert_int_equal(kill(pid, SIGKILL), 0);
    while (free_pages(client, load_pool(load)) != PAGES) {
        check(now_ns() - since < GRACE_MS * 1000000ull / 2);
    }
    assert_int_equal(process_wait(pid, 5000), 128 + SIGKILL);
    assert_non_null(strstr(daemon_log(&kvd), "reason=process-ended"));
    close(report[0]);
    close(report[1]);
    load_close(load);
    kvpool_close(client);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_worker_goes_on_after_its_connections_broke),
        TEST(a_silent_worker_gives_its_pages_back_and_is_told),
        TEST(a_worker_killed_within_its_grace_is_reclaimed_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
