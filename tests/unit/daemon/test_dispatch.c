// SPDX-License-Identifier: Apache-2.0
// test_dispatch.c: pools, sequences and steps as a client meets them: what is refused, and what
// waits for work in flight.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker.h"

// --- pools ------------------------------------------------------------------------------------

static void pools_are_opened_listed_and_destroyed(void **state) {
    (void)state;
    struct proto_name name = {.name = "pool"};
    struct proto_list list = {.max = 256};
    struct proto_pool_info info;
    struct proto_msg msg = {0};
    assert_true(make_pool(&fx, &me, "pool", 32) == pool); // an equal one is the same one
    uint64_t other = make_pool(&fx, &me, "other", 8);
    assert_int_equal(call(&fx, &me, PROTO_POOL_OPEN, &name, sizeof name, NULL, 0, &msg, NULL), 0);
    assert_true(msg.body.handle.handle == pool);
    assert_int_equal(call(&fx, &me, PROTO_POOL_LIST, &list, sizeof list, NULL, 0, &msg, NULL), 0);
    assert_int_equal(msg.count, 2);
    proto_record(&msg, 1, &info);
    assert_string_equal(info.name, "other");
    assert_int_equal(info.bytes, 8 * 2 * 2 * 2 * 8 * 8 * 4);
    assert_int_equal(info.free_pages, 8);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, pool, NULL), KVPOOL_E_BUSY);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, other, NULL), 0);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, other, NULL), KVPOOL_E_STALE);
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_STAT, other, NULL), KVPOOL_E_STALE);
    snprintf(name.name, sizeof name.name, "other");
    assert_int_equal(call(&fx, &me, PROTO_POOL_OPEN, &name, sizeof name, NULL, 0, NULL, NULL),
                     KVPOOL_E_NOTFOUND);
}

static void a_pool_larger_than_memory_is_refused_and_leaves_nothing(void **state) {
    (void)state;
    struct proto_pool_create create = {.name = "huge",
                                       .layers = 512,
                                       .kv_heads = 256,
                                       .head_dim = 576,
                                       .page_size = 256,
                                       .dtype = KVPOOL_FP32,
                                       .num_pages = 4096,
                                       .max_seqs = 1,
                                       .max_seq_len = 256};
    struct err err;
    for (int i = 0; i < 16; i++) { // below core's max_page_tokens
        assert_int_equal(
            call(&fx, &me, PROTO_POOL_CREATE, &create, sizeof create, NULL, 0, NULL, &err),
            KVPOOL_E_NOMEM);
        assert_non_null(strstr(err.text, "bytes"));
        create.num_pages *= i % 2 ? 2 : 1;
    }
    uint64_t handle;
    assert_int_equal(core_pool_find(fx.d->core, "huge", &handle, NULL), KVPOOL_E_NOTFOUND);
    create.num_pages = 1;
    create.head_dim = 7;
    assert_int_equal(call(&fx, &me, PROTO_POOL_CREATE, &create, sizeof create, NULL, 0, NULL, &err),
                     KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "head_dim"));
}

// --- sequences --------------------------------------------------------------------------------

static void sequences_are_forked_truncated_freed_and_listed(void **state) {
    (void)state;
    uint64_t forks[2] = {0};
    fill(1, seqs[0], 12);
    assert_int_equal(fork_seq(seqs[0], 2, forks), 0);
    assert_int_equal(seq_info(forks[1]).length, 12);
    assert_int_equal(seq_info(forks[1]).shared_pages, 2);
    assert_int_equal(truncate_seq(seqs[0], 13), KVPOOL_E_INVAL);
    assert_int_equal(truncate_seq(seqs[0], 3), 0);
    assert_int_equal(seq_info(seqs[0]).length, 3);
    struct proto_list list = {.max = 4};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &me, PROTO_SEQ_LIST, &list, sizeof list, NULL, 0, &msg, NULL), 0);
    assert_int_equal(msg.count, 4);
    list.cursor = msg.body.list_reply.cursor;
    assert_int_equal(call(&fx, &me, PROTO_SEQ_LIST, &list, sizeof list, NULL, 0, &msg, NULL), 0);
    assert_int_equal(msg.count, 2);
    assert_int_equal(free_seqs(2, forks), 0);
    assert_int_equal(free_seqs(2, forks), KVPOOL_E_STALE);
    assert_int_equal(free_pages(&fx, &me, pool), 31);
}

