// SPDX-License-Identifier: Apache-2.0
// weights.c: where the numbers of struct llama come from: a llama2.c checkpoint, or a seed.
// Threads: any; no state.
#include "examples/llama.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// Bounds of a checkpoint's header: wide enough for real models, narrow enough that no product of
// them overflows 64 bits.
enum {
    MAX_DIM = 1 << 16,
    MAX_HIDDEN = 1 << 18,
    MAX_LAYERS = 512,
    MAX_HEADS = 4096,
    MAX_VOCAB = 1 << 20,
    MAX_SEQ_LEN = 1 << 20,
};

// Points every tensor into `data` (NULL: just count). Returns how many floats there are.
static uint64_t layout(struct llama *m, float *data, bool shared_classifier) {
    const struct llama_config *c = &m->config;
    const uint64_t dim = c->dim, layers = c->layers, hidden = c->hidden_dim;
    const uint64_t rope = (uint64_t)c->seq_len * (m->head_dim / 2);
    const struct {
        const float **tensor;
        uint64_t floats;
    } order[] = {
        {&m->embedding, c->vocab * dim},
        {&m->rms_att, layers * dim},
        {&m->wq, layers * dim * dim},
        {&m->wk, layers * m->kv_dim * dim},
        {&m->wv, layers * m->kv_dim * dim},
        {&m->wo, layers * dim * dim},
        {&m->rms_ffn, layers * dim},
        {&m->w1, layers * hidden * dim},
        {&m->w2, layers * dim * hidden},
        {&m->w3, layers * hidden * dim},
        {&m->rms_final, dim},
        {&m->rope_cos, rope},
        {&m->rope_sin, rope},
        {&m->classifier, shared_classifier ? 0 : c->vocab * dim},
    };
    uint64_t at = 0;
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        *order[i].tensor = data ? data + at : NULL;
        at += order[i].floats;
    }
    if (shared_classifier) {
        m->classifier = m->embedding;
    }
    m->data = data;
    return at;
}

static bool in_range(const char *path, const char *field, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) {
        return true;
    }
    fprintf(stderr, "%s: %s is %lld, not in %lld..%lld\n", path, field, (long long)value,
            (long long)min, (long long)max);
    return false;
}

static int check_header(const char *path, const int32_t h[7], struct llama *ret) {
    const int64_t vocab = h[5] < 0 ? -(int64_t)h[5] : h[5];
    if (!in_range(path, "dim", h[0], 8, MAX_DIM) ||
        !in_range(path, "hidden_dim", h[1], 1, MAX_HIDDEN) ||
        !in_range(path, "layers", h[2], 1, MAX_LAYERS) ||
        !in_range(path, "heads", h[3], 1, MAX_HEADS) ||
        !in_range(path, "kv_heads", h[4], 1, h[3]) ||
        !in_range(path, "vocabulary", vocab, 256, MAX_VOCAB) ||
        !in_range(path, "seq_len", h[6], 1, MAX_SEQ_LEN)) {
        return -1;
    }
    if (h[0] % h[3] != 0 || (h[0] / h[3]) % 8 != 0 || h[3] % h[4] != 0) {
        fprintf(stderr,
                "%s: dim %d / heads %d must be a multiple of 8, heads a multiple of kv_heads %d\n",
                path, h[0], h[3], h[4]);
        return -1;
    }
    *ret = (struct llama){
        .config = {.dim = (uint32_t)h[0],
                   .hidden_dim = (uint32_t)h[1],
                   .layers = (uint32_t)h[2],
                   .heads = (uint32_t)h[3],
                   .kv_heads = (uint32_t)h[4],
                   .vocab = (uint32_t)vocab,
                   .seq_len = (uint32_t)h[6]},
        .head_dim = (uint32_t)(h[0] / h[3]),
        .kv_dim = (uint32_t)(h[0] / h[3] * h[4]),
    };
    return 0;
}

