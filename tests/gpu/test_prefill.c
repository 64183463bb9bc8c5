// SPDX-License-Identifier: Apache-2.0
// test_prefill.c: the prefill kernels against the reference: edges of tiles and pages, masks, groups,
// types, layouts, ranges of keys that several CTAs share, and what is refused.
#include "tests/gpu/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct attention_kernel prefill = {
    .name = "prefill",
    .takes = cuda_prefill_takes,
    .plan_bytes = cuda_prefill_plan_bytes,
    .workspace_bytes = cuda_prefill_workspace_bytes,
    .plan = cuda_prefill_plan,
    .run = cuda_prefill,
};

// A device with 99 KB of shared memory a block, as some have.
static struct cuda_device small_device(const struct cuda_device *d) {
    struct cuda_device s = *d;
    s.smem_optin = 101376;
    return s;
}
static size_t small_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    struct cuda_device s = small_device(d);
    return cuda_prefill_plan_bytes(&s, a);
}
static size_t small_workspace_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    struct cuda_device s = small_device(d);
    return cuda_prefill_workspace_bytes(&s, a);
}
static int small_plan(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct cuda_device s = small_device(d);
    return cuda_prefill_plan(&s, a, stream);
}
static int small_run(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct cuda_device s = small_device(d);
    return cuda_prefill(&s, a, stream);
}
static const struct attention_kernel prefill_small = {
    .name = "prefill, 99 KB",
    .takes = cuda_prefill_takes,
    .plan_bytes = small_plan_bytes,
    .workspace_bytes = small_workspace_bytes,
    .plan = small_plan,
    .run = small_run,
};

