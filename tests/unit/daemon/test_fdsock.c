// SPDX-License-Identifier: Apache-2.0
// test_fdsock.c: the fd socket's listener against peers that say nothing, come in masses or find
// the daemon out of file descriptors. Its user here answers every packet with a copy. Linked with
// --wrap of uv_hrtime.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/fdsock.h"
#include "daemon/log.h"
#include "tests/unit/daemon/tmpdir.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static uv_loop_t loop;
static struct fdsock *sock;
static char dir[64];
static int packets, gone;
static bool admit, close_conn;
static uint64_t later_ns; // that the daemon's clock is ahead

uint64_t __real_uv_hrtime(void); // NOLINT(bugprone-reserved-identifier)
uint64_t __wrap_uv_hrtime(void); // NOLINT(bugprone-reserved-identifier)

uint64_t __wrap_uv_hrtime(void) { // NOLINT(bugprone-reserved-identifier)
    return __real_uv_hrtime() + later_ns;
}

static void on_packet(void *arg, struct fdsock_conn *conn, const struct fdsock_packet *packet) {
    (void)arg;
    packets++;
    assert_int_equal(conn->pid, getpid());
    assert_int_equal(conn->uid, getuid());
    if (admit)
        fdsock_admit(conn);
    fdsock_send(conn, packet->bytes, packet->len, -1);
    if (close_conn)
        fdsock_conn_close(conn);
}

static void on_gone(void *arg, struct fdsock_conn *conn) {
    (void)arg;
    (void)conn;
    gone++;
}

static int try_open(const char *path, struct err *err) {
    const struct fdsock_config config = {
        .dir = path, .mode = 0640, .max_conns = 8, .hello_ns = 100000000};
    const struct fdsock_handler handler = {.packet = on_packet, .gone = on_gone};
    return fdsock_open(&loop, &config, &handler, &sock, err);
}

static int setup(void **state) {
    (void)state;
    struct err err;
    packets = gone = 0;
    later_ns = 0;
    admit = true;
    close_conn = false;
    snprintf(dir, sizeof dir, "/tmp/kvpool-test-XXXXXX");
    if (mkdtemp(dir) == NULL || uv_loop_init(&loop) != 0)
        return -1;
    return try_open(dir, &err);
}

static int teardown(void **state) {
    (void)state;
    fdsock_close(sock);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return rmdir(dir);
}

static void on_nothing(uv_timer_t *timer) {
    (void)timer;
}

// Runs the loop until `fd` has something to read (-1: for all of `ms`). True when it has.
static bool run(int fd, uint32_t ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t end = uv_hrtime() + ms * 1000000ull;
    uv_timer_t timer;
    uv_timer_init(&loop, &timer);
    uv_timer_start(&timer, on_nothing, 1, 1);
    bool found = false;
    while (!found && uv_hrtime() < end) {
        uv_run(&loop, UV_RUN_ONCE);
        found = poll(&p, 1, 0) == 1;
    }
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(&loop, UV_RUN_NOWAIT);
    return found;
}

static int make_socket(void) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    return fd;
}

static void connect_socket(int fd) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/fd.sock", dir);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
}

static bool echoes(int fd) {
    char byte = 'a';
    return send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && run(fd, 5000) && recv(fd, &byte, 1, 0) == 1;
}

static bool at_end(int fd) {
    char byte;
    return run(fd, 5000) && recv(fd, &byte, 1, 0) <= 0;
}

static void packets_are_answered_until_the_peer_goes(void **state) {
    (void)state;
    int fd = make_socket();
    connect_socket(fd);
    assert_true(echoes(fd));
    assert_true(echoes(fd));
    assert_int_equal(packets, 2);
    assert_int_equal(fdsock_conns(sock), 1);
    close(fd);
    run(-1, 20);
    assert_int_equal(gone, 1);
    assert_int_equal(fdsock_conns(sock), 0);
}

static void the_socket_has_the_configured_mode(void **state) {
    (void)state;
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/fd.sock", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0640);
}

static void a_connection_that_says_nothing_is_closed(void **state) {
    (void)state;
    int silent = make_socket(), good = make_socket();
    connect_socket(silent);
    connect_socket(good);
    assert_true(echoes(good));
    assert_true(at_end(silent));
    assert_int_equal(gone, 0); // packet() never heard of it
    assert_true(echoes(good));
    admit = false;
    int talks = make_socket();
    connect_socket(talks);
    assert_true(echoes(talks)); // but never says who it is
    assert_true(at_end(talks));
    assert_int_equal(gone, 1);
    close(silent);
    close(good);
    close(talks);
}

static void the_user_may_close_from_within_packet(void **state) {
    (void)state;
    close_conn = true;
    int fd = make_socket();
    connect_socket(fd);
    assert_true(echoes(fd)); // the reply is not lost
    assert_true(at_end(fd));
    assert_int_equal(gone, 0);
    close(fd);
}

