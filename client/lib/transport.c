// SPDX-License-Identifier: Apache-2.0
// transport.c: see transport.h.
#include "client/lib/transport.h"

#include "client/lib/sock.h"
#include "client/lib/sp.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token ids are sent as they stand");

// A request id is bit 31, then a generation, then a slot.
#define SLOT_BITS 12u
#define SLOTS_MAX (1u << SLOT_BITS) // ops of one client that are not released
#define GENERATION_MASK ((1u << (31u - SLOT_BITS)) - 1u)
#define BUFFER (SP_HEADER + PROTO_MAX_MESSAGE)
#define AGAIN_NS 1000000u // hint of an AGAIN that is decided here: a place comes free with a reply

enum { OP_FREE, OP_IDLE, OP_SENT, OP_DONE };

struct op_wait {
    pthread_cond_t cond;
    struct kvpool_op *prev, *next; // list of waiting ops; `next` also of the free list
    bool waiting;
};

struct transport {
    pthread_mutex_t lock;
    pthread_condattr_t clock;
    pthread_cond_t changed; // a role or a place in flight is free, or the connection changed
    int fd;                 // -1: none
    bool broken;
    bool reading, writing; // the roles are taken
    uint32_t place_waiters;
    uint64_t link;
    struct link_info info;
    uint64_t seq; // last one written
    uint32_t inflight;
    struct kvpool_op *free_ops;
    struct kvpool_op *waiters;
    uint32_t num_ops;
    struct kvpool_op *ops[SLOTS_MAX];
    size_t received; // bytes in rx
    uint8_t rx[BUFFER];
    uint8_t tx[BUFFER];
    struct proto_batch_item items[PROTO_MAX_BATCH]; // the writer's, records being put together
};

int transport_create(struct transport **ret, struct err *err) {
    struct transport *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a connection");
    t->fd = -1;
    t->broken = true;
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&t->clock);
    pthread_condattr_setclock(&t->clock, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &t->clock);
    *ret = t;
    return 0;
}

