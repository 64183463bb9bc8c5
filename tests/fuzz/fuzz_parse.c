// SPDX-License-Identifier: Apache-2.0
// fuzz_parse.c: any bytes through both parsers and the decoder. What is refused is refused with a
// documented status and a text; what is accepted encodes to the same bytes again and has the form
// that proto.h promises, checked here by hand and not by the tables.
//
// Build   cmake --preset fuzz && cmake --build build/fuzz
// Run     build/fuzz/bin/fuzz_parse -max_total_time=60 <new inputs' folder> tests/fuzz/corpus/parse
// Corpus  tests/fuzz/corpus/parse: one message a file (make_corpus.c)
#include "proto/dump.h"
#include "proto/proto.h"

#include <stdio.h>
#include <stdlib.h>

#define ENSURE(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                        \
        }                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check_error(int rc, const struct err *err, bool reply) {
    ENSURE(rc == KVPOOL_E_PROTO || rc == KVPOOL_E_VERSION ||
           (!reply && (rc == KVPOOL_E_TOOBIG || rc == KVPOOL_E_UNSUPPORTED)));
    ENSURE(err->status == rc);
    ENSURE(memchr(err->text, '\0', sizeof err->text) != NULL && err->text[0] != '\0');
}

static void check_same_bytes(const struct proto_msg *msg, size_t body, size_t record,
                             const uint8_t *bytes, size_t len) {
    static uint8_t again[PROTO_MAX_REQUEST];
    static uint32_t tokens[PROTO_MAX_TOKENS];
    ENSURE(msg->count == 0 || msg->record_size == record);
    ENSURE(msg->num_tokens <= PROTO_MAX_TOKENS && (msg->num_tokens == 0) == (msg->tokens == NULL));
    proto_tokens(msg, tokens);
    size_t n = proto_write_tokens(again, sizeof again, &msg->header, &msg->body, body, msg->records,
                                  (size_t)msg->count * msg->record_size, tokens, msg->num_tokens);
    ENSURE(n == len);
    ENSURE(memcmp(again, bytes, len) == 0);
}

static void check_text(const char *text, size_t size) {
    size_t end = strnlen(text, size);
    ENSURE(end < size);
    for (; end < size; end++)
        ENSURE(text[end] == '\0');
}

static void check_tensor(const struct proto_tensor *t) {
    ENSURE(t->region != 0 || (t->offset | t->token_stride | t->head_stride) == 0);
}

static void check_items(const struct proto_msg *msg) {
    ENSURE(msg->count <= PROTO_MAX_BATCH && msg->record_size == sizeof(struct proto_batch_item));
    for (uint32_t i = 0; i < msg->count; i++) {
        struct proto_batch_item item;
        proto_record(msg, i, &item);
        ENSURE(item.reserved == 0);
    }
}

static void check_begin_tokens(const struct proto_msg *msg) {
    const struct proto_step_begin_tokens *b = &msg->body.step_begin_tokens;
    uint64_t sum = 0;
    ENSURE(b->step != 0 && b->count == msg->count && b->count >= 1);
    ENSURE(b->num_tokens == msg->num_tokens);
    check_items(msg);
    for (uint32_t i = 0; i < msg->count; i++) {
        struct proto_batch_item item;
        proto_record(msg, i, &item);
        sum += item.tokens;
    }
    ENSURE(sum == msg->num_tokens);
}

static void check_open(const struct proto_msg *msg) {
    const struct proto_seq_open *o = &msg->body.seq_open;
    ENSURE(o->num_tokens == msg->num_tokens && msg->count == 0);
    ENSURE((o->flags & ~PROTO_OPEN_KNOWN) == 0 && o->extra_size <= PROTO_EXTRA_MAX);
    for (uint32_t i = o->extra_size; i < PROTO_EXTRA_MAX; i++)
        ENSURE(o->extra[i] == 0);
}

static void check_fd_open(const struct proto_msg *msg) {
    const struct proto_fd_open *o = &msg->body.fd_open;
    check_text(o->name, sizeof o->name);
    check_text(o->credential, sizeof o->credential);
    for (size_t i = 0; i < sizeof o->token; i++)
        ENSURE(o->session != 0 || o->token[i] == 0);
}

