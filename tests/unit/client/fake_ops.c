// SPDX-License-Identifier: Apache-2.0
// fake_ops.c: see fake_ops.h.
#include "tests/unit/client/fake_ops.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

void fake_reply(struct fake *f, struct fake_conn *c, const struct proto_header *request, int status,
                const void *body, size_t body_len, const void *records, size_t records_len) {
    uint8_t bytes[PROTO_MAX_MESSAGE];
    struct proto_header header = proto_reply_header(request, status, f->epoch);
    size_t len = proto_write(bytes, sizeof bytes, &header, body, body_len, records, records_len);
    fake_send(c, bytes, len);
}

void fake_error(struct fake *f, struct fake_conn *c, const struct proto_header *request, int status,
                uint64_t detail, const char *text) {
    uint8_t bytes[512];
    struct err err = {.status = status, .detail = detail};
    snprintf(err.text, sizeof err.text, "%s", text);
    fake_send(c, bytes, proto_write_error(bytes, sizeof bytes, request, f->epoch, &err));
}

static void ok(struct fake *f, struct fake_conn *c, const struct proto_msg *m, const void *body,
               size_t len) {
    fake_reply(f, c, &m->header, 0, body, len, NULL, 0);
}

static void identity(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    struct proto_fd_hello_reply reply = {.version = 1,
                                         .pid = 4242,
                                         .features = f->features,
                                         .session = f->session,
                                         .token = {7},
                                         .epoch = f->epoch};
    ok(f, c, m, &reply, sizeof reply);
}

static void open_session(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    f->sessions++;
    f->session = f->epoch << 32 | f->sessions;
    identity(f, c, m);
}

// A known session goes on, one of another epoch or a forgotten one is stale.
static void open_or_resume(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    const struct proto_fd_open *open = &m->body.fd_open;
    f->last_open = *open;
    f->last_open_epoch = m->header.epoch;
    if (open->session == 0) {
        open_session(f, c, m);
        return;
    }
    if (open->session != f->session || open->session >> 32 != f->epoch || open->token[0] != 7) {
        fake_error(f, c, &m->header, KVPOOL_E_STALE, 0, "no such session");
        return;
    }
    f->resumes++;
    identity(f, c, m);
}

static void hello(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    f->hellos++;
    if (m->body.hello.session != f->session || m->body.hello.token[0] != 7) {
        fake_error(f, c, &m->header, KVPOOL_E_STALE, 0, "no such session");
        return;
    }
    struct proto_hello_reply reply = {.version = 1,
                                      .pid = 4242,
                                      .features = f->features,
                                      .max_message = PROTO_MAX_MESSAGE,
                                      .max_batch = 1000,
                                      .max_inflight = f->max_inflight,
                                      .daemon_version = "9.8.7",
                                      .backend = "fake"};
    ok(f, c, m, &reply, sizeof reply);
}

static void make_seqs(struct fake *f, struct fake_conn *c, const struct proto_msg *m, uint32_t n) {
    uint64_t seqs[PROTO_MAX_BATCH];
    for (uint32_t i = 0; i < n; i++)
        seqs[i] = f->epoch << 32 | i;
    struct proto_count count = {.count = n};
    fake_reply(f, c, &m->header, 0, &count, sizeof count, seqs, n * sizeof seqs[0]);
}

static void region(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    uint8_t bytes[256];
    struct proto_region_reply reply = {.region = f->epoch << 32 | m->header.seq,
                                       .bytes = (m->body.region_create.bytes + 4095) / 4096 * 4096};
    struct proto_header header = proto_reply_header(&m->header, 0, f->epoch);
    int fd = memfd_create("region", MFD_CLOEXEC);
    if (ftruncate(fd, (off_t)reply.bytes) != 0)
        reply.bytes = 0;
    size_t len = proto_write(bytes, sizeof bytes, &header, &reply, sizeof reply, NULL, 0);
    fake_send_fds(c, bytes, len, &fd, 1);
    close(fd);
}

