// SPDX-License-Identifier: Apache-2.0
// test_decode.c: the decode kernel and its plan against the reference.
#include "tests/gpu/harness.h"

#include <math.h>
#include <string.h>

#include "kernels/cuda/launch.h"

// All but the pieces of batch-invariant launches.
static size_t zeroed_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    struct cuda_attention plain = *a;
    plain.batch_invariant = false;
    return cuda_decode_workspace_bytes(d, &plain);
}
static const struct attention_kernel decode = {
    .name = "decode",
    .takes = cuda_decode_takes,
    .plan_bytes = cuda_decode_plan_bytes,
    .workspace_bytes = cuda_decode_workspace_bytes,
    .plan = cuda_decode_plan,
    .run = cuda_decode,
    .zeroed_bytes = zeroed_bytes,
};

static const uint32_t HEAD_DIMS[] = {64, 128, 256};

// Lengths around tiles and pages, nothing among them, more query tokens than keys.
static void add_edges(struct attention_case *c) {
    static const uint32_t lengths[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        case_add(c, 1, lengths[i]);
    case_add(c, 0, 20);
    case_add(c, 0, 0);
    case_add(c, 3, 2);
    case_add(c, 8, 45);
}

static void test_lengths(void **state) {
    (void)state;
    for (int d = 0; d < 3; d++)
        for (uint32_t dtype = CUDA_FP16; dtype <= CUDA_BF16; dtype++) {
            struct attention_case c = attention_case("lengths", dtype);
            c.head_dim = HEAD_DIMS[d];
            add_edges(&c);
            attention_check(&decode, &c);
        }
}

static void test_e4m3(void **state) {
    (void)state;
    for (int d = 0; d < 3; d++)
        for (uint32_t dtype = CUDA_FP16; dtype <= CUDA_BF16; dtype++)
            for (int scales = 0; scales < 3; scales++) {
                struct attention_case c = attention_case("e4m3", dtype);
                c.head_dim = HEAD_DIMS[d];
                c.kv_dtype = CUDA_E4M3;
                c.scales = (enum case_scales)scales;
                add_edges(&c);
                attention_check(&decode, &c);
            }
}

// Every number of query tokens and every group: padding of columns, one n-tile and more, blocks.
static void test_columns(void **state) {
    (void)state;
    static const uint32_t groups[] = {1, 2, 3, 5, 7, 8, 12, 16, 17, 24, 32};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (uint32_t q_len = 1; q_len <= 8; q_len += q_len == 1 ? 2 : 5) {
            struct attention_case c = attention_case("columns", CUDA_BF16);
            c.qo_heads = 2 * groups[g];
            c.head_dim = HEAD_DIMS[(g + q_len) % 3];
            c.max_ctas = 2;
            if (g % 2)
                c.kv_dtype = CUDA_E4M3;
            case_add(&c, q_len, 70);
            case_add(&c, 1, 33);
            case_add(&c, q_len, q_len);
            attention_check(&decode, &c);
        }
}

static void test_pages(void **state) {
    (void)state;
    for (uint32_t page = 8; page <= 256; page *= 2)
        for (int kind = 0; kind < 3; kind++) {
            struct attention_case c = attention_case("pages", CUDA_BF16);
            c.page_size = page;
            c.head_dim = kind == 2 ? 64 : 128;
            if (kind == 1)
                c.kv_dtype = CUDA_E4M3;
            case_add(&c, 1, 300);
            case_add(&c, 2, page - 1);
            case_add(&c, 1, page);
            case_add(&c, 1, page + 1);
            attention_check(&decode, &c);
        }
}

static void test_layouts(void **state) {
    (void)state;
    for (int layout = 0; layout < 4; layout++)
        for (int flat = 0; flat < 2; flat++) {
            struct attention_case c = attention_case("layouts", CUDA_FP16);
            c.layout = (enum case_layout)layout;
            c.tables = flat ? CASE_FLAT : CASE_ROWS;
            c.strided = flat;
            c.indexed = layout % 2;
            c.loose_bounds = flat != layout % 2;
            c.after_previous = flat;
            add_edges(&c);
            if (c.loose_bounds)
                c.q_len[c.n - 1] = 5; // the bound is above it
            attention_check(&decode, &c);
        }
}

static void test_masks(void **state) {
    (void)state;
    static const int32_t windows[] = {0, 1, 15, 16, 40, 2147483647};
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (int causal = 0; causal < 2; causal++) {
            struct attention_case c = attention_case("windows", CUDA_BF16);
            c.window_left = windows[w];
            c.causal = causal;
            c.head_dim = causal ? 128 : 64;
            c.sinks = w % 2;
            c.max_ctas = 3;
            add_edges(&c);
            attention_check(&decode, &c);
        }
}

static void test_cap_and_sinks(void **state) {
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        struct attention_case c = attention_case("cap and sinks", CUDA_FP16);
        c.soft_cap = kind % 3 == 0 ? 0 : kind % 3 == 1 ? 30 : 2;
        c.sinks = kind % 3 != 1;
        c.lse = kind != 5;
        c.q_times = 4;
        c.sm_scale = kind == 2 ? 0.3f : 0;
        if (kind >= 3) {
            c.kv_dtype = CUDA_E4M3;
            c.scales = CASE_SCALES_HEADS;
        }
        add_edges(&c);
        attention_check(&decode, &c);
    }
}

