// SPDX-License-Identifier: Apache-2.0
// test_observe.c: a whole dispatch as monitoring sees it, over HTTP: the figures of real work, a
// device that stands still, the events of real pages.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker.h"

#include "daemon/events.h"
#include "daemon/http.h"
#include "tests/unit/daemon/httpget.h"
#include "tests/unit/daemon/promcheck.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { DEADLINE_MS = 500, PAGE = 8 };

static struct {
    struct health health;
    struct http *http;
    struct events *events;
    uv_timer_t beat;
    char *text; // the last scrape
} t;

struct ask {
    const char *path;
    struct http_reply reply;
    atomic_bool done;
};

static void on_beat(uv_timer_t *timer) {
    (void)timer;
    health_beat(&t.health);
}

static void on_metrics(void *arg, struct text *text) {
    struct events_range range;
    events_range(t.events, &range);
    dispatch_metrics(arg, range.newest, text);
}

static int open_observers(void) {
    struct err err;
    memset(&t, 0, sizeof t);
    assert_int_equal(events_open(1000, true, dispatch_epoch(fx.d), &t.events, &err), 0);
    dispatch_observe(fx.d, events_observe, t.events);
    health_init(&t.health, DEADLINE_MS, dispatch_stalled_since, fx.d);
    uv_timer_init(&fx.loop, &t.beat);
    uv_timer_start(&t.beat, on_beat, 0, 50);
    assert_int_equal(
        http_open(&fx.loop, "127.0.0.1:0", false, &t.health, on_metrics, fx.d, &t.http, &err), 0);
    return 0;
}

static int setup(void **state) {
    worker_setup(state);
    return open_observers();
}

// With as few open steps as the next test can fill.
static int setup_few_steps(void **state) {
    (void)state;
    fixture_init(&fx);
    fx.config.limits.max_steps = 2;
    fx.config.limits.max_session_steps = 2;
    fixture_start(&fx);
    client_open(&fx, &me, 1);
    pool = make_pool(&fx, &me, "pool", 32);
    make_seqs(&fx, &me, pool, 4, seqs);
    region = client_region(&fx, &me, REGION_BYTES, (void **)&data);
    return open_observers();
}

static int teardown(void **state) {
    assert_true(http_close(t.http));
    uv_close((uv_handle_t *)&t.beat, NULL);
    worker_teardown(state);
    events_close(t.events);
    free(t.text);
    return 0;
}

static void *ask_thread(void *arg) {
    struct ask *ask = arg;
    http_request(http_port(t.http), "GET", ask->path, &ask->reply);
    atomic_store(&ask->done, true);
    return NULL;
}

static bool is_done(void *arg) {
    return atomic_load(&((struct ask *)arg)->done);
}

// The status; *ret (may be NULL) is the body, to be freed.
static int ask(const char *path, char **ret) {
    struct ask ask = {.path = path};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, ask_thread, &ask), 0);
    pump_until(&fx, is_done, &ask);
    pthread_join(thread, NULL);
    if (ret != NULL)
        *ret = ask.reply.body;
    else
        free(ask.reply.body);
    return ask.reply.status;
}

static const char *scrape(void) {
    free(t.text);
    assert_int_equal(ask("/metrics", &t.text), 200);
    assert_string_equal(prom_check(t.text), "");
    return t.text;
}

static double value(const char *series) {
    double ret = -1;
    if (!prom_value(t.text, series, &ret))
        fail_msg("%s is not there", series);
    return ret;
}

// One step of one sequence with token ids first, first + 1, ...
static void seal(uint64_t step, uint64_t seq, uint32_t tokens, uint32_t first) {
    struct {
        struct proto_batch_item item;
        uint32_t ids[16];
    } records = {.item = {.seq = seq, .tokens = tokens}};
    struct proto_step_begin_tokens b = {
        .pool = pool, .step = step, .count = 1, .num_tokens = tokens};
    for (uint32_t i = 0; i < tokens; i++)
        records.ids[i] = first + i;
    assert_int_equal(call(&fx, &me, PROTO_STEP_BEGIN_TOKENS, &b, sizeof b, &records,
                          sizeof records.item + tokens * sizeof(uint32_t), NULL, NULL),
                     0);
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct proto_attn a = append_attn(step, layer);
        assert_int_equal(attn(PROTO_APPEND, &a, NULL, NULL), 0);
    }
    assert_int_equal(commit(step), 0);
}

