// SPDX-License-Identifier: Apache-2.0
// test_events.c: the ring of events and its lines; the feed's sockets: who may reach them, what a
// subscriber gets, replay, gaps, and readers that do not read.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/feed.h"
#include "tests/unit/daemon/tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/pubsub0/sub.h>
#include <nng/protocol/reqrep0/req.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EPOCH 0x123456789abcdef0ull

enum { RING = 100, TIMEOUT_MS = 10000 };

static struct {
    struct tmpdir dir;
    struct events *events;
    struct feed *feed;
    char *reply; // FEED_REPLY_BYTES + 1
} t;

static int setup(void **state) {
    (void)state;
    memset(&t, 0, sizeof t);
    t.reply = malloc(FEED_REPLY_BYTES + 1);
    return tmpdir_make(&t.dir) && t.reply != NULL ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    assert_true(feed_close(t.feed));
    events_close(t.events);
    free(t.reply);
    tmpdir_remove(&t.dir);
    return access(t.dir.path, F_OK) != 0 ? 0 : -1; // nothing was left in it
}

static void open_ring(uint32_t ring, bool tokens) {
    struct err err;
    assert_int_equal(0, events_open(ring, tokens, EPOCH, &t.events, &err));
}

static void open_feed(uint32_t ring) {
    struct err err;
    open_ring(ring, false);
    if (feed_open(t.dir.path, t.events, &t.feed, &err) != 0) {
        fail_msg("feed_open: %s", err.text);
    }
}

static void observe(enum core_event_kind kind, uint32_t number, bool first) {
    static uint32_t tokens[KVPOOL_MAX_PAGE_SIZE];
    struct core_event event = {.kind = kind,
                               .pool_name = "kv",
                               .ns_name = kind == CORE_CLEARED ? NULL : "default",
                               .page_size = 16,
                               .tokens = kind == CORE_STORED ? tokens : NULL};
    for (uint32_t i = 0; i < 16; i++) {
        tokens[i] = number + i;
    }
    event.key[0] = 0xab;
    memcpy(event.key + 12, &number, sizeof number);
    if (!first) {
        event.parent[15] = 1;
    }
    events_observe(t.events, &event);
}

static void observe_many(uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        observe(CORE_STORED, i, false);
    }
}

// The line of record `seq`, without its end.
static const char *line_of(uint64_t seq) {
    static char line[EVENTS_LINE_BYTES];
    uint64_t next;
    size_t len = events_read(t.events, seq, 1, line, sizeof line, &next);
    assert_true(len > 0);
    assert_int_equal(next, seq + 1);
    assert_int_equal('\n', line[len - 1]);
    line[len - 1] = '\0';
    return line;
}

// What comes after "ts":<digits>.<6 digits>, which is checked.
static const char *after_time(const char *line, uint64_t seq) {
    char begin[64];
    int whole = 0, fraction = 0;
    const int len = snprintf(begin, sizeof begin, "{\"seq\":%" PRIu64 ",\"ts\":", seq);
    assert_memory_equal(begin, line, (size_t)len);
    // time() may still be in the second before: its clock moves with the timer interrupt
    assert_in_range(strtol(line + len, NULL, 10), time(NULL) - 60, time(NULL) + 1);
    sscanf(line + len, "%*[0-9]%n.%*[0-9]%n", &whole, &fraction);
    assert_int_equal(7, fraction - whole);
    assert_int_equal(',', line[len + fraction]);
    return line + len + fraction + 1;
}

// --- the ring ----------------------------------------------------------------------------------

static void the_first_record_tells_the_epoch(void **state) {
    struct events_range range;
    (void)state;
    open_ring(RING, false);
    events_range(t.events, &range);
    assert_true(range.oldest == 1 && range.newest == 1 && range.epoch == EPOCH);
    assert_string_equal("\"type\":\"Started\",\"epoch\":\"0x123456789abcdef0\"}",
                        after_time(line_of(1), 1));
}

