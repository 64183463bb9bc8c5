// SPDX-License-Identifier: Apache-2.0
// test_server.c: the NNG side with real clients: requests, limits, slow peers, and its end.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/proto.h"
#include "tests/unit/daemon/server_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void a_request_arrives_with_its_peer_and_its_reply_returns(void **state) {
    struct client *c = client(0, 0);
    (void)state;
    open_server();
    assert_int_equal(0, server_busy(rig.server));
    start(c, 3, 100);
    assert_true(finish(c, 1, 10000));
    assert_int_equal(3, c->ok);
    assert_int_equal(3, rig.requests);
    assert_int_equal(getpid(), rig.last_pid);
    assert_int_equal(getuid(), rig.last_uid);
    assert_int_not_equal(0, rig.last_pipe);
    assert_true(run_until(&rig.went, 1, 5000));
    assert_int_equal(1, rig.came);
    assert_int_equal(getpid(), rig.came_pid);
    assert_true(run_until_idle());
}

static void an_empty_message_is_a_request_too(void **state) {
    struct client *c = client(0, 0);
    (void)state;
    open_server();
    start(c, 1, 0);
    assert_true(finish(c, 1, 10000));
    assert_int_equal(1, c->ok);
}

static void the_socket_has_the_configured_mode(void **state) {
    struct stat st;
    (void)state;
    rig.config.socket_mode = 0640;
    open_server();
    assert_int_equal(0, stat(rig.path, &st));
    assert_int_equal(0640, st.st_mode & 0777);
    assert_true(close_server());
    assert_int_not_equal(0, stat(rig.path, &st)); // and it is gone afterwards
}

static void sixty_four_clients_are_all_answered(void **state) {
    struct client *c = clients(64);
    (void)state;
    open_server();
    for (int i = 0; i < 64; i++) {
        c[i].timeout_ms = 30000;
        start(&c[i], 40, 64 + (size_t)i);
    }
    assert_true(finish(c, 64, 60000));
    for (int i = 0; i < 64; i++) {
        assert_int_equal(40, c[i].ok);
    }
    assert_int_equal(64 * 40, rig.requests);
}

static void more_requests_than_slots_wait_their_turn(void **state) {
    struct client *c = clients(8);
    (void)state;
    rig.config.slots = 2;
    rig.hold = true;
    open_server();
    for (int i = 0; i < 8; i++) {
        start(&c[i], 1, 32);
    }
    assert_true(run_until(&rig.num_held, 2, 10000));
    run_for(100);
    assert_int_equal(2, rig.num_held);
    assert_int_equal(2, server_busy(rig.server));
    rig.hold = false;
    for (unsigned i = 0; i < 2; i++) {
        server_reply(rig.server, rig.held[i], rig.held[i]->bytes, rig.held[i]->len);
    }
    assert_true(finish(c, 8, 20000));
    for (int i = 0; i < 8; i++) {
        assert_int_equal(1, c[i].ok);
    }
}

static void a_message_of_the_limit_passes_and_one_byte_more_costs_the_connection(void **state) {
    struct client *c = client(0, 0);
    struct client *too_big = client(2000, 0);
    struct client *after = client(0, 5000);
    (void)state;
    // A client that is disconnected connects again and may close just then, which costs NNG 1.5 its
    // listener: the probe must be on.
    rig.config.probe_interval_ms = 300;
    open_server();
    start(c, 2, PROTO_MAX_REQUEST);
    assert_true(finish(c, 1, 10000));
    assert_int_equal(2, c->ok);
    start(too_big, 1, PROTO_MAX_REQUEST + 1);
    assert_true(finish(too_big, 1, 10000));
    assert_int_equal(0, too_big->ok);
    assert_int_equal(NNG_ECONNRESET, too_big->error);
    assert_int_equal(2, rig.requests);
    start(after, 1, 10);
    assert_true(finish(after, 1, 10000));
    assert_int_equal(1, after->ok);
}

