// SPDX-License-Identifier: Apache-2.0
// test_roles.c: the example worker's roles over a fake cache: right when the cache is right, and
// caught when it is wrong.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "examples/recompute.h"
#include "examples/roles.h"
#include "tests/unit/examples/fake_kvpool.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PROMPT 70u
#define TOKENS 34u

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

static int run_again(enum role role, uint64_t weights, struct tally *tally) {
    *tally = (struct tally){0};
    const struct role_args args = {.m = &model,
                                   .weights = weights,
                                   .prompt = prompt,
                                   .prompt_len = PROMPT,
                                   .tokens = TOKENS,
                                   .chunk = 32,
                                   .page_size = 16};
    return role_run(role, NULL, 1, &args, tally);
}

static int run(enum role role, enum fake_fault fault, struct tally *tally) {
    fake_reset(fault, model.config.layers, model.config.kv_heads, model.head_dim);
    return run_again(role, 1, tally);
}

// Every role begins with what an earlier worker of the same weights left in the cache.
static void a_cached_prompt_is_not_computed_again(void **state) {
    (void)state;
    struct tally t;
    const enum role roles[] = {ROLE_PLAIN, ROLE_FORK, ROLE_TRUNCATE};
    assert_int_equal(run(ROLE_PLAIN, FAKE_NONE, &t), 0);
    assert_int_equal(t.reused, 0);
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        assert_int_equal(run_again(roles[i], 1, &t), 0);
        assert_int_equal(t.reused, (PROMPT - 1) / 16 * 16);
        assert_int_equal(t.mismatches, 0);
        assert_int_equal(fake_leftovers(), 0);
    }
    assert_int_equal(run_again(ROLE_PLAIN, 2, &t), 0);
    assert_int_equal(t.reused, 0);
    assert_int_equal(t.mismatches, 0);
}

// A cache that finds what was not asked for is noticed.
static void a_wrong_match_is_noticed(void **state) {
    (void)state;
    struct tally t;
    assert_int_equal(run(ROLE_PLAIN, FAKE_MATCHES_ANYTHING, &t), 0);
    prompt[0] ^= 1;
    assert_int_equal(run_again(ROLE_PLAIN, 1, &t), 0);
    prompt[0] ^= 1;
    assert_int_equal(t.reused, (PROMPT - 1) / 16 * 16);
    assert_in_range(t.mismatches, TOKENS / 2, t.tokens);
}

