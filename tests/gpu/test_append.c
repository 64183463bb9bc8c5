// SPDX-License-Identifier: Apache-2.0
// test_append.c: cuda_append against its definition, bit for bit: the whole cache is compared, so that
// a byte written elsewhere shows.
#include "tests/gpu/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQUENCES = 1024 };

enum values { NORMAL, ALL_BITS }; // ALL_BITS: every pattern of 16 bits, in order

struct append_case {
    const char *name;
    uint32_t dtype, kv_dtype, kv_heads, head_dim, page_size;
    bool nhd;           // pages are [2][page_size][kv_heads][head_dim]
    uint32_t token_gap; // elements between a tensor's tokens
    uint32_t head_gap;  // between its heads
    uint32_t offset;    // elements before its first
    enum case_scales scales;
    enum values values;
    bool after_previous;
    uint32_t n;
    uint32_t q_len[MAX_SEQUENCES], kv_len[MAX_SEQUENCES];
};

static struct append_case append_case(const char *name, uint32_t dtype) {
    return (struct append_case){.name = name,
                                .dtype = dtype,
                                .kv_dtype = dtype,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .page_size = 16};
}
static void add(struct append_case *c, uint32_t q_len, uint32_t kv_len) {
    assert_true(c->n < MAX_SEQUENCES);
    c->q_len[c->n] = q_len;
    c->kv_len[c->n++] = kv_len;
}

static uint32_t shift_of(uint32_t page_size) {
    uint32_t shift = 0;
    while (1u << shift < page_size)
        shift++;
    return shift;
}

static void fill(struct buffer *b, const struct append_case *c, struct harness_rng *r) {
    size_t n = b->bytes / element_size(c->dtype);
    for (size_t i = 0; i < n; i++)
        if (c->values == ALL_BITS) {
            uint16_t bits = (uint16_t)i;
            memcpy(b->host + 2 * i, &bits, 2);
        } else {
            // Some beyond what e4m3 holds, some not numbers.
            double x = rng_normal(r) * (rng_below(r, 16) == 0 ? 300 : 1);
            uint32_t odd = rng_below(r, 64);
            element_store(c->dtype, b->host, i, odd == 0 ? NAN : odd == 1 ? -INFINITY : x);
        }
    buffer_up(b);
}

// Element i of a tensor as it must be in the cache, at `to`.
static void expect_element(const struct append_case *c, const struct buffer *tensor, size_t i,
                           float scale, unsigned char *to) {
    size_t size = element_size(c->dtype);
    if (c->kv_dtype == c->dtype)
        memcpy(to, tensor->host + i * size, size);
    else
        *to = e4m3_store((float)element_load(c->dtype, tensor->host, i) / scale);
}

static bool same(const struct append_case *c, const unsigned char *a, const unsigned char *b,
                 size_t bytes) {
    if (c->kv_dtype == c->dtype)
        return memcmp(a, b, bytes) == 0;
    for (size_t i = 0; i < bytes; i++) // a NaN of either sign is a NaN
        if (a[i] != b[i] && !((a[i] & 0x7f) == 0x7f && (b[i] & 0x7f) == 0x7f))
            return false;
    return true;
}

