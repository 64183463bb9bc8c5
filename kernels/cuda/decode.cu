// SPDX-License-Identifier: Apache-2.0
// decode.cu: launchers of the decode kernel: what it takes, memory of a plan and a workspace, which
// instance runs. See launch.h.
//
// A plan: works, sequences, sums (decode_plan.cuh). A workspace: DECODE_COUNTERS words and DECODE_POST_BYTES of
// each CTA that are 0 between launches, whatever was launched; batch-invariant, then DECODE_MAX_PIECES partial
// results of each item.
//
// Invariant: what a launch takes does not depend on batch.n, nor, of at most DECODE_MAX_Q_LEN, on
// batch.max_q_len: a sequence that is taken alone is taken beside any others. How many sequences one launch
// takes is another matter: cuda_decode_max_sequences.
#include "kernels/cuda/decode_plan.cuh"

#include <cuda_runtime_api.h>

// How a launch is laid out.
struct layout {
    uint32_t nt;
    bool kv8;
    uint32_t ctas, warps; // warps of a CTA that have runs
    uint32_t items;       // of a sequence, at most
    size_t sequences, sums, plan_bytes;
    size_t posts, pieces, workspace_bytes;
    int64_t page_stride, value_stride, head_stride, token_stride; // of the pool, in bytes
};

static uint32_t column_tiles(const struct cuda_attention *a, uint32_t q_len) {
    uint32_t columns = q_len * (a->qo_heads / a->kv.kv_heads);
    uint32_t most = a->kv.head_dim == 256 ? 2 : 4;
    uint32_t nt = columns <= 8 ? 1 : columns <= 16 ? 2 : 4;
    return nt < most ? nt : most;
}

// Items of a sequence of so many query tokens, where none of the launch has more.
static uint32_t items_of(const struct cuda_attention *a, uint32_t q_len) {
    uint32_t columns = q_len * (a->qo_heads / a->kv.kv_heads), block = 8 * column_tiles(a, q_len);
    return a->kv.kv_heads * ((columns + block - 1) / block);
}

// Of one sequence, batch-invariant.
static size_t piece_bytes(const struct cuda_attention *a) {
    uint32_t q_len = a->batch.max_q_len;
    return (size_t)items_of(a, q_len) * DECODE_MAX_PIECES *
           decode_partial_bytes(a->kv.head_dim, column_tiles(a, q_len));
}

static bool lay_out(const struct cuda_device *d, const struct cuda_attention *a,
                    struct layout *ret) {
    struct layout l;
    uint32_t head_dim = a->kv.head_dim;
    l.nt = column_tiles(a, a->batch.max_q_len);
    l.kv8 = a->kv.dtype == CUDA_E4M3;
    l.ctas = a->max_ctas != 0 && a->max_ctas < (uint32_t)d->sms ? a->max_ctas : (uint32_t)d->sms;
    for (l.warps = DECODE_MAX_WARPS; l.warps > 0; l.warps--)
        if (decode_smem_bytes(head_dim, l.kv8, l.nt, l.warps) <= (uint32_t)d->smem_optin)
            break;
    if (l.warps == 0)
        return false;
    l.items = items_of(a, a->batch.max_q_len);
    l.sequences = (size_t)l.ctas * DECODE_MAX_WARPS * sizeof(struct decode_work);
    l.sums = l.sequences + ((size_t)a->batch.n + DECODE_PAD) * sizeof(struct decode_sequence);
    l.plan_bytes = l.sums + (size_t)a->batch.n * sizeof(uint64_t);
    // The same for every launch: what one has left there is what the next one needs.
    l.posts = DECODE_COUNTERS * sizeof(uint32_t);
    l.pieces = l.posts + (size_t)d->sms * DECODE_POST_BYTES;
    l.workspace_bytes = l.pieces;
    if (a->batch_invariant)
        l.workspace_bytes += a->batch.n * piece_bytes(a);
    int64_t element = l.kv8 ? 1 : 2;
    l.page_stride = a->kv.page_stride * element;
    l.value_stride = a->kv.value_stride * element;
    l.head_stride = a->kv.head_stride * element;
    l.token_stride = a->kv.token_stride * element;
    *ret = l;
    return true;
}

bool cuda_decode_takes(const struct cuda_attention *a) {
    const struct cuda_kv *kv = &a->kv;
    if (kv->head_dim != 64 && kv->head_dim != 128 && kv->head_dim != 256)
        return false;
    if (a->dtype != CUDA_FP16 && a->dtype != CUDA_BF16)
        return false;
    if (kv->dtype != a->dtype && kv->dtype != CUDA_E4M3)
        return false;
    if (kv->kv_heads == 0 || kv->kv_heads >= DECODE_MAX_HEADS || a->qo_heads == 0 ||
        a->qo_heads % kv->kv_heads != 0 || a->qo_heads / kv->kv_heads > DECODE_MAX_GROUP)
        return false;
    if (a->batch.max_q_len > DECODE_MAX_Q_LEN || kv->page_shift < 3 || kv->page_shift > 30 ||
        a->soft_cap > CUDA_WIDEST_CAP)
        return false;
    return !a->batch_invariant || items_of(a, DECODE_MAX_Q_LEN) <= DECODE_COUNTERS;
}

uint32_t cuda_decode_max_sequences(const struct cuda_attention *a) {
    static_assert(DECODE_PIECES_BYTES / (DECODE_MAX_PIECES * decode_partial_bytes(64, 1)) <=
                      DECODE_COUNTERS,
                  "a counter for each item that there is room for");
    size_t each = a->batch_invariant ? piece_bytes(a) : 0;
    if (each == 0)
        return UINT32_MAX;
    return each < DECODE_PIECES_BYTES ? (uint32_t)(DECODE_PIECES_BYTES / each) : 1;
}

