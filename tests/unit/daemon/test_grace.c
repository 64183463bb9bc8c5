// SPDX-License-Identifier: Apache-2.0
// test_grace.c: sessions that lose their fd connection: what goes on, who may take them up again,
// and when they end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/log.h"
#include "resume.h"
#include "tmpdir.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONG_MS 60000 // longer than any test
#define SHORT_MS 300

static struct fixture fx;

static int start(uint32_t grace_ms) {
    fixture_init(&fx);
    allow_everybody(&fx);
    fx.config.session_grace_ms = grace_ms;
    fixture_start(&fx);
    return 0;
}

static int setup_long(void **state) {
    (void)state;
    return start(LONG_MS);
}

static int setup_short(void **state) {
    (void)state;
    return start(SHORT_MS);
}

static int teardown(void **state) {
    (void)state;
    fixture_stop(&fx);
    return 0;
}

static bool no_sessions(void *arg) {
    return ((struct fixture *)arg)->d->sessions.count == 0;
}

static bool one_session(void *arg) {
    return ((struct fixture *)arg)->d->sessions.count == 1;
}

static bool is_detached(void *arg) {
    const struct client *c = arg;
    const struct session *s = session_find(fx.d, c->session);
    return s != NULL && s->detached;
}

// The client's fd connection ends.
static void lose(struct client *c) {
    close(c->fd);
    c->fd = -1;
    pump_until(&fx, is_detached, c);
}

static uint32_t core_free_pages(uint64_t pool) {
    struct core_pool_info info;
    assert_int_equal(core_pool_stat(fx.d->core, pool, &info, NULL), 0);
    return info.free_pages;
}

// --- what goes on -----------------------------------------------------------------------------

static void a_lost_connection_leaves_everything_as_it_was(void **state) {
    (void)state;
    struct client c;
    struct proto_msg msg = {0};
    uint64_t seqs[2];
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 64);
    make_seqs(&fx, &c, pool, 2, seqs);
    assert_int_equal(begin(&fx, &c, 1, pool, 2, seqs, 20, NULL), 0);
    uint64_t region = client_region(&fx, &c, 4096, NULL);
    lose(&c);
    assert_int_equal(free_pages(&fx, &c, pool), 64 - 6); // its control connection still serves
    assert_int_equal(begin(&fx, &c, 1, pool, 2, seqs, 20, NULL), 0); // the same step, repeated
    c.pipe = 2;
    c.seq = 0;
    assert_int_equal(client_resume(&fx, &c, &msg), 0);
    assert_int_equal(msg.body.fd_hello_reply.session, c.session);
    assert_memory_equal(msg.body.fd_hello_reply.token, c.token, sizeof c.token);
    assert_int_equal(msg.body.fd_hello_reply.version, 1);
    assert_int_equal(msg.body.fd_hello_reply.pid, getpid());
    assert_false(is_detached(&c));
    assert_int_equal(client_hello(&fx, &c, NULL), 0); // and a new control connection
    assert_int_equal(begin(&fx, &c, 1, pool, 2, seqs, 20, NULL), 0);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_ABORT, 1, NULL), 0);
    assert_int_equal(free_pages(&fx, &c, pool), 64);
    assert_int_equal(client_region_free(&fx, &c, region), 0);
    client_region(&fx, &c, 4096, NULL);
    assert_int_equal(fx.d->stats.sessions_died, 0);
    client_bye(&fx, &c);
    assert_true(no_sessions(&fx));
}

static void work_in_flight_goes_on_while_the_connection_is_lost(void **state) {
    (void)state;
    struct client c;
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 64);
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0); // its table job is held
    struct proto_handle step = {.handle = 1};
    struct call *abort_call =
        call_start(&fx, &c, UINT64_MAX, PROTO_STEP_ABORT, &step, sizeof step, NULL, 0);
    assert_false(abort_call->answered); // waits for the job
    lose(&c);
    assert_false(abort_call->answered);
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    assert_false(abort_call->answered);
    backend_hold(false);
    assert_int_equal(call_end(&fx, abort_call, NULL, NULL), 0);
    assert_int_equal(begin(&fx, &c, 2, pool, 1, &seq, 9, NULL), 0);
    assert_int_equal(free_pages(&fx, &c, pool), 62);
    client_bye(&fx, &c);
}

