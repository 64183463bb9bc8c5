// SPDX-License-Identifier: Apache-2.0
// region.c: see region.h.
#include "client/lib/region.h"

#include "client/lib/args.h"
#include "client/lib/sock.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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

struct asked { // a request for a region
    uint16_t op;
    const void *body;
    size_t body_len;
    uint64_t feature; // PROTO_FEATURE_* that the session must have, or 0
};

// Asks the daemon for a region, again while memory that was freed is on its way back. *ret_fd is the
// caller's, -1: none came.
static int request_region(kvpool_client *c, const struct asked *asked, struct proto_msg *ret,
                          int *ret_fd, uint64_t *ret_session, struct err *err) {
    int64_t deadline = client_deadline(c);
    bool again = true;
    for (;;) {
        bool sent = false;
        int rc = client_ensure(c, CLIENT_ANY, deadline, NULL, ret_session, err);
        if (rc != 0)
            return rc;
        if (asked->feature == 0 || client_can(c, asked->feature))
            rc = fdsock_call(c->fdsock, asked->op, asked->body, asked->body_len, deadline, ret,
                             ret_fd, &sent, err);
        else if (fdsock_alive(c->fdsock))
            return err_set(err, KVPOOL_E_UNSUPPORTED, "this daemon has no device regions (%s)",
                           proto_op_name(asked->op));
        else // what another instance can is not known yet
            rc = err_set(err, KVPOOL_E_CONN, "the fd socket is not connected");
        if (rc == 0)
            return 0;
        if (rc == KVPOOL_E_AGAIN && client_wait_again(deadline, err))
            continue;
        // The control connection may not have noticed: a session without its fd socket is over, or
        // must be resumed.
        if (rc == KVPOOL_E_CONN || rc == KVPOOL_E_PROTO)
            transport_break(c->transport, "the session's fd socket is gone");
        if (rc != KVPOOL_E_CONN || sent || !again)
            return rc;
        again = false;
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

static struct kvpool_region *blank(kvpool_client *c) {
    struct kvpool_region *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->client = c;
    r->pid = c->pid;
    r->shared.fd = -1;
    pthread_mutex_init(&r->lock, NULL);
    return r;
}

// The end of making a region: it is the client's, unless the session that has it is over.
static int settle(kvpool_client *c, struct kvpool_region *r, int rc, kvpool_region **ret,
                  struct err *err) {
    if (rc == 0 && client_session(c) != r->session) // another thread reconnected meanwhile
        rc = err_set(err, KVPOOL_E_CONN, "the connection was lost while the region was made");
    if (rc != 0) {
        region_end(c, r, NULL);
        return rc;
    }
    list_add(c, r);
    *ret = r;
    return 0;
}

static int do_create(kvpool_client *c, uint64_t bytes, kvpool_region **ret, struct err *err) {
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_region is NULL");
    if (bytes == 0)
        return err_set(err, KVPOOL_E_INVAL, "a region of 0 bytes");
    struct kvpool_region *r = blank(c);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region");
    struct proto_region_create body = {.bytes = bytes};
    const struct asked asked = {PROTO_REGION_CREATE, &body, sizeof body, 0};
    struct proto_msg msg = {0};
    int fd = -1;
    int rc = request_region(c, &asked, &msg, &fd, &r->session, err);
    if (rc != 0) {
        region_destroy(r);
        return rc;
    }
    r->handle = msg.body.region_reply.region;
    r->size = msg.body.region_reply.bytes;
    rc = map_region(fd, bytes, r->size, &r->data, err);
    if (fd >= 0)
        close(fd);
    return settle(c, r, rc, ret, err);
}

kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                   kvpool_region **ret_region) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_create(client, bytes, ret_region, &err);
    return client_leave(client, rc, &err);
}

// Takes over what the daemon sent, after checking that it is what was asked for.
static int take_handle(struct kvpool_region *r, const struct proto_region_handle *reply,
                       const kvpool_region_args *args, struct err *err) {
    if (reply->export != args->export_as || reply->bytes < args->bytes ||
        reply->offset > reply->handle_bytes || reply->bytes > reply->handle_bytes - reply->offset ||
        (reply->place != KVPOOL_PLACE_HOST && reply->place != KVPOOL_PLACE_DEVICE))
        return err_set(err, KVPOOL_E_PROTO, "the daemon sent another region than was asked for");
    if ((r->shared.fd >= 0) != (reply->export == KVPOOL_EXPORT_FD))
        return err_set(err, KVPOOL_E_PROTO, "a region came %s its descriptor",
                       r->shared.fd >= 0 ? "with a handle beside" : "without");
    r->shared.place = reply->place;
    r->shared.export_as = reply->export;
    memcpy(r->shared.ipc, reply->ipc, sizeof r->shared.ipc);
    r->shared.offset = reply->offset;
    r->shared.bytes = reply->handle_bytes;
    if (reply->place != KVPOOL_PLACE_HOST || reply->export != KVPOOL_EXPORT_FD)
        return 0;
    if (reply->offset != 0)
        return err_set(err, KVPOOL_E_PROTO, "a region of host memory has an offset");
    return map_region(r->shared.fd, args->bytes, r->size, &r->data, err);
}

