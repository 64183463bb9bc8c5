// SPDX-License-Identifier: Apache-2.0
// test_reconnect.c: connections that break, daemons that restart, and what a caller is told.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <unistd.h>

static kvpool_status begin(kvpool_client *c, kvpool_step id, kvpool_step *ret) {
    kvpool_seq seq = 1;
    uint32_t tokens = 1;
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = 1;
    args.n = 1;
    args.seqs = &seq;
    args.new_tokens = &tokens;
    args.step = id;
    return kvpool_step_begin(c, &args, ret, NULL);
}

static void an_idle_connection_that_broke_is_replaced_in_the_same_session(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    kvpool_seq seq;
    for (int i = 0; i < 5; i++) {
        fake_drop(&kvd, true);
        expect(c, KVPOOL_OK, kvpool_seq_create(c, pool, 1, &seq));
    }
    assert_int_equal(kvd.sessions, 1);
    assert_int_equal(kvd.hellos, 6);
    kvpool_close(c);
}

static void a_control_socket_being_recreated_is_waited_for(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 200);
    fake_control_listen(&kvd, false);
    fake_drop(&kvd, true);
    // The session is alive, the control socket is not there: neither lost nor a new session.
    expect(c, KVPOOL_E_CONN, kvpool_ping(c, NULL));
    expect_message(c, "kvpool.sock");
    fake_control_listen(&kvd, true);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

// Closes the connection under the first request of an op, instead of answering.
static uint16_t victim;
static bool break_once(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != victim || f->hook_state++ > 0)
        return false;
    fake_close(c);
    return true;
}

static void begin_and_commit_are_repeated_by_their_id(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    fake_pool(c);
    kvpool_step step = 0;
    victim = PROTO_STEP_BEGIN;
    fake_set_hook(&kvd, break_once);
    expect(c, KVPOOL_OK, begin(c, 0, &step));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), 2);
    assert_int_equal(kvd.last_begin.step, step);
    victim = PROTO_STEP_COMMIT;
    fake_set_hook(&kvd, break_once);
    expect(c, KVPOOL_OK, kvpool_step_commit(c, step));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_COMMIT), 2);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

static bool break_always(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != victim)
        return false;
    fake_close(c);
    return true;
}

static void a_repeat_is_tried_once(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_step step = 9;
    victim = PROTO_STEP_BEGIN;
    fake_set_hook(&kvd, break_always);
    expect(c, KVPOOL_E_CONN, begin(c, 0, &step));
    assert_int_equal(step, 9);
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), 2);
    kvpool_close(c);
}

static void nothing_else_is_repeated(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_seq seq;
    victim = PROTO_SEQ_CREATE;
    fake_set_hook(&kvd, break_once);
    expect(c, KVPOOL_E_CONN, kvpool_seq_create(c, 1, 1, &seq));
    expect_message(c, "may or may not");
    assert_int_equal(fake_count(&kvd, PROTO_SEQ_CREATE), 1);
    victim = PROTO_STEP_ABORT;
    fake_set_hook(&kvd, break_once);
    expect(c, KVPOOL_E_CONN, kvpool_step_abort(c, 1));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_ABORT), 1);
    kvpool_close(c);
}

static void a_restarted_daemon_is_told_once_to_who_had_handles(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    kvpool_seq seq;
    expect(c, KVPOOL_OK, kvpool_seq_create(c, pool, 1, &seq));
    fake_stop(&kvd);
    expect(c, KVPOOL_E_CONN, kvpool_seq_create(c, pool, 1, &seq));
    expect_message(c, "no fd.sock");
    expect(c, KVPOOL_E_CONN, kvpool_ping(c, NULL));
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL)); // needs no handle
    expect(c, KVPOOL_E_LOST, kvpool_seq_create(c, pool, 1, &seq));
    expect(c, KVPOOL_OK, kvpool_seq_create(c, pool, 1, &seq));
    kvpool_daemon_info info = {.size = sizeof info};
    expect(c, KVPOOL_OK, kvpool_daemon(c, &info));
    assert_int_equal(info.epoch, kvd.epoch);
    assert_int_equal(kvd.sessions, 2);
    kvpool_close(c);
}

static void a_restart_between_two_calls_needs_no_failed_call(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    // Without handles nothing is lost.
    fake_stop(&kvd);
    fake_start(&kvd);
    kvpool_seq seq;
    expect(c, KVPOOL_OK, kvpool_seq_create(c, 1, 1, &seq));
    fake_stop(&kvd);
    fake_start(&kvd);
    // A second restart before it was told is still told once.
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    expect(c, KVPOOL_E_LOST, kvpool_seq_free(c, 1, &seq));
    expect(c, KVPOOL_OK, kvpool_seq_free(c, 1, &seq));
    kvpool_close(c);
}

