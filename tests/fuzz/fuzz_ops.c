// SPDX-License-Identifier: Apache-2.0
// fuzz_ops.c: sequences of requests through the parser into core, as the daemon maps them, with
// several sessions and with work in flight. After every request core must satisfy its invariants
// and agree with model.h; a request that failed must have changed nothing; when every session is
// closed and every pin has ended, every page is free or cached.
//
// The input is a script, not raw messages, so that mutations stay meaningful: commands of one byte
// (modulo their number, in the order of `commands` below), each followed by its argument bytes (0
// past the end). A command builds one message from the arguments and the handles seen so far; the
// command `corrupt` changes a byte of the next message, so that the parser is part of it.
//
// Build   cmake --preset fuzz && cmake --build build/fuzz
// Run     build/fuzz/bin/fuzz_ops -max_len=512 -max_total_time=60 <new inputs' folder>
//         tests/fuzz/corpus/ops
// Corpus  tests/fuzz/corpus/ops: scripts (make_corpus.c)
#include "model.h"
#include "sim.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

#define BLOCK_MAX (1u << 16)

static const struct core_limits limits = {.max_pools = MODEL_POOLS,
                                          .max_sessions = MODEL_SESSIONS,
                                          .max_seqs = MODEL_SEQS,
                                          .max_steps = MODEL_STEPS,
                                          .max_session_steps = 2,
                                          .max_batch = MODEL_BATCH,
                                          .max_table_entries = MODEL_ENTRIES,
                                          .max_pages = MODEL_POOLS * MODEL_TOKENS / 8,
                                          .max_page_tokens = (uint64_t)MODEL_POOLS * MODEL_TOKENS,
                                          .max_pins = MODEL_PINS};

static _Alignas(4096) uint8_t block[BLOCK_MAX];
static struct {
    const uint8_t *script;
    size_t left;
    uint64_t sessions[MODEL_SESSIONS];
    bool corrupt;
    uint16_t corrupt_at;
    uint8_t corrupt_with;
} f;

static uint8_t take(void) {
    if (f.left == 0)
        return 0;
    f.left--;
    return *f.script++;
}

static uint64_t take_handle(const struct seen *s) {
    return s->handles[take() % SIM_SEEN];
}

// --- one message ------------------------------------------------------------------------------

struct view { // what a client could see of core
    uint32_t words[5 + MODEL_POOLS * 7 + MODEL_SEQS * 8];
};

static struct view look(void) {
    struct view v = {0};
    uint32_t *w = v.words, cursor = 0;
    struct core_totals totals;
    core_totals(sim.core, &totals);
    *w++ = totals.pools;
    *w++ = totals.sessions;
    *w++ = totals.seqs;
    *w++ = totals.steps;
    *w++ = totals.pins;
    struct core_pool_info pool;
    while (core_pool_next(sim.core, &cursor, &pool)) {
        *w++ = pool.index;
        *w++ = pool.free_pages;
        *w++ = pool.shared_pages;
        *w++ = pool.seqs;
        *w++ = pool.cached_pages;
        *w++ = pool.sealed_pages;
        *w++ = pool.pins;
    }
    struct core_seq_info seq;
    cursor = 0;
    while (core_seq_next(sim.core, &cursor, &seq)) {
        *w++ = (uint32_t)seq.seq;
        *w++ = seq.length;
        *w++ = seq.pages;
        *w++ = seq.shared_pages;
        *w++ = seq.row;
        *w++ = seq.in_step;
        *w++ = seq.tracked;
        *w++ = seq.priority;
    }
    return v;
}

struct part { // of a message: behind its body
    const void *bytes;
    size_t len;
};

static void send_tokens(uint8_t session, enum proto_socket socket, uint16_t op, struct part body,
                        struct part records, const uint32_t *tokens, uint32_t num_tokens) {
    uint8_t bytes[2048];
    struct proto_header h = {.version = 1, .op = op, .seq = 1};
    size_t len = proto_write_tokens(bytes, sizeof bytes, &h, body.bytes, body.len, records.bytes,
                                    records.len, tokens, num_tokens);
    ENSURE(len > 0);
    if (f.corrupt)
        bytes[f.corrupt_at % len] ^= f.corrupt_with;
    struct proto_msg msg;
    bool header_ok;
    struct err err = {0};
    int rc = proto_parse_request(socket, bytes, len, &msg, &header_ok, &err);
    ENSURE(rc == 0 || f.corrupt);
    f.corrupt = false;
    if (rc != 0)
        return;
    struct view before = look();
    rc = sim_execute(&f.sessions[session % MODEL_SESSIONS], &msg, &err);
    if (rc != 0) {
        ENSURE(err.status == rc && err.text[0] != '\0');
        struct view after = look();
        ENSURE(memcmp(&before, &after, sizeof before) == 0);
    }
    model_verify(sim.core);
}

