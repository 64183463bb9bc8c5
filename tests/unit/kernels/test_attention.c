// SPDX-License-Identifier: Apache-2.0
// Attention through the backend's vtable against the fp64 reference, on every kernel of this CPU.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"

#include "kernels/dtype.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__)
#define RANDOM_CASES 40
#else
#define RANDOM_CASES 300
#endif

static struct backend *backends[HARNESS_MAX_ISAS];
static const kvpool_dtype DTYPES[] = {KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32};

static int open_all(void **state) {
    (void)state;
    const char *name = getenv("KVPOOL_TEST_BACKEND");
    if (name != NULL && strcmp(name, "cpu") != 0) {
        backends[0] = harness_open(NULL, 0);
        return 0;
    }
#if defined(__SANITIZE_THREAD__) // threads are the same in every kernel: the fastest one will do
    backends[0] = harness_open(NULL, 2);
#else
    for (uint32_t i = 0; i < HARNESS_MAX_ISAS; i++)
        backends[i] = harness_open(harness_isas[i], 2);
#endif
    return 0;
}
static int close_all(void **state) {
    (void)state;
    for (uint32_t i = 0; i < HARNESS_MAX_ISAS; i++)
        if (backends[i] != NULL)
            harness_ops()->close(backends[i]);
    return 0;
}

static struct attention_case base(const char *name) {
    return (struct attention_case){
        .name = name,
        .dtype = KVPOOL_BF16,
        .qo_heads = 4,
        .kv_heads = 2,
        .head_dim = 64,
        .page_size = 16,
        .causal = true,
        .window_left = -1,
        .seed = 1,
    };
}
static void add(struct attention_case *c, uint32_t q_len, uint32_t kv_len) {
    assert_true(c->n < CASE_MAX_SEQUENCES);
    c->q_len[c->n] = q_len;
    c->kv_len[c->n++] = kv_len;
}

// In every dtype.
static void check(struct attention_case *c) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++) {
        c->dtype = DTYPES[i];
        attention_check(backends, c);
    }
}

// In every dtype, on every kernel: what `element` says of each element of out.
static void check_elements(struct attention_case *c,
                           void (*element)(const struct attention_case *c, const char *isa,
                                           size_t at, double x)) {
    for (size_t j = 0; j < sizeof DTYPES / sizeof *DTYPES; j++)
        for (uint32_t i = 0; i < HARNESS_MAX_ISAS; i++) {
            if (backends[i] == NULL)
                continue;
            c->dtype = DTYPES[j];
            struct attention_data *d = attention_data_new(c);
            size_t bytes;
            unsigned char *result = attention_run(backends[i], d, 0, c->n, 5, &bytes);
            size_t n = (size_t)d->tokens_q * c->qo_heads * c->head_dim;
            for (size_t e = 0; e < n; e++)
                element(c, harness_isas[i], e, (double)dtype_load(c->dtype, result, e));
            free(result);
            attention_data_free(d);
        }
}

static void test_decode_at_every_page_edge(void **state) {
    (void)state;
    for (uint32_t p = 8; p <= 256; p *= 2) {
        struct attention_case c = base("decode");
        c.page_size = p;
        const uint32_t lens[] = {0, 1, p - 1, p, p + 1, 15, 16, 17, 63, 64, 65, 127, 129, 1000};
        for (size_t j = 0; j < sizeof lens / sizeof *lens; j++)
            add(&c, 1, lens[j]);
        check(&c);
    }
}

static void test_decode_of_long_sequences_is_merged_from_chunks(void **state) {
    (void)state;
    struct attention_case c = base("long decode");
    c.head_dim = 128;
    add(&c, 1, 4096);
    add(&c, 1, 1024);
    add(&c, 1, 1025);
    add(&c, 3, 2049);
    add(&c, 13, 5000); // many rows, chunks as well
    check(&c);
}

static void test_every_group_size(void **state) {
    (void)state;
    const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        struct attention_case c = base("group");
        c.qo_heads = groups[i] * c.kv_heads;
        add(&c, 1, 100);
        add(&c, 1, 3);
        add(&c, 2, 77);
        add(&c, 5, 70);
        check(&c);
    }
}

static void test_every_head_dim(void **state) {
    (void)state;
    const uint32_t dims[] = {8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 576};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        struct attention_case c = base("head_dim");
        c.head_dim = dims[i];
        c.extra_dims = 3;
        add(&c, 1, 1);
        add(&c, 1, 16);
        add(&c, 1, 65);
        add(&c, 9, 90);
        add(&c, 40, 90);
        check(&c);
    }
}

