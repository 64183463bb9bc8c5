// SPDX-License-Identifier: Apache-2.0
// test_dump.c: messages as text.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/dump.h"
#include "samples.h"

static char text[16384];

static const char *dump(const struct sample *s) {
    int n = proto_dump(s->bytes, s->len, s->reply, text, sizeof text);
    assert_int_equal(n, strlen(text));
    return text;
}

static void a_request_with_records(void **state) {
    (void)state;
    struct sample s = sample_get("step_begin.request");
    assert_string_equal(dump(&s), "request STEP_BEGIN op 15 version 1 seq 7 epoch 9 len 56\n"
                                  "  pool 0x100000002 step 11 count 2\n"
                                  "  0: seq 0x300000004 tokens 3\n"
                                  "  1: seq 0x500000006 tokens 1\n");
}

static void an_error_reply(void **state) {
    (void)state;
    struct sample s = sample_get("nospace.reply");
    assert_string_equal(dump(&s), "reply STEP_BEGIN op 15 version 1 seq 7 epoch 9 len 208 status "
                                  "KVPOOL_E_NOSPACE (-4)\n"
                                  "  detail 12 text \"3 of 12 pages are free\"\n");
    s = sample_get("unread.reply");
    assert_non_null(strstr(dump(&s), "reply ? op 0 "));
    assert_non_null(strstr(text, "text \"message of 3 bytes"));
}

static void floats_signs_and_tensors(void **state) {
    (void)state;
    struct sample s = sample_get("prefill.request");
    assert_non_null(strstr(dump(&s), " sm_scale 0.25 soft_cap 30 window_left -1 q.region 0x15 "
                                     "q.offset 64 q.token_stride 4096 q.head_stride 128"));
    s = sample_get("stats.reply");
    assert_non_null(strstr(dump(&s), " requests_per_s 20.5 "));
}

static void every_sample_is_printed_and_every_secret_is_not(void **state) {
    (void)state;
    static struct sample all[SAMPLES_MAX];
    size_t n = samples_make(all), secrets = 0, credentials = 0, handles = 0;
    for (size_t i = 0; i < n; i++) {
        assert_null(strstr(dump(&all[i]), "malformed"));
        assert_null(strstr(text, "a0a1"));
        assert_null(strstr(text, "hunter2"));
        credentials += strstr(text, "credential (secret)") != NULL;
        secrets += strstr(text, "token (secret)") != NULL;
        handles += strstr(text, "ipc (secret)") != NULL;
    }
    assert_int_equal(secrets, 5);
    assert_int_equal(handles, 2);
    assert_int_equal(credentials, 2);
}

static void a_request_with_tokens(void **state) {
    (void)state;
    struct sample s = sample_get("step_begin_tokens.request");
    assert_string_equal(dump(&s), "request STEP_BEGIN_TOKENS op 23 version 1 seq 7 epoch 9 len 92\n"
                                  "  pool 0x100000002 step 12 count 3 num_tokens 5\n"
                                  "  0: seq 0x300000004 tokens 3\n"
                                  "  1: seq 0x500000006 tokens 0\n"
                                  "  2: seq 0x100000002 tokens 2\n"
                                  "  token ids 101 202 303 404 4294967295\n");
    s = sample_get("seq_open.request");
    assert_string_equal(dump(&s), "request SEQ_OPEN op 22 version 1 seq 7 epoch 9 len 108\n"
                                  "  pool 0x100000002 num_tokens 5 flags 0x2 priority 2 "
                                  "extra_size 6 extra 0xe0e100e3e4e5\n"
                                  "  token ids 101 202 303 404 4294967295\n");
    s = sample_get("seq_open_empty.request");
    assert_non_null(strstr(dump(&s), " extra_size 0 extra 0x\n"));
    assert_null(strstr(text, "token ids"));
}

static void names_cannot_put_control_bytes_into_a_log(void **state) {
    (void)state;
    struct sample s = sample_get("pool_open.request");
    memcpy(s.bytes + sizeof(struct proto_header), "a\nb\x1b\"\xff", 6);
    assert_non_null(strstr(dump(&s), "name \"a?b???\""));
}

