// SPDX-License-Identifier: Apache-2.0
// test_sp_client.c: the SUB and REQ sockets of `kvpool events` against a peer that the test scripts:
// deadlines hold whatever it does, garbage is an error, a lost connection is made again.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/sp_client.h"
#include "tests/unit/daemon/tmpdir.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PUB "\0SP\0\0\x20\0\0"
#define SUB "\0SP\0\0\x21\0\0"
#define REQ "\0SP\0\0\x30\0\0"
#define REP "\0SP\0\0\x31\0\0"

static struct {
    struct tmpdir dir;
    char path[256];
    int listener;
    void (*script)(void); // of the peer's thread
    pthread_t thread;
    bool running;
    struct sp_client *client;
} t;

static int setup(void **state) {
    (void)state;
    memset(&t, 0, sizeof t);
    t.listener = -1;
    return tmpdir_make(&t.dir) ? 0 : -1;
}

static void *peer_main(void *arg) {
    (void)arg;
    t.script();
    return NULL;
}

static void listen_now(void) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/s", t.dir.path);
    t.listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(t.listener, (struct sockaddr *)&addr, sizeof addr) != 0 ||
        listen(t.listener, 8) != 0) {
        perror(addr.sun_path);
    }
}

// A client, and a peer that listens and does as it is told.
static void begin(enum sp_client_role role, void (*script)(void)) {
    snprintf(t.path, sizeof t.path, "%s/s", t.dir.path);
    assert_int_equal(0, sp_client_open(t.path, role, &t.client, NULL));
    if (script != NULL) {
        listen_now();
        t.script = script;
        assert_int_equal(0, pthread_create(&t.thread, NULL, peer_main, NULL));
        t.running = true;
    }
}

static int teardown(void **state) {
    (void)state;
    sp_client_close(t.client); // ends what the peer reads
    if (t.listener >= 0) {
        shutdown(t.listener, SHUT_RDWR); // and what it accepts
    }
    if (t.running) {
        pthread_join(t.thread, NULL);
    }
    close(t.listener);
    unlink(t.path);
    tmpdir_remove(&t.dir);
    return 0;
}

// --- the peer's thread ---

static int take_connection(const char *greeting) {
    char got[8];
    const int fd = accept(t.listener, NULL, NULL);
    if (fd >= 0 && (recv(fd, got, 8, MSG_WAITALL) != 8 || memcmp(got, greeting, 8) != 0)) {
        fprintf(stderr, "another greeting\n");
        close(fd);
        return -1;
    }
    return fd;
}

static void put(int fd, const void *bytes, size_t len) {
    if (send(fd, bytes, len, MSG_NOSIGNAL) != (ssize_t)len) {
        perror("send");
    }
}

static void put_message(int fd, const char *body, size_t len) {
    const char head[9] = {1, 0, 0, 0, 0, 0, 0, (char)(len >> 8), (char)len};
    put(fd, head, 9);
    put(fd, body, len);
}

// Reads a request of 3 bytes; its id is kept.
static bool take_request(int fd, char ret_id[4]) {
    char got[16];
    if (recv(fd, got, 16, MSG_WAITALL) != 16 || memcmp(got, "\1\0\0\0\0\0\0\0\7", 9) != 0 ||
        memcmp(got + 13, "ask", 3) != 0) {
        return false;
    }
    memcpy(ret_id, got + 9, 4);
    return true;
}

static void put_reply(int fd, const char id[4], const char *text) {
    char body[64];
    memcpy(body, id, 4);
    memcpy(body + 4, text, strlen(text));
    put_message(fd, body, 4 + strlen(text));
}

static void wait_for_end(int fd) {
    char byte;
    while (recv(fd, &byte, 1, 0) > 0) {
    }
    close(fd);
}

// --- the tests' thread ---

static uint64_t soon(unsigned ms) {
    return sp_client_now_ns() + ms * 1000000ull;
}

static void expect_message(const char *text) {
    const char *got;
    size_t len;
    assert_int_equal(1, sp_client_receive(t.client, soon(10000), &got, &len, NULL));
    assert_int_equal(strlen(text), len);
    assert_memory_equal(text, got, len);
}

static int ask(unsigned ms, const char **ret, size_t *ret_len, struct err *err) {
    return sp_client_ask(t.client, "ask", 3, soon(ms), ret, ret_len, err);
}

static void expect_reply(const char *text) {
    struct err err = {.text = ""};
    const char *got;
    size_t len;
    if (ask(10000, &got, &len, &err) != 0) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(strlen(text), len);
    assert_memory_equal(text, got, len);
}

