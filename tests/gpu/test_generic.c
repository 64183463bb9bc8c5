// SPDX-License-Identifier: Apache-2.0
// test_generic.c: cuda_generic, the kernel of everything that the fast ones do not take.
#include "tests/gpu/harness.h"

#include <stdlib.h>
#include <string.h>

static const struct attention_kernel generic = {.name = "generic", .run = cuda_generic};

static const uint32_t dtypes[] = {CUDA_FP16, CUDA_BF16, CUDA_FP32};
enum { DTYPES = 3 };

static void add_mixed(struct attention_case *c) {
    case_add(c, 1, 37);
    case_add(c, 3, 3);
    case_add(c, 0, 20);
    case_add(c, 2, 16);
    case_add(c, 1, 0);
    case_add(c, 5, 70);
}

static void test_head_dims(void **state) {
    (void)state;
    static const uint32_t dims[] = {8, 16, 56, 64, 72, 80, 96, 128, 136, 192, 256, 264, 512, 576};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int t = 0; t < DTYPES; t++)
            for (int quantized = 0; quantized < 2; quantized++) {
                struct attention_case c = attention_case("head_dim", dtypes[t]);
                c.qo_heads = 4;
                c.head_dim = dims[i];
                if (quantized) {
                    if (dims[i] % 16 != 0) // rows of 16 bytes
                        continue;
                    c.kv_dtype = CUDA_E4M3;
                    c.scales = CASE_SCALES_HEADS;
                }
                add_mixed(&c);
                attention_check(&generic, &c);
            }
}

static void test_groups_and_pages(void **state) {
    (void)state;
    static const uint32_t heads[][2] = {{1, 1}, {3, 3}, {5, 1}, {7, 1}, {12, 2}, {33, 1}};
    static const uint32_t pages[] = {1, 2, 8, 64, 256};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        for (size_t p = 0; p < sizeof pages / sizeof *pages; p++) {
            struct attention_case c = attention_case("groups", CUDA_FP32);
            c.qo_heads = heads[i][0];
            c.kv_heads = heads[i][1];
            c.head_dim = 64;
            c.page_size = pages[p];
            add_mixed(&c);
            attention_check(&generic, &c);
        }
}

static void test_lengths(void **state) {
    (void)state;
    // A turn is 32 keys with heads of 128, 64 with smaller ones; pages are 16.
    static const uint32_t lengths[] = {0,  1,  2,  3,  4,  5,  15,  16,  17,
                                       31, 32, 33, 63, 64, 65, 127, 129, 300};
    for (uint32_t head_dim = 64; head_dim <= 128; head_dim += 64)
        for (int causal = 0; causal < 2; causal++) {
            struct attention_case c = attention_case("lengths", CUDA_FP32);
            c.qo_heads = 2;
            c.kv_heads = 1;
            c.head_dim = head_dim;
            c.causal = causal;
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                case_add(&c, 1, lengths[i]);
                case_add(&c, 4, lengths[i]); // more queries than tokens too
            }
            attention_check(&generic, &c);
        }
}

static void test_masks_and_options(void **state) {
    (void)state;
    static const int32_t windows[] = {-1, 0, 1, 16, 40};
    for (size_t w = 0; w < sizeof windows / sizeof *windows; w++)
        for (int bits = 0; bits < 16; bits++) {
            struct attention_case c = attention_case("options", dtypes[bits % DTYPES]);
            c.window_left = windows[w];
            c.causal = bits & 1;
            c.soft_cap = bits & 2 ? 7.5f : 0;
            c.sinks = bits & 4;
            c.lse = bits & 8;
            c.qo_heads = 4;
            c.head_dim = 80;
            c.sm_scale = bits & 1 ? 0 : 0.25f;
            add_mixed(&c);
            case_add(&c, 9, 4);
            attention_check(&generic, &c);
        }
}

static void test_layouts_and_batches(void **state) {
    (void)state;
    for (int layout = CASE_HND; layout <= CASE_STRIDED; layout++)
        for (int bits = 0; bits < 32; bits++) {
            struct attention_case c = attention_case("layouts", dtypes[bits % DTYPES]);
            c.layout = (enum case_layout)layout;
            c.tables = bits & 1 ? CASE_FLAT : CASE_ROWS;
            c.indexed = bits & 2;
            c.strided = bits & 4;
            c.loose_bounds = bits & 8;
            c.max_ctas = bits & 16 ? 3 : 0;
            c.after_previous = bits & 1;
            c.qo_heads = 2;
            c.kv_heads = 2;
            c.head_dim = 64;
            add_mixed(&c);
            attention_check(&generic, &c);
        }
}

static void test_many_sequences(void **state) {
    (void)state;
    for (int indexed = 0; indexed < 2; indexed++) {
        struct attention_case c = attention_case("many sequences", CUDA_FP32);
        c.indexed = indexed;
        c.qo_heads = 1;
        c.kv_heads = 1;
        c.head_dim = 32;
        for (uint32_t i = 0; i < 150; i++)
            case_add(&c, i % 4, i % 23);
        attention_check(&generic, &c);
    }
}

