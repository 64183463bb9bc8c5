// SPDX-License-Identifier: Apache-2.0
// test_refusals_tokens.c: every way in which a message of prefix sharing, a resumed session or a trace
// can be malformed, beyond what holds for all messages (test_refusals.c).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "spoil.h"

#include <stdlib.h>

// Parses a message of `len` bytes that says what it is: header of `op`, then `body`, then zeros. What
// *ret points at is gone.
static int parse_long(enum proto_socket socket, uint16_t op, size_t len, const void *body,
                      size_t body_len, struct proto_msg *ret, struct err *err) {
    uint8_t *bytes = calloc(1, len); // exactly its size, so that a read past its end is found
    assert_non_null(bytes);
    struct proto_header h = {
        .magic = PROTO_MAGIC, .version = 1, .op = op, .len = (uint32_t)(len - HEADER)};
    memcpy(bytes, &h, sizeof h);
    memcpy(bytes + HEADER, body, body_len);
    bool ok = false;
    int rc = proto_parse_request(socket, bytes, len, ret, &ok, err);
    free(bytes);
    assert_true(ok);
    return rc;
}

static void only_messages_with_tokens_may_be_longer(void **state) {
    (void)state;
    struct proto_msg msg;
    struct err err = {0};
    struct proto_seq_open open = {.num_tokens = PROTO_MAX_TOKENS};
    struct proto_step_begin_tokens begin = {
        .step = 1, .count = PROTO_MAX_BATCH, .num_tokens = PROTO_MAX_TOKENS};
    uint8_t step[sizeof begin + sizeof(struct proto_batch_item)];
    const struct proto_batch_item item = {.tokens = PROTO_MAX_TOKENS};
    memcpy(step, &begin, sizeof begin);
    memcpy(step + sizeof begin, &item, sizeof item);
    const size_t most = HEADER + sizeof open + 4 * (size_t)PROTO_MAX_TOKENS;
    const size_t most_begin =
        HEADER + sizeof begin + PROTO_MAX_BATCH * sizeof item + 4 * (size_t)PROTO_MAX_TOKENS;
    assert_int_equal(
        parse_long(PROTO_ON_CONTROL, PROTO_SEQ_OPEN, most, &open, sizeof open, &msg, NULL), 0);
    assert_int_equal(msg.num_tokens, PROTO_MAX_TOKENS);
    assert_int_equal(parse_long(PROTO_ON_CONTROL, PROTO_STEP_BEGIN_TOKENS, most_begin, step,
                                sizeof step, &msg, NULL),
                     0);
    assert_int_equal(msg.count, PROTO_MAX_BATCH);
    assert_int_equal(msg.num_tokens, PROTO_MAX_TOKENS);
    assert_int_equal(
        parse_long(PROTO_ON_CONTROL, PROTO_SEQ_OPEN, most + 1, &open, sizeof open, &msg, &err),
        KVPOOL_E_PROTO);
    assert_int_equal(parse_long(PROTO_ON_CONTROL, PROTO_SEQ_OPEN, PROTO_MAX_REQUEST + 1, &open,
                                sizeof open, &msg, &err),
                     KVPOOL_E_TOOBIG);
    assert_non_null(strstr(err.text, "limit is 1114112"));
    open.num_tokens++; // says one more than there may be, and has it
    assert_int_equal(
        parse_long(PROTO_ON_CONTROL, PROTO_SEQ_OPEN, most + 4, &open, sizeof open, &msg, &err),
        KVPOOL_E_TOOBIG);
    assert_non_null(strstr(err.text, "num_tokens is 262145, the limit is 262144"));
    for (uint16_t op = 0; op < PROTO_NUM_OPS + 2; op++) {
        bool with_tokens = op == PROTO_SEQ_OPEN || op == PROTO_STEP_BEGIN_TOKENS;
        int rc = parse_long(PROTO_ON_CONTROL, op, PROTO_MAX_MESSAGE + 1, "", 1, &msg, &err);
        assert_int_equal(rc, with_tokens ? KVPOOL_E_PROTO : KVPOOL_E_TOOBIG);
        rc = parse_long(PROTO_ON_FD, op, PROTO_MAX_MESSAGE + 1, "", 1, &msg, &err);
        assert_int_equal(rc, KVPOOL_E_TOOBIG);
        assert_non_null(strstr(err.text, "limit is 65536"));
    }
}

static void a_reply_is_never_longer(void **state) {
    (void)state;
    static uint8_t bytes[PROTO_MAX_MESSAGE + 1];
    struct sample s = sample_get("seq_open.reply");
    struct proto_msg msg;
    struct err err = {0};
    memcpy(bytes, s.bytes, s.len);
    uint32_t after = sizeof bytes - HEADER;
    memcpy(bytes + offsetof(struct proto_header, len), &after, sizeof after);
    assert_int_equal(proto_parse_reply(PROTO_SEQ_OPEN, bytes, sizeof bytes, &msg, &err),
                     KVPOOL_E_PROTO);
    assert_non_null(strstr(err.text, "limit is 65536"));
}

