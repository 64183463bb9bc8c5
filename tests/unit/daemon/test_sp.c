// SPDX-License-Identifier: Apache-2.0
// test_sp.c: what a connection to a listener finds out.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/sp.h"
#include "tests/unit/daemon/tmpdir.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 2

static struct tmpdir dir;
static struct sockaddr_un addr;
static int listener;

static int setup(void **state) {
    (void)state;
    listener = -1;
    addr.sun_family = AF_UNIX;
    if (!tmpdir_make(&dir)) {
        return -1;
    }
    tmpdir_file(&dir, "socket", addr.sun_path, sizeof addr.sun_path);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    if (listener >= 0) {
        close(listener);
    }
    tmpdir_remove(&dir);
    return 0;
}

static void bind_one(int type) {
    listener = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_true(listener >= 0);
    assert_int_equal(0, bind(listener, (const struct sockaddr *)&addr, sizeof addr));
}

static void listen_one(int type) {
    bind_one(type);
    assert_int_equal(0, listen(listener, BACKLOG));
}

// The answer of a connection that must not be there afterwards.
static enum sp_answer refused(const void *more, size_t len) {
    int fd = -7;
    enum sp_answer answer = sp_connect(&addr, SP_REQ, more, len, &fd);
    assert_int_equal(-7, fd);
    return answer;
}

static void the_handshake_goes_before_what_follows(void **state) {
    static const struct {
        enum sp_protocol protocol;
        uint8_t handshake[8];
    } cases[] = {
        {SP_SUB, {0, 'S', 'P', 0, 0, 0x21, 0, 0}},
        {SP_REQ, {0, 'S', 'P', 0, 0, 0x30, 0, 0}},
    };
    uint8_t got[32];
    (void)state;
    listen_one(SOCK_STREAM);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t len = 3 * i;
        int fd = -1, peer;
        assert_int_equal(SP_CONNECTED, sp_connect(&addr, cases[i].protocol, "ping", len, &fd));
        assert_int_not_equal(0, fcntl(fd, F_GETFL) & O_NONBLOCK);
        assert_int_not_equal(0, fcntl(fd, F_GETFD) & FD_CLOEXEC);
        peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        assert_int_equal(8 + len, recv(peer, got, sizeof got, 0));
        assert_memory_equal(cases[i].handshake, got, 8);
        assert_memory_equal("ping", got + 8, len);
        close(peer);
        close(fd);
    }
    sp_handshake(SP_REP, got);
    assert_memory_equal("\0SP\0\0\x31\0\0", got, 8);
}

static void a_full_backlog_is_busy_until_somebody_accepts(void **state) {
    int fds[BACKLOG + 1], peer;
    (void)state;
    listen_one(SOCK_STREAM);
    for (int i = 0; i <= BACKLOG; i++) {
        assert_int_equal(SP_CONNECTED, sp_connect(&addr, SP_REQ, NULL, 0, &fds[i]));
    }
    assert_int_equal(SP_BUSY, refused(NULL, 0));
    peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(fds[0]);
    assert_int_equal(SP_CONNECTED, sp_connect(&addr, SP_REQ, NULL, 0, &fds[0]));
    for (int i = 0; i <= BACKLOG; i++) {
        close(fds[i]);
    }
    close(peer);
}

static void nobody_is_gone(void **state) {
    (void)state;
    assert_int_equal(SP_GONE, refused(NULL, 0)); // no such file
    bind_one(SOCK_STREAM);
    assert_int_equal(SP_GONE, refused(NULL, 0)); // it does not listen
}

static void without_a_descriptor_it_is_untried(void **state) {
    struct rlimit old, none;
    enum sp_answer answer;
    (void)state;
    listen_one(SOCK_STREAM);
    assert_int_equal(0, getrlimit(RLIMIT_NOFILE, &old));
    none = old;
    none.rlim_cur = 0;
    assert_int_equal(0, setrlimit(RLIMIT_NOFILE, &none));
    answer = refused(NULL, 0);
    assert_int_equal(0, setrlimit(RLIMIT_NOFILE, &old));
    assert_int_equal(SP_UNTRIED, answer);
}

static void another_kind_of_socket_refuses(void **state) {
    (void)state;
    listen_one(SOCK_SEQPACKET);
    assert_int_equal(SP_REFUSED, refused(NULL, 0));
}

static void what_does_not_fit_at_once_is_refused_and_closed(void **state) {
    static uint8_t much[4 << 20];
    static uint8_t got[1 << 16];
    ssize_t n;
    int peer;
    (void)state;
    listen_one(SOCK_STREAM);
    assert_int_equal(SP_REFUSED, refused(much, sizeof much));
    peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while ((n = recv(peer, got, sizeof got, MSG_DONTWAIT)) > 0) {
    }
    assert_int_equal(0, n); // the end, not a wait for more
    close(peer);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_handshake_goes_before_what_follows),
        TEST(a_full_backlog_is_busy_until_somebody_accepts),
        TEST(nobody_is_gone),
        TEST(without_a_descriptor_it_is_untried),
        TEST(another_kind_of_socket_refuses),
        TEST(what_does_not_fit_at_once_is_refused_and_closed),
    };
    return cmocka_run_group_tests_name("sp", tests, NULL, NULL);
}
