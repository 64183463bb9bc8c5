// SPDX-License-Identifier: Apache-2.0
// model_ops_cache.c: opening on a prefix, priorities, pins, namespaces and clearing, on core and on
// the model, their results compared. See model_run.h.
#include "model_run.h"

#include <stdio.h>
#include <string.h>

// --- opening on a prefix ------------------------------------------------------------------------

struct open_args {
    struct model_text text;
    uint32_t doc;
    uint32_t tokens[MODEL_LEN + 8];
    struct core_open open;
};

// Arguments for a pool (-1: a stale one), now and then one of them bad.
static void pick_open(struct run *r, int pool, struct open_args *a) {
    uint32_t max_len = pool >= 0 ? r->m.pools[pool].config.max_seq_len : 64;
    memset(a, 0, sizeof *a);
    a->doc = run_below(r, RUN_DOCS);
    uint32_t n = run_chance(r, 10) ? run_below(r, 12) : 1 + run_below(r, max_len);
    n = run_chance(r, 1) ? max_len + 1 + run_below(r, 7) : n;
    uint32_t other = run_chance(r, 15) ? run_below(r, RUN_DOCS) : a->doc;
    uint32_t turn = run_below(r, n + 1); // from here on as in another document
    for (uint32_t i = 0; i < n; i++) {
        a->tokens[i] = run_token(i < turn ? a->doc : other, i);
        a->text.ids[i < MODEL_LEN ? i : 0] = a->tokens[i];
    }
    a->doc = other;
    a->text.ns = run_pick_ns(r, pool);
    a->text.extra_size = run_chance(r, 85)   ? 0
                         : run_chance(r, 90) ? 1 + run_below(r, 2)
                                             : CORE_EXTRA_MAX + run_below(r, 2);
    uint32_t fill = a->text.extra_size < CORE_EXTRA_MAX ? a->text.extra_size : CORE_EXTRA_MAX;
    memset(a->text.extra, 'x', fill);
    a->open = (struct core_open){.ns = a->text.ns,
                                 .priority = run_below(r, run_chance(r, 1) ? 9 : CORE_PRIORITIES),
                                 .tokens = n > 0 ? a->tokens : NULL,
                                 .n = n,
                                 .extra = fill > 0 ? a->text.extra : NULL,
                                 .extra_size = a->text.extra_size,
                                 .only_matched = run_chance(r, 20)};
}

static int want_open(const struct run *r, int pool, const struct core_open *open) {
    int rc = pool < 0 ? KVPOOL_E_STALE : run_want_ns(r, pool, open->ns);
    if (rc == 0 && (open->priority >= CORE_PRIORITIES || open->extra_size > CORE_EXTRA_MAX ||
                    open->n > r->m.pools[pool].config.max_seq_len)) {
        rc = KVPOOL_E_INVAL;
    }
    return rc;
}

// How many of the matching pages there is room for. After model_recount.
static uint32_t pages_with_room(const struct run *r, int pool, uint32_t ns, uint32_t n,
                                const uint32_t *symbols) {
    uint32_t room = model_room(&r->m, pool, ns);
    for (uint32_t i = 0; i < n; i++) {
        if (r->m.pools[pool].counts[symbols[i]] == 0 && room-- == 0) {
            return i;
        }
    }
    return n;
}

