// SPDX-License-Identifier: Apache-2.0
// fdsock.c: see fdsock.h.
#include "client/lib/fdsock.h"

#include "client/lib/sock.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKET_MAX 1024u // requests and replies of this socket are at most header + proto_error
#define FDS_MAX 4u       // more than any reply has: what is too much is seen and closed

struct fdsock {
    pthread_mutex_t lock;
    pthread_cond_t changed; // the turn is free
    bool turn;              // taken
    int fd;                 // -1: none; changed by the thread that has the turn
    uint64_t seq;
    uint8_t version;
    uint64_t epoch;
};

struct packet { // a reply as received
    uint8_t bytes[PACKET_MAX];
    size_t len;
    int fd; // -1: none; owned by whoever holds the packet
};

int fdsock_create(struct fdsock **ret, struct err *err) {
    struct fdsock *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a connection");
    f->fd = -1;
    pthread_mutex_init(&f->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&f->changed, &clock);
    pthread_condattr_destroy(&clock);
    *ret = f;
    return 0;
}

// With the turn.
static void close_socket(struct fdsock *f) {
    if (f->fd < 0)
        return;
    // Processes forked from this one may hold the socket open too.
    shutdown(f->fd, SHUT_RDWR);
    close(f->fd);
    f->fd = -1;
}

