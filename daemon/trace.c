// SPDX-License-Identifier: Apache-2.0
// trace.c: see trace.h.
#include "daemon/trace.h"

#include "daemon/core/prefix_hash.h"
#include "daemon/trace_pipe.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define ID_MASK ((1ull << 53) - 1)
#define SHORT_BLOCK UINT32_MAX // in the place of a page's first token: what follows says how short

struct tracer {
    struct trace *t;
    struct trace_pipe *pipe;
    uint64_t serial; // never used twice: tells a tracer from a later one in its place
    uint64_t started_ns;
    bool with_tokens;
    uint8_t secret[32];
};

// A sequence from its opening on: one block of memory.
//   | struct trace_seq | ids of tracer a [blocks] | ids of tracer b | ... | tokens [n], if wanted |
struct trace_seq {
    uint64_t seq, session;
    uint64_t opened_ns;
    uint32_t pid, page_size, n, matched, length;
    uint32_t blocks;
    char pool[TRACE_POOL_SIZE];
    size_t bytes;
    uint64_t serial[TRACE_MAX]; // of the tracers whose ids are here; 0: none
    uint64_t *ids[TRACE_MAX];
    uint32_t *tokens; // NULL: nobody wants them
    uint64_t data[];
};

void trace_init(struct trace *t, uv_loop_t *loop, uint32_t max_seqs) {
    *t = (struct trace){.loop = loop, .max_seqs = max_seqs};
}

// --- records ----------------------------------------------------------------------------------

static struct trace_seq **slot_of(struct trace *t, uint64_t seq) {
    uint32_t i = (uint32_t)seq;
    return t->seqs != NULL && i < t->max_seqs ? &t->seqs[i] : NULL;
}

static void record_free(struct trace *t, struct trace_seq *r) {
    if (r == NULL)
        return;
    t->bytes -= r->bytes;
    free(r);
}

static void records_free(struct trace *t) {
    for (uint32_t i = 0; t->seqs != NULL && i < t->max_seqs; i++)
        record_free(t, t->seqs[i]);
    free(t->seqs);
    t->seqs = NULL;
}

// One id for each page of the tokens, the last one perhaps short.
static void hash(const struct tracer *tracer, const struct trace_open *o, uint64_t *ret_ids) {
    const struct prefix_salt salt = {
        .secret = tracer->secret, .pool = o->pool, .group = "", .geometry = {o->ns, o->page_size}};
    struct prefix_value value;
    uint32_t full = o->n / o->page_size, rest = o->n % o->page_size, i;
    prefix_root(&salt, o->extra, o->extra_size, &value);
    for (i = 0; i < full; i++) {
        prefix_next(&value, o->tokens + (size_t)i * o->page_size, o->page_size, &value);
        ret_ids[i] = prefix_key_of(&value).a & ID_MASK;
    }
    for (uint32_t at = 0; at < rest; at += 7) { // eight words a time: how many tokens, then they
        uint32_t m = rest - at < 7 ? rest - at : 7;
        uint32_t words[8] = {SHORT_BLOCK - m};
        memcpy(words + 1, o->tokens + (size_t)full * o->page_size + at, m * sizeof words[0]);
        prefix_next(&value, words, 8, &value);
        ret_ids[i] = prefix_key_of(&value).a & ID_MASK;
    }
}

static void drop_for_all(struct trace *t) {
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        if (t->tracers[i] != NULL)
            trace_pipe_drop(t->tracers[i]->pipe);
}

