// SPDX-License-Identifier: Apache-2.0
// core_attach over a block with sealed pages, tenants and pins in which single bytes and words are
// wrong: it refuses, or what it takes can be used. Nothing may crash or leave its memory.
//
//   KVPOOL_SEED  seed of the random numbers (printed; default: fixed)
#include "daemon/core/state.h"

#include "fixture.h"

#include <stdlib.h>
#include <string.h>

#define PAGE 8u // tokens, of the fixture's pools

#if defined(__SANITIZE_THREAD__) // there is one thread
#define TRIALS 5000
#else
#define TRIALS 20000
#endif

static uint64_t rng;
static uint32_t below(uint32_t n) {
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng >> 33) % n);
}

static const uint32_t *document(uint32_t d) {
    static uint32_t tokens[96];
    for (uint32_t i = 0; i < 96; i++) {
        tokens[i] = d * 1000 + i;
    }
    return tokens;
}

static struct core_open opening(uint32_t ns, uint32_t d, uint32_t n) {
    return (struct core_open){.ns = ns, .priority = d % 3, .tokens = document(d), .n = n};
}

// A sequence of the first n tokens of document d, all of them known.
static uint64_t make(struct fixture *f, uint64_t pool, uint32_t ns, uint32_t d, uint32_t n) {
    static uint64_t step = 1000;
    const struct core_open open = opening(ns, d, n);
    uint64_t seq = 0;
    uint32_t matched = 0;
    assert_ok(
        f, core_seq_open(f->core, f->session, pool, &open, &seq, &matched, &f->effects, &f->err));
    const struct core_item item = {seq, n - matched};
    step++;
    assert_ok(f, core_step_begin(f->core, f->session, step, pool, 1, &item, document(d) + matched,
                                 &f->info, &f->effects, &f->err));
    fixture_mark(f, f->session, step);
    assert_ok(f, core_step_commit(f->core, f->session, step, &f->info, &f->effects, &f->err));
    return seq;
}

static uint32_t set_ns(struct fixture *f, const char *name, uint32_t reserve) {
    struct core_ns_config config = {.reserve = reserve, .weight = 1, .group = "g"};
    uint32_t ns = 0;
    memcpy(config.name, name, strlen(name));
    assert_ok(f, core_ns_set(f->core, f->pool, &config, &ns, &f->err));
    return ns;
}

// Two pools, one of each policy: sequences on sealed pages, cached chains, a pin, an open step that
// copies a sealed page, pages beyond the sealed ones.
static void fill(struct fixture *f) {
    uint32_t a = set_ns(f, "a", 2);
    uint32_t b = set_ns(f, "b", 0);
    uint64_t pin = 0;
    uint32_t tokens = 0;
    uint64_t first = make(f, f->pool, a, 1, 29);
    uint64_t second = make(f, f->pool, b, 1, 44); // on the pages of a
    uint64_t other = make(f, f->pool, 0, 2, 24);
    assert_ok(f, core_prefix_pin(f->core, f->session, first, 16, 50, &pin, &tokens, &f->err));
    assert_ok(f, core_seq_free(f->core, f->session, 1, &other, CORE_KEEP, &f->err));
    assert_ok(f, core_seq_truncate(f->core, f->session, second, 20, &f->err));
    const struct core_item item = {second, 9};
    assert_ok(f, core_step_begin(f->core, f->session, 7, f->pool, 1, &item, document(3), &f->info,
                                 &f->effects, &f->err));
    fixture_seq(f, f->other, 5);
    struct core_pool_config config = fixture_config("q");
    config.policy = CORE_S3FIFO;
    uint64_t q = 0;
    bool created = false;
    assert_ok(f, core_pool_create(f->core, &config, &q, &created, &f->err));
    make(f, q, 0, 4, 17);
    fixture_check(f);
}

// What is wrong in the first page of a chain that no sequence has shows only when one is opened on
// it: its key hangs on key material that the block does not have.
static void check(const struct core *c) {
    struct err err = {0};
    if (core_check(c, &err) != 0 && strstr(err.text, "not its prefix") == NULL) {
        fail_msg("%s", err.text);
    }
}

// Damage after which pages would go wrong only later.
static void attach_names_what_is_damaged(void **state) {
    struct fixture *f = *state;
    uint64_t other =
        make(f, f->pool, set_ns(f, "a", 0), 1, 20); // two sealed pages, one that is not
    uint64_t seq = make(f, f->pool, 0, 2, 20);
    uint8_t *copy = fixture_block(f->size);
    struct tables t;
    for (int damage = 0; damage < 5; damage++) {
        memcpy(copy, f->block, f->size);
        assert_int_equal(layout_open(copy, f->size, &t, NULL), 0);
        struct seq_rec *rec = &t.seqs[(uint32_t)seq];
        uint32_t *row = t.entries + (size_t)rec->row * t.pools[0].row_entries;
        uint32_t *row_other =
            t.entries + (size_t)t.seqs[(uint32_t)other].row * t.pools[0].row_entries;
        const char *part = NULL;
        switch (damage) {
        case 0:
            part = "behind its sealed pages", t.pools[0].end_page--;
            break;
        case 1:
            part = "behind its sealed pages", t.pages[12].state = 7;
            break;
        case 2: // on whose account is it?
            part = "names page", row[2] = row_other[2];
            break;
        case 3: // its parent is free to go
            part = "not its prefix", rec->tracked = 0;
            row[1] = row_other[1];
            break;
        default: // means nothing
            t.pages[row[2]].depth = UINT32_MAX;
            t.pages[40].state = RECORD_LIVE; // of no pool
            break;
        }
        struct core *core = NULL;
        int rc = core_attach(copy, f->size, &core, &f->err);
        if (part == NULL) {
            assert_ok(f, rc);
            struct core_pool_config config = fixture_config("new");
            uint64_t pool = 0;
            bool created = false;
            config.num_pages = 64;
            assert_ok(f, core_pool_create(core, &config, &pool, &created, &f->err));
            assert_ok(f, core_check(core, &f->err));
            core_close(core);
        } else {
            assert_fails(f, KVPOOL_E_INVAL, part, rc);
        }
    }
    free(copy);
}

