// SPDX-License-Identifier: Apache-2.0
// test_closing.c: REGION_FREE of a client's own memory is answered when the backend has closed it: not before,
// while everything else goes on, and whatever becomes of the client meanwhile. The backend is the CPU's,
// changed to import memory and to close it when the test, or its own end, says so.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "resume.h"
#include "worker.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

// --- the backend --------------------------------------------------------------------------------

#define MAX_CLOSES 8

static struct {
    struct backend_ops ops;
    pthread_mutex_t lock;
    struct backend_close *closes[MAX_CLOSES];
    uint32_t n;
    bool at_once;
} own = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int own_import(struct backend *b, const struct backend_handle *handle, uint64_t bytes,
                      struct backend_mem **ret, struct err *err) {
    (void)handle;
    return backend_cpu.mem_alloc(b, bytes, BACKEND_HOST, BACKEND_FD, ret, err);
}

static void own_mem_close(struct backend *b, struct backend_mem *mem, struct backend_close *close) {
    backend_cpu.mem_free(b, mem);
    pthread_mutex_lock(&own.lock);
    assert_true(own.n < MAX_CLOSES);
    if (!own.at_once)
        own.closes[own.n++] = close;
    pthread_mutex_unlock(&own.lock);
    if (own.at_once)
        close->done(close);
}

static uint32_t closes(void) {
    pthread_mutex_lock(&own.lock);
    uint32_t n = own.n;
    pthread_mutex_unlock(&own.lock);
    return n;
}

static void *close_all(void *arg) {
    pthread_mutex_lock(&own.lock);
    for (uint32_t i = 0; i < own.n; i++)
        own.closes[i]->done(own.closes[i]);
    own.n = 0;
    pthread_mutex_unlock(&own.lock);
    return arg;
}

// In another thread, as a backend does.
static void release(void) {
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, close_all, NULL), 0);
    pthread_join(thread, NULL);
}

static void own_close(struct backend *b) {
    release();
    held.close(b);
}

static int start(uint32_t grace_ms) {
    own.ops = held;
    own.ops.close = own_close;
    own.ops.mem_import = own_import;
    own.ops.mem_close = own_mem_close;
    own.n = 0;
    own.at_once = false;
    const int status = worker_setup_with(&own.ops, PROTO_FEATURES);
    fx.config.session_grace_ms = grace_ms;
    return status;
}

static int setup(void **state) {
    (void)state;
    return start(0);
}

static int resume_setup(void **state) {
    (void)state;
    return start(60000);
}

// --- requests -----------------------------------------------------------------------------------

static uint64_t register_own(struct client *c) {
    const struct proto_region_register r = {.bytes = 8192, .handle_bytes = 8192};
    struct proto_msg msg = {0};
    fd_send(c->fd, PROTO_REGION_REGISTER, &r, sizeof r, -1);
    assert_int_equal(fd_recv(&fx, c->fd, PROTO_REGION_REGISTER, &msg, NULL), 0);
    return msg.body.region_reply.region;
}

static void send_free(const struct client *c, uint64_t handle) {
    const struct proto_handle body = {.handle = handle};
    fd_send(c->fd, PROTO_REGION_FREE, &body, sizeof body, -1);
}

static int recv_free(struct client *c) {
    struct proto_msg msg = {0};
    const int status = fd_recv(&fx, c->fd, PROTO_REGION_FREE, &msg, NULL);
    assert_int_equal(msg.header.op, PROTO_REGION_FREE);
    return status;
}

