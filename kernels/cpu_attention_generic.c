// SPDX-License-Identifier: Apache-2.0
// cpu_attention_generic.c: the attention kernel for any processor, on 16-byte vectors (SSE2, NEON).
#include "kernels/dtype.h"

#include <stddef.h>

#define VW 4
#define ISA_PAIRS 0
#define V_EXP2_LEAST -127.0f

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

static inline vf v_zero(void) {
    return (vf){0, 0, 0, 0};
}
static inline vf v_set1(float x) {
    return (vf){x, x, x, x};
}
static inline vf v_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void v_store(float *p, vf x) {
    memcpy(p, &x, sizeof x);
}
static inline vf v_add(vf a, vf b) {
    return a + b;
}
static inline vf v_sub(vf a, vf b) {
    return a - b;
}
static inline vf v_mul(vf a, vf b) {
    return a * b;
}
static inline vf v_div(vf a, vf b) {
    return a / b;
}
static inline vf v_fma(vf a, vf b, vf c) {
    return a * b + c;
}
static inline vf v_select(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}
static inline vf v_max(vf a, vf b) {
    return v_select(a > b, a, b);
}
static inline vf v_min(vf a, vf b) {
    return v_select(a < b, a, b);
}
static inline vf v_less(vf a, vf b, vf x, vf y) {
    return v_select(a < b, x, y);
}
static inline vf v_round(vf x) {
    vf magic = v_set1(12582912.0f); // 1.5 * 2^23: the sum has no bits below 1
    return (x + magic) - magic;
}
static inline vf v_scale2(vf x, vf n) {
    // n + 127 is an exponent field from 0 (which makes the factor 0) to 254; NaN passes through x.
    vf biased = n + v_set1(127.0f);
    biased = v_select(biased >= v_zero(), biased, v_zero());
    return x * (vf)(__builtin_convertvector(biased, vi) << 23);
}
static inline float v_first(vf x) {
    return x[0];
}
static inline float v_hsum(vf x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}
static inline float v_hmax(vf x) {
    float a = x[0] > x[1] ? x[0] : x[1];
    float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
}
static inline void v_sum4(vf a, vf b, vf c, vf d, float *ret) {
    ret[0] = v_hsum(a);
    ret[1] = v_hsum(b);
    ret[2] = v_hsum(c);
    ret[3] = v_hsum(d);
}
static inline void v_transpose(vf *r) {
    vf a = r[0];
    vf b = r[1];
    vf c = r[2];
    vf d = r[3];
    r[0] = (vf){a[0], b[0], c[0], d[0]};
    r[1] = (vf){a[1], b[1], c[1], d[1]};
    r[2] = (vf){a[2], b[2], c[2], d[2]};
    r[3] = (vf){a[3], b[3], c[3], d[3]};
}

// head_dim is a multiple of 8: a vector is always whole, and masks mean nothing.
typedef uint32_t v_mask;
static inline v_mask v_first_lanes(size_t n) {
    return (v_mask)n;
}

static inline vf v_words(kvpool_dtype dtype, const void *row, size_t i, v_mask mask) {
    (void)mask;
    vf x;
    if (dtype == KVPOOL_FP32) {
        memcpy(&x, (const char *)row + (size_t)i * 4, sizeof x);
        return x;
    }
    for (size_t j = 0; j < VW; j++)
        x[j] = dtype_load(dtype, row, i + j);
    return x;
}
static inline void v_out(kvpool_dtype dtype, void *out, size_t i, v_mask mask, vf x) {
    (void)mask;
    for (size_t j = 0; j < VW; j++)
        dtype_store(dtype, out, i + j, x[j]);
}

#define V_WIDEN 8
static inline void v_widen(kvpool_dtype dtype, void *out, const void *row, size_t i, v_mask mask) {
    (void)mask;
    for (size_t j = i; j < i + V_WIDEN; j++)
        dtype_store(dtype, out, j, dtype_e4m3_to_fp32(((const uint8_t *)row)[j]));
}

#include "kernels/cpu_attention_kernel.h"

const struct attn_isa attn_generic = {"generic", attn_run, attn_finish};
