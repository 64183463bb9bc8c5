// SPDX-License-Identifier: Apache-2.0
// test_connect.c: kvpool_connect: where it goes, and what it says when it cannot.
#include "tests/unit/client/fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fake kvd;
static unsigned fds_before;

static int setup(void **state) {
    (void)state;
    fds_before = open_fds();
    fake_init(&kvd);
    return 0;
}

// No test may leave a descriptor open, whatever failed in it.
static int teardown(void **state) {
    (void)state;
    fake_cleanup(&kvd);
    unsetenv("KVPOOL_DIR");
    assert_int_equal(open_fds(), fds_before);
    return 0;
}

static kvpool_status connect_to(const char *dir, uint32_t timeout_ms) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = dir;
    args.timeout_ms = timeout_ms;
    kvpool_client *c = NULL;
    kvpool_status status = kvpool_connect(&args, &c);
    assert_true((status == KVPOOL_OK) == (c != NULL));
    kvpool_close(c);
    return status;
}

static void connects_and_learns_about_the_daemon(void **state) {
    (void)state;
    fake_start(&kvd);
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_daemon_info info = {.size = sizeof info};
    expect(c, KVPOOL_OK, kvpool_daemon(c, &info));
    assert_string_equal(info.version, "9.8.7");
    assert_string_equal(info.backend, "fake");
    assert_int_equal(info.epoch, kvd.epoch);
    assert_int_equal(info.protocol, 1);
    assert_int_equal(info.pid, 4242);
    assert_int_equal(info.max_batch, 1000);
    assert_int_equal(info.max_inflight, 64);
    assert_int_equal(info.size, sizeof info);
    kvpool_close(c);
    assert_int_equal(fake_count(&kvd, PROTO_BYE), 1);
}

static void takes_the_directory_from_the_environment(void **state) {
    (void)state;
    fake_start(&kvd);
    setenv("KVPOOL_DIR", kvd.dir, 1);
    kvpool_client *c = NULL;
    expect(NULL, KVPOOL_OK, kvpool_connect(NULL, &c));
    kvpool_close(c);
    // What is given goes first.
    expect(NULL, KVPOOL_E_CONN, connect_to("/nonexistent/kvpool", 0));
}

static void a_missing_directory_is_named(void **state) {
    (void)state;
    expect(NULL, KVPOOL_E_CONN, connect_to("/nonexistent/kvpool", 0));
    expect_message(NULL, "/nonexistent/kvpool does not exist");
}

static void a_missing_socket_is_named(void **state) {
    (void)state;
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 0));
    expect_message(NULL, "there is no fd.sock in /tmp/kvpool-fake-");
}

static void a_file_in_place_of_the_directory_is_named(void **state) {
    (void)state;
    expect(NULL, KVPOOL_E_CONN, connect_to("/etc/passwd", 0));
    expect_message(NULL, "/etc/passwd is not a directory");
}

static void a_stale_socket_is_told_from_none(void **state) {
    (void)state;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/fd.sock", kvd.dir);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    close(fd);
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 0));
    expect_message(NULL, "connection refused");
    unlink(addr.sun_path);
}

static void a_socket_of_another_kind_is_told(void **state) {
    (void)state;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/fd.sock", kvd.dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(fd, 1), 0);
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 0));
    expect_message(NULL, "is not a socket of kvpoold");
    close(fd);
    unlink(addr.sun_path);
}

