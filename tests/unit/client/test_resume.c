// SPDX-License-Identifier: Apache-2.0
// test_resume.c: sessions that outlive their connections, and those that the daemon does not give
// back.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <unistd.h>

static void drop_both(void) {
    fake_drop(&kvd, false);
    fake_drop(&kvd, true);
}

static kvpool_status begin(kvpool_client *c, kvpool_pool pool, kvpool_step *ret) {
    kvpool_seq seq = 1;
    uint32_t tokens = 1;
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = pool;
    args.n = 1;
    args.seqs = &seq;
    args.new_tokens = &tokens;
    return kvpool_step_begin(c, &args, ret, NULL);
}

static void everything_goes_on_after_a_lost_connection(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    kvpool_region *region;
    kvpool_step step;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &region));
    expect(c, KVPOOL_OK, begin(c, pool, &step));
    uint64_t session = kvd.session;
    for (unsigned i = 1; i <= 3; i++) {
        drop_both();
        kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT;
        args.step = step;
        args.qo_heads = 4;
        args.q.region = args.k.region = args.v.region = args.out.region = region;
        expect(c, KVPOOL_OK, kvpool_prefill(c, &args));
        assert_int_equal(kvd.last_attn.k.token_stride, 2 * 64); // the step's pool is remembered
        assert_int_equal(kvd.resumes, i);
        assert_int_equal(kvd.last_open.session, session);
        assert_int_equal(kvd.last_open.token[0], 7);
        assert_int_equal(kvd.last_open_epoch, kvd.epoch);
        assert_string_equal(kvd.last_open.name, "unit");
    }
    assert_int_equal(fake_count(&kvd, PROTO_POOL_STAT), 0);
    expect(c, KVPOOL_OK, kvpool_step_commit(c, step));
    assert_int_equal(kvd.sessions, 1);
    assert_int_equal(kvd.hellos, 4);
    kvpool_region_free(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 1);
    kvpool_close(c);
}

static bool hold_aborts(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    (void)c;
    return m->header.op == PROTO_STEP_ABORT;
}

static void requests_in_flight_end_and_the_next_goes_on(void **state) {
    (void)state;
    enum { N = 5 };
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    fake_set_hook(&kvd, hold_aborts);
    kvpool_op *ops[N];
    for (unsigned i = 0; i < N; i++) {
        kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_ABORT, .step = i + 1};
        expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[i]));
    }
    fake_await(&kvd, PROTO_STEP_ABORT, N);
    drop_both();
    for (unsigned i = 0; i < N; i++) {
        expect(c, KVPOOL_E_CONN, kvpool_wait(c, ops[i], UINT32_MAX));
        expect_message(c, "may or may not");
    }
    kvpool_seq seq;
    expect(c, KVPOOL_OK, kvpool_seq_create(c, pool, 1, &seq));
    assert_int_equal(kvd.resumes, 1);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

static uint16_t victim;
static bool close_all_once(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)c;
    if (m->header.op != victim || f->hook_state++ > 0)
        return false;
    for (unsigned i = 0; i < FAKE_CONNS; i++)
        if (f->conns[i].fd >= 0)
            fake_close(&f->conns[i]);
    return true;
}

static void begin_and_commit_are_repeated_in_a_resumed_session(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    kvpool_step step;
    victim = PROTO_STEP_BEGIN;
    fake_set_hook(&kvd, close_all_once);
    expect(c, KVPOOL_OK, begin(c, pool, &step));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), 2);
    victim = PROTO_STEP_COMMIT;
    fake_set_hook(&kvd, close_all_once);
    expect(c, KVPOOL_OK, kvpool_step_commit(c, step));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_COMMIT), 2);
    victim = PROTO_SEQ_TRUNCATE;
    fake_set_hook(&kvd, close_all_once);
    expect(c, KVPOOL_E_CONN, kvpool_seq_truncate(c, 1, 0)); // not what has no id
    assert_int_equal(fake_count(&kvd, PROTO_SEQ_TRUNCATE), 1);
    assert_int_equal(kvd.resumes, 2);
    expect(c, KVPOOL_OK, kvpool_seq_truncate(c, 1, 0));
    assert_int_equal(kvd.resumes, 3);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

// --- not given back ---------------------------------------------------------------------------

static bool refuse(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_FD_OPEN)
        return false;
    fake_error(f, c, &m->header, f->hook_state, 0, "no such session");
    return true;
}

