// SPDX-License-Identifier: Apache-2.0
// test_layers.c: append and attention as a client meets them: the right numbers, every refusal,
// and what work in flight holds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker.h"

#include <math.h>
#include <stdlib.h>

// --- attention --------------------------------------------------------------------------------

static void a_decode_gives_the_right_numbers(void **state) {
    (void)state;
    // Two tokens with logits 0 and ln 3: weights 1/4 and 3/4.
    float *q = floats(Q_AT), *k = floats(K_AT), *v = floats(V_AT);
    for (int layer = 0; layer < 2; layer++)
        for (int t = 0; t < 2; t++)
            for (int h = 0; h < 2; h++)
                for (int i = 0; i < 8; i++) {
                    k[(t * 2 + h) * 8 + i] = t == 1 && i == 0 ? logf(3) : 0;
                    v[(t * 2 + h) * 8 + i] = (float)(t * 100 + h * 10 + i);
                }
    for (int i = 0; i < 2 * HEADS * 8; i++)
        q[i] = i % 8 == 0 ? 1 : 0;
    assert_int_equal(begin_one(1, seqs[0], 2), 0);
    struct proto_attn a = step_attn(1);
    a.sm_scale = 1;
    for (a.layer = 0; a.layer < 2; a.layer++)
        assert_int_equal(attn(PROTO_DECODE, &a, NULL, NULL), 0);
    const float *out = floats(OUT_AT), *lse = floats(LSE_AT);
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < 8; i++) {
            int kv_head = h / 2;
            float v0 = (float)(kv_head * 10 + i), v1 = v0 + 100;
            assert_true(out[h * 8 + i] == v0); // the first sees itself alone
            assert_true(fabsf(out[(HEADS + h) * 8 + i] - (v0 + 3 * v1) / 4) < 1e-3F);
        }
    assert_true(fabsf(lse[0]) < 1e-5F);
    assert_true(fabsf(lse[HEADS] - logf(4)) < 1e-5F);
    assert_int_equal(commit(1), 0);
    // The same over what is committed, for two sequences that share it after a fork.
    uint64_t fork = 0;
    assert_int_equal(fork_seq(seqs[0], 1, &fork), 0);
    struct proto_batch_item items[] = {{.seq = fork, .tokens = 1}, {.seq = seqs[0], .tokens = 1}};
    a = batch_attn(2);
    a.sm_scale = 1;
    memset(data + OUT_AT, 0, 1024);
    assert_int_equal(attn(PROTO_DECODE, &a, items, NULL), 0);
    for (int i = 0; i < 8; i++) {
        assert_true(fabsf(out[i] - (float)(75 + i)) < 1e-3F);
        assert_true(out[HEADS * 8 + i] == out[i]);
    }
    // One side writes: the shared page is copied first, and the other side keeps its tokens.
    k[0] = 0;
    v[0] = 1000;
    assert_int_equal(begin_one(2, fork, 1), 0);
    a = step_attn(2);
    a.sm_scale = 1;
    for (a.layer = 0; a.layer < 2; a.layer++)
        assert_int_equal(attn(PROTO_DECODE, &a, NULL, NULL), 0);
    assert_true(fabsf(out[0] - (0 + 3 * 100 + 1000) / 5.0F) < 1e-2F);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 2, NULL), 0);
    a = batch_attn(2);
    a.sm_scale = 1;
    assert_int_equal(attn(PROTO_DECODE, &a, items, NULL), 0);
    assert_true(fabsf(out[0] - 75) < 1e-3F); // the fork is as before
    assert_true(fabsf(out[(size_t)HEADS * 8] - 75) < 1e-3F);
}

static void sm_scale_0_means_the_default(void **state) {
    (void)state;
    float *q = floats(Q_AT), *k = floats(K_AT);
    for (int i = 0; i < HEADS * 8; i++)
        q[i] = k[i % 16] = 1;
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    struct proto_attn a = step_attn(1);
    assert_int_equal(attn(PROTO_DECODE, &a, NULL, NULL), 0);
    assert_true(fabsf(*floats(LSE_AT) - 8 / sqrtf(8)) < 1e-5F);
}