// In a child that is nobody: root may connect anywhere.
static void a_refused_user_learns_the_group(void **state) {
    (void)state;
    fake_start(&kvd);
    assert_int_equal(chmod(kvd.dir, 0700), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (geteuid() == 0 && setuid(65534) != 0)
            _exit(77);
        if (geteuid() != 65534 && chmod(kvd.dir, 0) != 0)
            _exit(77);
        char text[256];
        if (connect_to(kvd.dir, 0) != KVPOOL_E_CONN)
            _exit(1);
        kvpool_last_error(NULL, text, sizeof text);
        bool good =
            strstr(text, "permission denied") && strstr(text, "group '") && strstr(text, kvd.dir);
        if (!good)
            print_error("%s\n", text);
        _exit(good ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    chmod(kvd.dir, 0700);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_path_too_long_is_refused_with_the_limit(void **state) {
    (void)state;
    char dir[200];
    memset(dir, 'x', sizeof dir);
    dir[0] = '/';
    dir[96] = '\0'; // "/kvpool.sock" makes 108
    expect(NULL, KVPOOL_E_INVAL, connect_to(dir, 0));
    expect_message(NULL, "at most 95");
    dir[95] = '\0';
    expect(NULL, KVPOOL_E_CONN, connect_to(dir, 0));
}

static void bad_arguments_are_refused(void **state) {
    (void)state;
    kvpool_client *c = NULL;
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = "";
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    args.dir = kvd.dir;
    args.flags = 4;
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    expect_message(NULL, "flags 0x4");
    args.flags = 0;
    args.name = "a name of more than thirty-one bytes";
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    expect_message(NULL, "31 bytes");
    args.name = NULL;
    char credential[97];
    memset(credential, 'c', sizeof credential);
    credential[96] = '\0';
    args.credential = credential;
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    expect_message(NULL, "longer than 95");
    args.credential = "";
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    expect_message(NULL, "credential is empty");
    args.credential = NULL;
    args.size = sizeof args - 1;
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, &c));
    expect_message(NULL, "args.size");
    args.size = sizeof args;
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&args, NULL));
    assert_null(c);
    kvpool_close(NULL);
}

// As a program sees it that was built before `credential` was there.
static void connect_args_without_a_credential_are_understood(void **state) {
    (void)state;
    fake_start(&kvd);
    size_t size = offsetof(kvpool_connect_args, credential);
    kvpool_connect_args full = KVPOOL_CONNECT_ARGS_INIT;
    full.size = size;
    full.dir = kvd.dir;
    full.credential = "not looked at";
    kvpool_connect_args *older = malloc(size); // the sanitizer sees a read past it
    assert_non_null(older);
    memcpy((void *)older, &full, size);
    kvpool_client *c = NULL;
    expect(NULL, KVPOOL_OK, kvpool_connect(older, &c));
    kvpool_close(c);
    expect(NULL, KVPOOL_OK, kvpool_connect(&full, &c));
    kvpool_close(c);
    assert_int_equal(fake_count(&kvd, PROTO_FD_HELLO), 2);
    assert_int_equal(fake_count(&kvd, PROTO_FD_OPEN), 0);
    full.size = size - 1;
    expect(NULL, KVPOOL_E_INVAL, kvpool_connect(&full, &c));
    free(older);
}

// --- credentials ------------------------------------------------------------------------------

static kvpool_status connect_with(const char *credential) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = kvd.dir;
    args.name = "unit";
    args.credential = credential;
    kvpool_client *c = NULL;
    kvpool_status status = kvpool_connect(&args, &c);
    assert_true((status == KVPOOL_OK) == (c != NULL));
    kvpool_close(c);
    return status;
}

static void a_credential_goes_with_the_session(void **state) {
    (void)state;
    fake_start(&kvd);
    char longest[96];
    memset(longest, 'x', sizeof longest);
    longest[95] = '\0';
    expect(NULL, KVPOOL_OK, connect_with("s3cret"));
    assert_string_equal(kvd.last_open.credential, "s3cret");
    assert_string_equal(kvd.last_open.name, "unit");
    assert_int_equal(kvd.last_open.session, 0);
    expect(NULL, KVPOOL_OK, connect_with(longest));
    assert_string_equal(kvd.last_open.credential, longest);
    assert_int_equal(fake_count(&kvd, PROTO_FD_HELLO), 0);
    assert_int_equal(fake_count(&kvd, PROTO_BYE), 2);
}

static bool refuse_credential(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_FD_OPEN)
        return false;
    fake_error(f, c, &m->header, f->hook_state, 0, "unknown credential");
    return true;
}

