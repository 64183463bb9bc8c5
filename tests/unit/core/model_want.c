// SPDX-License-Identifier: Apache-2.0
// model_want.c: the statuses that arguments deserve, as the model sees it. See model_run.h.
#include "model_run.h"

#include <string.h>

int run_want_seq(const struct run *r, int session, uint64_t handle) {
    int seq = model_seq(&r->m, handle);
    return seq < 0 ? KVPOOL_E_STALE : r->m.seqs[seq].session != session ? KVPOOL_E_PERM : 0;
}

// A sequence that is to be changed or freed.
int run_want_idle_seq(const struct run *r, int session, uint64_t handle) {
    int rc = run_want_seq(r, session, handle);
    const struct model_seq *s = rc == 0 ? &r->m.seqs[model_seq(&r->m, handle)] : NULL;
    return rc != 0 ? rc : s->step >= 0 || s->pins > 0 ? KVPOOL_E_BUSY : 0;
}

int run_want_ns(const struct run *r, int pool, uint32_t ns) {
    return ns >= r->m.pools[pool].num_ns ? KVPOOL_E_NOTFOUND : 0;
}

int run_want_room(const struct run *r, int pool, uint32_t n) {
    if (n < 1 || n > r->m.limits.max_batch) {
        return KVPOOL_E_INVAL;
    }
    bool room = model_count_seqs(&r->m, -1, pool) + n <= r->m.pools[pool].config.max_seqs &&
                model_count_seqs(&r->m, -1, -1) + n <= r->m.limits.max_seqs;
    return room ? 0 : KVPOOL_E_LIMIT;
}

int run_want_open(const struct run *r, int session, uint64_t id) {
    if (session < 0) {
        return KVPOOL_E_STALE;
    }
    if (model_step(&r->m, session, id) >= 0) {
        return 0;
    }
    const struct model_finished *f = model_finished(&r->m, session, id);
    return f == NULL ? KVPOOL_E_NOTFOUND : f->committed ? KVPOOL_E_STATE : KVPOOL_E_ABORTED;
}

// Sequences of a batch, in order. max_len UINT32_MAX: a batch without a step.
int run_want_items(const struct run *r, int session, int pool, uint32_t n,
                   const struct core_item *items, uint32_t max_len) {
    for (uint32_t i = 0; i < n; i++) {
        int rc = run_want_seq(r, session, items[i].seq);
        if (rc != 0) {
            return rc;
        }
        const struct model_seq *s = &r->m.seqs[model_seq(&r->m, items[i].seq)];
        bool twice = false;
        for (uint32_t k = 0; k < i; k++) {
            twice = twice || items[k].seq == items[i].seq;
        }
        if (s->pool != pool || twice) {
            return KVPOOL_E_INVAL;
        }
        if (s->step >= 0) {
            return KVPOOL_E_BUSY;
        }
        bool other_ns = s->text.ns != r->m.seqs[model_seq(&r->m, items[0].seq)].text.ns;
        if (max_len != UINT32_MAX && (other_ns || (uint64_t)s->len + items[i].tokens > max_len)) {
            return KVPOOL_E_INVAL;
        }
    }
    return 0;
}

// Is a begin the one that opened the step?
static bool same_begin(const struct run *r, const struct model_step *step, uint64_t pool,
                       uint32_t n, const struct core_item *items, const uint32_t *ids) {
    if (n != step->n || pool != r->m.pools[step->pool].handle || (ids != NULL) != step->known) {
        return false;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct model_seq *s = &r->m.seqs[step->seqs[i]];
        if (items[i].seq != s->handle || items[i].tokens != step->q_len[i] ||
            (ids != NULL &&
             memcmp(ids + at, s->text.ids + s->len, step->q_len[i] * sizeof *ids) != 0)) {
            return false;
        }
        at += step->q_len[i];
    }
    return true;
}

int run_want_begin(struct run *r, int s, uint64_t id, uint64_t pool, uint32_t n,
                   const struct core_item *items, const uint32_t *ids, bool *ret_repeated,
                   uint64_t *ret_missing) {
    if (s < 0) {
        return KVPOOL_E_STALE;
    }
    if (id == 0) {
        return KVPOOL_E_INVAL;
    }
    int open = model_step(&r->m, s, id);
    if (open >= 0) {
        const struct model_step *step = &r->m.steps[open];
        bool equal = same_begin(r, step, pool, n, items, ids);
        *ret_repeated = equal;
        return equal ? 0 : KVPOOL_E_EXISTS;
    }
    if (model_finished(&r->m, s, id) != NULL) {
        return KVPOOL_E_STATE;
    }
    if (n == 0 || n > r->m.limits.max_batch) {
        return n == 0 ? KVPOOL_E_INVAL : KVPOOL_E_TOOBIG;
    }
    if (model_count_steps(&r->m, s) >= r->m.limits.max_session_steps ||
        model_count_steps(&r->m, -1) >= r->m.limits.max_steps) {
        return KVPOOL_E_LIMIT;
    }
    int p = model_pool(&r->m, pool);
    if (p < 0) {
        return KVPOOL_E_STALE;
    }
    int rc = run_want_items(r, s, p, n, items, r->m.pools[p].config.max_seq_len);
    if (rc != 0) {
        return rc;
    }
    model_recount(&r->m, p, NULL);
    uint64_t need = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool copied = false;
        need += model_pages_needed(&r->m, model_seq(&r->m, items[i].seq), items[i].tokens, &copied);
    }
    uint64_t room = model_room(&r->m, p, r->m.seqs[model_seq(&r->m, items[0].seq)].text.ns);
    if (need > room) {
        *ret_missing = need - room;
        return KVPOOL_E_NOSPACE;
    }
    return 0;
}

int run_want_session_close(const struct run *r, int session) {
    if (session < 0) {
        return KVPOOL_E_STALE;
    }
    for (int i = 0; i < MODEL_STEPS; i++) {
        const struct model_step *step = &r->m.steps[i];
        if (step->live && step->session == session && step->holds > 0) {
            return KVPOOL_E_BUSY;
        }
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *seq = &r->m.seqs[i];
        if (seq->live && seq->session == session && seq->pins > 0) {
            return KVPOOL_E_BUSY;
        }
    }
    return 0;
}