static void stale_and_foreign_sequences_are_refused(void **state) {
    (void)state;
    struct client other;
    uint64_t theirs, out[1];
    struct err err;
    client_open(&fx, &other, 2);
    make_seqs(&fx, &other, pool, 1, &theirs);
    const uint64_t stale[] = {0, 1, UINT64_MAX, seqs[0] + (1ull << 32)};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(truncate_seq(stale[i], 0), KVPOOL_E_STALE);
        assert_int_equal(fork_seq(stale[i], 1, out), KVPOOL_E_STALE);
        assert_int_equal(free_seqs(1, &stale[i]), KVPOOL_E_STALE);
        assert_int_equal(begin_one(9, stale[i], 1), KVPOOL_E_STALE);
        assert_int_equal(by_handle(&fx, &me, PROTO_SEQ_STAT, stale[i], NULL), KVPOOL_E_STALE);
    }
    assert_int_equal(truncate_seq(theirs, 0), KVPOOL_E_PERM);
    assert_int_equal(fork_seq(theirs, 1, out), KVPOOL_E_PERM);
    assert_int_equal(free_seqs(1, &theirs), KVPOOL_E_PERM);
    assert_int_equal(begin_one(9, theirs, 1), KVPOOL_E_PERM);
    assert_int_equal(by_handle(&fx, &me, PROTO_SEQ_STAT, theirs, &err), KVPOOL_E_PERM);
    struct proto_attn a = batch_attn(1);
    struct proto_batch_item item = {.seq = theirs, .tokens = 1};
    assert_int_equal(attn(PROTO_DECODE, &a, &item, NULL), KVPOOL_E_PERM);
    item.seq = seqs[0] + (1ull << 32);
    assert_int_equal(attn(PROTO_DECODE, &a, &item, NULL), KVPOOL_E_STALE);
    client_bye(&fx, &other);
}

static void counts_of_sequences_have_limits(void **state) {
    (void)state;
    uint64_t out[1];
    struct proto_seq_create create = {.pool = pool, .n = 0};
    assert_int_equal(call(&fx, &me, PROTO_SEQ_CREATE, &create, sizeof create, NULL, 0, NULL, NULL),
                     KVPOOL_E_INVAL);
    create.n = 13; // 4 of 16 exist
    assert_int_equal(call(&fx, &me, PROTO_SEQ_CREATE, &create, sizeof create, NULL, 0, NULL, NULL),
                     KVPOOL_E_LIMIT);
    assert_int_equal(fork_seq(seqs[0], 0, out), KVPOOL_E_INVAL);
    assert_int_equal(fork_seq(seqs[0], 13, out), KVPOOL_E_LIMIT);
}

static void a_free_right_after_a_fork_waits_for_the_forks_table_writes(void **state) {
    (void)state;
    uint64_t fork = 0;
    fill(1, seqs[0], 12);
    backend_hold(true);
    assert_int_equal(fork_seq(seqs[0], 1, &fork), 0); // answered at once
    struct proto_count count = {.count = 1};
    struct call *freeing =
        call_start(&fx, &me, UINT64_MAX, PROTO_SEQ_FREE, &count, sizeof count, &fork, sizeof fork);
    pump(&fx, 20);
    assert_false(freeing->answered);
    assert_int_equal(seq_info(fork).length, 12);
    backend_hold(false);
    assert_int_equal(call_end(&fx, freeing, NULL, NULL), 0);
    assert_int_equal(by_handle(&fx, &me, PROTO_SEQ_STAT, fork, NULL), KVPOOL_E_STALE);
}

// --- steps ------------------------------------------------------------------------------------

