// SPDX-License-Identifier: Apache-2.0
// probe.c: see probe.h.
#include "daemon/probe.h"

#include "daemon/sp.h"
#include "proto/proto.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    GIVE_UP_MS = 30000, // without beats
    RETRY_MS = 50,      // after a connect that found the backlog full
    FRAME_HEAD = 13,    // type 1, length (8, big-endian), request id (4, big-endian)
};

// One connection: a poll handle lives as long as its descriptor.
struct attempt {
    uv_poll_t poll;
    struct probe *probe;
    int fd;
};

struct probe {
    uv_loop_t *loop;
    probe_fn fn;
    void *arg;
    struct sockaddr_un addr;
    uv_timer_t timer;
    struct attempt *attempt; // NULL: not connected
    bool running;
    bool not_tried;   // for want of memory or descriptors
    uint32_t beats;   // since the start
    uint64_t give_up; // uv_now
    uint32_t id;      // of the request; the top bit is set as REQ demands
    size_t got;
    uint8_t buf[SP_HANDSHAKE + FRAME_HEAD + 512];
};

static void put_be32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) {
        at[i] = (uint8_t)(value >> (24 - 8 * i));
    }
}

static void on_attempt_closed(uv_handle_t *handle) {
    struct attempt *a = handle->data;
    close(a->fd);
    free(a);
}

static void disconnect(struct probe *p) {
    if (p->attempt != NULL) {
        uv_poll_stop(&p->attempt->poll);
        uv_close((uv_handle_t *)&p->attempt->poll, on_attempt_closed);
        p->attempt = NULL;
    }
}

static void finish(struct probe *p, enum probe_result result) {
    disconnect(p);
    uv_timer_stop(&p->timer);
    p->running = false;
    p->fn(p->arg, result);
}

// What the bytes so far say. False: not enough yet.
static bool verdict(const struct probe *p, enum probe_result *ret) {
    uint8_t handshake[SP_HANDSHAKE], id[4];
    sp_handshake(SP_REP, handshake);
    if (p->got >= SP_HANDSHAKE && memcmp(p->buf, handshake, SP_HANDSHAKE) != 0) {
        *ret = PROBE_DEAD; // something else listens there
        return true;
    }
    if (p->got < SP_HANDSHAKE + FRAME_HEAD) {
        return false;
    }
    put_be32(id, p->id);
    *ret = p->buf[SP_HANDSHAKE] == 1 && memcmp(p->buf + SP_HANDSHAKE + 9, id, 4) == 0 ? PROBE_OK
                                                                                      : PROBE_DEAD;
    return true;
}

// Reads what is there. True when the probe is decided.
static bool take(struct probe *p, enum probe_result *ret) {
    ssize_t n = recv(p->attempt->fd, p->buf + p->got, sizeof p->buf - p->got, MSG_DONTWAIT);
    if (n > 0) {
        p->got += (size_t)n;
        return verdict(p, ret);
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    *ret = PROBE_DEAD;
    return true;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    struct attempt *a = poll->data;
    enum probe_result result;
    (void)events; // an error shows when reading
    (void)status;
    if (take(a->probe, &result)) {
        finish(a->probe, result);
    }
}

// Handshake and request: 61 bytes always fit into a fresh socket's buffer.
static enum sp_answer send_request(const struct probe *p, int *ret_fd) {
    uint8_t message[64];
    uint8_t frame[FRAME_HEAD + sizeof message] = {1};
    const struct proto_header header = {.version = PROTO_VERSION_MIN, .op = PROTO_PING};
    const struct proto_ping ping = {.payload = p->id};
    const size_t len = proto_write(message, sizeof message, &header, &ping, sizeof ping, NULL, 0);
    put_be32(frame + 5, (uint32_t)len + 4);
    put_be32(frame + 9, p->id);
    memcpy(frame + FRAME_HEAD, message, len);
    return sp_connect(&p->addr, SP_REQ, frame, FRAME_HEAD + len, ret_fd);
}

static enum sp_answer connect_once(struct probe *p) {
    struct attempt *a = calloc(1, sizeof *a);
    enum sp_answer answer;
    if (a == NULL) {
        return SP_UNTRIED;
    }
    a->probe = p;
    answer = send_request(p, &a->fd);
    if (answer != SP_CONNECTED) {
        goto free_attempt;
    }
    if (uv_poll_init(p->loop, &a->poll, a->fd) != 0) {
        answer = SP_UNTRIED;
        goto close_fd;
    }
    a->poll.data = a;
    uv_poll_start(&a->poll, UV_READABLE | UV_DISCONNECT, on_readable);
    p->attempt = a;
    return SP_CONNECTED;

close_fd:
    close(a->fd);
free_attempt:
    free(a);
    return answer;
}

static void on_timer(uv_timer_t *timer);

// Connects, or arranges the next try.
static void try_connect(struct probe *p) {
    const uint64_t now = uv_now(p->loop);
    const enum sp_answer answer = connect_once(p);
    p->not_tried = answer == SP_UNTRIED;
    if (answer == SP_CONNECTED) {
        uv_timer_start(&p->timer, on_timer, p->give_up > now ? p->give_up - now : 0, 0);
    } else if (answer == SP_BUSY || answer == SP_UNTRIED) {
        uv_timer_start(&p->timer, on_timer, RETRY_MS, 0);
    } else {
        finish(p, answer == SP_GONE ? PROBE_GONE : PROBE_DEAD);
    }
}

static void on_timer(uv_timer_t *timer) {
    struct probe *p = timer->data;
    if (uv_now(p->loop) >= p->give_up) {
        finish(p, PROBE_UNKNOWN);
    } else {
        try_connect(p);
    }
}

void probe_beat(struct probe *p) {
    enum probe_result result;
    if (!p->running) {
        return;
    }
    p->beats++;
    if (p->attempt != NULL && take(p, &result)) {
        finish(p, result);
    } else if (p->beats >= PROBE_BEATS) {
        finish(p, p->not_tried             ? PROBE_UNKNOWN
                  : p->got >= SP_HANDSHAKE ? PROBE_NO_REPLY
                                           : PROBE_DEAD);
    }
}

int probe_open(uv_loop_t *loop, const char *path, probe_fn fn, void *arg, struct probe **ret,
               struct err *err) {
    struct probe *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    p->loop = loop;
    p->fn = fn;
    p->arg = arg;
    p->addr.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof p->addr.sun_path) {
        free(p);
        return err_set(err, KVPOOL_E_INVAL, "socket path is too long");
    }
    memcpy(p->addr.sun_path, path, strlen(path) + 1);
    p->id = 0x80000000u;
    uv_timer_init(loop, &p->timer);
    p->timer.data = p;
    *ret = p;
    return 0;
}

bool probe_start(struct probe *p) {
    if (p->running) {
        return false;
    }
    p->running = true;
    p->not_tried = false;
    p->beats = 0;
    p->got = 0;
    p->id = 0x80000000u | (p->id + 1);
    uv_update_time(p->loop);
    p->give_up = uv_now(p->loop) + GIVE_UP_MS;
    try_connect(p);
    return true;
}

bool probe_running(const struct probe *p) {
    return p->running;
}

static void on_timer_closed(uv_handle_t *handle) {
    free(handle->data);
}

void probe_close(struct probe *p) {
    disconnect(p);
    uv_close((uv_handle_t *)&p->timer, on_timer_closed);
}
