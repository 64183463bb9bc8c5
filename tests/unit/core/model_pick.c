// SPDX-License-Identifier: Apache-2.0
// model_pick.c: random arguments, now and then bad ones. See model_run.h.
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

// --- handles ------------------------------------------------------------------------------------

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
    const struct model_pool *p = &r->m.pools[run_chance(r, 35)];
    return p->live ? p->handle : r->dead_pool;
}

uint32_t run_pick_ns(struct run *r, int pool) {
    uint32_t n = pool >= 0 ? r->m.pools[pool].num_ns : 1;
    return run_chance(r, 1)    ? n + run_below(r, 2) * CORE_MAX_NAMESPACES
           : run_chance(r, 25) ? 0
                               : run_below(r, n);
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

// --- batches ------------------------------------------------------------------------------------

uint32_t run_pick_items(struct run *r, int session, int pool, struct core_item *items) {
    uint32_t cap = r->m.limits.max_batch;
    if (run_chance(r, 1)) {
        return run_below(r, 2) * (cap + 1); // empty, or too big: items are not looked at
    }
    uint32_t wanted = 1 + run_below(r, run_chance(r, 20) ? cap : 4);
    bool mixed = run_chance(r, 2);
    uint32_t n = 0;
    for (uint32_t i = 0; i < wanted; i++) {
        uint64_t seq = run_pick_seq(r, session, pool);
        int s = model_seq(&r->m, seq);
        int first = n > 0 ? model_seq(&r->m, items[0].seq) : s;
        bool twice = false;
        for (uint32_t k = 0; k < n; k++) {
            twice = twice || items[k].seq == seq;
        }
        bool other = s >= 0 && first >= 0 && r->m.seqs[s].text.ns != r->m.seqs[first].text.ns;
        if ((!twice || run_chance(r, 1)) && (!other || mixed)) {
            uint32_t tokens = run_chance(r, 10)   ? 0
                              : run_chance(r, 35) ? 1
                                                  : run_below(r, run_chance(r, 70) ? 24 : 80);
            tokens = run_chance(r, 1) ? run_below(r, 2 * MODEL_LEN) : tokens;
            items[n++] = (struct core_item){seq, tokens};
        }
    }
    return n;
}

uint32_t run_token(uint32_t doc, uint32_t position) {
    static const uint32_t shared_by[] = {RUN_DOCS, 6, 3, 1}; // documents that are still alike
    uint32_t level = position < 12 ? 0 : position < 28 ? 1 : position < 52 ? 2 : 3;
    uint64_t x = ((uint64_t)(doc / shared_by[level]) << 40) + ((uint64_t)level << 32) + position;
    x = (x + 1) * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(x >> 61); // a small alphabet
}

const uint32_t *run_pick_ids(struct run *r, uint32_t n, const struct core_item *items) {
    static uint32_t ids[(MODEL_BATCH + 1) * 2 * MODEL_LEN];
    if (run_chance(r, 2)) {
        return NULL;
    }
    uint32_t filled = 0;
    for (uint32_t i = 0; i < n; i++) {
        int s = model_seq(&r->m, items[i].seq);
        uint32_t doc = s >= 0 && !run_chance(r, 8) ? r->m.seqs[s].doc : run_below(r, RUN_DOCS);
        uint32_t len = s >= 0 ? r->m.seqs[s].len : 0;
        for (uint32_t k = 0; k < items[i].tokens; k++) {
            ids[filled++] = run_token(doc, len + k);
        }
    }
    return ids;
}
