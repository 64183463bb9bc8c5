// SPDX-License-Identifier: Apache-2.0
// model.c: see model.h.
#include "model.h"

#include <string.h>

struct pool {
    uint64_t handle; // 0: none
    uint32_t layers, page_size, num_pages, row_entries, max_seqs;
    uint32_t stored; // pages, as events say
    uint32_t table[MODEL_ENTRIES];
    uint32_t cells[MODEL_LAYERS][MODEL_TOKENS];
};
struct seq {
    uint64_t handle, session; // 0: none
    struct pool *pool;
    uint32_t row, length, tracked;
    uint32_t ns, extra_size;
    uint8_t extra[CORE_EXTRA_MAX];
    uint32_t ids[MODEL_TOKENS]; // of the first `tracked`
    uint32_t numbers[MODEL_TOKENS];
};
struct pin {
    uint64_t handle, pool, until; // 0: none
};

static struct {
    struct pool pools[MODEL_POOLS];
    struct seq seqs[MODEL_SEQS];
    struct model_step steps[MODEL_STEPS];
    struct pin pins[MODEL_PINS];
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

// The known tokens of a sequence are found again: its pages cannot go before it does.
static void verify_found(struct core *c, const struct seq *s) {
    const struct core_open open = {.ns = s->ns,
                                   .tokens = s->ids,
                                   .n = s->tracked,
                                   .extra = s->extra,
                                   .extra_size = s->extra_size};
    uint32_t matched = 0;
    ENSURE(core_seq_probe(c, s->pool->handle, &open, &matched, NULL) == 0);
    ENSURE(matched == s->tracked / s->pool->page_size * s->pool->page_size);
}

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
    ENSURE(info.tracked == s->tracked && info.ns == s->ns);
    verify_found(c, s);
    const uint32_t *row = core_row(c, p->handle, s->row);
    for (uint32_t i = 0; i < s->length; i++) {
        uint32_t page = p->table[s->row * p->row_entries + i / p->page_size];
        ENSURE(page == row[i / p->page_size]);
        for (uint32_t layer = 0; layer < p->layers && layer < MODEL_LAYERS; layer++)
            ENSURE(p->cells[layer][page * p->page_size + i % p->page_size] == s->numbers[i]);
    }
}

static void verify_pool(struct core *c, const struct pool *p) {
    struct core_pool_info info;
    ENSURE(core_pool_stat(c, p->handle, &info, NULL) == 0);
    uint32_t seqs = 0, pins = 0;
    for (size_t k = 0; k < MODEL_SEQS; k++)
        seqs += m.seqs[k].pool == p && m.seqs[k].handle != 0;
    for (size_t k = 0; k < MODEL_PINS; k++)
        pins += m.pins[k].handle != 0 && m.pins[k].pool == p->handle;
    ENSURE(info.seqs == seqs && info.pins == pins && info.sealed_pages == p->stored);
    struct core_ns_info ns;
    uint32_t cursor = 0, active = 0, cached = 0;
    while (core_ns_next(c, p->handle, &cursor, &ns)) {
        ENSURE(ns.active + ns.cached <= ns.config.limit);
        active += ns.active;
        cached += ns.cached;
    }
    ENSURE(cached == info.cached_pages && cached <= p->stored);
    ENSURE(info.free_pages + cached + active == p->num_pages);
    ENSURE(seqs + pins > 0 || active == 0);
}

