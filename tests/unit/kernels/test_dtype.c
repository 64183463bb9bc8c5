// SPDX-License-Identifier: Apache-2.0
// fp16, bf16 and e4m3 conversions: every value, and every rounding boundary between two of them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/dtype.h"

#include <math.h>

// The value of an fp16 from its definition.
static double fp16_value(uint32_t h) {
    double sign = (h & 0x8000u) != 0 ? -1 : 1;
    int exponent = (int)(h >> 10 & 0x1f);
    int mantissa = (int)(h & 0x3ff);
    if (exponent == 31)
        return mantissa != 0 ? NAN : sign * INFINITY;
    return exponent == 0 ? sign * ldexp(mantissa, -24)
                         : sign * ldexp(1024 + mantissa, exponent - 25);
}

static void test_every_fp16_widens_to_its_value_and_back(void **state) {
    (void)state;
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float x = dtype_fp16_to_fp32((uint16_t)h);
        double value = fp16_value(h);
        if (isnan(value)) {
            assert_true(isnan(x));
            uint16_t back = dtype_fp32_to_fp16(x);
            assert_int_equal(back & 0x7e00, 0x7e00); // a quiet NaN
            assert_int_equal(back & 0x8000, h & 0x8000);
            continue;
        }
        assert_true((double)x == value);
        assert_int_equal(signbit(x) != 0, (h & 0x8000) != 0);
        assert_int_equal(dtype_fp32_to_fp16(x), h);
    }
}

static void test_every_bf16_widens_to_its_value_and_back(void **state) {
    (void)state;
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float x = dtype_bf16_to_fp32((uint16_t)h);
        assert_int_equal(dtype_to_bits(x), h << 16);
        uint16_t back = dtype_fp32_to_bf16(x);
        if (isnan(x))
            assert_int_equal(back, h | 0x40);
        else
            assert_int_equal(back, h);
    }
}

// Between neighbours a < b: below the middle goes to a, above it to b, the middle to the even one.
static void check_rounding(kvpool_dtype dtype, uint32_t a, double middle) {
    float x = (float)middle;
    assert_true((double)x == middle);
    uint16_t got[3];
    dtype_store(dtype, got, 0, nextafterf(x, 0));
    dtype_store(dtype, got, 1, x);
    dtype_store(dtype, got, 2, nextafterf(x, INFINITY));
    assert_int_equal(got[0], a);
    assert_int_equal(got[1], a % 2 == 0 ? a : a + 1);
    assert_int_equal(got[2], a + 1);
    dtype_store(dtype, got, 0, -x);
    assert_int_equal(got[0], 0x8000 | (a % 2 == 0 ? a : a + 1));
}

static void test_narrowing_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t a = 0; a < 0x7bff; a++)
        check_rounding(KVPOOL_FP16, a, (fp16_value(a) + fp16_value(a + 1)) / 2);
    for (uint32_t a = 0; a < 0x7f7f; a++)
        check_rounding(KVPOOL_BF16, a,
                       ((double)dtype_bf16_to_fp32((uint16_t)a) +
                        (double)dtype_bf16_to_fp32((uint16_t)(a + 1))) /
                           2);
}

// The value of an e4m3 from its definition.
static double e4m3_value(uint32_t e) {
    double sign = (e & 0x80u) != 0 ? -1 : 1;
    int exponent = (int)(e >> 3 & 0xf);
    int mantissa = (int)(e & 7);
    if (exponent == 15 && mantissa == 7)
        return NAN;
    return exponent == 0 ? sign * ldexp(mantissa, -9) : sign * ldexp(8 + mantissa, exponent - 10);
}

static void test_every_e4m3_widens_to_its_value_and_back(void **state) {
    (void)state;
    for (uint32_t e = 0; e <= 0xff; e++) {
        float x = dtype_e4m3_to_fp32((uint8_t)e);
        double value = e4m3_value(e);
        if (isnan(value)) {
            assert_true(isnan(x));
            assert_int_equal(dtype_fp32_to_e4m3(x), 0x7f);
            continue;
        }
        assert_true((double)x == value);
        assert_int_equal(signbit(x) != 0, (e & 0x80) != 0);
        assert_int_equal(dtype_fp32_to_e4m3(x), e);
    }
}

