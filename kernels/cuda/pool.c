// SPDX-License-Identifier: Apache-2.0
// pool.c: see pool.h.
#include "kernels/cuda/pool.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

static int check_geometry(const struct kv_geometry *g, struct err *err) {
    if (g->dtype != KVPOOL_FP16 && g->dtype != KVPOOL_BF16 && g->dtype != KVPOOL_FP32)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "dtype %d: the cuda backend has fp16, bf16 and fp32", (int)g->dtype);
    kvpool_dtype kv = kv_plane_dtype(g);
    if (kv != g->dtype && kv != KVPOOL_FP8_E4M3)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "kv_dtype %d: pages have the pool's dtype or fp8 e4m3", (int)kv);
    if (g->head_dim == 0 || g->head_dim % 8 != 0)
        return err_set(err, KVPOOL_E_UNSUPPORTED, "head_dim %u: it must be a multiple of 8",
                       g->head_dim);
    return 0;
}

int cuda_pool_open(struct cuda_memory *m, const struct kv_geometry *geometry,
                   enum backend_export how, uint32_t num_pages, uint32_t rows, uint32_t row_entries,
                   struct backend_pool **ret, struct err *err) {
    static atomic_uint_fast64_t opened;
    size_t page_bytes = kv_page_bytes(geometry);
    uint64_t plane_bytes;
    uint64_t bytes;
    void *table = NULL;
    int status = check_geometry(geometry, err);
    if (status != 0)
        return status;
    if (__builtin_mul_overflow((uint64_t)page_bytes, num_pages, &plane_bytes) ||
        __builtin_mul_overflow(plane_bytes, geometry->layers, &bytes))
        return err_set(err, KVPOOL_E_NOMEM,
                       "the pool wants %u layers x %u pages x %zu bytes: more than any GPU has",
                       geometry->layers, num_pages, page_bytes);
    struct backend_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a pool");
    pool->marks = calloc(rows, sizeof *pool->marks);
    if (pool->marks == NULL) {
        status = err_set(err, KVPOOL_E_NOMEM, "no memory for a pool of %u rows", rows);
        goto free_pool;
    }
    uint64_t table_bytes = (uint64_t)rows * row_entries * sizeof(uint32_t);
    status = cuda_block_open(m, "the pool", bytes, CUDA_POOL_SPARE, how, &pool->block, err);
    if (status != 0)
        goto free_marks;
    status = cuda_private_open(m, "the pool's page table", table_bytes, &table, err);
    if (status != 0) {
        cuda_pool_close(m, pool);
        return status;
    }
    pool->geometry = *geometry;
    pool->planes = (struct cuda_planes){.base = pool->block.address,
                                        .plane_bytes = plane_bytes,
                                        .page_bytes = page_bytes,
                                        .layers = geometry->layers};
    pool->table = table;
    pool->table_bytes = table_bytes;
    pool->id = atomic_fetch_add(&opened, 1) + 1;
    pool->row_entries = row_entries;
    pool->generation = 1;
    *ret = pool;
    return 0;

free_marks:
    free(pool->marks);
free_pool:
    free(pool);
    return status;
}

static void release(void *arg, struct cuda_garbage *garbage) {
    struct backend_pool *pool = (struct backend_pool *)garbage;
    cudaFree(pool->table);
    cuda_block_release(arg, &pool->block);
    free(pool->marks);
    free(pool);
}

void cuda_pool_close(struct cuda_memory *m, struct backend_pool *pool) {
    pool->garbage = (struct cuda_garbage){.release = release,
                                          .place = BACKEND_DEVICE,
                                          .bytes = pool->block.bytes + pool->table_bytes};
    cuda_reaper_give(m->reaper, &pool->garbage);
}

char *cuda_pool_at(const struct backend_pool *pool, uint32_t layer, uint64_t offset) {
    return (char *)pool->planes.base + layer * pool->planes.plane_bytes + offset;
}

struct cuda_kv cuda_pool_kv(const struct backend_pool *pool, uint32_t layer) {
    const struct kv_geometry *g = &pool->geometry;
    int64_t head = (int64_t)g->page_size * g->head_dim;
    return (struct cuda_kv){
        .k = cuda_pool_at(pool, layer, 0),
        .page_stride = 2 * head * g->kv_heads,
        .value_stride = head * g->kv_heads,
        .head_stride = head,
        .token_stride = g->head_dim,
        .kv_heads = g->kv_heads,
        .head_dim = g->head_dim,
        .page_shift = (uint32_t)__builtin_ctz(g->page_size),
        .dtype = (uint32_t)kv_plane_dtype(g),
        .k_scale = 1,
        .v_scale = 1,
    };
}
