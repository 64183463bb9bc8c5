// SPDX-License-Identifier: Apache-2.0
// ops_fd.c: the operations of the fd socket: FD_HELLO, FD_OPEN, regions, BYE, TRACE. All are answered
// at once, but for REGION_FREE of a client's own memory: its owner may free that when it has the answer, so
// the answer comes when the memory is not open here any more.
//
//   REGION_FREE -> struct freeing, in dispatch's list -- engine_close.done --> reply -> freed
//                                                    the session has ended: no reply
//                             the connection was replaced: the client asks anew, and gets the reply
// Thread: loop thread.
#include "daemon/dispatch_impl.h"
#include "daemon/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

struct freeing {
    struct engine_close close; // first
    struct dispatch *d;
    struct freeing *next;
    uint64_t session, region;
    uint64_t conn;              // that the reply goes to, by its id
    struct proto_header header; // of the request
};

static void reply_to(struct dispatch *d, struct fdsock_conn *conn,
                     const struct proto_header *request, const void *body, size_t body_len,
                     int fd) {
    struct proto_header header = proto_reply_header(request, KVPOOL_OK, d->epoch);
    size_t len = proto_write(d->reply, sizeof d->reply, &header, body, body_len, NULL, 0);
    stats_answered(&d->stats, request->op, 0, uv_hrtime());
    fdsock_send(conn, d->reply, len, fd);
}

static void reply_packet(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                         const void *body, size_t body_len, int fd) {
    reply_to(d, conn, &msg->header, body, body_len, fd);
}

static void reply_session(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                          const struct session *s, uint32_t version, uint64_t features) {
    struct proto_fd_hello_reply reply = {.version = version,
                                         .pid = (uint32_t)getpid(),
                                         .features = features & PROTO_FEATURES,
                                         .session = s->handle,
                                         .epoch = d->epoch};
    memcpy(reply.token, s->token, sizeof reply.token);
    fdsock_admit(conn);
    reply_packet(d, conn, msg, &reply, sizeof reply, -1);
}

static int begin_session(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                         struct err *err) {
    const struct proto_fd_hello *hello = &msg->body.fd_hello;
    struct session *s;
    uint32_t version;
    if (conn->user != NULL)
        return err_set(err, KVPOOL_E_STATE, "this connection has a session");
    int status = negotiate(hello->version_min, hello->version_max, &version, err);
    if (status == 0)
        status = session_open(d, conn, hello->name, "", &s, err);
    if (status != 0)
        return status;
    conn->user = s;
    reply_session(d, conn, msg, s, version, hello->features);
    return 0;
}

// The identity that the credential proves; "" without one.
static int find_identity(const struct dispatch *d, const char credential[PROTO_CREDENTIAL_SIZE],
                         const char **ret, struct err *err) {
    if (credential[0] == '\0') {
        *ret = "";
        return 0;
    }
    if (d->credentials == NULL)
        return err_set(err, KVPOOL_E_UNSUPPORTED, "this daemon has no credentials configured");
    const char *identity = credentials_find(d->credentials, credential);
    if (identity == NULL)
        return err_set(err, KVPOOL_E_PERM, "the credential is not known");
    *ret = identity;
    return 0;
}

static int find_session(const struct dispatch *d, const struct proto_fd_open *open,
                        struct session **ret, struct err *err) {
    struct session *s = session_find(d, open->session);
    if (s == NULL || s->dying)
        return err_set(err, KVPOOL_E_STALE, "session 0x%" PRIx64 " does not exist", open->session);
    if (!access_equal(open->token, s->token, sizeof s->token))
        return err_set(err, KVPOOL_E_PERM, "wrong token for session 0x%" PRIx64, open->session);
    *ret = s;
    return 0;
}

static int open_session(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                        struct err *err) {
    const struct proto_fd_open *open = &msg->body.fd_open;
    struct session *s = NULL;
    const char *identity = "";
    uint32_t version;
    if (conn->user != NULL)
        return err_set(err, KVPOOL_E_STATE, "this connection has a session");
    int status = negotiate(open->version_min, open->version_max, &version, err);
    if (status != 0)
        return status;
    if (open->session != 0) {
        status = find_session(d, open, &s, err);
        if (status == 0)
            status = session_attach(s, conn, err);
    } else {
        status = find_identity(d, open->credential, &identity, err);
        if (status == 0)
            status = session_open(d, conn, open->name, identity, &s, err);
    }
    if (status != 0) {
        uint64_t suppressed; // a client can ask as fast as it likes
        if (log_limit_passes(&d->refused, uv_hrtime(), &suppressed))
            log_info("session.refused", "pid=%u uid=%u suppressed=%" PRIu64 " error=\"%s\"",
                     conn->pid, conn->uid, suppressed, err->text);
        return status;
    }
    assert(s != NULL);
    conn->user = s;
    s->requests++;
    reply_session(d, conn, msg, s, version, open->features);
    return 0;
}

