// SPDX-License-Identifier: Apache-2.0
// fake.c: see fake.h: sockets, the thread, and helpers. (fake_ops.c: what requests are answered.)
#include "tests/unit/client/fake.h"

#include "tests/unit/client/fake_ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUF ((size_t)2 * PROTO_MAX_REQUEST)

static struct fake *current; // the one between fake_init() and fake_cleanup()

void expect_at(const kvpool_client *client, kvpool_status expected, kvpool_status got,
               const char *what, const char *file, int line) {
    char text[256];
    if (current != NULL) { // what the fake noted about the request may now be looked at
        fake_lock(current);
        fake_unlock(current);
    }
    if (got != expected)
        print_error("%s:%d: %s is %s, not %s: %s\n", file, line, what, kvpool_status_name(got),
                    kvpool_status_name(expected), kvpool_last_error(client, text, sizeof text));
    _assert_int_equal((uintmax_t)(intmax_t)got, (uintmax_t)(intmax_t)expected, file, line);
}

void expect_message(const kvpool_client *client, const char *part) {
    char text[256];
    kvpool_last_error(client, text, sizeof text);
    if (strstr(text, part) == NULL)
        fail_msg("the message is \"%s\", without \"%s\"", text, part);
}

unsigned open_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    unsigned n = 0;
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

void fake_lock(struct fake *f) {
    pthread_mutex_lock(&f->lock);
}
void fake_unlock(struct fake *f) {
    pthread_mutex_unlock(&f->lock);
}

void fake_wake(struct fake *f) {
    assert_int_equal(write(f->wake[1], "x", 1), 1);
}

void fake_set_hook(struct fake *f, fake_hook hook) {
    fake_lock(f);
    f->hook = hook;
    f->hook_state = 0;
    fake_unlock(f);
}

unsigned fake_count(struct fake *f, uint16_t op) {
    fake_lock(f);
    unsigned n = f->requests[op];
    fake_unlock(f);
    return n;
}

void fake_await(struct fake *f, uint16_t op, unsigned n) {
    for (unsigned i = 0; i < 5000 && fake_count(f, op) < n; i++)
        usleep(1000);
    assert_true(fake_count(f, op) >= n);
}

void fake_close(struct fake_conn *c) {
    shutdown(c->fd, SHUT_RDWR); // takes effect at once, also while the thread polls the socket
    close(c->fd);
    free(c->buf);
    *c = (struct fake_conn){.fd = -1};
}

void fake_send_fds(struct fake_conn *c, const void *bytes, size_t len, const int *fds, unsigned n) {
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&msg);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(h), fds, n * sizeof(int));
    }
    sendmsg(c->fd, &msg, MSG_NOSIGNAL);
}

void fake_send_raw(struct fake_conn *c, const void *bytes, size_t len) {
    for (size_t at = 0; at < len;) {
        ssize_t n = send(c->fd, (const char *)bytes + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        at += (size_t)n;
    }
}

void fake_send(struct fake_conn *c, const void *bytes, size_t len) {
    if (!c->control) {
        fake_send_fds(c, bytes, len, NULL, 0);
        return;
    }
    uint8_t head[13] = {1};
    uint64_t framed = len + 4;
    for (int i = 0; i < 8; i++)
        head[1 + i] = (uint8_t)(framed >> (56 - 8 * i));
    for (int i = 0; i < 4; i++)
        head[9 + i] = (uint8_t)(c->sp_id >> (24 - 8 * i));
    fake_send_raw(c, head, sizeof head);
    fake_send_raw(c, bytes, len);
}

static int listen_at(const struct fake *f, const char *file, int type) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", f->dir, file);
    unlink(addr.sun_path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(fd, 64), 0);
    return fd;
}

static void accept_conn(struct fake *f, int listener, bool control) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    for (unsigned i = 0; i < FAKE_CONNS; i++) {
        struct fake_conn *c = &f->conns[i];
        if (c->fd >= 0)
            continue;
        *c = (struct fake_conn){.fd = fd, .control = control};
        if (control)
            c->buf = malloc(BUF);
        return;
    }
    close(fd);
}

