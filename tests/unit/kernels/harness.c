// SPDX-License-Identifier: Apache-2.0
// harness.c: see harness.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "harness.h"

#include "kernels/dtype.h"
#include "kernels/reference.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED_PAGE 2147480000u
#define GUARD 0xA5

uint64_t random_bits(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(random_bits(state) % n);
}

double random_normal(uint64_t *state) { // Box and Muller
    double u = ((double)(random_bits(state) >> 11) + 1) * 0x1p-53;
    double v = (double)(random_bits(state) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

void random_permutation(uint64_t *state, uint32_t *ret, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        ret[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = random_below(state, i);
        uint32_t t = ret[i - 1];
        ret[i - 1] = ret[j];
        ret[j] = t;
    }
}

uint64_t seed_from_env(uint64_t otherwise) {
    const char *text = getenv("KVPOOL_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : otherwise;
    print_message("KVPOOL_SEED=%" PRIu64 "\n", seed);
    return seed;
}

static void *must_alloc(size_t n, size_t size) {
    void *p = calloc(n != 0 ? n : 1, size);
    assert_non_null(p);
    return p;
}

// ---------------------------------------------------------------------------------------------
// Backends

const char *const harness_isas[HARNESS_MAX_ISAS] = {"generic", "avx2", "avx512", "avx512bf16"};

bool harness_short(void) {
    return getenv("KVPOOL_TEST_SHORT") != NULL;
}

const struct backend_ops *harness_ops(void) {
    const char *name = getenv("KVPOOL_TEST_BACKEND");
    const struct backend_ops *ops = NULL;
    struct err err = {0};
    if (backend_find(name != NULL ? name : "cpu", &ops, &err) != 0)
        fail_msg("%s", err.text);
    return ops;
}

static struct backend_config config_of(uint32_t threads) {
    const char *device = getenv("KVPOOL_TEST_DEVICE");
    return (struct backend_config){.threads = threads,
                                   .device = device != NULL ? (int)strtol(device, NULL, 10) : 0};
}

bool harness_has_device(void) {
    struct backend_config config = config_of(1);
    struct backend *b = NULL;
    struct err err = {0};
    if (harness_ops() == &backend_cpu)
        return true;
    if (harness_ops()->open(&config, &b, &err) != 0) {
        print_message("skipped: %s\n", err.text);
        return false;
    }
    harness_ops()->close(b);
    return true;
}

struct backend *harness_open(const char *isa, uint32_t threads) {
    const struct backend_ops *ops = harness_ops();
    struct backend_config config = config_of(threads);
    struct backend *b = NULL;
    struct err err = {0};
    if (isa != NULL)
        setenv("KVPOOL_CPU_ISA", isa, 1);
    int status = ops->open(&config, &b, &err);
    unsetenv("KVPOOL_CPU_ISA");
    if (status != 0) {
        if (isa != NULL && status == KVPOOL_E_BACKEND)
            return NULL;
        fail_msg("%s", err.text);
    }
    return b;
}

// A program that somebody waits for.
struct wait {
    pthread_mutex_t lock;
    pthread_cond_t over;
    int done, status;
};

static void count_done(void *arg, int status) {
    struct wait *w = arg;
    pthread_mutex_lock(&w->lock);
    w->done++;
    w->status = status;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

void harness_run(struct backend *b, struct backend_pool *pool, const struct backend_op *ops,
                 uint32_t n) {
    const struct backend_ops *vt = harness_ops();
    struct backend_stream *stream = NULL;
    struct err err = {0};
    struct backend_program program = {pool, ops, n};
    struct wait w = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    if (vt->stream_open(b, &stream, &err) != 0 ||
        vt->submit(b, stream, &program, count_done, &w, &err) != 0)
        fail_msg("%s", err.text);
    pthread_mutex_lock(&w.lock);
    while (w.done == 0)
        pthread_cond_wait(&w.over, &w.lock);
    pthread_mutex_unlock(&w.lock);
    const char *why = vt->failure != NULL ? vt->failure(b) : NULL;
    if (w.status != 0)
        fail_msg("%s", why != NULL ? why : "the program failed");
    vt->stream_close(b, stream);
    assert_int_equal(w.done, 1);
}

void harness_pool_read(struct backend *b, const struct backend_pool *pool, uint32_t layer, void *to,
                       size_t bytes) {
    struct err err = {0};
    if (harness_ops()->pool_read(b, pool, layer, 0, to, bytes, &err) != 0)
        fail_msg("%s", err.text);
}

void harness_pool_write(struct backend *b, struct backend_pool *pool, uint32_t layer,
                        const void *from, size_t bytes) {
    struct err err = {0};
    if (harness_ops()->pool_write(b, pool, layer, 0, from, bytes, &err) != 0)
        fail_msg("%s", err.text);
}

struct backend_mem *harness_alloc(struct backend *b, size_t bytes) {
    struct backend_mem *mem = NULL;
    struct err err = {0};
    if (harness_ops()->mem_alloc(b, bytes, BACKEND_HOST, BACKEND_FD, &mem, &err) != 0)
        fail_msg("%s", err.text);
    return mem;
}

// ---------------------------------------------------------------------------------------------
// Data

static double rounded(kvpool_dtype dtype, double x) {
    char element[4];
    dtype_store(dtype, element, 0, (float)x);
    return (double)dtype_load(dtype, element, 0);
}

// What a page stands for where x was appended with a scale.
static double kept(const struct attention_case *c, double x, float scale) {
    if (c->kv_dtype != KVPOOL_FP8_E4M3)
        return x;
    return rounded(KVPOOL_FP8_E4M3, (double)((float)x / scale)) * (double)scale;
}

// Scales that reach all of e4m3: denormals at one end, saturation at the other.
static void make_scales(struct attention_data *d, uint64_t *state) {
    const struct attention_case *c = &d->c;
    for (uint32_t value = 0; value < 2; value++)
        for (uint32_t h = 0; h < c->kv_heads; h++) {
            float scale = value == 0 ? c->k_scale : c->v_scale;
            if (c->head_scales)
                scale = (float)exp2((double)random_below(state, 1000) / 100 - 8);
            d->scales[value * c->kv_heads + h] = scale == 0 ? 1 : scale;
        }
}

struct attention_case attention_shorter(const struct attention_case *c, uint32_t limit) {
    struct attention_case ret = *c;
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t kv_len = c->kv_len[i];
        ret.kv_len[i] = kv_len > limit ? limit + kv_len % 64 : kv_len;
        if (c->q_len[i] <= kv_len && c->q_len[i] > ret.kv_len[i])
            ret.q_len[i] = ret.kv_len[i];
    }
    return ret;
}

struct attention_data *attention_data_new(const struct attention_case *c) {
    struct attention_data *d = must_alloc(1, sizeof *d);
    d->c = *c;
    if (d->c.sm_scale == 0)
        d->c.sm_scale = 1.0f / sqrtf((float)c->head_dim);
    uint32_t longest = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        d->tokens_q += c->q_len[i];
        d->tokens_kv += c->kv_len[i];
        longest = c->kv_len[i] > longest ? c->kv_len[i] : longest;
    }
    size_t key = (size_t)c->kv_heads * c->head_dim;
    size_t query = (size_t)c->qo_heads * c->head_dim;
    d->k = must_alloc(d->tokens_kv * key, sizeof(double));
    d->v = must_alloc(d->tokens_kv * key, sizeof(double));
    d->k_kept = must_alloc(d->tokens_kv * key, sizeof(double));
    d->v_kept = must_alloc(d->tokens_kv * key, sizeof(double));
    d->scales = must_alloc((size_t)2 * c->kv_heads, sizeof(float));
    d->sinks = must_alloc(c->qo_heads, sizeof(float));
    d->q = must_alloc(d->tokens_q * query, sizeof(double));
    d->out = must_alloc(d->tokens_q * query, sizeof(double));
    d->lse = must_alloc((size_t)d->tokens_q * c->qo_heads, sizeof(double));
    double *scratch = must_alloc(longest, sizeof(double));
    double *sinks = must_alloc(c->qo_heads, sizeof(double));
    uint64_t state = c->seed;
    for (size_t i = 0; i < d->tokens_kv * key; i++) {
        d->k[i] = rounded(c->dtype, random_normal(&state));
        d->v[i] = c->ones ? 1 : rounded(c->dtype, random_normal(&state));
    }
    for (size_t i = 0; i < d->tokens_q * query; i++)
        d->q[i] = rounded(c->dtype, random_normal(&state));
    for (size_t i = 0; c->codes && i < d->tokens_kv * key; i++)
        d->v[i] = (double)dtype_e4m3_to_fp32((uint8_t)i);
    make_scales(d, &state);
    for (size_t i = 0; i < d->tokens_kv * key; i++) {
        size_t head = i / c->head_dim % c->kv_heads;
        d->k_kept[i] = kept(c, d->k[i], d->scales[head]);
        d->v_kept[i] = kept(c, d->v[i], d->scales[c->kv_heads + head]);
    }
    for (uint32_t h = 0; h < c->qo_heads; h++)
        sinks[h] = (double)(d->sinks[h] = (float)(3 * random_normal(&state)));
    size_t tq = 0;
    size_t tkv = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        for (uint32_t t = c->nan_from; c->nan_from != 0 && t < c->kv_len[i]; t++)
            for (size_t e = 0; e < key; e++)
                d->k[(tkv + t) * key + e] = d->v[(tkv + t) * key + e] =
                    d->k_kept[(tkv + t) * key + e] = d->v_kept[(tkv + t) * key + e] = NAN;
        struct reference_attention a = {
            .qo_heads = c->qo_heads,
            .kv_heads = c->kv_heads,
            .head_dim = c->head_dim,
            .q_len = c->q_len[i],
            .kv_len = c->kv_len[i],
            .causal = c->causal,
            .window_left = c->window_left,
            .sm_scale = (double)d->c.sm_scale,
            .soft_cap = (double)c->soft_cap,
            .q = d->q + tq * query,
            .k = d->k_kept + tkv * key,
            .v = d->v_kept + tkv * key,
            .sinks = c->sinks ? sinks : NULL,
            .out = d->out + tq * query,
            .lse = d->lse + tq * c->qo_heads,
            .scratch = scratch,
        };
        reference_attend(&a);
        tq += c->q_len[i];
        tkv += c->kv_len[i];
    }
    free(scratch);
    free(sinks);
    return d;
}

void attention_data_free(struct attention_data *d) {
    free(d->k);
    free(d->v);
    free(d->k_kept);
    free(d->v_kept);
    free(d->scales);
    free(d->sinks);
    free(d->q);
    free(d->out);
    free(d->lse);
    free(d);
}

// ---------------------------------------------------------------------------------------------
// Run

// A tensor inside a buffer, with gaps between heads and tokens, and bytes before and after it.
struct placed {
    struct backend_tensor t;
    size_t end; // byte after it
};
static struct placed place(struct backend_mem *mem, size_t *cursor, uint32_t tokens, uint32_t heads,
                           uint32_t dims, size_t element, size_t before, uint32_t extra_heads,
                           uint32_t extra_dims) {
    struct placed p;
    p.t.mem = mem;
    p.t.offset = *cursor + before;
    p.t.head_stride = dims + extra_dims;
    p.t.token_stride = (heads + extra_heads) * p.t.head_stride;
    p.end = p.t.offset + (size_t)tokens * p.t.token_stride * element;
    *cursor = (p.end + 256) / 64 * 64;
    return p;
}

static size_t element_at(const struct backend_tensor *t, size_t element, uint32_t token,
                         uint32_t head, uint32_t dim) {
    return t->offset + (token * t->token_stride + head * t->head_stride + dim) * element;
}

static void put(unsigned char *host, const struct backend_tensor *t, kvpool_dtype dtype,
                uint32_t tokens, uint32_t heads, uint32_t dims, const double *from) {
    size_t element = kv_dtype_size(dtype);
    for (uint32_t i = 0; i < tokens; i++)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t d = 0; d < dims; d++, from++) {
                unsigned char *at = host + element_at(t, element, i, h, d);
                if (isnan(*from))
                    memset(at, 0xff, element);
                else
                    dtype_store(dtype, at, 0, (float)*from);
            }
}

