// SPDX-License-Identifier: Apache-2.0
// test_trace_line.c: lines and files of traces, made and read, and the tokens that replay makes of them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/replay.h"
#include "client/cmd/trace_make.h"
#include "tests/unit/cmd/capture.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

static struct trace_line parse(const char *text) {
    struct trace_line line = {0};
    char reason[TRACE_REASON_SIZE] = "";
    if (!trace_line_parse(text, 512, &line, reason)) {
        fail_msg("%s: %s", text, reason);
    }
    return line;
}

static void a_line_of_mooncakes_has_defaults_for_the_rest(void **state) {
    (void)state;
    struct trace_line line = parse("{\"timestamp\": 27482, \"input_length\": 1100, "
                                   "\"output_length\": 52, \"hash_ids\": [46, 47, 2353]}\n");
    assert_int_equal(line.kind, TRACE_SEQUENCE);
    assert_float_equal(line.timestamp, 27482, 0);
    assert_int_equal(line.input, 1100);
    assert_int_equal(line.output, 52);
    assert_int_equal(line.block_size, 512);
    assert_int_equal(line.opened, 1099); // all but the last
    assert_int_equal(line.blocks, 3);
    assert_int_equal(line.ids[0], 46);
    assert_int_equal(line.ids[2], 2353);
    trace_line_free(&line);
}

static void a_recorded_line_says_more(void **state) {
    (void)state;
    struct trace_line line =
        parse("{\"timestamp\":5,\"input_length\":20,\"output_length\":0,\"hash_ids\":"
              "[18446744073709551615,9007199254740991],\"block_size\":16,\"pool\":\"a\\\"}\","
              "\"matched\":16,\"opened\":20,\"client\":42,\"tokens\":[1,2,3],\"x\":null,"
              "\"y\":[\"s\",true,-1.5e3],\"z\":[]} \r\n");
    assert_int_equal(line.block_size, 16);
    assert_int_equal(line.opened, 20);
    assert_int_equal(line.matched, 16);
    assert_true(line.ids[0] == UINT64_MAX);
    trace_line_free(&line);
    line = parse("{\"hash_ids\":[],\"input_length\":0,\"output_length\":3,\"timestamp\":0.5}");
    assert_int_equal(line.blocks, 0);
    assert_int_equal(line.opened, 0);
    trace_line_free(&line);
}

static void other_lines_are_told_apart(void **state) {
    (void)state;
    struct trace_line line = parse("{\"t\":1.5,\"op\":\"DECODE\",\"client\":1,\"n\":8,\"tokens\":8,"
                                   "\"us\":123,\"status\":\"OK\"}\n");
    assert_int_equal(line.kind, TRACE_REQUEST);
    line = parse("{\"dropped\":12}");
    assert_int_equal(line.kind, TRACE_DROPPED);
    assert_int_equal(line.dropped, 12);
}

static void malformed_lines_are_refused_with_a_reason(void **state) {
#define START "{\"timestamp\":1,\"input_length\":40,\"output_length\":1,"
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "'{' expected"},
        {"[]", "'{' expected"},
        {"{", "'\"' expected"},
        {"{\"a", "a string does not end"},
        {"{\"a\\", "a string does not end"},
        {"{\"a\" 1}", "':' expected"},
        {"{\"a\":}", "a number expected"},
        {"{\"a\":{}}", "a number expected"},
        {"{\"a\":[[]]}", "a number expected"},
        {"{\"a\":[1,]}", "a number expected"},
        {"{\"a\":[1 2]}", "',' expected"},
        {"{\"a\":1,}", "'\"' expected"},
        {"{\"a\":0x10}", "is not a number"},
        {"{\"a\":1e999}", "is not a number"},
        {"{\"a\":tru}", "a number expected"},
        {"{\"a\":1} x", "something follows the object"},
        {"{\"timestamp\":1}", "input_length is missing"},
        {"{\"input_length\":1}", "timestamp is missing"},
        {"{\"timestamp\":1,\"input_length\":1}", "output_length is missing"},
        {START "\"x\":1}", "hash_ids is missing"},
        {START "\"hash_ids\":[1],\"hash_ids\":[1]}", "hash_ids: twice"},
        {START "\"hash_ids\":[1.5]}", "is not a whole number"},
        {START "\"hash_ids\":[-1]}", "is not a whole number"},
        {START "\"hash_ids\":[18446744073709551616]}", "is not a whole number"},
        {START "\"hash_ids\":[1,]}", "is not a whole number"},
        {START "\"hash_ids\":1}", "'[' expected"},
        {START "\"hash_ids\":[1", "',' expected"},
        {START "\"hash_ids\":[1,2]}", "hash_ids: 2, but 40 tokens are 1 blocks of 512"},
        {START "\"hash_ids\":[1],\"block_size\":16}", "hash_ids: 1, but 40 tokens are 3 blocks"},
        {START "\"hash_ids\":[1],\"block_size\":0}", "block_size: 0"},
        {START "\"hash_ids\":[1],\"opened\":41}", "opened: 41 of 40 tokens"},
        {"{\"timestamp\":-1}", "timestamp: negative"},
        {"{\"input_length\":16777217}", "is not a whole number of 0..16777216"},
        {"{\"output_length\":4294967297}", "is not a whole number of 0..16777216"},
        {"{\"dropped\":-1}", "dropped:"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct trace_line line = {.input = 77};
        char reason[TRACE_REASON_SIZE] = "";
        assert_false(trace_line_parse(cases[i].text, 512, &line, reason));
        assert_int_equal(line.input, 77);
        if (strstr(reason, cases[i].reason) == NULL) {
            fail_msg("%s: refused with '%s', wanted '%s'", cases[i].text, reason, cases[i].reason);
        }
    }
}

