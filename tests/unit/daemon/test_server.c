// SPDX-License-Identifier: Apache-2.0
// test_server.c: the NNG side against real clients, garbage, slow peers, and its own end. The loop
// is the test's thread; clients are threads with REQ sockets of their own, or raw Unix sockets.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/server.h"
#include "proto/proto.h"
#include "tests/unit/daemon/tmpdir.h"

#include <errno.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_HELD = 64, TICK_MS = 2 };

static struct rig {
    struct tmpdir dir;
    char path[128], url[144];
    uv_loop_t loop;
    uv_timer_t tick; // so that run_until looks at its condition
    struct config config;
    struct server *server;
    bool hold; // requests are kept instead of answered
    struct server_req *held[MAX_HELD];
    unsigned num_held, requests, pings, came, went;
    uint32_t last_pid, last_uid, last_pipe, came_pid;
    atomic_int done; // client threads that ended
} rig;

static void on_request(void *arg, struct server_req *req) {
    struct rig *r = arg;
    if (req->len >= 4 && memcmp(req->bytes, "KVP1", 4) == 0) { // the self-probe's
        r->pings++;
        server_reply(r->server, req, req->bytes, req->len);
        return;
    }
    r->requests++;
    r->last_pid = req->pid;
    r->last_uid = req->uid;
    r->last_pipe = req->pipe;
    if (r->hold && r->num_held < MAX_HELD) {
        r->held[r->num_held++] = req;
        return;
    }
    server_reply(r->server, req, req->bytes, req->len);
}

static void on_pipe(void *arg, uint32_t pipe, uint32_t pid, bool gone) {
    struct rig *r = arg;
    (void)pipe;
    if (gone) {
        r->went++;
    } else {
        r->came++;
        r->came_pid = pid;
    }
}

static void on_tick(uv_timer_t *timer) {
    (void)timer;
}

static int setup(void **state) {
    (void)state;
    memset(&rig, 0, sizeof rig);
    if (!tmpdir_make(&rig.dir)) {
        return -1;
    }
    log_open(NULL, getenv("TEST_VERBOSE") != NULL ? LOG_DEBUG : LOG_ERROR);
    tmpdir_file(&rig.dir, PROTO_CONTROL_SOCKET, rig.path, sizeof rig.path);
    snprintf(rig.url, sizeof rig.url, "ipc://%s", rig.path);
    snprintf(rig.config.dir, sizeof rig.config.dir, "%s", rig.dir.path);
    rig.config.slots = 16;
    rig.config.socket_mode = 0600;
    uv_loop_init(&rig.loop);
    uv_timer_init(&rig.loop, &rig.tick);
    uv_timer_start(&rig.tick, on_tick, TICK_MS, TICK_MS);
    return 0;
}

static void open_server(void) {
    struct err err;
    assert_int_equal(
        0, server_open(&rig.loop, &rig.config, on_request, on_pipe, &rig, &rig.server, &err));
}

static bool close_server(void) {
    const bool ended = server_close(rig.server);
    rig.server = NULL;
    return ended;
}

static int teardown(void **state) {
    (void)state;
    if (rig.server != NULL) {
        server_close(rig.server);
    }
    uv_close((uv_handle_t *)&rig.tick, NULL);
    uv_run(&rig.loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&rig.loop) != 0) {
        return -1;
    }
    tmpdir_remove(&rig.dir);
    return 0;
}

// Runs the loop until *value reaches `want`, or the time is over.
static bool run_until(const unsigned *value, unsigned want, unsigned ms) {
    const uint64_t until = uv_hrtime() + (uint64_t)ms * 1000000;
    while (*value < want && uv_hrtime() < until) {
        uv_run(&rig.loop, UV_RUN_ONCE);
    }
    return *value >= want;
}

static void run_for(unsigned ms) {
    const unsigned never = 0;
    run_until(&never, 1, ms);
}

// A reply is with its client before NNG says that it was sent.
static bool run_until_idle(void) {
    for (int i = 0; i < 500 && server_busy(rig.server) > 0; i++) {
        run_for(10);
    }
    return server_busy(rig.server) == 0;
}

