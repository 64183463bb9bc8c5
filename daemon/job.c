// SPDX-License-Identifier: Apache-2.0
// job.c: see job.h.
#include "daemon/job.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_OPS ((size_t)64)
#define FIRST_IDS ((size_t)1024)
#define KEEP_OPS ((size_t)1024) // larger buffers are not kept
#define KEEP_IDS ((size_t)64 * 1024)

struct jobs {
    struct job *free[JOB_KINDS];
    uint32_t num_free[JOB_KINDS];
    uint32_t made, max, max_batch;
};

static void job_free(struct job *job) {
    free(job->ids);
    free(job->slices);
    free(job->ops);
    free(job->qo_indptr);
    free(job->kv_len);
    free(job->rows);
    free(job->items);
    free(job);
}

static struct job *job_make(enum job_kind kind, uint32_t max_batch) {
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return NULL;
    job->kind = kind;
    job->ops_cap = FIRST_OPS;
    job->ids_cap = FIRST_IDS;
    job->ops = calloc(job->ops_cap, sizeof *job->ops);
    job->slices = calloc(job->ops_cap, sizeof *job->slices);
    job->ids = calloc(job->ids_cap, sizeof *job->ids);
    bool made = job->ops != NULL && job->slices != NULL && job->ids != NULL;
    if (kind == JOB_ATTENTION) {
        job->items = calloc(max_batch, sizeof *job->items);
        job->rows = calloc(max_batch, sizeof *job->rows);
        job->kv_len = calloc(max_batch, sizeof *job->kv_len);
        job->qo_indptr = calloc((size_t)max_batch + 1, sizeof *job->qo_indptr);
        made = made && job->items != NULL && job->rows != NULL && job->kv_len != NULL &&
               job->qo_indptr != NULL;
    }
    if (made)
        return job;
    job_free(job);
    return NULL;
}

int jobs_open(const uint32_t ready[JOB_KINDS], uint32_t max, uint32_t max_batch, struct jobs **ret,
              struct err *err) {
    struct jobs *js = calloc(1, sizeof *js);
    if (js == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "jobs: no memory");
    js->max = max;
    js->max_batch = max_batch;
    for (int kind = 0; kind < JOB_KINDS; kind++) {
        for (uint32_t i = 0; i < ready[kind]; i++) {
            struct job *job = job_make((enum job_kind)kind, max_batch);
            if (job == NULL) {
                jobs_close(js);
                return err_set(err, KVPOOL_E_NOMEM, "jobs: no memory");
            }
            js->made++;
            job_put(js, job);
        }
    }
    *ret = js;
    return 0;
}

void jobs_close(struct jobs *js) {
    if (js == NULL)
        return;
    for (int kind = 0; kind < JOB_KINDS; kind++) {
        while (js->free[kind] != NULL) {
            struct job *job = js->free[kind];
            js->free[kind] = job->next_free;
            job_free(job);
        }
    }
    free(js);
}

int job_get(struct jobs *js, enum job_kind kind, struct job **ret, struct err *err) {
    struct job *job = js->free[kind];
    if (job == NULL) {
        if (js->made >= js->max)
            return err_set(err, KVPOOL_E_AGAIN, "the daemon has %u jobs in flight, its limit",
                           js->max);
        job = job_make(kind, js->max_batch);
        if (job == NULL)
            return err_set(err, KVPOOL_E_NOMEM, "job: no memory");
        js->made++;
    } else {
        js->free[kind] = job->next_free;
        js->num_free[kind]--;
    }
    struct job blank = {.kind = kind,
                        .items = job->items,
                        .rows = job->rows,
                        .kv_len = job->kv_len,
                        .qo_indptr = job->qo_indptr,
                        .ops = job->ops,
                        .slices = job->slices,
                        .ids = job->ids,
                        .ops_cap = job->ops_cap,
                        .ids_cap = job->ids_cap};
    *job = blank;
    *ret = job;
    return 0;
}

uint32_t jobs_left(const struct jobs *js, enum job_kind kind) {
    return js->num_free[kind] + (js->max - js->made);
}

void job_put(struct jobs *js, struct job *job) {
    if (job->ids_cap > KEEP_IDS) {
        free(job->ids);
        job->ids = NULL;
        job->ids_cap = 0;
    }
    if (job->ops_cap > KEEP_OPS) {
        free(job->ops);
        free(job->slices);
        job->ops = NULL;
        job->slices = NULL;
        job->ops_cap = 0;
    }
    job->next_free = js->free[job->kind];
    js->free[job->kind] = job;
    js->num_free[job->kind]++;
}

