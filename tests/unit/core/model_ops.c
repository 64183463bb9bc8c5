// SPDX-License-Identifier: Apache-2.0
// model_ops.c: sequences, sessions and pools on core and on the model, their results compared. See
// model_run.h.
#include "model_run.h"

#include <string.h>

uint32_t run_row_of(struct run *r, uint64_t seq) {
    struct core_seq_info info = {0};
    run_same(r, "core_seq_stat", (uint64_t)-core_seq_stat(r->core, 0, seq, &info, NULL), 0);
    return info.row;
}

// A new sequence's handle was never seen before.
void run_new_handle(struct run *r, uint64_t handle) {
    run_same(r, "a live sequence of that handle", model_seq(&r->m, handle) >= 0, 0);
    for (uint32_t i = 0; i < r->m.num_dead && i < MODEL_DEAD; i++) {
        run_same(r, "a freed sequence of that handle", r->m.dead[i] == handle, 0);
    }
}

void run_create(struct run *r) {
    uint64_t session = run_pick_session(r);
    uint64_t pool = run_pick_pool(r);
    uint32_t n =
        run_chance(r, 3) ? run_below(r, 2) * (r->m.limits.max_batch + 1) : 1 + run_below(r, 3);
    uint64_t handles[MODEL_BATCH];
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct model_text text = {.ns = run_pick_ns(r, p)};
    int want = s < 0 || p < 0 ? KVPOOL_E_STALE : run_want_ns(r, p, text.ns);
    want = want != 0 ? want : run_want_room(r, p, n);
    int got = core_seq_create(r->core, session, pool, text.ns, n, handles, &r->err);
    if (run_status(r, got, want)) {
        for (uint32_t i = 0; i < n; i++) {
            run_new_handle(r, handles[i]);
            int q = model_seq_add(&r->m, handles[i], s, p, run_row_of(r, handles[i]), &text);
            r->m.seqs[q].doc = run_below(r, RUN_DOCS);
        }
    }
}

void run_fork(struct run *r) {
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
        run_new_handle(r, handles[i]);
        const struct model_seq *source = &r->m.seqs[f];
        int to = model_seq_add(&r->m, handles[i], s, source->pool, run_row_of(r, handles[i]),
                               &source->text);
        struct model_seq *fork = &r->m.seqs[to];
        fork->len = source->len;
        fork->num_pages = source->num_pages;
        fork->tracked = source->tracked;
        fork->priority = source->priority;
        fork->doc = run_chance(r, 50) ? source->doc : run_below(r, RUN_DOCS);
        memcpy(fork->values, source->values, source->len * sizeof *fork->values);
        memcpy(fork->pages, source->pages, source->num_pages * sizeof *fork->pages);
    }
}

void run_truncate(struct run *r) {
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

void run_free(struct run *r) {
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t list[3];
    uint32_t n = run_chance(r, 2) ? 0 : 1 + (run_chance(r, 30) ? run_below(r, 3) : 0);
    enum core_hint hint = run_chance(r, 25) ? CORE_DROP : CORE_KEEP;
    bool bad_hint = run_chance(r, 1);
    int want = s < 0 ? KVPOOL_E_STALE : n == 0 || bad_hint ? KVPOOL_E_INVAL : 0;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = run_pick_seq(r, s, -1);
        int rc = run_want_seq(r, s, list[i]);
        for (uint32_t k = 0; rc == 0 && k < i; k++) {
            rc = list[k] == list[i] ? KVPOOL_E_INVAL : 0;
        }
        rc = rc != 0 ? rc : run_want_idle_seq(r, s, list[i]);
        want = want != 0 ? want : rc;
    }
    hint = bad_hint ? (enum core_hint)(CORE_DROP + 1) : hint;
    if (run_status(r, core_seq_free(r->core, session, n, list, hint, &r->err), want)) {
        for (uint32_t i = 0; i < n; i++) {
            model_seq_drop(&r->m, model_seq(&r->m, list[i]), hint == CORE_DROP);
        }
    }
}

void run_pin_seqs(struct run *r) {
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

void run_session(struct run *r) {
    if (run_chance(r, 65)) {
        run_open_session(r);
        return;
    }
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    int want = run_want_session_close(r, s);
    if (run_status(r, core_session_close(r->core, session, &r->err), want)) {
        r->dead_session = session;
        model_session_drop(&r->m, s);
    }
}

struct pool_create {
    const struct core_pool_config *config;
    uint64_t handle;
    bool created;
};

static int call_pool_create(struct run *r, void *arg) {
    struct pool_create *p = arg;
    return core_pool_create(r->core, p->config, &p->handle, &p->created, &r->err);
}

void run_open_pool(struct run *r, int p) {
    struct pool_create create = {.config = &r->scale->pools[p]};
    run_status(r, run_try(r, call_pool_create, &create, KVPOOL_E_NOMEM), 0);
    run_same(r, "created", create.created, !r->m.pools[p].live);
    if (create.created) {
        model_pool_open(&r->m, p, create.handle, create.config);
    } else {
        run_same(r, "pool", create.handle, r->m.pools[p].handle);
    }
}

static void add_counters(struct core_ns_counters *sum, const struct core_ns_counters *c) {
    sum->hit_tokens += c->hit_tokens;
    sum->miss_tokens += c->miss_tokens;
    sum->sealed += c->sealed;
    sum->deduplicated += c->deduplicated;
    sum->evicted += c->evicted;
    sum->dropped += c->dropped;
    sum->refused += c->refused;
}

void run_sum_counters(struct run *r, int p) {
    const struct model_pool *pool = &r->m.pools[p];
    for (uint32_t i = 0; i < pool->num_ns; i++) {
        add_counters(&r->sums, &pool->ns[i].counters);
    }
}

void run_close_pool(struct run *r, int p) {
    run_sum_counters(r, p);
    r->dead_pool = r->m.pools[p].handle;
    model_pool_close(&r->m, p);
}

void run_pool(struct run *r) {
    int p = run_chance(r, 90);
    if (!r->m.pools[p].live || run_chance(r, 20)) {
        run_open_pool(r, p);
        return;
    }
    uint64_t pool = r->m.pools[p].handle;
    int want = model_count_seqs(&r->m, -1, p) > 0 ? KVPOOL_E_BUSY : 0;
    if (run_status(r, core_pool_destroy(r->core, pool, &r->err), want)) {
        r->m.expected[r->m.num_expected++] =
            (struct model_event){.kind = CORE_CLEARED, .pool = pool, .symbol = -1};
        run_close_pool(r, p);
    }
}
