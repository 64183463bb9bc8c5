// SPDX-License-Identifier: Apache-2.0
// test_listener.c: the listener against garbage, and the self-probe that brings it back.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/daemon/server_rig.h"
#include "tests/unit/daemon/starve.h"

#include <dirent.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

// Until then the listener is as one that NNG has lost: it accepts and greets, but makes no pipe, as the
// callback of the pipe before does not return. UINT64_MAX: until it is closed, which waits for that.
static atomic_uint_least64_t deaf_until;

// NOLINTBEGIN(bugprone-reserved-identifier)
int __real_nng_pipe_get_uint64(nng_pipe pipe, const char *option, uint64_t *ret);
int __wrap_nng_pipe_get_uint64(nng_pipe pipe, const char *option, uint64_t *ret);
int __real_nng_listener_close(nng_listener listener);
int __wrap_nng_listener_close(nng_listener listener);

int __wrap_nng_pipe_get_uint64(nng_pipe pipe, const char *option, uint64_t *ret) {
    while (uv_hrtime() < atomic_load(&deaf_until)) {
        usleep(1000);
    }
    return __real_nng_pipe_get_uint64(pipe, option, ret);
}

int __wrap_nng_listener_close(nng_listener listener) {
    if (atomic_load(&deaf_until) == UINT64_MAX) {
        atomic_store(&deaf_until, uv_hrtime() + 300000000);
    }
    return __real_nng_listener_close(listener);
}
// NOLINTEND(bugprone-reserved-identifier)

static void *garbage_main(void *arg) {
    static const uint8_t frames[][32] = {
        "GET / HTTP/1.1\r\n\r\n",                                      // not SP at all
        {0, 'S', 'P', 0, 0, 0x31, 0, 0},                               // a REP, not a REQ
        {0, 'S', 'P', 0},                                              // half a handshake
        {0, 'S', 'P', 0, 0, 0x30, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 8, 1}, // unknown frame type
        {0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 1}, // huge
        {0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 99, 1},                // truncated
        {0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1},              // no id
        {0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1},        // no end bit
    };
    static const size_t lens[] = {18, 8, 4, 18, 18, 18, 19, 21};
    for (int i = 0; i < 200; i++) {
        int fd = raw_connect();
        if (fd < 0) {
            usleep(1000);
            continue;
        }
        if (i % 2 == 1) {
            const size_t k = (size_t)(i / 2) % (sizeof lens / sizeof *lens);
            ssize_t n = send(fd, frames[k], lens[k], MSG_NOSIGNAL);
            (void)n;
        }
        if (i % 16 == 3) {
            usleep(2000);
        }
        close(fd);
    }
    atomic_fetch_add((atomic_int *)arg, 1);
    return NULL;
}

static void after_garbage_the_next_probe_makes_it_reachable_again(void **state) {
    (void)state;
    unsigned quick = 0;
    rig.config.probe_interval_ms = 500;
    open_server();
    for (int round = 0; round < 3; round++) {
        struct client *c = client(400, 15000);
        atomic_int ended = 0;
        pthread_t garbage;
        assert_int_equal(0, pthread_create(&garbage, NULL, garbage_main, &ended));
        while (atomic_load(&ended) == 0) {
            uv_run(&rig.loop, UV_RUN_ONCE);
        }
        pthread_join(garbage, NULL);
        start(c, 1, 50);
        assert_true(finish(c, 1, 20000));
        assert_int_equal(1, c->ok);
        print_message("reachable after %.0f ms, listener re-created %u times\n",
                      (double)c->waited_ns / 1e6, (unsigned)server_relistens(rig.server));
        // interval + 1 s, and the client's own time-outs on a busy machine
        quick += c->waited_ns < 3000ull * 1000000;
    }
    // A client whose time-out closes a fresh connection can itself end an NNG 1.5.2 listener once more.
    assert_true(quick >= 2);
}

static void a_listener_that_is_lost_is_created_again(void **state) {
    struct client *c = client(400, 5000);
    (void)state;
    rig.config.probe_interval_ms = 200;
    open_server();
    run_for(300);
    assert_int_equal(0, server_relistens(rig.server));
    assert_int_equal(0, unlink(rig.path)); // nobody can connect any more
    start(c, 1, 50);
    assert_true(finish(c, 1, 20000));
    assert_int_equal(1, c->ok);
    assert_int_equal(1, server_relistens(rig.server));
    assert_true(c->waited_ns < 2000ull * 1000000);
}

static void clients_of_before_go_on_after_a_relisten(void **state) {
    struct client *again = client(2000, 0);
    nng_socket socket;
    (void)state;
    rig.config.probe_interval_ms = 200;
    open_server();
    assert_int_equal(0, open_req(&socket, 5000));
    assert_true(run_until(&rig.came, 1, 5000));
    assert_int_equal(0, unlink(rig.path));
    assert_true(run_until(&rig.went, 1, 5000)); // kicked
    start(again, 1, 8);
    assert_true(finish(again, 1, 10000));
    assert_int_equal(1, again->ok);
    nng_close(socket);
}

