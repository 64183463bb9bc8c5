// SPDX-License-Identifier: Apache-2.0
// model_pick.c: random arguments, and the statuses that they deserve. See model_run.h.
#include "model_run.h"

uint32_t run_below(struct run *r, uint32_t n) {
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return (uint32_t)((r->random >> 16) % n);
}

bool run_chance(struct run *r, uint32_t percent) {
    return run_below(r, 100) < percent;
}

// Compares statuses; returns whether the operation succeeded.
bool run_status(struct run *r, int got, int want) {
    if (got != want) {
        fail_msg(WHERE "got %s (%s), the model says %s", AT(r),
                 kvpool_status_name((kvpool_status)got), r->err.text,
                 kvpool_status_name((kvpool_status)want));
    }
    r->results[-got]++;
    return got == 0;
}

void run_same(struct run *r, const char *what, uint64_t got, uint64_t want) {
    if (got != want) {
        fail_msg(WHERE "%s is %" PRIu64 ", the model says %" PRIu64, AT(r), what, got, want);
    }
}

// --- picking arguments, now and then bad ones --------------------------------------------------

uint64_t run_pick_session(struct run *r) {
    if (run_chance(r, 1)) {
        return r->dead_session;
    }
    uint32_t start = run_below(r, r->m.limits.max_sessions);
    for (uint32_t i = 0; i < r->m.limits.max_sessions; i++) {
        const struct model_session *s = &r->m.sessions[(start + i) % r->m.limits.max_sessions];
        if (s->live) {
            return s->handle;
        }
    }
    return r->dead_session;
}

uint64_t run_pick_pool(struct run *r) {
    if (run_chance(r, 1)) {
        return r->dead_pool;
    }
    const struct model_pool *p = &r->m.pools[run_chance(r, 25)];
    return p->live ? p->handle : r->dead_pool;
}

// Mostly a sequence of that session (and pool, unless -1), sometimes anyone's, sometimes a dead
// one.
uint64_t run_pick_seq(struct run *r, int session, int pool) {
    if (r->m.num_dead > 0 && run_chance(r, 1)) {
        uint32_t n = r->m.num_dead < MODEL_DEAD ? r->m.num_dead : MODEL_DEAD;
        return r->m.dead[run_below(r, n)];
    }
    bool anyone = session < 0 || run_chance(r, 1);
    bool busy = run_chance(r, 8);
    uint32_t start = run_below(r, MODEL_SEQS);
    for (uint32_t i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &r->m.seqs[(start + i) % MODEL_SEQS];
        if (s->live && (busy || s->step < 0) &&
            (anyone || (s->session == session && (pool < 0 || s->pool == pool)))) {
            return s->handle;
        }
    }
    return 0;
}

uint64_t run_pick_step(struct run *r, uint64_t *ret_session) {
    uint32_t start = run_below(r, MODEL_STEPS);
    if (run_chance(r, 92)) {
        for (uint32_t i = 0; i < MODEL_STEPS; i++) {
            const struct model_step *s = &r->m.steps[(start + i) % MODEL_STEPS];
            if (s->live) {
                *ret_session = r->m.sessions[s->session].handle;
                return s->id;
            }
        }
    }
    *ret_session = run_pick_session(r);
    int session = model_session(&r->m, *ret_session);
    uint64_t next = session >= 0 ? r->m.sessions[session].next_id : 1;
    uint32_t back = run_chance(r, 60) ? 40 : 200; // steps are remembered 64 deep
    return next + 1 - run_below(r, next < back ? (uint32_t)next + 2 : back);
}

// --- what the model says of common arguments ---------------------------------------------------

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
        if ((uint64_t)s->len + items[i].tokens > max_len) {
            return KVPOOL_E_INVAL;
        }
    }
    return 0;
}

uint32_t run_pick_items(struct run *r, int session, int pool, struct core_item *items) {
    uint32_t cap = r->m.limits.max_batch;
    if (run_chance(r, 1)) {
        return run_below(r, 2) * (cap + 1); // empty, or too big: items are not looked at
    }
    uint32_t wanted = 1 + run_below(r, run_chance(r, 20) ? cap : 4);
    uint32_t n = 0;
    for (uint32_t i = 0; i < wanted; i++) {
        uint64_t seq = run_pick_seq(r, session, pool);
        bool twice = false;
        for (uint32_t k = 0; k < n; k++) {
            twice = twice || items[k].seq == seq;
        }
        if (!twice || run_chance(r, 1)) {
            uint32_t tokens = run_chance(r, 10)   ? 0
                              : run_chance(r, 50) ? 1
                                                  : run_below(r, run_chance(r, 80) ? 24 : 80);
            tokens = run_chance(r, 1) ? run_below(r, 2 * MODEL_LEN) : tokens;
            items[n++] = (struct core_item){seq, tokens};
        }
    }
    return n;
}

int run_want_begin(struct run *r, int s, uint64_t id, uint64_t pool, uint32_t n,
                   const struct core_item *items, bool *ret_repeated, uint64_t *ret_missing) {
    if (s < 0) {
        return KVPOOL_E_STALE;
    }
    if (id == 0) {
        return KVPOOL_E_INVAL;
    }
    int open = model_step(&r->m, s, id);
    if (open >= 0) {
        const struct model_step *step = &r->m.steps[open];
        bool equal = n == step->n && pool == r->m.pools[step->pool].handle;
        for (uint32_t i = 0; equal && i < n; i++) {
            equal = items[i].seq == r->m.seqs[step->seqs[i]].handle &&
                    items[i].tokens == step->q_len[i];
        }
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
    uint64_t free_pages = model_recount(&r->m, p, NULL);
    uint64_t need = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool copied = false;
        need += model_pages_needed(&r->m, model_seq(&r->m, items[i].seq), items[i].tokens, &copied);
    }
    if (need > free_pages) {
        *ret_missing = need - free_pages;
        return KVPOOL_E_NOSPACE;
    }
    return 0;
}
