// SPDX-License-Identifier: Apache-2.0
// bench_served.c: kvpool-gpu-served: the same decode step as kvpool-gpu-step, served: from a worker process
// through libkvpool and NNG to a daemon. A step of one layer: begin, append and attention, commit, all
// three submitted at once (as a worker does that knows its batch), until the last is done.
//
//   kvpool-gpu-served --dir DIR [--shape NAME] [--samples N] [--json]
//
// Consecutive steps are those of two different batches, and every sequence grows by a token each time.
#include "bench/gpu/shapes.h"

#include <kvpool/kvpool.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCHES = 2, WARM_UP = 6, CHUNK_TOKENS = 8192, SAMPLES_MAX = 1000, BATCH_MAX = 256 };

struct options {
    const char *dir, *shape;
    uint32_t samples;
    bool json;
};

struct worker {
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_region *kv, *io;
    kvpool_seq seqs[BATCHES][BATCH_MAX];
    uint32_t n;
};

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void check(const kvpool_client *client, kvpool_status status, const char *what) {
    char text[256];
    if (status == KVPOOL_OK)
        return;
    fflush(stdout);
    fprintf(stderr, "kvpool-gpu-served: %s: %s: %s\n", what, kvpool_status_name(status),
            kvpool_last_error(client, text, sizeof(text)));
    exit(1);
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

// Every sequence of a batch gets `length` tokens, some of them at a time.
static void fill(struct worker *w, const struct gpu_shape *s, uint32_t batch, uint32_t length) {
    uint32_t counts[BATCH_MAX];
    for (uint32_t at = 0; at < length;) {
        uint32_t each = least(length - at, CHUNK_TOKENS / w->n);
        kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
        kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
        for (uint32_t i = 0; i < w->n; i++)
            counts[i] = each;
        begin.pool = w->pool;
        begin.n = w->n;
        begin.seqs = w->seqs[batch];
        begin.new_tokens = counts;
        check(w->client, kvpool_step_begin(w->client, &begin, &append.step, NULL), "begin");
        append.k = (kvpool_tensor){.region = w->kv};
        append.v = (kvpool_tensor){
            .region = w->kv, .offset = (uint64_t)CHUNK_TOKENS * s->kv_heads * s->head_dim * 2};
        check(w->client, kvpool_append(w->client, &append), "append");
        check(w->client, kvpool_step_commit(w->client, append.step), "commit");
        at += each;
    }
}

static void step(struct worker *w, const struct gpu_shape *s, uint32_t batch) {
    uint32_t counts[BATCH_MAX];
    uint64_t q = (uint64_t)w->n * s->qo_heads * s->head_dim * 2;
    uint64_t k = (uint64_t)w->n * s->kv_heads * s->head_dim * 2;
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    kvpool_op *ops[3];
    for (uint32_t i = 0; i < w->n; i++)
        counts[i] = 1;
    begin.pool = w->pool;
    begin.n = w->n;
    begin.seqs = w->seqs[batch];
    begin.new_tokens = counts;
    begin.step = attn.step = kvpool_step_id(w->client);
    attn.qo_heads = s->qo_heads;
    attn.q = (kvpool_tensor){.region = w->io};
    attn.k = (kvpool_tensor){.region = w->io, .offset = q};
    attn.v = (kvpool_tensor){.region = w->io, .offset = q + k};
    attn.out = (kvpool_tensor){.region = w->io, .offset = q + 2 * k};
    kvpool_request requests[3] = {
        {.size = sizeof(kvpool_request), .kind = KVPOOL_OP_BEGIN, .begin = &begin},
        {.size = sizeof(kvpool_request), .kind = KVPOOL_OP_DECODE, .attn = &attn},
        {.size = sizeof(kvpool_request), .kind = KVPOOL_OP_COMMIT, .step = begin.step},
    };
    for (int i = 0; i < 3; i++)
        check(w->client, kvpool_submit(w->client, &requests[i], &ops[i]), "submit");
    for (int i = 0; i < 3; i++)
        check(w->client, kvpool_wait(w->client, ops[i], UINT32_MAX), "wait");
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(struct worker *w, const struct gpu_shape *s, const struct options *o) {
    static double us[SAMPLES_MAX];
    uint32_t room = WARM_UP + o->samples + s->page_size;
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    w->n = s->n;
    config.name = "gpu-served";
    config.layers = 1;
    config.kv_heads = s->kv_heads;
    config.head_dim = s->head_dim;
    config.page_size = s->page_size;
    config.dtype = KVPOOL_BF16;
    config.num_pages = BATCHES * s->n * ((s->kv_len + room) / s->page_size + 1);
    config.max_seqs = BATCHES * s->n;
    config.max_seq_len = s->kv_len + room;
    check(w->client, kvpool_pool_create(w->client, &config, &w->pool), "pool");
    uint64_t io = (uint64_t)s->n * s->head_dim * 2 * 2 * (s->qo_heads + s->kv_heads);
    check(w->client, kvpool_region_create(w->client, io, &w->io), "region");
    for (uint32_t batch = 0; batch < BATCHES; batch++) {
        check(w->client, kvpool_seq_create(w->client, w->pool, s->n, w->seqs[batch]), "sequences");
        fill(w, s, batch, s->kv_len - WARM_UP);
    }
    for (uint32_t i = 0; i < WARM_UP + o->samples; i++) {
        double begin = now_us();
        step(w, s, i % BATCHES);
        if (i >= WARM_UP)
            us[i - WARM_UP] = now_us() - begin;
    }
    qsort(us, o->samples, sizeof(double), by_size);
    printf(o->json ? "{\"shape\":\"%s\",\"served_us\":%.2f,\"served_p90_us\":%.2f}\n"
                   : "served %-12s %8.1f us (p90 %.1f)\n",
           s->name, us[o->samples / 2], us[o->samples - 1 - o->samples / 10]);
    fflush(stdout);
    for (uint32_t batch = 0; batch < BATCHES; batch++)
        check(w->client, kvpool_seq_free(w->client, s->n, w->seqs[batch]), "free");
    kvpool_region_free(w->io);
    check(w->client, kvpool_pool_destroy(w->client, w->pool), "pool");
}

static struct options parse(int argc, char **argv) {
    struct options o = {.samples = 60};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--json") == 0)
            o.json = true;
        else if (value != NULL && strcmp(argv[i], "--dir") == 0)
            o.dir = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--shape") == 0)
            o.shape = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--samples") == 0)
            o.samples = (uint32_t)strtoul(argv[++i], NULL, 10);
        else {
            fprintf(stderr, "kvpool-gpu-served: \"%s\"?\n", argv[i]);
            exit(64);
        }
    }
    if (o.samples < 1 || o.samples > SAMPLES_MAX) {
        fprintf(stderr, "kvpool-gpu-served: --samples 1 .. %d\n", SAMPLES_MAX);
        exit(64);
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    struct worker w = {0};
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    const struct gpu_shape *shapes;
    size_t n = gpu_shapes(&shapes);
    args.dir = o.dir;
    args.name = "gpu-served";
    args.timeout_ms = 30000;
    check(NULL, kvpool_connect(&args, &w.client), "connect");
    // The K and V of a prompt's tokens, the same for all: 8 heads of 128.
    check(w.client, kvpool_region_create(w.client, 2ull * CHUNK_TOKENS * 8 * 128 * 2, &w.kv),
          "region");
    for (size_t i = 0; i < n; i++)
        if (strcmp(shapes[i].table, "step") == 0 && shapes[i].n <= BATCH_MAX &&
            (o.shape == NULL || strcmp(o.shape, shapes[i].name) == 0))
            run(&w, &shapes[i], &o);
    kvpool_close(w.client);
    return 0;
}