static void begin_refuses_bad_batches(void **state) {
    (void)state;
    const uint64_t twice[] = {seqs[0], seqs[1], seqs[0]};
    struct proto_step_begin body = {.pool = pool, .step = 1};
    struct err err;
    assert_int_equal(begin(&fx, &me, 1, pool, 3, twice, 1, NULL), KVPOOL_E_INVAL);
    assert_int_not_equal( // empty
        call(&fx, &me, PROTO_STEP_BEGIN, &body, sizeof body, NULL, 0, NULL, NULL), 0);
    assert_int_equal(begin(&fx, &me, 1, pool + (1ull << 32), 1, seqs, 1, NULL), KVPOOL_E_STALE);
    uint64_t other = make_pool(&fx, &me, "other", 8);
    assert_int_equal(begin(&fx, &me, 1, other, 1, seqs, 1, NULL), KVPOOL_E_INVAL);
    assert_int_equal(begin(&fx, &me, 1, pool, 4, seqs, 72, &err), KVPOOL_E_NOSPACE);
    assert_int_equal(err.detail, 4 * 9 - 32);
    assert_int_equal(free_pages(&fx, &me, pool), 32);
    assert_int_equal(begin(&fx, &me, 1, pool, 4, seqs, 64, NULL), 0);
    assert_int_equal(begin(&fx, &me, 2, pool, 1, seqs, 0, NULL), KVPOOL_E_BUSY);
    assert_int_equal(begin(&fx, &me, 1, pool, 4, seqs, 64, NULL), 0); // a repeat
    assert_int_equal(begin(&fx, &me, 1, pool, 4, seqs, 63, NULL), KVPOOL_E_EXISTS);
}

static void commit_needs_every_layer_and_may_be_repeated(void **state) {
    (void)state;
    struct proto_attn a = append_attn(1, 1);
    struct err err;
    assert_int_equal(begin_one(1, seqs[0], 3), 0);
    assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_COMMIT, 1, &err), KVPOOL_E_STATE);
    a.layer = 0;
    assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    assert_int_equal(commit(1), 0);
    assert_int_equal(commit(1), 0);
    assert_int_equal(seq_info(seqs[0]).length, 3);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 1, NULL), KVPOOL_E_STATE);
    assert_int_equal(commit(77), KVPOOL_E_NOTFOUND);
    assert_int_equal(begin_one(1, seqs[0], 3), KVPOOL_E_STATE); // the id is used
    assert_int_equal(fx.d->stats.commits, 1);
    assert_int_equal(fx.d->stats.tokens, 3);
    assert_int_equal(fx.d->stats.appends, 2);
}

static void commit_of_an_aborted_step_is_refused(void **state) {
    (void)state;
    struct proto_attn a = append_attn(1, 0);
    assert_int_equal(begin_one(1, seqs[0], 20), 0);
    assert_int_equal(free_pages(&fx, &me, pool), 29);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 1, NULL), 0);
    assert_int_equal(free_pages(&fx, &me, pool), 32);
    assert_int_equal(commit(1), KVPOOL_E_ABORTED);
    assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), KVPOOL_E_ABORTED);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 1, NULL), 0); // again
    assert_int_equal(fx.d->stats.aborts, 1);
}

static void commit_waits_for_the_steps_own_work(void **state) {
    (void)state;
    assert_int_equal(begin_one(1, seqs[0], 3), 0);
    pump(&fx, 10);
    backend_hold(true);
    struct proto_attn a = append_attn(1, 0), b = append_attn(1, 1);
    struct call *first = attn_start(PROTO_APPEND, &a), *second = attn_start(PROTO_APPEND, &b);
    struct call *commits = handle_start(PROTO_STEP_COMMIT, 1);
    struct call *again = handle_start(PROTO_STEP_COMMIT, 1);
    struct call *append = attn_start(PROTO_APPEND, &a); // comes after the commit
    assert_int_equal(call_end(&fx, append, NULL, NULL), KVPOOL_E_STATE);
    pump(&fx, 20);
    assert_false(commits->answered || again->answered || first->answered || second->answered);
    assert_int_equal(seq_info(seqs[0]).length, 0);
    assert_false(dispatch_idle(fx.d));
    backend_hold(false);
    assert_int_equal(call_end(&fx, again, NULL, NULL), 0);
    assert_true(commits->answered && first->answered && second->answered);
    assert_int_equal(call_end(&fx, first, NULL, NULL), 0);
    assert_int_equal(call_end(&fx, second, NULL, NULL), 0);
    assert_int_equal(call_end(&fx, commits, NULL, NULL), 0);
    assert_int_equal(seq_info(seqs[0]).length, 3);
    assert_true(dispatch_idle(fx.d));
}

