// SPDX-License-Identifier: Apache-2.0
// attention_case.c: a batch over a poisoned paged cache in device memory. See harness.h.
#include "tests/gpu/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { UNUSED_ENTRY = 2147480000, ROW_GAP = 3, TOKEN_GAP_BYTES = 32 };
enum { MOST_TILE_TOKENS = 64 }; // of any kernel: tiles begin at multiples

struct attention_case attention_case(const char *name, uint32_t dtype) {
    return (struct attention_case){
        .name = name,
        .dtype = dtype,
        .kv_dtype = dtype,
        .qo_heads = 8,
        .kv_heads = 2,
        .head_dim = 128,
        .page_size = 16,
        .causal = true,
        .lse = true,
        .window_left = -1,
        .seed = 1,
    };
}
void case_add(struct attention_case *c, uint32_t q_len, uint32_t kv_len) {
    assert_true(c->n < CASE_MAX_SEQUENCES);
    c->q_len[c->n] = q_len;
    c->kv_len[c->n++] = kv_len;
}

static uint32_t pages_of(const struct attention_case *c, uint32_t i) {
    return (c->kv_len[i] + c->page_size - 1) / c->page_size;
}

// --- the cache --------------------------------------------------------------------------------------

// Strides of the case's layout; pages of the pool.
static void lay_out(struct attention_setup *s, uint64_t pages) {
    const struct attention_case *c = s->c;
    struct cuda_kv *kv = &s->attention.kv;
    int64_t d = c->head_dim, p = c->page_size, h = c->kv_heads;
    int64_t gap = TOKEN_GAP_BYTES / (int64_t)element_size(c->kv_dtype);
    kv->kv_heads = c->kv_heads;
    kv->head_dim = c->head_dim;
    kv->page_shift = (uint32_t)__builtin_ctz(c->page_size);
    kv->dtype = c->kv_dtype;
    if (c->layout == CASE_NHD || c->layout == CASE_STRIDED) {
        if (c->layout == CASE_NHD)
            gap = 0;
        kv->head_stride = d;
        kv->token_stride = h * d + gap;
        kv->value_stride = p * kv->token_stride + gap;
    } else {
        kv->token_stride = d;
        kv->head_stride = p * d;
        kv->value_stride = h * p * d;
    }
    kv->page_stride = 2 * kv->value_stride;
    if (c->layout == CASE_SEPARATE)
        kv->page_stride = kv->value_stride;
    size_t bytes = (size_t)kv->page_stride * pages * element_size(c->kv_dtype);
    s->k = buffer_new("K and V pages", bytes);
    kv->k = s->k.device;
    if (c->layout == CASE_SEPARATE) {
        // V's elements must be reachable from K's base: only their distance counts.
        s->v = buffer_new("V pages", bytes);
        kv->value_stride = ((int64_t)(intptr_t)s->v.device - (int64_t)(intptr_t)s->k.device) /
                           (int64_t)element_size(c->kv_dtype);
    }
}

size_t kv_element(const struct cuda_kv *kv, bool value, uint64_t page, uint32_t h, uint32_t t,
                  uint32_t d) {
    bool separate = kv->value_stride > kv->page_stride || kv->value_stride < 0;
    int64_t at = (int64_t)page * kv->page_stride + (int64_t)h * kv->head_stride +
                 (int64_t)t * kv->token_stride + d + (value && !separate ? kv->value_stride : 0);
    return (size_t)at * element_size(kv->dtype);
}

static double scale_of(const struct attention_setup *s, bool value, uint32_t h) {
    const struct cuda_kv *kv = &s->attention.kv;
    if (s->c->kv_dtype != CUDA_E4M3)
        return 1;
    const struct buffer *heads = value ? &s->v_scales : &s->k_scales;
    if (heads->allocation != NULL)
        return element_load(CUDA_FP32, heads->host, h);
    return (double)(value ? kv->v_scale : kv->k_scale);
}

// Pages left of the tile in which the first query token's window begins.
static uint32_t pages_unseen(const struct attention_case *c, uint32_t i) {
    int64_t first = (int64_t)c->kv_len[i] - c->q_len[i] - c->window_left;
    if (c->window_left < 0 || first < 0)
        return 0;
    if (first > c->kv_len[i])
        first = c->kv_len[i];
    return (uint32_t)(first / MOST_TILE_TOKENS * MOST_TILE_TOKENS) / c->page_size;
}

// Writes one sequence's tokens; what is stored, times its scale, is kept for the reference.
static void fill_sequence(struct attention_setup *s, struct harness_rng *r, uint32_t i,
                          const uint32_t *ids) {
    const struct attention_case *c = s->c;
    const struct cuda_kv *kv = &s->attention.kv;
    for (uint32_t value = 0; value < 2; value++)
        for (uint32_t t = 0; t < c->kv_len[i]; t++)
            for (uint32_t h = 0; h < c->kv_heads; h++) {
                double scale = scale_of(s, value != 0, h);
                double *keep = (value != 0 ? s->values : s->keys) +
                               ((s->kv_first[i] + t) * c->kv_heads + h) * c->head_dim;
                unsigned char *row =
                    (value != 0 && s->v.host != NULL ? s->v.host : s->k.host) +
                    kv_element(kv, value != 0, ids[t / c->page_size], h, t % c->page_size, 0);
                for (uint32_t d = 0; d < c->head_dim; d++) {
                    element_store(c->kv_dtype, row, d, rng_normal(r) / scale);
                    keep[d] = element_load(c->kv_dtype, row, d) * scale;
                }
            }
}

