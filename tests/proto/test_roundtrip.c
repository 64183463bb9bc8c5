// SPDX-License-Identifier: Apache-2.0
// test_roundtrip.c: what is written is what is parsed, for every op; the tables agree with the
// structs; the bytes on the wire are those of golden.txt.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "samples.h"

#include <stdio.h>
#include <stdlib.h>

static struct sample samples[SAMPLES_MAX];
static size_t num_samples;

static int setup(void **state) {
    (void)state;
    num_samples = samples_make(samples);
    return 0;
}

static void every_sample_survives_a_round_trip(void **state) {
    (void)state;
    for (size_t i = 0; i < num_samples; i++) {
        const struct sample *s = &samples[i];
        struct proto_msg msg;
        struct err err = {0};
        int rc = sample_parse(s, &msg, &err);
        if (rc != 0)
            fail_msg("%s: %s", s->name, err.text);
        assert_int_equal(msg.header.op, s->op);
        assert_int_equal(msg.header.seq, 7);
        assert_int_equal(msg.header.epoch, 9);
        uint8_t again[SAMPLE_BYTES];
        uint32_t tokens[8] = {0};
        assert_true(msg.num_tokens <= 8);
        proto_tokens(&msg, tokens);
        size_t behind = (size_t)msg.count * msg.record_size + msg.num_tokens * sizeof(uint32_t);
        size_t body = s->len - sizeof msg.header - behind;
        size_t len =
            proto_write_tokens(again, sizeof again, &msg.header, &msg.body, body, msg.records,
                               (size_t)msg.count * msg.record_size, tokens, msg.num_tokens);
        assert_int_equal(len, s->len);
        assert_memory_equal(again, s->bytes, len);
    }
}

static void every_op_has_a_sample_of_both_directions(void **state) {
    (void)state;
    bool seen[PROTO_NUM_OPS][2] = {0};
    for (size_t i = 0; i < num_samples; i++)
        if (samples[i].op != 0)
            seen[samples[i].op][samples[i].reply] = true;
    size_t ops = 0;
    for (uint16_t op = 0; op < PROTO_NUM_OPS; op++) {
        bool known = proto_op(op) != NULL;
        assert_int_equal(seen[op][0], known);
        assert_int_equal(seen[op][1], known);
        ops += known;
    }
    assert_int_equal(ops, 39);
}

static void messages_parse_at_any_alignment(void **state) {
    (void)state;
    uint8_t *block = malloc(SAMPLE_BYTES + 16);
    assert_non_null(block);
    for (size_t i = 0; i < num_samples; i++) {
        struct proto_msg want;
        assert_int_equal(sample_parse(&samples[i], &want, NULL), 0);
        for (size_t shift = 0; shift < 16; shift++) {
            const struct sample *s = &samples[i];
            struct proto_msg msg;
            bool header_ok;
            const struct proto_op_info *op = proto_op(s->op);
            memcpy(block + shift, s->bytes, s->len);
            int rc = s->reply ? proto_parse_reply(op ? s->op : PROTO_PING, block + shift, s->len,
                                                  &msg, NULL)
                              : proto_parse_request(op->socket, block + shift, s->len, &msg,
                                                    &header_ok, NULL);
            assert_int_equal(rc, 0);
            assert_int_equal(msg.count, want.count);
            for (uint32_t r = 0; r < msg.count; r++) {
                uint8_t a[sizeof(struct proto_ns_info)], b[sizeof(struct proto_ns_info)];
                assert_true(msg.record_size <= sizeof a);
                proto_record(&msg, r, a);
                proto_record(&want, r, b);
                assert_memory_equal(a, b, msg.record_size);
            }
            uint32_t ids[8], wanted[8];
            assert_int_equal(msg.num_tokens, want.num_tokens);
            assert_true(msg.num_tokens <= 8);
            proto_tokens(&msg, ids);
            proto_tokens(&want, wanted);
            assert_memory_equal(ids, wanted, msg.num_tokens * sizeof ids[0]);
        }
    }
    free(block);
}