static void abort_waits_for_the_steps_own_work(void **state) {
    (void)state;
    assert_int_equal(begin_one(1, seqs[0], 3), 0);
    pump(&fx, 10);
    backend_hold(true);
    struct proto_attn a = append_attn(1, 0);
    struct call *append = attn_start(PROTO_APPEND, &a);
    struct call *aborts = handle_start(PROTO_STEP_ABORT, 1);
    struct call *commits = handle_start(PROTO_STEP_COMMIT, 1); // finds it aborted
    pump(&fx, 20);
    assert_false(aborts->answered);
    assert_int_equal(free_pages(&fx, &me, pool), 31);
    backend_hold(false);
    assert_int_equal(call_end(&fx, aborts, NULL, NULL), 0);
    assert_int_equal(call_end(&fx, append, NULL, NULL), 0);
    assert_int_equal(call_end(&fx, commits, NULL, NULL), KVPOOL_E_ABORTED);
    assert_int_equal(free_pages(&fx, &me, pool), 32);
}

static void a_whole_step_may_be_in_flight(void **state) {
    (void)state;
    struct proto_step_begin body = {.pool = pool, .step = 1, .count = 1};
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 5};
    struct proto_attn a = step_attn(1), b = step_attn(1);
    struct call *calls[4];
    b.layer = 1;
    backend_hold(true);
    calls[0] =
        call_start(&fx, &me, UINT64_MAX, PROTO_STEP_BEGIN, &body, sizeof body, &item, sizeof item);
    calls[1] = attn_start(PROTO_PREFILL, &a);
    calls[2] = attn_start(PROTO_PREFILL, &b);
    calls[3] = handle_start(PROTO_STEP_COMMIT, 1);
    assert_true(calls[0]->answered);
    backend_hold(false);
    for (int i = 0; i < 4; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), 0);
    assert_int_equal(seq_info(seqs[0]).length, 5);
    assert_int_equal(fx.d->stats.prefills, 2);
    // What follows a begin that fails finds no step.
    body.step = 2;
    item.tokens = 1000;
    calls[0] =
        call_start(&fx, &me, UINT64_MAX, PROTO_STEP_BEGIN, &body, sizeof body, &item, sizeof item);
    a.step = 2;
    calls[1] = attn_start(PROTO_PREFILL, &a);
    calls[2] = handle_start(PROTO_STEP_COMMIT, 2);
    assert_int_not_equal(call_end(&fx, calls[0], NULL, NULL), 0);
    assert_int_equal(call_end(&fx, calls[1], NULL, NULL), KVPOOL_E_NOTFOUND);
    assert_int_equal(call_end(&fx, calls[2], NULL, NULL), KVPOOL_E_NOTFOUND);
}

// --- shares of the slots ----------------------------------------------------------------------

