// SPDX-License-Identifier: Apache-2.0
// test_format.c: numbers for people, numbers from people, percentiles, tables.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/format.h"
#include "client/cmd/table.h"
#include "tests/unit/cmd/capture.h"

#include <kvpool/kvpool.h>

#include <string.h>

static void bytes_have_three_digits_and_a_binary_unit(void **state) {
    char b[FORMAT_SIZE];
    (void)state;
    assert_string_equal(format_bytes(0, b), "0 B");
    assert_string_equal(format_bytes(1023, b), "1023 B");
    assert_string_equal(format_bytes(1024, b), "1 KiB");
    assert_string_equal(format_bytes(1536, b), "1.5 KiB");
    assert_string_equal(format_bytes(10u << 20, b), "10 MiB");
    assert_string_equal(format_bytes(1048575, b), "1 MiB"); // not "1024 KiB"
    assert_string_equal(format_bytes(40ull << 30, b), "40 GiB");
    assert_string_equal(format_bytes(UINT64_MAX, b), "16 EiB");
}

static void counts_times_and_handles_read_well(void **state) {
    char b[FORMAT_SIZE];
    (void)state;
    assert_string_equal(format_count(0, b), "0");
    assert_string_equal(format_count(9999, b), "9999");
    assert_string_equal(format_count(12345, b), "12.3k");
    assert_string_equal(format_count(999999, b), "1M");
    assert_string_equal(format_count(UINT64_MAX, b), "18.4E");
    assert_string_equal(format_uptime(59999999999u, b), "59s");
    assert_string_equal(format_uptime(200ull * 1000000000u, b), "3m 20s");
    assert_string_equal(format_uptime(7260ull * 1000000000u, b), "2h 1m");
    assert_string_equal(format_uptime(90061ull * 1000000000u, b), "1d 1h");
    assert_string_equal(format_us(12.34, b), "12.3 us");
    assert_string_equal(format_us(999.9, b), "1.00 ms");
    assert_string_equal(format_us(2500000, b), "2.50 s");
    assert_string_equal(format_handle(0x100000002u, b), "0x100000002");
}

static void text_cannot_steer_the_terminal(void **state) {
    char b[16];
    (void)state;
    assert_string_equal(format_plain("a\033[2J\n\xC3z", b, sizeof(b)), "a?[2J??z");
    assert_string_equal(format_plain("0123456789abcdefgh", b, sizeof(b)), "0123456789abcde");
}

static void integers_are_taken_whole_or_not_at_all(void **state) {
    static const char *const bad[] = {
        "", "x", "1x", "-1", "+1", " 1", "0", "11", "1.0", "0x5", "99999999999999999999"};
    uint32_t n = 77;
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(parse_u32(bad[i], 1, 10, &n));
    }
    assert_int_equal(n, 77);
    assert_true(parse_u32("10", 1, 10, &n));
    assert_int_equal(n, 10);
}

static void durations_take_seconds_and_milliseconds(void **state) {
    static const char *const bad[] = {"",  "s",     "-1",   "1m",     "1 s",  "nan", "inf",
                                      "0", "0.1ms", "1..2", "100000", "0x10", "1e3"};
    uint32_t ms = 77;
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(parse_duration_ms(bad[i], &ms));
    }
    assert_int_equal(ms, 77);
    assert_true(parse_duration_ms("2", &ms));
    assert_int_equal(ms, 2000);
    assert_true(parse_duration_ms("0.5", &ms));
    assert_int_equal(ms, 500);
    assert_true(parse_duration_ms("3s", &ms));
    assert_int_equal(ms, 3000);
    assert_true(parse_duration_ms("250ms", &ms));
    assert_int_equal(ms, 250);
}

static void sizes_take_binary_units(void **state) {
    static const char *const bad[] = {"", "M", "-1", "1X", "1MM", "1 M", "99999999999G", "1KiBx"};
    uint64_t bytes = 77;
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(parse_bytes(bad[i], &bytes));
    }
    assert_int_equal(bytes, 77);
    assert_true(parse_bytes("4096", &bytes));
    assert_int_equal(bytes, 4096);
    assert_true(parse_bytes("64k", &bytes));
    assert_int_equal(bytes, 65536);
    assert_true(parse_bytes("1.5M", &bytes));
    assert_int_equal(bytes, 3u << 19);
    assert_true(parse_bytes("2GiB", &bytes));
    assert_int_equal(bytes, 2ull << 30);
}

