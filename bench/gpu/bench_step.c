// SPDX-License-Identifier: Apache-2.0
// bench_step.c: kvpool-gpu-step: the whole decode step of a new batch at the backend interface: what a
// client pays for one layer once its message is parsed. One program = the page-table entries of the new
// tokens' pages, the append of K and V, attention with its plan; submitted from a cold L2, until `done` is called.
//
//   kvpool-gpu-step [--backend cuda] [--shape NAME] [--samples N] [--json]
//
// No two consecutive steps have the same sequences, page ids or lengths, and a batch comes back only after
// more others than a stream keeps (CUDA_STREAM_BATCHES), so nothing of an earlier step can be reused. Per
// shape: the median wall time, and the time a step takes when they are submitted one behind the other
// without waiting.
#include "bench/gpu/measure.h"
#include "bench/gpu/shapes.h"

#include "kernels/backend.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCHES = 4, LENGTHS = 9, WARM_UP = 8, BURST = 64 }; // BATCHES x LENGTHS batches: coprime

struct options {
    const char *backend, *shape;
    uint32_t samples;
    bool json;
};

struct bench {
    const struct backend_ops *ops;
    struct backend *backend;
    struct backend_stream *stream;
    struct gpu_measure measure; // its device and flush buffer
    sem_t done;
    double done_us; // when the last program was done
    int status;     // of the last program
};

// One shape: BATCHES sets of sequences over the same pages, each in its own order.
struct work {
    const struct gpu_shape *shape;
    struct backend_pool *pool;
    struct backend_mem *io;
    uint64_t k, v, out; // offsets; q is at 0
    uint32_t n, pages, row_entries;
    uint32_t *ids;    // [BATCHES][pages]
    uint32_t *first;  // [n + 1] where a sequence's ids begin in a batch's
    uint32_t *rows;   // [BATCHES][n]
    uint32_t *kv_len; // [LENGTHS][n]
    uint32_t *indptr; // [n + 1]
    struct backend_op *ops;
};

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void check_err(int rc, const struct err *err, const char *what) {
    if (rc == 0)
        return;
    fflush(stdout);
    fprintf(stderr, "kvpool-gpu-step: %s: %s\n", what, err->text);
    exit(1);
}

static void *array(uint64_t n, size_t size) {
    void *p = calloc(n, size);
    if (p == NULL)
        gpu_check((int)cudaErrorMemoryAllocation, "host memory");
    return p;
}

static void on_done(void *arg, int status) {
    struct bench *b = arg;
    b->done_us = now_us();
    if (status != 0)
        b->status = status;
    sem_post(&b->done);
}

static void submit(struct bench *b, struct work *w, const struct backend_op *ops, uint32_t n) {
    struct err err = {0};
    struct backend_program program = {w->pool, ops, n};
    check_err(b->ops->submit(b->backend, b->stream, &program, on_done, b, &err), &err, "submit");
}

static void wait_done(struct bench *b) {
    while (sem_wait(&b->done) != 0) {
    }
    if (b->status != 0) {
        fprintf(stderr, "kvpool-gpu-step: a program failed with %d\n", b->status);
        exit(1);
    }
}

static struct backend_tensor tensor(const struct work *w, uint64_t offset, uint32_t heads) {
    uint32_t head_dim = w->shape->head_dim;
    return (struct backend_tensor){w->io, offset, (uint64_t)heads * head_dim, head_dim};
}

// Batch `turn` as a program: n table entries, append, attention. Returns the number of ops.
static uint32_t compose(struct work *w, uint32_t turn) {
    uint32_t which = turn % BATCHES, page_size = w->shape->page_size, n = 0;
    const uint32_t *kv_len = w->kv_len + (size_t)(turn % LENGTHS) * w->n;
    const uint32_t *ids = w->ids + (size_t)which * w->pages;
    struct backend_batch batch = {w->n, w->rows + (size_t)which * w->n, kv_len, w->indptr};
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t last = (kv_len[i] - 1) / page_size;
        w->ops[n++] = (struct backend_op){
            .kind = BACKEND_TABLE,
            .u.table = {batch.rows[i], last, 1, ids + w->first[i] + last},
        };
    }
    w->ops[n++] = (struct backend_op){
        .kind = BACKEND_APPEND,
        .u.append = {.layer = 0,
                     .batch = batch,
                     .k = tensor(w, w->k, w->shape->kv_heads),
                     .v = tensor(w, w->v, w->shape->kv_heads)},
    };
    w->ops[n++] = (struct backend_op){
        .kind = BACKEND_ATTEND,
        .u.attend = {.layer = 0,
                     .qo_heads = w->shape->qo_heads,
                     .causal = true,
                     .sm_scale = 1 / sqrtf((float)w->shape->head_dim),
                     .window_left = -1,
                     .batch = batch,
                     .q = tensor(w, 0, w->shape->qo_heads),
                     .out = tensor(w, w->out, w->shape->qo_heads)},
    };
    return n;
}

