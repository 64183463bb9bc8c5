// SPDX-License-Identifier: Apache-2.0
// fake_kvpool.c: see fake_kvpool.h. fp32 only, no stride, no window: what the worker uses.
#include "tests/unit/examples/fake_kvpool.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 16, MAX_TOKENS = 2048 };

struct kvpool_region {
    uint64_t bytes;
    void *data;
};
struct kvpool_op {
    kvpool_status status;
};
struct sequence {
    bool live;
    uint32_t length;
    float *kv;                   // [layers][2][MAX_TOKENS][kv_dim]
    uint32_t tokens[MAX_TOKENS]; // up to `known`
    uint32_t known;
    uint64_t extra;
};

static struct {
    enum fake_fault fault;
    uint32_t layers, kv_heads, head_dim;
    struct sequence seqs[MAX_SEQS];
    struct sequence cached; // kv NULL: none
    uint32_t regions, ops, submitted;
    uint32_t begins, attends, commits;
    kvpool_step next_step, step; // step: the open one, 0 none
    uint32_t n;
    uint32_t batch[MAX_SEQS], new_tokens[MAX_SEQS];
} fake;

static size_t kv_floats(void) {
    return (size_t)fake.layers * 2 * MAX_TOKENS * fake.kv_heads * fake.head_dim;
}

static float *kv_at(uint32_t seq, uint32_t layer, uint32_t which, uint32_t position) {
    const size_t dim = (size_t)fake.kv_heads * fake.head_dim;
    if (fake.fault == FAKE_SHARES_FORKS) {
        seq = 0;
    }
    return fake.seqs[seq].kv + (((size_t)layer * 2 + which) * MAX_TOKENS + position) * dim;
}

void fake_reset(enum fake_fault fault, uint32_t layers, uint32_t kv_heads, uint32_t head_dim) {
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        free(fake.seqs[i].kv);
    }
    free(fake.cached.kv);
    memset(&fake, 0, sizeof fake);
    fake.fault = fault;
    fake.layers = layers;
    fake.kv_heads = kv_heads;
    fake.head_dim = head_dim;
}

uint32_t fake_leftovers(void) {
    uint32_t n = fake.regions + fake.ops + (fake.step != 0);
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        n += fake.seqs[i].live;
    }
    return n;
}

uint32_t fake_submitted(void) {
    return fake.submitted;
}

const char *kvpool_strerror(kvpool_status status) {
    return status == KVPOOL_OK ? "success" : "fake error";
}
const char *kvpool_last_error(const kvpool_client *client, char *buf, size_t buf_size) {
    (void)client;
    strncpy(buf, "told to fail", buf_size - 1);
    buf[buf_size - 1] = '\0';
    return buf;
}

kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                   kvpool_region **ret_region) {
    (void)client;
    kvpool_region *r = malloc(sizeof *r);
    assert(r);
    *r = (kvpool_region){bytes, calloc(1, bytes)};
    fake.regions++;
    *ret_region = r;
    return KVPOOL_OK;
}
void *kvpool_region_data(const kvpool_region *region) {
    return region->data;
}
kvpool_status kvpool_region_free(kvpool_region *region) {
    if (region) {
        fake.regions--;
        free(region->data);
        free(region);
    }
    return KVPOOL_OK;
}

