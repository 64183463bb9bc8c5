// SPDX-License-Identifier: Apache-2.0
// test_session.c: how clients come, are recognised and end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fixture fx;

static int setup(void **state) {
    (void)state;
    fixture_init(&fx);
    fixture_start(&fx);
    return 0;
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

// --- HELLO ------------------------------------------------------------------------------------

static void hello_binds_a_connection_to_its_session(void **state) {
    (void)state;
    struct client c;
    struct proto_msg msg = {0};
    struct proto_stats s = {0};
    client_open(&fx, &c, 1);
    assert_int_equal(client_hello(&fx, &c, &msg), 0); // again, on the same connection
    assert_int_equal(msg.body.hello_reply.version, 1);
    assert_int_equal(msg.body.hello_reply.max_inflight, fx.config.max_inflight);
    assert_string_equal(msg.body.hello_reply.backend, "cpu");
    assert_string_equal(msg.body.hello_reply.daemon_version, "0.1.0");
    assert_int_equal(msg.body.hello_reply.pid, getpid());
    assert_int_equal(client_stats(&fx, &c, &s), 0);
    assert_int_equal(s.clients, 1);
    assert_int_equal(s.queue_depth, 1); // this request
    client_bye(&fx, &c);
    assert_int_equal(fx.d->sessions.count, 0);
    assert_int_equal(fx.d->stats.sessions_died, 0);
}

static void ping_needs_no_session_but_everything_else_does(void **state) {
    (void)state;
    struct client c = {.pipe = 5, .pid = 1};
    struct proto_stats s = {0};
    assert_int_equal(client_ping(&fx, &c), 0);
    assert_int_equal(client_stats(&fx, &c, &s), KVPOOL_E_STATE);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 1, NULL), KVPOOL_E_STATE);
    assert_int_equal(client_ping(&fx, &c), 0);
}

static void a_wrong_protocol_version_is_refused_on_both_sockets(void **state) {
    (void)state;
    struct proto_fd_hello fd_hello = {.version_min = 7, .version_max = 9};
    struct proto_hello hello = {.version_min = 7, .version_max = 9, .session = 1};
    struct proto_msg msg = {0};
    struct err err;
    int fd = fd_connect(&fx);
    fd_send(fd, PROTO_FD_HELLO, &fd_hello, sizeof fd_hello, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_FD_HELLO, &msg, NULL), KVPOOL_E_VERSION);
    assert_non_null(strstr(msg.body.error.text, "7..9"));
    assert_non_null(strstr(msg.body.error.text, "1..1"));
    close(fd);
    struct client c = {.pipe = 1, .pid = 1};
    assert_int_equal(call(&fx, &c, PROTO_HELLO, &hello, sizeof hello, NULL, 0, NULL, &err),
                     KVPOOL_E_VERSION);
    assert_non_null(strstr(err.text, "7..9"));
    assert_non_null(strstr(err.text, "1..1"));
}

static void a_wrong_token_process_or_session_is_refused(void **state) {
    (void)state;
    struct client c, other;
    client_open(&fx, &c, 1);
    other = c;
    other.pipe = 2;
    other.token[15] ^= 1;
    assert_int_equal(client_hello(&fx, &other, NULL), KVPOOL_E_PERM);
    other = c;
    other.pipe = 2;
    other.pid++;
    assert_int_equal(client_hello(&fx, &other, NULL), KVPOOL_E_PERM);
    other = c;
    other.pipe = 2;
    other.session += 1ull << 32;
    assert_int_equal(client_hello(&fx, &other, NULL), KVPOOL_E_STALE);
    other.session = UINT64_MAX;
    assert_int_equal(client_hello(&fx, &other, NULL), KVPOOL_E_STALE);
    client_bye(&fx, &c);
    other = c;
    assert_int_equal(client_hello(&fx, &other, NULL), KVPOOL_E_STALE);
}

