// SPDX-License-Identifier: Apache-2.0
// proto.c: see proto.h. Parsing and writing, both led by the tables of layout.c.
//
// Invariants
//  1. Input is read through memcpy only: it may stand at any alignment.
//  2. Checks go from the outside in: length, magic, version, framing, op, flags, body, count,
//     records, tokens. Nothing is read before the check that it is there.
//  3. A count is within its limit before it is multiplied.
#include "proto/layout.h"

#include <stdio.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian");
#define HEADER sizeof(struct proto_header)
_Static_assert(sizeof(((struct proto_msg *)0)->body) < PROTO_MAX_MESSAGE - HEADER, "bodies fit");
_Static_assert(PROTO_MAX_LIST * sizeof(struct proto_ns_info) + sizeof(struct proto_list_reply) +
                       HEADER <=
                   PROTO_MAX_MESSAGE,
               "the longest list fits");
_Static_assert(PROTO_MAX_BATCH * sizeof(struct proto_batch_item) + sizeof(struct proto_attend) +
                       HEADER <=
                   PROTO_MAX_MESSAGE,
               "the largest batch fits");

static uint32_t read_u32(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static bool all_zero(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

// Any value is fine.
static bool field_is_free(const struct proto_field *f) {
    return f->kind != FIELD_ZERO && f->kind != FIELD_TEXT && f->kind != FIELD_SECRET_TEXT &&
           f->kind != FIELD_COUNT && f->kind != FIELD_TOKENS && f->kind != FIELD_FLAGS;
}

// Checks one field where it stands.
static int check_field(const struct proto_field *f, const uint8_t *bytes, const char *where,
                       struct err *err) {
    switch (f->kind) {
    case FIELD_ZERO:
        if (!all_zero(bytes, f->size))
            return err_set(err, KVPOOL_E_PROTO, "%s.%s is not 0", where, f->name);
        break;
    case FIELD_TEXT:
    case FIELD_SECRET_TEXT: {
        size_t end = strnlen((const char *)bytes, f->size);
        if (end == f->size)
            return err_set(err, KVPOOL_E_PROTO, "%s.%s is not terminated", where, f->name);
        if (!all_zero(bytes + end, f->size - end))
            return err_set(err, KVPOOL_E_PROTO, "%s.%s has bytes after its end", where, f->name);
        break;
    }
    case FIELD_COUNT:
    case FIELD_TOKENS: {
        uint32_t count = read_u32(bytes);
        if (count > f->max)
            return err_set(err, KVPOOL_E_TOOBIG, "%s.%s is %u, the limit is %u", where, f->name,
                           count, f->max);
        if (count < f->min)
            return err_set(err, KVPOOL_E_PROTO, "%s.%s is %u, less than %u", where, f->name, count,
                           f->min);
        break;
    }
    case FIELD_FLAGS: {
        uint32_t unknown = read_u32(bytes) & ~f->max;
        if (unknown != 0)
            return err_set(err, KVPOOL_E_PROTO, "%s.%s has unknown bits 0x%x", where, f->name,
                           unknown);
        break;
    }
    case FIELD_UINT:
    case FIELD_INT:
    case FIELD_FLOAT:
    case FIELD_HANDLE:
    case FIELD_SECRET:
    case FIELD_BYTES:
        break; // any value
    }
    return 0;
}

static int check_body(const struct proto_layout *l, const uint8_t *bytes, struct err *err) {
    for (uint32_t i = 0; i < l->num_fields; i++) {
        const struct proto_field *f = &l->fields[i];
        int rc = field_is_free(f) ? 0 : check_field(f, bytes + f->offset, l->name, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int check_records(const struct proto_layout *l, const uint8_t *bytes, uint32_t n,
                         struct err *err) {
    for (uint32_t i = 0; i < l->num_fields; i++) {
        const struct proto_field *f = &l->fields[i];
        if (field_is_free(f))
            continue;
        for (uint32_t r = 0; r < n; r++) {
            if (f->kind == FIELD_ZERO && f->size == 4 &&
                read_u32(bytes + (size_t)r * l->size + f->offset) == 0)
                continue; // by far the most common
            char where[48];
            snprintf(where, sizeof where, "%s[%u]", l->name, r);
            int rc = check_field(f, bytes + (size_t)r * l->size + f->offset, where, err);
            if (rc != 0)
                return rc;
        }
    }
    return 0;
}

static const struct proto_field *first_of(const struct proto_layout *l, enum field_kind kind) {
    for (uint32_t i = 0; i < l->num_fields; i++)
        if (l->fields[i].kind == kind)
            return &l->fields[i];
    return NULL;
}

// The value of the body's first field of this kind, 0 without one. It is within its limit.
static uint32_t count_of(const struct proto_layout *l, enum field_kind kind, const uint8_t *bytes) {
    const struct proto_field *f = first_of(l, kind);
    return f != NULL ? read_u32(bytes + f->offset) : 0;
}

// Bytes that a request of this op has at most on this socket.
static uint32_t request_limit(enum proto_socket socket, uint16_t op) {
    const struct proto_op_info *info = socket == PROTO_ON_CONTROL ? proto_op(op) : NULL;
    if (info == NULL || info->request.body == NULL)
        return PROTO_MAX_MESSAGE;
    return first_of(info->request.body, FIELD_TOKENS) != NULL ? PROTO_MAX_REQUEST
                                                              : PROTO_MAX_MESSAGE;
}

// Header of any message. *ret_header_ok: *ret is filled in and has our magic.
static int parse_header(const uint8_t *bytes, size_t len, bool request, enum proto_socket socket,
                        struct proto_header *ret, bool *ret_header_ok, struct err *err) {
    *ret_header_ok = false;
    if (len < HEADER)
        return err_set(err, KVPOOL_E_PROTO, "message of %zu bytes, a header has %zu", len, HEADER);
    struct proto_header h;
    memcpy(&h, bytes, sizeof h);
    if (h.magic != PROTO_MAGIC)
        return err_set(err, KVPOOL_E_PROTO, "magic is 0x%08x, not 0x%08x", h.magic, PROTO_MAGIC);
    *ret = h;
    *ret_header_ok = true;
    if (len > PROTO_MAX_MESSAGE) {
        uint32_t limit = request ? request_limit(socket, h.op) : PROTO_MAX_MESSAGE;
        if (len > limit)
            return err_set(err, KVPOOL_E_TOOBIG, "message of %zu bytes, the limit is %u", len,
                           limit);
    }
    if (h.version < PROTO_VERSION_MIN || h.version > PROTO_VERSION_MAX)
        return err_set(err, KVPOOL_E_VERSION, "protocol version %u, this build speaks %u to %u",
                       h.version, PROTO_VERSION_MIN, PROTO_VERSION_MAX);
    if (h.len != len - HEADER)
        return err_set(err, KVPOOL_E_PROTO, "header.len is %u, but %zu bytes follow", h.len,
                       len - HEADER);
    if (h.flags != 0)
        return err_set(err, KVPOOL_E_PROTO, "header.flags is 0x%x, not 0", h.flags);
    return 0;
}

// Body, records and tokens, after the header.
static int parse_payload(const struct proto_shape *shape, const uint8_t *bytes, size_t len,
                         struct proto_msg *ret, struct err *err) {
    size_t body = 0, record = 0;
    uint32_t count = 0, num_tokens = 0;
    if (shape->body != NULL) {
        body = shape->body->size;
        if (len < body)
            return err_set(err, KVPOOL_E_PROTO, "body of %zu bytes, %s has %zu", len,
                           shape->body->name, body);
        int rc = check_body(shape->body, bytes, err);
        if (rc != 0)
            return rc;
        if (shape->record != NULL) {
            record = shape->record->size;
            count = count_of(shape->body, FIELD_COUNT, bytes);
        }
        num_tokens = count_of(shape->body, FIELD_TOKENS, bytes);
    }
    const size_t tokens_at = body + count * record;
    const size_t want = tokens_at + num_tokens * sizeof(uint32_t);
    if (len != want && num_tokens > 0)
        return err_set(err, KVPOOL_E_PROTO,
                       "%zu bytes after the header, not %zu for %u records and %u tokens", len,
                       want, count, num_tokens);
    if (len != want)
        return err_set(err, KVPOOL_E_PROTO, "%zu bytes after the header, not %zu for %u records",
                       len, want, count);
    if (count > 0) {
        int rc = check_records(shape->record, bytes + body, count, err);
        if (rc != 0)
            return rc;
    }
    if (body > 0)
        memcpy(&ret->body, bytes, body);
    ret->records = count > 0 ? bytes + body : NULL;
    ret->count = count;
    ret->record_size = (uint32_t)record;
    ret->tokens = num_tokens > 0 ? bytes + tokens_at : NULL;
    ret->num_tokens = num_tokens;
    return 0;
}

int proto_parse_request(enum proto_socket socket, const void *bytes, size_t len,
                        struct proto_msg *ret, bool *ret_header_ok, struct err *err) {
    int rc = parse_header(bytes, len, true, socket, &ret->header, ret_header_ok, err);
    if (rc != 0)
        return rc;
    const struct proto_op_info *op = proto_op(ret->header.op);
    if (op == NULL)
        return err_set(err, KVPOOL_E_UNSUPPORTED, "unknown operation %u", ret->header.op);
    if (op->socket != socket)
        return err_set(err, KVPOOL_E_PROTO, "%s belongs on the %s socket", op->name,
                       op->socket == PROTO_ON_FD ? "fd" : "control");
    if (ret->header.status != 0)
        return err_set(err, KVPOOL_E_PROTO, "header.status is %d in a request", ret->header.status);
    rc = parse_payload(&op->request, (const uint8_t *)bytes + HEADER, len - HEADER, ret, err);
    if (rc == 0 && op->check != NULL)
        rc = op->check(ret, err);
    return rc;
}

int proto_parse_reply(uint16_t op, const void *bytes, size_t len, struct proto_msg *ret,
                      struct err *err) {
    static const struct proto_shape error = {&proto_layout_error, NULL};
    const struct proto_op_info *info = proto_op(op);
    if (info == NULL)
        return err_set(err, KVPOOL_E_PROTO, "reply to an unknown operation %u", op);
    bool header_ok;
    int rc = parse_header(bytes, len, false, PROTO_ON_CONTROL, &ret->header, &header_ok, err);
    if (rc == KVPOOL_E_TOOBIG) // of the daemon's making, not the caller's
        return err_set(err, KVPOOL_E_PROTO, "reply of %zu bytes, the limit is %u", len,
                       PROTO_MAX_MESSAGE);
    if (rc != 0)
        return rc;
    int status = ret->header.status;
    if (status > 0)
        return err_set(err, KVPOOL_E_PROTO, "header.status is %d in a reply", status);
    if (ret->header.op != op && (status == 0 || ret->header.op != 0))
        return err_set(err, KVPOOL_E_PROTO, "reply to operation %u, not %s", ret->header.op,
                       info->name);
    rc = parse_payload(status == 0 ? &info->reply : &error, (const uint8_t *)bytes + HEADER,
                       len - HEADER, ret, err);
    if (rc == KVPOOL_E_TOOBIG) {
        rc = KVPOOL_E_PROTO;
        if (err != NULL)
            err->status = rc;
    }
    return rc;
}

static void shape_sizes(const struct proto_shape *shape, size_t *ret_body, size_t *ret_record) {
    *ret_body = shape->body != NULL ? shape->body->size : 0;
    *ret_record = shape->record != NULL ? shape->record->size : 0;
}

bool proto_request_shape(uint16_t op, size_t *ret_body, size_t *ret_record) {
    const struct proto_op_info *info = proto_op(op);
    if (info != NULL)
        shape_sizes(&info->request, ret_body, ret_record);
    return info != NULL;
}

bool proto_reply_shape(uint16_t op, size_t *ret_body, size_t *ret_record) {
    const struct proto_op_info *info = proto_op(op);
    if (info != NULL)
        shape_sizes(&info->reply, ret_body, ret_record);
    return info != NULL;
}

const char *proto_op_name(uint16_t op) {
    const struct proto_op_info *info = proto_op(op);
    return info != NULL ? info->name : "?";
}

size_t proto_write(void *buf, size_t cap, const struct proto_header *header, const void *body,
                   size_t body_len, const void *records, size_t records_len) {
    size_t room = cap < PROTO_MAX_MESSAGE ? cap : PROTO_MAX_MESSAGE;
    if (room < HEADER || body_len > room - HEADER || records_len > room - HEADER - body_len)
        return 0;
    struct proto_header h = *header;
    h.magic = PROTO_MAGIC;
    h.len = (uint32_t)(body_len + records_len);
    uint8_t *out = buf;
    memcpy(out, &h, sizeof h);
    if (body_len > 0)
        memcpy(out + HEADER, body, body_len);
    if (records_len > 0)
        memcpy(out + HEADER + body_len, records, records_len);
    return HEADER + body_len + records_len;
}

size_t proto_write_tokens(void *buf, size_t cap, const struct proto_header *header,
                          const void *body, size_t body_len, const void *records,
                          size_t records_len, const uint32_t *tokens, uint32_t num_tokens) {
    if (num_tokens > PROTO_MAX_TOKENS)
        return 0;
    size_t at = proto_write(buf, cap, header, body, body_len, records, records_len);
    size_t bytes = num_tokens * sizeof *tokens;
    if (at == 0 || bytes > cap - at)
        return 0;
    if (bytes > 0)
        memcpy((uint8_t *)buf + at, tokens, bytes);
    uint32_t len = (uint32_t)(at + bytes - HEADER);
    memcpy((uint8_t *)buf + offsetof(struct proto_header, len), &len, sizeof len);
    return at + bytes;
}

struct proto_header proto_reply_header(const struct proto_header *request, int status,
                                       uint64_t epoch) {
    struct proto_header h = {
        .magic = PROTO_MAGIC, .version = PROTO_VERSION_MIN, .status = status, .epoch = epoch};
    if (request != NULL) {
        h.op = request->op;
        h.seq = request->seq;
        if (request->version >= PROTO_VERSION_MIN && request->version <= PROTO_VERSION_MAX)
            h.version = request->version;
    }
    return h;
}

size_t proto_write_error(void *buf, size_t cap, const struct proto_header *request, uint64_t epoch,
                         const struct err *err) {
    // A reply with status 0 would promise the op's own body.
    int status = err->status < 0 ? err->status : KVPOOL_E_INTERNAL;
    struct proto_header h = proto_reply_header(request, status, epoch);
    struct proto_error body = {.detail = err->detail};
    memcpy(body.text, err->text, strnlen(err->text, sizeof body.text - 1));
    return proto_write(buf, cap, &h, &body, sizeof body, NULL, 0);
}
