// SPDX-License-Identifier: Apache-2.0
// sp_client.c: see sp_client.h.
#include "client/cmd/sp_client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    GREETING = 8,
    HEAD = 9, // before a body
    ID = 4,
    MAX_REQUEST = 64,
    READ_BYTES = 65536, // one read
    RETRY_MS = 50,      // between tries to connect
};

struct sp_client {
    struct sockaddr_un addr;
    enum sp_client_role role;
    int fd;       // -1: not connected
    bool greeted; // the peer's greeting was read
    int last;     // errno of what ended the last connection, or try
    uint32_t id;  // of the last request; the highest bit is set
    uint32_t connections;
    uint8_t *buf; // [cap]: bytes [at, have) are unread
    size_t cap, at, have;
};

uint64_t sp_client_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void put_be(uint8_t *out, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; i++) {
        out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    }
}

static uint64_t get_be(const uint8_t *in, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++) {
        value = value << 8 | in[i];
    }
    return value;
}

// --- the connection ---

static void disconnect(struct sp_client *c, int why) {
    if (c->fd >= 0) {
        close(c->fd);
    }
    c->fd = -1;
    c->greeted = false;
    c->last = why;
    c->at = c->have = 0;
}

static void sleep_until(uint64_t deadline_ns) {
    const uint64_t now = sp_client_now_ns(), most = RETRY_MS * 1000000ull;
    const uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
    const struct timespec pause = {.tv_nsec = (long)(left < most ? left : most)};
    nanosleep(&pause, NULL);
}

// A fresh socket's buffer takes a greeting and a request at once: what it does not take whole is as
// good as a lost connection.
static void send_all(struct sp_client *c, const uint8_t *bytes, size_t len) {
    const ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n != (ssize_t)len) {
        disconnect(c, n < 0 ? errno : ENOBUFS);
    }
}

// Connects and sends the greeting, where that is needed. False: not now.
static bool connect_once(struct sp_client *c) {
    static const uint8_t greetings[2][GREETING] = {{0, 'S', 'P', 0, 0, 0x21, 0, 0},
                                                   {0, 'S', 'P', 0, 0, 0x30, 0, 0}};
    if (c->fd >= 0) {
        return true;
    }
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&c->addr, sizeof c->addr) != 0) {
        disconnect(c, errno);
        return false;
    }
    c->connections++;
    send_all(c, greetings[c->role], GREETING);
    return c->fd >= 0;
}

// --- messages ---

static int broken(struct sp_client *c, struct err *err, const char *what) {
    disconnect(c, EPROTO);
    return err_set(err, KVPOOL_E_PROTO, "%s sent %s", c->addr.sun_path, what);
}

// Takes what is whole: 1 a message, 0 more bytes are needed.
static int take(struct sp_client *c, const uint8_t **ret, size_t *ret_len, struct err *err) {
    static const uint8_t greetings[2][GREETING] = {{0, 'S', 'P', 0, 0, 0x20, 0, 0},
                                                   {0, 'S', 'P', 0, 0, 0x31, 0, 0}};
    uint64_t len;
    if (!c->greeted) {
        if (c->have - c->at < GREETING) {
            return 0;
        }
        if (memcmp(c->buf + c->at, greetings[c->role], GREETING) != 0) {
            return broken(c, err, "another greeting than the daemon's");
        }
        c->greeted = true;
        c->at += GREETING;
    }
    if (c->have - c->at < HEAD) {
        return 0;
    }
    len = get_be(c->buf + c->at + 1, 8);
    if (c->buf[c->at] != 1 || len > SP_CLIENT_MAX) {
        return broken(c, err, "bytes that are no message");
    }
    if (c->have - c->at - HEAD < len) {
        return 0;
    }
    *ret = c->buf + c->at + HEAD;
    *ret_len = len;
    c->at += HEAD + len;
    return 1;
}