static void make_scales(struct attention_setup *s) {
    const struct attention_case *c = s->c;
    struct cuda_kv *kv = &s->attention.kv;
    kv->k_scale = kv->v_scale = 1;
    if (c->scales == CASE_SCALES_SCALAR) {
        kv->k_scale = 0.03125f;
        kv->v_scale = 0.017f;
    } else if (c->scales == CASE_SCALES_HEADS) {
        kv->k_scale = kv->v_scale = NAN; // not used
        s->k_scales = buffer_new("K's scales", c->kv_heads * sizeof(float));
        s->v_scales = buffer_new("V's scales", c->kv_heads * sizeof(float));
        for (uint32_t h = 0; h < c->kv_heads; h++) {
            element_store(CUDA_FP32, s->k_scales.host, h, 0.02 + 0.005 * h);
            element_store(CUDA_FP32, s->v_scales.host, h, 0.04 - 0.02 / (h + 1.0));
        }
        buffer_up(&s->k_scales);
        buffer_up(&s->v_scales);
        kv->k_scales = s->k_scales.device;
        kv->v_scales = s->v_scales.device;
    }
}

// Pages at random places of a pool three times too big, the table, and K and V.
static void make_cache(struct attention_setup *s, struct harness_rng *r) {
    const struct attention_case *c = s->c;
    uint32_t used = 0, longest = 0;
    size_t tokens = 0;
    s->kv_first = calloc(c->n + 1, sizeof *s->kv_first);
    assert_non_null(s->kv_first);
    for (uint32_t i = 0; i < c->n; i++) {
        s->kv_first[i] = tokens;
        tokens += c->kv_len[i];
        used += pages_of(c, i);
        longest = pages_of(c, i) > longest ? pages_of(c, i) : longest;
    }
    uint32_t pages = used * 3 + 2;
    uint32_t *order = malloc(pages * sizeof *order);
    s->keys = malloc((tokens * c->kv_heads * c->head_dim + 1) * sizeof *s->keys);
    s->values = malloc((tokens * c->kv_heads * c->head_dim + 1) * sizeof *s->values);
    assert_true(order != NULL && s->keys != NULL && s->values != NULL);
    for (uint32_t i = 0; i < pages; i++)
        order[i] = i;
    rng_shuffle(r, order, pages);
    lay_out(s, pages);
    make_scales(s);

    uint32_t row_entries = c->tables == CASE_FLAT ? 1 : longest + ROW_GAP;
    uint32_t rows = c->tables == CASE_FLAT ? used + ROW_GAP : c->n * 2 + 1;
    s->table = buffer_new("page table", (size_t)rows * row_entries * sizeof(uint32_t));
    s->rows = buffer_new("rows", (c->n + 1) * sizeof(uint32_t));
    uint32_t *table = (void *)s->table.host, *row_of = (void *)s->rows.host;
    for (size_t i = 0; i < (size_t)rows * row_entries; i++)
        table[i] = UNUSED_ENTRY;
    uint32_t *some_rows = malloc(rows * sizeof *some_rows);
    assert_non_null(some_rows);
    for (uint32_t i = 0; i < rows; i++)
        some_rows[i] = i;
    if (c->tables != CASE_FLAT)
        rng_shuffle(r, some_rows, rows);
    uint32_t next = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        row_of[i] = c->tables == CASE_FLAT ? next : some_rows[i];
        uint32_t unseen = pages_unseen(c, i);
        memcpy(table + (size_t)row_of[i] * row_entries + unseen, order + next + unseen,
               (pages_of(c, i) - unseen) * sizeof *order);
        fill_sequence(s, r, i, order + next);
        next += pages_of(c, i);
    }
    row_of[c->n] = next;
    free(some_rows);
    free(order);
    buffer_up(&s->k);
    if (s->v.host != NULL)
        buffer_up(&s->v);
    buffer_up(&s->table);
    buffer_up(&s->rows);
    s->attention.batch.row_entries = row_entries;
    s->attention.batch.table = s->table.device;
    s->attention.batch.rows = s->rows.device;
}

// --- queries, results, the batch ----------------------------------------------------------------

static struct cuda_tensor tensor(const struct attention_case *c, uint32_t dtype, uint32_t row,
                                 uint32_t tokens, const char *name, struct buffer *ret) {
    int64_t gap = c->strided ? TOKEN_GAP_BYTES / (int64_t)element_size(dtype) : 0;
    struct cuda_tensor t = {.head_stride = row + gap};
    t.token_stride = c->qo_heads * t.head_stride + gap;
    *ret = buffer_new(name, (size_t)t.token_stride * tokens * element_size(dtype));
    t.data = ret->device;
    return t;
}

