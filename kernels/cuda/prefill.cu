// SPDX-License-Identifier: Apache-2.0
// prefill.cu: which prefill kernel takes a batch, and its launch. See launch.h.
//
// Invariant: plan_bytes, workspace_bytes, plan and launch choose the same kernel for the same arguments.
#include "kernels/cuda/prefill_shape.cuh"

static const int INVALID = 1; // cudaErrorInvalidValue

int cuda_prefill_variant = 0;

struct kernel {
    struct prefill_tile tile;
    int smem;
    int (*start)(const struct prefill_args *a, uint32_t ctas, bool after_previous, void *stream);
};

template <class S> static struct kernel kernel_of() {
    return {{S::ROWS, S::TOKENS, S::CTAS}, S::SMEM, prefill_start<S>};
}

template <class T, class KV> static struct kernel choose_128() {
    if constexpr (prefill_same<KV, bf16>::value) {
        using variants = prefill_variants<T, KV>;
        if (cuda_prefill_variant == 1)
            return kernel_of<typename variants::wide>();
        if (cuda_prefill_variant == 2)
            return kernel_of<typename variants::low>();
        if (cuda_prefill_variant == 3)
            return kernel_of<typename variants::many>();
    }
    return kernel_of<typename prefill_shapes<T, KV>::d128>();
}

template <class T, class KV>
static struct kernel choose_dim(const struct cuda_device *d, const struct cuda_attention *a) {
    using shapes = prefill_shapes<T, KV>;
    if (a->kv.head_dim == 64)
        return kernel_of<typename shapes::d64>();
    if (a->kv.head_dim == 128)
        return choose_128<T, KV>();
    struct kernel k = kernel_of<typename shapes::d256>();
    return k.smem <= d->smem_optin ? k : kernel_of<typename shapes::d256_small>();
}

static struct kernel choose(const struct cuda_device *d, const struct cuda_attention *a) {
    bool bytes = a->kv.dtype == CUDA_E4M3;
    if (a->dtype == CUDA_FP16)
        return bytes ? choose_dim<fp16, e4m3>(d, a) : choose_dim<fp16, fp16>(d, a);
    return bytes ? choose_dim<bf16, e4m3>(d, a) : choose_dim<bf16, bf16>(d, a);
}

static struct prefill_bounds bounds_of(const struct cuda_device *d,
                                       const struct cuda_attention *a) {
    struct kernel k = choose(d, a);
    return prefill_bounds_of(d, a, &k.tile);
}

static bool rows_aligned(const struct cuda_tensor *t) {
    return (uintptr_t)t->data % 16 == 0 && t->token_stride % 8 == 0 && t->head_stride % 8 == 0;
}

bool cuda_prefill_takes(const struct cuda_attention *a) {
    uint32_t dim = a->kv.head_dim;
    if ((dim != 64 && dim != 128 && dim != 256) ||
        (a->dtype != CUDA_FP16 && a->dtype != CUDA_BF16) ||
        (a->kv.dtype != a->dtype && a->kv.dtype != CUDA_E4M3))
        return false;
    if (a->kv.kv_heads == 0 || a->qo_heads == 0 || a->qo_heads % a->kv.kv_heads != 0 ||
        !rows_aligned(&a->q) || !rows_aligned(&a->out) || a->soft_cap > CUDA_WIDEST_CAP)
        return false;
    // Rows are counted in 32 bits, and so are the bytes from a page to the next and of a page.
    uint64_t rows = (uint64_t)a->batch.nnz * (a->qo_heads / a->kv.kv_heads);
    int64_t most = (int64_t)UINT32_MAX / 4;
    return rows < (uint64_t)INT32_MAX && a->kv.page_shift < 31 && a->kv.page_stride >= 0 &&
           a->kv.page_stride <= most && a->kv.token_stride >= 0 &&
           a->kv.token_stride <= most >> a->kv.page_shift;
}

size_t cuda_prefill_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    return bounds_of(d, a).plan_bytes;
}

