// SPDX-License-Identifier: Apache-2.0
// model_ops.c: each operation on core and on the model, their results compared. See model_run.h.
#include "model_run.h"

#include <string.h>

// --- operations --------------------------------------------------------------------------------

static uint32_t row_of(struct run *r, uint64_t seq) {
    struct core_seq_info info = {0};
    run_same(r, "core_seq_stat", (uint64_t)-core_seq_stat(r->core, 0, seq, &info, NULL), 0);
    return info.row;
}

// A new sequence's handle was never seen before.
static void new_handle(struct run *r, uint64_t handle) {
    run_same(r, "a live sequence of that handle", model_seq(&r->m, handle) >= 0, 0);
    for (uint32_t i = 0; i < r->m.num_dead && i < MODEL_DEAD; i++) {
        run_same(r, "a freed sequence of that handle", r->m.dead[i] == handle, 0);
    }
}

static void op_create(struct run *r) {
    uint64_t session = run_pick_session(r);
    uint64_t pool = run_pick_pool(r);
    uint32_t n =
        run_chance(r, 3) ? run_below(r, 2) * (r->m.limits.max_batch + 1) : 1 + run_below(r, 3);
    uint64_t handles[MODEL_BATCH];
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    int want = s < 0 || p < 0 ? KVPOOL_E_STALE : run_want_room(r, p, n);
    if (run_status(r, core_seq_create(r->core, session, pool, 0, n, handles, &r->err), want)) {
        for (uint32_t i = 0; i < n; i++) {
            new_handle(r, handles[i]);
            model_seq_add(&r->m, handles[i], s, p, row_of(r, handles[i]));
        }
    }
}

static void op_fork(struct run *r) {
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t from = run_pick_seq(r, s, -1);
    uint32_t n =
        run_chance(r, 3) ? run_below(r, 2) * (r->m.limits.max_batch + 1) : 1 + run_below(r, 3);
    uint64_t handles[MODEL_BATCH];
    struct core_effects effects;
    int f = model_seq(&r->m, from);
    int want = s < 0 ? KVPOOL_E_STALE : run_want_seq(r, s, from);
    if (want == 0) {
        want = r->m.seqs[f].step >= 0 ? KVPOOL_E_BUSY : run_want_room(r, r->m.seqs[f].pool, n);
    }
    int got = core_seq_fork(r->core, session, from, n, handles, &effects, &r->err);
    if (!run_status(r, got, want)) {
        return;
    }
    model_apply(&r->m, r->core, &effects);
    for (uint32_t i = 0; i < n; i++) {
        new_handle(r, handles[i]);
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
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t seq = run_pick_seq(r, s, -1);
    int i = model_seq(&r->m, seq);
    uint32_t len = i < 0 ? 0 : r->m.seqs[i].len;
    // A few tokens back (speculative decoding), anywhere, or beyond.
    uint32_t length = run_chance(r, 88)   ? len - run_below(r, len < 4 ? len + 1 : 4)
                      : run_chance(r, 80) ? run_below(r, len + 1)
                                          : len + 1 + run_below(r, 9);
    int want = s < 0 ? KVPOOL_E_STALE : run_want_idle_seq(r, s, seq);
    if (want == 0 && length > len) {
        want = KVPOOL_E_INVAL;
    }
    if (run_status(r, core_seq_truncate(r->core, session, seq, length, &r->err), want)) {
        model_seq_truncate(&r->m, i, length);
    }
}

static void op_free(struct run *r) {
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t list[3];
    uint32_t n = run_chance(r, 2) ? 0 : 1 + (run_chance(r, 30) ? run_below(r, 3) : 0);
    int want = s < 0 ? KVPOOL_E_STALE : n == 0 ? KVPOOL_E_INVAL : 0;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = run_pick_seq(r, s, -1);
        int rc = run_want_seq(r, s, list[i]);
        for (uint32_t k = 0; rc == 0 && k < i; k++) {
            rc = list[k] == list[i] ? KVPOOL_E_INVAL : 0;
        }
        rc = rc != 0 ? rc : run_want_idle_seq(r, s, list[i]);
        want = want != 0 ? want : rc;
    }
    if (run_status(r, core_seq_free(r->core, session, n, list, CORE_KEEP, &r->err), want)) {
        for (uint32_t i = 0; i < n; i++) {
            model_seq_drop(&r->m, model_seq(&r->m, list[i]));
        }
    }
}

static void check_batch(struct run *r, const struct core_batch *b, int pool, uint32_t n,
                        const struct core_item *items, bool step) {
    uint32_t tokens = 0;
    uint32_t max_q_len = 0;
    run_same(r, "batch pool", b->pool, r->m.pools[pool].handle);
    run_same(r, "batch size", b->n, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct model_seq *s = &r->m.seqs[model_seq(&r->m, items[i].seq)];
        run_same(r, "row", b->rows[i], s->row);
        run_same(r, "kv_len", b->kv_len[i], s->len + (step ? items[i].tokens : 0));
        run_same(r, "qo_indptr", b->qo_indptr[i], tokens);
        tokens += items[i].tokens;
        max_q_len = items[i].tokens > max_q_len ? items[i].tokens : max_q_len;
    }
    run_same(r, "qo_indptr", b->qo_indptr[n], tokens);
    run_same(r, "tokens", b->tokens, tokens);
    run_same(r, "max_q_len", b->max_q_len, max_q_len);
}

