// SPDX-License-Identifier: Apache-2.0
// test_requests.c: malformed, misordered and too many requests.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

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

// --- malformed and misordered requests --------------------------------------------------------

static int raw_status(struct client *c, const void *bytes, size_t len, struct proto_header *ret) {
    struct call *call = call_raw(&fx, c, bytes, len);
    assert_true(call->answered);
    memcpy(ret, call->reply, sizeof *ret);
    return call_end(&fx, call, NULL, NULL);
}

static void malformed_messages_are_answered(void **state) {
    (void)state;
    static uint8_t bytes[PROTO_MAX_MESSAGE + 16];
    struct client c = {.pipe = 3, .pid = 1};
    struct proto_header header, reply;
    assert_int_equal(raw_status(&c, "", 0, &reply), KVPOOL_E_PROTO);
    assert_int_equal(raw_status(&c, "short", 5, &reply), KVPOOL_E_PROTO);
    memset(bytes, 'x', sizeof bytes);
    assert_int_equal(raw_status(&c, bytes, 64, &reply), KVPOOL_E_PROTO);
    header = (struct proto_header){.magic = PROTO_MAGIC,
                                   .version = 1,
                                   .op = PROTO_SEQ_FREE,
                                   .len = sizeof bytes - sizeof header};
    memcpy(bytes, &header, sizeof header);
    assert_int_equal(raw_status(&c, bytes, sizeof bytes, &reply), KVPOOL_E_TOOBIG);
    header =
        (struct proto_header){.magic = PROTO_MAGIC, .version = 1, .op = 999, .seq = 12, .epoch = 0};
    assert_int_equal(raw_status(&c, &header, sizeof header, &reply), KVPOOL_E_UNSUPPORTED);
    assert_int_equal(reply.seq, 12);
    assert_int_equal(reply.op, 999);
    header.op = PROTO_PING; // without its body
    assert_int_equal(raw_status(&c, &header, sizeof header, &reply), KVPOOL_E_PROTO);
    header.op = PROTO_REGION_FREE; // of the other socket
    assert_int_equal(raw_status(&c, &header, sizeof header, &reply), KVPOOL_E_PROTO);
    assert_int_equal(client_ping(&fx, &c), 0);
    assert_int_equal(fx.d->stats.errors, 7);
    assert_int_equal(fx.d->stats.requests, 8);
}

static void a_malformed_request_takes_its_place_in_the_order(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    struct call *later = call_start(&fx, &c, c.seq + 2, PROTO_STATS, NULL, 0, NULL, 0);
    struct proto_header header = {.magic = PROTO_MAGIC, .version = 1, .op = 999, .seq = c.seq + 1},
                        reply;
    assert_false(later->answered);
    assert_int_equal(raw_status(&c, &header, sizeof header, &reply), KVPOOL_E_UNSUPPORTED);
    assert_true(later->answered);
    assert_int_equal(call_end(&fx, later, NULL, NULL), 0);
    client_bye(&fx, &c);
}

static void requests_start_in_the_order_of_seq(void **state) {
    (void)state;
    struct client c;
    uint64_t seq;
    client_open(&fx, &c, 1);
    uint64_t pool = make_pool(&fx, &c, "p", 8);
    make_seqs(&fx, &c, pool, 1, &seq);
    struct proto_step_begin body = {.pool = pool, .step = 4, .count = 1};
    struct proto_batch_item item = {.seq = seq};
    struct proto_handle step = {.handle = 4};
    // commit, then the begin that it needs
    struct call *commit =
        call_start(&fx, &c, c.seq + 2, PROTO_STEP_COMMIT, &step, sizeof step, NULL, 0);
    struct call *start =
        call_start(&fx, &c, c.seq + 1, PROTO_STEP_BEGIN, &body, sizeof body, &item, sizeof item);
    assert_int_equal(call_end(&fx, start, NULL, NULL), 0);
    assert_int_equal(call_end(&fx, commit, NULL, NULL), 0);
    c.seq += 2;
    client_bye(&fx, &c);
}

static void a_request_whose_predecessor_never_comes_is_answered_after_a_second(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    uint64_t since = uv_hrtime();
    struct call *early = call_start(&fx, &c, c.seq + 2, PROTO_STATS, NULL, 0, NULL, 0);
    struct call *after = call_start(&fx, &c, c.seq + 3, PROTO_STATS, NULL, 0, NULL, 0);
    assert_false(dispatch_idle(fx.d));
    assert_int_equal(call_end(&fx, early, NULL, NULL), KVPOOL_E_PROTO);
    assert_true(uv_hrtime() - since >= 1000000000);
    assert_int_equal(call_end(&fx, after, NULL, NULL), 0); // the gap is given up
    struct call *late = call_start(&fx, &c, c.seq + 1, PROTO_STATS, NULL, 0, NULL, 0);
    assert_int_equal(call_end(&fx, late, NULL, NULL), KVPOOL_E_PROTO);
    c.seq += 3;
    assert_int_equal(client_ping(&fx, &c), 0);
    assert_true(dispatch_idle(fx.d));
    client_bye(&fx, &c);
}