static void check_attn(const struct proto_msg *msg, const struct proto_attn *a, bool append,
                       uint32_t flags) {
    ENSURE((a->flags & ~flags) == 0 && a->reserved == 0);
    ENSURE((a->count == 0) == (a->step != 0) && a->count == msg->count);
    ENSURE(a->step == 0 || a->pool == 0);
    check_tensor(&a->q);
    check_tensor(&a->k);
    check_tensor(&a->v);
    check_tensor(&a->out);
    check_tensor(&a->lse);
    if (append)
        ENSURE(a->step != 0 && a->qo_heads == 0 && a->sm_scale == 0 && a->soft_cap == 0 &&
               a->window_left == 0 && a->q.region == 0 && a->out.region == 0 && a->lse.region == 0);
    else
        check_items(msg);
}

static void check_attend(const struct proto_msg *msg) {
    const struct proto_attend *e = &msg->body.attend;
    bool append = e->op == PROTO_APPEND;
    ENSURE(append || e->op == PROTO_PREFILL || e->op == PROTO_DECODE);
    ENSURE(e->reserved == 0 && (e->kv_scales.region != 0 || e->kv_scales.offset == 0));
    ENSURE(e->sinks.region != 0 || e->sinks.offset == 0);
    ENSURE(!append || e->sinks.region == 0);
    check_attn(msg, &e->attn, append,
               KVPOOL_ATTN_CAUSAL | (append ? 0 : KVPOOL_ATTN_BATCH_INVARIANT));
}

static void check_request_form(const struct proto_msg *msg) {
    const struct proto_header *h = &msg->header;
    ENSURE(h->magic == PROTO_MAGIC && h->version == 1 && h->flags == 0 && h->status == 0);
    if (h->op != PROTO_SEQ_OPEN && h->op != PROTO_STEP_BEGIN_TOKENS)
        ENSURE(msg->num_tokens == 0 && sizeof *h + h->len <= PROTO_MAX_MESSAGE);
    switch (h->op) {
    case PROTO_FD_HELLO:
        check_text(msg->body.fd_hello.name, sizeof msg->body.fd_hello.name);
        break;
    case PROTO_POOL_CREATE:
        check_text(msg->body.pool_create.name, sizeof msg->body.pool_create.name);
        break;
    case PROTO_POOL_OPEN:
        check_text(msg->body.name.name, sizeof msg->body.name.name);
        break;
    case PROTO_POOL_LIST:
    case PROTO_SEQ_LIST:
    case PROTO_CLIENT_LIST:
        ENSURE(msg->body.list.max >= 1 && msg->body.list.max <= PROTO_MAX_LIST);
        break;
    case PROTO_SEQ_CREATE:
        ENSURE(msg->body.seq_create.n <= PROTO_MAX_BATCH && msg->body.seq_create.reserved == 0);
        break;
    case PROTO_SEQ_FORK:
        ENSURE(msg->body.seq_fork.n <= PROTO_MAX_BATCH && msg->body.seq_fork.reserved == 0);
        break;
    case PROTO_SEQ_TRUNCATE:
        ENSURE(msg->body.seq_truncate.reserved == 0);
        break;
    case PROTO_SEQ_FREE:
        ENSURE(msg->count == msg->body.count.count && msg->body.count.reserved == 0);
        ENSURE(msg->count >= 1 && msg->count <= PROTO_MAX_BATCH && msg->record_size == 8);
        break;
    case PROTO_STEP_BEGIN:
        ENSURE(msg->body.step_begin.step != 0 && msg->body.step_begin.flags == 0);
        ENSURE(msg->count == msg->body.step_begin.count && msg->count >= 1);
        check_items(msg);
        break;
    case PROTO_STEP_BEGIN_TOKENS:
        check_begin_tokens(msg);
        break;
    case PROTO_SEQ_OPEN:
        check_open(msg);
        break;
    case PROTO_SEQ_RELEASE:
        ENSURE(msg->count == msg->body.seq_release.count && msg->record_size == 8);
        ENSURE(msg->count >= 1 && msg->count <= PROTO_MAX_BATCH);
        break;
    case PROTO_SEQ_PRIORITY:
        ENSURE(msg->body.seq_priority.reserved == 0 && msg->count == 0);
        break;
    case PROTO_POOL_USAGE:
        ENSURE(msg->body.pool_usage.max >= 1 && msg->body.pool_usage.max <= PROTO_MAX_LIST);
        break;
    case PROTO_FD_OPEN:
        check_fd_open(msg);
        break;
    case PROTO_TRACE:
        ENSURE((msg->body.trace.flags & ~PROTO_TRACE_KNOWN) == 0 && msg->body.trace.reserved == 0);
        break;
    case PROTO_APPEND:
    case PROTO_PREFILL:
    case PROTO_DECODE:
        check_attn(msg, &msg->body.attn, h->op == PROTO_APPEND, KVPOOL_ATTN_CAUSAL);
        break;
    case PROTO_ATTEND:
        check_attend(msg);
        break;
    case PROTO_POOL_CREATE_AS:
        check_text(msg->body.pool_create_as.create.name, PROTO_NAME_SIZE);
        break;
    default:
        ENSURE(msg->count == 0);
    }
}

