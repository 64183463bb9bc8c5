// SPDX-License-Identifier: Apache-2.0
// run.c: see run.h.
#include "kernels/cuda/run.h"

#include "kernels/cuda/upload.h"

struct run {
    const struct cuda_device *device;
    struct backend_stream *s;
    struct backend_pool *pool;
    struct cuda_upload upload;
    bool chained; // the last thing on the stream is a kernel of this program
};

enum part { ALL, FEW, MANY };

static int launched(struct run *r, const char *what, int e, struct err *err) {
    if (e != 0)
        return cuda_error(err, KVPOOL_E_BACKEND, what, (cudaError_t)e);
    r->chained = true;
    return 0;
}

static int flush(struct run *r, struct err *err) {
    bool any;
    int status = cuda_upload_flush(&r->upload, &any, err);
    if (any) {
        r->chained = true;
        r->pool->generation++;
    }
    return status;
}

static int run_table(struct run *r, const struct backend_table_op *op, struct err *err) {
    struct backend_pool *pool = r->pool;
    if (op->count == 0)
        return 0;
    if (pool->marks[op->row] == pool->generation) { // invariant 1 of upload.h
        int status = flush(r, err);
        if (status != 0)
            return status;
    }
    pool->marks[op->row] = pool->generation;
    return cuda_upload_add(&r->upload,
                           pool->table + (size_t)op->row * pool->row_entries + op->first, op->ids,
                           op->count, err);
}

static int run_copy(struct run *r, const struct backend_copy_op *op, struct err *err) {
    uint32_t *pairs = r->s->pairs.address;
    uint32_t words[2 * CUDA_STREAM_PAIRS];
    for (uint32_t first = 0; first < op->count; first += CUDA_STREAM_PAIRS) {
        uint32_t n = op->count - first;
        n = n < CUDA_STREAM_PAIRS ? n : CUDA_STREAM_PAIRS;
        for (uint32_t i = 0; i < n; i++) {
            words[(size_t)2 * i] = op->src[first + i];
            words[(size_t)2 * i + 1] = op->dst[first + i];
        }
        int status = cuda_upload_add(&r->upload, pairs, words, 2 * n, err);
        if (status == 0)
            status = flush(r, err);
        if (status == 0)
            status =
                launched(r, "launching a copy of pages",
                         cuda_copy_pages(r->device, &r->pool->planes, pairs, n, r->s->stream), err);
        if (status != 0)
            return status;
    }
    return 0;
}

// --- append and attention -----------------------------------------------------------------------

static struct cuda_tensor tensor(const struct backend_tensor *t) {
    if (t->mem == NULL)
        return (struct cuda_tensor){0};
    return (struct cuda_tensor){.data = cuda_mem_address(t->mem) + t->offset,
                                .token_stride = (int64_t)t->token_stride,
                                .head_stride = (int64_t)t->head_stride};
}

static struct cuda_kv kv_of(const struct run *r, uint32_t layer,
                            const struct backend_scales *scales) {
    struct cuda_kv kv = cuda_pool_kv(r->pool, layer);
    if (kv.dtype != CUDA_E4M3)
        return kv;
    kv.k_scale = scales->k != 0 ? scales->k : 1;
    kv.v_scale = scales->v != 0 ? scales->v : 1;
    if (scales->heads.mem != NULL) {
        kv.k_scales = (const float *)tensor(&scales->heads).data;
        kv.v_scales = kv.k_scales + kv.kv_heads;
    }
    return kv;
}

// The batch on the device, uploaded if the stream has not got it; then all that is gathered is
// flushed. NULL: *ret_status says why: NOMEM, BACKEND.
static const struct cuda_batch_slot *get_batch(struct run *r, const struct backend_batch *batch,
                                               int *ret_status, struct err *err) {
    bool fresh;
    struct cuda_batch_slot *slot = cuda_stream_batch(r->s, batch, &fresh);
    if (slot == NULL) {
        *ret_status =
            err_set(err, KVPOOL_E_NOMEM, "no memory for a batch of %u sequences", batch->n);
        return NULL;
    }
    int status = 0;
    if (fresh)
        status = cuda_upload_add(&r->upload, slot->device.address, slot->host, slot->words, err);
    if (status == 0)
        status = flush(r, err);
    *ret_status = status;
    return status == 0 ? slot : NULL;
}