static void records_are_read_in_order(void **state) {
    (void)state;
    struct sample s = sample_get("step_begin.request");
    struct proto_msg msg;
    assert_int_equal(sample_parse(&s, &msg, NULL), 0);
    assert_int_equal(msg.count, 2);
    assert_int_equal(msg.record_size, sizeof(struct proto_batch_item));
    struct proto_batch_item item;
    proto_record(&msg, 0, &item);
    assert_int_equal(item.tokens, 3);
    proto_record(&msg, 1, &item);
    assert_int_equal(item.tokens, 1);
}

static void tokens_stand_behind_the_records(void **state) {
    (void)state;
    const uint32_t ids[] = {101, 202, 303, 404, 0xffffffff};
    uint32_t got[5];
    struct proto_msg msg;
    struct sample s = sample_get("step_begin_tokens.request");
    assert_int_equal(sample_parse(&s, &msg, NULL), 0);
    assert_int_equal(msg.count, 3);
    assert_int_equal(msg.num_tokens, 5);
    assert_ptr_equal(msg.tokens, msg.records + 3 * sizeof(struct proto_batch_item));
    proto_tokens(&msg, got);
    assert_memory_equal(got, ids, sizeof ids);
    s = sample_get("seq_open.request");
    assert_int_equal(sample_parse(&s, &msg, NULL), 0);
    assert_int_equal(msg.count, 0);
    assert_null(msg.records);
    assert_int_equal(msg.num_tokens, 5);
    memset(got, 0, sizeof got);
    proto_tokens(&msg, got);
    assert_memory_equal(got, ids, sizeof ids);
    const char *none[] = {"seq_open_empty.request", "step_begin_no_tokens.request",
                          "step_begin.request", "seq_open.reply", "again.reply"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        memset(&msg, 0xff, sizeof msg);
        s = sample_get(none[i]);
        assert_int_equal(sample_parse(&s, &msg, NULL), 0);
        assert_int_equal(msg.num_tokens, 0);
        assert_null(msg.tokens);
    }
}

static void the_retry_time_of_a_full_queue_is_the_detail(void **state) {
    (void)state;
    struct sample s = sample_get("again.reply");
    struct proto_msg msg;
    assert_int_equal(sample_parse(&s, &msg, NULL), 0);
    assert_int_equal(msg.header.status, KVPOOL_E_AGAIN);
    assert_int_equal(msg.body.error.detail, 250000);
}

static void check_layout(const struct proto_layout *l) {
    uint32_t end = 0;
    for (uint32_t i = 0; i < l->num_fields; i++) {
        if (l->fields[i].offset != end)
            fail_msg("%s: a gap before %s", l->name, l->fields[i].name);
        end += l->fields[i].size;
    }
    if (end != l->size)
        fail_msg("%s: fields end at %u of %u bytes", l->name, end, l->size);
}

static void layouts_cover_their_structs_without_a_gap(void **state) {
    (void)state;
    check_layout(&proto_layout_header);
    check_layout(&proto_layout_error);
    for (uint16_t op = 0; op < PROTO_NUM_OPS; op++) {
        const struct proto_op_info *info = proto_op(op);
        if (info == NULL)
            continue;
        const struct proto_layout *layouts[] = {info->request.body, info->request.record,
                                                info->reply.body, info->reply.record};
        for (size_t i = 0; i < 4; i++)
            if (layouts[i] != NULL)
                check_layout(layouts[i]);
    }
}