static bool answered(const struct client *c) {
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static bool some_closes(void *arg) {
    return closes() == *(const uint32_t *)arg;
}

static void await_closes(uint32_t n) {
    pump_until(&fx, some_closes, &n);
}

static bool nothing_pending(void *arg) {
    return ((struct fixture *)arg)->d->freeing == NULL;
}

static struct session *session(const struct client *c) {
    return session_find(fx.d, c->session);
}

// --- tests --------------------------------------------------------------------------------------

static void the_answer_waits_for_the_close_and_nothing_else_does(void **state) {
    (void)state;
    struct client other;
    struct err err;
    client_open(&fx, &other, 2);
    const uint64_t handle = register_own(&me);
    const struct region_quota before = session(&me)->quota;
    send_free(&me, handle);
    await_closes(1);
    pump(&fx, 30);
    assert_false(answered(&me));
    assert_false(dispatch_idle(fx.d)); // a drain waits for it
    // Gone for the client, which does have it counted no more.
    assert_int_equal(session(&me)->quota.count, before.count - 1);
    assert_int_equal(session(&me)->quota.bytes, before.bytes - 8192);
    struct proto_attn a = step_attn(1);
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    a.q.region = handle;
    assert_int_equal(attn(PROTO_DECODE, &a, NULL, &err), KVPOOL_E_STALE);
    // Others, and this one, are answered.
    assert_int_equal(client_ping(&fx, &other), 0);
    assert_int_equal(client_ping(&fx, &me), 0);
    assert_int_equal(client_region_free(&fx, &other, client_region(&fx, &other, 4096, NULL)), 0);
    assert_int_equal(client_region_free(&fx, &me, client_region(&fx, &me, 4096, NULL)), 0);
    assert_int_equal(client_region_free(&fx, &me, handle), KVPOOL_E_STALE); // once more
    pump(&fx, 5);
    assert_false(answered(&me));
    release();
    assert_int_equal(recv_free(&me), 0);
    assert_true(dispatch_idle(fx.d));
    pump(&fx, 5);
    assert_false(answered(&me)); // once
    client_bye(&fx, &other);
}

static void a_close_within_the_call_is_answered_too(void **state) {
    (void)state;
    own.at_once = true;
    send_free(&me, register_own(&me));
    assert_int_equal(recv_free(&me), 0);
}

static void each_of_several_has_its_answer(void **state) {
    (void)state;
    struct client other;
    client_open(&fx, &other, 2);
    send_free(&me, register_own(&me));
    send_free(&other, register_own(&other));
    send_free(&me, register_own(&me));
    await_closes(3);
    release();
    assert_int_equal(recv_free(&me), 0);
    assert_int_equal(recv_free(&me), 0);
    assert_int_equal(recv_free(&other), 0);
    client_bye(&fx, &other);
}

static void a_job_that_uses_the_memory_comes_first(void **state) {
    (void)state;
    const uint64_t handle = register_own(&me);
    struct proto_attn a = step_attn(1);
    assert_int_equal(begin_one(1, seqs[0], 2), 0);
    a.q.region = handle;
    backend_hold(true);
    struct call *call = attn_start(PROTO_DECODE, &a);
    send_free(&me, handle);
    pump(&fx, 30);
    assert_int_equal(closes(), 0);
    assert_false(answered(&me));
    backend_hold(false);
    await_closes(1);
    assert_int_equal(call_end(&fx, call, NULL, NULL), 0);
    pump(&fx, 5);
    assert_false(answered(&me));
    release();
    assert_int_equal(recv_free(&me), 0);
}

static void a_client_that_ends_meanwhile_has_no_answer(void **state) {
    (void)state;
    struct client other;
    client_open(&fx, &other, 2);
    send_free(&other, register_own(&other));
    await_closes(1);
    close(other.fd); // no grace
    while (session(&other) != NULL)
        pump(&fx, 1);
    assert_int_equal(client_ping(&fx, &me), 0);
    assert_non_null(fx.d->freeing);
    client_open(&fx, &other, 3); // in the same slot
    release();
    pump_until(&fx, nothing_pending, &fx);
    pump(&fx, 5);
    assert_false(answered(&other));
    client_bye(&fx, &other);
}

static void who_says_bye_is_not_held_up(void **state) {
    (void)state;
    struct client other;
    client_open(&fx, &other, 2);
    send_free(&other, register_own(&other));
    await_closes(1);
    client_bye(&fx, &other);
    release();
    pump_until(&fx, nothing_pending, &fx);
}

static void on_a_new_connection_the_client_asks_anew(void **state) {
    (void)state;
    const uint64_t handle = register_own(&me), lost = register_own(&me);
    send_free(&me, handle);
    send_free(&me, lost);
    await_closes(2);
    const int old = me.fd;
    assert_int_equal(client_resume(&fx, &me, NULL), 0);
    close(old);
    send_free(&me, handle);
    pump(&fx, 30);
    assert_false(answered(&me));
    send_free(&me, handle); // not twice
    assert_int_equal(recv_free(&me), KVPOOL_E_STALE);
    release();
    assert_int_equal(recv_free(&me), 0);
    pump_until(&fx, nothing_pending, &fx);
    pump(&fx, 5);
    assert_false(answered(&me)); // not to what it did not ask here
    send_free(&me, lost);
    assert_int_equal(recv_free(&me), KVPOOL_E_STALE);
}

static void another_session_does_not_get_the_answer(void **state) {
    (void)state;
    struct client other;
    client_open(&fx, &other, 2);
    const uint64_t handle = register_own(&me);
    send_free(&me, handle);
    await_closes(1);
    assert_int_equal(client_region_free(&fx, &other, handle), KVPOOL_E_STALE);
    release();
    assert_int_equal(recv_free(&me), 0);
    client_bye(&fx, &other);
}

static void a_client_that_does_not_read_is_closed(void **state) {
    (void)state;
    struct client other;
    const int one = 1;
    client_open(&fx, &other, 2);
    // Its replies take the socket's buffer: that to REGION_FREE has no room.
    const struct session *s = session(&other);
    assert_int_equal(setsockopt(s->conn->fd, SOL_SOCKET, SO_SNDBUF, &one, sizeof one), 0);
    send_free(&other, register_own(&other));
    await_closes(1);
    while (send(s->conn->fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
        continue;
    release();
    pump_until(&fx, nothing_pending, &fx);
    assert_null(session(&other));
    assert_int_equal(client_ping(&fx, &me), 0);
    close(other.fd);
}

static void without_memory_nothing_has_changed(void **state) {
    (void)state;
    const uint64_t handle = register_own(&me);
    allocation_fails(1);
    assert_int_equal(client_region_free(&fx, &me, handle), KVPOOL_E_NOMEM);
    allocation_fails(0);
    assert_int_equal(closes(), 0);
    send_free(&me, handle);
    await_closes(1);
    release();
    assert_int_equal(recv_free(&me), 0);
}

// The teardown closes the daemon, which closes the backend.
static void the_daemon_ends_with_a_close_pending(void **state) {
    (void)state;
    send_free(&me, register_own(&me));
    await_closes(1);
    dispatch_drain(fx.d);
    assert_false(dispatch_idle(fx.d));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, worker_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_answer_waits_for_the_close_and_nothing_else_does),
        TEST(a_close_within_the_call_is_answered_too),
        TEST(each_of_several_has_its_answer),
        TEST(a_job_that_uses_the_memory_comes_first),
        TEST(a_client_that_ends_meanwhile_has_no_answer),
        TEST(who_says_bye_is_not_held_up),
        cmocka_unit_test_setup_teardown(on_a_new_connection_the_client_asks_anew, resume_setup,
                                        worker_teardown),
        TEST(another_session_does_not_get_the_answer),
        TEST(a_client_that_does_not_read_is_closed),
        TEST(without_memory_nothing_has_changed),
        TEST(the_daemon_ends_with_a_close_pending),
    };
    return cmocka_run_group_tests_name("closing a client's own memory", tests, NULL, NULL);
}
