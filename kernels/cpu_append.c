// SPDX-License-Identifier: Apache-2.0
// cpu_append.c: see cpu_append.h.
#include "kernels/cpu_append.h"

#include "kernels/dtype.h"

#include <string.h>

enum {
    BLOCK_TOKENS = 64,       // tokens of one work item
    ALONE_BYTES = 256 << 10, // less than this is not worth waking a thread
};

struct append_job {
    const struct cpu_cache *cache;
    const struct backend_append_op *op;
    const char *k, *v, *scales;
};

// n elements of `dtype` over `scale`, as e4m3.
static void narrow(kvpool_dtype dtype, const char *from, float scale, size_t n, uint8_t *to) {
    if (dtype == KVPOOL_FP32)
        for (size_t i = 0; i < n; i++)
            to[i] = dtype_fp32_to_e4m3(dtype_load(KVPOOL_FP32, from, i) / scale);
    else if (dtype == KVPOOL_FP16)
        for (size_t i = 0; i < n; i++)
            to[i] = dtype_fp32_to_e4m3(dtype_load(KVPOOL_FP16, from, i) / scale);
    else
        for (size_t i = 0; i < n; i++)
            to[i] = dtype_fp32_to_e4m3(dtype_load(KVPOOL_BF16, from, i) / scale);
}

// One head's K or V of one token.
static void append_row(const struct append_job *job, uint32_t value, uint32_t head,
                       const char *from, char *to) {
    const struct cpu_cache *c = job->cache;
    if (cpu_cache_is_fp8(c))
        narrow(c->geometry.dtype, from,
               cpu_cache_scale(c, &job->op->scales, job->scales, value, head), c->geometry.head_dim,
               (uint8_t *)to);
    else
        memcpy(to, from, c->row_bytes);
}

static void append_token(const struct append_job *job, uint32_t sequence, uint32_t token) {
    const struct cpu_cache *c = job->cache;
    const struct backend_append_op *op = job->op;
    const struct backend_batch *batch = &op->batch;
    size_t element = kv_dtype_size(c->geometry.dtype);
    uint32_t position = batch->kv_len[sequence] - (batch->qo_indptr[sequence + 1] - token);
    uint32_t page = cpu_cache_row(c, batch->rows[sequence])[position >> c->page_shift];
    uint32_t slot = position & (c->geometry.page_size - 1);
    char *to = cpu_cache_plane(c, op->layer) + page * c->page_bytes + slot * c->row_bytes;
    const char *k = job->k + token * op->k.token_stride * element;
    const char *v = job->v + token * op->v.token_stride * element;
    size_t v_offset = c->geometry.kv_heads * c->slab_bytes;
    for (uint32_t h = 0; h < c->geometry.kv_heads; h++, to += c->slab_bytes) {
        append_row(job, 0, h, k + h * op->k.head_stride * element, to);
        append_row(job, 1, h, v + h * op->v.head_stride * element, to + v_offset);
    }
}

static void append_block(void *arg, uint32_t index, uint32_t worker) {
    (void)worker;
    const struct append_job *job = arg;
    const struct backend_batch *batch = &job->op->batch;
    uint32_t end = batch->qo_indptr[batch->n];
    uint32_t token = index * BLOCK_TOKENS;
    if (end - token > BLOCK_TOKENS)
        end = token + BLOCK_TOKENS;
    // The sequence of the first token: the last one that begins at or before it.
    uint32_t low = 0;
    uint32_t high = batch->n;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (batch->qo_indptr[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    for (; token < end; token++) {
        while (batch->qo_indptr[low + 1] <= token)
            low++;
        append_token(job, low, token);
    }
}

void cpu_append(const struct cpu_cache *cache, struct cpu_threads *threads,
                const struct backend_append_op *op, const char *k, const char *v,
                const char *scales) {
    struct append_job job = {cache, op, k, v, scales};
    uint32_t tokens = op->batch.qo_indptr[op->batch.n];
    uint32_t blocks = tokens / BLOCK_TOKENS + (tokens % BLOCK_TOKENS != 0);
    if (2 * cache->row_bytes * cache->geometry.kv_heads * tokens < ALONE_BYTES)
        for (uint32_t i = 0; i < blocks; i++)
            append_block(&job, i, 0);
    else
        cpu_threads_run(threads, blocks, append_block, &job);
}

struct copy_job {
    const struct cpu_cache *cache;
    const struct backend_copy_op *op;
};

static void copy_pages_of_layer(void *arg, uint32_t layer, uint32_t worker) {
    (void)worker;
    const struct copy_job *job = arg;
    const struct cpu_cache *c = job->cache;
    char *plane = cpu_cache_plane(c, layer);
    for (uint32_t i = 0; i < job->op->count; i++)
        memcpy(plane + job->op->dst[i] * c->page_bytes, plane + job->op->src[i] * c->page_bytes,
               c->page_bytes);
}

void cpu_copy_pages(const struct cpu_cache *cache, struct cpu_threads *threads,
                    const struct backend_copy_op *op) {
    struct copy_job job = {cache, op};
    uint32_t layers = cache->geometry.layers;
    if (cache->page_bytes * op->count * layers < ALONE_BYTES)
        for (uint32_t i = 0; i < layers; i++)
            copy_pages_of_layer(&job, i, 0);
    else
        cpu_threads_run(threads, layers, copy_pages_of_layer, &job);
}
