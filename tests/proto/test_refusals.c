// SPDX-License-Identifier: Apache-2.0
// test_refusals.c: every way in which a message can be malformed, by name. Those of tokens and
// of the fd socket's FD_OPEN and TRACE: test_refusals_tokens.c.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "spoil.h"

#include <stdlib.h>

static struct sample samples[SAMPLES_MAX];
static size_t num_samples;

static int setup(void **state) {
    (void)state;
    num_samples = samples_make(samples);
    return 0;
}

static void wrong_magic(void **state) {
    (void)state;
    for (size_t i = 0; i < num_samples; i++)
        for (size_t byte = 0; byte < 4; byte++) {
            struct sample s = samples[i];
            s.bytes[byte] ^= 0x20;
            refused(&s, KVPOOL_E_PROTO, "magic");
        }
}

static void header_ok_tells_whether_a_reply_can_name_the_request(void **state) {
    (void)state;
    struct sample s = sample_get("ping.request");
    struct proto_msg msg;
    bool ok = true;
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, s.bytes, 31, &msg, &ok, NULL),
                     KVPOOL_E_PROTO);
    assert_false(ok);
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, s.bytes, 33, &msg, &ok, NULL),
                     KVPOOL_E_PROTO);
    assert_true(ok);
    assert_int_equal(msg.header.op, PROTO_PING);
    assert_int_equal(msg.header.seq, 7);
    s.bytes[0] = 0;
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, s.bytes, s.len, &msg, &ok, NULL),
                     KVPOOL_E_PROTO);
    assert_false(ok);
}

static void wrong_version(void **state) {
    (void)state;
    const uint8_t versions[] = {0, 2, 3, 255};
    for (size_t i = 0; i < num_samples; i++)
        for (size_t v = 0; v < sizeof versions; v++) {
            struct sample s = samples[i];
            s.bytes[offsetof(struct proto_header, version)] = versions[v];
            refused(&s, KVPOOL_E_VERSION, "this build speaks 1 to 1");
        }
}

static void unknown_header_flags(void **state) {
    (void)state;
    for (size_t i = 0; i < num_samples; i++)
        for (int bit = 0; bit < 8; bit++) {
            struct sample s = samples[i];
            s.bytes[offsetof(struct proto_header, flags)] = (uint8_t)(1u << bit);
            refused(&s, KVPOOL_E_PROTO, "header.flags");
        }
}

static void truncated_at_every_length(void **state) {
    (void)state;
    for (size_t i = 0; i < num_samples; i++)
        for (size_t len = 0; len < samples[i].len; len++) {
            struct sample s = samples[i];
            s.len = len;
            refused(&s, KVPOOL_E_PROTO, len < HEADER ? "a header has 32" : "header.len");
            if (len >= HEADER) { // a header that tells the truth does not help
                set_len(&s, len);
                refused(&s, KVPOOL_E_PROTO, "");
            }
        }
}

static void over_long_by_one(void **state) {
    (void)state;
    for (size_t i = 0; i < num_samples; i++) {
        struct sample s = samples[i];
        s.len++;
        refused(&s, KVPOOL_E_PROTO, "header.len");
        set_len(&s, s.len);
        refused(&s, KVPOOL_E_PROTO, "bytes after the header");
    }
}

static void header_length_that_lies(void **state) {
    (void)state;
    const uint32_t lies[] = {0xffffffffu, 0xffffffe0u, 0x80000000u};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++)
        refused32("ping.request", offsetof(struct proto_header, len), lies[i], KVPOOL_E_PROTO,
                  "header.len");
}

static void message_over_the_size_limit(void **state) {
    (void)state;
    size_t len = PROTO_MAX_MESSAGE + 1;
    uint8_t *bytes = calloc(1, len);
    assert_non_null(bytes);
    struct sample s = sample_get("seq_free.request");
    memcpy(bytes, s.bytes, s.len);
    uint32_t after = (uint32_t)(len - HEADER);
    memcpy(bytes + offsetof(struct proto_header, len), &after, sizeof after);
    struct proto_msg msg;
    struct err err = {0};
    bool ok = false;
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, bytes, len, &msg, &ok, &err),
                     KVPOOL_E_TOOBIG);
    assert_true(ok); // so that it can be answered
    assert_non_null(strstr(err.text, "limit is 65536"));
    assert_int_equal(proto_parse_reply(PROTO_SEQ_FREE, bytes, len, &msg, &err), KVPOOL_E_PROTO);
    assert_int_equal(err.status, KVPOOL_E_PROTO);
    free(bytes);
}

