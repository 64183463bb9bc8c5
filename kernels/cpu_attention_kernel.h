// SPDX-License-Identifier: Apache-2.0
// cpu_attention_kernel.h: the body of every CPU attention kernel. A file that includes it defines
// the vector primitives first and so makes the kernel of one instruction set.
//
//   VW                      lanes of a vector `vf` of fp32
//   ISA_PAIRS               1: bf16 is multiplied in pairs, see below
//   v_zero v_set1 v_load v_store v_add v_sub v_mul v_div v_fma(a,b,c)=a*b+c
//   v_max v_min             of (a, b): b where either is NaN
//   v_round                 to the nearest integer, |x| < 2^22
//   v_scale2(x, n)          x * 2^n, n whole; 0 for n = V_EXP2_LEAST
//   v_hsum v_hmax           over the lanes
//   v_sum4(a,b,c,d,ret)     four v_hsum
//   v_transpose(vf r[VW])
//   v_words(dtype, row, i, n)  words i.. of a row of K, V or q; n: how many there are, at least 1
//   v_out(dtype, out, i, n, x) narrows and stores elements i.. of an output row
//   with ISA_PAIRS: v_dot_pairs(acc, a, b), v_pair_rows(a, b, i, na, nb, &lo, &hi),
//                   v_narrow_pairs(a, b)
//
// A *word* is 32 bits of operand: one fp32 (fp16, bf16 and fp32 elements widened), or, with
// ISA_PAIRS and bf16, two neighbouring bf16. q and K are multiplied word by word along head_dim, p
// and V along the keys.
//
// Few rows ("stream"): K and V are read once, where they lie, for all rows: decode runs at the
// speed of memory. Many rows ("tiled"): K and V of a tile are repacked so that both products are
// matrix products with register blocks of MR x NV vectors.
#include "kernels/cpu_attention_isa.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

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
// and what is below V_EXP2_LEAST, -infinity included, gives 0.
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

// cap * tanh(x * factor / (2 log2 e)), from tanh(y) = 1 - 2 / (e^2y + 1).
ALWAYS vf v_soft_cap(vf x, float factor, float cap) {
    vf y = v_mul(x, v_set1(factor));
    y = v_min(v_set1(40.0f), v_max(v_set1(-40.0f), y));
    vf e = v_add(v_exp2(y), v_set1(1.0f));
    return v_mul(v_set1(cap), v_sub(v_set1(1.0f), v_div(v_set1(2.0f), e)));
}

ALWAYS uint32_t clamp(uint32_t x, uint32_t low, uint32_t high) {
    return x < low ? low : x > high ? high : x;
}

// Addresses of the K rows of keys first..first+n.
static void find_rows(const struct attn_keys *keys, uint32_t first, uint32_t n, const char **ret) {
    uint32_t mask = (1u << keys->page_shift) - 1;
    uint32_t done = 0;
    while (done < n) {
        uint32_t slot = (first + done) & mask;
        uint32_t end = done + (mask + 1 - slot);
        end = end < n ? end : n;
        const char *row = keys->k +
                          keys->ids[(first + done) >> keys->page_shift] * keys->page_bytes +
                          slot * keys->row_bytes;
        for (; done < end; done++, row += keys->row_bytes)
            ret[done] = row;
    }
}

ALWAYS void prefetch_row(const char *row, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i, 0, 2);
}

// q rows as words; rows up to `padded` are zero.
ALWAYS void load_q(struct attn_work *w, uint32_t words, uint32_t stride, uint32_t padded,
                   kvpool_dtype dtype) {
    for (uint32_t r = 0; r < w->rows; r++)
        for (uint32_t i = 0; i < words; i += VW)
            v_store(w->q + r * stride + i, v_words(dtype, w->row_q[r], i, words - i));
    memset(w->q + w->rows * stride, 0, (size_t)(padded - w->rows) * stride * sizeof(float));
}

