// SPDX-License-Identifier: Apache-2.0
// Core against a naive model (model.h) under random operations, valid and invalid. Every result,
// status and count must be the model's, every sequence must read its own tokens, and core_check
// must hold: after every operation in a small configuration, now and then in a larger one.
//
//   KVPOOL_SEED       seed of the random numbers (printed; default: fixed)
//   KVPOOL_MODEL_OPS  operations in the small configuration (default 1,000,000, with a sanitizer
//                     200,000); the larger one has a fifth of them
#include "fixture.h"
#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DEFAULT_OPS 200000
#else
#define DEFAULT_OPS 1000000
#endif

struct scale {
    struct core_limits limits;
    struct core_pool_config pools[MODEL_POOLS];
    uint32_t check_every;  // core_check
    uint32_t verify_every; // all tokens, all counts
    uint32_t attach_every; // open a copy of the block
};

#define MAX_PINS 8
struct pin {
    uint32_t n;
    struct core_item items[2];
};

struct run {
    const struct scale *scale;
    struct model m;
    struct core *core;
    void *block;
    size_t size;
    uint64_t random, seed;
    uint64_t op;
    const char *op_name;
    struct pin pins[MAX_PINS];
    uint32_t num_pins;
    uint64_t dead_session, dead_pool;
    struct err err;
    uint64_t results[64]; // how often each status was seen
};

static uint32_t below(struct run *r, uint32_t n) {
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return (uint32_t)((r->random >> 16) % n);
}

static bool chance(struct run *r, uint32_t percent) {
    return below(r, 100) < percent;
}

#define WHERE "seed %" PRIu64 " op %" PRIu64 " %s: "
#define AT(r) (r)->seed, (r)->op, (r)->op_name

// Compares statuses; returns whether the operation succeeded.
static bool same_status(struct run *r, int got, int want) {
    if (got != want) {
        fail_msg(WHERE "got %s (%s), the model says %s", AT(r),
                 kvpool_status_name((kvpool_status)got), r->err.text,
                 kvpool_status_name((kvpool_status)want));
    }
    r->results[-got]++;
    return got == 0;
}

static void same(struct run *r, const char *what, uint64_t got, uint64_t want) {
    if (got != want) {
        fail_msg(WHERE "%s is %" PRIu64 ", the model says %" PRIu64, AT(r), what, got, want);
    }
}

// --- picking arguments, now and then bad ones --------------------------------------------------

static uint64_t pick_session(struct run *r) {
    if (chance(r, 1)) {
        return r->dead_session;
    }
    uint32_t start = below(r, r->m.limits.max_sessions);
    for (uint32_t i = 0; i < r->m.limits.max_sessions; i++) {
        const struct model_session *s = &r->m.sessions[(start + i) % r->m.limits.max_sessions];
        if (s->live) {
            return s->handle;
        }
    }
    return r->dead_session;
}

static uint64_t pick_pool(struct run *r) {
    if (chance(r, 1)) {
        return r->dead_pool;
    }
    const struct model_pool *p = &r->m.pools[chance(r, 25)];
    return p->live ? p->handle : r->dead_pool;
}

// Mostly a sequence of that session (and pool, unless -1), sometimes anyone's, sometimes a dead
// one.
static uint64_t pick_seq(struct run *r, int session, int pool) {
    if (r->m.num_dead > 0 && chance(r, 1)) {
        uint32_t n = r->m.num_dead < MODEL_DEAD ? r->m.num_dead : MODEL_DEAD;
        return r->m.dead[below(r, n)];
    }
    bool anyone = session < 0 || chance(r, 1);
    bool busy = chance(r, 8);
    uint32_t start = below(r, MODEL_SEQS);
    for (uint32_t i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &r->m.seqs[(start + i) % MODEL_SEQS];
        if (s->live && (busy || s->step < 0) &&
            (anyone || (s->session == session && (pool < 0 || s->pool == pool)))) {
            return s->handle;
        }
    }
    return 0;
}

