// SPDX-License-Identifier: Apache-2.0
// sp.c: see sp.h.
#include "client/lib/sp.h"

#include "client/lib/sock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define GREETING 8u
static const uint8_t greeting_req[GREETING] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
static const uint8_t greeting_rep[GREETING] = {0, 'S', 'P', 0, 0, 0x31, 0, 0};

static void put_be32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t get_be32(const uint8_t *in) {
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

void sp_put_header(uint8_t out[SP_HEADER], uint32_t id, size_t len) {
    uint64_t framed = (uint64_t)len + 4;
    out[0] = 1;
    put_be32(out + 1, (uint32_t)(framed >> 32));
    put_be32(out + 5, (uint32_t)framed);
    put_be32(out + 9, id);
}

int sp_take(const uint8_t *buf, size_t len, size_t max_len, struct sp_frame *ret, struct err *err) {
    if (len < SP_HEADER)
        return 0;
    uint64_t framed = (uint64_t)get_be32(buf + 1) << 32 | get_be32(buf + 5);
    if (buf[0] != 1 || framed < 4)
        return err_set(err, KVPOOL_E_PROTO, "the daemon sent bytes that are no SP message");
    if (framed - 4 > max_len)
        return err_set(err, KVPOOL_E_PROTO, "the daemon sent a message of %llu bytes, limit %zu",
                       (unsigned long long)(framed - 4), max_len);
    size_t total = SP_HEADER + (size_t)(framed - 4);
    if (len < total)
        return 0;
    *ret = (struct sp_frame){.id = get_be32(buf + 9),
                             .payload = buf + SP_HEADER,
                             .len = total - SP_HEADER,
                             .total = total};
    return 1;
}

static int send_all(int fd, int64_t deadline_ns, const uint8_t *bytes, size_t len,
                    struct err *err) {
    while (len > 0) {
        ssize_t n = send(fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return err_set(err, KVPOOL_E_CONN, "the daemon closed the connection (%s)",
                           strerrordesc_np(errno));
        if (sock_poll(fd, POLLOUT, deadline_ns) == 0)
            return err_set(err, KVPOOL_E_TIMEOUT, "the daemon does not read its control socket");
    }
    return 0;
}

// Reads at least one byte. Returns the number, or a negative status.
static ssize_t recv_some(int fd, int64_t deadline_ns, uint8_t *buf, size_t cap, struct err *err) {
    for (;;) {
        ssize_t n = recv(fd, buf, cap, MSG_DONTWAIT);
        if (n > 0)
            return n;
        if (n == 0)
            return err_set(err, KVPOOL_E_CONN, "the daemon closed the connection");
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return err_set(err, KVPOOL_E_CONN, "the daemon closed the connection (%s)",
                           strerrordesc_np(errno));
        if (sock_poll(fd, POLLIN, deadline_ns) == 0)
            return err_set(err, KVPOOL_E_TIMEOUT,
                           "the daemon does not answer on its control socket");
    }
}

int sp_greet(int fd, int64_t deadline_ns, struct err *err) {
    int rc = send_all(fd, deadline_ns, greeting_req, GREETING, err);
    if (rc != 0)
        return rc;
    uint8_t in[GREETING];
    for (size_t have = 0; have < GREETING;) {
        ssize_t n = recv_some(fd, deadline_ns, in + have, GREETING - have, err);
        if (n < 0)
            return (int)n;
        have += (size_t)n;
    }
    if (memcmp(in, greeting_rep, GREETING) != 0)
        return err_set(err, KVPOOL_E_CONN, "what listens on the control socket is no kvpoold");
    return 0;
}

int sp_exchange(int fd, int64_t deadline_ns, const uint8_t *request, size_t len, uint8_t *buf,
                size_t cap, struct sp_frame *ret, struct err *err) {
    int rc = send_all(fd, deadline_ns, request, len, err);
    if (rc != 0)
        return rc;
    size_t have = 0;
    for (;;) {
        rc = sp_take(buf, have, cap - SP_HEADER, ret, err);
        if (rc < 0)
            return rc;
        if (rc == 1)
            break;
        ssize_t n = recv_some(fd, deadline_ns, buf + have, cap - have, err);
        if (n < 0)
            return (int)n;
        have += (size_t)n;
    }
    if (ret->id != get_be32(request + 9))
        return err_set(err, KVPOOL_E_PROTO, "reply with request id 0x%08x, not 0x%08x", ret->id,
                       get_be32(request + 9));
    if (have != ret->total)
        return err_set(err, KVPOOL_E_PROTO, "the daemon sent more than the reply it was asked for");
    return 0;
}
