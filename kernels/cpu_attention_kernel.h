// SPDX-License-Identifier: Apache-2.0
// cpu_attention_kernel.h: the body of every CPU attention kernel. A file that includes it defines
// the vector primitives first and so makes the kernel of one instruction set.
//
//   VW                      lanes of a vector `vf` of fp32
//   ISA_PAIRS               1: bf16 is multiplied in pairs, see below
//   v_zero v_set1 v_load v_store v_add v_sub v_mul v_div v_fma(a,b,c)=a*b+c
//   v_max v_min             of (a, b): b where either is NaN
//   v_less(a, b, x, y)      x where a < b, else y: also where either is NaN
//   v_round                 to the nearest integer, |x| < 2^22
//   v_scale2(x, n)          x * 2^n, n whole; 0 for n = V_EXP2_LEAST
//   v_hsum v_hmax           over the lanes
//   v_sum4(a,b,c,d,ret)     four v_hsum
//   v_transpose(vf r[VW])
//   v_mask v_first_lanes(n)       the first n elements of a load (all, when there are not as many)
//   v_words(dtype, row, i, mask)  words i.. of a row of K, V or q, zero outside of the mask
//   v_widen(dtype, out, row, i, mask)  elements i..i+V_WIDEN of an e4m3 row to those of a row of
//                                 dtype: at most 32
//   v_out(dtype, out, i, mask, x) narrows and stores elements i.. of an output row
//   with ISA_PAIRS: v_dot_pairs(acc, a, b), v_pair_rows(a, b, i, mask_a, mask_b, &lo, &hi),
//                   v_narrow_pairs(a, b)
//
// A *word* is 32 bits of operand: one fp32 (fp16, bf16 and fp32 elements widened), or, with
// ISA_PAIRS and bf16, two neighbouring bf16. q and K are multiplied word by word along head_dim, p
// and V along the keys.
#include "kernels/cpu_attention_isa.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNROLL_NEXT // instrumented code is not unrolled
#elif defined(__clang__)
#define UNROLL_NEXT _Pragma("unroll")
#else
#define UNROLL_NEXT _Pragma("GCC unroll 16")
#endif
// A loop over register arrays: it must disappear.
#define UNROLLED(i, n) UNROLL_NEXT for (size_t i = 0; i < (n); i++)

#if VW == 16
enum { MR = 6, NV = 4, STREAM_NV = 4, STREAM_NV_FEW = 8, STREAM_TOKENS = 4 };
#elif VW == 8
enum { MR = 6, NV = 2, STREAM_NV = 2, STREAM_NV_FEW = 4, STREAM_TOKENS = 2 };
#else
enum { MR = 4, NV = 2, STREAM_NV = 2, STREAM_NV_FEW = 4, STREAM_TOKENS = 2 };
#endif

#define LOG2E 1.44269504088896340736f

ALWAYS bool in_pairs(kvpool_dtype dtype) {
    return ISA_PAIRS && dtype == KVPOOL_BF16;
}

ALWAYS vf v_dot(bool pairs, vf acc, vf a, vf b) {
#if ISA_PAIRS
    if (pairs)
        return v_dot_pairs(acc, a, b);
#else
    (void)pairs;
#endif
    return v_fma(a, b, acc);
}

// 2^x for x <= 127. Relative error below 1e-7 (polynomial 5e-9, then rounding); 2^0 is 1 exactly,
// and what is below V_EXP2_LEAST, -infinity included, gives
// 0.
ALWAYS vf v_exp2(vf x) {
    x = v_max(v_set1(V_EXP2_LEAST), x);
    vf n = v_round(x);
    vf f = v_sub(x, n);
    vf y = v_set1(1.545316294e-04f);
    y = v_fma(y, f, v_set1(1.339086336e-03f));
    y = v_fma(y, f, v_set1(9.618082557e-03f));
    y = v_fma(y, f, v_set1(5.550357114e-02f));
    y = v_fma(y, f, v_set1(2.402265076e-01f));
    y = v_fma(y, f, v_set1(6.931471880e-01f));
    y = v_fma(y, f, v_set1(1.0f));
    return v_scale2(y, n);
}