void run_open(struct run *r) {
    uint64_t session = run_pick_session(r);
    uint64_t pool = run_pick_pool(r);
    int s = model_session(&r->m, session);
    int p = model_pool(&r->m, pool);
    struct open_args a;
    pick_open(r, p, &a);
    uint32_t symbols[MODEL_ROW];
    uint32_t pages = 0;
    int want = s < 0 ? KVPOOL_E_STALE : want_open(r, p, &a.open);
    if (want == 0) {
        model_recount(&r->m, p, NULL);
        pages = model_match(&r->m, p, &a.text, a.open.n, symbols);
        pages = pages_with_room(r, p, a.text.ns, pages, symbols);
        want = a.open.only_matched && pages == 0 ? 0 : run_want_room(r, p, 1);
    }
    uint64_t seq = 0;
    uint32_t matched = 0;
    struct core_effects effects = {0};
    int got = core_seq_open(r->core, session, pool, &a.open, &seq, &matched, &effects, &r->err);
    if (!run_status(r, got, want)) {
        return;
    }
    struct model_pool *mp = &r->m.pools[p];
    run_same(r, "matched tokens", matched, (uint64_t)pages * mp->config.page_size);
    mp->ns[a.text.ns].counters.hit_tokens += matched;
    mp->ns[a.text.ns].counters.miss_tokens += a.open.n - matched;
    if (a.open.only_matched && pages == 0) {
        run_same(r, "sequence", seq, 0);
        run_same(r, "deltas", effects.num_deltas, 0);
        return;
    }
    run_new_handle(r, seq);
    int i = model_seq_add(&r->m, seq, s, p, run_row_of(r, seq), &a.text);
    struct model_seq *ms = &r->m.seqs[i];
    ms->priority = a.open.priority;
    ms->doc = a.doc;
    ms->len = ms->tracked = matched;
    for (uint32_t k = 0; k < pages; k++) {
        model_reference(&r->m, p, symbols[k], a.text.ns);
        ms->pages[ms->num_pages++] = symbols[k];
    }
    model_make_room(&r->m, p, a.text.ns, 0, false); // another namespace's pages became its own
    model_values(&r->m, i, 0, matched);
    run_same(r, "deltas", effects.num_deltas, pages > 0);
    run_same(r, "copies", effects.num_copies, 0);
    model_apply(&r->m, r->core, &effects);
}

void run_probe(struct run *r) {
    uint64_t pool = run_pick_pool(r);
    int p = model_pool(&r->m, pool);
    struct open_args a;
    pick_open(r, p, &a);
    uint32_t matched = 0;
    int want = want_open(r, p, &a.open);
    if (run_status(r, core_seq_probe(r->core, pool, &a.open, &matched, &r->err), want)) {
        uint32_t pages = model_match(&r->m, p, &a.text, a.open.n, NULL);
        run_same(r, "matched tokens", matched, (uint64_t)pages * r->m.pools[p].config.page_size);
    }
}

void run_priority(struct run *r) {
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t seq = run_pick_seq(r, s, -1);
    int want = s < 0 ? KVPOOL_E_STALE : run_want_seq(r, s, seq);
    uint32_t priority =
        run_below(r, want == 0 && run_chance(r, 3) ? CORE_PRIORITIES + 1 : CORE_PRIORITIES);
    want = want == 0 && priority == CORE_PRIORITIES ? KVPOOL_E_INVAL : want;
    if (run_status(r, core_seq_set_priority(r->core, session, seq, priority, &r->err), want)) {
        r->m.seqs[model_seq(&r->m, seq)].priority = priority;
    }
}

// --- pins -----------------------------------------------------------------------------------------

static uint32_t ns_pins(const struct model *m, const struct model_seq *s) {
    uint32_t n = 0;
    for (int i = 0; i < MODEL_PINS; i++) {
        n += m->pins[i].live && m->pins[i].pool == s->pool && m->pins[i].ns == s->text.ns;
    }
    return n;
}

