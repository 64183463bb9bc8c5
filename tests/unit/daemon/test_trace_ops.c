// SPDX-License-Identifier: Apache-2.0
// test_trace_ops.c: TRACE, and what a trace says of the requests and sequences of a real dispatch.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct fixture fx;
static struct client c;
static uint64_t pool;
static char text[1 << 16];

static int setup(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    fixture_init(&fx);
    fixture_start(&fx);
    client_open(&fx, &c, 1);
    pool = make_pool(&fx, &c, "kv", 64);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    fixture_stop(&fx);
    close(c.fd);
    return 0;
}

// TRACE on the client's connection: the status, and the pipe.
static int start_trace(int fd, uint32_t flags, int *ret_pipe) {
    struct proto_trace trace = {.flags = flags};
    struct proto_msg msg = {0};
    fd_send(fd, PROTO_TRACE, &trace, sizeof trace, -1);
    int status = fd_recv(&fx, fd, PROTO_TRACE, &msg, ret_pipe);
    if (status == 0)
        assert_true(msg.body.trace_reply.started_ns > 1600000000ull * 1000000000ull);
    return status;
}

static const char *read_pipe(int fd) {
    size_t len = 0;
    ssize_t n;
    while ((n = read(fd, text + len, sizeof text - 1 - len)) > 0)
        len += (size_t)n;
    assert_true(n < 0 && errno == EAGAIN);
    text[len] = '\0';
    return text;
}

static void expect_line(int fd, const char *part) {
    if (strstr(read_pipe(fd), part) == NULL)
        fail_msg("no %s in: %s", part, text);
}

static int open_seq(uint32_t n, uint32_t flags, uint64_t *ret_seq) {
    struct proto_seq_open o = {
        .pool = pool, .num_tokens = n, .flags = flags, .priority = KVPOOL_PRIORITY_NORMAL};
    uint32_t tokens[64];
    struct proto_msg msg = {0};
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = 1000 + i;
    int status =
        call(&fx, &c, PROTO_SEQ_OPEN, &o, sizeof o, tokens, n * sizeof tokens[0], &msg, NULL);
    *ret_seq = status == 0 ? msg.body.seq_open_reply.seq : 0;
    return status;
}

static int free_seqs(uint32_t n, const uint64_t *seqs) {
    struct proto_count count = {.count = n};
    return call(&fx, &c, PROTO_SEQ_FREE, &count, sizeof count, seqs, n * sizeof *seqs, NULL, NULL);
}

// A step without any written layer cannot be committed; one without tokens can.
static void requests_are_lines_with_their_sizes(void **state) {
    (void)state;
    int fd;
    uint64_t seqs[3];
    struct err err;
    assert_int_equal(start_trace(c.fd, 0, &fd), 0);
    assert_string_equal(read_pipe(fd), "");
    make_seqs(&fx, &c, pool, 3, seqs);
    expect_line(fd, "\"op\":\"SEQ_CREATE\",\"client\":");
    assert_non_null(strstr(text, "\"n\":3,\"tokens\":0,\"us\":"));
    assert_non_null(strstr(text, "\"status\":\"OK\"}\n"));
    assert_int_equal(begin(&fx, &c, 5, pool, 2, seqs, 7, &err), 0);
    expect_line(fd, "\"op\":\"STEP_BEGIN\",");
    assert_non_null(strstr(text, "\"n\":2,\"tokens\":14,"));
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 5, &err), KVPOOL_E_STATE);
    expect_line(fd, "\"op\":\"STEP_COMMIT\",");
    assert_non_null(strstr(text, "\"n\":0,\"tokens\":0,"));
    assert_non_null(strstr(text, "\"status\":\"E_STATE\"}\n"));
    struct proto_attn attn = {.step = 5};
    call(&fx, &c, PROTO_APPEND, &attn, sizeof attn, NULL, 0, NULL, NULL);
    expect_line(fd, "\"op\":\"APPEND\",");
    assert_non_null(strstr(text, "\"n\":2,\"tokens\":14,"));
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_ABORT, 5, &err), 0);
    assert_int_equal(begin(&fx, &c, 6, pool, 1, seqs, 0, &err), 0);
    read_pipe(fd);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 6, &err), 0);
    expect_line(fd, "\"op\":\"STEP_COMMIT\",");
    assert_int_equal(free_seqs(2, seqs), 0);
    expect_line(fd, "\"op\":\"SEQ_FREE\",");
    assert_non_null(strstr(text, "\"n\":2,"));
    struct call *bad = call_raw(&fx, &c, "nonsense", 8);
    assert_int_equal(call_end(&fx, bad, NULL, NULL), KVPOOL_E_PROTO);
    expect_line(fd, "\"op\":\"?\",");
    assert_non_null(strstr(text, "\"status\":\"E_PROTO\"}\n"));
    close(fd);
}

