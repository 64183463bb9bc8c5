// SPDX-License-Identifier: Apache-2.0
// test_main.c: kvpoold as a process (with fake_dispatch.c behind it): start, signals, health, end.
// argv[1] is the program.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/daemon/httpget.h"
#include "tests/unit/daemon/tmpdir.h"

#include <fcntl.h>
#include <nng/nng.h>
#include <nng/protocol/pubsub0/sub.h>
#include <nng/protocol/reqrep0/req.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *program;

static struct {
    struct tmpdir dir; // sockets, log, configuration
    char log[128], conf[128], stuck[128], url[160];
    int notify; // the manager's socket
    pid_t pid;  // 0: none
    char text[16384];
} t;

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int setup(void **state) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = 10};
    (void)state;
    memset(&t, 0, sizeof t);
    if (!tmpdir_make(&t.dir)) {
        return -1;
    }
    tmpdir_file(&t.dir, "log", t.log, sizeof t.log);
    tmpdir_file(&t.dir, "stuck", t.stuck, sizeof t.stuck);
    tmpdir_write(&t.dir, "conf", "", t.conf, sizeof t.conf);
    snprintf(t.url, sizeof t.url, "ipc://%s/kvpool.sock", t.dir.path);
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/notify", t.dir.path);
    t.notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(t.notify, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setenv("NOTIFY_SOCKET", addr.sun_path, 1);
    setenv("FAKE_STUCK", t.stuck, 1);
    return bind(t.notify, (struct sockaddr *)&addr, sizeof addr);
}

static int teardown(void **state) {
    (void)state;
    if (t.pid != 0) {
        kill(t.pid, SIGKILL);
        waitpid(t.pid, NULL, 0);
    }
    close(t.notify);
    unsetenv("WATCHDOG_USEC");
    unsetenv("FAKE_LEAKS");
    unsetenv("FAKE_LOST");
    tmpdir_remove(&t.dir);
    return 0;
}

// Starts the program with its stderr in `log`; up to three more words.
static pid_t spawn(const char *log, const char *a, const char *b, const char *c) {
    const char *argv[] = {program, "--dir", t.dir.path, "--config", t.conf, a, b, c, NULL};
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execv(program, (char **)argv);
        _exit(127);
    }
    return pid;
}

static void start(const char *a, const char *b, const char *c) {
    t.pid = spawn(t.log, a, b, c);
}

// The next datagram that begins with `prefix`; others are passed over.
static const char *expect_notify(const char *prefix) {
    static char text[512];
    for (;;) {
        ssize_t n = recv(t.notify, text, sizeof text - 1, 0);
        if (n < 0) {
            fail_msg("no %s from the daemon; its log: %s", prefix,
                     tmpdir_read(t.log, t.text, sizeof t.text));
        }
        text[n > 0 ? n : 0] = '\0';
        if (strncmp(text, prefix, strlen(prefix)) == 0) {
            return text;
        }
    }
}