static bool takes_all(const struct cuda_attention *a) {
    return cuda_decode_takes(a) && a->batch.n <= cuda_decode_max_sequences(a);
}

size_t cuda_decode_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    struct layout l;
    return lay_out(d, a, &l) ? l.plan_bytes : 0;
}

size_t cuda_decode_workspace_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    struct layout l;
    return lay_out(d, a, &l) ? l.workspace_bytes : 0;
}

int cuda_decode_plan(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct layout l;
    if (!takes_all(a) || !lay_out(d, a, &l))
        return (int)cudaErrorInvalidValue;
    if (a->batch.n == 0 || a->batch.max_q_len == 0)
        return 0;
    unsigned char *plan = (unsigned char *)a->plan;
    struct decode_plan_args args = {};
    args.index = a->batch.index;
    args.rows = a->batch.rows;
    args.kv_len = a->batch.kv_len;
    args.qo_indptr = a->batch.qo_indptr;
    args.table = a->batch.table;
    args.row_entries = a->batch.row_entries;
    args.page_shift = a->kv.page_shift;
    args.page_stride = l.page_stride;
    args.head_stride = l.head_stride;
    args.token_stride = l.token_stride;
    args.n = a->batch.n;
    args.max_q_len = a->batch.max_q_len;
    args.kv_heads = a->kv.kv_heads;
    args.group = a->qo_heads / a->kv.kv_heads;
    args.columns = 8 * l.nt;
    args.blocks = l.nt * a->kv.head_dim / 16;
    args.tile_tokens = decode_tile_tokens(a->kv.head_dim, l.kv8);
    args.least_run = l.kv8 || args.tile_tokens > 16 ? 2 : 4; // measured: docs/kernels.md
    args.window_left = a->window_left;
    args.batch_invariant = a->batch_invariant;
    args.ctas = l.ctas;
    args.cta_warps = l.warps;
    args.works = (struct decode_work *)plan;
    args.sequences = (struct decode_sequence *)(plan + l.sequences);
    args.sums = (uint64_t *)(plan + l.sums);
    return decode_plan_start(args, stream, a->after_previous);
}

// --- which instance --------------------------------------------------------------------------------

template <class T, class KV>
static int start(const struct decode_args &args, uint32_t head_dim, const struct layout &l,
                 void *stream, bool after_previous) {
    switch (head_dim * 8 + l.nt) {
#define CASE(D, NT)  \
    case D * 8 + NT: \
        return decode_start<T, KV, D, NT>(args, l.ctas, stream, after_previous)
        CASE(64, 1);
        CASE(64, 2);
        CASE(64, 4);
        CASE(128, 1);
        CASE(128, 2);
        CASE(128, 4);
        CASE(256, 1);
        CASE(256, 2);
#undef CASE
    default:
        return (int)cudaErrorInvalidValue;
    }
}

int cuda_decode(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct layout l;
    if (!takes_all(a) || !lay_out(d, a, &l) || a->workspace_bytes < l.workspace_bytes)
        return (int)cudaErrorInvalidValue;
    if (a->batch.n == 0 || a->batch.max_q_len == 0)
        return 0;
    const unsigned char *plan = (const unsigned char *)a->plan;
    struct decode_args args = {};
    args.k = (const unsigned char *)a->kv.k;
    args.page_stride = l.page_stride;
    args.value_stride = l.value_stride;
    args.head_stride = l.head_stride;
    args.token_stride = l.token_stride;
    args.q = (const unsigned char *)a->q.data;
    args.q_token_stride = a->q.token_stride * 2;
    args.q_head_stride = a->q.head_stride * 2;
    args.out = (unsigned char *)a->out.data;
    args.out_token_stride = a->out.token_stride * 2;
    args.out_head_stride = a->out.head_stride * 2;
    args.lse = (float *)a->lse.data;
    args.lse_token_stride = a->lse.token_stride;
    args.lse_head_stride = a->lse.head_stride;
    args.table = a->batch.table;
    args.sinks = a->sinks;
    args.k_scales = a->kv.k_scales;
    args.v_scales = a->kv.v_scales;
    args.works = (const struct decode_work *)plan;
    args.sequences = (const struct decode_sequence *)(plan + l.sequences);
    args.counters = (uint32_t *)a->workspace;
    args.posts = (unsigned char *)a->workspace + l.posts;
    args.pieces = (unsigned char *)a->workspace + l.pieces;
    args.row_entries = a->batch.row_entries;
    args.page_shift = a->kv.page_shift;
    args.kv_heads = a->kv.kv_heads;
    args.group = a->qo_heads / a->kv.kv_heads;
    args.group_inverse = 65536 / args.group + 1;
    args.items = l.items;
    args.run_warps = l.warps;
    args.sm_scale = a->sm_scale;
    args.soft_cap = a->soft_cap;
    args.k_scale = a->kv.k_scale;
    args.v_scale = a->kv.v_scale;
    args.window_left = a->window_left;
    args.causal = a->causal;
    bool is_fp16 = a->dtype == CUDA_FP16, after = a->after_previous;
    uint32_t head_dim = a->kv.head_dim;
    if (l.kv8)
        return is_fp16 ? start<fp16, e4m3>(args, head_dim, l, stream, after)
                       : start<bf16, e4m3>(args, head_dim, l, stream, after);
    return is_fp16 ? start<fp16, fp16>(args, head_dim, l, stream, after)
                   : start<bf16, bf16>(args, head_dim, l, stream, after);
}