static void connections_over_the_limit_are_closed_at_once(void **state) {
    (void)state;
    int fds[9];
    for (int i = 0; i < 9; i++) {
        fds[i] = make_socket();
        connect_socket(fds[i]);
        if (i < 8)
            assert_true(echoes(fds[i]));
    }
    assert_true(at_end(fds[8]));
    assert_int_equal(fdsock_conns(sock), 8);
    close(fds[0]);
    run(-1, 20);
    int again = make_socket();
    connect_socket(again);
    assert_true(echoes(again));
    for (int i = 1; i < 9; i++)
        close(fds[i]);
    close(again);
}

static void running_out_of_descriptors_delays_a_connection_only(void **state) {
    (void)state;
    struct rlimit limit, low;
    int fd = make_socket(), other = make_socket();
    run(-1, 5); // whatever libuv opens lazily
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int next = fcntl(0, F_DUPFD_CLOEXEC, 0); // the next free number
    close(next);
    low = limit;
    low.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    connect_socket(fd);
    assert_int_equal(send(fd, "a", 1, 0), 1);
    bool answered = run(fd, 250);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_false(answered);
    assert_true(run(fd, 5000)); // accepted now
    connect_socket(other);
    assert_true(echoes(other));
    close(fd);
    close(other);
}

// --- what a peer can repeat -----------------------------------------------------------------------

static struct tmpdir logs;
static char log_path[128];

static int setup_log(void **state) {
    if (!tmpdir_make(&logs))
        return -1;
    tmpdir_file(&logs, "log", log_path, sizeof log_path);
    return log_open(log_path, LOG_INFO) == 0 ? setup(state) : -1;
}

static int teardown_log(void **state) {
    log_open(NULL, LOG_INFO);
    tmpdir_remove(&logs);
    return teardown(state);
}

// What happens again and again is one line, and after a minute one that has the number of the others.
static void logs_a_line_a_minute(const char *event, void (*happens)(void)) {
    for (int i = 0; i < 5; i++)
        happens();
    assert_int_equal(tmpdir_count(log_path, event), 1);
    assert_int_equal(tmpdir_count(log_path, " suppressed=0"), 1);
    later_ns += LOG_LIMIT_NS;
    for (int i = 0; i < 2; i++)
        happens();
    assert_int_equal(tmpdir_count(log_path, event), 2);
    assert_int_equal(tmpdir_count(log_path, " suppressed=4"), 1);
}

static void is_closed(void) {
    int fd = make_socket();
    connect_socket(fd);
    assert_true(at_end(fd));
    close(fd);
}

static void connections_over_the_limit_are_a_line_a_minute(void **state) {
    (void)state;
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = make_socket();
        connect_socket(fds[i]);
        assert_true(echoes(fds[i]));
    }
    logs_a_line_a_minute("fdsock.refused", is_closed);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
}

static void peers_that_say_nothing_are_a_line_a_minute(void **state) {
    (void)state;
    logs_a_line_a_minute("fdsock.silent", is_closed);
}

static void goes_without_its_reply(void) {
    int fd = make_socket(), before = packets;
    connect_socket(fd);
    assert_int_equal(send(fd, "a", 1, MSG_NOSIGNAL), 1);
    close(fd);
    run(-1, 20);
    assert_int_equal(packets, before + 1);
}

static void peers_that_read_nothing_are_a_line_a_minute(void **state) {
    (void)state;
    logs_a_line_a_minute("fdsock.dropped", goes_without_its_reply);
}

static void a_socket_file_left_over_is_replaced(void **state) {
    (void)state;
    fdsock_close(sock);
    uv_run(&loop, UV_RUN_DEFAULT);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/fd.sock", dir);
    int dead = make_socket();
    assert_int_equal(bind(dead, (struct sockaddr *)&addr, sizeof addr), 0);
    close(dead); // the file stays
    struct err err;
    assert_int_equal(try_open(dir, &err), 0);
    int fd = make_socket();
    connect_socket(fd);
    assert_true(echoes(fd));
    close(fd);
}

static void a_bad_directory_is_refused(void **state) {
    (void)state;
    char path[200];
    struct err err;
    fdsock_close(sock);
    snprintf(path, sizeof path, "/tmp/%0120d", 0);
    assert_int_equal(try_open(path, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "too long"));
    snprintf(path, sizeof path, "%s/none", dir);
    assert_int_equal(try_open(path, &err), KVPOOL_E_SYSTEM);
    assert_int_equal(try_open(dir, &err), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define LOGS(name) cmocka_unit_test_setup_teardown(name, setup_log, teardown_log)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(packets_are_answered_until_the_peer_goes),
        TEST(the_socket_has_the_configured_mode),
        TEST(a_connection_that_says_nothing_is_closed),
        TEST(the_user_may_close_from_within_packet),
        TEST(connections_over_the_limit_are_closed_at_once),
        TEST(running_out_of_descriptors_delays_a_connection_only),
        LOGS(connections_over_the_limit_are_a_line_a_minute),
        LOGS(peers_that_say_nothing_are_a_line_a_minute),
        LOGS(peers_that_read_nothing_are_a_line_a_minute),
        TEST(a_socket_file_left_over_is_replaced),
        TEST(a_bad_directory_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