static void what_nng_keeps_of_listeners_is_leaked(void **state) {
    (void)state;
    struct proto_stats s;
    server_keeps(14);
    assert_int_equal(client_stats(&fx, &me, &s), 0);
    assert_int_equal(s.leaked_pipes, 14);
    scrape();
    assert_true(value("kvpool_leaked_pipes") == 14);
    assert_int_equal(dispatch_leaked_pipes(fx.d), 14);
    server_keeps(0);
}

static void the_figures_are_those_of_the_work(void **state) {
    (void)state;
    scrape();
    unsigned series = prom_count(t.text);
    assert_true(value("kvpool_step_seconds_count") == 0);
    assert_true(value("kvpool_clients") == 1);
    seal(1, seqs[0], 2 * PAGE, 100);
    seal(2, seqs[1], 2 * PAGE, 100); // the same tokens: both pages are duplicates
    assert_int_equal(begin_one(3, seqs[2], 1), 0);
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 3, NULL), 0);
    assert_int_equal(begin_one(4, seqs[2], 32 * PAGE), KVPOOL_E_NOSPACE);
    assert_int_equal(begin_one(5, seqs[2], 1), 0);
    scrape();
    assert_int_equal(prom_count(t.text), series);
#define NS "{pool=\"pool\",namespace=\"default\"}"
    assert_true(value("kvpool_sealed_pages_total" NS) == 2);
    assert_true(value("kvpool_deduplicated_pages_total" NS) == 2);
    assert_true(value("kvpool_refused_total" NS) == 1);
    assert_true(value("kvpool_namespace_sequences" NS) == 4);
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"sealed\"}") == 2);
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"shared\"}") == 2);
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"active\"}") == 3);
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"free\"}") == 29);
    assert_true(value("kvpool_pool_sequences{pool=\"pool\"}") == 4);
    assert_true(value("kvpool_namespace_pages{pool=\"pool\",namespace=\"default\","
                      "state=\"active\"}") == 3);
    assert_true(value("kvpool_open_steps") == 1);
    assert_true(value("kvpool_commits_total") == 2);
    assert_true(value("kvpool_aborts_total") == 1);
    assert_true(value("kvpool_tokens_total") == 4 * PAGE);
    assert_true(value("kvpool_step_seconds_count") == 2);
    assert_true(value("kvpool_step_seconds_sum") > 0);
    assert_true(value("kvpool_run_seconds_count{kind=\"append\"}") == 4);
    assert_true(value("kvpool_queue_wait_seconds_count{kind=\"append\"}") == 4);
    assert_true(value("kvpool_requests_total{op=\"STEP_COMMIT\",status=\"KVPOOL_OK\"}") == 2);
    assert_true(value("kvpool_requests_total{op=\"STEP_BEGIN\",status=\"KVPOOL_E_NOSPACE\"}") == 1);
    assert_true(value("kvpool_requests_total{op=\"FD_HELLO\",status=\"KVPOOL_OK\"}") +
                    value("kvpool_requests_total{op=\"FD_OPEN\",status=\"KVPOOL_OK\"}") ==
                1);
    assert_true(value("kvpool_events_total") == 3); // Started, two pages
    // What is free is cached, until it is dropped.
    assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, 5, NULL), 0);
    assert_int_equal(free_seqs(4, seqs), 0);
    scrape();
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"cached\"}") == 2);
    struct proto_msg reply;
    struct proto_handle handle = {.handle = pool};
    assert_int_equal(
        call(&fx, &me, PROTO_CACHE_CLEAR, &handle, sizeof handle, NULL, 0, &reply, NULL), 0);
    scrape();
    assert_true(value("kvpool_dropped_pages_total" NS) == 2);
    assert_true(value("kvpool_pool_pages{pool=\"pool\",state=\"free\"}") == 32);
    assert_int_equal(prom_count(t.text), series);
}

static bool no_steps(void *arg) {
    struct core_totals totals;
    (void)arg;
    core_totals(fx.d->core, &totals);
    return totals.steps == 0;
}

static void steps_that_ended_otherwise_take_no_room_from_others(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 5; i++) { // more than can be timed at once
        struct client other = {0};
        uint64_t seq;
        client_open(&fx, &other, 2 + i);
        make_seqs(&fx, &other, pool, 1, &seq);
        assert_int_equal(begin(&fx, &other, 77, pool, 1, &seq, 1, NULL), 0);
        client_bye(&fx, &other);
        pump_until(&fx, no_steps, NULL);
    }
    scrape();
    assert_true(value("kvpool_open_steps") == 0);
    assert_true(value("kvpool_step_seconds_count") == 0);
    for (uint64_t step = 100; step < 105; step++) { // nor do those that are aborted
        assert_int_equal(begin_one(step, seqs[0], 1), 0);
        assert_int_equal(by_handle(&fx, &me, PROTO_STEP_ABORT, step, NULL), 0);
    }
    seal(77, seqs[0], PAGE, 1);
    scrape();
    assert_true(value("kvpool_step_seconds_count") == 1);
}