static void check_e4m3(float x, uint32_t expected) {
    assert_int_equal(dtype_fp32_to_e4m3(x), expected);
    assert_int_equal(dtype_fp32_to_e4m3(-x), 0x80 | expected);
}

static void test_e4m3_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t a = 0; a < 0x7e; a++) {
        float middle = (float)((e4m3_value(a) + e4m3_value(a + 1)) / 2);
        check_e4m3(nextafterf(middle, 0), a);
        check_e4m3(middle, a % 2 == 0 ? a : a + 1);
        check_e4m3(nextafterf(middle, INFINITY), a + 1);
    }
    check_e4m3(0x1p-149f, 0);
    check_e4m3(0x1p-126f, 0);
}

static void test_e4m3_is_limited(void **state) {
    (void)state;
    check_e4m3(448, 0x7e);
    check_e4m3(nextafterf(448, INFINITY), 0x7e);
    check_e4m3(463.9f, 0x7e); // where a next value, 480, would be nearer from on
    check_e4m3(464, 0x7e);
    check_e4m3(480, 0x7e);
    check_e4m3(1e30f, 0x7e);
    check_e4m3(INFINITY, 0x7e);
}

// Exponents from below the denormals to beyond the limit, with every sign and upper mantissa bits.
static void test_e4m3_takes_the_nearest_of_all(void **state) {
    (void)state;
    for (uint32_t bits = 0x38000000; bits < 0x44800000; bits += 0x3ffd) {
        double x = (double)dtype_from_bits(bits);
        double got = e4m3_value(dtype_fp32_to_e4m3((float)x));
        double best = INFINITY;
        for (uint32_t e = 0; e < 0x7f; e++)
            best = fmin(best, fabs(e4m3_value(e) - x));
        assert_true(fabs(got - x) == best);
    }
}

static void test_overflow_gives_infinity(void **state) {
    (void)state;
    assert_int_equal(dtype_fp32_to_fp16(65519.996f), 0x7bff);
    assert_int_equal(dtype_fp32_to_fp16(65520.0f), 0x7c00);
    assert_int_equal(dtype_fp32_to_fp16(-1e30f), 0xfc00);
    assert_int_equal(dtype_fp32_to_fp16(INFINITY), 0x7c00);
    assert_int_equal(dtype_fp32_to_bf16(3.4e38f), 0x7f80);
    assert_int_equal(dtype_fp32_to_bf16(-INFINITY), 0xff80);
}

static void test_nan_with_a_low_payload_stays_nan(void **state) {
    (void)state;
    float x = dtype_from_bits(0x7f800001u);
    assert_true(isnan(dtype_bf16_to_fp32(dtype_fp32_to_bf16(x))));
    assert_true(isnan(dtype_fp16_to_fp32(dtype_fp32_to_fp16(x))));
    assert_int_equal(dtype_fp32_to_e4m3(x), 0x7f);
    assert_int_equal(dtype_fp32_to_e4m3(dtype_from_bits(0xffc00000u)), 0x7f);
}

static void test_load_and_store_by_dtype(void **state) {
    (void)state;
    float array[4] = {0};
    const kvpool_dtype dtypes[] = {KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32, KVPOOL_FP8_E4M3};
    for (size_t i = 0; i < 4; i++) {
        dtype_store(dtypes[i], array, 2, -1.5f);
        assert_true(dtype_load(dtypes[i], array, 2) == -1.5f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_fp16_widens_to_its_value_and_back),
        cmocka_unit_test(test_every_bf16_widens_to_its_value_and_back),
        cmocka_unit_test(test_narrowing_rounds_to_nearest_even),
        cmocka_unit_test(test_every_e4m3_widens_to_its_value_and_back),
        cmocka_unit_test(test_e4m3_rounds_to_nearest_even),
        cmocka_unit_test(test_e4m3_is_limited),
        cmocka_unit_test(test_e4m3_takes_the_nearest_of_all),
        cmocka_unit_test(test_overflow_gives_infinity),
        cmocka_unit_test(test_nan_with_a_low_payload_stays_nan),
        cmocka_unit_test(test_load_and_store_by_dtype),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