static int make_region(struct dispatch *d, struct session *s, const struct region_source *source,
                       uint64_t bytes, struct region **ret, struct err *err) {
    struct region_limits limits = {.count = d->config->max_regions,
                                   .bytes = d->config->max_region_bytes};
    return region_create(d->regions, s->handle, &s->quota, &limits, source, bytes, ret, err);
}

static int create_region(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                         struct err *err) {
    const struct region_source source = {.place = BACKEND_HOST, .how = BACKEND_FD};
    struct region *region;
    int status = make_region(d, conn->user, &source, msg->body.region_create.bytes, &region, err);
    if (status != 0)
        return status;
    struct proto_region_reply reply = {.region = region->handle, .bytes = region->bytes};
    struct backend_handle handle;
    engine_ops(d->engine)->mem_handle(region->mem, &handle);
    reply_packet(d, conn, msg, &reply, sizeof reply, handle.fd);
    return 0;
}

static int alloc_region(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                        struct err *err) {
    const struct proto_region_alloc *a = &msg->body.region_alloc;
    if (a->place != KVPOOL_PLACE_HOST && a->place != KVPOOL_PLACE_DEVICE)
        return err_set(err, KVPOOL_E_INVAL, "place %u is none of host (%d), device (%d)", a->place,
                       KVPOOL_PLACE_HOST, KVPOOL_PLACE_DEVICE);
    if (a->export != KVPOOL_EXPORT_FD && a->export != KVPOOL_EXPORT_IPC)
        return err_set(err, KVPOOL_E_INVAL, "export %u is none of fd (%d), ipc (%d)", a->export,
                       KVPOOL_EXPORT_FD, KVPOOL_EXPORT_IPC);
    const struct region_source source = {
        .place = a->place == KVPOOL_PLACE_HOST ? BACKEND_HOST : BACKEND_DEVICE,
        .how = a->export == KVPOOL_EXPORT_FD ? BACKEND_FD : BACKEND_IPC};
    const struct backend_ops *ops = engine_ops(d->engine);
    struct region *region;
    int status = make_region(d, conn->user, &source, a->bytes, &region, err);
    if (status != 0)
        return status;
    struct backend_handle handle;
    ops->mem_handle(region->mem, &handle);
    struct proto_region_handle reply = {
        .region = region->handle,
        .bytes = region->bytes,
        .place = ops->mem_host(region->mem) != NULL ? KVPOOL_PLACE_HOST : KVPOOL_PLACE_DEVICE,
        .export = a->export,
        .offset = handle.offset,
        .handle_bytes = handle.bytes};
    _Static_assert(sizeof reply.ipc == sizeof handle.ipc, "a CUDA IPC handle");
    if (handle.how == BACKEND_IPC)
        memcpy(reply.ipc, handle.ipc, sizeof reply.ipc);
    reply_packet(d, conn, msg, &reply, sizeof reply, handle.how == BACKEND_FD ? handle.fd : -1);
    return 0;
}

static int register_region(struct dispatch *d, struct fdsock_conn *conn,
                           const struct proto_msg *msg, struct err *err) {
    const struct proto_region_register *r = &msg->body.region_register;
    struct backend_handle import = {.place = BACKEND_DEVICE,
                                    .how = BACKEND_IPC,
                                    .fd = -1,
                                    .offset = r->offset,
                                    .bytes = r->handle_bytes};
    memcpy(import.ipc, r->ipc, sizeof import.ipc);
    const struct region_source source = {
        .place = BACKEND_DEVICE, .how = BACKEND_IPC, .import = &import};
    struct region *region;
    int status = make_region(d, conn->user, &source, r->bytes, &region, err);
    if (status != 0)
        return status;
    struct proto_region_reply reply = {.region = region->handle, .bytes = region->bytes};
    reply_packet(d, conn, msg, &reply, sizeof reply, -1);
    return 0;
}

static void on_region_closed(struct engine_close *close) {
    struct freeing *f = (struct freeing *)close, **at = &f->d->freeing;
    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    const struct session *s = session_find(f->d, f->session);
    if (s != NULL && s->conn != NULL && s->conn->id == f->conn)
        reply_to(f->d, s->conn, &f->header, NULL, 0, -1);
    free(f);
}

