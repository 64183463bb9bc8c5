// SPDX-License-Identifier: Apache-2.0
// Core against a naive model (model.h) under random operations, valid and invalid. Every result,
// status and count must be the model's, every sequence must read its own tokens, and core_check
// must hold: after every operation in a small configuration, now and then in a larger one.
//
//   KVPOOL_SEED       seed of the random numbers (printed; default: fixed)
//   KVPOOL_MODEL_OPS  operations in the small configuration (default 1,000,000, with a sanitizer
//                     200,000); the larger one has a fifth of them
#include "model_run.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DEFAULT_OPS 200000
#else
#define DEFAULT_OPS 1000000
#endif

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
    run_same(r, "sequences", totals.seqs, model_count_seqs(&r->m, -1, -1));
    run_same(r, "steps", totals.steps, model_count_steps(&r->m, -1));
    for (int p = 0; p < MODEL_POOLS; p++) {
        if (!r->m.pools[p].live) {
            continue;
        }
        struct core_pool_info info = {0};
        uint32_t shared = 0;
        uint32_t free_pages = model_recount(&r->m, p, &shared);
        run_same(r, "pool", (uint64_t)core_pool_stat(core, r->m.pools[p].handle, &info, NULL), 0);
        run_same(r, "free pages", info.free_pages, free_pages);
        run_same(r, "shared pages", info.shared_pages, shared);
        run_same(r, "sequences of the pool", info.seqs, model_count_seqs(&r->m, -1, p));
    }
    for (int i = 0; i < MODEL_SEQS; i++) {
        const struct model_seq *s = &r->m.seqs[i];
        if (s->live) {
            struct core_seq_info info = {0};
            run_same(r, "sequence", (uint64_t)core_seq_stat(core, 0, s->handle, &info, NULL), 0);
            run_same(r, "length", info.length, s->len);
            run_same(r, "pages of a sequence", info.pages, s->num_pages);
            run_same(r, "shared pages of a sequence", info.shared_pages,
                     model_shared_pages(&r->m, i));
            run_same(r, "in_step", info.in_step, s->step >= 0);
            run_same(r, "row", info.row, s->row);
            run_same(r, "session", info.session, r->m.sessions[s->session].handle);
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
    run_status(r, core_attach(copy, r->size, &next, &r->err), 0);
    run_status(r, core_rebuild_compare(r->core, &r->err), 0);
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

static void one_op(struct run *r) {
    run_random_op(r);
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
            run_status(r, core_step_release(r->core, session, step->id, &r->err), 0);
        }
    }
    for (int i = 0; i < MODEL_SESSIONS; i++) {
        if (r->m.sessions[i].live) {
            run_status(r, core_session_close(r->core, r->m.sessions[i].handle, &r->err), 0);
            model_session_drop(&r->m, i);
        }
    }
    check_invariants(r, r->core);
    struct core_pool_info info;
    uint32_t cursor = 0;
    while (core_pool_next(r->core, &cursor, &info)) {
        run_same(r, "free pages at the end", info.free_pages, info.config.num_pages);
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
    run_status(
        r, core_create(r->block, r->size, &scale->limits, 1, fixture_secret, &r->core, &r->err), 0);
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
                   .max_table_entries = 512,
                   .max_pages = 100,
                   .max_page_tokens = 1000,
                   .max_pins = 4},
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
                   .max_table_entries = 30000,
                   .max_pages = 600,
                   .max_page_tokens = 8000,
                   .max_pins = 16},
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
