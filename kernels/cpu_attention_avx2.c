// SPDX-License-Identifier: Apache-2.0
// cpu_attention_avx2.c: the attention kernel for AVX2 with FMA and F16C. Call it only where
// cpu_attention.c found them.
#include "kernels/dtype.h"

#include <immintrin.h>

#define VW 8
#define ISA_PAIRS 0
#define V_EXP2_LEAST -127.0f

typedef __m256 vf;

static inline vf v_zero(void) {
    return _mm256_setzero_ps();
}
static inline vf v_set1(float x) {
    return _mm256_set1_ps(x);
}
static inline vf v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void v_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
static inline vf v_add(vf a, vf b) {
    return _mm256_add_ps(a, b);
}
static inline vf v_sub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}
static inline vf v_mul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
static inline vf v_div(vf a, vf b) {
    return _mm256_div_ps(a, b);
}
static inline vf v_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf v_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf v_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
static inline vf v_less(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline vf v_round(vf x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf v_scale2(vf x, vf n) {
    // n + 127 is an exponent field from 0 (which makes the factor 0) to 254; NaN passes through x.
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
static inline float v_first(vf x) {
    return _mm256_cvtss_f32(x);
}
static inline float v_hsum(vf x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
static inline float v_hmax(vf x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
static inline void v_sum4(vf a, vf b, vf c, vf d, float *ret) {
    vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf lo = _mm256_shuffle_ps(ab, cd, 0x44);
    vf hi = _mm256_shuffle_ps(ab, cd, 0xee);
    vf x = _mm256_add_ps(lo, hi);
    _mm_storeu_ps(ret, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
static inline void v_transpose(vf *r) {
    vf a[8];
    vf b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

// head_dim is a multiple of 8: a vector is always whole, and masks mean nothing.
typedef uint32_t v_mask;
static inline v_mask v_first_lanes(size_t n) {
    return (v_mask)n;
}

// Eight, as fp16, whose exponents are biased by 8 more; NaN is made one first.
static inline vf widen_e4m3(__m128i x) {
    __m128i e = _mm_cvtepu8_epi16(x);
    __m128i magnitude = _mm_and_si128(e, _mm_set1_epi16(0x7f));
    __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7),
                                _mm_slli_epi16(_mm_and_si128(e, _mm_set1_epi16(0x80)), 8));
    half = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(0x1p8f));
}

static inline vf v_words(kvpool_dtype dtype, const void *row, size_t i, v_mask mask) {
    (void)mask;
    if (dtype == KVPOOL_FP32)
        return _mm256_loadu_ps((const float *)row + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)row + i));
    if (dtype == KVPOOL_FP16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline __m128i narrow_bf16(vf x) { // as dtype_fp32_to_bf16
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    vf nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    bits = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
    bits = _mm256_srli_epi32(bits, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

static inline void v_out(kvpool_dtype dtype, void *out, size_t i, v_mask mask, vf x) {
    (void)mask;
    if (dtype == KVPOOL_FP32)
        _mm256_storeu_ps((float *)out + i, x);
    else
        _mm_storeu_si128((__m128i *)((uint16_t *)out + i),
                         dtype == KVPOOL_FP16 ? _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)
                                              : narrow_bf16(x));
}

#define V_WIDEN 8
static inline void v_widen(kvpool_dtype dtype, void *out, const void *row, size_t i, v_mask mask) {
    __m128i x = _mm_loadl_epi64((const __m128i *)((const uint8_t *)row + i));
    v_out(dtype, out, i, mask, widen_e4m3(x));
}

#include "kernels/cpu_attention_kernel.h"

const struct attn_isa attn_avx2 = {"avx2", attn_run, attn_finish};
