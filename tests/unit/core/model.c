// SPDX-License-Identifier: Apache-2.0
// model.c: see model.h.
#include "model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void model_pool_open(struct model *m, int pool, uint64_t handle,
                     const struct core_pool_config *config) {
    struct model_pool *p = &m->pools[pool];
    uint32_t row_entries = (config->max_seq_len + config->page_size - 1) / config->page_size;
    *p = (struct model_pool){
        .live = true,
        .handle = handle,
        .config = *config,
        .row_entries = row_entries,
        .store = calloc((size_t)config->num_pages * config->page_size, sizeof *p->store),
        .mirror = malloc((size_t)config->max_seqs * row_entries * sizeof *p->mirror),
        .counts = calloc(config->num_pages, sizeof *p->counts),
    };
    if (p->store == NULL || p->mirror == NULL || p->counts == NULL) {
        abort();
    }
    memset(p->mirror, 0xFF, (size_t)config->max_seqs * row_entries * sizeof *p->mirror);
}

void model_pool_close(struct model *m, int pool) {
    free(m->pools[pool].store);
    free(m->pools[pool].mirror);
    free(m->pools[pool].counts);
    m->pools[pool] = (struct model_pool){0};
}

int model_session(const struct model *m, uint64_t handle) {
    for (int i = 0; i < MODEL_SESSIONS; i++) {
        if (m->sessions[i].live && m->sessions[i].handle == handle) {
            return i;
        }
    }
    return -1;
}

int model_pool(const struct model *m, uint64_t handle) {
    for (int i = 0; i < MODEL_POOLS; i++) {
        if (m->pools[i].live && m->pools[i].handle == handle) {
            return i;
        }
    }
    return -1;
}

int model_seq(const struct model *m, uint64_t handle) {
    for (int i = 0; i < MODEL_SEQS; i++) {
        if (m->seqs[i].live && m->seqs[i].handle == handle) {
            return i;
        }
    }
    return -1;
}

int model_step(const struct model *m, int session, uint64_t id) {
    for (int i = 0; i < MODEL_STEPS; i++) {
        if (m->steps[i].live && m->steps[i].session == session && m->steps[i].id == id) {
            return i;
        }
    }
    return -1;
}

const struct model_finished *model_finished(const struct model *m, int session, uint64_t id) {
    const struct model_session *s = &m->sessions[session];
    for (uint32_t i = 0; i < s->num_finished; i++) {
        if (s->finished[i].id == id) {
            return &s->finished[i];
        }
    }
    return NULL;
}

uint32_t model_recount(struct model *m, int pool, uint32_t *ret_shared) {
    struct model_pool *p = &m->pools[pool];
    memset(p->counts, 0, p->config.num_pages * sizeof *p->counts);
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &m->seqs[i];
        if (s->live && s->pool == pool) {
            for (uint32_t k = 0; k < s->num_pages; k++) {
                p->counts[s->pages[k]]++;
            }
            for (uint32_t k = 0; k < s->num_taken; k++) {
                p->counts[s->taken[k]]++;
            }
        }
    }
    uint32_t free_pages = 0;
    uint32_t shared = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        free_pages += p->counts[i] == 0;
        shared += p->counts[i] > 1;
    }
    if (ret_shared != NULL) {
        *ret_shared = shared;
    }
    return free_pages;
}

uint32_t model_shared_pages(const struct model *m, int seq) {
    const struct model_seq *s = &m->seqs[seq];
    uint32_t shared = 0;
    for (uint32_t k = 0; k < s->num_pages; k++) {
        shared += m->pools[s->pool].counts[s->pages[k]] > 1;
    }
    return shared;
}

uint32_t model_count_seqs(const struct model *m, int session, int pool) {
    uint32_t n = 0;
    for (int i = 0; i < MODEL_SEQS; i++) {
        n += m->seqs[i].live && (session < 0 || m->seqs[i].session == session) &&
             (pool < 0 || m->seqs[i].pool == pool);
    }
    return n;
}

uint32_t model_count_steps(const struct model *m, int session) {
    uint32_t n = 0;
    for (int i = 0; i < MODEL_STEPS; i++) {
        n += m->steps[i].live && (session < 0 || m->steps[i].session == session);
    }
    return n;
}

int model_seq_add(struct model *m, uint64_t handle, int session, int pool, uint32_t row) {
    int i = 0;
    while (m->seqs[i].live) {
        i++;
    }
    struct model_seq *s = &m->seqs[i];
    s->live = true;
    s->handle = handle;
    s->session = session;
    s->pool = pool;
    s->step = -1;
    s->row = row;
    s->pins = s->len = s->num_pages = s->num_taken = 0;
    s->copied = false;
    return i;
}

void model_seq_drop(struct model *m, int seq) {
    m->seqs[seq].live = false;
    m->dead[m->num_dead++ % MODEL_DEAD] = m->seqs[seq].handle;
}