static void handle(struct fake *f, struct fake_conn *c, const uint8_t *bytes, size_t len) {
    struct proto_msg msg;
    struct err err;
    bool header_ok;
    int rc = proto_parse_request(c->control ? PROTO_ON_CONTROL : PROTO_ON_FD, bytes, len, &msg,
                                 &header_ok, &err);
    if (rc != 0) {
        fake_error(f, c, header_ok ? &msg.header : NULL, rc, 0, err.text);
        return;
    }
    f->requests[msg.header.op]++;
    if (c->control && msg.header.seq != 0 && msg.header.seq != ++c->seq)
        f->seq_errors++;
    if (c->control ? f->mute_control : f->mute_fd)
        return;
    if (f->hook != NULL && f->hook(f, c, &msg))
        return;
    fake_answer(f, c, &msg);
}

// Takes whole messages out of a control connection's buffer.
static void unframe(struct fake *f, struct fake_conn *c) {
    size_t at = 0;
    if (!c->greeted) {
        if (c->have < 8)
            return;
        c->greeted = true;
        at = 8;
        uint8_t greeting[8] = {0, 'S', 'P', 0, 0, f->bad_greeting ? 0x10 : 0x31, 0, 0};
        if (f->close_at_greeting) {
            fake_close(c);
            return;
        }
        if (!f->mute_greeting)
            fake_send_raw(c, greeting, sizeof greeting);
    }
    while (c->fd >= 0 && c->have - at >= 13) {
        uint64_t framed = 0;
        for (int i = 0; i < 8; i++)
            framed = framed << 8 | c->buf[at + 1 + (size_t)i];
        if (c->have - at < 9 + framed)
            break;
        c->sp_id = (uint32_t)c->buf[at + 9] << 24 | (uint32_t)c->buf[at + 10] << 16 |
                   (uint32_t)c->buf[at + 11] << 8 | c->buf[at + 12];
        handle(f, c, c->buf + at + 13, framed - 4);
        at += 9 + framed;
    }
    if (c->fd < 0)
        return;
    c->have -= at;
    memmove(c->buf, c->buf + at, c->have);
}

// What poll saw may have been an earlier connection's, of the same slot and number: then there is nothing to read.
static bool ended(ssize_t n) {
    return n == 0 || (n < 0 && errno != EAGAIN);
}

static void read_conn(struct fake *f, struct fake_conn *c) {
    if (c->control) {
        ssize_t n = recv(c->fd, c->buf + c->have, BUF - c->have, MSG_DONTWAIT);
        if (ended(n))
            fake_close(c);
        if (n <= 0)
            return;
        c->have += (size_t)n;
        unframe(f, c);
    } else {
        uint8_t packet[4096];
        ssize_t n = recv(c->fd, packet, sizeof packet, MSG_DONTWAIT);
        if (ended(n))
            fake_close(c);
        else if (n > 0)
            handle(f, c, packet, (size_t)n);
    }
}

static void *run(void *arg) {
    struct fake *f = arg;
    for (;;) {
        struct pollfd p[3 + FAKE_CONNS] = {{.fd = f->wake[0], .events = POLLIN}};
        fake_lock(f);
        p[1] = (struct pollfd){.fd = f->fd_listener, .events = POLLIN};
        p[2] = (struct pollfd){.fd = f->control_listener, .events = POLLIN};
        for (unsigned i = 0; i < FAKE_CONNS; i++)
            p[3 + i] =
                (struct pollfd){.fd = f->conns[i].control && f->hold_reading ? -1 : f->conns[i].fd,
                                .events = POLLIN};
        fake_unlock(f);
        poll(p, 3 + FAKE_CONNS, -1);
        fake_lock(f);
        bool stop = !f->running;
        char drop[64];
        if (p[0].revents != 0)
            (void)!read(f->wake[0], drop, sizeof drop);
        if (!stop && p[1].revents != 0)
            accept_conn(f, f->fd_listener, false);
        if (!stop && p[2].revents != 0 && p[2].fd == f->control_listener)
            accept_conn(f, f->control_listener, true);
        for (unsigned i = 0; i < FAKE_CONNS && !stop; i++)
            if (p[3 + i].revents != 0 && f->conns[i].fd == p[3 + i].fd &&
                !(f->conns[i].control && f->hold_reading)) // set since poll began
                read_conn(f, &f->conns[i]);
        fake_unlock(f);
        if (stop)
            return NULL;
    }
}