static void every_kind_is_a_line_in_the_shape_of_vllm(void **state) {
    (void)state;
    open_ring(RING, false);
    observe(CORE_STORED, 0x01020304, true);
    observe(CORE_STORED, 5, false);
    observe(CORE_REMOVED, 5, false);
    observe(CORE_CLEARED, 0, true);
    assert_string_equal("\"type\":\"BlockStored\",\"block_hashes\":["
                        "\"ab000000000000000000000004030201\"],\"parent_block_hash\":null,"
                        "\"token_ids\":null,\"block_size\":16,\"lora_id\":null,\"pool\":\"kv\","
                        "\"namespace\":\"default\"}",
                        after_time(line_of(2), 2));
    assert_string_equal("\"type\":\"BlockStored\",\"block_hashes\":["
                        "\"ab000000000000000000000005000000\"],\"parent_block_hash\":"
                        "\"00000000000000000000000000000001\",\"token_ids\":null,"
                        "\"block_size\":16,\"lora_id\":null,\"pool\":\"kv\","
                        "\"namespace\":\"default\"}",
                        after_time(line_of(3), 3));
    assert_string_equal("\"type\":\"BlockRemoved\",\"block_hashes\":["
                        "\"ab000000000000000000000005000000\"],\"pool\":\"kv\","
                        "\"namespace\":\"default\"}",
                        after_time(line_of(4), 4));
    assert_string_equal("\"type\":\"AllBlocksCleared\",\"pool\":\"kv\"}",
                        after_time(line_of(5), 5));
}

static void token_ids_are_there_when_asked_for(void **state) {
    (void)state;
    open_ring(RING, true);
    observe(CORE_STORED, UINT32_MAX - 15, true);
    observe(CORE_REMOVED, 1, true);
    assert_non_null(strstr(line_of(2), "\"token_ids\":[4294967280,4294967281,4294967282,"));
    assert_non_null(strstr(line_of(2), ",4294967295],\"block_size\":16"));
    assert_null(strstr(line_of(3), "token_ids"));
}

static void the_longest_line_fits(void **state) {
    static uint32_t tokens[KVPOOL_MAX_PAGE_SIZE];
    char pool[CORE_NAME_SIZE] = {0}, ns[CORE_NAME_SIZE] = {0};
    struct core_event event = {.kind = CORE_STORED,
                               .pool_name = pool,
                               .ns_name = ns,
                               .page_size = KVPOOL_MAX_PAGE_SIZE,
                               .tokens = tokens};
    memset(pool, '"', sizeof pool - 1);
    memset(ns, '\\', sizeof ns - 2);
    ns[sizeof ns - 2] = '\n';
    (void)state;
    open_ring(2, true);
    memset(tokens, 0xff, sizeof tokens);
    memset(event.parent, 0xff, sizeof event.parent);
    events_observe(t.events, &event);
    const char *line = line_of(2);
    assert_true(strlen(line) > 3300 && strlen(line) < EVENTS_LINE_BYTES - 64);
    assert_non_null(strstr(line, ",\"pool\":\"\\u0022\\u0022\\u0022"));
    assert_non_null(strstr(line, "\\u005c\\u000a\"}"));
}

static void the_ring_keeps_the_last_records(void **state) {
    struct events_range range;
    char *buf = t.reply;
    uint64_t next;
    (void)state;
    open_ring(RING, false);
    observe_many(RING - 1);
    events_range(t.events, &range);
    assert_true(range.oldest == 1 && range.newest == RING);
    observe_many(1);
    events_range(t.events, &range);
    assert_true(range.oldest == 2 && range.newest == RING + 1);
    assert_int_equal(0, events_read(t.events, 1, 10, buf, FEED_REPLY_BYTES, &next));
    assert_int_equal(1, next);
    observe_many(5 * RING + 7);
    events_range(t.events, &range);
    assert_int_equal(RING - 1, range.newest - range.oldest);
    for (uint64_t seq = range.oldest; seq <= range.newest; seq++) {
        char begin[32];
        snprintf(begin, sizeof begin, "{\"seq\":%" PRIu64 ",", seq);
        assert_memory_equal(begin, line_of(seq), strlen(begin));
    }
    size_t len = events_read(t.events, range.oldest, UINT32_MAX, buf, FEED_REPLY_BYTES, &next);
    assert_int_equal(next, range.newest + 1);
    assert_true(len < FEED_REPLY_BYTES);
    assert_int_equal(0, events_read(t.events, next, 10, buf, FEED_REPLY_BYTES, &next));
    // A buffer that is too small for all takes whole lines.
    len = events_read(t.events, range.oldest, RING, buf, 3ul * EVENTS_LINE_BYTES, &next);
    assert_true(next > range.oldest + 2 && next < range.newest);
    assert_int_equal('\n', buf[len - 1]);
    // max is kept, also over several batches.
    events_read(t.events, range.oldest, EVENTS_BATCH + 3, buf, FEED_REPLY_BYTES, &next);
    assert_int_equal(next, range.oldest + EVENTS_BATCH + 3);
}