void transport_destroy(struct transport *t) {
    if (t == NULL)
        return;
    if (t->fd >= 0) {
        // Processes forked from this one may hold the socket open too.
        shutdown(t->fd, SHUT_RDWR);
        close(t->fd);
    }
    for (uint32_t i = 0; i < t->num_ops; i++) {
        pthread_cond_destroy(&t->ops[i]->wait->cond);
        free(t->ops[i]->wait);
        free(t->ops[i]);
    }
    pthread_cond_destroy(&t->changed);
    pthread_condattr_destroy(&t->clock);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

// ---------------------------------------------------------------------------------------------
// Ops, under lock

static struct kvpool_op *op_new(struct transport *t) {
    struct kvpool_op *op = calloc(1, sizeof *op);
    struct op_wait *wait = calloc(1, sizeof *wait);
    if (op == NULL || wait == NULL) {
        free(op);
        free(wait);
        return NULL;
    }
    pthread_cond_init(&wait->cond, &t->clock);
    op->wait = wait;
    op->owner = t;
    op->slot = t->num_ops;
    t->ops[t->num_ops++] = op;
    return op;
}

// NULL: no more, and *ret_status says why.
static struct kvpool_op *op_get(struct transport *t, const struct message *m, int *ret_status,
                                struct err *err) {
    struct kvpool_op *op = t->free_ops;
    if (op != NULL) {
        t->free_ops = op->wait->next;
        op->wait->next = NULL;
    } else if (t->num_ops == SLOTS_MAX) {
        *ret_status = err_set_detail(err, KVPOOL_E_AGAIN, AGAIN_NS,
                                     "%u submitted requests were never waited for", SLOTS_MAX);
        return NULL;
    } else {
        op = op_new(t);
        if (op == NULL) {
            *ret_status = err_set(err, KVPOOL_E_NOMEM, "no memory for a request");
            return NULL;
        }
    }
    op->generation = (op->generation + 1) & GENERATION_MASK;
    op->id = SP_REQUEST_ID | op->generation << SLOT_BITS | op->slot;
    op->state = OP_IDLE;
    op->op = m->op;
    op->status = 0;
    op->broken = false;
    op->step = 0;
    op->session = 0;
    op->step_learned = false;
    op->ret_records = m->ret_records;
    op->ret_cap = m->ret_cap;
    return op;
}

static void op_put(struct transport *t, struct kvpool_op *op) {
    if (op->state == OP_SENT) {
        t->inflight--;
        if (t->place_waiters > 0)
            pthread_cond_broadcast(&t->changed);
    }
    op->state = OP_FREE;
    op->wait->next = t->free_ops;
    t->free_ops = op;
}

static void op_done(struct transport *t, struct kvpool_op *op, int status) {
    op->status = status;
    op->state = OP_DONE;
    t->inflight--;
    if (op->wait->waiting)
        pthread_cond_signal(&op->wait->cond);
    if (t->place_waiters > 0)
        pthread_cond_broadcast(&t->changed);
}

static void waiters_add(struct transport *t, struct kvpool_op *op) {
    op->wait->waiting = true;
    op->wait->prev = NULL;
    op->wait->next = t->waiters;
    if (t->waiters != NULL)
        t->waiters->wait->prev = op;
    t->waiters = op;
}

static void waiters_remove(struct transport *t, struct kvpool_op *op) {
    if (op->wait->prev != NULL)
        op->wait->prev->wait->next = op->wait->next;
    else
        t->waiters = op->wait->next;
    if (op->wait->next != NULL)
        op->wait->next->wait->prev = op->wait->prev;
    op->wait->prev = op->wait->next = NULL;
    op->wait->waiting = false;
}

// Somebody must read while anybody waits: called by each thread that stops waiting or reading.
static void hand_on(struct transport *t) {
    if (t->reading)
        return;
    if (t->waiters != NULL)
        pthread_cond_signal(&t->waiters->wait->cond);
    pthread_cond_broadcast(&t->changed);
}

static void break_link(struct transport *t, const char *why) {
    if (t->broken)
        return;
    t->broken = true;
    shutdown(t->fd, SHUT_RDWR); // wakes the reader and the writer
    for (uint32_t i = 0; i < t->num_ops; i++) {
        struct kvpool_op *op = t->ops[i];
        if (op->state != OP_SENT)
            continue;
        op->broken = true;
        err_set(&op->err, KVPOOL_E_CONN,
                "connection lost (%s): the daemon may or may not have carried out this request",
                why);
        op_done(t, op, KVPOOL_E_CONN);
    }
    pthread_cond_broadcast(&t->changed);
}

// ---------------------------------------------------------------------------------------------
// Reading

// Checks a reply and fills in op->reply and op->err. Returns the op's status; a status of PROTO
// with *ret_trust false means that the peer does not speak the protocol.
static int open_reply(const struct transport *t, struct kvpool_op *op, const struct sp_frame *f,
                      bool *ret_trust) {
    *ret_trust = false;
    int rc = proto_parse_reply(op->op, f->payload, f->len, &op->reply, &op->err);
    if (rc != 0)
        return rc;
    const struct proto_header *h = &op->reply.header;
    // A request that the daemon could not read is answered without op and seq.
    if (h->seq != op->seq && h->op != 0)
        return err_set(&op->err, KVPOOL_E_PROTO, "reply to request %llu, not %llu",
                       (unsigned long long)h->seq, (unsigned long long)op->seq);
    if (h->epoch != t->info.epoch) {
        op->broken = true;
        return err_set(&op->err, KVPOOL_E_CONN,
                       "the reply is from another instance of the daemon (epoch %llu, not %llu)",
                       (unsigned long long)h->epoch, (unsigned long long)t->info.epoch);
    }
    if (h->status != 0) {
        *ret_trust = true;
        return err_set_detail(&op->err, h->status, op->reply.body.error.detail, "%.*s",
                              ERR_TEXT_MAX - 1, op->reply.body.error.text);
    }
    size_t bytes = (size_t)op->reply.count * op->reply.record_size;
    if (bytes > op->ret_cap)
        return err_set(&op->err, KVPOOL_E_PROTO, "reply with %u records, more than asked for",
                       op->reply.count);
    if (bytes > 0)
        memcpy(op->ret_records, op->reply.records, bytes);
    op->reply.records = NULL;
    *ret_trust = true;
    return 0;
}

// Under lock: completes the op that a message answers. An id that is not in flight is a reply that
// came after its time-out.
static void deliver(struct transport *t, const struct sp_frame *f) {
    uint32_t slot = f->id & (SLOTS_MAX - 1);
    struct kvpool_op *op = slot < t->num_ops ? t->ops[slot] : NULL;
    if (op == NULL || op->state != OP_SENT || op->id != f->id)
        return;
    bool trust;
    int status = open_reply(t, op, f, &trust);
    op_done(t, op, status);
    if (!trust)
        break_link(t, "a reply made no sense");
}

// Under lock, by the reader: completes what has arrived.
static void deliver_all(struct transport *t) {
    size_t at = 0;
    while (!t->broken) {
        struct sp_frame f;
        struct err err;
        int rc = sp_take(t->rx + at, t->received - at, PROTO_MAX_MESSAGE, &f, &err);
        if (rc < 0)
            break_link(t, err.text);
        if (rc <= 0)
            break;
        deliver(t, &f);
        at += f.total;
    }
    if (at > 0) {
        t->received -= at;
        memmove(t->rx, t->rx + at, t->received);
    }
}

// By the reader, with the lock held, which is given up meanwhile: waits for `events` until the
// deadline (0: does not wait), then reads and delivers what is there.
// Returns false when nothing came.
static bool read_once(struct transport *t, short events, int64_t deadline_ns) {
    int fd = t->fd;
    size_t have = t->received;
    pthread_mutex_unlock(&t->lock);
    if (deadline_ns > 0)
        sock_poll(fd, events, deadline_ns);
    ssize_t n = recv(fd, t->rx + have, BUFFER - have, MSG_DONTWAIT);
    int errnum = errno;
    pthread_mutex_lock(&t->lock);
    if (n > 0) {
        t->received += (size_t)n;
        deliver_all(t);
        return true;
    }
    if (n == 0)
        break_link(t, "the daemon closed it");
    else if (errnum != EAGAIN && errnum != EINTR)
        break_link(t, strerrordesc_np(errnum));
    return false;
}

int transport_wait(struct transport *t, struct kvpool_op *op, int64_t deadline_ns) {
    pthread_mutex_lock(&t->lock);
    while (op->state != OP_DONE) {
        if (!t->reading) {
            t->reading = true;
            for (;;) {
                bool late = clock_now_ns() >= deadline_ns;
                bool got = read_once(t, POLLIN, late ? 0 : deadline_ns);
                if (op->state == OP_DONE || (late && !got))
                    break;
            }
            t->reading = false;
            if (op->state != OP_DONE)
                break; // late: a broken connection would have completed it
            continue;
        }
        struct timespec ts = clock_timespec(deadline_ns);
        waiters_add(t, op);
        int rc = pthread_cond_timedwait(&op->wait->cond, &t->lock, &ts);
        waiters_remove(t, op);
        if (rc == ETIMEDOUT && op->state != OP_DONE)
            break;
    }
    int rc = op->state == OP_DONE ? 0 : KVPOOL_E_TIMEOUT;
    hand_on(t);
    pthread_mutex_unlock(&t->lock);
    return rc;
}

// ---------------------------------------------------------------------------------------------
// Writing

// Under lock: a place among the requests in flight. 0, GONE, AGAIN or TIMEOUT.
static int take_place(struct transport *t, uint64_t link, bool nowait, int64_t deadline_ns,
                      struct err *err) {
    while (t->inflight >= t->info.max_inflight) {
        if (t->broken || t->link != link)
            return TRANSPORT_GONE;
        if (!t->reading) {
            t->reading = true;
            bool got = read_once(t, POLLIN, nowait ? 0 : deadline_ns);
            t->reading = false;
            hand_on(t);
            if (got || t->broken)
                continue;
        } else if (!nowait) {
            struct timespec ts = clock_timespec(deadline_ns);
            t->place_waiters++;
            pthread_cond_timedwait(&t->changed, &t->lock, &ts);
            t->place_waiters--;
        }
        if (t->inflight < t->info.max_inflight)
            break;
        if (nowait)
            return err_set_detail(err, KVPOOL_E_AGAIN, AGAIN_NS,
                                  "%u requests in flight, which is the limit", t->inflight);
        if (clock_now_ns() >= deadline_ns)
            return err_set(err, KVPOOL_E_TIMEOUT, "%u requests in flight and no reply in time",
                           t->inflight);
    }
    return 0;
}

// By the writer: puts the message into tx, all but its token ids. Returns the bytes in tx, 0: too
// long.
static size_t compose(struct transport *t, const struct kvpool_op *op, const struct message *m) {
    struct proto_header header = {
        .version = t->info.version, .op = m->op, .seq = op->seq, .epoch = t->info.epoch};
    const void *records = m->handles;
    size_t records_len = m->count * sizeof(uint64_t);
    if (m->count > PROTO_MAX_BATCH || m->num_ids > PROTO_MAX_TOKENS)
        return 0;
    if (m->tokens != NULL) {
        for (uint32_t i = 0; i < m->count; i++)
            t->items[i] = (struct proto_batch_item){.seq = m->handles[i], .tokens = m->tokens[i]};
        records = t->items;
        records_len = m->count * sizeof t->items[0];
    }
    size_t cap = t->info.max_message < PROTO_MAX_MESSAGE ? t->info.max_message : PROTO_MAX_MESSAGE;
    size_t len =
        proto_write(t->tx + SP_HEADER, cap, &header, m->body, m->body_len, records, records_len);
    if (len == 0)
        return 0;
    size_t ids_len = m->num_ids * sizeof m->ids[0];
    if (ids_len > 0) {
        uint32_t payload = (uint32_t)(len - sizeof header + ids_len);
        memcpy(t->tx + SP_HEADER + offsetof(struct proto_header, len), &payload, sizeof payload);
    }
    sp_put_header(t->tx, op->id, len + ids_len);
    return SP_HEADER + len;
}

// By the writer: what send() would, of tx[len] and then the token ids, from byte `at` of both.
static ssize_t send_from(int fd, const uint8_t *tx, size_t len, const struct message *m,
                         size_t at) {
    const uint8_t *ids = (const uint8_t *)m->ids;
    size_t ids_len = m->num_ids * sizeof m->ids[0];
    if (ids_len == 0)
        return send(fd, tx + at, len - at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (at >= len)
        return send(fd, ids + (at - len), ids_len - (at - len), MSG_DONTWAIT | MSG_NOSIGNAL);
    struct iovec parts[2] = {{.iov_base = (void *)(uintptr_t)(tx + at), .iov_len = len - at},
                             {.iov_base = (void *)(uintptr_t)ids, .iov_len = ids_len}};
    struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// By the writer, with the lock held: the socket's buffer is full. Waits for room, and reads
// meanwhile when nobody else does.
static void wait_for_room(struct transport *t, int64_t deadline_ns) {
    if (!t->reading) {
        t->reading = true;
        read_once(t, POLLIN | POLLOUT, deadline_ns);
        t->reading = false;
        hand_on(t);
        return;
    }
    int fd = t->fd;
    pthread_mutex_unlock(&t->lock);
    sock_poll(fd, POLLOUT, deadline_ns);
    pthread_mutex_lock(&t->lock);
}

// By the writer, with the lock held: the peer is gone. What it had answered before is delivered,
// then the connection is broken.
static void drain_and_break(struct transport *t, int errnum) {
    while (t->reading && !t->broken) {
        struct timespec ts = clock_timespec(clock_deadline(10));
        pthread_cond_timedwait(&t->changed, &t->lock, &ts);
    }
    if (t->broken)
        return;
    t->reading = true;
    while (read_once(t, POLLIN, 0) && !t->broken)
        ;
    t->reading = false;
    break_link(t, strerrordesc_np(errnum));
    hand_on(t);
}

// By the writer, with the lock held, which is given up meanwhile. 0 when every byte is written;
// GONE: broken; TIMEOUT: nothing was written.
static int write_all(struct transport *t, size_t len, const struct message *m, int64_t deadline_ns,
                     struct err *err) {
    size_t total = len + m->num_ids * sizeof m->ids[0];
    for (size_t at = 0; at < total;) {
        int fd = t->fd;
        pthread_mutex_unlock(&t->lock);
        ssize_t n = send_from(fd, t->tx, len, m, at);
        int errnum = errno;
        pthread_mutex_lock(&t->lock);
        if (n > 0) {
            at += (size_t)n;
        } else if (n < 0 && errnum != EAGAIN && errnum != EINTR) {
            drain_and_break(t, errnum);
        } else if (clock_now_ns() >= deadline_ns) {
            if (at == 0)
                return err_set(err, KVPOOL_E_TIMEOUT,
                               "the daemon does not read its control socket");
            break_link(t, "the daemon stopped reading in the middle of a message");
        } else if (errnum == EAGAIN) {
            wait_for_room(t, deadline_ns);
        }
        if (t->broken && at < total)
            return TRANSPORT_GONE;
    }
    return 0;
}

// Under lock, by the writer: numbers, composes and writes.
static int write_op(struct transport *t, struct kvpool_op *op, const struct message *m,
                    int64_t deadline_ns, struct err *err) {
    op->seq = t->seq + 1;
    size_t len = compose(t, op, m);
    if (len == 0)
        return err_set(err, KVPOOL_E_TOOBIG,
                       "%s with %u records and %u tokens is over the message limit",
                       proto_op_name(m->op), m->count, m->num_ids);
    // The reply may come before send() has returned.
    t->seq = op->seq;
    op->state = OP_SENT;
    t->inflight++;
    int rc = write_all(t, len, m, deadline_ns, err);
    if (rc != 0)
        t->seq--;
    return rc;
}

int transport_submit(struct transport *t, uint64_t link, const struct message *m, bool nowait,
                     int64_t deadline_ns, struct kvpool_op **ret, struct err *err) {
    struct kvpool_op *op = NULL;
    pthread_mutex_lock(&t->lock);
    int rc = take_place(t, link, nowait, deadline_ns, err);
    if (rc != 0)
        goto unlock;
    op = op_get(t, m, &rc, err);
    if (op == NULL)
        goto unlock;
    while (t->writing && !t->broken && t->link == link) {
        struct timespec ts = clock_timespec(deadline_ns);
        if (pthread_cond_timedwait(&t->changed, &t->lock, &ts) == ETIMEDOUT && t->writing) {
            rc = err_set(err, KVPOOL_E_TIMEOUT, "the daemon does not read its control socket");
            goto put_op;
        }
    }
    if (t->broken || t->link != link) {
        rc = TRANSPORT_GONE;
        goto put_op;
    }
    t->writing = true;
    rc = write_op(t, op, m, deadline_ns, err);
    t->writing = false;
    pthread_cond_broadcast(&t->changed);
    if (rc != 0)
        goto put_op;
    pthread_mutex_unlock(&t->lock);
    *ret = op;
    return 0;

put_op:
    op_put(t, op);
unlock:
    pthread_mutex_unlock(&t->lock);
    return rc;
}

// ---------------------------------------------------------------------------------------------

void transport_release(struct transport *t, struct kvpool_op *op) {
    pthread_mutex_lock(&t->lock);
    op_put(t, op);
    pthread_mutex_unlock(&t->lock);
}

bool transport_owns(struct transport *t, const struct kvpool_op *op) {
    pthread_mutex_lock(&t->lock);
    bool owns = op->owner == t && op->state != OP_FREE;
    pthread_mutex_unlock(&t->lock);
    return owns;
}

bool transport_up(struct transport *t, uint64_t *ret_link) {
    pthread_mutex_lock(&t->lock);
    bool up = !t->broken;
    *ret_link = t->link;
    pthread_mutex_unlock(&t->lock);
    return up;
}

void transport_break(struct transport *t, const char *why) {
    pthread_mutex_lock(&t->lock);
    break_link(t, why);
    pthread_mutex_unlock(&t->lock);
}

void transport_attach(struct transport *t, int fd, const struct link_info *info) {
    pthread_mutex_lock(&t->lock);
    break_link(t, "replaced by a new connection");
    while (t->reading || t->writing)
        pthread_cond_wait(&t->changed, &t->lock); // both see the break at once
    if (t->fd >= 0)
        close(t->fd);
    t->fd = fd;
    t->info = *info;
    t->seq = 0;
    t->received = 0;
    t->link++;
    t->broken = false;
    pthread_mutex_unlock(&t->lock);
}