static void another_epoch_means_lost(void **state) {
    (void)state;
    struct client c;
    struct proto_stats s = {0};
    client_open(&fx, &c, 1);
    c.epoch++;
    assert_int_equal(client_ping(&fx, &c), KVPOOL_E_LOST);
    assert_int_equal(client_stats(&fx, &c, &s), KVPOOL_E_LOST);
    c.epoch = 0;
    assert_int_equal(client_stats(&fx, &c, &s), 0);
    client_bye(&fx, &c);
}

static void a_session_moves_to_a_new_connection(void **state) {
    (void)state;
    struct client c, before;
    struct proto_stats s = {0};
    client_open(&fx, &c, 1);
    before = c;
    // What waits on the old connection is answered when the new one takes over.
    struct call *waiting = call_start(&fx, &before, before.seq + 2, PROTO_STATS, NULL, 0, NULL, 0);
    assert_false(waiting->answered);
    c.pipe = 2;
    c.seq = 0;
    assert_int_equal(client_hello(&fx, &c, NULL), 0);
    assert_true(waiting->answered);
    assert_int_equal(call_end(&fx, waiting, NULL, NULL), KVPOOL_E_CONN);
    assert_int_equal(client_stats(&fx, &c, &s), 0);
    assert_int_equal(client_stats(&fx, &before, &s), KVPOOL_E_STATE);
    client_bye(&fx, &c);
}

static void a_connection_has_one_session(void **state) {
    (void)state;
    struct client a, b;
    client_open(&fx, &a, 1);
    client_open(&fx, &b, 2);
    b.pipe = 1;
    b.seq = a.seq;
    assert_int_equal(client_hello(&fx, &b, NULL), KVPOOL_E_STATE);
    client_bye(&fx, &a);
    client_bye(&fx, &b);
}

static void more_clients_than_the_limit_are_refused(void **state) {
    (void)state;
    struct client c[16];
    for (uint32_t i = 0; i < 16; i++)
        client_open(&fx, &c[i], i + 1);
    struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
    int fd = fd_connect(&fx);
    fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_FD_HELLO, NULL, NULL), KVPOOL_E_LIMIT);
    client_bye(&fx, &c[3]);
    fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_FD_HELLO, NULL, NULL), 0);
    for (uint32_t i = 0; i < 16; i++)
        if (i != 3)
            client_bye(&fx, &c[i]);
    close(fd);
    pump_until(&fx, no_sessions, &fx);
}

// --- the fd socket ----------------------------------------------------------------------------

static void fd_requests_need_a_session_and_say_hello_once(void **state) {
    (void)state;
    struct proto_region_create create = {.bytes = 4096};
    int fd = fd_connect(&fx);
    fd_send(fd, PROTO_REGION_CREATE, &create, sizeof create, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_REGION_CREATE, NULL, NULL), KVPOOL_E_STATE);
    fd_send(fd, PROTO_BYE, NULL, 0, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_BYE, NULL, NULL), KVPOOL_E_STATE);
    close(fd);
    struct client c;
    struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
    client_open(&fx, &c, 1);
    fd_send(c.fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(&fx, c.fd, PROTO_FD_HELLO, NULL, NULL), KVPOOL_E_STATE);
    client_bye(&fx, &c);
}

static void file_descriptors_from_a_client_are_refused_and_closed(void **state) {
    (void)state;
    struct client c;
    struct proto_region_create create = {.bytes = 4096};
    int ends[2];
    client_open(&fx, &c, 1);
    assert_int_equal(pipe(ends), 0);
    fd_send(c.fd, PROTO_REGION_CREATE, &create, sizeof create, ends[1]);
    close(ends[1]); // the daemon's copy is the last one
    assert_int_equal(fd_recv(&fx, c.fd, PROTO_REGION_CREATE, NULL, NULL), KVPOOL_E_PROTO);
    char byte;
    assert_int_equal(read(ends[0], &byte, 1), 0); // end of file: it is closed
    close(ends[0]);
    client_region(&fx, &c, 4096, NULL); // the connection is still good
    client_bye(&fx, &c);
}