// Room for one more read behind what is unread.
static int make_room(struct sp_client *c, struct err *err) {
    uint8_t *buf;
    if (c->at > 0) {
        memmove(c->buf, c->buf + c->at, c->have - c->at);
        c->have -= c->at;
        c->at = 0;
    }
    if (c->cap - c->have >= READ_BYTES) {
        return 0;
    }
    buf = realloc(c->buf, c->have + (size_t)2 * READ_BYTES + c->cap);
    if (buf == NULL) {
        disconnect(c, ENOMEM);
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    c->buf = buf;
    c->cap += c->have + (size_t)2 * READ_BYTES;
    return 0;
}

// Reads once, waiting for it. The deadline, and the end of the connection, are no errors.
static int read_more(struct sp_client *c, uint64_t deadline_ns, struct err *err) {
    const uint64_t now = sp_client_now_ns();
    const uint64_t left_ms = deadline_ns > now ? (deadline_ns - now + 999999) / 1000000 : 0;
    struct pollfd poll_fd = {.fd = c->fd, .events = POLLIN};
    ssize_t n;
    int rc = make_room(c, err);
    if (rc != 0 || poll(&poll_fd, 1, left_ms < 60000 ? (int)left_ms : 60000) <= 0) {
        return rc;
    }
    n = recv(c->fd, c->buf + c->have, READ_BYTES, MSG_DONTWAIT);
    if (n > 0) {
        c->have += (size_t)n;
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        disconnect(c, n == 0 ? ECONNRESET : errno);
    }
    return 0;
}

// --- the calls ---

int sp_client_open(const char *path, enum sp_client_role role, struct sp_client **ret,
                   struct err *err) {
    struct sp_client *c;
    if (strlen(path) >= sizeof c->addr.sun_path) {
        return err_set(err, KVPOOL_E_INVAL, "the path %.60s... is too long", path);
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    c->addr.sun_family = AF_UNIX;
    memcpy(c->addr.sun_path, path, strlen(path) + 1);
    c->role = role;
    c->fd = -1;
    c->id = 0x80000000u;
    *ret = c;
    return 0;
}

int sp_client_receive(struct sp_client *c, uint64_t deadline_ns, const char **ret, size_t *ret_len,
                      struct err *err) {
    for (bool last = false;;) {
        const uint8_t *body = NULL;
        int rc = take(c, &body, ret_len, err);
        if (rc != 0) {
            *ret = (const char *)body;
            return rc;
        }
        if (last) {
            return 0;
        }
        last = sp_client_now_ns() >= deadline_ns; // looks once more, without waiting
        if (connect_once(c)) {
            rc = read_more(c, deadline_ns, err);
            if (rc != 0) {
                return rc;
            }
        }
        if (c->fd < 0 && !last) {
            sleep_until(deadline_ns);
        }
    }
}

int sp_client_ask(struct sp_client *c, const void *request, size_t len, uint64_t deadline_ns,
                  const char **ret, size_t *ret_len, struct err *err) {
    uint8_t message[HEAD + ID + MAX_REQUEST];
    bool sent = false;
    if (len > MAX_REQUEST) {
        return err_set(err, KVPOOL_E_INVAL, "a request of %zu bytes", len);
    }
    c->id = 0x80000000u | (c->id + 1);
    message[0] = 1;
    put_be(message + 1, 8, ID + len);
    put_be(message + HEAD, ID, c->id);
    memcpy(message + HEAD + ID, request, len);
    while (sp_client_now_ns() < deadline_ns) {
        const uint8_t *body = NULL;
        size_t body_len = 0;
        int rc;
        if (c->fd < 0) {
            sent = false;
            if (!connect_once(c)) {
                sleep_until(deadline_ns);
                continue;
            }
        }
        if (!sent) {
            send_all(c, message, HEAD + ID + len);
            sent = c->fd >= 0;
            continue;
        }
        rc = take(c, &body, &body_len, err);
        if (rc < 0) {
            return rc;
        }
        if (rc == 0) {
            rc = read_more(c, deadline_ns, err);
            if (rc != 0) {
                return rc;
            }
            if (c->fd < 0) {
                sleep_until(deadline_ns);
            }
        } else if (body_len >= ID && get_be(body, ID) == c->id) { // else an old request's
            *ret = (const char *)body + ID;
            *ret_len = body_len - ID;
            return 0;
        }
    }
    return err_set(err, KVPOOL_E_TIMEOUT, "%s does not answer%s%s", c->addr.sun_path,
                   c->fd < 0 && c->last != 0 ? ": " : "",
                   c->fd < 0 && c->last != 0 ? strerrordesc_np(c->last) : "");
}

uint32_t sp_client_connections(const struct sp_client *c) {
    return c->connections;
}

void sp_client_close(struct sp_client *c) {
    if (c == NULL) {
        return;
    }
    disconnect(c, 0);
    free(c->buf);
    free(c);
}
