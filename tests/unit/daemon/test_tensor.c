// SPDX-License-Identifier: Apache-2.0
// test_tensor.c: which tensors of a request are safe to touch. The last test compares both
// functions with marking every byte, over thousands of random small tensors.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/tensor.h"

#include <stdio.h>
#include <string.h>

// 4 tokens, 2 heads of 8 elements of 2 bytes, dense: 128 bytes.
static const struct tensor dense = {.region = 1,
                                    .region_bytes = 128,
                                    .token_stride = 16,
                                    .head_stride = 8,
                                    .tokens = 4,
                                    .heads = 2,
                                    .head_dim = 8,
                                    .elem = 2};

static void refused(const struct tensor *t, bool output, const char *why) {
    struct err err = {0};
    assert_int_equal(tensor_check(t, "out", output, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, why));
    assert_non_null(strstr(err.text, "out"));
}

static void a_dense_tensor_that_fills_its_region_is_accepted(void **state) {
    (void)state;
    assert_int_equal(tensor_check(&dense, "q", true, NULL), 0);
}

static void one_byte_less_is_refused(void **state) {
    (void)state;
    struct tensor t = dense;
    t.region_bytes = 127;
    refused(&t, false, "leaves its region");
}

static void an_offset_past_the_end_is_refused(void **state) {
    (void)state;
    const uint64_t offsets[] = {2, 128, 130, 1ull << 40, UINT64_MAX - 1};
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        struct tensor t = dense;
        t.offset = offsets[i];
        refused(&t, false, "leaves its region");
    }
}

static void products_that_overflow_are_refused(void **state) {
    (void)state;
    struct tensor t = dense;
    t.token_stride = 1ull << 63; // 3 * 2^63 wraps
    refused(&t, true, "leaves its region");
    t = dense;
    t.head_stride = UINT64_MAX;
    refused(&t, true, "leaves its region");
    t = dense;
    t.head_stride = UINT64_MAX - 8; // the sum wraps
    t.token_stride = 8;
    refused(&t, true, "leaves its region");
    t = dense;
    t.token_stride = 0x5555555555555556ull; // 3 * it is 2 mod 2^64
    refused(&t, true, "leaves its region");
    t = dense;
    t.token_stride = 1ull << 61; // the elements fit, the bytes do not
    t.tokens = 2;
    t.elem = 4;
    t.head_stride = 1ull << 62;
    refused(&t, true, "leaves its region");
}

static void a_misaligned_offset_is_refused(void **state) {
    (void)state;
    struct tensor t = dense;
    t.region_bytes = 1024;
    t.offset = 1;
    refused(&t, false, "element size");
    t.elem = 4;
    t.offset = 6;
    refused(&t, false, "element size");
}

static void a_zero_stride_is_refused(void **state) {
    (void)state;
    struct tensor t = dense;
    t.token_stride = 0;
    refused(&t, false, "stride");
    t = dense;
    t.head_stride = 0;
    refused(&t, false, "stride");
}

static void no_tokens_access_nothing(void **state) {
    (void)state;
    struct tensor t = dense;
    t.tokens = 0;
    t.region_bytes = 0;
    assert_int_equal(tensor_check(&t, "q", true, NULL), 0);
    assert_false(tensor_overlap(&t, &dense));
    assert_false(tensor_overlap(&dense, &t));
}

static void only_outputs_must_have_distinct_elements(void **state) {
    (void)state;
    struct tensor t = dense;
    t.token_stride = 8; // token 1 begins inside token 0
    assert_int_equal(tensor_check(&t, "k", false, NULL), 0);
    refused(&t, true, "overlap");
    t = dense;
    t.head_stride = 4;
    refused(&t, true, "overlap");
}

static void a_transposed_output_is_accepted(void **state) {
    (void)state;
    struct tensor t = dense; // [heads][tokens][head_dim]
    t.token_stride = 8;
    t.head_stride = 32;
    assert_int_equal(tensor_check(&t, "out", true, NULL), 0);
    t.head_stride = 31;
    refused(&t, true, "overlap");
}

static void the_stride_of_a_single_token_or_head_does_not_matter(void **state) {
    (void)state;
    struct tensor t = dense;
    t.tokens = 1;
    t.token_stride = 1;
    assert_int_equal(tensor_check(&t, "out", true, NULL), 0);
    t.token_stride = UINT64_MAX;
    assert_int_equal(tensor_check(&t, "out", true, NULL), 0);
    t = dense;
    t.heads = 1;
    t.head_stride = UINT64_MAX;
    assert_int_equal(tensor_check(&t, "out", true, NULL), 0);
}

static void tensors_of_two_regions_do_not_overlap(void **state) {
    (void)state;
    struct tensor other = dense;
    assert_true(tensor_overlap(&dense, &other));
    other.region = 2;
    assert_false(tensor_overlap(&dense, &other));
}

