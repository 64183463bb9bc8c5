// SPDX-License-Identifier: Apache-2.0
// client.c: see client.h: connecting, reconnecting, and the frame of public calls.
#include "client/lib/client.h"

#include "client/lib/connect.h"
#include "client/lib/last_error.h"
#include "client/lib/sock.h"

#include <errno.h>
#include <unistd.h>

#define AGAIN_NS 1000000u       // after an AGAIN that does not say when
#define AGAIN_MIN_NS 100000u    // what a daemon says is
#define AGAIN_MAX_NS 100000000u // taken to be between these
#define ANSWER_NS 100000000     // what the answer to another try may take

int client_enter(const kvpool_client *c, struct err *err) {
    if (c == NULL)
        return err_set(err, KVPOOL_E_INVAL, "client is NULL");
    if (c->pid != getpid())
        return err_set(err, KVPOOL_E_FORKED,
                       "the client belongs to process %d: a child connects anew", (int)c->pid);
    return 0;
}

kvpool_status client_leave(const kvpool_client *c, int status, const struct err *err) {
    if (status != 0 && c != NULL)
        last_error_keep(c->id, status, err);
    return (kvpool_status)status;
}

int64_t client_deadline(const kvpool_client *c) {
    return clock_deadline(c->timeout_ms);
}

bool client_wait_again(int64_t deadline_ns, const struct err *err) {
    uint64_t pause_ns = err->detail != 0 ? err->detail : AGAIN_NS;
    if (pause_ns < AGAIN_MIN_NS)
        pause_ns = AGAIN_MIN_NS;
    if (pause_ns > AGAIN_MAX_NS)
        pause_ns = AGAIN_MAX_NS;
    int64_t until = clock_now_ns() + (int64_t)pause_ns;
    if (until + ANSWER_NS > deadline_ns)
        return false;
    clock_sleep_until(until);
    return true;
}

// That the daemon cannot be reached or does not answer is for the caller, and the next call tries
// the same again; what it decides about a session (unknown, not ours) a new one may mend.
static bool may_mend(int rc) {
    return rc != KVPOOL_E_TIMEOUT && rc != KVPOOL_E_CONN && rc != KVPOOL_E_SYSTEM &&
           rc != KVPOOL_E_SHUTDOWN;
}

// By the connecting thread, without the lock: connects to the session that there is. 0 with
// *ret_same false: there is none any more.
static int reconnect_same(kvpool_client *c, int64_t deadline_ns, struct connection *next,
                          bool *ret_same, struct err *err) {
    if (c->session == 0)
        return 0;
    if (fdsock_alive(c->fdsock)) {
        int rc = connect_control(c->fdsock, c->dir, deadline_ns, next, err);
        *ret_same = rc == 0;
        if (rc != KVPOOL_E_CONN || fdsock_alive(c->fdsock))
            return may_mend(rc) ? 0 : rc;
    }
    if (!client_can(c, PROTO_FEATURE_RESUME))
        return 0;
    int rc = fdsock_resume(c->fdsock, c->dir, c->name, &c->identity, deadline_ns, err);
    if (rc == 0)
        rc = connect_control(c->fdsock, c->dir, deadline_ns, next, err);
    *ret_same = rc == 0;
    return may_mend(rc) ? 0 : rc;
}

// By the connecting thread, without the lock: makes a connection as the drawing in client.h says.
static int reconnect(kvpool_client *c, int64_t deadline_ns, struct err *err) {
    struct connection next = {.identity = c->identity}; // changed by connecting threads only
    bool same = false;
    int rc = reconnect_same(c, deadline_ns, &next, &same, err);
    if (rc == 0 && !same) {
        struct fdsock_who who = {.name = c->name, .credential = c->credential};
        rc = connect_session(c->fdsock, c->dir, &who, deadline_ns, &next, err);
    }
    if (rc != 0)
        return rc;
    transport_attach(c->transport, next.fd, &next.link);

    pthread_mutex_lock(&c->lock);
    c->info = next.info;
    c->features = next.link.features;
    if (!same) {
        c->identity = next.identity;
        c->session++;
        c->lost = c->lost || c->has_handles;
        c->has_handles = false;
        steptab_clear(&c->steps);
        c->num_pools = 0;
    }
    pthread_mutex_unlock(&c->lock);
    return 0;
}

int client_ensure(kvpool_client *c, enum client_need need, int64_t deadline_ns, uint64_t *ret_link,
                  uint64_t *ret_session, struct err *err) {
    int rc = 0;
    uint64_t link;
    pthread_mutex_lock(&c->lock);
    while (!transport_up(c->transport, &link)) {
        if (c->connecting) {
            struct timespec ts = clock_timespec(deadline_ns);
            if (pthread_cond_timedwait(&c->connected, &c->lock, &ts) != ETIMEDOUT)
                continue;
            rc = err_set(err, KVPOOL_E_TIMEOUT, "reconnecting to %s takes too long", c->dir);
            goto unlock;
        }
        c->connecting = true;
        pthread_mutex_unlock(&c->lock);
        rc = reconnect(c, deadline_ns, err);
        pthread_mutex_lock(&c->lock);
        c->connecting = false;
        pthread_cond_broadcast(&c->connected);
        if (rc != 0)
            goto unlock;
    }
    if (need == CLIENT_HANDLE && c->lost) {
        c->lost = false;
        rc = err_set(err, KVPOOL_E_LOST,
                     "the session ended with the daemon's end or by its decision: pools must be "
                     "opened, sequences and regions made anew");
        goto unlock;
    }
    if (ret_link != NULL)
        *ret_link = link;
    if (ret_session != NULL)
        *ret_session = c->session;

unlock:
    pthread_mutex_unlock(&c->lock);
    return rc;
}

void client_gave_handle(kvpool_client *c) {
    pthread_mutex_lock(&c->lock);
    c->has_handles = true;
    pthread_mutex_unlock(&c->lock);
}

uint64_t client_session(kvpool_client *c) {
    pthread_mutex_lock(&c->lock);
    uint64_t session = c->session;
    pthread_mutex_unlock(&c->lock);
    return session;
}

uint32_t client_max_batch(kvpool_client *c) {
    pthread_mutex_lock(&c->lock);
    uint32_t max = c->info.max_batch;
    pthread_mutex_unlock(&c->lock);
    return max < PROTO_MAX_BATCH ? max : PROTO_MAX_BATCH;
}

bool client_can(kvpool_client *c, uint64_t feature) {
    pthread_mutex_lock(&c->lock);
    bool can = (c->features & feature) != 0;
    pthread_mutex_unlock(&c->lock);
    return can;
}

void client_resume_last(kvpool_client *c, int64_t deadline_ns) {
    if (c->session > 0 && !fdsock_alive(c->fdsock) && client_can(c, PROTO_FEATURE_RESUME))
        fdsock_resume(c->fdsock, c->dir, c->name, &c->identity, deadline_ns, NULL);
}

void client_pool_learn(kvpool_client *c, const struct pool_shape *shape) {
    pthread_mutex_lock(&c->lock);
    c->pools[c->num_pools++ % CLIENT_POOLS] = *shape;
    pthread_mutex_unlock(&c->lock);
}

bool client_pool_known(kvpool_client *c, kvpool_pool pool, struct pool_shape *ret) {
    bool known = false;
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 0; i < CLIENT_POOLS && i < c->num_pools && !known; i++) {
        known = c->pools[i].pool == pool;
        if (known)
            *ret = c->pools[i];
    }
    pthread_mutex_unlock(&c->lock);
    return known;
}