static int close_region(struct dispatch *d, const struct fdsock_conn *conn,
                        const struct proto_msg *msg, struct region *region, struct err *err) {
    struct freeing *f = malloc(sizeof *f);
    if (f == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a request");
    *f = (struct freeing){.close.done = on_region_closed,
                          .d = d,
                          .next = d->freeing,
                          .session = region->session,
                          .region = region->handle,
                          .conn = conn->id,
                          .header = msg->header};
    d->freeing = f;
    region_close(d->regions, region, &f->close);
    return 0;
}

// The request is one that came on an earlier connection of the session, and is not answered: it is now.
static bool take_over(struct dispatch *d, const struct fdsock_conn *conn,
                      const struct proto_msg *msg) {
    const struct session *s = conn->user;
    struct freeing *f = d->freeing;
    while (f != NULL && (f->session != s->handle || f->region != msg->body.handle.handle))
        f = f->next;
    if (f == NULL || f->conn == conn->id)
        return false;
    f->conn = conn->id;
    f->header = msg->header;
    return true;
}

static int free_region(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                       struct err *err) {
    struct session *s = conn->user;
    struct region *region;
    int status = region_find(d->regions, s->handle, msg->body.handle.handle, &region, err);
    if (status != 0)
        return take_over(d, conn, msg) ? 0 : status;
    if (region->imported)
        return close_region(d, conn, msg, region, err);
    region_free(d->regions, region);
    reply_packet(d, conn, msg, NULL, 0, -1);
    return 0;
}

static int bye(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
               struct err *err) {
    (void)err;
    reply_packet(d, conn, msg, NULL, 0, -1);
    session_end(conn->user, SESSION_BYE, uv_hrtime());
    return 0;
}

static int trace(struct dispatch *d, struct fdsock_conn *conn, const struct proto_msg *msg,
                 struct err *err) {
    struct proto_trace_reply reply;
    int fd;
    int status = fd_trace(d, conn, msg, &fd, &reply, err);
    if (status != 0)
        return status;
    reply_packet(d, conn, msg, &reply, sizeof reply, fd);
    close(fd);
    return 0;
}

static int run(struct dispatch *d, struct fdsock_conn *conn, const struct fdsock_packet *packet,
               struct proto_msg *msg, bool *ret_header_ok, struct err *err) {
    int status =
        proto_parse_request(PROTO_ON_FD, packet->bytes, packet->len, msg, ret_header_ok, err);
    if (packet->truncated)
        return err_set(err, KVPOOL_E_TOOBIG, "a message has at most %u bytes", PROTO_MAX_MESSAGE);
    if (packet->had_fds)
        return err_set(err, KVPOOL_E_PROTO, "file descriptors are not accepted");
    if (status != 0)
        return status;
    if (msg->header.epoch != 0 && msg->header.epoch != d->epoch)
        return err_set(err, KVPOOL_E_LOST, "the daemon was restarted since");
    if (msg->header.op == PROTO_FD_HELLO)
        return begin_session(d, conn, msg, err);
    if (msg->header.op == PROTO_FD_OPEN)
        return open_session(d, conn, msg, err);
    struct session *s = conn->user;
    if (s == NULL)
        return err_set(err, KVPOOL_E_STATE, "this connection has no session: say FD_HELLO");
    s->requests++;
    s->heard_ns = uv_hrtime();
    switch (msg->header.op) {
    case PROTO_REGION_CREATE:
        return create_region(d, conn, msg, err);
    case PROTO_REGION_ALLOC:
        return alloc_region(d, conn, msg, err);
    case PROTO_REGION_REGISTER:
        return register_region(d, conn, msg, err);
    case PROTO_REGION_FREE:
        return free_region(d, conn, msg, err);
    case PROTO_BYE:
        return bye(d, conn, msg, err);
    case PROTO_TRACE:
        return trace(d, conn, msg, err);
    default:
        return err_set(err, KVPOOL_E_UNSUPPORTED, "operation %u", msg->header.op);
    }
}

void fd_packet(void *arg_dispatch, struct fdsock_conn *conn, const struct fdsock_packet *packet) {
    struct dispatch *d = arg_dispatch;
    struct proto_msg msg;
    bool header_ok = false;
    struct err err = {0};
    if (run(d, conn, packet, &msg, &header_ok, &err) == 0)
        return;
    const struct proto_header *header = header_ok ? &msg.header : NULL;
    log_debug("fdsock.error", "op=%s pid=%u status=%s error=\"%s\"",
              header != NULL ? proto_op_name(header->op) : "?", conn->pid,
              kvpool_status_name((kvpool_status)err.status), err.text);
    size_t len = proto_write_error(d->reply, sizeof d->reply, header, d->epoch, &err);
    stats_answered(&d->stats, header_ok ? msg.header.op : 0, err.status, uv_hrtime());
    fdsock_send(conn, d->reply, len, -1);
}

void fd_gone(void *arg_dispatch, struct fdsock_conn *conn) {
    (void)arg_dispatch;
    if (conn->user != NULL)
        session_detach(conn->user);
}
