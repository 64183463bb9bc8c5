// SPDX-License-Identifier: Apache-2.0
// core.c: opening and closing core over a block. See core.h and state.h.
#include "daemon/core/state.h"

#include <stdlib.h>
#include <string.h>

static void fill_none(uint32_t *array, size_t n) {
    memset(array, 0xFF, n * sizeof *array); // LAYOUT_NONE has all bits set
}

// Derived tables of an empty core.
static bool alloc_derived(struct core *c) {
    const struct core_limits *l = &c->limits;
    uint32_t num_buckets = 1;
    while (num_buckets < 2 * l->max_steps) {
        num_buckets *= 2;
    }
    c->bucket_mask = num_buckets - 1;
    c->sessions = calloc(l->max_sessions, sizeof *c->sessions);
    c->seqs = calloc(l->max_seqs, sizeof *c->seqs);
    c->steps = calloc(l->max_steps, sizeof *c->steps);
    c->pools = calloc(l->max_pools, sizeof *c->pools);
    c->buckets = malloc(num_buckets * sizeof *c->buckets);
    c->seen = calloc(l->max_seqs, sizeof *c->seen);
    c->deltas = malloc(l->max_batch * sizeof *c->deltas);
    c->copies = malloc(l->max_batch * sizeof *c->copies);
    c->rows = malloc(l->max_batch * sizeof *c->rows);
    c->kv_len = malloc(l->max_batch * sizeof *c->kv_len);
    c->qo_indptr = malloc(((size_t)l->max_batch + 1) * sizeof *c->qo_indptr);
    if (c->sessions == NULL || c->seqs == NULL || c->steps == NULL || c->pools == NULL ||
        c->buckets == NULL || c->seen == NULL || c->deltas == NULL || c->copies == NULL ||
        c->rows == NULL || c->kv_len == NULL || c->qo_indptr == NULL ||
        !ids_init(&c->session_ids, l->max_sessions) || !ids_init(&c->seq_ids, l->max_seqs) ||
        !ids_init(&c->step_ids, l->max_steps) || !ids_init(&c->pin_ids, l->max_pins)) {
        return false;
    }
    fill_none(c->buckets, num_buckets);
    for (uint32_t i = 0; i < l->max_sessions; i++) {
        c->sessions[i].first_seq = LAYOUT_NONE;
        c->sessions[i].first_step = LAYOUT_NONE;
    }
    return true;
}

int core_attach(void *block, size_t size, struct core **ret, struct err *err) {
    struct core *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory for core's tables");
    }
    int rc = layout_open(block, size, &c->t, err);
    if (rc != 0) {
        free(c);
        return rc;
    }
    c->limits = c->t.header->limits;
    c->block = block;
    c->block_size = size;
    if (!alloc_derived(c)) {
        rc = err_set(err, KVPOOL_E_NOMEM, "out of memory for core's tables");
        goto close;
    }
    rc = core_rebuild(c, err);
    if (rc != 0) {
        goto close;
    }
    *ret = c;
    return 0;
close:
    core_close(c);
    return rc;
}

int core_create(void *block, size_t size, const struct core_limits *limits, uint64_t epoch,
                const uint8_t secret[CORE_SECRET_SIZE], struct core **ret, struct err *err) {
    int rc = layout_format(block, size, limits, epoch, secret, err);
    if (rc != 0) {
        return rc;
    }
    rc = core_attach(block, size, ret, err);
    if (rc != 0) {
        memset(block, 0, sizeof(struct header_rec));
    }
    return rc;
}

void core_close(struct core *c) {
    if (c == NULL) {
        return;
    }
    for (uint32_t i = 0; c->pools != NULL && i < c->limits.max_pools; i++) {
        core_pool_live_fini(c, i);
    }
    ids_fini(&c->session_ids);
    ids_fini(&c->seq_ids);
    ids_fini(&c->step_ids);
    ids_fini(&c->pin_ids);
    free(c->sessions);
    free(c->seqs);
    free(c->steps);
    free(c->pools);
    free(c->buckets);
    free(c->seen);
    free(c->deltas);
    free(c->copies);
    free(c->rows);
    free(c->kv_len);
    free(c->qo_indptr);
    free(c);
}

void core_observe(struct core *c, core_event_fn fn, void *arg) {
    c->event_fn = fn;
    c->event_arg = arg;
}

void core_totals(const struct core *c, struct core_totals *ret) {
    *ret = (struct core_totals){
        .pools = c->num_pools,
        .sessions = ids_used(&c->session_ids),
        .seqs = ids_used(&c->seq_ids),
        .steps = ids_used(&c->step_ids),
        .pins = ids_used(&c->pin_ids),
    };
}
