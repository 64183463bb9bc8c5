// SPDX-License-Identifier: Apache-2.0
// test_tokens.c: requests with token ids, up to the longest: prompts, and steps.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <unistd.h>

static uint32_t *make_ids(uint32_t n, uint32_t first) {
    uint32_t *ids = malloc(n * sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = first + i;
    return ids;
}

static kvpool_open_args open_args(const uint32_t *ids, uint32_t n) {
    kvpool_open_args args = KVPOOL_OPEN_ARGS_INIT;
    args.pool = 4;
    args.tokens = ids;
    args.n = n;
    return args;
}

// --- prompts ----------------------------------------------------------------------------------

static void the_longest_prompt_goes_in_one_request(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 20000);
    fake_set(&kvd, cached_tokens, UINT32_MAX);
    uint32_t *ids = make_ids(KVPOOL_MAX_TOKENS + 100, 0x80000000);
    kvpool_seq seq;
    uint32_t matched;
    static const uint32_t lengths[] = {16000, 16384, 50000, KVPOOL_MAX_TOKENS - 1,
                                       KVPOOL_MAX_TOKENS};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        kvpool_open_args args = open_args(ids, lengths[i]);
        expect(c, KVPOOL_OK, kvpool_seq_open_with(c, &args, &seq, &matched));
        assert_int_equal(matched, lengths[i]);
        assert_memory_equal(kvd.last_ids, ids, lengths[i] * sizeof *ids);
    }
    // Of a longer one the first tokens are looked up.
    kvpool_open_args args = open_args(ids, KVPOOL_MAX_TOKENS + 100);
    expect(c, KVPOOL_OK, kvpool_seq_match(c, &args, NULL, &matched));
    assert_int_equal(matched, KVPOOL_MAX_TOKENS);
    assert_memory_equal(kvd.last_ids, ids, KVPOOL_MAX_TOKENS * sizeof *ids);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL)); // and small ones behind it
    assert_int_equal(kvd.hellos, 1);
    free(ids);
    kvpool_close(c);
}

// Ids count up from the first, which is also how many the reply says to match.
static bool check_ids(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_SEQ_OPEN)
        return false;
    uint32_t first, id;
    memcpy(&first, m->tokens, sizeof first);
    for (uint32_t i = 0; i < m->num_tokens; i++) {
        memcpy(&id, m->tokens + i * sizeof id, sizeof id);
        if (id != first + i) {
            fake_error(f, c, &m->header, KVPOOL_E_INTERNAL, 0, "messages are mixed");
            return true;
        }
    }
    struct proto_seq_open_reply reply = {.matched = first};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

struct looker {
    kvpool_client *client;
    uint32_t first;
    unsigned failures;
};

static void *look_often(void *arg) {
    struct looker *self = arg;
    enum { N = 60000 };
    uint32_t *ids = make_ids(N, self->first);
    for (uint32_t i = 0; i < 20; i++) {
        kvpool_open_args args = open_args(ids, N - i * 1000);
        uint32_t matched = 0;
        self->failures += kvpool_seq_match(self->client, &args, NULL, &matched) != KVPOOL_OK;
        self->failures += matched != self->first;
        self->failures += kvpool_ping(self->client, NULL) != KVPOOL_OK;
    }
    free(ids);
    return NULL;
}

static void large_messages_of_several_threads_stay_whole(void **state) {
    (void)state;
    enum { THREADS = 4 };
    kvpool_client *c = fake_connect(&kvd, 20000);
    fake_set_hook(&kvd, check_ids);
    pthread_t threads[THREADS];
    struct looker lookers[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        lookers[i] = (struct looker){.client = c, .first = 100 + i};
        assert_int_equal(pthread_create(&threads[i], NULL, look_often, &lookers[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(lookers[i].failures, 0);
    }
    assert_int_equal(kvd.hellos, 1);
    kvpool_close(c);
}

// Half of a message is in the socket: the connection cannot go on.
static void a_large_message_that_stalls_costs_the_connection(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 200);
    uint32_t *ids = make_ids(KVPOOL_MAX_TOKENS, 1);
    kvpool_open_args args = open_args(ids, KVPOOL_MAX_TOKENS);
    uint32_t matched = 5;
    fake_set(&kvd, hold_reading, true);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_seq_match(c, &args, NULL, &matched));
    assert_int_equal(matched, 5);
    fake_set(&kvd, hold_reading, false);
    fake_wake(&kvd);
    for (unsigned i = 0; i < 50 && kvpool_ping(c, NULL) != KVPOOL_OK; i++)
        usleep(10000);
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.sessions, 1);
    assert_true(kvd.hellos > 1);
    assert_int_equal(fake_count(&kvd, PROTO_SEQ_OPEN), 0);
    free(ids);
    kvpool_close(c);
}

// --- steps ------------------------------------------------------------------------------------

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

static void a_step_carries_the_tokens_of_all_its_sequences(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_seq seqs[3] = {11, 12, 13};
    uint32_t new_tokens[3] = {4, 0, 6}, *ids = make_ids(10, 500);
    kvpool_step_args args = step_args(seqs, new_tokens, 3, ids);
    kvpool_step step;
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    const struct proto_step_begin_tokens *begin = &kvd.last_prefix.body.step_begin_tokens;
    assert_int_equal(begin->pool, 4);
    assert_int_equal(begin->step, step);
    assert_int_equal(begin->count, 3);
    assert_int_equal(begin->num_tokens, 10);
    assert_int_equal(kvd.last_items[2].seq, 13);
    assert_int_equal(kvd.last_items[2].tokens, 6);
    assert_memory_equal(kvd.last_ids, ids, 10 * sizeof *ids);
    // Without ids, or without tokens, it is a plain one.
    args.tokens = NULL;
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(kvd.last_begin.step, step);
    uint32_t none[3] = {0};
    args = step_args(seqs, none, 3, ids);
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(kvd.last_begin.step, step);
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN), 2);
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN_TOKENS), 1);
    free(ids);
    kvpool_close(c);
}

