// SPDX-License-Identifier: Apache-2.0
// model_step.c: the model's steps: what begin takes, what commit seals. See model.h.
#include "model.h"

#include <assert.h>
#include <string.h>

static uint32_t pages_for(const struct model *m, int pool, uint32_t tokens) {
    uint32_t page_size = m->pools[pool].config.page_size;
    return (tokens + page_size - 1) / page_size;
}

uint32_t model_pages_needed(const struct model *m, int seq, uint32_t q_len, bool *ret_copied) {
    const struct model_seq *s = &m->seqs[seq];
    const struct model_pool *p = &m->pools[s->pool];
    *ret_copied = false;
    if (q_len > 0 && s->len % p->config.page_size != 0) {
        uint32_t last = s->pages[s->num_pages - 1];
        *ret_copied = p->counts[last] > 1 || p->pages[last].sealed;
    }
    return pages_for(m, s->pool, s->len + q_len) - s->num_pages + *ret_copied;
}

int model_step_open(struct model *m, int session, uint64_t id, int pool, uint32_t n,
                    const int *seqs, const uint32_t *q_len, const uint32_t *ids) {
    int i = 0;
    while (m->steps[i].live) {
        i++;
    }
    struct model_step *step = &m->steps[i];
    *step = (struct model_step){
        .live = true, .id = id, .session = session, .pool = pool, .n = n, .known = ids != NULL};
    struct model_pool *p = &m->pools[pool];
    model_recount(m, pool, NULL);
    for (uint32_t k = 0; k < n; k++) {
        struct model_seq *s = &m->seqs[seqs[k]];
        step->seqs[k] = seqs[k];
        step->q_len[k] = q_len[k];
        s->step = i;
        s->num_taken = model_pages_needed(m, seqs[k], q_len[k], &s->copied);
        if (ids != NULL) {
            memcpy(s->text.ids + s->len, ids + step->tokens, q_len[k] * sizeof *ids);
        }
        step->tokens += q_len[k];
        step->taken += s->num_taken;
        step->added += s->num_taken - s->copied;
    }
    uint32_t ns = m->seqs[seqs[0]].text.ns;
    model_make_room(m, pool, ns, step->taken, true);
    uint32_t symbol = 0;
    for (uint32_t k = 0; k < n; k++) {
        struct model_seq *s = &m->seqs[seqs[k]];
        for (uint32_t t = 0; t < s->num_taken; t++) {
            while (symbol < p->config.num_pages &&
                   (p->counts[symbol] > 0 || p->pages[symbol].sealed)) {
                symbol++;
            }
            if (symbol == p->config.num_pages) {
                m->problem = "fewer pages were evicted than are needed";
                s->num_taken = t;
                return i;
            }
            s->taken[t] = symbol;
            p->counts[symbol] = 1;
            p->pages[symbol].ns = ns;
            p->pages[symbol].id = UINT32_MAX;
        }
    }
    return i;
}

// Seals what became full of a sequence that was known by its first `before` tokens.
static void seal(struct model *m, struct model_step *step, struct model_seq *s, uint32_t before) {
    uint32_t page_size = m->pools[s->pool].config.page_size;
    for (uint32_t i = before / page_size; (i + 1) * page_size <= s->tracked; i++) {
        int there = model_find(m, s->pool, &s->text, (i + 1) * page_size);
        if (there >= 0) { // a duplicate, which is free again
            model_release(m, s->pool, s->pages[i], -1, false);
            model_reference(m, s->pool, (uint32_t)there, s->text.ns);
            s->pages[i] = (uint32_t)there;
            step->deduplicated++;
        } else {
            int parent = i > 0 ? (int)s->pages[i - 1] : -1;
            model_seal(m, s->pool, s->pages[i], parent, &s->text, (i + 1) * page_size);
            step->sealed++;
        }
    }
}

static void commit_seq(struct model *m, struct model_step *step, struct model_seq *s,
                       uint32_t q_len) {
    uint32_t first = s->num_pages - s->copied;
    uint32_t old = s->copied ? s->pages[first] : 0;
    bool copied = s->copied;
    memcpy(s->pages + first, s->taken, s->num_taken * sizeof *s->taken);
    s->num_pages = first + s->num_taken;
    uint32_t before = s->tracked;
    if (step->known && s->tracked == s->len) {
        s->tracked += q_len;
    }
    s->len += q_len;
    if (copied) {
        model_release(m, s->pool, old, (int)s->priority, false);
    }
    seal(m, step, s, before);
}

void model_step_finish(struct model *m, int index, bool commit) {
    struct model_step *step = &m->steps[index];
    model_recount(m, step->pool, NULL);
    for (uint32_t k = 0; k < step->n; k++) {
        struct model_seq *s = &m->seqs[step->seqs[k]];
        if (commit) {
            commit_seq(m, step, s, step->q_len[k]);
        }
        s->num_taken = 0;
        s->copied = false;
        s->step = -1;
    }
    if (commit) {
        struct core_ns_counters *counters =
            &m->pools[step->pool].ns[m->seqs[step->seqs[0]].text.ns].counters;
        counters->sealed += step->sealed;
        counters->deduplicated += step->deduplicated;
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
