// SPDX-License-Identifier: Apache-2.0
// test_async.c: many requests in flight, from one thread and from many; and when to try again.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <unistd.h>

static kvpool_status submit_abort(kvpool_client *c, kvpool_step step, kvpool_op **ret) {
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_ABORT, .step = step};
    return kvpool_submit(c, &request, ret);
}

// Holds replies to aborts back until a commit, then gives them in reverse order; the abort of step
// 3 is refused.
static struct {
    struct proto_header header;
    uint32_t sp_id;
    uint64_t step;
} held[64];
static bool reverse(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op == PROTO_STEP_ABORT) {
        held[f->hook_state].header = m->header;
        held[f->hook_state].sp_id = c->sp_id;
        held[f->hook_state++].step = m->body.handle.handle;
        return true;
    }
    if (m->header.op != PROTO_STEP_COMMIT)
        return false;
    uint32_t id = c->sp_id;
    while (f->hook_state > 0) {
        f->hook_state--;
        c->sp_id = held[f->hook_state].sp_id;
        if (held[f->hook_state].step == 3)
            fake_error(f, c, &held[f->hook_state].header, KVPOOL_E_NOTFOUND, 0, "no step 3");
        else
            fake_reply(f, c, &held[f->hook_state].header, 0, NULL, 0, NULL, 0);
    }
    c->sp_id = id;
    return false;
}

static void replies_may_come_in_any_order(void **state) {
    (void)state;
    enum { N = 50 };
    kvpool_client *c = fake_connect(&kvd, 5000);
    fake_set_hook(&kvd, reverse);
    kvpool_op *ops[N];
    for (unsigned i = 0; i < N; i++)
        expect(c, KVPOOL_OK, submit_abort(c, i + 1, &ops[i]));
    for (unsigned i = 0; i < N; i++)
        expect(c, KVPOOL_E_TIMEOUT, kvpool_wait(c, ops[i], 0)); // just a look
    expect(c, KVPOOL_E_TIMEOUT, kvpool_wait(c, ops[0], 20));
    expect(c, KVPOOL_OK, kvpool_step_commit(c, 99)); // synchronous calls go beside them
    for (unsigned i = 0; i < N; i++)
        expect(c, i == 2 ? KVPOOL_E_NOTFOUND : KVPOOL_OK, kvpool_wait(c, ops[i], UINT32_MAX));
    expect_message(c, "no step 3");
    expect(c, KVPOOL_E_INVAL, kvpool_wait(c, ops[0], 0)); // released
    kvpool_close(c);
}

static void a_whole_step_is_submitted_at_once(void **state) {
    (void)state;
    enum { LAYERS = 8 };
    kvpool_client *c = fake_connect(&kvd, 5000);
    kvpool_pool pool = fake_pool(c);
    kvpool_region *region;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 1 << 16, &region));
    kvpool_seq seq = 1;
    uint32_t tokens = 1;
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &tokens;
    begin.step = kvpool_step_id(c);
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    attn.step = begin.step;
    attn.qo_heads = 4;
    attn.q.region = attn.k.region = attn.v.region = attn.out.region = region;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    kvpool_op *ops[LAYERS + 2];
    unsigned n = 0;
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[n++]));
    request.kind = KVPOOL_OP_DECODE;
    request.attn = &attn;
    for (attn.layer = 0; attn.layer < LAYERS; attn.layer++)
        expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[n++]));
    request.kind = KVPOOL_OP_COMMIT;
    request.step = begin.step;
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[n++]));
    while (n > 0)
        expect(c, KVPOOL_OK, kvpool_wait(c, ops[--n], UINT32_MAX));
    assert_int_equal(kvd.last_attn.layer, LAYERS - 1);
    // The strides of a step not yet answered were known.
    assert_int_equal(kvd.last_attn.k.token_stride, 2 * 64);
    assert_int_equal(fake_count(&kvd, PROTO_POOL_STAT), 0);
    kvpool_region_free(region);
    kvpool_close(c);
}