static void check(const struct append_case *c) {
    struct harness_rng rng = {c->n * 7919u + c->head_dim};
    size_t size = element_size(c->dtype), kv_size = element_size(c->kv_dtype);
    uint32_t shift = shift_of(c->page_size);
    uint32_t nnz = 0, row_entries = 1, pages = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t used = (c->kv_len[i] + c->page_size - 1) >> shift;
        nnz += c->q_len[i];
        pages += used;
        row_entries = used + 2 > row_entries ? used + 2 : row_entries;
    }
    pages = 2 * pages + 3;
    uint32_t rows_n = c->n + 3;

    size_t head_stride = c->head_dim + c->head_gap;
    size_t token_stride = head_stride * c->kv_heads + c->token_gap;
    size_t tensor_bytes = (c->offset + nnz * token_stride) * size;
    struct buffer k = buffer_new("k", tensor_bytes), v = buffer_new("v", tensor_bytes);
    fill(&k, c, &rng);
    fill(&v, c, &rng);

    size_t slab = (size_t)c->page_size * c->head_dim; // of one head in HND
    size_t page_elements = 2 * slab * c->kv_heads;
    struct buffer cache = buffer_new("cache", pages * page_elements * kv_size);
    for (size_t i = 0; i < cache.bytes; i++)
        cache.host[i] = (unsigned char)rng_next(&rng);
    buffer_up(&cache);

    struct buffer table = buffer_new("table", (size_t)rows_n * row_entries * 4);
    struct buffer rows = buffer_new("rows", (size_t)c->n * 4),
                  kv_len = buffer_new("kv_len", (size_t)c->n * 4);
    // Behind its end are small numbers, which would be taken for sequences.
    struct buffer indptr = buffer_new("qo_indptr", ((size_t)c->n + 1 + 64) * 4);
    memset(indptr.host, 0, indptr.bytes);
    uint32_t *ids = malloc(pages * sizeof *ids), *order = malloc(rows_n * sizeof *order);
    if (ids == NULL || order == NULL)
        abort();
    for (uint32_t i = 0; i < pages; i++)
        ids[i] = i;
    rng_shuffle(&rng, ids, pages);
    for (uint32_t i = 0; i < rows_n; i++)
        order[i] = i;
    rng_shuffle(&rng, order, rows_n);
    for (size_t i = 0; i < table.bytes / 4; i++)
        ((uint32_t *)table.host)[i] = 2147480000u;
    uint32_t next = 0, token = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t *row = (uint32_t *)table.host + (size_t)order[i] * row_entries;
        for (uint32_t p = 0; p << shift < c->kv_len[i]; p++)
            row[p] = ids[next++];
        ((uint32_t *)rows.host)[i] = order[i];
        ((uint32_t *)kv_len.host)[i] = c->kv_len[i];
        ((uint32_t *)indptr.host)[i] = token;
        token += c->q_len[i];
    }
    ((uint32_t *)indptr.host)[c->n] = token;
    buffer_up(&table);
    buffer_up(&rows);
    buffer_up(&kv_len);
    buffer_up(&indptr);

    struct buffer scales = buffer_new("scales", (size_t)2 * c->kv_heads * 4);
    for (uint32_t h = 0; h < 2 * c->kv_heads; h++)
        ((float *)scales.host)[h] = 0.3f + 0.17f * (float)h;
    buffer_up(&scales);

    struct cuda_append a = {
        .kv = {.k = cache.device,
               .page_stride = (int64_t)page_elements,
               .value_stride = (int64_t)(slab * c->kv_heads),
               .head_stride = c->nhd ? c->head_dim : (int64_t)slab,
               .token_stride = (int64_t)c->head_dim * (c->nhd ? c->kv_heads : 1),
               .kv_heads = c->kv_heads,
               .head_dim = c->head_dim,
               .page_shift = shift,
               .dtype = c->kv_dtype,
               .k_scale = c->scales == CASE_SCALES_SCALAR ? 0.7f : 1.0f,
               .v_scale = c->scales == CASE_SCALES_SCALAR ? 1.9f : 1.0f},
        .batch = {.n = c->n,
                  .nnz = nnz,
                  .max_q_len = nnz,
                  .row_entries = row_entries,
                  .table = table.device,
                  .rows = rows.device,
                  .kv_len = kv_len.device,
                  .qo_indptr = indptr.device},
        .k = {(char *)k.device + c->offset * size, (int64_t)token_stride, (int64_t)head_stride},
        .v = {(char *)v.device + c->offset * size, (int64_t)token_stride, (int64_t)head_stride},
        .dtype = c->dtype,
        .after_previous = c->after_previous};
    if (c->scales == CASE_SCALES_HEADS) {
        a.kv.k_scales = scales.device;
        a.kv.v_scales = (const float *)scales.device + c->kv_heads;
    }

    unsigned char *expected = malloc(cache.bytes + 1);
    assert_non_null(expected);
    memcpy(expected, cache.host, cache.bytes);
    token = 0;
    for (uint32_t i = 0; i < c->n; i++)
        for (uint32_t j = 0; j < c->q_len[i]; j++, token++) {
            int64_t position = (int64_t)c->kv_len[i] - c->q_len[i] + j;
            if (position < 0)
                continue;
            const uint32_t *row = (const uint32_t *)table.host + (size_t)order[i] * row_entries;
            uint32_t page = row[position >> shift], slot = (uint32_t)position % c->page_size;
            for (uint32_t h = 0; h < c->kv_heads; h++) {
                float k_scale = a.kv.k_scale, v_scale = a.kv.v_scale;
                if (c->scales == CASE_SCALES_HEADS) {
                    k_scale = ((float *)scales.host)[h];
                    v_scale = ((float *)scales.host)[c->kv_heads + h];
                }
                for (uint32_t d = 0; d < c->head_dim; d++) {
                    size_t from = c->offset + token * token_stride + h * head_stride + d;
                    size_t k_at = kv_element(&a.kv, false, page, h, slot, d);
                    size_t v_at = kv_element(&a.kv, true, page, h, slot, d);
                    expect_element(c, &k, from, k_scale, expected + k_at);
                    expect_element(c, &v, from, v_scale, expected + v_at);
                }
            }
        }

    assert_int_equal(cuda_append(harness_device(), &a, NULL), 0);
    device_sync();
    buffer_down(&cache);
    for (size_t i = 0; i < cache.bytes; i++)
        if (!same(c, cache.host + i, expected + i, 1))
            fail_msg("%s: byte %zu of the cache (page %zu): got 0x%02x, expected 0x%02x", c->name,
                     i, i / (page_elements * kv_size), cache.host[i], expected[i]);
    buffer_unchanged(&k);
    buffer_unchanged(&v);
    buffer_unchanged(&table);
    buffer_unchanged(&rows);
    buffer_unchanged(&kv_len);
    buffer_unchanged(&indptr);
    buffer_unchanged(&scales);

    free(expected);
    free(order);
    free(ids);
    buffer_free(&scales);
    buffer_free(&indptr);
    buffer_free(&kv_len);
    buffer_free(&rows);
    buffer_free(&table);
    buffer_free(&cache);
    buffer_free(&v);
    buffer_free(&k);
}