static void send(uint8_t session, enum proto_socket socket, uint16_t op, const void *body,
                 size_t body_len, const void *records, size_t records_len) {
    send_tokens(session, socket, op, (struct part){body, body_len},
                (struct part){records, records_len}, NULL, 0);
}

#define SEND(session, op, body) send(session, PROTO_ON_CONTROL, op, &(body), sizeof(body), NULL, 0)

// --- commands ---------------------------------------------------------------------------------

static void do_open(void) {
    uint8_t session = take();
    struct proto_fd_hello b = {.version_min = 1, .version_max = 1, .name = "fuzz"};
    if (session % MODEL_SESSIONS == MODEL_SESSIONS - 1)
        memcpy(b.name, SIM_TENANT, sizeof SIM_TENANT);
    send(session, PROTO_ON_FD, PROTO_FD_HELLO, &b, sizeof b, NULL, 0);
}

static void do_bye(void) {
    send(take(), PROTO_ON_FD, PROTO_BYE, NULL, 0, NULL, 0);
}

static void do_pool_create(void) { // name, layers, page_size, num_pages, max_seqs, max_seq_len
    struct proto_pool_create b = {.kv_heads = 1, .head_dim = 8, .dtype = KVPOOL_BF16};
    b.name[0] = (char)('a' + take() % 3);
    b.layers = 1 + take() % 2;
    b.page_size = 8u << take() % 2;
    b.num_pages = take() % 17;
    b.max_seqs = take() % 17;
    b.max_seq_len = take();
    SEND(0, PROTO_POOL_CREATE, b);
}

static void do_pool_open(void) {
    struct proto_name b = {{(char)('a' + take() % 3)}};
    SEND(0, PROTO_POOL_OPEN, b);
}

static void do_pool_handle(void) { // destroy or stat
    uint16_t op = take() % 2 ? PROTO_POOL_STAT : PROTO_POOL_DESTROY;
    struct proto_handle b = {take_handle(&sim.pools)};
    SEND(0, op, b);
}

static void do_list(void) {
    uint16_t op = take() % 2 ? PROTO_POOL_LIST : PROTO_SEQ_LIST;
    struct proto_list b = {take(), 16};
    SEND(0, op, b);
}

static void do_seq_create(void) { // session, pool, n
    uint8_t session = take();
    struct proto_seq_create b = {.pool = take_handle(&sim.pools)};
    b.n = take() % (MODEL_BATCH + 2);
    SEND(session, PROTO_SEQ_CREATE, b);
}

static void do_seq_fork(void) { // session, seq, n
    uint8_t session = take();
    struct proto_seq_fork b = {.seq = take_handle(&sim.seqs)};
    b.n = take() % (MODEL_BATCH + 2);
    SEND(session, PROTO_SEQ_FORK, b);
}

static void do_seq_truncate(void) { // session, seq, length
    uint8_t session = take();
    struct proto_seq_truncate b = {.seq = take_handle(&sim.seqs)};
    b.length = take();
    SEND(session, PROTO_SEQ_TRUNCATE, b);
}

static void do_seq_free(void) { // session, n, seqs
    uint8_t session = take();
    uint64_t seqs[MODEL_BATCH];
    struct proto_count b = {.count = 1 + take() % MODEL_BATCH};
    for (uint32_t i = 0; i < b.count; i++)
        seqs[i] = take_handle(&sim.seqs);
    send(session, PROTO_ON_CONTROL, PROTO_SEQ_FREE, &b, sizeof b, seqs, b.count * sizeof seqs[0]);
}

static void do_seq_stat(void) {
    uint8_t session = take();
    struct proto_handle b = {take_handle(&sim.seqs)};
    SEND(session, PROTO_SEQ_STAT, b);
}

static uint32_t take_items(struct proto_batch_item ret[MODEL_BATCH + 1]) { // n, (seq, tokens)
    uint32_t n = 1 + take() % (MODEL_BATCH + 1);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t seq = take_handle(&sim.seqs);
        ret[i] = (struct proto_batch_item){.seq = seq, .tokens = take() % 64};
    }
    return n;
}

static void do_begin(void) { // session, step, pool, items
    uint8_t session = take();
    struct proto_step_begin b = {.step = 1 + take() % 16};
    b.pool = take_handle(&sim.pools);
    struct proto_batch_item items[MODEL_BATCH + 1];
    b.count = take_items(items);
    send(session, PROTO_ON_CONTROL, PROTO_STEP_BEGIN, &b, sizeof b, items,
         b.count * sizeof items[0]);
}

static void do_commit(void) { // session, step
    uint8_t session = take();
    struct proto_handle b = {take() % 17};
    SEND(session, PROTO_STEP_COMMIT, b);
}