void fake_init(struct fake *f) {
    *f = (struct fake){
        .max_inflight = 64, .features = PROTO_FEATURES, .kv_heads = 2, .head_dim = 64};
    f->last_ids = calloc(PROTO_MAX_TOKENS, sizeof *f->last_ids);
    assert_non_null(f->last_ids);
    strcpy(f->dir, "/tmp/kvpool-fake-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    pthread_mutex_init(&f->lock, NULL);
    for (unsigned i = 0; i < FAKE_CONNS; i++)
        f->conns[i].fd = -1;
    current = f;
}

void fake_start(struct fake *f) {
    f->epoch += 1000;
    f->running = true;
    assert_int_equal(pipe(f->wake), 0);
    f->fd_listener = listen_at(f, PROTO_FD_SOCKET, SOCK_SEQPACKET);
    f->control_listener = listen_at(f, PROTO_CONTROL_SOCKET, SOCK_STREAM);
    assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
}

static void remove_file(const struct fake *f, const char *file) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->dir, file);
    unlink(path);
}

void fake_stop(struct fake *f) {
    if (!f->running)
        return;
    fake_lock(f);
    f->running = false;
    fake_unlock(f);
    fake_wake(f);
    pthread_join(f->thread, NULL);
    for (unsigned i = 0; i < FAKE_CONNS; i++)
        if (f->conns[i].fd >= 0)
            fake_close(&f->conns[i]);
    close(f->fd_listener);
    if (f->control_listener >= 0)
        close(f->control_listener);
    close(f->wake[0]);
    close(f->wake[1]);
    remove_file(f, PROTO_FD_SOCKET);
    remove_file(f, PROTO_CONTROL_SOCKET);
    assert_int_equal(f->seq_errors, 0);
}

void fake_cleanup(struct fake *f) {
    fake_stop(f);
    current = NULL;
    rmdir(f->dir);
    free(f->last_ids);
    pthread_mutex_destroy(&f->lock);
}

void fake_drop(struct fake *f, bool control) {
    fake_lock(f);
    for (unsigned i = 0; i < FAKE_CONNS; i++)
        if (f->conns[i].fd >= 0 && f->conns[i].control == control)
            fake_close(&f->conns[i]);
    fake_unlock(f);
    fake_wake(f);
}

void fake_control_listen(struct fake *f, bool on) {
    fake_lock(f);
    if (on) {
        f->control_listener = listen_at(f, PROTO_CONTROL_SOCKET, SOCK_STREAM);
    } else {
        close(f->control_listener);
        f->control_listener = -1;
        remove_file(f, PROTO_CONTROL_SOCKET);
    }
    fake_unlock(f);
    fake_wake(f);
}

kvpool_client *fake_connect(struct fake *f, uint32_t timeout_ms) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = f->dir;
    args.name = "unit";
    args.timeout_ms = timeout_ms;
    kvpool_client *c = NULL;
    expect(NULL, KVPOOL_OK, kvpool_connect(&args, &c));
    return c;
}

kvpool_pool fake_pool(kvpool_client *c) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = "pool";
    config.layers = 4;
    config.kv_heads = 2;
    config.head_dim = 64;
    config.page_size = 16;
    config.dtype = KVPOOL_BF16;
    config.num_pages = 100;
    kvpool_pool pool = 0;
    expect(c, KVPOOL_OK, kvpool_pool_create(c, &config, &pool));
    return pool;
}
