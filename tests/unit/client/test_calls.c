// SPDX-License-Identifier: Apache-2.0
// test_calls.c: one call at a time: replies good and bad, messages, struct sizes, lists.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <unistd.h>

static void a_ping_goes_round(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    uint64_t ns = 0;
    for (int i = 0; i < 100; i++) {
        expect(c, KVPOOL_OK, kvpool_ping(c, &ns));
        assert_true(ns > 0);
    }
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(fake_count(&kvd, PROTO_PING), 101);
    kvpool_close(c);
}

// --- replies that are wrong -------------------------------------------------------------------

static bool other_payload(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    struct proto_ping ping = {.payload = m->body.ping.payload + 1};
    fake_reply(f, c, &m->header, 0, &ping, sizeof ping, NULL, 0);
    return true;
}

static bool garbage(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_PING)
        return false;
    char noise[100];
    memset(noise, 0xA5, sizeof noise);
    fake_send(c, noise, sizeof noise);
    return true;
}

static bool no_sp(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_PING)
        return false;
    fake_send_raw(c, "HTTP/1.1 200 OK\r\n\r\n", 19);
    return true;
}

static bool over_long(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_PING)
        return false;
    uint8_t head[13] = {1, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0, 0, 0}; // 4 GiB follow
    fake_send_raw(c, head, sizeof head);
    return true;
}

static bool too_short(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    fake_reply(f, c, &m->header, 0, &m->body.ping, 4, NULL, 0);
    return true;
}

static bool other_op(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    struct proto_header h = m->header;
    h.op = PROTO_POOL_OPEN;
    fake_reply(f, c, &h, 0, &m->body.ping, sizeof m->body.ping, NULL, 0);
    return true;
}

static bool other_seq(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    struct proto_header h = m->header;
    h.seq += 5;
    fake_reply(f, c, &h, 0, &m->body.ping, sizeof m->body.ping, NULL, 0);
    return true;
}

static bool other_epoch(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    f->epoch += 7;
    fake_reply(f, c, &m->header, 0, &m->body.ping, sizeof m->body.ping, NULL, 0);
    f->epoch -= 7;
    return true;
}

static bool half_a_reply(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_PING)
        return false;
    uint8_t head[20] = {1, 0, 0, 0, 0, 0, 0, 0, 44, 0x80};
    fake_send_raw(c, head, sizeof head);
    fake_close(c);
    return true;
}

static bool hang_up(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_PING)
        return false;
    fake_close(c);
    return true;
}

struct bad_reply {
    const char *name;
    fake_hook hook;
    kvpool_status expected;
    const char *message;
};

// After each of them the connection is given up, and the next call works on a new one.
static void a_bad_reply_is_an_error_and_the_next_call_works(void **state) {
    (void)state;
    static const struct bad_reply cases[] = {
        {"payload", other_payload, KVPOOL_E_PROTO, "payload"},
        {"garbage", garbage, KVPOOL_E_PROTO, "magic"},
        {"no SP", no_sp, KVPOOL_E_CONN, "no SP message"},
        {"over-long", over_long, KVPOOL_E_CONN, "limit 65536"},
        {"short", too_short, KVPOOL_E_PROTO, "4 bytes"},
        {"op", other_op, KVPOOL_E_PROTO, "not PING"},
        {"seq", other_seq, KVPOOL_E_PROTO, "reply to request"},
        {"epoch", other_epoch, KVPOOL_E_CONN, "another instance"},
        {"half", half_a_reply, KVPOOL_E_CONN, "may or may not"},
        {"hang up", hang_up, KVPOOL_E_CONN, "may or may not"},
    };
    kvpool_client *c = fake_connect(&kvd, 3000);
    fake_pool(c);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_set_hook(&kvd, cases[i].hook);
        kvpool_status got = kvpool_ping(c, NULL);
        if (got != cases[i].expected)
            print_error("case %s\n", cases[i].name);
        expect(c, cases[i].expected, got);
        expect_message(c, cases[i].message);
        fake_set_hook(&kvd, NULL);
        expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    }
    // The session stayed the same all the time.
    assert_int_equal(kvd.sessions, 1);
    kvpool_seq seq;
    expect(c, KVPOOL_OK, kvpool_seq_create(c, 1, 1, &seq));
    kvpool_close(c);
}