static void do_abort(void) { // session, step
    uint8_t session = take();
    struct proto_handle b = {take() % 17};
    SEND(session, PROTO_STEP_ABORT, b);
}

static void do_layer(void) { // session, step, layer, op
    uint8_t session = take();
    struct proto_attn b = {.step = 1 + take() % 16};
    b.layer = take() % 3;
    uint8_t kind = take() % 4;
    b.k.region = b.v.region = kind < 3;
    SEND(session, (uint16_t)(kind == 0 ? PROTO_APPEND : PROTO_PREFILL + kind % 2), b);
}

static void do_attend(void) { // session, pool, layer, items
    uint8_t session = take();
    struct proto_attn b = {.pool = take_handle(&sim.pools)};
    b.layer = take() % 3;
    struct proto_batch_item items[MODEL_BATCH + 1];
    b.count = take_items(items);
    send(session, PROTO_ON_CONTROL, PROTO_DECODE, &b, sizeof b, items, b.count * sizeof items[0]);
}

// Writes both layers of a step and commits it.
static void finish_step(uint8_t session, uint64_t id) {
    struct proto_attn layer = {.step = id, .k = {.region = 1}, .v = {.region = 1}};
    for (layer.layer = 0; layer.layer < 2; layer.layer++)
        SEND(session, PROTO_APPEND, layer);
    sim_complete_all(f.sessions[session % MODEL_SESSIONS]);
    struct proto_handle step = {id};
    SEND(session, PROTO_STEP_COMMIT, step);
}

// One step from begin to commit: session, step, pool, items.
static void do_whole_step(void) {
    uint8_t session = take();
    struct proto_step_begin b = {.step = 1 + take() % 16};
    b.pool = take_handle(&sim.pools);
    struct proto_batch_item items[MODEL_BATCH + 1];
    b.count = take_items(items);
    send(session, PROTO_ON_CONTROL, PROTO_STEP_BEGIN, &b, sizeof b, items,
         b.count * sizeof items[0]);
    finish_step(session, b.step);
}

// --- prefixes ---------------------------------------------------------------------------------

// Token `position` of a document. All begin alike, then every second one, then none.
static uint32_t token(uint8_t doc, uint32_t position) {
    uint32_t who = position < 8 ? 0 : position < 16 ? doc % 2u : doc;
    return who << 16 | position;
}

static void do_seq_open(void) { // session, pool, doc, n, flags and priority, extra
    uint8_t session = take();
    struct proto_seq_open b = {.pool = take_handle(&sim.pools)};
    uint8_t doc = take();
    b.num_tokens = take() % 128;
    uint8_t how = take();
    b.flags = how % 4;
    b.priority = how / 4 % 4;
    b.extra_size = take() % 3;
    memset(b.extra, 'x', b.extra_size);
    uint32_t tokens[128];
    for (uint32_t i = 0; i < b.num_tokens; i++)
        tokens[i] = token(doc, i);
    send_tokens(session, PROTO_ON_CONTROL, PROTO_SEQ_OPEN, (struct part){&b, sizeof b},
                (struct part){NULL, 0}, tokens, b.num_tokens);
}

// BEGIN_TOKENS of step `id`, of each sequence with what the document has next: pool, doc, items.
static void begin_tokens(uint8_t session, uint64_t id) {
    struct proto_step_begin_tokens b = {.step = id, .pool = take_handle(&sim.pools)};
    uint8_t doc = take();
    struct proto_batch_item items[MODEL_BATCH + 1];
    uint32_t tokens[(MODEL_BATCH + 1) * 64];
    b.count = take_items(items);
    for (uint32_t i = 0; i < b.count; i++) {
        struct core_seq_info info = {0};
        bool known = core_seq_stat(sim.core, 0, items[i].seq, &info, NULL) == 0;
        for (uint32_t k = 0; k < items[i].tokens; k++)
            tokens[b.num_tokens++] = token(doc, (known ? info.length : 0) + k);
    }
    send_tokens(session, PROTO_ON_CONTROL, PROTO_STEP_BEGIN_TOKENS, (struct part){&b, sizeof b},
                (struct part){items, b.count * sizeof items[0]}, tokens, b.num_tokens);
}

static void do_begin_tokens(void) { // session, step, pool, doc, items
    uint8_t session = take();
    begin_tokens(session, 1 + take() % 16);
}

static void do_whole_step_tokens(void) { // session, step, pool, doc, items
    uint8_t session = take();
    uint64_t id = 1 + take() % 16;
    begin_tokens(session, id);
    finish_step(session, id);
}