// The most columns there are: 256, in blocks of 16 or 32, over several CTAs and in pieces.
static void test_most_columns(void **state) {
    (void)state;
    for (int d = 0; d < 3; d++)
        for (int invariant = 0; invariant < 2; invariant++) {
            struct attention_case c = attention_case("most columns", CUDA_FP16);
            c.kv_heads = 2;
            c.qo_heads = 64;
            c.head_dim = HEAD_DIMS[d];
            c.kv_dtype = d == 1 ? CUDA_E4M3 : CUDA_FP16;
            c.batch_invariant = invariant;
            c.window_left = d == 2 ? 50 : -1;
            c.max_ctas = 3;
            case_add(&c, 8, 290);
            case_add(&c, 1, 17);
            case_add(&c, 8, 6);
            attention_check(&decode, &c);
        }
}

// Items over many CTAs, and CTAs of many items.
static void test_split(void **state) {
    (void)state;
    for (uint32_t ctas = 0; ctas <= 7; ctas = ctas * 2 + 1)
        for (int d = 0; d < 3; d++) {
            struct attention_case c = attention_case("split", CUDA_BF16);
            c.max_ctas = ctas;
            c.head_dim = HEAD_DIMS[d];
            case_add(&c, 1, 5);
            case_add(&c, 1, 700);
            case_add(&c, 2, 40);
            case_add(&c, 1, 0);
            case_add(&c, 1, 333);
            c.q_times = 3;
            attention_check(&decode, &c);
        }
    struct attention_case one = attention_case("one long", CUDA_BF16);
    one.kv_heads = 1;
    one.qo_heads = 4;
    case_add(&one, 1, 3000);
    attention_check(&decode, &one);
    one.q_len[0] = 8; // 32 columns
    one.kv_len[0] = 1000;
    attention_check(&decode, &one);
    // One, three, seven and fifteen parts that others post.
    for (one.max_ctas = 2; one.max_ctas <= 16; one.max_ctas *= 2)
        for (one.q_len[0] = 1; one.q_len[0] <= 8; one.q_len[0] *= 4)
            for (int d = 0; d < 3; d++) {
                one.head_dim = HEAD_DIMS[d];
                one.kv_len[0] = 2200;
                attention_check(&decode, &one);
            }
}

// K and V of nothing but NaNs with all bits set: what waits for posted parts is not held up, the result is NaN.
static void test_not_a_number(void **state) {
    (void)state;
    for (uint32_t dtype = CUDA_FP16; dtype <= CUDA_BF16; dtype++) {
        struct attention_case c = attention_case("NaN", dtype);
        c.kv_heads = 1;
        c.qo_heads = 4;
        case_add(&c, 1, 2000);
        struct attention_setup *s = attention_setup(&c);
        memset(s->k.host, 0xff, s->k.bytes);
        buffer_up(&s->k);
        if (s->v.bytes > 0) {
            memset(s->v.host, 0xff, s->v.bytes);
            buffer_up(&s->v);
        }
        attention_plan(s, &decode);
        attention_run(s, &decode);
        buffer_down(&s->out);
        for (size_t i = 0; i < (size_t)c.qo_heads * c.head_dim; i++)
            if (!isnan(element_load(dtype, s->out.host, i)))
                fail_msg("element %zu is %g", i, element_load(dtype, s->out.host, i));
        attention_free(s);
    }
}

// Eight lines: heads in eighths, items cut by ends of CTAs into two parts and more, blocks of columns,
// windows; and a sequence too long for them.
static void test_lines(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct attention_case c = attention_case("lines", i % 2 ? CUDA_FP16 : CUDA_BF16);
        c.head_dim = HEAD_DIMS[i % 3];
        c.kv_heads = i < 4 ? 8 : 16;
        c.qo_heads = c.kv_heads * (1 + i % 3);
        c.max_ctas = i < 2 ? 0 : i;
        c.window_left = i == 3 ? 40 : -1;
        c.sinks = i == 4;
        for (uint32_t j = 0; j < 3 + i; j++)
            case_add(&c, i == 5 ? 1 + j % 8 : 1, j % 4 == 3 ? 0 : 33 * j + 150 * (j % 2));
        case_add(&c, 1, i == 1 ? 900 : 70);
        attention_check(&decode, &c);
    }
}