static void a_ring_of_nothing_is_refused(void **state) {
    struct err err;
    (void)state;
    assert_int_equal(KVPOOL_E_INVAL, events_open(0, false, 1, &t.events, &err));
    assert_int_equal(KVPOOL_E_INVAL, events_open(1, false, 1, &t.events, &err));
    assert_null(t.events);
}

// --- the feed ----------------------------------------------------------------------------------

static const char *path_of(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", t.dir.path, name);
    return path;
}

// The number that a line begins with.
static uint64_t seq_of(const char *line) {
    static const char begin[] = "{\"seq\":";
    assert_memory_equal(begin, line, sizeof begin - 1);
    return strtoull(line + sizeof begin - 1, NULL, 10);
}

static nng_socket dial(const char *name, int (*open)(nng_socket *)) {
    char url[160];
    nng_socket s;
    snprintf(url, sizeof url, "ipc://%s", path_of(name));
    assert_int_equal(0, open(&s));
    nng_socket_set_ms(s, NNG_OPT_RECVTIMEO, TIMEOUT_MS);
    nng_socket_set_int(s, NNG_OPT_RECVBUF, 8192);
    nng_socket_set_size(s, NNG_OPT_RECVMAXSZ, 0);
    assert_int_equal(0, nng_dial(s, url, NULL, 0));
    return s;
}

static nng_socket subscribe(void) {
    nng_socket s = dial(FEED_EVENTS_SOCKET, nng_sub0_open);
    assert_int_equal(0, nng_socket_set(s, NNG_OPT_SUB_SUBSCRIBE, "", 0));
    usleep(100000); // until the publisher knows the pipe
    return s;
}

// Number of the next message, but for the first record, which may have been sent before we came;
// 0: none within the time.
static uint64_t next_message(nng_socket s) {
    uint64_t seq;
    do {
        char *text;
        size_t len;
        if (nng_recv(s, &text, &len, NNG_FLAG_ALLOC) != 0) {
            return 0;
        }
        assert_int_equal('}', text[len - 1]);
        assert_null(memchr(text, '\n', len));
        seq = seq_of(text);
        nng_free(text, len);
    } while (seq == 1);
    return seq;
}

static const char *ask(nng_socket s, const char *request) {
    char copy[128];
    size_t len = FEED_REPLY_BYTES;
    snprintf(copy, sizeof copy, "%s", request);
    assert_int_equal(0, nng_send(s, copy, strlen(copy), 0));
    assert_int_equal(0, nng_recv(s, t.reply, &len, 0));
    t.reply[len] = '\0';
    return t.reply;
}

static unsigned count_lines(const char *text) {
    unsigned n = 0;
    for (; (text = strchr(text, '\n')) != NULL; text++) {
        n++;
    }
    return n;
}

static void subscribers_get_every_event_once_and_in_order(void **state) {
    nng_socket a, b;
    (void)state;
    open_feed(RING);
    a = subscribe();
    b = subscribe();
    observe_many(50);
    observe(CORE_CLEARED, 0, true);
    for (uint64_t seq = 2; seq <= 52; seq++) {
        assert_int_equal(seq, next_message(a));
        assert_int_equal(seq, next_message(b));
    }
    nng_close(a);
    observe_many(3);
    for (uint64_t seq = 53; seq <= 55; seq++) {
        assert_int_equal(seq, next_message(b));
    }
    nng_close(b);
}

