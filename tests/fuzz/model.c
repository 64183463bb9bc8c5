// SPDX-License-Identifier: Apache-2.0
// model.c: see model.h.
#include "model.h"

#include <string.h>

struct pool {
    uint64_t handle; // 0: none
    uint32_t layers, page_size, num_pages, row_entries, max_seqs;
    uint32_t free_pages; // as last seen
    uint32_t table[MODEL_ENTRIES];
    uint32_t cells[MODEL_LAYERS][MODEL_TOKENS];
};
struct seq {
    uint64_t handle, session; // 0: none
    struct pool *pool;
    uint32_t row, length;
    uint32_t numbers[MODEL_TOKENS];
};

static struct {
    struct pool pools[MODEL_POOLS];
    struct seq seqs[MODEL_SEQS];
    struct model_step steps[MODEL_STEPS];
    uint32_t next_number;
} m;

void model_reset(void) {
    memset(&m, 0, sizeof m);
}

static struct pool *pool_find(uint64_t handle) {
    for (size_t i = 0; handle != 0 && i < MODEL_POOLS; i++)
        if (m.pools[i].handle == handle)
            return &m.pools[i];
    return NULL;
}

static struct seq *seq_find(uint64_t handle) {
    for (size_t i = 0; handle != 0 && i < MODEL_SEQS; i++)
        if (m.seqs[i].handle == handle)
            return &m.seqs[i];
    return NULL;
}

const struct model_step *model_step_find(uint64_t session, uint64_t id) {
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].live && m.steps[i].session == session && m.steps[i].id == id)
            return &m.steps[i];
    return NULL;
}

// --- verification -----------------------------------------------------------------------------

static void verify_seq(struct core *c, const struct seq *s) {
    const struct pool *p = s->pool;
    struct core_seq_info info;
    ENSURE(core_seq_stat(c, 0, s->handle, &info, NULL) == 0);
    ENSURE(info.seq == s->handle && info.session == s->session && info.pool == p->handle);
    ENSURE(info.row == s->row && info.length == s->length);
    ENSURE(info.pages == (s->length + p->page_size - 1) / p->page_size);
    bool in_step = false;
    for (size_t i = 0; i < MODEL_STEPS; i++)
        for (uint32_t k = 0; m.steps[i].live && k < m.steps[i].n; k++)
            in_step |= m.steps[i].seqs[k] == s->handle;
    ENSURE(info.in_step == in_step);
    const uint32_t *row = core_row(c, p->handle, s->row);
    for (uint32_t i = 0; i < s->length; i++) {
        uint32_t page = p->table[s->row * p->row_entries + i / p->page_size];
        ENSURE(page == row[i / p->page_size]);
        for (uint32_t layer = 0; layer < p->layers && layer < MODEL_LAYERS; layer++)
            ENSURE(p->cells[layer][page * p->page_size + i % p->page_size] == s->numbers[i]);
    }
}

void model_verify(struct core *c) {
    struct err err = {0};
    if (core_check(c, &err) != 0 || core_rebuild_compare(c, &err) != 0) {
        fprintf(stderr, "core: %s\n", err.text);
        abort();
    }
    struct core_totals totals;
    core_totals(c, &totals);
    uint32_t pools = 0, seqs = 0, steps = 0;
    for (size_t i = 0; i < MODEL_SEQS; i++)
        if (m.seqs[i].handle != 0) {
            verify_seq(c, &m.seqs[i]);
            seqs++;
        }
    for (size_t i = 0; i < MODEL_STEPS; i++)
        steps += m.steps[i].live;
    for (size_t i = 0; i < MODEL_POOLS; i++) {
        struct pool *p = &m.pools[i];
        if (p->handle == 0)
            continue;
        struct core_pool_info info;
        ENSURE(core_pool_stat(c, p->handle, &info, NULL) == 0);
        ENSURE(info.free_pages <= p->num_pages);
        uint32_t live = 0;
        for (size_t k = 0; k < MODEL_SEQS; k++)
            live += m.seqs[k].pool == p && m.seqs[k].handle != 0;
        ENSURE(info.seqs == live);
        ENSURE(live > 0 || info.free_pages == p->num_pages);
        pools++;
    }
    ENSURE(totals.pools == pools && totals.seqs == seqs && totals.steps == steps);
}

// --- the backend ------------------------------------------------------------------------------

