// SPDX-License-Identifier: Apache-2.0
// cpu_attention_stream.h: the part of cpu_attention_kernel.h for few rows. K
// and V are read once, where they lie, for all rows, and the next tile is
// fetched meanwhile: decode runs at the speed of memory.
//
// `dtype`, `nr` (rows: 1, 2 or 4) and `nv` (vectors of head_dim) are constants
// wherever these functions are expanded.

// The next tile, to be fetched while this one is worked on.
struct ahead {
    const char *const *at;
    size_t n;
};

// Logits of `nr` rows for n keys. at[] is padded to a multiple of 4 entries.
ALWAYS void stream_logits(const float *q, size_t q_stride, size_t words, size_t nr,
                          const char *const *at, size_t n, struct ahead next, size_t row_bytes,
                          float *s, kvpool_dtype dtype) {
    const size_t tokens = nr < 4 ? 4 : STREAM_TOKENS;
    for (size_t t = 0; t < n; t += tokens) {
        for (size_t i = t; i < t + tokens && i < next.n; i++)
            prefetch_row(next.at[i], row_bytes);
        vf acc[4][4];
        UNROLLED(r, nr) {
            UNROLLED(i, tokens) {
                acc[r][i] = v_zero();
            }
        }
        for (size_t j = 0; j < words; j += VW) {
            vf k[4];
            v_mask mask = v_first_lanes(words - j);
            UNROLLED(i, tokens) {
                k[i] = v_words(dtype, at[t + i], j, mask);
            }
            UNROLLED(r, nr) {
                vf x = v_load(q + r * q_stride + j);
                UNROLLED(i, tokens) {
                    acc[r][i] = v_dot(in_pairs(dtype), acc[r][i], x, k[i]);
                }
            }
        }
        if (tokens == 4) {
            UNROLLED(r, nr) {
                v_sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], s + r * ATTN_TILE + t);
            }
        } else {
            UNROLLED(r, nr / 2) {
                float x[4];
                v_sum4(acc[2 * r][0], acc[2 * r][1], acc[2 * r + 1][0], acc[2 * r + 1][1], x);
                memcpy(s + (2 * r) * ATTN_TILE + t, x, 2 * sizeof *x);
                memcpy(s + (2 * r + 1) * ATTN_TILE + t, x + 2, 2 * sizeof *x);
            }
        }
    }
}

// One step of p . V along the keys: key t, or with pairs keys t and t+1, of
// which the first or the second may be left out: its memory is then not read.
ALWAYS void value_step(vf (*acc)[STREAM_NV_FEW], const char *const *at, size_t v_offset, size_t t,
                       const float *p, size_t col, size_t nr, size_t nv, const v_mask *masks,
                       bool first, bool second, kvpool_dtype dtype) {
    vf x[STREAM_NV_FEW];
    if (in_pairs(dtype)) {
#if ISA_PAIRS
        const char *v0 = first ? at[t] + v_offset : NULL;
        const char *v1 = second ? at[t + 1] + v_offset : NULL;
        UNROLLED(c, nv / 2) {
            v_pair_rows(v0, v1, col + 2 * c * VW, first ? masks[c] : 0, second ? masks[c] : 0,
                        &x[2 * c], &x[2 * c + 1]);
        }
#endif
    } else {
        (void)first;
        (void)second;
        UNROLLED(c, nv) {
            x[c] = v_words(dtype, at[t] + v_offset, col + c * VW, masks[c]);
        }
    }
    UNROLLED(r, nr) {
        vf y = v_set1(p[r * ATTN_TILE + (in_pairs(dtype) ? t / 2 : t)]);
        UNROLLED(c, nv) {
            acc[r][c] = v_dot(in_pairs(dtype), acc[r][c], y, x[c]);
        }
    }
}

// o[r][col..col+nv*VW) = o * alpha + p . V over keys a..b of the tile, `nr`
// rows.
ALWAYS void stream_values_block(const char *const *at, size_t v_offset, size_t a, size_t b,
                                const float *p, const float *alpha, float *o, size_t o_stride,
                                size_t head_dim, size_t col, size_t nr, size_t nv,
                                struct ahead next, size_t row_bytes, kvpool_dtype dtype) {
    vf acc[4][STREAM_NV_FEW];
    UNROLLED(r, nr) {
        vf x = v_set1(alpha[r]);
        UNROLLED(c, nv) {
            acc[r][c] = v_mul(v_load(o + r * o_stride + col + c * VW), x);
        }
    }
#define STEP(first, second) \
    value_step(acc, at, v_offset, t, p, col, nr, nv, masks, first, second, dtype)
    const size_t step = in_pairs(dtype) ? 2 : 1;
    v_mask masks[STREAM_NV_FEW];
    UNROLLED(c, nv / step) {
        masks[c] = v_first_lanes(head_dim - (col + c * step * VW));
    }
    size_t t = a;
    if (a % step != 0) {
        t--;
        STEP(false, true);
        t += 2;
    }
    for (; t + step <= b; t += step) {
        for (size_t i = t; i < t + step && i < next.n; i++)
            prefetch_row(next.at[i] + v_offset, row_bytes);
        STEP(true, true);
    }
    if (t < b)
        STEP(true, false);
#undef STEP
    UNROLLED(r, nr) {
        UNROLLED(c, nv) {
            v_store(o + r * o_stride + col + c * VW, acc[r][c]);
        }
    }
}