static void a_new_connection_replaces_one_that_seems_alive(void **state) {
    (void)state;
    struct client c;
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 8);
    make_seqs(&fx, &c, pool, 1, &seq);
    for (int i = 0; i < 3; i++) {
        int old = c.fd;
        assert_int_equal(client_resume(&fx, &c, NULL), 0);
        assert_int_equal(fd_recv(&fx, old, PROTO_FD_OPEN, NULL, NULL), KVPOOL_E_CONN); // closed
        close(old);
        pump(&fx, 5);
        assert_false(is_detached(&c)); // the end of the old one is nobody's
    }
    assert_int_equal(fdsock_conns(fx.d->fdsock), 1);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 1, NULL), 0);
    client_bye(&fx, &c);
}

// --- who may take it up -----------------------------------------------------------------------

static void only_the_right_token_takes_a_session_up(void **state) {
    (void)state;
    struct client c;
    struct proto_msg msg = {0};
    uint8_t token[PROTO_TOKEN_SIZE];
    client_open(&fx, &c, 1);
    lose(&c);
    int fd = fd_connect(&fx);
    for (size_t i = 0; i < sizeof token; i += 15) { // the first and the last byte
        memcpy(token, c.token, sizeof token);
        token[i] ^= 1;
        assert_int_equal(fd_open(&fx, fd, c.session, token, "", &msg), KVPOOL_E_PERM);
        assert_non_null(strstr(msg.body.error.text, "wrong token"));
    }
    assert_int_equal(fd_open(&fx, fd, c.session + (1ull << 32), c.token, "", NULL), KVPOOL_E_STALE);
    assert_int_equal(fd_open(&fx, fd, UINT64_MAX, c.token, "", NULL), KVPOOL_E_STALE);
    assert_true(is_detached(&c));
    assert_int_equal(fd_open(&fx, fd, c.session, c.token, "", NULL), 0);
    assert_int_equal(fd_open(&fx, fd, c.session, c.token, "", NULL), KVPOOL_E_STATE);
    c.fd = fd;
    client_bye(&fx, &c);
    assert_int_equal(client_resume(&fx, &c, NULL), KVPOOL_E_STALE);
    close(c.fd);
}

static void another_process_does_not_take_a_session_up(void **state) {
    (void)state;
    struct client c;
    int status;
    client_open(&fx, &c, 1);
    lose(&c);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct proto_fd_open open = {.version_min = 1, .version_max = 1, .session = c.session};
        static uint8_t bytes[PROTO_MAX_MESSAGE];
        struct proto_msg msg = {0};
        ssize_t n;
        memcpy(open.token, c.token, sizeof open.token);
        int fd = fd_connect(&fx);
        fd_send(fd, PROTO_FD_OPEN, &open, sizeof open, -1);
        do {
            usleep(1000);
            n = recv(fd, bytes, sizeof bytes, 0);
        } while (n < 0);
        _exit(proto_parse_reply(PROTO_FD_OPEN, bytes, (size_t)n, &msg, NULL) == 0 &&
                      msg.header.status == KVPOOL_E_PERM &&
                      strstr(msg.body.error.text, "belongs to process") != NULL
                  ? 7
                  : 1);
    }
    pump(&fx, 50);
    while (waitpid(pid, &status, WNOHANG) == 0)
        pump(&fx, 5);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    assert_true(is_detached(&c));
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    client_bye(&fx, &c);
}

static void another_user_does_not_take_a_session_up(void **state) {
    (void)state;
    struct client c;
    struct proto_msg msg = {0};
    int fd = fd_connect_as(&fx, 65534, 65534, 65534); // may skip: before anything is open
    client_open(&fx, &c, 1);
    lose(&c);
    assert_int_equal(fd_open(&fx, fd, c.session, c.token, "", &msg), KVPOOL_E_PERM);
    assert_non_null(strstr(msg.body.error.text, "of uid 65534"));
    close(fd);
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    client_bye(&fx, &c);
}