// One online-softmax step of one row: logits s[a..b) become probabilities (s[0..a) and s[b..width)
// zero), and `max` and `sum` take them in. Returns the factor for what was accumulated before.
ALWAYS float softmax_step(float *s, uint32_t a, uint32_t b, uint32_t width, float sm_scale,
                          float soft_cap, float *max, float *sum, bool pairs) {
    float factor = sm_scale * LOG2E;
    if (soft_cap > 0) {
        for (uint32_t i = 0; i < width; i += VW)
            v_store(s + i, v_soft_cap(v_load(s + i), 2 * LOG2E * sm_scale / soft_cap, soft_cap));
        factor = LOG2E;
    }
    for (uint32_t i = 0; i < a; i++)
        s[i] = -INFINITY;
    for (uint32_t i = b; i < width; i++)
        s[i] = -INFINITY;
    vf largest = v_load(s);
    for (uint32_t i = VW; i < width; i += VW)
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
        for (uint32_t i = 0; i < width; i += 2 * VW) {
            vf x = v_exp2(v_fma(v_load(s + i), v_set1(factor), shift));
            vf y = v_exp2(v_fma(v_load(s + i + VW), v_set1(factor), shift));
            total = v_add(total, v_add(x, y));
            v_store(s + i / 2, v_narrow_pairs(x, y));
        }
#endif
    } else {
        for (uint32_t i = 0; i < width; i += VW) {
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

// ---------------------------------------------------------------------------------------------
// Stream

// Logits of `nr` rows for n keys. at[] is padded to a multiple of 4 entries.
ALWAYS void stream_logits(const float *q, uint32_t q_stride, uint32_t words, uint32_t nr,
                          const char *const *at, uint32_t n, const char *const *next,
                          uint32_t n_next, size_t row_bytes, float *s, kvpool_dtype dtype) {
    const uint32_t tokens = nr < 4 ? 4 : STREAM_TOKENS;
    for (uint32_t t = 0; t < n; t += tokens) {
        for (uint32_t i = t; i < t + tokens && i < n_next; i++)
            prefetch_row(next[i], row_bytes);
        vf acc[4][4];
        UNROLL for (uint32_t r = 0; r < nr; r++) UNROLL for (uint32_t i = 0; i < tokens; i++)
            acc[r][i] = v_zero();
        for (uint32_t j = 0; j < words; j += VW) {
            vf k[4];
            UNROLL for (uint32_t i = 0; i < tokens; i++) k[i] =
                v_words(dtype, at[t + i], j, words - j);
            UNROLL for (uint32_t r = 0; r < nr; r++) {
                vf x = v_load(q + r * q_stride + j);
                UNROLL for (uint32_t i = 0; i < tokens; i++) acc[r][i] =
                    v_dot(in_pairs(dtype), acc[r][i], x, k[i]);
            }
        }
        if (tokens == 4) {
            UNROLL for (uint32_t r = 0; r < nr; r++)
                v_sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], s + r * ATTN_TILE + t);
        } else {
            UNROLL for (uint32_t r = 0; r < nr; r += 2) {
                float x[4];
                v_sum4(acc[r][0], acc[r][1], acc[r + 1][0], acc[r + 1][1], x);
                memcpy(s + r * ATTN_TILE + t, x, 2 * sizeof *x);
                memcpy(s + (r + 1) * ATTN_TILE + t, x + 2, 2 * sizeof *x);
            }
        }
    }
}