static void columns_of_a_fused_layout_do_not_overlap(void **state) {
    (void)state;
    // Rows of [q: 16][k: 16][out: 16] elements.
    struct tensor q = dense, out = dense;
    q.region_bytes = out.region_bytes = (uint64_t)48 * 2 * 4;
    q.token_stride = out.token_stride = 48;
    out.offset = (uint64_t)32 * 2;
    assert_false(tensor_overlap(&q, &out));
    assert_false(tensor_overlap(&out, &q));
    out.offset = (uint64_t)15 * 2; // one element of q's columns
    assert_true(tensor_overlap(&q, &out));
    out.offset = (uint64_t)(48 + 32) * 2; // its own columns, a row later
    assert_false(tensor_overlap(&q, &out));
    out.offset = (uint64_t)(32 + 1) * 2; // the last element wraps into the next row's q
    assert_true(tensor_overlap(&q, &out));
    out.offset = (uint64_t)32 * 2;
    out.token_stride = 47; // other rows: no claim is made
    assert_true(tensor_overlap(&q, &out));
}

static uint32_t rng = 1;
static uint32_t pick(uint32_t n) {
    rng ^= rng << 13;
    rng ^= rng >> 17;
    rng ^= rng << 5;
    return rng % n;
}

#define BYTES 256

// Adds 1 to every byte of the tensor; false when one is outside.
static bool mark(const struct tensor *t, uint8_t *bytes) {
    for (uint64_t i = 0; i < t->tokens; i++)
        for (uint64_t h = 0; h < t->heads; h++)
            for (uint64_t at = t->offset + (i * t->token_stride + h * t->head_stride) * t->elem,
                          n = (uint64_t)t->head_dim * t->elem;
                 n > 0; n--, at++) {
                if (at >= t->region_bytes)
                    return false;
                bytes[at]++;
            }
    return true;
}

static struct tensor random_tensor(void) {
    struct tensor t = {.region = 1, .region_bytes = BYTES};
    t.elem = pick(2) ? 2 : 4;
    t.tokens = 1 + pick(4);
    t.heads = 1 + pick(3);
    t.head_dim = 1 + pick(4);
    t.head_stride = 1 + pick(8);
    t.token_stride = 1 + pick(24);
    t.offset = (uint64_t)pick(32) * t.elem;
    return t;
}

static void the_checks_agree_with_marking_every_byte(void **state) {
    (void)state;
    uint32_t checked = 0, disjoint = 0, conservative = 0;
    for (int round = 0; round < 200000; round++) {
        struct tensor a = random_tensor(), b = random_tensor();
        if (pick(2)) { // often of the same rows, as in a fused layout
            b.elem = a.elem;
            b.token_stride = a.token_stride;
            b.offset -= b.offset % b.elem;
        }
        uint8_t in_a[BYTES] = {0}, in_b[BYTES] = {0};
        bool inside_a = mark(&a, in_a), inside_b = mark(&b, in_b);
        assert_int_equal(tensor_check(&a, "a", false, NULL) == 0, inside_a);
        assert_int_equal(tensor_check(&b, "b", false, NULL) == 0, inside_b);
        if (!inside_a || !inside_b)
            continue;
        bool distinct = true, shared = false;
        for (int i = 0; i < BYTES; i++) {
            distinct = distinct && in_a[i] <= 1;
            shared = shared || (in_a[i] && in_b[i]);
        }
        if (tensor_check(&a, "a", true, NULL) == 0)
            assert_true(distinct);
        checked++;
        if (shared)
            assert_true(tensor_overlap(&a, &b));
        disjoint += !shared;
        conservative += !shared && tensor_overlap(&a, &b);
        assert_int_equal(tensor_overlap(&a, &b), tensor_overlap(&b, &a));
    }
    assert_true(checked > 20000);
    assert_true(disjoint > 2000);
    assert_true(conservative < disjoint);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_dense_tensor_that_fills_its_region_is_accepted),
        cmocka_unit_test(one_byte_less_is_refused),
        cmocka_unit_test(an_offset_past_the_end_is_refused),
        cmocka_unit_test(products_that_overflow_are_refused),
        cmocka_unit_test(a_misaligned_offset_is_refused),
        cmocka_unit_test(a_zero_stride_is_refused),
        cmocka_unit_test(no_tokens_access_nothing),
        cmocka_unit_test(only_outputs_must_have_distinct_elements),
        cmocka_unit_test(a_transposed_output_is_accepted),
        cmocka_unit_test(the_stride_of_a_single_token_or_head_does_not_matter),
        cmocka_unit_test(tensors_of_two_regions_do_not_overlap),
        cmocka_unit_test(columns_of_a_fused_layout_do_not_overlap),
        cmocka_unit_test(the_checks_agree_with_marking_every_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