static void a_session_that_is_refused_is_lost(void **state) {
    (void)state;
    static const kvpool_status statuses[] = {KVPOOL_E_STALE, KVPOOL_E_NOTFOUND,
                                             KVPOOL_E_UNSUPPORTED, KVPOOL_E_PERM, KVPOOL_E_LOST};
    kvpool_client *c = fake_connect(&kvd, 3000);
    for (unsigned i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        kvpool_pool pool = fake_pool(c);
        kvpool_region *region;
        expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &region));
        fake_set_hook(&kvd, refuse);
        fake_set(&kvd, hook_state, statuses[i]);
        drop_both();
        expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
        expect(c, KVPOOL_OK, kvpool_pool_destroy(c, pool));
        assert_int_equal(kvd.sessions, i + 2);
        memset(kvpool_region_data(region), 1, 100);
        kvpool_region_free(region); // the old session's
        assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 0);
    }
    assert_int_equal(kvd.resumes, 0);
    kvpool_close(c);
}

static void a_new_instance_does_not_give_it_back(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    uint64_t session = kvd.session;
    fake_stop(&kvd);
    expect(c, KVPOOL_E_CONN, kvpool_pool_destroy(c, pool));
    fake_start(&kvd);
    expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
    assert_int_equal(kvd.last_open.session, session);
    assert_int_equal(kvd.resumes, 0);
    assert_int_equal(kvd.sessions, 2);
    kvpool_close(c);
}

static bool give_another(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_FD_OPEN)
        return false;
    struct proto_fd_hello_reply reply = {.version = 1,
                                         .features = PROTO_FEATURES,
                                         .session = f->session,
                                         .token = {7},
                                         .epoch = f->epoch};
    if (f->hook_state == 0)
        reply.session++;
    else
        reply.epoch++;
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

static void another_session_than_asked_for_is_none(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    for (int other_epoch = 0; other_epoch < 2; other_epoch++) {
        kvpool_pool pool = fake_pool(c);
        fake_set_hook(&kvd, give_another);
        fake_set(&kvd, hook_state, other_epoch);
        drop_both();
        expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
        assert_int_equal(kvd.sessions, 2 + other_epoch);
        expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    }
    kvpool_close(c);
}

static void a_daemon_without_the_ability_is_not_asked(void **state) {
    (void)state;
    kvd.features = PROTO_FEATURES & ~PROTO_FEATURE_RESUME; // before any connection
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    drop_both();
    expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
    fake_drop(&kvd, false);
    kvpool_region *region;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &region));
    fake_drop(&kvd, false);
    kvpool_region_free(region); // freed with its session
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 0);
    assert_int_equal(kvd.sessions, 3);
    kvpool_close(c);
    assert_int_equal(fake_count(&kvd, PROTO_FD_OPEN), 0);
    assert_int_equal(fake_count(&kvd, PROTO_BYE), 0);
}

static bool refuse_hello_once(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO || f->hook_state++ > 0)
        return false;
    fake_error(f, c, &m->header, KVPOOL_E_STALE, 0, "it ended just now");
    return true;
}

static void a_session_that_ends_between_the_two_sockets_is_lost(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_pool pool = fake_pool(c);
    fake_set_hook(&kvd, refuse_hello_once);
    drop_both();
    expect(c, KVPOOL_E_LOST, kvpool_pool_destroy(c, pool));
    expect(c, KVPOOL_OK, kvpool_pool_destroy(c, pool));
    assert_int_equal(kvd.resumes, 1);
    assert_int_equal(kvd.sessions, 2);
    kvpool_close(c);
}

// --- not now ----------------------------------------------------------------------------------

static void a_daemon_that_cannot_answer_now_is_asked_again(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 150);
    kvpool_pool pool = fake_pool(c);
    fake_set_hook(&kvd, refuse);
    fake_set(&kvd, hook_state, KVPOOL_E_SHUTDOWN);
    drop_both();
    expect(c, KVPOOL_E_SHUTDOWN, kvpool_pool_destroy(c, pool));
    fake_set_hook(&kvd, NULL);
    fake_set(&kvd, mute_fd, true);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_pool_destroy(c, pool));
    fake_set(&kvd, mute_fd, false);
    fake_control_listen(&kvd, false);
    expect(c, KVPOOL_E_CONN, kvpool_pool_destroy(c, pool));
    expect_message(c, "kvpool.sock");
    assert_int_equal(kvd.resumes, 1); // on the fd socket it is back
    fake_control_listen(&kvd, true);
    expect(c, KVPOOL_OK, kvpool_pool_destroy(c, pool));
    assert_int_equal(kvd.resumes, 1);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