// o[r][col..col+nv*VW) = o * alpha + p . V over keys a..b of the tile, `nr` rows.
ALWAYS void stream_values_block(const char *const *at, size_t v_offset, uint32_t a, uint32_t b,
                                const float *p, const float *alpha, float *o, uint32_t o_stride,
                                uint32_t head_dim, uint32_t col, uint32_t nr, uint32_t nv,
                                const char *const *next, uint32_t n_next, size_t row_bytes,
                                kvpool_dtype dtype) {
    vf acc[4][STREAM_NV_FEW];
    UNROLL for (uint32_t r = 0; r < nr; r++) UNROLL for (uint32_t c = 0; c < nv; c++) acc[r][c] =
        v_mul(v_load(o + r * o_stride + col + c * VW), v_set1(alpha[r]));
    if (in_pairs(dtype)) {
#if ISA_PAIRS
        for (uint32_t t = a & ~1u; t < b; t += 2) {
            for (uint32_t i = t; i < t + 2 && i < n_next; i++)
                prefetch_row(next[i] + v_offset, row_bytes);
            // A key outside a..b counts as a row of zeros, and its memory is not read.
            const char *v0 = at[t] + v_offset;
            const char *v1 = t + 1 < b ? at[t + 1] + v_offset : v0;
            vf x[STREAM_NV_FEW];
            UNROLL for (uint32_t c = 0; c < nv; c += 2) {
                uint32_t left = head_dim - (col + c * VW);
                v_pair_rows(v0, v1, col + c * VW, t >= a ? left : 0, t + 1 < b ? left : 0, &x[c],
                            &x[c + 1]);
            }
            UNROLL for (uint32_t r = 0; r < nr; r++) {
                vf y = v_set1(p[r * ATTN_TILE + t / 2]);
                UNROLL for (uint32_t c = 0; c < nv; c++) acc[r][c] =
                    v_dot(true, acc[r][c], y, x[c]);
            }
        }
#endif
    } else {
        for (uint32_t t = a; t < b; t++) {
            if (t < n_next)
                prefetch_row(next[t] + v_offset, row_bytes);
            vf x[STREAM_NV_FEW];
            UNROLL for (uint32_t c = 0; c < nv; c++) x[c] =
                v_words(dtype, at[t] + v_offset, col + c * VW, head_dim - (col + c * VW));
            UNROLL for (uint32_t r = 0; r < nr; r++) {
                vf y = v_set1(p[r * ATTN_TILE + t]);
                UNROLL for (uint32_t c = 0; c < nv; c++) acc[r][c] = v_fma(y, x[c], acc[r][c]);
            }
        }
    }
    UNROLL for (uint32_t r = 0; r < nr; r++) UNROLL for (uint32_t c = 0; c < nv; c++)
        v_store(o + r * o_stride + col + c * VW, acc[r][c]);
}

ALWAYS void stream_values(struct attn_work *w, const char *const *at, uint32_t a, uint32_t b,
                          uint32_t row, uint32_t nr, const char *const *next, uint32_t n_next,
                          kvpool_dtype dtype) {
    const uint32_t few = nr < 4 ? STREAM_NV_FEW : STREAM_NV;
    const float *p = w->s + row * ATTN_TILE;
    const float *alpha = w->alpha + row;
    float *o = w->o + row * w->o_stride;
    uint32_t vectors = (w->head_dim + VW - 1) / VW;
    uint32_t least = 1;
    if (in_pairs(dtype)) {
        vectors = (vectors + 1) & ~1u;
        least = 2;
    }
    uint32_t c = 0;
#define BLOCK(count)                                                                              \
    stream_values_block(at, w->keys.v_offset, a, b, p, alpha, o, w->o_stride, w->head_dim, c *VW, \
                        nr, count, next, c == 0 ? n_next : 0, w->keys.row_bytes, dtype)
    for (; c + few <= vectors; c += few)
        BLOCK(few);
    if (few >= 8 && c + 4 <= vectors) {
        BLOCK(4);
        c += 4;
    }
    if (few >= 4 && c + 2 <= vectors) {
        BLOCK(2);
        c += 2;
    }
    for (; c < vectors; c += least)
        BLOCK(least);
#undef BLOCK
}

ALWAYS void stream_rows(struct attn_work *w, const char *const *at, uint32_t t0, uint32_t n,
                        const char *const *next, uint32_t n_next, uint32_t words, uint32_t q_stride,
                        uint32_t row, uint32_t nr, kvpool_dtype dtype) {
    const bool pairs = in_pairs(dtype);
    float *s = w->s + row * ATTN_TILE;
    uint32_t step = pairs ? 2 * VW : VW;
    uint32_t width = (n + step - 1) / step * step;
    uint32_t rows = w->rows - row < nr ? w->rows - row : nr;
    uint32_t ahead = row == 0 ? n_next : 0;
    stream_logits(w->q + row * q_stride, q_stride, words, nr, at, n, next, ahead, w->keys.row_bytes,
                  s, dtype);
    uint32_t a[4] = {0};
    uint32_t b[4] = {0};
    bool same = true;
    for (uint32_t r = 0; r < rows; r++) {
        a[r] = clamp(w->lo[row + r], t0, t0 + n) - t0;
        b[r] = clamp(w->hi[row + r], t0, t0 + n) - t0;
        same = same && a[r] == a[0] && b[r] == b[0];
        if (a[r] < b[r])
            w->alpha[row + r] =
                softmax_step(s + r * ATTN_TILE, a[r], b[r], width, w->sm_scale, w->soft_cap,
                             &w->max[row + r], &w->sum[row + r], pairs);
    }
    if (same) {
        if (a[0] < b[0])
            stream_values(w, at, a[0], b[0], row, nr, next, ahead, dtype);
        return;
    }
    for (uint32_t r = 0; r < rows; r++)
        if (a[r] < b[r])
            stream_values(w, at, a[r], b[r], row + r, 1, next, 0, dtype);
}