static void plain_decodes_what_a_recompute_decodes(void **state) {
    (void)state;
    struct tally t;
    assert_int_equal(run(ROLE_PLAIN, FAKE_NONE, &t), 0);
    assert_int_equal(t.tokens, TOKENS + 1);
    assert_int_equal(t.mismatches, 0);
    assert_int_equal(fake_leftovers(), 0);
    assert_int_equal(fake_submitted(), 0);
    assert_int_equal(t.ties, 0);
    assert_true(t.max_error > 0 && t.max_error < TRANSCRIPT_TOLERANCE / 5);
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

// Every way of the cache to be wrong shows, in every token that it touches.
static void a_wrong_cache_is_noticed(void **state) {
    (void)state;
    static const struct {
        enum role role;
        enum fake_fault fault;
        uint32_t mismatches; // at least: every token that the fault can reach
    } cases[] = {
        {ROLE_PLAIN, FAKE_SKIPS_OLDEST_PAGE, TOKENS + 1},
        {ROLE_PLAIN, FAKE_WRITES_NAN, TOKENS + 1},
        {ROLE_FORK, FAKE_SHARES_FORKS, 3 * TOKENS}, // the last to write reads its own
        {ROLE_FORK, FAKE_SWAPS_BRANCHES, TOKENS},
        {ROLE_TRUNCATE, FAKE_IGNORES_TRUNCATE, TOKENS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tally t;
        assert_int_equal(run(cases[i].role, cases[i].fault, &t), 0);
        assert_in_range(t.mismatches, cases[i].mismatches, t.tokens);
        assert_int_equal(fake_leftovers(), 0);
    }
}

// The comparison itself: one generated token whose logit or choice is off by so and so much.
static void a_token_matches_by_logit_and_by_choice(void **state) {
    (void)state;
    struct transcript t;
    float logits[256];
    assert_int_equal(transcript_open(8, NULL, &t), 0);
    assert_int_equal(transcript_push(&t, 65, NULL), 0);
    assert_int_equal(recompute(&model, 1, t.tokens, 0, logits), 0);
    const uint32_t best = llama_argmax(logits, 256);
    const float exact = logits[best];
    const struct {
        uint32_t token;
        float logit;
        uint32_t mismatches;
    } cases[] = {
        {best, exact, 0},
        {best, exact * (1 + 2e-5f), 0},
        {best, exact * (1 + 2e-3f), 1}, // right by luck
        {best, NAN, 1},
        {best ^ 1, logits[best ^ 1], 1}, // the right logit of a wrong token
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tally tally = {0};
        transcript_truncate(&t, 1);
        logits[cases[i].token] = cases[i].logit;
        assert_int_equal(transcript_push(&t, cases[i].token, logits), 0);
        assert_int_equal(transcript_check(&t, &model, 0, &tally), 0);
        assert_int_equal(tally.tokens, 1);
        assert_int_equal(tally.ties, 0);
        assert_int_equal(tally.mismatches, cases[i].mismatches);
    }
    transcript_close(&t);
}

// A classifier with two equal best rows: either choice is right, and the second counts as a tie.
static void equal_logits_are_a_tie(void **state) {
    (void)state;
    struct llama twins = model;
    struct transcript t;
    float logits[256];
    struct tally tally = {0};
    const size_t dim = model.config.dim;
    assert_int_equal(transcript_open(8, NULL, &t), 0);
    assert_int_equal(transcript_push(&t, 65, NULL), 0);
    assert_int_equal(recompute(&model, 1, t.tokens, 0, logits), 0);
    const uint32_t best = llama_argmax(logits, 256);
    float *classifier = malloc(256 * dim * sizeof *classifier);
    assert_non_null(classifier);
    memcpy(classifier, model.classifier, 256 * dim * sizeof *classifier);
    memcpy(classifier + (best ^ 1) * dim, classifier + best * dim, dim * sizeof *classifier);
    twins.classifier = classifier;
    logits[best | 1] = logits[best];
    assert_int_equal(transcript_push(&t, best | 1, logits), 0); // not the first of the equals
    assert_int_equal(transcript_check(&t, &twins, 0, &tally), 0);
    assert_int_equal(tally.tokens, 1);
    assert_int_equal(tally.mismatches, 0);
    assert_int_equal(tally.ties, 1);
    free(classifier);
    transcript_close(&t);
}

// A failing call ends the role with an error, and nothing is left behind in the cache.
static void a_failing_call_fails_the_role(void **state) {
    (void)state;
    static const enum fake_fault faults[] = {FAKE_OUT_OF_PAGES, FAKE_FAILS_LAYER, FAKE_FAILS_COMMIT,
                                             FAKE_FAILS_OPEN, FAKE_WRONG_LENGTH};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        struct tally t;
        assert_int_equal(run(ROLE_PLAIN, faults[i], &t), -1);
        assert_int_equal(fake_leftovers(), 0);
    }
}

static void a_prompt_longer_than_the_model_is_refused(void **state) {
    (void)state;
    struct tally t = {0};
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
        cmocka_unit_test(a_token_matches_by_logit_and_by_choice),
        cmocka_unit_test(equal_logits_are_a_tie),
        cmocka_unit_test(a_failing_call_fails_the_role),
        cmocka_unit_test(a_prompt_longer_than_the_model_is_refused),
        cmocka_unit_test(a_cached_prompt_is_not_computed_again),
        cmocka_unit_test(a_wrong_match_is_noticed),
        cmocka_unit_test(roles_have_names),
    };
    return cmocka_run_group_tests_name("example roles", tests, setup, teardown);
}