// Takes the elements of a tensor out and writes the guard over them, so that afterwards the whole
// buffer must be guard.
static unsigned char *take(unsigned char *host, const struct backend_tensor *t, size_t element,
                           uint32_t tokens, uint32_t heads, uint32_t dims, unsigned char *to) {
    for (uint32_t i = 0; i < tokens; i++)
        for (uint32_t h = 0; h < heads; h++, to += dims * element) {
            unsigned char *at = host + element_at(t, element, i, h, 0);
            memcpy(to, at, dims * element);
            memset(at, GUARD, dims * element);
        }
    return to;
}

static void poison_pool(struct backend *b, struct backend_pool *pool, const struct kv_geometry *g,
                        uint32_t row, uint32_t num_pages) {
    uint32_t tokens = num_pages * g->page_size;
    uint32_t *ids = must_alloc(num_pages, sizeof *ids);
    for (uint32_t i = 0; i < num_pages; i++)
        ids[i] = i;
    size_t bytes = kv_dtype_size(g->dtype) * g->kv_heads * g->head_dim;
    struct backend_mem *mem = harness_alloc(b, bytes);
    memset(harness_ops()->mem_host(mem), 0xff, bytes);
    // Every token reads the same NaN row: a token stride of 0.
    struct backend_tensor nan = {mem, 0, 0, g->head_dim};
    uint32_t indptr[2] = {0, tokens};
    struct backend_op ops[1 + 2] = {{
        .kind = BACKEND_TABLE,
        .u.table = {row, 0, num_pages, ids},
    }};
    for (uint32_t layer = 0; layer < 2; layer++)
        ops[1 + layer] = (struct backend_op){
            .kind = BACKEND_APPEND,
            .u.append = {layer, {1, &row, &tokens, indptr}, {0}, nan, nan},
        };
    harness_run(b, pool, ops, 3);
    harness_ops()->mem_free(b, mem);
    free(ids);
}

