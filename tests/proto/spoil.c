// SPDX-License-Identifier: Apache-2.0
// spoil.c: see spoil.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "spoil.h"

#include <stdlib.h>

void put32(struct sample *s, size_t at, uint32_t value) {
    memcpy(s->bytes + at, &value, sizeof value);
}

void put64(struct sample *s, size_t at, uint64_t value) {
    memcpy(s->bytes + at, &value, sizeof value);
}

void set_len(struct sample *s, size_t len) {
    s->len = len;
    put32(s, offsetof(struct proto_header, len), (uint32_t)(len - HEADER));
}

// Parses from a heap copy of exactly the message's size, so that a read past its end is found.
static int parse(const struct sample *s, struct err *err) {
    uint8_t *copy = malloc(s->len > 0 ? s->len : 1);
    assert_non_null(copy);
    memcpy(copy, s->bytes, s->len);
    struct proto_msg msg;
    bool header_ok;
    const struct proto_op_info *op = proto_op(s->op);
    int rc = s->reply ? proto_parse_reply(op != NULL ? s->op : PROTO_PING, copy, s->len, &msg, err)
                      : proto_parse_request(op->socket, copy, s->len, &msg, &header_ok, err);
    free(copy);
    return rc;
}

void refused(const struct sample *s, int status, const char *text) {
    struct err err = {0};
    int rc = parse(s, &err);
    if (rc != status || err.status != status || strstr(err.text, text) == NULL)
        fail_msg("%s: %s \"%s\", wanted %s \"%s\"", s->name, kvpool_status_name(rc), err.text,
                 kvpool_status_name(status), text);
}

void refused32(const char *name, size_t at, uint32_t value, int status, const char *text) {
    struct sample s = sample_get(name);
    put32(&s, at, value);
    refused(&s, status, text);
}

void refused64(const char *name, size_t at, uint64_t value, const char *text) {
    struct sample s = sample_get(name);
    put64(&s, at, value);
    refused(&s, KVPOOL_E_PROTO, text);
}

void accepted(const struct sample *s) {
    struct err err = {0};
    if (parse(s, &err) != 0)
        fail_msg("%s: %s", s->name, err.text);
}