// The call in between took from `min` to a few times `max` ms (the machine may be busy).
static void expect_waited(uint64_t since, unsigned min, unsigned max) {
    const uint64_t ms = (sp_client_now_ns() - since) / 1000000;
    assert_true(ms >= min && ms < max + 5000ull);
}

static void script_lines(void) {
    const int fd = take_connection(SUB);
    put(fd, PUB, 8);
    put_message(fd, "one", 3);
    put_message(fd, "two", 3);
    put_message(fd, "", 0);
    wait_for_end(fd);
}

static void it_receives_one_message_after_another(void **state) {
    const char *got;
    size_t len;
    (void)state;
    begin(SP_CLIENT_SUB, script_lines);
    expect_message("one");
    expect_message("two");
    expect_message("");
    assert_int_equal(0, sp_client_receive(t.client, 0, &got, &len, NULL));
    assert_int_equal(1, sp_client_connections(t.client));
}

static void script_drops(void) {
    static const char bytes[] = PUB "\1\0\0\0\0\0\0\0\5drops\1\0\0\0\0\0\0\0\1.";
    const int fd = take_connection(SUB);
    for (size_t i = 0; i < sizeof bytes - 1; i++) {
        put(fd, bytes + i, 1);
        usleep(1000);
    }
    wait_for_end(fd);
}

static void bytes_one_by_one_are_put_together(void **state) {
    (void)state;
    begin(SP_CLIENT_SUB, script_drops);
    expect_message("drops");
    expect_message(".");
}

static void script_large(void) {
    static char body[300000];
    static const char head[9] = {1, 0, 0, 0, 0, 0, 4, (char)0x93, (char)0xe0};
    const int fd = take_connection(SUB);
    memset(body, 'x', sizeof body);
    put(fd, PUB, 8);
    for (int i = 0; i < 3; i++) {
        put(fd, head, 9);
        put(fd, body, sizeof body);
    }
    wait_for_end(fd);
}

static void messages_larger_than_a_read_arrive_whole(void **state) {
    (void)state;
    begin(SP_CLIENT_SUB, script_large);
    for (int i = 0; i < 3; i++) {
        const char *got;
        size_t len;
        assert_int_equal(1, sp_client_receive(t.client, soon(10000), &got, &len, NULL));
        assert_int_equal(300000, len);
        for (size_t k = 0; k < len; k++) {
            assert_int_equal('x', got[k]);
        }
    }
}

static void script_silence(void) {
    const int fd = take_connection(SUB);
    put(fd, PUB "\1\0\0", 11); // and no more of it
    wait_for_end(fd);
}

static void a_silent_publisher_is_waited_for_until_the_deadline(void **state) {
    const uint64_t since = sp_client_now_ns();
    const char *got;
    size_t len;
    (void)state;
    begin(SP_CLIENT_SUB, script_silence);
    assert_int_equal(0, sp_client_receive(t.client, soon(200), &got, &len, NULL));
    expect_waited(since, 200, 200);
}

static void nobody_there_is_waited_for_until_the_deadline(void **state) {
    const uint64_t since = sp_client_now_ns();
    const char *got;
    size_t len;
    struct err err;
    (void)state;
    begin(SP_CLIENT_REQ, NULL);
    assert_int_equal(KVPOOL_E_TIMEOUT, ask(200, &got, &len, &err));
    assert_non_null(strstr(err.text, "does not answer: No such file"));
    assert_int_equal(0, sp_client_receive(t.client, soon(200), &got, &len, NULL));
    expect_waited(since, 400, 400);
    assert_int_equal(0, sp_client_connections(t.client));
}

static void script_mute(void) {
    char id[4] = "";
    const int fd = take_connection(REQ);
    put(fd, REP, 8);
    take_request(fd, id);
    wait_for_end(fd);
}

static void a_request_without_a_reply_ends_at_the_deadline(void **state) {
    const uint64_t since = sp_client_now_ns();
    const char *got;
    size_t len;
    struct err err;
    (void)state;
    begin(SP_CLIENT_REQ, script_mute);
    assert_int_equal(KVPOOL_E_TIMEOUT, ask(200, &got, &len, &err));
    expect_waited(since, 200, 200);
    assert_non_null(strstr(err.text, "/s does not answer"));
}

static void script_late(void) {
    char first[4] = "", second[4] = "";
    const int fd = take_connection(REQ);
    put(fd, REP, 8);
    take_request(fd, first);
    take_request(fd, second); // the first was given up
    put_reply(fd, first, "late");
    put_message(fd, "ab", 2); // not even an id
    put_reply(fd, second, "right");
    wait_for_end(fd);
}