static void test_prefill_lengths_and_prefixes(void **state) {
    (void)state;
    const uint32_t lens[] = {1, 2, 7, 63, 64, 65, 130};
    const uint32_t p = 16;
    const uint32_t prefixes[] = {0, 1, p - 1, 1000};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        struct attention_case c = base("prefill");
        for (size_t k = 0; k < sizeof lens / sizeof *lens; k++)
            if (prefixes[i] < 1000 || k % 2 == 0)
                add(&c, lens[k], lens[k] + prefixes[i]);
        check(&c);
    }
}

static void test_prefill_with_many_heads_per_key_head(void **state) {
    (void)state;
    struct attention_case c = base("wide group");
    c.kv_heads = 1;
    c.qo_heads = 130; // a block of rows ends inside a token
    c.head_dim = 32;
    add(&c, 1, 50);
    add(&c, 4, 70);
    check(&c);
}

// More key heads than one unit takes, evenly divided or not.
static void test_many_key_heads(void **state) {
    (void)state;
    const uint32_t heads[][2] = {{40, 40}, {130, 130}, {9, 9 * 13}, {256, 256}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        struct attention_case c = base("many key heads");
        c.kv_heads = heads[i][0];
        c.qo_heads = heads[i][1];
        c.head_dim = 16;
        add(&c, 1, 40);
        add(&c, 1, 300);
        add(&c, 3, 33);
        check(&c);
    }
}

// 40 sequences x 256 key heads are more units than are planned at once.
static void test_more_units_than_one_wave(void **state) {
    (void)state;
    struct attention_case c = base("waves");
    c.kv_heads = c.qo_heads = harness_short() ? 16 : 256;
    c.head_dim = 8;
    for (uint32_t i = 0; i < 40; i++)
        add(&c, 17, 17 + i % 3);
    attention_check(backends, &c);
}

static void test_more_queries_than_keys(void **state) {
    (void)state;
    for (int causal = 0; causal < 2; causal++) {
        struct attention_case c = base("q_len > kv_len");
        c.causal = causal != 0;
        add(&c, 5, 2);
        add(&c, 3, 0);
        add(&c, 70, 30);
        add(&c, 1, 0);
        add(&c, 0, 17);
        check(&c);
    }
}

static void test_sliding_windows(void **state) {
    (void)state;
    const int32_t windows[] = {0, 1, 15, 16, 17, 63, 64, 100, 2000, INT32_MAX};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (int causal = 0; causal < 2; causal++) {
            struct attention_case c = base("window");
            c.causal = causal != 0;
            c.window_left = windows[i];
            add(&c, 1, 1);
            add(&c, 1, 300);
            add(&c, 4, 130);
            add(&c, 70, 200);
            add(&c, 6, 3);
            check(&c);
        }
}

static void test_window_over_chunks(void **state) {
    (void)state;
    struct attention_case c = base("window over chunks");
    c.window_left = 1500;
    add(&c, 1, 4000);
    add(&c, 2, 3072);
    attention_check(backends, &c);
    c = base("window over one chunk edge");
    c.window_left = 176;
    add(&c, 1, 1150);
    attention_check(backends, &c);
}

static void test_soft_cap(void **state) {
    (void)state;
    const float caps[] = {0.5f, 30.0f, 50.0f};
    for (size_t i = 0; i < 3; i++) {
        struct attention_case c = base("soft cap");
        c.soft_cap = caps[i];
        c.sm_scale = i == 2 ? 1.0f : 0;
        add(&c, 1, 100);
        add(&c, 33, 133);
        check(&c);
    }
}

// They leave the logits as they are.
static void test_wide_soft_caps(void **state) {
    (void)state;
    const float caps[] = {1e4f, 1e6f, 1e10f, 3e38f};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        struct attention_case c = base("wide soft cap");
        c.soft_cap = caps[i];
        add(&c, 1, 100);
        add(&c, 33, 133);
        check(&c);
    }
}

// Eight logits to each power of two from 2^-40 to 2^40, of both signs, and a few others.
enum { LOGITS = 2 * 8 * 80, LOGITS_FEW = 4, LOGITS_ALL = LOGITS + LOGITS_FEW };
static double logit_at(size_t i) {
    const double few[LOGITS_FEW] = {INFINITY, -INFINITY, (double)NAN, 0};
    if (i >= LOGITS)
        return few[i - LOGITS];
    size_t pair = i / 2;
    double x = (double)exp2f((float)pair / 8 - 40);
    return i % 2 == 0 ? x : -x;
}