static void a_burst_of_a_long_prompt_arrives_whole(void **state) {
    nng_socket s;
    (void)state;
    open_feed(65536);
    s = subscribe();
    observe_many(3125); // 50,000 tokens in pages of 16
    for (uint64_t seq = 2; seq <= 3126; seq++) {
        assert_int_equal(seq, next_message(s));
    }
    nng_close(s);
}

static void the_directory_is_the_daemons_alone(void **state) {
    struct stat st;
    (void)state;
    mkdir(path_of(FEED_DIR), 0777);
    chmod(path_of(FEED_DIR), 0777); // found too open: closed
    open_feed(RING);
    assert_int_equal(0, stat(path_of(FEED_DIR), &st));
    assert_int_equal(S_IFDIR | 0700, st.st_mode);
    assert_int_equal(0, stat(path_of(FEED_EVENTS_SOCKET), &st));
    assert_int_equal(S_IFSOCK | 0600, st.st_mode);
    assert_int_equal(0, stat(path_of(FEED_REPLAY_SOCKET), &st));
    assert_int_equal(S_IFSOCK | 0600, st.st_mode);
    assert_true(feed_close(t.feed));
    t.feed = NULL;
    assert_int_equal(-1, access(path_of(FEED_DIR), F_OK));
    assert_int_equal(ENOENT, errno);
}

static void what_is_in_the_way_is_not_removed(void **state) {
    char long_dir[200];
    struct err err;
    FILE *file;
    (void)state;
    open_ring(RING, false);
    assert_int_equal(0, symlink("/tmp", path_of(FEED_DIR)));
    assert_int_equal(KVPOOL_E_INVAL, feed_open(t.dir.path, t.events, &t.feed, &err));
    assert_int_equal(0, unlink(path_of(FEED_DIR)));
    assert_int_equal(0, mkdir(path_of(FEED_DIR), 0700));
    file = fopen(path_of(FEED_REPLAY_SOCKET), "w");
    assert_non_null(file);
    fclose(file);
    assert_int_equal(KVPOOL_E_INVAL, feed_open(t.dir.path, t.events, &t.feed, &err));
    assert_int_equal(0, unlink(path_of(FEED_REPLAY_SOCKET))); // still there
    if (geteuid() == 0) {
        assert_int_equal(0, chown(path_of(FEED_DIR), 12345, 12345));
        assert_int_equal(KVPOOL_E_PERM, feed_open(t.dir.path, t.events, &t.feed, &err));
    }
    assert_int_equal(0, rmdir(path_of(FEED_DIR)));
    memset(long_dir, 'a', sizeof long_dir - 1);
    long_dir[0] = '/';
    long_dir[sizeof long_dir - 1] = '\0';
    assert_int_equal(KVPOOL_E_INVAL, feed_open(long_dir, t.events, &t.feed, &err));
    assert_int_equal(KVPOOL_E_SYSTEM, feed_open("/proc/none", t.events, &t.feed, &err));
    assert_null(t.feed);
}

static void stale_sockets_of_a_killed_daemon_are_replaced(void **state) {
    struct feed *dead;
    struct err err;
    nng_socket s;
    (void)state;
    open_feed(RING);
    dead = t.feed; // its sockets stay bound, but lose their names
    assert_int_equal(0, feed_open(t.dir.path, t.events, &t.feed, &err));
    s = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    assert_non_null(strstr(ask(s, "1"), "\"type\":\"Replay\""));
    nng_close(s);
    assert_true(feed_close(dead));
}

