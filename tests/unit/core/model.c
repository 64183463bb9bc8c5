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
        .pages = calloc(config->num_pages, sizeof *p->pages),
        .num_ns = 1,
    };
    if (p->store == NULL || p->mirror == NULL || p->counts == NULL || p->pages == NULL) {
        abort();
    }
    memset(p->mirror, 0xFF, (size_t)config->max_seqs * row_entries * sizeof *p->mirror);
    p->ns[0].config = (struct core_ns_config){.name = "default", .weight = 1};
}

void model_pool_close(struct model *m, int pool) {
    for (int i = 0; i < MODEL_PINS; i++) {
        m->pins[i].live = m->pins[i].live && m->pins[i].pool != pool;
    }
    free(m->pools[pool].store);
    free(m->pools[pool].mirror);
    free(m->pools[pool].counts);
    free(m->pools[pool].pages);
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

int model_pin(const struct model *m, int pool, uint64_t handle) {
    for (int i = 0; i < MODEL_PINS; i++) {
        if (m->pins[i].live && m->pins[i].pool == pool && m->pins[i].handle == handle) {
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
    for (int i = 0; i < MODEL_PINS; i++) {
        for (uint32_t k = 0; m->pins[i].live && m->pins[i].pool == pool && k < m->pins[i].num_pages;
             k++) {
            p->counts[m->pins[i].pages[k]]++;
        }
    }
    uint32_t free_pages = 0;
    uint32_t shared = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        free_pages += p->counts[i] == 0 && !p->pages[i].sealed;
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

uint32_t model_count_pins(const struct model *m, int pool) {
    uint32_t n = 0;
    for (int i = 0; i < MODEL_PINS; i++) {
        n += m->pins[i].live && (pool < 0 || m->pins[i].pool == pool);
    }
    return n;
}

int model_seq_add(struct model *m, uint64_t handle, int session, int pool, uint32_t row,
                  const struct model_text *text) {
    int i = 0;
    while (m->seqs[i].live) {
        i++;
    }
    struct model_seq *s = &m->seqs[i];
    s->live = true;
    s->handle = handle;
    s->born = ++m->last_born;
    s->session = session;
    s->pool = pool;
    s->step = -1;
    s->row = row;
    s->priority = CORE_NORMAL;
    s->text = *text;
    s->pins = s->len = s->tracked = s->num_pages = s->num_taken = 0;
    s->copied = false;
    return i;
}

void model_seq_truncate(struct model *m, int seq, uint32_t length) {
    struct model_seq *s = &m->seqs[seq];
    uint32_t page_size = m->pools[s->pool].config.page_size;
    uint32_t keep = (length + page_size - 1) / page_size;
    model_recount(m, s->pool, NULL);
    while (s->num_pages > keep) {
        model_release(m, s->pool, s->pages[--s->num_pages], (int)s->priority, false);
    }
    s->len = length;
    s->tracked = s->tracked < length ? s->tracked : length;
}

void model_seq_drop(struct model *m, int seq, bool drop_pages) {
    struct model_seq *s = &m->seqs[seq];
    model_recount(m, s->pool, NULL);
    while (s->num_pages > 0) {
        model_release(m, s->pool, s->pages[--s->num_pages], (int)s->priority, drop_pages);
    }
    s->live = false;
    m->dead[m->num_dead++ % MODEL_DEAD] = s->handle;
}

void model_session_drop(struct model *m, int session) {
    for (int i = 0; i < MODEL_STEPS; i++) {
        if (m->steps[i].live && m->steps[i].session == session) {
            model_step_finish(m, i, false);
        }
    }
    while (model_count_seqs(m, session, -1) > 0) { // the newest first
        int newest = -1;
        for (int i = 0; i < MODEL_SEQS; i++) {
            const struct model_seq *s = &m->seqs[i];
            if (s->live && s->session == session &&
                (newest < 0 || s->born > m->seqs[newest].born)) {
                newest = i;
            }
        }
        model_seq_drop(m, newest, false);
    }
    m->sessions[session].live = false;
}