static void refused_again_and_again_is_a_line_a_minute(void **state) {
    (void)state;
    struct tmpdir dir;
    struct client c;
    char path[128];
    assert_true(tmpdir_make(&dir));
    tmpdir_file(&dir, "log", path, sizeof path);
    client_open(&fx, &c, 1);
    int fd = fd_connect(&fx);
    const uint8_t wrong[PROTO_TOKEN_SIZE] = {0};
    assert_int_equal(log_open(path, LOG_INFO), 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(fd_open(&fx, fd, c.session, wrong, "", NULL), KVPOOL_E_PERM);
    assert_int_equal(tmpdir_count(path, "session.refused"), 1);
    assert_int_equal(tmpdir_count(path, " suppressed=0 error=\"wrong token"), 1);
    fx.d->refused.since_ns -= LOG_LIMIT_NS;
    for (int i = 0; i < 2; i++)
        assert_int_equal(fd_open(&fx, fd, UINT64_MAX, wrong, "", NULL), KVPOOL_E_STALE);
    assert_int_equal(tmpdir_count(path, "session.refused"), 2);
    assert_int_equal(tmpdir_count(path, " suppressed=4 error=\"session 0xffff"), 1);
    log_open(NULL, LOG_INFO);
    tmpdir_remove(&dir);
    close(fd);
    close(c.fd);
}

static void a_wrong_version_takes_nothing_up(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    lose(&c);
    struct proto_fd_open open = {.version_min = 7, .version_max = 9, .session = c.session};
    memcpy(open.token, c.token, sizeof open.token);
    c.fd = fd_connect(&fx);
    fd_send(c.fd, PROTO_FD_OPEN, &open, sizeof open, -1);
    assert_int_equal(fd_recv(&fx, c.fd, PROTO_FD_OPEN, NULL, NULL), KVPOOL_E_VERSION);
    assert_true(is_detached(&c));
    assert_int_equal(fd_open(&fx, c.fd, c.session, c.token, "", NULL), 0);
    client_bye(&fx, &c);
}

static void a_draining_daemon_takes_old_sessions_up_but_no_new_ones(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    lose(&c);
    dispatch_drain(fx.d);
    int fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "", NULL), KVPOOL_E_SHUTDOWN);
    close(fd);
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    client_bye(&fx, &c);
}

// --- when it ends -----------------------------------------------------------------------------

static void after_the_grace_its_pages_come_back(void **state) {
    (void)state;
    struct client c, other;
    uint64_t seq;
    client_open(&fx, &other, 2);
    uint64_t pool = make_pool(&fx, &other, "p", 64);
    client_open(&fx, &c, 1);
    make_seqs(&fx, &c, pool, 1, &seq);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 100, NULL), 0);
    client_region(&fx, &c, 4096, NULL);
    uint64_t since = uv_hrtime();
    lose(&c);
    assert_int_equal(core_free_pages(pool), 64 - 13);
    pump_until(&fx, one_session, &fx);
    uint64_t took_ms = (uv_hrtime() - since) / 1000000;
    assert_in_range(took_ms, SHORT_MS - 5, SHORT_MS + 2000);
    assert_int_equal(core_free_pages(pool), 64);
    assert_int_equal(regions_count(fx.d->regions), 0);
    assert_int_equal(fx.d->stats.sessions_died, 1);
    assert_int_equal(client_resume(&fx, &c, NULL), KVPOOL_E_STALE);
    close(c.fd);
    client_bye(&fx, &other);
}

static void each_request_prolongs_the_grace(void **state) {
    (void)state;
    struct client c;
    struct proto_stats s = {0};
    client_open(&fx, &c, 1);
    lose(&c);
    for (int i = 0; i < 6; i++) { // twice the grace
        pump(&fx, SHORT_MS / 3);
        assert_int_equal(client_stats(&fx, &c, &s), 0);
    }
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    pump(&fx, 2 * SHORT_MS); // bound again, it may be silent as long as it likes
    assert_int_equal(client_stats(&fx, &c, &s), 0);
    lose(&c); // and has the whole grace once more
    pump(&fx, SHORT_MS / 3);
    assert_int_equal(fx.d->sessions.count, 1);
    pump_until(&fx, no_sessions, &fx);
}

static void several_sessions_end_each_in_its_time(void **state) {
    (void)state;
    struct client c[3];
    for (uint32_t i = 0; i < 3; i++)
        client_open(&fx, &c[i], i + 1);
    lose(&c[0]);
    lose(&c[1]);
    pump(&fx, SHORT_MS / 2);
    lose(&c[2]);
    assert_int_equal(client_resume(&fx, &c[1], NULL), 0);
    pump(&fx, SHORT_MS * 3 / 4);
    assert_int_equal(fx.d->sessions.count, 2); // the first is gone, the second back
    assert_true(is_detached(&c[2]));
    pump_until(&fx, one_session, &fx);
    assert_non_null(session_find(fx.d, c[1].session));
    client_bye(&fx, &c[1]);
}

static void a_request_in_flight_keeps_its_session(void **state) {
    (void)state;
    struct client c;
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 64);
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0);
    struct proto_handle step = {.handle = 1};
    struct call *waiting =
        call_start(&fx, &c, UINT64_MAX, PROTO_STEP_ABORT, &step, sizeof step, NULL, 0);
    lose(&c);
    pump(&fx, 3 * SHORT_MS);
    assert_false(waiting->answered);
    assert_int_equal(fx.d->sessions.count, 1);
    backend_hold(false);
    assert_int_equal(call_end(&fx, waiting, NULL, NULL), 0);
    pump_until(&fx, no_sessions, &fx);
}