static void requests_that_wait_are_answered_when_the_connection_goes(void **state) {
    (void)state;
    struct client c;
    client_open(&fx, &c, 1);
    struct call *a = call_start(&fx, &c, c.seq + 2, PROTO_STATS, NULL, 0, NULL, 0);
    dispatch_pipe(fx.d, 1, c.pid, true);
    assert_true(a->answered);
    assert_int_equal(call_end(&fx, a, NULL, NULL), KVPOOL_E_CONN);
    struct proto_stats s = {0};
    assert_int_equal(client_stats(&fx, &c, &s), KVPOOL_E_STATE);
    c.pipe = 2; // the session lives on
    assert_int_equal(client_hello(&fx, &c, NULL), 0);
    assert_int_equal(client_stats(&fx, &c, &s), 0);
    a = call_start(&fx, &c, c.seq + 2, PROTO_STATS, NULL, 0, NULL, 0);
    client_bye(&fx, &c);
    assert_int_equal(call_end(&fx, a, NULL, NULL), KVPOOL_E_SHUTDOWN);
}

static void more_requests_than_slots_are_refused(void **state) {
    (void)state;
    static const uint32_t each[5] = {16, 16, 16, 12, 4}; // what limit and shares allow: 64
    struct client c[6];
    struct call *waiting[64];
    struct proto_ping ping = {0};
    struct err err;
    uint32_t n = 0;
    for (uint32_t i = 0; i < 5; i++) {
        client_open(&fx, &c[i], i + 1);
        for (uint32_t j = 0; j < each[i]; j++) {
            waiting[n] = call_start(&fx, &c[i], c[i].seq + 2 + j, PROTO_STATS, NULL, 0, NULL, 0);
            assert_false(waiting[n++]->answered);
        }
    }
    c[5] = (struct client){.pipe = 9, .pid = 1};
    for (int i = 4; i < 6; i++) { // with a session, and without
        assert_int_equal(call(&fx, &c[i], PROTO_PING, &ping, sizeof ping, NULL, 0, NULL, &err),
                         KVPOOL_E_AGAIN);
        assert_in_range(err.detail, 100000, 1000000000);
    }
    for (uint32_t i = 0; i < 5; i++)
        client_bye(&fx, &c[i]);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(call_end(&fx, waiting[i], NULL, NULL), KVPOOL_E_SHUTDOWN);
    assert_int_equal(client_ping(&fx, &c[5]), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

// --- jobs that nobody waits for -----------------------------------------------------------------

static int setup_few_jobs(void **state) {
    (void)state;
    fixture_init(&fx);
    fx.config.limits.max_steps = 16;
    fixture_start(&fx);
    return 0;
}

static int fork_one(struct client *c, uint64_t seq, struct err *err) {
    const struct proto_seq_fork f = {.seq = seq, .n = 1};
    return call(&fx, c, PROTO_SEQ_FORK, &f, sizeof f, NULL, 0, NULL, err);
}

// A sequence of one token, which the backend has never seen.
static uint64_t one_token(struct client *c, uint64_t pool) {
    uint64_t seq;
    struct core_step_info info;
    struct core_effects effects;
    struct err err;
    make_seqs(&fx, c, pool, 1, &seq);
    const struct core_item item = {seq, 1};
    assert_int_equal(
        core_step_begin(fx.d->core, c->session, 9, pool, 1, &item, NULL, &info, &effects, &err), 0);
    for (uint32_t layer = 0; layer < 2; layer++)
        assert_int_equal(core_step_mark(fx.d->core, c->session, 9, layer, true, &err), 0);
    assert_int_equal(core_step_commit(fx.d->core, c->session, 9, &info, &effects, &err), 0);
    return seq;
}

static void one_client_does_not_take_all_jobs(void **state) {
    (void)state;
    struct client a, b;
    struct err err = {0};
    uint32_t forks = 0;
    int status = 0;
    client_open(&fx, &a, 1);
    client_open(&fx, &b, 2);
    const struct proto_pool_create create = {.name = "forks",
                                             .layers = 2,
                                             .kv_heads = 2,
                                             .head_dim = 8,
                                             .page_size = 8,
                                             .dtype = KVPOOL_FP32,
                                             .num_pages = 16,
                                             .max_seqs = 8192};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &a, PROTO_POOL_CREATE, &create, sizeof create, NULL, 0, &msg, &err),
                     0);
    uint64_t pool = msg.body.handle.handle;
    uint64_t seq = one_token(&a, pool), others = one_token(&b, pool);
    backend_hold(true);
    for (; status == 0 && forks < 8000; forks++)
        status = fork_one(&a, seq, &err);
    assert_int_equal(status, KVPOOL_E_AGAIN);
    assert_true(err.detail > 0); // when to try again
    assert_int_equal(fork_one(&b, others, &err), 0);
    assert_int_equal(fork_one(&a, seq, &err), KVPOOL_E_AGAIN);
    backend_hold(false);
    pump(&fx, 50);
    assert_int_equal(fork_one(&a, seq, &err), 0);
    close(a.fd);
    close(b.fd);
}