ALWAYS void run_stream(struct attn_work *w, kvpool_dtype dtype) {
    uint32_t words = in_pairs(dtype) ? w->head_dim / 2 : w->head_dim;
    uint32_t q_stride = (words + VW - 1) / VW * VW;
    uint32_t padded = w->rows <= 2 ? w->rows : (w->rows + 3) / 4 * 4;
    load_q(w, words, q_stride, padded, dtype);
    memset(w->o, 0, (size_t)padded * w->o_stride * sizeof(float));

    uint32_t turn = 0;
    uint32_t n = w->end - w->begin < ATTN_TILE ? w->end - w->begin : ATTN_TILE;
    find_rows(&w->keys, w->begin, n, w->at[turn]);
    for (uint32_t t0 = w->begin; t0 < w->end; turn ^= 1) {
        const char **at = w->at[turn];
        const char **next = w->at[turn ^ 1];
        uint32_t after = t0 + n;
        uint32_t n_next = w->end - after < ATTN_TILE ? w->end - after : ATTN_TILE;
        find_rows(&w->keys, after, n_next, next);
        for (uint32_t t = n; t % 4 != 0; t++)
            at[t] = at[n - 1];
        if (padded == 1)
            stream_rows(w, at, t0, n, next, n_next, words, q_stride, 0, 1, dtype);
        else if (padded == 2)
            stream_rows(w, at, t0, n, next, n_next, words, q_stride, 0, 2, dtype);
        else
            for (uint32_t row = 0; row < padded; row += 4)
                stream_rows(w, at, t0, n, next, n_next, words, q_stride, row, 4, dtype);
        t0 = after;
        n = n_next;
    }
}

// ---------------------------------------------------------------------------------------------
// Tiled

// c[r][0..nv*VW) = a . b (+ c * alpha[r] when alpha is given), MR rows, `depth` words.
ALWAYS void product_block(const float *a, uint32_t a_stride, const float *b, uint32_t b_stride,
                          float *c, uint32_t c_stride, const float *alpha, uint32_t depth,
                          uint32_t nv, bool pairs) {
    vf acc[MR][NV];
    UNROLL for (uint32_t r = 0; r < MR; r++) UNROLL for (uint32_t i = 0; i < nv; i++) acc[r][i] =
        alpha == NULL ? v_zero() : v_mul(v_load(c + r * c_stride + i * VW), v_set1(alpha[r]));
    for (uint32_t j = 0; j < depth; j++) {
        vf x[NV];
        UNROLL for (uint32_t i = 0; i < nv; i++) x[i] = v_load(b + j * b_stride + i * VW);
        UNROLL for (uint32_t r = 0; r < MR; r++) {
            vf y = v_set1(a[r * a_stride + j]);
            UNROLL for (uint32_t i = 0; i < nv; i++) acc[r][i] = v_dot(pairs, acc[r][i], y, x[i]);
        }
    }
    UNROLL for (uint32_t r = 0; r < MR; r++) UNROLL for (uint32_t i = 0; i < nv; i++)
        v_store(c + r * c_stride + i * VW, acc[r][i]);
}

// The same over `rows` rows (a multiple of MR) and `vectors` vectors of columns.
ALWAYS void product(const float *a, uint32_t a_stride, const float *b, uint32_t b_stride, float *c,
                    uint32_t c_stride, const float *alpha, uint32_t depth, uint32_t rows,
                    uint32_t vectors, bool pairs) {
    for (uint32_t i = 0; i < vectors; i += NV) {
        uint32_t nv = vectors - i < NV ? vectors - i : NV;
        for (uint32_t r = 0; r < rows; r += MR) {
            const float *ar = a + r * a_stride;
            const float *bi = b + i * VW;
            float *cr = c + r * c_stride + i * VW;
            const float *alpha_r = alpha == NULL ? NULL : alpha + r;
            if (nv == NV)
                product_block(ar, a_stride, bi, b_stride, cr, c_stride, alpha_r, depth, NV, pairs);
            else if (nv == 1)
                product_block(ar, a_stride, bi, b_stride, cr, c_stride, alpha_r, depth, 1, pairs);
            else if (nv == 2)
                product_block(ar, a_stride, bi, b_stride, cr, c_stride, alpha_r, depth, 2, pairs);
#if VW == 16
            else
                product_block(ar, a_stride, bi, b_stride, cr, c_stride, alpha_r, depth, 3, pairs);
#endif
        }
    }
}