// What trace_make_write makes, as a file that is read back.
static struct trace_file make(const struct trace_make *make) {
    char path[] = "/tmp/kvpool-trace-XXXXXX";
    struct trace_file file;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *out = fdopen(fd, "w");
    assert_non_null(out);
    trace_make_write(make, out);
    assert_int_equal(fclose(out), 0);
    assert_true(trace_file_read(path, 1, 0, &file));
    unlink(path);
    return file;
}

static const struct trace_make small = {.requests = 2000,
                                        .prefixes = 10,
                                        .zipf = 1,
                                        .prefix_len = 40,
                                        .suffix_len = 10,
                                        .output_len = 3,
                                        .block_size = 16,
                                        .interval_us = 2000,
                                        .seed = 4};

static void made_requests_share_prefixes_by_zipfs_law(void **state) {
    (void)state;
    struct trace_file file = make(&small);
    uint32_t count[10] = {0};
    double harmonic = 0;
    assert_int_equal(file.n, 2000);
    for (size_t i = 0; i < file.n; i++) {
        const struct trace_line *line = &file.lines[i];
        assert_true(line->timestamp == 2.0 * (double)i);
        assert_int_equal(line->input, 50);
        assert_int_equal(line->output, 3);
        assert_int_equal(line->blocks, 4);
        assert_int_equal(line->opened, 49);
        assert_true(line->ids[0] < 20 && line->ids[0] % 2 == 0); // two whole blocks each
        assert_int_equal(line->ids[1], line->ids[0] + 1);
        assert_int_equal(line->ids[2], 20 + 2 * i); // the rest is its own
        assert_int_equal(line->ids[3], 21 + 2 * i);
        count[line->ids[0] / 2]++;
    }
    for (int k = 0; k < 10; k++) {
        harmonic += 1.0 / (k + 1);
    }
    for (int k = 0; k < 10; k++) { // 2000 draws: six standard deviations are below 130
        assert_true(fabs(count[k] - 2000 / harmonic / (k + 1)) < 130);
    }
    trace_file_free(&file);
}

static void equal_seeds_make_equal_traces(void **state) {
    (void)state;
    struct trace_make other = small;
    struct capture a, b, c;
    capture_start(&a);
    trace_make_write(&small, a.out);
    capture_start(&b);
    trace_make_write(&small, b.out);
    capture_start(&c);
    other.seed++;
    trace_make_write(&other, c.out);
    capture_end(&a);
    capture_end(&b);
    capture_end(&c);
    assert_string_equal(a.text, b.text);
    assert_string_not_equal(a.text, c.text);
    capture_free(&a);
    capture_free(&b);
    capture_free(&c);
}

static void scans_share_nothing(void **state) {
    (void)state;
    struct trace_make with_scans = small;
    with_scans.requests = 9;
    with_scans.scan_every = 3;
    with_scans.scan_len = 100;
    struct trace_file file = make(&with_scans);
    uint64_t next = 20;
    for (size_t i = 0; i < 9; i++) {
        bool scan = i % 3 == 2;
        const struct trace_line *line = &file.lines[i];
        assert_int_equal(line->input, scan ? 100 : 50);
        for (uint32_t b = scan ? 0 : 2; b < line->blocks; b++) {
            assert_int_equal(line->ids[b], next++);
        }
    }
    trace_file_free(&file);
}

static void equal_blocks_have_equal_tokens(void **state) {
    (void)state;
    uint64_t ids_a[] = {5, 6, 7}, ids_b[] = {5, 6, 8};
    struct trace_line a = {.input = 40, .block_size = 16, .ids = ids_a, .blocks = 3};
    struct trace_line b = {.input = 40, .block_size = 16, .ids = ids_b, .blocks = 3};
    uint32_t of_a[40], of_b[40];
    replay_prompt(&a, 40, of_a);
    replay_prompt(&b, 40, of_b);
    assert_memory_equal(of_a, of_b, 32 * sizeof(of_a[0]));
    for (int i = 32; i < 40; i++) {
        assert_int_not_equal(of_a[i], of_b[i]);
    }
    for (int i = 0; i < 40; i++) { // and no two positions the same ones
        for (int k = 0; k < i; k++) {
            assert_int_not_equal(of_a[i], of_a[k]);
        }
    }
    b.block_size = 8; // a block's tokens do not depend on where its line stands
    replay_prompt(&b, 8, of_b);
    assert_memory_equal(of_a, of_b, 8 * sizeof(of_a[0]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_of_mooncakes_has_defaults_for_the_rest),
        cmocka_unit_test(a_recorded_line_says_more),
        cmocka_unit_test(other_lines_are_told_apart),
        cmocka_unit_test(malformed_lines_are_refused_with_a_reason),
        cmocka_unit_test(made_requests_share_prefixes_by_zipfs_law),
        cmocka_unit_test(equal_seeds_make_equal_traces),
        cmocka_unit_test(scans_share_nothing),
        cmocka_unit_test(equal_blocks_have_equal_tokens),
    };
    return cmocka_run_group_tests_name("cmd/trace_line", tests, NULL, NULL);
}
