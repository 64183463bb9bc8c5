// SPDX-License-Identifier: Apache-2.0
// region_end.c: how regions end, here and in the daemon. See region.h.
#include "client/lib/region.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

// Ends this process's use of the memory, which comes before the daemon's end of it.
static void unmap(struct kvpool_region *r) {
    cuda_unmap(&r->map);
    if (r->data != NULL)
        munmap(r->data, r->size);
    if (r->shared.fd >= 0)
        close(r->shared.fd);
    r->data = NULL;
    r->shared.fd = -1;
}

void region_destroy(struct kvpool_region *r) {
    unmap(r);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

static void destroy_all(struct kvpool_region **list) {
    while (*list != NULL) {
        struct kvpool_region *r = *list;
        *list = r->next;
        region_destroy(r);
    }
}

void region_unmap_all(kvpool_client *c) {
    destroy_all(&c->regions);
    destroy_all(&c->owed);
}

static void owe(kvpool_client *c, struct kvpool_region *r) {
    pthread_mutex_lock(&c->lock);
    r->next = c->owed;
    c->owed = r;
    pthread_mutex_unlock(&c->lock);
}

static struct kvpool_region *take_owed(kvpool_client *c) {
    pthread_mutex_lock(&c->lock);
    struct kvpool_region *r = c->owed;
    if (r != NULL)
        c->owed = r->next;
    pthread_mutex_unlock(&c->lock);
    return r;
}

// Asks the daemon to free the region, and waits for its answer.
static int ask(kvpool_client *c, const struct kvpool_region *r, int64_t deadline_ns, bool *ret_sent,
               struct err *err) {
    const struct proto_handle body = {.handle = r->handle};
    struct proto_msg msg;
    return fdsock_call(c->fdsock, PROTO_REGION_FREE, &body, sizeof body, deadline_ns, &msg, NULL,
                       ret_sent, err);
}

// Whether the daemon must be asked once more, if the session goes on: it was not, or may not have been, or
// could not do it. A request that it has got and not answered yet it will do.
static bool undone(int rc, bool sent) {
    return rc == KVPOOL_E_CONN || rc == KVPOOL_E_NOMEM || (rc == KVPOOL_E_TIMEOUT && !sent);
}

// Asks for what is owed. Errors: TIMEOUT, CONN, NOMEM (some still is).
static int pay(kvpool_client *c, int64_t deadline_ns, struct err *err) {
    struct kvpool_region *r;
    while ((r = take_owed(c)) != NULL) {
        bool sent = true;
        int rc = client_session(c) == r->session ? ask(c, r, deadline_ns, &sent, err) : 0;
        if (undone(rc, sent)) {
            owe(c, r);
            return rc;
        }
        region_destroy(r);
    }
    return 0;
}

void region_close_own(kvpool_client *c, int64_t deadline_ns) {
    bool sent;
    pay(c, deadline_ns, NULL);
    for (const struct kvpool_region *r = c->regions; r != NULL; r = r->next)
        if (r->own != NULL && client_session(c) == r->session)
            ask(c, r, deadline_ns, &sent, NULL);
}

// Tells the daemon that a region is done with, after those before it. Of the daemon's memory the reply does
// not matter. This process's own is not open in the daemon any more when this returns 0. A session that
// outlives its connection is told once more: what a lost request has freed already is stale.
static int free_remote(kvpool_client *c, const struct kvpool_region *r, bool *ret_sent,
                       struct err *err) {
    int64_t deadline = client_deadline(c);
    for (bool again = true;; again = false) {
        *ret_sent = false;
        int rc = pay(c, deadline, err);
        if (rc == 0)
            rc = ask(c, r, deadline, ret_sent, err);
        if (rc == KVPOOL_E_STALE && !again)
            return 0;
        if (rc != KVPOOL_E_CONN)
            return rc;
        transport_break(c->transport, "the session's fd socket is gone");
        uint64_t now;
        if (!again || !client_can(c, PROTO_FEATURE_RESUME) ||
            client_ensure(c, CLIENT_ANY, deadline, NULL, &now, NULL) != 0 || now != r->session)
            return rc;
    }
}

int region_end(kvpool_client *c, struct kvpool_region *r, struct err *err) {
    bool sent = true;
    unmap(r);
    int rc = client_session(c) == r->session
                 ? free_remote(c, r, &sent, err)
                 : err_set(err, KVPOOL_E_STALE, "the region is of an earlier session");
    if (undone(rc, sent))
        owe(c, r);
    else
        region_destroy(r);
    return rc;
}
