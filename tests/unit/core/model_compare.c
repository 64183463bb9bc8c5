// SPDX-License-Identifier: Apache-2.0
// model_compare.c: whatever core says of itself, against the model. See model_run.h.
#include "model_run.h"

#include <string.h>

static void compare_counters(struct run *r, const struct core_ns_counters *got,
                             const struct core_ns_counters *want) {
    run_same(r, "hit tokens", got->hit_tokens, want->hit_tokens);
    run_same(r, "miss tokens", got->miss_tokens, want->miss_tokens);
    run_same(r, "pages sealed", got->sealed, want->sealed);
    run_same(r, "pages deduplicated", got->deduplicated, want->deduplicated);
    run_same(r, "pages evicted", got->evicted, want->evicted);
    run_same(r, "pages dropped", got->dropped, want->dropped);
    run_same(r, "refused", got->refused, want->refused);
}

// After model_recount.
static void compare_namespaces(struct run *r, const struct core *core, int pool, bool counters) {
    const struct model_pool *p = &r->m.pools[pool];
    uint32_t cursor = 0;
    uint32_t n = 0;
    struct core_ns_info info;
    while (core_ns_next(core, p->handle, &cursor, &info)) {
        run_same(r, "namespace", info.ns, n);
        const struct core_ns_config *want = &p->ns[n].config;
        run_same(r, "name of a namespace", (uint64_t)strcmp(info.config.name, want->name), 0);
        run_same(r, "group", (uint64_t)strcmp(info.config.group, want->group), 0);
        run_same(r, "reserve", info.config.reserve, want->reserve);
        run_same(r, "limit", info.config.limit, model_limit(&r->m, pool, n));
        run_same(r, "weight", info.config.weight, want->weight);
        uint32_t active = model_active(&r->m, pool, n);
        run_same(r, "active pages", info.active, active);
        run_same(r, "cached pages", info.cached, model_used(&r->m, pool, n) - active);
        uint32_t seqs = 0;
        for (int i = 0; i < MODEL_SEQS; i++) {
            const struct model_seq *s = &r->m.seqs[i];
            seqs += s->live && s->pool == pool && s->text.ns == n;
        }
        run_same(r, "sequences of the namespace", info.seqs, seqs);
        if (counters) {
            compare_counters(r, &info.counters, &p->ns[n].counters);
        }
        struct core_ns_info stat;
        run_same(r, "namespace", (uint64_t)core_ns_stat(core, p->handle, n, &stat, NULL), 0);
        run_same(r, "active pages", stat.active, active);
        n++;
    }
    run_same(r, "namespaces", n, p->num_ns);
}

static void compare_pool(struct run *r, const struct core *core, int pool, bool counters) {
    const struct model_pool *p = &r->m.pools[pool];
    struct core_pool_info info = {0};
    uint32_t shared = 0;
    uint32_t free_pages = model_recount(&r->m, pool, &shared);
    uint32_t cached = 0;
    uint32_t sealed = 0;
    for (uint32_t i = 0; i < p->config.num_pages; i++) {
        cached += model_cached(&r->m, pool, i);
        sealed += p->pages[i].sealed;
    }
    run_same(r, "pool", (uint64_t)core_pool_stat(core, p->handle, &info, NULL), 0);
    run_same(r, "free pages", info.free_pages, free_pages);
    run_same(r, "shared pages", info.shared_pages, shared);
    run_same(r, "cached pages", info.cached_pages, cached);
    run_same(r, "sealed pages", info.sealed_pages, sealed);
    run_same(r, "sequences of the pool", info.seqs, model_count_seqs(&r->m, -1, pool));
    run_same(r, "pins of the pool", info.pins, model_count_pins(&r->m, pool));
    compare_namespaces(r, core, pool, counters);
    int symbol = model_bind(&r->m, pool);
    if (symbol >= 0) {
        fail_msg(WHERE "page %d of the model is two of core's, or shares one", AT(r), symbol);
    }
}

static void compare_seq(struct run *r, const struct core *core, int seq) {
    const struct model_seq *s = &r->m.seqs[seq];
    struct core_seq_info info = {0};
    run_same(r, "sequence", (uint64_t)core_seq_stat(core, 0, s->handle, &info, NULL), 0);
    run_same(r, "length", info.length, s->len);
    run_same(r, "tracked tokens", info.tracked, s->tracked);
    run_same(r, "pages of a sequence", info.pages, s->num_pages);
    run_same(r, "shared pages of a sequence", info.shared_pages, model_shared_pages(&r->m, seq));
    run_same(r, "in_step", info.in_step, s->step >= 0);
    run_same(r, "row", info.row, s->row);
    run_same(r, "session", info.session, r->m.sessions[s->session].handle);
    run_same(r, "namespace of a sequence", info.ns, s->text.ns);
    run_same(r, "priority", info.priority, s->priority);
}

void run_compare(struct run *r, const struct core *core, bool counters) {
    struct core_totals totals;
    core_totals(core, &totals);
    run_same(r, "sequences", totals.seqs, model_count_seqs(&r->m, -1, -1));
    run_same(r, "steps", totals.steps, model_count_steps(&r->m, -1));
    run_same(r, "pins", totals.pins, model_count_pins(&r->m, -1));
    for (int p = 0; p < MODEL_POOLS; p++) {
        if (r->m.pools[p].live) {
            compare_pool(r, core, p, counters);
        }
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        if (r->m.seqs[i].live) {
            compare_seq(r, core, i);
        }
    }
    int wrong = model_first_wrong(&r->m);
    if (wrong >= 0) {
        fail_msg(WHERE "sequence %d reads another token", AT(r), wrong);
    }
}
