// SPDX-License-Identifier: Apache-2.0
// load.c: see load.h.
#include "tests/system/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NEW 24u // tokens of one sequence in one step
#define Q_FLOATS ((size_t)LOAD_QO_HEADS * LOAD_HEAD_DIM)
#define KV_FLOATS ((size_t)LOAD_KV_HEADS * LOAD_HEAD_DIM)
#define ROWS ((size_t)LOAD_SEQS * MAX_NEW)

#define DOCUMENTS 6u

struct tokens {
    kvpool_seq seq; // 0: slot unused
    uint32_t len;
    uint32_t document;            // that it follows; 0: none, its tokens are like no others
    uint32_t id[LOAD_MAX_LEN];    // what the daemon is told
    uint32_t token[LOAD_MAX_LEN]; // what K, V and q are made from: a hash of all ids up to it
};

struct load {
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_region *region;
    float *q, *k, *v, *out, *lse;
    struct tokens seqs[LOAD_SEQS];
    uint64_t rng, committed, reused;
    bool pins;
    uint32_t next_id;
};

static uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint32_t pick(struct load *l, uint32_t n) {
    l->rng = mix(l->rng);
    return (uint32_t)(l->rng >> 33) % n;
}

// Decides the token at position `at` of a sequence.
static void next_token(struct load *l, struct tokens *t, uint32_t at) {
    t->id[at] = t->document != 0 ? (uint32_t)mix(t->document * 1000u + at) : l->next_id++;
    t->token[at] = (uint32_t)mix((at > 0 ? (uint64_t)t->token[at - 1] << 32 : 0) | t->id[at]);
}

// Element d of a token's q (what 0), k (1) or v (2) vector, in [-1, 1).
static float element(uint32_t token, uint32_t what, uint32_t layer, uint32_t head, uint32_t d) {
    uint64_t h = mix(((uint64_t)token << 32) | what << 28 | layer << 20 | head << 10 | d);
    return (float)((double)(h >> 40) / (double)(1u << 23) - 1.0);
}

static void fill(float *at, uint32_t token, uint32_t what, uint32_t layer, uint32_t heads) {
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t d = 0; d < LOAD_HEAD_DIM; d++) {
            at[h * LOAD_HEAD_DIM + d] = element(token, what, layer, h, d);
        }
    }
}

// Row `row` of the outputs against fp64 attention of token[at] over token[0..at].
static int verify(const struct load *l, const uint32_t *token, uint32_t at, uint32_t layer,
                  uint32_t row) {
    const uint32_t group = LOAD_QO_HEADS / LOAD_KV_HEADS;
    for (uint32_t h = 0; h < LOAD_QO_HEADS; h++) {
        double logit[LOAD_MAX_LEN], max = -INFINITY, sum = 0, out[LOAD_HEAD_DIM] = {0};
        for (uint32_t s = 0; s <= at; s++) {
            double dot = 0;
            for (uint32_t d = 0; d < LOAD_HEAD_DIM; d++) {
                dot += (double)element(token[at], 0, layer, h, d) *
                       (double)element(token[s], 1, layer, h / group, d);
            }
            logit[s] = dot / sqrt(LOAD_HEAD_DIM);
            max = fmax(max, logit[s]);
        }
        for (uint32_t s = 0; s <= at; s++) {
            double p = exp(logit[s] - max);
            sum += p;
            for (uint32_t d = 0; d < LOAD_HEAD_DIM; d++) {
                out[d] += p * (double)element(token[s], 2, layer, h / group, d);
            }
        }
        double lse = max + log(sum);
        if (!(fabs((double)l->lse[row * LOAD_QO_HEADS + h] - lse) < 1e-4)) {
            fprintf(stderr, "load: lse of layer %u head %u position %u is %g, should be %g\n",
                    layer, h, at, (double)l->lse[row * LOAD_QO_HEADS + h], lse);
            return 1;
        }
        for (uint32_t d = 0; d < LOAD_HEAD_DIM; d++) {
            double got = (double)l->out[row * Q_FLOATS + (size_t)h * LOAD_HEAD_DIM + d];
            if (!(fabs(got - out[d] / sum) < 1e-4)) {
                fprintf(stderr, "load: out of layer %u head %u position %u is %g, should be %g\n",
                        layer, h, at, got, out[d] / sum);
                return 1;
            }
        }
    }
    return 0;
}