// Without what a probe has for a moment.
static unsigned open_files(void) {
    unsigned least = UINT_MAX;
    for (int i = 0; i < 50; i++) {
        unsigned n = 0;
        DIR *dir = opendir("/proc/self/fd");
        assert_non_null(dir);
        while (readdir(dir) != NULL) {
            n++;
        }
        closedir(dir);
        least = n < least ? n : least;
        run_for(10);
    }
    return least;
}

// Runs the loop until the peer's end has something to read.
static bool readable(int fd, unsigned ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    for (unsigned i = 0; i < ms / 10 && poll(&p, 1, 0) != 1; i++) {
        run_for(10);
    }
    return poll(&p, 1, 0) == 1;
}

static bool is_greeted(int fd) {
    uint8_t bytes[sizeof handshake];
    return readable(fd, 5000) && recv(fd, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes;
}

static void what_nng_keeps_of_a_lost_listener_is_counted(void **state) {
    enum { PEERS = 14 };
    int fds[PEERS];
    char byte;
    (void)state;
    rig.config.probe_interval_ms = 200;
    open_server();
    assert_true(run_until(&rig.pings, 2, 10000));
    const unsigned before = open_files();
    for (unsigned round = 1; round <= 2; round++) {
        atomic_store(&deaf_until, UINT64_MAX);
        for (int i = 0; i < PEERS; i++) {
            fds[i] = raw_connect();
            assert_true(fds[i] >= 0);
            assert_int_equal(send(fds[i], handshake, sizeof handshake, 0), sizeof handshake);
            assert_true(is_greeted(fds[i]));
        }
        for (int i = 0; i < 1000 && server_relistens(rig.server) < round; i++) {
            run_for(10);
        }
        assert_int_equal(server_relistens(rig.server), round);
        for (int i = 0; i < PEERS; i++) {
            assert_true(readable(fds[i], 5000));
            assert_int_equal(recv(fds[i], &byte, 1, 0), 0); // its end
            close(fds[i]);
        }
        assert_true(run_until(&rig.pings, rig.pings + 3, 10000));
        const unsigned now = open_files();
        print_message("NNG keeps %u descriptors\n", now - before);
        assert_int_equal(server_kept(rig.server), now - before);
    }
}

static void a_healthy_listener_is_left_alone(void **state) {
    (void)state;
    rig.config.probe_interval_ms = 50;
    open_server();
    assert_true(run_until(&rig.pings, 10, 10000));
    assert_int_equal(0, server_relistens(rig.server));
}

static void busy_slots_are_not_taken_for_a_dead_listener(void **state) {
    struct client *c = clients(2);
    (void)state;
    rig.config.slots = 2;
    rig.config.probe_interval_ms = 100;
    rig.hold = true;
    open_server();
    start(&c[0], 1, 8);
    start(&c[1], 1, 8);
    assert_true(run_until(&rig.num_held, 2, 10000));
    run_for(2500); // at least two probes without a reply
    assert_int_equal(0, server_relistens(rig.server));
    rig.hold = false;
    for (unsigned i = 0; i < rig.num_held; i++) {
        server_reply(rig.server, rig.held[i], rig.held[i]->bytes, rig.held[i]->len);
    }
    assert_true(finish(c, 2, 10000));
}

static void threads_without_time_are_not_taken_for_a_dead_listener(void **state) {
    (void)state;
    rig.config.probe_interval_ms = 100;
    open_server();
    assert_true(run_until(&rig.pings, 1, 10000));
    const bool starved = starve_begin();
    run_for(6000);
    starve_end();
    assert_true(starved);
    assert_int_equal(0, server_relistens(rig.server));
    const unsigned pings = rig.pings;
    assert_true(run_until(&rig.pings, pings + 2, 30000)); // and it is probed again
    assert_int_equal(0, server_relistens(rig.server));
}

static void a_probe_interval_that_is_switched_on_later_works(void **state) {
    (void)state;
    open_server();
    run_for(100);
    assert_int_equal(0, rig.pings);
    rig.config.probe_interval_ms = 50;
    assert_true(run_until(&rig.pings, 2, 5000));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        TEST(after_garbage_the_next_probe_makes_it_reachable_again),
        TEST(a_listener_that_is_lost_is_created_again),
        TEST(clients_of_before_go_on_after_a_relisten),
        TEST(what_nng_keeps_of_a_lost_listener_is_counted),
        TEST(a_healthy_listener_is_left_alone),
        TEST(busy_slots_are_not_taken_for_a_dead_listener),
        TEST(a_probe_interval_that_is_switched_on_later_works),
        TEST(threads_without_time_are_not_taken_for_a_dead_listener), // the last: see starve.h
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests_name("listener", tests, NULL, NULL);
}