static void unknown_op(void **state) {
    (void)state;
    const uint16_t unknown[] = {0, 40, 63, 64, 256, 0x8001, 0xffff};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        struct sample s = sample_get("ping.request");
        memcpy(s.bytes + offsetof(struct proto_header, op), &unknown[i], 2);
        refused(&s, KVPOOL_E_UNSUPPORTED, "unknown operation");
        struct proto_msg msg;
        struct sample reply = sample_get("ping.reply");
        assert_int_equal(proto_parse_reply(unknown[i], reply.bytes, reply.len, &msg, NULL),
                         KVPOOL_E_PROTO);
    }
}

static void op_on_the_wrong_socket(void **state) {
    (void)state;
    size_t tried = 0;
    for (size_t i = 0; i < num_samples; i++) {
        const struct sample *s = &samples[i];
        if (s->reply)
            continue;
        bool fd = proto_op(s->op)->socket == PROTO_ON_FD;
        assert_int_equal(fd, s->op >= PROTO_FD_HELLO);
        struct proto_msg msg;
        bool ok;
        struct err err = {0};
        assert_int_equal(proto_parse_request(fd ? PROTO_ON_CONTROL : PROTO_ON_FD, s->bytes, s->len,
                                             &msg, &ok, &err),
                         KVPOOL_E_PROTO);
        assert_non_null(strstr(err.text, fd ? "fd socket" : "control socket"));
        tried++;
    }
    assert_true(tried > 35);
}

static void request_with_a_status(void **state) {
    (void)state;
    refused32("ping.request", offsetof(struct proto_header, status), (uint32_t)KVPOOL_E_INVAL,
              KVPOOL_E_PROTO, "header.status");
    refused32("ping.request", offsetof(struct proto_header, status), 1, KVPOOL_E_PROTO,
              "header.status");
}

static bool is_error(const struct sample *s) {
    struct proto_header h;
    memcpy(&h, s->bytes, sizeof h);
    return h.status != 0;
}

// Calls `each` with every field of every sample: of its body, and of each of its records.
static size_t each_field(enum field_kind kind,
                         void (*each)(const struct sample *s, size_t at, size_t size)) {
    size_t n = 0;
    for (size_t i = 0; i < num_samples; i++) {
        const struct sample *s = &samples[i];
        const struct proto_op_info *op = proto_op(s->op);
        static const struct proto_shape error = {&proto_layout_error, NULL};
        const struct proto_shape *shape = &error;
        if (op != NULL && !is_error(s))
            shape = s->reply ? &op->reply : &op->request;
        struct proto_msg msg;
        assert_int_equal(sample_parse(s, &msg, NULL), 0);
        size_t at = HEADER, end = s->len - msg.num_tokens * sizeof(uint32_t);
        for (const struct proto_layout *l = shape->body; l != NULL && at < end;
             at += l->size, l = shape->record)
            for (uint32_t f = 0; f < l->num_fields; f++)
                if (l->fields[f].kind == kind) {
                    each(s, at + l->fields[f].offset, l->fields[f].size);
                    n++;
                }
    }
    return n;
}

static void spoil_reserved(const struct sample *original, size_t at, size_t size) {
    for (size_t bit = 0; bit < 8 * size; bit++) {
        struct sample s = *original;
        s.bytes[at + bit / 8] |= (uint8_t)(1u << bit % 8);
        refused(&s, KVPOOL_E_PROTO, "is not 0");
    }
}

static void each_bit_of_each_reserved_field(void **state) {
    (void)state;
    assert_true(each_field(FIELD_ZERO, spoil_reserved) > 20);
}