// To a few 2^-24 of it. A cap above 2^125 may be taken for less, which an infinite logit tells.
static bool is_capped(double x, double cap, double got) {
    double expected = cap * tanh(x / cap);
    if (isnan(expected))
        return isnan(got);
    if (isinf(x) && cap > 0x1p125)
        return x * got > 0 && fabs(got) >= 0x1p124 && fabs(got) <= cap;
    return fabs(got - expected) <= 0x1p-21 * fabs(expected) + 0x1p-124;
}

// A query that sees one key has its capped logit as lse.
static void test_soft_cap_of_every_logit(void **state) {
    (void)state;
    const float caps[] = {1e-42f, 1e-30f, 0.01f, 1, 30, 1e4f, 1e6f, 1e20f, 1e38f, 3e38f};
    for (size_t j = 0; j < sizeof caps / sizeof *caps; j++) {
        struct attention_case c = base("one key");
        c.dtype = KVPOOL_FP32;
        c.qo_heads = c.kv_heads = 1;
        c.head_dim = 8;
        c.causal = false;
        c.sm_scale = 0.25f;
        c.soft_cap = caps[j];
        add(&c, LOGITS_ALL, 1);
        add(&c, LOGITS_FEW, 1);
        struct attention_data *d = attention_data_new(&c);
        memset(d->k, 0, sizeof *d->k * d->tokens_kv * c.head_dim);
        memset(d->q, 0, sizeof *d->q * d->tokens_q * c.head_dim);
        d->k[0] = d->k[c.head_dim] = 2;
        for (size_t t = 0; t < d->tokens_q; t++)
            d->q[t * c.head_dim] = 2 * logit_at(t < LOGITS_ALL ? t : t - LOGITS_FEW);
        for (uint32_t i = 0; i < HARNESS_MAX_ISAS; i++) {
            if (backends[i] == NULL)
                continue;
            size_t bytes;
            unsigned char *result = attention_run(backends[i], d, 0, c.n, 3, &bytes);
            const unsigned char *lse =
                result + (size_t)d->tokens_q * c.head_dim * kv_dtype_size(c.dtype);
            for (size_t t = 0; t < d->tokens_q; t++) {
                double x = d->q[t * c.head_dim] / 2;
                double got = (double)dtype_load(KVPOOL_FP32, lse, t);
                if (!is_capped(x, (double)caps[j], got))
                    fail_msg("%s, cap %g: %.9g became %.9g", harness_isas[i], (double)caps[j], x,
                             got);
            }
            free(result);
        }
        attention_data_free(d);
    }
}

static void test_not_causal(void **state) {
    (void)state;
    struct attention_case c = base("not causal");
    c.causal = false;
    add(&c, 1, 100);
    add(&c, 2, 65);
    add(&c, 33, 133);
    add(&c, 64, 64);
    check(&c);
}

static void test_interleaved_tensors_and_no_lse(void **state) {
    (void)state;
    struct attention_case c = base("interleaved");
    c.extra_heads = 5;
    c.extra_dims = 1;
    c.no_lse = true;
    add(&c, 1, 100);
    add(&c, 30, 61);
    check(&c);
}

// Keys that a query does not see may be NaN although its sequence owns them.
// Of the cpu backend alone: see invariant 2 of backend.h.
static void test_nan_of_unseen_keys_stays_away(void **state) {
    (void)state;
    if (harness_ops() != &backend_cpu)
        skip();
    for (int narrow = 0; narrow < 2; narrow++)
        for (uint32_t from = 30; from < 70; from += 13) {
            struct attention_case c = base("NaN in the future");
            c.nan_from = from;
            c.kv_dtype = narrow != 0 ? KVPOOL_FP8_E4M3 : 0;
            add(&c, 2, from + 1);
            add(&c, 4, from + 2);
            add(&c, 40, from + 9);
            add(&c, 64, 130);
            check(&c);
        }
}

// Pages of fp8: not scaled, scaled, and with a scale for every key head, where the other two are not
// used.
static struct attention_case fp8(const char *name, uint32_t scaling) {
    struct attention_case c = base(name);
    c.kv_dtype = KVPOOL_FP8_E4M3;
    c.k_scale = scaling == 0 ? 0 : 0.0137f;
    c.v_scale = scaling == 0 ? 0 : 1.7f;
    c.head_scales = scaling == 2;
    return c;
}