static void attention_refuses_bad_arguments_before_any_work(void **state) {
    (void)state;
    struct err err;
    assert_int_equal(begin_one(1, seqs[0], 2), 0);
#define REFUSED(op, status, why, ...)                           \
    do {                                                        \
        struct proto_attn a = step_attn(1);                     \
        __VA_ARGS__;                                            \
        assert_int_equal(attn(op, &a, NULL, &err), status);     \
        if (strstr(err.text, why) == NULL)                      \
            fail_msg("\"%s\" is not in \"%s\"", why, err.text); \
    } while (0)
#define INVAL(why, ...) REFUSED(PROTO_PREFILL, KVPOOL_E_INVAL, why, __VA_ARGS__)
    INVAL("sm_scale", a.sm_scale = NAN);
    INVAL("sm_scale", a.sm_scale = -1);
    INVAL("sm_scale", a.sm_scale = INFINITY);
    INVAL("soft_cap", a.soft_cap = NAN);
    INVAL("soft_cap", a.soft_cap = -1);
    INVAL("soft_cap", a.soft_cap = INFINITY);
    INVAL("window_left", a.window_left = -2);
    INVAL("layer", a.layer = 2);
    INVAL("layer", a.layer = UINT32_MAX);
    INVAL("qo_heads", a.qo_heads = 0);
    INVAL("qo_heads", a.qo_heads = 3);
    INVAL("qo_heads", a.qo_heads = 4098);
    INVAL("together", memset(&a.k, 0, sizeof a.k));
    INVAL("together", memset(&a.v, 0, sizeof a.v));
    INVAL("q and out", memset(&a.q, 0, sizeof a.q));
    INVAL("q and out", memset(&a.out, 0, sizeof a.out));
    INVAL("q: offset", a.q.offset = 2);
    INVAL("lse: offset", a.lse.offset = LSE_AT + 1);
    INVAL("v: leaves", a.v.offset = REGION_BYTES - 2 * KV_BYTES + 4);
    INVAL("out: leaves", a.out.offset = REGION_BYTES);
    INVAL("q: leaves", a.q.token_stride = UINT64_MAX);
    INVAL("k: a stride", a.k.head_stride = 0);
    INVAL("out: its strides", a.out.token_stride = 8);
    INVAL("lse: its strides", a.lse.token_stride = 3);
    INVAL("out overlaps q", a.out.offset = Q_AT + 2 * Q_BYTES - 4);
    INVAL("out overlaps v", a.out.offset = V_AT);
    INVAL("lse overlaps k", a.lse.offset = K_AT);
    INVAL("lse overlaps out", a.lse.offset = OUT_AT);
    REFUSED(PROTO_PREFILL, KVPOOL_E_STALE, "region", a.q.region += 1ull << 32);
    REFUSED(PROTO_PREFILL, KVPOOL_E_STALE, "region", a.out.region = UINT64_MAX);
    REFUSED(PROTO_PREFILL, KVPOOL_E_NOTFOUND, "", a.step = 99);
    struct client other;
    client_open(&fx, &other, 2);
    uint64_t theirs = client_region(&fx, &other, REGION_BYTES, NULL);
    REFUSED(PROTO_PREFILL, KVPOOL_E_PERM, "region", a.k.region = theirs);
    client_bye(&fx, &other);
    REFUSED(PROTO_PREFILL, KVPOOL_E_STALE, "region", a.k.region = theirs);
    // Unknown flags and mixed forms are refused by the protocol or here.
    struct proto_attn a = step_attn(1);
    a.flags = 2;
    assert_int_not_equal(attn(PROTO_DECODE, &a, NULL, NULL), 0);
    a = append_attn(1, 0);
    a.q = tensor(Q_AT, HEADS, 8);
    assert_int_not_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    a = append_attn(1, 0);
    memset(&a.k, 0, sizeof a.k);
    assert_int_not_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    assert_int_equal(backend_held(), 0);
    assert_int_equal(fx.d->stats.prefills, 0);
    // ... and the untouched form is good.
    a = step_attn(1);
    assert_int_equal(attn(PROTO_PREFILL, &a, NULL, &err), 0);
    assert_int_equal(region_find(fx.d->regions, me.session, region, &(struct region *){0}, NULL),
                     0);
}

