// SPDX-License-Identifier: Apache-2.0
// trial.c: see trial.h.
#include "client/cmd/trial.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct trial {
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_seq seq;
    kvpool_region *region;
    kvpool_tensor q, k, v, out;
};

static kvpool_attn_args attn_args(const struct trial *t) {
    kvpool_attn_args args = KVPOOL_ATTN_ARGS_INIT;
    args.qo_heads = TRIAL_QO_HEADS;
    args.q = t->q;
    args.out = t->out;
    return args;
}

// Appends `tokens` tokens in one step.
static kvpool_status append(struct trial *t, uint32_t tokens) {
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_attn_args args = attn_args(t);
    kvpool_step step = 0;
    kvpool_status status = KVPOOL_OK;
    begin.pool = t->pool;
    begin.n = 1;
    begin.seqs = &t->seq;
    begin.new_tokens = &tokens;
    if ((status = kvpool_step_begin(t->client, &begin, &step, NULL)) != KVPOOL_OK) {
        return status;
    }
    args.step = step;
    args.k = t->k;
    args.v = t->v;
    status = tokens == 1 ? kvpool_decode(t->client, &args) : kvpool_prefill(t->client, &args);
    if (status == KVPOOL_OK) {
        status = kvpool_step_commit(t->client, step);
    }
    if (status != KVPOOL_OK) {
        kvpool_step_abort(t->client, step);
    }
    return status;
}

// Small numbers that differ from each other: 2^-3 .. 2^0 with sign, in bf16.
static void fill(uint16_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t mix = (uint32_t)i * 2654435761u;
        p[i] = (uint16_t)(0x3E00u + (mix >> 24) + (mix >> 8 & 0x8000u));
    }
}

kvpool_status trial_open(kvpool_client *client, struct trial **ret) {
    const size_t q_bytes = sizeof(uint16_t) * TRIAL_LEN * TRIAL_QO_HEADS * TRIAL_HEAD_DIM;
    const size_t k_bytes = sizeof(uint16_t) * TRIAL_LEN * TRIAL_KV_HEADS * TRIAL_HEAD_DIM;
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    char name[KVPOOL_NAME_MAX + 1];
    kvpool_status status = KVPOOL_E_NOMEM;
    struct trial *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return status;
    }
    t->client = client;
    snprintf(name, sizeof(name), "trial-%ld", (long)getpid());
    config.name = name;
    config.layers = 1;
    config.kv_heads = TRIAL_KV_HEADS;
    config.head_dim = TRIAL_HEAD_DIM;
    config.page_size = 16;
    config.dtype = KVPOOL_BF16;
    config.num_pages = 16;
    config.max_seqs = 4;
    if ((status = kvpool_pool_create(client, &config, &t->pool)) != KVPOOL_OK ||
        (status = kvpool_region_create(client, 2 * q_bytes + 2 * k_bytes, &t->region)) !=
            KVPOOL_OK ||
        (status = kvpool_seq_create(client, t->pool, 1, &t->seq)) != KVPOOL_OK) {
        goto close;
    }
    fill(kvpool_region_data(t->region), (q_bytes + 2 * k_bytes) / sizeof(uint16_t));
    t->q = (kvpool_tensor){t->region, 0, 0, 0};
    t->k = (kvpool_tensor){t->region, q_bytes, 0, 0};
    t->v = (kvpool_tensor){t->region, q_bytes + k_bytes, 0, 0};
    t->out = (kvpool_tensor){t->region, q_bytes + 2 * k_bytes, 0, 0};
    if ((status = append(t, TRIAL_LEN)) != KVPOOL_OK) {
        goto close;
    }
    *ret = t;
    return KVPOOL_OK;
close:
    trial_close(t);
    return status;
}

kvpool_status trial_decode(struct trial *t) {
    static const uint32_t one = 1;
    kvpool_attn_args args = attn_args(t);
    args.pool = t->pool;
    args.n = 1;
    args.seqs = &t->seq;
    args.q_len = &one;
    return kvpool_decode(t->client, &args);
}

kvpool_status trial_step(struct trial *t) {
    kvpool_status status = append(t, 1);
    return status != KVPOOL_OK ? status : kvpool_seq_truncate(t->client, t->seq, TRIAL_LEN);
}

void trial_close(struct trial *t) {
    if (t == NULL) {
        return;
    }
    if (t->seq != 0) {
        kvpool_seq_free(t->client, 1, &t->seq);
    }
    kvpool_region_free(t->region);
    if (t->pool != 0) {
        kvpool_pool_destroy(t->client, t->pool);
    }
    free(t);
}
