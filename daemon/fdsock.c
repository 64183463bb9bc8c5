// SPDX-License-Identifier: Apache-2.0
// fdsock.c: see fdsock.h.
#include "daemon/fdsock.h"

#include "daemon/log.h"
#include "proto/proto.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ACCEPTS_A_TURN 16
#define PACKETS_A_TURN 16
#define RETRY_MS 100
#define CHECK_MS 500
#define MAX_FDS 253 // SCM_MAX_FD: what one message can carry

struct conn {
    struct fdsock_conn pub; // first: callbacks get its address
    struct fdsock *f;
    struct conn *prev, *next;
    uv_poll_t poll;
    uint64_t opened_ns;
    bool admitted;
    bool heard;  // packet() was called
    bool inside; // packet() is running
    bool broken; // close after packet(), with gone()
    bool closed; // close after packet(), without gone()
};

struct fdsock {
    struct fdsock_config config;
    struct fdsock_handler handler;
    uv_poll_t poll;   // of the listener
    uv_timer_t timer; // who said nothing; accepting again after a failure
    int fd;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct conn *conns;
    uint32_t num_conns, unadmitted;
    uint64_t last_id;
    bool accept_failed; // logged; not polling the listener until the timer
    struct log_limit refused, silent, dropped;
    int handles; // of this struct not closed yet
    uint8_t buf[PROTO_MAX_MESSAGE];
};

static void on_listener(uv_poll_t *handle, int status, int events);
static void on_timer(uv_timer_t *timer);

static void on_conn_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void conn_destroy(struct conn *c, bool tell) {
    struct fdsock *f = c->f;
    if (tell && c->heard)
        f->handler.gone(f->handler.arg, &c->pub);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        f->conns = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    f->num_conns--;
    f->unadmitted -= !c->admitted;
    uv_close((uv_handle_t *)&c->poll, on_conn_closed); // stops polling
    close(c->pub.fd); // now: the peer must see the end without waiting for the loop
}

// Closes every fd in the message's control data. True when there was any, or were too many.
static bool drop_fds(struct msghdr *msg) {
    bool any = (msg->msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            close(fd);
            any = true;
        }
    }
    return any;
}

// Reads one packet. 1: handled, 0: nothing there, -1: the connection is over.
static int conn_read(struct conn *c) {
    struct fdsock *f = c->f;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    } control;
    struct iovec iov = {.iov_base = f->buf, .iov_len = sizeof f->buf};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(c->pub.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    bool had_fds = drop_fds(&msg);
    if (n == 0)
        return -1; // end of file (an empty packet is not told apart, and is none of ours)
    struct fdsock_packet packet = {.bytes = f->buf,
                                   .len = (size_t)n,
                                   .truncated = (msg.msg_flags & MSG_TRUNC) != 0,
                                   .had_fds = had_fds};
    c->heard = true;
    c->inside = true;
    f->handler.packet(f->handler.arg, &c->pub, &packet);
    c->inside = false;
    return c->broken || c->closed ? -1 : 1;
}

static void on_conn(uv_poll_t *handle, int status, int events) {
    (void)events; // whatever it is, reading tells
    struct conn *c = handle->data;
    int more = status < 0 ? -1 : 1;
    for (int i = 0; i < PACKETS_A_TURN && more > 0; i++)
        more = conn_read(c);
    if (more < 0)
        conn_destroy(c, !c->closed);
}

static void log_refused(struct fdsock *f, const char *why) {
    uint64_t suppressed;
    if (log_limit_passes(&f->refused, uv_hrtime(), &suppressed))
        log_warn("fdsock.refused", "connections=%u suppressed=%" PRIu64 " error=\"%s\"",
                 f->num_conns, suppressed, why);
}

static void conn_create(struct fdsock *f, int fd) {
    struct ucred cred;
    socklen_t size = sizeof cred;
    if (f->num_conns >= f->config.max_conns ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) != 0) {
        log_refused(f, "too many connections");
        close(fd);
        return;
    }
    struct conn *c = calloc(1, sizeof *c);
    if (c == NULL || uv_poll_init(f->poll.loop, &c->poll, fd) != 0) {
        log_refused(f, "no memory or poll handle");
        free(c);
        close(fd);
        return;
    }
    c->pub.id = ++f->last_id;
    c->pub.fd = fd;
    c->pub.pid = (uint32_t)cred.pid;
    c->pub.uid = (uint32_t)cred.uid;
    c->pub.gid = (uint32_t)cred.gid;
    c->f = f;
    c->poll.data = c;
    c->opened_ns = uv_hrtime();
    c->next = f->conns;
    if (c->next != NULL)
        c->next->prev = c;
    f->conns = c;
    f->num_conns++;
    if (f->unadmitted++ == 0 && !uv_is_active((uv_handle_t *)&f->timer))
        uv_timer_start(&f->timer, on_timer, CHECK_MS, CHECK_MS);
    uv_poll_start(&c->poll, UV_READABLE | UV_DISCONNECT, on_conn);
}

