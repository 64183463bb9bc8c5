// SPDX-License-Identifier: Apache-2.0
// turns.c: requests that bring many token ids take turns. Hashing the longest prompt holds up the loop
// for a millisecond or more, and a client may have dozens of such requests in flight.
//
//   started -- few ids, or within the budget of this iteration of the loop --> run
//      `----- else, or behind a late one of its session --> late -- idle handle --> run
//
//   sessions with late requests are in a ring:   last -> s1 -> s2 -> last      s1 is next
//
// Invariants
//  1. In one iteration of the loop requests with at most TURN_TOKENS ids run, or one.
//  2. The requests of a session run in the order in which they were started.
//  3. A session is in the ring exactly while it has late requests; one of them a turn.
//  4. The idle handle, which keeps the loop from sleeping, runs only while the budget is not whole.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#define SHORT_TOKENS 1024u // as many ids cost no more than other requests do

static uint32_t cost_of(const struct request *r) {
    uint32_t n = r->status == 0 ? r->msg.num_tokens : 0;
    return n > SHORT_TOKENS ? n : 0;
}

// Whether the budget allows the request; it is charged then.
static bool charge(struct dispatch *d, const struct request *r) {
    uint32_t cost = cost_of(r);
    if (cost > 0 && d->turns.used > 0 && d->turns.used + cost > TURN_TOKENS)
        return false;
    d->turns.used += cost;
    return true;
}

static void join(struct turns *t, struct session *s) {
    s->late_next = t->last != NULL ? t->last->late_next : s;
    if (t->last != NULL)
        t->last->late_next = s;
    t->last = s;
}

static void leave(struct turns *t, struct session *s) {
    struct session *before = s;
    while (before->late_next != s)
        before = before->late_next;
    before->late_next = s->late_next;
    if (t->last == s)
        t->last = before != s ? before : NULL;
}

static void run_late(struct dispatch *d, struct session *s) {
    struct request *r = s->late_head;
    s->late_head = r->next;
    if (s->late_head == NULL)
        leave(&d->turns, s);
    else
        d->turns.last = s;
    request_run(d, r);
}

static void on_idle(uv_idle_t *idle) {
    struct dispatch *d = idle->data;
    struct turns *t = &d->turns;
    t->used = 0;
    while (t->last != NULL && charge(d, t->last->late_next->late_head))
        run_late(d, t->last->late_next);
    if (t->last == NULL && t->used == 0)
        uv_idle_stop(idle);
}

void turns_init(struct dispatch *d) {
    uv_idle_init(d->loop, &d->turns.idle);
    d->turns.idle.data = d;
}

void request_start(struct dispatch *d, struct request *r) {
    struct session *s = r->session;
    // What will be refused is refused at once.
    bool refused = s == NULL || s->dying || r->over_limit || r->over_share;
    if (refused || (s->late_head == NULL && charge(d, r))) {
        if (d->turns.used > 0)
            uv_idle_start(&d->turns.idle, on_idle);
        request_run(d, r);
        return;
    }
    r->next = NULL;
    if (s->late_head == NULL) {
        s->late_head = r;
        join(&d->turns, s);
    } else {
        s->late_tail->next = r;
    }
    s->late_tail = r;
}

void turns_drop(struct session *s, const struct err *err) {
    struct request *r = s->late_head;
    if (r == NULL)
        return;
    s->late_head = NULL;
    leave(&s->d->turns, s);
    for (struct request *next; r != NULL; r = next) {
        next = r->next;
        request_fail(s->d, r, err);
    }
}