// Eight lines, items that end in the run of the second, third and fourth CTA that has part of them. Twice each: what is
// posted is cleared.
static void test_long_lines(void **state) {
    (void)state;
    static const uint32_t TILES[] = {5, 30, 15, 25, 5};
    static const struct {
        uint32_t head_dim, kv_dtype, group, tile_tokens;
    } cases[] = {
        {64, CUDA_BF16, 3, 32},   {64, CUDA_BF16, 16, 32},  {64, CUDA_BF16, 27, 32},
        {128, CUDA_BF16, 5, 16},  {128, CUDA_BF16, 11, 16}, {64, CUDA_E4M3, 8, 32},
        {128, CUDA_E4M3, 16, 32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct attention_case c = attention_case("long-lines", CUDA_BF16);
        c.head_dim = cases[i].head_dim;
        c.kv_dtype = cases[i].kv_dtype;
        c.kv_heads = 8;
        c.qo_heads = 8 * cases[i].group;
        c.max_ctas = 8;
        for (uint32_t j = 0; j < 5; j++)
            case_add(&c, 1, TILES[j] * cases[i].tile_tokens - j);
        attention_check(&decode, &c);
    }
}

// Runs that cross many sequences in each 32 tiles, sequences of many items, more than the plan keeps
// in shared memory and than it has threads.
static void test_many_sequences(void **state) {
    (void)state;
    struct attention_case c = attention_case("many", CUDA_BF16);
    c.kv_heads = 1;
    c.qo_heads = 2;
    c.head_dim = 64;
    c.max_ctas = 1;
    for (uint32_t i = 0; i < 1200; i++)
        case_add(&c, i % 11 == 3 ? 0 : 1, i % 7 == 0 ? 80 : i % 40);
    attention_check(&decode, &c);
    c.n = 500;
    c.kv_heads = 3;
    c.qo_heads = 3;
    c.batch_invariant = true;
    attention_check(&decode, &c);
}

static void test_batch_invariant(void **state) {
    (void)state;
    for (int d = 0; d < 3; d++) {
        struct attention_case c = attention_case("batch-invariant", CUDA_BF16);
        c.batch_invariant = true;
        c.head_dim = HEAD_DIMS[d];
        c.max_ctas = d == 1 ? 0 : 2;
        c.sinks = d == 1;
        add_edges(&c);
        case_add(&c, 1, 400);
        case_add(&c, 2, 1100);
        attention_check(&decode, &c);
    }
}

// Each sequence alone, on another number of CTAs, has the bits that it has in the whole batch.
static void check_alone(const struct attention_case *c) {
    struct attention_setup *s = attention_setup(c);
    attention_plan(s, &decode);
    attention_run(s, &decode);
    attention_compare(s, &decode);
    unsigned char *out = test_malloc(s->out.bytes), *lse = test_malloc(s->lse.bytes);
    memcpy(out, s->out.host, s->out.bytes);
    memcpy(lse, s->lse.host, s->lse.bytes);

    struct buffer index = buffer_new("one index", sizeof(uint32_t));
    s->attention.batch.n = 1;
    s->attention.batch.index = index.device;
    uint32_t token = 0;
    for (uint32_t i = 0; i < c->n; token += c->q_len[i++]) {
        memcpy(index.host, &i, sizeof i);
        buffer_up(&index);
        s->attention.batch.max_q_len = c->q_len[i]; // fewer columns a tile than in the batch
        s->attention.max_ctas = i + 2;
        attention_clear(s);
        attention_plan(s, &decode);
        attention_run(s, &decode);
        buffer_down(&s->out);
        buffer_down(&s->lse);
        size_t row = (size_t)c->qo_heads * c->head_dim * 2, lse_row = c->qo_heads * sizeof(float);
        if (memcmp(s->out.host + token * row, out + token * row, c->q_len[i] * row) != 0 ||
            memcmp(s->lse.host + token * lse_row, lse + token * lse_row, c->q_len[i] * lse_row) !=
                0)
            fail_msg("group %u, head_dim %u, kv type %u: sequence %u has other bits than alone",
                     c->qo_heads / c->kv_heads, c->head_dim, c->kv_dtype, i);
    }
    test_free(out);
    test_free(lse);
    buffer_free(&index);
    attention_free(s);
}

// Beside neighbours of eight query tokens a sequence's columns are in other instances (1, 2 or 4 n-tiles), and
// its blocks are others, than alone. Mostly fp16: fewer of the sums' bits are rounded away.
static void test_alone_and_together(void **state) {
    (void)state;
    static const uint32_t groups[] = {4, 8, 12};
    for (uint32_t g = 0; g < 3; g++)
        for (uint32_t d = 0; d < 3; d++)
            for (uint32_t bytes = 0; bytes < 2; bytes++) {
                struct attention_case c =
                    attention_case("alone and together", (g + d) % 3 == 1 ? CUDA_BF16 : CUDA_FP16);
                c.batch_invariant = true;
                c.head_dim = HEAD_DIMS[d];
                c.kv_heads = 1;
                c.qo_heads = groups[g];
                c.kv_dtype = bytes ? CUDA_E4M3 : c.dtype;
                c.sinks = d == 1;
                c.soft_cap = d == 2 ? CUDA_WIDEST_CAP : 0;
                c.window_left = g == 2 && d == 0 ? 350 : -1;
                case_add(&c, 1, 50);
                case_add(&c, 8, 300);
                case_add(&c, 1, 790); // six pieces
                case_add(&c, 2, 900); // seven
                case_add(&c, 1, 520); // four
                check_alone(&c);
            }
}

// What the kernel does not take, and a workspace that is too small, are refused.
static void test_refusals(void **state) {
    (void)state;
    struct attention_case c = attention_case("refusals", CUDA_BF16);
    case_add(&c, 1, 40);
    struct attention_setup *s = attention_setup(&c);
    attention_plan(s, &decode);
    struct cuda_attention a = s->attention;
    assert_true(cuda_decode_takes(&a));
#define REFUSED(change)                                                        \
    do {                                                                       \
        a = s->attention;                                                      \
        change;                                                                \
        assert_false(cuda_decode_takes(&a));                                   \
        assert_int_not_equal(cuda_decode_plan(harness_device(), &a, NULL), 0); \
        assert_int_not_equal(cuda_decode(harness_device(), &a, NULL), 0);      \
    } while (0)
    REFUSED(a.kv.head_dim = 96);
    REFUSED(a.kv.page_shift = 2);
    REFUSED(a.dtype = CUDA_FP32);
    REFUSED(a.kv.dtype = CUDA_FP16);
    REFUSED(a.qo_heads = 33 * a.kv.kv_heads);
    REFUSED(a.qo_heads = 5);
    REFUSED(a.batch.max_q_len = 9);
    REFUSED(a.soft_cap = CUDA_WIDEST_CAP + 1);
    // Batch-invariant, too many items for the counters, whatever max_q_len is.
    REFUSED((a.batch_invariant = true, a.kv.head_dim = 256, a.kv.kv_heads = 8000,
             a.qo_heads = 32 * a.kv.kv_heads));
#undef REFUSED
    // Nor are more sequences a launch than there is memory for, though they are taken.
    a = s->attention;
    assert_int_equal(cuda_decode_max_sequences(&a), UINT32_MAX);
    a.batch_invariant = true;
    a.workspace_bytes = SIZE_MAX;
    for (a.kv.kv_heads = 1; a.kv.kv_heads <= 2048; a.kv.kv_heads *= 4)
        for (a.batch.max_q_len = 1; a.batch.max_q_len <= 8; a.batch.max_q_len *= 2) {
            a.qo_heads = 2 * a.kv.kv_heads;
            a.batch.n = cuda_decode_max_sequences(&a);
            assert_true(a.batch.n >= 1 && a.batch.n < 100000);
            size_t bytes = cuda_decode_workspace_bytes(harness_device(), &a) -
                           zeroed_bytes(harness_device(), &a);
            assert_true(a.batch.n == 1 || bytes <= (size_t)64 << 20);
            a.batch.n++;
            assert_true(cuda_decode_workspace_bytes(harness_device(), &a) -
                            zeroed_bytes(harness_device(), &a) >
                        (size_t)64 << 20);
            assert_true(cuda_decode_takes(&a));
            assert_int_not_equal(cuda_decode_plan(harness_device(), &a, NULL), 0);
            assert_int_not_equal(cuda_decode(harness_device(), &a, NULL), 0);
        }
    a.batch.max_q_len = 0; // no limit is needed
    assert_int_equal(cuda_decode_max_sequences(&a), UINT32_MAX);
    a = s->attention;
    a.workspace_bytes--;
    assert_int_not_equal(cuda_decode(harness_device(), &a, NULL), 0);
    struct cuda_device small = *harness_device();
    small.smem_optin = 1024;
    a = s->attention;
    assert_int_not_equal(cuda_decode(&small, &a, NULL), 0);
    a.batch.n = 0; // nothing to do
    assert_int_equal(cuda_decode_plan(harness_device(), &a, NULL), 0);
    assert_int_equal(cuda_decode(harness_device(), &a, NULL), 0);
    attention_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_e4m3),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_cap_and_sinks),
        cmocka_unit_test(test_most_columns),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_many_sequences),
        cmocka_unit_test(test_batch_invariant),
        cmocka_unit_test(test_alone_and_together),
        cmocka_unit_test(test_refusals),
    };
    return harness_main("decode", tests, sizeof tests / sizeof *tests);
}
