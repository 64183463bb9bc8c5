// SPDX-License-Identifier: Apache-2.0
// llama.h: a Llama-architecture model for the example worker: its configuration, its weights and
// the arithmetic that has nothing to do with a KV cache.
//
//   tokens -> embedding -> layers x ( RMSNorm -> q,k,v -> RoPE -> attention -> + residual
//                                     RMSNorm -> SwiGLU             -> + residual ) -> RMSNorm
//          -> classifier -> logits
//
// Attention itself is not here: forward.c asks kvpool for it, recompute.c does it by hand. Both use
// the functions below for everything else, and every function treats a token by itself, in the same
// order of operations whatever else is in the batch: the two differ in attention alone.
//
// Invariants
//  1. Weights that llama_load returned are complete, finite and exactly as long as the file says.
//  2. heads is a multiple of kv_heads; head_dim = dim / heads is a multiple of 8 (kvpool's rule).
// Threads: a loaded model is read-only; any.
#ifndef KVPOOL_EXAMPLES_LLAMA_H
#define KVPOOL_EXAMPLES_LLAMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct llama_config {
    uint32_t dim;        // of the residual stream
    uint32_t hidden_dim; // of the feed-forward network
    uint32_t layers;
    uint32_t heads;    // query heads
    uint32_t kv_heads; // key/value heads: GQA when fewer than heads
    uint32_t vocab;    // at least 256: tokens of the example are bytes
    uint32_t seq_len;  // longest sequence
};

struct llama {
    struct llama_config config;
    uint32_t head_dim; // dim / heads
    uint32_t kv_dim;   // kv_heads * head_dim
    // Matrices are [out][in], row-major. Layer l of a per-layer tensor starts at l * (its size).
    const float *embedding;           // [vocab][dim]
    const float *rms_att;             // [layers][dim]
    const float *wq;                  // [layers][dim][dim]
    const float *wk, *wv;             // [layers][kv_dim][dim]
    const float *wo;                  // [layers][dim][dim]
    const float *rms_ffn;             // [layers][dim]
    const float *w1, *w3;             // [layers][hidden_dim][dim]
    const float *w2;                  // [layers][dim][hidden_dim]
    const float *rms_final;           // [dim]
    const float *rope_cos, *rope_sin; // [seq_len][head_dim / 2]
    const float *classifier;          // [vocab][dim]; the embedding itself when shared
    float *data;                      // all of the above
};

// Loads a checkpoint in llama2.c's legacy format: seven little-endian int32 (dim, hidden_dim,
// layers, heads, kv_heads, vocab (negative: classifier not shared), seq_len), then fp32 weights:
// embedding, rms_att, wq, wk, wv, wo, rms_ffn, w1, w2, w3, rms_final, cos, sin, classifier.
// 0, or -1 after saying on stderr what is wrong.
int llama_load(const char *path, struct llama *ret);

// Weights drawn from `seed`, of a fixed small GQA model: dim 128, hidden 352, 4 layers, 8 heads,
// 2 kv heads, vocab 256, seq_len 4096. Equal seeds give equal weights. 0 or -1 (no memory).
int llama_random(uint64_t seed, struct llama *ret);

void llama_free(struct llama *m);

// x[n][dim] = embedding of each token (< vocab).
void llama_embed(const struct llama *m, uint32_t n, const uint32_t *tokens, float *x);

// out[n][dim] = x / rms(x) * weight
void llama_rmsnorm(uint32_t n, uint32_t dim, const float *x, const float *weight, float *out);

// out[n][rows] = in[n][cols] * w[rows][cols]^T; with `add`, it is added to out.
void llama_matmul(uint32_t n, uint32_t rows, uint32_t cols, const float *w, const float *in,
                  float *out, bool add);

// Rotates the pairs (2i, 2i+1) of every head of one token by its position (< seq_len).
void llama_rope(const struct llama *m, uint32_t position, uint32_t heads, float *x);

// The feed-forward half of layer l: x[n][dim] += w2 (silu(w1 h) * (w3 h)), h = rmsnorm(x).
// scratch: n * (dim + 2 * hidden_dim) floats.
void llama_feed_forward(const struct llama *m, uint32_t l, uint32_t n, float *x, float *scratch);

// logits[vocab] of one token's residual stream. scratch: dim floats.
void llama_logits(const struct llama *m, const float *x, float *logits, float *scratch);

// Index of the largest value, the first of equals.
uint32_t llama_argmax(const float *logits, uint32_t n);

#endif
