// SPDX-License-Identifier: Apache-2.0
// samples.c: see samples.h.
#include "samples.h"

#include <stdio.h>
#include <stdlib.h>

#define POOL 0x0000000100000002ull
#define SEQ 0x0000000300000004ull
#define SEQ2 0x0000000500000006ull
#define TOKEN                                                                                     \
    {                                                                                             \
        0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, \
            0xAF                                                                                  \
    }

struct list {
    struct sample *samples;
    size_t n;
};

static void add_tokens(struct list *l, const char *name, uint16_t op, bool reply, int status,
                       const void *body, size_t body_len, const void *records, size_t records_len,
                       const uint32_t *tokens, uint32_t num_tokens) {
    if (l->n == SAMPLES_MAX)
        abort();
    struct sample *s = &l->samples[l->n++];
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s.%s", name, reply ? "reply" : "request");
    s->op = op;
    s->reply = reply;
    struct proto_header h = {.version = 1, .op = op, .status = status, .seq = 7, .epoch = 9};
    s->len = proto_write_tokens(s->bytes, sizeof s->bytes, &h, body, body_len, records, records_len,
                                tokens, num_tokens);
    if (s->len == 0)
        abort();
}

static void add(struct list *l, const char *name, uint16_t op, bool reply, int status,
                const void *body, size_t body_len, const void *records, size_t records_len) {
    add_tokens(l, name, op, reply, status, body, body_len, records, records_len, NULL, 0);
}

#define REQUEST(name, op, body) add(l, name, op, false, 0, &(body), sizeof(body), NULL, 0)
#define REQUEST_N(name, op, body, records) \
    add(l, name, op, false, 0, &(body), sizeof(body), records, sizeof(records))
#define REPLY(name, op, body) add(l, name, op, true, 0, &(body), sizeof(body), NULL, 0)
#define REPLY_N(name, op, body, records) \
    add(l, name, op, true, 0, &(body), sizeof(body), records, sizeof(records))
#define REQUEST_EMPTY(name, op) add(l, name, op, false, 0, NULL, 0, NULL, 0)
#define REPLY_EMPTY(name, op) add(l, name, op, true, 0, NULL, 0, NULL, 0)

static void add_connection(struct list *l) {
    struct proto_hello hello = {1, 2, 0x10, SEQ, TOKEN};
    struct proto_hello_reply hello_reply = {1, 77, 0x20, 65536, 1024, 256, "0.1.0", "cpu"};
    REQUEST("hello", PROTO_HELLO, hello);
    REPLY("hello", PROTO_HELLO, hello_reply);
    struct proto_ping ping = {0x1122334455667788ull};
    REQUEST("ping", PROTO_PING, ping);
    REPLY("ping", PROTO_PING, ping);
    struct proto_stats stats = {.uptime_ns = 1,
                                .pid = 2,
                                .pools = 3,
                                .seqs = 4,
                                .steps = 5,
                                .clients = 6,
                                .regions = 7,
                                .queue_depth = 8,
                                .requests = 9,
                                .errors = 10,
                                .appends = 11,
                                .prefills = 12,
                                .decodes = 13,
                                .commits = 14,
                                .aborts = 15,
                                .tokens = 16,
                                .sessions_died = 17,
                                .relistens = 18,
                                .leaked_pipes = 19,
                                .requests_per_s = 20.5,
                                .reclaim_last_ns = 21,
                                .reclaim_max_ns = 22};
    REQUEST_EMPTY("stats", PROTO_STATS);
    REPLY("stats", PROTO_STATS, stats);
    struct proto_fd_hello fd_hello = {1, 2, 0x10, "worker-1"};
    struct proto_fd_hello_reply fd_hello_reply = {1, 77, 0x20, SEQ, TOKEN, 9};
    REQUEST("fd_hello", PROTO_FD_HELLO, fd_hello);
    REPLY("fd_hello", PROTO_FD_HELLO, fd_hello_reply);
    struct proto_region_create region = {8192};
    struct proto_region_reply region_reply = {SEQ2, 8192};
    REQUEST("region_create", PROTO_REGION_CREATE, region);
    REPLY("region_create", PROTO_REGION_CREATE, region_reply);
    struct proto_handle handle = {SEQ2};
    REQUEST("region_free", PROTO_REGION_FREE, handle);
    REPLY_EMPTY("region_free", PROTO_REGION_FREE);
    REQUEST_EMPTY("bye", PROTO_BYE);
    REPLY_EMPTY("bye", PROTO_BYE);
    struct proto_list list = {3, PROTO_MAX_LIST};
    struct proto_list_reply list_reply = {1, 4};
    struct proto_client_info client[] = {{77, 1000, 1, 2, 3, 4, 8192, 5, "worker-1"}};
    REQUEST("client_list", PROTO_CLIENT_LIST, list);
    REPLY_N("client_list", PROTO_CLIENT_LIST, list_reply, client);
    struct proto_error error = {12, "3 of 12 pages are free"};
    add(l, "nospace", PROTO_STEP_BEGIN, true, KVPOOL_E_NOSPACE, &error, sizeof error, NULL, 0);
    // The reply to a request whose header could not be read.
    struct proto_error unread = {0, "message of 3 bytes, a header has 32"};
    add(l, "unread", 0, true, KVPOOL_E_PROTO, &unread, sizeof unread, NULL, 0);
}

