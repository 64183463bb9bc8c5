// SPDX-License-Identifier: Apache-2.0
// attention_check.c: runs an attention kernel and compares it with the fp64 reference. See harness.h.
#include "tests/gpu/harness.h"

#include "kernels/reference.h"

#include <cuda_runtime_api.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *dtype_name(uint32_t dtype) {
    static const char *const names[] = {"?", "fp16", "bf16", "fp32", "e4m3"};
    return dtype <= CUDA_E4M3 ? names[dtype] : "?";
}
static const char *describe(const struct attention_setup *s, const struct attention_kernel *k) {
    static char text[512];
    const struct attention_case *c = s->c;
    snprintf(text, sizeof text,
             "%s, \"%s\": %s over %s, heads %u/%u of %u, pages of %u, layout %d, %u sequences, "
             "seed %llu%s%s%s%s%s",
             k->name, c->name, dtype_name(c->dtype), dtype_name(c->kv_dtype), c->qo_heads,
             c->kv_heads, c->head_dim, c->page_size, (int)c->layout, c->n,
             (unsigned long long)c->seed, c->causal ? ", causal" : "",
             c->window_left >= 0 ? ", window" : "", c->soft_cap > 0 ? ", cap" : "",
             c->sinks ? ", sinks" : "", c->indexed ? ", indexed" : "");
    return text;
}

// --- running ------------------------------------------------------------------------------------------

static void launched(int rc, const char *what, const struct attention_setup *s,
                     const struct attention_kernel *k) {
    if (rc != 0)
        fail_msg("%s: %s: %s", describe(s, k), what, cudaGetErrorString((cudaError_t)rc));
}

// What of the workspace is zeros between launches.
static size_t zeroed_bytes(const struct attention_kernel *k, const struct cuda_attention *a) {
    const struct cuda_device *d = harness_device();
    return k->zeroed_bytes != NULL ? k->zeroed_bytes(d, a) : k->workspace_bytes(d, a);
}

void attention_plan(struct attention_setup *s, const struct attention_kernel *k) {
    const struct cuda_device *d = harness_device();
    struct cuda_attention *a = &s->attention;
    if (k->takes != NULL && !k->takes(a))
        fail_msg("%s: not taken by the kernel", describe(s, k));
    if (k->workspace_bytes != NULL && s->workspace.allocation == NULL) {
        size_t bytes = k->workspace_bytes(d, a);
        size_t zeroed = zeroed_bytes(k, a);
        assert_true(zeroed <= bytes);
        s->workspace = buffer_new("workspace", bytes);
        memset(s->workspace.host, 0, zeroed);
        buffer_up(&s->workspace);
        a->workspace = s->workspace.device;
        a->workspace_bytes = bytes;
    }
    if (k->plan_bytes != NULL && s->plan.allocation == NULL) {
        s->plan = buffer_new("plan", k->plan_bytes(d, a));
        a->plan = s->plan.device;
    }
    if (k->plan != NULL) {
        launched(k->plan(d, a, NULL), "plan", s, k);
        device_sync();
        if (s->plan.allocation != NULL)
            buffer_down(&s->plan);
    }
}
void attention_run(struct attention_setup *s, const struct attention_kernel *k) {
    launched(k->run(harness_device(), &s->attention, NULL), "launch", s, k);
    device_sync();
}
void attention_clear(struct attention_setup *s) {
    memset(s->out.host, 0xff, s->out.bytes);
    buffer_up(&s->out);
    if (s->lse.allocation != NULL) {
        memset(s->lse.host, 0xff, s->lse.bytes);
        buffer_up(&s->lse);
    }
}

// --- the reference --------------------------------------------------------------------------------