static struct cuda_batch part_of(const struct run *r, const struct cuda_batch_slot *slot,
                                 enum part part) {
    const uint32_t *words = slot->device.address;
    const struct cuda_part *p = part == ALL ? &slot->all : part == FEW ? &slot->few : &slot->many;
    return (struct cuda_batch){
        .n = p->n,
        .nnz = p->nnz,
        .max_q_len = p->max_q_len,
        .row_entries = r->pool->row_entries,
        .index = part == ALL ? NULL : words + p->index,
        .table = r->pool->table,
        .rows = words,
        .kv_len = words + slot->kv_len,
        .qo_indptr = words + slot->indptr,
    };
}

// At most n of the batch's sequences, from `first` on; nnz and max_q_len are bounds.
static struct cuda_batch sequences_of(const struct cuda_batch *batch, uint32_t first, uint32_t n) {
    struct cuda_batch ret = *batch;
    ret.n = batch->n - first < n ? batch->n - first : n;
    if (ret.index != NULL) {
        ret.index += first;
    } else {
        ret.rows += first;
        ret.kv_len += first;
        ret.qo_indptr += first;
    }
    return ret;
}

static bool has_tokens(const struct backend_batch *batch) {
    return batch->n > 0 && batch->qo_indptr[batch->n] > 0;
}

static int run_append(struct run *r, const struct backend_append_op *op, struct err *err) {
    int status = 0;
    if (!has_tokens(&op->batch))
        return 0;
    const struct cuda_batch_slot *slot = get_batch(r, &op->batch, &status, err);
    if (slot == NULL) // an append cannot be left out
        return status == KVPOOL_E_NOMEM ? KVPOOL_E_BACKEND : status;
    const struct cuda_append a = {
        .kv = kv_of(r, op->layer, &op->scales),
        .batch = part_of(r, slot, ALL),
        .k = tensor(&op->k),
        .v = tensor(&op->v),
        .dtype = (uint32_t)r->pool->geometry.dtype,
        .after_previous = r->chained,
    };
    return launched(r, "launching an append", cuda_append(r->device, &a, r->s->stream), err);
}