static void test_fp8_pages_of_every_head_dim(void **state) {
    (void)state;
    const uint32_t dims[] = {8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 576};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t j = 0; j < 3; j++) {
            struct attention_case c = fp8("fp8 head_dim", (uint32_t)(i + j) % 3);
            c.dtype = DTYPES[j];
            c.head_dim = dims[i];
            c.extra_dims = 3;
            c.kv_heads = 3;
            c.qo_heads = 6;
            add(&c, 1, 1);
            add(&c, 1, 16);
            add(&c, 1, 65);
            add(&c, 9, 90);
            add(&c, 40, 90);
            attention_check(backends, &c);
        }
}

// A token that sees itself alone has its V as output, for every value of e4m3: neighbours are 2^-4 of
// them apart or more.
static void is_fp8_value(const struct attention_case *c, const char *isa, size_t at, double x) {
    (void)c;
    double expected = (double)dtype_e4m3_to_fp32((uint8_t)at);
    if (isnan(expected) ? !isnan(x) : !(fabs(x - expected) <= 0x1p-8 * fabs(expected)))
        fail_msg("%s: %zu gave %.9g, not %.9g", isa, at % 256, x, expected);
}

static void test_every_fp8_value_comes_back(void **state) {
    (void)state;
    struct attention_case c = fp8("fp8 values", 0);
    c.codes = true;
    c.head_dim = 256;
    c.window_left = 0;
    c.no_lse = true;
    add(&c, 1, 1);
    add(&c, 40, 40); // many rows
    check_elements(&c, is_fp8_value);
}

static void test_fp8_pages_of_every_size_and_group(void **state) {
    (void)state;
    const uint32_t groups[] = {1, 2, 3, 5, 8, 16, 17};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        struct attention_case c = fp8("fp8 group", 2);
        c.qo_heads = groups[i] * c.kv_heads;
        c.page_size = 8u << (i % 6);
        const uint32_t lens[] = {0, 1, 7, 8, 9, 63, 64, 65, 129};
        for (size_t k = 0; k < sizeof lens / sizeof *lens; k++)
            add(&c, 1, lens[k]);
        add(&c, 2, 77);
        add(&c, 70, 170);
        check(&c);
    }
}

// Each batch is planned anew, where the last one's plan was, and the attention follows at once.
static void test_each_batch_is_another(void **state) {
    (void)state;
    uint64_t s = 7;
    for (uint64_t i = 0; i < 60; i++) {
        struct attention_case c = base("new batch");
        c.dtype = KVPOOL_FP16;
        c.seed = 4 * i; // aligned tensors
        for (uint32_t k = 0; k < 5; k++)
            add(&c, 1, random_below(&s, 70));
        add(&c, 9, 9 + random_below(&s, 40));
        attention_check(backends, &c);
    }
}

static void test_fp8_pages_of_long_sequences(void **state) {
    (void)state;
    struct attention_case c = fp8("long fp8", 2);
    c.head_dim = 128;
    c.sinks = true;
    add(&c, 1, 4096);
    add(&c, 3, 2049);
    add(&c, 13, 5000);
    check(&c);
}

// The scale of K goes into the logit before the soft cap.
static void test_fp8_pages_with_windows_and_soft_caps(void **state) {
    (void)state;
    for (uint32_t scaling = 0; scaling < 3; scaling++)
        for (int causal = 0; causal < 2; causal++) {
            struct attention_case c = fp8("fp8 window", scaling);
            c.causal = causal != 0;
            c.window_left = 33;
            c.soft_cap = 2;
            add(&c, 1, 300);
            add(&c, 4, 130);
            add(&c, 70, 200);
            add(&c, 6, 3);
            check(&c);
        }
}

// Rows that see no key have the sink's logit as lse.
static void test_sinks(void **state) {
    (void)state;
    for (int narrow = 0; narrow < 2; narrow++)
        for (int causal = 0; causal < 2; causal++)
            for (int window = 0; window < 2; window++) {
                struct attention_case c = narrow != 0 ? fp8("sinks, fp8", 2) : base("sinks");
                c.qo_heads = 10;
                c.causal = causal != 0;
                c.window_left = window != 0 ? 20 : -1;
                c.soft_cap = window != 0 ? 1 : 0; // not of sinks
                c.sinks = true;
                add(&c, 1, 0);
                add(&c, 1, 1);
                add(&c, 1, 40);
                add(&c, 1, 3000); // merged
                add(&c, 5, 2);
                add(&c, 70, 30);
                add(&c, 33, 100);
                add(&c, 13, 2100);
                check(&c);
            }
}