static void batches_without_a_step_are_checked(void **state) {
    (void)state;
    struct proto_batch_item items[2] = {{.seq = seqs[0], .tokens = 1},
                                        {.seq = seqs[1], .tokens = 1}};
    struct proto_attn a = batch_attn(0);
    assert_int_not_equal(attn(PROTO_DECODE, &a, items, NULL), 0); // empty
    a = batch_attn(2);
    a.k = tensor(K_AT, 2, 8);
    a.v = tensor(V_AT, 2, 8);
    assert_int_not_equal(attn(PROTO_DECODE, &a, items, NULL), 0); // k and v without a step
    a = batch_attn(2);
    items[1].seq = seqs[0];
    assert_int_equal(attn(PROTO_DECODE, &a, items, NULL), KVPOOL_E_INVAL); // duplicate
    items[1].seq = seqs[1];
    a.pool += 1ull << 32;
    assert_int_equal(attn(PROTO_DECODE, &a, items, NULL), KVPOOL_E_STALE);
    a = batch_attn(2);
    items[0].tokens = PROTO_DECODE_MAX_Q + 1;
    struct err err;
    assert_int_equal(attn(PROTO_DECODE, &a, items, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "prefill"));
    assert_int_equal(attn(PROTO_PREFILL, &a, items, NULL), 0);
    assert_int_equal(begin_one(1, seqs[1], 1), 0);
    assert_int_equal(attn(PROTO_PREFILL, &a, items, NULL), KVPOOL_E_BUSY); // in a step
    // kv_len 0: out 0, lse -inf
    items[0].tokens = 1;
    a = batch_attn(1);
    *floats(OUT_AT) = 5;
    assert_int_equal(attn(PROTO_DECODE, &a, items, NULL), 0);
    assert_true(*floats(OUT_AT) == 0);
    assert_true(isinf(*floats(LSE_AT)) && *floats(LSE_AT) < 0);
}

static void sequences_read_by_work_in_flight_are_busy(void **state) {
    (void)state;
    fill(1, seqs[0], 9);
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 1};
    struct proto_attn a = batch_attn(1);
    backend_hold(true);
    struct call *decode =
        call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
    assert_int_equal(free_seqs(1, seqs), KVPOOL_E_BUSY);
    assert_int_equal(truncate_seq(seqs[0], 0), KVPOOL_E_BUSY);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, pool, NULL), KVPOOL_E_BUSY);
    backend_hold(false);
    assert_int_equal(call_end(&fx, decode, NULL, NULL), 0);
    assert_int_equal(truncate_seq(seqs[0], 0), 0);
    assert_int_equal(free_seqs(4, seqs), 0);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, pool, NULL), 0);
}

static void a_region_freed_in_flight_lives_until_the_work_is_done(void **state) {
    (void)state;
    fill(1, seqs[0], 1);
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 1};
    struct proto_attn a = batch_attn(1);
    *floats(OUT_AT) = *floats(LSE_AT) = 5;
    backend_hold(true);
    struct call *decode =
        call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
    assert_int_equal(client_region_free(&fx, &me, region), 0);
    assert_int_equal(client_region_free(&fx, &me, region), KVPOOL_E_STALE);
    assert_int_equal(attn(PROTO_DECODE, &a, &item, NULL), KVPOOL_E_STALE);
    struct session *s = session_find(fx.d, me.session);
    assert_int_equal(s->quota.count, 1); // its memory exists
    backend_hold(false);
    assert_int_equal(call_end(&fx, decode, NULL, NULL), 0);
    assert_true(*floats(LSE_AT) != 5); // written: our mapping shows it
    assert_int_equal(s->quota.count, 0);
    assert_int_equal(s->quota.bytes, 0);
}