static void apply(struct core *c, const struct core_effects *e) {
    if (e->num_deltas == 0 && e->num_copies == 0)
        return;
    struct pool *p = pool_find(e->pool);
    ENSURE(p != NULL);
    for (uint32_t i = 0; i < e->num_deltas; i++) {
        const struct core_delta *d = &e->deltas[i];
        ENSURE(d->row < p->max_seqs && d->first < p->row_entries);
        ENSURE(d->count >= 1 && d->count <= p->row_entries - d->first);
        const uint32_t *row = core_row(c, e->pool, d->row);
        for (uint32_t k = d->first; k < d->first + d->count; k++) {
            ENSURE(row[k] < p->num_pages);
            p->table[d->row * p->row_entries + k] = row[k];
        }
    }
    for (uint32_t i = 0; i < e->num_copies; i++) {
        const struct core_copy *copy = &e->copies[i];
        ENSURE(copy->src < p->num_pages && copy->dst < p->num_pages && copy->src != copy->dst);
        for (uint32_t layer = 0; layer < MODEL_LAYERS; layer++)
            memcpy(&p->cells[layer][(size_t)copy->dst * p->page_size],
                   &p->cells[layer][(size_t)copy->src * p->page_size],
                   p->page_size * sizeof(uint32_t));
    }
}

void model_layer_done(uint64_t session, uint64_t step, uint32_t layer, bool ok,
                      const struct core_batch *batch) {
    const struct model_step *s = model_step_find(session, step);
    ENSURE(s != NULL && s->n == batch->n && s->total == batch->tokens);
    struct pool *p = pool_find(batch->pool);
    ENSURE(p != NULL && layer < p->layers);
    ENSURE(batch->qo_indptr[0] == 0 && batch->qo_indptr[batch->n] == batch->tokens);
    for (uint32_t i = 0; layer < MODEL_LAYERS && i < batch->n; i++) {
        uint32_t q_len = batch->qo_indptr[i + 1] - batch->qo_indptr[i];
        ENSURE(q_len == s->tokens[i] && q_len <= batch->max_q_len && batch->rows[i] < p->max_seqs);
        for (uint32_t j = 0; j < q_len; j++) {
            uint32_t at = batch->kv_len[i] - q_len + j;
            uint32_t page = p->table[batch->rows[i] * p->row_entries + at / p->page_size];
            p->cells[layer][page * p->page_size + at % p->page_size] =
                ok ? s->first_number + batch->qo_indptr[i] + j : UINT32_MAX;
        }
    }
}

// --- pools, sessions, sequences ---------------------------------------------------------------

bool model_pool_fits(const struct core_pool_config *config) {
    return config->page_size <= MODEL_TOKENS && config->num_pages <= MODEL_TOKENS &&
           config->page_size * config->num_pages <= MODEL_TOKENS;
}

void model_pool_created(struct core *c, uint64_t handle) {
    struct core_pool_info info;
    ENSURE(handle != 0 && pool_find(handle) == NULL);
    ENSURE(core_pool_stat(c, handle, &info, NULL) == 0);
    struct pool *p = m.pools;
    while (p < m.pools + MODEL_POOLS && p->handle != 0)
        p++;
    ENSURE(p < m.pools + MODEL_POOLS);
    memset(p, 0xee, sizeof *p); // whatever the memory held
    p->handle = handle;
    p->layers = info.config.layers;
    p->page_size = info.config.page_size;
    p->num_pages = info.config.num_pages;
    p->row_entries = info.row_entries;
    p->max_seqs = info.config.max_seqs;
    ENSURE((uint64_t)p->max_seqs * p->row_entries <= MODEL_ENTRIES);
    ENSURE(info.free_pages == p->num_pages && info.seqs == 0 && info.index < MODEL_POOLS);
}

void model_pool_destroyed(uint64_t handle) {
    struct pool *p = pool_find(handle);
    ENSURE(p != NULL);
    for (size_t i = 0; i < MODEL_SEQS; i++)
        ENSURE(m.seqs[i].handle == 0 || m.seqs[i].pool != p);
    p->handle = 0;
}

void model_session_closed(uint64_t session) {
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].session == session)
            m.steps[i].live = false;
    for (size_t i = 0; i < MODEL_SEQS; i++)
        if (m.seqs[i].session == session)
            m.seqs[i].handle = 0;
}