// The op as parts of at most c->cut queries of one sequence, in `ret`; how many. pieces: their
// lengths and query ranges.
static uint32_t cut_attention(const struct attention_case *c, uint32_t first,
                              const struct backend_attend_op *op, struct backend_op *ret,
                              uint32_t (*pieces)[3]) {
    const struct backend_attend_op whole = *op;
    size_t element = kv_dtype_size(c->dtype);
    uint32_t count = 0;
    for (uint32_t i = 0; i < whole.batch.n; i++) {
        uint32_t q_len = c->q_len[first + i];
        for (uint32_t from = 0; from < q_len; from += c->cut, count++) {
            uint32_t queries = q_len - from < c->cut ? q_len - from : c->cut;
            uint32_t token = whole.batch.qo_indptr[i] + from;
            uint32_t *piece = pieces[count];
            piece[0] = c->kv_len[first + i] - (q_len - from - queries);
            piece[1] = 0;
            piece[2] = queries;
            struct backend_attend_op part = whole;
            part.batch = (struct backend_batch){1, &whole.batch.rows[i], &piece[0], &piece[1]};
            part.part = queries < q_len;
            part.q.offset += token * part.q.token_stride * element;
            part.out.offset += token * part.out.token_stride * element;
            part.lse.offset += token * part.lse.token_stride * sizeof(float);
            ret[count] = (struct backend_op){.kind = BACKEND_ATTEND, .u.attend = part};
        }
    }
    return count;
}