static void do_seq_release(void) { // session, hint, n, seqs
    uint8_t session = take();
    uint64_t seqs[MODEL_BATCH];
    struct proto_seq_release b = {.hint = take() % 3};
    b.count = 1 + take() % MODEL_BATCH;
    for (uint32_t i = 0; i < b.count; i++)
        seqs[i] = take_handle(&sim.seqs);
    send(session, PROTO_ON_CONTROL, PROTO_SEQ_RELEASE, &b, sizeof b, seqs,
         b.count * sizeof seqs[0]);
}

static void do_seq_priority(void) { // session, seq, priority
    uint8_t session = take();
    struct proto_seq_priority b = {.seq = take_handle(&sim.seqs)};
    b.priority = take() % 4;
    SEND(session, PROTO_SEQ_PRIORITY, b);
}

static void do_prefix_pin(void) { // session, seq, tokens, ttl
    uint8_t session = take();
    struct proto_prefix_pin b = {.seq = take_handle(&sim.seqs)};
    b.tokens = take();
    b.ttl_ms = take();
    SEND(session, PROTO_PREFIX_PIN, b);
}

static void do_prefix_unpin(void) { // session, pool, pin
    uint8_t session = take();
    struct proto_prefix_unpin b = {.pool = take_handle(&sim.pools)};
    b.pin = take_handle(&sim.pins);
    SEND(session, PROTO_PREFIX_UNPIN, b);
}

static void do_cache_clear(void) { // session, pool
    uint8_t session = take();
    struct proto_handle b = {take_handle(&sim.pools)};
    SEND(session, PROTO_CACHE_CLEAR, b);
}

static void do_time(void) { // passed
    sim_expire(sim.now + take());
    model_verify(sim.core);
}

// ----------------------------------------------------------------------------------------------

static void do_complete(void) { // job, 0: it failed
    uint8_t job = take();
    sim_complete(job, take() != 0);
    model_verify(sim.core);
}

static void do_corrupt(void) {
    f.corrupt_at = take();
    f.corrupt_with = take();
    f.corrupt = true;
}

// The daemon is replaced by another one, which finds the block. Work in flight has ended.
static void do_reattach(void) {
    sim_complete_all(0);
    struct err err = {0};
    struct view before = look();
    core_close(sim.core);
    int rc = core_attach(block, core_block_size(&limits), &sim.core, &err);
    if (rc != 0)
        fprintf(stderr, "attach: %s\n", err.text);
    ENSURE(rc == 0);
    core_observe(sim.core, model_event, NULL);
    struct view after = look();
    ENSURE(memcmp(&before, &after, sizeof before) == 0);
    model_verify(sim.core);
}

static void (*const commands[])(void) = {
    do_open,
    do_bye,
    do_pool_create,
    do_pool_open,
    do_pool_handle,
    do_list,
    do_seq_create,
    do_seq_fork,
    do_seq_truncate,
    do_seq_free,
    do_seq_stat,
    do_begin,
    do_commit,
    do_abort,
    do_layer,
    do_attend,
    do_complete,
    do_whole_step,
    do_corrupt,
    do_reattach,
    do_seq_open,
    do_begin_tokens,
    do_whole_step_tokens,
    do_seq_release,
    do_seq_priority,
    do_prefix_pin,
    do_prefix_unpin,
    do_cache_clear,
    do_time,
};

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len) {
    size_t size = core_block_size(&limits);
    ENSURE(size > 0 && size <= BLOCK_MAX);
    memset(block, 0, size);
    memset(&f, 0, sizeof f);
    model_reset();
    f.script = bytes;
    f.left = len;
    struct core *core;
    ENSURE(core_create(block, size, &limits, 3, (const uint8_t[CORE_SECRET_SIZE]){3}, &core,
                       NULL) == 0);
    sim_reset(core);
    core_observe(core, model_event, NULL);

    while (f.left > 0)
        commands[take() % (sizeof commands / sizeof commands[0])]();

    for (size_t i = 0; i < MODEL_SESSIONS; i++)
        if (f.sessions[i] != 0) {
            sim_complete_all(f.sessions[i]);
            ENSURE(sim_session_close(&f.sessions[i], NULL) == 0);
            model_verify(sim.core);
        }
    sim_expire(UINT64_MAX);
    struct core_pool_info pool;
    uint32_t cursor = 0;
    while (core_pool_next(sim.core, &cursor, &pool)) {
        ENSURE(pool.free_pages + pool.cached_pages == pool.config.num_pages);
        ENSURE(pool.shared_pages == 0 && pool.cached_pages == pool.sealed_pages);
        ENSURE(core_pool_destroy(sim.core, pool.pool, NULL) == 0);
        model_pool_destroyed(pool.pool);
    }
    struct core_totals totals;
    core_totals(sim.core, &totals);
    ENSURE(totals.pools + totals.sessions + totals.seqs + totals.steps == 0);
    model_verify(sim.core);
    core_close(sim.core);
    return 0;
}