kvpool_status kvpool_seq_create(kvpool_client *client, kvpool_pool pool, uint32_t n,
                                kvpool_seq *ret_seqs) {
    (void)client;
    assert(pool == 1);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = 0;
        while (fake.seqs[s].live) {
            s++;
        }
        assert(s < MAX_SEQS);
        fake.seqs[s] = (struct sequence){.live = true, .kv = calloc(kv_floats(), sizeof(float))};
        assert(fake.seqs[s].kv);
        ret_seqs[i] = s + 1;
    }
    return KVPOOL_OK;
}
kvpool_status kvpool_seq_fork(kvpool_client *client, kvpool_seq seq, uint32_t n,
                              kvpool_seq *ret_seqs) {
    kvpool_seq_create(client, 1, n, ret_seqs);
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *copy = &fake.seqs[ret_seqs[i] - 1];
        copy->length = fake.seqs[seq - 1].length;
        copy->known = fake.seqs[seq - 1].known;
        memcpy(copy->tokens, fake.seqs[seq - 1].tokens, sizeof copy->tokens);
        memcpy(copy->kv, fake.seqs[seq - 1].kv, kv_floats() * sizeof(float));
    }
    return KVPOOL_OK;
}
kvpool_status kvpool_seq_truncate(kvpool_client *client, kvpool_seq seq, uint32_t length) {
    (void)client;
    assert(length <= fake.seqs[seq - 1].length);
    struct sequence *s = &fake.seqs[seq - 1];
    s->length = length;
    s->known = s->known < length ? s->known : length;
    return KVPOOL_OK;
}
kvpool_status kvpool_seq_open_with(kvpool_client *client, const kvpool_open_args *args,
                                   kvpool_seq *ret_seq, uint32_t *ret_matched) {
    assert(args->pool == 1 && args->extra_size == sizeof(uint64_t));
    if (fake.fault == FAKE_FAILS_OPEN) {
        return KVPOOL_E_LIMIT;
    }
    kvpool_seq_create(client, 1, 1, ret_seq);
    struct sequence *s = &fake.seqs[*ret_seq - 1];
    const struct sequence *c = &fake.cached;
    memcpy(&s->extra, args->extra, sizeof s->extra);
    uint32_t same = 0;
    while (c->kv && same < args->n && same < c->known &&
           (fake.fault == FAKE_MATCHES_ANYTHING ||
            (c->extra == s->extra && c->tokens[same] == args->tokens[same]))) {
        same++;
    }
    same -= same % 16;
    if (same > 0) {
        memcpy(s->kv, c->kv, kv_floats() * sizeof(float));
        memcpy(s->tokens, c->tokens, same * sizeof *s->tokens);
    }
    *ret_matched = s->length = s->known = same;
    return KVPOOL_OK;
}
kvpool_status kvpool_seq_free(kvpool_client *client, uint32_t n, const kvpool_seq *seqs) {
    (void)client;
    for (uint32_t i = 0; i < n; i++) {
        assert(fake.seqs[seqs[i] - 1].live);
        free(fake.cached.kv);
        fake.cached = fake.seqs[seqs[i] - 1];
        fake.seqs[seqs[i] - 1] = (struct sequence){0};
    }
    return KVPOOL_OK;
}
kvpool_status kvpool_seq_stat(kvpool_client *client, kvpool_seq seq, kvpool_seq_info *ret) {
    (void)client;
    ret->length = fake.seqs[seq - 1].length + (fake.fault == FAKE_WRONG_LENGTH);
    return KVPOOL_OK;
}

kvpool_step kvpool_step_id(kvpool_client *client) {
    (void)client;
    return ++fake.next_step;
}
kvpool_status kvpool_step_begin(kvpool_client *client, const kvpool_step_args *args,
                                kvpool_step *ret_step, uint64_t *ret_missing_pages) {
    (void)ret_missing_pages;
    assert(fake.step == 0 && args->n <= MAX_SEQS);
    if (++fake.begins == 3 && fake.fault == FAKE_OUT_OF_PAGES) {
        return KVPOOL_E_NOSPACE;
    }
    fake.step = args->step ? args->step : kvpool_step_id(client);
    fake.n = args->n;
    uint32_t num_tokens = 0;
    for (uint32_t i = 0; i < args->n; i++) {
        fake.batch[i] = (uint32_t)args->seqs[i] - 1;
        fake.new_tokens[i] = args->new_tokens[i];
        struct sequence *s = &fake.seqs[fake.batch[i]];
        assert(s->length + args->new_tokens[i] <= MAX_TOKENS);
        assert(args->tokens && s->known == s->length);
        memcpy(s->tokens + s->length, args->tokens + num_tokens,
               args->new_tokens[i] * sizeof *s->tokens);
        num_tokens += args->new_tokens[i];
    }
    if (ret_step) {
        *ret_step = fake.step;
    }
    return KVPOOL_OK;
}
kvpool_status kvpool_step_commit(kvpool_client *client, kvpool_step step) {
    (void)client;
    assert(step == fake.step && step != 0);
    if (++fake.commits == 3 && fake.fault == FAKE_FAILS_COMMIT) {
        return KVPOOL_E_BACKEND;
    }
    for (uint32_t i = 0; i < fake.n; i++) {
        fake.seqs[fake.batch[i]].length += fake.new_tokens[i];
        fake.seqs[fake.batch[i]].known += fake.new_tokens[i];
    }
    fake.step = 0;
    return KVPOOL_OK;
}
kvpool_status kvpool_step_abort(kvpool_client *client, kvpool_step step) {
    (void)client;
    if (step != fake.step || step == 0) {
        return KVPOOL_E_NOTFOUND;
    }
    fake.step = 0;
    return KVPOOL_OK;
}

static float *tensor_at(const kvpool_tensor *t, size_t token, size_t dim) {
    assert(t->token_stride == 0 && t->head_stride == 0);
    assert(t->offset + (token + 1) * dim * sizeof(float) <= t->region->bytes);
    return (float *)(void *)((char *)t->region->data + t->offset) + token * dim;
}

