// SPDX-License-Identifier: Apache-2.0
// session.c: see session.h.
#include "daemon/session.h"

#include "daemon/dispatch_impl.h"
#include "daemon/groups.h"
#include "daemon/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/random.h>
#include <unistd.h>

static const char *const reason_names[] = {[SESSION_BYE] = "bye",
                                           [SESSION_PROCESS] = "process-ended",
                                           [SESSION_HANGUP] = "hangup",
                                           [SESSION_GRACE] = "grace-over",
                                           [SESSION_SHUTDOWN] = "shutdown"};

static void on_process_ended(void *arg) {
    session_end(arg, SESSION_PROCESS, uv_hrtime());
}

int session_open(struct dispatch *d, struct fdsock_conn *conn, const char *name,
                 const char *identity, struct session **ret, struct err *err) {
    if (d->draining)
        return err_set(err, KVPOOL_E_SHUTDOWN, "no new clients");
    if (conn->pid == 0)
        return err_set(err, KVPOOL_E_PERM,
                       "the client's process is not visible to the daemon "
                       "(another PID namespace)");
    struct session *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "session: no memory");
    s->d = d;
    s->conn = conn;
    s->pid = conn->pid;
    s->uid = conn->uid;
    memcpy(s->name, name, sizeof s->name);
    s->name[sizeof s->name - 1] = '\0';
    memcpy(s->identity, identity, strnlen(identity, sizeof s->identity - 1));
    s->heard_ns = uv_hrtime();
    int status, pidfd;
    if (getrandom(s->token, sizeof s->token, 0) != (ssize_t)sizeof s->token) {
        status = err_set(err, KVPOOL_E_SYSTEM, "getrandom: %s", strerror(errno));
        goto free_session;
    }
    status = groups_of_peer(conn->fd, conn->gid, &s->gids, &s->num_gids, err);
    if (status != 0)
        goto free_session;
    status = presence_pidfd(conn->fd, s->pid, &pidfd, err);
    if (status != 0)
        goto free_session;
    status = engine_ops(d->engine)->stream_open(engine_backend(d->engine), &s->stream, err);
    if (status != 0)
        goto close_pidfd;
    status = engine_client_open(d->engine, 1, &s->engine, err);
    if (status != 0)
        goto close_stream;
    status = core_session_open(d->core, s->pid, s->uid, s->name, s->token, &s->handle, err);
    if (status != 0)
        goto close_engine_client;
    status = presence_open(d->loop, pidfd, on_process_ended, s, &s->presence, err);
    if (status != 0)
        goto close_core_session;
    d->sessions.slots[(uint32_t)s->handle] = s;
    d->sessions.count++;
    dispatch_verify(d);
    log_info("session.open", "session=0x%" PRIx64 " pid=%u uid=%u identity=\"%s\" name=\"%s\"",
             s->handle, s->pid, s->uid, s->identity, s->name);
    *ret = s;
    return 0;
close_core_session:
    core_session_close(d->core, s->handle, NULL);
close_engine_client:
    engine_client_close(s->engine);
close_stream:
    engine_ops(d->engine)->stream_close(engine_backend(d->engine), s->stream);
close_pidfd:
    close(pidfd);
free_session:
    free(s->gids);
    free(s);
    return status;
}

struct session *session_find(const struct dispatch *d, uint64_t handle) {
    uint32_t i = (uint32_t)handle;
    struct session *s = i < d->sessions.max ? d->sessions.slots[i] : NULL;
    return s != NULL && s->handle == handle ? s : NULL;
}

static void answer_waiting(struct dispatch *d, struct pipe *p, const struct err *err) {
    struct order_item *item;
    while ((item = order_drop(&p->order)) != NULL) {
        d->waiting--;
        request_fail(d, (struct request *)item, err);
    }
}

void session_drop_pipe(struct dispatch *d, struct pipe *p) {
    struct err err;
    err_set(&err, KVPOOL_E_CONN, "the connection was closed or replaced");
    answer_waiting(d, p, &err);
    if (p->session != NULL)
        p->session->pipe = NULL;
    pipes_remove(d->pipes, p);
}

