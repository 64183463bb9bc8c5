// SPDX-License-Identifier: Apache-2.0
// replay.c: see replay.h.
#include "client/cmd/replay.h"

#include "client/cmd/format.h"
#include "client/cmd/replay_kv.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OUTPUT_SALT 0x6f75747075740000u // "output": apart from the prompts' ids
#define AGAIN_MAX 100000u               // times that one request is sent again

struct shared {
    const struct replay_args *args;
    pthread_mutex_t lock;
    pthread_cond_t ended; // a line's sequence was freed
    size_t next;          // line
    uint64_t attempts;    // runs of a line that were begun
    uint64_t ends;        // lines that have ended
    uint32_t busy;        // workers that are running a line
    uint64_t start_ns;
    struct replay_result sum;
    double *open_us, *request_us; // [lines], the first sum.requests of each are set
};

struct worker {
    struct shared *s;
    pthread_t thread;
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_region *region; // K, then V of one chunk; one query, its output
    size_t kv_bytes;       // of each
    uint32_t *tokens;      // of a line: prompt and output
    uint32_t cap;
    uint64_t attempt, ends;    // shared.attempts and ends at the beginning of this one
    bool alone;                // nobody else was running a line then
    double open_us;            // of the line
    struct replay_result mine; // its counters
};

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void sleep_ns(uint64_t ns) {
    struct timespec ts = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&ts, NULL); // an interruption ends it early: callers look at the clock, or try again
}

static uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void replay_prompt(const struct trace_line *line, uint32_t n, uint32_t *ret) {
    for (uint32_t i = 0; i < n; i++) {
        uint64_t block = mix(line->ids[i / line->block_size]);
        ret[i] = (uint32_t)mix(block + i % line->block_size);
    }
}

// --- one line ---------------------------------------------------------------------------------

// The message of the call that failed, of the first one of the line.
static void note_error(struct worker *w) {
    if (w->mine.first_error[0] == 0) {
        kvpool_last_error(w->client, w->mine.first_error, sizeof(w->mine.first_error));
    }
}

// Whether a refused call is to be made again, after the time that the daemon names.
static bool again(struct worker *w, kvpool_status status, uint32_t *tries) {
    if (status != KVPOOL_E_AGAIN || ++*tries > AGAIN_MAX) {
        return false;
    }
    uint64_t ns = kvpool_retry_after_ns(w->client);
    w->mine.again++;
    sleep_ns(ns > 0 ? ns : 1000000);
    return true;
}

static void fill(struct worker *w, const uint32_t *tokens, uint32_t n, uint32_t layer) {
    const kvpool_pool_info *p = &w->s->args->pool;
    const size_t bytes = replay_kv_bytes(p);
    uint8_t *data = kvpool_region_data(w->region);
    for (uint32_t i = 0; i < n; i++) {
        replay_kv_fill(p, tokens[i], layer, data + i * bytes, data + w->kv_bytes + i * bytes);
    }
}

// One step that appends n tokens.
static kvpool_status append(struct worker *w, kvpool_seq seq, const uint32_t *tokens, uint32_t n) {
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    kvpool_step step = 0;
    kvpool_status status = KVPOOL_OK;
    uint32_t tries = 0;
    begin.pool = w->pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &n;
    begin.tokens = tokens;
    do {
        status = kvpool_step_begin(w->client, &begin, &step, NULL);
    } while (again(w, status, &tries));
    if (status != KVPOOL_OK) {
        note_error(w);
        return status;
    }
    attn.step = step;
    attn.k = (kvpool_tensor){w->region, 0, 0, 0};
    attn.v = (kvpool_tensor){w->region, w->kv_bytes, 0, 0};
    for (uint32_t layer = 0; layer < w->s->args->pool.layers; layer++) {
        fill(w, tokens, n, layer);
        attn.layer = layer;
        do {
            status = kvpool_append(w->client, &attn);
        } while (again(w, status, &tries));
        if (status != KVPOOL_OK) {
            goto abort;
        }
    }
    do {
        status = kvpool_step_commit(w->client, step);
    } while (again(w, status, &tries));
    if (status == KVPOOL_OK) {
        return status;
    }
abort:
    note_error(w);
    kvpool_step_abort(w->client, step);
    return status;
}

static kvpool_status open_line(struct worker *w, const struct trace_line *line, kvpool_seq *ret_seq,
                               uint32_t *ret_matched) {
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    kvpool_status status = KVPOOL_OK;
    uint32_t tries = 0;
    open.pool = w->pool;
    open.tokens = w->tokens;
    open.n = line->opened < KVPOOL_MAX_TOKENS ? line->opened : KVPOOL_MAX_TOKENS;
    do {
        status = kvpool_seq_open_with(w->client, &open, ret_seq, ret_matched);
    } while (again(w, status, &tries));
    if (status != KVPOOL_OK) {
        note_error(w);
    }
    return status;
}

