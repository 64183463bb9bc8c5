// SPDX-License-Identifier: Apache-2.0
// Equal inputs give equal bits: whatever the threads, the neighbours in the batch, the pages.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"

#include <stdlib.h>
#include <string.h>

// Decode short and long (cut into chunks), prefill, few and many rows.
static struct attention_case mixed(kvpool_dtype dtype) {
    struct attention_case c = {
        .name = "mixed",
        .dtype = dtype,
        .qo_heads = 8,
        .kv_heads = 2,
        .head_dim = 128,
        .page_size = 16,
        .n = 6,
        .q_len = {1, 1, 40, 3, 1, 130},
        .kv_len = {3000, 17, 2100, 1500, 65, 140},
        .causal = true,
        .window_left = -1,
        .batch_invariant = true,
        .seed = 77,
    };
    return harness_short() ? attention_shorter(&c, 200) : c;
}

// With pages of the same dtype, and bf16 with fp8 pages and sinks.
static void for_each_dtype(void (*check)(const struct attention_data *)) {
    const kvpool_dtype dtypes[] = {KVPOOL_BF16, KVPOOL_FP16, KVPOOL_FP32};
    for (size_t i = 0; i < 4; i++) {
        struct attention_case c = mixed(dtypes[i % 3]);
        c.kv_dtype = i < 3 ? 0 : KVPOOL_FP8_E4M3;
        c.head_scales = i >= 3;
        c.sinks = i >= 3;
        struct attention_data *d = attention_data_new(&c);
        check(d);
        attention_data_free(d);
    }
}

static unsigned char *run_with(uint32_t threads, const struct attention_data *d, uint32_t first,
                               uint32_t n, uint64_t page_seed, size_t *ret_bytes) {
    struct backend *b = harness_open(NULL, threads);
    unsigned char *result = attention_run(b, d, first, n, page_seed, ret_bytes);
    harness_ops()->close(b);
    return result;
}

static void check_threads(const struct attention_data *d) {
    size_t bytes;
    unsigned char *one = run_with(1, d, 0, d->c.n, 1, &bytes);
    const uint32_t counts[] = {2, 3, 5, 2};
    for (size_t i = 0; i < 4; i++) {
        unsigned char *many = run_with(counts[i], d, 0, d->c.n, 1, &bytes);
        assert_memory_equal(one, many, bytes);
        free(many);
    }
    free(one);
}
static void test_any_number_of_threads_gives_the_same_bits(void **state) {
    (void)state;
    for_each_dtype(check_threads);
}

static void check_pages(const struct attention_data *d) {
    size_t bytes;
    unsigned char *one = run_with(2, d, 0, d->c.n, 1, &bytes);
    unsigned char *other = run_with(2, d, 0, d->c.n, 999, &bytes);
    assert_memory_equal(one, other, bytes);
    free(one);
    free(other);
}
static void test_where_the_pages_lie_does_not_matter(void **state) {
    (void)state;
    for_each_dtype(check_pages);
}

// One sequence alone, and every two and every four neighbours of the batch.
static void check_neighbours(const struct attention_data *d) {
    const struct attention_case *c = &d->c;
    size_t bytes;
    size_t out_bytes = (size_t)c->qo_heads * c->head_dim * kv_dtype_size(c->dtype);
    size_t lse_bytes = sizeof(float) * c->qo_heads;
    unsigned char *all = run_with(2, d, 0, c->n, 1, &bytes);
    for (uint32_t n = 1; n < c->n; n *= 2) {
        size_t skip = 0;
        for (uint32_t i = 0; i + n <= c->n; skip += c->q_len[i], i++) {
            size_t tokens = 0;
            for (uint32_t j = 0; j < n; j++)
                tokens += c->q_len[i + j];
            unsigned char *some = run_with(2, d, i, n, 5 + i, &bytes);
            assert_memory_equal(some, all + skip * out_bytes, tokens * out_bytes);
            assert_memory_equal(some + tokens * out_bytes,
                                all + d->tokens_q * out_bytes + skip * lse_bytes,
                                tokens * lse_bytes);
            free(some);
        }
    }
    free(all);
}
static void test_a_sequence_does_not_depend_on_its_neighbours(void **state) {
    (void)state;
    for_each_dtype(check_neighbours);
}

// Cut where blocks of rows end, see backend_ops.row_block.
static void check_parts(const struct attention_data *d) {
    uint32_t block = harness_ops()->row_block;
    uint32_t group = d->c.qo_heads / d->c.kv_heads;
    if (block == 0)
        return;
    uint32_t queries = 1; // the fewest whose rows are whole blocks
    while (queries * group % block != 0)
        queries++;
    size_t bytes;
    unsigned char *whole = run_with(2, d, 0, d->c.n, 1, &bytes);
    struct attention_data cut = *d;
    for (uint32_t blocks = 1; blocks < 5; blocks++) {
        cut.c.cut = blocks * queries;
        unsigned char *parts = run_with(2, &cut, 0, d->c.n, 1, &bytes);
        assert_memory_equal(whole, parts, bytes);
        free(parts);
    }
    free(whole);
}
static void test_parts_of_a_sequence_have_the_bits_of_the_whole(void **state) {
    (void)state;
    for_each_dtype(check_parts);
}

static void test_repeated_runs_give_the_same_bits(void **state) {
    (void)state;
    struct attention_case c = mixed(KVPOOL_BF16);
    c.n = 4;
    struct attention_data *d = attention_data_new(&c);
    struct backend *b = harness_open(NULL, 4);
    size_t bytes;
    unsigned char *first = attention_run(b, d, 0, c.n, 3, &bytes);
    for (int i = 0; i < 10; i++) {
        unsigned char *again = attention_run(b, d, 0, c.n, 3, &bytes);
        assert_memory_equal(first, again, bytes);
        free(again);
    }
    free(first);
    harness_ops()->close(b);
    attention_data_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(test_where_the_pages_lie_does_not_matter),
        cmocka_unit_test(test_a_sequence_does_not_depend_on_its_neighbours),
        cmocka_unit_test(test_parts_of_a_sequence_have_the_bits_of_the_whole),
        cmocka_unit_test(test_repeated_runs_give_the_same_bits),
    };
    if (!harness_has_device())
        return 77;
    return cmocka_run_group_tests_name("determinism", tests, NULL, NULL);
}