static void sequences_are_lines_when_they_are_freed(void **state) {
    (void)state;
    int fd;
    uint64_t seqs[2], none;
    assert_int_equal(start_trace(c.fd, 0, &fd), 0);
    assert_int_equal(open_seq(20, 0, &seqs[0]), 0);
    assert_int_equal(open_seq(20, PROTO_OPEN_PROBE, &none), 0);
    assert_int_equal(open_seq(20, PROTO_OPEN_MATCHED, &none), 0); // nothing matches: no sequence
    assert_int_equal(none, 0);
    expect_line(fd, "\"op\":\"SEQ_OPEN\",");
    assert_non_null(strstr(text, "\"n\":1,\"tokens\":20,"));
    assert_null(strstr(text, "timestamp"));
    seqs[1] = seqs[0];
    assert_int_equal(free_seqs(2, seqs), KVPOOL_E_INVAL); // a duplicate: nothing is freed
    assert_null(strstr(read_pipe(fd), "timestamp"));
    assert_int_equal(free_seqs(1, seqs), 0);
    expect_line(fd, "\"input_length\":20,\"output_length\":0,\"hash_ids\":[");
    assert_non_null(strstr(text, "\"pool\":\"kv\",\"matched\":0,\"opened\":20,\"client\":"));
    assert_null(strstr(text, ",1018,1019"));
    close(fd);
}

static void sequences_are_lines_when_their_session_ends(void **state) {
    (void)state;
    int fd, pipe_fd, other;
    uint64_t seqs[2];
    struct client watcher;
    client_open(&fx, &watcher, 2);
    assert_int_equal(start_trace(watcher.fd, PROTO_TRACE_TOKENS, &fd), 0);
    assert_int_equal(start_trace(watcher.fd, 0, &other), 0);
    assert_int_equal(open_seq(20, 0, &seqs[0]), 0);
    assert_int_equal(open_seq(18, 0, &seqs[1]), 0);
    read_pipe(fd);
    client_bye(&fx, &c);
    expect_line(fd, "\"input_length\":20,");
    assert_non_null(strstr(text, "\"input_length\":18,"));
    assert_non_null(strstr(text, ",1018,1019]}\n"));
    assert_non_null(strstr(read_pipe(other), "\"input_length\":18,"));
    assert_null(strstr(text, ",1016,1017"));
    assert_int_equal(fx.d->trace.bytes, 0);
    close(fd);
    close(other);
    pump(&fx, 10);
    assert_int_equal(fx.d->trace.count, 0);
    pipe_fd = watcher.fd;
    client_bye(&fx, &watcher);
    close(pipe_fd);
}

static void the_fifth_trace_is_refused(void **state) {
    (void)state;
    int fds[TRACE_MAX], fd = -1;
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        assert_int_equal(start_trace(c.fd, 0, &fds[i]), 0);
    assert_int_equal(start_trace(c.fd, 0, &fd), KVPOOL_E_LIMIT);
    assert_int_equal(fd, -1);
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        close(fds[i]);
}

static void traces_are_for_root_and_the_daemons_user(void **state) {
    (void)state;
    int pipe_fd = -1;
    int fd = fd_connect(&fx);
    assert_int_equal(start_trace(fd, 0, &pipe_fd), KVPOOL_E_STATE); // no session
    close(fd);
    if (geteuid() != 0)
        skip();
    char path[128];
    snprintf(path, sizeof path, "%.80s/fd.sock", fx.config.dir);
    assert_int_equal(chmod(fx.config.dir, 0711), 0);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(seteuid(65534), 0); // whom the daemon sees at the other end
    fd = fd_connect(&fx);
    assert_int_equal(seteuid(0), 0);
    struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
    struct proto_msg msg = {0};
    fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_FD_HELLO, &msg, NULL), 0);
    assert_int_equal(start_trace(fd, 0, &pipe_fd), KVPOOL_E_PERM);
    assert_int_equal(pipe_fd, -1);
    assert_int_equal(fx.d->trace.count, 0);
    fd_send(fd, PROTO_BYE, NULL, 0, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_BYE, &msg, NULL), 0);
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(requests_are_lines_with_their_sizes),
        TEST(sequences_are_lines_when_they_are_freed),
        TEST(sequences_are_lines_when_their_session_ends),
        TEST(the_fifth_trace_is_refused),
        TEST(traces_are_for_root_and_the_daemons_user),
    };
    return cmocka_run_group_tests_name("daemon/trace", tests, NULL, NULL);
}
