// SPDX-License-Identifier: Apache-2.0
// model_run.c: a run from an empty core to a drained one. See model_run.h.
#include "model_run.h"

#include <stdlib.h>
#include <string.h>

int run_try(struct run *r, run_call_fn call, void *arg, int want_without_memory) {
    return r->hooks.try_out != NULL ? r->hooks.try_out(r, call, arg, want_without_memory)
                                    : call(r, arg);
}

// --- events -------------------------------------------------------------------------------------

static void on_event(void *arg, const struct core_event *event) {
    struct run *r = arg;
    if (r->m.num_seen == MODEL_EVENTS) {
        return; // noticed as a difference
    }
    struct model_event *e = &r->m.seen[r->m.num_seen++];
    *e = (struct model_event){.kind = event->kind,
                              .pool = event->pool,
                              .ns = event->ns,
                              .page_size = event->page_size,
                              .symbol = -1};
    memcpy(e->key, event->key, sizeof e->key);
    memcpy(e->parent, event->parent, sizeof e->parent);
    if (event->kind == CORE_STORED) {
        memcpy(e->tokens, event->tokens, event->page_size * sizeof *e->tokens);
    }
}

// A stored page has a key that no other page of the pool has. The model learns it here.
static void learn_key(struct run *r, struct model_pool *p, int symbol, const uint8_t *key) {
    const uint8_t zero[CORE_KEY_SIZE] = {0};
    run_same(r, "an empty key", memcmp(key, zero, sizeof zero) == 0, 0);
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        run_same(r, "a page of the same key",
                 p->pages[i].sealed && memcmp(p->pages[i].key, key, CORE_KEY_SIZE) == 0, 0);
    }
    memcpy(p->pages[symbol].key, key, CORE_KEY_SIZE);
}

static void check_event(struct run *r, const struct model_event *got, struct model_event *want) {
    run_same(r, "kind of event", got->kind, want->kind);
    run_same(r, "pool of event", got->pool, want->pool);
    if (want->kind == CORE_CLEARED) {
        return;
    }
    run_same(r, "namespace of event", got->ns, want->ns);
    run_same(r, "page size of event", got->page_size, want->page_size);
    struct model_pool *p = &r->m.pools[model_pool(&r->m, want->pool)];
    if (want->kind == CORE_STORED) {
        learn_key(r, p, want->symbol, got->key);
        const struct model_page *page = &p->pages[want->symbol];
        if (page->parent >= 0) { // which may have been stored just now
            memcpy(want->parent, p->pages[page->parent].key, sizeof want->parent);
        }
        run_same(r, "tokens of a stored page differ",
                 memcmp(got->tokens, want->tokens, got->page_size * sizeof *got->tokens) != 0, 0);
    } else {
        run_same(r, "another page is removed", memcmp(got->key, want->key, CORE_KEY_SIZE) != 0, 0);
    }
    run_same(r, "another parent", memcmp(got->parent, want->parent, CORE_KEY_SIZE) != 0, 0);
}

static void check_events(struct run *r) {
    if (r->m.problem != NULL) {
        fail_msg(WHERE "%s", AT(r), r->m.problem);
    }
    for (uint32_t i = 0; i < r->m.num_seen && i < r->m.num_expected; i++) {
        check_event(r, &r->m.seen[i], &r->m.expected[i]);
    }
    run_same(r, "number of events", r->m.num_seen, r->m.num_expected);
    r->m.num_seen = r->m.num_expected = r->m.next_seen = 0;
}

// --- after an operation -------------------------------------------------------------------------

static int call_check(struct run *r, void *arg) {
    (void)arg;
    return core_check(r->core, &r->err);
}

static int call_rebuild_compare(struct run *r, void *arg) {
    (void)arg;
    return core_rebuild_compare(r->core, &r->err);
}

static void check_invariants(struct run *r) {
    run_status(r, run_try(r, call_check, NULL, KVPOOL_E_INTERNAL), 0);
}

// --- a restart ----------------------------------------------------------------------------------