// Waits for the process to end; its exit status, or 1000 + the signal, or -1 after 20 s.
static int wait_exit(pid_t pid) {
    const uint64_t until = now_ms() + 20000;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ms() > until) {
            return -1;
        }
        usleep(5000);
    }
    if (pid == t.pid) {
        t.pid = 0;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static bool log_has(const char *part) {
    return strstr(tmpdir_read(t.log, t.text, sizeof t.text), part) != NULL;
}

static void assert_log(const char *part) {
    for (int i = 0; i < 500 && !log_has(part); i++) {
        usleep(10000);
    }
    if (!log_has(part)) {
        fail_msg("\"%s\" is not in the log: %s", part, t.text);
    }
}

static nng_socket connect_client(int timeout_ms) {
    nng_socket s;
    assert_int_equal(0, nng_req0_open(&s));
    nng_socket_set_ms(s, NNG_OPT_RECVTIMEO, timeout_ms);
    nng_socket_set_ms(s, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    assert_int_equal(0, nng_dial(s, t.url, NULL, 0));
    return s;
}

static int receive_echo(nng_socket s) {
    char reply[16];
    size_t len = sizeof reply;
    return nng_recv(s, reply, &len, 0);
}

static void echo(void) {
    nng_socket s = connect_client(5000);
    assert_int_equal(0, nng_send(s, (void *)"echo", 4, 0));
    assert_int_equal(0, receive_echo(s));
    nng_close(s);
}

static void it_says_when_it_is_ready_and_ends_cleanly_on_sigterm(void **state) {
    char path[160];
    const char *ready;
    (void)state;
    start(NULL, NULL, NULL);
    ready = expect_notify("READY=1");
    assert_non_null(
        strstr(ready, "STATUS=Serving 0 pools of the configuration on fake: no threads"));
    assert_log("daemon.start version=0.1.0 pid=");
    assert_log("backend=\"fake: no threads\" epoch=42 pools=0 nng=");
    echo();
    kill(t.pid, SIGTERM);
    expect_notify("STOPPING=1");
    assert_int_equal(0, wait_exit(t.pid));
    assert_log("daemon.exit status=0");
    tmpdir_file(&t.dir, "kvpool.sock", path, sizeof path);
    assert_int_not_equal(0, access(path, F_OK));
}

static void sigint_ends_it_too(void **state) {
    (void)state;
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    kill(t.pid, SIGINT);
    assert_int_equal(0, wait_exit(t.pid));
}

static void a_second_daemon_on_the_directory_is_refused(void **state) {
    char other_log[128], expected[200];
    (void)state;
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    tmpdir_file(&t.dir, "log2", other_log, sizeof other_log);
    assert_int_equal(1, wait_exit(spawn(other_log, NULL, NULL, NULL)));
    snprintf(expected, sizeof expected, "socket directory %s is held by a live kvpoold (pid %ld)",
             t.dir.path, (long)t.pid);
    assert_non_null(strstr(tmpdir_read(other_log, t.text, sizeof t.text), expected));
    echo(); // the first one is unharmed
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

static void after_a_kill_the_next_one_starts_on_the_stale_socket(void **state) {
    (void)state;
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    kill(t.pid, SIGKILL);
    assert_int_equal(1000 + SIGKILL, wait_exit(t.pid));
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    echo();
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

static void sighup_reads_the_configuration_again_and_reopens_the_log(void **state) {
    char file[128], moved[128];
    (void)state;
    tmpdir_file(&t.dir, "own.log", file, sizeof file);
    tmpdir_file(&t.dir, "own.log.1", moved, sizeof moved);
    start("--log-file", file, NULL);
    expect_notify("READY=1");
    assert_int_equal(0, rename(file, moved));
    tmpdir_write(&t.dir, "conf", "[kvpoold]\nslots = 100\nlog_level = debug\n", t.conf,
                 sizeof t.conf);
    kill(t.pid, SIGHUP);
    assert_non_null(strstr(expect_notify("RELOADING=1"), "\nMONOTONIC_USEC="));
    expect_notify("READY=1");
    tmpdir_read(file, t.text, sizeof t.text);
    assert_non_null(strstr(t.text, "change=\"slots: 256 -> 100 needs a restart\""));
    assert_non_null(strstr(t.text, "change=\"log_level: info -> debug\""));
    assert_null(strstr(t.text, "daemon.start"));
    assert_non_null(strstr(tmpdir_read(moved, t.text, sizeof t.text), "daemon.start"));

    tmpdir_write(&t.dir, "conf", "[kvpoold]\nbogus = 100\n", t.conf, sizeof t.conf);
    kill(t.pid, SIGHUP);
    expect_notify("READY=1");
    tmpdir_read(file, t.text, sizeof t.text);
    assert_non_null(strstr(t.text, "config.reload result=kept error=\""));
    assert_non_null(strstr(t.text, "conf:2: bogus: unknown setting"));
    echo();
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

static void sigterm_waits_for_what_is_in_flight(void **state) {
    nng_socket s;
    (void)state;
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    s = connect_client(5000);
    assert_int_equal(0, nng_send(s, (void *)"hold", 4, 0));
    usleep(100000);
    kill(t.pid, SIGTERM);
    assert_int_equal(0, receive_echo(s));
    assert_int_equal(0, wait_exit(t.pid));
    assert_false(log_has("result=timeout"));
    nng_close(s);
}

static void the_drain_timeout_ends_the_wait(void **state) {
    uint64_t begin;
    nng_socket s;
    (void)state;
    start("--drain-timeout=400ms", NULL, NULL);
    expect_notify("READY=1");
    s = connect_client(5000);
    assert_int_equal(0, nng_send(s, (void *)"Hold", 4, 0));
    usleep(100000);
    begin = now_ms();
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
    assert_in_range(now_ms() - begin, 350, 4000);
    assert_log("daemon.drain result=timeout busy=");
    nng_close(s);
}

static void a_second_sigterm_ends_it_at_once(void **state) {
    nng_socket s;
    (void)state;
    start("--drain-timeout=60s", NULL, NULL);
    expect_notify("READY=1");
    s = connect_client(5000);
    assert_int_equal(0, nng_send(s, (void *)"Hold", 4, 0));
    usleep(100000);
    kill(t.pid, SIGTERM);
    expect_notify("STOPPING=1");
    kill(t.pid, SIGTERM);
    assert_int_equal(1, wait_exit(t.pid));
    nng_close(s);
}

static void the_watchdog_is_fed_only_while_the_engine_advances(void **state) {
    char path[128], text[64];
    (void)state;
    setenv("WATCHDOG_USEC", "300000", 1);
    start(NULL, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        expect_notify("WATCHDOG=1");
    }
    tmpdir_write(&t.dir, "stuck", "", path, sizeof path);
    assert_log("daemon.health engine=stuck");
    while (recv(t.notify, text, sizeof text, MSG_DONTWAIT) > 0) {
    }
    usleep(500000);
    assert_int_equal(-1, recv(t.notify, text, sizeof text, MSG_DONTWAIT));
    assert_int_equal(0, unlink(path));
    expect_notify("WATCHDOG=1");
    assert_log("daemon.health engine=advancing");
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

static void too_many_leaked_pipes_end_it_for_a_restart(void **state) {
    (void)state;
    setenv("FAKE_LEAKS", "257", 1);
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    assert_int_equal(3, wait_exit(t.pid));
    assert_log("daemon.leak leaked_pipes=257 limit=256 action=restart");
}

static void a_lost_device_ends_it_for_a_restart(void **state) {
    (void)state;
    setenv("FAKE_LOST", "1", 1);
    start(NULL, NULL, NULL);
    expect_notify("READY=1");
    assert_int_equal(4, wait_exit(t.pid));
    assert_log("daemon.device backend=\"fake: no threads\" result=lost action=restart");
}

static void check_config_says_ok_or_what_is_wrong(void **state) {
    (void)state;
    assert_int_equal(0, wait_exit(spawn(t.log, "--check-config", NULL, NULL)));
    assert_true(log_has("configuration ok\n"));
    assert_int_equal(1, wait_exit(spawn(t.log, "--check-config", "--slots=0", NULL)));
    assert_true(log_has("kvpoold: --slots: 0 is not between 1 and 4096\n"));
    assert_int_equal(0, wait_exit(spawn(t.log, "--print-config", "--slots=99", NULL)));
    assert_true(log_has("slots = 99                               ; flag\n"));
}

static void what_cannot_start_exits_1_and_says_why(void **state) {
    (void)state;
    assert_int_equal(1, wait_exit(spawn(t.log, "--log-file=/nonexistent/log", NULL, NULL)));
    assert_true(log_has("kvpoold: cannot open log file /nonexistent/log: No such file"));
    assert_int_equal(1, wait_exit(spawn(t.log, "--backend=cuda", NULL, NULL)));
    assert_true(log_has("daemon.start error=\"this build has no cuda backend\""));
}

static void a_full_disk_for_the_log_does_not_stop_it(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    start("--log-file=/dev/full", NULL, NULL);
    expect_notify("READY=1");
    echo();
    kill(t.pid, SIGHUP);
    expect_notify("READY=1");
    echo();
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

// The port that the log says.
static uint16_t http_port_in_log(void) {
    static const char event[] = "http.listen address=127.0.0.1:0 port=";
    assert_log(event);
    return (uint16_t)strtoul(strstr(t.text, event) + sizeof event - 1, NULL, 10);
}

static void it_shows_figures_and_health_over_http(void **state) {
    struct http_reply reply;
    char path[128];
    (void)state;
    start("--http=127.0.0.1:0", "--events=yes", "--health-deadline=500ms");
    expect_notify("READY=1");
    const uint16_t port = http_port_in_log();
    assert_int_equal(200, http_get(port, "/healthz"));
    assert_int_equal(404, http_get(port, "/"));
    http_request(port, "GET", "/metrics", &reply);
    assert_int_equal(200, reply.status);
    assert_string_equal("fake_requests_held 0\nfake_events 1\n", reply.body);
    free(reply.body);
    tmpdir_write(&t.dir, "stuck", "", path, sizeof path);
    assert_int_equal(503, http_get(port, "/healthz"));
    assert_int_equal(0, unlink(path));
    assert_int_equal(200, http_get(port, "/healthz"));
    usleep(1000000); // twice the deadline: the loop beats by itself
    assert_int_equal(200, http_get(port, "/healthz"));
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
    assert_int_equal(0, http_get(port, "/healthz"));
}

static void it_streams_events_on_private_sockets(void **state) {
    static const char end[] = "\"AllBlocksCleared\",\"pool\":\"fake\"}";
    char path[160], url[180], *line;
    struct stat st;
    nng_socket client, sub;
    size_t len;
    (void)state;
    start("--events=yes", "--event-ring=100", NULL);
    expect_notify("READY=1");
    snprintf(path, sizeof path, "%s/private", t.dir.path);
    assert_int_equal(0, stat(path, &st));
    assert_int_equal(0700, st.st_mode & 07777);
    snprintf(url, sizeof url, "ipc://%s/events.sock", path);
    assert_int_equal(0, nng_sub0_open(&sub));
    nng_socket_set(sub, NNG_OPT_SUB_SUBSCRIBE, "", 0);
    nng_socket_set_ms(sub, NNG_OPT_RECVTIMEO, 10000);
    assert_int_equal(0, nng_dial(sub, url, NULL, 0));
    usleep(100000); // until the publisher knows us
    client = connect_client(10000);
    assert_int_equal(0, nng_send(client, "e", 1, 0));
    assert_int_equal(0, nng_recv(sub, &line, &len, NNG_FLAG_ALLOC));
    if (strncmp(line, "{\"seq\":1,", 9) == 0) { // sent after we came, on a busy machine
        nng_free(line, len);
        assert_int_equal(0, nng_recv(sub, &line, &len, NNG_FLAG_ALLOC));
    }
    assert_memory_equal("{\"seq\":2,", line, 9);
    assert_true(len > sizeof end);
    assert_memory_equal(end, line + len - (sizeof end - 1), sizeof end - 1);
    nng_free(line, len);
    // NNG may hang in closing a socket that a message is on its way to.
    assert_int_equal(0, receive_echo(client));
    nng_close(client);
    nng_close(sub);
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
    assert_int_equal(-1, stat(path, &st));
}

static void an_address_for_the_world_is_refused_unless_it_is_meant(void **state) {
    (void)state;
    assert_int_equal(1, wait_exit(spawn(t.log, "--http=0.0.0.0:0", NULL, NULL)));
    assert_true(log_has("0.0.0.0:0 is not a loopback address; http_public = yes"));
    assert_int_equal(1, wait_exit(spawn(t.log, "--http=9470", NULL, NULL)));
    assert_true(log_has("'9470' is not a numeric address and port"));
    assert_int_equal(1, wait_exit(spawn(t.log, "--events=maybe", NULL, NULL)));
    assert_true(log_has("--events: 'maybe' is not one of yes, no"));
    start("--http=0.0.0.0:0", "--http-public=yes", NULL);
    expect_notify("READY=1");
    assert_log("http.listen address=0.0.0.0:0 port=");
    kill(t.pid, SIGTERM);
    assert_int_equal(0, wait_exit(t.pid));
}

static void observers_that_cannot_start_end_it(void **state) {
    char path[128];
    (void)state;
    tmpdir_write(&t.dir, "private", "", path, sizeof path);
    assert_int_equal(1, wait_exit(spawn(t.log, "--events=yes", NULL, NULL)));
    assert_true(log_has("private is in the way and is not a directory"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        TEST(it_says_when_it_is_ready_and_ends_cleanly_on_sigterm),
        TEST(sigint_ends_it_too),
        TEST(a_second_daemon_on_the_directory_is_refused),
        TEST(after_a_kill_the_next_one_starts_on_the_stale_socket),
        TEST(sighup_reads_the_configuration_again_and_reopens_the_log),
        TEST(sigterm_waits_for_what_is_in_flight),
        TEST(the_drain_timeout_ends_the_wait),
        TEST(a_second_sigterm_ends_it_at_once),
        TEST(the_watchdog_is_fed_only_while_the_engine_advances),
        TEST(too_many_leaked_pipes_end_it_for_a_restart),
        TEST(a_lost_device_ends_it_for_a_restart),
        TEST(check_config_says_ok_or_what_is_wrong),
        TEST(what_cannot_start_exits_1_and_says_why),
        TEST(a_full_disk_for_the_log_does_not_stop_it),
        TEST(it_shows_figures_and_health_over_http),
        TEST(it_streams_events_on_private_sockets),
        TEST(an_address_for_the_world_is_refused_unless_it_is_meant),
        TEST(observers_that_cannot_start_end_it),
    };
    if (argc < 2) {
        fprintf(stderr, "usage: %s KVPOOLD [TEST]\n", argv[0]);
        return 2;
    }
    program = argv[1];
    if (argc > 2) {
        cmocka_set_test_filter(argv[2]);
    }
    return cmocka_run_group_tests_name("main", tests, NULL, NULL);
}
