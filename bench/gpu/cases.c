// SPDX-License-Identifier: Apache-2.0
// cases.c: see cases.h.
#include "bench/gpu/cases.h"

#include "bench/gpu/probe.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NO_PAGE = 2147480000, DECODE_QUERIES = 8 };

static uint32_t *host_array(uint64_t n) {
    uint32_t *p = malloc((n == 0 ? 1 : n) * sizeof(*p));
    if (p == NULL)
        gpu_check((int)cudaErrorMemoryAllocation, "host memory");
    return p;
}

static void *uploaded(const uint32_t *p, uint64_t n) {
    void *d = gpu_alloc(n * sizeof(*p));
    gpu_upload(d, p, n * sizeof(*p));
    return d;
}

static void shuffle(uint32_t *p, uint32_t n) {
    uint64_t x = 0x9e3779b97f4a7c15u + n;
    for (uint32_t i = n; i > 1; i--) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint32_t j = (uint32_t)((x >> 32) * i >> 32), swap = p[i - 1];
        p[i - 1] = p[j];
        p[j] = swap;
    }
}

static uint32_t shift_of(uint32_t size) {
    uint32_t shift = 0;
    while (1u << shift < size)
        shift++;
    return shift;
}

// Table, rows, lengths and indptr of the shape; false when the pool has too few pages.
static bool open_batch(struct gpu_case *c, const struct gpu_shape *s, uint64_t pool_pages) {
    uint32_t n = gpu_shape_batch(s), entries = 0, pages = 0, at = 0;
    uint32_t *kv_len = host_array(n), *rows = host_array(n), *indptr = host_array(n + 1u);
    gpu_shape_lengths(s, kv_len);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t own = (kv_len[i] + s->page_size - 1) / s->page_size;
        entries = own > entries ? own : entries;
        pages += own;
        rows[i] = i;
        indptr[i] = i * s->q_len;
    }
    indptr[n] = n * s->q_len;
    if (pages <= pool_pages) {
        uint32_t *ids = host_array(pages), *table = host_array((uint64_t)n * entries);
        for (uint32_t i = 0; i < pages; i++)
            ids[i] = i;
        shuffle(ids, pages);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < entries; j++)
                table[(uint64_t)i * entries + j] =
                    j * s->page_size < kv_len[i] ? ids[at++] : NO_PAGE;
        c->table = uploaded(table, (uint64_t)n * entries);
        c->rows = uploaded(rows, n);
        c->kv_len = uploaded(kv_len, n);
        c->qo_indptr = uploaded(indptr, n + 1u);
        c->attention.batch = (struct cuda_batch){
            .n = n,
            .nnz = n * s->q_len,
            .max_q_len = s->q_len,
            .row_entries = entries,
            .table = c->table,
            .rows = c->rows,
            .kv_len = c->kv_len,
            .qo_indptr = c->qo_indptr,
        };
        free(table);
        free(ids);
    }
    free(indptr);
    free(rows);
    free(kv_len);
    return c->table != NULL;
}

static struct cuda_tensor tensor(void *data, uint32_t heads, uint32_t head_dim) {
    return (struct cuda_tensor){
        .data = data, .token_stride = (int64_t)heads * head_dim, .head_stride = head_dim};
}

static void *random_tensor(uint64_t elements, uint32_t dtype, uint32_t seed) {
    void *p = gpu_alloc(elements * (dtype == CUDA_FP32 ? 4 : 2));
    gpu_check(gpu_probe_fill(p, elements, dtype, seed, NULL), "fill");
    return p;
}

