// SPDX-License-Identifier: Apache-2.0
// server_rig.c: see server_rig.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/daemon/server_rig.h"

#include "proto/proto.h"

#include <errno.h>
#include <nng/protocol/reqrep0/req.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { TICK_MS = 2 };

struct rig rig;

void on_request(void *arg, struct server_req *req) {
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

void on_pipe(void *arg, uint32_t pipe, uint32_t pid, bool gone) {
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

int setup(void **state) {
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

void open_server(void) {
    struct err err;
    assert_int_equal(
        0, server_open(&rig.loop, &rig.config, on_request, on_pipe, &rig, &rig.server, &err));
}

bool close_server(void) {
    const bool ended = server_close(rig.server);
    rig.server = NULL;
    return ended;
}

int teardown(void **state) {
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
bool run_until(const unsigned *value, unsigned want, unsigned ms) {
    const uint64_t until = uv_hrtime() + (uint64_t)ms * 1000000;
    while (*value < want && uv_hrtime() < until) {
        uv_run(&rig.loop, UV_RUN_ONCE);
    }
    return *value >= want;
}

void run_for(unsigned ms) {
    const unsigned never = 0;
    run_until(&never, 1, ms);
}

// A reply is with its client before NNG says that it was sent.
bool run_until_idle(void) {
    for (int i = 0; i < 500 && server_busy(rig.server) > 0; i++) {
        run_for(10);
    }
    return server_busy(rig.server) == 0;
}

// --- clients ---

// n fresh clients. Never used again: a test that failed leaves threads behind that write to theirs.
struct client *clients(int n) {
    static struct client all[512];
    static int used;
    assert_true(used + n <= 512);
    used += n;
    return &all[used - n];
}

struct client *client(int timeout_ms, int retry_ms) {
    struct client *c = clients(1);
    c->timeout_ms = timeout_ms;
    c->retry_ms = retry_ms;
    return c;
}

int open_req(nng_socket *ret, int timeout_ms) {
    int rv = nng_req0_open(ret);
    if (rv == 0) {
        nng_socket_set_ms(*ret, NNG_OPT_RECVTIMEO, timeout_ms);
        nng_socket_set_ms(*ret, NNG_OPT_SENDTIMEO, timeout_ms);
        nng_socket_set_ms(*ret, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
        nng_socket_set_size(*ret, NNG_OPT_RECVMAXSZ, 0); // its default is below our limit
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

void start(struct client *c, int calls, size_t len) {
    c->calls = calls;
    c->len = len;
    c->timeout_ms = c->timeout_ms != 0 ? c->timeout_ms : 10000;
    assert_int_equal(0, pthread_create(&c->thread, NULL, client_main, c));
}

// Runs the loop until n client threads have ended.
bool finish(struct client *c, int n, unsigned ms) {
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

int raw_connect(void) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    memcpy(addr.sun_path, rig.path, strlen(rig.path) + 1);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

const uint8_t handshake[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};

// A client without NNG (whose own nng_close may hang when its server goes): calls until the server
// ends the connection.
void *raw_client(void *arg) {
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