// cap * tanh(x / cap), to a relative error of a few 2^-24; factor = 1 / cap.
ALWAYS vf v_soft_cap(vf x, float factor, float cap) {
    vf u = v_mul(x, v_set1(factor));
    // |u| < 0.7: x * (tanh(u) / u), a polynomial in u^2 to 2e-8. It is x where u vanishes.
    vf z = v_mul(u, u);
    vf g = v_set1(-5.138662859e-03f);
    g = v_fma(g, z, v_set1(2.009197083e-02f));
    g = v_fma(g, z, v_set1(-5.355886159e-02f));
    g = v_fma(g, z, v_set1(1.332911074e-01f));
    g = v_fma(g, z, v_set1(-3.333318990e-01f));
    g = v_fma(g, z, v_set1(1.0f));
    // Else tanh(u) = 1 - 2 / (e^2u + 1), which is +-1 from y = +-40 on.
    vf y = v_mul(u, v_set1(2 * LOG2E));
    y = v_min(v_set1(40.0f), v_max(v_set1(-40.0f), y));
    vf e = v_add(v_exp2(y), v_set1(1.0f));
    vf far = v_mul(v_set1(cap), v_sub(v_set1(1.0f), v_div(v_set1(2.0f), e)));
    return v_less(z, v_set1(0.49f), v_mul(x, g), far);
}

ALWAYS size_t clamp(size_t x, size_t low, size_t high) {
    return x < low ? low : x > high ? high : x;
}

// Addresses of the K rows of keys first..first+n.
static void find_rows(const struct attn_keys *keys, size_t first, size_t n, const char **ret) {
    size_t mask = (1u << keys->page_shift) - 1;
    size_t done = 0;
    while (done < n) {
        size_t slot = (first + done) & mask;
        size_t end = done + (mask + 1 - slot);
        end = end < n ? end : n;
        const char *row = keys->k +
                          keys->ids[(first + done) >> keys->page_shift] * keys->page_bytes +
                          slot * keys->row_bytes;
        for (; done < end; done++, row += keys->row_bytes)
            ret[done] = row;
    }
}

// Keys of a tile for one head: K of key i is at[i] + k, its V at[i] + v.
struct span {
    const char *const *at;
    size_t n, k, v;
};

ALWAYS size_t element_bytes(kvpool_dtype dtype) {
    return dtype == KVPOOL_FP32 ? 4 : 2;
}

ALWAYS void prefetch(const char *at) {
    __builtin_prefetch(at, 0, 2);
} // into the level-2 cache

// Widens the e4m3 rows of a span, `padded` of them, to `dtype` in w->wide, which is exact; meanwhile
// fetches those of `next`.
ALWAYS struct span widen_as(struct attn_work *w, const struct span *span, size_t padded,
                            const struct span *next, kvpool_dtype dtype) {
    size_t row_bytes = (w->head_dim * element_bytes(dtype) + 63) / 64 * 64;
    size_t v_offset = ATTN_TILE * row_bytes;
    for (size_t t = 0; t < padded; t++) {
        const char *k = span->at[t] + span->k;
        const char *v = span->at[t] + span->v;
        const char *next_k = t < next->n ? next->at[t] + next->k : k;
        const char *next_v = t < next->n ? next->at[t] + next->v : v;
        char *to = (char *)w->wide + t * row_bytes;
        w->wide_at[t] = to;
        for (size_t i = 0; i < w->head_dim; i += V_WIDEN) {
            v_mask mask = v_first_lanes(w->head_dim - i);
            if (i % 64 == 0) {
                prefetch(next_k + i);
                prefetch(next_v + i);
            }
            v_widen(dtype, to, k, i, mask);
            v_widen(dtype, to + v_offset, v, i, mask);
        }
    }
    return (struct span){w->wide_at, span->n, 0, v_offset};
}

static __attribute__((noinline)) struct span widen(struct attn_work *w, const struct span *span,
                                                   size_t padded, const struct span *next,
                                                   kvpool_dtype dtype) {
    if (dtype == KVPOOL_FP32)
        return widen_as(w, span, padded, next, KVPOOL_FP32);
    if (dtype == KVPOOL_FP16)
        return widen_as(w, span, padded, next, KVPOOL_FP16);
    return widen_as(w, span, padded, next, KVPOOL_BF16);
}