int session_bind(struct session *s, uint32_t pipe, uint64_t seq, struct err *err) {
    struct dispatch *d = s->d;
    if (s->pipe != NULL && s->pipe->id == pipe)
        return 0;
    struct pipe *p = pipes_find(d->pipes, pipe);
    if (p != NULL && p->session != NULL)
        return err_set(err, KVPOOL_E_STATE, "this connection has another session");
    int status = pipes_add(d->pipes, pipe, &p, err);
    if (status != 0)
        return status;
    if (s->pipe != NULL)
        session_drop_pipe(d, s->pipe);
    order_init(&p->order, seq == UINT64_MAX ? seq : seq + 1);
    p->session = s;
    s->pipe = p;
    return 0;
}

void session_park(struct session *s, struct request *r) {
    r->next = NULL;
    if (s->parked_tail != NULL)
        s->parked_tail->next = r;
    else
        s->parked_head = r;
    s->parked_tail = r;
}

static struct request *take_parked(struct session *s) {
    struct request *r = s->parked_head;
    s->parked_head = s->parked_tail = NULL;
    return r;
}

void session_retry_parked(struct session *s) {
    for (struct request *r = take_parked(s), *next; r != NULL; r = next) {
        next = r->next; // the op may park it again
        request_run(s->d, r);
    }
}

bool session_step_ends(const struct session *s, uint64_t step) {
    for (const struct request *r = s->parked_head; r != NULL; r = r->next)
        if ((r->msg.header.op == PROTO_STEP_COMMIT || r->msg.header.op == PROTO_STEP_ABORT) &&
            r->msg.body.handle.handle == step)
            return true;
    return false;
}

void session_end(struct session *s, enum session_end_reason reason, uint64_t since_ns) {
    if (s->dying)
        return;
    struct dispatch *d = s->d;
    s->dying = true;
    s->reason = reason;
    s->ended_ns = since_ns;
    presence_close(s->presence);
    s->presence = NULL;
    if (s->conn != NULL) {
        s->conn->user = NULL;
        if (reason != SESSION_HANGUP) // then the fd socket frees it
            fdsock_conn_close(s->conn);
        s->conn = NULL;
    }
    struct err err;
    err_set(&err, KVPOOL_E_SHUTDOWN, "the session is ending");
    for (struct request *r = take_parked(s), *next; r != NULL; r = next) {
        next = r->next;
        request_fail(d, r, &err);
    }
    turns_drop(s, &err);
    if (s->pipe != NULL)
        answer_waiting(d, s->pipe, &err);
    if (reason == SESSION_PROCESS || reason == SESSION_HANGUP)
        engine_client_cancel(s->engine); // nobody waits for it, and its pages wait for the jobs
    session_reap(s);
}

bool session_reap(struct session *s) {
    if (!s->dying || s->jobs > 0)
        return false;
    struct dispatch *d = s->d;
    struct err err = {0};
    if (d->trace.count != 0)
        trace_closing(d, s->handle);
    if (core_session_close(d->core, s->handle, &err) != 0) {
        log_error("session.close", "session=0x%" PRIx64 " error=\"%s\"", s->handle, err.text);
        return false;
    }
    if (d->trace.count != 0)
        trace_closed(d, s->handle);
    uint64_t now = uv_hrtime(), took = now - s->ended_ns;
    step_clock_forget(d->step_clock, s->handle);
    dispatch_verify(d);
    bool died =
        s->reason == SESSION_PROCESS || s->reason == SESSION_HANGUP || s->reason == SESSION_GRACE;
    if (died)
        stats_reclaimed(&d->stats, took);
    region_free_all(d->regions, s->handle);
    engine_client_close(s->engine);
    engine_ops(d->engine)->stream_close(engine_backend(d->engine), s->stream);
    if (s->pipe != NULL) {
        if (died)
            pipes_orphan(d->pipes, s->pipe, now);
        else
            pipes_remove(d->pipes, s->pipe);
    }
    d->sessions.slots[(uint32_t)s->handle] = NULL;
    d->sessions.count--;
    log_info("session.close",
             "session=0x%" PRIx64 " pid=%u name=\"%s\" reason=%s reclaim_us=%" PRIu64, s->handle,
             s->pid, s->name, reason_names[s->reason], took / 1000);
    free(s->gids);
    free(s);
    return true;
}