static void tokens_that_disagree_with_the_length(void **state) {
    (void)state;
    const uint32_t wrong[] = {1, 4, 6, PROTO_MAX_TOKENS};
    for (size_t i = 0; i < 4; i++) {
        refused32("seq_open.request", AT(seq_open, num_tokens), wrong[i], KVPOOL_E_PROTO, "not ");
        refused32("step_begin_tokens.request", AT(step_begin_tokens, num_tokens), wrong[i],
                  KVPOOL_E_PROTO, "3 records and");
    }
    refused32("seq_open.request", AT(seq_open, num_tokens), 0, KVPOOL_E_PROTO,
              "108 bytes after the header, not 88 for 0 records");
    refused32("seq_open_empty.request", AT(seq_open, num_tokens), 1, KVPOOL_E_PROTO,
              "88 bytes after the header, not 92 for 0 records and 1 tokens");
    struct sample s = sample_get("seq_open.request"); // half a token more, half a token less
    set_len(&s, s.len + 2);
    refused(&s, KVPOOL_E_PROTO, "110 bytes after the header, not 108");
    set_len(&s, s.len - 4);
    refused(&s, KVPOOL_E_PROTO, "106 bytes after the header, not 108");
}

static void tokens_that_disagree_with_the_items(void **state) {
    (void)state;
    const char *name = "step_begin_tokens.request";
    size_t first = HEADER + sizeof(struct proto_step_begin_tokens);
    size_t tokens = offsetof(struct proto_batch_item, tokens);
    for (size_t i = 0; i < 3; i++) {
        size_t at = first + i * sizeof(struct proto_batch_item) + tokens;
        refused32(name, at, 7, KVPOOL_E_PROTO, "num_tokens is 5, its items have");
        refused32(name, at, 1, KVPOOL_E_PROTO, "num_tokens is 5, its items have");
        refused32(name, at, 0xffffffff, KVPOOL_E_PROTO, "num_tokens is 5, its items have 4294967");
    }
    struct sample s = sample_get(name); // the sum is not taken in 32 bits
    put32(&s, first + tokens, 0x80000003);
    put32(&s, first + sizeof(struct proto_batch_item) + tokens, 0x80000000); // 2^32 + 5
    refused(&s, KVPOOL_E_PROTO, "its items have 4294967301");
    s = sample_get(name); // the same tokens, otherwise divided
    put32(&s, first + tokens, 0);
    put32(&s, first + sizeof(struct proto_batch_item) + tokens, 3);
    accepted(&s);
    refused32("step_begin_no_tokens.request", first + tokens, 1, KVPOOL_E_PROTO,
              "num_tokens is 0, its items have 1");
}

static void reserved_field_of_an_item_before_tokens(void **state) {
    (void)state;
    size_t last =
        HEADER + sizeof(struct proto_step_begin_tokens) + 2 * sizeof(struct proto_batch_item);
    refused32("step_begin_tokens.request", last + offsetof(struct proto_batch_item, reserved), 1,
              KVPOOL_E_PROTO, "batch_item[2].reserved is not 0");
}

static void any_token_id_is_accepted(void **state) {
    (void)state;
    const char *names[] = {"seq_open.request", "step_begin_tokens.request"};
    for (size_t n = 0; n < 2; n++)
        for (size_t i = 1; i <= 5; i++) {
            struct sample s = sample_get(names[n]);
            put32(&s, s.len - 4 * i, 0);
            accepted(&s);
            put32(&s, s.len - 4 * i, 0xffffffff);
            accepted(&s);
        }
}

static void key_material_behind_its_end(void **state) {
    (void)state;
    for (uint32_t at = 6; at < PROTO_EXTRA_MAX; at++) {
        struct sample s = sample_get("seq_open.request");
        s.bytes[AT(seq_open, extra) + at] = 1;
        refused(&s, KVPOOL_E_PROTO, "seq_open.extra has bytes after its end");
    }
    struct sample s = sample_get("seq_open.request");
    put32(&s, AT(seq_open, extra_size), 5);
    refused(&s, KVPOOL_E_PROTO, "seq_open.extra has bytes after its end");
    put32(&s, AT(seq_open, extra_size), 0);
    refused(&s, KVPOOL_E_PROTO, "seq_open.extra has bytes after its end");
    put32(&s, AT(seq_open, extra_size), 7); // a zero may be part of it
    accepted(&s);
    memset(s.bytes + AT(seq_open, extra), 0xee, PROTO_EXTRA_MAX);
    put32(&s, AT(seq_open, extra_size), PROTO_EXTRA_MAX);
    accepted(&s);
    put32(&s, AT(seq_open, extra_size), PROTO_EXTRA_MAX + 1);
    refused(&s, KVPOOL_E_TOOBIG, "seq_open.extra_size is 65, the limit is 64");
}

