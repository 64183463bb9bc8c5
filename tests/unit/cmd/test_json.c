// SPDX-License-Identifier: Apache-2.0
// test_json.c: what json.h writes is JSON, whatever the strings and numbers are.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/json.h"
#include "tests/unit/cmd/capture.h"

#include <math.h>

static void expect_json(const char *value, const char *json) {
    struct capture c;
    capture_start(&c);
    struct json j = json_start(c.out);
    json_str(&j, NULL, value);
    json_finish(&j);
    assert_string_equal(capture_end(&c), json);
    capture_free(&c);
}

static void expect_number(double value, const char *json) {
    struct capture c;
    capture_start(&c);
    struct json j = json_start(c.out);
    json_num(&j, NULL, value);
    json_finish(&j);
    assert_string_equal(capture_end(&c), json);
    capture_free(&c);
}

static void plain_strings_stay_as_they_are(void **state) {
    (void)state;
    expect_json("", "\"\"\n");
    expect_json("a pool/1", "\"a pool/1\"\n");
    expect_json("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80",
                "\"\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\"\n");
    expect_json(NULL, "null\n");
}

static void quotes_backslashes_and_control_characters_are_escaped(void **state) {
    (void)state;
    expect_json("\"\\", "\"\\\"\\\\\"\n");
    expect_json("a\nb\tc\r\x01\x1F\x7F", "\"a\\nb\\tc\\u000d\\u0001\\u001f\\u007f\"\n");
}

static void bytes_that_are_not_utf8_become_the_replacement_character(void **state) {
    (void)state;
    expect_json("\xFF", "\"\\ufffd\"\n");
    expect_json("\x80z", "\"\\ufffdz\"\n");
    expect_json("\xC3", "\"\\ufffd\"\n");                                  // cut short
    expect_json("\xE2\x82", "\"\\ufffd\\ufffd\"\n");                       // cut short
    expect_json("\xC0\xAF", "\"\\ufffd\\ufffd\"\n");                       // overlong '/'
    expect_json("\xE0\x80\xAF", "\"\\ufffd\\ufffd\\ufffd\"\n");            // overlong
    expect_json("\xED\xA0\x80", "\"\\ufffd\\ufffd\\ufffd\"\n");            // a surrogate
    expect_json("\xF4\x90\x80\x80", "\"\\ufffd\\ufffd\\ufffd\\ufffd\"\n"); // above U+10FFFF
    expect_json("\xC3\"", "\"\\ufffd\\\"\"\n"); // the quote is not swallowed
}

static void numbers_without_a_json_word_are_null(void **state) {
    (void)state;
    expect_number(1.5, "1.5\n");
    expect_number(0, "0\n");
    expect_number(-1e30, "-1e+30\n");
    expect_number((double)NAN, "null\n");
    expect_number((double)INFINITY, "null\n");
    expect_number(-(double)INFINITY, "null\n");
}

static void objects_and_arrays_nest_with_commas_between_members(void **state) {
    struct capture c;
    (void)state;
    capture_start(&c);
    struct json j = json_start(c.out);
    json_object(&j, NULL);
    json_u64(&j, "u", UINT64_MAX);
    json_i64(&j, "i", INT64_MIN);
    json_array(&j, "a");
    json_bool(&j, NULL, true);
    json_bool(&j, NULL, false);
    json_object(&j, NULL);
    json_end(&j);
    json_end(&j);
    json_array(&j, "empty");
    json_end(&j);
    json_hex(&j, "handle", 0x100000002u);
    json_str(&j, "k\"", "v");
    json_end(&j);
    json_finish(&j);
    assert_string_equal(capture_end(&c),
                        "{\"u\":18446744073709551615,\"i\":-9223372036854775808,"
                        "\"a\":[true,false,{}],\"empty\":[],\"handle\":\"0x100000002\","
                        "\"k\\\"\":\"v\"}\n");
    capture_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_strings_stay_as_they_are),
        cmocka_unit_test(quotes_backslashes_and_control_characters_are_escaped),
        cmocka_unit_test(bytes_that_are_not_utf8_become_the_replacement_character),
        cmocka_unit_test(numbers_without_a_json_word_are_null),
        cmocka_unit_test(objects_and_arrays_nest_with_commas_between_members),
    };
    return cmocka_run_group_tests_name("cmd/json", tests, NULL, NULL);
}
