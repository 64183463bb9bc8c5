// SPDX-License-Identifier: Apache-2.0
// forward.c: see forward.h.
#include "examples/forward.h"

#include <stdio.h>
#include <stdlib.h>

#define REGION_ALIGN 64u // bytes: tensors start on cache lines
#define MAX_DECODE_Q 8u  // kvpool_decode takes at most this many query tokens a sequence

struct forward {
    const struct llama *m;
    kvpool_client *client;
    kvpool_pool pool;
    uint32_t max_tokens;
    kvpool_region *region;          // holds the four tensors
    kvpool_tensor q, k, v, out;     // as kvpool sees them
    float *q_at, *k_at, *v_at;      // as we see them, [max_tokens][...]
    const float *out_at;            // [max_tokens][dim]
    float *x, *h, *scratch, *final; // [max_tokens][dim], same, feed-forward scratch, [dim]
};

// What is under way of one step.
struct flight {
    kvpool_step step;
    kvpool_op *begin, *commit; // submitted and not yet waited for
};

static uint64_t place(uint64_t *at, uint64_t floats) {
    const uint64_t offset = *at;
    *at += (floats * sizeof(float) + REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN;
    return offset;
}

// Says on stderr which call failed and why, and hands the status on.
static kvpool_status failed(const struct forward *f, const char *call, kvpool_status status) {
    char text[256];
    fprintf(stderr, "%s: %s: %s\n", call, kvpool_strerror(status),
            kvpool_last_error(f->client, text, sizeof text));
    return status;
}

kvpool_status forward_open(const struct llama *m, kvpool_client *client, kvpool_pool pool,
                           uint32_t max_tokens, struct forward **ret) {
    const size_t dim = m->config.dim, n = max_tokens;
    struct forward *f = calloc(1, sizeof *f);
    if (!f) {
        return KVPOOL_E_NOMEM;
    }
    *f = (struct forward){.m = m, .client = client, .pool = pool, .max_tokens = max_tokens};
    f->x = malloc(n * dim * sizeof *f->x);
    f->h = malloc(n * dim * sizeof *f->h);
    f->scratch = malloc(n * (dim + 2 * (size_t)m->config.hidden_dim) * sizeof *f->scratch);
    f->final = malloc(dim * sizeof *f->final);
    kvpool_status status = KVPOOL_E_NOMEM;
    if (!f->x || !f->h || !f->scratch || !f->final) {
        goto close;
    }
    uint64_t bytes = 0;
    f->q.offset = place(&bytes, n * dim);
    f->k.offset = place(&bytes, n * m->kv_dim);
    f->v.offset = place(&bytes, n * m->kv_dim);
    f->out.offset = place(&bytes, n * dim);
    status = kvpool_region_create(client, bytes, &f->region);
    if (status != KVPOOL_OK) {
        goto close;
    }
    f->q.region = f->k.region = f->v.region = f->out.region = f->region;
    char *base = kvpool_region_data(f->region);
    f->q_at = (float *)(void *)(base + f->q.offset);
    f->k_at = (float *)(void *)(base + f->k.offset);
    f->v_at = (float *)(void *)(base + f->v.offset);
    f->out_at = (const float *)(void *)(base + f->out.offset);
    *ret = f;
    return KVPOOL_OK;
close:
    failed(f, "kvpool_region_create", status);
    forward_close(f);
    return status;
}

void forward_close(struct forward *f) {
    if (f) {
        kvpool_region_free(f->region);
        free(f->x);
        free(f->h);
        free(f->scratch);
        free(f->final);
        free(f);
    }
}

// Waits for a submitted request, if there is one, and forgets it.
static kvpool_status wait_for(struct forward *f, kvpool_op **op) {
    if (!*op) {
        return KVPOOL_OK;
    }
    const kvpool_status status = kvpool_wait(f->client, *op, UINT32_MAX);
    *op = NULL;
    return status;
}

// begin: reserves pages for every new token of the batch, or for none.
static kvpool_status begin(struct forward *f, const struct forward_batch *b, bool submit,
                           struct flight *flight) {
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = f->pool;
    args.n = b->n;
    args.seqs = b->seqs;
    args.new_tokens = b->new_tokens;
    args.tokens = b->tokens; // so that full pages can be shared
    if (!submit) {
        return kvpool_step_begin(f->client, &args, &flight->step, NULL);
    }
    args.step = flight->step = kvpool_step_id(f->client);
    const kvpool_request request = {
        .size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &args};
    return kvpool_submit(f->client, &request, &flight->begin);
}

// One layer: append k and v of the new tokens to the cache, attend over all tokens, fill `out`.
static kvpool_status attend(struct forward *f, uint32_t layer, bool decode, bool submit,
                            struct flight *flight) {
    kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT; // causal, no window, scale 1/sqrt(head_dim)
    args.step = flight->step;
    args.layer = layer;
    args.qo_heads = f->m->config.heads;
    args.q = f->q;
    args.k = f->k;
    args.v = f->v;
    args.out = f->out;
    if (!submit) {
        return decode ? kvpool_decode(f->client, &args) : kvpool_prefill(f->client, &args);
    }
    const kvpool_request request = {.size = sizeof request,
                                    .kind = decode ? KVPOOL_OP_DECODE : KVPOOL_OP_PREFILL,
                                    .attn = &args};
    kvpool_op *op = NULL;
    kvpool_status status = kvpool_submit(f->client, &request, &op);
    const kvpool_status begun = wait_for(f, &flight->begin); // begin went ahead of us
    if (status == KVPOOL_OK) {
        status = wait_for(f, &op);
    }
    return begun != KVPOOL_OK ? begun : status;
}

static kvpool_status commit(struct forward *f, bool submit, struct flight *flight) {
    if (!submit) {
        return kvpool_step_commit(f->client, flight->step);
    }
    const kvpool_request request = {
        .size = sizeof request, .kind = KVPOOL_OP_COMMIT, .step = flight->step};
    return kvpool_submit(f->client, &request, &flight->commit);
}

// q, k and v of layer l, straight into the region.
static void project(struct forward *f, uint32_t l, const struct forward_batch *b, uint32_t total) {
    const struct llama *m = f->m;
    const uint32_t dim = m->config.dim, kv_dim = m->kv_dim;
    llama_rmsnorm(total, dim, f->x, m->rms_att + (size_t)l * dim, f->h);
    llama_matmul(total, dim, dim, m->wq + (size_t)l * dim * dim, f->h, f->q_at, false);
    llama_matmul(total, kv_dim, dim, m->wk + (size_t)l * kv_dim * dim, f->h, f->k_at, false);
    llama_matmul(total, kv_dim, dim, m->wv + (size_t)l * kv_dim * dim, f->h, f->v_at, false);
    size_t t = 0; // row in the ragged batch
    for (uint32_t i = 0; i < b->n; i++) {
        for (uint32_t j = 0; j < b->new_tokens[i]; j++, t++) {
            llama_rope(m, b->start[i] + j, m->config.heads, f->q_at + t * dim);
            llama_rope(m, b->start[i] + j, m->config.kv_heads, f->k_at + t * kv_dim);
        }
    }
}

kvpool_status forward_step(struct forward *f, const struct forward_batch *b, bool submit,
                           float *ret_logits) {
    const struct llama *m = f->m;
    const uint32_t dim = m->config.dim;
    uint32_t total = 0;
    bool decode = true;
    for (uint32_t i = 0; i < b->n; i++) {
        const uint32_t q = b->new_tokens[i];
        if (q == 0 || q > f->max_tokens - total || (uint64_t)b->start[i] + q > m->config.seq_len) {
            fprintf(stderr, "forward: %u new tokens at %u: the model takes %u, a call %u\n", q,
                    b->start[i], m->config.seq_len, f->max_tokens);
            return KVPOOL_E_INVAL;
        }
        total += q;
        decode = decode && q <= MAX_DECODE_Q;
    }

    struct flight flight = {0};
    kvpool_status status = begin(f, b, submit, &flight);
    if (status != KVPOOL_OK) {
        return failed(f, "kvpool_step_begin", status);
    }
    llama_embed(m, total, b->tokens, f->x);
    for (uint32_t l = 0; l < m->config.layers; l++) {
        project(f, l, b, total);
        status = attend(f, l, decode, submit, &flight);
        if (status != KVPOOL_OK) {
            failed(f, decode ? "kvpool_decode" : "kvpool_prefill", status);
            goto abort;
        }
        llama_matmul(total, dim, dim, m->wo + (size_t)l * dim * dim, f->out_at, f->x, true);
        llama_feed_forward(m, l, total, f->x, f->scratch);
    }
    status = commit(f, submit, &flight);
    if (status != KVPOOL_OK) {
        failed(f, "kvpool_step_commit", status);
        goto abort;
    }
    size_t last = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        last += b->new_tokens[i];
        llama_logits(m, f->x + (last - 1) * dim, ret_logits + (size_t)i * m->config.vocab,
                     f->final);
    }
    status = wait_for(f, &flight.commit);
    if (status == KVPOOL_OK) {
        return KVPOOL_OK;
    }
    failed(f, "kvpool_step_commit", status);
abort:
    kvpool_step_abort(f->client, flight.step); // best effort: the first error was told
    return status;
}