static bool slow(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)c;
    return m->header.op == PROTO_PING && f->hook_state++ == 0;
}

static struct proto_header late_header;
static uint32_t late_id;
static bool late(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_PING)
        return false;
    if (f->hook_state++ == 0) {
        late_header = m->header;
        late_id = c->sp_id;
        return true;
    }
    // First the reply that nobody waits for any more, then the one that is.
    uint32_t id = c->sp_id;
    struct proto_ping old = {.payload = 1};
    c->sp_id = late_id;
    fake_reply(f, c, &late_header, 0, &old, sizeof old, NULL, 0);
    c->sp_id = id;
    return false;
}

static void a_slow_reply_is_a_timeout_and_nothing_breaks(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 60);
    fake_set_hook(&kvd, slow);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_ping(c, NULL));
    expect_message(c, "may still carry it out");
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    fake_set_hook(&kvd, late);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_ping(c, NULL));
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    assert_int_equal(kvd.hellos, 1); // on the same connection
    kvpool_close(c);
}

// --- errors of the daemon ---------------------------------------------------------------------

static bool refuse(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    switch (m->header.op) {
    case PROTO_STEP_BEGIN:
        fake_error(f, c, &m->header, KVPOOL_E_NOSPACE, 17, "17 pages are missing");
        return true;
    case PROTO_POOL_OPEN:
        fake_error(f, c, &m->header, KVPOOL_E_NOTFOUND, 0, "");
        return true;
    case PROTO_SEQ_STAT:
        fake_error(f, c, &m->header, -99, 0, "from the future");
        return true;
    case PROTO_POOL_DESTROY: // as a daemon answers what it cannot read
        fake_error(f, c, NULL, KVPOOL_E_PROTO, 0, "unreadable");
        return true;
    default:
        return false;
    }
}

static void an_error_comes_with_its_message_and_changes_no_output(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_pool pool = fake_pool(c), other = 5;
    kvpool_seq seq = 3;
    uint32_t tokens = 1;
    char text[256];
    assert_string_equal(kvpool_last_error(c, text, sizeof text), "");
    fake_set_hook(&kvd, refuse);

    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = pool;
    args.n = 1;
    args.seqs = &seq;
    args.new_tokens = &tokens;
    kvpool_step step = 77;
    uint64_t missing = 0;
    expect(c, KVPOOL_E_NOSPACE, kvpool_step_begin(c, &args, &step, &missing));
    assert_int_equal(missing, 17);
    assert_int_equal(step, 77);
    expect_message(c, "17 pages are missing");
    expect(c, KVPOOL_E_NOSPACE, kvpool_step_begin(c, &args, &step, NULL));

    expect(c, KVPOOL_E_NOTFOUND, kvpool_pool_open(c, "x", &other));
    assert_int_equal(other, 5);
    expect_message(c, "no such object"); // the status's text, in place of an empty one
    expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
    expect_message(c, "no such object"); // a success keeps it

    kvpool_seq_info info = {.size = sizeof info};
    expect(c, (kvpool_status)-99, kvpool_seq_stat(c, seq, &info));
    assert_string_equal(kvpool_strerror((kvpool_status)-99), "unknown status");
    expect(c, KVPOOL_E_PROTO, kvpool_pool_destroy(c, pool));
    expect_message(c, "unreadable");

    char small[5];
    assert_string_equal(kvpool_last_error(c, small, sizeof small), "unre");
    assert_ptr_equal(kvpool_last_error(c, small, 0), small);
    assert_null(kvpool_last_error(c, NULL, 10));
    kvpool_close(c);
}