static void make_batch(struct attention_setup *s, struct harness_rng *r) {
    const struct attention_case *c = s->c;
    struct cuda_batch *b = &s->attention.batch;
    s->kv_len = buffer_new("kv_len", c->n * sizeof(uint32_t));
    s->qo_indptr = buffer_new("qo_indptr", (c->n + 1) * sizeof(uint32_t));
    uint32_t *indptr = (void *)s->qo_indptr.host;
    memcpy(s->kv_len.host, c->kv_len, c->n * sizeof(uint32_t));
    indptr[0] = 0;
    for (uint32_t i = 0; i < c->n; i++)
        indptr[i + 1] = indptr[i] + c->q_len[i];
    buffer_up(&s->kv_len);
    buffer_up(&s->qo_indptr);
    b->kv_len = s->kv_len.device;
    b->qo_indptr = s->qo_indptr.device;

    s->launched = malloc((c->n + 1) * sizeof *s->launched);
    assert_non_null(s->launched);
    for (uint32_t i = 0; i < c->n; i++)
        s->launched[i] = i;
    s->launched_n = c->n;
    if (c->indexed) {
        rng_shuffle(r, s->launched, c->n);
        s->launched_n = (c->n + 1) / 2;
        s->index = buffer_new("index", s->launched_n * sizeof(uint32_t));
        memcpy(s->index.host, s->launched, s->launched_n * sizeof(uint32_t));
        buffer_up(&s->index);
        b->index = s->index.device;
    }
    b->n = s->launched_n;
    for (uint32_t i = 0; i < s->launched_n; i++) {
        uint32_t q_len = c->q_len[s->launched[i]];
        b->nnz += q_len;
        b->max_q_len = q_len > b->max_q_len ? q_len : b->max_q_len;
    }
    if (c->loose_bounds) {
        b->nnz += 5;
        b->max_q_len += b->max_q_len < 8 ? 8 - b->max_q_len : 3; // 8: decode's limit
    }
}

static void make_tensors(struct attention_setup *s, struct harness_rng *r) {
    const struct attention_case *c = s->c;
    struct cuda_attention *a = &s->attention;
    const uint32_t *indptr = (const void *)s->qo_indptr.host;
    uint32_t tokens = indptr[c->n];
    double times = c->q_times > 0 ? (double)c->q_times : 1;
    a->q = tensor(c, c->dtype, c->head_dim, tokens, "q", &s->q);
    a->out = tensor(c, c->dtype, c->head_dim, tokens, "out", &s->out);
    if (c->lse)
        a->lse = tensor(c, CUDA_FP32, 1, tokens, "lse", &s->lse);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < c->qo_heads; h++) {
            size_t at = (size_t)(t * a->q.token_stride + h * a->q.head_stride);
            for (uint32_t d = 0; d < c->head_dim; d++)
                element_store(c->dtype, s->q.host, at + d, times * rng_normal(r));
        }
    buffer_up(&s->q);
    if (c->sinks) {
        s->sinks = buffer_new("sinks", c->qo_heads * sizeof(float));
        for (uint32_t h = 0; h < c->qo_heads; h++)
            element_store(CUDA_FP32, s->sinks.host, h, 2 * rng_normal(r));
        buffer_up(&s->sinks);
        a->sinks = s->sinks.device;
    }
}

struct attention_setup *attention_setup(const struct attention_case *c) {
    struct attention_setup *s = calloc(1, sizeof *s);
    assert_non_null(s);
    struct harness_rng r = {.state = c->seed};
    s->c = c;
    make_cache(s, &r);
    make_batch(s, &r);
    make_tensors(s, &r);
    struct cuda_attention *a = &s->attention;
    a->dtype = c->dtype;
    a->qo_heads = c->qo_heads;
    a->sm_scale = c->sm_scale > 0 ? c->sm_scale : 1 / sqrtf((float)c->head_dim);
    a->soft_cap = c->soft_cap;
    a->window_left = c->window_left;
    a->causal = c->causal;
    a->batch_invariant = c->batch_invariant;
    a->after_previous = c->after_previous;
    a->max_ctas = c->max_ctas;
    return s;
}

void attention_free(struct attention_setup *s) {
    struct buffer *all[] = {&s->k,     &s->v,        &s->q,        &s->out,       &s->lse,
                            &s->table, &s->rows,     &s->kv_len,   &s->qo_indptr, &s->index,
                            &s->sinks, &s->k_scales, &s->v_scales, &s->plan,      &s->workspace};
    for (size_t i = 0; i < sizeof all / sizeof(struct buffer *); i++)
        buffer_free(all[i]);
    free(s->launched);
    free(s->keys);
    free(s->values);
    free(s->kv_first);
    free(s);
}