void model_verify(struct core *c) {
    struct err err = {0};
    if (core_check(c, &err) != 0 || core_rebuild_compare(c, &err) != 0) {
        fprintf(stderr, "core: %s\n", err.text);
        abort();
    }
    struct core_totals totals;
    core_totals(c, &totals);
    uint32_t pools = 0, seqs = 0, steps = 0, pins = 0;
    for (size_t i = 0; i < MODEL_SEQS; i++)
        if (m.seqs[i].handle != 0) {
            verify_seq(c, &m.seqs[i]);
            seqs++;
        }
    for (size_t i = 0; i < MODEL_STEPS; i++)
        steps += m.steps[i].live;
    for (size_t i = 0; i < MODEL_PINS; i++)
        pins += m.pins[i].handle != 0;
    for (size_t i = 0; i < MODEL_POOLS; i++)
        if (m.pools[i].handle != 0) {
            verify_pool(c, &m.pools[i]);
            pools++;
        }
    ENSURE(totals.pools == pools && totals.seqs == seqs && totals.steps == steps);
    ENSURE(totals.pins == pins);
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
                ok ? s->numbers[batch->qo_indptr[i] + j] : UINT32_MAX;
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
    p->stored = 0;
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
    for (size_t i = 0; i < MODEL_PINS; i++)
        if (m.pins[i].pool == handle)
            m.pins[i].handle = 0;
    ENSURE(p->stored == 0); // it was cleared
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
    *s = (struct seq){.handle = handle,
                      .session = session,
                      .pool = pool_find(info.pool),
                      .row = info.row,
                      .ns = info.ns};
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
        s->tracked = parent->tracked;
        s->extra_size = parent->extra_size;
        memcpy(s->extra, parent->extra, sizeof s->extra);
        memcpy(s->ids, parent->ids, sizeof s->ids);
        memcpy(s->numbers, parent->numbers, sizeof s->numbers);
    }
}

void model_seq_truncated(uint64_t seq, uint32_t length) {
    struct seq *s = seq_find(seq);
    ENSURE(s != NULL && length <= s->length);
    s->length = length;
    s->tracked = s->tracked < length ? s->tracked : length;
}

void model_seqs_freed(uint32_t n, const uint64_t *seqs) {
    for (uint32_t i = 0; i < n; i++) {
        struct seq *s = seq_find(seqs[i]);
        ENSURE(s != NULL);
        s->handle = 0;
    }
}

// --- known tokens -----------------------------------------------------------------------------

static uint32_t mix(uint32_t before, uint32_t with) {
    uint64_t x = ((uint64_t)before << 32 | with) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return ((uint32_t)(x >> 32) | 1u << 31) & ~1u; // no counted number, no failed layer's
}

// The number before that of the first token.
static uint32_t root_number(const struct seq *s) {
    uint32_t number = mix(s->ns, s->extra_size);
    for (uint32_t i = 0; i < s->extra_size; i++)
        number = mix(number, s->extra[i]);
    return number;
}

static void number_known(const struct seq *s, uint32_t before, uint32_t n, const uint32_t *ids,
                         uint32_t *ret) {
    uint32_t number = before > 0 ? s->numbers[before - 1] : root_number(s);
    for (uint32_t i = 0; i < n; i++)
        ret[i] = number = mix(number, ids[i]);
}

void model_seq_opened(struct core *c, uint64_t session, uint64_t seq, const struct core_open *open,
                      uint32_t matched, const struct core_effects *effects) {
    struct seq *s = seq_add(c, session, seq);
    ENSURE(matched <= open->n && matched % s->pool->page_size == 0 && matched <= MODEL_TOKENS);
    ENSURE((effects->num_deltas == 1) == (matched > 0) && effects->num_copies == 0);
    s->extra_size = open->extra_size;
    if (open->extra_size > 0)
        memcpy(s->extra, open->extra, open->extra_size);
    if (matched > 0)
        memcpy(s->ids, open->tokens, matched * sizeof *s->ids);
    s->length = s->tracked = matched;
    number_known(s, 0, matched, s->ids, s->numbers);
    apply(c, effects);
}

void model_pinned(uint64_t seq, uint64_t pin, uint64_t until, uint32_t tokens) {
    const struct seq *s = seq_find(seq);
    ENSURE(s != NULL && pin != 0 && tokens > 0 && tokens <= s->tracked);
    struct pin *p = m.pins;
    while (p < m.pins + MODEL_PINS && p->handle != 0) {
        ENSURE(p->handle != pin);
        p++;
    }
    ENSURE(p < m.pins + MODEL_PINS);
    *p = (struct pin){pin, s->pool->handle, until};
}

void model_unpinned(uint64_t pool, uint64_t pin) {
    bool found = false;
    for (size_t i = 0; i < MODEL_PINS; i++)
        if (m.pins[i].handle == pin && pin != 0) {
            ENSURE(m.pins[i].pool == pool);
            m.pins[i].handle = 0;
            found = true;
        }
    ENSURE(found);
}

void model_expired(uint64_t now, uint32_t n) {
    uint32_t ended = 0;
    for (size_t i = 0; i < MODEL_PINS; i++)
        if (m.pins[i].handle != 0 && m.pins[i].until <= now) {
            m.pins[i].handle = 0;
            ended++;
        }
    ENSURE(ended == n);
}

