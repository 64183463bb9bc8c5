// SPDX-License-Identifier: Apache-2.0
// test_events.c: `kvpool events` against the daemon's own feed: everything once and in order, gaps
// filled or said, restarts noticed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/events_reader.h"
#include "client/cmd/sp_client.h"
#include "daemon/feed.h"
#include "tests/unit/daemon/starve.h"
#include "tests/unit/daemon/tmpdir.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct {
    struct tmpdir dir;
    struct events *events;
    struct feed *feed;
    struct events_reader *reader;
    uint64_t first, last, lines, restarts; // what the sink got
    char said[4096];
    bool full; // the sink takes no more
    char why[256];
} t;

static int setup(void **state) {
    (void)state;
    memset(&t, 0, sizeof t);
    return tmpdir_make(&t.dir) ? 0 : -1;
}

static void stop_daemon(void) {
    assert_true(feed_close(t.feed));
    events_close(t.events);
    t.feed = NULL;
    t.events = NULL;
}

static int teardown(void **state) {
    (void)state;
    events_reader_close(t.reader);
    stop_daemon();
    tmpdir_remove(&t.dir);
    return 0;
}

static void start_daemon(uint32_t ring, uint64_t epoch) {
    struct err err;
    assert_int_equal(0, events_open(ring, false, epoch, &t.events, &err));
    if (feed_open(t.dir.path, t.events, &t.feed, &err) != 0) {
        fail_msg("feed_open: %s", err.text);
    }
}

static void observe(uint32_t n) {
    const struct core_event event = {
        .kind = CORE_REMOVED, .pool_name = "kv", .ns_name = "default", .page_size = 16};
    for (uint32_t i = 0; i < n; i++) {
        events_observe(t.events, &event);
    }
}

static int on_line(void *arg, const char *line, size_t len) {
    static const char begin[] = "{\"seq\":";
    assert_ptr_equal(arg, &t);
    assert_int_equal('}', line[len - 1]);
    assert_memory_equal(begin, line, sizeof begin - 1);
    const uint64_t seq = strtoull(line + sizeof begin - 1, NULL, 10);
    t.restarts += seq == 1 && t.last > 1;
    t.first = t.first == 0 ? seq : t.first;
    t.last = seq;
    t.lines++;
    return t.full ? -1 : 0;
}

static void on_say(void *arg, const char *text) {
    assert_ptr_equal(arg, &t);
    const size_t n = strlen(t.said);
    snprintf(t.said + n, sizeof t.said - n, "%s\n", text);
}

static const struct events_sink sink = {.line = on_line, .say = on_say, .arg = &t};

static void open_reader(uint64_t from, bool follow) {
    if (events_reader_open(t.dir.path, from, follow, 5000, &sink, &t.reader, t.why, sizeof t.why) !=
        0) {
        fail_msg("%s", t.why);
    }
}

static void run(void) {
    if (events_reader_run(t.reader, t.why, sizeof t.why) != 0) {
        fail_msg("%s", t.why);
    }
}

static void run_until(uint64_t last) {
    const time_t until = time(NULL) + 60;
    while (t.last != last && time(NULL) < until) {
        run();
    }
    assert_int_equal(last, t.last);
}

static void it_prints_the_whole_ring(void **state) {
    (void)state;
    start_daemon(65536, 1);
    observe(20000); // several replies
    open_reader(0, false);
    run();
    assert_true(t.first == 1 && t.last == 20001 && t.lines == 20001);
    assert_string_equal("", t.said);
}

static void it_begins_where_it_is_told(void **state) {
    (void)state;
    start_daemon(100, 1);
    observe(50);
    open_reader(48, false);
    run();
    assert_true(t.first == 48 && t.last == 51 && t.lines == 4);
}

static void it_tells_what_is_gone_before_it_begins(void **state) {
    (void)state;
    start_daemon(100, 1);
    observe(1000); // 1 to 1001, 902 is the oldest
    open_reader(1, false);
    run();
    assert_true(t.first == 902 && t.last == 1001 && t.lines == 100);
    assert_string_equal("events 1 to 901 are lost\n", t.said);
}

static void it_follows(void **state) {
    (void)state;
    start_daemon(1000, 1);
    observe(10);
    open_reader(0, true); // from the next on
    run();
    assert_int_equal(0, t.lines);
    for (uint64_t i = 1; i <= 20; i++) {
        observe(5);
        run_until(11 + 5 * i);
    }
    assert_true(t.first == 12 && t.lines == 100);
    assert_string_equal("", t.said);
}

// Another subscriber, that the publisher knows when this returns.
static struct sp_client *open_watch(uint64_t *last) {
    char path[256];
    struct sp_client *watch;
    const char *line;
    size_t len;
    snprintf(path, sizeof path, "%s/" FEED_EVENTS_SOCKET, t.dir.path);
    assert_int_equal(0, sp_client_open(path, SP_CLIENT_SUB, &watch, NULL));
    do {
        observe(1);
        ++*last;
    } while (sp_client_receive(watch, sp_client_now_ns() + 100000000, &line, &len, NULL) == 0);
    return watch;
}

// Until the publisher has sent the line: the newest is never the one that is dropped.
static void watch_until(struct sp_client *watch, uint64_t seq) {
    char begin[32];
    const char *line;
    size_t len,
        n = (size_t)snprintf(begin, sizeof begin, "{\"seq\":%llu,", (unsigned long long)seq);
    do {
        const uint64_t until = sp_client_now_ns() + 30000000000u;
        assert_int_equal(1, sp_client_receive(watch, until, &line, &len, NULL));
    } while (len < n || memcmp(line, begin, n) != 0);
}