struct load *load_open(kvpool_client *client, const char *name, uint32_t num_pages, unsigned seed) {
    struct load *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return NULL;
    }
    l->client = client;
    l->rng = mix(seed);
    l->next_id = (uint32_t)mix(l->rng);
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = name;
    config.layers = LOAD_LAYERS;
    config.kv_heads = LOAD_KV_HEADS;
    config.head_dim = LOAD_HEAD_DIM;
    config.page_size = LOAD_PAGE_SIZE;
    config.dtype = KVPOOL_FP32;
    config.num_pages = num_pages;
    const size_t floats = ROWS * (2 * Q_FLOATS + 2 * KV_FLOATS + LOAD_QO_HEADS);
    if (kvpool_pool_create(client, &config, &l->pool) != KVPOOL_OK ||
        kvpool_region_create(client, floats * sizeof(float), &l->region) != KVPOOL_OK) {
        free(l);
        return NULL;
    }
    l->q = kvpool_region_data(l->region);
    l->out = l->q + ROWS * Q_FLOATS;
    l->k = l->out + ROWS * Q_FLOATS;
    l->v = l->k + ROWS * KV_FLOATS;
    l->lse = l->v + ROWS * KV_FLOATS;
    return l;
}

void load_close(struct load *l) {
    for (uint32_t i = 0; i < LOAD_SEQS; i++) {
        if (l->seqs[i].seq != 0) {
            kvpool_seq_free(l->client, 1, &l->seqs[i].seq);
        }
    }
    kvpool_region_free(l->region);
    free(l);
}

uint64_t load_tokens(const struct load *l) {
    return l->committed;
}
void load_allow_pins(struct load *l) {
    l->pins = true;
}
uint64_t load_reused(const struct load *l) {
    return l->reused;
}

uint32_t load_active(kvpool_client *client, kvpool_pool pool) {
    kvpool_usage usage[4];
    uint32_t cursor = 0, n = 4, active = 0;
    while (n == 4) {
        for (int i = 0; i < 4; i++) {
            usage[i].size = sizeof usage[i];
        }
        if (kvpool_list_usage(client, pool, &cursor, 4, usage, &n) != KVPOOL_OK) {
            return UINT32_MAX;
        }
        for (uint32_t i = 0; i < n; i++) {
            active += usage[i].active;
        }
    }
    return active;
}
kvpool_pool load_pool(const struct load *l) {
    return l->pool;
}

static kvpool_tensor tensor(const struct load *l, const float *at) {
    kvpool_tensor t = {l->region, (uint64_t)(at - l->q) * sizeof(float), 0, 0};
    return t;
}

// A step on a random batch of the live sequences, every layer, then commit or (now and then) abort.
static int step(struct load *l) {
    kvpool_seq seqs[LOAD_SEQS];
    uint32_t news[LOAD_SEQS], slot[LOAD_SEQS], n = 0, rows = 0;
    bool decode = pick(l, 2) == 0;
    for (uint32_t i = 0; i < LOAD_SEQS; i++) {
        struct tokens *t = &l->seqs[i];
        if (t->seq == 0 || pick(l, 3) == 0) {
            continue;
        }
        uint32_t want = decode ? 1 : pick(l, MAX_NEW + 1);
        uint32_t room = LOAD_MAX_LEN - t->len;
        slot[n] = i;
        seqs[n] = t->seq;
        news[n] = want < room ? want : room;
        rows += news[n++];
    }
    if (n == 0) {
        return KVPOOL_OK;
    }
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = l->pool;
    begin.n = n;
    begin.seqs = seqs;
    begin.new_tokens = news;
    uint32_t ids[ROWS];
    for (uint32_t i = 0, row = 0; i < n; i++) {
        struct tokens *t = &l->seqs[slot[i]];
        for (uint32_t j = 0; j < news[i]; j++, row++) {
            next_token(l, t, t->len + j);
            ids[row] = t->id[t->len + j];
        }
    }
    begin.tokens = pick(l, 12) == 0 ? NULL : ids;
    kvpool_step id;
    int status = kvpool_step_begin(l->client, &begin, &id, NULL);
    if (status != KVPOOL_OK) {
        return status == KVPOOL_E_NOSPACE ? KVPOOL_OK : status;
    }
    int wrong = 0;
    for (uint32_t layer = 0; layer < LOAD_LAYERS && rows > 0; layer++) {
        for (uint32_t i = 0, row = 0; i < n; i++) {
            const struct tokens *t = &l->seqs[slot[i]];
            for (uint32_t j = 0; j < news[i]; j++, row++) {
                uint32_t token = t->token[t->len + j];
                fill(l->q + row * Q_FLOATS, token, 0, layer, LOAD_QO_HEADS);
                fill(l->k + row * KV_FLOATS, token, 1, layer, LOAD_KV_HEADS);
                fill(l->v + row * KV_FLOATS, token, 2, layer, LOAD_KV_HEADS);
            }
        }
        memset(l->out, 0xff, rows * Q_FLOATS * sizeof(float));
        kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
        attn.step = id;
        attn.layer = layer;
        attn.qo_heads = LOAD_QO_HEADS;
        attn.q = tensor(l, l->q);
        attn.k = tensor(l, l->k);
        attn.v = tensor(l, l->v);
        attn.out = tensor(l, l->out);
        attn.lse = tensor(l, l->lse);
        status = decode ? kvpool_decode(l->client, &attn) : kvpool_prefill(l->client, &attn);
        if (status != KVPOOL_OK) {
            return status;
        }
        for (uint32_t i = 0, row = 0; i < n; i++) {
            const struct tokens *t = &l->seqs[slot[i]];
            for (uint32_t j = 0; j < news[i]; j++, row++) {
                wrong |= verify(l, t->token, t->len + j, layer, row);
            }
        }
    }
    if (wrong) {
        return 1;
    }
    if (pick(l, 8) == 0) {
        return kvpool_step_abort(l->client, id);
    }
    status = kvpool_step_commit(l->client, id);
    if (status == KVPOOL_OK) {
        for (uint32_t i = 0; i < n; i++) {
            l->seqs[slot[i]].len += news[i];
        }
        l->committed += rows;
    }
    return status;
}

