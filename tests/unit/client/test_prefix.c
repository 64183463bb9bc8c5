// SPDX-License-Identifier: Apache-2.0
// test_prefix.c: prefix sharing as the library sees it: what is sent, what comes back, and what is
// refused before it is sent.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

static kvpool_open_args open_args(const uint32_t *ids, uint32_t n) {
    kvpool_open_args args = KVPOOL_OPEN_ARGS_INIT;
    args.pool = 4;
    args.tokens = ids;
    args.n = n;
    return args;
}

static kvpool_step_args step_args(const kvpool_seq *seqs, const uint32_t *new_tokens, uint32_t n,
                                  const uint32_t *ids) {
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = 4;
    args.n = n;
    args.seqs = seqs;
    args.new_tokens = new_tokens;
    args.tokens = ids;
    return args;
}

// --- sequences opened on tokens ---------------------------------------------------------------

static void a_prompt_opens_a_sequence_on_what_is_cached(void **state) {
    (void)state;
    enum { N = 100 };
    kvpool_client *c = fake_connect(&kvd, 0);
    fake_set(&kvd, cached_tokens, 64);
    uint32_t ids[N];
    for (uint32_t i = 0; i < N; i++)
        ids[i] = 7000 + i;
    kvpool_open_args args = open_args(ids, N);
    kvpool_seq seq = 1;
    uint32_t matched = 1;
    expect(c, KVPOOL_OK, kvpool_seq_open_with(c, &args, &seq, &matched));
    assert_int_equal(matched, 64);
    assert_int_equal(seq, kvd.epoch << 32 | 77);
    const struct proto_seq_open *open = &kvd.last_prefix.body.seq_open;
    assert_int_equal(open->pool, 4);
    assert_int_equal(open->num_tokens, N);
    assert_int_equal(open->flags, 0);
    assert_int_equal(open->priority, KVPOOL_PRIORITY_NORMAL);
    assert_int_equal(open->extra_size, 0);
    assert_memory_equal(kvd.last_ids, ids, sizeof ids);

    char extra[KVPOOL_EXTRA_MAX];
    memset(extra, 'x', sizeof extra);
    args.extra = extra;
    args.extra_size = sizeof extra;
    args.priority = KVPOOL_PRIORITY_HIGH;
    expect(c, KVPOOL_OK, kvpool_seq_open_with(c, &args, &seq, &matched));
    assert_int_equal(open->priority, KVPOOL_PRIORITY_HIGH);
    assert_int_equal(open->extra_size, sizeof extra);
    assert_memory_equal(open->extra, extra, sizeof extra);

    args = open_args(NULL, 0); // an empty prompt is one
    expect(c, KVPOOL_OK, kvpool_seq_open_with(c, &args, &seq, &matched));
    assert_int_equal(matched, 0);
    assert_int_equal(open->num_tokens, 0);
    kvpool_close(c);
}

static void a_match_makes_a_sequence_only_of_something(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    uint32_t ids[10] = {1, 2, 3};
    kvpool_open_args args = open_args(ids, 10);
    kvpool_seq seq = 9;
    uint32_t matched = 9;
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, &seq, &matched));
    assert_int_equal(seq, 0);
    assert_int_equal(matched, 0);
    assert_int_equal(kvd.last_prefix.body.seq_open.flags, PROTO_OPEN_MATCHED);
    fake_set(&kvd, cached_tokens, 8);
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, &seq, &matched));
    assert_int_equal(seq, kvd.epoch << 32 | 77);
    assert_int_equal(matched, 8);
    matched = 0;
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, NULL, &matched));
    assert_int_equal(matched, 8);
    assert_int_equal(kvd.last_prefix.body.seq_open.flags, PROTO_OPEN_PROBE);
    kvpool_close(c);
}

static void a_sequence_opened_on_tokens_can_be_lost(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    fake_set(&kvd, cached_tokens, 8);
    uint32_t ids[10] = {0}, matched;
    kvpool_open_args args = open_args(ids, 10);
    kvpool_seq seq;
    // Looking gives no handle, a sequence is one.
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, NULL, &matched));
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, &seq, &matched));
    fake_stop(&kvd);
    fake_start(&kvd);
    expect(c, KVPOOL_E_LOST, kvpool_seq_match(c, &args, &seq, &matched));
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, &seq, &matched));
    kvpool_close(c);
}

// --- the other calls --------------------------------------------------------------------------

