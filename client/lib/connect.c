// SPDX-License-Identifier: Apache-2.0
// connect.c: see connect.h.
#include "client/lib/connect.h"

#include "client/lib/sock.h"
#include "client/lib/sp.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

// How long a control socket is tried that is missing or closes on us. What a try waited does not count: the
// daemon may have found its listener dead, with us in its queue, and made another.
#define RELISTEN_MS 1000u

// HELLO on a greeted control connection.
static int hello(int fd, int64_t deadline_ns, struct connection *ret, struct err *err) {
    const struct proto_fd_hello_reply *id = &ret->identity;
    struct proto_header header = {
        .version = PROTO_VERSION_MIN, .op = PROTO_HELLO, .epoch = id->epoch};
    struct proto_hello body = {.version_min = PROTO_VERSION_MIN,
                               .version_max = PROTO_VERSION_MAX,
                               .features = PROTO_FEATURES,
                               .session = id->session};
    memcpy(body.token, id->token, sizeof body.token);
    uint8_t request[SP_HEADER + sizeof header + sizeof body];
    uint8_t reply[SP_HEADER + sizeof header + sizeof(struct proto_error)];
    size_t len = proto_write(request + SP_HEADER, sizeof request - SP_HEADER, &header, &body,
                             sizeof body, NULL, 0);
    sp_put_header(request, SP_REQUEST_ID, len);
    struct sp_frame frame;
    int rc =
        sp_exchange(fd, deadline_ns, request, SP_HEADER + len, reply, sizeof reply, &frame, err);
    if (rc != 0)
        return rc;
    struct proto_msg msg;
    rc = proto_parse_reply(PROTO_HELLO, frame.payload, frame.len, &msg, err);
    if (rc != 0)
        return rc;
    if (msg.header.status != 0)
        return err_set(err, msg.header.status, "%.*s", ERR_TEXT_MAX - 1, msg.body.error.text);
    if (msg.header.epoch != id->epoch)
        return err_set(err, KVPOOL_E_LOST, "the daemon restarted while connecting");

    const struct proto_hello_reply *r = &msg.body.hello_reply;
    if (r->version < PROTO_VERSION_MIN || r->version > PROTO_VERSION_MAX)
        return err_set(err, KVPOOL_E_VERSION,
                       "the daemon chose protocol version %u, this library speaks %u to %u",
                       r->version, PROTO_VERSION_MIN, PROTO_VERSION_MAX);
    if (r->max_batch == 0 || r->max_inflight == 0 || r->max_message < sizeof(struct proto_header))
        return err_set(err, KVPOOL_E_PROTO, "the daemon's HELLO has a limit of 0");
    ret->link = (struct link_info){.version = (uint8_t)r->version,
                                   .epoch = id->epoch,
                                   .max_inflight = r->max_inflight,
                                   .max_message = (size_t)r->max_message,
                                   .features = r->features & PROTO_FEATURES};
    ret->info = (struct kvpool_daemon_info){.size = sizeof ret->info,
                                            .epoch = id->epoch,
                                            .protocol = r->version,
                                            .pid = r->pid,
                                            .max_batch = r->max_batch,
                                            .max_inflight = r->max_inflight,
                                            .max_message = r->max_message};
    snprintf(ret->info.version, sizeof ret->info.version, "%s", r->daemon_version);
    snprintf(ret->info.backend, sizeof ret->info.backend, "%s", r->backend);
    return 0;
}

int connect_control(struct fdsock *f, const char *dir, int64_t deadline_ns, struct connection *ret,
                    struct err *err) {
    int64_t give_up = clock_deadline(RELISTEN_MS);
    for (int64_t pause_ns = 2000000;; pause_ns *= 2) {
        const int64_t began = clock_now_ns();
        int fd;
        int rc = sock_connect(dir, PROTO_CONTROL_SOCKET, SOCK_STREAM, deadline_ns, &fd, err);
        if (rc == 0) {
            rc = sp_greet(fd, deadline_ns, err);
            if (rc == 0)
                rc = hello(fd, deadline_ns, ret, err);
            if (rc == 0) {
                ret->fd = fd;
                return 0;
            }
            close(fd);
        }
        const int64_t now = clock_now_ns(), next = now + pause_ns;
        give_up += now - began;
        if (rc != KVPOOL_E_CONN || next > give_up || next > deadline_ns || !fdsock_alive(f))
            return rc;
        clock_sleep_until(next);
    }
}

int connect_session(struct fdsock *f, const char *dir, const struct fdsock_who *who,
                    int64_t deadline_ns, struct connection *ret, struct err *err) {
    int rc = fdsock_open(f, dir, who, deadline_ns, &ret->identity, err);
    if (rc != 0)
        return rc;
    rc = connect_control(f, dir, deadline_ns, ret, err);
    if (rc != 0) {
        fdsock_close(f);
        // Between the two sockets the daemon went away: the same as not being there.
        if (rc == KVPOOL_E_LOST)
            rc = err_set(err, KVPOOL_E_CONN, "the daemon restarted while connecting");
    }
    return rc;
}