// What makes a kernel with a plan.
static const struct planned {
    bool (*takes)(const struct cuda_attention *a);
    uint32_t (*max_sequences)(const struct cuda_attention *a); // of a launch; NULL: any number
    size_t (*plan_bytes)(const struct cuda_device *d, const struct cuda_attention *a);
    size_t (*workspace_bytes)(const struct cuda_device *d, const struct cuda_attention *a);
    int (*plan)(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
    int (*run)(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
    const char *planning, *running;
} kernels[CUDA_PLANNED_KERNELS] = {
    [CUDA_DECODE] = {cuda_decode_takes, cuda_decode_max_sequences, cuda_decode_plan_bytes,
                     cuda_decode_workspace_bytes, cuda_decode_plan, cuda_decode,
                     "planning a decode", "launching a decode"},
    [CUDA_PREFILL] = {cuda_prefill_takes, NULL, cuda_prefill_plan_bytes,
                      cuda_prefill_workspace_bytes, cuda_prefill_plan, cuda_prefill,
                      "planning a prefill", "launching a prefill"},
};

static int run_generic(struct run *r, struct cuda_attention *a, struct err *err) {
    a->after_previous = r->chained;
    return launched(r, "launching attention", cuda_generic(r->device, a, r->s->stream), err);
}

// Differs from what it was whenever a row of the batch has been written since.
static uint64_t last_update(const struct backend_pool *pool, const struct cuda_batch_slot *slot) {
    uint64_t last = 0;
    for (uint32_t i = 0; i < slot->n; i++) {
        uint64_t mark = pool->marks[slot->host[i]];
        last = mark > last ? mark : last;
    }
    return last;
}

static struct cuda_plan_key key_of(const struct run *r, const struct cuda_batch_slot *slot,
                                   enum part part, enum cuda_kernel kernel, uint32_t first,
                                   uint32_t each, const struct cuda_attention *a) {
    return (struct cuda_plan_key){
        .pool = r->pool->id,
        .update = last_update(r->pool, slot),
        .kernel = (uint32_t)kernel,
        .part = (uint32_t)part,
        .first = first,
        .each = each,
        .qo_heads = a->qo_heads,
        .kv_heads = a->kv.kv_heads,
        .head_dim = a->kv.head_dim,
        .page_shift = a->kv.page_shift,
        .dtype = a->dtype,
        .kv_dtype = a->kv.dtype,
        .causal = a->causal,
        .batch_invariant = a->batch_invariant,
        .window_left = a->window_left,
        .lse = a->lse.data != NULL,
        .sinks = a->sinks != NULL,
        .soft_cap = a->soft_cap != 0,
    };
}

// The workspace of a launch of a->batch. False: no memory.
static bool get_workspace(struct run *r, enum cuda_kernel kernel, struct cuda_attention *a) {
    bool zeroing;
    a->workspace_bytes = kernels[kernel].workspace_bytes(r->device, a);
    if (a->workspace_bytes == 0)
        return true;
    a->workspace = cuda_stream_workspace(r->s, kernel, a->workspace_bytes, &zeroing);
    if (a->workspace == NULL)
        return false;
    a->workspace_bytes = r->s->workspaces[kernel].bytes;
    r->chained = r->chained && !zeroing;
    return true;
}

static int run_without_memory(struct run *r, const char *what, struct cuda_attention *a,
                              struct err *err) {
    if (a->batch_invariant) // another kernel's bits are others
        return err_set(err, KVPOOL_E_NOMEM, "%s, batch-invariant: no memory on the GPU", what);
    return run_generic(r, a, err);
}

// One launch of `each` sequences, or those that are left; `first`: where they begin in the part.
static int run_launch(struct run *r, const struct cuda_batch_slot *slot, enum part part,
                      enum cuda_kernel kernel, uint32_t first, uint32_t each,
                      struct cuda_attention *a, struct err *err) {
    const struct planned *k = &kernels[kernel];
    const struct cuda_plan_key key = key_of(r, slot, part, kernel, first, each, a);
    size_t plan_bytes = k->plan_bytes(r->device, a);
    if (plan_bytes > 0) {
        bool fresh;
        struct cuda_plan *plan = cuda_stream_plan(r->s, slot, &key, plan_bytes, &fresh);
        if (plan == NULL)
            return run_without_memory(r, k->planning, a, err);
        a->plan = plan->device.address;
        a->after_previous = r->chained;
        int status = fresh ? launched(r, k->planning, k->plan(r->device, a, r->s->stream), err) : 0;
        if (status != 0)
            return status;
    }
    a->after_previous = r->chained;
    return launched(r, k->running, k->run(r->device, a, r->s->stream), err);
}

// Launches over consecutive sequences: one, unless that would be more than the kernel takes or there is memory
// for, which may be so of what is batch-invariant alone. They follow one another on the stream, in one workspace.
static int run_planned(struct run *r, const struct cuda_batch_slot *slot, enum part part,
                       enum cuda_kernel kernel, struct cuda_attention *a, struct err *err) {
    const struct planned *k = &kernels[kernel];
    const struct cuda_batch all = a->batch;
    uint32_t most = k->max_sequences != NULL ? k->max_sequences(a) : all.n;
    uint32_t launches = most < all.n ? (all.n + most - 1) / most : 1;
    a->batch.n = (all.n + launches - 1) / launches;
    while (!get_workspace(r, kernel, a)) {
        if (!a->batch_invariant || a->batch.n == 1)
            return run_without_memory(r, k->running, a, err);
        a->batch.n = (a->batch.n + 1) / 2;
    }
    const uint32_t each = a->batch.n;
    int status = 0;
    for (uint32_t first = 0; first < all.n && status == 0; first += each) {
        a->batch = sequences_of(&all, first, each);
        status = run_launch(r, slot, part, kernel, first, each, a, err);
    }
    return status;
}

// Kernels find 16 bytes of a row at a time where they can; where they cannot, only generic does.
static bool rows_aligned(const struct cuda_tensor *t, size_t element) {
    uint64_t any = (uint64_t)(uintptr_t)t->data | (uint64_t)t->token_stride * element |
                   (uint64_t)t->head_stride * element;
    return any % 16 == 0;
}

static int run_part(struct run *r, const struct cuda_batch_slot *slot, enum part part, bool decode,
                    struct cuda_attention *a, struct err *err) {
    size_t element = kv_dtype_size((kvpool_dtype)a->dtype);
    bool aligned = rows_aligned(&a->q, element) && rows_aligned(&a->out, element);
    a->batch = part_of(r, slot, part);
    if (decode && aligned && kernels[CUDA_DECODE].takes(a))
        return run_planned(r, slot, part, CUDA_DECODE, a, err);
    if (aligned && kernels[CUDA_PREFILL].takes(a))
        return run_planned(r, slot, part, CUDA_PREFILL, a, err);
    return run_generic(r, a, err);
}

static int run_attend(struct run *r, const struct backend_attend_op *op, struct err *err) {
    int status = 0;
    if (!has_tokens(&op->batch))
        return 0;
    const struct cuda_batch_slot *slot = get_batch(r, &op->batch, &status, err);
    if (slot == NULL)
        return status;
    struct cuda_attention a = {
        .kv = kv_of(r, op->layer, &op->scales),
        .q = tensor(&op->q),
        .out = tensor(&op->out),
        .lse = tensor(&op->lse),
        .sinks = (const float *)tensor(&op->sinks).data,
        .dtype = (uint32_t)r->pool->geometry.dtype,
        .qo_heads = op->qo_heads,
        .sm_scale = op->sm_scale,
        .soft_cap = op->soft_cap,
        .window_left = op->window_left,
        .causal = op->causal,
        .batch_invariant = op->batch_invariant || op->part,
    };
    if (op->part || slot->few.n == 0)
        return run_part(r, slot, ALL, false, &a, err);
    if (slot->many.n == 0)
        return run_part(r, slot, ALL, true, &a, err);
    struct cuda_attention few = a;
    status = run_part(r, slot, FEW, true, &few, err);
    if (status == 0)
        status = run_part(r, slot, MANY, false, &a, err);
    return status;
}

static int run_op(struct run *r, const struct backend_op *op, struct err *err) {
    switch (op->kind) {
    case BACKEND_TABLE:
        return run_table(r, &op->u.table, err);
    case BACKEND_COPY:
        return run_copy(r, &op->u.copy, err);
    case BACKEND_APPEND:
        return run_append(r, &op->u.append, err);
    case BACKEND_ATTEND:
        return run_attend(r, &op->u.attend, err);
    }
    return 0;
}

int cuda_run(const struct cuda_device *device, struct cuda_flights *flights,
             struct backend_stream *s, struct cuda_flight *flight,
             const struct backend_program *program, struct err *err) {
    struct run r = {
        .device = device,
        .s = s,
        .pool = program->pool,
        .upload = {.device = device, .flights = flights, .flight = flight, .stream = s->stream},
    };
    int status = 0;
    for (uint32_t i = 0; i < program->n && status == 0; i++) {
        status = run_op(&r, &program->ops[i], err);
        if (status == KVPOOL_E_NOMEM && program->ops[i].kind == BACKEND_ATTEND) { // left out
            flight->status = status;
            status = 0;
        }
    }
    return status == 0 ? flush(&r, err) : status;
}