static void a_credential_may_be_refused(void **state) {
    (void)state;
    fake_start(&kvd);
    fake_set_hook(&kvd, refuse_credential);
    fake_set(&kvd, hook_state, KVPOOL_E_PERM);
    expect(NULL, KVPOOL_E_PERM, connect_with("wrong"));
    expect_message(NULL, "unknown credential");
    fake_set(&kvd, hook_state, KVPOOL_E_UNSUPPORTED); // as a daemon that knows no FD_OPEN
    expect(NULL, KVPOOL_E_UNSUPPORTED, connect_with("any"));
    expect_message(NULL, "takes no credentials");
    assert_int_equal(kvd.sessions, 0); // not opened without it
}

// --- the handshake ----------------------------------------------------------------------------

static bool answer_fd_hello(struct fake *f, struct fake_conn *c, const struct proto_msg *m,
                            int status, const char *text) {
    if (m->header.op != PROTO_FD_HELLO)
        return false;
    fake_error(f, c, &m->header, status, 0, text);
    return true;
}

static bool refuse_version(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return answer_fd_hello(f, c, m, KVPOOL_E_VERSION, "the client speaks 1..1, the daemon 7..9");
}

static bool refuse_limit(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return answer_fd_hello(f, c, m, KVPOOL_E_LIMIT, "1024 clients are connected");
}

static bool refuse_shutdown(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return answer_fd_hello(f, c, m, KVPOOL_E_SHUTDOWN, "draining");
}

static bool choose_version_9(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_FD_HELLO)
        return false;
    struct proto_fd_hello_reply reply = {.version = 9, .session = 1, .epoch = f->epoch};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

static bool hello_version_9(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    struct proto_hello_reply reply = {
        .version = 9, .max_message = 65536, .max_batch = 1, .max_inflight = 1};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

static bool hello_without_limits(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    struct proto_hello_reply reply = {.version = 1, .max_message = 65536};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

static bool hello_of_another_epoch(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    f->epoch++;
    struct proto_hello_reply reply = {
        .version = 1, .max_message = 65536, .max_batch = 1, .max_inflight = 1};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    f->epoch--;
    return true;
}

static bool refuse_hello(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    fake_error(f, c, &m->header, KVPOOL_E_PERM, 0, "wrong token");
    return true;
}

static bool garbage_fd_hello(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_FD_HELLO)
        return false;
    fake_send(c, "what do you want?", 17);
    return true;
}

static bool long_fd_hello(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_FD_HELLO)
        return false;
    char big[8192] = {0};
    fake_send(c, big, sizeof big);
    return true;
}

static bool hello_and_more(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    // Whether or not both arrive at once, the second is not what the library asked for.
    struct proto_hello_reply reply = {
        .version = 1, .max_message = 65536, .max_batch = 1, .max_inflight = 1};
    uint8_t one[256], two[512];
    struct proto_header header = proto_reply_header(&m->header, 0, f->epoch);
    size_t len = proto_write(one, sizeof one, &header, &reply, sizeof reply, NULL, 0);
    size_t total = len + 13;
    uint8_t sp[13] = {1, 0, 0, 0, 0, 0, 0, 0, (uint8_t)(len + 4), 0x80, 0, 0, 0};
    memcpy(two, sp, 13);
    memcpy(two + 13, one, len);
    two[total] = 1;
    fake_send_raw(c, two, total + 1);
    return true;
}

struct handshake_case {
    const char *name;
    fake_hook hook;
    kvpool_status expected;
    const char *message;
};