static void the_other_calls_go_to_the_daemon_as_given(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    const struct proto_msg *last = &kvd.last_prefix;
    kvpool_seq seqs[3] = {5, 6, 7};
    expect(c, KVPOOL_OK, kvpool_seq_release(c, 3, seqs, KVPOOL_FREE_DROP));
    assert_int_equal(last->header.op, PROTO_SEQ_RELEASE);
    assert_int_equal(last->body.seq_release.count, 3);
    assert_int_equal(last->body.seq_release.hint, KVPOOL_FREE_DROP);
    expect(c, KVPOOL_OK, kvpool_seq_release(c, 1, seqs, KVPOOL_FREE_KEEP));
    assert_int_equal(last->body.seq_release.hint, KVPOOL_FREE_KEEP);
    expect(c, KVPOOL_OK, kvpool_seq_set_priority(c, 6, KVPOOL_PRIORITY_LOW));
    assert_int_equal(last->body.seq_priority.seq, 6);
    assert_int_equal(last->body.seq_priority.priority, KVPOOL_PRIORITY_LOW);
    expect(c, KVPOOL_OK, kvpool_seq_set_priority(c, 6, KVPOOL_PRIORITY_HIGH));
    assert_int_equal(last->body.seq_priority.priority, KVPOOL_PRIORITY_HIGH);

    uint64_t pin = 0;
    uint32_t tokens = 0, pages = 0;
    expect(c, KVPOOL_OK, kvpool_prefix_pin(c, 7, 50, 60000, &pin, &tokens));
    assert_int_equal(last->body.prefix_pin.seq, 7);
    assert_int_equal(last->body.prefix_pin.tokens, 50);
    assert_int_equal(last->body.prefix_pin.ttl_ms, 60000);
    assert_int_equal(pin, 555);
    assert_int_equal(tokens, 48);
    expect(c, KVPOOL_OK, kvpool_prefix_pin(c, 7, 0, 1, NULL, NULL));
    assert_int_equal(last->body.prefix_pin.tokens, 0);
    expect(c, KVPOOL_OK, kvpool_prefix_unpin(c, 4, pin));
    assert_int_equal(last->body.prefix_unpin.pool, 4);
    assert_int_equal(last->body.prefix_unpin.pin, 555);
    expect(c, KVPOOL_OK, kvpool_cache_clear(c, 4, &pages));
    assert_int_equal(last->body.handle.handle, 4);
    assert_int_equal(pages, 21);
    expect(c, KVPOOL_OK, kvpool_cache_clear(c, 4, NULL));
    kvpool_close(c);
}

static void usage_is_listed_per_namespace(void **state) {
    (void)state;
    enum { CAP = 70 }; // more than are asked for at once
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_usage *usage = calloc(CAP, sizeof *usage);
    for (unsigned i = 0; i < CAP; i++)
        usage[i].size = sizeof usage[i];
    uint32_t cursor = 0, n = 0;
    fake_set(&kvd, list_total, CAP + 3);
    expect(c, KVPOOL_OK, kvpool_list_usage(c, 4, &cursor, CAP, usage, &n));
    assert_int_equal(n, CAP);
    assert_int_equal(kvd.last_prefix.body.pool_usage.pool, 4);
    const kvpool_usage *u = &usage[69];
    assert_string_equal(u->name, "ns69");
    assert_string_equal(u->group, "all");
    const uint64_t got[] = {u->num_pages,  u->free_pages,  u->reserve, u->limit,
                            u->weight,     u->active,      u->cached,  u->seqs,
                            u->hit_tokens, u->miss_tokens, u->sealed,  u->deduplicated,
                            u->evicted,    u->dropped};
    for (unsigned i = 0; i < sizeof got / sizeof got[0]; i++)
        assert_int_equal(got[i], i + 1);
    assert_int_equal(u->refused, 15 + 69);
    expect(c, KVPOOL_OK, kvpool_list_usage(c, 4, &cursor, CAP, usage, &n));
    assert_int_equal(n, 3);
    assert_string_equal(usage[2].name, "ns72");
    assert_int_equal(usage[2].size, sizeof *usage);
    free(usage);
    kvpool_close(c);
}

// --- what is refused --------------------------------------------------------------------------

