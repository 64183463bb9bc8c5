// SPDX-License-Identifier: Apache-2.0
// bench_kernels.c: kvpool-gpu-kernels: our kernels alone over the tables of the GPU bench, without
// Python: the roofs first, then a line a shape. Every result is compared with the generic kernel's
// before it is timed; a wrong one is marked and makes the exit status 1.
//
//   kvpool-gpu-kernels [--only even,ragged,...] [--shape NAME] [--samples N] [--no-check]
//                      [--max-ctas N] [--pdl] [--prefill-variant N]
//
// --prefill-variant: another shape of the prefill kernel for head_dim 128 (prefill_shape.cuh).
#include "bench/gpu/cases.h"
#include "bench/gpu/probe.h"
#include "bench/gpu/roof.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL_MIB = 4352, ROOF_MIB = 2048 };
enum { PREFILL_VARIANTS = 3 };
extern int cuda_prefill_variant; // prefill_shape.cuh

struct options {
    const char *only, *shape;
    uint32_t samples, max_ctas;
    int prefill_variant;
    bool check, pdl;
};

static bool listed(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ','), at += at != NULL)
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == 0))
            return true;
    return list == NULL;
}

// --- roofs -----------------------------------------------------------------------------------

struct roof {
    const struct cuda_device *device;
    char *memory; // 2 * bytes
    uint64_t bytes;
    uint32_t ctas_per_sm, *words;
};

static int body_read(void *arg, void *stream) {
    struct roof *r = arg;
    return cuda_roof_read(r->device, r->memory, r->bytes, r->ctas_per_sm, r->words, stream);
}

static int body_copy(void *arg, void *stream) {
    struct roof *r = arg;
    return cuda_roof_copy(r->device, r->memory + r->bytes, r->memory, r->bytes, r->ctas_per_sm,
                          stream);
}

static int body_empty(void *arg, void *stream) {
    (void)arg;
    return gpu_probe_empty(stream);
}

// GB/s of the best of several grids.
static double roof(struct gpu_measure *m, void *memory, gpu_body body, double bytes) {
    static const uint32_t grids[] = {0, 2, 4, 8};
    struct roof r[4];
    struct gpu_contender c[4];
    for (int i = 0; i < 4; i++) {
        r[i] = (struct roof){&m->device, memory, (uint64_t)ROOF_MIB << 20, grids[i], m->words};
        c[i] = (struct gpu_contender){.body = body, .arg = &r[i]};
    }
    gpu_measure_run(m, c, 4, 15, true);
    double best = c[0].median;
    for (int i = 1; i < 4; i++)
        best = fmin(best, c[i].median);
    return bytes / best / 1e3;
}

// --- one shape -------------------------------------------------------------------------------

struct roofs {
    double read, copy; // GB/s
};

// Returns whether the result was right.
static bool run_attention(struct gpu_measure *m, struct gpu_case *c, const struct gpu_shape *s,
                          const struct roofs *roofs, const struct options *o) {
    double flops = gpu_shape_flops(s), bytes = gpu_shape_kv_bytes(s);
    bool checked = o->check && flops < 2e11;
    double error = checked ? gpu_case_error(c, m->stream) : 0;
    struct gpu_contender t[2] = {{.body = gpu_case_attend, .arg = c},
                                 {.body = gpu_case_plan, .arg = c}};
    gpu_check(gpu_case_plan(c, m->stream), "plan");
    gpu_measure_run(m, t, 2, o->samples, true);
    double limit = bytes / roofs->read / 1e3, us = t[0].median;
    if (c->decode)
        printf("%-8s %-20s %8.1f %8.1f %8.1f %8.1f %7.1f%% %+7.1f %8.1f", s->table, s->name, limit,
               us, t[0].low, t[0].high, 100 * limit / us, us - limit, t[1].median);
    else
        printf("%-8s %-20s %8.1f %8.1f %8.1f %8.1f %5.0f TF        %8.1f", s->table, s->name, limit,
               us, t[0].low, t[0].high, flops / us / 1e6, t[1].median);
    printf(checked ? "  %.2f%s\n" : "  -\n", error, error <= 1 ? "" : " WRONG");
    fflush(stdout);
    return error <= 1;
}

static void run_append(struct gpu_measure *m, struct gpu_case *c, const struct gpu_shape *s,
                       const struct roofs *roofs, const struct options *o) {
    double bytes = 4.0 * c->append.batch.nnz * s->kv_heads * s->head_dim * 2;
    struct gpu_contender t = {.body = gpu_case_append, .arg = c};
    gpu_measure_run(m, &t, 1, o->samples, true);
    double limit = bytes / roofs->copy / 1e3;
    printf("%-8s %-20s %8.1f %8.1f %8.1f %8.1f %7.1f%% %+7.1f\n", s->table, s->name, limit,
           t.median, t.low, t.high, 100 * limit / t.median, t.median - limit);
    fflush(stdout);
}

