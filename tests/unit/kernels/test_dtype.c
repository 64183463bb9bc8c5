// SPDX-License-Identifier: Apache-2.0
// fp16 and bf16 conversions: every 16-bit value, and every rounding boundary between two of them.
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
}

static void test_load_and_store_by_dtype(void **state) {
    (void)state;
    float array[4] = {0};
    const kvpool_dtype dtypes[] = {KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32};
    for (size_t i = 0; i < 3; i++) {
        dtype_store(dtypes[i], array, 2, -1.5f);
        assert_true(dtype_load(dtypes[i], array, 2) == -1.5f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_fp16_widens_to_its_value_and_back),
        cmocka_unit_test(test_every_bf16_widens_to_its_value_and_back),
        cmocka_unit_test(test_narrowing_rounds_to_nearest_even),
        cmocka_unit_test(test_overflow_gives_infinity),
        cmocka_unit_test(test_nan_with_a_low_payload_stays_nan),
        cmocka_unit_test(test_load_and_store_by_dtype),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