// --- memory -------------------------------------------------------------------------------------

enum { BIG = 1500, PAGE = 8 }; // pages of an operation whose job needs more memory than it has

static void mark_all(const struct client *c, uint64_t step) {
    for (uint32_t layer = 0; layer < 2; layer++)
        assert_int_equal(core_step_mark(fx.d->core, c->session, step, layer, true, NULL), 0);
}

// A client, a pool and a sequence, of BIG pages if it is filled, without any job.
static uint64_t make_big(struct client *c, uint64_t *ret_pool, bool filled) {
    uint64_t seq;
    struct core_step_info info;
    struct core_effects effects;
    client_open(&fx, c, 1);
    *ret_pool = make_pool(&fx, c, "p", 2 * BIG);
    make_seqs(&fx, c, *ret_pool, 1, &seq);
    const struct core_item item = {seq, BIG * PAGE};
    if (filled)
        assert_int_equal(core_step_begin(fx.d->core, c->session, 7, *ret_pool, 1, &item, NULL,
                                         &info, &effects, NULL),
                         0);
    return seq;
}

static uint32_t num_seqs(void) {
    struct core_totals totals;
    core_totals(fx.d->core, &totals);
    return totals.seqs;
}

// What finds no memory for its job has changed nothing: sent again it succeeds.
static void a_begin_without_memory_can_be_repeated(void **state) {
    (void)state;
    struct client c;
    struct err err;
    uint64_t pool, seq = make_big(&c, &pool, false);
    allocation_fails(1);
    assert_int_equal(begin(&fx, &c, 7, pool, 1, &seq, BIG * PAGE, &err), KVPOOL_E_NOMEM);
    assert_int_equal(free_pages(&fx, &c, pool), 2 * BIG);
    assert_int_equal(begin(&fx, &c, 7, pool, 1, &seq, BIG * PAGE, &err), 0);
    assert_int_equal(free_pages(&fx, &c, pool), BIG);
    close(c.fd);
}

static void a_commit_without_memory_can_be_repeated(void **state) {
    (void)state;
    struct client c;
    struct err err;
    uint64_t pool;
    make_big(&c, &pool, true);
    mark_all(&c, 7);
    allocation_fails(1);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 7, &err), KVPOOL_E_NOMEM);
    assert_int_equal(by_handle(&fx, &c, PROTO_STEP_COMMIT, 7, &err), 0);
    close(c.fd);
}

static void a_fork_without_memory_can_be_repeated(void **state) {
    (void)state;
    struct client c;
    struct core_step_info info;
    struct core_effects effects;
    uint64_t pool, seq = make_big(&c, &pool, true);
    const struct proto_seq_fork f = {.seq = seq, .n = 1};
    mark_all(&c, 7);
    assert_int_equal(core_step_commit(fx.d->core, c.session, 7, &info, &effects, NULL), 0);
    allocation_fails(1);
    assert_int_equal(call(&fx, &c, PROTO_SEQ_FORK, &f, sizeof f, NULL, 0, NULL, NULL),
                     KVPOOL_E_NOMEM);
    assert_int_equal(num_seqs(), 1);
    assert_int_equal(call(&fx, &c, PROTO_SEQ_FORK, &f, sizeof f, NULL, 0, NULL, NULL), 0);
    close(c.fd);
}

static void an_open_without_memory_can_be_repeated(void **state) {
    (void)state;
    struct client c;
    uint64_t pool;
    static uint32_t ids[BIG * PAGE];
    make_big(&c, &pool, false);
    const struct proto_seq_open o = {.pool = pool, .num_tokens = BIG * PAGE};
    allocation_fails(1);
    assert_int_equal(call(&fx, &c, PROTO_SEQ_OPEN, &o, sizeof o, ids, sizeof ids, NULL, NULL),
                     KVPOOL_E_NOMEM);
    assert_int_equal(num_seqs(), 1);
    assert_int_equal(call(&fx, &c, PROTO_SEQ_OPEN, &o, sizeof o, ids, sizeof ids, NULL, NULL), 0);
    assert_int_equal(num_seqs(), 2);
    close(c.fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(malformed_messages_are_answered),
        TEST(a_malformed_request_takes_its_place_in_the_order),
        TEST(requests_start_in_the_order_of_seq),
        TEST(a_request_whose_predecessor_never_comes_is_answered_after_a_second),
        TEST(requests_that_wait_are_answered_when_the_connection_goes),
        TEST(more_requests_than_slots_are_refused),
        TEST(a_begin_without_memory_can_be_repeated),
        TEST(a_commit_without_memory_can_be_repeated),
        TEST(a_fork_without_memory_can_be_repeated),
        TEST(an_open_without_memory_can_be_repeated),
        cmocka_unit_test_setup_teardown(one_client_does_not_take_all_jobs, setup_few_jobs,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