static struct seq *seq_add(struct core *c, uint64_t session, uint64_t handle) {
    struct core_seq_info info;
    ENSURE(handle != 0 && seq_find(handle) == NULL);
    ENSURE(core_seq_stat(c, session, handle, &info, NULL) == 0);
    struct seq *s = m.seqs;
    while (s < m.seqs + MODEL_SEQS && s->handle != 0)
        s++;
    ENSURE(s < m.seqs + MODEL_SEQS);
    *s = (struct seq){
        .handle = handle, .session = session, .pool = pool_find(info.pool), .row = info.row};
    ENSURE(s->pool != NULL && s->row < s->pool->max_seqs);
    for (size_t i = 0; i < MODEL_SEQS; i++) // a row belongs to one sequence
        ENSURE(&m.seqs[i] == s || m.seqs[i].handle == 0 || m.seqs[i].pool != s->pool ||
               m.seqs[i].row != s->row);
    return s;
}

void model_seqs_created(struct core *c, uint64_t session, uint32_t n, const uint64_t *seqs) {
    for (uint32_t i = 0; i < n; i++)
        seq_add(c, session, seqs[i]);
}

void model_seqs_forked(struct core *c, uint64_t session, uint64_t parent_handle, uint32_t n,
                       const uint64_t *seqs, const struct core_effects *effects) {
    const struct seq *parent = seq_find(parent_handle);
    ENSURE(parent != NULL && parent->session == session);
    apply(c, effects);
    for (uint32_t i = 0; i < n; i++) {
        struct seq *s = seq_add(c, session, seqs[i]);
        ENSURE(s->pool == parent->pool);
        s->length = parent->length;
        memcpy(s->numbers, parent->numbers, sizeof s->numbers);
    }
}

void model_seq_truncated(uint64_t seq, uint32_t length) {
    struct seq *s = seq_find(seq);
    ENSURE(s != NULL && length <= s->length);
    s->length = length;
}

void model_seqs_freed(uint32_t n, const uint64_t *seqs) {
    for (uint32_t i = 0; i < n; i++) {
        struct seq *s = seq_find(seqs[i]);
        ENSURE(s != NULL);
        s->handle = 0;
    }
}

// --- steps ------------------------------------------------------------------------------------

void model_step_begun(struct core *c, uint64_t session, uint32_t n, const struct core_item *items,
                      const struct core_step_info *info, const struct core_effects *effects) {
    const struct model_step *open = model_step_find(session, info->step);
    ENSURE(info->repeated == (open != NULL));
    if (open != NULL) {
        ENSURE(effects->num_deltas == 0 && effects->num_copies == 0 && info->tokens == open->total);
        return;
    }
    struct model_step *s = m.steps;
    while (s < m.steps + MODEL_STEPS && s->live)
        s++;
    ENSURE(s < m.steps + MODEL_STEPS && n >= 1 && n <= MODEL_BATCH);
    *s = (struct model_step){.live = true, .session = session, .id = info->step, .n = n};
    s->first_number = m.next_number + 1;
    for (uint32_t i = 0; i < n; i++) {
        const struct seq *seq = seq_find(items[i].seq);
        ENSURE(seq != NULL && seq->session == session && seq->pool->handle == info->pool);
        s->seqs[i] = items[i].seq;
        s->tokens[i] = items[i].tokens;
        s->total += items[i].tokens;
    }
    ENSURE(s->total == info->tokens);
    m.next_number += s->total;
    apply(c, effects);
}

void model_step_committed(uint64_t session, const struct core_step_info *info) {
    struct model_step *s = NULL;
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].live && m.steps[i].session == session && m.steps[i].id == info->step)
            s = &m.steps[i];
    ENSURE(info->repeated == (s == NULL));
    if (s == NULL)
        return;
    ENSURE(info->tokens == s->total);
    uint32_t number = s->first_number;
    for (uint32_t i = 0; i < s->n; i++) {
        struct seq *seq = seq_find(s->seqs[i]);
        ENSURE(seq != NULL && seq->length + s->tokens[i] <= MODEL_TOKENS);
        for (uint32_t j = 0; j < s->tokens[i]; j++)
            seq->numbers[seq->length++] = number++;
    }
    s->live = false;
}

void model_step_aborted(struct core *c, uint64_t session, uint64_t step,
                        const struct core_effects *effects) {
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].live && m.steps[i].session == session && m.steps[i].id == step)
            m.steps[i].live = false;
    apply(c, effects);
}
