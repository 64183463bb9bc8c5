// SPDX-License-Identifier: Apache-2.0
// launch.h: what the CUDA kernels take and how they are launched: plain structs and C functions, so
// that everything but the .cu files is C.
//
// All pointers are the device's (or of host memory that the device reaches) unless it says host. All
// strides count elements. A launcher enqueues on `stream` (a cudaStream_t) and returns; nothing here
// synchronises or allocates, so everything may be captured into a graph, and a captured launch reads
// lengths and page ids anew at every replay.
//
// Invariants
//  1. Grids depend only on the device and on the host numbers of the arguments (n, nnz, max_q_len,
//     head counts), never on lengths: lengths are read on the device. kv_len 0 and q_len 0 are legal.
//  2. No entry of a page table past a sequence's last page is dereferenced, and, with a window, none of
//     a page that lies left of the 64 tokens (from a multiple of 64 on) in which it begins.
//  3. What lies in a page at positions >= kv_len never reaches a result, NaN included.
//  4. Equal inputs on one device give equal bits.
// Returns 0 or the cudaError_t. Any thread, with the device current.
#ifndef KVPOOL_KERNELS_CUDA_LAUNCH_H
#define KVPOOL_KERNELS_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// kvpool_dtype's values.
enum { CUDA_FP16 = 1, CUDA_BF16 = 2, CUDA_FP32 = 3, CUDA_E4M3 = 4 };

// Decode and prefill take soft caps up to this: a logit that they cap is off by 2^-22 of the cap.
enum { CUDA_WIDEST_CAP = 256 };

// What launchers need to know of a device; filled once by cuda_device_init (of the current device).
struct cuda_device {
    int32_t ordinal;
    int32_t sms;
    int32_t major, minor;
    int32_t smem_optin; // bytes of shared memory that one block can have
    int32_t l2_bytes;
};
int cuda_device_init(struct cuda_device *ret);

// One layer's plane, or any paged K and V that strides can describe (HND, NHD, separate pools).
// Element d of head h of token t of page p of K is k[p*page + h*head + t*token + d]; V is at +value.
// head_dim is contiguous; page, head, token and value are multiples of 16 bytes.
struct cuda_kv {
    void *k;
    int64_t page_stride, value_stride, head_stride, token_stride;
    uint32_t kv_heads, head_dim;
    uint32_t page_shift; // page_size = 1 << page_shift
    uint32_t dtype;      // of the plane: the tensors' dtype or CUDA_E4M3
    // CUDA_E4M3: stored value = x / scale. Per-head arrays [kv_heads], or NULL: the scalars.
    const float *k_scales, *v_scales;
    float k_scale, v_scale;
};

// A batch. Sequence i has its page ids at table + rows[i] * row_entries, kv_len[i] tokens, and the
// query tokens qo_indptr[i] .. qo_indptr[i+1]. (kv_indptr/kv_indices: row_entries 1, rows the indptr.)
// A launch works on the sequences index[0..n), or 0..n where index is NULL.
struct cuda_batch {
    uint32_t n;         // host number: sequences of this launch
    uint32_t nnz;       // host number: query tokens of these sequences, or an upper bound
    uint32_t max_q_len; // host number: upper bound of their query tokens
    uint32_t row_entries;
    const uint32_t *index;
    const uint32_t *table;
    const uint32_t *rows, *kv_len, *qo_indptr;
};

struct cuda_tensor { // [tokens][heads][head_dim], 16-byte aligned rows where head_dim allows it
    void *data;      // NULL: none
    int64_t token_stride, head_stride;
};

// Attention: semantics in include/kvpool/kvpool.h.
struct cuda_attention {
    struct cuda_kv kv;
    struct cuda_batch batch;
    struct cuda_tensor q, out, lse; // lse: fp32 [tokens][qo_heads]
    const float *sinks;             // [qo_heads] or NULL
    uint32_t dtype;                 // of q and out
    uint32_t qo_heads;
    float sm_scale, soft_cap; // soft_cap 0: none
    int32_t window_left;      // -1: none
    bool causal;
    bool batch_invariant;
    bool
        after_previous; // programmatic dependent launch: may start while the kernel before it on the
                        // stream ends; what that one writes is waited for in the kernel
    uint32_t max_ctas;  // 0: the whole device
    // Scratch of the kernel, written by its plan function, then only read (plan) or written and read
    // (workspace) by launches. One plan serves every launch with the same batch (contents and page ids too), heads,
    // head_dim, dtypes, mask and device: all layers of a step. Concurrent launches need workspaces of
    // their own. A workspace is zeroed once, when it is made.
    void *plan;
    void *workspace;
    size_t workspace_bytes; // host: what the workspace has
};

