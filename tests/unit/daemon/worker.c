// SPDX-License-Identifier: Apache-2.0
// worker.c: see worker.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker.h"

#include <sys/mman.h>
#include <unistd.h>

struct fixture fx;
struct client me;
uint64_t pool, region, seqs[4];
uint8_t *data;

int worker_setup(void **state) {
    (void)state;
    return worker_setup_with(&held, 0);
}

int worker_setup_with(const struct backend_ops *ops, uint64_t features) {
    fixture_init(&fx);
    fx.features = features;
    fixture_start_with(&fx, ops);
    client_open(&fx, &me, 1);
    pool = make_pool(&fx, &me, "pool", 32);
    make_seqs(&fx, &me, pool, 4, seqs);
    region = client_region(&fx, &me, REGION_BYTES, (void **)&data);
    return 0;
}

int worker_teardown(void **state) {
    (void)state;
    backend_hold(false);
    munmap(data, REGION_BYTES);
    close(me.fd);
    fixture_stop(&fx);
    return 0;
}

float *floats(uint64_t offset) {
    return (float *)(void *)(data + offset);
}

struct proto_tensor tensor(uint64_t offset, uint64_t heads, uint64_t dim) {
    return (struct proto_tensor){
        .region = region, .offset = offset, .token_stride = heads * dim, .head_stride = dim};
}

// A valid decode of layer 0 of an open step.
struct proto_attn step_attn(uint64_t step) {
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

struct proto_attn append_attn(uint64_t step, uint32_t layer) {
    return (struct proto_attn){
        .step = step, .layer = layer, .k = tensor(K_AT, 2, 8), .v = tensor(V_AT, 2, 8)};
}

// A valid decode over committed tokens; goes with items.
struct proto_attn batch_attn(uint32_t n) {
    struct proto_attn a = step_attn(0);
    a.pool = pool;
    a.count = n;
    memset(&a.k, 0, sizeof a.k);
    memset(&a.v, 0, sizeof a.v);
    return a;
}

int attn(uint16_t op, const struct proto_attn *a, const struct proto_batch_item *items,
         struct err *err) {
    return call(&fx, &me, op, a, sizeof *a, items, a->count * sizeof *items, NULL, err);
}

struct call *attn_start(uint16_t op, const struct proto_attn *a) {
    return call_start(&fx, &me, UINT64_MAX, op, a, sizeof *a, NULL, 0);
}

struct call *handle_start(uint16_t op, uint64_t handle) {
    struct proto_handle body = {.handle = handle};
    return call_start(&fx, &me, UINT64_MAX, op, &body, sizeof body, NULL, 0);
}

int commit(uint64_t step) {
    return by_handle(&fx, &me, PROTO_STEP_COMMIT, step, NULL);
}

int begin_one(uint64_t step, uint64_t seq, uint32_t tokens) {
    return begin(&fx, &me, step, pool, 1, &seq, tokens, NULL);
}

// Gives a sequence `tokens` tokens in one step.
void fill(uint64_t step, uint64_t seq, uint32_t tokens) {
    assert_int_equal(begin_one(step, seq, tokens), 0);
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct proto_attn a = append_attn(step, layer);
        assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    }
    assert_int_equal(commit(step), 0);
}

int free_seqs(uint32_t n, const uint64_t *handles) {
    struct proto_count count = {.count = n};
    return call(&fx, &me, PROTO_SEQ_FREE, &count, sizeof count, handles, n * sizeof *handles, NULL,
                NULL);
}

int fork_seq(uint64_t seq, uint32_t n, uint64_t *ret) {
    struct proto_seq_fork body = {.seq = seq, .n = n};
    struct proto_msg msg = {0};
    int status = call(&fx, &me, PROTO_SEQ_FORK, &body, sizeof body, NULL, 0, &msg, NULL);
    for (uint32_t i = 0; status == 0 && i < n; i++)
        proto_record(&msg, i, &ret[i]);
    return status;
}

int truncate_seq(uint64_t seq, uint32_t length) {
    struct proto_seq_truncate body = {.seq = seq, .length = length};
    return call(&fx, &me, PROTO_SEQ_TRUNCATE, &body, sizeof body, NULL, 0, NULL, NULL);
}

struct proto_seq_info seq_info(uint64_t seq) {
    struct proto_handle body = {.handle = seq};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &me, PROTO_SEQ_STAT, &body, sizeof body, NULL, 0, &msg, NULL), 0);
    return msg.body.seq_info;
}
