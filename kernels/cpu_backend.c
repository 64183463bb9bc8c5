// SPDX-License-Identifier: Apache-2.0
// cpu_backend.c: the backend that needs no device: memory is memfd, a stream is the caller's thread
// and the backend's compute threads beside it. See backend.h.
//
// Invariants
//  1. submit runs the whole program and calls `done` before it returns: the order of the streams is
//     the order of the calls.
//  2. A program does not fail: what can be refused is refused when memory or pools are made.
// Threads: those of backend.h. The compute threads live as long as the backend.
#include "kernels/backend.h"

#include "kernels/cpu_append.h"
#include "kernels/cpu_attention.h"
#include "kernels/cpu_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct backend {
    struct cpu_threads *threads;
    struct cpu_attention *attention;
    struct cpu_ledger ledger;
    char description[64];
};
struct backend_mem {
    struct cpu_block block;
};
struct backend_pool {
    struct cpu_cache cache;
    struct cpu_block block;
    size_t table_bytes;
};
struct backend_stream {
    struct backend *backend;
};

static int cpu_open(const struct backend_config *config, struct backend **ret, struct err *err) {
    int status;
    struct backend *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for the backend");
    b->threads = cpu_threads_new(config->threads);
    if (b->threads == NULL) {
        status = err_set(err, KVPOOL_E_BACKEND, "cannot start the compute threads");
        goto free_backend;
    }
    status = cpu_attention_open(b->threads, &b->attention, err);
    if (status != 0)
        goto free_threads;
    uint32_t threads = cpu_threads_count(b->threads);
    snprintf(b->description, sizeof b->description, "cpu: %u thread%s, %s", threads,
             threads == 1 ? "" : "s", cpu_attention_isa(b->attention));
    *ret = b;
    return 0;

free_threads:
    cpu_threads_free(b->threads);
free_backend:
    free(b);
    return status;
}

static void cpu_close(struct backend *b) {
    cpu_attention_close(b->attention);
    cpu_threads_free(b->threads);
    free(b);
}

static const char *cpu_describe(const struct backend *b) {
    return b->description;
}

static uint32_t cpu_lanes(const struct backend *b) {
    return cpu_threads_count(b->threads);
}

// ---------------------------------------------------------------------------------------------
// Memory

static int cpu_mem_alloc(struct backend *b, uint64_t bytes, enum backend_place place,
                         enum backend_export how, struct backend_mem **ret, struct err *err) {
    (void)place;
    if (how != BACKEND_FD)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "the cpu backend exports memory as file descriptors only");
    struct backend_mem *mem = malloc(sizeof *mem);
    if (mem == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region of %" PRIu64 " bytes", bytes);
    int status = cpu_block_open(&b->ledger, "kvpool-region", bytes, &mem->block, err);
    if (status != 0) {
        free(mem);
        return status;
    }
    *ret = mem;
    return 0;
}

static void cpu_mem_free(struct backend *b, struct backend_mem *mem) {
    (void)b;
    cpu_block_close(&mem->block);
    free(mem);
}

static uint64_t cpu_mem_bytes(const struct backend_mem *mem) {
    return mem->block.bytes;
}
static void cpu_mem_handle(const struct backend_mem *mem, struct backend_handle *ret) {
    *ret = (struct backend_handle){
        .place = BACKEND_HOST, .how = BACKEND_FD, .fd = mem->block.fd, .bytes = mem->block.bytes};
}
static void *cpu_mem_host(const struct backend_mem *mem) {
    return mem->block.base;
}

// ---------------------------------------------------------------------------------------------
// Pools

static int cpu_pool_open(struct backend *b, const struct kv_geometry *geometry,
                         enum backend_export how, uint32_t num_pages, uint32_t rows,
                         uint32_t row_entries, struct backend_pool **ret, struct err *err) {
    int status;
    if (how != BACKEND_FD)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "the cpu backend exports pools as file descriptors only");
    size_t page_bytes = kv_page_bytes(geometry);
    size_t plane_bytes;
    size_t bytes;
    if (__builtin_mul_overflow(page_bytes, num_pages, &plane_bytes) ||
        __builtin_mul_overflow(plane_bytes, geometry->layers, &bytes))
        return err_set(err, KVPOOL_E_NOMEM,
                       "the pool wants %u layers x %u pages x %zu bytes: more than "
                       "any machine has",
                       geometry->layers, num_pages, page_bytes);
    struct backend_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a pool");
    status = cpu_block_open(&b->ledger, "kvpool-pool", bytes, &pool->block, err);
    if (status != 0)
        goto free_pool;
    pool->table_bytes = (size_t)rows * row_entries * sizeof(uint32_t);
    void *table = mmap(NULL, pool->table_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table == MAP_FAILED) {
        status = err_set(err, KVPOOL_E_NOMEM, "no address space for a page table of %zu bytes",
                         pool->table_bytes);
        goto close_block;
    }
    pool->cache = (struct cpu_cache){
        .geometry = *geometry,
        .base = pool->block.base,
        .plane_stride = plane_bytes,
        .page_bytes = page_bytes,
        .slab_bytes = page_bytes / 2 / geometry->kv_heads,
        .row_bytes = geometry->head_dim * kv_dtype_size(kv_plane_dtype(geometry)),
        .page_shift = (uint32_t)__builtin_ctz(geometry->page_size),
        .num_pages = num_pages,
        .row_entries = row_entries,
        .table = table,
    };
    *ret = pool;
    return 0;