static void *fail_elsewhere(void *arg) {
    kvpool_pool pool;
    char text[256];
    assert_string_equal(kvpool_last_error(arg, text, sizeof text), "");
    assert_int_equal(kvpool_pool_open(arg, "", &pool), KVPOOL_E_INVAL);
    assert_non_null(strstr(kvpool_last_error(arg, text, sizeof text), "empty"));
    return NULL;
}

static void messages_are_kept_per_thread_and_client(void **state) {
    (void)state;
    kvpool_client *a = fake_connect(&kvd, 0);
    kvpool_client *b = fake_connect(&kvd, 0);
    kvpool_pool pool;
    expect(a, KVPOOL_E_INVAL, kvpool_pool_open(a, NULL, &pool));
    expect(b, KVPOOL_E_INVAL, kvpool_pool_open(b, "", &pool));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, a), 0);
    pthread_join(thread, NULL);
    expect_message(a, "NULL");
    expect_message(b, "empty");
    kvpool_close(a);
    kvpool_close(b);
}

static bool wrong_counts(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_SEQ_CREATE)
        return false;
    uint64_t seqs[4] = {1, 2, 3, 4};
    struct proto_count count = {.count = f->hook_state++ == 0 ? 4 : 1};
    fake_reply(f, c, &m->header, 0, &count, sizeof count, seqs, count.count * sizeof seqs[0]);
    return true;
}

static void a_reply_with_another_count_is_refused(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    fake_set_hook(&kvd, wrong_counts);
    kvpool_seq seqs[3] = {9, 9, 9};
    expect(c, KVPOOL_E_PROTO, kvpool_seq_create(c, 1, 3, seqs));
    expect_message(c, "more than asked for");
    expect(c, KVPOOL_E_PROTO, kvpool_seq_create(c, 1, 3, seqs));
    expect_message(c, "made 1 sequences, not 3");
    assert_int_equal(seqs[0], 9);
    kvpool_close(c);
}

// --- arguments --------------------------------------------------------------------------------

static void handles_and_counts_go_to_the_daemon_as_given(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_pool pool = fake_pool(c);
    kvpool_seq seqs[3], forks[2];
    expect(c, KVPOOL_OK, kvpool_seq_create(c, pool, 3, seqs));
    assert_int_equal(seqs[2], kvd.epoch << 32 | 2);
    expect(c, KVPOOL_OK, kvpool_seq_fork(c, seqs[0], 2, forks));
    expect(c, KVPOOL_OK, kvpool_seq_truncate(c, seqs[0], 1));
    expect(c, KVPOOL_OK, kvpool_seq_free(c, 3, seqs));
    kvpool_seq_info seq = {.size = sizeof seq};
    expect(c, KVPOOL_OK, kvpool_seq_stat(c, 33, &seq));
    assert_int_equal(seq.seq, 33);
    assert_int_equal(seq.length, 12);
    kvpool_pool_info info = {.size = sizeof info};
    expect(c, KVPOOL_OK, kvpool_pool_stat(c, pool, &info));
    assert_string_equal(info.name, "pool");
    assert_int_equal(info.free_pages, 99);
    kvpool_stats stats = {.size = sizeof stats};
    expect(c, KVPOOL_OK, kvpool_get_stats(c, &stats));
    assert_int_equal(stats.uptime_ns, 5);
    assert_int_equal(stats.epoch, kvd.epoch);
    assert_true(stats.requests_per_s > 1.4 && stats.requests_per_s < 1.6);
    uint32_t tokens[3] = {4, 0, 6};
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = pool;
    args.n = 3;
    args.seqs = seqs;
    args.new_tokens = tokens;
    kvpool_step step;
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(kvd.last_begin.step, step);
    assert_int_equal(kvd.last_begin.pool, pool);
    assert_int_equal(kvd.last_items[2].seq, seqs[2]);
    assert_int_equal(kvd.last_items[2].tokens, 6);
    expect(c, KVPOOL_OK, kvpool_step_commit(c, step));
    expect(c, KVPOOL_OK, kvpool_step_abort(c, step));
    args.step = 1000;
    expect(c, KVPOOL_OK, kvpool_step_begin(c, &args, &step, NULL));
    assert_int_equal(step, 1000);
    assert_int_equal(kvpool_step_id(c), 1001); // an id that was used is not given out again
    expect(c, KVPOOL_OK, kvpool_pool_destroy(c, pool));
    kvpool_close(c);
}