static void spoil_text(const struct sample *original, size_t at, size_t size) {
    struct sample s = *original;
    memset(s.bytes + at, 'n', size);
    refused(&s, KVPOOL_E_PROTO, "is not terminated");
    s.bytes[at + size - 1] = '\0'; // the longest name there is
    accepted(&s);
    s = *original;
    s.bytes[at + size - 1] = 'x';
    refused(&s, KVPOOL_E_PROTO, "bytes after its end");
    s = *original;
    s.bytes[at] = '\0'; // empty, the old rest behind it
    refused(&s, KVPOOL_E_PROTO, "bytes after its end");
    memset(s.bytes + at, 0, size);
    accepted(&s);
}

static void names_unterminated_or_followed_by_garbage(void **state) {
    (void)state;
    assert_true(each_field(FIELD_TEXT, spoil_text) >= 15);
    assert_int_equal(each_field(FIELD_SECRET_TEXT, spoil_text), 2); // a credential
}

static void unknown_attention_flags(void **state) {
    (void)state;
    const char *names[] = {"append.request", "prefill.request", "decode_alone.request"};
    for (size_t n = 0; n < 3; n++)
        for (uint32_t bit = 1; bit < 32; bit++)
            refused32(names[n], AT(attn, flags), 1u << bit, KVPOOL_E_PROTO, "attn.flags");
}

static void unknown_step_flags(void **state) {
    (void)state;
    for (uint32_t bit = 0; bit < 32; bit++)
        refused32("step_begin.request", AT(step_begin, flags), 1u << bit, KVPOOL_E_PROTO,
                  "step_begin.flags");
}

// Where a count stands, and its limit.
static const struct {
    const char *name;
    size_t at;
    uint32_t limit;
} counts[] = {
    {"seq_create.request", AT(seq_create, n), PROTO_MAX_BATCH},
    {"seq_fork.request", AT(seq_fork, n), PROTO_MAX_BATCH},
    {"seq_free.request", AT(count, count), PROTO_MAX_BATCH},
    {"step_begin.request", AT(step_begin, count), PROTO_MAX_BATCH},
    {"append.request", AT(attn, count), PROTO_MAX_BATCH},
    {"prefill.request", AT(attn, count), PROTO_MAX_BATCH},
    {"prefill_alone.request", AT(attn, count), PROTO_MAX_BATCH},
    {"decode_alone.request", AT(attn, count), PROTO_MAX_BATCH},
    {"pool_list.request", AT(list, max), PROTO_MAX_LIST},
    {"seq_list.request", AT(list, max), PROTO_MAX_LIST},
    {"client_list.request", AT(list, max), PROTO_MAX_LIST},
    {"step_begin_tokens.request", AT(step_begin_tokens, count), PROTO_MAX_BATCH},
    {"step_begin_tokens.request", AT(step_begin_tokens, num_tokens), PROTO_MAX_TOKENS},
    {"seq_open.request", AT(seq_open, num_tokens), PROTO_MAX_TOKENS},
    {"seq_open_empty.request", AT(seq_open, num_tokens), PROTO_MAX_TOKENS},
    {"seq_open.request", AT(seq_open, extra_size), PROTO_EXTRA_MAX},
    {"seq_release.request", AT(seq_release, count), PROTO_MAX_BATCH},
    {"pool_usage.request", AT(pool_usage, max), PROTO_MAX_LIST},
};
#define NUM_COUNTS (sizeof counts / sizeof counts[0])

static void counts_over_the_limit(void **state) {
    (void)state;
    for (size_t i = 0; i < NUM_COUNTS; i++) {
        refused32(counts[i].name, counts[i].at, counts[i].limit + 1, KVPOOL_E_TOOBIG, "the limit");
        refused32(counts[i].name, counts[i].at, 1u << 20, KVPOOL_E_TOOBIG, "the limit");
    }
}