// A session and a step id: mostly of an open step, else finished, forgotten or new.
static uint64_t pick_step(struct run *r, uint64_t *ret_session) {
    uint32_t start = below(r, MODEL_STEPS);
    if (chance(r, 92)) {
        for (uint32_t i = 0; i < MODEL_STEPS; i++) {
            const struct model_step *s = &r->m.steps[(start + i) % MODEL_STEPS];
            if (s->live) {
                *ret_session = r->m.sessions[s->session].handle;
                return s->id;
            }
        }
    }
    *ret_session = pick_session(r);
    int session = model_session(&r->m, *ret_session);
    uint64_t next = session >= 0 ? r->m.sessions[session].next_id : 1;
    return next + 1 - below(r, next < 80 ? (uint32_t)next + 2 : 80);
}

// --- what the model says of common arguments ---------------------------------------------------

static int want_seq(const struct run *r, int session, uint64_t handle) {
    int seq = model_seq(&r->m, handle);
    return seq < 0 ? KVPOOL_E_STALE : r->m.seqs[seq].session != session ? KVPOOL_E_PERM : 0;
}

// A sequence that is to be changed or freed.
static int want_idle_seq(const struct run *r, int session, uint64_t handle) {
    int rc = want_seq(r, session, handle);
    const struct model_seq *s = rc == 0 ? &r->m.seqs[model_seq(&r->m, handle)] : NULL;
    return rc != 0 ? rc : s->step >= 0 || s->pins > 0 ? KVPOOL_E_BUSY : 0;
}

static int want_room(const struct run *r, int pool, uint32_t n) {
    if (n < 1 || n > r->m.limits.max_batch) {
        return KVPOOL_E_INVAL;
    }
    bool room = model_count_seqs(&r->m, -1, pool) + n <= r->m.pools[pool].config.max_seqs &&
                model_count_seqs(&r->m, -1, -1) + n <= r->m.limits.max_seqs;
    return room ? 0 : KVPOOL_E_LIMIT;
}

