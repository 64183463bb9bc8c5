// SPDX-License-Identifier: Apache-2.0
// What is written to pages: append, page copies, page-table updates, bit for bit and nothing else.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"

#include "kernels/dtype.h"
#include "kernels/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3, MAX_PAGES = 64, ROW_ENTRIES = 16 };

struct fixture {
    const struct backend_ops *ops;
    struct backend *backend;
    struct backend_pool *pool;
    struct kv_geometry g;
    uint32_t num_pages;
    size_t plane_bytes;
    unsigned char *expected[LAYERS];
};

static void open_pool_of(struct fixture *f, uint32_t kv_heads, uint32_t head_dim,
                         uint32_t page_size, kvpool_dtype dtype, kvpool_dtype kv_dtype,
                         uint32_t num_pages) {
    struct err err = {0};
    f->ops = harness_ops();
    f->backend = harness_open(NULL, 3);
    f->g = (struct kv_geometry){LAYERS, kv_heads, head_dim, page_size, dtype, kv_dtype};
    f->num_pages = num_pages;
    f->plane_bytes = num_pages * kv_page_bytes(&f->g);
    if (f->ops->pool_open(f->backend, &f->g, BACKEND_FD, num_pages, 8, ROW_ENTRIES, &f->pool,
                          &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(f->ops->pool_bytes(f->pool), f->plane_bytes * LAYERS);
    for (uint32_t l = 0; l < LAYERS; l++) {
        f->expected[l] = malloc(f->plane_bytes);
        assert_non_null(f->expected[l]);
        memset(f->expected[l], 0xff, f->plane_bytes);
        harness_pool_write(f->backend, f->pool, l, f->expected[l], f->plane_bytes);
    }
}

static void open_pool(struct fixture *f, uint32_t kv_heads, uint32_t head_dim, uint32_t page_size,
                      kvpool_dtype dtype, uint32_t num_pages) {
    open_pool_of(f, kv_heads, head_dim, page_size, dtype, 0, num_pages);
}

static void check_and_close(struct fixture *f) {
    unsigned char *found = malloc(f->plane_bytes);
    assert_non_null(found);
    for (uint32_t l = 0; l < LAYERS; l++) {
        harness_pool_read(f->backend, f->pool, l, found, f->plane_bytes);
        assert_memory_equal(found, f->expected[l], f->plane_bytes);
        free(f->expected[l]);
    }
    free(found);
    f->ops->pool_close(f->backend, f->pool);
    f->ops->close(f->backend);
}

static struct backend_op table_op(uint32_t row, uint32_t first, uint32_t count,
                                  const uint32_t *ids) {
    return (struct backend_op){.kind = BACKEND_TABLE, .u.table = {row, first, count, ids}};
}

// Two sequences, `tokens` new ones each after prefixes that end inside a page; K and V interleaved
// in one tensor.
static void check_append(uint32_t kv_heads, uint32_t head_dim, uint32_t page_size,
                         kvpool_dtype dtype, uint32_t tokens, uint64_t seed) {
    struct fixture f;
    open_pool(&f, kv_heads, head_dim, page_size, dtype, MAX_PAGES);
    uint64_t state = seed;
    uint32_t order[MAX_PAGES];
    random_permutation(&state, order, MAX_PAGES);
    const uint32_t rows[2] = {5, 2};
    const uint32_t kv_len[2] = {tokens + page_size / 2, tokens + 1};
    const uint32_t indptr[3] = {0, tokens, 2 * tokens};
    const uint32_t *ids[2] = {order, order + ROW_ENTRIES};
    const uint32_t layer = 1;

    size_t element = kv_dtype_size(dtype);
    size_t head_stride = head_dim + 8;
    size_t token_stride = head_stride * 2 * kv_heads + 16;
    size_t bytes = (token_stride * 2 * tokens + 8) * element;
    struct backend_mem *mem = harness_alloc(f.backend, bytes);
    unsigned char *host = f.ops->mem_host(mem);
    for (size_t i = 0; i < bytes; i++)
        host[i] = (unsigned char)random_bits(&state);
    struct backend_tensor k = {mem, 8 * element, token_stride, head_stride};
    struct backend_tensor v = k;
    v.offset += kv_heads * head_stride * element;

    struct backend_op ops[3] = {
        table_op(rows[0], 0, ROW_ENTRIES, ids[0]),
        table_op(rows[1], 0, ROW_ENTRIES, ids[1]),
        {.kind = BACKEND_APPEND, .u.append = {layer, {2, rows, kv_len, indptr}, {0}, k, v}},
    };
    harness_run(f.backend, f.pool, ops, 3);

    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t h = 0; h < kv_heads; h++)
                for (uint32_t value = 0; value < 2; value++)
                    for (uint32_t d = 0; d < head_dim; d++) {
                        size_t from =
                            (value == 0 ? k.offset : v.offset) +
                            ((i * tokens + t) * token_stride + h * head_stride + d) * element;
                        size_t to = reference_element(ids[i], kv_heads, page_size, head_dim, value,
                                                      kv_len[i] - tokens + t, h, d);
                        memcpy(f.expected[layer] + to * element, host + from, element);
                    }
    f.ops->mem_free(f.backend, mem);
    check_and_close(&f);
}

static void test_append_writes_the_new_slots_and_nothing_else(void **state) {
    (void)state;
    check_append(1, 8, 8, KVPOOL_FP16, 1, 1);
    check_append(2, 64, 16, KVPOOL_BF16, 1, 2);
    check_append(3, 72, 16, KVPOOL_FP32, 40, 3);
    check_append(8, 128, 16, KVPOOL_BF16, 200, 4); // many pages, on all threads
    check_append(2, 576, 256, KVPOOL_FP16, 300, 5);
}

// A scale for every key head, or K's and V's. Scales are powers of two or not; elements reach from
// e4m3's denormals to beyond its limit, ties, infinities and NaN.
static void check_fp8_append(uint32_t kv_heads, uint32_t head_dim, uint32_t page_size,
                             kvpool_dtype dtype, uint32_t tokens, bool head_scales, uint64_t seed) {
    struct fixture f;
    open_pool_of(&f, kv_heads, head_dim, page_size, dtype, KVPOOL_FP8_E4M3, MAX_PAGES);
    uint64_t state = seed;
    uint32_t order[MAX_PAGES];
    random_permutation(&state, order, MAX_PAGES);
    const uint32_t row = 3;
    const uint32_t kv_len = tokens + 1;
    const uint32_t indptr[2] = {0, tokens};
    size_t element = kv_dtype_size(dtype);
    size_t values = (size_t)tokens * kv_heads * head_dim; // of K, and of V
    size_t scale_bytes = (size_t)2 * kv_heads * sizeof(float);
    struct backend_mem *mem = harness_alloc(f.backend, scale_bytes + 16 + 2 * values * element);
    unsigned char *host = f.ops->mem_host(mem);
    const uint64_t k_at = (scale_bytes + 15) / 16 * 16;
    struct backend_tensor k = {mem, k_at, (uint64_t)kv_heads * head_dim, head_dim};
    struct backend_tensor v = k;
    v.offset += values * element;
    for (uint32_t i = 0; i < 2 * kv_heads; i++) {
        float scale = i % 3 == 0 ? 0.25f : (float)(1 + random_below(&state, 1000)) / 100;
        memcpy(host + i * sizeof scale, &scale, sizeof scale);
    }
    for (size_t i = 0; i < 2 * values; i++) {
        float x = dtype_from_bits((uint32_t)random_bits(&state));
        x = isnan(x) ? NAN : x; // the sign of a NaN may be lost
        uint32_t kind = random_below(&state, 4);
        if (kind == 1) // ties where the scale is a power of two
            x = (float)(1 + 2 * random_below(&state, 8)) * 0x1p-5f;
        else if (kind != 0)
            x = (float)(random_normal(&state) * exp2((double)random_below(&state, 20) - 12));
        dtype_store(dtype, host + k_at, i, x);
    }
    struct backend_scales scales = {.k = 0.37f}; // v 0: 1
    if (head_scales)
        scales.heads = (struct backend_tensor){mem, 0, kv_heads, 1};
    struct backend_op ops[2] = {
        table_op(row, 0, ROW_ENTRIES, order),
        {.kind = BACKEND_APPEND, .u.append = {2, {1, &row, &kv_len, indptr}, scales, k, v}},
    };
    harness_run(f.backend, f.pool, ops, 2);
    for (size_t i = 0; i < 2 * values; i++) {
        uint32_t value = i < values ? 0 : 1;
        uint32_t token = (uint32_t)(i % values / head_dim / kv_heads);
        uint32_t h = (uint32_t)(i / head_dim % kv_heads);
        float scale = head_scales  ? dtype_load(KVPOOL_FP32, host, value * kv_heads + h)
                      : value == 0 ? 0.37f
                                   : 1;
        size_t to = reference_element(order, kv_heads, page_size, head_dim, value, 1 + token, h,
                                      (uint32_t)(i % head_dim));
        f.expected[2][to] = dtype_fp32_to_e4m3(dtype_load(dtype, host + k_at, i) / scale);
    }
    // Whole pages are copied as they are.
    const uint32_t copies = (kv_len + page_size - 1) / page_size;
    struct backend_op copy = {.kind = BACKEND_COPY, .u.copy = {copies, order, order + 32}};
    harness_run(f.backend, f.pool, &copy, 1);
    size_t page = kv_page_bytes(&f.g);
    for (uint32_t i = 0; i < copies; i++)
        memcpy(f.expected[2] + order[32 + i] * page, f.expected[2] + order[i] * page, page);
    f.ops->mem_free(f.backend, mem);
    check_and_close(&f);
}

static void test_append_to_fp8_pages(void **state) {
    (void)state;
    const kvpool_dtype dtypes[] = {KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32};
    for (size_t i = 0; i < 3; i++)
        for (uint32_t heads = 0; heads < 2; heads++) {
            check_fp8_append(1, 8, 8, dtypes[i], 1, heads != 0, 1);
            check_fp8_append(3, 72, 16, dtypes[i], 40, heads != 0, 2);
            check_fp8_append(8, 128, 16, dtypes[i], 200, heads != 0, 3); // on all threads
            check_fp8_append(2, 576, 256, dtypes[i], 300, heads != 0, 4);
        }
}

static void test_sequences_without_new_tokens_are_left_alone(void **state) {
    (void)state;
    struct fixture f;
    open_pool(&f, 2, 16, 8, KVPOOL_FP16, 8);
    const uint32_t rows[3] = {0, 1, 2};
    const uint32_t kv_len[3] = {8, 1, 3};
    const uint32_t indptr[4] = {0, 0, 1, 1};
    const uint32_t ids[1] = {6};
    struct backend_mem *mem = harness_alloc(f.backend, 64);
    memset(f.ops->mem_host(mem), 0x3c, 64);
    struct backend_tensor t = {mem, 0, 32, 16};
    struct backend_op ops[] = {
        table_op(1, 0, 1, ids),
        {.kind = BACKEND_APPEND, .u.append = {2, {3, rows, kv_len, indptr}, {0}, t, t}},
    };
    harness_run(f.backend, f.pool, ops, 2);
    for (uint32_t value = 0; value < 2; value++)
        for (uint32_t h = 0; h < 2; h++)
            memset(f.expected[2] + 2 * reference_element(ids, 2, 8, 16, value, 0, h, 0), 0x3c, 32);
    f.ops->mem_free(f.backend, mem);
    check_and_close(&f);
}

static void test_copy_takes_whole_pages_in_every_layer(void **state) {
    (void)state;
    struct fixture f;
    open_pool(&f, 4, 64, 16, KVPOOL_BF16, 32);
    uint64_t rng = 9;
    size_t page = kv_page_bytes(&f.g);
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (size_t i = 0; i < f.plane_bytes; i++)
            f.expected[l][i] = (unsigned char)random_bits(&rng);
        harness_pool_write(f.backend, f.pool, l, f.expected[l], f.plane_bytes);
    }
    uint32_t order[32];
    random_permutation(&rng, order, 32);
    const uint32_t counts[] = {1, 0, 14};
    for (size_t c = 0; c < 3; c++) {
        struct backend_op op = {.kind = BACKEND_COPY, .u.copy = {counts[c], order, order + 16}};
        harness_run(f.backend, f.pool, &op, 1);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t i = 0; i < 14; i++)
            memcpy(f.expected[l] + order[16 + i] * page, f.expected[l] + order[i] * page, page);
    check_and_close(&f);
}