// 16 * 0x10000002 and 8 * 0x20000002 are 2 records in 32 bits, 4 * 0x40000005 are 5 tokens.
static void counts_whose_product_overflows(void **state) {
    (void)state;
    const uint32_t huge[] = {0xffffffffu, 0x80000000u, 0x80000002u, 0x40000002u, 0x40000005u,
                             0x20000002u, 0x10000001u, 0x10000002u, 0x10000000u};
    for (size_t i = 0; i < NUM_COUNTS; i++)
        for (size_t h = 0; h < sizeof huge / sizeof huge[0]; h++)
            refused32(counts[i].name, counts[i].at, huge[h], KVPOOL_E_TOOBIG, "the limit");
}

static void counts_that_disagree_with_the_length(void **state) {
    (void)state;
    const uint32_t wrong[] = {1, 3, PROTO_MAX_BATCH};
    for (size_t i = 0; i < 3; i++) {
        refused32("seq_free.request", AT(count, count), wrong[i], KVPOOL_E_PROTO, "records");
        refused32("step_begin.request", AT(step_begin, count), wrong[i], KVPOOL_E_PROTO, "records");
        refused32("prefill_alone.request", AT(attn, count), wrong[i], KVPOOL_E_PROTO, "records");
        refused32("decode_alone.request", AT(attn, count), wrong[i], KVPOOL_E_PROTO, "records");
        refused32("seq_create.reply", AT(count, count), wrong[i], KVPOOL_E_PROTO, "records");
        refused32("seq_release.request", AT(seq_release, count), wrong[i], KVPOOL_E_PROTO,
                  "records");
    }
    const uint32_t wrong_of_3[] = {1, 2, 4, PROTO_MAX_BATCH};
    for (size_t i = 0; i < 4; i++)
        refused32("step_begin_tokens.request", AT(step_begin_tokens, count), wrong_of_3[i],
                  KVPOOL_E_PROTO, "records and 5 tokens");
    refused32("pool_list.reply", AT(list_reply, count), 1, KVPOOL_E_PROTO, "records");
    refused32("pool_list.reply", AT(list_reply, count), 0, KVPOOL_E_PROTO, "records");
}

static void empty_batches(void **state) {
    (void)state;
    struct sample s = sample_get("step_begin.request");
    put32(&s, AT(step_begin, count), 0);
    set_len(&s, HEADER + sizeof(struct proto_step_begin));
    refused(&s, KVPOOL_E_PROTO, "step_begin.count is 0");
    s = sample_get("seq_free.request");
    put32(&s, AT(count, count), 0);
    set_len(&s, HEADER + sizeof(struct proto_count));
    refused(&s, KVPOOL_E_PROTO, "count.count is 0");
    s = sample_get("seq_release.request");
    put32(&s, AT(seq_release, count), 0);
    set_len(&s, HEADER + sizeof(struct proto_seq_release));
    refused(&s, KVPOOL_E_PROTO, "seq_release.count is 0");
    s = sample_get("step_begin_no_tokens.request");
    put32(&s, AT(step_begin_tokens, count), 0);
    set_len(&s, HEADER + sizeof(struct proto_step_begin_tokens));
    refused(&s, KVPOOL_E_PROTO, "step_begin_tokens.count is 0");
    s = sample_get("decode_alone.request");
    put32(&s, AT(attn, count), 0);
    set_len(&s, HEADER + sizeof(struct proto_attn));
    refused(&s, KVPOOL_E_PROTO, "neither a step nor a batch");
}

static void a_count_of_zero_sequences_is_left_to_the_daemon(void **state) {
    (void)state;
    struct sample s = sample_get("seq_create.request");
    put32(&s, AT(seq_create, n), 0);
    accepted(&s);
}

