// SPDX-License-Identifier: Apache-2.0
// test_attn.c: what append, prefill and decode put on the wire, and what they refuse by themselves.
#include "tests/unit/client/fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

static struct fake kvd;
static kvpool_client *client;
static kvpool_pool pool;
static kvpool_region *region;
static kvpool_seq seqs[2] = {11, 12};
static uint32_t q_len[2] = {3, 4};

static int setup(void **state) {
    (void)state;
    fake_init(&kvd);
    fake_start(&kvd);
    client = fake_connect(&kvd, 5000);
    pool = fake_pool(client);
    expect(client, KVPOOL_OK, kvpool_region_create(client, 1 << 20, &region));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    kvpool_region_free(region);
    kvpool_close(client);
    fake_cleanup(&kvd);
    return 0;
}

static kvpool_step begin(void) {
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = pool;
    args.n = 2;
    args.seqs = seqs;
    args.new_tokens = q_len;
    kvpool_step step = 0;
    expect(client, KVPOOL_OK, kvpool_step_begin(client, &args, &step, NULL));
    return step;
}

static kvpool_attn_args good(void) {
    kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT;
    args.pool = pool;
    args.n = 2;
    args.seqs = seqs;
    args.q_len = q_len;
    args.qo_heads = 6;
    args.q.region = region;
    args.out = (kvpool_tensor){.region = region, .offset = 65536};
    return args;
}

static void expect_tensor(const struct proto_tensor *t, uint64_t offset, uint64_t token,
                          uint64_t head) {
    assert_int_not_equal(t->region, 0);
    assert_int_equal(t->offset, offset);
    assert_int_equal(t->token_stride, token);
    assert_int_equal(t->head_stride, head);
}

static void a_batch_without_a_step_goes_as_given(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.layer = 3;
    args.sm_scale = 0.5f;
    args.soft_cap = 30;
    args.window_left = 7;
    args.lse = (kvpool_tensor){.region = region, .offset = 4096};
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    const struct proto_attn *a = &kvd.last_attn;
    assert_int_equal(a->step, 0);
    assert_int_equal(a->pool, pool);
    assert_int_equal(a->count, 2);
    assert_int_equal(a->layer, 3);
    assert_int_equal(a->qo_heads, 6);
    assert_int_equal(a->flags, KVPOOL_ATTN_CAUSAL);
    assert_true(a->sm_scale == 0.5f && a->soft_cap == 30);
    assert_int_equal(a->window_left, 7);
    assert_int_equal(kvd.last_items[1].seq, 12);
    assert_int_equal(kvd.last_items[1].tokens, 4);
    expect_tensor(&a->q, 0, 384, 64);
    expect_tensor(&a->out, 65536, 384, 64);
    expect_tensor(&a->lse, 4096, 6, 1);
    assert_int_equal(a->k.region, 0);
    assert_int_equal(fake_count(&kvd, PROTO_POOL_STAT), 0); // the geometry was known from creating
}

static void given_strides_stay(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.q.token_stride = 1000;
    args.out.head_stride = 72; // token stride: 6 heads * 72
    args.lse = (kvpool_tensor){.region = region, .head_stride = 2};
    expect(client, KVPOOL_OK, kvpool_prefill(client, &args));
    expect_tensor(&kvd.last_attn.q, 0, 1000, 64);
    expect_tensor(&kvd.last_attn.out, 65536, 432, 72);
    expect_tensor(&kvd.last_attn.lse, 0, 12, 2);
}

static void a_steps_tensors_use_its_pools_geometry(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.step = begin();
    args.pool = 0; // a step has its own pool and batch
    args.n = 0;
    args.seqs = NULL;
    args.q_len = NULL;
    args.k = (kvpool_tensor){.region = region, .offset = 512};
    args.v = (kvpool_tensor){.region = region, .offset = 1024};
    expect(client, KVPOOL_OK, kvpool_prefill(client, &args));
    assert_int_equal(kvd.last_attn.step, args.step);
    assert_int_equal(kvd.last_attn.pool, 0);
    assert_int_equal(kvd.last_attn.count, 0);
    expect_tensor(&kvd.last_attn.q, 0, 384, 64);
    expect_tensor(&kvd.last_attn.k, 512, 128, 64);
    expect_tensor(&kvd.last_attn.v, 1024, 128, 64);
    expect(client, KVPOOL_OK, kvpool_step_commit(client, args.step));
    // A step that is over, or never was, is for the daemon to refuse.
    expect(client, KVPOOL_OK, kvpool_prefill(client, &args));
    assert_int_equal(fake_count(&kvd, PROTO_PREFILL), 2);
    assert_int_not_equal(kvd.last_attn.q.token_stride, 0);
}