// The prompt's tokens and, behind them, the output's.
static void make_tokens(struct worker *w, const struct trace_line *line) {
    const uint64_t number = (uint64_t)(line - w->s->args->file->lines);
    const uint32_t n = line->input + line->output;
    if (n > w->cap) {
        w->cap = n;
        w->tokens = cmd_realloc(w->tokens, (size_t)n * sizeof(w->tokens[0]));
    }
    replay_prompt(line, line->input, w->tokens);
    for (uint32_t i = 0; i < line->output; i++) {
        w->tokens[line->input + i] = (uint32_t)mix(mix(OUTPUT_SALT ^ number) + i);
    }
}

// Attention of one query over all n tokens, in every layer.
static kvpool_status check(struct worker *w, kvpool_seq seq, uint32_t n) {
    static const uint32_t one = 1;
    const kvpool_pool_info *p = &w->s->args->pool;
    const size_t q = 2 * w->kv_bytes;
    const size_t out = q + replay_kv_bytes(p);
    uint8_t *data = kvpool_region_data(w->region);
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    bool right = true;
    attn.pool = w->pool;
    attn.n = 1;
    attn.seqs = &seq;
    attn.q_len = &one;
    attn.qo_heads = p->kv_heads;
    attn.q = (kvpool_tensor){w->region, q, 0, 0};
    attn.out = (kvpool_tensor){w->region, out, 0, 0};
    replay_kv_query(p, data + q);
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        kvpool_status status = KVPOOL_OK;
        uint32_t tries = 0;
        attn.layer = layer;
        memset(data + out, 0xFF, replay_kv_bytes(p)); // NaN
        do {
            status = kvpool_decode(w->client, &attn);
        } while (again(w, status, &tries));
        if (status != KVPOOL_OK) {
            note_error(w);
            return status;
        }
        right = right && replay_kv_check(p, w->tokens, n, layer, data + out);
    }
    w->mine.wrong = right ? 0 : 1;
    return KVPOOL_OK;
}

// Once from open to free. Whatever the status, no sequence is left.
static kvpool_status run_once(struct worker *w, const struct trace_line *line) {
    const uint32_t total = line->input + line->output;
    const uint32_t chunk = w->s->args->chunk;
    kvpool_seq seq = 0;
    uint32_t matched = 0;
    uint64_t start = now_ns();
    kvpool_status status = open_line(w, line, &seq, &matched);
    if (status != KVPOOL_OK) {
        return status;
    }
    w->open_us = (double)(now_ns() - start) / 1e3;
    w->mine.hit = matched;
    for (uint32_t at = matched; at < total && status == KVPOOL_OK;) {
        uint32_t end = at < line->input ? line->input : total; // a step is of one kind
        uint32_t n = end - at < chunk ? end - at : chunk;
        status = append(w, seq, w->tokens + at, n);
        at += n;
    }
    if (status == KVPOOL_OK && w->s->args->check && total > 0) {
        status = check(w, seq, total);
    }
    kvpool_status freed = KVPOOL_OK;
    uint32_t tries = 0;
    do {
        freed = kvpool_seq_free(w->client, 1, &seq);
    } while (again(w, freed, &tries));
    if (freed != KVPOOL_OK) {
        note_error(w);
    }
    return status != KVPOOL_OK ? status : freed;
}

// --- workers ----------------------------------------------------------------------------------

// A line is about to be run, from its beginning.
static void attempt_begin(struct worker *w) {
    struct shared *s = w->s;
    pthread_mutex_lock(&s->lock);
    s->busy++;
    w->attempt = ++s->attempts;
    w->alone = s->busy == 1;
    w->ends = s->ends;
    pthread_mutex_unlock(&s->lock);
}

// It was run, with this status, and holds nothing. True: it is to be run again; when it was out of
// pages there is a chance now, since another line has ended, or nobody else is at work.
static bool attempt_end(struct worker *w, kvpool_status status) {
    struct shared *s = w->s;
    pthread_mutex_lock(&s->lock);
    s->busy--;
    bool alone = w->alone && s->attempts == w->attempt;
    bool again = status == KVPOOL_E_NOSPACE && !alone;
    while (again && s->busy > 0 && s->ends == w->ends) {
        pthread_cond_wait(&s->ended, &s->lock);
    }
    if (!again) {
        s->ends++;
        pthread_cond_broadcast(&s->ended);
    }
    pthread_mutex_unlock(&s->lock);
    return again;
}

static kvpool_status run_line(struct worker *w, const struct trace_line *line) {
    kvpool_status status = KVPOOL_OK;
    w->mine = (struct replay_result){0};
    make_tokens(w, line);
    for (;;) {
        attempt_begin(w);
        w->mine.first_error[0] = 0;
        status = run_once(w, line);
        if (!attempt_end(w, status)) {
            return status;
        }
        w->mine.nospace++;
    }
}

