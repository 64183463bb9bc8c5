// SPDX-License-Identifier: Apache-2.0
// session_grace.c: sessions that outlive their fd connection. See session.h.
//
// One timer of dispatch's serves all sessions: it runs while one is detached, until the earliest
// of them is due.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"
#include "daemon/log.h"

#include <inttypes.h>

#define NS_PER_MS 1000000ull

static void on_grace(uv_timer_t *timer);

static bool waits(const struct session *s) {
    return s != NULL && s->detached && !s->dying;
}

static uint64_t due_ns(const struct session *s) {
    return s->heard_ns + s->d->config->session_grace_ms * NS_PER_MS;
}

void session_grace_arm(struct dispatch *d) {
    uint64_t now = uv_hrtime(), first = UINT64_MAX;
    for (uint32_t i = 0; i < d->sessions.max; i++)
        if (waits(d->sessions.slots[i]) && due_ns(d->sessions.slots[i]) < first)
            first = due_ns(d->sessions.slots[i]);
    if (first == UINT64_MAX) {
        uv_timer_stop(&d->grace_timer);
        return;
    }
    uv_update_time(d->loop);
    uv_timer_start(&d->grace_timer, on_grace,
                   first > now ? (first - now + NS_PER_MS - 1) / NS_PER_MS : 0, 0);
}

static void on_grace(uv_timer_t *timer) {
    struct dispatch *d = timer->data;
    uint64_t now = uv_hrtime();
    for (uint32_t i = 0; i < d->sessions.max; i++) {
        struct session *s = d->sessions.slots[i];
        if (!waits(s) || due_ns(s) > now)
            continue;
        if (s->inflight > 0) // it is being served: the time begins with its answer, about
            s->heard_ns = now;
        else
            session_end(s, SESSION_GRACE, now);
    }
    session_grace_arm(d);
}

void session_detach(struct session *s) {
    if (s->d->config->session_grace_ms == 0) {
        session_end(s, SESSION_HANGUP, uv_hrtime());
        return;
    }
    s->conn->user = NULL;
    s->conn = NULL;
    s->detached = true;
    s->heard_ns = uv_hrtime();
    log_info("session.detach", "session=0x%" PRIx64 " pid=%u name=\"%s\"", s->handle, s->pid,
             s->name);
    session_grace_arm(s->d);
}

int session_attach(struct session *s, struct fdsock_conn *conn, struct err *err) {
    if (conn->pid != s->pid || conn->uid != s->uid)
        return err_set(err, KVPOOL_E_PERM,
                       "session 0x%" PRIx64 " belongs to process %u of uid %u, not %u of uid %u",
                       s->handle, s->pid, s->uid, conn->pid, conn->uid);
    if (s->conn != NULL) { // the client knows better that it is dead
        s->conn->user = NULL;
        fdsock_conn_close(s->conn);
    }
    s->conn = conn;
    s->detached = false;
    s->heard_ns = uv_hrtime();
    log_info("session.attach", "session=0x%" PRIx64 " pid=%u name=\"%s\"", s->handle, s->pid,
             s->name);
    session_grace_arm(s->d);
    return 0;
}
