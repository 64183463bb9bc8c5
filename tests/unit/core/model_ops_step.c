// SPDX-License-Identifier: Apache-2.0
// model_ops_step.c: steps and batches on core and on the model, their results compared. See
// model_run.h.
#include "model_run.h"

#include <string.h>

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

void run_begin(struct run *r) {
    uint64_t session = 0;
    uint64_t id = run_pick_step(r, &session);
    bool fresh = run_chance(r, 94);
    session = fresh ? run_pick_session(r) : session;
    uint64_t pool = run_pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct core_item items[MODEL_BATCH + 1] = {{0}};
    static uint32_t again[MODEL_BATCH * MODEL_LEN];
    uint32_t n = run_pick_items(r, s, p, items);
    const uint32_t *ids = run_pick_ids(r, n, items);
    if (s >= 0) {
        id = fresh ? ++r->m.sessions[s].next_id : run_chance(r, 2) ? 0 : id;
        int open = model_step(&r->m, s, id);
        if (open >= 0 && run_chance(r, 70)) { // the very same again
            const struct model_step *step = &r->m.steps[open];
            n = step->n;
            pool = r->m.pools[step->pool].handle;
            uint32_t at = 0;
            for (uint32_t i = 0; i < n; i++) {
                const struct model_seq *seq = &r->m.seqs[step->seqs[i]];
                items[i] = (struct core_item){seq->handle, step->q_len[i]};
                memcpy(again + at, seq->text.ids + seq->len, step->q_len[i] * sizeof *again);
                at += step->q_len[i];
            }
            if (at > 0 && run_chance(r, 10)) { // but for one id
                again[run_below(r, at)] ^= 1;
            }
            ids = step->known != run_chance(r, 5) ? again : NULL;
        }
    }
    bool repeated = false;
    uint64_t missing = 0;
    struct core_step_info info;
    struct core_effects effects;
    int want = run_want_begin(r, s, id, pool, n, items, ids, &repeated, &missing);
    r->err.detail = 0;
    int got = core_step_begin(r->core, session, id, pool, n, items, ids, &info, &effects, &r->err);
    if (!run_status(r, got, want)) {
        run_same(r, "missing pages", r->err.detail, missing);
        if (want == KVPOOL_E_NOSPACE) {
            uint32_t ns = r->m.seqs[model_seq(&r->m, items[0].seq)].text.ns;
            r->m.pools[p].ns[ns].counters.refused++;
        }
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
        step = model_step_open(&r->m, s, id, p, n, seqs, q_len, ids);
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

void run_mark(struct run *r) {
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
            if (i == 0 && written && !model_append(&r->m, step)) {
                fail_msg(WHERE "a sealed page is written", AT(r));
            }
        }
    }
}

void run_commit(struct run *r) {
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
    uint32_t sealed = 0; // by this call
    uint32_t deduplicated = 0;
    if (!repeated) {
        model_apply(&r->m, r->core, &effects);
        model_step_finish(&r->m, step, true);
        int p = r->m.steps[step].pool;
        model_recount(&r->m, p, NULL);
        if (model_bind(&r->m, p) >= 0) {
            fail_msg(WHERE "a page is two of core's, or shares one", AT(r));
        }
        sealed = r->m.steps[step].sealed;
        deduplicated = r->m.steps[step].deduplicated;
        run_same(r, "deltas", effects.num_deltas > 0, deduplicated > 0);
    } else {
        run_same(r, "effects of a repeat", effects.num_deltas, 0);
    }
    run_same(r, "copies", effects.num_copies, 0);
    run_same(r, "sealed", info.sealed, sealed);
    run_same(r, "deduplicated", info.deduplicated, deduplicated);
}

void run_abort(struct run *r) {
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

void run_hold(struct run *r) {
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

void run_batch(struct run *r) {
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
