// SPDX-License-Identifier: Apache-2.0
// test_turns.c: clients that send many long prompts at once: who waits, and for whom.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <stdlib.h>
#include <unistd.h>

enum { LONG = TURN_TOKENS - 1000, CALLS = 6 };

static struct fixture fx;
static struct client a, b;
static uint64_t pool;
static uint32_t prompt[PROTO_MAX_TOKENS];

static int setup(void **state) {
    (void)state;
    fixture_init(&fx);
    fixture_start(&fx);
    client_open(&fx, &a, 1);
    client_open(&fx, &b, 2);
    pool = make_pool(&fx, &a, "p", 8192);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    close(a.fd);
    close(b.fd);
    fixture_stop(&fx);
    return 0;
}

// SEQ_OPEN that only asks how many of n tokens are there.
static struct call *ask(struct client *c, uint32_t n) {
    const struct proto_seq_open o = {.pool = pool, .num_tokens = n, .flags = PROTO_OPEN_PROBE};
    const struct proto_header header = {
        .version = 1, .op = PROTO_SEQ_OPEN, .seq = ++c->seq, .epoch = c->epoch};
    static uint8_t bytes[PROTO_MAX_REQUEST];
    size_t len = proto_write_tokens(bytes, sizeof bytes, &header, &o, sizeof o, NULL, 0, prompt, n);
    assert_true(len > 0);
    struct call *call = call_raw(&fx, c, bytes, len);
    call->op = PROTO_SEQ_OPEN;
    return call;
}

static struct call *ping(struct client *c) {
    const struct proto_ping body = {.payload = 7};
    return call_start(&fx, c, UINT64_MAX, PROTO_PING, &body, sizeof body, NULL, 0);
}

static uint32_t answered(struct call *const *calls, uint32_t n) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += calls[i]->answered;
    return sum;
}

static void end(struct call *const *calls, uint32_t n, int status) {
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), status);
}

static void one_long_prompt_is_answered_at_once_and_others_one_a_turn(void **state) {
    struct call *calls[CALLS];
    (void)state;
    for (uint32_t i = 0; i < CALLS; i++)
        calls[i] = ask(&a, LONG);
    assert_int_equal(answered(calls, CALLS), 1);
    struct call *other = ping(&b); // does not wait for any of them
    assert_true(other->answered);
    for (uint32_t turn = 2; turn <= CALLS; turn++) {
        uv_run(&fx.loop, UV_RUN_NOWAIT);
        assert_int_equal(answered(calls, CALLS), turn);
        assert_true(calls[turn - 1]->answered); // in order
    }
    uv_run(&fx.loop, UV_RUN_NOWAIT);
    assert_false(uv_is_active((uv_handle_t *)&fx.d->turns.idle)); // the loop may sleep again
    end(calls, CALLS, 0);
    end(&other, 1, 0);
}

static void a_client_is_not_behind_the_long_prompts_of_another(void **state) {
    struct call *flood[CALLS];
    (void)state;
    for (uint32_t i = 0; i < CALLS; i++)
        flood[i] = ask(&a, LONG);
    struct call *theirs = ask(&b, LONG), *small = ask(&b, 8);
    assert_false(theirs->answered);
    assert_false(small->answered);   // the order of its connection
    uv_run(&fx.loop, UV_RUN_NOWAIT); // a's
    uv_run(&fx.loop, UV_RUN_NOWAIT); // b's
    assert_true(theirs->answered);
    uv_run(&fx.loop, UV_RUN_NOWAIT);
    assert_true(small->answered);
    assert_true(answered(flood, CALLS) < CALLS);
    end(flood, CALLS, 0);
    end(&theirs, 1, 0);
    end(&small, 1, 0);
}

static void requests_of_a_client_keep_their_order(void **state) {
    struct call *calls[] = {ask(&a, LONG), ask(&a, LONG), ping(&a), ask(&a, 8), ping(&a)};
    const uint32_t n = 5;
    (void)state;
    assert_int_equal(answered(calls, n), 1);
    uv_run(&fx.loop, UV_RUN_NOWAIT); // the second, and with it what costs nothing
    assert_int_equal(answered(calls, n), n);
    end(calls, n, 0);
}

static void short_prompts_do_not_wait(void **state) {
    struct call *calls[CALLS];
    (void)state;
    struct call *first = ask(&a, LONG);
    for (uint32_t i = 0; i < CALLS; i++)
        calls[i] = ask(&b, 1024);
    assert_int_equal(answered(calls, CALLS), CALLS);
    end(calls, CALLS, 0);
    end(&first, 1, 0);
}

static void a_prompt_of_the_greatest_length_has_its_turn(void **state) {
    struct call *calls[2];
    (void)state;
    calls[0] = ask(&a, LONG);
    calls[1] = ask(&a, PROTO_MAX_TOKENS); // more than a turn's budget, and than a sequence has
    assert_int_equal(call_end(&fx, calls[1], NULL, NULL), KVPOOL_E_INVAL);
    end(calls, 1, 0);
}

static void who_leaves_is_answered(void **state) {
    struct call *calls[CALLS], *theirs;
    (void)state;
    for (uint32_t i = 0; i < CALLS; i++)
        calls[i] = ask(&a, LONG);
    theirs = ask(&b, LONG);
    session_end(session_find(fx.d, a.session), SESSION_BYE, uv_hrtime());
    assert_int_equal(answered(calls, CALLS), CALLS);
    end(calls, 1, 0);
    end(calls + 1, CALLS - 1, KVPOOL_E_SHUTDOWN);
    end(&theirs, 1, 0);
    close(a.fd);
    client_open(&fx, &a, 3);
}

static void the_daemon_ends_while_prompts_wait(void **state) {
    struct call *calls[CALLS];
    (void)state;
    for (uint32_t i = 0; i < CALLS; i++)
        calls[i] = ask(i % 2 == 0 ? &a : &b, LONG);
    // teardown stops the daemon and asserts that all have their answers
    assert_int_equal(answered(calls, CALLS), 1);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(one_long_prompt_is_answered_at_once_and_others_one_a_turn),
        TEST(a_client_is_not_behind_the_long_prompts_of_another),
        TEST(requests_of_a_client_keep_their_order),
        TEST(short_prompts_do_not_wait),
        TEST(a_prompt_of_the_greatest_length_has_its_turn),
        TEST(who_leaves_is_answered),
        TEST(the_daemon_ends_while_prompts_wait),
    };
#undef TEST
    return cmocka_run_group_tests_name("turns", tests, NULL, NULL);
}