static void shapes_are_the_structs_of_the_header(void **state) {
    (void)state;
    size_t body = 1, record = 1;
    assert_true(proto_request_shape(PROTO_STEP_BEGIN, &body, &record));
    assert_int_equal(body, sizeof(struct proto_step_begin));
    assert_int_equal(record, sizeof(struct proto_batch_item));
    assert_true(proto_reply_shape(PROTO_STEP_BEGIN, &body, &record));
    assert_int_equal(body, sizeof(struct proto_step_reply));
    assert_int_equal(record, 0);
    assert_true(proto_request_shape(PROTO_STATS, &body, &record));
    assert_int_equal(body, 0);
    assert_int_equal(record, 0);
    assert_true(proto_reply_shape(PROTO_POOL_LIST, &body, &record));
    assert_int_equal(body, sizeof(struct proto_list_reply));
    assert_int_equal(record, sizeof(struct proto_pool_info));
    assert_true(proto_reply_shape(PROTO_SEQ_CREATE, &body, &record));
    assert_int_equal(body, sizeof(struct proto_count));
    assert_int_equal(record, sizeof(uint64_t));
    assert_true(proto_request_shape(PROTO_SEQ_OPEN, &body, &record));
    assert_int_equal(body, sizeof(struct proto_seq_open));
    assert_int_equal(record, 0);
    assert_true(proto_request_shape(PROTO_STEP_BEGIN_TOKENS, &body, &record));
    assert_int_equal(body, sizeof(struct proto_step_begin_tokens));
    assert_int_equal(record, sizeof(struct proto_batch_item));
    assert_true(proto_reply_shape(PROTO_POOL_USAGE, &body, &record));
    assert_int_equal(body, sizeof(struct proto_list_reply));
    assert_int_equal(record, sizeof(struct proto_ns_info));
    assert_true(proto_reply_shape(PROTO_FD_OPEN, &body, &record));
    assert_int_equal(body, sizeof(struct proto_fd_hello_reply));
    assert_true(proto_request_shape(PROTO_APPEND, &body, &record));
    assert_int_equal(body, sizeof(struct proto_attn));
    assert_int_equal(record, 0);
}

static void unknown_ops_have_no_shape_and_no_name(void **state) {
    (void)state;
    const uint16_t unknown[] = {0, 40, 63, 64, 255, 256, 65535};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        size_t body = 5, record = 6;
        assert_false(proto_request_shape(unknown[i], &body, &record));
        assert_false(proto_reply_shape(unknown[i], &body, &record));
        assert_int_equal(body, 5);
        assert_int_equal(record, 6);
        assert_string_equal(proto_op_name(unknown[i]), "?");
    }
    assert_string_equal(proto_op_name(PROTO_STEP_BEGIN), "STEP_BEGIN");
    assert_string_equal(proto_op_name(PROTO_BYE), "BYE");
}

static void write_refuses_what_does_not_fit(void **state) {
    (void)state;
    static uint8_t big[PROTO_MAX_MESSAGE + 64], buf[PROTO_MAX_MESSAGE + 64];
    struct proto_header h = {.version = 1, .op = PROTO_PING};
    assert_int_equal(proto_write(buf, 31, &h, NULL, 0, NULL, 0), 0);
    assert_int_equal(proto_write(buf, 32, &h, NULL, 0, NULL, 0), 32);
    assert_int_equal(proto_write(buf, 39, &h, big, 8, NULL, 0), 0);
    assert_int_equal(proto_write(buf, 40, &h, big, 8, NULL, 0), 40);
    assert_int_equal(proto_write(buf, 55, &h, big, 8, big, 16), 0);
    assert_int_equal(proto_write(buf, 56, &h, big, 8, big, 16), 56);
    size_t most = PROTO_MAX_MESSAGE - 32;
    assert_int_equal(proto_write(buf, sizeof buf, &h, big, 8, big, most - 8), PROTO_MAX_MESSAGE);
    assert_int_equal(proto_write(buf, sizeof buf, &h, big, 8, big, most - 7), 0);
    assert_int_equal(proto_write(buf, sizeof buf, &h, big, most + 1, NULL, 0), 0);
    assert_int_equal(proto_write(buf, sizeof buf, &h, big, SIZE_MAX, big, SIZE_MAX), 0);
    assert_int_equal(proto_write(buf, sizeof buf, &h, big, 8, big, SIZE_MAX - 7), 0);
}