static void a_device_that_stands_still_is_red(void **state) {
    char *body;
    (void)state;
    assert_int_equal(ask("/healthz", NULL), 200);
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    backend_hold(true);
    struct proto_attn a = append_attn(1, 0);
    struct call *waiting = attn_start(PROTO_APPEND, &a);
    pump(&fx, 50);
    assert_int_equal(ask("/healthz", NULL), 200); // not yet
    pump(&fx, 2 * DEADLINE_MS);
    assert_int_equal(ask("/healthz", &body), 503);
    assert_non_null(strstr(body, "the device thread has not advanced for "));
    free(body);
    assert_int_equal(ask("/metrics", NULL), 200);
    backend_hold(false);
    assert_int_equal(call_end(&fx, waiting, NULL, NULL), 0);
    assert_int_equal(ask("/healthz", NULL), 200);
}

static const char *line_of(uint64_t seq) {
    static char lines[4][EVENTS_LINE_BYTES];
    char *line = lines[seq % 4];
    uint64_t next;
    size_t len = events_read(t.events, seq, 1, line, EVENTS_LINE_BYTES, &next);
    line[len > 0 ? len - 1 : 0] = '\0';
    return line;
}

static void hash_of(const char *line, const char *key, char ret[33]) {
    const char *at = strstr(line, key);
    assert_non_null(at);
    memcpy(ret, at + strlen(key), 32);
    ret[32] = '\0';
    assert_int_equal(strspn(ret, "0123456789abcdef"), 32);
}

static void pages_that_come_and_go_are_events(void **state) {
    char first[33], second[33], parent[33], gone[33];
    struct events_range range;
    (void)state;
    seal(1, seqs[0], 2 * PAGE, 100);
    seal(2, seqs[1], 2 * PAGE, 100); // duplicates: no events
    events_range(t.events, &range);
    assert_int_equal(range.newest, 3);
    hash_of(line_of(2), "\"block_hashes\":[\"", first);
    hash_of(line_of(3), "\"block_hashes\":[\"", second);
    hash_of(line_of(3), "\"parent_block_hash\":\"", parent);
    assert_string_equal(first, parent);
    assert_string_not_equal(first, second);
    assert_non_null(strstr(line_of(2), "\"type\":\"BlockStored\""));
    assert_non_null(strstr(line_of(2), "\"parent_block_hash\":null,\"token_ids\":"
                                       "[100,101,102,103,104,105,106,107],\"block_size\":8,"));
    assert_non_null(strstr(line_of(3), "\"token_ids\":[108,109,110,111,112,113,114,115],"));
    assert_non_null(strstr(line_of(3), ",\"pool\":\"pool\",\"namespace\":\"default\"}"));
    // Children go before their parents.
    struct proto_handle handle = {.handle = pool};
    assert_int_equal(free_seqs(4, seqs), 0);
    assert_int_equal(call(&fx, &me, PROTO_CACHE_CLEAR, &handle, sizeof handle, NULL, 0, NULL, NULL),
                     0);
    assert_non_null(strstr(line_of(4), "\"type\":\"BlockRemoved\""));
    hash_of(line_of(4), "\"block_hashes\":[\"", gone);
    assert_string_equal(gone, second);
    hash_of(line_of(5), "\"block_hashes\":[\"", gone);
    assert_string_equal(gone, first);
    assert_non_null(strstr(line_of(5), ",\"pool\":\"pool\",\"namespace\":\"default\"}"));
    assert_int_equal(by_handle(&fx, &me, PROTO_POOL_DESTROY, pool, NULL), 0);
    events_range(t.events, &range);
    assert_non_null(
        strstr(line_of(range.newest), "\"type\":\"AllBlocksCleared\",\"pool\":\"pool\"}"));
    assert_int_equal(range.newest, 6);
    scrape();
    assert_false(prom_has(t.text, "kvpool_pool_pages"));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(what_nng_keeps_of_listeners_is_leaked),
        TEST(the_figures_are_those_of_the_work),
        cmocka_unit_test_setup_teardown(steps_that_ended_otherwise_take_no_room_from_others,
                                        setup_few_steps, teardown),
        TEST(a_device_that_stands_still_is_red),
        TEST(pages_that_come_and_go_are_events),
    };
    return cmocka_run_group_tests_name("observe", tests, NULL, NULL);
}
