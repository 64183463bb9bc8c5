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

// Tells the daemon of what is owed. Errors: TIMEOUT (some still is).
static int pay(kvpool_client *c, int64_t deadline_ns, struct err *err) {
    struct kvpool_region *r;
    while ((r = take_owed(c)) != NULL) {
        struct proto_handle body = {.handle = r->handle};
        struct proto_msg msg;
        bool sent = true;
        int rc = 0;
        if (client_session(c) == r->session)
            rc = fdsock_call(c->fdsock, PROTO_REGION_FREE, &body, sizeof body, deadline_ns, &msg,
                             NULL, &sent, err);
        if (rc == KVPOOL_E_TIMEOUT && !sent) {
            owe(c, r);
            return rc;
        }
        region_destroy(r);
    }
    return 0;
}

void region_close_own(kvpool_client *c, int64_t deadline_ns) {
    pay(c, deadline_ns, NULL);
    for (const struct kvpool_region *r = c->regions; r != NULL; r = r->next) {
        struct proto_handle body = {.handle = r->handle};
        struct proto_msg msg;
        bool sent;
        if (r->own != NULL && client_session(c) == r->session)
            fdsock_call(c->fdsock, PROTO_REGION_FREE, &body, sizeof body, deadline_ns, &msg, NULL,
                        &sent, NULL);
    }
}

// Tells the daemon that a region is done with. Of the daemon's memory the reply does not matter: there is
// nothing to do about a failure, and the session's end frees it too. This process's own is not open in
// the daemon any more when this returns 0. A session that outlives its connection is told once more:
// what a lost request has freed already is stale. *ret_sent false: it was not told.
static int free_remote(kvpool_client *c, uint64_t session, uint64_t handle, bool *ret_sent,
                       struct err *err) {
    int64_t deadline = client_deadline(c);
    struct proto_handle body = {.handle = handle};
    *ret_sent = false;
    int rc = pay(c, deadline, err);
    if (rc != 0)
        return rc;
    for (bool again = true;; again = false) {
        struct proto_msg msg;
        rc = fdsock_call(c->fdsock, PROTO_REGION_FREE, &body, sizeof body, deadline, &msg, NULL,
                         ret_sent, err);
        if (rc != KVPOOL_E_CONN)
            return rc == KVPOOL_E_STALE ? 0 : rc;
        transport_break(c->transport, "the session's fd socket is gone");
        uint64_t now;
        if (!again || !client_can(c, PROTO_FEATURE_RESUME) ||
            client_ensure(c, CLIENT_ANY, deadline, NULL, &now, NULL) != 0 || now != session)
            return rc;
    }
}

int region_end(kvpool_client *c, struct kvpool_region *r, struct err *err) {
    bool sent = true;
    unmap(r);
    int rc = client_session(c) == r->session
                 ? free_remote(c, r->session, r->handle, &sent, err)
                 : err_set(err, KVPOOL_E_STALE, "the region is of an earlier session");
    if (rc == KVPOOL_E_TIMEOUT && !sent)
        owe(c, r);
    else
        region_destroy(r);
    return rc;
}