static void shuffle(uint32_t *p, uint32_t n, uint64_t x) {
    for (uint32_t i = n; i > 1; i--) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint32_t j = (uint32_t)((x >> 32) * i >> 32), swap = p[i - 1];
        p[i - 1] = p[j];
        p[j] = swap;
    }
}

static void open_batches(struct work *w) {
    const struct gpu_shape *s = w->shape;
    w->n = gpu_shape_batch(s);
    uint32_t *lengths = array(w->n, sizeof(uint32_t));
    gpu_shape_lengths(s, lengths);
    w->first = array(w->n + 1u, sizeof(uint32_t));
    w->indptr = array(w->n + 1u, sizeof(uint32_t));
    w->rows = array((uint64_t)BATCHES * w->n, sizeof(uint32_t));
    w->kv_len = array((uint64_t)LENGTHS * w->n, sizeof(uint32_t));
    w->ops = array(w->n + 2u, sizeof(*w->ops));
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t own = (lengths[i] + s->page_size - 1) / s->page_size;
        w->first[i + 1] = w->first[i] + own;
        w->indptr[i + 1] = i + 1;
        w->row_entries = own > w->row_entries ? own : w->row_entries;
        for (uint32_t k = 0; k < LENGTHS; k++)
            w->kv_len[(size_t)k * w->n + i] = lengths[i] - (i + k) % LENGTHS;
        for (uint32_t k = 0; k < BATCHES; k++)
            w->rows[(size_t)k * w->n + i] = k * w->n + i;
    }
    w->pages = w->first[w->n];
    w->ids = array((uint64_t)BATCHES * w->pages, sizeof(uint32_t));
    for (uint32_t k = 0; k < BATCHES; k++) {
        for (uint32_t i = 0; i < w->pages; i++)
            w->ids[(size_t)k * w->pages + i] = i;
        shuffle(w->ids + (size_t)k * w->pages, w->pages, 88172645463325252u + k);
    }
    free(lengths);
}

// K and V of every page: small numbers, none of them NaN.
static void fill_planes(struct bench *b, struct work *w, const struct kv_geometry *g) {
    enum { PIECE = 16 << 20 };
    struct err err = {0};
    uint64_t bytes = (uint64_t)w->pages * kv_page_bytes(g), x = 88172645463325252u;
    uint16_t *piece = array(PIECE / 2, 2);
    for (size_t i = 0; i < PIECE / 2; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        piece[i] = (uint16_t)((x & 0x807fu) | 0x3f00u); // bf16, +-0.5 .. 1
    }
    for (uint64_t at = 0; at < bytes; at += PIECE)
        check_err(b->ops->pool_write(b->backend, w->pool, 0, at, piece,
                                     bytes - at < PIECE ? bytes - at : PIECE, &err),
                  &err, "pool_write");
    free(piece);
}

static void work_open(struct bench *b, struct work *w, const struct gpu_shape *s) {
    struct err err = {0};
    struct kv_geometry g = {1, s->kv_heads, s->head_dim, s->page_size, KVPOOL_BF16, 0};
    *w = (struct work){.shape = s};
    open_batches(w);
    uint64_t q = (uint64_t)w->n * s->qo_heads * s->head_dim * 2;
    uint64_t k = (uint64_t)w->n * s->kv_heads * s->head_dim * 2;
    w->k = q, w->v = q + k, w->out = q + 2 * k;
    check_err(b->ops->pool_open(b->backend, &g, BACKEND_FD, w->pages, BATCHES * w->n,
                                w->row_entries, &w->pool, &err),
              &err, "pool_open");
    check_err(
        b->ops->mem_alloc(b->backend, 2 * q + 2 * k, BACKEND_DEVICE, BACKEND_FD, &w->io, &err),
        &err, "mem_alloc");
    fill_planes(b, w, &g);
    for (uint32_t batch = 0; batch < BATCHES; batch++)
        for (uint32_t i = 0; i < w->n; i++) {
            struct backend_op op = {
                .kind = BACKEND_TABLE,
                .u.table = {batch * w->n + i, 0, w->first[i + 1] - w->first[i],
                            w->ids + (size_t)batch * w->pages + w->first[i]},
            };
            submit(b, w, &op, 1);
            wait_done(b);
        }
}