void fdsock_destroy(struct fdsock *f) {
    if (f == NULL)
        return;
    close_socket(f);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static bool take_turn(struct fdsock *f, int64_t deadline_ns) {
    struct timespec ts = clock_timespec(deadline_ns);
    pthread_mutex_lock(&f->lock);
    int rc = 0;
    while (f->turn && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&f->changed, &f->lock, &ts);
    bool got = !f->turn;
    if (got)
        f->turn = true;
    pthread_mutex_unlock(&f->lock);
    return got;
}

static void give_turn(struct fdsock *f) {
    pthread_mutex_lock(&f->lock);
    f->turn = false;
    pthread_cond_signal(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

static int turn_timeout(struct err *err) {
    return err_set(err, KVPOOL_E_TIMEOUT, "the fd socket is busy with an earlier request");
}

// Takes the descriptors out of a control message: the first into *ret_fd, the others are closed.
// Returns how many there were.
static unsigned take_fds(struct msghdr *msg, int *ret_fd) {
    unsigned count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (count++ == 0)
                *ret_fd = fd;
            else
                close(fd);
        }
    }
    return count;
}

// Receives one packet. Errors: CONN, TIMEOUT, PROTO (too long, too many descriptors).
static int receive(struct fdsock *f, int64_t deadline_ns, struct packet *ret, struct err *err) {
    union {
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    ssize_t n;
    struct msghdr msg;
    struct iovec iov = {.iov_base = ret->bytes, .iov_len = sizeof ret->bytes};
    ret->fd = -1;
    for (;;) {
        msg = (struct msghdr){.msg_iov = &iov,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof control.bytes};
        n = recvmsg(f->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n >= 0)
            break;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return err_set(err, KVPOOL_E_CONN, "the daemon closed the fd socket (%s)",
                           strerrordesc_np(errno));
        if (sock_poll(f->fd, POLLIN, deadline_ns) == 0)
            return err_set(err, KVPOOL_E_TIMEOUT, "the daemon does not answer on its fd socket");
    }
    unsigned fds = take_fds(&msg, &ret->fd);
    ret->len = (size_t)n;
    if (n == 0 && fds == 0)
        return err_set(err, KVPOOL_E_CONN, "the daemon closed the fd socket");
    if ((msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && fds <= 1)
        return 0;
    if (ret->fd >= 0)
        close(ret->fd);
    ret->fd = -1;
    return err_set(err, KVPOOL_E_PROTO, "the daemon sent an over-long message on the fd socket");
}

// Sends a packet. Errors: CONN (the daemon did not get it), TIMEOUT.
static int transmit(struct fdsock *f, uint16_t op, const void *body, size_t body_len,
                    int64_t deadline_ns, struct err *err) {
    uint8_t packet[PACKET_MAX];
    struct proto_header header = {
        .version = f->version, .op = op, .seq = f->seq + 1, .epoch = f->epoch};
    size_t len = proto_write(packet, sizeof packet, &header, body, body_len, NULL, 0);
    for (;;) {
        if (send(f->fd, packet, len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
            f->seq++;
            return 0;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return err_set(err, KVPOOL_E_CONN, "the daemon closed the fd socket (%s)",
                           strerrordesc_np(errno));
        if (sock_poll(f->fd, POLLOUT, deadline_ns) == 0)
            return err_set(err, KVPOOL_E_TIMEOUT, "the daemon does not read its fd socket");
    }
}

// A reply to an earlier request, whose caller has given up: a region that it brings is nobody's.
static void drop_late(struct fdsock *f, const struct packet *p, const struct proto_header *h) {
    struct proto_msg msg;
    const bool region = h->op == PROTO_REGION_CREATE || h->op == PROTO_REGION_ALLOC ||
                        h->op == PROTO_REGION_REGISTER;
    if (!region || h->status != 0 || proto_parse_reply(h->op, p->bytes, p->len, &msg, NULL) != 0)
        return;
    struct proto_handle handle = {.handle = h->op == PROTO_REGION_ALLOC
                                                ? msg.body.region_handle.region
                                                : msg.body.region_reply.region};
    transmit(f, PROTO_REGION_FREE, &handle, sizeof handle, 0, NULL); // reply: dropped as late too
}

// With the turn: receives the reply to request `seq`.
static int receive_reply(struct fdsock *f, uint16_t op, uint64_t seq, int64_t deadline_ns,
                         struct proto_msg *ret, int *ret_fd, struct err *err) {
    struct packet p;
    int rc;
    for (;;) {
        rc = receive(f, deadline_ns, &p, err);
        if (rc != 0)
            return rc;
        struct proto_header h;
        if (p.len < sizeof h)
            break; // the parser says what is wrong
        memcpy(&h, p.bytes, sizeof h);
        if (h.seq == 0 || h.seq >= seq)
            break;
        drop_late(f, &p, &h);
        if (p.fd >= 0)
            close(p.fd);
    }
    rc = proto_parse_reply(op, p.bytes, p.len, ret, err);
    if (rc == 0 && ret->header.seq != seq && ret->header.op != 0)
        rc = err_set(err, KVPOOL_E_PROTO, "reply to request %llu, not %llu",
                     (unsigned long long)ret->header.seq, (unsigned long long)seq);
    bool opening = op == PROTO_FD_HELLO || op == PROTO_FD_OPEN;
    if (rc == 0 && !opening && ret->header.epoch != f->epoch)
        rc = err_set(err, KVPOOL_E_PROTO, "reply from another instance of the daemon");
    if (rc == 0 && p.fd >= 0 && ret_fd == NULL)
        rc = err_set(err, KVPOOL_E_PROTO, "reply with a descriptor that was not asked for");
    if (rc != 0) {
        if (p.fd >= 0)
            close(p.fd);
        return rc;
    }
    ret->records = NULL;
    if (ret_fd != NULL)
        *ret_fd = p.fd;
    return 0;
}

// The status of a parsed reply.
static int reply_status(const struct proto_msg *msg, struct err *err) {
    if (msg->header.status == 0)
        return 0;
    return err_set_detail(err, msg->header.status, msg->body.error.detail, "%.*s", ERR_TEXT_MAX - 1,
                          msg->body.error.text);
}

int fdsock_call(struct fdsock *f, uint16_t op, const void *body, size_t body_len,
                int64_t deadline_ns, struct proto_msg *ret, int *ret_fd, bool *ret_sent,
                struct err *err) {
    *ret_sent = false;
    if (ret_fd != NULL)
        *ret_fd = -1;
    if (!take_turn(f, deadline_ns))
        return turn_timeout(err);
    int rc;
    if (f->fd < 0) {
        rc = err_set(err, KVPOOL_E_CONN, "the fd socket is not connected");
        goto give_turn;
    }
    rc = transmit(f, op, body, body_len, deadline_ns, err);
    if (rc == 0) {
        *ret_sent = true;
        rc = receive_reply(f, op, f->seq, deadline_ns, ret, ret_fd, err);
    }
    if (rc == KVPOOL_E_TIMEOUT)
        goto give_turn; // a late reply is told by its seq
    if (rc != 0) {
        close_socket(f);
        goto give_turn;
    }
    rc = reply_status(ret, err);
    if (rc != 0 && ret_fd != NULL && *ret_fd >= 0) {
        close(*ret_fd);
        *ret_fd = -1;
    }

give_turn:
    give_turn(f);
    return rc;
}

// With the turn: connects and sends the first request. Leaves no connection on an error.
static int open_with(struct fdsock *f, const char *dir, uint16_t op, const void *body,
                     size_t body_len, int64_t deadline_ns, struct proto_fd_hello_reply *ret,
                     struct err *err) {
    close_socket(f);
    int rc = sock_connect(dir, PROTO_FD_SOCKET, SOCK_SEQPACKET, deadline_ns, &f->fd, err);
    if (rc != 0)
        return rc;
    f->seq = 0;
    f->version = PROTO_VERSION_MIN;
    struct proto_msg msg;
    rc = transmit(f, op, body, body_len, deadline_ns, err);
    if (rc == 0)
        rc = receive_reply(f, op, f->seq, deadline_ns, &msg, NULL, err);
    if (rc == 0)
        rc = reply_status(&msg, err);
    if (rc != 0)
        goto close_socket;
    const struct proto_fd_hello_reply *r = &msg.body.fd_hello_reply;
    if (r->version < PROTO_VERSION_MIN || r->version > PROTO_VERSION_MAX) {
        rc = err_set(err, KVPOOL_E_VERSION,
                     "the daemon chose protocol version %u, this library speaks %u to %u",
                     r->version, PROTO_VERSION_MIN, PROTO_VERSION_MAX);
        goto close_socket;
    }
    f->version = (uint8_t)r->version;
    f->epoch = r->epoch;
    *ret = *r;
    return 0;

close_socket:
    close_socket(f);
    return rc;
}

// With the turn. The credential goes by FD_OPEN; without one FD_HELLO says the same to any daemon.
static int open_new(struct fdsock *f, const char *dir, const struct fdsock_who *who,
                    int64_t deadline_ns, struct proto_fd_hello_reply *ret, struct err *err) {
    f->epoch = 0;
    if (who->credential[0] == '\0') {
        struct proto_fd_hello hello = {.version_min = PROTO_VERSION_MIN,
                                       .version_max = PROTO_VERSION_MAX,
                                       .features = PROTO_FEATURES};
        snprintf(hello.name, sizeof hello.name, "%s", who->name);
        return open_with(f, dir, PROTO_FD_HELLO, &hello, sizeof hello, deadline_ns, ret, err);
    }
    struct proto_fd_open open = {.version_min = PROTO_VERSION_MIN,
                                 .version_max = PROTO_VERSION_MAX,
                                 .features = PROTO_FEATURES};
    snprintf(open.name, sizeof open.name, "%s", who->name);
    snprintf(open.credential, sizeof open.credential, "%s", who->credential);
    int rc = open_with(f, dir, PROTO_FD_OPEN, &open, sizeof open, deadline_ns, ret, err);
    if (rc == KVPOOL_E_UNSUPPORTED)
        return err_set(err, rc, "this daemon takes no credentials");
    return rc;
}

int fdsock_open(struct fdsock *f, const char *dir, const struct fdsock_who *who,
                int64_t deadline_ns, struct proto_fd_hello_reply *ret, struct err *err) {
    if (!take_turn(f, deadline_ns))
        return turn_timeout(err);
    int rc = open_new(f, dir, who, deadline_ns, ret, err);
    give_turn(f);
    return rc;
}

int fdsock_resume(struct fdsock *f, const char *dir, const char *name,
                  const struct proto_fd_hello_reply *id, int64_t deadline_ns, struct err *err) {
    if (!take_turn(f, deadline_ns))
        return turn_timeout(err);
    struct proto_fd_open open = {.version_min = PROTO_VERSION_MIN,
                                 .version_max = PROTO_VERSION_MAX,
                                 .features = PROTO_FEATURES,
                                 .session = id->session};
    snprintf(open.name, sizeof open.name, "%s", name);
    memcpy(open.token, id->token, sizeof open.token);
    f->epoch = id->epoch;
    struct proto_fd_hello_reply reply = {0};
    int rc = open_with(f, dir, PROTO_FD_OPEN, &open, sizeof open, deadline_ns, &reply, err);
    if (rc == 0 && (reply.session != id->session || reply.epoch != id->epoch)) {
        close_socket(f);
        rc = err_set(err, KVPOOL_E_STALE, "the daemon opened another session than this client's");
    }
    give_turn(f);
    return rc;
}

bool fdsock_alive(struct fdsock *f) {
    if (!take_turn(f, clock_now_ns()))
        return true; // a request is on its way: it will see
    bool alive = false;
    if (f->fd >= 0) {
        int events = sock_poll(f->fd, POLLIN | POLLRDHUP, 0);
        char byte;
        alive = events == 0;
        if (events > 0 && (events & (POLLHUP | POLLERR | POLLRDHUP)) == 0)
            alive = recv(f->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0; // a late reply waits
        if (!alive)
            close_socket(f);
    }
    give_turn(f);
    return alive;
}

void fdsock_close(struct fdsock *f) {
    if (!take_turn(f, clock_deadline(1000)))
        return;
    close_socket(f);
    give_turn(f);
}