// A sequence on what is cached of a document.
static int open_document(struct load *l, struct tokens *t) {
    uint32_t ids[LOAD_MAX_LEN], matched = 0;
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    t->document = 1 + pick(l, DOCUMENTS);
    open.pool = l->pool;
    open.priority = pick(l, 3);
    open.tokens = ids;
    open.n = pick(l, LOAD_MAX_LEN);
    for (uint32_t i = 0; i < open.n; i++) {
        next_token(l, t, i);
        ids[i] = t->id[i];
    }
    int status = pick(l, 4) == 0 ? kvpool_seq_match(l->client, &open, &t->seq, &matched)
                                 : kvpool_seq_open_with(l->client, &open, &t->seq, &matched);
    if (status == KVPOOL_OK && (matched > open.n || matched % LOAD_PAGE_SIZE != 0)) {
        fprintf(stderr, "load: %u of %u tokens matched\n", matched, open.n);
        return 1;
    }
    t->len = status == KVPOOL_OK ? matched : 0;
    l->reused += t->len;
    return status;
}

static int pin(struct load *l, const struct tokens *t) {
    int status =
        kvpool_prefix_pin(l->client, t->seq, pick(l, LOAD_MAX_LEN), 1 + pick(l, 500), NULL, NULL);
    return status == KVPOOL_E_STATE || status == KVPOOL_E_LIMIT ? KVPOOL_OK : status;
}

int load_round(struct load *l) {
    struct tokens *t = &l->seqs[pick(l, LOAD_SEQS)];
    uint32_t what = pick(l, 10);
    if (t->seq == 0) {
        if (what < 7) {
            return open_document(l, t);
        }
        t->len = 0;
        t->document = 0;
        return kvpool_seq_create(l->client, l->pool, 1, &t->seq);
    }
    if (what == 0 || t->len == LOAD_MAX_LEN) {
        int status = pick(l, 4) == 0 ? kvpool_seq_release(l->client, 1, &t->seq, KVPOOL_FREE_DROP)
                                     : kvpool_seq_free(l->client, 1, &t->seq);
        if (status == KVPOOL_OK) {
            t->seq = 0;
        }
        return status;
    }
    if (what == 1) {
        uint32_t keep = pick(l, t->len + 1);
        int status = kvpool_seq_truncate(l->client, t->seq, keep);
        if (status == KVPOOL_OK) {
            t->len = keep;
            t->document = pick(l, 2) == 0 ? t->document : pick(l, DOCUMENTS + 1);
        }
        return status;
    }
    if (what == 3 && l->pins && pick(l, 8) == 0) {
        return pin(l, t);
    }
    if (what == 2) {
        for (uint32_t i = 0; i < LOAD_SEQS; i++) {
            struct tokens *copy = &l->seqs[i];
            if (copy->seq == 0) {
                int status = kvpool_seq_fork(l->client, t->seq, 1, &copy->seq);
                if (status == KVPOOL_OK) {
                    copy->len = t->len;
                    copy->document = pick(l, 2) == 0 ? t->document : pick(l, DOCUMENTS + 1);
                    memcpy(copy->id, t->id, sizeof t->id);
                    memcpy(copy->token, t->token, sizeof t->token);
                }
                return status;
            }
        }
    }
    return step(l);
}