static int do_alloc(kvpool_client *c, const kvpool_region_args *user_args, kvpool_region **ret,
                    struct err *err) {
    kvpool_region_args args;
    int rc = args_read(&args, sizeof args, user_args, "args", err);
    if (rc != 0)
        return rc;
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_region is NULL");
    if (args.bytes == 0)
        return err_set(err, KVPOOL_E_INVAL, "a region of 0 bytes");
    if (args.place == 0)
        args.place = KVPOOL_PLACE_DEVICE;
    if (args.export_as == 0)
        args.export_as = KVPOOL_EXPORT_FD;
    struct kvpool_region *r = blank(c);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region");
    struct proto_region_alloc body = {
        .bytes = args.bytes, .place = args.place, .export = args.export_as};
    const struct asked asked = {PROTO_REGION_ALLOC, &body, sizeof body, PROTO_FEATURE_DEVICE};
    struct proto_msg msg = {0};
    int fd = -1;
    rc = request_region(c, &asked, &msg, &fd, &r->session, err);
    if (rc != 0) {
        region_destroy(r);
        return rc;
    }
    r->shared.fd = fd;
    r->handle = msg.body.region_handle.region;
    r->size = msg.body.region_handle.bytes;
    rc = take_handle(r, &msg.body.region_handle, &args, err);
    return settle(c, r, rc, ret, err);
}

kvpool_status kvpool_region_alloc(kvpool_client *client, const kvpool_region_args *args,
                                  kvpool_region **ret_region) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_alloc(client, args, ret_region, &err);
    return client_leave(client, rc, &err);
}

static int do_register(kvpool_client *c, const void *ptr, uint64_t bytes, kvpool_region **ret,
                       struct err *err) {
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_region is NULL");
    if (ptr == NULL)
        return err_set(err, KVPOOL_E_INVAL, "device_ptr is NULL");
    if (bytes == 0)
        return err_set(err, KVPOOL_E_INVAL, "a region of 0 bytes");
    if ((uintptr_t)ptr % PROTO_REGION_ALIGN != 0)
        return err_set(
            err, KVPOOL_E_INVAL,
            "device_ptr %p is no multiple of %d: register from before it, and give the rest as "
            "the offset of a tensor",
            ptr, PROTO_REGION_ALIGN);
    struct cuda_share share;
    int rc = cuda_share_find(ptr, bytes, &share, err);
    if (rc != 0)
        return rc;
    struct kvpool_region *r = blank(c);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region");
    struct proto_region_register body = {
        .bytes = bytes, .offset = share.offset, .handle_bytes = share.bytes};
    memcpy(body.ipc, share.ipc, sizeof body.ipc);
    const struct asked asked = {PROTO_REGION_REGISTER, &body, sizeof body, PROTO_FEATURE_DEVICE};
    struct proto_msg msg = {0};
    rc = request_region(c, &asked, &msg, NULL, &r->session, err);
    if (rc != 0) {
        region_destroy(r);
        return rc;
    }
    r->handle = msg.body.region_reply.region;
    r->size = msg.body.region_reply.bytes;
    r->own = ptr;
    r->shared.place = KVPOOL_PLACE_DEVICE;
    r->shared.export_as = KVPOOL_EXPORT_IPC;
    memcpy(r->shared.ipc, share.ipc, sizeof r->shared.ipc);
    r->shared.offset = share.offset;
    r->shared.bytes = share.bytes;
    if (r->size != bytes)
        rc = err_set(err, KVPOOL_E_PROTO, "%llu bytes were registered as %llu",
                     (unsigned long long)bytes, (unsigned long long)r->size);
    return settle(c, r, rc, ret, err);
}

kvpool_status kvpool_region_register(kvpool_client *client, const void *device_ptr, uint64_t bytes,
                                     kvpool_region **ret_region) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_register(client, device_ptr, bytes, ret_region, &err);
    return client_leave(client, rc, &err);
}

void *kvpool_region_data(const kvpool_region *region) {
    return region != NULL && region->pid == getpid() ? region->data : NULL;
}

uint64_t kvpool_region_size(const kvpool_region *region) {
    return region != NULL && region->pid == getpid() ? region->size : 0;
}

kvpool_status kvpool_region_free(kvpool_region *region) {
    struct err err = {0};
    if (region == NULL)
        return KVPOOL_OK;
    if (region->pid != getpid())
        return KVPOOL_E_FORKED;
    kvpool_client *c = region->client;
    const bool own = region->own != NULL;
    list_remove(c, region);
    int rc = region_end(c, region, &err);
    return own ? client_leave(c, rc, &err) : KVPOOL_OK;
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