struct attach {
    void *block;
    struct core *core;
};

static int call_attach(struct run *r, void *arg) {
    struct attach *a = arg;
    return core_attach(a->block, r->size, &a->core, &r->err);
}

// A core opened over a copy of the block is the same, and may take over.
static void attach_copy(struct run *r) {
    struct attach next = {.block = fixture_block(r->size)};
    memcpy(next.block, r->block, r->size);
    run_status(r, run_try(r, call_attach, &next, KVPOOL_E_NOMEM), 0);
    run_status(r, run_try(r, call_rebuild_compare, NULL, KVPOOL_E_INTERNAL), 0);
    struct core *live = r->core;
    r->core = next.core;
    check_invariants(r);
    r->core = live;
    run_compare(r, next.core, false);
    bool in_flight = r->num_pins > 0;
    for (int i = 0; i < MODEL_STEPS; i++) {
        in_flight = in_flight || (r->m.steps[i].live && r->m.steps[i].holds > 0);
    }
    if (!in_flight && run_chance(r, 25)) { // what is in flight would be forgotten
        struct attach old = {r->block, r->core};
        r->core = next.core;
        r->block = next.block;
        next = old;
        for (int p = 0; p < MODEL_POOLS; p++) {
            run_sum_counters(r, p);
        }
        model_reattached(&r->m);
        core_observe(r->core, on_event, r);
    }
    core_close(next.core);
    free(next.block);
}

// --- the run ------------------------------------------------------------------------------------

static const struct {
    const char *name;
    void (*run)(struct run *r);
    uint32_t weight;
} ops[] = {
    {"create", run_create, 8},
    {"fork", run_fork, 30},
    {"truncate", run_truncate, 40},
    {"free", run_free, 50},
    {"begin", run_begin, 320},
    {"mark", run_mark, 260},
    {"commit", run_commit, 300},
    {"abort", run_abort, 16},
    {"hold", run_hold, 30},
    {"pin", run_pin_seqs, 20},
    {"batch", run_batch, 20},
    {"session", run_session, 2},
    {"pool", run_pool, 3},
    {"open", run_open, 50},
    {"probe", run_probe, 15},
    {"priority", run_priority, 15},
    {"prefix pin", run_prefix_pin, 6},
    {"prefix unpin", run_prefix_unpin, 5},
    {"expire", run_expire, 6},
    {"namespace", run_ns, 8},
    {"clear", run_clear, 1},
};

static void random_op(struct run *r) {
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
    uint64_t before = r->hooks.allocations != NULL ? r->hooks.allocations() : 0;
    ops[i].run(r);
    if (r->hooks.allocations != NULL && ops[i].run != run_pool) {
        run_same(r, "allocations", r->hooks.allocations() - before, 0);
    }
    check_events(r);
}

static void one_op(struct run *r) {
    random_op(r);
    r->op++;
    if (r->op % r->scale->check_every == 0) {
        check_invariants(r);
    }
    if (r->op % r->scale->verify_every == 0) {
        run_compare(r, r->core, true);
    }
    if (r->op % r->scale->attach_every == 0) {
        attach_copy(r);
    }
}

