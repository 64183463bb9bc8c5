// SPDX-License-Identifier: Apache-2.0
// test_dispatch.c: pools, sequences, steps and attention as a client meets them: what is refused,
// what waits for work in flight, and that a decode gives the right numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGION_BYTES 65536
#define HEADS 4 // of q; the pool has 2 kv heads of 8, 2 layers, fp32, page size 8
#define Q_BYTES (HEADS * 8 * 4)
#define KV_BYTES (2 * 8 * 4)
// Where tensors of up to 16 tokens lie in the region.
#define Q_AT 0
#define K_AT 8192
#define V_AT 16384
#define OUT_AT 24576
#define LSE_AT 32768

static struct fixture fx;
static struct client me;
static uint64_t pool, region, seqs[4];
static uint8_t *data;

static int setup(void **state) {
    (void)state;
    fixture_init(&fx);
    fixture_start(&fx);
    client_open(&fx, &me, 1);
    pool = make_pool(&fx, &me, "pool", 32);
    make_seqs(&fx, &me, pool, 4, seqs);
    region = client_region(&fx, &me, REGION_BYTES, (void **)&data);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    backend_hold(false);
    munmap(data, REGION_BYTES);
    close(me.fd);
    fixture_stop(&fx);
    return 0;
}

static float *floats(uint64_t offset) {
    return (float *)(void *)(data + offset);
}

static struct proto_tensor tensor(uint64_t offset, uint64_t heads, uint64_t dim) {
    return (struct proto_tensor){
        .region = region, .offset = offset, .token_stride = heads * dim, .head_stride = dim};
}

// A valid decode of layer 0 of an open step.
static struct proto_attn step_attn(uint64_t step) {
    return (struct proto_attn){.step = step,
                               .qo_heads = HEADS,
                               .flags = KVPOOL_ATTN_CAUSAL,
                               .window_left = -1,
                               .q = tensor(Q_AT, HEADS, 8),
                               .k = tensor(K_AT, 2, 8),
                               .v = tensor(V_AT, 2, 8),
                               .out = tensor(OUT_AT, HEADS, 8),
                               .lse = tensor(LSE_AT, HEADS, 1)};
}

static struct proto_attn append_attn(uint64_t step, uint32_t layer) {
    return (struct proto_attn){
        .step = step, .layer = layer, .k = tensor(K_AT, 2, 8), .v = tensor(V_AT, 2, 8)};
}

// A valid decode over committed tokens; goes with items.
static struct proto_attn batch_attn(uint32_t n) {
    struct proto_attn a = step_attn(0);
    a.pool = pool;
    a.count = n;
    memset(&a.k, 0, sizeof a.k);
    memset(&a.v, 0, sizeof a.v);
    return a;
}

static int attn(uint16_t op, const struct proto_attn *a, const struct proto_batch_item *items,
                struct err *err) {
    return call(&fx, &me, op, a, sizeof *a, items, a->count * sizeof *items, NULL, err);
}

static struct call *attn_start(uint16_t op, const struct proto_attn *a) {
    return call_start(&fx, &me, UINT64_MAX, op, a, sizeof *a, NULL, 0);
}

static struct call *handle_start(uint16_t op, uint64_t handle) {
    struct proto_handle body = {.handle = handle};
    return call_start(&fx, &me, UINT64_MAX, op, &body, sizeof body, NULL, 0);
}

static int commit(uint64_t step) {
    return by_handle(&fx, &me, PROTO_STEP_COMMIT, step, NULL);
}

static int begin_one(uint64_t step, uint64_t seq, uint32_t tokens) {
    return begin(&fx, &me, step, pool, 1, &seq, tokens, NULL);
}

// Gives a sequence `tokens` tokens in one step.
static void fill(uint64_t step, uint64_t seq, uint32_t tokens) {
    assert_int_equal(begin_one(step, seq, tokens), 0);
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct proto_attn a = append_attn(step, layer);
        assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    }
    assert_int_equal(commit(step), 0);
}

static int free_seqs(uint32_t n, const uint64_t *handles) {
    struct proto_count count = {.count = n};
    return call(&fx, &me, PROTO_SEQ_FREE, &count, sizeof count, handles, n * sizeof *handles, NULL,
                NULL);
}

static int fork_seq(uint64_t seq, uint32_t n, uint64_t *ret) {
    struct proto_seq_fork body = {.seq = seq, .n = n};
    struct proto_msg msg = {0};
    int status = call(&fx, &me, PROTO_SEQ_FORK, &body, sizeof body, NULL, 0, &msg, NULL);
    for (uint32_t i = 0; status == 0 && i < n; i++)
        proto_record(&msg, i, &ret[i]);
    return status;
}

static int truncate_seq(uint64_t seq, uint32_t length) {
    struct proto_seq_truncate body = {.seq = seq, .length = length};
    return call(&fx, &me, PROTO_SEQ_TRUNCATE, &body, sizeof body, NULL, 0, NULL, NULL);
}

static struct proto_seq_info seq_info(uint64_t seq) {
    struct proto_handle body = {.handle = seq};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &me, PROTO_SEQ_STAT, &body, sizeof body, NULL, 0, &msg, NULL), 0);
    return msg.body.seq_info;
}

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
    for (int i = 0; i < 20; i++) {
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

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