static void an_unknown_pools_geometry_is_asked_for_once(void **state) {
    (void)state;
    fake_set(&kvd, kv_heads, 5);
    fake_set(&kvd, head_dim, 128);
    kvpool_attn_args args = good();
    args.pool = 777;
    for (int i = 0; i < 3; i++)
        expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    expect_tensor(&kvd.last_attn.q, 0, 768, 128);
    assert_int_equal(fake_count(&kvd, PROTO_POOL_STAT), 1);
    args.pool = 778; // and not at all when no stride is missing
    args.q.token_stride = args.out.token_stride = 768;
    args.q.head_stride = args.out.head_stride = 128;
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    assert_int_equal(fake_count(&kvd, PROTO_POOL_STAT), 1);
}

static void append_sends_k_and_v_only(void **state) {
    (void)state;
    kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT;
    args.step = begin();
    args.layer = 2;
    args.sm_scale = 3; // not append's
    args.k.region = args.v.region = region;
    expect(client, KVPOOL_OK, kvpool_append(client, &args));
    const struct proto_attn *a = &kvd.last_attn;
    assert_int_equal(a->layer, 2);
    assert_int_equal(a->qo_heads, 0);
    assert_int_equal(a->flags, 0);
    assert_int_equal(a->window_left, 0);
    assert_true(a->sm_scale == 0);
    expect_tensor(&a->k, 0, 128, 64);
    args.q.region = region;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &args));
    args.q.region = NULL;
    args.lse.region = region;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &args));
    args.lse.region = NULL;
    args.v.region = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &args));
    args.k.region = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &args));
    args.k.region = args.v.region = region;
    args.step = 0;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &args));
    expect_message(client, "needs a step");
}

// What only the daemon can judge travels unchanged: also a scale that is no number.
static void numbers_are_left_to_the_daemon(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.sm_scale = NAN;
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    assert_true(isnan(kvd.last_attn.sm_scale));
    args.sm_scale = -1;
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    assert_true(kvd.last_attn.sm_scale == -1);
}

static void bad_arguments_never_reach_the_daemon(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.flags = 6;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    expect_message(client, "flags 0x6");
    args = good();
    args.reserved = 1;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.size = 16;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, NULL));
    args = good();
    args.qo_heads = 0;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args.qo_heads = KVPOOL_MAX_QO_HEADS + 1;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.q.region = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.out.region = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.k.region = region;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args.v.region = region; // both, but without a step
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.pool = 0;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.n = 0;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    expect_message(client, "empty batch");
    args.n = 1001;
    expect(client, KVPOOL_E_TOOBIG, kvpool_decode(client, &args));
    args = good();
    args.seqs = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.q_len = NULL;
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    args = good();
    args.q.head_stride = UINT64_MAX / 2; // times 6 heads
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    expect_message(client, "overflow");
    assert_int_equal(fake_count(&kvd, PROTO_DECODE), 0);
}

static void options_go_in_their_own_form(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.k_scale = 0.5f;
    args.v_scale = 2;
    args.sinks = (kvpool_tensor){.region = region, .offset = 8192};
    args.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    const struct proto_attend *e = &kvd.last_attend;
    assert_int_equal(e->op, PROTO_DECODE);
    assert_int_equal(e->attn.flags, KVPOOL_ATTN_CAUSAL | KVPOOL_ATTN_BATCH_INVARIANT);
    assert_int_equal(e->attn.count, 2);
    assert_int_equal(kvd.last_items[1].seq, 12);
    assert_true(e->k_scale == 0.5f && e->v_scale == 2);
    assert_int_equal(e->kv_scales.region, 0);
    assert_int_equal(e->sinks.region, e->attn.q.region);
    assert_int_equal(e->sinks.offset, 8192);
    expect_tensor(&e->attn.q, 0, 384, 64);
    // Each of them alone needs the form.
    for (int i = 0; i < 5; i++) {
        args = good();
        args.k_scale = i == 0 ? 1 : 0;
        args.v_scale = i == 1 ? 1 : 0;
        args.flags |= i == 2 ? KVPOOL_ATTN_BATCH_INVARIANT : 0;
        args.kv_scales.region = i == 3 ? region : NULL;
        args.sinks.region = i == 4 ? region : NULL;
        expect(client, KVPOOL_OK, kvpool_prefill(client, &args));
        assert_int_equal(fake_count(&kvd, PROTO_ATTEND), 2 + (unsigned)i);
        assert_int_equal(e->op, PROTO_PREFILL);
        assert_int_equal(e->kv_scales.region != 0, i == 3);
        assert_int_equal(e->sinks.region != 0, i == 4);
    }
    args = (kvpool_attn_args)KVPOOL_ATTN_ARGS_INIT;
    args.step = begin();
    args.k.region = args.v.region = args.kv_scales.region = region;
    expect(client, KVPOOL_OK, kvpool_append(client, &args));
    assert_int_equal(e->op, PROTO_APPEND);
    assert_int_equal(e->attn.flags, 0);
    assert_int_equal(fake_count(&kvd, PROTO_ATTEND), 7);
    // Without any the request is as ever.
    args.kv_scales.region = NULL;
    args.flags |= KVPOOL_ATTN_BATCH_INVARIANT; // nothing to append
    expect(client, KVPOOL_OK, kvpool_append(client, &args));
    args = good();
    expect(client, KVPOOL_OK, kvpool_prefill(client, &args));
    assert_int_equal(fake_count(&kvd, PROTO_ATTEND), 7);
    assert_int_equal(fake_count(&kvd, PROTO_APPEND), 1);
    assert_int_equal(fake_count(&kvd, PROTO_PREFILL), 1);
}