// --- decode: at most 8 query tokens a sequence (decode.cuh) ------------------------------------
// head_dim 64, 128, 256; group (qo_heads / kv_heads) at most 32; fp16, bf16; kv the same or e4m3; soft_cap up
// to CUDA_WIDEST_CAP.
bool cuda_decode_takes(const struct cuda_attention *a);
// batch.n of a launch that it takes at most. A larger batch is several launches over subsets of it, each with a plan
// of its own; batch-invariant (there is no limit otherwise) the bits are the same, and the workspace is bounded.
uint32_t cuda_decode_max_sequences(const struct cuda_attention *a);
size_t cuda_decode_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a);
size_t cuda_decode_workspace_bytes(const struct cuda_device *d, const struct cuda_attention *a);
int cuda_decode_plan(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
int cuda_decode(const struct cuda_device *d, const struct cuda_attention *a, void *stream);

// --- prefill: any number of query tokens (prefill.cuh) -----------------------------------------
// head_dim 64, 128, 256; any group; fp16, bf16; kv the same or e4m3; soft_cap up to CUDA_WIDEST_CAP.
bool cuda_prefill_takes(const struct cuda_attention *a);
size_t cuda_prefill_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a);
size_t cuda_prefill_workspace_bytes(const struct cuda_device *d, const struct cuda_attention *a);
int cuda_prefill_plan(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
int cuda_prefill(const struct cuda_device *d, const struct cuda_attention *a, void *stream);

// --- generic: everything else (generic.cu): any dtype, any group; no plan, slow ------------
// head_dim a multiple of 8, at most 640.
int cuda_generic(const struct cuda_device *d, const struct cuda_attention *a, void *stream);

// --- append (append.cu) --------------------------------------------------------------------------
// Token j of sequence i goes to position kv_len[i] - q_len[i] + j; its sequence is found on the device
// from qo_indptr (which begins with 0; batch.index must be NULL; batch.nnz exact). Any strides, any head_dim, any dtype.
struct cuda_append {
    struct cuda_kv kv;
    struct cuda_batch batch;
    struct cuda_tensor k, v; // [nnz][kv_heads][head_dim]
    uint32_t dtype;          // of k and v
    bool after_previous;
};
int cuda_append(const struct cuda_device *d, const struct cuda_append *a, void *stream);

// --- pages (pages.cu) ----------------------------------------------------------------------------
// Pages of all layers: a page of layer l is page_bytes at base + l * plane_bytes + id * page_bytes
// (multiples of 16).
struct cuda_planes {
    void *base;
    uint64_t plane_bytes, page_bytes;
    uint32_t layers;
};
// pairs[2*i] -> pairs[2*i+1], i < n; no destination is also a source. n 0: nothing.
int cuda_copy_pages(const struct cuda_device *d, const struct cuda_planes *p, const uint32_t *pairs,
                    uint32_t n, void *stream);
// Fills pages ids[0..n) with the 32-bit pattern.
int cuda_scrub_pages(const struct cuda_device *d, const struct cuda_planes *p, const uint32_t *ids,
                     uint32_t n, uint32_t pattern, void *stream);

// --- page-table update and batch arrays (table.cu) ------------------------------------------------
// words[0..] is a list of n segments {destination row * row_entries + first (2 words, low first),
// count, then count page ids}; starts[i] is where segment i begins in words. Written to table.
int cuda_table_update(const struct cuda_device *d, uint32_t *table, const uint32_t *words,
                      const uint32_t *starts, uint32_t n, void *stream);

#ifdef __cplusplus
}
#endif
#endif
