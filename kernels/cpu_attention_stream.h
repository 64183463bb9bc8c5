// SPDX-License-Identifier: Apache-2.0
// cpu_attention_stream.h: the part of cpu_attention_kernel.h for few rows. K and V are read once,
// where they lie, so that decode runs at the speed of memory.
//
// The heads of a unit take turns on each tile of keys: in a page the slabs of neighbouring heads are
// neighbours, so memory is read in long runs (measured: a fifth faster than one head through all
// pages after another). While one head is worked on, the same lines of the next one are fetched,
// into the level-2 cache (without that: half the speed).
//
// `dtype`, `nr` (rows: 1, 2 or 4) and `nv` (vectors of head_dim) are constants wherever these
// functions are expanded.

enum { STREAM_TILE = 64 }; // keys

// The addresses of a span are padded to a multiple of 4 entries here.

// Where the lines of keys t..t+count of the next span are; when it has none, those of this one
// again, which costs nothing.
ALWAYS const char *const *ahead_of(const struct span *span, const struct span *next, size_t t,
                                   size_t count) {
    return t + count <= next->n ? next->at + t : span->at + t;
}

// Logits of `nr` rows for the keys of a span.
ALWAYS void stream_logits(const float *q, size_t q_stride, size_t words, size_t nr,
                          const struct span *span, const struct span *next, float *s,
                          kvpool_dtype dtype) {
    const size_t tokens = nr < 4 ? 4 : STREAM_TOKENS;
    const size_t word_bytes = in_pairs(dtype) ? 4 : element_bytes(dtype);
    for (size_t t = 0; t < span->n; t += tokens) {
        const char *const *ahead = ahead_of(span, next, t, tokens);
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
                if (j * word_bytes % 64 == 0)
                    prefetch(ahead[i] + next->k + j * word_bytes);
                k[i] = v_words(dtype, span->at[t + i] + span->k, j, mask);
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

// One step of p . V along the keys: key t, or with pairs keys t and t+1, of which the first or the
// second may be left out: its memory is then not read.
ALWAYS void value_step(vf (*acc)[STREAM_NV_FEW], const struct span *span, size_t t, const float *p,
                       size_t col, size_t nr, size_t nv, const v_mask *masks, bool first,
                       bool second, kvpool_dtype dtype) {
    vf x[STREAM_NV_FEW];
    if (in_pairs(dtype)) {
#if ISA_PAIRS
        const char *v0 = first ? span->at[t] + span->v : NULL;
        const char *v1 = second ? span->at[t + 1] + span->v : NULL;
        UNROLLED(c, nv / 2) {
            v_pair_rows(v0, v1, col + 2 * c * VW, first ? masks[c] : 0, second ? masks[c] : 0,
                        &x[2 * c], &x[2 * c + 1]);
        }
#endif
    } else {
        (void)first;
        (void)second;
        UNROLLED(c, nv) {
            x[c] = v_words(dtype, span->at[t] + span->v, col + c * VW, masks[c]);
        }
    }
    UNROLLED(r, nr) {
        vf y = v_set1(p[r * ATTN_TILE + (in_pairs(dtype) ? t / 2 : t)]);
        UNROLLED(c, nv) {
            acc[r][c] = v_dot(in_pairs(dtype), acc[r][c], y, x[c]);
        }
    }
}

// o[r][col..col+nv*VW) = o * alpha + p . V over keys a..b of the span, `nr` rows.
ALWAYS void stream_values_block(const struct span *span, const struct span *next, size_t a,
                                size_t b, const float *p, const float *alpha, float *o,
                                size_t o_stride, size_t head_dim, size_t col, size_t nr, size_t nv,
                                kvpool_dtype dtype) {
    vf acc[4][STREAM_NV_FEW];
    UNROLLED(r, nr) {
        vf x = v_set1(alpha[r]);
        UNROLLED(c, nv) {
            acc[r][c] = v_mul(v_load(o + r * o_stride + col + c * VW), x);
        }
    }
    const size_t step = in_pairs(dtype) ? 2 : 1;
    v_mask masks[STREAM_NV_FEW];
    UNROLLED(c, nv / step) {
        masks[c] = v_first_lanes(head_dim - (col + c * step * VW));
    }
#define STEP(first, second) value_step(acc, span, t, p, col, nr, nv, masks, first, second, dtype)
    size_t t = a;
    if (a % step != 0) {
        t--;
        STEP(false, true);
        t += 2;
    }
    for (; t + step <= b; t += step) {
        const char *const *ahead = ahead_of(span, next, t, step);
        UNROLLED(i, step) {
            UNROLLED(c, nv) {
                if ((col + c * VW) * element_bytes(dtype) % 64 == 0)
                    prefetch(ahead[i] + next->v + (col + c * VW) * element_bytes(dtype));
            }
        }
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

// The same for all of head_dim. `row` is the first row's place in o, `r` within its head.
ALWAYS void stream_values(struct attn_work *w, const struct span *span, const struct span *next,
                          size_t a, size_t b, size_t row, size_t r, size_t nr, kvpool_dtype dtype) {
    const size_t few = nr < 4 ? STREAM_NV_FEW : STREAM_NV;
    const size_t least = in_pairs(dtype) ? 2 : 1;
    size_t vectors = (w->head_dim + VW * least - 1) / (VW * least) * least;
    size_t c = 0;
#define BLOCK(count)                                                                           \
    stream_values_block(span, next, a, b, w->s + r * ATTN_TILE, w->alpha + r,                  \
                        w->o + row * w->o_stride, w->o_stride, w->head_dim, c * VW, nr, count, \
                        dtype)
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

// One row alone: for tiles of which not all rows see the same keys.
static void one_row_values(struct attn_work *w, const struct span *span, size_t a, size_t b,
                           size_t row, size_t r, kvpool_dtype dtype) {
    const struct span none = {0};
    if (dtype == KVPOOL_FP32)
        stream_values(w, span, &none, a, b, row, r, 1, KVPOOL_FP32);
    else if (dtype == KVPOOL_FP16)
        stream_values(w, span, &none, a, b, row, r, 1, KVPOOL_FP16);
    else
        stream_values(w, span, &none, a, b, row, r, 1, KVPOOL_BF16);
}

// `nr` rows of one head, from r on, over one span that begins with key t0.
ALWAYS void stream_rows(struct attn_work *w, const struct span *span, const struct span *next,
                        size_t t0, size_t words, size_t q_stride, size_t head, size_t r, size_t nr,
                        kvpool_dtype dtype) {
    const size_t step = in_pairs(dtype) ? 2 * VW : VW;
    size_t row = head * w->head_rows + r;
    size_t rows = w->rows - r < nr ? w->rows - r : nr;
    size_t width = (span->n + step - 1) / step * step;
    float *s = w->s + r * ATTN_TILE;
    stream_logits(w->q + row * q_stride, q_stride, words, nr, span, next, s, dtype);
    size_t a[4] = {0};
    size_t b[4] = {0};
    bool same = true;
    for (size_t i = 0; i < rows; i++) {
        a[i] = clamp(w->lo[r + i], t0, t0 + span->n) - t0;
        b[i] = clamp(w->hi[r + i], t0, t0 + span->n) - t0;
        same = same && a[i] == a[0] && b[i] == b[0];
        if (a[i] < b[i])
            w->alpha[r + i] =
                softmax_step(s + i * ATTN_TILE, a[i], b[i], width, w->sm_scale[head], w->soft_cap,
                             &w->max[row + i], &w->sum[row + i], in_pairs(dtype));
    }
    if (same) {
        if (a[0] < b[0])
            stream_values(w, span, next, a[0], b[0], row, r, nr, dtype);
        return;
    }
    for (size_t i = 0; i < rows; i++)
        if (a[i] < b[i])
            one_row_values(w, span, a[i], b[i], row + i, r + i, dtype);
}

// K rows of keys first.., at most a tile, before `end`.
ALWAYS struct span find_span(struct attn_work *w, size_t turn, size_t first, size_t end) {
    const char **at = w->at[turn];
    size_t n = end - first < STREAM_TILE ? end - first : STREAM_TILE;
    find_rows(&w->keys, first, n, at);
    for (size_t t = n; t % 4 != 0; t++)
        at[t] = at[n - 1];
    return (struct span){at, n, 0, w->keys.v_offset};
}

ALWAYS void run_stream(struct attn_work *w, kvpool_dtype dtype) {
    size_t words = in_pairs(dtype) ? w->head_dim / 2 : w->head_dim;
    size_t q_stride = (words + VW - 1) / VW * VW;
    load_q(w, words, q_stride, dtype);
    memset(w->o, 0, sizeof(float) * w->o_stride * w->heads * w->head_rows);

    const struct span none = {0};
    struct span span = find_span(w, 0, w->begin, w->end);
    for (size_t t0 = w->begin, turn = 1; t0 < w->end; turn ^= 1) {
        struct span after = find_span(w, turn, t0 + span.n, w->end);
        for (size_t head = 0; head < w->heads; head++) {
            struct span next = after;
            if (head + 1 < w->heads) {
                next = span;
                next.k += w->keys.slab_bytes;
                next.v += w->keys.slab_bytes;
            }
            struct span now = span;
            struct span fetch = next;
            if (w->widen) {
                now = widen(w, &span, (span.n + 3) / 4 * 4, &next, dtype);
                fetch = none;
            }
            if (w->head_rows == 1)
                stream_rows(w, &now, &fetch, t0, words, q_stride, head, 0, 1, dtype);
            else if (w->head_rows == 2)
                stream_rows(w, &now, &fetch, t0, words, q_stride, head, 0, 2, dtype);
            else
                for (size_t r = 0; r < w->head_rows; r += 4)
                    stream_rows(w, &now, r == 0 ? &fetch : &none, t0, words, q_stride, head, r, 4,
                                dtype);
            if (head + 1 < w->heads)
                span = next;
        }
        t0 += span.n;
        span = after;
    }
}