static void a_reply_to_a_peer_that_is_gone_is_dropped(void **state) {
    struct client *c = client(100, 0);
    struct client *after = client(0, 0);
    (void)state;
    rig.hold = true;
    open_server();
    start(c, 1, 10);
    assert_true(run_until(&rig.num_held, 1, 10000));
    assert_true(finish(c, 1, 10000));
    assert_int_equal(NNG_ETIMEDOUT, c->error);
    assert_true(run_until(&rig.went, 1, 5000));
    rig.hold = false;
    server_reply(rig.server, rig.held[0], "late", 4);
    assert_true(run_until_idle());
    start(after, 1, 10);
    assert_true(finish(after, 1, 10000));
    assert_int_equal(1, after->ok);
}

// Sends framed requests of 60,000 bytes and reads nothing, until it is disconnected or stopped.
static void *send_without_reading(void *arg) {
    static uint8_t frame[8 + 13 + 60000];
    const uint32_t body = 60000 + 4;
    size_t at = 0, begin = 0;
    int fd = raw_connect();
    memcpy(frame, handshake, sizeof handshake);
    frame[8] = 1;
    for (int i = 0; i < 4; i++) {
        frame[8 + 5 + i] = (uint8_t)(body >> (24 - 8 * i));
    }
    frame[8 + 9] = 0x80;
    while (fd >= 0 && !atomic_load((atomic_bool *)arg)) {
        ssize_t n = send(fd, frame + begin + at, sizeof frame - begin - at, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) {
            break; // disconnected
        }
        at += n > 0 ? (size_t)n : 0;
        if (at == sizeof frame - begin) {
            begin = sizeof handshake; // once only
            at = 0;
        }
        if (n < 0) {
            usleep(1000);
        }
    }
    close(fd);
    return NULL;
}

static void a_peer_that_does_not_read_its_replies_is_disconnected(void **state) {
    static atomic_bool stop; // static: a failed test leaves its threads behind
    struct client *c = client(8000, 0);
    pthread_t slow;
    (void)state;
    atomic_store(&stop, false);
    c->timeout_ms = 8000;
    rig.config.slots = 4;
    open_server();
    assert_int_equal(0, pthread_create(&slow, NULL, send_without_reading, &stop));
    assert_true(run_until(&rig.requests, 4, 10000));
    run_for(300); // its replies fill the socket, then the slots
    assert_int_equal(4, server_busy(rig.server));
    start(c, 1, 10);
    assert_true(finish(c, 1, 10000));
    assert_int_equal(1, c->ok);
    assert_true(run_until(&rig.went, 1, 5000));
    assert_true(run_until_idle());
    atomic_store(&stop, true);
    pthread_join(slow, NULL);
}

// --- end ---

static void drain_answers_what_is_being_handled_and_takes_nothing_new(void **state) {
    struct client *c = clients(4);
    struct client *late = client(300, 0);
    (void)state;
    rig.hold = true;
    open_server();
    for (int i = 0; i < 4; i++) {
        start(&c[i], 1, 32);
    }
    assert_true(run_until(&rig.num_held, 4, 10000));
    server_drain(rig.server);
    server_drain(rig.server); // harmless
    run_for(50);
    assert_false(server_drained(rig.server));
    for (unsigned i = 0; i < 4; i++) {
        server_reply(rig.server, rig.held[i], rig.held[i]->bytes, rig.held[i]->len);
    }
    assert_true(finish(c, 4, 10000));
    for (int i = 0; i < 4; i++) {
        assert_int_equal(1, c[i].ok);
    }
    for (int i = 0; i < 200 && !server_drained(rig.server); i++) {
        run_for(10);
    }
    assert_true(server_drained(rig.server));
    start(late, 1, 8);
    assert_true(finish(late, 1, 10000));
    assert_int_equal(0, late->ok);
    assert_int_equal(4, rig.requests);
    assert_true(close_server());
}