static bool run_shapes(struct gpu_measure *m, void *pool, const struct roofs *roofs,
                       const struct options *o) {
    const struct gpu_shape *shapes;
    size_t n = gpu_shapes(&shapes);
    bool right = true;
    uint32_t filled = CUDA_BF16; // by main
    for (size_t i = 0; i < n; i++) {
        const struct gpu_shape *s = &shapes[i];
        if (!listed(o->only, s->table) || strcmp(s->table, "step") == 0 ||
            (o->shape != NULL && strcmp(o->shape, s->name) != 0))
            continue;
        if (filled != s->kv_dtype) {
            uint64_t bytes = (uint64_t)POOL_MIB << 20;
            gpu_check(gpu_probe_fill(pool, s->kv_dtype == CUDA_E4M3 ? bytes : bytes / 2,
                                     s->kv_dtype, 7, m->stream),
                      "fill");
            filled = s->kv_dtype;
        }
        struct gpu_case c;
        const char *refusal = gpu_case_open(&c, &m->device, s, pool, (uint64_t)POOL_MIB << 20);
        if (refusal != NULL) {
            printf("%-8s %-20s not measured: %s\n", s->table, s->name, refusal);
            continue;
        }
        c.attention.max_ctas = o->max_ctas;
        c.attention.after_previous = o->pdl;
        if (strcmp(s->table, "append") == 0) {
            run_append(m, &c, s, roofs, o);
            filled = 0;
        } else {
            right = run_attention(m, &c, s, roofs, o) && right;
        }
        gpu_case_close(&c);
    }
    return right;
}

static struct options parse(int argc, char **argv) {
    struct options o = {.samples = 30, .check = true};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--no-check") == 0)
            o.check = false;
        else if (strcmp(argv[i], "--pdl") == 0)
            o.pdl = true;
        else if (value != NULL && strcmp(argv[i], "--only") == 0)
            o.only = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--shape") == 0)
            o.shape = argv[++i];
        else if (value != NULL && strcmp(argv[i], "--samples") == 0)
            o.samples = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (value != NULL && strcmp(argv[i], "--max-ctas") == 0)
            o.max_ctas = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (value != NULL && strcmp(argv[i], "--prefill-variant") == 0)
            o.prefill_variant = atoi(argv[++i]);
        else {
            fprintf(stderr, "kvpool-gpu-kernels: \"%s\"?\n", argv[i]);
            exit(64);
        }
    }
    if (o.samples < 1 || o.samples > GPU_SAMPLES_MAX) {
        fprintf(stderr, "kvpool-gpu-kernels: --samples 1 .. %d\n", GPU_SAMPLES_MAX);
        exit(64);
    }
    if (o.prefill_variant < 0 || o.prefill_variant > PREFILL_VARIANTS) {
        fprintf(stderr, "kvpool-gpu-kernels: --prefill-variant 0 .. %d\n", PREFILL_VARIANTS);
        exit(64);
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "no GPU: nothing measured\n");
        return 77;
    }
    cuda_prefill_variant = o.prefill_variant; // before anything is planned
    struct gpu_measure m;
    gpu_measure_open(&m);
    void *pool = gpu_alloc((uint64_t)POOL_MIB << 20);
    gpu_check(gpu_probe_fill(pool, (uint64_t)POOL_MIB << 19, CUDA_BF16, 7, m.stream), "fill");
    struct cudaDeviceProp properties;
    gpu_check((int)cudaGetDeviceProperties(&properties, m.device.ordinal), "device");
    double bytes = (double)((uint64_t)ROOF_MIB << 20);
    struct roofs roofs = {.read = roof(&m, pool, body_read, bytes),
                          .copy = roof(&m, pool, body_copy, 2 * bytes)};
    struct gpu_contender empty = {.body = body_empty};
    gpu_measure_run(&m, &empty, 1, o.samples, true);
    printf("%s, %d SMs: read %.0f GB/s, copy %.0f GB/s, empty kernel %.1f us\n", properties.name,
           m.device.sms, roofs.read, roofs.copy, empty.median);
    printf("%-8s %-20s %8s %8s %8s %8s %8s %7s %8s  %s\n", "table", "shape", "limit us", "us",
           "p10", "p90", "of roof", "over", "plan us", "error");
    bool right = run_shapes(&m, pool, &roofs, &o);
    gpu_free(pool);
    gpu_measure_close(&m);
    if (!right)
        printf("some results are WRONG\n");
    return right ? 0 : 1;
}
