// SPDX-License-Identifier: Apache-2.0
// backend.h: the one interface between the daemon's engine and the kernels (cpu, cuda).
//
// A backend owns memory (regions, the planes of a pool), a device-resident copy of each pool's page
// tables, and streams. Work reaches it as *programs*: short lists of ops, executed in order on one
// stream. Programs of one stream run in the order of submission; those of different streams may
// run side by side.
//
//   plane of layer l:  [num_pages][2][kv_heads][page_size][head_dim]   (HND, K then V)
//   page table:        [rows][row_entries] of page ids (u32), updated by BACKEND_TABLE ops
//
// Invariants
//  1. Arguments are checked by the daemon before they come here: handles are live, tensors are
//  inside
//     their memory, layers and rows in range. Page ids are NOT dereferenced past a sequence's
//     kv_len: table entries there may hold anything.
//  2. Positions >= kv_len inside a page hold garbage (another sequence's data, NaN): they never
//     reach a result. A NaN or an infinity among a sequence's own keys and values reaches the
//     results of all its queries on cuda, those that do not see it included (a probability of 0
//     times V); on cpu only of those that see it.
//  3. `done` is called exactly once for every accepted program, from any thread, possibly before
//     submit returns. A program refused by submit is not `done`. A program of which an ATTEND was left
//     out (KVPOOL_E_NOMEM) has not failed.
//  4. Equal inputs give equal bits (fixed order of every reduction), whatever the number of
//  threads.
//  5. Arrays a program points to are copied or used only until `done`.
//  6. mem_free, pool_close and stream_close do not wait for the device: what has to, the backend leaves to
//     a thread of its own. The caller has nothing of the object from then on; its memory may come back
//     later, and meanwhile what would need it, or wait with it, is refused with AGAIN. mem_close says when
//     it is back. close waits until all is.
// Threads: open/close/mem_*/pool_*/stream_* and submit are called by one thread at a time (the
// engine thread, or the loop thread while no program is running on the object); `done` comes from
// anywhere.
#ifndef KVPOOL_KERNELS_BACKEND_H
#define KVPOOL_KERNELS_BACKEND_H

#include "proto/err.h"

#define BACKEND_API_VERSION 3u

struct backend;        // one opened device
struct backend_mem;    // exportable memory (a region)
struct backend_pool;   // planes and page tables of one pool
struct backend_stream; // order of execution

struct kv_geometry {
    uint32_t layers, kv_heads, head_dim, page_size;
    kvpool_dtype dtype;    // of q, k, v and out
    kvpool_dtype kv_dtype; // of the planes: 0 = dtype, or KVPOOL_FP8_E4M3
};

static inline kvpool_dtype kv_plane_dtype(const struct kv_geometry *g) {
    return g->kv_dtype != 0 ? g->kv_dtype : g->dtype;
}

// Bytes of one element, of one page in one layer (K and V, all heads), of one plane.
static inline size_t kv_dtype_size(kvpool_dtype dtype) {
    return dtype == KVPOOL_FP32 ? 4 : dtype == KVPOOL_FP8_E4M3 ? 1 : 2;
}
static inline size_t kv_page_bytes(const struct kv_geometry *g) {
    return (size_t)2 * g->kv_heads * g->page_size * g->head_dim * kv_dtype_size(kv_plane_dtype(g));
}

struct backend_config {
    uint32_t threads; // cpu: compute threads, 0 = one per available core
    int device;       // cuda: ordinal
};

// Where memory is, and how another process gets it.
enum backend_place {
    BACKEND_HOST,   // the CPU and the device reach it; a memfd
    BACKEND_DEVICE, // the device's memory; cpu: as BACKEND_HOST
};
enum backend_export {
    BACKEND_FD,  // a file descriptor; outlives the process
    BACKEND_IPC, // a CUDA IPC handle; dies with the process. cpu: refused
};
// What another process opens memory with. fd: borrowed (dup it to keep it), -1 with BACKEND_IPC.
struct backend_handle {
    enum backend_place place;
    enum backend_export how;
    int fd;
    unsigned char ipc[64]; // cudaIpcMemHandle_t
    uint64_t offset;       // of the memory in what the handle opens, bytes
    uint64_t bytes;        // of what the handle opens
};