static void list(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    union {
        struct proto_pool_info pool;
        struct proto_seq_info seq;
        struct proto_client_info client;
        struct proto_ns_info ns;
    } record;
    static uint8_t records[PROTO_MAX_LIST * sizeof record];
    size_t size = m->header.op == PROTO_POOL_LIST    ? sizeof record.pool
                  : m->header.op == PROTO_SEQ_LIST   ? sizeof record.seq
                  : m->header.op == PROTO_POOL_USAGE ? sizeof record.ns
                                                     : sizeof record.client;
    struct proto_list asked = m->body.list;
    if (m->header.op == PROTO_POOL_USAGE)
        asked = (struct proto_list){m->body.pool_usage.cursor, m->body.pool_usage.max};
    uint32_t n = 0, at = asked.cursor;
    for (; at < f->list_total && n < asked.max; at++, n++) {
        memset(&record, 0, sizeof record);
        if (m->header.op == PROTO_POOL_LIST) {
            record.pool.pool = at + 1;
            record.pool.bytes = 1000 + at;
            record.pool.kv_dtype = KVPOOL_FP8_E4M3;
            snprintf(record.pool.name, sizeof record.pool.name, "pool%u", at);
        } else if (m->header.op == PROTO_SEQ_LIST) {
            record.seq.seq = at + 1;
            record.seq.owner_pid = at;
        } else if (m->header.op == PROTO_POOL_USAGE) {
            record.ns = (struct proto_ns_info){.group = "all",
                                               .num_pages = 1,
                                               .free_pages = 2,
                                               .reserve = 3,
                                               .limit = 4,
                                               .weight = 5,
                                               .active = 6,
                                               .cached = 7,
                                               .seqs = 8,
                                               .hit_tokens = 9,
                                               .miss_tokens = 10,
                                               .sealed = 11,
                                               .deduplicated = 12,
                                               .evicted = 13,
                                               .dropped = 14,
                                               .refused = 15 + at};
            snprintf(record.ns.name, sizeof record.ns.name, "ns%u", at);
        } else {
            record.client.pid = at + 1;
            snprintf(record.client.name, sizeof record.client.name, "client%u", at);
        }
        memcpy(records + n * size, &record, size);
    }
    struct proto_list_reply reply = {.count = n, .cursor = at};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, records, n * size);
}

static void note_prefix(struct fake *f, const struct proto_msg *m) {
    f->last_prefix = *m;
    f->last_prefix.records = f->last_prefix.tokens = NULL;
    proto_tokens(m, f->last_ids);
    for (uint32_t i = 0; i < m->count && i < 8 && m->header.op == PROTO_STEP_BEGIN_TOKENS; i++)
        proto_record(m, i, &f->last_items[i]);
}

static void seq_open(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    const struct proto_seq_open *open = &m->body.seq_open;
    struct proto_seq_open_reply reply = {
        .matched = open->num_tokens < f->cached_tokens ? open->num_tokens : f->cached_tokens};
    if (open->flags == 0 || (open->flags == PROTO_OPEN_MATCHED && reply.matched > 0))
        reply.seq = f->epoch << 32 | 77;
    ok(f, c, m, &reply, sizeof reply);
}

// Requests of prefix sharing: noted, and answered.
static void answer_prefix(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    note_prefix(f, m);
    switch (m->header.op) {
    case PROTO_SEQ_OPEN:
        seq_open(f, c, m);
        return;
    case PROTO_STEP_BEGIN_TOKENS: {
        struct proto_step_reply reply = {.step = m->body.step_begin_tokens.step,
                                         .tokens = m->num_tokens};
        ok(f, c, m, &reply, sizeof reply);
        return;
    }
    case PROTO_PREFIX_PIN: {
        struct proto_prefix_pin_reply reply = {.pin = 555, .tokens = 48};
        ok(f, c, m, &reply, sizeof reply);
        return;
    }
    case PROTO_CACHE_CLEAR: {
        struct proto_cleared reply = {.pages = 21};
        ok(f, c, m, &reply, sizeof reply);
        return;
    }
    case PROTO_POOL_USAGE:
        list(f, c, m);
        return;
    default:
        ok(f, c, m, NULL, 0);
        return;
    }
}