static bool restart_under_begin(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_STEP_BEGIN)
        return false;
    for (unsigned i = 0; i < FAKE_CONNS; i++)
        if (f->conns[i].fd >= 0 && &f->conns[i] != c)
            fake_close(&f->conns[i]);
    fake_close(c);
    f->epoch++;
    return true;
}

static void a_begin_that_a_restart_interrupts_is_lost(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    fake_pool(c);
    kvpool_step step;
    fake_set_hook(&kvd, restart_under_begin);
    expect(c, KVPOOL_E_LOST, begin(c, 0, &step));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), 1);
    fake_set_hook(&kvd, NULL);
    expect(c, KVPOOL_OK, begin(c, 0, &step));
    kvpool_close(c);
}

static void a_session_that_the_daemon_ended_is_lost(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    fake_set(&kvd, session, 1); // it knows no other
    fake_drop(&kvd, false);
    fake_drop(&kvd, true);
    expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
    expect(c, KVPOOL_OK, kvpool_pool_destroy(c, pool));
    assert_int_equal(kvd.sessions, 2);
    // The daemon knows the session no more, though the fd socket is open.
    fake_pool(c);
    fake_set(&kvd, session, 1);
    fake_drop(&kvd, true);
    expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
    assert_int_equal(kvd.sessions, 3);
    kvpool_close(c);
}

static void a_region_of_an_earlier_session_is_stale(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    kvpool_region *region;
    kvpool_seq seq = 1;
    uint32_t q_len = 1;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &region));
    kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT;
    args.pool = pool;
    args.n = 1;
    args.seqs = &seq;
    args.q_len = &q_len;
    args.qo_heads = 2;
    args.q.region = args.out.region = region;
    expect(c, KVPOOL_OK, kvpool_decode(c, &args));
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_E_LOST, kvpool_decode(c, &args));
    expect(c, KVPOOL_E_STALE, kvpool_decode(c, &args));
    expect_message(c, "earlier session");
    memset(kvpool_region_data(region), 1, 100); // still mapped
    kvpool_region_free(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 0); // it was the other daemon's
    kvpool_close(c);
}

static void a_region_request_notices_that_the_session_is_over(void **state) {
    (void)state;
    kvd.features = PROTO_FEATURES & ~PROTO_FEATURE_RESUME; // before any connection
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_region *region;
    fake_drop(&kvd, false);
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &region));
    assert_int_equal(kvd.sessions, 2);
    kvpool_region_free(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 1);
    kvpool_close(c);
}

struct caller {
    kvpool_client *client;
    unsigned ok, conn, lost, other;
};

static void *call_on(void *arg) {
    struct caller *self = arg;
    for (int i = 0; i < 200; i++) {
        kvpool_seq seq;
        switch (kvpool_seq_create(self->client, 1, 1, &seq)) {
        case KVPOOL_OK:
            self->ok++;
            break;
        case KVPOOL_E_CONN:
            self->conn++;
            usleep(500);
            break;
        case KVPOOL_E_LOST:
            self->lost++;
            break;
        default:
            self->other++;
        }
    }
    return NULL;
}

static void threads_reconnect_together(void **state) {
    (void)state;
    enum { THREADS = 4, RESTARTS = 5 };
    kvpool_client *c = fake_connect(&kvd, 5000);
    fake_pool(c);
    pthread_t threads[THREADS];
    struct caller callers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (struct caller){.client = c};
        assert_int_equal(pthread_create(&threads[i], NULL, call_on, &callers[i]), 0);
    }
    for (int i = 0; i < RESTARTS; i++) {
        usleep(3000);
        fake_stop(&kvd);
        usleep(1000);
        fake_start(&kvd);
    }
    struct caller sum = {0};
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum.ok += callers[i].ok;
        sum.lost += callers[i].lost;
        sum.conn += callers[i].conn;
        sum.other += callers[i].other;
    }
    assert_int_equal(sum.other, 0);
    assert_true(sum.ok > 0);
    assert_true(sum.lost <= RESTARTS);
    assert_int_equal(sum.ok + sum.lost + sum.conn, THREADS * 200);
    assert_true(kvd.sessions <= RESTARTS + 1);
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(an_idle_connection_that_broke_is_replaced_in_the_same_session),
        T(a_control_socket_being_recreated_is_waited_for),
        T(begin_and_commit_are_repeated_by_their_id),
        T(a_repeat_is_tried_once),
        T(nothing_else_is_repeated),
        T(a_restarted_daemon_is_told_once_to_who_had_handles),
        T(a_restart_between_two_calls_needs_no_failed_call),
        T(a_begin_that_a_restart_interrupts_is_lost),
        T(a_session_that_the_daemon_ended_is_lost),
        T(a_region_of_an_earlier_session_is_stale),
        T(a_region_request_notices_that_the_session_is_over),
        T(threads_reconnect_together),
    };
    return cmocka_run_group_tests_name("client reconnect", tests, NULL, NULL);
}