const char *gpu_case_open(struct gpu_case *c, const struct cuda_device *d,
                          const struct gpu_shape *s, void *pool, uint64_t pool_bytes) {
    memset(c, 0, sizeof(*c));
    c->device = d;
    uint64_t half = (uint64_t)s->kv_heads * s->page_size * s->head_dim;
    if (!open_batch(c, s, pool_bytes / (2 * half * (s->kv_dtype == CUDA_E4M3 ? 1 : 2))))
        return "does not fit";
    struct cuda_attention *a = &c->attention;
    a->kv = (struct cuda_kv){
        .k = pool,
        .page_stride = (int64_t)(2 * half),
        .value_stride = (int64_t)half,
        .head_stride = (int64_t)s->page_size * s->head_dim,
        .token_stride = s->head_dim,
        .kv_heads = s->kv_heads,
        .head_dim = s->head_dim,
        .page_shift = shift_of(s->page_size),
        .dtype = s->kv_dtype,
        .k_scale = 1,
        .v_scale = 1,
    };
    uint64_t nnz = a->batch.nnz, row = (uint64_t)s->qo_heads * s->head_dim;
    uint64_t kv_row = (uint64_t)s->kv_heads * s->head_dim;
    c->out_elements = nnz * row;
    c->q = random_tensor(nnz * row, s->dtype, 1);
    c->out = gpu_alloc(nnz * row * 2);
    c->k = random_tensor(nnz * kv_row, s->dtype, 2);
    c->v = random_tensor(nnz * kv_row, s->dtype, 3);
    a->q = tensor(c->q, s->qo_heads, s->head_dim);
    a->out = tensor(c->out, s->qo_heads, s->head_dim);
    a->dtype = s->dtype;
    a->qo_heads = s->qo_heads;
    a->sm_scale = 1 / sqrtf((float)s->head_dim);
    a->window_left = -1;
    a->causal = true;
    c->append = (struct cuda_append){
        .kv = a->kv,
        .batch = a->batch,
        .k = tensor(c->k, s->kv_heads, s->head_dim),
        .v = tensor(c->v, s->kv_heads, s->head_dim),
        .dtype = s->dtype,
    };
    c->decode = s->q_len <= DECODE_QUERIES;
    if (!(c->decode ? cuda_decode_takes(a) : cuda_prefill_takes(a))) {
        gpu_case_close(c);
        return "the kernel does not take it";
    }
    a->workspace_bytes =
        c->decode ? cuda_decode_workspace_bytes(d, a) : cuda_prefill_workspace_bytes(d, a);
    a->plan = c->plan =
        gpu_alloc(c->decode ? cuda_decode_plan_bytes(d, a) : cuda_prefill_plan_bytes(d, a));
    a->workspace = c->workspace = gpu_alloc(a->workspace_bytes);
    gpu_check((int)cudaDeviceSynchronize(), "case");
    return NULL;
}

void gpu_case_close(struct gpu_case *c) {
    void *owned[] = {c->workspace, c->plan,      c->v,      c->k,    c->out,
                     c->q,         c->qo_indptr, c->kv_len, c->rows, c->table};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        gpu_free(owned[i]);
}

int gpu_case_plan(void *arg, void *stream) {
    struct gpu_case *c = arg;
    return c->decode ? cuda_decode_plan(c->device, &c->attention, stream)
                     : cuda_prefill_plan(c->device, &c->attention, stream);
}

int gpu_case_attend(void *arg, void *stream) {
    struct gpu_case *c = arg;
    return c->decode ? cuda_decode(c->device, &c->attention, stream)
                     : cuda_prefill(c->device, &c->attention, stream);
}

int gpu_case_append(void *arg, void *stream) {
    struct gpu_case *c = arg;
    return cuda_append(c->device, &c->append, stream);
}

static float wide(const void *p, uint64_t i, uint32_t dtype) {
    uint16_t bits = ((const uint16_t *)p)[i];
    uint32_t word;
    float x;
    if (dtype == CUDA_BF16) {
        word = (uint32_t)bits << 16;
        memcpy(&x, &word, sizeof(x));
        return x;
    }
    uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
    x = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
        : exponent == 0 ? ldexpf((float)mantissa, -24)
                        : ldexpf((float)(mantissa + 1024), (int)exponent - 25);
    return bits >> 15 != 0 ? -x : x;
}

double gpu_case_error(struct gpu_case *c, void *stream) {
    uint64_t bytes = c->out_elements * 2;
    uint32_t dtype = c->attention.dtype;
    char *ours = malloc(bytes), *generic = malloc(bytes);
    if (ours == NULL || generic == NULL)
        gpu_check((int)cudaErrorMemoryAllocation, "host memory");
    gpu_check((int)cudaMemset(c->out, 0xff, bytes), "memset"); // NaN where nothing is written
    gpu_check((int)cudaDeviceSynchronize(), "memset");
    gpu_check(gpu_case_plan(c, stream), "plan");
    gpu_check(gpu_case_attend(c, stream), "attention");
    gpu_check((int)cudaStreamSynchronize(stream), "attention");
    gpu_download(ours, c->out, bytes);
    gpu_check(cuda_generic(c->device, &c->attention, stream), "generic");
    gpu_check((int)cudaStreamSynchronize(stream), "generic");
    gpu_download(generic, c->out, bytes);
    double worst = 0;
    uint32_t head_dim = c->attention.kv.head_dim;
    for (uint64_t row = 0; row < c->out_elements; row += head_dim) {
        double square = 0;
        for (uint64_t i = row; i < row + head_dim; i++)
            square += pow((double)wide(generic, i, dtype), 2);
        double root = sqrt(square / head_dim);
        for (uint64_t i = row; i < row + head_dim; i++) {
            double want = (double)wide(generic, i, dtype), got = (double)wide(ours, i, dtype);
            double part = fabs(got - want) / (0.02 * fabs(want) + 0.02 * root);
            if (!(part <= worst)) // NaN too
                worst = isnan(part) ? INFINITY : part;
        }
    }
    free(generic);
    free(ours);
    return worst;
}