unsigned char *attention_run(struct backend *b, const struct attention_data *d, uint32_t first,
                             uint32_t n, uint64_t page_seed, size_t *ret_bytes) {
    const struct backend_ops *vt = harness_ops();
    const struct attention_case *c = &d->c;
    size_t element = kv_dtype_size(c->dtype);
    struct kv_geometry g = {2, c->kv_heads, c->head_dim, c->page_size, c->dtype, c->kv_dtype};
    const uint32_t layer = 1;
    uint64_t state = page_seed;
    struct err err = {0};

    // The batch; sequences before `first` are skipped in the data.
    uint32_t skip_q = 0;
    uint32_t skip_kv = 0;
    for (uint32_t i = 0; i < first; i++) {
        skip_q += c->q_len[i];
        skip_kv += c->kv_len[i];
    }
    uint32_t rows[CASE_MAX_SEQUENCES];
    uint32_t q_indptr[CASE_MAX_SEQUENCES + 1] = {0};
    uint32_t kv_indptr[CASE_MAX_SEQUENCES + 1] = {0};
    uint32_t pages = 0;
    uint32_t row_entries = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t own = (c->kv_len[first + i] + c->page_size - 1) / c->page_size;
        rows[i] = 2 * i + 1;
        q_indptr[i + 1] = q_indptr[i] + c->q_len[first + i];
        kv_indptr[i + 1] = kv_indptr[i] + c->kv_len[first + i];
        pages += own;
        row_entries = own > row_entries ? own : row_entries;
    }
    uint32_t num_pages = 3 * pages + 2;
    row_entries = num_pages > row_entries ? num_pages : row_entries;

    struct backend_pool *pool = NULL;
    if (vt->pool_open(b, &g, BACKEND_FD, num_pages, 2 * n + 2, row_entries, &pool, &err) != 0)
        fail_msg("%s", err.text);
    poison_pool(b, pool, &g, 0, num_pages);

    // Tensors: k, v, q in one buffer, out and lse in another that is all guard.
    size_t in_bytes = 0;
    size_t out_bytes = 0;
    // Some cases have tensors of which only the elements are aligned.
    size_t before = c->seed % 4 == 3 ? 3 * sizeof(float) : 64;
    uint32_t eh = c->extra_heads;
    uint32_t ed = c->extra_dims;
    uint32_t nq = q_indptr[n];
    uint32_t nkv = kv_indptr[n];
    struct placed k =
        place(NULL, &in_bytes, nkv, c->kv_heads, c->head_dim, element, before, eh, ed);
    struct placed v =
        place(NULL, &in_bytes, nkv, c->kv_heads, c->head_dim, element, before, eh, ed);
    struct placed q = place(NULL, &in_bytes, nq, c->qo_heads, c->head_dim, element, before, eh, ed);
    struct placed scales = place(NULL, &in_bytes, 2, c->kv_heads, 1, sizeof(float), 64, 0, 0);
    struct placed sinks = place(NULL, &in_bytes, 1, c->qo_heads, 1, sizeof(float), 64, 0, 0);
    struct placed out =
        place(NULL, &out_bytes, nq, c->qo_heads, c->head_dim, element, before, eh, ed);
    struct placed lse = place(NULL, &out_bytes, nq, c->qo_heads, 1, sizeof(float), before, eh, ed);
    struct backend_mem *in = harness_alloc(b, in_bytes);
    struct backend_mem *result = harness_alloc(b, out_bytes);
    unsigned char *in_host = vt->mem_host(in);
    unsigned char *out_host = vt->mem_host(result);
    k.t.mem = v.t.mem = q.t.mem = in;
    out.t.mem = result;
    lse.t.mem = c->no_lse ? NULL : result;
    memset(in_host, 0xff, in_bytes); // NaN between the elements
    memset(out_host, GUARD, out_bytes);
    size_t key = (size_t)c->kv_heads * c->head_dim;
    size_t query = (size_t)c->qo_heads * c->head_dim;
    put(in_host, &k.t, c->dtype, nkv, c->kv_heads, c->head_dim, d->k + skip_kv * key);
    put(in_host, &v.t, c->dtype, nkv, c->kv_heads, c->head_dim, d->v + skip_kv * key);
    put(in_host, &q.t, c->dtype, nq, c->qo_heads, c->head_dim, d->q + skip_q * query);
    memcpy(in_host + scales.t.offset, d->scales, (size_t)2 * c->kv_heads * sizeof(float));
    memcpy(in_host + sinks.t.offset, d->sinks, c->qo_heads * sizeof(float));
    struct backend_scales kv_scales = {.k = c->k_scale, .v = c->v_scale};
    if (c->head_scales)
        kv_scales.heads = (struct backend_tensor){in, scales.t.offset, c->kv_heads, 1};
    if (c->sinks)
        sinks.t.mem = in;

    // Tables: random pages, then what must never be used.
    uint32_t *order = must_alloc(num_pages, sizeof *order);
    uint32_t *tables = must_alloc((size_t)n * row_entries, sizeof *tables);
    random_permutation(&state, order, num_pages);
    struct backend_op *ops = must_alloc(n + 2 + (c->cut != 0 ? nq : 0), sizeof *ops);
    uint32_t used = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *ids = tables + (size_t)i * row_entries;
        uint32_t own = (c->kv_len[first + i] + c->page_size - 1) / c->page_size;
        for (uint32_t p = 0; p < row_entries; p++)
            ids[p] = p < own ? order[used++] : UNUSED_PAGE;
        ops[i] = (struct backend_op){
            .kind = BACKEND_TABLE,
            .u.table = {rows[i], 0, row_entries, ids},
        };
    }
    ops[n] = (struct backend_op){
        .kind = BACKEND_APPEND,
        .u.append = {layer, {n, rows, c->kv_len + first, kv_indptr}, kv_scales, k.t, v.t},
    };
    ops[n + 1] = (struct backend_op){
        .kind = BACKEND_ATTEND,
        .u.attend =
            {
                .layer = layer,
                .qo_heads = c->qo_heads,
                .causal = c->causal,
                .sm_scale = c->sm_scale,
                .soft_cap = c->soft_cap,
                .window_left = c->window_left,
                .batch = {n, rows, c->kv_len + first, q_indptr},
                .batch_invariant = c->batch_invariant,
                .scales = kv_scales,
                .sinks = sinks.t,
                .q = q.t,
                .out = out.t,
                .lse = lse.t,
            },
    };
    uint32_t(*pieces)[3] = must_alloc((size_t)nq + 1, sizeof *pieces);
    uint32_t count = n + 2;
    if (c->cut != 0)
        count = n + 1 + cut_attention(c, first, &ops[n + 1].u.attend, &ops[n + 1], pieces);
    harness_run(b, pool, ops, count);
    free(pieces);
    free(ops);

    size_t bytes = (size_t)nq * c->qo_heads * (c->head_dim * element + sizeof(float));
    unsigned char *ret = must_alloc(bytes, 1);
    unsigned char *end = take(out_host, &out.t, element, nq, c->qo_heads, c->head_dim, ret);
    if (!c->no_lse)
        take(out_host, &lse.t, sizeof(float), nq, c->qo_heads, 1, end);
    for (size_t i = 0; i < out_bytes; i++)
        if (out_host[i] != GUARD)
            fail_msg("%s: byte %zu outside of out and lse was written", c->name, i);
    free(order);
    free(tables);
    vt->mem_free(b, in);
    vt->mem_free(b, result);
    vt->pool_close(b, pool);
    *ret_bytes = bytes;
    return ret;
}