static void add_pools(struct list *l) {
    struct proto_pool_create create = {"llama", 32, 8, 128, 16, KVPOOL_BF16, 4096, 512, 65536};
    struct proto_handle pool = {POOL};
    struct proto_name name = {"llama"};
    struct proto_pool_info info = {POOL, "llama", 32,   8, 128, 16, 2, 4096,
                                   512,  65536,   4000, 3, 2,   0,  0, 1ull << 33};
    struct proto_pool_info infos[2] = {info, info};
    struct proto_list list = {0, 16};
    struct proto_list_reply list_reply = {2, 2};
    REQUEST("pool_create", PROTO_POOL_CREATE, create);
    REPLY("pool_create", PROTO_POOL_CREATE, pool);
    struct proto_pool_create_as create_as = {create, KVPOOL_FP8_E4M3, KVPOOL_EXPORT_IPC};
    struct proto_pool_info info_as = info;
    info_as.kv_dtype = KVPOOL_FP8_E4M3;
    info_as.export = KVPOOL_EXPORT_IPC;
    REQUEST("pool_create_as", PROTO_POOL_CREATE_AS, create_as);
    REPLY("pool_create_as", PROTO_POOL_CREATE_AS, pool);
    REPLY("pool_stat_as", PROTO_POOL_STAT, info_as);
    REQUEST("pool_open", PROTO_POOL_OPEN, name);
    REPLY("pool_open", PROTO_POOL_OPEN, pool);
    REQUEST("pool_destroy", PROTO_POOL_DESTROY, pool);
    REPLY_EMPTY("pool_destroy", PROTO_POOL_DESTROY);
    REQUEST("pool_stat", PROTO_POOL_STAT, pool);
    REPLY("pool_stat", PROTO_POOL_STAT, info);
    REQUEST("pool_list", PROTO_POOL_LIST, list);
    REPLY_N("pool_list", PROTO_POOL_LIST, list_reply, infos);
}

static void add_seqs(struct list *l) {
    uint64_t seqs[2] = {SEQ, SEQ2};
    struct proto_count two = {.count = 2};
    struct proto_seq_create create = {POOL, 2, 0};
    struct proto_seq_fork fork = {SEQ, 2, 0};
    struct proto_seq_truncate truncate = {SEQ, 5, 0};
    struct proto_handle seq = {SEQ};
    struct proto_seq_info info = {SEQ, POOL, 100, 7, 3, 1, 77, 0};
    struct proto_seq_info infos[2] = {info, info};
    struct proto_list list = {0, 2};
    struct proto_list_reply list_reply = {2, 5};
    REQUEST("seq_create", PROTO_SEQ_CREATE, create);
    REPLY_N("seq_create", PROTO_SEQ_CREATE, two, seqs);
    REQUEST("seq_fork", PROTO_SEQ_FORK, fork);
    REPLY_N("seq_fork", PROTO_SEQ_FORK, two, seqs);
    REQUEST("seq_truncate", PROTO_SEQ_TRUNCATE, truncate);
    REPLY_EMPTY("seq_truncate", PROTO_SEQ_TRUNCATE);
    REQUEST_N("seq_free", PROTO_SEQ_FREE, two, seqs);
    REPLY_EMPTY("seq_free", PROTO_SEQ_FREE);
    REQUEST("seq_stat", PROTO_SEQ_STAT, seq);
    REPLY("seq_stat", PROTO_SEQ_STAT, info);
    REQUEST("seq_list", PROTO_SEQ_LIST, list);
    REPLY_N("seq_list", PROTO_SEQ_LIST, list_reply, infos);
}