// Told when memory is closed: in the caller's own, which stays until `done`.
struct backend_close {
    void (*done)(struct backend_close *close);
    struct backend_close *next; // the backend's until `done`, then the caller's
};

// A tensor [tokens][heads][head_dim] in exportable memory; strides in elements.
struct backend_tensor {
    struct backend_mem *mem; // NULL: no tensor
    uint64_t offset;         // bytes
    uint64_t token_stride, head_stride;
};

enum backend_op_kind {
    BACKEND_TABLE,  // write page ids into one row of the page table
    BACKEND_COPY,   // copy whole pages, all layers
    BACKEND_APPEND, // write K and V of new tokens of one layer into pages
    BACKEND_ATTEND, // attention of one layer
};

struct backend_table_op { // rows[row][first .. first + count) = ids
    uint32_t row, first, count;
    const uint32_t *ids;
};
struct backend_copy_op { // pages dst[i] = src[i], every layer, i < count; no dst is also a src
    uint32_t count;
    const uint32_t *src, *dst;
};

// The batch of an append or attention. Sequence i has page-table row rows[i], kv_len[i] tokens with
// the new ones included, and queries / new tokens qo_indptr[i] .. qo_indptr[i+1] of the tensors.
struct backend_batch {
    uint32_t n;
    const uint32_t *rows;      // [n]
    const uint32_t *kv_len;    // [n]
    const uint32_t *qo_indptr; // [n+1], starts at 0
};
// How an fp8 pool stores K and V: x / scale, rounded to nearest even, at most +-448 (a NaN stays one).
// Of a pool whose planes have the tensors' dtype: ignored.
struct backend_scales {
    float k, v; // > 0; 0: 1
    struct backend_tensor
        heads; // fp32 [2][kv_heads], dense: K's scales, then V's; mem NULL: k and v
};
struct backend_append_op { // token j of i goes to position kv_len[i] - q_len[i] + j
    uint32_t layer;
    struct backend_batch batch;
    struct backend_scales scales;
    struct backend_tensor k, v; // [nnz][kv_heads][head_dim]
};
struct backend_attend_op { // semantics: "Attention" in include/kvpool/kvpool.h
    uint32_t layer;
    uint32_t qo_heads;
    bool causal;
    float sm_scale;      // > 0
    float soft_cap;      // 0: none
    int32_t window_left; // -1: none
    struct backend_batch batch;
    // One sequence's queries a..b of a longer op, a a multiple of row_block's queries: their bits are
    // those that they have in the longer op.
    bool part;
    // A sequence's bits do not depend on the others in the batch: where that takes memory that there is
    // none of, the op is left out (backend_done_fn).
    bool batch_invariant;
    struct backend_scales scales;
    struct backend_tensor sinks;  // fp32 [qo_heads], dense: a logit more in every row of the head,
                                  // with no value; mem NULL: none
    struct backend_tensor q, out; // [nnz][qo_heads][head_dim]
    struct backend_tensor lse;    // fp32 [nnz][qo_heads], mem NULL: none
};

struct backend_op {
    enum backend_op_kind kind;
    union {
        struct backend_table_op table;
        struct backend_copy_op copy;
        struct backend_append_op append;
        struct backend_attend_op attend;
    } u;
};

struct backend_program {
    struct backend_pool *pool; // of all ops
    const struct backend_op *ops;
    uint32_t n;
};

// status: 0;
// KVPOOL_E_NOMEM: an ATTEND of the program was left out for want of memory, and what its outputs hold is
//   not specified (parts of the result may be there). All other ops are done, and later programs are fine;
// KVPOOL_E_BACKEND: the program failed (sticky: the backend is unusable from then on).
typedef void (*backend_done_fn)(void *arg, int status);

struct backend_ops {
    const char *name;     // "cpu", "cuda"
    uint32_t api_version; // BACKEND_API_VERSION
    // Programs that keep it busy: so many are submitted before the first is done. 1, or 0: submit
    // runs the program itself.
    uint32_t window;
    // A row is one query token of one query head; the rows of the heads that share a K/V head are
    // worked on in blocks of so many. Where a causal ATTEND is cut between blocks the bits of the
    // result stay. 0: ATTEND may not be cut.
    uint32_t row_block;
    // Once a program has failed (KVPOOL_E_BACKEND) only a new process can use the device again.
    bool fatal;