void attention_reference(const struct attention_setup *s, uint32_t i, double *out, double *lse) {
    const struct attention_case *c = s->c;
    const struct cuda_attention *a = &s->attention;
    const uint32_t *indptr = (const void *)s->qo_indptr.host;
    uint32_t q_len = c->q_len[i], kv_len = c->kv_len[i];
    double *q = malloc(((size_t)q_len * c->qo_heads * c->head_dim + 1) * sizeof *q);
    double *scratch = malloc((kv_len + 1) * sizeof *scratch);
    double *sinks = malloc(c->qo_heads * sizeof *sinks);
    assert_true(q != NULL && scratch != NULL);
    assert_non_null(sinks);
    for (uint32_t h = 0; c->sinks && h < c->qo_heads; h++)
        sinks[h] = element_load(CUDA_FP32, s->sinks.host, h);
    for (uint32_t j = 0; j < q_len; j++)
        for (uint32_t h = 0; h < c->qo_heads; h++)
            for (uint32_t d = 0; d < c->head_dim; d++)
                q[((size_t)j * c->qo_heads + h) * c->head_dim + d] = element_load(
                    c->dtype, s->q.host,
                    (size_t)((indptr[i] + j) * a->q.token_stride + h * a->q.head_stride + d));
    const struct reference_attention r = {
        .qo_heads = c->qo_heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .q_len = q_len,
        .kv_len = kv_len,
        .causal = c->causal,
        .window_left = c->window_left,
        .sm_scale = (double)a->sm_scale,
        .soft_cap = (double)a->soft_cap,
        .q = q,
        .k = s->keys + s->kv_first[i] * c->kv_heads * c->head_dim,
        .v = s->values + s->kv_first[i] * c->kv_heads * c->head_dim,
        .sinks = c->sinks ? sinks : NULL,
        .out = out,
        .lse = lse,
        .scratch = scratch,
    };
    reference_attend(&r);
    free(sinks);
    free(q);
    free(scratch);
}

// --- comparison -------------------------------------------------------------------------------------

// An element may differ by absolute + relative * |reference|; all of them by a tenth of absolute on
// average. Half an ulp of the result is 2^-9 (bf16), 2^-12 (fp16) of it.
struct tolerance {
    double absolute, relative, lse;
};
static struct tolerance tolerance_of(uint32_t dtype) {
    if (dtype == CUDA_FP16)
        return (struct tolerance){2e-3, 0x1p-11, 1e-4};
    if (dtype == CUDA_BF16)
        return (struct tolerance){1e-2, 0x1p-8, 1e-4};
    return (struct tolerance){2e-5, 1e-5, 2e-5};
}

struct difference {
    double sum;
    size_t n;
};
static void compare_row(const struct attention_setup *s, const struct attention_kernel *k,
                        uint32_t i, uint32_t j, uint32_t h, const double *out,
                        struct difference *sum) {
    const struct attention_case *c = s->c;
    const struct cuda_attention *a = &s->attention;
    const struct tolerance tol = tolerance_of(c->dtype);
    uint32_t token = ((const uint32_t *)(const void *)s->qo_indptr.host)[i] + j;
    size_t at = (size_t)(token * a->out.token_stride + h * a->out.head_stride);
    for (uint32_t d = 0; d < c->head_dim; d++) {
        double got = element_load(c->dtype, s->out.host, at + d);
        double off = fabs(got - out[d]);
        if (!(off <= tol.absolute + tol.relative * fabs(out[d]))) // NaN: no
            fail_msg("%s: sequence %u (q_len %u, kv_len %u), query %u, head %u, element %u: %.9g, "
                     "reference %.9g",
                     describe(s, k), i, c->q_len[i], c->kv_len[i], j, h, d, got, out[d]);
        sum->sum += off;
        sum->n++;
    }
}
static void compare_lse(const struct attention_setup *s, const struct attention_kernel *k,
                        uint32_t i, uint32_t j, uint32_t h, double lse) {
    const struct attention_case *c = s->c;
    const struct cuda_attention *a = &s->attention;
    uint32_t token = ((const uint32_t *)(const void *)s->qo_indptr.host)[i] + j;
    double got = element_load(CUDA_FP32, s->lse.host,
                              (size_t)(token * a->lse.token_stride + h * a->lse.head_stride));
    double allowed = tolerance_of(c->dtype).lse + 4 * (double)FLT_EPSILON * fabs(lse);
    bool equal = isinf(lse) ? got == lse : fabs(got - lse) <= allowed;
    if (!equal)
        fail_msg("%s: sequence %u (q_len %u, kv_len %u), query %u, head %u: lse %.9g, reference "
                 "%.9g",
                 describe(s, k), i, c->q_len[i], c->kv_len[i], j, h, got, lse);
}

