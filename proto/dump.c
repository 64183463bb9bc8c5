// SPDX-License-Identifier: Apache-2.0
// dump.c: see dump.h. Led by the tables of layout.c, as the parser is.
#include "proto/dump.h"

#include "proto/layout.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

struct out {
    char *buf;
    size_t cap, len; // len < cap, or both 0
};

__attribute__((format(printf, 2, 3))) static void put(struct out *o, const char *fmt, ...) {
    if (o->cap == 0)
        return;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(o->buf + o->len, o->cap - o->len, fmt, ap);
    va_end(ap);
    if (n > 0)
        o->len = (size_t)n < o->cap - o->len ? o->len + (size_t)n : o->cap - 1;
}

static void put_text(struct out *o, const uint8_t *bytes, size_t size) {
    put(o, "\"");
    for (size_t i = 0; i < size && bytes[i] != 0; i++)
        put(o, "%c", bytes[i] >= 0x20 && bytes[i] < 0x7f && bytes[i] != '"' ? bytes[i] : '?');
    put(o, "\"");
}

// Hex, without the zeros at the end.
static void put_bytes(struct out *o, const uint8_t *bytes, size_t size) {
    while (size > 0 && bytes[size - 1] == 0)
        size--;
    put(o, "0x");
    for (size_t i = 0; i < size; i++)
        put(o, "%02x", bytes[i]);
}

static uint64_t read_uint(const uint8_t *bytes, size_t size) {
    uint64_t value = 0;
    memcpy(&value, bytes, size); // little-endian: see proto.c
    return value;
}

static void put_value(struct out *o, const struct proto_field *f, const uint8_t *bytes) {
    switch (f->kind) {
    case FIELD_TEXT:
        put_text(o, bytes, f->size);
        break;
    case FIELD_SECRET:
    case FIELD_SECRET_TEXT:
        put(o, "(secret)");
        break;
    case FIELD_BYTES:
        put_bytes(o, bytes, f->size);
        break;
    case FIELD_INT:
        put(o, "%" PRId32, (int32_t)read_uint(bytes, 4));
        break;
    case FIELD_FLOAT:
        if (f->size == 4) {
            float value;
            memcpy(&value, bytes, sizeof value);
            put(o, "%g", (double)value);
        } else {
            double value;
            memcpy(&value, bytes, sizeof value);
            put(o, "%g", value);
        }
        break;
    case FIELD_HANDLE:
    case FIELD_FLAGS:
        put(o, "0x%" PRIx64, read_uint(bytes, f->size));
        break;
    case FIELD_UINT:
    case FIELD_COUNT:
    case FIELD_TOKENS:
    case FIELD_ZERO:
        put(o, "%" PRIu64, read_uint(bytes, f->size));
        break;
    }
}

// " name value" of every field but the reserved ones.
static void put_fields(struct out *o, const struct proto_layout *l, const uint8_t *bytes) {
    for (uint32_t i = 0; i < l->num_fields; i++) {
        const struct proto_field *f = &l->fields[i];
        if (f->kind == FIELD_ZERO)
            continue;
        put(o, " %s ", f->name);
        put_value(o, f, bytes + f->offset);
    }
    put(o, "\n");
}

static void put_tokens(struct out *o, const struct proto_msg *msg) {
    if (msg->num_tokens == 0)
        return;
    put(o, "  token ids");
    for (uint32_t i = 0; i < msg->num_tokens && i < PROTO_DUMP_TOKENS; i++)
        put(o, " %" PRIu64, read_uint(msg->tokens + (size_t)i * sizeof(uint32_t), 4));
    if (msg->num_tokens > PROTO_DUMP_TOKENS)
        put(o, " and %" PRIu32 " more", msg->num_tokens - PROTO_DUMP_TOKENS);
    put(o, "\n");
}

static void put_header(struct out *o, const struct proto_header *h, bool reply) {
    put(o, "%s %s op %u version %u seq %" PRIu64 " epoch %" PRIu64 " len %" PRIu32,
        reply ? "reply" : "request", proto_op_name(h->op), h->op, h->version, h->seq, h->epoch,
        h->len);
    if (h->status != 0)
        put(o, " status %s (%d)", kvpool_status_name(h->status), h->status);
    put(o, "\n");
}

int proto_dump(const void *bytes, size_t len, bool reply, char *buf, size_t cap) {
    struct out o = {buf, cap, 0};
    if (cap > 0)
        buf[0] = '\0';
    const uint8_t *in = bytes;
    struct proto_header h = {0};
    if (len >= sizeof h)
        memcpy(&h, in, sizeof h);
    if (h.magic == PROTO_MAGIC)
        put_header(&o, &h, reply);

    struct proto_msg msg;
    struct err err = {0};
    bool header_ok;
    const struct proto_op_info *op = proto_op(h.op);
    int rc;
    if (reply) // op 0: an error reply to a request that could not be read
        rc = proto_parse_reply(op != NULL ? h.op : PROTO_PING, in, len, &msg, &err);
    else
        rc = proto_parse_request(op != NULL ? op->socket : PROTO_ON_CONTROL, in, len, &msg,
                                 &header_ok, &err);
    if (rc != 0) {
        put(&o, "  malformed: %s: %s\n", kvpool_status_name(rc), err.text);
        return (int)o.len;
    }

    const struct proto_layout *body = &proto_layout_error, *record = NULL;
    if (op != NULL && (!reply || h.status == 0)) {
        body = reply ? op->reply.body : op->request.body;
        record = reply ? op->reply.record : op->request.record;
    }
    in += sizeof h;
    if (body != NULL) {
        put(&o, " ");
        put_fields(&o, body, in);
        in += body->size;
    }
    for (uint32_t i = 0; record != NULL && i < msg.count && i < PROTO_DUMP_RECORDS; i++) {
        put(&o, "  %" PRIu32 ":", i);
        put_fields(&o, record, in + (size_t)i * record->size);
    }
    if (msg.count > PROTO_DUMP_RECORDS)
        put(&o, "  and %" PRIu32 " more\n", msg.count - PROTO_DUMP_RECORDS);
    put_tokens(&o, &msg);
    return (int)o.len;
}