static const uint32_t dtypes[][2] = {
    {CUDA_FP16, CUDA_FP16}, {CUDA_BF16, CUDA_BF16}, {CUDA_FP16, CUDA_E4M3}, {CUDA_BF16, CUDA_E4M3}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

// Query tiles and key tiles that are empty, short, whole and one over; rows that see nothing.
static void add_edges(struct attention_case *c) {
    case_add(c, 1, 1);
    case_add(c, 5, 0);
    case_add(c, 32, 65);
    case_add(c, 0, 40);
    case_add(c, 33, 128);
    case_add(c, 7, 3);
    case_add(c, 31, 63);
    case_add(c, 2, 129);
}

static void test_edges(void **state) {
    (void)state;
    struct attention_case c = attention_case("edges", CUDA_BF16);
    add_edges(&c);
    attention_check(&prefill, &c);
    c.dtype = c.kv_dtype = CUDA_FP16;
    c.lse = false;
    attention_check(&prefill, &c);
}

static void test_types_and_dims(void **state) {
    (void)state;
    for (uint32_t i = 0; i < DTYPES; i++)
        for (uint32_t dim = 64; dim <= 256; dim *= 2) {
            struct attention_case c = attention_case("types and dims", dtypes[i][0]);
            c.kv_dtype = dtypes[i][1];
            c.head_dim = dim;
            c.scales = i % 2 == 0 ? CASE_SCALES_SCALAR : CASE_SCALES_HEADS;
            c.seed = 100 * i + dim;
            case_add(&c, 35, 35);
            case_add(&c, 3, 0);
            case_add(&c, 17, 150);
            case_add(&c, 9, 4);
            attention_check(&prefill, &c);
            if (dim == 256)
                attention_check(&prefill_small, &c);
        }
}

// The shapes that are there to be measured against the usual one.
extern int cuda_prefill_variant;
static void test_variants(void **state) {
    (void)state;
    for (int variant = 1; variant <= 3; variant++) {
        struct attention_case c = attention_case("variants", CUDA_BF16);
        add_edges(&c);
        case_add(&c, 90, 290);
        c.seed = (uint64_t)variant;
        cuda_prefill_variant = variant;
        attention_check(&prefill, &c);
        c.window_left = 70;
        c.sinks = true;
        attention_check(&prefill, &c);
    }
}
static int usual_shape(void **state) {
    (void)state;
    cuda_prefill_variant = 0;
    return 0;
}

static void test_groups(void **state) {
    (void)state;
    static const uint32_t groups[] = {1, 2, 3, 5, 7, 12, 16, 40};
    for (uint32_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        struct attention_case c = attention_case("groups", CUDA_FP16);
        c.kv_heads = i % 2 + 1;
        c.qo_heads = groups[i] * c.kv_heads;
        c.head_dim = 64;
        c.seed = i;
        case_add(&c, 150 / groups[i] + 1, 150 / groups[i] + 1);
        case_add(&c, 3, 70);
        attention_check(&prefill, &c);
    }
}

static void test_page_sizes(void **state) {
    (void)state;
    for (uint32_t size = 1; size <= 256; size *= 2)
        for (uint32_t i = 1; i < DTYPES; i += 2) {
            struct attention_case c = attention_case("page sizes", dtypes[i][0]);
            c.kv_dtype = dtypes[i][1];
            c.page_size = size;
            c.seed = size;
            case_add(&c, 9, 2 * size + 1);
            case_add(&c, 4, size);
            case_add(&c, 2, 67);
            attention_check(&prefill, &c);
        }
}

static void test_layouts(void **state) {
    (void)state;
    for (int layout = CASE_HND; layout <= CASE_STRIDED; layout++)
        for (uint32_t i = 1; i < DTYPES; i += 2) {
            struct attention_case c = attention_case("layouts", dtypes[i][0]);
            c.kv_dtype = dtypes[i][1];
            c.layout = (enum case_layout)layout;
            c.tables = layout % 2 == 0 ? CASE_FLAT : CASE_ROWS;
            c.strided = layout % 2 == 0;
            c.loose_bounds = layout >= 2;
            c.indexed = layout >= 1;
            c.seed = (uint64_t)layout;
            add_edges(&c);
            attention_check(&prefill, &c);
        }
}

static void test_masks(void **state) {
    (void)state;
    static const int32_t windows[] = {-1, 0, 1, 63, 64, 100, INT32_MAX};
    for (uint32_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (int causal = 0; causal < 2; causal++) {
            struct attention_case c = attention_case("masks", CUDA_FP16);
            c.window_left = windows[i];
            c.causal = causal != 0;
            c.head_dim = 64;
            case_add(&c, 40, 40);
            case_add(&c, 20, 300);
            case_add(&c, 30, 11);
            attention_check(&prefill, &c);
        }
}

static void test_cap_and_sinks(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct attention_case c = attention_case("cap and sinks", CUDA_FP16);
        c.soft_cap = i % 2 == 0 ? 0 : 3;
        c.sinks = i > 0;
        c.q_times = 4;
        c.window_left = i == 3 ? 20 : -1;
        c.scales = CASE_SCALES_HEADS;
        c.kv_dtype = i == 2 ? CUDA_E4M3 : CUDA_FP16;
        case_add(&c, 40, 140);
        case_add(&c, 4, 0);
        case_add(&c, 6, 2);
        attention_check(&prefill, &c);
    }
}

// The wider the cap, the more of a capped logit its tanh loses: a cap is not taken, or the logits are right.
static void test_wide_caps(void **state) {
    (void)state;
    static const float caps[] = {100, 256, 1e4f, 1e6f, 1e10f, 3e38f};
    for (uint32_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        struct attention_case c = attention_case("wide caps", CUDA_FP16);
        c.soft_cap = caps[i];
        case_add(&c, 9, 200);
        struct attention_setup *s = attention_setup(&c);
        bool taken = cuda_prefill_takes(&s->attention);
        attention_free(s);
        assert_true(taken || caps[i] > 256);
        if (taken)
            attention_check(&prefill, &c);
    }
}

// Logits far apart: O is rescaled again and again, and weights vanish.
static void test_steep(void **state) {
    (void)state;
    for (uint32_t i = 0; i < DTYPES; i++) {
        struct attention_case c = attention_case("steep", dtypes[i][0]);
        c.kv_dtype = dtypes[i][1];
        c.q_times = 40;
        c.seed = 7 + i;
        case_add(&c, 33, 500);
        attention_check(&prefill, &c);
    }
}

// Scales whose product is no number of fp32: all keys that are seen weigh the same.
static void test_flat(void **state) {
    (void)state;
    for (int cap = 0; cap < 2; cap++) {
        struct attention_case c = attention_case("flat", CUDA_FP16);
        c.kv_dtype = CUDA_E4M3;
        c.scales = CASE_SCALES_SCALAR;
        c.sm_scale = 1e-44f;
        c.soft_cap = cap != 0 ? 30 : 0;
        case_add(&c, 33, 100);
        attention_check(&prefill, &c);
    }
}

// Few tiles over long ranges of keys: several CTAs work on one tile.
static void test_splits(void **state) {
    (void)state;
    for (uint32_t i = 0; i < DTYPES; i++)
        for (int more = 0; more < 2; more++) {
            struct attention_case c = attention_case("splits", dtypes[i][0]);
            c.kv_dtype = dtypes[i][1];
            c.head_dim = i == 0 ? 64 : i == 3 ? 256 : 128;
            c.qo_heads = 6;
            c.scales = CASE_SCALES_SCALAR;
            c.sinks = more != 0;
            c.window_left = more != 0 ? 1500 : -1;
            c.strided = more != 0;
            c.seed = 11 + i;
            case_add(&c, 5, 2500);
            if (more != 0) {
                case_add(&c, 10, 130);
                case_add(&c, 2, 0);
                case_add(&c, 3, 7);
            }
            struct attention_setup *s = attention_setup(&c);
            attention_plan(s, &prefill);
            // The plan says how many partial results there are: word 1.
            if (s->workspace.bytes > 0 && ((const uint32_t *)(const void *)s->plan.host)[1] < 2)
                fail_msg("nothing is split");
            attention_free(s);
            attention_check(&prefill, &c);
        }
}

static void test_max_ctas(void **state) {
    (void)state;
    static const uint32_t most[] = {1, 3, 7, 1000000};
    for (uint32_t i = 0; i < sizeof most / sizeof *most; i++) {
        struct attention_case c = attention_case("max_ctas", CUDA_BF16);
        c.max_ctas = most[i];
        c.after_previous = i % 2 == 1;
        case_add(&c, 70, 90);
        case_add(&c, 4, 1100);
        case_add(&c, 1, 0);
        attention_check(&prefill, &c);
    }
}

// More sequences than the plan has threads: some without queries are there several times.
static void test_many(void **state) {
    (void)state;
    enum { AGAIN = 300 };
    struct attention_case c = attention_case("many", CUDA_FP16);
    struct harness_rng r = {.state = 5};
    c.head_dim = 64;
    c.qo_heads = c.kv_heads = 1;
    for (uint32_t i = 0; i < CASE_MAX_SEQUENCES; i++)
        case_add(&c, i % 100 == 7 ? 1 + rng_below(&r, 3) : 0, rng_below(&r, 20));
    struct attention_setup *s = attention_setup(&c);
    s->index = buffer_new("index", (AGAIN + CASE_MAX_SEQUENCES) * sizeof(uint32_t));
    uint32_t *index = (void *)s->index.host;
    for (uint32_t i = 0; i < AGAIN + CASE_MAX_SEQUENCES; i++)
        index[i] = i < CASE_MAX_SEQUENCES ? i : 0;
    // The first ones with queries, and the last ones, in different rounds of the plan.
    for (uint32_t i = 0; i < AGAIN; i++) {
        uint32_t x = index[i + 20];
        index[i + 20] = index[CASE_MAX_SEQUENCES + i];
        index[CASE_MAX_SEQUENCES + i] = x;
    }
    buffer_up(&s->index);
    s->attention.batch.index = s->index.device;
    s->attention.batch.n = AGAIN + CASE_MAX_SEQUENCES;
    attention_plan(s, &prefill);
    attention_run(s, &prefill);
    attention_compare(s, &prefill);
    attention_free(s);
}

// With batch_invariant a sequence has the bits that it has alone, whatever else is in the batch.
static void test_batch_invariant(void **state) {
    (void)state;
    struct attention_case alone = attention_case("batch invariant, alone", CUDA_BF16);
    alone.batch_invariant = true;
    case_add(&alone, 20, 1300);
    struct attention_case among = alone;
    among.name = "batch invariant, among others";
    case_add(&among, 40, 70);
    case_add(&among, 3, 900);

    struct attention_setup *a = attention_setup(&alone), *b = attention_setup(&among);
    struct attention_setup *both[2] = {a, b};
    // The same q, K and V in other pages.
    memcpy(b->q.host, a->q.host, a->q.bytes);
    buffer_up(&b->q);
    for (uint32_t t = 0; t < 1300; t++)
        for (uint32_t h = 0; h < 2; h++)
            for (int value = 0; value < 2; value++) {
                const unsigned char *from = NULL;
                for (int i = 0; i < 2; i++) {
                    struct attention_setup *s = both[i];
                    const uint32_t *table = (const void *)s->table.host;
                    const uint32_t *rows = (const void *)s->rows.host;
                    uint32_t id = table[rows[0] * s->attention.batch.row_entries + t / 16];
                    unsigned char *at =
                        s->k.host + kv_element(&s->attention.kv, value != 0, id, h, t % 16, 0);
                    if (i == 0)
                        from = at;
                    else
                        memcpy(at, from, 256);
                }
            }
    buffer_up(&b->k);
    for (int i = 0; i < 2; i++) {
        attention_plan(both[i], &prefill);
        attention_run(both[i], &prefill);
        buffer_down(&both[i]->out);
        buffer_down(&both[i]->lse);
    }
    assert_memory_equal(a->out.host, b->out.host, a->out.bytes);
    assert_memory_equal(a->lse.host, b->lse.host, a->lse.bytes);
    assert_int_equal(a->workspace.bytes, 0);
    attention_free(a);
    attention_free(b);
}

static void test_refused(void **state) {
    (void)state;
    struct attention_case c = attention_case("refused", CUDA_BF16);
    case_add(&c, 4, 1500);
    struct attention_setup *s = attention_setup(&c);
    struct cuda_attention a = s->attention;
    assert_true(cuda_prefill_takes(&a));
    a.kv.head_dim = 96;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.dtype = a.kv.dtype = CUDA_FP32;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.kv.dtype = CUDA_FP16;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.qo_heads = 7;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.q.data = (char *)a.q.data + 2;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.out.token_stride += 4;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.kv.page_stride = (int64_t)1 << 31;
    assert_false(cuda_prefill_takes(&a));
    a = s->attention;
    a.batch.nnz = 1u << 30;
    assert_false(cuda_prefill_takes(&a));

    attention_plan(s, &prefill);
    const struct cuda_device *d = harness_device();
    a = s->attention;
    a.plan = NULL;
    assert_int_equal(cuda_prefill_plan(d, &a, NULL), 1);
    assert_int_equal(cuda_prefill(d, &a, NULL), 1);
    a = s->attention;
    a.workspace_bytes--;
    assert_int_equal(cuda_prefill(d, &a, NULL), 1);
    a = s->attention;
    a.workspace = NULL;
    assert_int_equal(cuda_prefill(d, &a, NULL), 1);
    // Nothing to do needs neither.
    a.plan = NULL;
    a.batch.nnz = a.batch.max_q_len = 0;
    assert_int_equal(cuda_prefill_plan(d, &a, NULL), 0);
    assert_int_equal(cuda_prefill(d, &a, NULL), 0);
    a.batch.n = 0;
    assert_int_equal(cuda_prefill(d, &a, NULL), 0);
    attention_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edges),         cmocka_unit_test(test_types_and_dims),
        cmocka_unit_test(test_groups),        cmocka_unit_test(test_page_sizes),
        cmocka_unit_test(test_layouts),       cmocka_unit_test(test_masks),
        cmocka_unit_test(test_cap_and_sinks), cmocka_unit_test(test_wide_caps),
        cmocka_unit_test(test_steep),         cmocka_unit_test(test_flat),
        cmocka_unit_test(test_splits),        cmocka_unit_test(test_max_ctas),
        cmocka_unit_test(test_many),          cmocka_unit_test(test_batch_invariant),
        cmocka_unit_test(test_refused),       cmocka_unit_test_teardown(test_variants, usual_shape),
    };
    return harness_main("prefill", tests, sizeof tests / sizeof *tests);
}
