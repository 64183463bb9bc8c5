// SPDX-License-Identifier: Apache-2.0
// cpu_attention_tiled.h: the part of cpu_attention_kernel.h for many rows. K and V of a tile are
// repacked, so that q . K and p . V are matrix products with register blocks of MR rows x NV
// vectors.

// c[r][0..nv*VW) = a . b (+ c * alpha[r] when alpha is given), MR rows, `depth` words.
ALWAYS void product_block(const float *a, size_t a_stride, const float *b, size_t b_stride,
                          float *c, size_t c_stride, const float *alpha, size_t depth, size_t nv,
                          bool pairs) {
    vf acc[MR][NV];
    UNROLLED(r, MR) {
        UNROLLED(i, nv) {
            acc[r][i] = alpha == NULL ? v_zero()
                                      : v_mul(v_load(c + r * c_stride + i * VW), v_set1(alpha[r]));
        }
    }
    for (size_t j = 0; j < depth; j++) {
        vf x[NV];
        UNROLLED(i, nv) {
            x[i] = v_load(b + i * VW);
        }
        b += b_stride;
        UNROLLED(r, MR) {
            vf y = v_set1(a[r * a_stride + j]);
            UNROLLED(i, nv) {
                acc[r][i] = v_dot(pairs, acc[r][i], y, x[i]);
            }
        }
    }
    UNROLLED(r, MR) {
        UNROLLED(i, nv) {
            v_store(c + r * c_stride + i * VW, acc[r][i]);
        }
    }
}

// The same over `rows` rows (a multiple of MR) and `vectors` vectors of columns.
ALWAYS void product_of(const float *a, size_t a_stride, const float *b, size_t b_stride, float *c,
                       size_t c_stride, const float *alpha, size_t depth, size_t rows,
                       size_t vectors, bool pairs) {
#define BLOCK(nv)                                                                              \
    product_block(a + r * a_stride, a_stride, b + i * VW, b_stride, c + r * c_stride + i * VW, \
                  c_stride, alpha == NULL ? NULL : alpha + r, depth, nv, pairs)
    for (size_t i = 0; i < vectors; i += NV) {
        size_t nv = vectors - i < NV ? vectors - i : NV;
        for (size_t r = 0; r < rows; r += MR) {
            if (nv == NV)
                BLOCK(NV);
            else if (nv == 1)
                BLOCK(1);
            else if (nv == 2)
                BLOCK(2);
#if VW == 16
            else
                BLOCK(3);
#endif
        }
    }
#undef BLOCK
}

static void product(const float *a, size_t a_stride, const float *b, size_t b_stride, float *c,
                    size_t c_stride, const float *alpha, size_t depth, size_t rows, size_t vectors,
                    bool pairs) {
    if (pairs)
        product_of(a, a_stride, b, b_stride, c, c_stride, alpha, depth, rows, vectors, ISA_PAIRS);
    else
        product_of(a, a_stride, b, b_stride, c, c_stride, alpha, depth, rows, vectors, false);
}

// k[word][key], keys past n zero.
ALWAYS void pack_keys(const char *const *at, size_t n, size_t words, float *k, kvpool_dtype dtype) {
    for (size_t t = 0; t < n; t += VW)
        for (size_t j = 0; j < words; j += VW) {
            vf x[VW];
            v_mask mask = v_first_lanes(words - j);
            for (size_t i = 0; i < VW; i++)
                x[i] = t + i < n ? v_words(dtype, at[t + i], j, mask) : v_zero();
            v_transpose(x);
            UNROLLED(i, VW) {
                v_store(k + (j + i) * ATTN_TILE + t, x[i]);
            }
        }
}

// v[key][dim], or v[pair of keys][dim].
ALWAYS void pack_values(const char *const *at, size_t v_offset, size_t n, size_t head_dim, float *v,
                        size_t stride, kvpool_dtype dtype) {
    if (in_pairs(dtype)) {
#if ISA_PAIRS
        for (size_t t = 0; t < n; t += 2) {
            const char *v0 = at[t] + v_offset;
            const char *v1 = t + 1 < n ? at[t + 1] + v_offset : v0;
            for (size_t i = 0; i < head_dim; i += (size_t)2 * VW) {
                v_mask mask = v_first_lanes(head_dim - i);
                vf lo;
                vf hi;
                v_pair_rows(v0, v1, i, mask, t + 1 < n ? mask : 0, &lo, &hi);
                v_store(v + t / 2 * stride + i, lo);
                v_store(v + t / 2 * stride + i + VW, hi);
            }
        }
#endif
        return;
    }
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < head_dim; i += VW)
            v_store(v + t * stride + i,
                    v_words(dtype, at[t] + v_offset, i, v_first_lanes(head_dim - i)));
}