// By name, so that none becomes a number like others.
static void reserved_fields_of_prefix_sharing(void **state) {
    (void)state;
    refused32("seq_open.reply", AT(seq_open_reply, reserved), 1, KVPOOL_E_PROTO, "is not 0");
    refused32("seq_priority.request", AT(seq_priority, reserved), 1, KVPOOL_E_PROTO, "is not 0");
    refused32("prefix_pin.reply", AT(prefix_pin_reply, reserved), 1, KVPOOL_E_PROTO, "is not 0");
    refused32("cache_clear.reply", AT(cleared, reserved), 1, KVPOOL_E_PROTO, "is not 0");
    refused32("trace.request", AT(trace, reserved), 1, KVPOOL_E_PROTO, "is not 0");
}

static void names_of_namespaces(void **state) {
    (void)state;
    const size_t ns = HEADER + sizeof(struct proto_list_reply);
    const size_t fields[] = {ns + offsetof(struct proto_ns_info, name),
                             ns + offsetof(struct proto_ns_info, group)};
    for (size_t i = 0; i < 2; i++) {
        struct sample s = sample_get("pool_usage.reply");
        memset(s.bytes + fields[i], 'n', PROTO_NAME_SIZE);
        refused(&s, KVPOOL_E_PROTO, i == 0 ? "ns_info[0].name is not" : "ns_info[0].group is not");
    }
    refused32("pool_usage.reply", AT(list_reply, count), 2, KVPOOL_E_PROTO, "for 2 records");
    refused32("pool_usage.reply", AT(list_reply, count), PROTO_MAX_LIST + 1, KVPOOL_E_PROTO,
              "the limit");
}

static void unknown_open_and_trace_flags(void **state) {
    (void)state;
    for (uint32_t bit = 2; bit < 32; bit++)
        refused32("seq_open.request", AT(seq_open, flags), 1u << bit, KVPOOL_E_PROTO,
                  "seq_open.flags");
    for (uint32_t flags = 0; flags <= PROTO_OPEN_KNOWN; flags++) {
        struct sample s = sample_get("seq_open.request");
        put32(&s, AT(seq_open, flags), flags);
        accepted(&s);
    }
    for (uint32_t bit = 1; bit < 32; bit++)
        refused32("trace.request", AT(trace, flags), 1u << bit, KVPOOL_E_PROTO, "trace.flags");
    struct sample s = sample_get("trace.request");
    put32(&s, AT(trace, flags), 0);
    accepted(&s);
}

static void a_token_without_a_session(void **state) {
    (void)state;
    refused64("fd_open.request", AT(fd_open, session), 0, "fd_open.token without a session");
    for (size_t i = 0; i < PROTO_TOKEN_SIZE; i++) {
        struct sample s = sample_get("fd_open_tenant.request");
        s.bytes[AT(fd_open, token) + i] = 1;
        refused(&s, KVPOOL_E_PROTO, "fd_open.token without a session");
    }
}

static void unknown_values_are_left_to_the_daemon(void **state) {
    (void)state;
    const struct {
        const char *name;
        size_t at;
        uint32_t value;
    } unknown[] = {
        {"seq_open.request", AT(seq_open, priority), 3},
        {"seq_open.request", AT(seq_open, priority), 0xffffffff},
        {"seq_priority.request", AT(seq_priority, priority), 3},
        {"seq_release.request", AT(seq_release, hint), 2},
        {"prefix_pin.request", AT(prefix_pin, ttl_ms), 0},
        {"prefix_pin.request", AT(prefix_pin, tokens), 0xffffffff},
        {"pool_usage.request", AT(pool_usage, cursor), 0xffffffff},
        {"fd_open.request", AT(fd_open, version_min), 9},
    };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        struct sample s = sample_get(unknown[i].name);
        put32(&s, unknown[i].at, unknown[i].value);
        accepted(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_messages_with_tokens_may_be_longer),
        cmocka_unit_test(a_reply_is_never_longer),
        cmocka_unit_test(tokens_that_disagree_with_the_length),
        cmocka_unit_test(tokens_that_disagree_with_the_items),
        cmocka_unit_test(reserved_field_of_an_item_before_tokens),
        cmocka_unit_test(any_token_id_is_accepted),
        cmocka_unit_test(key_material_behind_its_end),
        cmocka_unit_test(reserved_fields_of_prefix_sharing),
        cmocka_unit_test(names_of_namespaces),
        cmocka_unit_test(unknown_open_and_trace_flags),
        cmocka_unit_test(a_token_without_a_session),
        cmocka_unit_test(unknown_values_are_left_to_the_daemon),
    };
    return cmocka_run_group_tests_name("proto_refusals_tokens", tests, NULL, NULL);
}