static void is_one(const struct attention_case *c, const char *isa, size_t at, double x) {
    (void)at;
    double ulp = c->dtype == KVPOOL_BF16   ? 0x1p-8
                 : c->dtype == KVPOOL_FP16 ? 0x1p-11
                                           : 0x1p-20; // the order of two long sums
    if (fabs(x - 1) > 2 * ulp || (x < 1 && 1 - x > ulp))
        fail_msg("%s: out is %.9g, not 1", isa, x);
}

// The weights of a row sum to 1.
static void test_uniform_values_come_back(void **state) {
    (void)state;
    struct attention_case c = base("ones");
    c.ones = true;
    c.head_dim = 128;
    c.no_lse = true;
    add(&c, 1, 1);
    add(&c, 1, 2);
    add(&c, 1, 17);
    add(&c, 1, 3000);
    add(&c, 50, 333);
    check_elements(&c, is_one);
}

static void test_random_cases(void **state) {
    (void)state;
    uint64_t seed = seed_from_env(20240717);
    const uint32_t dims[] = {8, 24, 64, 72, 80, 96, 128, 256};
    for (uint32_t round = 0; round < RANDOM_CASES; round++) {
        uint64_t s = seed + round;
        struct attention_case c = base("random");
        c.dtype = DTYPES[random_below(&s, 3)];
        c.seed = seed + round;
        c.kv_heads = 1 + random_below(&s, 3);
        c.qo_heads = c.kv_heads * (1 + random_below(&s, 9));
        c.head_dim = dims[random_below(&s, 8)];
        c.page_size = 8u << random_below(&s, 6);
        c.causal = random_below(&s, 4) != 0;
        c.window_left = random_below(&s, 3) == 0 ? (int32_t)random_below(&s, 200) : -1;
        c.soft_cap = random_below(&s, 4) == 0 ? 20.0f : 0;
        c.extra_heads = random_below(&s, 3);
        c.extra_dims = random_below(&s, 2) * 8;
        c.no_lse = random_below(&s, 5) == 0;
        c.sinks = random_below(&s, 3) == 0;
        if (random_below(&s, 3) == 0) {
            c.kv_dtype = KVPOOL_FP8_E4M3;
            c.head_scales = random_below(&s, 2) != 0;
            c.k_scale = (float)(1 + random_below(&s, 200)) / 100;
            c.v_scale = (float)random_below(&s, 3); // 0: 1
        }
        uint32_t n = 1 + random_below(&s, 4);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t kv_len = random_below(&s, random_below(&s, 8) == 0 ? 1500 : 150);
            uint32_t q_len = random_below(&s, 3) != 0 ? 1 : random_below(&s, 100);
            if (random_below(&s, 10) != 0 && q_len > kv_len)
                q_len = kv_len;
            add(&c, q_len, kv_len);
        }
        attention_check(backends, &c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_at_every_page_edge),
        cmocka_unit_test(test_decode_of_long_sequences_is_merged_from_chunks),
        cmocka_unit_test(test_every_group_size),
        cmocka_unit_test(test_every_head_dim),
        cmocka_unit_test(test_prefill_lengths_and_prefixes),
        cmocka_unit_test(test_prefill_with_many_heads_per_key_head),
        cmocka_unit_test(test_many_key_heads),
        cmocka_unit_test(test_more_units_than_one_wave),
        cmocka_unit_test(test_more_queries_than_keys),
        cmocka_unit_test(test_sliding_windows),
        cmocka_unit_test(test_window_over_chunks),
        cmocka_unit_test(test_soft_cap),
        cmocka_unit_test(test_wide_soft_caps),
        cmocka_unit_test(test_soft_cap_of_every_logit),
        cmocka_unit_test(test_not_causal),
        cmocka_unit_test(test_interleaved_tensors_and_no_lse),
        cmocka_unit_test(test_nan_of_unseen_keys_stays_away),
        cmocka_unit_test(test_fp8_pages_of_every_head_dim),
        cmocka_unit_test(test_every_fp8_value_comes_back),
        cmocka_unit_test(test_fp8_pages_of_every_size_and_group),
        cmocka_unit_test(test_each_batch_is_another),
        cmocka_unit_test(test_fp8_pages_of_long_sequences),
        cmocka_unit_test(test_fp8_pages_with_windows_and_soft_caps),
        cmocka_unit_test(test_sinks),
        cmocka_unit_test(test_uniform_values_come_back),
        cmocka_unit_test(test_random_cases),
    };
    if (!harness_has_device())
        return 77;
    return cmocka_run_group_tests_name("attention", tests, open_all, close_all);
}