static void op_begin(struct run *r) {
    uint64_t session = 0;
    uint64_t id = run_pick_step(r, &session);
    bool fresh = run_chance(r, 94);
    session = fresh ? run_pick_session(r) : session;
    uint64_t pool = run_pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct core_item items[MODEL_BATCH + 1] = {{0}};
    uint32_t n = run_pick_items(r, s, p, items);
    if (s >= 0) {
        id = fresh ? ++r->m.sessions[s].next_id : run_chance(r, 2) ? 0 : id;
        int open = model_step(&r->m, s, id);
        if (open >= 0 && run_chance(r, 70)) { // the very same again
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
    int want = run_want_begin(r, s, id, pool, n, items, &repeated, &missing);
    r->err.detail = 0;
    int got = core_step_begin(r->core, session, id, pool, n, items, NULL, &info, &effects, &r->err);
    if (!run_status(r, got, want)) {
        run_same(r, "missing pages", r->err.detail, missing);
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
        run_same(r, "effects of a repeat", effects.num_deltas + effects.num_copies, 0);
    }
    run_same(r, "repeated", info.repeated, repeated);
    run_same(r, "step", info.step, id);
    run_same(r, "pages", info.pages, r->m.steps[step].taken);
    run_same(r, "tokens", info.tokens, r->m.steps[step].tokens);
    struct core_batch batch;
    run_status(r, core_step_batch(r->core, session, id, &batch, &r->err), 0);
    check_batch(r, &batch, r->m.steps[step].pool, n, items, true);
}

static void op_mark(struct run *r) {
    uint64_t session = 0;
    uint64_t id = run_pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = run_want_open(r, s, id);
    int step = want == 0 ? model_step(&r->m, s, id) : -1;
    uint32_t layers = step >= 0 ? r->m.pools[r->m.steps[step].pool].config.layers : 1;
    uint32_t layer = run_chance(r, 99) ? run_below(r, layers) : layers;
    bool all = run_chance(r, 90);
    bool written = run_chance(r, 97);
    if (want == 0 && layer >= layers) {
        want = KVPOOL_E_INVAL;
        all = false;
    }
    // Mostly all layers at once, as a worker would, so that many steps can be committed.
    for (uint32_t i = all ? 0 : layer; i <= (all ? layers - 1 : layer); i++) {
        int got = core_step_mark(r->core, session, id, i, written, &r->err);
        if (run_status(r, got, want)) {
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
    uint64_t id = run_pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = run_want_open(r, s, id);
    const struct model_finished *f = s >= 0 ? model_finished(&r->m, s, id) : NULL;
    int step = s >= 0 ? model_step(&r->m, s, id) : -1;
    bool repeated = f != NULL && want == KVPOOL_E_STATE;
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
    struct core_effects effects;
    if (!run_status(r, core_step_commit(r->core, session, id, &info, &effects, &r->err), want)) {
        return;
    }
    run_same(r, "repeated", info.repeated, repeated);
    run_same(r, "step", info.step, id);
    run_same(r, "pool", info.pool, expected.pool);
    run_same(r, "tokens", info.tokens, expected.tokens);
    run_same(r, "pages", info.pages, expected.added);
    if (!repeated) {
        model_step_finish(&r->m, step, true);
    }
}

static void op_abort(struct run *r) {
    uint64_t session = 0;
    uint64_t id = run_pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = run_want_open(r, s, id);
    int step = want == 0 ? model_step(&r->m, s, id) : -1;
    if (want == 0 && r->m.steps[step].holds > 0) {
        want = KVPOOL_E_BUSY;
    }
    bool repeated = want == KVPOOL_E_ABORTED;
    struct core_effects effects;
    int got = core_step_abort(r->core, session, id, &effects, &r->err);
    if (!run_status(r, got, repeated ? 0 : want)) {
        return;
    }
    run_same(r, "copies", effects.num_copies, 0);
    if (repeated) {
        run_same(r, "deltas", effects.num_deltas, 0);
    } else {
        model_apply(&r->m, r->core, &effects);
        model_step_finish(&r->m, step, false);
    }
}

static void op_hold(struct run *r) {
    uint64_t session = 0;
    uint64_t id = run_pick_step(r, &session);
    int s = model_session(&r->m, session);
    int want = run_want_open(r, s, id);
    struct model_step none = {0};
    struct model_step *step = want == 0 ? &r->m.steps[model_step(&r->m, s, id)] : &none;
    if (run_chance(r, 15)) {
        if (run_status(r, core_step_hold(r->core, session, id, &r->err), want)) {
            step->holds++;
        }
    } else {
        want = want == 0 && step->holds == 0 ? KVPOOL_E_STATE : want;
        if (run_status(r, core_step_release(r->core, session, id, &r->err), want)) {
            step->holds--;
        }
    }
}

static void op_pin(struct run *r) {
    if (r->num_pins > 0 && (r->num_pins == MAX_PINS || run_chance(r, 75))) {
        struct pin *pin = &r->pins[run_below(r, r->num_pins)];
        core_seq_unpin(r->core, pin->n, pin->items);
        for (uint32_t i = 0; i < pin->n; i++) {
            r->m.seqs[model_seq(&r->m, pin->items[i].seq)].pins--;
        }
        *pin = r->pins[--r->num_pins];
        return;
    }
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    struct pin pin = {.n = 1 + run_below(r, 2)};
    int want = s < 0 ? KVPOOL_E_STALE : 0;
    for (uint32_t i = 0; i < pin.n; i++) {
        pin.items[i].seq = run_pick_seq(r, s, -1);
        want = want != 0 ? want : run_want_seq(r, s, pin.items[i].seq);
    }
    if (run_status(r, core_seq_pin(r->core, session, pin.n, pin.items, &r->err), want)) {
        r->pins[r->num_pins++] = pin;
        for (uint32_t i = 0; i < pin.n; i++) {
            r->m.seqs[model_seq(&r->m, pin.items[i].seq)].pins++;
        }
    }
}

static void op_batch(struct run *r) {
    uint64_t session = run_pick_session(r);
    uint64_t pool = run_pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct core_item items[MODEL_BATCH + 1] = {{0}};
    uint32_t n = run_pick_items(r, s, p, items);
    struct core_batch batch;
    int want = s < 0                       ? KVPOOL_E_STALE
               : n == 0                    ? KVPOOL_E_INVAL
               : n > r->m.limits.max_batch ? KVPOOL_E_TOOBIG
               : p < 0                     ? KVPOOL_E_STALE
                                           : run_want_items(r, s, p, n, items, UINT32_MAX);
    int got = core_batch_make(r->core, session, pool, n, items, &batch, &r->err);
    if (run_status(r, got, want)) {
        check_batch(r, &batch, p, n, items, false);
    }
}

void run_open_session(struct run *r) {
    const uint8_t token[CORE_TOKEN_SIZE] = {0};
    uint64_t handle = 0;
    uint32_t i = 0;
    while (i < r->m.limits.max_sessions && r->m.sessions[i].live) {
        i++;
    }
    int want = i == r->m.limits.max_sessions ? KVPOOL_E_LIMIT : 0;
    int got = core_session_open(r->core, 100 + i, 0, "m", token, &handle, &r->err);
    if (run_status(r, got, want)) {
        r->m.sessions[i] = (struct model_session){.live = true, .handle = handle};
    }
}

static void op_session(struct run *r) {
    if (run_chance(r, 65)) {
        run_open_session(r);
        return;
    }
    uint64_t session = run_pick_session(r);
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
    if (run_status(r, core_session_close(r->core, session, &r->err), want)) {
        r->dead_session = session;
        model_session_drop(&r->m, s);
    }
}

void run_open_pool(struct run *r, int p) {
    uint64_t handle = 0;
    bool created = false;
    int got = core_pool_create(r->core, &r->scale->pools[p], &handle, &created, &r->err);
    run_status(r, got, 0);
    run_same(r, "created", created, !r->m.pools[p].live);
    if (created) {
        model_pool_open(&r->m, p, handle, &r->scale->pools[p]);
    } else {
        run_same(r, "pool", handle, r->m.pools[p].handle);
    }
}

static void op_pool(struct run *r) {
    int p = run_chance(r, 90);
    if (!r->m.pools[p].live || run_chance(r, 20)) {
        run_open_pool(r, p);
        return;
    }
    uint64_t pool = r->m.pools[p].handle;
    int want = model_count_seqs(&r->m, -1, p) > 0 ? KVPOOL_E_BUSY : 0;
    if (run_status(r, core_pool_destroy(r->core, pool, &r->err), want)) {
        r->dead_pool = pool;
        model_pool_close(&r->m, p);
    }
}

static const struct {
    const char *name;
    void (*run)(struct run *r);
    uint32_t weight;
} ops[] = {
    {"create", op_create, 20},  {"fork", op_fork, 60},    {"truncate", op_truncate, 60},
    {"free", op_free, 40},      {"begin", op_begin, 260}, {"mark", op_mark, 220},
    {"commit", op_commit, 240}, {"abort", op_abort, 16},  {"hold", op_hold, 40},
    {"pin", op_pin, 20},        {"batch", op_batch, 40},  {"session", op_session, 2},
    {"pool", op_pool, 3},
};

void run_random_op(struct run *r) {
    uint32_t sum = 0;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        sum += ops[i].weight;
    }
    uint32_t pick = run_below(r, sum);
    size_t i = 0;
    while (pick >= ops[i].weight) {
        pick -= ops[i++].weight;
    }
    r->op_name = ops[i].name;
    ops[i].run(r);
}
