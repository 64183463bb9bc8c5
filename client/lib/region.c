// SPDX-License-Identifier: Apache-2.0
// region.c: see region.h.
#include "client/lib/region.h"

#include "client/lib/sock.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct kvpool_region {
    kvpool_client *client;
    pid_t pid;
    uint64_t session;
    uint64_t handle;
    void *data;
    uint64_t size;
    struct kvpool_region *prev, *next; // list of the client, under its lock
};

static void list_add(kvpool_client *c, struct kvpool_region *r) {
    pthread_mutex_lock(&c->lock);
    r->next = c->regions;
    if (c->regions != NULL)
        c->regions->prev = r;
    c->regions = r;
    c->has_handles = true;
    pthread_mutex_unlock(&c->lock);
}

static void list_remove(kvpool_client *c, struct kvpool_region *r) {
    pthread_mutex_lock(&c->lock);
    if (r->prev != NULL)
        r->prev->next = r->next;
    else
        c->regions = r->next;
    if (r->next != NULL)
        r->next->prev = r->prev;
    pthread_mutex_unlock(&c->lock);
}

void region_unmap_all(kvpool_client *c) {
    while (c->regions != NULL) {
        struct kvpool_region *r = c->regions;
        c->regions = r->next;
        munmap(r->data, r->size);
        free(r);
    }
}

// Tells the daemon that a region is done with. The reply does not matter: there is nothing to do
// about a failure, and the session's end frees it too. A session that outlives its connection is
// told once more: what a lost request may have freed already is stale.
static void free_remote(kvpool_client *c, uint64_t session, uint64_t handle) {
    int64_t deadline = client_deadline(c);
    struct proto_handle body = {.handle = handle};
    for (bool again = true;; again = false) {
        struct proto_msg msg;
        bool sent;
        int rc = fdsock_call(c->fdsock, PROTO_REGION_FREE, &body, sizeof body, deadline, &msg, NULL,
                             &sent, NULL);
        if (rc != KVPOOL_E_CONN)
            return;
        transport_break(c->transport, "the session's fd socket is gone");
        uint64_t now;
        if (!again || !client_can(c, PROTO_FEATURE_RESUME) ||
            client_ensure(c, CLIENT_ANY, deadline, NULL, &now, NULL) != 0 || now != session)
            return;
    }
}

// Asks the daemon for a region of `bytes`. *ret_fd is the caller's.
static int request_region(kvpool_client *c, uint64_t bytes, struct proto_region_reply *ret,
                          int *ret_fd, uint64_t *ret_session, struct err *err) {
    int64_t deadline = client_deadline(c);
    struct proto_region_create body = {.bytes = bytes};
    for (bool again = true;; again = false) {
        struct proto_msg msg;
        bool sent;
        int rc = client_ensure(c, CLIENT_ANY, deadline, NULL, ret_session, err);
        if (rc != 0)
            return rc;
        rc = fdsock_call(c->fdsock, PROTO_REGION_CREATE, &body, sizeof body, deadline, &msg, ret_fd,
                         &sent, err);
        if (rc == 0) {
            *ret = msg.body.region_reply;
            return 0;
        }
        // The control connection may not have noticed: a session without its fd socket is over, or
        // must be resumed.
        if (rc == KVPOOL_E_CONN || rc == KVPOOL_E_PROTO)
            transport_break(c->transport, "the session's fd socket is gone");
        if (rc != KVPOOL_E_CONN || sent || !again)
            return rc;
    }
}

// Maps what the daemon sent, after checking that it is what was asked for.
static int map_region(int fd, uint64_t wanted, uint64_t bytes, void **ret, struct err *err) {
    struct stat st;
    if (fd < 0)
        return err_set(err, KVPOOL_E_PROTO, "a region came without its descriptor");
    if (fstat(fd, &st) != 0)
        return err_set(err, KVPOOL_E_SYSTEM, "fstat of a region: %s", strerrordesc_np(errno));
    if (bytes < wanted || bytes > SIZE_MAX / 2 || st.st_size < 0 || (uint64_t)st.st_size < bytes)
        return err_set(err, KVPOOL_E_PROTO, "a region of %llu bytes came with memory of %llu",
                       (unsigned long long)bytes, (unsigned long long)st.st_size);
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return err_set(err, errno == ENOMEM ? KVPOOL_E_NOMEM : KVPOOL_E_SYSTEM,
                       "mapping a region of %llu bytes: %s", (unsigned long long)bytes,
                       strerrordesc_np(errno));
    *ret = data;
    return 0;
}

static int do_create(kvpool_client *c, uint64_t bytes, kvpool_region **ret, struct err *err) {
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_region is NULL");
    if (bytes == 0)
        return err_set(err, KVPOOL_E_INVAL, "a region of 0 bytes");
    struct kvpool_region *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region");
    struct proto_region_reply reply;
    int fd;
    int rc = request_region(c, bytes, &reply, &fd, &r->session, err);
    if (rc != 0)
        goto free_region;
    rc = map_region(fd, bytes, reply.bytes, &r->data, err);
    if (fd >= 0)
        close(fd);
    if (rc != 0)
        goto free_remote;
    if (client_session(c) != r->session) { // another thread reconnected meanwhile
        rc = err_set(err, KVPOOL_E_CONN, "the connection was lost while the region was made");
        goto unmap;
    }
    r->client = c;
    r->pid = c->pid;
    r->handle = reply.region;
    r->size = reply.bytes;
    list_add(c, r);
    *ret = r;
    return 0;

unmap:
    munmap(r->data, reply.bytes);
free_remote:
    free_remote(c, r->session, reply.region);
free_region:
    free(r);
    return rc;
}

kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                   kvpool_region **ret_region) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_create(client, bytes, ret_region, &err);
    return client_leave(client, rc, &err);
}

void *kvpool_region_data(const kvpool_region *region) {
    return region != NULL && region->pid == getpid() ? region->data : NULL;
}

uint64_t kvpool_region_size(const kvpool_region *region) {
    return region != NULL && region->pid == getpid() ? region->size : 0;
}

void kvpool_region_free(kvpool_region *region) {
    if (region == NULL || region->pid != getpid())
        return;
    kvpool_client *c = region->client;
    list_remove(c, region);
    munmap(region->data, region->size);
    if (client_session(c) == region->session)
        free_remote(c, region->session, region->handle);
    free(region);
}

int region_handle(kvpool_client *c, const kvpool_region *region, const char *what, uint64_t *ret,
                  struct err *err) {
    if (region->client != c)
        return err_set(err, KVPOOL_E_PERM, "the region of %s belongs to another client", what);
    if (region->session != client_session(c))
        return err_set(err, KVPOOL_E_STALE, "the region of %s is of an earlier session", what);
    *ret = region->handle;
    return 0;
}