static void largest_batch_and_list_are_accepted(void **state) {
    (void)state;
    static uint8_t buf[PROTO_MAX_MESSAGE];
    static struct proto_batch_item items[PROTO_MAX_BATCH];
    static struct proto_pool_info infos[PROTO_MAX_LIST];
    struct proto_header h = {.version = 1, .op = PROTO_DECODE};
    struct proto_attn attn = {.pool = 1, .count = PROTO_MAX_BATCH};
    struct proto_msg msg;
    bool ok;
    size_t len = proto_write(buf, sizeof buf, &h, &attn, sizeof attn, items, sizeof items);
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, buf, len, &msg, &ok, NULL), 0);
    assert_int_equal(msg.count, PROTO_MAX_BATCH);
    // A reserved field of the last record counts as much as the first one's.
    items[PROTO_MAX_BATCH - 1].reserved = 1;
    struct err err = {0};
    len = proto_write(buf, sizeof buf, &h, &attn, sizeof attn, items, sizeof items);
    assert_int_equal(proto_parse_request(PROTO_ON_CONTROL, buf, len, &msg, &ok, &err),
                     KVPOOL_E_PROTO);
    assert_string_equal(err.text, "batch_item[1023].reserved is not 0");

    struct proto_list_reply list = {PROTO_MAX_LIST, 1};
    h.op = PROTO_POOL_LIST;
    len = proto_write(buf, sizeof buf, &h, &list, sizeof list, infos, sizeof infos);
    assert_int_equal(proto_parse_reply(PROTO_POOL_LIST, buf, len, &msg, NULL), 0);
    assert_int_equal(msg.count, PROTO_MAX_LIST);
}

static void list_max_of_zero(void **state) {
    (void)state;
    refused32("pool_list.request", AT(list, max), 0, KVPOOL_E_PROTO, "list.max is 0");
    refused32("seq_list.request", AT(list, max), 0, KVPOOL_E_PROTO, "list.max is 0");
    refused32("client_list.request", AT(list, max), 0, KVPOOL_E_PROTO, "list.max is 0");
    refused32("pool_usage.request", AT(pool_usage, max), 0, KVPOOL_E_PROTO, "pool_usage.max is 0");
}

static void step_zero_in_begin(void **state) {
    (void)state;
    refused64("step_begin.request", AT(step_begin, step), 0, "step_begin.step");
    refused64("step_begin_tokens.request", AT(step_begin_tokens, step), 0,
              "step_begin_tokens.step");
}

static void append_with_fields_of_attention(void **state) {
    (void)state;
    const char *name = "append.request";
    refused64(name, AT(attn, step), 0, "without a step");
    refused64(name, AT(attn, pool), 1, "with a pool");
    refused32(name, AT(attn, count), 1, KVPOOL_E_PROTO, "with a batch");
    refused32(name, AT(attn, qo_heads), 8, KVPOOL_E_PROTO, "options of attention");
    refused32(name, AT(attn, sm_scale), 0x3f800000, KVPOOL_E_PROTO, "options of attention");
    refused32(name, AT(attn, sm_scale), 0x80000000, KVPOOL_E_PROTO, "options of attention"); // -0
    refused32(name, AT(attn, sm_scale), 0x7fc00000, KVPOOL_E_PROTO, "options of attention"); // NaN
    refused32(name, AT(attn, soft_cap), 0x3f800000, KVPOOL_E_PROTO, "options of attention");
    refused32(name, AT(attn, window_left), 0xffffffff, KVPOOL_E_PROTO, "options of attention");
    refused64(name, AT(attn, q.region), 1, "tensor of attention");
    refused64(name, AT(attn, out.region), 1, "tensor of attention");
    refused64(name, AT(attn, lse.region), 1, "tensor of attention");
}

static void attention_with_both_a_step_and_a_batch(void **state) {
    (void)state;
    refused64("prefill_alone.request", AT(attn, step), 1, "both a step and a pool");
    refused64("decode.request", AT(attn, pool), 1, "both a step and a pool");
    struct sample s = sample_get("decode_alone.request");
    put64(&s, AT(attn, step), 1);
    put64(&s, AT(attn, pool), 0);
    refused(&s, KVPOOL_E_PROTO, "both a step and a batch");
}

static void attention_with_neither_a_step_nor_a_batch(void **state) {
    (void)state;
    refused64("prefill.request", AT(attn, step), 0, "neither a step nor a batch");
    refused64("decode.request", AT(attn, step), 0, "neither a step nor a batch");
}