void run_prefix_pin(struct run *r) {
    uint64_t session = run_pick_session(r);
    int s = model_session(&r->m, session);
    uint64_t seq = run_pick_seq(r, s, -1);
    uint32_t tokens = run_chance(r, 40) ? 0 : run_below(r, 60);
    uint64_t until = r->clock + run_below(r, 60);
    int want = s < 0 ? KVPOOL_E_STALE : run_want_seq(r, s, seq);
    const struct model_seq *ms = want == 0 ? &r->m.seqs[model_seq(&r->m, seq)] : NULL;
    uint32_t page_size = ms != NULL ? r->m.pools[ms->pool].config.page_size : 1;
    uint32_t pages = ms != NULL ? ms->tracked / page_size : 0;
    if (tokens > 0 && tokens / page_size < pages) {
        pages = tokens / page_size;
    }
    if (want == 0) {
        want = pages == 0 ? KVPOOL_E_STATE
               : ns_pins(&r->m, ms) >= 3 * (r->m.limits.max_pins - model_count_pins(&r->m, -1))
                   ? KVPOOL_E_LIMIT
                   : 0;
    }
    uint64_t pin = 0;
    uint32_t pinned = 0;
    int got = core_prefix_pin(r->core, session, seq, tokens, until, &pin, &pinned, &r->err);
    if (!run_status(r, got, want) || ms == NULL) {
        return;
    }
    run_same(r, "pinned tokens", pinned, (uint64_t)pages * page_size);
    run_same(r, "a live pin of that handle", model_pin(&r->m, ms->pool, pin) >= 0, 0);
    int i = 0;
    while (r->m.pins[i].live) {
        i++;
    }
    r->m.pins[i] = (struct model_pin){.live = true,
                                      .handle = pin,
                                      .pool = ms->pool,
                                      .ns = ms->text.ns,
                                      .until = until,
                                      .num_pages = pages};
    memcpy(r->m.pins[i].pages, ms->pages, pages * sizeof *ms->pages);
}

static void end_pin(struct run *r, int index) {
    struct model_pin *pin = &r->m.pins[index];
    model_recount(&r->m, pin->pool, NULL);
    while (pin->num_pages > 0) {
        model_release(&r->m, pin->pool, pin->pages[--pin->num_pages], -1, false);
    }
    pin->live = false;
    r->dead_pin = pin->handle;
}

void run_prefix_unpin(struct run *r) {
    uint64_t pool = run_pick_pool(r);
    int p = model_pool(&r->m, pool);
    int i = -1;
    uint32_t start = run_below(r, MODEL_PINS);
    for (uint32_t k = 0; k < MODEL_PINS && i < 0; k++) {
        const struct model_pin *pin = &r->m.pins[(start + k) % MODEL_PINS];
        i = pin->live && (pin->pool == p || run_chance(r, 2)) ? (int)((start + k) % MODEL_PINS) : i;
    }
    uint64_t handle = i >= 0 && !run_chance(r, 3) ? r->m.pins[i].handle : r->dead_pin;
    int known = p >= 0 ? model_pin(&r->m, p, handle) : -1;
    uint32_t ns = known >= 0 && !run_chance(r, 5) ? r->m.pins[known].ns : run_below(r, 4);
    int want = known < 0 ? KVPOOL_E_STALE : r->m.pins[known].ns != ns ? KVPOOL_E_PERM : 0;
    if (run_status(r, core_prefix_unpin(r->core, pool, ns, handle, &r->err), want)) {
        end_pin(r, known);
    }
}

void run_expire(struct run *r) {
    r->clock += run_below(r, 12);
    uint32_t ended = 0;
    for (;;) { // the lowest slot first
        int next = -1;
        for (int i = 0; i < MODEL_PINS; i++) {
            const struct model_pin *pin = &r->m.pins[i];
            if (pin->live && pin->until <= r->clock &&
                (next < 0 || (uint32_t)pin->handle < (uint32_t)r->m.pins[next].handle)) {
                next = i;
            }
        }
        if (next < 0) {
            break;
        }
        end_pin(r, next);
        ended++;
    }
    run_same(r, "pins ended", core_pins_expire(r->core, r->clock), ended);
}

// --- namespaces -----------------------------------------------------------------------------------

static struct core_ns_config pick_ns_config(struct run *r, const struct model_pool *p) {
    uint32_t num_pages = p->config.num_pages;
    struct core_ns_config config = {.weight = run_chance(r, 1) ? 1001 : run_below(r, 5)};
    // Up to four, and now and then (in a pool that is made anew from time to time) many.
    uint32_t name = run_below(r, p->config.policy == CORE_S3FIFO && run_chance(r, 30) ? 70 : 4);
    if (name > 0) {
        snprintf(config.name, sizeof config.name, "n%u", name);
    } else {
        snprintf(config.name, sizeof config.name, "%s", run_chance(r, 99) ? "default" : "");
    }
    bool grouped = (name >= 1 && name <= 3) != run_chance(r, 3);
    snprintf(config.group, sizeof config.group, "%s", grouped ? "shared" : "");
    if (name < 4 && run_chance(r, 40)) {
        config.reserve = run_below(r, run_chance(r, 10) ? num_pages + 2 : 1 + num_pages / 4);
    }
    if (run_chance(r, 60)) {
        config.limit = 1 + config.reserve + run_below(r, num_pages / (1 + run_below(r, 5)));
        config.limit = config.limit < num_pages ? config.limit : num_pages;
        config.limit = config.reserve > 0 && run_chance(r, 3) ? config.reserve - 1 : config.limit;
    }
    return config;
}