static void replay_gives_what_is_asked_for(void **state) {
    nng_socket s;
    (void)state;
    open_feed(RING);
    observe_many(9);
    s = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    const char *text = ask(s, "1");
    static const char head[] = "{\"type\":\"Replay\",\"epoch\":\"0x123456789abcdef0\",\"oldest\":1,"
                               "\"newest\":10}\n{\"seq\":1,";
    assert_memory_equal(head, text, sizeof head - 1);
    assert_int_equal(11, count_lines(text));
    text = ask(s, "4 3");
    assert_int_equal(4, count_lines(text));
    assert_non_null(strstr(text, "\n{\"seq\":4,"));
    assert_non_null(strstr(text, "\n{\"seq\":6,"));
    assert_int_equal(1, count_lines(ask(s, "11"))); // the next: not there yet
    assert_int_equal(1, count_lines(ask(s, "4 0")));
    assert_int_equal(1, count_lines(ask(s, "18446744073709551615")));
    nng_close(s);
}

static void replay_of_what_is_gone_tells_the_first_that_is_there(void **state) {
    nng_socket s;
    (void)state;
    open_feed(RING);
    observe_many(3 * RING); // newest 301, oldest 202
    s = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    assert_string_equal("{\"type\":\"Replay\",\"epoch\":\"0x123456789abcdef0\",\"oldest\":202,"
                        "\"newest\":301}\n",
                        ask(s, "201"));
    assert_int_equal(RING + 1, count_lines(ask(s, "202")));
    nng_close(s);
}

static void replay_is_cut_at_its_limit(void **state) {
    uint64_t next = 1, asked = 0;
    nng_socket s;
    (void)state;
    open_feed(20000);
    observe_many(12000);
    s = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    for (; next <= 12001; asked++) {
        char request[32];
        snprintf(request, sizeof request, "%" PRIu64, next);
        const char *text = ask(s, request);
        assert_true(strlen(text) <= FEED_REPLY_BYTES);
        assert_int_equal(next, seq_of(strchr(text, '\n') + 1));
        next += count_lines(text) - 1;
    }
    assert_int_equal(12002, next);
    assert_in_range(asked, 3, 6);
    nng_close(s);
}

static void bad_requests_are_told_so(void **state) {
    static const char *const bad[] = {"x",   "-1",    "0",  "1 ",
                                      "1 x", "1 2 3", " 1", "99999999999999999999999"};
    nng_socket s;
    (void)state;
    open_feed(RING);
    s = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_string_equal("{\"type\":\"Error\",\"error\":\"want: FROM [MAX]\"}\n",
                            ask(s, bad[i]));
    }
    nng_close(s);
}

// Before NNG 1.6 that loses the listener.
static void peers_that_come_and_go_do_not_silence_it(void **state) {
    static const char *const names[] = {FEED_EVENTS_SOCKET, FEED_REPLAY_SOCKET};
    char url[160];
    nng_socket s, asker;
    char *reply;
    size_t len;
    int rv = -1;
    (void)state;
    open_feed(RING);
    for (int i = 0; i < 2 * 50; i++) {
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const char *path = path_of(names[i % 2]);
        assert_true(strlen(path) < sizeof addr.sun_path);
        memcpy(addr.sun_path, path, strlen(path) + 1);
        assert_int_equal(0, connect(fd, (struct sockaddr *)&addr, sizeof addr));
        close(fd);
    }
    assert_int_equal(0, nng_sub0_open(&s));
    assert_int_equal(0, nng_socket_set(s, NNG_OPT_SUB_SUBSCRIBE, "", 0));
    nng_socket_set_ms(s, NNG_OPT_RECVTIMEO, 200);
    snprintf(url, sizeof url, "ipc://%s", path_of(FEED_EVENTS_SOCKET));
    assert_int_equal(0, nng_dial(s, url, NULL, NNG_FLAG_NONBLOCK));
    for (int i = 0; i < 100 && rv != 0; i++) {
        observe_many(1);
        rv = nng_recv(s, &reply, &len, NNG_FLAG_ALLOC);
    }
    assert_int_equal(0, rv);
    nng_free(reply, len);
    nng_close(s);
    assert_int_equal(0, nng_req0_open(&asker));
    nng_socket_set_ms(asker, NNG_OPT_RECVTIMEO, 20000);
    nng_socket_set_ms(asker, NNG_OPT_SENDTIMEO, 20000);
    snprintf(url, sizeof url, "ipc://%s", path_of(FEED_REPLAY_SOCKET));
    assert_int_equal(0, nng_dial(asker, url, NULL, NNG_FLAG_NONBLOCK));
    assert_non_null(strstr(ask(asker, "1"), "\"type\":\"Replay\""));
    nng_close(asker);
}