static int want_open(const struct run *r, int session, uint64_t id) {
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
static int want_items(const struct run *r, int session, int pool, uint32_t n,
                      const struct core_item *items, uint32_t max_len) {
    for (uint32_t i = 0; i < n; i++) {
        int rc = want_seq(r, session, items[i].seq);
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

// --- operations --------------------------------------------------------------------------------

static uint32_t row_of(struct run *r, uint64_t seq) {
    struct core_seq_info info = {0};
    same(r, "core_seq_stat", (uint64_t)-core_seq_stat(r->core, 0, seq, &info, NULL), 0);
    return info.row;
}

static void op_create(struct run *r) {
    uint64_t session = pick_session(r);
    uint64_t pool = pick_pool(r);
    uint32_t n = chance(r, 3) ? below(r, 2) * (r->m.limits.max_batch + 1) : 1 + below(r, 3);
    uint64_t handles[MODEL_BATCH];
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    int want = s < 0 || p < 0 ? KVPOOL_E_STALE : want_room(r, p, n);
    if (same_status(r, core_seq_create(r->core, session, pool, n, handles, &r->err), want)) {
        for (uint32_t i = 0; i < n; i++) {
            same(r, "another sequence of that handle", model_seq(&r->m, handles[i]) >= 0, 0);
            model_seq_add(&r->m, handles[i], s, p, row_of(r, handles[i]));
        }
    }
}

static void op_fork(struct run *r) {
    uint64_t session = pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t from = pick_seq(r, s, -1);
    uint32_t n = chance(r, 3) ? below(r, 2) * (r->m.limits.max_batch + 1) : 1 + below(r, 3);
    uint64_t handles[MODEL_BATCH];
    struct core_effects effects;
    int f = model_seq(&r->m, from);
    int want = s < 0 ? KVPOOL_E_STALE : want_seq(r, s, from);
    if (want == 0) {
        want = r->m.seqs[f].step >= 0 ? KVPOOL_E_BUSY : want_room(r, r->m.seqs[f].pool, n);
    }
    int got = core_seq_fork(r->core, session, from, n, handles, &effects, &r->err);
    if (!same_status(r, got, want)) {
        return;
    }
    model_apply(&r->m, r->core, &effects);
    for (uint32_t i = 0; i < n; i++) {
        int to = model_seq_add(&r->m, handles[i], s, r->m.seqs[f].pool, row_of(r, handles[i]));
        const struct model_seq *source = &r->m.seqs[f];
        struct model_seq *fork = &r->m.seqs[to];
        fork->len = source->len;
        fork->num_pages = source->num_pages;
        memcpy(fork->tokens, source->tokens, source->len * sizeof *fork->tokens);
        memcpy(fork->pages, source->pages, source->num_pages * sizeof *fork->pages);
    }
}

static void op_truncate(struct run *r) {
    uint64_t session = pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t seq = pick_seq(r, s, -1);
    int i = model_seq(&r->m, seq);
    uint32_t len = i < 0 ? 0 : r->m.seqs[i].len;
    // A few tokens back (speculative decoding), anywhere, or beyond.
    uint32_t length = chance(r, 88)   ? len - below(r, len < 4 ? len + 1 : 4)
                      : chance(r, 80) ? below(r, len + 1)
                                      : len + 1 + below(r, 9);
    int want = s < 0 ? KVPOOL_E_STALE : want_idle_seq(r, s, seq);
    if (want == 0 && length > len) {
        want = KVPOOL_E_INVAL;
    }
    if (same_status(r, core_seq_truncate(r->core, session, seq, length, &r->err), want)) {
        model_seq_truncate(&r->m, i, length);
    }
}

static void op_free(struct run *r) {
    uint64_t session = pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t list[3];
    uint32_t n = chance(r, 2) ? 0 : 1 + (chance(r, 30) ? below(r, 3) : 0);
    int want = s < 0 ? KVPOOL_E_STALE : n == 0 ? KVPOOL_E_INVAL : 0;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = pick_seq(r, s, -1);
        int rc = want_seq(r, s, list[i]);
        for (uint32_t k = 0; rc == 0 && k < i; k++) {
            rc = list[k] == list[i] ? KVPOOL_E_INVAL : 0;
        }
        rc = rc != 0 ? rc : want_idle_seq(r, s, list[i]);
        want = want != 0 ? want : rc;
    }
    if (same_status(r, core_seq_free(r->core, session, n, list, &r->err), want)) {
        for (uint32_t i = 0; i < n; i++) {
            model_seq_drop(&r->m, model_seq(&r->m, list[i]));
        }
    }
}

static void check_batch(struct run *r, const struct core_batch *b, int pool, uint32_t n,
                        const struct core_item *items, bool step) {
    uint32_t tokens = 0;
    uint32_t max_q_len = 0;
    same(r, "batch pool", b->pool, r->m.pools[pool].handle);
    same(r, "batch size", b->n, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct model_seq *s = &r->m.seqs[model_seq(&r->m, items[i].seq)];
        same(r, "row", b->rows[i], s->row);
        same(r, "kv_len", b->kv_len[i], s->len + (step ? items[i].tokens : 0));
        same(r, "qo_indptr", b->qo_indptr[i], tokens);
        tokens += items[i].tokens;
        max_q_len = items[i].tokens > max_q_len ? items[i].tokens : max_q_len;
    }
    same(r, "qo_indptr", b->qo_indptr[n], tokens);
    same(r, "tokens", b->tokens, tokens);
    same(r, "max_q_len", b->max_q_len, max_q_len);
}

// Fills a batch, mostly of different sequences of the session and pool; returns its size.
static uint32_t pick_items(struct run *r, int session, int pool, struct core_item *items) {
    uint32_t cap = r->m.limits.max_batch;
    if (chance(r, 1)) {
        return below(r, 2) * (cap + 1); // empty, or too big: items are not looked at
    }
    uint32_t wanted = 1 + below(r, chance(r, 20) ? cap : 4);
    uint32_t n = 0;
    for (uint32_t i = 0; i < wanted; i++) {
        uint64_t seq = pick_seq(r, session, pool);
        bool twice = false;
        for (uint32_t k = 0; k < n; k++) {
            twice = twice || items[k].seq == seq;
        }
        if (!twice || chance(r, 1)) {
            uint32_t tokens = chance(r, 10)   ? 0
                              : chance(r, 50) ? 1
                                              : below(r, chance(r, 80) ? 24 : 80);
            tokens = chance(r, 1) ? below(r, 2 * MODEL_LEN) : tokens;
            items[n++] = (struct core_item){seq, tokens};
        }
    }
    return n;
}

static int want_begin(struct run *r, int s, uint64_t id, uint64_t pool, uint32_t n,
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
    int rc = want_items(r, s, p, n, items, r->m.pools[p].config.max_seq_len);
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

static void op_begin(struct run *r) {
    uint64_t session = 0;
    uint64_t id = pick_step(r, &session);
    bool fresh = chance(r, 94);
    session = fresh ? pick_session(r) : session;
    uint64_t pool = pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct core_item items[MODEL_BATCH + 1] = {{0}};
    uint32_t n = pick_items(r, s, p, items);
    if (s >= 0) {
        id = fresh ? ++r->m.sessions[s].next_id : chance(r, 2) ? 0 : id;
        int open = model_step(&r->m, s, id);
        if (open >= 0 && chance(r, 70)) { // the very same again
            const struct model_step *step = &r->m.steps[open];
            n = step->n;
            pool = r->m.pools[step->pool].handle;
            for (uint32_t i = 0; i < n; i++) {
                items[i] = (struct core_item){r->m.seqs[step->seqs[i]].handle, step->q_len[i]};
            }
        }
    }
    bool repeated = false;
    uint64_t missing = 0;
    struct core_step_info info;
    struct core_effects effects;
    int want = want_begin(r, s, id, pool, n, items, &repeated, &missing);
    r->err.detail = 0;
    int got = core_step_begin(r->core, session, id, pool, n, items, &info, &effects, &r->err);
    if (!same_status(r, got, want)) {
        same(r, "missing pages", r->err.detail, missing);
        return;
    }
    int step = repeated ? model_step(&r->m, s, id) : -1;
    if (!repeated) {
        int seqs[MODEL_BATCH];
        uint32_t q_len[MODEL_BATCH];
        for (uint32_t i = 0; i < n; i++) {
            seqs[i] = model_seq(&r->m, items[i].seq);
            q_len[i] = items[i].tokens;
        }
        step = model_step_open(&r->m, s, id, p, n, seqs, q_len);
        model_apply(&r->m, r->core, &effects);
    } else {
        same(r, "effects of a repeat", effects.num_deltas + effects.num_copies, 0);
    }
    same(r, "repeated", info.repeated, repeated);
    same(r, "step", info.step, id);
    same(r, "pages", info.pages, r->m.steps[step].taken);
    same(r, "tokens", info.tokens, r->m.steps[step].tokens);
    struct core_batch batch;
    same_status(r, core_step_batch(r->core, session, id, &batch, &r->err), 0);
    check_batch(r, &batch, r->m.steps[step].pool, n, items, true);
}

static void op_mark(struct run *r) {
    uint64_t session = 0;
    uint64_t id = pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = want_open(r, s, id);
    int step = want == 0 ? model_step(&r->m, s, id) : -1;
    uint32_t layers = step >= 0 ? r->m.pools[r->m.steps[step].pool].config.layers : 1;
    uint32_t layer = chance(r, 99) ? below(r, layers) : layers;
    bool all = chance(r, 90);
    bool written = chance(r, 97);
    if (want == 0 && layer >= layers) {
        want = KVPOOL_E_INVAL;
        all = false;
    }
    // Mostly all layers at once, as a worker would, so that many steps can be committed.
    for (uint32_t i = all ? 0 : layer; i <= (all ? layers - 1 : layer); i++) {
        int got = core_step_mark(r->core, session, id, i, written, &r->err);
        if (same_status(r, got, want)) {
            r->m.steps[step].written &= ~(1u << i);
            r->m.steps[step].written |= (written ? 1u : 0u) << i;
            if (i == 0 && written) {
                model_append(&r->m, step);
            }
        }
    }
}

static void op_commit(struct run *r) {
    uint64_t session = 0;
    uint64_t id = pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = want_open(r, s, id);
    const struct model_finished *f = s >= 0 ? model_finished(&r->m, s, id) : NULL;
    int step = s >= 0 ? model_step(&r->m, s, id) : -1;
    bool repeated = want == KVPOOL_E_STATE;
    struct model_finished expected = {0};
    if (repeated) {
        want = 0;
        expected = *f;
    } else if (want == 0) {
        const struct model_step *m = &r->m.steps[step];
        uint32_t all = (1u << r->m.pools[m->pool].config.layers) - 1;
        want = m->holds > 0                         ? KVPOOL_E_BUSY
               : m->tokens > 0 && m->written != all ? KVPOOL_E_STATE
                                                    : 0;
        expected =
            (struct model_finished){id, true, m->tokens, m->added, r->m.pools[m->pool].handle};
    }
    struct core_step_info info;
    if (!same_status(r, core_step_commit(r->core, session, id, &info, &r->err), want)) {
        return;
    }
    same(r, "repeated", info.repeated, repeated);
    same(r, "step", info.step, id);
    same(r, "pool", info.pool, expected.pool);
    same(r, "tokens", info.tokens, expected.tokens);
    same(r, "pages", info.pages, expected.added);
    if (!repeated) {
        model_step_finish(&r->m, step, true);
    }
}

static void op_abort(struct run *r) {
    uint64_t session = 0;
    uint64_t id = pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = want_open(r, s, id);
    int step = want == 0 ? model_step(&r->m, s, id) : -1;
    if (want == 0 && r->m.steps[step].holds > 0) {
        want = KVPOOL_E_BUSY;
    }
    bool repeated = want == KVPOOL_E_ABORTED;
    struct core_effects effects;
    int got = core_step_abort(r->core, session, id, &effects, &r->err);
    if (!same_status(r, got, repeated ? 0 : want)) {
        return;
    }
    same(r, "copies", effects.num_copies, 0);
    if (repeated) {
        same(r, "deltas", effects.num_deltas, 0);
    } else {
        model_apply(&r->m, r->core, &effects);
        model_step_finish(&r->m, step, false);
    }
}

static void op_hold(struct run *r) {
    uint64_t session = 0;
    uint64_t id = pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = want_open(r, s, id);
    struct model_step *step = want == 0 ? &r->m.steps[model_step(&r->m, s, id)] : NULL;
    if (chance(r, 15)) {
        if (same_status(r, core_step_hold(r->core, session, id, &r->err), want)) {
            step->holds++;
        }
    } else {
        want = want == 0 && step->holds == 0 ? KVPOOL_E_STATE : want;
        if (same_status(r, core_step_release(r->core, session, id, &r->err), want)) {
            step->holds--;
        }
    }
}

static void op_pin(struct run *r) {
    if (r->num_pins > 0 && (r->num_pins == MAX_PINS || chance(r, 75))) {
        struct pin *pin = &r->pins[below(r, r->num_pins)];
        core_seq_unpin(r->core, pin->n, pin->items);
        for (uint32_t i = 0; i < pin->n; i++) {
            r->m.seqs[model_seq(&r->m, pin->items[i].seq)].pins--;
        }
        *pin = r->pins[--r->num_pins];
        return;
    }
    uint64_t session = pick_session(r);
    int s = model_session(&r->m, session);
    struct pin pin = {.n = 1 + below(r, 2)};
    int want = s < 0 ? KVPOOL_E_STALE : 0;
    for (uint32_t i = 0; i < pin.n; i++) {
        pin.items[i].seq = pick_seq(r, s, -1);
        want = want != 0 ? want : want_seq(r, s, pin.items[i].seq);
    }
    if (same_status(r, core_seq_pin(r->core, session, pin.n, pin.items, &r->err), want)) {
        r->pins[r->num_pins++] = pin;
        for (uint32_t i = 0; i < pin.n; i++) {
            r->m.seqs[model_seq(&r->m, pin.items[i].seq)].pins++;
        }
    }
}

static void op_batch(struct run *r) {
    uint64_t session = pick_session(r);
    uint64_t pool = pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct core_item items[MODEL_BATCH + 1] = {{0}};
    uint32_t n = pick_items(r, s, p, items);
    struct core_batch batch;
    int want = s < 0                       ? KVPOOL_E_STALE
               : n == 0                    ? KVPOOL_E_INVAL
               : n > r->m.limits.max_batch ? KVPOOL_E_TOOBIG
               : p < 0                     ? KVPOOL_E_STALE
                                           : want_items(r, s, p, n, items, UINT32_MAX);
    int got = core_batch_make(r->core, session, pool, n, items, &batch, &r->err);
    if (same_status(r, got, want)) {
        check_batch(r, &batch, p, n, items, false);
    }
}

static void open_session(struct run *r) {
    const uint8_t token[CORE_TOKEN_SIZE] = {0};
    uint64_t handle = 0;
    uint32_t i = 0;
    while (i < r->m.limits.max_sessions && r->m.sessions[i].live) {
        i++;
    }
    int want = i == r->m.limits.max_sessions ? KVPOOL_E_LIMIT : 0;
    int got = core_session_open(r->core, 100 + i, 0, "m", token, &handle, &r->err);
    if (same_status(r, got, want)) {
        r->m.sessions[i] = (struct model_session){.live = true, .handle = handle};
    }
}

static void op_session(struct run *r) {
    if (chance(r, 65)) {
        open_session(r);
        return;
    }
    uint64_t session = pick_session(r);
    int s = model_session(&r->m, session);
    bool busy = false;
    for (int i = 0; i < MODEL_STEPS; i++) {
        const struct model_step *step = &r->m.steps[i];
        busy = busy || (step->live && step->session == s && step->holds > 0);
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *seq = &r->m.seqs[i];
        busy = busy || (seq->live && seq->session == s && seq->pins > 0);
    }
    int want = s < 0 ? KVPOOL_E_STALE : busy ? KVPOOL_E_BUSY : 0;
    if (same_status(r, core_session_close(r->core, session, &r->err), want)) {
        r->dead_session = session;
        model_session_drop(&r->m, s);
    }
}

static void open_pool(struct run *r, int p) {
    uint64_t handle = 0;
    bool created = false;
    int got = core_pool_create(r->core, &r->scale->pools[p], &handle, &created, &r->err);
    same_status(r, got, 0);
    same(r, "created", created, !r->m.pools[p].live);
    if (created) {
        model_pool_open(&r->m, p, handle, &r->scale->pools[p]);
    } else {
        same(r, "pool", handle, r->m.pools[p].handle);
    }
}

static void op_pool(struct run *r) {
    int p = chance(r, 90);
    if (!r->m.pools[p].live || chance(r, 20)) {
        open_pool(r, p);
        return;
    }
    uint64_t pool = r->m.pools[p].handle;
    int want = model_count_seqs(&r->m, -1, p) > 0 ? KVPOOL_E_BUSY : 0;
    if (same_status(r, core_pool_destroy(r->core, pool, &r->err), want)) {
        r->dead_pool = pool;
        model_pool_close(&r->m, p);
    }
}

// --- after an operation -------------------------------------------------------------------------

static void check_invariants(struct run *r, const struct core *core) {
    struct err err = {0};
    if (core_check(core, &err) != 0) {
        fail_msg(WHERE "%s", AT(r), err.text);
    }
}

static void compare(struct run *r, const struct core *core) {
    struct core_totals totals;
    core_totals(core, &totals);
    same(r, "sequences", totals.seqs, model_count_seqs(&r->m, -1, -1));
    same(r, "steps", totals.steps, model_count_steps(&r->m, -1));
    for (int p = 0; p < MODEL_POOLS; p++) {
        if (!r->m.pools[p].live) {
            continue;
        }
        struct core_pool_info info = {0};
        uint32_t shared = 0;
        uint32_t free_pages = model_recount(&r->m, p, &shared);
        same(r, "pool", (uint64_t)core_pool_stat(core, r->m.pools[p].handle, &info, NULL), 0);
        same(r, "free pages", info.free_pages, free_pages);
        same(r, "shared pages", info.shared_pages, shared);
        same(r, "sequences of the pool", info.seqs, model_count_seqs(&r->m, -1, p));
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &r->m.seqs[i];
        if (s->live) {
            struct core_seq_info info = {0};
            same(r, "sequence", (uint64_t)core_seq_stat(core, 0, s->handle, &info, NULL), 0);
            same(r, "length", info.length, s->len);
            same(r, "pages of a sequence", info.pages, s->num_pages);
            same(r, "shared pages of a sequence", info.shared_pages, model_shared_pages(&r->m, i));
            same(r, "in_step", info.in_step, s->step >= 0);
            same(r, "row", info.row, s->row);
            same(r, "session", info.session, r->m.sessions[s->session].handle);
        }
    }
    int wrong = model_first_wrong(&r->m);
    if (wrong >= 0) {
        fail_msg(WHERE "sequence %d reads another token", AT(r), wrong);
    }
}

// A restart: a core opened over a copy of the block is the same, and may take over.
static void attach_copy(struct run *r) {
    void *copy = fixture_block(r->size);
    memcpy(copy, r->block, r->size);
    struct core *next = NULL;
    same_status(r, core_attach(copy, r->size, &next, &r->err), 0);
    same_status(r, core_rebuild_compare(r->core, &r->err), 0);
    check_invariants(r, next);
    compare(r, next);
    bool in_flight = r->num_pins > 0;
    for (int i = 0; i < MODEL_STEPS; i++) {
        in_flight = in_flight || (r->m.steps[i].live && r->m.steps[i].holds > 0);
    }
    if (!in_flight) { // what is in flight would be forgotten
        struct core *old = r->core;
        void *old_block = r->block;
        r->core = next;
        r->block = copy;
        next = old;
        copy = old_block;
    }
    core_close(next);
    free(copy);
}

static const struct {
    const char *name;
    void (*run)(struct run *r);
    uint32_t weight;
} ops[] = {
    {"create", op_create, 40},  {"fork", op_fork, 30},    {"truncate", op_truncate, 60},
    {"free", op_free, 32},      {"begin", op_begin, 260}, {"mark", op_mark, 220},
    {"commit", op_commit, 240}, {"abort", op_abort, 16},  {"hold", op_hold, 40},
    {"pin", op_pin, 20},        {"batch", op_batch, 40},  {"session", op_session, 2},
    {"pool", op_pool, 3},
};

static void one_op(struct run *r) {
    uint32_t sum = 0;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        sum += ops[i].weight;
    }
    uint32_t pick = below(r, sum);
    size_t i = 0;
    while (pick >= ops[i].weight) {
        pick -= ops[i++].weight;
    }
    r->op_name = ops[i].name;
    ops[i].run(r);
    r->op++;
    if (r->op % r->scale->check_every == 0) {
        check_invariants(r, r->core);
    }
    if (r->op % r->scale->verify_every == 0) {
        compare(r, r->core);
    }
    if (r->op % r->scale->attach_every == 0) {
        attach_copy(r);
    }
}

// Frees everything: no page may be lost.
static void drain(struct run *r) {
    r->op_name = "drain";
    for (uint32_t i = 0; i < r->num_pins; i++) {
        core_seq_unpin(r->core, r->pins[i].n, r->pins[i].items);
    }
    for (int i = 0; i < MODEL_STEPS; i++) {
        const struct model_step *step = &r->m.steps[i];
        for (uint32_t k = 0; step->live && k < step->holds; k++) {
            uint64_t session = r->m.sessions[step->session].handle;
            same_status(r, core_step_release(r->core, session, step->id, &r->err), 0);
        }
    }
    for (int i = 0; i < MODEL_SESSIONS; i++) {
        if (r->m.sessions[i].live) {
            same_status(r, core_session_close(r->core, r->m.sessions[i].handle, &r->err), 0);
            model_session_drop(&r->m, i);
        }
    }
    check_invariants(r, r->core);
    struct core_pool_info info;
    uint32_t cursor = 0;
    while (core_pool_next(r->core, &cursor, &info)) {
        same(r, "free pages at the end", info.free_pages, info.config.num_pages);
    }
}

static void run_model(const struct scale *scale, uint64_t num_ops) {
    struct run *r = calloc(1, sizeof *r);
    assert_non_null(r);
    const char *seed = getenv("KVPOOL_SEED");
    r->seed = seed != NULL ? strtoull(seed, NULL, 0) : 20240229;
    r->random = r->seed * 0x9E3779B97F4A7C15ull + 1;
    r->scale = scale;
    r->m.limits = scale->limits;
    r->size = core_block_size(&scale->limits);
    r->block = fixture_block(r->size);
    r->op_name = "open";
    same_status(r, core_create(r->block, r->size, &scale->limits, 1, &r->core, &r->err), 0);
    print_message("seed %" PRIu64 ", %" PRIu64 " operations\n", r->seed, num_ops);
    for (int p = 0; p < MODEL_POOLS; p++) {
        open_pool(r, p);
    }
    for (uint32_t i = 0; i < scale->limits.max_sessions; i++) {
        open_session(r);
    }
    while (r->op < num_ops) {
        one_op(r);
    }
    drain(r);
    for (int status = 0; status < 64; status++) {
        if (r->results[status] > 0) {
            print_message("  %-18s %" PRIu64 "\n", kvpool_status_name((kvpool_status)-status),
                          r->results[status]);
        }
    }
    // The run means something only if it went everywhere.
    const int seen[] = {0,
                        KVPOOL_E_INVAL,
                        KVPOOL_E_NOSPACE,
                        KVPOOL_E_LIMIT,
                        KVPOOL_E_STALE,
                        KVPOOL_E_PERM,
                        KVPOOL_E_NOTFOUND,
                        KVPOOL_E_EXISTS,
                        KVPOOL_E_BUSY,
                        KVPOOL_E_STATE,
                        KVPOOL_E_ABORTED,
                        KVPOOL_E_TOOBIG};
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
        assert_true(r->results[-seen[i]] > num_ops / 100000);
    }
    assert_true(r->results[-KVPOOL_E_NOSPACE] > num_ops / 500);
    core_close(r->core);
    free(r->block);
    for (int p = 0; p < MODEL_POOLS; p++) {
        model_pool_close(&r->m, p);
    }
    free(r);
}

static uint64_t ops_wanted(void) {
    const char *env = getenv("KVPOOL_MODEL_OPS");
    return env != NULL ? strtoull(env, NULL, 0) : DEFAULT_OPS;
}

#define GEOMETRY(name_, layers_, page_size_)                                                 \
    .name = name_, .layers = layers_, .kv_heads = 1, .head_dim = 8, .page_size = page_size_, \
    .dtype = KVPOOL_BF16

static void small_configuration_checked_after_every_operation(void **state) {
    (void)state;
    static const struct scale scale = {
        .limits = {.max_pools = 2,
                   .max_sessions = 4,
                   .max_seqs = 24,
                   .max_steps = 7,
                   .max_session_steps = 3,
                   .max_batch = 6,
                   .max_table_entries = 512},
        .pools = {{GEOMETRY("small", 2, 8), .num_pages = 64, .max_seqs = 20, .max_seq_len = 100},
                  {GEOMETRY("other", 3, 16), .num_pages = 12, .max_seqs = 8, .max_seq_len = 90}},
        .check_every = 1,
        .verify_every = 1,
        .attach_every = 500,
    };
    run_model(&scale, ops_wanted());
}

static void larger_configuration_checked_now_and_then(void **state) {
    (void)state;
    static const struct scale scale = {
        .limits = {.max_pools = 3,
                   .max_sessions = 12,
                   .max_seqs = 200,
                   .max_steps = 30,
                   .max_session_steps = 8,
                   .max_batch = 40,
                   .max_table_entries = 30000},
        .pools = {{GEOMETRY("large", 4, 8), .num_pages = 500, .max_seqs = 190, .max_seq_len = 700},
                  {GEOMETRY("other", 1, 32), .num_pages = 70, .max_seqs = 60, .max_seq_len = 640}},
        .check_every = 50,
        .verify_every = 20,
        .attach_every = 2000,
    };
    run_model(&scale, ops_wanted() / 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_configuration_checked_after_every_operation),
        cmocka_unit_test(larger_configuration_checked_now_and_then),
    };
    return cmocka_run_group_tests_name("core model", tests, NULL, NULL);
}