static void more_in_flight_than_the_limit_is_answered_again_at_once(void **state) {
    (void)state;
    struct call *calls[16];
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 1};
    struct proto_attn a = batch_attn(1);
    struct err err;
    backend_hold(true);
    for (int i = 0; i < 16; i++)
        calls[i] = call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
    struct call *over =
        call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
    assert_true(over->answered);
    assert_int_equal(call_end(&fx, over, NULL, &err), KVPOOL_E_AGAIN);
    assert_in_range(err.detail, 100000, 1000000000); // ns after which to try again
    over = call_start(&fx, &me, me.seq + 5, PROTO_PING, &(struct proto_ping){0},
                      sizeof(struct proto_ping), NULL, 0); // also out of order
    assert_true(over->answered);
    assert_int_equal(call_end(&fx, over, NULL, &err), KVPOOL_E_AGAIN);
    struct client other; // others are not affected
    client_open(&fx, &other, 2);
    client_bye(&fx, &other);
    backend_hold(false);
    for (int i = 0; i < 16; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), 0);
    assert_int_equal(attn(PROTO_DECODE, &a, &item, NULL), 0);
}

static void a_failed_backend_is_answered_to_everyone(void **state) {
    (void)state;
    struct proto_attn a = append_attn(1, 0);
    struct err err;
    assert_int_equal(begin_one(1, seqs[0], 3), 0);
    pump(&fx, 10);
    assert_true(dispatch_healthy(fx.d));
    backend_fail(true);
    assert_int_equal(attn(PROTO_APPEND, &a, NULL, &err), KVPOOL_E_BACKEND);
    backend_fail(false);
    assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), KVPOOL_E_BACKEND);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_COMMIT, 1, NULL), KVPOOL_E_STATE);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 1, NULL), 0);
    assert_int_equal(free_pages(&fx, &me, pool), 32);
}

static void the_steady_state_allocates_nothing(void **state) {
    (void)state;
    struct proto_ping ping = {.payload = 1};
    (void)make_pool(&fx, &me, "large", 5000); // too large for core_check, which allocates
    for (uint64_t step = 1; step <= 50; step++) {
        if (step == 20) // buffers have grown by now
            (void)allocations();
        if (step % 16 == 0)
            assert_int_equal(truncate_seq(seqs[0], 0), 0);
        assert_int_equal(call(&fx, &me, PROTO_PING, &ping, sizeof ping, NULL, 0, NULL, NULL), 0);
        assert_int_equal(begin(&fx, &me, step, pool, 4, seqs, 1, NULL), 0);
        struct proto_attn a = step_attn(step);
        for (a.layer = 0; a.layer < 2; a.layer++)
            assert_int_equal(attn(PROTO_DECODE, &a, NULL, NULL), 0);
        if (step % 5 == 0)
            assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, step, NULL), 0);
        else
            assert_int_equal(commit(step), 0);
    }
    assert_int_equal(allocations(), 0);
}

static void a_step_is_found_by_its_own_client_only(void **state) {
    (void)state;
    struct client other;
    struct proto_attn a = append_attn(1, 0);
    client_open(&fx, &other, 2);
    assert_int_equal(begin_one(1, seqs[0], 3), 0);
    assert_int_equal(by_handle(&fx, &other, PROTO_STEP_COMMIT, 1, NULL), KVPOOL_E_NOTFOUND);
    assert_int_equal(by_handle(&fx, &other, PROTO_STEP_ABORT, 1, NULL), KVPOOL_E_NOTFOUND);
    assert_int_equal(call(&fx, &other, PROTO_APPEND, &a, sizeof a, NULL, 0, NULL, NULL),
                     KVPOOL_E_NOTFOUND);
    client_bye(&fx, &other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, worker_setup, worker_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_decode_gives_the_right_numbers),
        TEST(sm_scale_0_means_the_default),
        TEST(attention_refuses_bad_arguments_before_any_work),
        TEST(batches_without_a_step_are_checked),
        TEST(sequences_read_by_work_in_flight_are_busy),
        TEST(a_region_freed_in_flight_lives_until_the_work_is_done),
        TEST(more_in_flight_than_the_limit_is_answered_again_at_once),
        TEST(a_failed_backend_is_answered_to_everyone),
        TEST(the_steady_state_allocates_nothing),
        TEST(a_step_is_found_by_its_own_client_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