// The arrays of a batch from their second sequence on: its tokens do not begin at 0.
static void test_later_sequences(void **state) {
    (void)state;
    struct attention_case c = attention_case("later sequences", CUDA_FP32);
    c.qo_heads = 2;
    add_mixed(&c);
    struct attention_setup *s = attention_setup(&c);
    struct cuda_batch *b = &s->attention.batch;
    b->rows++;
    b->kv_len++;
    b->qo_indptr++;
    b->n--;
    b->nnz -= c.q_len[0];
    for (uint32_t i = 0; i < b->n; i++)
        s->launched[i] = i + 1;
    s->launched_n = b->n;
    attention_run(s, &generic);
    attention_compare(s, &generic);
    attention_free(s);
}

static void test_e4m3_scales(void **state) {
    (void)state;
    for (int scales = CASE_SCALES_NONE; scales <= CASE_SCALES_HEADS; scales++)
        for (int t = 0; t < DTYPES; t++) {
            struct attention_case c = attention_case("scales", dtypes[t]);
            c.kv_dtype = CUDA_E4M3;
            c.scales = (enum case_scales)scales;
            c.qo_heads = 4;
            c.soft_cap = 30;
            c.sinks = true;
            add_mixed(&c);
            attention_check(&generic, &c);
        }
}

// Caps that other kernels leave to this one.
static void test_wide_caps(void **state) {
    (void)state;
    static const float caps[] = {257, 1e4f, 1e6f, 1e10f, 3e38f};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        for (int t = 0; t < DTYPES; t++) {
            struct attention_case c = attention_case("wide caps", dtypes[t]);
            c.soft_cap = caps[i];
            c.q_times = i == 0 ? 0 : 8;
            add_mixed(&c);
            attention_check(&generic, &c);
        }
}

static void test_sharp_softmax(void **state) {
    (void)state;
    struct attention_case c = attention_case("sharp", CUDA_FP32);
    c.q_times = 40;
    c.qo_heads = 2;
    add_mixed(&c);
    case_add(&c, 1, 400);
    attention_check(&generic, &c);
}

// A sequence's rows have the same bits alone and in company.
static void test_bits_do_not_depend_on_the_batch(void **state) {
    (void)state;
    struct attention_case c = attention_case("company", CUDA_FP32);
    c.qo_heads = 2;
    c.kv_heads = 1;
    case_add(&c, 2, 300);
    struct attention_setup *alone = attention_setup(&c);
    attention_run(alone, &generic);
    attention_compare(alone, &generic);
    size_t bytes = alone->out.bytes;
    unsigned char *bits = malloc(bytes);
    assert_non_null(bits);
    memcpy(bits, alone->out.host, bytes);
    // The same cache, with a batch of three copies of the sequence in other orders of blocks.
    uint32_t rows[3], kv_len[3] = {300, 300, 300}, qo_indptr[4] = {0, 2, 2, 2};
    buffer_down(&alone->rows);
    for (int i = 0; i < 3; i++)
        memcpy(&rows[i], alone->rows.host, 4);
    struct buffer b_rows = buffer_new("rows", sizeof rows);
    struct buffer b_kv = buffer_new("kv_len", sizeof kv_len);
    struct buffer b_indptr = buffer_new("qo_indptr", sizeof qo_indptr);
    memcpy(b_rows.host, rows, sizeof rows);
    memcpy(b_kv.host, kv_len, sizeof kv_len);
    memcpy(b_indptr.host, qo_indptr, sizeof qo_indptr);
    buffer_up(&b_rows);
    buffer_up(&b_kv);
    buffer_up(&b_indptr);
    attention_clear(alone);
    alone->attention.batch.n = 3;
    alone->attention.batch.rows = b_rows.device;
    alone->attention.batch.kv_len = b_kv.device;
    alone->attention.batch.qo_indptr = b_indptr.device;
    alone->attention.max_ctas = 1;
    attention_run(alone, &generic);
    buffer_down(&alone->out);
    assert_memory_equal(alone->out.host, bits, bytes);
    free(bits);
    buffer_free(&b_indptr);
    buffer_free(&b_kv);
    buffer_free(&b_rows);
    attention_free(alone);
}

static void test_refuses_what_it_has_not(void **state) {
    (void)state;
    struct cuda_attention a = {.batch = {.n = 1, .nnz = 1}, .qo_heads = 1};
    a.kv.kv_heads = 1;
    a.kv.dtype = CUDA_FP32;
    a.kv.head_dim = 648;
    assert_int_not_equal(cuda_generic(harness_device(), &a, NULL), 0);
    a.kv.head_dim = 6; // no vectors of four
    assert_int_not_equal(cuda_generic(harness_device(), &a, NULL), 0);
    a.kv.head_dim = 640;
    a.batch.nnz = 0; // nothing to do
    assert_int_equal(cuda_generic(harness_device(), &a, NULL), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_dims),
        cmocka_unit_test(test_groups_and_pages),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_masks_and_options),
        cmocka_unit_test(test_layouts_and_batches),
        cmocka_unit_test(test_many_sequences),
        cmocka_unit_test(test_later_sequences),
        cmocka_unit_test(test_e4m3_scales),
        cmocka_unit_test(test_wide_caps),
        cmocka_unit_test(test_sharp_softmax),
        cmocka_unit_test(test_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(test_refuses_what_it_has_not),
    };
    return harness_main("generic", tests, sizeof tests / sizeof *tests);
}