// Every call that needs the ability; what it would write is asserted to stay.
static void expect_all(kvpool_client *c, kvpool_status expected) {
    uint32_t ids[3] = {1, 2, 3}, new_tokens = 3, matched = 91, tokens = 92, pages = 93, n = 94;
    uint32_t cursor = 0;
    kvpool_seq seq = 95, one = 1;
    uint64_t pin = 96;
    kvpool_step step = 97;
    kvpool_op *op = NULL;
    kvpool_usage usage = {.size = sizeof usage};
    kvpool_open_args open = open_args(ids, 3);
    kvpool_step_args begin = step_args(&one, &new_tokens, 1, ids);
    expect(c, expected, kvpool_seq_open_with(c, &open, &seq, &matched));
    expect(c, expected, kvpool_seq_match(c, &open, &seq, &matched));
    expect(c, expected, kvpool_seq_match(c, &open, NULL, &matched));
    expect(c, expected, kvpool_seq_release(c, 1, &one, KVPOOL_FREE_KEEP));
    expect(c, expected, kvpool_seq_set_priority(c, one, KVPOOL_PRIORITY_LOW));
    expect(c, expected, kvpool_prefix_pin(c, one, 0, 1, &pin, &tokens));
    expect(c, expected, kvpool_prefix_unpin(c, 4, 5));
    expect(c, expected, kvpool_cache_clear(c, 4, &pages));
    expect(c, expected, kvpool_list_usage(c, 4, &cursor, 1, &usage, &n));
    expect(c, expected, kvpool_step_begin(c, &begin, &step, NULL));
    begin.step = kvpool_step_id(c);
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    kvpool_status submitted = kvpool_submit(c, &request, &op);
    expect(c, expected, submitted == KVPOOL_OK ? kvpool_wait(c, op, UINT32_MAX) : submitted);
    assert_int_equal(matched, 91);
    assert_int_equal(tokens, 92);
    assert_int_equal(pages, 93);
    assert_int_equal(n, 94);
    assert_int_equal(seq, 95);
    assert_int_equal(pin, 96);
    assert_int_equal(step, 97);
    assert_int_equal(cursor, 0);
}

static unsigned prefix_requests(void) {
    unsigned requests = 0;
    for (unsigned op = PROTO_SEQ_OPEN; op <= PROTO_CACHE_CLEAR; op++)
        requests += fake_count(&kvd, (uint16_t)op);
    return requests;
}

static void a_daemon_without_prefix_sharing_is_not_asked(void **state) {
    (void)state;
    kvd.features = PROTO_FEATURES & ~PROTO_FEATURE_PREFIX; // before any connection
    kvpool_client *c = fake_connect(&kvd, 0);
    expect_all(c, KVPOOL_E_UNSUPPORTED);
    expect_message(c, "no prefix sharing");
    assert_int_equal(prefix_requests(), 0);
    // The daemon's successor has it.
    fake_stop(&kvd);
    kvd.features = PROTO_FEATURES;
    fake_start(&kvd);
    expect(c, KVPOOL_OK, kvpool_cache_clear(c, 4, NULL));
    kvpool_close(c);
}

static bool refuse(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op < PROTO_SEQ_OPEN || m->header.op > PROTO_CACHE_CLEAR)
        return false;
    fake_error(f, c, &m->header, f->hook_state, 0, "for a reason");
    return true;
}

static void an_error_of_the_daemon_changes_no_output(void **state) {
    (void)state;
    static const kvpool_status statuses[] = {KVPOOL_E_STALE, KVPOOL_E_PERM, KVPOOL_E_LIMIT,
                                             KVPOOL_E_STATE, KVPOOL_E_AGAIN};
    kvpool_client *c = fake_connect(&kvd, 0);
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        fake_set_hook(&kvd, refuse);
        fake_set(&kvd, hook_state, statuses[i]);
        expect_all(c, statuses[i]);
        expect_message(c, "for a reason");
    }
    kvpool_close(c);
}

