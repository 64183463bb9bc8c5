// SPDX-License-Identifier: Apache-2.0
// access.c: see access.h.
#include "daemon/access.h"

#include <string.h>

static const char everybody[] = "default";

static bool has_id(const uint32_t *ids, uint32_t n, uint32_t id) {
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

static bool has_identity(const struct access_list *list, const struct access_who *who) {
    if (who->identity[0] == '\0') {
        return false;
    }
    for (uint32_t i = 0; i < list->num_identities; i++) {
        if (strcmp(list->identities[i], who->identity) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_uid(const struct access_list *list, const struct access_who *who) {
    return has_id(list->uids, list->num_uids, who->uid);
}

static bool has_gid(const struct access_list *list, const struct access_who *who) {
    for (uint32_t i = 0; i < who->num_gids; i++) {
        if (has_id(list->gids, list->num_gids, who->gids[i])) {
            return true;
        }
    }
    return false;
}

bool access_list_empty(const struct access_list *list) {
    return list->num_uids == 0 && list->num_gids == 0 && list->num_identities == 0;
}

bool access_has_tenants(const struct access_rules *rules, const char *pool) {
    for (uint32_t i = 0; i < rules->num_namespaces; i++) {
        if (strcmp(rules->namespaces[i].pool, pool) == 0 &&
            !access_list_empty(&rules->namespaces[i].members)) {
            return true;
        }
    }
    return false;
}

static const struct access_list *allow_list(const struct access_rules *rules, const char *pool) {
    for (uint32_t i = 0; i < rules->num_pools; i++) {
        if (strcmp(rules->pools[i].name, pool) == 0 && !access_list_empty(&rules->pools[i].allow)) {
            return &rules->pools[i].allow;
        }
    }
    return NULL;
}

int access_resolve(const struct access_rules *rules, const char *pool, const struct access_who *who,
                   const char **ret_ns, struct err *err) {
    static bool (*const matches[])(const struct access_list *,
                                   const struct access_who *) = {has_identity, has_uid, has_gid};
    const struct access_list *allow = allow_list(rules, pool);
    bool allowed = allow == NULL && !access_has_tenants(rules, pool);
    for (size_t m = 0; m < sizeof matches / sizeof *matches; m++) {
        for (uint32_t i = 0; i < rules->num_namespaces; i++) {
            const struct access_ns *ns = &rules->namespaces[i];
            if (strcmp(ns->pool, pool) == 0 && matches[m](&ns->members, who)) {
                *ret_ns = ns->name;
                return 0;
            }
        }
        allowed = allowed || (allow != NULL && matches[m](allow, who));
    }
    if (!allowed) {
        return err_set(err, KVPOOL_E_PERM,
                       "pool %.31s is not for uid %u%s%.31s: neither its access list nor one of "
                       "its namespaces has it",
                       pool, who->uid, who->identity[0] != '\0' ? ", identity " : "",
                       who->identity);
    }
    *ret_ns = everybody;
    return 0;
}

uint32_t access_pages(const struct access_amount *amount, uint32_t num_pages) {
    uint64_t pages;
    if (amount->percent == 0) {
        return amount->value;
    }
    pages = (uint64_t)num_pages * amount->value / 100;
    return pages == 0 && amount->value > 0 ? 1 : (uint32_t)pages;
}

bool access_equal(const void *a, const void *b, size_t size) {
    const uint8_t *x = a, *y = b;
    volatile uint8_t difference = 0;
    for (size_t i = 0; i < size; i++) {
        difference |= (uint8_t)(x[i] ^ y[i]);
    }
    return difference == 0;
}