void fake_answer(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op >= PROTO_SEQ_OPEN && m->header.op <= PROTO_CACHE_CLEAR) {
        answer_prefix(f, c, m);
        return;
    }
    switch (m->header.op) {
    case PROTO_FD_HELLO:
        open_session(f, c, m);
        return;
    case PROTO_FD_OPEN:
        open_or_resume(f, c, m);
        return;
    case PROTO_HELLO:
        hello(f, c, m);
        return;
    case PROTO_PING:
        ok(f, c, m, &m->body.ping, sizeof m->body.ping);
        return;
    case PROTO_STATS: {
        struct proto_stats stats = {.uptime_ns = 5, .pid = 4242, .seqs = 3, .requests_per_s = 1.5};
        ok(f, c, m, &stats, sizeof stats);
        return;
    }
    case PROTO_POOL_CREATE:
    case PROTO_POOL_CREATE_AS:
    case PROTO_POOL_OPEN: {
        if (m->header.op == PROTO_POOL_CREATE)
            f->last_pool = (struct proto_pool_create_as){.create = m->body.pool_create};
        else if (m->header.op == PROTO_POOL_CREATE_AS)
            f->last_pool = m->body.pool_create_as;
        struct proto_handle pool = {.handle = f->epoch << 32 | 1};
        ok(f, c, m, &pool, sizeof pool);
        return;
    }
    case PROTO_POOL_STAT: {
        struct proto_pool_info info = {.pool = m->body.handle.handle,
                                       .name = "pool",
                                       .kv_heads = f->kv_heads,
                                       .head_dim = f->head_dim,
                                       .num_pages = 100,
                                       .free_pages = 99,
                                       .kv_dtype = KVPOOL_FP8_E4M3,
                                       .export = KVPOOL_EXPORT_IPC,
                                       .bytes = 12345};
        ok(f, c, m, &info, sizeof info);
        return;
    }
    case PROTO_SEQ_STAT: {
        struct proto_seq_info info = {.seq = m->body.handle.handle, .length = 12, .pages = 1};
        ok(f, c, m, &info, sizeof info);
        return;
    }
    case PROTO_POOL_LIST:
    case PROTO_SEQ_LIST:
    case PROTO_CLIENT_LIST:
        list(f, c, m);
        return;
    case PROTO_SEQ_CREATE:
        make_seqs(f, c, m, m->body.seq_create.n);
        return;
    case PROTO_SEQ_FORK:
        make_seqs(f, c, m, m->body.seq_fork.n);
        return;
    case PROTO_STEP_BEGIN:
    case PROTO_STEP_COMMIT: {
        struct proto_step_reply reply = {.step = m->body.handle.handle, .tokens = 1};
        if (m->header.op == PROTO_STEP_BEGIN) {
            f->last_begin = m->body.step_begin;
            reply.step = m->body.step_begin.step;
            for (uint32_t i = 0; i < m->count && i < 8; i++)
                proto_record(m, i, &f->last_items[i]);
        }
        ok(f, c, m, &reply, sizeof reply);
        return;
    }
    case PROTO_APPEND:
    case PROTO_PREFILL:
    case PROTO_DECODE:
    case PROTO_ATTEND:
        f->last_attend = m->header.op == PROTO_ATTEND ? m->body.attend
                                                      : (struct proto_attend){.attn = m->body.attn};
        f->last_attn = f->last_attend.attn;
        for (uint32_t i = 0; i < m->count && i < 8; i++)
            proto_record(m, i, &f->last_items[i]);
        ok(f, c, m, NULL, 0);
        return;
    case PROTO_REGION_CREATE:
        region(f, c, m);
        return;
    case PROTO_REGION_FREE:
        f->last_freed_region = m->body.handle.handle;
        ok(f, c, m, NULL, 0);
        return;
    default:
        ok(f, c, m, NULL, 0);
        return;
    }
}