static void over_long_and_garbage_packets_are_answered(void **state) {
    (void)state;
    static uint8_t big[PROTO_MAX_MESSAGE + 1];
    struct client c;
    struct proto_msg msg = {0};
    client_open(&fx, &c, 1);
    int size = 4 * PROTO_MAX_MESSAGE;
    assert_int_equal(setsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    assert_int_equal(send(c.fd, big, sizeof big, 0), sizeof big);
    assert_int_equal(fd_recv(&fx, c.fd, 0, &msg, NULL), KVPOOL_E_TOOBIG);
    assert_int_equal(send(c.fd, "garbage", 7, 0), 7);
    assert_int_equal(fd_recv(&fx, c.fd, 0, &msg, NULL), KVPOOL_E_PROTO);
    client_region(&fx, &c, 4096, NULL);
    client_bye(&fx, &c);
}

static void a_client_that_does_not_read_its_replies_is_closed(void **state) {
    (void)state;
    struct client slow, good;
    client_open(&fx, &slow, 1);
    client_open(&fx, &good, 2);
    struct proto_handle nothing = {.handle = 1};
    uint8_t bytes[64];
    struct proto_header header = {.version = 1, .op = PROTO_REGION_FREE};
    size_t n = proto_write(bytes, sizeof bytes, &header, &nothing, sizeof nothing, NULL, 0);
    uint64_t end = uv_hrtime() + 10000000000ull;
    while (!one_session(&fx) && uv_hrtime() < end) {
        (void)!send(slow.fd, bytes, n, MSG_NOSIGNAL); // EAGAIN or EPIPE: its queue is full or gone
        uv_run(&fx.loop, UV_RUN_NOWAIT);
    }
    assert_true(one_session(&fx));
    assert_int_equal(fx.d->stats.sessions_died, 1);
    assert_int_equal(client_ping(&fx, &good), 0);
    close(slow.fd);
    client_bye(&fx, &good);
}

static void regions_have_limits(void **state) {
    (void)state;
    struct client c;
    struct proto_region_create create = {.bytes = 0};
    client_open(&fx, &c, 1);
    fd_send(c.fd, PROTO_REGION_CREATE, &create, sizeof create, -1);
    assert_int_equal(fd_recv(&fx, c.fd, PROTO_REGION_CREATE, NULL, NULL), KVPOOL_E_INVAL);
    const uint64_t too_many[] = {fx.config.max_region_bytes + 1, UINT64_MAX};
    for (size_t i = 0; i < 2; i++) {
        create.bytes = too_many[i];
        fd_send(c.fd, PROTO_REGION_CREATE, &create, sizeof create, -1);
        assert_int_equal(fd_recv(&fx, c.fd, PROTO_REGION_CREATE, NULL, NULL), KVPOOL_E_LIMIT);
    }
    uint64_t region[4];
    for (int i = 0; i < 4; i++)
        region[i] = client_region(&fx, &c, 4096, NULL);
    create.bytes = 4096;
    fd_send(c.fd, PROTO_REGION_CREATE, &create, sizeof create, -1);
    assert_int_equal(fd_recv(&fx, c.fd, PROTO_REGION_CREATE, NULL, NULL), KVPOOL_E_LIMIT);
    assert_int_equal(client_region_free(&fx, &c, region[2]), 0);
    assert_int_equal(client_region_free(&fx, &c, region[2]), KVPOOL_E_STALE);
    uint64_t again = client_region(&fx, &c, fx.config.max_region_bytes - 3ull * 4096, NULL);
    for (int i = 0; i < 4; i++)
        assert_true(again != region[i]);
    assert_int_equal(client_region_free(&fx, &c, again), 0);
    assert_int_equal(client_region_free(&fx, &c, region[0]), 0);
    struct client other;
    client_open(&fx, &other, 2);
    assert_int_equal(client_region_free(&fx, &other, region[1]), KVPOOL_E_PERM);
    client_bye(&fx, &other);
    client_bye(&fx, &c);
    assert_int_equal(regions_count(fx.d->regions), 0);
}

static void a_region_is_shared_memory_of_both_sides(void **state) {
    (void)state;
    struct client c;
    uint8_t *data;
    client_open(&fx, &c, 1);
    uint64_t handle = client_region(&fx, &c, 4096, (void **)&data);
    struct region *region;
    assert_int_equal(region_find(fx.d->regions, c.session, handle, &region, NULL), 0);
    uint8_t *inside = held.mem_host(region->mem);
    assert_int_equal(inside[4095], 0);
    data[4095] = 42;
    assert_int_equal(inside[4095], 42);
    munmap(data, 4096);
    client_bye(&fx, &c);
}

// --- the end of a client ----------------------------------------------------------------------

static void a_closed_connection_ends_the_session_and_frees_its_pages(void **state) {
    (void)state;
    struct client c, other;
    uint64_t seqs[2];
    client_open(&fx, &other, 2);
    uint64_t pool = make_pool(&fx, &other, "p", 64);
    client_open(&fx, &c, 1);
    make_seqs(&fx, &c, pool, 2, seqs);
    assert_int_equal(begin(&fx, &c, 1, pool, 2, seqs, 20, NULL), 0);
    client_region(&fx, &c, 4096, NULL);
    assert_int_equal(free_pages(&fx, &other, pool), 64 - 6);
    close(c.fd);
    pump_until(&fx, one_session, &fx);
    assert_int_equal(free_pages(&fx, &other, pool), 64);
    assert_int_equal(regions_count(fx.d->regions), 0);
    struct proto_stats s = {0};
    assert_int_equal(client_stats(&fx, &other, &s), 0);
    assert_int_equal(s.sessions_died, 1);
    assert_true(s.reclaim_last_ns > 0 && s.reclaim_last_ns <= s.reclaim_max_ns);
    assert_int_equal(client_stats(&fx, &c, &s),
                     KVPOOL_E_STALE); // its NNG connection may live a little longer
    dispatch_pipe(fx.d, c.pipe, c.pid, true);
    assert_int_equal(client_stats(&fx, &c, &s), KVPOOL_E_STATE);
    client_bye(&fx, &other);
}

// A process of its own that opens a session, reports it and then does nothing.
static pid_t child_start(struct fixture *f, int *ret_report) {
    int report[2];
    assert_int_equal(pipe(report), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
        static uint8_t bytes[PROTO_MAX_MESSAGE];
        int fd = fd_connect(f);
        fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
        ssize_t n = 0;
        do {
            usleep(1000);
            n = recv(fd, bytes, sizeof bytes, 0);
        } while (n < 0);
        if (write(report[1], bytes, (size_t)n) != n)
            _exit(1);
        for (;;)
            pause();
    }
    close(report[1]);
    *ret_report = report[0];
    return pid;
}

static struct client child_client(struct fixture *f, pid_t pid, int report) {
    uint8_t bytes[256];
    struct proto_msg msg = {0};
    pump_until(f, one_session, f);
    ssize_t n = read(report, bytes, sizeof bytes);
    close(report);
    assert_true(n > 0);
    assert_int_equal(proto_parse_reply(PROTO_FD_HELLO, bytes, (size_t)n, &msg, NULL), 0);
    struct client c = {.pid = (uint32_t)pid,
                       .pipe = 9,
                       .session = msg.body.fd_hello_reply.session,
                       .epoch = msg.body.fd_hello_reply.epoch};
    memcpy(c.token, msg.body.fd_hello_reply.token, sizeof c.token);
    assert_int_equal(client_hello(f, &c, NULL), 0);
    return c;
}

static void a_killed_process_gives_its_pages_back(void **state) {
    (void)state;
    int report;
    pid_t pid = child_start(&fx, &report);
    struct client c = child_client(&fx, pid, report);
    uint64_t pool = make_pool(&fx, &c, "p", 64), seq;
    make_seqs(&fx, &c, pool, 1, &seq);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 100, NULL), 0);
    kill(pid, SIGKILL);
    pump_until(&fx, no_sessions, &fx);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(fx.d->stats.sessions_died, 1);
    struct core_pool_info info;
    assert_int_equal(core_pool_stat(fx.d->core, pool, &info, NULL), 0);
    assert_int_equal(info.free_pages, 64);
    assert_int_equal(info.seqs, 0);
}