static void on_listener(uv_poll_t *handle, int status, int events) {
    (void)status;
    (void)events;
    struct fdsock *f = handle->data;
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(f->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            f->accept_failed = false;
            conn_create(f, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno == EAGAIN)
            return;
        // Out of descriptors or memory: the listener stays readable, so stop looking for a while.
        if (!f->accept_failed)
            log_error("fdsock.accept", "error=\"%s\" retry_ms=%d", strerror(errno), RETRY_MS);
        f->accept_failed = true;
        uv_poll_stop(&f->poll);
        uv_timer_start(&f->timer, on_timer, RETRY_MS, CHECK_MS);
        return;
    }
}

static void on_timer(uv_timer_t *timer) {
    struct fdsock *f = timer->data;
    uint64_t now = uv_hrtime();
    if (!uv_is_active((uv_handle_t *)&f->poll))
        uv_poll_start(&f->poll, UV_READABLE, on_listener);
    struct conn *next;
    for (struct conn *c = f->conns; c != NULL; c = next) {
        next = c->next;
        if (!c->admitted && now - c->opened_ns >= f->config.hello_ns) {
            uint64_t suppressed;
            if (log_limit_passes(&f->silent, now, &suppressed))
                log_info("fdsock.silent", "pid=%u suppressed=%" PRIu64, c->pub.pid, suppressed);
            conn_destroy(c, true);
        }
    }
    if (f->unadmitted == 0)
        uv_timer_stop(&f->timer);
}

static int listener_open(struct fdsock *f, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int n = snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", f->config.dir, PROTO_FD_SOCKET);
    if (n < 0 || (size_t)n >= sizeof addr.sun_path)
        return err_set(err, KVPOOL_E_INVAL, "socket path too long: %s/%s (limit %zu bytes)",
                       f->config.dir, PROTO_FD_SOCKET, sizeof addr.sun_path - 1);
    memcpy(f->path, addr.sun_path, sizeof f->path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, KVPOOL_E_SYSTEM, "socket: %s", strerror(errno));
    if (unlink(f->path) != 0 && errno != ENOENT) {
        err_set(err, KVPOOL_E_SYSTEM, "%s: unlink: %s", f->path, strerror(errno));
        goto close_fd;
    }
    // The mode of the socket is the mode of the file that bind makes: no moment with more rights.
    if (fchmod(fd, f->config.mode) != 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        err_set(err, KVPOOL_E_SYSTEM, "%s: bind: %s", f->path, strerror(errno));
        goto close_fd;
    }
    if (chmod(f->path, f->config.mode) != 0 || listen(fd, 128) != 0) {
        err_set(err, KVPOOL_E_SYSTEM, "%s: listen: %s", f->path, strerror(errno));
        goto unlink_path;
    }
    f->fd = fd;
    return 0;
unlink_path:
    unlink(f->path);
close_fd:
    close(fd);
    return KVPOOL_E_SYSTEM;
}

static void on_closed(uv_handle_t *handle) {
    struct fdsock *f = handle->data;
    if (--f->handles == 0)
        free(f);
}

int fdsock_open(uv_loop_t *loop, const struct fdsock_config *config,
                const struct fdsock_handler *handler, struct fdsock **ret, struct err *err) {
    struct fdsock *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "fd socket: no memory");
    f->config = *config;
    f->handler = *handler;
    int status = listener_open(f, err);
    if (status != 0)
        goto free_f;
    int rc = uv_poll_init(loop, &f->poll, f->fd);
    if (rc != 0) {
        status = err_set(err, KVPOOL_E_SYSTEM, "fd socket: uv_poll_init: %s", uv_strerror(rc));
        goto close_listener;
    }
    uv_timer_init(loop, &f->timer);
    f->handles = 2;
    f->poll.data = f;
    f->timer.data = f;
    uv_poll_start(&f->poll, UV_READABLE, on_listener);
    *ret = f;
    return 0;
close_listener:
    close(f->fd);
    unlink(f->path);
free_f:
    free(f);
    return status;
}

void fdsock_admit(struct fdsock_conn *conn) {
    struct conn *c = (struct conn *)conn;
    c->f->unadmitted -= !c->admitted;
    c->admitted = true;
}

void fdsock_send(struct fdsock_conn *conn, const void *bytes, size_t len, int fd) {
    struct conn *c = (struct conn *)conn;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    if (sendmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len)
        return;
    const char *why = strerror(errno);
    uint64_t suppressed;
    if (log_limit_passes(&c->f->dropped, uv_hrtime(), &suppressed))
        log_info("fdsock.dropped", "pid=%u suppressed=%" PRIu64 " error=\"%s\"", conn->pid,
                 suppressed, why);
    c->broken = true;
    if (!c->inside)
        conn_destroy(c, true);
}

void fdsock_conn_close(struct fdsock_conn *conn) {
    struct conn *c = (struct conn *)conn;
    c->closed = true;
    if (!c->inside)
        conn_destroy(c, false);
}

uint32_t fdsock_conns(const struct fdsock *f) {
    return f->num_conns;
}

void fdsock_close(struct fdsock *f) {
    if (f == NULL)
        return;
    while (f->conns != NULL)
        conn_destroy(f->conns, false);
    uv_close((uv_handle_t *)&f->poll, on_closed);
    uv_close((uv_handle_t *)&f->timer, on_closed);
    close(f->fd);
    unlink(f->path);
}
