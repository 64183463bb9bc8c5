// SPDX-License-Identifier: Apache-2.0
// append.cu: K and V of one layer's new tokens into their pages, one launch. See launch.h.
//
// A unit is 16 bytes of a tensor's row where alignment and head_dim allow it, else one element. A warp
// has one token and 32 * UNROLL of its units (head after head, as they lie in the tensors) of K and
// the same ones of V; it issues all its loads, finds the token's place while they are under way, and
// stores. Finding takes two dependent reads where sequences have about equally many new tokens:
//
//   qo_indptr, kv_len and rows of 32 sequences around token * n / nnz, a lane each
//     -> the lane whose sequence has the token -> page table -> store
//
// else the sequence is searched for in all of qo_indptr, 33 ways a step.
//
// Invariants
//  1. Without conversion bits are copied as they are.
//  2. Only slots of positions 0 <= kv_len - q_len + j < kv_len are written; other tokens are left
//     out, and no table entry is read for them.
//  3. Nothing is read before wait_previous_kernel(): lengths, tables and tensors may be the results of
//     the kernel before.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

namespace {

constexpr uint32_t ALL = 0xffffffffu;

// Strides in bytes; to: K's plane.
struct append_args {
    const char *k, *v;
    char *to;
    int64_t k_token, k_head, v_token, v_head;
    int64_t page, value, head, token;
    uint32_t units;     // of a token: kv_heads * row_units
    uint32_t row_units; // of one row of head_dim elements
    uint32_t row_magic; // ceil(2^31 / row_units): unit / row_units = unit * 2 * magic >> 32
    uint32_t page_shift, row_entries;
    uint32_t n, nnz;
    float n_per_token; // n / nnz
    const uint32_t *table, *rows, *kv_len, *qo_indptr;
    const float *k_scales, *v_scales;
    float k_scale, v_scale;
};

// --- units: what is loaded, what is stored -----------------------------------------------------

template <class E> struct copied {
    using from = E;
    using to = E;
    static constexpr bool scaled = false;
    static __device__ __forceinline__ E convert(E x, float) { return x; }
};

static __device__ __forceinline__ float over(float x, float scale) {
    return __fdiv_rn(x, scale);
}
// The divisions of a unit are skipped where they change nothing: most pools have no scales.
template <class T>
static __device__ __forceinline__ uint32_t quantized4(uint32_t a, uint32_t b, float scale) {
    float2 x = unpack2<T>(a), y = unpack2<T>(b);
    if (scale != 1.0f) {
        x = make_float2(over(x.x, scale), over(x.y, scale));
        y = make_float2(over(y.x, scale), over(y.y, scale));
    }
    return pack2_e4m3(x.x, x.y) | pack2_e4m3(y.x, y.y) << 16;
}

template <class T> struct quantized_16 { // 8 elements
    using from = uint4;
    using to = uint2;
    static constexpr bool scaled = true;
    static __device__ __forceinline__ uint2 convert(uint4 x, float scale) {
        return make_uint2(quantized4<T>(x.x, x.y, scale), quantized4<T>(x.z, x.w, scale));
    }
};
template <> struct quantized_16<fp32> { // 4 elements
    using from = uint4;
    using to = uint32_t;
    static constexpr bool scaled = true;
    static __device__ __forceinline__ uint32_t convert(uint4 x, float scale) {
        return pack2_e4m3(over(__uint_as_float(x.x), scale), over(__uint_as_float(x.y), scale)) |
               pack2_e4m3(over(__uint_as_float(x.z), scale), over(__uint_as_float(x.w), scale))
                   << 16;
    }
};
template <class T> struct quantized_1 {
    using from = uint16_t;
    using to = uint8_t;
    static constexpr bool scaled = true;
    static __device__ __forceinline__ uint8_t convert(uint16_t x, float scale) {
        return (uint8_t)pack2_e4m3(over(unpack2<T>(x).x, scale), 0.0f);
    }
};
template <> struct quantized_1<fp32> {
    using from = uint32_t;
    using to = uint8_t;
    static constexpr bool scaled = true;
    static __device__ __forceinline__ uint8_t convert(uint32_t x, float scale) {
        return (uint8_t)pack2_e4m3(over(__uint_as_float(x), scale), 0.0f);
    }
};

// --- where a token goes ------------------------------------------------------------------------

// A lane's sequence among 32 that probably have the token's among them.
struct candidates {
    uint32_t first; // sequence of lane 0
    uint32_t start, kv_len, row;
};
struct place {
    bool valid;
    uint32_t row, position;
};

static __device__ __forceinline__ candidates load_candidates(const append_args &a, uint32_t token) {
    uint32_t guess = (uint32_t)((float)token * a.n_per_token);
    uint32_t last = a.n > 31 ? a.n - 31 : 0; // qo_indptr's last 32 entries begin there
    uint32_t first = guess > 15 ? guess - 15 : 0;
    candidates c;
    c.first = first < last ? first : last;
    uint32_t s = c.first + threadIdx.x % 32;
    c.start = a.qo_indptr[s < a.n ? s : a.n];
    s = s < a.n ? s : a.n - 1;
    c.kv_len = a.kv_len[s];
    c.row = a.rows[s];
    return c;
}

static __device__ __forceinline__ place place_of(uint32_t kv_len, uint32_t row, uint32_t end,
                                                 uint32_t token) {
    int64_t position = (int64_t)kv_len - end + token;
    return {token < end && position >= 0, row, (uint32_t)position};
}

// The whole warp calls it with the same token.
static __device__ __forceinline__ place find_place(const append_args &a, const candidates &c,
                                                   uint32_t token) {
    uint32_t lane = threadIdx.x % 32;
    bool starts_below = c.first + lane < a.n && c.start <= token;
    uint32_t below = (uint32_t)__popc(__ballot_sync(ALL, starts_below));
    if (below > 0 && below < 32) {
        int at = (int)below - 1;
        return place_of(__shfl_sync(ALL, c.kv_len, at), __shfl_sync(ALL, c.row, at),
                        __shfl_sync(ALL, c.start, at + 1), token);
    }
    // qo_indptr[low] <= token < qo_indptr[high]
    uint32_t low = below == 0 ? 0 : c.first + 31;
    uint32_t high = below == 0 ? c.first : a.n;
    while (high - low > 1) {
        uint32_t step = (high - low + 32) / 33;
        uint32_t s = low + (lane + 1) * step;
        below = (uint32_t)__popc(__ballot_sync(ALL, s < high && a.qo_indptr[s] <= token));
        low += below * step;
        high = high - low > step ? low + step : high;
    }
    return place_of(a.kv_len[low], a.rows[low], a.qo_indptr[low + 1], token);
}

// --- kernel ------------------------------------------------------------------------------------

template <class U, int UNROLL>
__global__ void __launch_bounds__(256) append_kernel(const __grid_constant__ append_args a) {
    using from = typename U::from;
    using to = typename U::to;
    wait_previous_kernel();
    start_next_kernel();
    uint32_t token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= a.nnz)
        return;
    candidates c = load_candidates(a, token);
    const char *k = a.k + token * a.k_token;
    const char *v = a.v + token * a.v_token;
    uint32_t first = blockIdx.y * 32 * UNROLL + threadIdx.x % 32;
    uint32_t head[UNROLL], index[UNROLL];
    from x[UNROLL], y[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; i++) {
        // Lanes past the end load the last unit again, which takes no branch, and do not store it.
        uint32_t unit = first + 32 * i < a.units ? first + 32 * i : a.units - 1;
        head[i] = __umulhi(2 * unit, a.row_magic);
        index[i] = unit - head[i] * a.row_units;
        x[i] = *(const from *)(k + head[i] * a.k_head + index[i] * sizeof(from));
        y[i] = *(const from *)(v + head[i] * a.v_head + index[i] * sizeof(from));
    }
    place at = find_place(a, c, token);
    if (!at.valid)
        return;
    uint32_t page = a.table[(uint64_t)at.row * a.row_entries + (at.position >> a.page_shift)];
    uint32_t slot = at.position & ((1u << a.page_shift) - 1);
    char *slots = a.to + page * a.page + slot * a.token;
#pragma unroll
    for (int i = 0; i < UNROLL; i++)
        if (first + 32 * i < a.units) {
            float k_scale = a.k_scale, v_scale = a.v_scale;
            if (U::scaled && a.k_scales != NULL)
                k_scale = a.k_scales[head[i]];
            if (U::scaled && a.v_scales != NULL)
                v_scale = a.v_scales[head[i]];
            char *into = slots + head[i] * a.head + index[i] * sizeof(to);
            *(to *)into = U::convert(x[i], k_scale);
            *(to *)(into + a.value) = U::convert(y[i], v_scale);
        }
}