close_block:
    cpu_block_close(&pool->block);
free_pool:
    free(pool);
    return status;
}

static void cpu_pool_close(struct backend *b, struct backend_pool *pool) {
    (void)b;
    munmap(pool->cache.table, pool->table_bytes);
    cpu_block_close(&pool->block);
    free(pool);
}

static uint64_t cpu_pool_bytes(const struct backend_pool *pool) {
    return pool->cache.plane_stride * pool->cache.geometry.layers;
}
static void cpu_pool_handle(const struct backend_pool *pool, struct backend_handle *ret) {
    *ret = (struct backend_handle){
        .place = BACKEND_HOST, .how = BACKEND_FD, .fd = pool->block.fd, .bytes = pool->block.bytes};
}
static void *cpu_pool_plane(const struct backend_pool *pool, uint32_t layer) {
    return cpu_cache_plane(&pool->cache, layer);
}
static int cpu_pool_read(struct backend *b, const struct backend_pool *pool, uint32_t layer,
                         uint64_t offset, void *to, uint64_t bytes, struct err *err) {
    (void)b;
    (void)err;
    memcpy(to, (const char *)cpu_cache_plane(&pool->cache, layer) + offset, bytes);
    return 0;
}
static int cpu_pool_write(struct backend *b, struct backend_pool *pool, uint32_t layer,
                          uint64_t offset, const void *from, uint64_t bytes, struct err *err) {
    (void)b;
    (void)err;
    memcpy((char *)cpu_cache_plane(&pool->cache, layer) + offset, from, bytes);
    return 0;
}

// ---------------------------------------------------------------------------------------------
// Programs

static int cpu_stream_open(struct backend *b, struct backend_stream **ret, struct err *err) {
    struct backend_stream *s = malloc(sizeof *s);
    if (s == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a stream");
    s->backend = b;
    *ret = s;
    return 0;
}

static void cpu_stream_close(struct backend *b, struct backend_stream *s) {
    (void)b;
    free(s);
}

static char *address(const struct backend_tensor *t) {
    return t->mem == NULL ? NULL : t->mem->block.base + t->offset;
}

static void run_attend(struct backend *b, const struct cpu_cache *cache,
                       const struct backend_attend_op *op) {
    const struct cpu_attention_tensors tensors = {
        .q = address(&op->q),
        .out = address(&op->out),
        .lse = address(&op->lse),
        .sinks = address(&op->sinks),
        .scales = address(&op->scales.heads),
    };
    cpu_attention_run(b->attention, cache, op, &tensors);
}

static void run_op(struct backend *b, struct backend_pool *pool, const struct backend_op *op) {
    struct cpu_cache *cache = &pool->cache;
    switch (op->kind) {
    case BACKEND_TABLE:
        memcpy(cache->table + (size_t)op->u.table.row * cache->row_entries + op->u.table.first,
               op->u.table.ids, op->u.table.count * sizeof(uint32_t));
        break;
    case BACKEND_COPY:
        cpu_copy_pages(cache, b->threads, &op->u.copy);
        break;
    case BACKEND_APPEND:
        cpu_append(cache, b->threads, &op->u.append, address(&op->u.append.k),
                   address(&op->u.append.v), address(&op->u.append.scales.heads));
        break;
    case BACKEND_ATTEND:
        run_attend(b, cache, &op->u.attend);
        break;
    }
}

static int cpu_submit(struct backend *b, struct backend_stream *s,
                      const struct backend_program *program, backend_done_fn done, void *arg,
                      struct err *err) {
    (void)s;
    (void)err;
    for (uint32_t i = 0; i < program->n; i++)
        run_op(b, program->pool, &program->ops[i]);
    done(arg, 0);
    return 0;
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .api_version = BACKEND_API_VERSION,
    .window = 1,
    .row_block = CPU_ATTENTION_ROW_BLOCK,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .lanes = cpu_lanes,
    .mem_alloc = cpu_mem_alloc,
    .mem_free = cpu_mem_free,
    .mem_bytes = cpu_mem_bytes,
    .mem_handle = cpu_mem_handle,
    .mem_host = cpu_mem_host,
    .pool_open = cpu_pool_open,
    .pool_close = cpu_pool_close,
    .pool_bytes = cpu_pool_bytes,
    .pool_handle = cpu_pool_handle,
    .pool_plane = cpu_pool_plane,
    .pool_read = cpu_pool_read,
    .pool_write = cpu_pool_write,
    .stream_open = cpu_stream_open,
    .stream_close = cpu_stream_close,
    .submit = cpu_submit,
};