void job_set_batch(struct job *job, const struct core_batch *batch, struct backend_batch *ret) {
    memcpy(job->rows, batch->rows, batch->n * sizeof *job->rows);
    memcpy(job->kv_len, batch->kv_len, batch->n * sizeof *job->kv_len);
    memcpy(job->qo_indptr, batch->qo_indptr, ((size_t)batch->n + 1) * sizeof *job->qo_indptr);
    *ret = (struct backend_batch){
        .n = batch->n, .rows = job->rows, .kv_len = job->kv_len, .qo_indptr = job->qo_indptr};
}

// Room for so many ops, as many slices, and words. What they held is gone.
static int grow(struct job *job, size_t ops, size_t words, const char *what, struct err *err) {
    if (ops > job->ops_cap) {
        ops += ops / 2;
        struct backend_op *grown = reallocarray(job->ops, ops, sizeof *grown);
        if (grown == NULL)
            goto no_memory;
        job->ops = grown;
        struct slice *slices = reallocarray(job->slices, ops, sizeof *slices);
        if (slices == NULL)
            goto no_memory;
        job->slices = slices;
        job->ops_cap = ops;
    }
    if (words > job->ids_cap) {
        words += words / 2;
        uint32_t *grown = reallocarray(job->ids, words, sizeof *grown);
        if (grown == NULL)
            goto no_memory;
        job->ids = grown;
        job->ids_cap = words;
    }
    return 0;
no_memory:
    return err_set(err, KVPOOL_E_NOMEM, "%s: no memory", what);
}

static void group(struct job *job, const struct slicer *slicer, uint32_t n) {
    job->engine.program = (struct backend_program){.pool = slicer->pool, .ops = job->ops, .n = n};
    job->engine.slices = job->slices;
    job->engine.num_slices = slice_group(slicer, job->ops, n, job->slices);
}

int job_set_ops(struct job *job, const struct slicer *slicer, const struct backend_op *ops,
                uint32_t n, struct err *err) {
    struct slice_need need = {0};
    for (uint32_t i = 0; i < n; i++)
        slice_need(slicer, &ops[i], &need);
    int status = grow(job, need.ops, need.words, "slices of a batch", err);
    if (status != 0)
        return status;
    uint32_t *words = job->ids, num_ops = 0;
    for (uint32_t i = 0; i < n; i++)
        num_ops += slice_cut(slicer, &ops[i], job->ops + num_ops, &words);
    group(job, slicer, num_ops);
    return 0;
}

int job_reserve(struct job *job, size_t n, size_t num_ids, struct err *err) {
    // A table op and a page copied for each sequence, the copies one by one at worst; and the
    // copies' sources and destinations.
    return grow(job, 2 * n + 1, num_ids + 2 * n, "effects", err);
}

int job_set_effects(struct job *job, const struct core *core, const struct core_effects *effects,
                    struct err *err) {
    size_t num_ids = 0;
    for (uint32_t i = 0; i < effects->num_deltas; i++)
        num_ids += effects->deltas[i].count;
    size_t n =
        effects->num_deltas > effects->num_copies ? effects->num_deltas : effects->num_copies;
    int status = job_reserve(job, n, num_ids, err);
    if (status != 0)
        return status;
    uint32_t *at = job->ids, num_ops = 0;
    for (uint32_t i = 0; i < effects->num_deltas; i++) {
        const struct core_delta *delta = &effects->deltas[i];
        if (delta->count == 0)
            continue;
        memcpy(at, core_row(core, effects->pool, delta->row) + delta->first,
               delta->count * sizeof *at);
        job->ops[num_ops++] = (struct backend_op){
            .kind = BACKEND_TABLE,
            .u.table = {
                .row = delta->row, .first = delta->first, .count = delta->count, .ids = at}};
        at += delta->count;
    }
    if (effects->num_copies > 0) {
        uint32_t *src = at, *dst = at + effects->num_copies;
        for (uint32_t i = 0; i < effects->num_copies; i++) {
            src[i] = effects->copies[i].src;
            dst[i] = effects->copies[i].dst;
        }
        job->ops[num_ops++] = (struct backend_op){
            .kind = BACKEND_COPY, .u.copy = {.count = effects->num_copies, .src = src, .dst = dst}};
    }
    job->engine.program.ops = job->ops;
    job->engine.program.n = num_ops;
    return 0;
}

void job_cut_effects(struct job *job, const struct slicer *slicer) {
    uint32_t n = job->engine.program.n;
    if (n > 0 && job->ops[n - 1].kind == BACKEND_COPY) { // the copies come last
        struct backend_op whole = job->ops[n - 1];
        uint32_t *words = job->ids; // copies take none
        n = n - 1 + slice_cut(slicer, &whole, job->ops + n - 1, &words);
    }
    group(job, slicer, n);
}
