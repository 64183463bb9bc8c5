// SPDX-License-Identifier: Apache-2.0
// generic.cu: attention for what the fast kernels do not take: fp32 pools, any head_dim that is a
// multiple of 8 (up to 640), any group, any number of query tokens. fp32 arithmetic, not tf32. See
// launch.h; semantics in include/kvpool/kvpool.h.
//
// A block of 8 warps has one row: one query token of one query head. LANES lanes are a team that works
// on one key at a time; a lane has the elements 4 * (lane + LANES * c) .. + 3, c < CHUNKS, of q, of a key,
// of a value and of the output. The teams take turns at the row's keys, KEYS each:
//
//   keys of the row   | first ...                                                   ... end |
//                     | team 0  | team 1  | ... | team T-1 | team 0 | team 1 | ...
//
// K and V of a turn are all on their way before the first is used. Each team keeps maximum, sum and
// output of its keys (online softmax); at the end the block merges the teams, in their order.
//
// Invariants
//  1. What a row's keys are worth depends on the row alone: its bits are the same in every batch.
//  2. Keys outside the row's [first, end) are never loaded, nor are their table entries read.
//  3. A row that sees nothing gives 0 and -infinity (a sink's logit, where there are sinks).
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

#include <math.h>

namespace {

constexpr uint32_t ALL = 0xffffffffu;
constexpr uint32_t THREADS = 256;

// --- numbers -----------------------------------------------------------------------------------

// Four neighbours of a K or V row as they lie in memory, and as fp32.
template <class T> struct four {
    using raw = uint2;
    static __device__ __forceinline__ float4 widen(uint2 x) {
        float2 a = unpack2<T>(x.x), b = unpack2<T>(x.y);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    static __device__ __forceinline__ uint2 zero() { return make_uint2(0, 0); }
};
template <> struct four<fp32> {
    using raw = float4;
    static __device__ __forceinline__ float4 widen(float4 x) { return x; }
    static __device__ __forceinline__ float4 zero() { return make_float4(0, 0, 0, 0); }
};
template <> struct four<e4m3> {
    using raw = uint32_t;
    static __device__ __forceinline__ float4 widen(uint32_t x) {
        float2 a = unpack2<fp16>(e4m3x2_to_fp16x2(x & 0xffffu));
        float2 b = unpack2<fp16>(e4m3x2_to_fp16x2(x >> 16));
        return make_float4(a.x, a.y, b.x, b.y);
    }
    static __device__ __forceinline__ uint32_t zero() { return 0; }
};
template <class T> constexpr uint32_t size_of = sizeof(typename four<T>::raw) / 4;

static __device__ __forceinline__ float load_one(const void *p, int64_t i, uint32_t dtype) {
    if (dtype == CUDA_FP32)
        return ((const float *)p)[i];
    uint32_t bits = ((const uint16_t *)p)[i];
    return dtype == CUDA_FP16 ? unpack2<fp16>(bits).x : unpack2<bf16>(bits).x;
}
static __device__ __forceinline__ void store_one(void *p, int64_t i, uint32_t dtype, float x) {
    if (dtype == CUDA_FP32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] =
            (uint16_t)(dtype == CUDA_FP16 ? pack2<fp16>(x, 0.0f) : pack2<bf16>(x, 0.0f));
}

// --- rows --------------------------------------------------------------------------------------

struct row {
    bool valid;        // false: there are fewer tokens than batch.nnz
    uint32_t sequence; // of the batch
    uint32_t token;    // of the tensors
};

// Query token number t of the launch. Whole warps call it with the same t.
static __device__ __forceinline__ row find_row(const cuda_batch &b, uint32_t t) {
    if (b.index == NULL) {
        t += b.qo_indptr[0];
        uint32_t low = 0, high = b.n; // qo_indptr[low] <= t
        while (high - low > 1) {
            uint32_t middle = low + (high - low) / 2;
            if (b.qo_indptr[middle] <= t)
                low = middle;
            else
                high = middle;
        }
        return {t < b.qo_indptr[low + 1], low, t};
    }
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t first = 0; first < b.n; first += 32) {
        uint32_t sequence = 0, start = 0, q_len = 0;
        if (first + lane < b.n) {
            sequence = b.index[first + lane];
            start = b.qo_indptr[sequence];
            q_len = b.qo_indptr[sequence + 1] - start;
        }
        uint32_t end = q_len; // tokens of the lanes up to this one
#pragma unroll
        for (uint32_t step = 1; step < 32; step *= 2) {
            uint32_t more = __shfl_up_sync(ALL, end, step);
            end += lane >= step ? more : 0;
        }
        int at = __ffs((int)__ballot_sync(ALL, t < end)) - 1;
        if (at >= 0)
            return {true, __shfl_sync(ALL, sequence, at),
                    __shfl_sync(ALL, start + t - (end - q_len), at)};
        t -= __shfl_sync(ALL, end, 31);
    }
    return {false, 0, 0};
}

// --- kernel ------------------------------------------------------------------------------------

// Every lane gets the sums over its team. Steps outside: the shuffles of one step are independent.
template <uint32_t LANES, uint32_t N>
static __device__ __forceinline__ void team_sums(float (&x)[N]) {
#pragma unroll
    for (uint32_t step = LANES / 2; step > 0; step /= 2)
#pragma unroll
        for (uint32_t i = 0; i < N; i++)
            x[i] += __shfl_xor_sync(ALL, x[i], step);
}

template <class T, uint32_t LANES, uint32_t CHUNKS, uint32_t KEYS>
__global__ void __launch_bounds__(THREADS, CHUNKS == 1   ? 4
                                           : CHUNKS == 2 ? 2
                                                         : 1)
    generic_kernel(const __grid_constant__ cuda_attention a) {
    constexpr uint32_t TEAMS = THREADS / LANES;
    using raw = typename four<T>::raw;
    KVPOOL_SHARED shared[]; // per team: maximum, sum; then its output
    float *maxima = (float *)shared, *sums = maxima + TEAMS, *outs = sums + TEAMS;
    uint32_t team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    uint32_t head_dim = a.kv.head_dim;
    wait_previous_kernel();
    start_next_kernel();

    for (uint64_t work = blockIdx.x; work < (uint64_t)a.batch.nnz * a.qo_heads; work += gridDim.x) {
        uint32_t head = (uint32_t)(work % a.qo_heads);
        row r = find_row(a.batch, (uint32_t)(work / a.qo_heads));
        if (!r.valid)
            return;
        uint32_t kv_head = head / (a.qo_heads / a.kv.kv_heads);
        int64_t kv_len = a.batch.kv_len[r.sequence];
        int64_t position = kv_len - a.batch.qo_indptr[r.sequence + 1] + r.token;
        int64_t first = a.window_left >= 0 ? position - a.window_left : 0;
        first = first > 0 ? first : 0;
        int64_t end = a.causal && position + 1 < kv_len ? position + 1 : kv_len;

        const uint32_t *pages =
            a.batch.table + (uint64_t)a.batch.rows[r.sequence] * a.batch.row_entries;
        const char *k = (const char *)a.kv.k + kv_head * a.kv.head_stride * size_of<T>;
        const char *v = k + a.kv.value_stride * size_of<T>;
        float k_scale = 1.0f, v_scale = 1.0f;
        if (a.kv.dtype == CUDA_E4M3) {
            k_scale = a.kv.k_scales != NULL ? a.kv.k_scales[kv_head] : a.kv.k_scale;
            v_scale = a.kv.v_scales != NULL ? a.kv.v_scales[kv_head] : a.kv.v_scale;
        }
        float logit_scale = a.sm_scale * k_scale;

        float4 q[CHUNKS], out[CHUNKS];
        int64_t q_row = r.token * a.q.token_stride + head * a.q.head_stride;
#pragma unroll
        for (uint32_t c = 0; c < CHUNKS; c++) {
            uint32_t d = 4 * (lane + LANES * c);
            out[c] = q[c] = make_float4(0, 0, 0, 0);
            if (d < head_dim)
                q[c] = make_float4(load_one(a.q.data, q_row + d, a.dtype),
                                   load_one(a.q.data, q_row + d + 1, a.dtype),
                                   load_one(a.q.data, q_row + d + 2, a.dtype),
                                   load_one(a.q.data, q_row + d + 3, a.dtype));
        }

        float maximum = -INFINITY, sum = 0;
        for (int64_t turn = first; turn < end; turn += TEAMS * KEYS) {
            int64_t key = turn + team * KEYS;
            raw ks[KEYS][CHUNKS], vs[KEYS][CHUNKS];
#pragma unroll
            for (uint32_t i = 0; i < KEYS; i++) {
                bool seen = key + i < end;
                uint32_t s = (uint32_t)(key + i);
                int64_t at = 0;
                if (seen)
                    at = (int64_t)pages[s >> a.kv.page_shift] * a.kv.page_stride +
                         (int64_t)(s & ((1u << a.kv.page_shift) - 1)) * a.kv.token_stride;
#pragma unroll
                for (uint32_t c = 0; c < CHUNKS; c++) {
                    uint32_t d = 4 * (lane + LANES * c);
                    bool there = seen && d < head_dim;
                    int64_t byte = (at + d) * size_of<T>;
                    ks[i][c] = there ? *(const raw *)(k + byte) : four<T>::zero();
                    vs[i][c] = there ? *(const raw *)(v + byte) : four<T>::zero();
                }
            }
            float x[KEYS];
#pragma unroll
            for (uint32_t i = 0; i < KEYS; i++) {
                x[i] = 0;
#pragma unroll
                for (uint32_t c = 0; c < CHUNKS; c++) {
                    float4 y = four<T>::widen(ks[i][c]);
                    x[i] = fmaf(q[c].x, y.x, x[i]);
                    x[i] = fmaf(q[c].y, y.y, x[i]);
                    x[i] = fmaf(q[c].z, y.z, x[i]);
                    x[i] = fmaf(q[c].w, y.w, x[i]);
                }
            }
            team_sums<LANES>(x);
#pragma unroll
            for (uint32_t i = 0; i < KEYS; i++)
                x[i] *= logit_scale;
            if (a.soft_cap > 0) {
#pragma unroll
                for (uint32_t i = 0; i < KEYS; i++) {
                    float y = x[i] / a.soft_cap; // small: its own tanh, but for bits that it lost
                    x[i] = fabsf(y) < 0x1p-13f ? x[i] : a.soft_cap * tanhf(y);
                }
            }
            float larger = maximum;
#pragma unroll
            for (uint32_t i = 0; i < KEYS; i++) {
                x[i] = key + i < end ? x[i] : -INFINITY;
                larger = fmaxf(larger, x[i]);
            }
            // No key yet: every exponential below is 0, not a NaN.
            float base = larger == -INFINITY ? 0.0f : larger;
            float fade = expf(maximum - base);
            maximum = larger;
            sum *= fade;
#pragma unroll
            for (uint32_t c = 0; c < CHUNKS; c++)
                out[c] =
                    make_float4(out[c].x * fade, out[c].y * fade, out[c].z * fade, out[c].w * fade);
#pragma unroll
            for (uint32_t i = 0; i < KEYS; i++) {
                float weight = expf(x[i] - base);
                sum += weight;
#pragma unroll
                for (uint32_t c = 0; c < CHUNKS; c++) {
                    float4 y = four<T>::widen(vs[i][c]);
                    out[c].x = fmaf(weight, y.x, out[c].x);
                    out[c].y = fmaf(weight, y.y, out[c].y);
                    out[c].z = fmaf(weight, y.z, out[c].z);
                    out[c].w = fmaf(weight, y.w, out[c].w);
                }
            }
        }

        if (lane == 0) {
            maxima[team] = maximum;
            sums[team] = sum;
        }
#pragma unroll
        for (uint32_t c = 0; c < CHUNKS; c++) {
            uint32_t d = 4 * (lane + LANES * c);
            if (d < head_dim)
                *(float4 *)(outs + team * head_dim + d) = out[c];
        }
        __syncthreads();
        float sink = a.sinks != NULL ? a.sinks[head] : -INFINITY;
        float largest = sink;
        for (uint32_t i = 0; i < TEAMS; i++)
            largest = fmaxf(largest, maxima[i]);
        float base = largest == -INFINITY ? 0.0f : largest;
        float total = expf(sink - base);
        for (uint32_t i = 0; i < TEAMS; i++)
            total += sums[i] * expf(maxima[i] - base);
        int64_t out_row = r.token * a.out.token_stride + head * a.out.head_stride;
        for (uint32_t d = threadIdx.x; d < head_dim; d += THREADS) {
            float y = 0;
            for (uint32_t i = 0; i < TEAMS; i++)
                y += outs[i * head_dim + d] * expf(maxima[i] - base);
            y = first < end ? y / total * v_scale : 0.0f;
            store_one(a.out.data, out_row + d, a.dtype, y);
        }
        if (threadIdx.x == 0 && a.lse.data != NULL)
            ((float *)a.lse.data)[r.token * a.lse.token_stride + head * a.lse.head_stride] =
                total > 0 || total != total ? largest + logf(total) : -INFINITY;
        __syncthreads();
    }
}

// --- host --------------------------------------------------------------------------------------

template <class T, uint32_t LANES, uint32_t CHUNKS, uint32_t KEYS>
int launch(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    (void)d;
    uint64_t rows = (uint64_t)a->batch.nnz * a->qo_heads;
    uint64_t most = a->max_ctas != 0 ? a->max_ctas : INT32_MAX;
    size_t smem = THREADS / LANES * (2 + a->kv.head_dim) * sizeof(float);
    return start_kernel(generic_kernel<T, LANES, CHUNKS, KEYS>,
                        dim3((uint32_t)(rows < most ? rows : most)), dim3(THREADS), smem, stream,
                        a->after_previous, *a);
}

template <class T>
int launch_dims(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    uint32_t head_dim = a->kv.head_dim;
    return head_dim <= 64    ? launch<T, 16, 1, 4>(d, a, stream)
           : head_dim <= 128 ? launch<T, 32, 1, 4>(d, a, stream)
           : head_dim <= 256 ? launch<T, 32, 2, 4>(d, a, stream)
                             : launch<T, 32, 5, 2>(d, a, stream);
}

} // namespace

int cuda_generic(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    if (a->batch.nnz == 0 || a->batch.n == 0)
        return 0;
    if (a->kv.head_dim > 640 || a->kv.head_dim % 8 != 0)
        return (int)cudaErrorInvalidValue;
    switch (a->kv.dtype) {
    case CUDA_FP32:
        return launch_dims<fp32>(d, a, stream);
    case CUDA_FP16:
        return launch_dims<fp16>(d, a, stream);
    case CUDA_BF16:
        return launch_dims<bf16>(d, a, stream);
    default:
        return launch_dims<e4m3>(d, a, stream);
    }
}
