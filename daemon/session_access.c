// SPDX-License-Identifier: Apache-2.0
// session_access.c: what a session may use and see: the configuration's rules (access.h) applied
// to the client behind it, in core's words. See session.h.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"

#include <unistd.h>

static struct access_who who_is(const struct session *s) {
    return (struct access_who){
        .uid = s->uid, .gids = s->gids, .num_gids = s->num_gids, .identity = s->identity};
}

bool session_is_admin(const struct session *s) {
    return s->uid == 0 || s->uid == geteuid();
}

bool session_same_tenant(const struct session *s, const struct session *other) {
    return strcmp(s->identity, other->identity) == 0 &&
           (s->identity[0] != '\0' || s->uid == other->uid);
}

int session_pool_name_seen(const struct session *s, const char *name, struct err *err) {
    const struct access_who who = who_is(s);
    const char *ns;
    if (session_is_admin(s))
        return 0;
    return access_resolve(&s->d->config->access, name, &who, &ns, err);
}

int session_pool_seen(const struct session *s, uint64_t pool, struct core_pool_info *ret,
                      struct err *err) {
    struct core_pool_info info;
    int status = core_pool_stat(s->d->core, pool, &info, err);
    if (status == 0)
        status = session_pool_name_seen(s, info.config.name, err);
    if (status == 0)
        *ret = info;
    return status;
}

// Namespaces of a pool are never removed, and a pool's handle never names another one, so what was
// found once stays true.
int session_pool_ns(struct session *s, uint64_t pool, uint32_t *ret_ns, struct err *err) {
    struct session_ns *cached = &s->ns_cache[(uint32_t)pool % SESSION_NS_CACHE];
    if (cached->pool == pool && pool != 0) {
        *ret_ns = cached->ns;
        return 0;
    }
    const struct access_who who = who_is(s);
    const char *name;
    struct core_pool_info info;
    int status = core_pool_stat(s->d->core, pool, &info, err);
    if (status == 0)
        status = access_resolve(&s->d->config->access, info.config.name, &who, &name, err);
    if (status != 0)
        return status;
    struct core_ns_info ns;
    uint32_t cursor = 0;
    while (core_ns_next(s->d->core, pool, &cursor, &ns)) {
        if (strcmp(ns.config.name, name) == 0) {
            *cached = (struct session_ns){.pool = pool, .ns = ns.ns};
            *ret_ns = ns.ns;
            return 0;
        }
    }
    return err_set(err, KVPOOL_E_INTERNAL, "pool %s has no namespace %s", info.config.name, name);
}