static void test_bits_are_kept(void **state) {
    (void)state;
    static const uint32_t dtypes[] = {CUDA_FP16, CUDA_BF16, CUDA_FP32};
    static const struct {
        uint32_t heads, dim, page;
    } shapes[] = {{8, 128, 16}, {1, 128, 8},   {2, 80, 32}, {3, 8, 4},
                  {2, 64, 1},   {5, 256, 256}, {1, 576, 64}};
    for (size_t t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (int nhd = 0; nhd < 2; nhd++) {
                struct append_case c = append_case("bits", dtypes[t]);
                c.kv_heads = shapes[s].heads;
                c.head_dim = shapes[s].dim;
                c.page_size = shapes[s].page;
                c.nhd = nhd;
                c.after_previous = nhd;
                add(&c, 1, 17);
                add(&c, 3, 3);
                add(&c, 5, 33);
                check(&c);
            }
}

static void test_any_strides(void **state) {
    (void)state;
    static const uint32_t gaps[][3] = {{8, 0, 0}, {0, 8, 8}, {1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    for (size_t g = 0; g < 5; g++)
        for (uint32_t dtype = CUDA_FP16; dtype <= CUDA_FP32; dtype++)
            for (int quantized = 0; quantized < 2; quantized++) {
                struct append_case c = append_case("strides", dtype);
                c.token_gap = gaps[g][0];
                c.head_gap = gaps[g][1];
                c.offset = gaps[g][2];
                c.head_dim = 72;
                if (quantized)
                    c.kv_dtype = CUDA_E4M3;
                add(&c, 2, 20);
                add(&c, 4, 4);
                check(&c);
            }
}

static void test_e4m3_of_every_number(void **state) {
    (void)state;
    for (uint32_t dtype = CUDA_FP16; dtype <= CUDA_BF16; dtype++)
        for (int scales = CASE_SCALES_NONE; scales <= CASE_SCALES_HEADS; scales++) {
            struct append_case c = append_case("every number", dtype);
            c.kv_dtype = CUDA_E4M3;
            c.kv_heads = 4;
            c.head_dim = 256;
            c.values = ALL_BITS;
            c.scales = (enum case_scales)scales;
            add(&c, 64, 64);
            check(&c);
        }
}

static void test_e4m3_of_fp32(void **state) {
    (void)state;
    for (int scales = CASE_SCALES_NONE; scales <= CASE_SCALES_HEADS; scales++) {
        struct append_case c = append_case("fp32 to e4m3", CUDA_FP32);
        c.kv_dtype = CUDA_E4M3;
        c.head_dim = 80;
        c.scales = (enum case_scales)scales;
        add(&c, 7, 40);
        add(&c, 1, 1);
        check(&c);
    }
}

static struct append_case search_case(void) {
    struct append_case c = append_case("search", CUDA_BF16);
    c.kv_heads = 1;
    c.head_dim = 8;
    c.page_size = 8;
    return c;
}

static void test_sequences_of_equal_lengths(void **state) {
    (void)state;
    static const uint32_t counts[] = {1, 2, 30, 31, 32, 33, 63, 64, 65, 500};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (uint32_t q_len = 1; q_len < 4; q_len++) {
            struct append_case c = search_case();
            for (uint32_t s = 0; s < counts[i]; s++)
                add(&c, q_len, q_len + s % 9);
            check(&c);
        }
}

static void test_sequences_of_any_lengths(void **state) {
    (void)state;
    struct harness_rng rng = {11};
    for (int round = 0; round < 30; round++) {
        uint32_t n = 1 + rng_below(&rng, round % 3 == 0 ? 1000 : 80);
        struct append_case c = search_case();
        uint32_t longest = rng_below(&rng, n); // one that spoils every guess
        for (uint32_t s = 0; s < n; s++) {
            uint32_t q_len = s == longest ? 200 : rng_below(&rng, 3); // many have none
            add(&c, q_len, q_len + rng_below(&rng, 5));
        }
        check(&c);
    }
}

// The search ends at the last sequences, where fewer are left than it looks at in a step.
static void test_a_long_sequence_at_the_end(void **state) {
    (void)state;
    struct append_case c = search_case();
    for (uint32_t s = 0; s < 999; s++)
        add(&c, 1, 1 + s % 5);
    add(&c, 2000, 2000);
    check(&c);
}

static void test_tokens_before_position_0_are_left_out(void **state) {
    (void)state;
    struct append_case c = append_case("before 0", CUDA_BF16);
    add(&c, 5, 3);
    add(&c, 4, 0);
    add(&c, 2, 18);
    check(&c);
}

static void test_nothing_to_append(void **state) {
    (void)state;
    struct append_case c = append_case("nothing", CUDA_BF16);
    check(&c);
    add(&c, 0, 40);
    add(&c, 0, 0);
    check(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_are_kept),
        cmocka_unit_test(test_any_strides),
        cmocka_unit_test(test_e4m3_of_every_number),
        cmocka_unit_test(test_e4m3_of_fp32),
        cmocka_unit_test(test_sequences_of_equal_lengths),
        cmocka_unit_test(test_sequences_of_any_lengths),
        cmocka_unit_test(test_a_long_sequence_at_the_end),
        cmocka_unit_test(test_tokens_before_position_0_are_left_out),
        cmocka_unit_test(test_nothing_to_append),
    };
    return harness_main("append", tests, sizeof tests / sizeof *tests);
}
