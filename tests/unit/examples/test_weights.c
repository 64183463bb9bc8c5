// SPDX-License-Identifier: Apache-2.0
// test_weights.c: checkpoints are read exactly, or refused; equal seeds give equal models.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "examples/llama.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// dim, hidden_dim, layers, heads, kv_heads, vocab, seq_len
static const int32_t small[7] = {32, 40, 2, 4, 2, 256, 10};

// Floats of a checkpoint of these numbers with a shared classifier, counted tensor by tensor.
static size_t floats_of_small(void) {
    const size_t dim = 32, hidden = 40, layers = 2, kv_dim = 16, vocab = 256, seq_len = 10;
    return vocab * dim +
           layers * (dim + dim * dim + 2 * kv_dim * dim + dim * dim + dim + 3 * hidden * dim) +
           dim + 2 * seq_len * (8 / 2);
}

static char path[64];

// Writes header and n floats 0, 1, 2, ... * 0.5; float `bad` (if < n) is NaN.
static void write_checkpoint(const int32_t header[7], size_t n, size_t bad) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(header, sizeof(int32_t), 7, f), 7);
    for (size_t i = 0; i < n; i++) {
        const float value = i == bad ? NAN : 0.5f * (float)i;
        assert_int_equal(fwrite(&value, sizeof value, 1, f), 1);
    }
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state) {
    (void)state;
    strcpy(path, "/tmp/kvpool-weights-XXXXXX");
    const int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}
static int teardown(void **state) {
    (void)state;
    return unlink(path);
}

static void tensors_lie_in_legacy_order(void **state) {
    (void)state;
    struct llama m;
    write_checkpoint(small, floats_of_small(), SIZE_MAX);
    assert_int_equal(llama_load(path, &m), 0);
    assert_int_equal(m.config.vocab, 256);
    assert_int_equal(m.head_dim, 8);
    assert_int_equal(m.kv_dim, 16);
    assert_ptr_equal(m.classifier, m.embedding);
    const float *at[] = {m.embedding, m.rms_att,  m.wq,      m.wk, m.wv,
                         m.wo,        m.rms_ffn,  m.w1,      m.w2, m.w3,
                         m.rms_final, m.rope_cos, m.rope_sin};
    const size_t size[] = {8192, 64, 2048, 1024, 1024, 2048, 64, 2560, 2560, 2560, 32, 40, 40};
    size_t sum = 0;
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        assert_true(at[i][0] == 0.5f * (float)sum);
        sum += size[i];
    }
    assert_int_equal(sum, floats_of_small());
    llama_free(&m);
}

static void a_negative_vocabulary_has_its_own_classifier(void **state) {
    (void)state;
    struct llama m;
    int32_t header[7];
    memcpy(header, small, sizeof header);
    header[5] = -256;
    const size_t own = 256 * (size_t)32;
    write_checkpoint(header, floats_of_small() + own, SIZE_MAX);
    assert_int_equal(llama_load(path, &m), 0);
    assert_int_equal(m.config.vocab, 256);
    assert_true(m.classifier[0] == 0.5f * (float)floats_of_small());
    llama_free(&m);
    write_checkpoint(header, floats_of_small(), SIZE_MAX); // without it: too short
    assert_int_equal(llama_load(path, &m), -1);
}

static void a_wrong_size_is_refused(void **state) {
    (void)state;
    struct llama m;
    write_checkpoint(small, floats_of_small() - 1, SIZE_MAX);
    assert_int_equal(llama_load(path, &m), -1);
    write_checkpoint(small, floats_of_small() + 1, SIZE_MAX);
    assert_int_equal(llama_load(path, &m), -1);
    write_checkpoint(small, 0, SIZE_MAX);
    assert_int_equal(llama_load(path, &m), -1);
    FILE *f = fopen(path, "wb"); // not even a header
    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(llama_load(path, &m), -1);
    assert_int_equal(llama_load("/nonexistent/checkpoint", &m), -1);
    assert_int_equal(llama_load("/tmp", &m), -1);
}

static void a_weight_that_is_no_number_is_refused(void **state) {
    (void)state;
    struct llama m;
    write_checkpoint(small, floats_of_small(), floats_of_small() - 1);
    assert_int_equal(llama_load(path, &m), -1);
}