void trace_seq_open(struct trace *t, const struct trace_open *o) {
    struct trace_seq **slot = slot_of(t, o->seq);
    if (slot == NULL)
        return;
    record_free(t, *slot); // of a sequence whose end nobody told
    *slot = NULL;
    bool with_tokens = false;
    uint32_t blocks = (o->n + o->page_size - 1) / o->page_size;
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        with_tokens |= t->tracers[i] != NULL && t->tracers[i]->with_tokens;
    size_t bytes = sizeof **slot + (size_t)blocks * t->count * sizeof(uint64_t) +
                   (with_tokens ? o->n * sizeof(uint32_t) : 0);
    struct trace_seq *r = bytes <= TRACE_MAX_BYTES - t->bytes ? malloc(bytes) : NULL;
    if (r == NULL) {
        drop_for_all(t);
        return;
    }
    *r = (struct trace_seq){.seq = o->seq,
                            .session = o->session,
                            .opened_ns = uv_hrtime(),
                            .pid = o->pid,
                            .page_size = o->page_size,
                            .n = o->n,
                            .matched = o->matched,
                            .blocks = blocks,
                            .bytes = bytes};
    snprintf(r->pool, sizeof r->pool, "%s", o->pool);
    uint64_t *at = r->data;
    for (uint32_t i = 0; i < TRACE_MAX; i++) {
        if (t->tracers[i] == NULL)
            continue;
        r->serial[i] = t->tracers[i]->serial;
        r->ids[i] = at;
        hash(t->tracers[i], o, at);
        at += blocks;
    }
    if (with_tokens) {
        r->tokens = (uint32_t *)at;
        if (o->n > 0)
            memcpy(r->tokens, o->tokens, o->n * sizeof(uint32_t));
    }
    t->bytes += bytes;
    *slot = r;
}

void trace_seq_length(struct trace *t, uint64_t seq, uint32_t length) {
    struct trace_seq **slot = slot_of(t, seq);
    if (slot != NULL && *slot != NULL && (*slot)->seq == seq)
        (*slot)->length = length;
}

uint64_t trace_seq_next(const struct trace *t, uint64_t session, uint32_t *cursor) {
    while (t->seqs != NULL && *cursor < t->max_seqs) {
        const struct trace_seq *r = t->seqs[(*cursor)++];
        if (r != NULL && r->session == session)
            return r->seq;
    }
    return 0;
}

// --- lines ------------------------------------------------------------------------------------

__attribute__((format(printf, 2, 3))) static void add(struct trace_text *x, const char *format,
                                                      ...) {
    va_list ap;
    if (x->cap - x->len < 256) { // more than any call adds
        size_t cap = x->cap == 0 ? 4096 : 2 * x->cap;
        char *bytes = realloc(x->bytes, cap);
        if (bytes == NULL) {
            x->failed = true;
            return;
        }
        x->bytes = bytes;
        x->cap = cap;
    }
    va_start(ap, format);
    x->len += (size_t)vsnprintf(x->bytes + x->len, x->cap - x->len, format, ap);
    va_end(ap);
}

static void start(struct trace_text *x) {
    x->len = 0;
    x->failed = false;
}

static void finish(struct trace *t, struct tracer *tracer) {
    add(&t->text, "\n");
    if (t->text.failed)
        trace_pipe_drop(tracer->pipe);
    else
        trace_pipe_line(tracer->pipe, t->text.bytes, t->text.len);
}

static double ms_since(uint64_t start_ns, uint64_t ns) {
    return ns > start_ns ? (double)(ns - start_ns) / 1e6 : 0;
}

void trace_request(struct trace *t, const struct trace_request *r) {
    uint64_t now = uv_hrtime();
    const char *status = kvpool_status_name((kvpool_status)r->status);
    for (uint32_t i = 0; i < TRACE_MAX; i++) {
        struct tracer *tracer = t->tracers[i];
        if (tracer == NULL)
            continue;
        start(&t->text);
        add(&t->text, "{\"t\":%.3f,\"op\":\"%s\",\"client\":%u,", ms_since(tracer->started_ns, now),
            r->op, r->pid);
        add(&t->text, "\"n\":%u,\"tokens\":%u,\"us\":%" PRIu64 ",\"status\":\"%s\"}", r->n,
            r->tokens, (now - r->started_ns) / 1000, status + strlen("KVPOOL_"));
        finish(t, tracer);
    }
}