ALWAYS void stream_values(struct attn_work *w, const char *const *at, size_t a, size_t b,
                          size_t row, size_t nr, struct ahead next, kvpool_dtype dtype) {
    const size_t few = nr < 4 ? STREAM_NV_FEW : STREAM_NV;
    const size_t least = in_pairs(dtype) ? 2 : 1;
    const float *p = w->s + row * ATTN_TILE;
    float *o = w->o + row * w->o_stride;
    size_t vectors = (w->head_dim + VW * least - 1) / (VW * least) * least;
    size_t c = 0;
#define BLOCK(count)                                                                   \
    stream_values_block(at, w->keys.v_offset, a, b, p, w->alpha + row, o, w->o_stride, \
                        w->head_dim, c * VW, nr, count, next, w->keys.row_bytes, dtype)
    for (; c + few <= vectors; c += few) {
        BLOCK(few);
        next.n = 0; // fetched
    }
    if (few >= 8 && c + 4 <= vectors) {
        BLOCK(4);
        next.n = 0;
        c += 4;
    }
    if (few >= 4 && c + 2 <= vectors) {
        BLOCK(2);
        next.n = 0;
        c += 2;
    }
    for (; c < vectors; c += least) {
        BLOCK(least);
        next.n = 0;
    }
#undef BLOCK
}

// One row alone: for tiles of which not all rows see the same keys.
static void one_row_values(struct attn_work *w, const char *const *at, size_t a, size_t b,
                           size_t row, kvpool_dtype dtype) {
    const struct ahead none = {at, 0};
    if (dtype == KVPOOL_FP32)
        stream_values(w, at, a, b, row, 1, none, KVPOOL_FP32);
    else if (dtype == KVPOOL_FP16)
        stream_values(w, at, a, b, row, 1, none, KVPOOL_FP16);
    else
        stream_values(w, at, a, b, row, 1, none, KVPOOL_BF16);
}

ALWAYS void stream_rows(struct attn_work *w, const char *const *at, size_t t0, size_t n,
                        struct ahead next, size_t words, size_t q_stride, size_t row, size_t nr,
                        kvpool_dtype dtype) {
    float *s = w->s + row * ATTN_TILE;
    size_t step = in_pairs(dtype) ? 2 * VW : VW;
    size_t width = (n + step - 1) / step * step;
    size_t rows = w->rows - row < nr ? w->rows - row : nr;
    stream_logits(w->q + row * q_stride, q_stride, words, nr, at, n, next, w->keys.row_bytes, s,
                  dtype);
    size_t a[4] = {0};
    size_t b[4] = {0};
    bool same = true;
    for (size_t r = 0; r < rows; r++) {
        a[r] = clamp(w->lo[row + r], t0, t0 + n) - t0;
        b[r] = clamp(w->hi[row + r], t0, t0 + n) - t0;
        same = same && a[r] == a[0] && b[r] == b[0];
        if (a[r] < b[r])
            w->alpha[row + r] =
                softmax_step(s + r * ATTN_TILE, a[r], b[r], width, w->sm_scale, w->soft_cap,
                             &w->max[row + r], &w->sum[row + r], in_pairs(dtype));
    }
    if (same) {
        if (a[0] < b[0])
            stream_values(w, at, a[0], b[0], row, nr, next, dtype);
        return;
    }
    for (size_t r = 0; r < rows; r++)
        if (a[r] < b[r])
            one_row_values(w, at, a[r], b[r], row + r, dtype);
}

ALWAYS void run_stream(struct attn_work *w, kvpool_dtype dtype) {
    size_t words = in_pairs(dtype) ? w->head_dim / 2 : w->head_dim;
    size_t q_stride = (words + VW - 1) / VW * VW;
    size_t padded = w->rows <= 2 ? w->rows : (w->rows + 3) / 4 * 4;
    load_q(w, words, q_stride, padded, dtype);
    memset(w->o, 0, (size_t)padded * w->o_stride * sizeof(float));

    size_t turn = 0;
    size_t n = w->end - w->begin < ATTN_TILE ? w->end - w->begin : ATTN_TILE;
    find_rows(&w->keys, w->begin, n, w->at[turn]);
    for (size_t t0 = w->begin; t0 < w->end; turn ^= 1) {
        const char **at = w->at[turn];
        size_t after = t0 + n;
        struct ahead next = {w->at[turn ^ 1],
                             w->end - after < ATTN_TILE ? w->end - after : ATTN_TILE};
        find_rows(&w->keys, after, next.n, w->at[turn ^ 1]);
        for (size_t t = n; t % 4 != 0; t++)
            at[t] = at[n - 1];
        t0 = after;
        if (padded == 1)
            stream_rows(w, at, t0 - n, n, next, words, q_stride, 0, 1, dtype);
        else if (padded == 2)
            stream_rows(w, at, t0 - n, n, next, words, q_stride, 0, 2, dtype);
        else
            for (size_t row = 0; row < padded; row += 4) {
                struct ahead none = {next.at, 0};
                stream_rows(w, at, t0 - n, n, row == 0 ? next : none, words, q_stride, row, 4,
                            dtype);
            }
        n = next.n;
    }
}