static bool work_is_held(void *arg) {
    (void)arg;
    return backend_held() > 0;
}

static void a_process_that_dies_with_work_in_flight_is_waited_for(void **state) {
    (void)state;
    int report;
    pid_t pid = child_start(&fx, &report);
    struct client c = child_client(&fx, pid, report);
    uint64_t pool = make_pool(&fx, &c, "p", 64), seq;
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0); // its table job is held
    struct call *commit =
        call_start(&fx, &c, UINT64_MAX, PROTO_STEP_COMMIT, &(struct proto_handle){.handle = 1},
                   sizeof(struct proto_handle), NULL, 0);
    assert_false(commit->answered);      // waits for the job
    pump_until(&fx, work_is_held, NULL); // what the device has not begun is dropped with its client
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    pump(&fx, 50);
    assert_int_equal(fx.d->sessions.count, 1); // dying
    assert_int_equal(call_end(&fx, commit, NULL, NULL), KVPOOL_E_SHUTDOWN);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_ABORT, 1, NULL), KVPOOL_E_STALE);
    assert_int_equal(client_hello(&fx, &c, NULL), KVPOOL_E_STALE);
    struct core_pool_info info;
    assert_int_equal(core_pool_stat(fx.d->core, pool, &info, NULL), 0);
    assert_int_equal(info.free_pages, 62);
    backend_hold(false);
    pump_until(&fx, no_sessions, &fx);
    assert_int_equal(core_pool_stat(fx.d->core, pool, &info, NULL), 0);
    assert_int_equal(info.free_pages, 64);
    assert_true(fx.d->stats.reclaim_last_ns >= 40000000); // from its death, not from the job's end
}