// Whether packed values hold a NaN or an infinity: those must not meet a probability of 0.
ALWAYS bool has_nonfinite(const float *v, size_t rows, size_t stride, size_t cols, bool pairs) {
    uint32_t bad = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++) {
            uint32_t bits;
            memcpy(&bits, v + r * stride + i, sizeof bits);
            bad |= (bits & 0x7f800000u) == 0x7f800000u;
            if (pairs)
                bad |= (bits & 0x7f80u) == 0x7f80u;
        }
    return bad != 0;
}

ALWAYS void tile_rows(struct attn_work *w, struct span span, size_t t0, size_t words,
                      size_t q_stride, kvpool_dtype dtype) {
    const size_t n = span.n;
    const bool pairs = in_pairs(dtype);
    const size_t step = pairs ? 2 * VW : VW;
    size_t width = (n + step - 1) / step * step;
    size_t depth = pairs ? (n + 1) / 2 : n;
    size_t dims = (w->head_dim + step - 1) / step * step;

    // Rows first..last see some key of the tile; whole blocks of MR are computed.
    size_t first = 0;
    size_t last = w->rows;
    while (first < last && w->hi[first] <= t0)
        first++;
    while (last > first && w->lo[last - 1] >= t0 + n)
        last--;
    if (first == last)
        return;
    size_t row = first / MR * MR;
    size_t rows = (last - row + MR - 1) / MR * MR;

    const struct span none = {0};
    if (w->widen)
        span = widen(w, &span, n, &none, dtype);
    pack_keys(span.at, n, words, w->k, dtype);
    pack_values(span.at, span.v, n, w->head_dim, w->v, w->o_stride, dtype);
    product(w->q + row * q_stride, q_stride, w->k, ATTN_TILE, w->s + row * ATTN_TILE, ATTN_TILE,
            NULL, words, rows, width / VW, pairs);

    bool partial = false;
    for (size_t r = row; r < row + rows; r++) {
        float *s = w->s + r * ATTN_TILE;
        if (r < first || r >= last) {
            memset(s, 0, width * sizeof *s);
            w->alpha[r] = 1.0f;
            partial = partial || r < w->rows;
            continue;
        }
        size_t a = clamp(w->lo[r], t0, t0 + n) - t0;
        size_t b = clamp(w->hi[r], t0, t0 + n) - t0;
        partial = partial || a != 0 || b != n;
        w->alpha[r] = softmax_step(s, a, b, width, w->sm_scale[0], w->soft_cap, &w->max[r],
                                   &w->sum[r], pairs);
    }
    if (!partial || !has_nonfinite(w->v, depth, w->o_stride, w->head_dim, pairs)) {
        product(w->s + row * ATTN_TILE, ATTN_TILE, w->v, w->o_stride, w->o + row * w->o_stride,
                w->o_stride, w->alpha + row, depth, rows, dims / VW, pairs);
        return;
    }
    for (size_t r = first; r < last; r++)
        one_row_values(w, &span, clamp(w->lo[r], t0, t0 + n) - t0, clamp(w->hi[r], t0, t0 + n) - t0,
                       r, r, dtype);
}

ALWAYS void run_tiled(struct attn_work *w, kvpool_dtype dtype) {
    size_t words = in_pairs(dtype) ? w->head_dim / 2 : w->head_dim;
    size_t q_stride = (words + VW - 1) / VW * VW;
    load_q(w, words, q_stride, dtype);
    memset(w->o, 0, w->head_rows * w->o_stride * sizeof(float));

    size_t turn = 0;
    size_t n = w->end - w->begin < ATTN_TILE ? w->end - w->begin : ATTN_TILE;
    find_rows(&w->keys, w->begin, n, w->at[turn]);
    for (size_t t0 = w->begin; t0 < w->end; turn ^= 1) {
        size_t after = t0 + n;
        size_t n_next = w->end - after < ATTN_TILE ? w->end - after : ATTN_TILE;
        find_rows(&w->keys, after, n_next, w->at[turn ^ 1]);
        for (size_t i = 0; i < n_next; i++)
            for (size_t j = 0; j < w->keys.row_bytes; j += 64) {
                prefetch(w->at[turn ^ 1][i] + j);
                prefetch(w->at[turn ^ 1][i] + w->keys.v_offset + j);
            }
        tile_rows(w, (struct span){w->at[turn], n, 0, w->keys.v_offset}, t0, words, q_stride,
                  dtype);
        t0 = after;
        n = n_next;
    }
}