static void write_with_tokens_refuses_what_does_not_fit(void **state) {
    (void)state;
    static uint32_t tokens[PROTO_MAX_TOKENS + 1];
    static uint8_t big[PROTO_MAX_MESSAGE];
    size_t cap = PROTO_MAX_REQUEST + 64;
    uint8_t *buf = malloc(cap);
    assert_non_null(buf);
    struct proto_header h = {.version = 1, .op = PROTO_SEQ_OPEN};
    assert_int_equal(proto_write_tokens(buf, 31, &h, NULL, 0, NULL, 0, NULL, 0), 0);
    assert_int_equal(proto_write_tokens(buf, 32, &h, NULL, 0, NULL, 0, NULL, 0), 32);
    assert_int_equal(proto_write_tokens(buf, 67, &h, big, 8, big, 16, tokens, 3), 0);
    memset(buf, 0x77, 69);
    assert_int_equal(proto_write_tokens(buf, 68, &h, big, 8, big, 16, tokens, 3), 68);
    assert_int_equal(buf[67], 0);
    assert_int_equal(buf[68], 0x77);
    struct proto_header written;
    memcpy(&written, buf, sizeof written);
    assert_int_equal(written.len, 36);
    size_t most = PROTO_MAX_MESSAGE - 32;
    assert_int_equal(
        proto_write_tokens(buf, cap, &h, big, 8, big, most - 8, tokens, PROTO_MAX_TOKENS),
        PROTO_MAX_REQUEST);
    assert_int_equal(proto_write_tokens(buf, PROTO_MAX_REQUEST - 1, &h, big, 8, big, most - 8,
                                        tokens, PROTO_MAX_TOKENS),
                     0);
    assert_int_equal(proto_write_tokens(buf, cap, &h, big, 8, big, most - 7, tokens, 1), 0);
    assert_int_equal(
        proto_write_tokens(buf, cap, &h, big, 8, NULL, 0, tokens, PROTO_MAX_TOKENS + 1), 0);
    assert_int_equal(proto_write_tokens(buf, cap, &h, big, 8, NULL, 0, tokens, 0x40000001u), 0);
    free(buf);
}

static void reply_header_answers_its_request(void **state) {
    (void)state;
    struct proto_header request = {
        .magic = PROTO_MAGIC, .version = 1, .op = PROTO_DECODE, .len = 99, .seq = 5, .epoch = 3};
    struct proto_header h = proto_reply_header(&request, KVPOOL_E_STALE, 8);
    assert_int_equal(h.magic, PROTO_MAGIC);
    assert_int_equal(h.version, 1);
    assert_int_equal(h.op, PROTO_DECODE);
    assert_int_equal(h.seq, 5);
    assert_int_equal(h.epoch, 8);
    assert_int_equal(h.status, KVPOOL_E_STALE);
    request.version = 200; // not ours: the reply is in one that is
    assert_int_equal(proto_reply_header(&request, KVPOOL_E_VERSION, 8).version, PROTO_VERSION_MIN);
    h = proto_reply_header(NULL, KVPOOL_E_PROTO, 8);
    assert_int_equal(h.op, 0);
    assert_int_equal(h.seq, 0);
    assert_int_equal(h.version, PROTO_VERSION_MIN);
}