static void a_job_without_a_request_is_waited_for_after_the_grace(void **state) {
    (void)state;
    struct client c;
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 64);
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0); // its table job is held
    lose(&c);
    pump(&fx, 3 * SHORT_MS);
    assert_true(session_find(fx.d, c.session)->dying);
    assert_int_equal(core_free_pages(pool), 62);
    assert_int_equal(client_resume(&fx, &c, NULL), KVPOOL_E_STALE);
    close(c.fd);
    backend_hold(false);
    pump_until(&fx, no_sessions, &fx);
    assert_int_equal(core_free_pages(pool), 64);
}

static void a_shorter_grace_counts_for_those_that_wait(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    lose(&c);
    pump(&fx, 20);
    assert_int_equal(fx.d->sessions.count, 1);
    fx.config.session_grace_ms = 1;
    dispatch_reload(fx.d);
    pump_until(&fx, no_sessions, &fx);
}

static void without_a_grace_the_session_ends_with_its_connection(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    fx.config.session_grace_ms = 0;
    close(c.fd);
    pump_until(&fx, no_sessions, &fx);
    assert_int_equal(client_resume(&fx, &c, NULL), KVPOOL_E_STALE);
    close(c.fd);
}

static void bye_ends_a_session_at_once(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    lose(&c);
    assert_int_equal(client_resume(&fx, &c, NULL), 0);
    client_bye(&fx, &c);
    assert_int_equal(fx.d->sessions.count, 0);
    assert_int_equal(fx.d->stats.sessions_died, 0);
}

// A process that opens a session, reports it, drops its connection when told to, and then sleeps.
static pid_t child_start(int *ret_report, int *ret_order) {
    int report[2], order[2];
    assert_int_equal(pipe(report), 0);
    assert_int_equal(pipe(order), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
        static uint8_t bytes[PROTO_MAX_MESSAGE];
        char byte;
        int fd = fd_connect(&fx);
        fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
        ssize_t n = 0;
        do {
            usleep(1000);
            n = recv(fd, bytes, sizeof bytes, 0);
        } while (n < 0);
        if (write(report[1], bytes, (size_t)n) != n || read(order[0], &byte, 1) != 1)
            _exit(1);
        close(fd);
        for (;;)
            pause();
    }
    close(report[1]);
    close(order[0]);
    *ret_report = report[0];
    *ret_order = order[1];
    return pid;
}

static void a_process_killed_inside_its_grace_is_reclaimed_at_once(void **state) {
    (void)state;
    int report, order;
    uint8_t bytes[256];
    struct proto_msg msg = {0};
    uint64_t seq;
    pid_t pid = child_start(&report, &order);
    pump_until(&fx, one_session, &fx);
    ssize_t n = read(report, bytes, sizeof bytes);
    assert_true(n > 0);
    assert_int_equal(proto_parse_reply(PROTO_FD_HELLO, bytes, (size_t)n, &msg, NULL), 0);
    struct client c = {.pid = (uint32_t)pid,
                       .pipe = 9,
                       .session = msg.body.fd_hello_reply.session,
                       .epoch = msg.body.fd_hello_reply.epoch};
    memcpy(c.token, msg.body.fd_hello_reply.token, sizeof c.token);
    assert_int_equal(client_hello(&fx, &c, NULL), 0);
    uint64_t pool = make_pool(&fx, &c, "p", 64);
    make_seqs(&fx, &c, pool, 1, &seq);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 100, NULL), 0);
    assert_int_equal(write(order, "x", 1), 1);
    pump_until(&fx, is_detached, &c);
    pump(&fx, 50);
    assert_int_equal(core_free_pages(pool), 64 - 13);
    uint64_t since = uv_hrtime();
    kill(pid, SIGKILL);
    pump_until(&fx, no_sessions, &fx);
    assert_in_range((uv_hrtime() - since) / 1000000, 0, 5000); // not LONG_MS
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(core_free_pages(pool), 64);
    assert_int_equal(fx.d->stats.sessions_died, 1);
    close(report);
    close(order);
}

static void the_daemon_ends_with_sessions_detached(void **state) {
    (void)state;
    struct client c; // teardown closes: detached, with a step open and a job held
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 8);
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0);
    lose(&c);
}

// --- credentials ------------------------------------------------------------------------------

static void write_secrets(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0600), 0);
}