// --- drain and close --------------------------------------------------------------------------

static void draining_refuses_new_clients_and_steps_only(void **state) {
    (void)state;
    struct client c;
    uint64_t seqs[2];
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 8);
    make_seqs(&fx, &c, pool, 2, seqs);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, seqs, 0, NULL), 0);
    dispatch_drain(fx.d);
    assert_int_equal(begin(&fx, &c, 2, pool, 1, &seqs[1], 0, NULL), KVPOOL_E_SHUTDOWN);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 1, NULL), 0);
    struct proto_fd_hello hello = {.version_min = 1, .version_max = 1};
    int fd = fd_connect(&fx);
    fd_send(fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(&fx, fd, PROTO_FD_HELLO, NULL, NULL), KVPOOL_E_SHUTDOWN);
    close(fd);
    assert_true(dispatch_idle(fx.d));
    client_bye(&fx, &c);
}

static void close_with_everything_open_answers_what_waits(void **state) {
    (void)state;
    struct client
        c; // teardown closes: with a step open, a job held, a commit and a request waiting
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 8);
    client_region(&fx, &c, 4096, NULL);
    make_seqs(&fx, &c, pool, 1, &seq);
    backend_hold(true);
    assert_int_equal(begin(&fx, &c, 1, pool, 1, &seq, 9, NULL), 0);
    struct proto_handle step = {.handle = 1};
    call_start(&fx, &c, UINT64_MAX, PROTO_STEP_COMMIT, &step, sizeof step, NULL, 0);
    call_start(&fx, &c, c.seq + 5, PROTO_STATS, NULL, 0, NULL, 0);
    close(c.fd);
}