// A table op changes its own entries only, and takes effect for the ops after it in its program.
static void test_table_updates_apply_in_order(void **state) {
    (void)state;
    struct fixture f;
    open_pool(&f, 1, 8, 8, KVPOOL_FP16, 8);
    unsigned char tokens[24][16];
    struct backend_mem *mem = harness_alloc(f.backend, sizeof tokens);
    memset(f.ops->mem_host(mem), 0x11, sizeof tokens);
    struct backend_tensor t = {mem, 0, 8, 8};
    const uint32_t first[3] = {0, 1, 2};
    const uint32_t middle[1] = {7};
    const uint32_t row = 3;
    const uint32_t kv_len = 24;
    const uint32_t indptr[2] = {0, 24};
    struct backend_op ops[] = {
        table_op(2, 0, 1, middle), // a neighbouring row
        table_op(3, 0, 3, first),
        table_op(3, 1, 1, middle),
        {.kind = BACKEND_APPEND, .u.append = {0, {1, &row, &kv_len, indptr}, {0}, t, t}},
        table_op(3, 0, 1, middle + 0),
    };
    harness_run(f.backend, f.pool, ops, 5);
    const uint32_t pages[3] = {0, 7, 2};
    for (uint32_t i = 0; i < 3; i++)
        memset(f.expected[0] + pages[i] * kv_page_bytes(&f.g), 0x11, kv_page_bytes(&f.g));
    f.ops->mem_free(f.backend, mem);
    check_and_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_writes_the_new_slots_and_nothing_else),
        cmocka_unit_test(test_append_to_fp8_pages),
        cmocka_unit_test(test_sequences_without_new_tokens_are_left_alone),
        cmocka_unit_test(test_copy_takes_whole_pages_in_every_layer),
        cmocka_unit_test(test_table_updates_apply_in_order),
    };
    return cmocka_run_group_tests_name("pages", tests, NULL, NULL);
}