// ---------------------------------------------------------------------------------------------
// Compare

// What a case is, for the message of a failure.
static const char *describe(const struct attention_case *c) {
    static char text[1024];
    int at =
        snprintf(text, sizeof text,
                 "%s: dtype %d in %d, scales %g %g %d, sinks %d, heads %u/%u, head_dim %u, "
                 "page %u, causal %d, window %d, cap %g, seed %" PRIu64 ", q/kv",
                 c->name, (int)c->dtype, (int)c->kv_dtype, (double)c->k_scale, (double)c->v_scale,
                 (int)c->head_scales, (int)c->sinks, c->qo_heads, c->kv_heads, c->head_dim,
                 c->page_size, (int)c->causal, c->window_left, (double)c->soft_cap, c->seed);
    for (uint32_t i = 0; i < c->n && at < (int)sizeof text - 32; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, " %u/%u", c->q_len[i], c->kv_len[i]);
    return text;
}

static bool near_enough(double x, double expected, double absolute, double relative) {
    if (isnan(expected))
        return isnan(x);
    if (isinf(expected))
        return x == expected;
    return fabs(x - expected) <= absolute + relative * fabs(expected);
}

// Elements that are what a buffer holds before a run.
static size_t count_unwritten(const unsigned char *elements, size_t count, size_t bytes) {
    size_t ret = 0;
    for (size_t i = 0; i < count; i++) {
        size_t guards = 0;
        for (size_t k = 0; k < bytes; k++)
            guards += elements[i * bytes + k] == GUARD;
        ret += guards == bytes;
    }
    return ret;
}