static void dtypes_have_names_and_sizes(void **state) {
    uint32_t dtype = 0;
    (void)state;
    assert_true(dtype_parse("bf16", &dtype));
    assert_int_equal(dtype, KVPOOL_BF16);
    assert_string_equal(dtype_name(dtype), "bf16");
    assert_int_equal(dtype_bytes(dtype), 2);
    assert_int_equal(dtype_bytes(KVPOOL_FP32), 4);
    assert_false(dtype_parse("int8", &dtype));
    assert_true(dtype_parse("fp8_e4m3", &dtype));
    assert_int_equal(dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(dtype_bytes(dtype), 1);
    char text[FORMAT_SIZE];
    kvpool_pool_info pool = {.dtype = KVPOOL_BF16};
    assert_string_equal(pool_dtype_name(&pool, text), "bf16");
    pool.kv_dtype = KVPOOL_FP8_E4M3;
    assert_string_equal(pool_dtype_name(&pool, text), "bf16/fp8_e4m3");
    uint32_t how = 0;
    assert_true(export_parse("ipc", &how));
    assert_int_equal(how, KVPOOL_EXPORT_IPC);
    assert_true(export_parse("fd", &how));
    assert_int_equal(how, KVPOOL_EXPORT_FD);
    assert_false(export_parse("tcp", &how));
    assert_string_equal(export_name(KVPOOL_EXPORT_IPC), "ipc");
    assert_string_equal(export_name(0), "?");
    assert_string_equal(dtype_name(99), "?");
    assert_int_equal(dtype_bytes(99), 0);
}

static void percentiles_are_nearest_ranks(void **state) {
    double samples[100];
    (void)state;
    for (int i = 0; i < 100; i++) {
        samples[i] = 100 - i;
    }
    struct summary s = summarize(samples, 100);
    assert_int_equal(s.n, 100);
    assert_int_equal((int)s.min, 1);
    assert_int_equal((int)s.p50, 50);
    assert_int_equal((int)s.p99, 99);
    assert_int_equal((int)s.max, 100);
    s = summarize(samples, 1);
    assert_true(s.p50 >= s.min && s.p50 <= s.max && s.p99 <= s.max && s.p99 >= s.min);
    s = summarize(NULL, 0);
    assert_int_equal(s.n, 0);
}

static void columns_are_as_wide_as_their_widest_cell(void **state) {
    struct capture c;
    (void)state;
    struct table *t = table_new(3, "<NAME", ">N", "<LAST");
    table_row(t, "a long name", "1", "x");
    table_row(t, "b\033[1m", "12345", "");
    assert_int_equal(table_rows(t), 2);
    capture_start(&c);
    table_print(t, c.out);
    assert_string_equal(capture_end(&c), "NAME             N  LAST\n"
                                         "a long name      1  x\n"
                                         "b?[1m        12345  \n");
    capture_free(&c);
    table_free(t);
    table_free(NULL);
}

static void a_table_grows_beyond_its_first_rows(void **state) {
    (void)state;
    struct table *t = table_new(1, "<X");
    for (int i = 0; i < 100; i++) {
        table_row(t, "y");
    }
    assert_int_equal(table_rows(t), 100);
    table_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_have_three_digits_and_a_binary_unit),
        cmocka_unit_test(counts_times_and_handles_read_well),
        cmocka_unit_test(text_cannot_steer_the_terminal),
        cmocka_unit_test(integers_are_taken_whole_or_not_at_all),
        cmocka_unit_test(durations_take_seconds_and_milliseconds),
        cmocka_unit_test(sizes_take_binary_units),
        cmocka_unit_test(dtypes_have_names_and_sizes),
        cmocka_unit_test(percentiles_are_nearest_ranks),
        cmocka_unit_test(columns_are_as_wide_as_their_widest_cell),
        cmocka_unit_test(a_table_grows_beyond_its_first_rows),
    };
    return cmocka_run_group_tests_name("cmd/format", tests, NULL, NULL);
}