    // Errors: BACKEND (no such device, driver or build; the text says which), NOMEM.
    int (*open)(const struct backend_config *config, struct backend **ret, struct err *err);
    void (*close)(struct backend *b); // no object of it remains
    // One line for logs and `kvpool status`: e.g. "cpu: 2 threads, avx512".
    const char *(*describe)(const struct backend *b);
    // One line why no program can be run any more, or NULL while they can (optional: not known).
    // Any thread.
    const char *(*failure)(const struct backend *b);
    // Blocks of rows that it works on side by side (optional: 1).
    uint32_t (*lanes)(const struct backend *b);

    // Zeroed memory that another process can map. bytes > 0, rounded up. Errors: NOMEM, AGAIN (see
    // invariant 6; err->detail: nanoseconds after which to try again), UNSUPPORTED (cpu: BACKEND_IPC;
    // BACKEND_HOST with BACKEND_IPC).
    int (*mem_alloc)(struct backend *b, uint64_t bytes, enum backend_place place,
                     enum backend_export how, struct backend_mem **ret, struct err *err);
    // Another process's device memory: bytes at `offset` of what the handle opens. Optional (cpu has
    // none). Errors: INVAL (handle not of this device, range outside it), NOMEM, AGAIN.
    int (*mem_import)(struct backend *b, const struct backend_handle *handle, uint64_t bytes,
                      struct backend_mem **ret, struct err *err);
    void (*mem_free)(struct backend *b, struct backend_mem *mem);
    // The same, and close->done once, from any thread, possibly before it returns: when the memory is not
    // open here any more (who it was imported from may free it), or another import of the same handle
    // keeps it open. Optional: mem_free has taken it back when it returns.
    void (*mem_close)(struct backend *b, struct backend_mem *mem, struct backend_close *close);
    uint64_t (*mem_bytes)(const struct backend_mem *mem);
    void (*mem_handle)(const struct backend_mem *mem, struct backend_handle *ret);
    // Address in this process, or NULL when the CPU cannot reach it (cuda: BACKEND_DEVICE).
    void *(*mem_host)(const struct backend_mem *mem);

    // Planes of num_pages pages, and a page table of rows x row_entries. Errors: NOMEM (names the
    // bytes wanted and available), AGAIN, UNSUPPORTED (geometry or export that the backend has not; the text
    // names what it has).
    int (*pool_open)(struct backend *b, const struct kv_geometry *geometry, enum backend_export how,
                     uint32_t num_pages, uint32_t rows, uint32_t row_entries,
                     struct backend_pool **ret, struct err *err);
    void (*pool_close)(struct backend *b, struct backend_pool *pool);
    uint64_t (*pool_bytes)(const struct backend_pool *pool); // K and V, all layers
    // What opens all planes: that of layer l begins at l * kv_page_bytes * num_pages of the memory.
    void (*pool_handle)(const struct backend_pool *pool, struct backend_handle *ret);
    // Host address of one plane, NULL when the CPU cannot reach it.
    void *(*pool_plane)(const struct backend_pool *pool, uint32_t layer);
    // Copies bytes of one plane to or from the host, with nothing in flight on the pool (tests,
    // tools). Errors: BACKEND.
    int (*pool_read)(struct backend *b, const struct backend_pool *pool, uint32_t layer,
                     uint64_t offset, void *to, uint64_t bytes, struct err *err);
    int (*pool_write)(struct backend *b, struct backend_pool *pool, uint32_t layer, uint64_t offset,
                      const void *from, uint64_t bytes, struct err *err);

    int (*stream_open)(struct backend *b, struct backend_stream **ret, struct err *err);
    void (*stream_close)(struct backend *b, struct backend_stream *s); // idle

    // Runs the program on the stream; see invariants 3 and 5. Errors: BACKEND.
    int (*submit)(struct backend *b, struct backend_stream *s,
                  const struct backend_program *program, backend_done_fn done, void *arg,
                  struct err *err);
};

// Backend by name: "cpu", "cuda", or "auto" (cuda when this build and machine have it, else cpu).
// Errors: BACKEND ("cuda": says plainly whether the build or the machine has none), INVAL.
int backend_find(const char *name, const struct backend_ops **ret, struct err *err);

extern const struct backend_ops backend_cpu;
extern const struct backend_ops backend_cuda; // in builds that have it

#endif