static void bad_arguments_never_reach_the_daemon(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_seq seqs[2] = {1, 2};
    uint32_t tokens[2] = {1, 1}, n = 0, cursor = 0;
    kvpool_pool pool;
    kvpool_step step;
    expect(NULL, KVPOOL_E_INVAL, kvpool_ping(NULL, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_daemon(c, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_pool_create(c, NULL, &pool));
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    expect(c, KVPOOL_E_INVAL, kvpool_pool_create(c, &config, &pool)); // no name
    config.name = "p";
    expect(c, KVPOOL_E_INVAL, kvpool_pool_create(c, &config, NULL));
    config.size = 8;
    expect(c, KVPOOL_E_INVAL, kvpool_pool_create(c, &config, &pool));
    expect(c, KVPOOL_E_INVAL, kvpool_pool_open(c, "p", NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_pool_open(c, "12345678901234567890123456789012", &pool));
    expect(c, KVPOOL_E_INVAL, kvpool_pool_stat(c, 1, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_create(c, 1, 0, seqs));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_create(c, 1, 1001, seqs));
    expect_message(c, "1 to 1000");
    expect(c, KVPOOL_E_INVAL, kvpool_seq_create(c, 1, 1, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_fork(c, 1, UINT32_MAX, seqs));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_free(c, 0, seqs));
    expect(c, KVPOOL_E_INVAL, kvpool_seq_free(c, 1, NULL));
    kvpool_seq_info info = {.size = 1};
    expect(c, KVPOOL_E_INVAL, kvpool_seq_stat(c, 1, &info));
    kvpool_stats stats = {.size = 0};
    expect(c, KVPOOL_E_INVAL, kvpool_get_stats(c, &stats));

    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL)); // empty batch
    expect_message(c, "empty batch");
    args.n = 2;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    args.seqs = seqs;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    args.new_tokens = tokens;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, NULL, NULL));
    args.n = 1001;
    expect(c, KVPOOL_E_TOOBIG, kvpool_step_begin(c, &args, &step, NULL));
    args.n = 2;
    args.flags = 1;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    args.flags = 0;
    args.step = UINT64_MAX;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    args.size = 4;
    expect(c, KVPOOL_E_INVAL, kvpool_step_begin(c, &args, &step, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_step_commit(c, 0));
    expect(c, KVPOOL_E_INVAL, kvpool_step_abort(c, 0));

    kvpool_client_info clients[2] = {{.size = sizeof clients[0]}, {.size = 3}};
    expect(c, KVPOOL_E_INVAL, kvpool_list_clients(c, &cursor, 2, clients, &n));
    expect_message(c, "ret[1].size");
    expect(c, KVPOOL_E_INVAL, kvpool_list_clients(c, &cursor, 0, clients, &n));
    expect(c, KVPOOL_E_INVAL, kvpool_list_clients(c, NULL, 1, clients, &n));
    expect(c, KVPOOL_E_INVAL, kvpool_list_clients(c, &cursor, 1, clients, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_list_clients(c, &cursor, 1, NULL, &n));
    unsigned requests = 0;
    for (unsigned op = PROTO_PING; op < PROTO_FD_HELLO; op++)
        requests += fake_count(&kvd, (uint16_t)op);
    assert_int_equal(requests, 0);
    kvpool_close(c);
}

static void a_struct_of_a_newer_header_is_filled_as_far_as_known(void **state) {
    (void)state;
    struct newer {
        kvpool_pool_info known;
        uint64_t more;
    };
    kvpool_client *c = fake_connect(&kvd, 0);
    fake_set(&kvd, list_total, 3);
    struct newer one = {.known.size = sizeof one, .more = 0xABCD};
    expect(c, KVPOOL_OK, kvpool_pool_stat(c, 5, &one.known));
    assert_int_equal(one.known.pool, 5);
    assert_int_equal(one.known.size, sizeof one);
    assert_int_equal(one.more, 0xABCD);
    // Arrays have the caller's stride.
    struct newer many[4];
    memset(many, 0x11, sizeof many);
    for (int i = 0; i < 4; i++)
        many[i].known.size = sizeof many[0];
    uint32_t cursor = 0, n = 0;
    expect(c, KVPOOL_OK, kvpool_list_pools(c, &cursor, 4, &many[0].known, &n));
    assert_int_equal(n, 3);
    assert_string_equal(many[2].known.name, "pool2");
    assert_int_equal(many[2].more, 0x1111111111111111);
    kvpool_close(c);
}

static void lists_of_any_length_are_complete(void **state) {
    (void)state;
    enum { CAP = 150 };
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_seq_info *seqs = calloc(CAP, sizeof *seqs);
    for (unsigned i = 0; i < CAP; i++)
        seqs[i].size = sizeof seqs[i];
    static const uint32_t totals[] = {0, 1, 63, 64, 65, 149, 150, 151, 400};
    for (size_t t = 0; t < sizeof totals / sizeof totals[0]; t++) {
        fake_set(&kvd, list_total, totals[t]);
        uint32_t cursor = 0, n, seen = 0;
        do {
            expect(c, KVPOOL_OK, kvpool_list_seqs(c, &cursor, CAP, seqs, &n));
            for (uint32_t i = 0; i < n; i++)
                assert_int_equal(seqs[i].seq, ++seen);
        } while (n == CAP);
        assert_int_equal(seen, totals[t]);
    }
    fake_set(&kvd, list_total, 2);
    kvpool_client_info clients[3] = {
        {.size = sizeof clients[0]}, {.size = sizeof clients[0]}, {.size = sizeof clients[0]}};
    uint32_t cursor = 0, n = 0;
    expect(c, KVPOOL_OK, kvpool_list_clients(c, &cursor, 3, clients, &n));
    assert_int_equal(n, 2);
    assert_string_equal(clients[1].name, "client1");
    free(seqs);
    kvpool_close(c);
}

static bool tiny_messages(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_HELLO)
        return false;
    struct proto_hello_reply reply = {
        .version = 1, .max_message = 200, .max_batch = 1024, .max_inflight = 8};
    fake_reply(f, c, &m->header, 0, &reply, sizeof reply, NULL, 0);
    return true;
}

static void a_message_over_the_daemons_limit_is_not_sent(void **state) {
    (void)state;
    fake_set_hook(&kvd, tiny_messages);
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_seq seqs[100] = {0};
    expect(c, KVPOOL_E_TOOBIG, kvpool_seq_free(c, 100, seqs));
    expect(c, KVPOOL_OK, kvpool_seq_free(c, 3, seqs)); // its number was not used up
    assert_int_equal(fake_count(&kvd, PROTO_SEQ_FREE), 1);
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(a_ping_goes_round),
        T(a_bad_reply_is_an_error_and_the_next_call_works),
        T(a_slow_reply_is_a_timeout_and_nothing_breaks),
        T(an_error_comes_with_its_message_and_changes_no_output),
        T(messages_are_kept_per_thread_and_client),
        T(a_reply_with_another_count_is_refused),
        T(handles_and_counts_go_to_the_daemon_as_given),
        T(bad_arguments_never_reach_the_daemon),
        T(a_struct_of_a_newer_header_is_filled_as_far_as_known),
        T(lists_of_any_length_are_complete),
        T(a_message_over_the_daemons_limit_is_not_sent),
    };
    return cmocka_run_group_tests_name("client calls", tests, NULL, NULL);
}