static void clients_are_listed(void **state) {
    (void)state;
    struct client c[3];
    struct proto_list list = {.max = 2};
    struct proto_msg msg = {0};
    struct proto_client_info info;
    for (uint32_t i = 0; i < 3; i++)
        client_open(&fx, &c[i], i + 1);
    client_region(&fx, &c[0], 5000, NULL);
    assert_int_equal(call(&fx, &c[0], PROTO_CLIENT_LIST, &list, sizeof list, NULL, 0, &msg, NULL),
                     0);
    assert_int_equal(msg.count, 2);
    proto_record(&msg, 0, &info);
    assert_int_equal(info.pid, getpid());
    assert_int_equal(info.regions, 1);
    assert_int_equal(info.region_bytes, 8192);
    assert_int_equal(info.inflight, 1);
    assert_string_equal(info.name, "test");
    list.cursor = msg.body.list_reply.cursor;
    assert_int_equal(call(&fx, &c[0], PROTO_CLIENT_LIST, &list, sizeof list, NULL, 0, &msg, NULL),
                     0);
    assert_int_equal(msg.count, 1);
    for (uint32_t i = 0; i < 3; i++)
        client_bye(&fx, &c[i]);
}

static void a_configuration_that_cannot_be_opened_leaves_nothing(void **state) {
    (void)state;
    struct fixture other;
    struct err err = {0};
    struct dispatch *d = NULL;
    fixture_init(&other);
    assert_int_equal(uv_loop_init(&other.loop), 0);
    other.config.num_pools = 1;
    other.config.pools[0] = (struct core_pool_config){.name = "huge",
                                                      .layers = 512,
                                                      .kv_heads = 256,
                                                      .head_dim = 576,
                                                      .page_size = 256,
                                                      .dtype = KVPOOL_FP32,
                                                      .num_pages = 1u << 20,
                                                      .max_seqs = 1,
                                                      .max_seq_len = 256};
    assert_int_equal(dispatch_open(&other.loop, &other.config, &d, &err), KVPOOL_E_NOMEM);
    assert_non_null(strstr(err.text, "huge"));
    other.config.num_pools = 0;
    snprintf(other.config.backend, sizeof other.config.backend, "tpu");
    assert_int_not_equal(dispatch_open(&other.loop, &other.config, &d, &err), 0);
    snprintf(other.config.backend, sizeof other.config.backend, "cpu");
    char dir[CONFIG_PATH_MAX];
    memcpy(dir, other.config.dir, sizeof dir);
    memset(other.config.dir, 'x', 120);
    other.config.dir[120] = '\0';
    assert_int_equal(dispatch_open(&other.loop, &other.config, &d, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "too long"));
    snprintf(other.config.dir, sizeof other.config.dir, "%.100s/none", dir);
    assert_int_equal(dispatch_open(&other.loop, &other.config, &d, &err), KVPOOL_E_SYSTEM);
    assert_null(d);
    uv_run(&other.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&other.loop), 0);
    assert_int_equal(rmdir(dir), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(hello_binds_a_connection_to_its_session),
        TEST(ping_needs_no_session_but_everything_else_does),
        TEST(a_wrong_protocol_version_is_refused_on_both_sockets),
        TEST(a_wrong_token_process_or_session_is_refused),
        TEST(another_epoch_means_lost),
        TEST(a_session_moves_to_a_new_connection),
        TEST(a_connection_has_one_session),
        TEST(more_clients_than_the_limit_are_refused),
        TEST(fd_requests_need_a_session_and_say_hello_once),
        TEST(file_descriptors_from_a_client_are_refused_and_closed),
        TEST(over_long_and_garbage_packets_are_answered),
        TEST(a_client_that_does_not_read_its_replies_is_closed),
        TEST(regions_have_limits),
        TEST(a_region_is_shared_memory_of_both_sides),
        TEST(a_closed_connection_ends_the_session_and_frees_its_pages),
        TEST(a_killed_process_gives_its_pages_back),
        TEST(a_process_that_dies_with_work_in_flight_is_waited_for),
        TEST(draining_refuses_new_clients_and_steps_only),
        TEST(close_with_everything_open_answers_what_waits),
        TEST(clients_are_listed),
        cmocka_unit_test(a_configuration_that_cannot_be_opened_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