// k[word][key], keys past n zero.
ALWAYS void pack_keys(const char *const *at, uint32_t n, uint32_t words, float *k,
                      kvpool_dtype dtype) {
    for (uint32_t t = 0; t < n; t += VW)
        for (uint32_t j = 0; j < words; j += VW) {
            vf x[VW];
            for (uint32_t i = 0; i < VW; i++)
                x[i] = t + i < n ? v_words(dtype, at[t + i], j, words - j) : v_zero();
            v_transpose(x);
            for (uint32_t i = 0; i < VW; i++)
                v_store(k + (j + i) * ATTN_TILE + t, x[i]);
        }
}

// v[key][dim], or v[pair of keys][dim].
ALWAYS void pack_values(const char *const *at, size_t v_offset, uint32_t n, uint32_t head_dim,
                        float *v, uint32_t stride, kvpool_dtype dtype) {
    if (in_pairs(dtype)) {
#if ISA_PAIRS
        for (uint32_t t = 0; t < n; t += 2)
            for (uint32_t i = 0; i < head_dim; i += 2 * VW) {
                const char *v0 = at[t] + v_offset;
                const char *v1 = t + 1 < n ? at[t + 1] + v_offset : v0;
                vf lo;
                vf hi;
                v_pair_rows(v0, v1, i, head_dim - i, t + 1 < n ? head_dim - i : 0, &lo, &hi);
                v_store(v + t / 2 * stride + i, lo);
                v_store(v + t / 2 * stride + i + VW, hi);
            }
#endif
        return;
    }
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < head_dim; i += VW)
            v_store(v + t * stride + i, v_words(dtype, at[t] + v_offset, i, head_dim - i));
}

// Whether packed values hold a NaN or an infinity: those must not meet a probability of 0.
ALWAYS bool has_nonfinite(const float *v, uint32_t rows, uint32_t stride, uint32_t cols,
                          bool pairs) {
    uint32_t bad = 0;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < cols; i++) {
            uint32_t bits;
            memcpy(&bits, v + r * stride + i, sizeof bits);
            bad |= (bits & 0x7f800000u) == 0x7f800000u;
            if (pairs)
                bad |= (bits & 0x7f80u) == 0x7f80u;
        }
    return bad != 0;
}

ALWAYS void tile_rows(struct attn_work *w, const char *const *at, uint32_t t0, uint32_t n,
                      uint32_t words, uint32_t q_stride, kvpool_dtype dtype) {
    const bool pairs = in_pairs(dtype);
    uint32_t step = pairs ? 2 * VW : VW;
    uint32_t width = (n + step - 1) / step * step;
    uint32_t depth = pairs ? (n + 1) / 2 : n;
    uint32_t dims = (w->head_dim + step - 1) / step * step;

    // Rows first..last see some key of the tile; whole blocks of MR are computed.
    uint32_t first = 0;
    uint32_t last = w->rows;
    while (first < last && w->hi[first] <= t0)
        first++;
    while (last > first && w->lo[last - 1] >= t0 + n)
        last--;
    if (first == last)
        return;
    uint32_t row = first / MR * MR;
    uint32_t rows = (last - row + MR - 1) / MR * MR;

    pack_keys(at, n, words, w->k, dtype);
    pack_values(at, w->keys.v_offset, n, w->head_dim, w->v, w->o_stride, dtype);
    product(w->q + row * q_stride, q_stride, w->k, ATTN_TILE, w->s + row * ATTN_TILE, ATTN_TILE,
            NULL, words, rows, width / VW, pairs);

    bool partial = false;
    for (uint32_t r = row; r < row + rows; r++) {
        float *s = w->s + r * ATTN_TILE;
        if (r < first || r >= last) {
            memset(s, 0, width * sizeof *s);
            w->alpha[r] = 1.0f;
            partial = partial || r < w->rows;
            continue;
        }
        uint32_t a = clamp(w->lo[r], t0, t0 + n) - t0;
        uint32_t b = clamp(w->hi[r], t0, t0 + n) - t0;
        partial = partial || a != 0 || b != n;
        w->alpha[r] =
            softmax_step(s, a, b, width, w->sm_scale, w->soft_cap, &w->max[r], &w->sum[r], pairs);
    }
    if (!partial || !has_nonfinite(w->v, depth, w->o_stride, w->head_dim, pairs)) {
        product(w->s + row * ATTN_TILE, ATTN_TILE, w->v, w->o_stride, w->o + row * w->o_stride,
                w->o_stride, w->alpha + row, depth, rows, dims / VW, pairs);
        return;
    }
    for (uint32_t r = first; r < last; r++)
        stream_values(w, at, clamp(w->lo[r], t0, t0 + n) - t0, clamp(w->hi[r], t0, t0 + n) - t0, r,
                      1, at, 0, dtype);
}