static uint32_t pages_for(const struct model *m, int pool, uint32_t tokens) {
    uint32_t page_size = m->pools[pool].config.page_size;
    return (tokens + page_size - 1) / page_size;
}

void model_seq_truncate(struct model *m, int seq, uint32_t length) {
    m->seqs[seq].len = length;
    m->seqs[seq].num_pages = pages_for(m, m->seqs[seq].pool, length);
}

uint32_t model_pages_needed(const struct model *m, int seq, uint32_t q_len, bool *ret_copied) {
    const struct model_seq *s = &m->seqs[seq];
    const struct model_pool *p = &m->pools[s->pool];
    *ret_copied =
        q_len > 0 && s->len % p->config.page_size != 0 && p->counts[s->pages[s->num_pages - 1]] > 1;
    return pages_for(m, s->pool, s->len + q_len) - s->num_pages + *ret_copied;
}

int model_step_open(struct model *m, int session, uint64_t id, int pool, uint32_t n,
                    const int *seqs, const uint32_t *q_len) {
    int i = 0;
    while (m->steps[i].live) {
        i++;
    }
    struct model_step *step = &m->steps[i];
    *step = (struct model_step){.live = true, .id = id, .session = session, .pool = pool, .n = n};
    model_recount(m, pool, NULL);
    for (uint32_t k = 0; k < n; k++) {
        struct model_seq *s = &m->seqs[seqs[k]];
        step->seqs[k] = seqs[k];
        step->q_len[k] = q_len[k];
        s->step = i;
        s->num_taken = model_pages_needed(m, seqs[k], q_len[k], &s->copied);
        step->tokens += q_len[k];
        step->taken += s->num_taken;
        step->added += s->num_taken - s->copied;
    }
    uint32_t symbol = 0;
    uint32_t *counts = m->pools[pool].counts;
    for (uint32_t k = 0; k < n; k++) {
        struct model_seq *s = &m->seqs[seqs[k]];
        for (uint32_t t = 0; t < s->num_taken; t++) {
            while (counts[symbol] > 0) {
                symbol++;
            }
            assert(symbol < m->pools[pool].config.num_pages);
            s->taken[t] = symbol;
            counts[symbol] = 1;
        }
    }
    return i;
}

void model_step_finish(struct model *m, int index, bool commit) {
    struct model_step *step = &m->steps[index];
    for (uint32_t k = 0; k < step->n; k++) {
        struct model_seq *s = &m->seqs[step->seqs[k]];
        if (commit) {
            uint32_t first = s->num_pages - s->copied;
            memcpy(s->pages + first, s->taken, s->num_taken * sizeof *s->taken);
            s->num_pages = first + s->num_taken;
            s->len += step->q_len[k];
        }
        s->num_taken = 0;
        s->copied = false;
        s->step = -1;
    }
    struct model_session *session = &m->sessions[step->session];
    if (session->num_finished == CORE_FINISHED) {
        memmove(session->finished, session->finished + 1,
                (CORE_FINISHED - 1) * sizeof *session->finished);
        session->num_finished--;
    }
    session->finished[session->num_finished++] = (struct model_finished){
        step->id, commit, step->tokens, step->added, m->pools[step->pool].handle};
    step->live = false;
}

void model_session_drop(struct model *m, int session) {
    for (int i = 0; i < MODEL_STEPS; i++) {
        if (m->steps[i].live && m->steps[i].session == session) {
            model_step_finish(m, i, false);
        }
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        if (m->seqs[i].live && m->seqs[i].session == session) {
            model_seq_drop(m, i);
        }
    }
    m->sessions[session].live = false;
}

void model_apply(struct model *m, const struct core *core, const struct core_effects *effects) {
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

// Where the mirror says that a token of a row is.
static uint32_t *slot_of(const struct model_pool *p, uint32_t row, uint32_t position) {
    uint32_t page_size = p->config.page_size;
    uint32_t page = p->mirror[(size_t)row * p->row_entries + position / page_size];
    if (page >= p->config.num_pages) {
        return NULL;
    }
    return p->store + (size_t)page * page_size + position % page_size;
}

void model_append(struct model *m, int index) {
    const struct model_step *step = &m->steps[index];
    for (uint32_t k = 0; k < step->n; k++) {
        struct model_seq *s = &m->seqs[step->seqs[k]];
        for (uint32_t j = 0; j < step->q_len[k]; j++) {
            uint32_t *slot = slot_of(&m->pools[s->pool], s->row, s->len + j);
            s->tokens[s->len + j] = ++m->last_token;
            if (slot != NULL) { // else model_first_wrong finds it
                *slot = s->tokens[s->len + j];
            }
        }
    }
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
            if (slot == NULL || *slot != s->tokens[t]) {
                return i;
            }
        }
    }
    return -1;
}