static bool same_file(const char *path, int fd) {
    struct stat there, open;
    assert_int_equal(0, fstat(fd, &open)); // which keeps its number from being another's
    return lstat(path, &there) == 0 && there.st_ino == open.st_ino;
}

static void a_listener_that_lives_is_left_alone_and_a_lost_one_made_again(void **state) {
    static const char *const names[] = {FEED_EVENTS_SOCKET, FEED_REPLAY_SOCKET};
    int fds[2];
    (void)state;
    open_feed(RING);
    for (int i = 0; i < 2; i++) {
        fds[i] = open(path_of(names[i]), O_PATH | O_NOFOLLOW | O_CLOEXEC);
        assert_true(fds[i] >= 0);
    }
    usleep(7000000); // three probes
    for (int i = 0; i < 2; i++) {
        assert_true(same_file(path_of(names[i]), fds[i]));
        assert_int_equal(0, unlink(path_of(names[i])));
    }
    for (int i = 0; i < 2; i++) {
        for (int n = 0; n < 2000 && access(path_of(names[i]), F_OK) != 0; n++) {
            usleep(10000);
        }
        assert_int_equal(0, access(path_of(names[i]), F_OK));
        assert_false(same_file(path_of(names[i]), fds[i]));
        close(fds[i]);
    }
    nng_socket asker = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    assert_non_null(strstr(ask(asker, "1"), "\"type\":\"Replay\""));
    nng_close(asker);
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void readers_that_do_not_read_cost_the_loop_nothing(void **state) {
    struct events_range range;
    uint64_t last = 1, seq, got = 0;
    nng_socket slow, asker;
    char request[] = "1";
    double took;
    (void)state;
    open_feed(65536);
    slow = subscribe();
    asker = dial(FEED_REPLAY_SOCKET, nng_req0_open);
    observe_many(20000);
    assert_int_equal(0, nng_send(asker, request, 1, 0)); // and never takes the megabyte
    took = now_s();
    observe_many(200000);
    took = now_s() - took;
    assert_true(took < 10.0); // 50 us an event, under sanitizers on a busy machine
    events_range(t.events, &range);
    assert_int_equal(220001, range.newest);
    // The subscriber missed some and can tell which: what it gets rises, with gaps.
    usleep(500000);
    nng_socket_set_ms(slow, NNG_OPT_RECVTIMEO, 500);
    while ((seq = next_message(slow)) != 0) {
        assert_true(seq > last);
        last = seq;
        got++;
    }
    assert_true(got > 0 && got < 220000);
    nng_close(slow);
    nng_close(asker);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(the_first_record_tells_the_epoch),
        TEST(every_kind_is_a_line_in_the_shape_of_vllm),
        TEST(token_ids_are_there_when_asked_for),
        TEST(the_longest_line_fits),
        TEST(the_ring_keeps_the_last_records),
        TEST(a_ring_of_nothing_is_refused),
        TEST(subscribers_get_every_event_once_and_in_order),
        TEST(a_burst_of_a_long_prompt_arrives_whole),
        TEST(the_directory_is_the_daemons_alone),
        TEST(what_is_in_the_way_is_not_removed),
        TEST(stale_sockets_of_a_killed_daemon_are_replaced),
        TEST(replay_gives_what_is_asked_for),
        TEST(replay_of_what_is_gone_tells_the_first_that_is_there),
        TEST(replay_is_cut_at_its_limit),
        TEST(bad_requests_are_told_so),
        TEST(peers_that_come_and_go_do_not_silence_it),
        TEST(a_listener_that_lives_is_left_alone_and_a_lost_one_made_again),
        TEST(readers_that_do_not_read_cost_the_loop_nothing),
    };
    return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