// The line's result into the sums.
static void account(struct worker *w, const struct trace_line *line, kvpool_status status,
                    double us) {
    struct shared *s = w->s;
    struct replay_result *sum = &s->sum;
    pthread_mutex_lock(&s->lock);
    sum->again += w->mine.again;
    sum->nospace += w->mine.nospace;
    if (status == KVPOOL_OK) {
        s->open_us[sum->requests] = w->open_us;
        s->request_us[sum->requests] = us;
        sum->requests++;
        sum->input += line->input;
        sum->looked_up += line->opened;
        sum->hit += w->mine.hit;
        sum->output += line->output;
        sum->wrong += w->mine.wrong;
    } else {
        sum->errors++;
        if (sum->first_error[0] == 0) {
            const char *text = w->mine.first_error;
            snprintf(sum->first_error, sizeof(sum->first_error), "%.200s (%s)",
                     text[0] != 0 ? text : kvpool_strerror(status), kvpool_status_name(status));
        }
    }
    pthread_mutex_unlock(&s->lock);
}

static const struct trace_line *take_line(struct shared *s) {
    const struct trace_line *line = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->next < s->args->file->n && *s->args->stop == 0) {
        line = &s->args->file->lines[s->next++];
    }
    pthread_mutex_unlock(&s->lock);
    return line;
}

// False: stopped while it waited.
static bool wait_for_time(const struct shared *s, const struct trace_line *line) {
    if (s->args->speed <= 0) {
        return true;
    }
    uint64_t due = s->start_ns + (uint64_t)(line->timestamp * 1e6 / s->args->speed);
    for (uint64_t now = now_ns(); now < due; now = now_ns()) {
        if (*s->args->stop != 0) {
            return false;
        }
        sleep_ns(due - now < 100000000u ? due - now : 100000000u);
    }
    return true;
}

static bool fatal(kvpool_status status) {
    return status == KVPOOL_E_CONN || status == KVPOOL_E_LOST || status == KVPOOL_E_SHUTDOWN ||
           status == KVPOOL_E_STALE || status == KVPOOL_E_UNSUPPORTED;
}

static void *work(void *arg) {
    struct worker *w = arg;
    struct shared *s = w->s;
    for (const struct trace_line *line; (line = take_line(s)) != NULL;) {
        if (!wait_for_time(s, line)) {
            break;
        }
        uint64_t start = now_ns();
        kvpool_status status = run_line(w, line);
        account(w, line, status, (double)(now_ns() - start) / 1e3);
        if (fatal(status)) {
            break;
        }
    }
    return NULL;
}

static int worker_open(struct worker *w) {
    const kvpool_pool_info *p = &w->s->args->pool;
    const size_t token = replay_kv_bytes(p);
    char text[256];
    char plain[256];
    kvpool_client *none = NULL;
    w->kv_bytes = token * w->s->args->chunk;
    if (kvpool_connect(&w->s->args->connect, &w->client) != KVPOOL_OK ||
        kvpool_pool_open(w->client, p->name, &w->pool) != KVPOOL_OK ||
        kvpool_region_create(w->client, 2 * w->kv_bytes + 2 * token, &w->region) != KVPOOL_OK) {
        kvpool_last_error(w->client != NULL ? w->client : none, text, sizeof(text));
        fprintf(stderr, "kvpool: a worker cannot start: %s\n",
                format_plain(text, plain, sizeof(plain)));
        return 1;
    }
    return 0;
}

static void worker_close(struct worker *w) {
    kvpool_region_free(w->region);
    kvpool_close(w->client);
    free(w->tokens);
}

int replay_run(const struct replay_args *args, struct replay_result *ret) {
    struct shared s = {
        .args = args, .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};
    struct worker *workers = cmd_realloc(NULL, args->workers * sizeof(workers[0]));
    uint32_t opened = 0;
    uint32_t started = 0;
    int rc = 0;
    memset(workers, 0, args->workers * sizeof(workers[0]));
    s.open_us = cmd_realloc(NULL, (args->file->n + 1) * sizeof(double));
    s.request_us = cmd_realloc(NULL, (args->file->n + 1) * sizeof(double));
    while (opened < args->workers && rc == 0) {
        workers[opened].s = &s;
        rc = worker_open(&workers[opened]);
        opened++;
    }
    s.start_ns = now_ns();
    while (rc == 0 && started < opened) {
        if (pthread_create(&workers[started].thread, NULL, work, &workers[started]) != 0) {
            fprintf(stderr, "kvpool: cannot start thread %u\n", started + 1);
            rc = started == 0 ? 1 : 0; // the others do its part
            break;
        }
        started++;
    }
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    s.sum.seconds = (double)(now_ns() - s.start_ns) / 1e9;
    for (uint32_t i = 0; i < opened; i++) {
        worker_close(&workers[i]);
    }
    struct summary open = summarize(s.open_us, s.sum.requests);
    struct summary request = summarize(s.request_us, s.sum.requests);
    s.sum.open_p50_us = open.p50;
    s.sum.open_p99_us = open.p99;
    s.sum.request_p50_us = request.p50;
    s.sum.request_p99_us = request.p99;
    free(s.open_us);
    free(s.request_us);
    free(workers);
    pthread_cond_destroy(&s.ended);
    pthread_mutex_destroy(&s.lock);
    *ret = s.sum;
    return rc;
}