int llama_load(const char *path, struct llama *ret) {
    int32_t header[7];
    struct stat st;
    struct llama m;
    float *data = NULL;
    int result = -1;

    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &st) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        goto out;
    }
    if (fread(header, sizeof header, 1, file) != 1) {
        fprintf(stderr, "%s: shorter than a checkpoint's header\n", path);
        goto out;
    }
    if (check_header(path, header, &m) != 0) {
        goto out;
    }
    const bool shared = header[5] > 0;
    const uint64_t floats = layout(&m, NULL, shared);
    const uint64_t bytes = sizeof header + floats * sizeof(float);
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes) {
        fprintf(stderr, "%s: %lld bytes, its header asks for %llu\n", path, (long long)st.st_size,
                (unsigned long long)bytes);
        goto out;
    }
    data = malloc(floats * sizeof *data);
    if (!data) {
        fprintf(stderr, "%s: no memory for %llu bytes\n", path, (unsigned long long)bytes);
        goto out;
    }
    if (fread(data, sizeof *data, floats, file) != floats) {
        fprintf(stderr, "%s: cannot be read to its end\n", path);
        goto out;
    }
    for (uint64_t i = 0; i < floats; i++) {
        if (!isfinite(data[i])) {
            fprintf(stderr, "%s: weight %llu is not a finite number\n", path,
                    (unsigned long long)i);
            goto out;
        }
    }
    layout(&m, data, shared);
    *ret = m;
    data = NULL;
    result = 0;
out:
    free(data);
    if (file) {
        fclose(file);
    }
    return result;
}

// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// n values, uniform with the given standard deviation around `mean`.
static void fill(const float *tensor, uint64_t n, float mean, float deviation, uint64_t *state) {
    float *t = (float *)(uintptr_t)tensor; // ours: points into data
    for (uint64_t i = 0; i < n; i++) {
        const float u = (float)(next_random(state) >> 40) * 0x1p-23f - 1.0f; // [-1, 1)
        t[i] = mean + u * deviation * 1.7320508f;
    }
}

int llama_random(uint64_t seed, struct llama *ret) {
    struct llama m = {
        .config = {.dim = 128,
                   .hidden_dim = 352,
                   .layers = 4,
                   .heads = 8,
                   .kv_heads = 2,
                   .vocab = 256,
                   .seq_len = 4096},
        .head_dim = 16,
        .kv_dim = 32,
    };
    const struct llama_config *c = &m.config;
    const uint64_t layers = c->layers, dim = c->dim, hidden = c->hidden_dim;
    float *data = malloc(layout(&m, NULL, false) * sizeof *data);
    if (!data) {
        fprintf(stderr, "no memory for the model's weights\n");
        return -1;
    }
    layout(&m, data, false);

    // q and k are scaled up so that attention picks few of the keys, and v so that what it picks
    // decides the next token: a wrong page, or one token too many, changes the output.
    uint64_t state = seed;
    const float unit = 1.0f / sqrtf((float)dim);
    fill(m.embedding, c->vocab * dim, 0, 0.5f, &state);
    fill(m.rms_att, layers * dim, 1.0f, 0.1f, &state);
    fill(m.wq, layers * dim * dim, 0, 2.0f * unit, &state);
    fill(m.wk, layers * m.kv_dim * dim, 0, 2.0f * unit, &state);
    fill(m.wv, layers * m.kv_dim * dim, 0, 2.0f * unit, &state);
    fill(m.wo, layers * dim * dim, 0, unit, &state);
    fill(m.rms_ffn, layers * dim, 1.0f, 0.1f, &state);
    fill(m.w1, layers * hidden * dim, 0, unit, &state);
    fill(m.w2, layers * dim * hidden, 0, 1.0f / sqrtf((float)hidden), &state);
    fill(m.w3, layers * hidden * dim, 0, unit, &state);
    fill(m.rms_final, dim, 1.0f, 0.1f, &state);
    fill(m.classifier, c->vocab * dim, 0, unit, &state);
    const uint32_t half = m.head_dim / 2;
    for (uint32_t p = 0; p < c->seq_len; p++) {
        for (uint32_t i = 0; i < half; i++) {
            const double angle = p / pow(10000.0, (double)i / half);
            const size_t at = (size_t)p * half + i;
            data[(m.rope_cos - data) + (ptrdiff_t)at] = (float)cos(angle);
            data[(m.rope_sin - data) + (ptrdiff_t)at] = (float)sin(angle);
        }
    }
    *ret = m;
    return 0;
}

void llama_free(struct llama *m) {
    free(m->data);
    *m = (struct llama){0};
}
