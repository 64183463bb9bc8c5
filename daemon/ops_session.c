// SPDX-License-Identifier: Apache-2.0
// ops_session.c: HELLO, PING, and what `kvpool status` asks for about the daemon and its clients.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define VERSION_TEXT             \
    STRING(KVPOOL_VERSION_MAJOR) \
    "." STRING(KVPOOL_VERSION_MINOR) "." STRING(KVPOOL_VERSION_PATCH)

int negotiate(uint32_t min, uint32_t max, uint32_t *ret_version, struct err *err) {
    uint32_t low = min > PROTO_VERSION_MIN ? min : PROTO_VERSION_MIN;
    uint32_t high = max < PROTO_VERSION_MAX ? max : PROTO_VERSION_MAX;
    if (low > high)
        return err_set(err, KVPOOL_E_VERSION,
                       "the client speaks versions %u..%u, the daemon %u..%u", min, max,
                       PROTO_VERSION_MIN, PROTO_VERSION_MAX);
    *ret_version = high;
    return 0;
}

int op_hello(struct dispatch *d, struct request *r, struct err *err) {
    const struct proto_hello *hello = &r->msg.body.hello;
    uint32_t version;
    int status = negotiate(hello->version_min, hello->version_max, &version, err);
    if (status != 0)
        return status;
    struct session *s = session_find(d, hello->session);
    if (s == NULL || s->dying)
        return err_set(err, KVPOOL_E_STALE, "session 0x%" PRIx64 " does not exist", hello->session);
    if (!access_equal(hello->token, s->token, sizeof s->token))
        return err_set(err, KVPOOL_E_PERM, "wrong token for session 0x%" PRIx64, hello->session);
    if (r->req->pid != s->pid)
        return err_set(err, KVPOOL_E_PERM, "session 0x%" PRIx64 " belongs to process %u, not %u",
                       hello->session, s->pid, r->req->pid);
    status = session_bind(s, r->req->pipe, r->msg.header.seq, err);
    if (status != 0)
        return status;
    s->features = hello->features & PROTO_FEATURES;
    struct proto_hello_reply reply = {.version = version,
                                      .pid = (uint32_t)getpid(),
                                      .features = s->features,
                                      .max_message = PROTO_MAX_MESSAGE,
                                      .max_batch = d->max_batch,
                                      .max_inflight = d->config->max_inflight,
                                      .daemon_version = VERSION_TEXT};
    snprintf(reply.backend, sizeof reply.backend, "%s", engine_ops(d->engine)->name);
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

int op_ping(struct dispatch *d, struct request *r, struct err *err) {
    (void)err;
    request_reply(d, r, &r->msg.body.ping, sizeof r->msg.body.ping, NULL, 0);
    return 0;
}

int op_stats(struct dispatch *d, struct request *r, struct err *err) {
    (void)err;
    uint64_t now = uv_hrtime();
    struct core_totals totals;
    core_totals(d->core, &totals);
    const struct stats *s = &d->stats;
    struct proto_stats reply = {
        .uptime_ns = now - d->started_ns,
        .pid = (uint32_t)getpid(),
        .pools = totals.pools,
        .seqs = totals.seqs,
        .steps = totals.steps,
        .clients = d->sessions.count,
        .regions = regions_count(d->regions),
        .queue_depth = d->server != NULL ? server_busy(d->server) : 0,
        .requests = s->requests,
        .errors = s->errors,
        .appends = s->appends,
        .prefills = s->prefills,
        .decodes = s->decodes,
        .commits = s->commits,
        .aborts = s->aborts,
        .tokens = s->tokens,
        .sessions_died = s->sessions_died,
        .relistens = d->server != NULL ? server_relistens(d->server) : 0,
        .leaked_pipes = dispatch_leaked_pipes(d),
        .requests_per_s = stats_rate(s, now),
        .reclaim_last_ns = s->reclaim_last_ns,
        .reclaim_max_ns = s->reclaim_max_ns,
    };
    request_reply(d, r, &reply, sizeof reply, NULL, 0);
    return 0;
}

int op_client_list(struct dispatch *d, struct request *r, struct err *err) {
    uint32_t cursor = r->msg.body.list.cursor, max = r->msg.body.list.max, n = 0;
    if (max == 0 || max > PROTO_MAX_LIST)
        return err_set(err, KVPOOL_E_INVAL, "max: 1..%u records", PROTO_MAX_LIST);
    for (; cursor < d->sessions.max && n < max; cursor++) {
        const struct session *s = d->sessions.slots[cursor];
        struct core_session_info core = {0};
        if (s == NULL || (!session_is_admin(r->session) && !session_same_tenant(r->session, s)) ||
            core_session_stat(d->core, s->handle, &core, NULL) != 0)
            continue;
        struct proto_client_info info = {.pid = s->pid,
                                         .uid = s->uid,
                                         .seqs = core.seqs,
                                         .steps = core.steps,
                                         .regions = s->quota.count,
                                         .inflight = s->inflight,
                                         .region_bytes = s->quota.bytes,
                                         .requests = s->requests};
        memcpy(info.name, s->name, sizeof info.name);
        memcpy(d->records + n++ * sizeof info, &info, sizeof info);
    }
    struct proto_list_reply reply = {.count = n, .cursor = cursor};
    request_reply(d, r, &reply, sizeof reply, d->records, n * sizeof(struct proto_client_info));
    return 0;
}
