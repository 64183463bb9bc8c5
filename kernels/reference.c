// SPDX-License-Identifier: Apache-2.0
// reference.c: see reference.h.
#include "kernels/reference.h"

#include <math.h>

static bool sees(const struct reference_attention *a, int64_t p, int64_t s) {
    if (a->causal && s > p)
        return false;
    return a->window_left < 0 || s >= p - a->window_left;
}

static double logit(const struct reference_attention *a, const double *q, const double *k) {
    double x = 0;
    for (uint32_t d = 0; d < a->head_dim; d++)
        x += q[d] * k[d];
    x *= a->sm_scale;
    return a->soft_cap > 0 ? a->soft_cap * tanh(x / a->soft_cap) : x;
}

static void one_row(const struct reference_attention *a, uint32_t j, uint32_t h) {
    size_t row = (size_t)j * a->qo_heads + h;
    const double *q = a->q + row * a->head_dim;
    double *out = a->out + row * a->head_dim;
    uint32_t key_head = h / (a->qo_heads / a->kv_heads);
    int64_t p = (int64_t)a->kv_len - a->q_len + j;

    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] = 0;
    a->lse[row] = -INFINITY;
    double max = -INFINITY;
    bool any = false;
    for (uint32_t s = 0; s < a->kv_len; s++)
        if (sees(a, p, s)) {
            a->scratch[s] = logit(a, q, a->k + ((size_t)s * a->kv_heads + key_head) * a->head_dim);
            max = fmax(max, a->scratch[s]);
            any = true;
        }
    if (!any)
        return;
    double sum = 0;
    for (uint32_t s = 0; s < a->kv_len; s++)
        if (sees(a, p, s)) {
            double weight = exp(a->scratch[s] - max);
            const double *v = a->v + ((size_t)s * a->kv_heads + key_head) * a->head_dim;
            sum += weight;
            for (uint32_t d = 0; d < a->head_dim; d++)
                out[d] += weight * v[d];
        }
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] /= sum;
    a->lse[row] = max + log(sum);
}

void reference_attend(const struct reference_attention *a) {
    for (uint32_t j = 0; j < a->q_len; j++)
        for (uint32_t h = 0; h < a->qo_heads; h++)
            one_row(a, j, h);
}

size_t reference_element(const uint32_t *page_ids, uint32_t kv_heads, uint32_t page_size,
                         uint32_t head_dim, uint32_t value, uint32_t position, uint32_t h,
                         uint32_t d) {
    size_t page = page_ids[position / page_size];
    size_t slot = position % page_size;
    return (((page * 2 + value) * kv_heads + h) * page_size + slot) * head_dim + d;
}