static bool hold_aborts(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    (void)c;
    return m->header.op == PROTO_STEP_ABORT;
}

static void max_inflight_is_the_limit(void **state) {
    (void)state;
    kvd.max_inflight = 4; // before any connection
    kvpool_client *c = fake_connect(&kvd, 100);
    fake_set_hook(&kvd, hold_aborts);
    kvpool_op *ops[5];
    for (unsigned i = 0; i < 4; i++)
        expect(c, KVPOOL_OK, submit_abort(c, i + 1, &ops[i]));
    expect(c, KVPOOL_E_AGAIN, submit_abort(c, 5, &ops[4]));
    expect_message(c, "4 requests in flight");
    assert_int_equal(kvpool_retry_after_ns(c), 1000000);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_ping(c, NULL)); // a synchronous call waits for a place
    kvpool_close(c);
}

static void places_come_free_without_a_wait_for_them(void **state) {
    (void)state;
    kvd.max_inflight = 4;
    kvpool_client *c = fake_connect(&kvd, 5000);
    kvpool_op *ops[200];
    for (unsigned i = 0; i < 200; i++) {
        kvpool_status status;
        while ((status = submit_abort(c, i + 1, &ops[i])) == KVPOOL_E_AGAIN)
            usleep(100);
        expect(c, KVPOOL_OK, status);
    }
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    for (unsigned i = 0; i < 200; i++)
        expect(c, KVPOOL_OK, kvpool_wait(c, ops[i], UINT32_MAX));
    kvpool_close(c);
}

static void ops_in_flight_end_with_the_connection(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 5000);
    fake_set_hook(&kvd, hold_aborts);
    kvpool_op *ops[10];
    for (unsigned i = 0; i < 10; i++)
        expect(c, KVPOOL_OK, submit_abort(c, i + 1, &ops[i]));
    fake_await(&kvd, PROTO_STEP_ABORT, 10);
    fake_drop(&kvd, true);
    for (unsigned i = 0; i < 10; i++) {
        expect(c, KVPOOL_E_CONN, kvpool_wait(c, ops[i], UINT32_MAX));
        expect_message(c, "may or may not");
    }
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    kvpool_close(c);
}

static void outstanding_ops_are_freed_by_close(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 5000);
    fake_set_hook(&kvd, hold_aborts);
    kvpool_op *op;
    for (unsigned i = 0; i < 10; i++)
        expect(c, KVPOOL_OK, submit_abort(c, i + 1, &op));
    kvpool_close(c); // the leak checker looks
}

static void bad_requests_are_refused(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 5000), *other = fake_connect(&kvd, 5000);
    kvpool_op *op = NULL;
    kvpool_request request = {.size = sizeof request, .kind = 0};
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    request.kind = 7;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    request.kind = KVPOOL_OP_DECODE; // attn NULL
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    request.kind = KVPOOL_OP_BEGIN; // begin NULL
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    kvpool_seq seq = 1;
    uint32_t tokens = 1;
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &tokens;
    request.begin = &begin;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op)); // no id
    expect_message(c, "kvpool_step_id");
    request.kind = KVPOOL_OP_COMMIT; // step 0
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    request.step = 1;
    request.flags = 1;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    request.flags = 0;
    request.size = 3;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, NULL, &op));
    request.size = sizeof request;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_wait(c, NULL, 0));
    assert_null(op);
    expect(other, KVPOOL_OK, submit_abort(other, 1, &op));
    expect(c, KVPOOL_E_INVAL, kvpool_wait(c, op, 0)); // another client's
    expect(other, KVPOOL_OK, kvpool_wait(other, op, UINT32_MAX));
    kvpool_close(c);
    kvpool_close(other);
}