static void malformed_messages_say_why(void **state) {
    (void)state;
    struct sample s = sample_get("ping.request");
    s.len = 33;
    assert_string_equal(dump(&s),
                        "request PING op 2 version 1 seq 7 epoch 9 len 8\n"
                        "  malformed: KVPOOL_E_PROTO: header.len is 8, but 1 bytes follow\n");
    s.len = 3;
    assert_string_equal(dump(&s),
                        "  malformed: KVPOOL_E_PROTO: message of 3 bytes, a header has 32\n");
    s = sample_get("ping.request");
    s.bytes[offsetof(struct proto_header, op)] = 99;
    assert_non_null(strstr(dump(&s), "request ? op 99 "));
    assert_non_null(strstr(text, "malformed: KVPOOL_E_UNSUPPORTED"));
    s.len = 0;
    assert_non_null(strstr(dump(&s), "message of 0 bytes"));
    int n = proto_dump(NULL, 0, false, text, sizeof text);
    assert_int_equal(n, strlen(text));
    assert_non_null(strstr(text, "malformed"));
}

static void long_batches_are_counted(void **state) {
    (void)state;
    static uint8_t buf[PROTO_MAX_MESSAGE];
    static struct proto_batch_item items[100];
    struct proto_header h = {.version = 1, .op = PROTO_STEP_BEGIN};
    struct proto_step_begin begin = {1, 1, 100, 0};
    size_t len = proto_write(buf, sizeof buf, &h, &begin, sizeof begin, items, sizeof items);
    assert_true(proto_dump(buf, len, false, text, sizeof text) > 0);
    assert_non_null(strstr(text, "  15: seq 0x0 tokens 0\n  and 84 more\n"));
}

static void long_prompts_are_counted(void **state) {
    (void)state;
    static uint8_t buf[PROTO_MAX_MESSAGE];
    static uint32_t tokens[PROTO_DUMP_TOKENS + 5];
    struct proto_header h = {.version = 1, .op = PROTO_SEQ_OPEN};
    struct proto_seq_open open = {.pool = 1, .num_tokens = PROTO_DUMP_TOKENS + 5};
    tokens[PROTO_DUMP_TOKENS - 1] = 77;
    tokens[PROTO_DUMP_TOKENS] = 88;
    size_t len = proto_write_tokens(buf, sizeof buf, &h, &open, sizeof open, NULL, 0, tokens,
                                    PROTO_DUMP_TOKENS + 5);
    assert_true(proto_dump(buf, len, false, text, sizeof text) > 0);
    assert_non_null(strstr(text, "  token ids 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 77 and 5 more\n"));
}

static void what_does_not_fit_is_cut_and_terminated(void **state) {
    (void)state;
    struct sample s = sample_get("stats.reply");
    size_t full = strlen(dump(&s));
    char want[1024];
    assert_true(full < sizeof want);
    memcpy(want, text, full + 1);
    for (size_t cap = 1; cap <= full + 1; cap++) {
        char buf[1024];
        memset(buf, 'z', sizeof buf);
        assert_int_equal(proto_dump(s.bytes, s.len, true, buf, cap), cap - 1);
        assert_memory_equal(buf, want, cap - 1);
        assert_int_equal(buf[cap - 1], '\0');
        if (cap < sizeof buf)
            assert_int_equal(buf[cap], 'z');
    }
    assert_int_equal(proto_dump(s.bytes, s.len, true, NULL, 0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_with_records),
        cmocka_unit_test(a_request_with_tokens),
        cmocka_unit_test(an_error_reply),
        cmocka_unit_test(floats_signs_and_tensors),
        cmocka_unit_test(every_sample_is_printed_and_every_secret_is_not),
        cmocka_unit_test(names_cannot_put_control_bytes_into_a_log),
        cmocka_unit_test(malformed_messages_say_why),
        cmocka_unit_test(long_batches_are_counted),
        cmocka_unit_test(long_prompts_are_counted),
        cmocka_unit_test(what_does_not_fit_is_cut_and_terminated),
    };
    return cmocka_run_group_tests_name("proto_dump", tests, NULL, NULL);
}
