// SPDX-License-Identifier: Apache-2.0
// recompute.c: see recompute.h.
#include "examples/recompute.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

// out[head_dim] = softmax(q . k[0..n) / sqrt(head_dim)) v[0..n); k and v are [n][kv_dim], already
// at their head. weights: n floats.
static void attend(const struct llama *m, const float *q, const float *k, const float *v,
                   uint32_t n, float *weights, float *out) {
    const uint32_t d = m->head_dim;
    const float scale = 1.0f / sqrtf((float)d);
    float max = -INFINITY;
    for (uint32_t s = 0; s < n; s++) {
        float logit = 0;
        for (uint32_t i = 0; i < d; i++) {
            logit += q[i] * k[(size_t)s * m->kv_dim + i];
        }
        weights[s] = logit * scale;
        max = fmaxf(max, weights[s]);
    }
    float sum = 0;
    for (uint32_t s = 0; s < n; s++) {
        weights[s] = expf(weights[s] - max);
        sum += weights[s];
    }
    for (uint32_t i = 0; i < d; i++) {
        out[i] = 0;
    }
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t i = 0; i < d; i++) {
            out[i] += weights[s] * v[(size_t)s * m->kv_dim + i];
        }
    }
    for (uint32_t i = 0; i < d; i++) {
        out[i] /= sum;
    }
}

int recompute(const struct llama *m, uint32_t n, const uint32_t *tokens, uint32_t first,
              float *ret_logits) {
    const struct llama_config *c = &m->config;
    const uint32_t dim = c->dim, kv_dim = m->kv_dim, group = c->heads / c->kv_heads;
    if (n > c->seq_len) {
        fprintf(stderr, "recompute: %u tokens, the model takes %u\n", n, c->seq_len);
        return -1;
    }
    // x, h, q, out: [n][dim]; k, v: [n][kv_dim]; weights: [n]; scratch of the feed-forward network.
    const size_t per_token =
        4 * (size_t)dim + 2 * (size_t)kv_dim + 1 + dim + 2 * (size_t)c->hidden_dim;
    float *memory = malloc((size_t)n * per_token * sizeof *memory);
    if (!memory) {
        fprintf(stderr, "recompute: no memory for %u tokens\n", n);
        return -1;
    }
    float *x = memory, *h = x + (size_t)n * dim, *q = h + (size_t)n * dim;
    float *out = q + (size_t)n * dim, *k = out + (size_t)n * dim, *v = k + (size_t)n * kv_dim;
    float *weights = v + (size_t)n * kv_dim, *scratch = weights + n;

    llama_embed(m, n, tokens, x);
    for (uint32_t l = 0; l < c->layers; l++) {
        llama_rmsnorm(n, dim, x, m->rms_att + (size_t)l * dim, h);
        llama_matmul(n, dim, dim, m->wq + (size_t)l * dim * dim, h, q, false);
        llama_matmul(n, kv_dim, dim, m->wk + (size_t)l * kv_dim * dim, h, k, false);
        llama_matmul(n, kv_dim, dim, m->wv + (size_t)l * kv_dim * dim, h, v, false);
        for (uint32_t t = 0; t < n; t++) {
            llama_rope(m, t, c->heads, q + (size_t)t * dim);
            llama_rope(m, t, c->kv_heads, k + (size_t)t * kv_dim);
        }
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t head = 0; head < c->heads; head++) {
                const size_t kv_head = (size_t)(head / group) * m->head_dim;
                const size_t at = (size_t)t * dim + (size_t)head * m->head_dim;
                attend(m, q + at, k + kv_head, v + kv_head, t + 1, weights, out + at);
            }
        }
        llama_matmul(n, dim, dim, m->wo + (size_t)l * dim * dim, out, x, true);
        llama_feed_forward(m, l, n, x, scratch);
    }
    for (uint32_t t = first; t < n; t++) {
        llama_logits(m, x + (size_t)t * dim, ret_logits + (size_t)(t - first) * c->vocab, scratch);
    }
    free(memory);
    return 0;
}