static void impossible_headers_are_refused(void **state) {
    (void)state;
    static const struct {
        int field;
        int32_t value;
    } cases[] = {
        {0, 0},         {0, -32},       {0, INT32_MAX}, {0, 36}, // 36 / 4: head_dim 9
        {1, 0},         {1, INT32_MAX}, {2, 0},         {2, 513},       {2, -1},
        {3, 0},         {3, 3},         {3, 8}, // dim / 8: head_dim 4
        {4, 0},         {4, 3},         {4, 8},         {5, 0},         {5, 255},
        {5, INT32_MIN}, {5, INT32_MAX}, {6, 0},         {6, INT32_MIN}, {6, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct llama m;
        int32_t header[7];
        memcpy(header, small, sizeof header);
        header[cases[i].field] = cases[i].value;
        write_checkpoint(header, floats_of_small(), SIZE_MAX);
        assert_int_equal(llama_load(path, &m), -1);
    }
}

static void a_seed_decides_the_weights(void **state) {
    (void)state;
    struct llama a, b, c;
    assert_int_equal(llama_random(1, &a), 0);
    assert_int_equal(llama_random(1, &b), 0);
    assert_int_equal(llama_random(2, &c), 0);
    const size_t n = (size_t)a.config.vocab * a.config.dim;
    assert_memory_equal(a.embedding, b.embedding, n * sizeof(float));
    assert_memory_equal(a.classifier, b.classifier, n * sizeof(float));
    assert_memory_not_equal(a.classifier, c.classifier, n * sizeof(float));
    llama_free(&a);
    llama_free(&b);
    llama_free(&c);
}

static void rope_keeps_length_and_depends_on_distance_only(void **state) {
    (void)state;
    struct llama m;
    assert_int_equal(llama_random(1, &m), 0);
    float base[2][16], products[2];
    for (uint32_t i = 0; i < 16; i++) {
        base[0][i] = sinf((float)i + 1);
        base[1][i] = cosf((float)(3 * i));
    }
    static const uint32_t positions[2][2] = {{5, 0}, {1005, 1000}};
    for (int c = 0; c < 2; c++) {
        float q[16], k[16], length = 0, rotated = 0;
        memcpy(q, base[0], sizeof q);
        memcpy(k, base[1], sizeof k);
        llama_rope(&m, positions[c][0], 1, q);
        llama_rope(&m, positions[c][1], 1, k);
        products[c] = 0;
        for (int i = 0; i < 16; i++) {
            products[c] += q[i] * k[i];
            length += base[0][i] * base[0][i];
            rotated += q[i] * q[i];
        }
        assert_true(fabsf(length - rotated) < 1e-4f);
    }
    assert_true(fabsf(products[0] - products[1]) < 1e-3f);
    llama_free(&m);
}

static void matmul_takes_any_size(void **state) {
    (void)state;
    enum { ROWS = 3, MOST = 40 };
    for (uint32_t cols = 1; cols <= MOST; cols++) {
        float w[ROWS * MOST], in[2 * MOST], out[2 * ROWS];
        for (uint32_t i = 0; i < ROWS * cols; i++) {
            w[i] = (float)(i % 7) - 3;
        }
        for (uint32_t i = 0; i < 2 * cols; i++) {
            in[i] = (float)(i % 5) - 2;
        }
        llama_matmul(2, ROWS, cols, w, in, out, false);
        llama_matmul(2, ROWS, cols, w, in, out, true); // adds the same again
        for (uint32_t t = 0; t < 2; t++) {
            for (uint32_t r = 0; r < ROWS; r++) {
                float expected = 0; // small integers: exact in any order
                for (uint32_t i = 0; i < cols; i++) {
                    expected += w[r * cols + i] * in[t * cols + i];
                }
                assert_true(out[t * ROWS + r] == 2 * expected);
            }
        }
    }
}

static void argmax_is_the_first_of_equals(void **state) {
    (void)state;
    const float logits[] = {-3, 2, -1, 2, 1};
    assert_int_equal(llama_argmax(logits, 5), 1);
    assert_int_equal(llama_argmax(logits, 1), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_lie_in_legacy_order),
        cmocka_unit_test(a_negative_vocabulary_has_its_own_classifier),
        cmocka_unit_test(a_wrong_size_is_refused),
        cmocka_unit_test(a_weight_that_is_no_number_is_refused),
        cmocka_unit_test(impossible_headers_are_refused),
        cmocka_unit_test(a_seed_decides_the_weights),
        cmocka_unit_test(rope_keeps_length_and_depends_on_distance_only),
        cmocka_unit_test(matmul_takes_any_size),
        cmocka_unit_test(argmax_is_the_first_of_equals),
    };
    return cmocka_run_group_tests_name("example weights", tests, setup, teardown);
}