// A daemon that does not read: the socket's buffer fills and the call ends in time. A message of
// which nothing was written leaves no gap in the numbers: the fake checks them when it goes on.
static void a_daemon_that_does_not_read_is_a_timeout(void **state) {
    (void)state;
    enum { N = 1000 };
    kvd.max_inflight = 1000;
    kvpool_client *c = fake_connect(&kvd, 100);
    uint64_t *seqs = calloc(N, sizeof *seqs);
    uint32_t *tokens = calloc(N, sizeof *tokens);
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.n = N;
    begin.seqs = seqs;
    begin.new_tokens = tokens;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    fake_set(&kvd, hold_reading, true);
    kvpool_op *op;
    kvpool_status status = KVPOOL_OK;
    unsigned sent = 0;
    while (status == KVPOOL_OK && sent < 500) { // 16 KB each
        begin.step = kvpool_step_id(c);
        status = kvpool_submit(c, &request, &op);
        sent++;
    }
    assert_true(status == KVPOOL_E_TIMEOUT || status == KVPOOL_E_CONN);
    assert_true(sent > 1 && sent < 500);
    fake_set(&kvd, hold_reading, false);
    fake_wake(&kvd);
    fake_await(&kvd, PROTO_STEP_BEGIN, sent - 1);
    kvpool_status again = kvpool_ping(c, NULL);
    expect(c, KVPOOL_OK, again);
    assert_int_equal(kvd.hellos, status == KVPOOL_E_TIMEOUT ? 1 : 2);
    kvpool_close(c);
    free(seqs);
    free(tokens);
}

// A daemon that answers everything it reads, with more than the socket holds in both directions. Not
// expect(): it waits for the fake's lock, and the fake may be waiting for this thread to read.
static void much_traffic_both_ways_does_not_jam(void **state) {
    (void)state;
    enum { N = 1000, ROUNDS = 300 };
    kvd.max_inflight = 1000;
    kvpool_client *c = fake_connect(&kvd, 20000);
    uint64_t *seqs = calloc(N, sizeof *seqs);
    uint32_t *tokens = calloc(N, sizeof *tokens);
    kvpool_op **ops = calloc(ROUNDS, sizeof(kvpool_op *));
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.n = N;
    begin.seqs = seqs;
    begin.new_tokens = tokens;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    for (unsigned i = 0; i < ROUNDS; i++) {
        begin.step = kvpool_step_id(c);
        assert_int_equal(KVPOOL_OK, kvpool_submit(c, &request, &ops[i]));
    }
    for (unsigned i = 0; i < ROUNDS; i++)
        assert_int_equal(KVPOOL_OK, kvpool_wait(c, ops[i], UINT32_MAX));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), ROUNDS);
    free(ops);
    free(tokens);
    free(seqs);
    kvpool_close(c);
}

struct worker {
    kvpool_client *client;
    unsigned index, failures;
};

static void *mixed_calls(void *arg) {
    struct worker *self = arg;
    kvpool_client *c = self->client;
    for (unsigned i = 0; i < 150; i++) {
        kvpool_op *ops[3];
        kvpool_seq seqs[5];
        for (unsigned k = 0; k < 3; k++) {
            kvpool_status status;
            while ((status = submit_abort(c, i + 1, &ops[k])) == KVPOOL_E_AGAIN)
                usleep(50);
            self->failures += status != KVPOOL_OK;
        }
        self->failures += kvpool_ping(c, NULL) != KVPOOL_OK;
        self->failures += kvpool_seq_create(c, 1, 5, seqs) != KVPOOL_OK || (uint32_t)seqs[4] != 4;
        for (unsigned k = 0; k < 3; k++)
            self->failures += kvpool_wait(c, ops[2 - k], UINT32_MAX) != KVPOOL_OK;
        if (i % 50 == self->index) {
            kvpool_region *region;
            self->failures += kvpool_region_create(c, 5000, &region) != KVPOOL_OK;
            self->failures += kvpool_region_size(region) != 8192;
            kvpool_region_free(region);
        }
    }
    return NULL;
}

static void many_threads_share_one_client(void **state) {
    (void)state;
    enum { THREADS = 8 };
    kvd.max_inflight = 12; // fewer than they want
    kvpool_client *c = fake_connect(&kvd, 20000);
    pthread_t threads[THREADS];
    struct worker workers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.client = c, .index = i};
        assert_int_equal(pthread_create(&threads[i], NULL, mixed_calls, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].failures, 0);
    }
    assert_int_equal(kvd.hellos, 1);
    kvpool_close(c);
}

