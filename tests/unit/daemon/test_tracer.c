// SPDX-License-Identifier: Apache-2.0
// test_tracer.c: the lines of a trace, and readers that are slow, greedy or gone.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/trace.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SEQS 1024u
#define PAGE 16u
#define TEXT_BYTES (8u << 20)

static uv_loop_t loop;
static struct trace trace;
static char text[TEXT_BYTES]; // what was read last
static size_t text_len;

static int setup(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(uv_loop_init(&loop), 0);
    trace_init(&trace, &loop, MAX_SEQS);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    trace_fini(&trace);
    assert_int_equal(trace.bytes, 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    return 0;
}

static int add(bool with_tokens) {
    int fd = -1;
    assert_int_equal(trace_add(&trace, with_tokens, &fd, NULL), 0);
    return fd;
}

// Reads at most `max` bytes more of what is there.
static void read_some(int fd, size_t max) {
    while (max > 0) {
        size_t room = sizeof text - 1 - text_len < max ? sizeof text - 1 - text_len : max;
        ssize_t n = read(fd, text + text_len, room);
        if (n <= 0) {
            assert_true(n < 0 && errno == EAGAIN);
            return;
        }
        text_len += (size_t)n;
        max -= (size_t)n;
        text[text_len] = '\0';
    }
}

// Everything, until nothing more comes.
static const char *read_all(int fd) {
    text_len = 0;
    text[0] = '\0';
    for (size_t before = SIZE_MAX; before != text_len;) {
        before = text_len;
        read_some(fd, SIZE_MAX);
        uv_run(&loop, UV_RUN_NOWAIT);
        read_some(fd, SIZE_MAX);
    }
    return text;
}

static void request(uint32_t pid) {
    const struct trace_request r = {
        .op = "DECODE", .pid = pid, .n = 8, .tokens = 9, .started_ns = uv_hrtime(), .status = 0};
    trace_request(&trace, &r);
}

static uint32_t *make_tokens(uint32_t n) {
    uint32_t *tokens = malloc((size_t)n * sizeof *tokens + 1);
    assert_non_null(tokens);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = 100000 + i;
    return tokens;
}

static struct trace_open opening(uint64_t seq, const uint32_t *tokens, uint32_t n) {
    return (struct trace_open){.seq = seq,
                               .session = 7,
                               .pid = 42,
                               .pool = "kv",
                               .page_size = PAGE,
                               .tokens = tokens,
                               .n = n,
                               .matched = 16};
}

// The ids of the first line with hash_ids in `line`, returns how many.
static uint32_t ids_of(const char *line, uint64_t *ret) {
    uint32_t n = 0;
    const char *at = strstr(line, "\"hash_ids\":[");
    assert_non_null(at);
    at += strlen("\"hash_ids\":[");
    while (*at != ']') {
        char *end;
        ret[n] = strtoull(at, &end, 10);
        assert_true(ret[n] < 1ull << 53);
        n++;
        at = *end == ',' ? end + 1 : end;
    }
    return n;
}

// The ids that a tracer shows for an opening.
static uint32_t show(int fd, const struct trace_open *open, uint64_t *ret) {
    trace_seq_open(&trace, open);
    trace_seq_end(&trace, open->seq);
    return ids_of(read_all(fd), ret);
}

static void a_request_is_a_line_for_every_tracer(void **state) {
    (void)state;
    int a = add(false), b = add(true);
    struct trace_request r = {.op = "STEP_BEGIN",
                              .pid = 5,
                              .n = 2,
                              .tokens = 30,
                              .started_ns = uv_hrtime() - 1500000,
                              .status = KVPOOL_E_NOSPACE};
    trace_request(&trace, &r);
    const int fds[] = {a, b};
    for (int i = 0; i < 2; i++) {
        char *rest;
        const char *line = read_all(fds[i]);
        assert_memory_equal(line, "{\"t\":", 5);
        double t = strtod(line + 5, &rest);
        assert_true(t >= 0 && t < 60000);
        const char *middle = ",\"op\":\"STEP_BEGIN\",\"client\":5,\"n\":2,\"tokens\":30,\"us\":";
        assert_memory_equal(rest, middle, strlen(middle));
        uint64_t us = strtoull(rest + strlen(middle), &rest, 10);
        assert_true(us >= 1500 && us < 60000000);
        assert_string_equal(rest, ",\"status\":\"E_NOSPACE\"}\n");
        close(fds[i]);
    }
}

static void a_sequence_is_a_line_when_it_ends(void **state) {
    (void)state;
    int a = add(false), b = add(true);
    uint32_t *tokens = make_tokens(40);
    uint64_t ids[16] = {0}, other[16] = {0};
    struct trace_open open = opening(3, tokens, 40);
    trace_seq_open(&trace, &open);
    assert_string_equal(read_all(a), "");
    trace_seq_length(&trace, 3 | 1ull << 32, 1000); // another generation: not this sequence
    trace_seq_length(&trace, 3, 47);
    trace_seq_end(&trace, 3 | 1ull << 32);
    assert_string_equal(read_all(a), "");
    trace_seq_end(&trace, 3);
    const char *line = read_all(a);
    assert_memory_equal(line, "{\"timestamp\":", 13);
    assert_non_null(strstr(line, "\"input_length\":40,\"output_length\":7,\"hash_ids\":["));
    assert_non_null(strstr(
        line, "],\"block_size\":16,\"pool\":\"kv\",\"matched\":16,\"opened\":40,\"client\":42}\n"));
    assert_null(strstr(line, "tokens"));
    assert_int_equal(ids_of(line, ids), 3); // 16, 16 and 8 tokens
    line = read_all(b);
    assert_non_null(strstr(line, "\"client\":42,\"tokens\":[100000,100001,"));
    assert_non_null(strstr(line, ",100039]}\n"));
    assert_int_equal(ids_of(line, other), 3);
    for (int i = 0; i < 3; i++)
        assert_int_not_equal(ids[i], other[i]); // every trace has its own
    trace_seq_end(&trace, 3);
    assert_string_equal(read_all(a), "");
    free(tokens);
    close(a);
    close(b);
}

static void equal_prefixes_have_equal_ids_and_only_those(void **state) {
    (void)state;
    int a = add(false);
    uint32_t *tokens = make_tokens(64);
    uint64_t ids[16] = {0}, again[16] = {0};
    struct trace_open open = opening(1, tokens, 64);
    assert_int_equal(show(a, &open, ids), 4);
    assert_int_equal(show(a, &open, again), 4);
    assert_memory_equal(ids, again, 4 * sizeof ids[0]);
    open.n = 39; // two whole pages and 7 tokens of the third
    assert_int_equal(show(a, &open, again), 3);
    assert_memory_equal(ids, again, 2 * sizeof ids[0]);
    assert_int_not_equal(ids[2], again[2]);
    uint64_t seven = again[2];
    assert_int_equal(show(a, &open, again), 3);
    assert_int_equal(again[2], seven);
    open.n = 38; // fewer of them: another block
    show(a, &open, again);
    assert_int_not_equal(again[2], seven);
    tokens[38] = 0; // six tokens, and six with a 0 behind them
    open.n = 39;
    show(a, &open, ids + 8);
    assert_int_not_equal(again[2], ids[10]);
    tokens[38] = 100038;
    open.n = 64;
    tokens[20]++; // in the second page: it, and all behind it
    show(a, &open, again);
    assert_int_equal(again[0], ids[0]);
    for (int i = 1; i < 4; i++)
        assert_int_not_equal(again[i], ids[i]);
    tokens[20]--;
    open.extra = "lora";
    open.extra_size = 4;
    show(a, &open, again);
    assert_int_not_equal(again[0], ids[0]);
    open.extra_size = 0;
    open.ns = 1;
    show(a, &open, again);
    assert_int_not_equal(again[0], ids[0]);
    open.ns = 0;
    open.pool = "other";
    show(a, &open, again);
    assert_int_not_equal(again[0], ids[0]);
    open.pool = "kv";
    show(a, &open, again);
    assert_memory_equal(ids, again, 4 * sizeof ids[0]);
    open.n = 0;
    assert_int_equal(show(a, &open, again), 0);
    free(tokens);
    close(a);
}

static void a_tracer_that_came_later_does_not_see_the_end(void **state) {
    (void)state;
    int a = add(false);
    uint32_t *tokens = make_tokens(16);
    struct trace_open open = opening(1, tokens, 16);
    trace_seq_open(&trace, &open);
    int b = add(false);
    trace_seq_end(&trace, 1);
    assert_string_not_equal(read_all(a), "");
    assert_string_equal(read_all(b), "");
    // Nor does one that took the place of a tracer that is gone.
    trace_seq_open(&trace, &open);
    close(a);
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(trace.count, 1);
    a = add(false);
    trace_seq_end(&trace, 1);
    assert_string_equal(read_all(a), "");
    assert_string_not_equal(read_all(b), "");
    free(tokens);
    close(a);
    close(b);
}

static void a_slow_reader_loses_whole_lines_and_learns_how_many(void **state) {
    (void)state;
    const uint32_t sent = 60000;
    int a = add(false), quick = add(false);
    for (uint32_t i = 0; i < sent; i++) {
        request(i);
        if (i % 1000 == 999) {
            read_all(quick);
            assert_null(strstr(text, "dropped")); // one reader's slowness is no other's
        }
    }
    uint64_t lines = 0, dropped = 0;
    read_all(a); // makes room: what was dropped is said without another request
    request(7);
    text_len = strlen(text);
    read_some(a, SIZE_MAX);
    for (char *at = text, *end; *at != '\0'; at = end + 1) {
        static const char loss[] = "{\"dropped\":";
        end = strchr(at, '\n');
        assert_non_null(end);
        assert_int_equal(*at, '{');
        assert_int_equal(end[-1], '}');
        if (strncmp(at, loss, strlen(loss)) == 0)
            dropped += strtoull(at + strlen(loss), NULL, 10);
        else
            lines++;
    }
    assert_true(dropped > 1000);
    assert_int_equal(lines + dropped, sent + 1);
    close(a);
    close(quick);
}

static void a_line_longer_than_the_pipe_comes_whole(void **state) {
    (void)state;
    const uint32_t n = 200000; // with its tokens 1.6 MB
    int a = add(true);
    uint32_t *tokens = make_tokens(n);
    struct trace_open open = opening(1, tokens, n);
    trace_seq_open(&trace, &open);
    trace_seq_end(&trace, 1);
    request(1); // has to wait, and is given up
    read_all(a);
    const char *end = strchr(text, '\n');
    assert_non_null(end);
    assert_true(end - text > 1500000);
    assert_non_null(strstr(text, ",299999]}\n{\"dropped\":1}\n"));
    request(2);
    assert_non_null(strstr(read_all(a), "\"client\":2,"));
    free(tokens);
    close(a);
}

static void it_ends_when_the_reader_closes(void **state) {
    (void)state;
    uint32_t *tokens = make_tokens(16);
    struct trace_open open = opening(1, tokens, 16);
    int a = add(false);
    trace_seq_open(&trace, &open);
    assert_true(trace.bytes > 0);
    close(a); // told by the loop
    uv_run(&loop, UV_RUN_NOWAIT);
    assert_int_equal(trace.count, 0);
    assert_int_equal(trace.bytes, 0);
    a = add(false);
    trace_seq_open(&trace, &open);
    close(a); // told by a write
    trace_seq_end(&trace, 1);
    assert_int_equal(trace.count, 0);
    assert_int_equal(trace.bytes, 0);
    trace_seq_end(&trace, 1); // nobody, nothing
    free(tokens);
}

static void there_are_at_most_four(void **state) {
    (void)state;
    int fds[TRACE_MAX], fd = -1;
    struct err err;
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        fds[i] = add(false);
    assert_int_equal(trace_add(&trace, false, &fd, &err), KVPOOL_E_LIMIT);
    assert_non_null(strstr(err.text, "4"));
    assert_int_equal(fd, -1);
    close(fds[2]);
    uv_run(&loop, UV_RUN_NOWAIT);
    fds[2] = add(false);
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        close(fds[i]);
}

static void records_stay_within_their_memory(void **state) {
    (void)state;
    const uint32_t n = 262144;
    uint32_t *tokens = make_tokens(n);
    int a = add(true);
    uint32_t seqs = 0;
    for (size_t before = SIZE_MAX; before != trace.bytes && seqs < MAX_SEQS; seqs++) {
        struct trace_open open = opening(seqs, tokens, n);
        before = trace.bytes;
        trace_seq_open(&trace, &open);
    }
    assert_true(trace.bytes <= TRACE_MAX_BYTES && trace.bytes > TRACE_MAX_BYTES / 2);
    assert_true(seqs < MAX_SEQS);
    assert_string_equal(read_all(a), "{\"dropped\":1}\n");
    trace_seq_end(&trace, seqs - 1); // it has no record
    assert_string_equal(read_all(a), "");
    free(tokens);
    close(a);
}

static void the_sequences_of_a_session_are_found(void **state) {
    (void)state;
    uint32_t *tokens = make_tokens(16);
    int a = add(false);
    for (uint64_t i = 0; i < 10; i++) {
        struct trace_open open = opening(i | 5ull << 32, tokens, 16);
        open.session = i % 2 == 0 ? 7 : 8;
        trace_seq_open(&trace, &open);
    }
    struct trace_open replaced = opening(4 | 6ull << 32, tokens, 16); // whose end nobody told
    replaced.session = 8;
    trace_seq_open(&trace, &replaced);
    uint32_t cursor = 0;
    const uint64_t expected[] = {0, 2, 6, 8};
    for (int i = 0; i < 4; i++)
        assert_int_equal(trace_seq_next(&trace, 7, &cursor), expected[i] | 5ull << 32);
    assert_int_equal(trace_seq_next(&trace, 7, &cursor), 0);
    trace_seq_end(&trace, MAX_SEQS); // out of range
    free(tokens);
    close(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(a_request_is_a_line_for_every_tracer),
        TEST(a_sequence_is_a_line_when_it_ends),
        TEST(equal_prefixes_have_equal_ids_and_only_those),
        TEST(a_tracer_that_came_later_does_not_see_the_end),
        TEST(a_slow_reader_loses_whole_lines_and_learns_how_many),
        TEST(a_line_longer_than_the_pipe_comes_whole),
        TEST(it_ends_when_the_reader_closes),
        TEST(there_are_at_most_four),
        TEST(records_stay_within_their_memory),
        TEST(the_sequences_of_a_session_are_found),
    };
    return cmocka_run_group_tests_name("daemon/tracer", tests, NULL, NULL);
}