static void tensor_fields_without_a_region(void **state) {
    (void)state;
    const struct {
        size_t at;
        const char *text;
    } tensors[] = {
        {AT(attn, q), "tensor q"},     {AT(attn, k), "tensor k"},     {AT(attn, v), "tensor v"},
        {AT(attn, out), "tensor out"}, {AT(attn, lse), "tensor lse"},
    };
    for (size_t i = 0; i < 5; i++)
        for (size_t field = 1; field < 4; field++) {
            struct sample s = sample_get("prefill.request");
            memset(s.bytes + tensors[i].at, 0, sizeof(struct proto_tensor));
            accepted(&s);
            put64(&s, tensors[i].at + 8 * field, 1);
            refused(&s, KVPOOL_E_PROTO, tensors[i].text);
        }
    for (size_t at = AT(attn, q); at < AT(attn, lse) + 32; at += 8) {
        if (at >= AT(attn, k) && at < AT(attn, out))
            continue; // k and v are append's own
        refused64("append.request", at, 1, "tensor");
    }
}

static void attend_refuses_contradictions(void **state) {
    (void)state;
    const size_t q = offsetof(struct proto_attn, q.region);
    refused32("attend.request", AT(attend, op), PROTO_STEP_COMMIT, KVPOOL_E_PROTO, "not APPEND");
    refused32("attend.request", AT(attend, op), 0, KVPOOL_E_PROTO, "attend.op is 0");
    refused32("attend.request", AT(attend, op), PROTO_ATTEND, KVPOOL_E_PROTO, "attend.op is 31");
    refused32("attend.request", AT(attend, attn.flags), 4, KVPOOL_E_PROTO, "unknown bits 0x4");
    refused64("attend_append.request", AT(attend, kv_scales.offset), 8, "kv_scales has no region");
    refused64("attend_append.request", AT(attend, sinks.offset), 8, "sinks has no region");
    refused64("attend_append.request", AT(attend, sinks.region), 8, "append with options");
    refused32("attend_append.request", AT(attend, attn.flags), KVPOOL_ATTN_BATCH_INVARIANT,
              KVPOOL_E_PROTO, "append with options");
    refused64("attend_append.request", HEADER + q, 8, "append with a tensor");
    refused64("attend_alone.request", AT(attend, attn.step), 5, "both a step and a pool");
    refused32("attend.request", AT(attend, op), PROTO_APPEND, KVPOOL_E_PROTO,
              "append with options");
    // The flag is ATTEND's alone.
    refused32("decode.request", AT(attn, flags), KVPOOL_ATTN_BATCH_INVARIANT, KVPOOL_E_PROTO,
              "unknown bits 0x2");
    struct sample s = sample_get("attend.request"); // another of the three is as good
    put32(&s, AT(attend, op), PROTO_PREFILL);
    put32(&s, AT(attend, k_scale), 0x7fc00000); // NaN is the daemon's to judge
    accepted(&s);
}

static void meaning_is_left_to_the_daemon(void **state) {
    (void)state;
    struct sample s = sample_get("prefill.request");
    put32(&s, AT(attn, sm_scale), 0x7fc00000); // NaN
    put32(&s, AT(attn, layer), 0xffffffff);
    put32(&s, AT(attn, qo_heads), 3);
    put64(&s, AT(attn, q.offset), UINT64_MAX);
    accepted(&s);
    s = sample_get("pool_create.request");
    put32(&s, AT(pool_create, layers), 0);
    put32(&s, AT(pool_create, dtype), 99);
    accepted(&s);
    s = sample_get("pool_create_as.request");
    put32(&s, AT(pool_create_as, kv_dtype), 99);
    put32(&s, AT(pool_create_as, export), 99);
    accepted(&s);
    s = sample_get("region_alloc.request");
    put32(&s, AT(region_alloc, place), 99);
    put32(&s, AT(region_alloc, export), 0);
    accepted(&s);
}

static void reply_to_another_op(void **state) {
    (void)state;
    struct sample s = sample_get("ping.reply");
    s.op = PROTO_STEP_BEGIN;
    refused(&s, KVPOOL_E_PROTO, "reply to operation 2, not STEP_BEGIN");
    // An error reply may say op 0 (request not readable), but not another op.
    s = sample_get("nospace.reply");
    s.op = PROTO_STEP_COMMIT;
    refused(&s, KVPOOL_E_PROTO, "reply to operation 15");
    s = sample_get("unread.reply");
    accepted(&s);
    put32(&s, offsetof(struct proto_header, status), 0);
    refused(&s, KVPOOL_E_PROTO, "reply to operation 0");
}