// Ends everything: no page may be lost.
static void drain(struct run *r) {
    r->op_name = "drain";
    for (uint32_t i = 0; i < r->num_pins; i++) {
        core_seq_unpin(r->core, r->pins[i].n, r->pins[i].items);
    }
    for (int i = 0; i < MODEL_STEPS; i++) {
        const struct model_step *step = &r->m.steps[i];
        for (uint32_t k = 0; step->live && k < step->holds; k++) {
            uint64_t session = r->m.sessions[step->session].handle;
            run_status(r, core_step_release(r->core, session, step->id, &r->err), 0);
        }
    }
    for (int i = 0; i < MODEL_SESSIONS; i++) {
        if (r->m.sessions[i].live) {
            run_status(r, core_session_close(r->core, r->m.sessions[i].handle, &r->err), 0);
            model_session_drop(&r->m, i);
        }
    }
    r->clock = UINT32_MAX; // after all pins
    run_expire(r);
    check_events(r);
    check_invariants(r);
    run_compare(r, r->core, true);
    for (int p = 0; p < MODEL_POOLS; p++) {
        if (!r->m.pools[p].live) {
            continue;
        }
        uint64_t pool = r->m.pools[p].handle;
        struct core_pool_info info;
        uint32_t cleared = 0;
        run_status(r, core_pool_stat(r->core, pool, &info, &r->err), 0);
        run_same(r, "pages at the end", info.free_pages + info.cached_pages, info.config.num_pages);
        run_status(r, core_cache_clear(r->core, pool, UINT32_MAX, &cleared, &r->err), 0);
        run_same(r, "pages cleared", cleared, info.cached_pages);
        model_recount(&r->m, p, NULL);
        model_clear(&r->m, p, UINT32_MAX);
        check_events(r);
        run_status(r, core_pool_stat(r->core, pool, &info, &r->err), 0);
        run_same(r, "free pages at the end", info.free_pages, info.config.num_pages);
        run_same(r, "sealed pages at the end", info.sealed_pages, 0);
    }
    check_invariants(r);
    run_compare(r, r->core, true);
}

// The run means something only if it went everywhere.
static void check_reached(const struct run *r, uint64_t num_ops) {
    static const int seen[] = {0,
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
    const struct core_ns_counters *c = &r->sums;
    print_message("  hits %" PRIu64 " misses %" PRIu64 " sealed %" PRIu64 " deduplicated %" PRIu64
                  " evicted %" PRIu64 " dropped %" PRIu64 " refused %" PRIu64 "\n",
                  c->hit_tokens, c->miss_tokens, c->sealed, c->deduplicated, c->evicted, c->dropped,
                  c->refused);
    assert_true(c->hit_tokens > num_ops / 100 && c->miss_tokens > num_ops / 100);
    assert_true(c->sealed > num_ops / 100 && c->deduplicated > num_ops / 1000);
    assert_true(c->evicted > num_ops / 2000 && c->dropped > num_ops / 2000);
}

static void print_results(const struct run *r) {
    for (int status = 0; status < 64; status++) {
        if (r->results[status] > 0) {
            print_message("  %-18s %" PRIu64 "\n", kvpool_status_name((kvpool_status)-status),
                          r->results[status]);
        }
    }
}

static int call_create(struct run *r, void *arg) {
    (void)arg;
    return core_create(r->block, r->size, &r->scale->limits, 1, fixture_secret, &r->core, &r->err);
}

void run_model(const struct scale *scale, uint64_t num_ops, const struct run_hooks *hooks) {
    struct run *r = calloc(1, sizeof *r);
    assert_non_null(r);
    const char *seed = getenv("KVPOOL_SEED");
    r->seed = seed != NULL ? strtoull(seed, NULL, 0) : 20240229;
    r->random = r->seed * 0x9E3779B97F4A7C15ull + 1;
    r->scale = scale;
    if (hooks != NULL) {
        r->hooks = *hooks;
    }
    r->m.limits = scale->limits;
    r->size = core_block_size(&scale->limits);
    r->block = fixture_block(r->size);
    r->op_name = "open";
    run_status(r, run_try(r, call_create, NULL, KVPOOL_E_NOMEM), 0);
    core_observe(r->core, on_event, r);
    print_message("seed %" PRIu64 ", %" PRIu64 " operations\n", r->seed, num_ops);
    for (int p = 0; p < MODEL_POOLS; p++) {
        run_open_pool(r, p);
    }
    for (uint32_t i = 0; i < scale->limits.max_sessions; i++) {
        run_open_session(r);
    }
    while (r->op < num_ops) {
        one_op(r);
    }
    drain(r);
    for (int p = 0; p < MODEL_POOLS; p++) {
        run_close_pool(r, p);
    }
    print_results(r);
    check_reached(r, num_ops);
    core_close(r->core);
    free(r->block);
    free(r);
}