static uint32_t max_of(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

// After model_recount. ns: its index, or that of a new one.
static int want_ns_set(const struct run *r, int pool, uint32_t ns,
                       const struct core_ns_config *config) {
    const struct model_pool *p = &r->m.pools[pool];
    uint32_t num_pages = p->config.num_pages;
    uint64_t reserves = config->reserve;
    uint64_t kept = config->reserve;
    uint32_t active = 0;
    for (uint32_t i = 0; i < p->num_ns; i++) {
        if (i == ns) {
            active = model_active(&r->m, pool, i);
            kept = max_of(active, config->reserve);
        }
    }
    for (uint32_t i = 0; i < p->num_ns; i++) {
        if (i != ns) {
            reserves += p->ns[i].config.reserve;
            kept += max_of(model_active(&r->m, pool, i), p->ns[i].config.reserve);
        }
    }
    uint32_t limit = config->limit == 0 ? num_pages : config->limit;
    if (config->name[0] == '\0' || config->weight > 1000 || config->reserve > limit ||
        config->reserve > num_pages) {
        return KVPOOL_E_INVAL;
    }
    if (ns == CORE_MAX_NAMESPACES) {
        return KVPOOL_E_LIMIT;
    }
    if (ns < p->num_ns && strcmp(p->ns[ns].config.group, config->group) != 0) {
        return KVPOOL_E_EXISTS;
    }
    if (reserves > num_pages) {
        return KVPOOL_E_INVAL;
    }
    bool over_limit = config->limit > 0 && active > config->limit;
    return kept > num_pages || over_limit ? KVPOOL_E_NOSPACE : 0;
}

void run_ns(struct run *r) {
    uint64_t pool = run_pick_pool(r);
    int p = model_pool(&r->m, pool);
    struct model_pool none = {.config = {.num_pages = 8}};
    struct model_pool *mp = p >= 0 ? &r->m.pools[p] : &none;
    struct core_ns_config config = pick_ns_config(r, mp);
    uint32_t ns = 0;
    while (ns < mp->num_ns && strcmp(mp->ns[ns].config.name, config.name) != 0) {
        ns++;
    }
    int want = KVPOOL_E_STALE;
    if (p >= 0) {
        model_recount(&r->m, p, NULL);
        want = want_ns_set(r, p, ns, &config);
    }
    uint32_t index = UINT32_MAX;
    if (!run_status(r, core_ns_set(r->core, pool, &config, &index, &r->err), want)) {
        return;
    }
    run_same(r, "namespace", index, ns);
    config.weight = config.weight == 0 ? 1 : config.weight;
    mp->num_ns = max_of(mp->num_ns, ns + 1);
    mp->ns[ns].config = config;
    model_make_room(&r->m, p, ns, 0, false); // to the new limit
}

void run_clear(struct run *r) {
    uint64_t pool = run_pick_pool(r);
    int p = model_pool(&r->m, pool);
    uint32_t ns = run_chance(r, 8) ? UINT32_MAX : run_pick_ns(r, p);
    int want = p < 0 ? KVPOOL_E_STALE : ns == UINT32_MAX ? 0 : run_want_ns(r, p, ns);
    uint32_t pages = 0;
    if (run_status(r, core_cache_clear(r->core, pool, ns, &pages, &r->err), want)) {
        model_recount(&r->m, p, NULL);
        run_same(r, "pages cleared", pages, model_clear(&r->m, p, ns));
    }
}