static void add_steps(struct list *l) {
    struct proto_batch_item items[2] = {{SEQ, 3, 0}, {SEQ2, 1, 0}};
    struct proto_step_begin begin = {POOL, 11, 2, 0};
    struct proto_step_reply begun = {11, 4, 2};
    struct proto_handle step = {11};
    REQUEST_N("step_begin", PROTO_STEP_BEGIN, begin, items);
    REPLY("step_begin", PROTO_STEP_BEGIN, begun);
    REQUEST("step_commit", PROTO_STEP_COMMIT, step);
    REPLY("step_commit", PROTO_STEP_COMMIT, begun);
    REQUEST("step_abort", PROTO_STEP_ABORT, step);
    REPLY_EMPTY("step_abort", PROTO_STEP_ABORT);

    struct proto_tensor q = {21, 64, 4096, 128}, k = {22, 128, 1024, 128};
    struct proto_tensor v = {23, 192, 1024, 128}, out = {24, 256, 4096, 128},
                        lse = {25, 320, 32, 1};
    struct proto_attn append = {.step = 11, .layer = 1, .k = k, .v = v};
    struct proto_attn prefill = {.step = 11,
                                 .layer = 1,
                                 .qo_heads = 32,
                                 .flags = KVPOOL_ATTN_CAUSAL,
                                 .sm_scale = 0.25f,
                                 .soft_cap = 30.0f,
                                 .window_left = -1,
                                 .q = q,
                                 .k = k,
                                 .v = v,
                                 .out = out,
                                 .lse = lse};
    struct proto_attn alone = {.pool = POOL,
                               .count = 2,
                               .layer = 2,
                               .qo_heads = 8,
                               .window_left = 127,
                               .q = q,
                               .out = out};
    REQUEST("append", PROTO_APPEND, append);
    REPLY_EMPTY("append", PROTO_APPEND);
    REQUEST("prefill", PROTO_PREFILL, prefill);
    REQUEST_N("prefill_alone", PROTO_PREFILL, alone, items);
    REPLY_EMPTY("prefill", PROTO_PREFILL);
    REQUEST("decode", PROTO_DECODE, prefill);
    REQUEST_N("decode_alone", PROTO_DECODE, alone, items);
    REPLY_EMPTY("decode", PROTO_DECODE);
    struct proto_array scales = {26, 384}, sinks = {27, 448};
    struct proto_attend append_fp8 = {
        .attn = append, .op = PROTO_APPEND, .k_scale = 0.5f, .v_scale = 0.25f};
    struct proto_attend decode_sinks = {
        .attn = prefill, .op = PROTO_DECODE, .kv_scales = scales, .sinks = sinks};
    struct proto_attend attend_alone = {.attn = alone, .op = PROTO_PREFILL, .sinks = sinks};
    decode_sinks.attn.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    REQUEST("attend_append", PROTO_ATTEND, append_fp8);
    REQUEST("attend", PROTO_ATTEND, decode_sinks);
    REQUEST_N("attend_alone", PROTO_ATTEND, attend_alone, items);
    REPLY_EMPTY("attend", PROTO_ATTEND);
}