// One server life with busy clients. With `drain` they are answered as long as it lasts, without
// their requests are never answered; either way it ends in time.
// server_close keeps its time. Now and then (seen once in some hundred runs, under TSan) NNG 1.5.2
// itself does not end, and nothing in the process can use NNG from then on: the program starts anew,
// once.
static void close_in_time(void) {
    const uint64_t begin = uv_hrtime();
    const bool ended = close_server();
    assert_true(uv_hrtime() - begin < (ended ? 2000000000u : 3500000000u));
    if (!ended) {
        if (getenv("KVPOOL_TEST_AGAIN") != NULL) {
            fail_msg("NNG did not end, again");
        }
        fprintf(stderr, "NNG did not end: all tests run again\n");
        setenv("KVPOOL_TEST_AGAIN", "1", 1);
        execv("/proc/self/exe", (char *[]){(char *)"test_server", NULL});
        fail_msg("cannot start again");
    }
}

static void live_and_close(bool drain) {
    struct client *c = clients(4);
    rig.hold = !drain;
    rig.num_held = 0;
    rig.requests = 0;
    open_server();
    for (int i = 0; i < 4; i++) {
        assert_int_equal(0, pthread_create(&c[i].thread, NULL, raw_client, NULL));
    }
    assert_true(run_until(&rig.requests, drain ? 50 : 4, 10000));
    server_drain(rig.server);
    if (drain) {
        for (int i = 0; i < 500 && !server_drained(rig.server); i++) {
            run_for(2);
        }
        assert_true(server_drained(rig.server));
    } else {
        run_for(20);
        assert_false(server_drained(rig.server));
    }
    close_in_time();
    assert_true(finish(c, 4, 20000));
}

static void drain_then_close_never_hangs(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        live_and_close(true);
    }
}

static void close_abandons_requests_nobody_answered(void **state) {
    (void)state;
    for (int i = 0; i < 5; i++) {
        live_and_close(false);
    }
}

static void close_right_after_open(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        open_server();
        close_in_time();
    }
}

static void a_socket_path_that_is_too_long_is_refused(void **state) {
    struct server *s = NULL;
    struct err err;
    (void)state;
    snprintf(rig.config.dir, sizeof rig.config.dir, "/%0100d", 0);
    assert_int_equal(KVPOOL_E_INVAL,
                     server_open(&rig.loop, &rig.config, on_request, on_pipe, &rig, &s, &err));
    assert_non_null(strstr(err.text, "is 113 bytes, the limit is 107"));
    assert_null(s);
}

static void a_directory_that_does_not_exist_is_refused(void **state) {
    struct server *s = NULL;
    struct err err;
    (void)state;
    snprintf(rig.config.dir, sizeof rig.config.dir, "%s/no", rig.dir.path);
    assert_int_equal(KVPOOL_E_SYSTEM,
                     server_open(&rig.loop, &rig.config, on_request, on_pipe, &rig, &s, &err));
    assert_non_null(strstr(err.text, "cannot listen at "));
    assert_null(s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        TEST(a_request_arrives_with_its_peer_and_its_reply_returns),
        TEST(an_empty_message_is_a_request_too),
        TEST(the_socket_has_the_configured_mode),
        TEST(sixty_four_clients_are_all_answered),
        TEST(more_requests_than_slots_wait_their_turn),
        TEST(a_message_of_the_limit_passes_and_one_byte_more_costs_the_connection),
        TEST(a_reply_to_a_peer_that_is_gone_is_dropped),
        TEST(a_peer_that_does_not_read_its_replies_is_disconnected),
        TEST(drain_answers_what_is_being_handled_and_takes_nothing_new),
        TEST(drain_then_close_never_hangs),
        TEST(close_abandons_requests_nobody_answered),
        TEST(close_right_after_open),
        TEST(a_socket_path_that_is_too_long_is_refused),
        TEST(a_directory_that_does_not_exist_is_refused),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests_name("server", tests, NULL, NULL);
}