static void options_that_cannot_be_are_refused_here(void **state) {
    (void)state;
#define REFUSED(why, ...)                                              \
    do {                                                               \
        kvpool_attn_args args = good();                                \
        __VA_ARGS__;                                                   \
        expect(client, KVPOOL_E_INVAL, kvpool_prefill(client, &args)); \
        expect_message(client, why);                                   \
    } while (0)
    REFUSED("k_scale", args.k_scale = NAN);
    REFUSED("k_scale", args.k_scale = -1);
    REFUSED("v_scale", args.v_scale = INFINITY);
    REFUSED("instead of", args.v_scale = 1; args.kv_scales.region = region);
    REFUSED("kv_scales is dense", args.kv_scales.region = region; args.kv_scales.head_stride = 1);
    REFUSED("sinks is dense", args.sinks.region = region; args.sinks.token_stride = 6);
    REFUSED("kv_scales has an offset", args.kv_scales.offset = 4);
    REFUSED("sinks has an offset", args.sinks.offset = 4);
    REFUSED("unknown flags 0x7", args.flags = 7);
    kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
    append.step = begin();
    append.k.region = append.v.region = append.sinks.region = region;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &append));
    expect_message(client, "append takes no sinks");
    append.sinks.region = NULL;
    append.k_scale = NAN;
    expect(client, KVPOOL_E_INVAL, kvpool_append(client, &append));
    kvpool_client *other = fake_connect(&kvd, 5000);
    kvpool_region *foreign;
    expect(other, KVPOOL_OK, kvpool_region_create(other, 4096, &foreign));
    kvpool_attn_args args = good();
    args.sinks.region = foreign;
    expect(client, KVPOOL_E_PERM, kvpool_decode(client, &args));
    expect_message(client, "region of sinks");
    args = good();
    args.kv_scales.region = foreign;
    expect(client, KVPOOL_E_PERM, kvpool_decode(client, &args));
    expect_message(client, "region of kv_scales");
    kvpool_close(other);
    assert_int_equal(fake_count(&kvd, PROTO_ATTEND), 0);
}

// Programs of before the options: their structs end where those begin.
static void older_programs_work_as_they_did(void **state) {
    (void)state;
    kvpool_attn_args args = good();
    args.size = offsetof(kvpool_attn_args, k_scale);
    args.k_scale = NAN; // not theirs
    memset(&args.kv_scales, 0xEE, sizeof args.kv_scales);
    memset(&args.sinks, 0xEE, sizeof args.sinks);
    expect(client, KVPOOL_OK, kvpool_decode(client, &args));
    assert_int_equal(fake_count(&kvd, PROTO_DECODE), 1);
    args.size = offsetof(kvpool_attn_args, sinks); // ends inside
    expect(client, KVPOOL_E_INVAL, kvpool_decode(client, &args));
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = "old";
    config.size = offsetof(kvpool_pool_config, kv_dtype);
    config.kv_dtype = config.export_as = 77;
    kvpool_pool got;
    unsigned before = fake_count(&kvd, PROTO_POOL_CREATE);
    expect(client, KVPOOL_OK, kvpool_pool_create(client, &config, &got));
    assert_int_equal(fake_count(&kvd, PROTO_POOL_CREATE), before + 1);
    kvpool_pool_info info = {.size = offsetof(kvpool_pool_info, kv_dtype), .kv_dtype = 77};
    expect(client, KVPOOL_OK, kvpool_pool_stat(client, pool, &info));
    assert_int_equal(info.bytes, 12345);
    assert_int_equal(info.kv_dtype, 77); // nothing is written behind what they have
    info.size = sizeof info;
    expect(client, KVPOOL_OK, kvpool_pool_stat(client, pool, &info));
    assert_int_equal(info.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(info.export_as, KVPOOL_EXPORT_IPC);
    info.size = offsetof(kvpool_pool_info, bytes);
    expect(client, KVPOOL_E_INVAL, kvpool_pool_stat(client, pool, &info));
    const size_t stride = offsetof(kvpool_pool_info, kv_dtype);
    static _Alignas(8) char records[4 * offsetof(kvpool_pool_info, kv_dtype)];
    for (int i = 0; i < 4; i++)
        memcpy(records + (size_t)i * stride, &stride, sizeof stride);
    uint32_t cursor = 0, n = 0;
    fake_set(&kvd, list_total, 3);
    expect(client, KVPOOL_OK,
           kvpool_list_pools(client, &cursor, 4, (kvpool_pool_info *)(void *)records, &n));
    assert_int_equal(n, 3);
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t bytes;
        size_t size;
        memcpy(&bytes, records + i * stride + offsetof(kvpool_pool_info, bytes), sizeof bytes);
        memcpy(&size, records + i * stride, sizeof size);
        assert_int_equal(bytes, i < 3 ? 1000 + i : 0);
        assert_int_equal(size, stride);
    }
}