// --- the fd socket alone ----------------------------------------------------------------------

static void regions_are_made_and_freed_in_a_resumed_session(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_region *first, *second;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &first));
    fake_drop(&kvd, false);
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &second));
    assert_int_equal(kvd.resumes, 1);
    fake_drop(&kvd, false);
    kvpool_region_free(first);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 1);
    assert_int_equal(kvd.resumes, 2);
    fake_set(&kvd, session, 1); // the daemon gives it back no more
    fake_drop(&kvd, false);
    kvpool_region_free(second);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 1);
    assert_int_equal(kvd.sessions, 2);
    expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &first));
    fake_stop(&kvd);
    kvpool_region_free(first); // nobody to tell
    kvpool_close(c);
}

static void closing_ends_a_session_whose_connection_was_lost(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    drop_both();
    kvpool_close(c);
    assert_int_equal(fake_count(&kvd, PROTO_BYE), 1);
    assert_int_equal(kvd.resumes, 1);
    // Nothing to end: not even asked for.
    c = fake_connect(&kvd, 3000);
    fake_set(&kvd, session, 1);
    drop_both();
    kvpool_close(c);
    c = fake_connect(&kvd, 3000);
    fake_stop(&kvd);
    kvpool_close(c);
    assert_int_equal(fake_count(&kvd, PROTO_BYE), 1);
    assert_int_equal(kvd.resumes, 1);
}

static void a_credential_is_given_again_to_a_new_session_only(void **state) {
    (void)state;
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = kvd.dir;
    args.credential = "s3cret";
    kvpool_client *c = NULL;
    expect(NULL, KVPOOL_OK, kvpool_connect(&args, &c));
    drop_both();
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.resumes, 1);
    assert_string_equal(kvd.last_open.credential, "");
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.last_open.session, 0);
    assert_int_equal(kvd.last_open_epoch, 0);
    assert_string_equal(kvd.last_open.credential, "s3cret");
    assert_int_equal(fake_count(&kvd, PROTO_FD_HELLO), 0);
    kvpool_close(c);
}

// --- threads ----------------------------------------------------------------------------------

struct caller {
    kvpool_client *client;
    unsigned ok, conn, other;
};

static void *call_on(void *arg) {
    struct caller *self = arg;
    for (int i = 0; i < 200; i++) {
        kvpool_seq seq;
        kvpool_status status = kvpool_seq_create(self->client, 1, 1, &seq);
        self->ok += status == KVPOOL_OK;
        self->conn += status == KVPOOL_E_CONN;
        self->other += status != KVPOOL_OK && status != KVPOOL_E_CONN;
        if (i % 20 == 0) {
            kvpool_region *region;
            status = kvpool_region_create(self->client, 100, &region);
            self->other += status != KVPOOL_OK && status != KVPOOL_E_CONN;
            if (status == KVPOOL_OK)
                kvpool_region_free(region);
        }
    }
    return NULL;
}

static void threads_lose_nothing_with_their_connections(void **state) {
    (void)state;
    enum { THREADS = 4, DROPS = 8 };
    kvpool_client *c = fake_connect(&kvd, 5000);
    fake_pool(c);
    pthread_t threads[THREADS];
    struct caller callers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (struct caller){.client = c};
        assert_int_equal(pthread_create(&threads[i], NULL, call_on, &callers[i]), 0);
    }
    for (int i = 0; i < DROPS; i++) {
        usleep(2000);
        drop_both();
    }
    unsigned ok = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].other, 0);
        ok += callers[i].ok;
    }
    assert_true(ok > 0);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(everything_goes_on_after_a_lost_connection),
        T(requests_in_flight_end_and_the_next_goes_on),
        T(begin_and_commit_are_repeated_in_a_resumed_session),
        T(a_session_that_is_refused_is_lost),
        T(a_new_instance_does_not_give_it_back),
        T(another_session_than_asked_for_is_none),
        T(a_daemon_without_the_ability_is_not_asked),
        T(a_session_that_ends_between_the_two_sockets_is_lost),
        T(a_daemon_that_cannot_answer_now_is_asked_again),
        T(regions_are_made_and_freed_in_a_resumed_session),
        T(closing_ends_a_session_whose_connection_was_lost),
        T(a_credential_is_given_again_to_a_new_session_only),
        T(threads_lose_nothing_with_their_connections),
    };
    return cmocka_run_group_tests_name("client resume", tests, NULL, NULL);
}