// Everything of `b` but the given rows must still be 0xff: those rows' bytes are marked first.
static void check_unwritten(const struct attention_setup *s, const struct attention_kernel *k,
                            const struct buffer *b, const struct cuda_tensor *t, size_t row_bytes,
                            size_t element) {
    const struct attention_case *c = s->c;
    const uint32_t *indptr = (const void *)s->qo_indptr.host;
    unsigned char *theirs = calloc(b->bytes + 1, 1);
    assert_non_null(theirs);
    for (uint32_t x = 0; x < s->launched_n; x++)
        for (uint32_t token = indptr[s->launched[x]]; token < indptr[s->launched[x] + 1]; token++)
            for (uint32_t h = 0; h < c->qo_heads; h++)
                memset(theirs + (size_t)(token * t->token_stride + h * t->head_stride) * element, 1,
                       row_bytes);
    for (size_t i = 0; i < b->bytes; i++)
        if (theirs[i] == 0 && b->host[i] != 0xff)
            fail_msg("%s: %s: byte %zu, of no row of the launch, was written", describe(s, k),
                     b->name, i);
    free(theirs);
}

static void check_read_only(struct attention_setup *s, const struct attention_kernel *k) {
    struct buffer *inputs[] = {&s->k,     &s->v,        &s->q,         &s->table,
                               &s->rows,  &s->kv_len,   &s->qo_indptr, &s->index,
                               &s->sinks, &s->k_scales, &s->v_scales,  &s->plan};
    for (size_t i = 0; i < sizeof inputs / sizeof(struct buffer *); i++)
        buffer_unchanged(inputs[i]);
    if (s->workspace.allocation != NULL) {
        buffer_down(&s->workspace); // its guards
        if (k->zeroed_bytes != NULL)
            for (size_t i = 0, n = zeroed_bytes(k, &s->attention); i < n; i++)
                if (((const unsigned char *)s->workspace.host)[i] != 0)
                    fail_msg("%s: byte %zu of the workspace is left", describe(s, k), i);
    }
}

void attention_compare(struct attention_setup *s, const struct attention_kernel *k) {
    const struct attention_case *c = s->c;
    const struct cuda_attention *a = &s->attention;
    struct difference sum = {0};
    buffer_down(&s->out);
    if (c->lse)
        buffer_down(&s->lse);
    check_read_only(s, k);
    check_unwritten(s, k, &s->out, &a->out, c->head_dim * element_size(c->dtype),
                    element_size(c->dtype));
    if (c->lse)
        check_unwritten(s, k, &s->lse, &a->lse, sizeof(float), sizeof(float));
    for (uint32_t x = 0; x < s->launched_n; x++) {
        uint32_t i = s->launched[x];
        size_t rows = (size_t)c->q_len[i] * c->qo_heads;
        double *out = malloc((rows * c->head_dim + 1) * sizeof *out);
        double *lse = malloc((rows + 1) * sizeof *lse);
        assert_non_null(out);
        assert_non_null(lse);
        attention_reference(s, i, out, lse);
        for (size_t row = 0; row < rows; row++) {
            uint32_t j = (uint32_t)(row / c->qo_heads), h = (uint32_t)(row % c->qo_heads);
            compare_row(s, k, i, j, h, out + row * c->head_dim, &sum);
            if (c->lse)
                compare_lse(s, k, i, j, h, lse[row]);
        }
        free(out);
        free(lse);
    }
    double mean = sum.n != 0 ? sum.sum / (double)sum.n : 0;
    if (mean > tolerance_of(c->dtype).absolute / 10)
        fail_msg("%s: mean error %.3g", describe(s, k), mean);
}

void attention_check(const struct attention_kernel *k, const struct attention_case *c) {
    struct attention_setup *s = attention_setup(c);
    attention_plan(s, k);
    attention_run(s, k);
    attention_compare(s, k);
    unsigned char *out = malloc(s->out.bytes + 1), *lse = malloc(s->lse.bytes + 1);
    assert_non_null(out);
    assert_non_null(lse);
    memcpy(out, s->out.host, s->out.bytes);
    if (c->lse)
        memcpy(lse, s->lse.host, s->lse.bytes);
    // Again, in the workspace as the first run has left it.
    attention_clear(s);
    attention_run(s, k);
    buffer_down(&s->out);
    if (c->lse)
        buffer_down(&s->lse);
    if (memcmp(out, s->out.host, s->out.bytes) != 0 ||
        (c->lse && memcmp(lse, s->lse.host, s->lse.bytes) != 0))
        fail_msg("%s: a second run gives other bits", describe(s, k));
    free(out);
    free(lse);
    attention_free(s);
}