static void work_close(struct bench *b, struct work *w) {
    b->ops->mem_free(b->backend, w->io);
    b->ops->pool_close(b->backend, w->pool);
    free(w->ids);
    free(w->ops);
    free(w->kv_len);
    free(w->rows);
    free(w->indptr);
    free(w->first);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(struct bench *b, const struct gpu_shape *s, const struct options *o) {
    struct work w;
    double *us = array(o->samples, sizeof(double));
    work_open(b, &w, s);
    uint32_t turn = 0;
    for (uint32_t i = 0; i < WARM_UP + o->samples; i++, turn++) {
        gpu_measure_flush(&b->measure);
        gpu_check((int)cudaStreamSynchronize(b->measure.stream), "flush");
        double begin = now_us();
        submit(b, &w, w.ops, compose(&w, turn));
        wait_done(b);
        if (i >= WARM_UP)
            us[i - WARM_UP] = b->done_us - begin;
    }
    uint32_t window = b->ops->window != 0 ? b->ops->window : 1, flying = 0;
    double begin = now_us();
    for (uint32_t i = 0; i < BURST; i++, turn++) {
        for (; flying >= window; flying--)
            wait_done(b);
        submit(b, &w, w.ops, compose(&w, turn));
        flying++;
    }
    for (; flying > 0; flying--)
        wait_done(b);
    double each = (now_us() - begin) / BURST;
    qsort(us, o->samples, sizeof(double), by_size);
    if (o->json) {
        printf("{\"shape\":\"%s\",\"burst_us\":%.2f,\"us\":[", s->name, each);
        for (uint32_t i = 0; i < o->samples; i++)
            printf("%s%.2f", i == 0 ? "" : ",", us[i]);
        printf("]}\n");
    } else {
        printf("step %-12s %8.1f us (p90 %.1f), one behind the other %.1f us\n", s->name,
               us[o->samples / 2], us[o->samples - 1 - o->samples / 10], each);
    }
    fflush(stdout);
    work_close(b, &w);
    free(us);
}

static struct options parse(int argc, char **argv) {
    struct options o = {.backend = "cuda", .samples = 120};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--json") == 0)
            o.json = true;
        else if (value != NULL && strcmp(argv[i], "--backend") == 0)
            o.backend = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--shape") == 0)
            o.shape = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--samples") == 0)
            o.samples = (uint32_t)strtoul(argv[++i], NULL, 10);
        else {
            fprintf(stderr, "kvpool-gpu-step: \"%s\"?\n", argv[i]);
            exit(64);
        }
    }
    if (o.samples < 1 || o.samples > 10000) {
        fprintf(stderr, "kvpool-gpu-step: --samples 1 .. 10000\n");
        exit(64);
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    struct bench b = {0};
    struct err err = {0};
    struct backend_config config = {0};
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "no GPU: nothing measured\n");
        return 77;
    }
    sem_init(&b.done, 0, 0);
    check_err(backend_find(o.backend, &b.ops, &err), &err, "backend");
    check_err(b.ops->open(&config, &b.backend, &err), &err, "open");
    check_err(b.ops->stream_open(b.backend, &b.stream, &err), &err, "stream");
    gpu_measure_open(&b.measure);
    if (!o.json)
        printf("%s\n", b.ops->describe(b.backend));
    const struct gpu_shape *shapes;
    size_t n = gpu_shapes(&shapes);
    for (size_t i = 0; i < n; i++)
        if (strcmp(shapes[i].table, "step") == 0 &&
            (o.shape == NULL || strcmp(o.shape, shapes[i].name) == 0))
            run(&b, &shapes[i], &o);
    gpu_measure_close(&b.measure);
    b.ops->stream_close(b.backend, b.stream);
    b.ops->close(b.backend);
    sem_destroy(&b.done);
    return 0;
}