static void check_reply_form(const struct proto_msg *msg) {
    ENSURE(msg->header.status <= 0 && msg->num_tokens == 0);
    if (msg->header.status != 0) {
        check_text(msg->body.error.text, sizeof msg->body.error.text);
        return;
    }
    switch (msg->header.op) {
    case PROTO_HELLO:
        check_text(msg->body.hello_reply.daemon_version, PROTO_NAME_SIZE);
        check_text(msg->body.hello_reply.backend, sizeof msg->body.hello_reply.backend);
        break;
    case PROTO_POOL_STAT:
        check_text(msg->body.pool_info.name, PROTO_NAME_SIZE);
        break;
    case PROTO_POOL_LIST:
    case PROTO_SEQ_LIST:
    case PROTO_CLIENT_LIST:
        ENSURE(msg->count == msg->body.list_reply.count && msg->count <= PROTO_MAX_LIST);
        break;
    case PROTO_POOL_USAGE:
        ENSURE(msg->count == msg->body.list_reply.count && msg->count <= PROTO_MAX_LIST);
        for (uint32_t i = 0; i < msg->count; i++) {
            struct proto_ns_info ns;
            proto_record(msg, i, &ns);
            check_text(ns.name, sizeof ns.name);
            check_text(ns.group, sizeof ns.group);
        }
        break;
    case PROTO_SEQ_OPEN:
        ENSURE(msg->body.seq_open_reply.reserved == 0 && msg->count == 0);
        break;
    case PROTO_PREFIX_PIN:
        ENSURE(msg->body.prefix_pin_reply.reserved == 0 && msg->count == 0);
        break;
    case PROTO_CACHE_CLEAR:
        ENSURE(msg->body.cleared.reserved == 0 && msg->count == 0);
        break;
    case PROTO_SEQ_CREATE:
    case PROTO_SEQ_FORK:
        ENSURE(msg->count >= 1 && msg->count <= PROTO_MAX_BATCH);
        break;
    default:
        ENSURE(msg->count == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    size_t body, record;
    bool accepted[2] = {false, false};
    for (int socket = 0; socket < 2; socket++) {
        struct proto_msg msg;
        struct err err = {0};
        bool header_ok = false;
        int rc = proto_parse_request((enum proto_socket)socket, bytes, len, &msg, &header_ok, &err);
        if (header_ok)
            ENSURE(len >= sizeof msg.header && memcmp(&msg.header, bytes, sizeof msg.header) == 0);
        if (rc != 0) {
            check_error(rc, &err, false);
            continue;
        }
        accepted[socket] = true;
        ENSURE(header_ok);
        check_request_form(&msg);
        ENSURE(proto_request_shape(msg.header.op, &body, &record));
        check_same_bytes(&msg, body, record, bytes, len);
    }
    ENSURE(!accepted[0] || !accepted[1]);

    uint16_t op = PROTO_PING; // a reply to the op that its header names
    if (len >= sizeof(struct proto_header))
        memcpy(&op, bytes + offsetof(struct proto_header, op), sizeof op);
    if (op == 0)
        op = PROTO_STEP_BEGIN;
    struct proto_msg msg;
    struct err err = {0};
    int rc = proto_parse_reply(op, bytes, len, &msg, &err);
    if (rc != 0) {
        check_error(rc, &err, true);
    } else {
        check_reply_form(&msg);
        ENSURE(proto_reply_shape(op, &body, &record));
        if (msg.header.status != 0) {
            body = sizeof(struct proto_error);
            record = 0;
        }
        check_same_bytes(&msg, body, record, bytes, len);
    }

    char text[2048];
    for (int reply = 0; reply < 2; reply++) {
        int n = proto_dump(bytes, len, reply != 0, text, sizeof text);
        ENSURE(n > 0 && strlen(text) == (size_t)n);
        // At the start of a line: a name cannot fake it, its line breaks are not printed.
        bool malformed =
            strncmp(text, "  malformed: ", 13) == 0 || strstr(text, "\n  malformed: ") != NULL;
        if (reply == 0 && (size_t)n < sizeof text - 1)
            ENSURE(malformed == !(accepted[0] || accepted[1]));
    }
    return 0;
}