static void sequence_line(struct trace_text *x, const struct tracer *tracer, uint32_t place,
                          const struct trace_seq *r) {
    start(x);
    add(x, "{\"timestamp\":%.0f,\"input_length\":%u,\"output_length\":%u,\"hash_ids\":[",
        ms_since(tracer->started_ns, r->opened_ns), r->n, r->length > r->n ? r->length - r->n : 0);
    for (uint32_t i = 0; i < r->blocks; i++)
        add(x, "%s%" PRIu64, i > 0 ? "," : "", r->ids[place][i]);
    add(x, "],\"block_size\":%u,\"pool\":\"%s\",\"matched\":%u,\"opened\":%u,\"client\":%u",
        r->page_size, r->pool, r->matched, r->n, r->pid);
    if (tracer->with_tokens) {
        add(x, ",\"tokens\":[");
        for (uint32_t i = 0; i < r->n; i++)
            add(x, "%s%u", i > 0 ? "," : "", r->tokens[i]);
        add(x, "]");
    }
    add(x, "}");
}

void trace_seq_end(struct trace *t, uint64_t seq) {
    struct trace_seq **slot = slot_of(t, seq);
    if (slot == NULL || *slot == NULL || (*slot)->seq != seq)
        return;
    struct trace_seq *r = *slot;
    *slot = NULL; // a tracer that ends meanwhile frees only what is in the table
    for (uint32_t i = 0; i < TRACE_MAX; i++) {
        struct tracer *tracer = t->tracers[i];
        if (tracer == NULL || r->serial[i] != tracer->serial)
            continue;
        sequence_line(&t->text, tracer, i, r);
        finish(t, tracer);
    }
    record_free(t, r);
}

// --- tracers ----------------------------------------------------------------------------------

static void tracer_forget(struct tracer *tracer) {
    struct trace *t = tracer->t;
    for (uint32_t i = 0; i < TRACE_MAX; i++)
        if (t->tracers[i] == tracer)
            t->tracers[i] = NULL;
    explicit_bzero(tracer->secret, sizeof tracer->secret);
    free(tracer);
    if (--t->count == 0)
        records_free(t);
}

static void on_gone(void *arg, struct trace_pipe *p) {
    (void)p;
    tracer_forget(arg);
}

int trace_add(struct trace *t, bool with_tokens, int *ret_fd, struct err *err) {
    uint32_t place = 0;
    int status;
    while (place < TRACE_MAX && t->tracers[place] != NULL)
        place++;
    if (place == TRACE_MAX)
        return err_set(err, KVPOOL_E_LIMIT, "%u traces are being written, the limit", TRACE_MAX);
    struct tracer *tracer = calloc(1, sizeof *tracer);
    if (tracer == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "trace: no memory");
    if (getrandom(tracer->secret, sizeof tracer->secret, 0) != (ssize_t)sizeof tracer->secret) {
        status = err_set(err, KVPOOL_E_SYSTEM, "trace: getrandom: %s", strerror(errno));
        goto free_tracer;
    }
    if (t->seqs == NULL) {
        // NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers
        t->seqs = calloc(t->max_seqs, sizeof *t->seqs);
        if (t->seqs == NULL) {
            status = err_set(err, KVPOOL_E_NOMEM, "trace: no memory");
            goto free_tracer;
        }
    }
    status = trace_pipe_open(t->loop, on_gone, tracer, &tracer->pipe, ret_fd, err);
    if (status != 0)
        goto free_seqs;
    tracer->t = t;
    tracer->serial = ++t->last_serial;
    tracer->started_ns = uv_hrtime();
    tracer->with_tokens = with_tokens;
    t->tracers[place] = tracer;
    t->count++;
    return 0;
free_seqs:
    if (t->count == 0)
        records_free(t);
free_tracer:
    free(tracer);
    return status;
}

void trace_fini(struct trace *t) {
    for (uint32_t i = 0; i < TRACE_MAX; i++) {
        struct tracer *tracer = t->tracers[i];
        if (tracer == NULL)
            continue;
        trace_pipe_close(tracer->pipe);
        tracer_forget(tracer);
    }
    free(t->text.bytes);
    t->text = (struct trace_text){0};
}
