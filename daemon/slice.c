// SPDX-License-Identifier: Apache-2.0
// slice.c: see slice.h.
#include "daemon/slice.h"

#include <stddef.h>

#define APPEND_TOKENS 64u  // an append is cut at multiples of these
#define BLOCKS_PER_LANE 2u // of a piece at least, so that no lane waits long for another
#define LSE_BYTES ((uint64_t)4)

// Where pieces go; ops NULL: they are only counted.
struct sink {
    struct backend_op *ops;
    uint32_t *words;
    struct slice_need used;
};

// What a batch of queries or tokens is cut by.
struct cut {
    const struct slicer *slicer;
    const struct backend_op *op;
    const struct backend_batch *batch;
    uint32_t step; // queries of a piece: a multiple of this; 0: sequences stay whole
};

static uint64_t estimate(const struct slicer *s, const struct backend_op *op) {
    struct cost cost = {0};
    cost_add_op(s->geometry, op, &cost);
    return cost_estimate_ns(&s->rates, &cost);
}

static uint32_t gcd(uint32_t a, uint32_t b) {
    while (b != 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static uint32_t q_len(const struct backend_batch *batch, uint32_t i) {
    return batch->qo_indptr[i + 1] - batch->qo_indptr[i];
}

// Time of queries a..b of sequence i, without the overhead.
static uint64_t queries_ns(const struct cut *cut, uint32_t i, uint32_t a, uint32_t b) {
    const struct slicer *s = cut->slicer;
    struct cost cost = {0};
    const struct cost none = {0};
    if (cut->op->kind == BACKEND_ATTEND)
        cost_add_queries(s->geometry, &cut->op->u.attend, i, a, b, &cost);
    else
        cost.units[COST_APPEND] =
            (uint64_t)(b - a) * (kv_page_bytes(s->geometry) / s->geometry->page_size);
    return cost_estimate_ns(&s->rates, &cost) - cost_estimate_ns(&s->rates, &none);
}

static uint32_t step_of(const struct slicer *s, const struct backend_op *op) {
    if (op->kind == BACKEND_APPEND)
        return APPEND_TOKENS;
    if (!op->u.attend.causal || s->row_block == 0)
        return 0;
    uint32_t heads = op->u.attend.qo_heads / s->geometry->kv_heads;
    uint32_t blocks = BLOCKS_PER_LANE * s->lanes / s->geometry->kv_heads;
    return s->row_block / gcd(s->row_block, heads) * (blocks > 1 ? blocks : 1);
}

static void move(struct backend_tensor *t, uint64_t tokens, uint64_t element) {
    if (t->mem != NULL)
        t->offset += tokens * t->token_stride * element;
}

static struct backend_op *put(struct sink *sink, const struct backend_op *op) {
    struct backend_op *at = sink->ops != NULL ? &sink->ops[sink->used.ops] : NULL;
    sink->used.ops++;
    if (at != NULL)
        *at = *op;
    return at;
}

// A piece with the given batch, whose tensors begin at `token`.
static void put_piece(struct sink *sink, const struct cut *cut, const struct backend_batch *batch,
                      uint32_t token, bool part) {
    uint64_t element = kv_dtype_size(cut->slicer->geometry->dtype);
    struct backend_op *op = put(sink, cut->op);
    if (op == NULL)
        return;
    if (op->kind == BACKEND_APPEND) {
        op->u.append.batch = *batch;
        move(&op->u.append.k, token, element);
        move(&op->u.append.v, token, element);
    } else {
        op->u.attend.batch = *batch;
        op->u.attend.part = part;
        move(&op->u.attend.q, token, element);
        move(&op->u.attend.out, token, element);
        move(&op->u.attend.lse, token, LSE_BYTES);
    }
}

// Sequences first..end, whole.
static void put_sequences(struct sink *sink, const struct cut *cut, uint32_t first, uint32_t end) {
    const struct backend_batch *batch = cut->batch;
    if (first == end)
        return;
    uint32_t *indptr = sink->words != NULL ? sink->words + sink->used.words : NULL;
    sink->used.words += end - first + 1;
    for (uint32_t i = first; indptr != NULL && i <= end; i++)
        indptr[i - first] = batch->qo_indptr[i] - batch->qo_indptr[first];
    const struct backend_batch piece = {.n = end - first,
                                        .rows = batch->rows + first,
                                        .kv_len = batch->kv_len + first,
                                        .qo_indptr = indptr};
    put_piece(sink, cut, &piece, batch->qo_indptr[first], false);
}

static void put_queries(struct sink *sink, const struct cut *cut, uint32_t i, uint32_t a,
                        uint32_t b) {
    const struct backend_batch *batch = cut->batch;
    uint32_t *words = sink->words != NULL ? sink->words + sink->used.words : NULL;
    sink->used.words += 3;
    if (words != NULL) {
        words[0] = 0;
        words[1] = b - a;
        words[2] = batch->kv_len[i] - (q_len(batch, i) - b);
    }
    const struct backend_batch piece = {.n = 1,
                                        .rows = batch->rows + i,
                                        .kv_len = words != NULL ? words + 2 : NULL,
                                        .qo_indptr = words};
    put_piece(sink, cut, &piece, batch->qo_indptr[i] + a, true);
}

// Sequence i by its queries: as many steps a piece as the budget allows, at least one.
static void cut_sequence(struct sink *sink, const struct cut *cut, uint32_t i) {
    uint32_t end = q_len(cut->batch, i);
    for (uint32_t a = 0, b; a < end; a = b) {
        b = end - a > cut->step ? a + cut->step : end;
        while (end - b > cut->step &&
               queries_ns(cut, i, a, b + cut->step) <= cut->slicer->budget_ns)
            b += cut->step;
        if (end - b <= cut->step / 2) // a rest that is not worth a piece
            b = end;
        put_queries(sink, cut, i, a, b);
    }
}

static void cut_batch(struct sink *sink, const struct cut *cut) {
    const struct backend_batch *batch = cut->batch;
    uint64_t budget = cut->slicer->budget_ns, run = 0;
    uint32_t first = 0;
    for (uint32_t i = 0; i < batch->n; i++) {
        uint32_t len = q_len(batch, i);
        uint64_t ns = queries_ns(cut, i, 0, len);
        bool cuttable = cut->step != 0 && len > cut->step && batch->kv_len[i] >= len;
        if (run + ns > budget) {
            put_sequences(sink, cut, first, i);
            first = i;
            run = 0;
        }
        if (ns > budget && cuttable) {
            cut_sequence(sink, cut, i);
            first = i + 1;
        } else {
            run += ns;
        }
    }
    put_sequences(sink, cut, first, batch->n);
}

static void cut_copy(struct sink *sink, const struct slicer *s, const struct backend_op *op) {
    struct backend_op one = *op;
    one.u.copy.count = 1;
    uint64_t most = s->budget_ns / estimate(s, &one);
    uint32_t pages = most < 1 ? 1 : most > op->u.copy.count ? op->u.copy.count : (uint32_t)most;
    for (uint32_t first = 0; first < op->u.copy.count; first += pages) {
        struct backend_op piece = *op;
        uint32_t left = op->u.copy.count - first;
        piece.u.copy.count = left < pages ? left : pages;
        piece.u.copy.src += first;
        piece.u.copy.dst += first;
        put(sink, &piece);
    }
}

static void cut(struct sink *sink, const struct slicer *s, const struct backend_op *op) {
    if (op->kind == BACKEND_TABLE || estimate(s, op) <= s->budget_ns) {
        put(sink, op);
    } else if (op->kind == BACKEND_COPY) {
        cut_copy(sink, s, op);
    } else {
        const struct cut how = {.slicer = s,
                                .op = op,
                                .batch = op->kind == BACKEND_APPEND ? &op->u.append.batch
                                                                    : &op->u.attend.batch,
                                .step = step_of(s, op)};
        cut_batch(sink, &how);
    }
}

void slice_need(const struct slicer *s, const struct backend_op *op, struct slice_need *add) {
    struct sink sink = {.used = *add};
    cut(&sink, s, op);
    *add = sink.used;
}

uint32_t slice_cut(const struct slicer *s, const struct backend_op *op, struct backend_op *ret_ops,
                   uint32_t **words) {
    struct sink sink = {.ops = ret_ops, .words = *words};
    cut(&sink, s, op);
    *words += sink.used.words;
    return (uint32_t)sink.used.ops;
}

uint32_t slice_group(const struct slicer *s, const struct backend_op *ops, uint32_t n,
                     struct slice *ret) {
    uint32_t slices = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct cost cost = {0};
        cost_add_op(s->geometry, &ops[i], &cost);
        struct slice *last = slices > 0 ? &ret[slices - 1] : NULL;
        if (last != NULL) {
            struct cost both = last->cost;
            cost_add_op(s->geometry, &ops[i], &both);
            uint64_t ns = cost_estimate_ns(&s->rates, &both);
            if (ns <= s->budget_ns) {
                last->cost = both;
                last->estimate_ns = ns;
                last->program.n++;
                continue;
            }
        }
        ret[slices++] = (struct slice){
            .program = {.pool = s->pool, .ops = &ops[i], .n = 1},
            .cost = cost,
            .estimate_ns = cost_estimate_ns(&s->rates, &cost),
        };
    }
    return slices;
}