size_t cuda_prefill_workspace_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    return bounds_of(d, a).workspace_bytes;
}

static struct prefill_record *records_of(const struct cuda_attention *a,
                                         const struct prefill_bounds *b) {
    return (struct prefill_record *)((unsigned char *)a->plan + b->records_at);
}

static int32_t window_of(const struct cuda_attention *a) {
    return a->window_left < PREFILL_FAR ? a->window_left : -1; // as far as all there is
}

int cuda_prefill_plan(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct kernel k = choose(d, a);
    struct prefill_bounds b = prefill_bounds_of(d, a, &k.tile);
    if (b.tiles == 0)
        return 0;
    if (a->plan == nullptr)
        return INVALID;
    struct prefill_planning p = {};
    p.batch = a->batch;
    p.plan = (struct prefill_plan *)a->plan;
    p.tile_first = (uint32_t *)(p.plan + 1);
    p.records = records_of(a, &b);
    p.max_records = b.records;
    p.max_slots = b.slots;
    p.lanes = b.lanes;
    p.rows = k.tile.rows;
    p.tokens = k.tile.tokens;
    p.group = a->qo_heads / a->kv.kv_heads;
    p.kv_heads = a->kv.kv_heads;
    p.window = window_of(a);
    p.causal = a->causal;
    return prefill_start_plan(&p, a->after_previous, stream);
}

int cuda_prefill(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    struct kernel k = choose(d, a);
    struct prefill_bounds b = prefill_bounds_of(d, a, &k.tile);
    if (b.tiles == 0)
        return 0;
    if (a->plan == nullptr || a->workspace_bytes < b.workspace_bytes ||
        (b.workspace_bytes > 0 && a->workspace == nullptr))
        return INVALID;

    uint32_t size = a->kv.dtype == CUDA_E4M3 ? 1 : 2;
    bool scaled = a->kv.dtype == CUDA_E4M3;
    struct prefill_args p = {};
    p.plan = (const struct prefill_plan *)a->plan;
    p.records = records_of(a, &b);
    p.k = (const unsigned char *)a->kv.k;
    p.value = a->kv.value_stride * size;
    p.head = a->kv.head_stride * size;
    p.page = (uint32_t)a->kv.page_stride * size;
    p.token = (uint32_t)a->kv.token_stride * size;
    p.page_shift = a->kv.page_shift;
    p.row_entries = a->batch.row_entries;
    p.table = a->batch.table;
    p.q = (const unsigned char *)a->q.data;
    p.q_token = a->q.token_stride * 2;
    p.q_head = a->q.head_stride * 2;
    p.out = (unsigned char *)a->out.data;
    p.out_token = a->out.token_stride * 2;
    p.out_head = a->out.head_stride * 2;
    p.lse = (float *)a->lse.data;
    p.lse_token = a->lse.token_stride; // elements
    p.lse_head = a->lse.head_stride;
    p.sinks = a->sinks;
    p.k_scales = scaled ? a->kv.k_scales : nullptr;
    p.v_scales = scaled ? a->kv.v_scales : nullptr;
    p.k_scale = scaled ? a->kv.k_scale : 1;
    p.v_scale = scaled ? a->kv.v_scale : 1;
    p.sm_scale = a->sm_scale;
    p.soft_cap = a->soft_cap;
    p.group = a->qo_heads / a->kv.kv_heads;
    p.kv_heads = a->kv.kv_heads;
    p.window = window_of(a);
    p.causal = a->causal;
    p.slot_rows = b.slot_rows;
    p.counters = (uint32_t *)a->workspace;
    p.partial = (float *)(p.counters + PREFILL_COUNTERS);
    p.sums = (float2 *)((unsigned char *)a->workspace + b.sums);

    uint64_t ctas = (uint64_t)b.records * p.kv_heads;
    if (a->max_ctas > 0 && ctas > a->max_ctas)
        ctas = a->max_ctas;
    if (ctas > INT32_MAX)
        ctas = INT32_MAX;
    return k.start(&p, (uint32_t)ctas, a->after_previous, stream);
}
