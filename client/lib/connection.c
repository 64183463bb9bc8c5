// SPDX-License-Identifier: Apache-2.0
// connection.c: kvpool_connect, kvpool_close and what is about the connection itself.
#include "client/lib/args.h"
#include "client/lib/call.h"
#include "client/lib/last_error.h"
#include "client/lib/region.h"
#include "client/lib/sock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BYE_MS 2000u // how long kvpool_close waits for the daemon

#define TEXT(x) #x
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

const char *kvpool_version(void) {
    return VERSION(KVPOOL_VERSION_MAJOR, KVPOOL_VERSION_MINOR, KVPOOL_VERSION_PATCH);
}

static int resolve_dir(const char *given, char ret[CLIENT_DIR_SIZE], struct err *err) {
    const char *dir = given;
    if (dir == NULL)
        dir = secure_getenv("KVPOOL_DIR");
    if (dir == NULL || (given == NULL && dir[0] == '\0'))
        dir = KVPOOL_DEFAULT_DIR;
    size_t max = SOCK_PATH_MAX - strlen("/" PROTO_CONTROL_SOCKET);
    size_t len = strlen(dir);
    if (len == 0)
        return err_set(err, KVPOOL_E_INVAL, "dir is empty");
    if (len > max)
        return err_set(err, KVPOOL_E_INVAL,
                       "dir has %zu bytes, at most %zu fit into a socket address", len, max);
    memcpy(ret, dir, len + 1);
    return 0;
}

static int resolve_name(const char *given, char ret[PROTO_NAME_SIZE], struct err *err) {
    if (given != NULL)
        return args_name(ret, given, "name", err);
    snprintf(ret, PROTO_NAME_SIZE, "%s", program_invocation_short_name);
    return 0;
}

static int resolve_credential(const char *given, char ret[PROTO_CREDENTIAL_SIZE], struct err *err) {
    if (given == NULL)
        return 0;
    size_t len = strnlen(given, PROTO_CREDENTIAL_SIZE);
    if (len == 0)
        return err_set(err, KVPOOL_E_INVAL, "credential is empty");
    if (len == PROTO_CREDENTIAL_SIZE)
        return err_set(err, KVPOOL_E_INVAL, "credential is longer than %d bytes",
                       PROTO_CREDENTIAL_SIZE - 1);
    memcpy(ret, given, len);
    return 0;
}

static void client_free(kvpool_client *c) {
    region_unmap_all(c);
    transport_destroy(c->transport);
    fdsock_destroy(c->fdsock);
    steptab_fini(&c->steps);
    pthread_cond_destroy(&c->connected);
    pthread_mutex_destroy(&c->lock);
    explicit_bzero(c->credential, sizeof c->credential);
    free(c);
}

// NULL on failure, with *err filled in.
static kvpool_client *client_new(const kvpool_connect_args *args, struct err *err) {
    static _Atomic uint64_t last_id = LAST_ERROR_CONNECT;
    kvpool_client *c = calloc(1, sizeof *c);
    if (c == NULL) {
        err_set(err, KVPOOL_E_NOMEM, "no memory for a client");
        return NULL;
    }
    c->id = atomic_fetch_add(&last_id, 1) + 1;
    c->pid = getpid();
    c->timeout_ms = args->timeout_ms != 0 ? args->timeout_ms : CLIENT_TIMEOUT_MS;
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&c->connected, &clock);
    pthread_condattr_destroy(&clock);
    int rc = resolve_dir(args->dir, c->dir, err);
    if (rc == 0)
        rc = resolve_name(args->name, c->name, err);
    if (rc == 0)
        rc = resolve_credential(args->credential, c->credential, err);
    if (rc == 0)
        rc = transport_create(&c->transport, err);
    if (rc == 0)
        rc = fdsock_create(&c->fdsock, err);
    if (rc != 0) {
        client_free(c);
        return NULL;
    }
    return c;
}

static int do_connect(const kvpool_connect_args *user_args, kvpool_client **ret, struct err *err) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    if (user_args != NULL) {
        int rc = args_read_grown(&args, sizeof args, offsetof(kvpool_connect_args, credential),
                                 user_args, "args", err);
        if (rc != 0)
            return rc;
    }
    if (ret == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_client is NULL");
    if (args.flags != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", args.flags);
    kvpool_client *c = client_new(&args, err);
    if (c == NULL)
        return err->status;
    int rc = client_ensure(c, CLIENT_ANY, client_deadline(c), NULL, NULL, err);
    if (rc != 0) {
        client_free(c);
        return rc;
    }
    *ret = c;
    return 0;
}

kvpool_status kvpool_connect(const kvpool_connect_args *args, kvpool_client **ret_client) {
    struct err err = {0};
    int rc = do_connect(args, ret_client, &err);
    if (rc != 0)
        last_error_keep(LAST_ERROR_CONNECT, rc, &err);
    return (kvpool_status)rc;
}

void kvpool_close(kvpool_client *client) {
    if (client == NULL || client->pid != getpid())
        return;
    uint32_t ms = client->timeout_ms < BYE_MS ? client->timeout_ms : BYE_MS;
    int64_t deadline = clock_deadline(ms);
    client_resume_last(client, deadline); // the daemon would keep the session for its grace
    const bool alive = fdsock_alive(client->fdsock);
    if (alive)
        region_close_own(client, deadline);
    region_unmap_all(client); // of the daemon's memory, before it goes
    if (alive) {
        // The daemon answers when the session has ended: its pages are free when this returns.
        struct proto_msg msg;
        bool sent;
        fdsock_call(client->fdsock, PROTO_BYE, NULL, 0, deadline, &msg, NULL, &sent, NULL);
    }
    client_free(client);
}

const char *kvpool_last_error(const kvpool_client *client, char *buf, size_t buf_size) {
    if (buf == NULL || buf_size == 0)
        return buf;
    snprintf(buf, buf_size, "%s",
             last_error_text(client != NULL ? client->id : LAST_ERROR_CONNECT));
    return buf;
}

uint64_t kvpool_retry_after_ns(const kvpool_client *client) {
    return last_error_retry_ns(client != NULL ? client->id : LAST_ERROR_CONNECT);
}

static int do_ping(kvpool_client *c, uint64_t *ret_ns, struct err *err) {
    struct proto_ping ping = {.payload = atomic_fetch_add(&c->last_ping, 1) + 1};
    struct proto_msg msg;
    int64_t start = clock_now_ns();
    int rc = call_simple(c, CLIENT_ANY, PROTO_PING, &ping, sizeof ping, &msg, err);
    if (rc != 0)
        return rc;
    if (msg.body.ping.payload != ping.payload)
        return err_set(err, KVPOOL_E_PROTO, "the reply to a ping has another payload");
    if (ret_ns != NULL)
        *ret_ns = (uint64_t)(clock_now_ns() - start);
    return 0;
}

kvpool_status kvpool_ping(kvpool_client *client, uint64_t *ret_ns) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_ping(client, ret_ns, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_daemon(kvpool_client *client, kvpool_daemon_info *ret) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = args_check(sizeof *ret, ret, "ret", &err);
    if (rc == 0) {
        pthread_mutex_lock(&client->lock);
        args_write(ret, &client->info, sizeof *ret);
        pthread_mutex_unlock(&client->lock);
    }
    return client_leave(client, rc, &err);
}
