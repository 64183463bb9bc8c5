// SPDX-License-Identifier: Apache-2.0
// cpu_isa_avx512.h: the primitives of cpu_attention_kernel.h on AVX-512 (F, BW, VL, DQ). The
// including file defines ISA_PAIRS: 1 uses AVX512_BF16 as well.
#include "kernels/dtype.h"

#include <immintrin.h>
#include <stdbool.h>

#define VW 16
#define V_EXP2_LEAST -200.0f

typedef __m512 vf;

static inline vf v_zero(void) {
    return _mm512_setzero_ps();
}
static inline vf v_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline vf v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
static inline vf v_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
static inline vf v_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
static inline vf v_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
static inline vf v_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
static inline vf v_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf v_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf v_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
static inline vf v_less(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline vf v_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
}
static inline vf v_scale2(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
}
static inline float v_first(vf x) {
    return _mm512_cvtss_f32(x);
}
static inline float v_hsum(vf x) {
    return _mm512_reduce_add_ps(x);
}
static inline float v_hmax(vf x) {
    return _mm512_reduce_max_ps(x);
}

static inline __m256 add_halves(vf x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}
static inline void v_sum4(vf a, vf b, vf c, vf d, float *ret) {
    __m256 a8 = add_halves(a);
    __m256 b8 = add_halves(b);
    __m256 c8 = add_halves(c);
    __m256 d8 = add_halves(d);
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a8, b8), _mm256_unpackhi_ps(a8, b8));
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c8, d8), _mm256_unpackhi_ps(c8, d8));
    __m256 x = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(ret, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}

static inline __attribute__((always_inline)) void v_transpose(vf *r) {
    vf a[16];
    vf b[16];
    for (int i = 0; i < 16; i += 2) { // pairs of rows, within 128-bit lanes
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { // b[i + j]: column j of each lane, rows i..i+3
        b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int j = 0; j < 4; j++) { // a 4 x 4 transpose of lanes
        vf x = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x44);
        vf y = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xee);
        vf z = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x44);
        vf u = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xee);
        r[j] = _mm512_shuffle_f32x4(x, z, 0x88);
        r[j + 4] = _mm512_shuffle_f32x4(x, z, 0xdd);
        r[j + 8] = _mm512_shuffle_f32x4(y, u, 0x88);
        r[j + 12] = _mm512_shuffle_f32x4(y, u, 0xdd);
    }
}

// 32 bits: a load of fp32, words or widened elements uses the lower 16.
typedef __mmask32 v_mask;
static inline v_mask v_first_lanes(size_t n) {
    return n >= 32 ? ~(v_mask)0 : (v_mask)((1u << n) - 1u);
}

static inline vf v_words(kvpool_dtype dtype, const void *row, size_t i, v_mask mask32) {
    __mmask16 mask = (__mmask16)mask32;
    if (dtype == KVPOOL_FP32 || (ISA_PAIRS && dtype == KVPOOL_BF16))
        return _mm512_maskz_loadu_ps(mask, (const float *)row + i);
    __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + i);
    if (dtype == KVPOOL_FP16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __m256i narrow_bf16(vf x) { // as dtype_fp32_to_bf16
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

static inline void v_out(kvpool_dtype dtype, void *out, size_t i, v_mask mask32, vf x) {
    __mmask16 mask = (__mmask16)mask32;
    if (dtype == KVPOOL_FP32)
        _mm512_mask_storeu_ps((float *)out + i, mask, x);
    else
        _mm256_mask_storeu_epi16(
            (uint16_t *)out + i, mask,
            dtype == KVPOOL_FP16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : narrow_bf16(x));
}

// 32 e4m3, a 16-bit lane each, as fp16 or bf16: the exponent is rebiased, the eight denormals and NaN
// are put in.
static inline __m512i widen_e4m3(kvpool_dtype dtype, __m512i x) {
    static const uint16_t fp16[8] = {0, 0x1800, 0x1c00, 0x1e00, 0x2000, 0x2100, 0x2200, 0x2300};
    static const uint16_t bf16[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    bool half = dtype == KVPOOL_FP16;
    __m512i denormal =
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(half ? fp16 : bf16)));
    __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
    __m512i sign = _mm512_slli_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0x80)), 8);
    __m512i y = _mm512_add_epi16(_mm512_slli_epi16(magnitude, half ? 7 : 4),
                                 _mm512_set1_epi16((short)(half ? 8 << 10 : 120 << 7)));
    __mmask32 small = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
    y = _mm512_mask_permutexvar_epi16(y, small, magnitude, denormal);
    __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    y = _mm512_mask_mov_epi16(y, nan, _mm512_set1_epi16(0x7fff));
    return _mm512_or_si512(y, sign);
}

#define V_WIDEN 32
static inline void v_widen(kvpool_dtype dtype, void *out, const void *row, size_t i, v_mask mask) {
    __m256i x = _mm256_maskz_loadu_epi8(mask, (const uint8_t *)row + i);
    __m512i y = widen_e4m3(dtype == KVPOOL_FP32 ? KVPOOL_BF16 : dtype, _mm512_cvtepu8_epi16(x));
    if (dtype != KVPOOL_FP32) {
        _mm512_mask_storeu_epi16((uint16_t *)out + i, mask, y);
        return;
    }
    __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(y));
    __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(y, 1));
    _mm512_mask_storeu_epi32((float *)out + i, (__mmask16)mask, _mm512_slli_epi32(low, 16));
    _mm512_mask_storeu_epi32((float *)out + i + 16, (__mmask16)(mask >> 16),
                             _mm512_slli_epi32(high, 16));
}

#if ISA_PAIRS
static inline vf v_dot_pairs(vf acc, vf a, vf b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_castps_si512(a),
                            (__m512bh)_mm512_castps_si512(b));
}

// Elements i..i+32 of two rows as pairs (a, b), those outside of the masks zero and not read.
static inline void v_pair_rows(const void *a, const void *b, size_t i, v_mask mask_a, v_mask mask_b,
                               vf *lo, vf *hi) {
    static const uint16_t order[64] = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    __m512i x = _mm512_maskz_loadu_epi16(mask_a, (const uint16_t *)a + i);
    __m512i y = _mm512_maskz_loadu_epi16(mask_b, (const uint16_t *)b + i);
    *lo = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, _mm512_loadu_si512(order), y));
    *hi = _mm512_castsi512_ps(_mm512_permutex2var_epi16(x, _mm512_loadu_si512(order + 32), y));
}

// 32 probabilities as pairs, rounded to nearest even.
static inline vf v_narrow_pairs(vf a, vf b) {
    return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(b, a));
}
#endif
