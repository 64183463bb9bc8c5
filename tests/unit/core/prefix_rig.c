// SPDX-License-Identifier: Apache-2.0
// prefix_rig.c: see prefix_rig.h.
#include "prefix_rig.h"

#include <stdio.h>

int prefix_setup(void **state) {
    fixture_setup(state);
    struct fixture *f = *state;
    struct core_pool_config config = fixture_config("wide");
    bool created = false;
    config.max_seq_len = FIXTURE_PAGES * PAGE;
    assert_ok(f, core_pool_destroy(f->core, f->pool, &f->err));
    assert_ok(f, core_pool_create(f->core, &config, &f->pool, &created, &f->err));
    return 0;
}

void hear(void *arg, const struct core_event *event) {
    struct heard *h = arg;
    assert_true(h->n < 64);
    h->events[h->n++] = *event;
}

// Token i of document d.
uint32_t token(uint32_t d, uint32_t i) {
    return d * 1000 + i;
}

const uint32_t *document(uint32_t d, uint32_t n) {
    static uint32_t tokens[FIXTURE_PAGES * PAGE + 1];
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = token(d, i);
    }
    return tokens;
}

struct core_open opening(uint32_t ns, const uint32_t *tokens, uint32_t n) {
    return (struct core_open){.ns = ns, .priority = CORE_NORMAL, .tokens = tokens, .n = n};
}

uint32_t probe(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n) {
    const struct core_open open = opening(ns, document(d, n), n);
    uint32_t matched = 0;
    assert_ok(f, core_seq_probe(f->core, f->pool, &open, &matched, &f->err));
    return matched;
}

uint64_t open_on(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n, uint32_t *ret_matched) {
    const struct core_open open = opening(ns, document(d, n), n);
    uint64_t seq = 0;
    assert_ok(f, core_seq_open(f->core, f->session, f->pool, &open, &seq, ret_matched, &f->effects,
                               &f->err));
    return seq;
}

// Appends tokens [from, to) of document d in one step.
void append(struct fixture *f, uint64_t seq, uint32_t d, uint32_t from, uint32_t to) {
    static uint64_t step = 1000;
    const struct core_item item = {seq, to - from};
    step++;
    assert_ok(f, core_step_begin(f->core, f->session, step, f->pool, 1, &item,
                                 document(d, to) + from, &f->info, &f->effects, &f->err));
    struct core_pool_info pool;
    assert_ok(f, core_pool_stat(f->core, f->pool, &pool, &f->err));
    for (uint32_t layer = 0; layer < pool.config.layers; layer++) {
        assert_ok(f, core_step_mark(f->core, f->session, step, layer, true, &f->err));
    }
    assert_ok(f, core_step_commit(f->core, f->session, step, &f->info, &f->effects, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
}

uint64_t make(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n) {
    uint32_t matched = 0;
    uint64_t seq = open_on(f, ns, d, n, &matched);
    if (matched < n) {
        append(f, seq, d, matched, n);
    }
    return seq;
}

void release(struct fixture *f, uint64_t seq, enum core_hint hint) {
    assert_ok(f, core_seq_free(f->core, f->session, 1, &seq, hint, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
}

struct core_pool_info pool_of(struct fixture *f) {
    struct core_pool_info info;
    assert_ok(f, core_pool_stat(f->core, f->pool, &info, &f->err));
    return info;
}

struct core_ns_info ns_of(struct fixture *f, uint32_t ns) {
    struct core_ns_info info;
    assert_ok(f, core_ns_stat(f->core, f->pool, ns, &info, &f->err));
    return info;
}

uint32_t set_ns(struct fixture *f, const char *name, const char *group, uint32_t reserve,
                uint32_t limit) {
    struct core_ns_config config = {.reserve = reserve, .limit = limit, .weight = 1};
    snprintf(config.name, sizeof config.name, "%s", name);
    snprintf(config.group, sizeof config.group, "%s", group);
    uint32_t ns = 0;
    assert_ok(f, core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    assert_ok(f, core_check(f->core, &f->err));
    return ns;
}