// Online softmax in fp64: another order of operations than the checker's.
static void attend_one(const float *q, uint32_t seq, uint32_t layer, uint32_t kv_head,
                       uint32_t from, uint32_t n, float *out) {
    const uint32_t d = fake.head_dim;
    double max = -INFINITY, sum = 0, acc[256] = {0};
    assert(d <= 256);
    for (uint32_t s = from; s < n; s++) {
        const float *k = kv_at(seq, layer, 0, s) + (size_t)kv_head * d;
        const float *v = kv_at(seq, layer, 1, s) + (size_t)kv_head * d;
        double logit = 0;
        for (uint32_t i = 0; i < d; i++) {
            logit += (double)q[i] * k[i];
        }
        logit /= sqrt(d);
        const double top = fmax(max, logit), scale = exp(max - top), weight = exp(logit - top);
        sum = sum * scale + weight;
        for (uint32_t i = 0; i < d; i++) {
            acc[i] = acc[i] * scale + weight * v[i];
        }
        max = top;
    }
    for (uint32_t i = 0; i < d; i++) {
        out[i] = fake.fault == FAKE_WRITES_NAN ? NAN : (float)(sum > 0 ? acc[i] / sum : 0);
    }
}

static kvpool_status attention(const kvpool_attn_args *a) {
    if (a->step != fake.step || a->step == 0) {
        return KVPOOL_E_NOTFOUND;
    }
    if (++fake.attends == 3 && fake.fault == FAKE_FAILS_LAYER) {
        return KVPOOL_E_BACKEND;
    }
    assert(a->flags == KVPOOL_ATTN_CAUSAL && a->sm_scale == 0 && a->window_left == -1);
    const size_t kv_dim = (size_t)fake.kv_heads * fake.head_dim;
    const size_t dim = (size_t)a->qo_heads * fake.head_dim;
    size_t token = 0;
    for (uint32_t i = 0; i < fake.n; i++) {
        const uint32_t seq = fake.batch[i], start = fake.seqs[seq].length;
        const bool frozen =
            fake.fault == FAKE_IGNORES_TRUNCATE && *kv_at(seq, a->layer, 1, start) != 0;
        for (uint32_t j = 0; j < fake.new_tokens[i] && !frozen; j++) {
            memcpy(kv_at(seq, a->layer, 0, start + j), tensor_at(&a->k, token + j, kv_dim),
                   kv_dim * sizeof(float));
            memcpy(kv_at(seq, a->layer, 1, start + j), tensor_at(&a->v, token + j, kv_dim),
                   kv_dim * sizeof(float));
        }
        token += fake.new_tokens[i];
    }
    token = 0;
    for (uint32_t i = 0; i < fake.n; i++) {
        const uint32_t start = fake.seqs[fake.batch[i]].length;
        const uint32_t swap = fake.fault == FAKE_SWAPS_BRANCHES && i == 0 && fake.n > 1;
        for (uint32_t j = 0; j < fake.new_tokens[i]; j++, token++) {
            const uint32_t n = start + j + 1;
            const uint32_t from = fake.fault == FAKE_SKIPS_OLDEST_PAGE && n > 16 ? 16 : 0;
            for (uint32_t h = 0; h < a->qo_heads; h++) {
                const size_t head = (size_t)h * fake.head_dim;
                attend_one(tensor_at(&a->q, token, dim) + head, fake.batch[i + swap], a->layer,
                           h / (a->qo_heads / fake.kv_heads), from, n,
                           tensor_at(&a->out, token, dim) + head);
            }
        }
    }
    return KVPOOL_OK;
}

kvpool_status kvpool_prefill(kvpool_client *client, const kvpool_attn_args *args) {
    (void)client;
    return attention(args);
}
kvpool_status kvpool_decode(kvpool_client *client, const kvpool_attn_args *args) {
    (void)client;
    for (uint32_t i = 0; i < fake.n; i++) {
        assert(fake.new_tokens[i] <= 8);
    }
    return attention(args);
}

kvpool_status kvpool_submit(kvpool_client *client, const kvpool_request *request,
                            kvpool_op **ret_op) {
    kvpool_op *op = malloc(sizeof *op);
    assert(op);
    switch (request->kind) {
    case KVPOOL_OP_BEGIN:
        assert(request->begin->step != 0);
        op->status = kvpool_step_begin(client, request->begin, NULL, NULL);
        break;
    case KVPOOL_OP_PREFILL:
    case KVPOOL_OP_DECODE:
        op->status = attention(request->attn);
        break;
    default:
        assert(request->kind == KVPOOL_OP_COMMIT);
        op->status = kvpool_step_commit(client, request->step);
        break;
    }
    fake.ops++;
    fake.submitted++;
    *ret_op = op;
    return KVPOOL_OK;
}
kvpool_status kvpool_wait(kvpool_client *client, kvpool_op *op, uint32_t timeout_ms) {
    (void)client;
    assert(timeout_ms == UINT32_MAX);
    const kvpool_status status = op->status;
    free(op);
    fake.ops--;
    return status;
}