// --- when to try again ------------------------------------------------------------------------

static uint64_t detail;
static bool full(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op == PROTO_PING)
        fake_error(f, c, &m->header, KVPOOL_E_AGAIN, detail, "the queue is full");
    else if (m->header.op == PROTO_POOL_DESTROY)
        fake_error(f, c, &m->header, KVPOOL_E_NOSPACE, 17, "another error with a detail");
    else
        return false;
    return true;
}

static void say_detail(uint64_t ns) {
    fake_lock(&kvd);
    detail = ns;
    fake_unlock(&kvd);
}

static void *no_hint_elsewhere(void *arg) {
    assert_int_equal(kvpool_retry_after_ns(arg), 0);
    assert_int_equal(kvpool_ping(arg, NULL), KVPOOL_E_AGAIN);
    assert_int_equal(kvpool_retry_after_ns(arg), 2000000);
    return NULL;
}

static void the_retry_hint_is_kept_with_the_threads_last_error(void **state) {
    (void)state;
    kvpool_client *a = fake_connect(&kvd, 0), *b = fake_connect(&kvd, 0);
    assert_int_equal(kvpool_retry_after_ns(a), 0);
    assert_int_equal(kvpool_retry_after_ns(NULL), 0);
    fake_set_hook(&kvd, full);
    say_detail(5000000);
    expect(a, KVPOOL_E_AGAIN, kvpool_ping(a, NULL));
    assert_int_equal(kvpool_retry_after_ns(a), 5000000);
    assert_int_equal(kvpool_retry_after_ns(b), 0);
    say_detail(2000000);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, no_hint_elsewhere, a), 0);
    pthread_join(thread, NULL);
    assert_int_equal(kvpool_retry_after_ns(a), 5000000); // this thread's own
    expect(a, KVPOOL_E_NOSPACE, kvpool_pool_destroy(a, 1));
    assert_int_equal(kvpool_retry_after_ns(a), 0);
    expect(a, KVPOOL_E_AGAIN, kvpool_ping(a, NULL));
    assert_int_equal(kvpool_retry_after_ns(a), 2000000);
    expect(a, KVPOOL_OK, kvpool_seq_truncate(a, 1, 0)); // a success keeps it, as the message
    assert_int_equal(kvpool_retry_after_ns(a), 2000000);
    kvpool_close(a);
    kvpool_close(b);
}

static void a_hint_out_of_bounds_is_bounded(void **state) {
    (void)state;
    static const uint64_t said_and_told[][2] = {{0, 1000000},
                                                {1, 1000},
                                                {999, 1000},
                                                {1001, 1001},
                                                {999999999, 999999999},
                                                {UINT64_MAX, 1000000000}};
    kvpool_client *c = fake_connect(&kvd, 0);
    fake_set_hook(&kvd, full);
    for (size_t i = 0; i < sizeof said_and_told / sizeof said_and_told[0]; i++) {
        say_detail(said_and_told[i][0]);
        expect(c, KVPOOL_E_AGAIN, kvpool_ping(c, NULL));
        assert_int_equal(kvpool_retry_after_ns(c), said_and_told[i][1]);
    }
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(replies_may_come_in_any_order),
        T(a_whole_step_is_submitted_at_once),
        T(max_inflight_is_the_limit),
        T(places_come_free_without_a_wait_for_them),
        T(ops_in_flight_end_with_the_connection),
        T(outstanding_ops_are_freed_by_close),
        T(bad_requests_are_refused),
        T(a_daemon_that_does_not_read_is_a_timeout),
        T(much_traffic_both_ways_does_not_jam),
        T(many_threads_share_one_client),
        T(the_retry_hint_is_kept_with_the_threads_last_error),
        T(a_hint_out_of_bounds_is_bounded),
    };
    return cmocka_run_group_tests_name("client async", tests, NULL, NULL);
}