void model_event(void *arg, const struct core_event *event) {
    (void)arg;
    struct pool *p = pool_find(event->pool);
    ENSURE(p != NULL);
    switch (event->kind) {
    case CORE_STORED:
        ENSURE(event->page_size == p->page_size && event->tokens != NULL);
        ENSURE(++p->stored <= p->num_pages);
        break;
    case CORE_REMOVED:
        ENSURE(p->stored-- > 0);
        break;
    case CORE_CLEARED:
        p->stored = 0;
        break;
    }
}

// --- steps ------------------------------------------------------------------------------------

void model_step_begun(struct core *c, uint64_t session, uint32_t n, const struct core_item *items,
                      const uint32_t *ids, const struct core_step_info *info,
                      const struct core_effects *effects) {
    const struct model_step *open = model_step_find(session, info->step);
    ENSURE(info->repeated == (open != NULL));
    if (open != NULL) {
        ENSURE(effects->num_deltas == 0 && effects->num_copies == 0 && info->tokens == open->total);
        ENSURE(open->known == (ids != NULL));
        ENSURE(ids == NULL || memcmp(open->ids, ids, open->total * sizeof *ids) == 0);
        return;
    }
    struct model_step *s = m.steps;
    while (s < m.steps + MODEL_STEPS && s->live)
        s++;
    ENSURE(s < m.steps + MODEL_STEPS && n >= 1 && n <= MODEL_BATCH);
    *s = (struct model_step){.live = true, .session = session, .id = info->step, .n = n};
    s->known = ids != NULL;
    for (uint32_t i = 0; i < n; i++) {
        const struct seq *seq = seq_find(items[i].seq);
        ENSURE(seq != NULL && seq->session == session && seq->pool->handle == info->pool);
        ENSURE(s->total + items[i].tokens <= MODEL_TOKENS);
        s->seqs[i] = items[i].seq;
        s->tokens[i] = items[i].tokens;
        uint32_t *numbers = s->numbers + s->total;
        if (ids != NULL)
            memcpy(s->ids + s->total, ids + s->total, items[i].tokens * sizeof *ids);
        if (ids != NULL && seq->tracked == seq->length)
            number_known(seq, seq->length, items[i].tokens, ids + s->total, numbers);
        else
            for (uint32_t j = 0; j < items[i].tokens; j++)
                numbers[j] = ++m.next_number;
        s->total += items[i].tokens;
    }
    ENSURE(s->total == info->tokens);
    apply(c, effects);
}

void model_step_committed(struct core *c, uint64_t session, const struct core_step_info *info,
                          const struct core_effects *effects) {
    struct model_step *s = NULL;
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].live && m.steps[i].session == session && m.steps[i].id == info->step)
            s = &m.steps[i];
    ENSURE(info->repeated == (s == NULL));
    ENSURE(effects->num_copies == 0 && (info->deduplicated > 0) == (effects->num_deltas > 0));
    if (s == NULL) {
        ENSURE(info->sealed + info->deduplicated == 0);
        return;
    }
    ENSURE(info->tokens == s->total);
    uint32_t at = 0, full = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        struct seq *seq = seq_find(s->seqs[i]);
        ENSURE(seq != NULL && seq->length + s->tokens[i] <= MODEL_TOKENS);
        if (s->known && seq->tracked == seq->length) {
            memcpy(seq->ids + seq->length, s->ids + at, s->tokens[i] * sizeof *seq->ids);
            uint32_t before = seq->tracked / seq->pool->page_size;
            seq->tracked += s->tokens[i];
            full += seq->tracked / seq->pool->page_size - before;
        }
        memcpy(seq->numbers + seq->length, s->numbers + at, s->tokens[i] * sizeof *seq->numbers);
        seq->length += s->tokens[i];
        at += s->tokens[i];
    }
    ENSURE(info->sealed + info->deduplicated == full);
    s->live = false;
    apply(c, effects);
}

void model_step_aborted(struct core *c, uint64_t session, uint64_t step,
                        const struct core_effects *effects) {
    for (size_t i = 0; i < MODEL_STEPS; i++)
        if (m.steps[i].live && m.steps[i].session == session && m.steps[i].id == step)
            m.steps[i].live = false;
    apply(c, effects);
}