ALWAYS void run_tiled(struct attn_work *w, kvpool_dtype dtype) {
    uint32_t words = in_pairs(dtype) ? w->head_dim / 2 : w->head_dim;
    uint32_t q_stride = (words + VW - 1) / VW * VW;
    uint32_t padded = (w->rows + MR - 1) / MR * MR;
    load_q(w, words, q_stride, padded, dtype);
    memset(w->o, 0, (size_t)padded * w->o_stride * sizeof(float));

    uint32_t turn = 0;
    uint32_t n = w->end - w->begin < ATTN_TILE ? w->end - w->begin : ATTN_TILE;
    find_rows(&w->keys, w->begin, n, w->at[turn]);
    for (uint32_t t0 = w->begin; t0 < w->end; turn ^= 1) {
        uint32_t after = t0 + n;
        uint32_t n_next = w->end - after < ATTN_TILE ? w->end - after : ATTN_TILE;
        find_rows(&w->keys, after, n_next, w->at[turn ^ 1]);
        for (uint32_t i = 0; i < n_next; i++) {
            prefetch_row(w->at[turn ^ 1][i], w->keys.row_bytes);
            prefetch_row(w->at[turn ^ 1][i] + w->keys.v_offset, w->keys.row_bytes);
        }
        tile_rows(w, w->at[turn], t0, n, words, q_stride, dtype);
        t0 = after;
        n = n_next;
    }
}

// ---------------------------------------------------------------------------------------------

static void run_fp32(struct attn_work *w) {
    if (w->rows <= ATTN_STREAM_ROWS)
        run_stream(w, KVPOOL_FP32);
    else
        run_tiled(w, KVPOOL_FP32);
}
static void run_fp16(struct attn_work *w) {
    if (w->rows <= ATTN_STREAM_ROWS)
        run_stream(w, KVPOOL_FP16);
    else
        run_tiled(w, KVPOOL_FP16);
}
static void run_bf16(struct attn_work *w) {
    if (w->rows <= ATTN_STREAM_ROWS)
        run_stream(w, KVPOOL_BF16);
    else
        run_tiled(w, KVPOOL_BF16);
}

static void attn_run(struct attn_work *w, kvpool_dtype dtype) {
    for (uint32_t r = 0; r < w->rows; r++) {
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

ALWAYS void finish_as(kvpool_dtype dtype, uint32_t head_dim, const float *o, float factor,
                      void *out) {
    vf x = v_set1(factor);
    for (uint32_t i = 0; i < head_dim; i += VW)
        v_out(dtype, out, i, head_dim - i, v_mul(v_load(o + i), x));
}

static void attn_finish(kvpool_dtype dtype, uint32_t head_dim, const float *o, float factor,
                        void *out) {
    if (dtype == KVPOOL_FP32)
        finish_as(KVPOOL_FP32, head_dim, o, factor, out);
    else if (dtype == KVPOOL_FP16)
        finish_as(KVPOOL_FP16, head_dim, o, factor, out);
    else
        finish_as(KVPOOL_BF16, head_dim, o, factor, out);
}