static void bad_arguments_never_reach_the_daemon(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    uint32_t ids[3] = {1, 2, 3}, matched, n, cursor = 0;
    kvpool_seq seq = 1;
    kvpool_open_args args = open_args(ids, 3);
    kvpool_usage usage[2] = {{.size = sizeof usage[0]}, {.size = 7}};
    expect(c, KVPOOL_E_INVAL, kvpool_seq_open_with(c, &args, NULL, &matched));
    expect_message(c, "ret_seq");
    expect(c, KVPOOL_E_INVAL, kvpool_seq_open_with(c, &args, &seq, NULL));
    expect_message(c, "ret_matched");
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, NULL, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, NULL, NULL, &matched));
    args.flags = 2;
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "flags 0x2");
    args.flags = 0;
    args.priority = KVPOOL_PRIORITY_HIGH + 1;
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "priority");
    args.priority = 0;
    args.extra_size = 1;
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "extra is NULL");
    char extra[KVPOOL_EXTRA_MAX + 1] = {0};
    args.extra = extra;
    args.extra_size = sizeof extra;
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "limit is 64");
    args = open_args(NULL, 1);
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "tokens is NULL");
    args.size--;
    expect(c, KVPOOL_E_INVAL, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "args.size");
    expect(c, KVPOOL_E_INVAL, kvpool_seq_release(c, 0, &seq, KVPOOL_FREE_KEEP));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_release(c, 1, NULL, KVPOOL_FREE_KEEP));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_release(c, 1001, &seq, KVPOOL_FREE_KEEP));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_release(c, 1, &seq, (kvpool_free_hint)2));
    expect_message(c, "hint is 2");
    expect(c, KVPOOL_E_INVAL, kvpool_seq_set_priority(c, 1, (kvpool_priority)3));
    expect_message(c, "priority is 3");
    expect(c, KVPOOL_E_INVAL, kvpool_prefix_pin(c, 1, 0, 0, NULL, NULL));
    expect_message(c, "ttl_ms");
    expect(c, KVPOOL_E_INVAL, kvpool_list_usage(c, 4, NULL, 1, usage, &n));
    expect(c, KVPOOL_E_INVAL, kvpool_list_usage(c, 4, &cursor, 1, usage, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_list_usage(c, 4, &cursor, 0, usage, &n));
    expect(c, KVPOOL_E_INVAL, kvpool_list_usage(c, 4, &cursor, 1, NULL, &n));
    expect(c, KVPOOL_E_INVAL, kvpool_list_usage(c, 4, &cursor, 2, usage, &n));
    expect(NULL, KVPOOL_E_INVAL, kvpool_seq_open_with(NULL, &args, &seq, &matched));
    expect(NULL, KVPOOL_E_INVAL, kvpool_seq_match(NULL, &args, &seq, &matched));
    expect(NULL, KVPOOL_E_INVAL, kvpool_seq_release(NULL, 1, &seq, KVPOOL_FREE_KEEP));
    expect(NULL, KVPOOL_E_INVAL, kvpool_seq_set_priority(NULL, 1, KVPOOL_PRIORITY_LOW));
    expect(NULL, KVPOOL_E_INVAL, kvpool_prefix_pin(NULL, 1, 0, 1, NULL, NULL));
    expect(NULL, KVPOOL_E_INVAL, kvpool_prefix_unpin(NULL, 4, 1));
    expect(NULL, KVPOOL_E_INVAL, kvpool_cache_clear(NULL, 4, NULL));
    expect(NULL, KVPOOL_E_INVAL, kvpool_list_usage(NULL, 4, &cursor, 1, usage, &n));
    assert_int_equal(prefix_requests(), 0);
    kvpool_close(c);
}

static struct proto_seq_open_reply wrong; // what the daemon answers
static bool answer_wrong(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_SEQ_OPEN)
        return false;
    fake_reply(f, c, &m->header, 0, &wrong, sizeof wrong, NULL, 0);
    return true;
}

static void a_reply_that_contradicts_its_request_is_refused(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    uint32_t ids[3] = {1, 2, 3}, matched = 91;
    kvpool_seq seq = 95;
    kvpool_open_args args = open_args(ids, 3);
    wrong = (struct proto_seq_open_reply){.seq = 1, .matched = 4};
    fake_set_hook(&kvd, answer_wrong);
    expect(c, KVPOOL_E_PROTO, kvpool_seq_open_with(c, &args, &seq, &matched));
    expect_message(c, "4 tokens of 3");
    wrong = (struct proto_seq_open_reply){.seq = 0, .matched = 3};
    fake_set_hook(&kvd, answer_wrong);
    expect(c, KVPOOL_E_PROTO, kvpool_seq_open_with(c, &args, &seq, &matched));
    expect_message(c, "made no sequence");
    expect(c, KVPOOL_E_PROTO, kvpool_seq_match(c, &args, &seq, &matched));
    wrong = (struct proto_seq_open_reply){.seq = 1, .matched = 0};
    fake_set_hook(&kvd, answer_wrong);
    expect(c, KVPOOL_E_PROTO, kvpool_seq_match(c, &args, &seq, &matched));
    expect_message(c, "made a sequence for 0");
    wrong = (struct proto_seq_open_reply){.seq = 1, .matched = 2};
    fake_set_hook(&kvd, answer_wrong);
    expect(c, KVPOOL_E_PROTO, kvpool_seq_match(c, &args, NULL, &matched));
    assert_int_equal(matched, 91);
    assert_int_equal(seq, 95);
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(a_prompt_opens_a_sequence_on_what_is_cached),
        T(a_match_makes_a_sequence_only_of_something),
        T(a_sequence_opened_on_tokens_can_be_lost),
        T(the_other_calls_go_to_the_daemon_as_given),
        T(usage_is_listed_per_namespace),
        T(a_daemon_without_prefix_sharing_is_not_asked),
        T(an_error_of_the_daemon_changes_no_output),
        T(bad_arguments_never_reach_the_daemon),
        T(a_reply_that_contradicts_its_request_is_refused),
    };
    return cmocka_run_group_tests_name("client prefix", tests, NULL, NULL);
}
