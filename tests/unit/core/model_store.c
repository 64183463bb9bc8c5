// SPDX-License-Identifier: Apache-2.0
// model_store.c: the values that a backend would hold. See model.h.
#include "model.h"

#include <assert.h>
#include <string.h>

void model_apply(struct model *m, const struct core *core, const struct core_effects *effects) {
    if (effects->num_deltas == 0 && effects->num_copies == 0) {
        return;
    }
    struct model_pool *p = &m->pools[model_pool(m, effects->pool)];
    for (uint32_t i = 0; i < effects->num_deltas; i++) {
        struct core_delta d = effects->deltas[i];
        const uint32_t *row = core_row(core, effects->pool, d.row);
        assert(row != NULL && d.first + d.count <= p->row_entries);
        memcpy(p->mirror + (size_t)d.row * p->row_entries + d.first, row + d.first,
               d.count * sizeof *row);
    }
    uint32_t page_size = p->config.page_size;
    for (uint32_t i = 0; i < effects->num_copies; i++) {
        struct core_copy copy = effects->copies[i];
        assert(copy.src < p->config.num_pages && copy.dst < p->config.num_pages);
        memcpy(p->store + (size_t)copy.dst * page_size, p->store + (size_t)copy.src * page_size,
               page_size * sizeof *p->store);
    }
}

static uint32_t page_of(const struct model_pool *p, uint32_t row, uint32_t index) {
    return p->mirror[(size_t)row * p->row_entries + index];
}

// Where the mirror says that a token of a row is.
static uint32_t *slot_of(const struct model_pool *p, uint32_t row, uint32_t position) {
    uint32_t page_size = p->config.page_size;
    uint32_t page = page_of(p, row, position / page_size);
    if (page >= p->config.num_pages) {
        return NULL;
    }
    return p->store + (size_t)page * page_size + position % page_size;
}

// --- values -----------------------------------------------------------------------------------

static uint32_t mix(uint32_t before, uint32_t with) {
    uint64_t x = ((uint64_t)before << 32 | with) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return (uint32_t)(x >> 32);
}

// Who may read it: a share group, or the namespace alone.
static uint32_t root_of(const struct model_pool *p, const struct model_text *text) {
    uint32_t salt = text->ns;
    for (uint32_t i = 0; i < text->ns; i++) {
        if (p->ns[text->ns].config.group[0] != '\0' &&
            strcmp(p->ns[i].config.group, p->ns[text->ns].config.group) == 0) {
            salt = i;
            break;
        }
    }
    uint32_t value = mix(salt, text->extra_size);
    for (uint32_t i = 0; i < text->extra_size; i++) {
        value = mix(value, text->extra[i]);
    }
    return value;
}

void model_values(struct model *m, int seq, uint32_t from, uint32_t to) {
    struct model_seq *s = &m->seqs[seq];
    uint32_t value = from > 0 ? s->values[from - 1] : root_of(&m->pools[s->pool], &s->text);
    for (uint32_t i = from; i < to; i++) {
        value = mix(value, s->text.ids[i]);
        s->values[i] = value;
    }
}

// The symbol of a page of the sequence, those of its open step instead of those they replace.
static uint32_t symbol_of(const struct model_seq *s, uint32_t index) {
    uint32_t first = s->num_pages - s->copied;
    return index < first ? s->pages[index] : s->taken[index - first];
}

static bool is_sealed(const struct model_pool *p, uint32_t symbol, uint32_t id) {
    bool sealed = p->pages[symbol].sealed;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        sealed = sealed || (p->pages[i].sealed && p->pages[i].id == id);
    }
    return sealed;
}

bool model_append(struct model *m, int index) {
    const struct model_step *step = &m->steps[index];
    struct model_pool *p = &m->pools[step->pool];
    uint32_t page_size = p->config.page_size;
    bool fine = true;
    for (uint32_t k = 0; k < step->n; k++) {
        struct model_seq *s = &m->seqs[step->seqs[k]];
        uint32_t end = s->len + step->q_len[k];
        if (step->known && s->tracked == s->len) {
            model_values(m, step->seqs[k], s->len, end);
        } else {
            for (uint32_t i = s->len; i < end; i++) {
                s->values[i] = ++m->last_value;
            }
        }
        for (uint32_t i = s->len; i < end; i++) {
            uint32_t *slot = slot_of(p, s->row, i);
            if (slot != NULL) { // else model_first_wrong finds it
                *slot = s->values[i];
            }
            if (i == s->len || i % page_size == 0) {
                fine = fine && !is_sealed(p, symbol_of(s, i / page_size),
                                          page_of(p, s->row, i / page_size));
            }
        }
    }
    return fine;
}

// --- comparing --------------------------------------------------------------------------------

int model_bind(struct model *m, int pool) {
    struct model_pool *p = &m->pools[pool];
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &m->seqs[i];
        uint32_t n = s->num_pages + s->num_taken - s->copied;
        for (uint32_t k = 0; s->live && s->pool == pool && k < n; k++) {
            uint32_t symbol = symbol_of(s, k);
            uint32_t id = page_of(p, s->row, k);
            if (p->pages[symbol].id == UINT32_MAX) {
                p->pages[symbol].id = id;
            }
            if (p->pages[symbol].id != id || id >= p->config.num_pages) {
                return (int)symbol;
            }
        }
    }
    uint32_t owners[MODEL_PAGES] = {0}; // symbol + 1, by id
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        uint32_t id = p->pages[i].id;
        if ((p->counts[i] > 0 || p->pages[i].sealed) && id != UINT32_MAX) {
            if (owners[id] != 0) {
                return (int)i;
            }
            owners[id] = i + 1;
        }
    }
    return -1;
}

int model_first_wrong(const struct model *m) {
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &m->seqs[i];
        if (!s->live) {
            continue;
        }
        uint32_t len = s->len;
        if (s->step >= 0 && (m->steps[s->step].written & 1) != 0) { // appended, not committed
            const struct model_step *step = &m->steps[s->step];
            for (uint32_t k = 0; k < step->n; k++) {
                len += step->seqs[k] == i ? step->q_len[k] : 0;
            }
        }
        for (uint32_t t = 0; t < len; t++) {
            const uint32_t *slot = slot_of(&m->pools[s->pool], s->row, t);
            if (slot == NULL || *slot != s->values[t]) {
                return i;
            }
        }
    }
    return -1;
}