static void reply_with_a_status_above_zero(void **state) {
    (void)state;
    refused32("nospace.reply", offsetof(struct proto_header, status), 1, KVPOOL_E_PROTO,
              "header.status");
}

static void reply_with_a_status_and_a_body_of_success(void **state) {
    (void)state;
    struct sample s = sample_get("step_begin.reply");
    put32(&s, offsetof(struct proto_header, status), (uint32_t)KVPOOL_E_STALE);
    refused(&s, KVPOOL_E_PROTO, "body of 16 bytes, error has 208");
    s = sample_get("nospace.reply"); // and the other way round
    put32(&s, offsetof(struct proto_header, status), 0);
    refused(&s, KVPOOL_E_PROTO, "208 bytes after the header");
}

static void reply_with_a_status_not_known_here(void **state) {
    (void)state;
    struct sample s = sample_get("nospace.reply");
    put32(&s, offsetof(struct proto_header, status), (uint32_t)-1000);
    accepted(&s); // a newer daemon's
}

static void reply_counts_over_the_limit(void **state) {
    (void)state;
    refused32("seq_create.reply", AT(count, count), PROTO_MAX_BATCH + 1, KVPOOL_E_PROTO, "limit");
    refused32("seq_create.reply", AT(count, count), 0x20000002, KVPOOL_E_PROTO, "limit");
    refused32("seq_create.reply", AT(count, count), 0, KVPOOL_E_PROTO, "less than 1");
    refused32("seq_list.reply", AT(list_reply, count), PROTO_MAX_LIST + 1, KVPOOL_E_PROTO, "limit");
    refused32("seq_list.reply", AT(list_reply, count), 0xffffffff, KVPOOL_E_PROTO, "limit");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_magic),
        cmocka_unit_test(header_ok_tells_whether_a_reply_can_name_the_request),
        cmocka_unit_test(wrong_version),
        cmocka_unit_test(unknown_header_flags),
        cmocka_unit_test(truncated_at_every_length),
        cmocka_unit_test(over_long_by_one),
        cmocka_unit_test(header_length_that_lies),
        cmocka_unit_test(message_over_the_size_limit),
        cmocka_unit_test(unknown_op),
        cmocka_unit_test(op_on_the_wrong_socket),
        cmocka_unit_test(request_with_a_status),
        cmocka_unit_test(each_bit_of_each_reserved_field),
        cmocka_unit_test(names_unterminated_or_followed_by_garbage),
        cmocka_unit_test(unknown_attention_flags),
        cmocka_unit_test(unknown_step_flags),
        cmocka_unit_test(counts_over_the_limit),
        cmocka_unit_test(counts_whose_product_overflows),
        cmocka_unit_test(counts_that_disagree_with_the_length),
        cmocka_unit_test(empty_batches),
        cmocka_unit_test(a_count_of_zero_sequences_is_left_to_the_daemon),
        cmocka_unit_test(largest_batch_and_list_are_accepted),
        cmocka_unit_test(list_max_of_zero),
        cmocka_unit_test(step_zero_in_begin),
        cmocka_unit_test(append_with_fields_of_attention),
        cmocka_unit_test(attention_with_both_a_step_and_a_batch),
        cmocka_unit_test(attention_with_neither_a_step_nor_a_batch),
        cmocka_unit_test(tensor_fields_without_a_region),
        cmocka_unit_test(attend_refuses_contradictions),
        cmocka_unit_test(meaning_is_left_to_the_daemon),
        cmocka_unit_test(reply_to_another_op),
        cmocka_unit_test(reply_with_a_status_above_zero),
        cmocka_unit_test(reply_with_a_status_and_a_body_of_success),
        cmocka_unit_test(reply_with_a_status_not_known_here),
        cmocka_unit_test(reply_counts_over_the_limit),
    };
    return cmocka_run_group_tests_name("proto_refusals", tests, setup, NULL);
}
