// SPDX-License-Identifier: Apache-2.0
// test_notify.c: the datagrams that a service manager reads, received on a socket of our own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/notify.h"
#include "tests/unit/daemon/tmpdir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct tmpdir dir;

static int setup(void **state) {
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return tmpdir_make(&dir) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    tmpdir_remove(&dir);
    return 0;
}

// A manager's socket; name "@..." is the abstract namespace.
static int manager(const char *name) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const size_t len = strlen(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && len < sizeof addr.sun_path);
    memcpy(addr.sun_path, name, len);
    if (name[0] == '@') {
        addr.sun_path[0] = '\0';
    }
    assert_int_equal(
        0, bind(fd, (struct sockaddr *)&addr,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (name[0] != '@'))));
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static void a_state_is_one_datagram(void **state) {
    char name[100], text[256] = "";
    int fd;
    (void)state;
    tmpdir_file(&dir, "notify", name, sizeof name);
    fd = manager(name);
    assert_true(notify_send("READY=1\nSTATUS=%s %d", "pools:", 2));
    assert_true(notify_send("WATCHDOG=1"));
    assert_int_equal(23, recv(fd, text, sizeof text - 1, MSG_DONTWAIT));
    assert_string_equal("READY=1\nSTATUS=pools: 2", text);
    assert_int_equal(10, recv(fd, text, sizeof text - 1, MSG_DONTWAIT));
    close(fd);
}

static void an_abstract_socket_works(void **state) {
    char name[64], text[64] = "";
    int fd;
    (void)state;
    snprintf(name, sizeof name, "@kvpool-test-%ld", (long)getpid());
    fd = manager(name);
    assert_true(notify_send("STOPPING=1"));
    assert_int_equal(10, recv(fd, text, sizeof text - 1, MSG_DONTWAIT));
    assert_string_equal("STOPPING=1", text);
    close(fd);
}

static void without_a_manager_nothing_happens(void **state) {
    (void)state;
    assert_true(notify_send("READY=1"));
    setenv("NOTIFY_SOCKET", "", 1);
    assert_true(notify_send("READY=1"));
}

static void a_manager_that_cannot_be_reached_is_reported(void **state) {
    char name[300];
    (void)state;
    tmpdir_file(&dir, "nobody", name, sizeof name);
    setenv("NOTIFY_SOCKET", name, 1);
    assert_false(notify_send("READY=1"));
    setenv("NOTIFY_SOCKET", "relative", 1);
    assert_false(notify_send("READY=1"));
    memset(name, '/', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    setenv("NOTIFY_SOCKET", name, 1);
    assert_false(notify_send("READY=1"));
}

static void a_manager_that_does_not_read_does_not_block(void **state) {
    char name[100];
    bool sent = true;
    int fd;
    (void)state;
    tmpdir_file(&dir, "full", name, sizeof name);
    fd = manager(name);
    for (int i = 0; i < 100000 && sent; i++) {
        sent = notify_send("WATCHDOG=1");
    }
    assert_false(sent);
    close(fd);
}

static void the_watchdog_time_is_ours_only_with_our_pid(void **state) {
    char pid[24];
    (void)state;
    assert_int_equal(0, notify_watchdog_us());
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(30000000, notify_watchdog_us());
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(0, notify_watchdog_us());
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(30000000, notify_watchdog_us());
    setenv("WATCHDOG_USEC", "soon", 1);
    assert_int_equal(0, notify_watchdog_us());
    setenv("WATCHDOG_USEC", "99999999999999999999999", 1);
    assert_int_equal(0, notify_watchdog_us());
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_state_is_one_datagram),
        TEST(an_abstract_socket_works),
        TEST(without_a_manager_nothing_happens),
        TEST(a_manager_that_cannot_be_reached_is_reported),
        TEST(a_manager_that_does_not_read_does_not_block),
        TEST(the_watchdog_time_is_ours_only_with_our_pid),
    };
    return cmocka_run_group_tests_name("notify", tests, NULL, NULL);
}