static void a_late_reply_is_not_taken_for_the_next(void **state) {
    const char *got;
    size_t len;
    (void)state;
    begin(SP_CLIENT_REQ, script_late);
    assert_int_equal(KVPOOL_E_TIMEOUT, ask(100, &got, &len, NULL));
    expect_reply("right");
    assert_int_equal(1, sp_client_connections(t.client));
}

static void script_reset(void) {
    char id[4] = "";
    int fd = take_connection(REQ);
    close(fd); // before its greeting
    fd = take_connection(REQ);
    put(fd, REP "\1\0\0", 11);
    take_request(fd, id);
    close(fd); // amid a reply
    fd = take_connection(REQ);
    put(fd, REP, 8);
    if (take_request(fd, id)) {
        put_reply(fd, id, "at last");
    }
    if (take_request(fd, id)) {
        put_reply(fd, id, "again");
    }
    wait_for_end(fd);
}

static void a_lost_connection_is_made_again_and_the_request_sent_again(void **state) {
    (void)state;
    begin(SP_CLIENT_REQ, script_reset);
    expect_reply("at last");
    assert_int_equal(3, sp_client_connections(t.client));
    expect_reply("again");
    assert_int_equal(3, sp_client_connections(t.client));
}

static void script_two_lives(void) {
    int fd = take_connection(SUB);
    put(fd, PUB, 8);
    put_message(fd, "one", 3);
    put(fd, "\1\0\0\0", 4); // lost with the connection
    close(fd);
    fd = take_connection(SUB);
    put(fd, PUB, 8);
    put_message(fd, "two", 3);
    wait_for_end(fd);
}

static void a_subscriber_connects_again(void **state) {
    (void)state;
    begin(SP_CLIENT_SUB, script_two_lives);
    expect_message("one");
    expect_message("two");
    assert_int_equal(2, sp_client_connections(t.client));
}

static const char *garbage;
static size_t garbage_len;

static void script_garbage(void) {
    int fd = take_connection(SUB);
    put(fd, garbage, garbage_len);
    wait_for_end(fd); // the client hangs up
    fd = take_connection(SUB);
    put(fd, PUB, 8);
    put_message(fd, "good", 4);
    wait_for_end(fd);
}

static void expect_refusal(const char *bytes, size_t len, const char *why) {
    const char *got;
    size_t got_len;
    struct err err;
    garbage = bytes;
    garbage_len = len;
    begin(SP_CLIENT_SUB, script_garbage);
    assert_int_equal(KVPOOL_E_PROTO,
                     sp_client_receive(t.client, soon(10000), &got, &got_len, &err));
    assert_non_null(strstr(err.text, why));
    expect_message("good");
}

static void another_protocol_is_refused(void **state) {
    (void)state;
    expect_refusal(REP, 8, "greeting");
}

static void what_is_no_message_is_refused(void **state) {
    (void)state;
    expect_refusal(PUB "\2\0\0\0\0\0\0\0\1x", 18, "no message");
}

static void a_message_without_end_is_refused(void **state) {
    (void)state;
    expect_refusal(PUB "\1\xff\xff\xff\xff\xff\xff\xff\xff", 17, "no message");
}

static void what_does_not_fit_is_refused(void **state) {
    char longer[300];
    struct err err;
    (void)state;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_int_equal(KVPOOL_E_INVAL, sp_client_open(longer, SP_CLIENT_SUB, &t.client, &err));
    assert_null(t.client);
    begin(SP_CLIENT_REQ, NULL);
    const char *got;
    size_t len;
    assert_int_equal(KVPOOL_E_INVAL,
                     sp_client_ask(t.client, longer, 65, soon(1), &got, &len, &err));
    sp_client_close(NULL);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(it_receives_one_message_after_another),
        TEST(bytes_one_by_one_are_put_together),
        TEST(messages_larger_than_a_read_arrive_whole),
        TEST(a_silent_publisher_is_waited_for_until_the_deadline),
        TEST(nobody_there_is_waited_for_until_the_deadline),
        TEST(a_request_without_a_reply_ends_at_the_deadline),
        TEST(a_late_reply_is_not_taken_for_the_next),
        TEST(a_lost_connection_is_made_again_and_the_request_sent_again),
        TEST(a_subscriber_connects_again),
        TEST(another_protocol_is_refused),
        TEST(what_is_no_message_is_refused),
        TEST(a_message_without_end_is_refused),
        TEST(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("sp_client", tests, NULL, NULL);
}