static void a_submitted_step_carries_tokens_too(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 20000);
    kvpool_pool pool = fake_pool(c);
    kvpool_region *region;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 1 << 16, &region));
    kvpool_seq seq = 1;
    uint32_t new_tokens = KVPOOL_MAX_TOKENS, *ids = make_ids(KVPOOL_MAX_TOKENS, 3);
    kvpool_step_args begin = step_args(&seq, &new_tokens, 1, ids);
    begin.pool = pool;
    begin.step = kvpool_step_id(c);
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    attn.step = begin.step;
    attn.qo_heads = 4;
    attn.q.region = attn.k.region = attn.v.region = attn.out.region = region;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    kvpool_op *ops[3];
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[0]));
    memset(ids, 0, KVPOOL_MAX_TOKENS * sizeof *ids); // they are the caller's again
    request.kind = KVPOOL_OP_PREFILL;
    request.attn = &attn;
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[1]));
    request.kind = KVPOOL_OP_COMMIT;
    request.step = begin.step;
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &ops[2]));
    for (int i = 0; i < 3; i++)
        expect(c, KVPOOL_OK, kvpool_wait(c, ops[i], UINT32_MAX));
    assert_int_equal(kvd.last_prefix.body.step_begin_tokens.step, begin.step);
    for (uint32_t i = 0; i < KVPOOL_MAX_TOKENS; i++)
        if (kvd.last_ids[i] != 3 + i)
            fail_msg("token %u is %u", i, kvd.last_ids[i]);
    assert_int_equal(kvd.last_attn.k.token_stride, 2 * 64); // the step's pool was known
    free(ids);
    kvpool_region_free(region);
    kvpool_close(c);
}

static void too_many_tokens_for_one_step_are_refused(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 20000);
    kvpool_seq seqs[2] = {1, 2};
    uint32_t new_tokens[2] = {KVPOOL_MAX_TOKENS, 1}, id = 1;
    kvpool_step_args args = step_args(seqs, new_tokens, 2, &id);
    kvpool_step step = 6;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    expect_message(c, "262145 tokens");
    new_tokens[0] = new_tokens[1] = UINT32_MAX; // the sum does not wrap
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(step, 6);
    args.step = 7;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &args};
    kvpool_op *op;
    expect(c, KVPOOL_E_INVAL, kvpool_submit(c, &request, &op));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN_TOKENS), 0);
    args.tokens = NULL; // without ids it is for the daemon to say
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    kvpool_close(c);
}

static bool break_once(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_STEP_BEGIN_TOKENS || f->hook_state++ > 0)
        return false;
    fake_close(c);
    return true;
}

static void a_begin_with_tokens_is_repeated_by_its_id(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 3000);
    kvpool_seq seq = 1;
    uint32_t new_tokens = 3, ids[3] = {1, 2, 3};
    kvpool_step_args args = step_args(&seq, &new_tokens, 1, ids);
    kvpool_step step = 0;
    fake_set_hook(&kvd, break_once);
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN_TOKENS), 2);
    assert_int_equal(kvd.last_prefix.body.step_begin_tokens.step, step);
    assert_int_equal(kvd.last_ids[2], 3);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

// As a program sees it that was built before `tokens` was there: what stands behind is not its.
static void step_args_without_tokens_are_understood(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    size_t size = offsetof(kvpool_step_args, tokens);
    kvpool_seq seq = 1;
    uint32_t new_tokens = 3;
    kvpool_step_args full = step_args(&seq, &new_tokens, 1, NULL);
    full.size = size;
    const volatile size_t older_size = size;      // the compiler need not know
    kvpool_step_args *older = malloc(older_size); // the sanitizer sees a read past it
    memcpy((void *)older, &full, size);
    kvpool_step step;
    expect(c, KVPOOL_OK, kvpool_step_begin(c, older, &step, NULL));
    assert_int_equal(kvd.last_begin.step, step);
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = older};
    kvpool_op *op;
    older->step = kvpool_step_id(c);
    expect(c, KVPOOL_OK, kvpool_submit(c, &request, &op));
    expect(c, KVPOOL_OK, kvpool_wait(c, op, UINT32_MAX));
    assert_int_equal(kvd.last_begin.step, older->step);
    free(older);
    full.tokens = &new_tokens; // not looked at
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &full, &step, NULL));
    assert_int_equal(fake_count(&kvd, PROTO_STEP_BEGIN_TOKENS), 0);
    full.size = size + 1;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &full, &step, NULL));
    full.size = size - 1;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &full, &step, NULL));
    expect_message(c, "args.size");
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(the_longest_prompt_goes_in_one_request),
        T(large_messages_of_several_threads_stay_whole),
        T(a_large_message_that_stalls_costs_the_connection),
        T(a_step_carries_the_tokens_of_all_its_sequences),
        T(a_submitted_step_carries_tokens_too),
        T(too_many_tokens_for_one_step_are_refused),
        T(a_begin_with_tokens_is_repeated_by_its_id),
        T(step_args_without_tokens_are_understood),
    };
    return cmocka_run_group_tests_name("client tokens", tests, NULL, NULL);
}