static void it_fills_what_a_burst_made_it_miss(void **state) {
    struct sp_client *watch;
    uint64_t last = 1;
    (void)state;
    start_daemon(65536, 1);
    open_reader(1, true);
    watch = open_watch(&last);
    // A reader that the publisher did not know in time gets it all by replay, and sees no gap.
    for (int round = 0; round < 5 && strstr(t.said, "missed") == NULL; round++) {
        observe(1);
        run_until(++last);
        observe(60000); // while we do not read: more than all buffers hold
        last += 60000;
        watch_until(watch, last);
        observe(1);
        run_until(++last);
        assert_int_equal(last, t.lines); // each once
    }
    sp_client_close(watch);
    assert_non_null(strstr(t.said, "missed, asking for them\n"));
    assert_true(strlen(t.said) < sizeof t.said / 2); // a gap is filled at once, not line after line
    assert_null(strstr(t.said, "lost"));
}

static void what_the_ring_has_not_kept_is_lost_and_said(void **state) {
    (void)state;
    start_daemon(100, 1);
    open_reader(1, true);
    usleep(100000);
    run();
    observe(60000);
    usleep(300000);
    run_until(60001);
    const char *lost = strstr(t.said, "events ");
    assert_non_null(lost);
    assert_true(strtoull(lost + strlen("events "), NULL, 10) >= 2);
    assert_non_null(strstr(lost, " are lost\n"));
    assert_true(t.lines < 60001);
}

static void it_notices_a_restart(void **state) {
    (void)state;
    start_daemon(1000, 1);
    observe(99);
    open_reader(1, true);
    run();
    assert_int_equal(100, t.last);
    stop_daemon();
    start_daemon(1000, 2);
    observe(499); // beyond the numbers that it has seen
    for (int i = 0; i < 60 && t.restarts == 0; i++) {
        if (events_reader_run(t.reader, t.why, sizeof t.why) != 0) {
            usleep(50000); // the connection is on its way
        }
    }
    run_until(500);
    assert_int_equal(1, t.restarts);
    assert_int_equal(600, t.lines);
    assert_string_equal("the daemon was restarted, numbers begin with 1 again\n", t.said);
}

static void *observe_soon(void *arg) {
    (void)arg;
    usleep(200000); // the reader is connected again
    observe(1);
    return NULL;
}

static void another_instance_whose_next_number_fits_is_noticed(void **state) {
    pthread_t soon;
    (void)state;
    start_daemon(1000, 1);
    observe(98);
    open_reader(1, true);
    run();
    observe(1);
    run_until(100); // by replay and live: the next run waits for a line first
    stop_daemon();
    start_daemon(1000, 2);
    observe(99);
    assert_int_equal(0, pthread_create(&soon, NULL, observe_soon, NULL));
    for (int i = 0; i < 60 && t.restarts == 0; i++) {
        run();
    }
    pthread_join(soon, NULL);
    run_until(101);
    assert_int_equal(1, t.restarts);
    assert_int_equal(100 + 101, t.lines);
}

static void threads_without_time_are_not_taken_for_dead_listeners(void **state) {
    struct sp_client *watch, *asker;
    const char *got;
    char path[256];
    uint64_t last = 1;
    size_t len;
    (void)state;
    start_daemon(1000, 1);
    watch = open_watch(&last);
    snprintf(path, sizeof path, "%s/" FEED_REPLAY_SOCKET, t.dir.path);
    assert_int_equal(0, sp_client_open(path, SP_CLIENT_REQ, &asker, NULL));
    assert_int_equal(
        0, sp_client_ask(asker, "1", 1, sp_client_now_ns() + 30000000000u, &got, &len, NULL));
    const bool starved = starve_begin();
    sleep(8); // several probes
    starve_end();
    assert_true(starved);
    observe(1);
    watch_until(watch, ++last);
    assert_int_equal(
        0, sp_client_ask(asker, "1", 1, sp_client_now_ns() + 30000000000u, &got, &len, NULL));
    assert_int_equal(1, sp_client_connections(watch));
    assert_int_equal(1, sp_client_connections(asker));
    sp_client_close(watch);
    sp_client_close(asker);
}

static void a_sink_that_takes_no_more_ends_it(void **state) {
    (void)state;
    start_daemon(1000, 1);
    observe(99);
    t.full = true;
    open_reader(1, false);
    assert_int_equal(-1, events_reader_run(t.reader, t.why, sizeof t.why));
    assert_string_equal("cannot write the output", t.why);
    assert_int_equal(1, t.lines);
}

static void without_events_it_says_what_to_do(void **state) {
    (void)state;
    assert_int_equal(
        -1, events_reader_open(t.dir.path, 1, false, 1000, &sink, &t.reader, t.why, sizeof t.why));
    assert_non_null(strstr(t.why, "events = yes"));
    char longer[300];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(
        -1, events_reader_open(longer, 1, true, 1000, &sink, &t.reader, t.why, sizeof t.why));
    assert_null(t.reader);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(it_prints_the_whole_ring),
        TEST(it_begins_where_it_is_told),
        TEST(it_tells_what_is_gone_before_it_begins),
        TEST(it_follows),
        TEST(it_fills_what_a_burst_made_it_miss),
        TEST(what_the_ring_has_not_kept_is_lost_and_said),
        TEST(it_notices_a_restart),
        TEST(another_instance_whose_next_number_fits_is_noticed),
        TEST(a_sink_that_takes_no_more_ends_it),
        TEST(without_events_it_says_what_to_do),
        TEST(threads_without_time_are_not_taken_for_dead_listeners), // the last: see starve.h
    };
    return cmocka_run_group_tests_name("cmd_events", tests, NULL, NULL);
}