void attention_compare(const struct attention_data *d, const unsigned char *result,
                       const char *what) {
    const struct attention_case *c = &d->c;
    // Absolute for N(0,1) inputs; relative: half a unit in the last place of the result, twice.
    double absolute = c->dtype == KVPOOL_BF16 ? 1e-2 : c->dtype == KVPOOL_FP16 ? 2e-3 : 2e-5;
    double relative = c->dtype == KVPOOL_BF16 ? 0x1p-8 : c->dtype == KVPOOL_FP16 ? 0x1p-11 : 0;
    size_t count = (size_t)d->tokens_q * c->qo_heads * c->head_dim;
    double total = 0;
    double magnitude = 0;
    size_t finite = 0;
    for (size_t i = 0; i < count; i++) {
        double x = (double)dtype_load(c->dtype, result, i);
        if (!near_enough(x, d->out[i], absolute, relative)) {
            size_t unwritten = count_unwritten(result, count, kv_dtype_size(c->dtype));
            fail_msg("%s (%s): out[token %zu][head %zu][%zu] = %.9g, expected %.9g; %zu of %zu "
                     "elements were not written",
                     describe(c), what, i / c->head_dim / c->qo_heads,
                     i / c->head_dim % c->qo_heads, i % c->head_dim, x, d->out[i], unwritten,
                     count);
        }
        if (isfinite(d->out[i])) {
            total += fabs(x - d->out[i]);
            magnitude += fabs(d->out[i]);
            finite++;
        }
    }
    double limit = (double)finite * absolute / 10 + magnitude * relative / 4;
    if (total > limit)
        fail_msg("%s (%s): mean error %.3g over %zu elements, at most %.3g expected", describe(c),
                 what, total / (double)finite, finite, limit / (double)finite);
    if (c->no_lse)
        return;
    const unsigned char *lse = result + count * kv_dtype_size(c->dtype);
    for (size_t i = 0; i < (size_t)d->tokens_q * c->qo_heads; i++) {
        double x = (double)dtype_load(KVPOOL_FP32, lse, i);
        if (!near_enough(x, d->lse[i], 1e-4, 1e-6))
            fail_msg("%s (%s): lse[token %zu][head %zu] = %.9g, expected %.9g", describe(c), what,
                     i / c->qo_heads, i % c->qo_heads, x, d->lse[i]);
    }
}

// Whether it is the turn of this case, where tests are to be short.
static bool my_turn(const struct attention_case *c) {
    static const char *name;
    static unsigned count;
    if (name == NULL || strcmp(c->name, name) != 0)
        count = 0;
    name = c->name; // names are literals
    return count++ % 12 == 0;
}

void attention_check(struct backend *const *backends, const struct attention_case *whole) {
    struct attention_case shorter = attention_shorter(whole, 400);
    const struct attention_case *c = harness_short() ? &shorter : whole;
    if (harness_short() && !my_turn(c))
        return;
    struct attention_data *d = attention_data_new(c);
    for (uint32_t i = 0; i < HARNESS_MAX_ISAS; i++) {
        if (backends[i] == NULL)
            continue;
        size_t bytes;
        unsigned char *result = attention_run(backends[i], d, 0, c->n, c->seed + i, &bytes);
        attention_compare(d, result, harness_isas[i]);
        free(result);
    }
    attention_data_free(d);
}