// Uses a core that took a damaged block.
static void exercise(struct core *c) {
    uint64_t sessions[3];
    uint64_t pools[3];
    uint64_t seqs[10];
    uint32_t n = 0;
    uint32_t cursor = 0;
    struct core_seq_info seq;
    struct core_effects effects;
    struct core_step_info info;
    uint64_t made = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < 3; i++) {
        sessions[i] = core_session_handle(c, i);
        pools[i] = core_pool_handle(c, i);
    }
    while (core_seq_next(c, &cursor, &seq)) {
        seqs[n++] = seq.seq;
    }
    for (uint32_t i = 0; i < 30 && n > 0; i++) {
        uint64_t session = sessions[below(3)];
        uint64_t pool = pools[below(3)];
        uint64_t one = seqs[below(n)];
        const uint64_t step = 1 + below(9);
        const struct core_item item = {one, below(40)};
        const struct core_open open = opening(below(3), 1 + below(5), below(96));
        for (uint32_t layer = 0; layer < 2; layer++) {
            core_step_mark(c, session, step, layer, true, NULL);
        }
        core_step_commit(c, session, step, &info, &effects, NULL);
        core_step_abort(c, session, 1 + below(9), &effects, NULL);
        core_step_begin(c, session, 1 + below(9), pool, 1, &item, document(1 + below(5)), &info,
                        &effects, NULL);
        core_seq_open(c, session, pool, &open, &made, &count, &effects, NULL);
        core_seq_truncate(c, session, one, below(60), NULL);
        core_prefix_pin(c, session, one, below(60), below(80), &made, &count, NULL);
        core_pins_expire(c, below(60));
        if (i % 8 == 7) {
            core_seq_free(c, session, 1, &one, below(2) ? CORE_DROP : CORE_KEEP, NULL);
            core_cache_clear(c, pool, below(2) ? UINT32_MAX : below(3), &count, NULL);
        }
    }
    check(c);
    for (uint32_t i = 0; i < 3; i++) {
        core_session_close(c, sessions[i], NULL);
        core_pool_destroy(c, pools[i], NULL);
    }
    // A pool where they were, of which every page is used.
    struct core_pool_config config = fixture_config("new");
    uint8_t token[CORE_TOKEN_SIZE] = {0};
    uint64_t session = 0;
    uint64_t pool = 0;
    bool created = false;
    if (core_session_open(c, 1, 1, "new", token, &session, NULL) == 0 &&
        core_pool_create(c, &config, &pool, &created, NULL) == 0 &&
        core_seq_create(c, session, pool, 0, 2, seqs, NULL) == 0) {
        const struct core_item items[2] = {{seqs[0], 60}, {seqs[1], 60}};
        core_step_begin(c, session, 1, pool, 2, items, NULL, &info, &effects, NULL);
    }
    check(c);
}

// A wrong word in one of the tables that sealed pages, tenants and pins have.
static void damage_word(const struct tables *t) {
    uint32_t *const words[] = {
        &t->pools[below(2)].end_page,     (uint32_t *)&t->pages[below(32)] + below(4),
        (uint32_t *)&t->pages[below(32)], (uint32_t *)&t->pins[below(2)] + below(8),
        &t->seqs[below(5)].tracked,       &t->seqs[below(5)].ns,
        t->tokens + below(32 * PAGE),     t->entries + below(36),
    };
    *words[below(sizeof words / sizeof *words)] = below(4) == 0 ? UINT32_MAX : below(20);
}

static void damage(void *block, size_t size) {
    struct tables t;
    uint8_t *bytes = block;
    assert_int_equal(layout_open(block, size, &t, NULL), 0);
    size_t first = t.header->layout.pages;
    switch (below(3)) {
    case 0:
        bytes[below((uint32_t)size)] ^= (uint8_t)(1u << below(8));
        break;
    case 1: // of the records of pages
        bytes[first + below(32 * sizeof(struct page_rec))] ^= (uint8_t)(1u << below(8));
        break;
    default:
        damage_word(&t);
        break;
    }
}

static void attach_survives_damage_of_sealed_pages(void **state) {
    struct fixture *f = *state;
    fill(f);
    const char *seed = getenv("KVPOOL_SEED");
    rng = seed != NULL ? strtoull(seed, NULL, 0) : 1;
    print_message("seed %llu\n", (unsigned long long)rng);
    uint8_t *copy = fixture_block(f->size);
    uint32_t refused = 0;
    uint32_t taken = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        memcpy(copy, f->block, f->size);
        damage(copy, f->size);
        struct core *core = NULL;
        int rc = core_attach(copy, f->size, &core, &f->err);
        if (rc == 0) {
            taken++;
            exercise(core);
            core_close(core);
        } else {
            refused++;
            assert_true(rc == KVPOOL_E_INVAL || rc == KVPOOL_E_VERSION);
        }
    }
    print_message("refused %u, taken %u\n", refused, taken);
    assert_true(refused > 1000 && taken > 1000);
    f->err = (struct err){0};
    free(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(attach_names_what_is_damaged, fixture_setup,
                                        fixture_teardown),
        cmocka_unit_test_setup_teardown(attach_survives_damage_of_sealed_pages, fixture_setup,
                                        fixture_teardown),
    };
    return cmocka_run_group_tests_name("core_damage", tests, NULL, NULL);
}
