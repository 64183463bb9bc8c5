// SPDX-License-Identifier: Apache-2.0
// layout.c: see layout.h. The table of fields, the table of ops, and the rules between fields.
#include "proto/layout.h"

#define FIELD(s, f, kind) \
    { #f, offsetof(struct proto_##s, f), sizeof(((struct proto_##s *)0)->f), kind, 0, 0 }
#define UINT(s, f) FIELD(s, f, FIELD_UINT)
#define INT(s, f) FIELD(s, f, FIELD_INT)
#define FLOAT(s, f) FIELD(s, f, FIELD_FLOAT)
#define HANDLE(s, f) FIELD(s, f, FIELD_HANDLE)
#define TEXT(s, f) FIELD(s, f, FIELD_TEXT)
#define SECRET(s, f) FIELD(s, f, FIELD_SECRET)
#define SECRET_TEXT(s, f) FIELD(s, f, FIELD_SECRET_TEXT)
#define BYTES(s, f) FIELD(s, f, FIELD_BYTES)
#define ZERO(s, f) FIELD(s, f, FIELD_ZERO)
#define COUNT(s, f, min, max) \
    { #f, offsetof(struct proto_##s, f), 4, FIELD_COUNT, min, max }
#define TOKENS(s, f, max) \
    { #f, offsetof(struct proto_##s, f), 4, FIELD_TOKENS, 0, max }
#define FLAGS(s, f, known) \
    { #f, offsetof(struct proto_##s, f), 4, FIELD_FLAGS, 0, known }
#define TENSOR(s, f) \
    HANDLE(s, f.region), UINT(s, f.offset), UINT(s, f.token_stride), UINT(s, f.head_stride)
#define ARRAY(s, f) HANDLE(s, f.region), UINT(s, f.offset)

// Defines fields_<s> and layout_<s> of struct proto_<s>.
#define LAYOUT_AS(linkage, ident, s, bytes, ...)                  \
    static const struct proto_field fields_##s[] = {__VA_ARGS__}; \
    linkage const struct proto_layout ident = {                   \
        #s, bytes, sizeof fields_##s / sizeof fields_##s[0], fields_##s}
#define LAYOUT(s, ...) LAYOUT_AS(static, layout_##s, s, sizeof(struct proto_##s), __VA_ARGS__)

LAYOUT_AS(, proto_layout_header, header, sizeof(struct proto_header), HANDLE(header, magic),
          UINT(header, version), ZERO(header, flags), UINT(header, op), UINT(header, len),
          INT(header, status), UINT(header, seq), UINT(header, epoch));
LAYOUT_AS(, proto_layout_error, error, sizeof(struct proto_error), UINT(error, detail),
          TEXT(error, text));
LAYOUT(fd_hello, UINT(fd_hello, version_min), UINT(fd_hello, version_max),
       HANDLE(fd_hello, features), TEXT(fd_hello, name));
LAYOUT(fd_hello_reply, UINT(fd_hello_reply, version), UINT(fd_hello_reply, pid),
       HANDLE(fd_hello_reply, features), HANDLE(fd_hello_reply, session),
       SECRET(fd_hello_reply, token), UINT(fd_hello_reply, epoch));
LAYOUT(hello, UINT(hello, version_min), UINT(hello, version_max), HANDLE(hello, features),
       HANDLE(hello, session), SECRET(hello, token));
LAYOUT(hello_reply, UINT(hello_reply, version), UINT(hello_reply, pid),
       HANDLE(hello_reply, features), UINT(hello_reply, max_message), UINT(hello_reply, max_batch),
       UINT(hello_reply, max_inflight), TEXT(hello_reply, daemon_version),
       TEXT(hello_reply, backend));
LAYOUT(ping, UINT(ping, payload));
LAYOUT(handle,
       HANDLE(handle, handle)); // also the u64 records of SEQ_CREATE, _FORK, _FREE, _RELEASE
LAYOUT(name, TEXT(name, name));
LAYOUT(count, COUNT(count, count, 1, PROTO_MAX_BATCH), ZERO(count, reserved));
LAYOUT(list, UINT(list, cursor), COUNT(list, max, 1, PROTO_MAX_LIST));
LAYOUT(list_reply, COUNT(list_reply, count, 0, PROTO_MAX_LIST), UINT(list_reply, cursor));
LAYOUT(pool_create, TEXT(pool_create, name), UINT(pool_create, layers), UINT(pool_create, kv_heads),
       UINT(pool_create, head_dim), UINT(pool_create, page_size), UINT(pool_create, dtype),
       UINT(pool_create, num_pages), UINT(pool_create, max_seqs), UINT(pool_create, max_seq_len));
LAYOUT(pool_create_as, TEXT(pool_create_as, create.name), UINT(pool_create_as, create.layers),
       UINT(pool_create_as, create.kv_heads), UINT(pool_create_as, create.head_dim),
       UINT(pool_create_as, create.page_size), UINT(pool_create_as, create.dtype),
       UINT(pool_create_as, create.num_pages), UINT(pool_create_as, create.max_seqs),
       UINT(pool_create_as, create.max_seq_len), UINT(pool_create_as, kv_dtype),
       UINT(pool_create_as, export));
// kv_dtype and export stand where earlier daemons write 0.
LAYOUT(pool_info, HANDLE(pool_info, pool), TEXT(pool_info, name), UINT(pool_info, layers),
       UINT(pool_info, kv_heads), UINT(pool_info, head_dim), UINT(pool_info, page_size),
       UINT(pool_info, dtype), UINT(pool_info, num_pages), UINT(pool_info, max_seqs),
       UINT(pool_info, max_seq_len), UINT(pool_info, free_pages), UINT(pool_info, shared_pages),
       UINT(pool_info, seqs), UINT(pool_info, kv_dtype), UINT(pool_info, export),
       UINT(pool_info, bytes));
// n is no record count of its request, but of the reply: 0 is left to the daemon (INVAL).
LAYOUT(seq_create, HANDLE(seq_create, pool), COUNT(seq_create, n, 0, PROTO_MAX_BATCH),
       ZERO(seq_create, reserved));
LAYOUT(seq_fork, HANDLE(seq_fork, seq), COUNT(seq_fork, n, 0, PROTO_MAX_BATCH),
       ZERO(seq_fork, reserved));
LAYOUT(seq_truncate, HANDLE(seq_truncate, seq), UINT(seq_truncate, length),
       ZERO(seq_truncate, reserved));
LAYOUT(seq_info, HANDLE(seq_info, seq), HANDLE(seq_info, pool), UINT(seq_info, length),
       UINT(seq_info, pages), UINT(seq_info, shared_pages), UINT(seq_info, in_step),
       UINT(seq_info, owner_pid), ZERO(seq_info, reserved));
LAYOUT(batch_item, HANDLE(batch_item, seq), UINT(batch_item, tokens), ZERO(batch_item, reserved));
LAYOUT(step_begin, HANDLE(step_begin, pool), UINT(step_begin, step),
       COUNT(step_begin, count, 1, PROTO_MAX_BATCH), ZERO(step_begin, flags));
LAYOUT(step_reply, UINT(step_reply, step), UINT(step_reply, tokens), UINT(step_reply, pages));
// What a priority or a hint may be is left to the daemon (INVAL), and so is a ttl_ms of 0.
LAYOUT(seq_open, HANDLE(seq_open, pool), TOKENS(seq_open, num_tokens, PROTO_MAX_TOKENS),
       FLAGS(seq_open, flags, PROTO_OPEN_KNOWN), UINT(seq_open, priority),
       COUNT(seq_open, extra_size, 0, PROTO_EXTRA_MAX), BYTES(seq_open, extra));
LAYOUT(seq_open_reply, HANDLE(seq_open_reply, seq), UINT(seq_open_reply, matched),
       ZERO(seq_open_reply, reserved));
LAYOUT(step_begin_tokens, HANDLE(step_begin_tokens, pool), UINT(step_begin_tokens, step),
       COUNT(step_begin_tokens, count, 1, PROTO_MAX_BATCH),
       TOKENS(step_begin_tokens, num_tokens, PROTO_MAX_TOKENS));
LAYOUT(seq_release, COUNT(seq_release, count, 1, PROTO_MAX_BATCH), UINT(seq_release, hint));
LAYOUT(seq_priority, HANDLE(seq_priority, seq), UINT(seq_priority, priority),
       ZERO(seq_priority, reserved));
LAYOUT(prefix_pin, HANDLE(prefix_pin, seq), UINT(prefix_pin, tokens), UINT(prefix_pin, ttl_ms));
LAYOUT(prefix_pin_reply, HANDLE(prefix_pin_reply, pin), UINT(prefix_pin_reply, tokens),
       ZERO(prefix_pin_reply, reserved));
LAYOUT(prefix_unpin, HANDLE(prefix_unpin, pool), HANDLE(prefix_unpin, pin));
LAYOUT(pool_usage, HANDLE(pool_usage, pool), UINT(pool_usage, cursor),
       COUNT(pool_usage, max, 1, PROTO_MAX_LIST));
LAYOUT(ns_info, TEXT(ns_info, name), TEXT(ns_info, group), UINT(ns_info, num_pages),
       UINT(ns_info, free_pages), UINT(ns_info, reserve), UINT(ns_info, limit),
       UINT(ns_info, weight), UINT(ns_info, active), UINT(ns_info, cached), UINT(ns_info, seqs),
       UINT(ns_info, hit_tokens), UINT(ns_info, miss_tokens), UINT(ns_info, sealed),
       UINT(ns_info, deduplicated), UINT(ns_info, evicted), UINT(ns_info, dropped),
       UINT(ns_info, refused));
LAYOUT(cleared, UINT(cleared, pages), ZERO(cleared, reserved));
LAYOUT(fd_open, UINT(fd_open, version_min), UINT(fd_open, version_max), HANDLE(fd_open, features),
       TEXT(fd_open, name), HANDLE(fd_open, session), SECRET(fd_open, token),
       SECRET_TEXT(fd_open, credential));
LAYOUT(trace, FLAGS(trace, flags, PROTO_TRACE_KNOWN), ZERO(trace, reserved));
LAYOUT(trace_reply, UINT(trace_reply, started_ns));
LAYOUT(attn, UINT(attn, step), HANDLE(attn, pool), COUNT(attn, count, 0, PROTO_MAX_BATCH),
       UINT(attn, layer), UINT(attn, qo_heads), FLAGS(attn, flags, KVPOOL_ATTN_CAUSAL),
       FLOAT(attn, sm_scale), FLOAT(attn, soft_cap), INT(attn, window_left), ZERO(attn, reserved),
       TENSOR(attn, q), TENSOR(attn, k), TENSOR(attn, v), TENSOR(attn, out), TENSOR(attn, lse));
// What a scale may be is left to the daemon (INVAL).
LAYOUT(attend, UINT(attend, attn.step), HANDLE(attend, attn.pool),
       COUNT(attend, attn.count, 0, PROTO_MAX_BATCH), UINT(attend, attn.layer),
       UINT(attend, attn.qo_heads),
       FLAGS(attend, attn.flags, KVPOOL_ATTN_CAUSAL | KVPOOL_ATTN_BATCH_INVARIANT),
       FLOAT(attend, attn.sm_scale), FLOAT(attend, attn.soft_cap), INT(attend, attn.window_left),
       ZERO(attend, attn.reserved), TENSOR(attend, attn.q), TENSOR(attend, attn.k),
       TENSOR(attend, attn.v), TENSOR(attend, attn.out), TENSOR(attend, attn.lse), UINT(attend, op),
       ZERO(attend, reserved), FLOAT(attend, k_scale), FLOAT(attend, v_scale),
       ARRAY(attend, kv_scales), ARRAY(attend, sinks));
LAYOUT(region_create, UINT(region_create, bytes));
LAYOUT(region_reply, HANDLE(region_reply, region), UINT(region_reply, bytes));
// What place or export may be is left to the daemon (INVAL). Whoever has a handle has the memory.
LAYOUT(region_alloc, UINT(region_alloc, bytes), UINT(region_alloc, place),
       UINT(region_alloc, export));
LAYOUT(region_handle, HANDLE(region_handle, region), UINT(region_handle, bytes),
       UINT(region_handle, place), UINT(region_handle, export), UINT(region_handle, offset),
       UINT(region_handle, handle_bytes), SECRET(region_handle, ipc));
LAYOUT(region_register, UINT(region_register, bytes), UINT(region_register, offset),
       UINT(region_register, handle_bytes), SECRET(region_register, ipc));
LAYOUT(stats, UINT(stats, uptime_ns), UINT(stats, pid), UINT(stats, pools), UINT(stats, seqs),
       UINT(stats, steps), UINT(stats, clients), UINT(stats, regions), UINT(stats, queue_depth),
       ZERO(stats, reserved), UINT(stats, requests), UINT(stats, errors), UINT(stats, appends),
       UINT(stats, prefills), UINT(stats, decodes), UINT(stats, commits), UINT(stats, aborts),
       UINT(stats, tokens), UINT(stats, sessions_died), UINT(stats, relistens),
       UINT(stats, leaked_pipes), FLOAT(stats, requests_per_s), UINT(stats, reclaim_last_ns),
       UINT(stats, reclaim_max_ns));
LAYOUT(client_info, UINT(client_info, pid), UINT(client_info, uid), UINT(client_info, seqs),
       UINT(client_info, steps), UINT(client_info, regions), UINT(client_info, inflight),
       UINT(client_info, region_bytes), UINT(client_info, requests), TEXT(client_info, name));

static int check_begin(const struct proto_msg *request, struct err *err) {
    if (request->body.step_begin.step == 0)
        return err_set(err, KVPOOL_E_PROTO, "step_begin.step is 0");
    return 0;
}

static int check_begin_tokens(const struct proto_msg *request, struct err *err) {
    const struct proto_step_begin_tokens *b = &request->body.step_begin_tokens;
    if (b->step == 0)
        return err_set(err, KVPOOL_E_PROTO, "step_begin_tokens.step is 0");
    uint64_t sum = 0;
    for (uint32_t i = 0; i < request->count; i++) {
        struct proto_batch_item item;
        proto_record(request, i, &item);
        sum += item.tokens;
    }
    if (sum != b->num_tokens)
        return err_set(err, KVPOOL_E_PROTO,
                       "step_begin_tokens.num_tokens is %u, its items have %llu", b->num_tokens,
                       (unsigned long long)sum);
    return 0;
}

static int check_open(const struct proto_msg *request, struct err *err) {
    const struct proto_seq_open *o = &request->body.seq_open;
    for (uint32_t i = o->extra_size; i < PROTO_EXTRA_MAX; i++)
        if (o->extra[i] != 0)
            return err_set(err, KVPOOL_E_PROTO, "seq_open.extra has bytes after its end");
    return 0;
}

// A token names nothing without its session.
static int check_fd_open(const struct proto_msg *request, struct err *err) {
    static const uint8_t none[PROTO_TOKEN_SIZE];
    const struct proto_fd_open *o = &request->body.fd_open;
    if (o->session == 0 && memcmp(o->token, none, sizeof none) != 0)
        return err_set(err, KVPOOL_E_PROTO, "fd_open.token without a session");
    return 0;
}

static int check_tensor(const struct proto_tensor *t, const char *name, struct err *err) {
    if (t->region == 0 && (t->offset != 0 || t->token_stride != 0 || t->head_stride != 0))
        return err_set(err, KVPOOL_E_PROTO, "tensor %s has no region, but other fields", name);
    return 0;
}

static int check_tensors(const struct proto_attn *a, struct err *err) {
    int rc = check_tensor(&a->q, "q", err);
    if (rc == 0)
        rc = check_tensor(&a->k, "k", err);
    if (rc == 0)
        rc = check_tensor(&a->v, "v", err);
    if (rc == 0)
        rc = check_tensor(&a->out, "out", err);
    if (rc == 0)
        rc = check_tensor(&a->lse, "lse", err);
    return rc;
}

// Floats as their bits: any other bits than those of +0 are "given".
static bool float_given(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits != 0;
}

static int append_fields(const struct proto_attn *a, struct err *err) {
    if (a->step == 0)
        return err_set(err, KVPOOL_E_PROTO, "append without a step");
    if (a->pool != 0 || a->count != 0)
        return err_set(err, KVPOOL_E_PROTO, "append with a %s", a->pool != 0 ? "pool" : "batch");
    if (a->qo_heads != 0 || float_given(a->sm_scale) || float_given(a->soft_cap) ||
        a->window_left != 0)
        return err_set(err, KVPOOL_E_PROTO, "append with options of attention");
    if (a->q.region != 0 || a->out.region != 0 || a->lse.region != 0)
        return err_set(err, KVPOOL_E_PROTO, "append with a tensor of attention");
    return check_tensors(a, err);
}

static int attention_fields(const struct proto_attn *a, struct err *err) {
    if (a->step != 0 && (a->pool != 0 || a->count != 0))
        return err_set(err, KVPOOL_E_PROTO, "both a step and a %s",
                       a->pool != 0 ? "pool" : "batch");
    if (a->step == 0 && a->count == 0)
        return err_set(err, KVPOOL_E_PROTO, "neither a step nor a batch");
    return check_tensors(a, err);
}

static int check_append(const struct proto_msg *request, struct err *err) {
    return append_fields(&request->body.attn, err);
}

static int check_attention(const struct proto_msg *request, struct err *err) {
    return attention_fields(&request->body.attn, err);
}

static int check_attend(const struct proto_msg *request, struct err *err) {
    const struct proto_attend *e = &request->body.attend;
    if (e->op != PROTO_APPEND && e->op != PROTO_PREFILL && e->op != PROTO_DECODE)
        return err_set(err, KVPOOL_E_PROTO, "attend.op is %u, not APPEND, PREFILL or DECODE",
                       e->op);
    if (e->kv_scales.region == 0 && e->kv_scales.offset != 0)
        return err_set(err, KVPOOL_E_PROTO, "kv_scales has no region, but an offset");
    if (e->sinks.region == 0 && e->sinks.offset != 0)
        return err_set(err, KVPOOL_E_PROTO, "sinks has no region, but an offset");
    if (e->op != PROTO_APPEND)
        return attention_fields(&e->attn, err);
    if (e->sinks.region != 0 || (e->attn.flags & KVPOOL_ATTN_BATCH_INVARIANT) != 0)
        return err_set(err, KVPOOL_E_PROTO, "append with options of attention");
    return append_fields(&e->attn, err);
}

// clang-format off
#define NONE {NULL, NULL}
#define BODY(s) {&layout_##s, NULL}
#define LIST(s, record) {&layout_##s, &layout_##record}
static const struct proto_op_info ops[PROTO_NUM_OPS] = {
    [PROTO_HELLO] = {"HELLO", PROTO_ON_CONTROL, BODY(hello), BODY(hello_reply), NULL},
    [PROTO_PING] = {"PING", PROTO_ON_CONTROL, BODY(ping), BODY(ping), NULL},
    [PROTO_STATS] = {"STATS", PROTO_ON_CONTROL, NONE, BODY(stats), NULL},
    [PROTO_POOL_CREATE] = {"POOL_CREATE", PROTO_ON_CONTROL, BODY(pool_create), BODY(handle), NULL},
    [PROTO_POOL_OPEN] = {"POOL_OPEN", PROTO_ON_CONTROL, BODY(name), BODY(handle), NULL},
    [PROTO_POOL_DESTROY] = {"POOL_DESTROY", PROTO_ON_CONTROL, BODY(handle), NONE, NULL},
    [PROTO_POOL_STAT] = {"POOL_STAT", PROTO_ON_CONTROL, BODY(handle), BODY(pool_info), NULL},
    [PROTO_POOL_LIST] = {"POOL_LIST", PROTO_ON_CONTROL, BODY(list), LIST(list_reply, pool_info), NULL},
    [PROTO_SEQ_CREATE] = {"SEQ_CREATE", PROTO_ON_CONTROL, BODY(seq_create), LIST(count, handle), NULL},
    [PROTO_SEQ_FORK] = {"SEQ_FORK", PROTO_ON_CONTROL, BODY(seq_fork), LIST(count, handle), NULL},
    [PROTO_SEQ_TRUNCATE] = {"SEQ_TRUNCATE", PROTO_ON_CONTROL, BODY(seq_truncate), NONE, NULL},
    [PROTO_SEQ_FREE] = {"SEQ_FREE", PROTO_ON_CONTROL, LIST(count, handle), NONE, NULL},
    [PROTO_SEQ_STAT] = {"SEQ_STAT", PROTO_ON_CONTROL, BODY(handle), BODY(seq_info), NULL},
    [PROTO_SEQ_LIST] = {"SEQ_LIST", PROTO_ON_CONTROL, BODY(list), LIST(list_reply, seq_info), NULL},
    [PROTO_STEP_BEGIN] = {"STEP_BEGIN", PROTO_ON_CONTROL, LIST(step_begin, batch_item), BODY(step_reply), check_begin},
    [PROTO_STEP_COMMIT] = {"STEP_COMMIT", PROTO_ON_CONTROL, BODY(handle), BODY(step_reply), NULL},
    [PROTO_STEP_ABORT] = {"STEP_ABORT", PROTO_ON_CONTROL, BODY(handle), NONE, NULL},
    [PROTO_APPEND] = {"APPEND", PROTO_ON_CONTROL, BODY(attn), NONE, check_append},
    [PROTO_PREFILL] = {"PREFILL", PROTO_ON_CONTROL, LIST(attn, batch_item), NONE, check_attention},
    [PROTO_DECODE] = {"DECODE", PROTO_ON_CONTROL, LIST(attn, batch_item), NONE, check_attention},
    [PROTO_CLIENT_LIST] = {"CLIENT_LIST", PROTO_ON_CONTROL, BODY(list), LIST(list_reply, client_info), NULL},
    [PROTO_SEQ_OPEN] = {"SEQ_OPEN", PROTO_ON_CONTROL, BODY(seq_open), BODY(seq_open_reply), check_open},
    [PROTO_STEP_BEGIN_TOKENS] = {"STEP_BEGIN_TOKENS", PROTO_ON_CONTROL, LIST(step_begin_tokens, batch_item), BODY(step_reply), check_begin_tokens},
    [PROTO_SEQ_RELEASE] = {"SEQ_RELEASE", PROTO_ON_CONTROL, LIST(seq_release, handle), NONE, NULL},
    [PROTO_SEQ_PRIORITY] = {"SEQ_PRIORITY", PROTO_ON_CONTROL, BODY(seq_priority), NONE, NULL},
    [PROTO_PREFIX_PIN] = {"PREFIX_PIN", PROTO_ON_CONTROL, BODY(prefix_pin), BODY(prefix_pin_reply), NULL},
    [PROTO_PREFIX_UNPIN] = {"PREFIX_UNPIN", PROTO_ON_CONTROL, BODY(prefix_unpin), NONE, NULL},
    [PROTO_POOL_USAGE] = {"POOL_USAGE", PROTO_ON_CONTROL, BODY(pool_usage), LIST(list_reply, ns_info), NULL},
    [PROTO_CACHE_CLEAR] = {"CACHE_CLEAR", PROTO_ON_CONTROL, BODY(handle), BODY(cleared), NULL},
    [PROTO_POOL_CREATE_AS] = {"POOL_CREATE_AS", PROTO_ON_CONTROL, BODY(pool_create_as), BODY(handle), NULL},
    [PROTO_ATTEND] = {"ATTEND", PROTO_ON_CONTROL, LIST(attend, batch_item), NONE, check_attend},
    [PROTO_FD_HELLO] = {"FD_HELLO", PROTO_ON_FD, BODY(fd_hello), BODY(fd_hello_reply), NULL},
    [PROTO_REGION_CREATE] = {"REGION_CREATE", PROTO_ON_FD, BODY(region_create), BODY(region_reply), NULL},
    [PROTO_REGION_FREE] = {"REGION_FREE", PROTO_ON_FD, BODY(handle), NONE, NULL},
    [PROTO_BYE] = {"BYE", PROTO_ON_FD, NONE, NONE, NULL},
    [PROTO_FD_OPEN] = {"FD_OPEN", PROTO_ON_FD, BODY(fd_open), BODY(fd_hello_reply), check_fd_open},
    [PROTO_TRACE] = {"TRACE", PROTO_ON_FD, BODY(trace), BODY(trace_reply), NULL},
    [PROTO_REGION_ALLOC] = {"REGION_ALLOC", PROTO_ON_FD, BODY(region_alloc), BODY(region_handle), NULL},
    [PROTO_REGION_REGISTER] = {"REGION_REGISTER", PROTO_ON_FD, BODY(region_register), BODY(region_reply), NULL},
};
// clang-format on

const struct proto_op_info *proto_op(uint16_t op) {
    return op < PROTO_NUM_OPS && ops[op].name != NULL ? &ops[op] : NULL;
}