static void a_handshake_that_goes_wrong_is_a_typed_error(void **state) {
    (void)state;
    static const struct handshake_case cases[] = {
        {"version", refuse_version, KVPOOL_E_VERSION, "the daemon 7..9"},
        {"limit", refuse_limit, KVPOOL_E_LIMIT, "1024 clients"},
        {"shutdown", refuse_shutdown, KVPOOL_E_SHUTDOWN, "draining"},
        {"fd version 9", choose_version_9, KVPOOL_E_VERSION, "version 9"},
        {"hello version 9", hello_version_9, KVPOOL_E_VERSION, "version 9"},
        {"no limits", hello_without_limits, KVPOOL_E_PROTO, "limit"},
        {"epoch", hello_of_another_epoch, KVPOOL_E_CONN, "restarted"},
        {"token", refuse_hello, KVPOOL_E_PERM, "wrong token"},
        {"garbage", garbage_fd_hello, KVPOOL_E_PROTO, "17 bytes"},
        {"too long", long_fd_hello, KVPOOL_E_PROTO, "over-long"},
        {"more", hello_and_more, KVPOOL_E_PROTO, "more than the reply"},
    };
    fake_start(&kvd);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_set_hook(&kvd, cases[i].hook);
        kvpool_status got = connect_to(kvd.dir, 3000);
        if (got != cases[i].expected)
            print_error("case %s\n", cases[i].name);
        expect(NULL, cases[i].expected, got);
        expect_message(NULL, cases[i].message);
    }
}

static void a_control_socket_of_something_else_is_told(void **state) {
    (void)state;
    fake_start(&kvd);
    fake_set(&kvd, bad_greeting, true);
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 3000));
    expect_message(NULL, "is no kvpoold");
    fake_set(&kvd, bad_greeting, false);
    fake_set(&kvd, close_at_greeting, true);
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 3000));
    expect_message(NULL, "closed");
}

static void a_silent_daemon_is_a_timeout(void **state) {
    (void)state;
    fake_start(&kvd);
    fake_set(&kvd, mute_fd, true);
    expect(NULL, KVPOOL_E_TIMEOUT, connect_to(kvd.dir, 60));
    fake_set(&kvd, mute_fd, false);
    fake_set(&kvd, mute_greeting, true);
    expect(NULL, KVPOOL_E_TIMEOUT, connect_to(kvd.dir, 60));
    fake_set(&kvd, mute_greeting, false);
    fake_set(&kvd, mute_control, true);
    expect(NULL, KVPOOL_E_TIMEOUT, connect_to(kvd.dir, 60));
}

static void *listen_later(void *arg) {
    usleep(100000);
    fake_control_listen(arg, true);
    return NULL;
}

static void a_control_socket_that_comes_a_moment_later_is_waited_for(void **state) {
    (void)state;
    fake_start(&kvd);
    fake_control_listen(&kvd, false);
    expect(NULL, KVPOOL_E_CONN, connect_to(kvd.dir, 200));
    expect_message(NULL, "there is no kvpool.sock");
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, listen_later, &kvd), 0);
    expect(NULL, KVPOOL_OK, connect_to(kvd.dir, 5000));
    pthread_join(thread, NULL);
}

// A listener that accepts no more is found and made anew after some seconds: those who wait in it are closed.
static void *close_later(void *arg) {
    usleep(1300000);
    fake_set((struct fake *)arg, mute_greeting, false);
    fake_drop(arg, true);
    return NULL;
}

static void a_listener_that_is_made_anew_is_tried_again(void **state) {
    (void)state;
    fake_start(&kvd);
    fake_set(&kvd, mute_greeting, true);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, close_later, &kvd), 0);
    expect(NULL, KVPOOL_OK, connect_to(kvd.dir, 5000));
    pthread_join(thread, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        T(connects_and_learns_about_the_daemon),
        T(takes_the_directory_from_the_environment),
        T(a_missing_directory_is_named),
        T(a_missing_socket_is_named),
        T(a_file_in_place_of_the_directory_is_named),
        T(a_stale_socket_is_told_from_none),
        T(a_socket_of_another_kind_is_told),
        T(a_refused_user_learns_the_group),
        T(a_path_too_long_is_refused_with_the_limit),
        T(bad_arguments_are_refused),
        T(connect_args_without_a_credential_are_understood),
        T(a_credential_goes_with_the_session),
        T(a_credential_may_be_refused),
        T(a_handshake_that_goes_wrong_is_a_typed_error),
        T(a_control_socket_of_something_else_is_told),
        T(a_silent_daemon_is_a_timeout),
        T(a_control_socket_that_comes_a_moment_later_is_waited_for),
        T(a_listener_that_is_made_anew_is_tried_again),
    };
    return cmocka_run_group_tests_name("client connect", tests, NULL, NULL);
}
