// SPDX-License-Identifier: Apache-2.0
// cost.c: see cost.h.
#include "daemon/cost.h"

#define FEW_QUERIES 16u   // up to here K and V are read at the speed of memory
#define OVERHEAD_NS 2000u // of handing anything to the backend
#define TRUSTED_NS 100000 // a measurement of at least this counts fully
#define LEARN 0.125       // weight of a measurement in the moving average
#define MOST_RATIO 8.0    // of measured to estimated, either way

const char *cost_kind_name(enum cost_kind kind) {
    static const char *const names[COST_KINDS] = {[COST_EFFECTS] = "effects",
                                                  [COST_APPEND] = "append",
                                                  [COST_DECODE] = "decode",
                                                  [COST_PREFILL] = "prefill"};
    return names[kind];
}

void cost_rates_init(struct cost_rates *r) {
    *r = (struct cost_rates){
        .ns = {
            [COST_EFFECTS] = 0.5, [COST_APPEND] = 0.5, [COST_DECODE] = 0.5, [COST_PREFILL] = 0.1}};
}

// Keys that queries a..b of a sequence see together.
static uint64_t visible_keys(const struct backend_attend_op *op, uint64_t kv_len, uint64_t q_len,
                             uint64_t a, uint64_t b) {
    uint64_t n = b - a;
    uint64_t before = kv_len > q_len ? kv_len - q_len : 0; // keys before the first query
    // Of query j a causal mask leaves before + j + 1 keys; of the middle one, the average.
    uint64_t keys = op->causal ? before + (a + b + 1) / 2 : kv_len;
    if (op->window_left >= 0) {
        uint64_t window = (uint64_t)op->window_left + 1;
        if (!op->causal) // and all keys after the query's own
            window += q_len - (a + b) / 2;
        keys = keys < window ? keys : window;
    }
    return n * (keys < kv_len ? keys : kv_len);
}

void cost_add_queries(const struct kv_geometry *g, const struct backend_attend_op *op, uint32_t i,
                      uint32_t a, uint32_t b, struct cost *ret) {
    uint64_t q_len = op->batch.qo_indptr[i + 1] - op->batch.qo_indptr[i];
    enum cost_kind kind = q_len <= FEW_QUERIES && !op->part ? COST_DECODE : COST_PREFILL;
    uint64_t units =
        visible_keys(op, op->batch.kv_len[i], q_len, a, b) * ((uint64_t)op->qo_heads * g->head_dim);
    if (kind == COST_DECODE) // what memory limits: of narrower pages the same keys are fewer bytes
        units = units * kv_dtype_size(kv_plane_dtype(g)) / kv_dtype_size(g->dtype);
    ret->units[kind] += units;
}

void cost_add_op(const struct kv_geometry *g, const struct backend_op *op, struct cost *ret) {
    const struct backend_batch *batch;
    switch (op->kind) {
    case BACKEND_TABLE:
        ret->units[COST_EFFECTS] += op->u.table.count * sizeof(uint32_t);
        break;
    case BACKEND_COPY:
        ret->units[COST_EFFECTS] += (uint64_t)op->u.copy.count * kv_page_bytes(g) * g->layers;
        break;
    case BACKEND_APPEND:
        batch = &op->u.append.batch;
        ret->units[COST_APPEND] += batch->qo_indptr[batch->n] * (kv_page_bytes(g) / g->page_size);
        break;
    case BACKEND_ATTEND:
        batch = &op->u.attend.batch;
        for (uint32_t i = 0; i < batch->n; i++)
            cost_add_queries(g, &op->u.attend, i, 0, batch->qo_indptr[i + 1] - batch->qo_indptr[i],
                             ret);
        break;
    }
}

uint64_t cost_estimate_ns(const struct cost_rates *r, const struct cost *cost) {
    double ns = OVERHEAD_NS;
    for (int kind = 0; kind < COST_KINDS; kind++)
        ns += (double)cost->units[kind] * r->ns[kind];
    return (uint64_t)ns;
}

void cost_learn(struct cost_rates *r, const struct cost *cost, uint64_t ns) {
    double estimate = (double)cost_estimate_ns(r, cost) - OVERHEAD_NS;
    double measured = ns > OVERHEAD_NS ? (double)(ns - OVERHEAD_NS) : 0;
    if (estimate < 1)
        return;
    double ratio = measured / estimate;
    ratio = ratio > MOST_RATIO ? MOST_RATIO : ratio < 1 / MOST_RATIO ? 1 / MOST_RATIO : ratio;
    double weight = LEARN * (measured < TRUSTED_NS ? measured / TRUSTED_NS : 1);
    for (int kind = 0; kind < COST_KINDS; kind++) {
        double share = (double)cost->units[kind] * r->ns[kind] / estimate;
        r->ns[kind] *= 1 + weight * share * (ratio - 1);
    }
}