// --- host --------------------------------------------------------------------------------------

template <class U, int UNROLL>
int launch(const struct cuda_device *d, const struct append_args *a, bool after_previous,
           void *stream) {
    uint32_t pieces = (a->units + 32 * UNROLL - 1) / (32 * UNROLL);
    // Few warps are spread over all multiprocessors.
    uint32_t warps = 8;
    while (warps > 1 && (uint64_t)a->nnz * pieces < (uint64_t)d->sms * warps)
        warps /= 2;
    return start_kernel(append_kernel<U, UNROLL>, dim3((a->nnz + warps - 1) / warps, pieces),
                        dim3(32 * warps), 0, stream, after_previous, *a);
}
// A token of at most 32 units (few heads) needs no more registers than for one.
template <class U>
int launch_units(const struct cuda_device *d, const struct append_args *a, bool after_previous,
                 void *stream) {
    return a->units <= 32 ? launch<U, 1>(d, a, after_previous, stream)
                          : launch<U, 4>(d, a, after_previous, stream);
}

uint32_t size_of(uint32_t dtype) {
    return dtype == CUDA_FP32 ? 4 : dtype == CUDA_E4M3 ? 1 : 2;
}

} // namespace

int cuda_append(const struct cuda_device *d, const struct cuda_append *a, void *stream) {
    const struct cuda_kv *kv = &a->kv;
    if (a->batch.nnz == 0 || a->batch.n == 0)
        return 0;
    int64_t from = size_of(a->dtype), to = size_of(kv->dtype);
    bool quantize = kv->dtype == CUDA_E4M3;
    struct append_args p = {};
    p.k = (const char *)a->k.data;
    p.v = (const char *)a->v.data;
    p.to = (char *)kv->k;
    p.k_token = a->k.token_stride * from;
    p.k_head = a->k.head_stride * from;
    p.v_token = a->v.token_stride * from;
    p.v_head = a->v.head_stride * from;
    p.page = kv->page_stride * to;
    p.value = kv->value_stride * to;
    p.head = kv->head_stride * to;
    p.token = kv->token_stride * to;
    int64_t row = kv->head_dim * from;
    uint64_t any = (uint64_t)(uintptr_t)p.k | (uint64_t)(uintptr_t)p.v | (uint64_t)(uintptr_t)p.to |
                   (uint64_t)p.k_token | (uint64_t)p.k_head | (uint64_t)p.v_token |
                   (uint64_t)p.v_head | (uint64_t)p.page | (uint64_t)p.value | (uint64_t)p.head |
                   (uint64_t)p.token | (uint64_t)row;
    bool wide = any % 16 == 0;
    p.row_units = wide ? (uint32_t)(row / 16) : kv->head_dim;
    p.units = kv->kv_heads * p.row_units;
    p.row_magic = (uint32_t)((0x80000000u + p.row_units - 1) / p.row_units);
    p.page_shift = kv->page_shift;
    p.row_entries = a->batch.row_entries;
    p.n = a->batch.n;
    p.nnz = a->batch.nnz;
    p.n_per_token = (float)a->batch.n / (float)a->batch.nnz;
    p.table = a->batch.table;
    p.rows = a->batch.rows;
    p.kv_len = a->batch.kv_len;
    p.qo_indptr = a->batch.qo_indptr;
    p.k_scales = kv->k_scales;
    p.v_scales = kv->v_scales;
    p.k_scale = kv->k_scale != 0 ? kv->k_scale : 1;
    p.v_scale = kv->v_scale != 0 ? kv->v_scale : 1;
    bool after = a->after_previous;
    if (!quantize)
        return wide        ? launch_units<copied<uint4>>(d, &p, after, stream)
               : from == 4 ? launch<copied<uint32_t>, 4>(d, &p, after, stream)
                           : launch<copied<uint16_t>, 4>(d, &p, after, stream);
    if (a->dtype == CUDA_FP16)
        return wide ? launch_units<quantized_16<fp16>>(d, &p, after, stream)
                    : launch<quantized_1<fp16>, 4>(d, &p, after, stream);
    if (a->dtype == CUDA_BF16)
        return wide ? launch_units<quantized_16<bf16>>(d, &p, after, stream)
                    : launch<quantized_1<bf16>, 4>(d, &p, after, stream);
    return wide ? launch_units<quantized_16<fp32>>(d, &p, after, stream)
                : launch<quantized_1<fp32>, 4>(d, &p, after, stream);
}
