// SPDX-License-Identifier: Apache-2.0
// test_roles.c: the example worker's roles over a fake cache: right when the cache is right, and
// caught when it is wrong.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "examples/roles.h"
#include "tests/unit/examples/fake_kvpool.h"

#include <math.h>

#define PROMPT 150u
#define TOKENS 40u

static struct llama model;
static uint32_t prompt[PROMPT];

static int setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < PROMPT; i++) {
        prompt[i] = (uint8_t) "The quick brown fox jumps over the lazy dog. "[i * i % 45];
    }
    return llama_random(7, &model);
}
static int teardown(void **state) {
    (void)state;
    llama_free(&model);
    fake_reset(FAKE_NONE, 0, 0, 0);
    return 0;
}

static int run(enum role role, enum fake_fault fault, struct tally *tally) {
    *tally = (struct tally)TALLY_INIT;
    fake_reset(fault, model.config.layers, model.config.kv_heads, model.head_dim);
    const struct role_args args = {.m = &model,
                                   .prompt = prompt,
                                   .prompt_len = PROMPT,
                                   .tokens = TOKENS,
                                   .chunk = 64,
                                   .page_size = 16};
    return role_run(role, NULL, 1, &args, tally);
}

static void plain_decodes_what_a_recompute_decodes(void **state) {
    (void)state;
    struct tally t;
    assert_int_equal(run(ROLE_PLAIN, FAKE_NONE, &t), 0);
    assert_int_equal(t.tokens, TOKENS + 1);
    assert_int_equal(t.mismatches, 0);
    assert_int_equal(fake_leftovers(), 0);
    assert_int_equal(fake_submitted(), 0);
    // The comparison needs no tolerance: rounding moves logits far less than tokens lie apart.
    assert_true(t.max_error * 10 < t.min_margin);
}

static void fork_decodes_four_branches_and_the_parent(void **state) {
    (void)state;
    struct tally t;
    assert_int_equal(run(ROLE_FORK, FAKE_NONE, &t), 0);
    assert_int_equal(t.tokens, 5 * TOKENS + 1);
    assert_int_equal(t.mismatches, 0);
    assert_int_equal(fake_leftovers(), 0);
}

static void truncate_decodes_twice_and_submits(void **state) {
    (void)state;
    struct tally t;
    assert_int_equal(run(ROLE_TRUNCATE, FAKE_NONE, &t), 0);
    assert_int_equal(t.tokens, 2 * TOKENS + 1);
    assert_int_equal(t.mismatches, 0);
    assert_int_equal(fake_leftovers(), 0);
    assert_int_equal(fake_submitted(), TOKENS * (model.config.layers + 2)); // begin, commit
}

// Every way of the cache to be wrong shows as mismatches.
static void a_wrong_cache_is_noticed(void **state) {
    (void)state;
    static const struct {
        enum role role;
        enum fake_fault fault;
    } cases[] = {
        {ROLE_PLAIN, FAKE_SKIPS_OLDEST_PAGE},   {ROLE_PLAIN, FAKE_WRITES_NAN},
        {ROLE_FORK, FAKE_SHARES_FORKS},         {ROLE_FORK, FAKE_SWAPS_BRANCHES},
        {ROLE_TRUNCATE, FAKE_IGNORES_TRUNCATE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tally t;
        assert_int_equal(run(cases[i].role, cases[i].fault, &t), 0);
        print_message("fault %d: %u of %u tokens mismatch\n", (int)cases[i].fault, t.mismatches,
                      t.tokens);
        assert_in_range(t.mismatches, TOKENS / 4, t.tokens);
        assert_int_equal(fake_leftovers(), 0);
    }
}

// A failing call ends the role with an error, and nothing is left behind in the cache.
static void a_failing_call_fails_the_role(void **state) {
    (void)state;
    static const enum fake_fault faults[] = {FAKE_OUT_OF_PAGES, FAKE_FAILS_LAYER, FAKE_FAILS_COMMIT,
                                             FAKE_WRONG_LENGTH};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        struct tally t;
        assert_int_equal(run(ROLE_PLAIN, faults[i], &t), -1);
        assert_int_equal(fake_leftovers(), 0);
    }
}

static void a_prompt_longer_than_the_model_is_refused(void **state) {
    (void)state;
    struct tally t = TALLY_INIT;
    struct llama shorter = model;
    shorter.config.seq_len = PROMPT - 1;
    fake_reset(FAKE_NONE, model.config.layers, model.config.kv_heads, model.head_dim);
    const struct role_args args = {.m = &shorter,
                                   .prompt = prompt,
                                   .prompt_len = PROMPT,
                                   .tokens = 1,
                                   .chunk = 256,
                                   .page_size = 16};
    assert_int_equal(role_run(ROLE_PLAIN, NULL, 1, &args, &t), -1);
    assert_int_equal(fake_leftovers(), 0);
}

static void roles_have_names(void **state) {
    (void)state;
    enum role role = ROLE_PLAIN;
    assert_true(role_parse("fork", &role));
    assert_int_equal(role, ROLE_FORK);
    assert_true(role_parse("truncate", &role));
    assert_int_equal(role, ROLE_TRUNCATE);
    assert_true(role_parse("plain", &role));
    assert_int_equal(role, ROLE_PLAIN);
    assert_false(role_parse("", &role));
    assert_false(role_parse("plainer", &role));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_decodes_what_a_recompute_decodes),
        cmocka_unit_test(fork_decodes_four_branches_and_the_parent),
        cmocka_unit_test(truncate_decodes_twice_and_submits),
        cmocka_unit_test(a_wrong_cache_is_noticed),
        cmocka_unit_test(a_failing_call_fails_the_role),
        cmocka_unit_test(a_prompt_longer_than_the_model_is_refused),
        cmocka_unit_test(roles_have_names),
    };
    return cmocka_run_group_tests_name("example roles", tests, setup, teardown);
}
