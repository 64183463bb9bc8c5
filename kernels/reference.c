// SPDX-License-Identifier: Apache-2.0
// reference.c: see reference.h.
#include "kernels/reference.h"

#include <math.h>

// Keys first..end that the query at position p sees.
static void visible(const struct reference_attention *a, int64_t p, int64_t *first, int64_t *end) {
    *first = 0;
    *end = a->kv_len;
    if (a->causal && p + 1 < *end)
        *end = p + 1;
    if (a->window_left >= 0 && p - a->window_left > 0)
        *first = p - a->window_left;
}

// Eight sums side by side: one alone waits for each of its additions.
static double dot(const double *x, const double *y, uint32_t n) {
    double sums[8] = {0};
    uint32_t d = 0;
    for (; d + 8 <= n; d += 8)
        for (uint32_t i = 0; i < 8; i++)
            sums[i] += x[d + i] * y[d + i];
    for (; d < n; d++)
        sums[0] += x[d] * y[d];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

static double logit(const struct reference_attention *a, const double *q, const double *k) {
    double x = dot(q, k, a->head_dim) * a->sm_scale;
    return a->soft_cap > 0 ? a->soft_cap * tanh(x / a->soft_cap) : x;
}

// Row of the query token at position p, head h.
static void one_row(const struct reference_attention *a, int64_t p, uint32_t h, size_t row) {
    const double *q = a->q + row * a->head_dim;
    double *out = a->out + row * a->head_dim;
    size_t stride = (size_t)a->kv_heads * a->head_dim;
    size_t head = (size_t)(h / (a->qo_heads / a->kv_heads)) * a->head_dim;
    double sink = a->sinks != NULL ? a->sinks[h] : -INFINITY;
    int64_t first;
    int64_t end;
    visible(a, p, &first, &end);
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] = 0;
    a->lse[row] = sink;
    if (first >= end)
        return;
    double max = sink;
    for (int64_t s = first; s < end; s++) {
        a->scratch[s] = logit(a, q, a->k + (size_t)s * stride + head);
        max = fmax(max, a->scratch[s]);
    }
    double sum = exp(sink - max);
    for (int64_t s = first; s < end; s++) {
        double weight = exp(a->scratch[s] - max);
        const double *v = a->v + (size_t)s * stride + head;
        sum += weight;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] += weight * v[d];
    }
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] /= sum;
    a->lse[row] = max + log(sum);
}

void reference_attend_rows(const struct reference_attention *a, uint32_t first, uint32_t count) {
    for (uint32_t j = 0; j < count; j++)
        for (uint32_t h = 0; h < a->qo_heads; h++)
            one_row(a, (int64_t)a->kv_len - a->q_len + first + j, h, (size_t)j * a->qo_heads + h);
}

void reference_attend(const struct reference_attention *a) {
    reference_attend_rows(a, 0, a->q_len);
}

size_t reference_element(const uint32_t *page_ids, uint32_t kv_heads, uint32_t page_size,
                         uint32_t head_dim, uint32_t value, uint32_t position, uint32_t h,
                         uint32_t d) {
    size_t page = page_ids[position / page_size];
    size_t slot = position % page_size;
    return (((page * 2 + value) * kv_heads + h) * page_size + slot) * head_dim + d;
}