static void add_prefixes(struct list *l) {
    const uint32_t tokens[] = {101, 202, 303, 404, 0xffffffff};
    const uint64_t seqs[2] = {SEQ, SEQ2};
    struct proto_seq_open open = {
        POOL, 5, PROTO_OPEN_MATCHED, KVPOOL_PRIORITY_HIGH, 6, {0xE0, 0xE1, 0, 0xE3, 0xE4, 0xE5}};
    struct proto_seq_open empty = {.pool = POOL, .priority = KVPOOL_PRIORITY_NORMAL};
    struct proto_seq_open_reply opened = {SEQ, 4, 0};
    add_tokens(l, "seq_open", PROTO_SEQ_OPEN, false, 0, &open, sizeof open, NULL, 0, tokens, 5);
    REQUEST("seq_open_empty", PROTO_SEQ_OPEN, empty);
    REPLY("seq_open", PROTO_SEQ_OPEN, opened);
    // A step of a sequence with 3 new tokens, one without any and one with 2.
    struct proto_batch_item items[3] = {{SEQ, 3, 0}, {SEQ2, 0, 0}, {POOL, 2, 0}};
    struct proto_step_begin_tokens begin = {POOL, 12, 3, 5};
    struct proto_step_begin_tokens nothing = {POOL, 13, 1, 0};
    struct proto_step_reply begun = {12, 5, 2};
    add_tokens(l, "step_begin_tokens", PROTO_STEP_BEGIN_TOKENS, false, 0, &begin, sizeof begin,
               items, sizeof items, tokens, 5);
    add(l, "step_begin_no_tokens", PROTO_STEP_BEGIN_TOKENS, false, 0, &nothing, sizeof nothing,
        &items[1], sizeof items[1]);
    REPLY("step_begin_tokens", PROTO_STEP_BEGIN_TOKENS, begun);
    struct proto_seq_release release = {2, KVPOOL_FREE_DROP};
    REQUEST_N("seq_release", PROTO_SEQ_RELEASE, release, seqs);
    REPLY_EMPTY("seq_release", PROTO_SEQ_RELEASE);
    struct proto_seq_priority priority = {SEQ, KVPOOL_PRIORITY_HIGH, 0};
    REQUEST("seq_priority", PROTO_SEQ_PRIORITY, priority);
    REPLY_EMPTY("seq_priority", PROTO_SEQ_PRIORITY);
    struct proto_prefix_pin pin = {SEQ, 48, 60000};
    struct proto_prefix_pin_reply pinned = {SEQ2, 32, 0};
    REQUEST("prefix_pin", PROTO_PREFIX_PIN, pin);
    REPLY("prefix_pin", PROTO_PREFIX_PIN, pinned);
    struct proto_prefix_unpin unpin = {POOL, SEQ2};
    REQUEST("prefix_unpin", PROTO_PREFIX_UNPIN, unpin);
    REPLY_EMPTY("prefix_unpin", PROTO_PREFIX_UNPIN);
    struct proto_pool_usage usage = {POOL, 3, PROTO_MAX_LIST};
    struct proto_list_reply list_reply = {1, 4};
    struct proto_ns_info ns[] = {
        {"tenant-1", "group-1", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
    REQUEST("pool_usage", PROTO_POOL_USAGE, usage);
    REPLY_N("pool_usage", PROTO_POOL_USAGE, list_reply, ns);
    struct proto_handle pool = {POOL};
    struct proto_cleared cleared = {17, 0};
    REQUEST("cache_clear", PROTO_CACHE_CLEAR, pool);
    REPLY("cache_clear", PROTO_CACHE_CLEAR, cleared);
    struct proto_error again = {250000, "the queue is full"};
    add(l, "again", PROTO_SEQ_OPEN, true, KVPOOL_E_AGAIN, &again, sizeof again, NULL, 0);
}

static void add_fd_socket(struct list *l) {
    struct proto_fd_open resume = {1, 2, 0x10, "worker-1", SEQ, TOKEN, "hunter2-session"};
    struct proto_fd_open tenant = {.version_min = 1,
                                   .version_max = 2,
                                   .features = 0x10,
                                   .name = "worker-1",
                                   .credential = "hunter2-hunter2"};
    struct proto_fd_hello_reply hello_reply = {1, 77, 0x20, SEQ, TOKEN, 9};
    struct proto_trace trace = {PROTO_TRACE_TOKENS, 0};
    struct proto_trace_reply trace_reply = {1700000000000000000ull};
    REQUEST("fd_open", PROTO_FD_OPEN, resume);
    REQUEST("fd_open_tenant", PROTO_FD_OPEN, tenant);
    REPLY("fd_open", PROTO_FD_OPEN, hello_reply);
    REQUEST("trace", PROTO_TRACE, trace);
    REPLY("trace", PROTO_TRACE, trace_reply);
    struct proto_region_alloc alloc = {8192, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_IPC};
    struct proto_region_handle handle = {SEQ2, 2 << 20, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_IPC,
                                         64,   4 << 20, "a secret handle"};
    struct proto_region_register own = {8192, 512, 2 << 20, "another handle"};
    struct proto_region_reply owned = {SEQ2, 8192};
    REQUEST("region_alloc", PROTO_REGION_ALLOC, alloc);
    REPLY("region_alloc", PROTO_REGION_ALLOC, handle);
    REQUEST("region_register", PROTO_REGION_REGISTER, own);
    REPLY("region_register", PROTO_REGION_REGISTER, owned);
}

size_t samples_make(struct sample *ret) {
    struct list l = {ret, 0};
    add_connection(&l);
    add_pools(&l);
    add_seqs(&l);
    add_steps(&l);
    add_prefixes(&l);
    add_fd_socket(&l);
    return l.n;
}

struct sample sample_get(const char *name) {
    static struct sample all[SAMPLES_MAX];
    size_t n = samples_make(all);
    for (size_t i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0)
            return all[i];
    fprintf(stderr, "no sample %s\n", name);
    abort();
}

int sample_parse(const struct sample *s, struct proto_msg *ret, struct err *err) {
    bool header_ok;
    const struct proto_op_info *op = proto_op(s->op);
    if (s->reply)
        return proto_parse_reply(op != NULL ? s->op : PROTO_PING, s->bytes, s->len, ret, err);
    return proto_parse_request(op != NULL ? op->socket : PROTO_ON_CONTROL, s->bytes, s->len, ret,
                               &header_ok, err);
}