static void error_replies_carry_status_detail_and_text(void **state) {
    (void)state;
    struct err err;
    memset(&err, 0x55, sizeof err); // no rest of the buffer may leave
    assert_int_equal(err_set_detail(&err, KVPOOL_E_NOSPACE, 12, "%d pages", 12), KVPOOL_E_NOSPACE);
    struct proto_header request = {.version = 1, .op = PROTO_STEP_BEGIN, .seq = 4};
    uint8_t buf[256];
    assert_int_equal(proto_write_error(buf, 239, &request, 8, &err), 0);
    size_t len = proto_write_error(buf, sizeof buf, &request, 8, &err);
    assert_int_equal(len, 240);
    struct proto_msg msg;
    assert_int_equal(proto_parse_reply(PROTO_STEP_BEGIN, buf, len, &msg, NULL), 0);
    assert_int_equal(msg.header.status, KVPOOL_E_NOSPACE);
    assert_int_equal(msg.header.seq, 4);
    assert_int_equal(msg.body.error.detail, 12);
    assert_string_equal(msg.body.error.text, "12 pages");
}

static void a_full_error_text_is_still_terminated(void **state) {
    (void)state;
    struct err err = {.status = KVPOOL_E_INVAL};
    memset(err.text, 'x', sizeof err.text);
    uint8_t buf[256];
    size_t len = proto_write_error(buf, sizeof buf, NULL, 8, &err);
    struct proto_msg msg;
    assert_int_equal(proto_parse_reply(PROTO_PING, buf, len, &msg, NULL), 0);
    assert_int_equal(strlen(msg.body.error.text), ERR_TEXT_MAX - 1);
}

static void an_error_without_a_status_is_an_internal_error(void **state) {
    (void)state;
    struct err err = {.text = "forgotten"};
    struct proto_header request = {.version = 1, .op = PROTO_PING};
    uint8_t buf[256];
    size_t len = proto_write_error(buf, sizeof buf, &request, 8, &err);
    struct proto_msg msg;
    assert_int_equal(proto_parse_reply(PROTO_PING, buf, len, &msg, NULL), 0);
    assert_int_equal(msg.header.status, KVPOOL_E_INTERNAL);
}

// golden.txt: "name hex" a line, in the order of the samples. A difference means that the wire
// format changed: old and new programs would not understand each other.
static void bytes_are_those_of_the_golden_file(void **state) {
    (void)state;
    FILE *f = fopen(GOLDEN, "r");
    assert_non_null(f);
    char line[2 * SAMPLE_BYTES + 64];
    for (size_t i = 0; i < num_samples; i++) {
        assert_non_null(fgets(line, sizeof line, f));
        char want[2 * SAMPLE_BYTES + 64];
        int at = snprintf(want, sizeof want, "%s ", samples[i].name);
        for (size_t b = 0; b < samples[i].len; b++)
            at += snprintf(want + at, sizeof want - (size_t)at, "%02x", samples[i].bytes[b]);
        snprintf(want + at, sizeof want - (size_t)at, "\n");
        assert_string_equal(line, want);
    }
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sample_survives_a_round_trip),
        cmocka_unit_test(every_op_has_a_sample_of_both_directions),
        cmocka_unit_test(messages_parse_at_any_alignment),
        cmocka_unit_test(records_are_read_in_order),
        cmocka_unit_test(tokens_stand_behind_the_records),
        cmocka_unit_test(the_retry_time_of_a_full_queue_is_the_detail),
        cmocka_unit_test(layouts_cover_their_structs_without_a_gap),
        cmocka_unit_test(shapes_are_the_structs_of_the_header),
        cmocka_unit_test(unknown_ops_have_no_shape_and_no_name),
        cmocka_unit_test(write_refuses_what_does_not_fit),
        cmocka_unit_test(write_with_tokens_refuses_what_does_not_fit),
        cmocka_unit_test(reply_header_answers_its_request),
        cmocka_unit_test(error_replies_carry_status_detail_and_text),
        cmocka_unit_test(a_full_error_text_is_still_terminated),
        cmocka_unit_test(an_error_without_a_status_is_an_internal_error),
        cmocka_unit_test(bytes_are_those_of_the_golden_file),
    };
    return cmocka_run_group_tests_name("proto_roundtrip", tests, setup, NULL);
}