// q rows as words; rows of no query are zero.
ALWAYS void load_q(struct attn_work *w, size_t words, size_t stride, kvpool_dtype dtype) {
    memset(w->q, 0, sizeof(float) * stride * w->heads * w->head_rows);
    for (size_t head = 0; head < w->heads; head++)
        for (size_t r = 0; r < w->rows; r++) {
            size_t row = head * w->head_rows + r;
            for (size_t i = 0; i < words; i += VW)
                v_store(w->q + row * stride + i,
                        v_words(dtype, w->row_q[row], i, v_first_lanes(words - i)));
        }
}

// One online-softmax step of one row: logits s[a..b) become probabilities (s[0..a) and s[b..width)
// zero), and `max` and `sum` take them in. Returns the factor for what was accumulated before.
ALWAYS float softmax_step(float *s, size_t a, size_t b, size_t width, float sm_scale,
                          float soft_cap, float *max, float *sum, bool pairs) {
    float factor = sm_scale * LOG2E;
    if (soft_cap > 0) {
        float cap = soft_cap * LOG2E;
        for (size_t i = 0; i < width; i += VW)
            v_store(s + i, v_soft_cap(v_mul(v_load(s + i), v_set1(factor)), 1 / cap, cap));
        factor = 1;
    }
    for (size_t i = 0; i < a; i++)
        s[i] = -INFINITY;
    for (size_t i = b; i < width; i++)
        s[i] = -INFINITY;
    vf largest = v_load(s);
    for (size_t i = VW; i < width; i += VW)
        largest = v_max(largest, v_load(s + i));
    float old = *max;
    float new = v_hmax(largest) * factor;
    new = new < old ? old : new; // a NaN stays
    // All -infinity (or NaN, which v_max may lose): a shift of 0 leaves 0, and NaN.
    float base = new == -INFINITY ? 0 : new;
    vf shift = v_set1(-base);
    vf total = v_zero();
    if (pairs) {
#if ISA_PAIRS
        for (size_t i = 0; i < width; i += (size_t)2 * VW) {
            vf x = v_exp2(v_fma(v_load(s + i), v_set1(factor), shift));
            vf y = v_exp2(v_fma(v_load(s + i + VW), v_set1(factor), shift));
            total = v_add(total, v_add(x, y));
            v_store(s + i / 2, v_narrow_pairs(x, y));
        }
#endif
    } else {
        for (size_t i = 0; i < width; i += VW) {
            vf x = v_exp2(v_fma(v_load(s + i), v_set1(factor), shift));
            total = v_add(total, x);
            v_store(s + i, x);
        }
    }
    float alpha = v_first(v_exp2(v_set1(old - base)));
    *max = new;
    *sum = *sum * alpha + v_hsum(total);
    return alpha;
}

#include "kernels/cpu_attention_stream.h"
#include "kernels/cpu_attention_tiled.h"

// ---------------------------------------------------------------------------------------------
// The kernel of each dtype

ALWAYS void run(struct attn_work *w, kvpool_dtype dtype) {
    if (w->rows <= ATTN_STREAM_ROWS)
        run_stream(w, dtype);
    else
        run_tiled(w, dtype);
}

static void run_fp32(struct attn_work *w) {
    run(w, KVPOOL_FP32);
}
static void run_fp16(struct attn_work *w) {
    run(w, KVPOOL_FP16);
}
static void run_bf16(struct attn_work *w) {
    run(w, KVPOOL_BF16);
}

static void attn_run(struct attn_work *w, kvpool_dtype dtype) {
    for (size_t r = 0; r < (size_t)w->heads * w->head_rows; r++) {
        w->max[r] = -INFINITY;
        w->sum[r] = 0;
    }
    if (dtype == KVPOOL_FP32)
        run_fp32(w);
    else if (dtype == KVPOOL_FP16)
        run_fp16(w);
    else
        run_bf16(w);
}

ALWAYS void finish_as(kvpool_dtype dtype, size_t head_dim, const float *o, float factor,
                      void *out) {
    vf x = v_set1(factor);
    for (size_t i = 0; i < head_dim; i += VW)
        v_out(dtype, out, i, v_first_lanes(head_dim - i), v_mul(v_load(o + i), x));
}

static void attn_finish(kvpool_dtype dtype, size_t head_dim, const float *o, float factor,
                        void *out) {
    if (dtype == KVPOOL_FP32)
        finish_as(KVPOOL_FP32, head_dim, o, factor, out);
    else if (dtype == KVPOOL_FP16)
        finish_as(KVPOOL_FP16, head_dim, o, factor, out);
    else
        finish_as(KVPOOL_BF16, head_dim, o, factor, out);
}
