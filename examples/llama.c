// SPDX-License-Identifier: Apache-2.0
// llama.c: arithmetic of the model; weights.c fills struct llama.
// Threads: any; no state.
#include "examples/llama.h"

#include <math.h>
#include <string.h>

#define RMS_EPSILON 1e-5f
#define LANES 16 // partial sums of a dot product: independent, so that compilers vectorise them

static float dot(const float *a, const float *b, uint32_t n) {
    float acc[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (uint32_t l = 0; l < LANES; l++) {
            acc[l] += a[i + l] * b[i + l];
        }
    }
    float sum = 0;
    for (; i < n; i++) {
        sum += a[i] * b[i];
    }
    for (uint32_t l = 0; l < LANES; l++) {
        sum += acc[l];
    }
    return sum;
}

void llama_embed(const struct llama *m, uint32_t n, const uint32_t *tokens, float *x) {
    const size_t dim = m->config.dim;
    for (uint32_t t = 0; t < n; t++) {
        memcpy(x + t * dim, m->embedding + tokens[t] * dim, dim * sizeof *x);
    }
}

void llama_rmsnorm(uint32_t n, uint32_t dim, const float *x, const float *weight, float *out) {
    for (uint32_t t = 0; t < n; t++, x += dim, out += dim) {
        const float scale = 1.0f / sqrtf(dot(x, x, dim) / (float)dim + RMS_EPSILON);
        for (uint32_t i = 0; i < dim; i++) {
            out[i] = x[i] * scale * weight[i];
        }
    }
}

void llama_matmul(uint32_t n, uint32_t rows, uint32_t cols, const float *w, const float *in,
                  float *out, bool add) {
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = w + (size_t)r * cols;
        for (uint32_t t = 0; t < n; t++) {
            float *o = out + (size_t)t * rows + r;
            const float value = dot(row, in + (size_t)t * cols, cols);
            *o = add ? *o + value : value;
        }
    }
}

void llama_rope(const struct llama *m, uint32_t position, uint32_t heads, float *x) {
    const uint32_t half = m->head_dim / 2;
    const float *c = m->rope_cos + (size_t)position * half;
    const float *s = m->rope_sin + (size_t)position * half;
    for (uint32_t h = 0; h < heads; h++, x += m->head_dim) {
        for (uint32_t i = 0; i < half; i++) {
            float *pair = x + (size_t)2 * i;
            const float a = pair[0], b = pair[1];
            pair[0] = a * c[i] - b * s[i];
            pair[1] = a * s[i] + b * c[i];
        }
    }
}

void llama_feed_forward(const struct llama *m, uint32_t l, uint32_t n, float *x, float *scratch) {
    const uint32_t dim = m->config.dim, hidden = m->config.hidden_dim;
    const size_t matrix = (size_t)l * dim * hidden;
    float *h = scratch;
    float *gate = h + (size_t)n * dim;
    float *up = gate + (size_t)n * hidden;

    llama_rmsnorm(n, dim, x, m->rms_ffn + (size_t)l * dim, h);
    llama_matmul(n, hidden, dim, m->w1 + matrix, h, gate, false);
    llama_matmul(n, hidden, dim, m->w3 + matrix, h, up, false);
    for (size_t i = 0; i < (size_t)n * hidden; i++) {
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i]; // silu(gate) * up
    }
    llama_matmul(n, dim, hidden, m->w2 + matrix, gate, x, true);
}

void llama_logits(const struct llama *m, const float *x, float *logits, float *scratch) {
    llama_rmsnorm(1, m->config.dim, x, m->rms_final, scratch);
    llama_matmul(1, m->config.vocab, m->config.dim, m->classifier, scratch, logits, false);
}

uint32_t llama_argmax(const float *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    return best;
}