static const char *identity_of(const struct proto_msg *msg) {
    const struct session *s = session_find(fx.d, msg->body.fd_hello_reply.session);
    assert_non_null(s);
    return s->identity;
}

static void without_credentials_configured_none_is_taken(void **state) {
    (void)state;
    struct proto_msg msg = {0};
    int fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "secret", NULL), KVPOOL_E_UNSUPPORTED);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "", &msg), 0); // the same as FD_HELLO
    assert_string_equal(identity_of(&msg), "");
    close(fd);
}

static void a_credential_gives_the_session_its_identity(void **state) {
    (void)state;
    struct proto_msg msg = {0};
    char path[128];
    snprintf(path, sizeof path, "/tmp/kvpool-secrets-%d", getpid());
    write_secrets(path, "alice one\n");
    fixture_init(&fx);
    fx.config.session_grace_ms = LONG_MS;
    snprintf(fx.config.credentials, sizeof fx.config.credentials, "%s", path);
    fixture_start(&fx);
    int fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "two", &msg), KVPOOL_E_PERM);
    assert_null(strstr(msg.body.error.text, "two"));
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "one", &msg), 0);
    assert_string_equal(identity_of(&msg), "alice");
    // A session keeps its identity, whatever credential it is taken up with.
    int again = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, again, msg.body.fd_hello_reply.session,
                             msg.body.fd_hello_reply.token, "two", &msg),
                     0);
    assert_string_equal(identity_of(&msg), "alice");
    close(fd);
    close(again);

    write_secrets(path, "bob two\n");
    dispatch_reload(fx.d);
    fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "one", NULL), KVPOOL_E_PERM);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "two", &msg), 0);
    assert_string_equal(identity_of(&msg), "bob");
    close(fd);
    assert_int_equal(chmod(path, 0644), 0); // refused: the old ones stay
    dispatch_reload(fx.d);
    fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "two", NULL), 0);
    close(fd);
    fx.config.credentials[0] = '\0';
    dispatch_reload(fx.d);
    fd = fd_connect(&fx);
    assert_int_equal(fd_open(&fx, fd, 0, NULL, "two", NULL), KVPOOL_E_UNSUPPORTED);
    close(fd);
    assert_int_equal(unlink(path), 0);
    fixture_stop(&fx);
}

static void bad_credentials_do_not_start(void **state) {
    (void)state;
    struct err err = {0};
    struct dispatch *d = NULL;
    fixture_init(&fx);
    assert_int_equal(uv_loop_init(&fx.loop), 0);
    snprintf(fx.config.credentials, sizeof fx.config.credentials, "/nonexistent/secrets");
    assert_int_equal(dispatch_open(&fx.loop, &fx.config, &d, &err), KVPOOL_E_SYSTEM);
    assert_non_null(strstr(err.text, "/nonexistent/secrets"));
    assert_null(d);
    uv_run(&fx.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&fx.loop), 0);
    assert_int_equal(rmdir(fx.config.dir), 0);
}

#define LONG(name) cmocka_unit_test_setup_teardown(name, setup_long, teardown)
#define SHORT(name) cmocka_unit_test_setup_teardown(name, setup_short, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        LONG(a_lost_connection_leaves_everything_as_it_was),
        LONG(work_in_flight_goes_on_while_the_connection_is_lost),
        LONG(a_new_connection_replaces_one_that_seems_alive),
        LONG(only_the_right_token_takes_a_session_up),
        LONG(another_process_does_not_take_a_session_up),
        LONG(another_user_does_not_take_a_session_up),
        LONG(refused_again_and_again_is_a_line_a_minute),
        LONG(a_wrong_version_takes_nothing_up),
        LONG(a_draining_daemon_takes_old_sessions_up_but_no_new_ones),
        SHORT(after_the_grace_its_pages_come_back),
        SHORT(each_request_prolongs_the_grace),
        SHORT(several_sessions_end_each_in_its_time),
        SHORT(a_request_in_flight_keeps_its_session),
        SHORT(a_job_without_a_request_is_waited_for_after_the_grace),
        LONG(a_shorter_grace_counts_for_those_that_wait),
        LONG(without_a_grace_the_session_ends_with_its_connection),
        LONG(bye_ends_a_session_at_once),
        LONG(a_process_killed_inside_its_grace_is_reclaimed_at_once),
        LONG(the_daemon_ends_with_sessions_detached),
        LONG(without_credentials_configured_none_is_taken),
        cmocka_unit_test(a_credential_gives_the_session_its_identity),
        cmocka_unit_test(bad_credentials_do_not_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