static void one_clients_flood_leaves_slots_to_the_others(void **state) {
    (void)state;
    struct call *calls[64];
    struct client other, third;
    struct err err;
    struct proto_attn a = batch_attn(1);
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 1};
    client_open(&fx, &other, 2);
    client_open(&fx, &third, 3);
    fill(1, seqs[0], 1);
    fx.config.max_inflight = 64; // as SIGHUP does
    backend_hold(true);
    uint32_t n = 0;
    for (; n < 48; n++) // three quarters of 64 slots are anybody's
        calls[n] = call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
    for (int i = 0; i < 10; i++) { // more than a third of them is too much then, and takes no slot
        struct call *over =
            call_start(&fx, &me, UINT64_MAX, PROTO_DECODE, &a, sizeof a, &item, sizeof item);
        assert_true(over->answered);
        assert_int_equal(call_end(&fx, over, NULL, &err), KVPOOL_E_AGAIN);
        assert_in_range(err.detail, 100000, 1000000000);
    }
    for (uint32_t i = 0; i < n; i++)
        assert_false(calls[i]->answered);
    for (; n < 64; n++) { // up to a third each: out of order, so that they stay
        calls[n] = call_start(&fx, &other, other.seq + 2 + n, PROTO_STATS, NULL, 0, NULL, 0);
        assert_false(calls[n]->answered);
    }
    assert_int_equal(client_ping(&fx, &third), KVPOOL_E_AGAIN); // no slot at all,
    third.seq--;                                                // nor a place in the order
    backend_hold(false);
    for (uint32_t i = 0; i < 48; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), 0);
    assert_int_equal(client_ping(&fx, &third), 0);
    client_bye(&fx, &other);
    for (uint32_t i = 48; i < 64; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), KVPOOL_E_SHUTDOWN);
    client_bye(&fx, &third);
}

static void a_share_is_two_requests_at_least_and_ends_with_the_crowd(void **state) {
    (void)state;
    struct call *calls[64];
    struct client crowd[15];
    struct err err;
    uint32_t n = 0;
    fx.config.max_inflight = 64;
    for (uint32_t i = 0; i < 15; i++)
        client_open(&fx, &crowd[i], 2 + i);
    for (; n < 48; n++)
        calls[n] = call_start(&fx, &me, me.seq + 2 + n, PROTO_STATS, NULL, 0, NULL, 0);
    for (uint32_t i = 0; i < 4; i++) // 48 slots and 16 sessions: three each
        calls[n++] =
            call_start(&fx, &crowd[0], crowd[0].seq + 2 + i, PROTO_STATS, NULL, 0, NULL, 0);
    assert_true(calls[n - 1]->answered);
    assert_int_equal(call_end(&fx, calls[--n], NULL, &err), KVPOOL_E_AGAIN);
    assert_false(calls[n - 1]->answered);
    // When the crowd has gone a client's limit is max_inflight again.
    fd_send(me.fd, PROTO_BYE, NULL, 0, -1);
    for (uint32_t i = 0; i < 48; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), KVPOOL_E_SHUTDOWN);
    for (uint32_t i = 0; i < 40; i++) {
        calls[i] = call_start(&fx, &crowd[1], crowd[1].seq + 2 + i, PROTO_STATS, NULL, 0, NULL, 0);
        assert_false(calls[i]->answered);
    }
    for (uint32_t i = 0; i < 15; i++)
        client_bye(&fx, &crowd[i]);
    for (uint32_t i = 0; i < 40; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), KVPOOL_E_SHUTDOWN);
    for (uint32_t i = 48; i < n; i++)
        assert_int_equal(call_end(&fx, calls[i], NULL, NULL), KVPOOL_E_SHUTDOWN);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, worker_setup, worker_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(pools_are_opened_listed_and_destroyed),
        TEST(a_pool_larger_than_memory_is_refused_and_leaves_nothing),
        TEST(sequences_are_forked_truncated_freed_and_listed),
        TEST(stale_and_foreign_sequences_are_refused),
        TEST(counts_of_sequences_have_limits),
        TEST(a_free_right_after_a_fork_waits_for_the_forks_table_writes),
        TEST(begin_refuses_bad_batches),
        TEST(commit_needs_every_layer_and_may_be_repeated),
        TEST(commit_of_an_aborted_step_is_refused),
        TEST(commit_waits_for_the_steps_own_work),
        TEST(abort_waits_for_the_steps_own_work),
        TEST(a_whole_step_may_be_in_flight),
        TEST(one_clients_flood_leaves_slots_to_the_others),
        TEST(a_share_is_two_requests_at_least_and_ends_with_the_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