static void a_pool_of_other_pages_is_asked_for_by_its_own_request(void **state) {
    (void)state;
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool got;
    config.name = "fp8";
    config.layers = 3;
    config.kv_dtype = KVPOOL_FP8_E4M3;
    config.max_seq_len = 9;
    expect(client, KVPOOL_OK, kvpool_pool_create(client, &config, &got));
    assert_int_equal(fake_count(&kvd, PROTO_POOL_CREATE_AS), 1);
    assert_string_equal(kvd.last_pool.create.name, "fp8");
    assert_int_equal(kvd.last_pool.create.layers, 3);
    assert_int_equal(kvd.last_pool.create.max_seq_len, 9);
    assert_int_equal(kvd.last_pool.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(kvd.last_pool.export, 0);
    config.kv_dtype = 0;
    config.export_as = KVPOOL_EXPORT_IPC;
    expect(client, KVPOOL_OK, kvpool_pool_create(client, &config, &got));
    assert_int_equal(kvd.last_pool.export, KVPOOL_EXPORT_IPC);
    assert_int_equal(fake_count(&kvd, PROTO_POOL_CREATE_AS), 2);
}

static void an_older_daemon_is_asked_for_no_options(void **state) {
    (void)state;
    fake_set(&kvd, features, PROTO_FEATURES & ~PROTO_FEATURE_DEVICE);
    kvpool_client *old = fake_connect(&kvd, 5000);
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool got;
    config.name = "p";
    expect(old, KVPOOL_OK, kvpool_pool_create(old, &config, &got));
    config.kv_dtype = KVPOOL_FP8_E4M3;
    expect(old, KVPOOL_E_UNSUPPORTED, kvpool_pool_create(old, &config, &got));
    expect_message(old, "no fp8 pools, scales or sinks (POOL_CREATE_AS)");
    kvpool_attn_args args = good();
    kvpool_region *mine;
    expect(old, KVPOOL_OK, kvpool_region_create(old, 1 << 20, &mine));
    args.q.region = args.out.region = mine;
    expect(old, KVPOOL_OK, kvpool_decode(old, &args));
    args.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    expect(old, KVPOOL_E_UNSUPPORTED, kvpool_decode(old, &args));
    expect_message(old, "(ATTEND)");
    kvpool_close(old);
}

static void another_clients_region_is_refused(void **state) {
    (void)state;
    kvpool_client *other = fake_connect(&kvd, 5000);
    kvpool_region *foreign;
    expect(other, KVPOOL_OK, kvpool_region_create(other, 4096, &foreign));
    kvpool_attn_args args = good();
    args.out.region = foreign;
    expect(client, KVPOOL_E_PERM, kvpool_decode(client, &args));
    expect_message(client, "region of out");
    kvpool_region_free(foreign);
    kvpool_close(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        T(a_batch_without_a_step_goes_as_given),
        T(given_strides_stay),
        T(a_steps_tensors_use_its_pools_geometry),
        T(an_unknown_pools_geometry_is_asked_for_once),
        T(append_sends_k_and_v_only),
        T(numbers_are_left_to_the_daemon),
        T(bad_arguments_never_reach_the_daemon),
        T(options_go_in_their_own_form),
        T(options_that_cannot_be_are_refused_here),
        T(older_programs_work_as_they_did),
        T(a_pool_of_other_pages_is_asked_for_by_its_own_request),
        T(an_older_daemon_is_asked_for_no_options),
        T(another_clients_region_is_refused),
    };
    return cmocka_run_group_tests_name("client attention", tests, NULL, NULL);
}