// --- clients
// --------------------------------------------------------------------------------------

struct client {
    pthread_t thread;
    int calls;          // to make
    size_t len;         // of each message
    int timeout_ms;     // of each call
    int retry_ms;       // keep trying to connect and call for so long
    int ok, error;      // calls answered rightly; the last nng error
    uint64_t waited_ns; // until the first answer
};

// n fresh clients. Never used again: a test that failed leaves threads behind that write to theirs.
static struct client *clients(int n) {
    static struct client all[512];
    static int used;
    assert_true(used + n <= 512);
    used += n;
    return &all[used - n];
}

static struct client *client(int timeout_ms, int retry_ms) {
    struct client *c = clients(1);
    c->timeout_ms = timeout_ms;
    c->retry_ms = retry_ms;
    return c;
}

static int open_req(nng_socket *ret, int timeout_ms) {
    int rv = nng_req0_open(ret);
    if (rv == 0) {
        nng_socket_set_ms(*ret, NNG_OPT_RECVTIMEO, timeout_ms);
        nng_socket_set_ms(*ret, NNG_OPT_SENDTIMEO, timeout_ms);
        nng_socket_set_ms(*ret, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
        rv = nng_dial(*ret, rig.url, NULL, 0);
        if (rv != 0) {
            nng_close(*ret);
        }
    }
    return rv;
}

// 0, an nng error, or -1 when the answer is not what was sent.
static int call(nng_socket socket, size_t len, uint8_t seed) {
    nng_msg *msg = NULL;
    int rv = nng_msg_alloc(&msg, len);
    if (rv != 0) {
        return rv;
    }
    memset(nng_msg_body(msg), seed, len);
    rv = nng_sendmsg(socket, msg, 0);
    if (rv != 0) {
        nng_msg_free(msg);
        return rv;
    }
    rv = nng_recvmsg(socket, &msg, 0);
    if (rv != 0) {
        return rv;
    }
    if (nng_msg_len(msg) != len) {
        rv = -1;
    }
    for (size_t i = 0; rv == 0 && i < len; i++) {
        rv = ((uint8_t *)nng_msg_body(msg))[i] == seed ? 0 : -1;
    }
    nng_msg_free(msg);
    return rv;
}

static void *client_main(void *arg) {
    struct client *c = arg;
    const uint64_t start = uv_hrtime();
    nng_socket socket;
    do {
        c->error = open_req(&socket, c->timeout_ms);
        if (c->error == 0) {
            for (int i = 0; i < c->calls && c->error == 0; i++) {
                c->error = call(socket, c->len, (uint8_t)(i + c->ok));
                c->ok += c->error == 0;
            }
            nng_close(socket);
        }
        if (c->error == 0) {
            c->waited_ns = uv_hrtime() - start;
            break;
        }
        usleep(10000);
    } while (uv_hrtime() - start < (uint64_t)c->retry_ms * 1000000);
    atomic_fetch_add(&rig.done, 1);
    return NULL;
}

static void start(struct client *c, int calls, size_t len) {
    c->calls = calls;
    c->len = len;
    c->timeout_ms = c->timeout_ms != 0 ? c->timeout_ms : 10000;
    assert_int_equal(0, pthread_create(&c->thread, NULL, client_main, c));
}

// Runs the loop until n client threads have ended.
static bool finish(struct client *c, int n, unsigned ms) {
    const uint64_t until = uv_hrtime() + (uint64_t)ms * 1000000;
    while (atomic_load(&rig.done) < n && uv_hrtime() < until) {
        uv_run(&rig.loop, UV_RUN_ONCE);
    }
    if (atomic_load(&rig.done) < n) {
        return false;
    }
    atomic_store(&rig.done, 0);
    for (int i = 0; i < n; i++) {
        pthread_join(c[i].thread, NULL);
    }
    return true;
}

static int raw_connect(void) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static const uint8_t handshake[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};

// --- tests
// ----------------------------------------------------------------------------------------

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
    start(c, 2, PROTO_MAX_MESSAGE);
    assert_true(finish(c, 1, 10000));
    assert_int_equal(2, c->ok);
    start(too_big, 1, PROTO_MAX_MESSAGE + 1);
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

// --- garbage and the self-probe
// -------------------------------------------------------------------

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

static void
after_garbage_the_daemon_is_reachable_within_the_probe_interval_and_a_second(void **state) {
    (void)state;
    rig.config.probe_interval_ms = 500;
    open_server();
    for (int round = 0; round < 3; round++) {
        struct client *c = client(400, 5000);
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
        assert_true(c->waited_ns < (uint64_t)(500 + 1000 + 500) * 1000000); // + the client's own
    }
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
    assert_true(c->waited_ns < 1200ull * 1000000);
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

static void a_probe_interval_that_is_switched_on_later_works(void **state) {
    (void)state;
    open_server();
    run_for(100);
    assert_int_equal(0, rig.pings);
    rig.config.probe_interval_ms = 50;
    assert_true(run_until(&rig.pings, 2, 5000));
}

// --- end
// ------------------------------------------------------------------------------------------

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

// A client without NNG (whose own nng_close may hang when its server goes): calls until the server
// ends the connection.
static void *raw_client(void *arg) {
    uint8_t frame[8 + 13 + 64] = {0}, reply[256];
    int fd = raw_connect();
    size_t begin = 0;
    memcpy(frame, handshake, sizeof handshake);
    frame[8] = 1;
    frame[8 + 8] = 4 + 64;
    frame[8 + 9] = 0x80;
    while (fd >= 0 && send(fd, frame + begin, sizeof frame - begin, MSG_NOSIGNAL) > 0) {
        size_t want = sizeof frame - begin; // the reply is as long as the request
        begin = sizeof handshake;
        while (want > 0) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            ssize_t n = poll(&p, 1, 20000) == 1 ? recv(fd, reply, sizeof reply, 0) : 0;
            if (n <= 0) {
                close(fd);
                fd = -1;
                break;
            }
            want -= (size_t)n < want ? (size_t)n : want;
        }
    }
    atomic_fetch_add(&rig.done, 1);
    (void)arg;
    return NULL;
}

// One server life with busy clients. With `drain` they are answered as long as it lasts, without
// their requests are never answered; either way it ends in time.
static void live_and_close(bool drain) {
    struct client *c = clients(4);
    uint64_t begin;
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
    begin = uv_hrtime();
    assert_true(close_server());
    assert_true(uv_hrtime() - begin < 2000000000u);
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
        assert_true(close_server());
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
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        TEST(a_request_arrives_with_its_peer_and_its_reply_returns),
        TEST(an_empty_message_is_a_request_too),
        TEST(the_socket_has_the_configured_mode),
        TEST(sixty_four_clients_are_all_answered),
        TEST(more_requests_than_slots_wait_their_turn),
        TEST(a_message_of_the_limit_passes_and_one_byte_more_costs_the_connection),
        TEST(a_reply_to_a_peer_that_is_gone_is_dropped),
        TEST(a_peer_that_does_not_read_its_replies_is_disconnected),
        TEST(after_garbage_the_daemon_is_reachable_within_the_probe_interval_and_a_second),
        TEST(a_listener_that_is_lost_is_created_again),
        TEST(clients_of_before_go_on_after_a_relisten),
        TEST(a_healthy_listener_is_left_alone),
        TEST(busy_slots_are_not_taken_for_a_dead_listener),
        TEST(a_probe_interval_that_is_switched_on_later_works),
        TEST(drain_answers_what_is_being_handled_and_takes_nothing_new),
        TEST(drain_then_close_never_hangs),
        TEST(close_abandons_requests_nobody_answered),
        TEST(close_right_after_open),
        TEST(a_socket_path_that_is_too_long_is_refused),
        TEST(a_directory_that_does_not_exist_is_refused),
    };
    return cmocka_run_group_tests_name("server", tests, NULL, NULL);
}
