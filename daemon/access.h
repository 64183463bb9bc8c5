// SPDX-License-Identifier: Apache-2.0
// access.h: who may use which pool, and as which namespace (tenant) of it. Pure functions over
// rules that the configuration holds.
//
//   a namespace of the pool that names the client's identity
//      else one that names its user
//         else one that names one of its groups
//            else "default": if the pool's access list names the client, or the pool has neither an
//                 access list nor a namespace with members
//               else nobody's: PERM
//
// Invariants
//  1. The answer depends on the rules, the pool's name and the client alone: it is the same whether
//     the pool exists or not.
//  2. An identity counts only if a credential proved it: it is "" for everybody else.
//  3. No user, group or identity is in two namespaces of a pool (the configuration is checked), so
//     the order of the sections matters only for a process with several groups.
// Any thread; no state.
#ifndef KVPOOL_DAEMON_ACCESS_H
#define KVPOOL_DAEMON_ACCESS_H

#include "daemon/core/core.h"

#define ACCESS_MAX_IDS 64
#define ACCESS_MAX_IDENTITIES 16
#define ACCESS_MAX_POOLS 16
#define ACCESS_MAX_NAMESPACES 128 // of all pools

// Without padding, so that equal rules are equal bytes.
struct access_list { // some clients: users, groups, identities
    uint32_t num_uids, num_gids, num_identities;
    uint32_t uids[ACCESS_MAX_IDS], gids[ACCESS_MAX_IDS];
    char identities[ACCESS_MAX_IDENTITIES][CORE_NAME_SIZE];
};

struct access_amount { // of a pool's pages
    uint32_t value;
    uint32_t percent; // 1: value is one; 0: it is pages
};

struct access_ns {
    char pool[CORE_NAME_SIZE], name[CORE_NAME_SIZE], group[CORE_NAME_SIZE];
    struct access_list members;
    struct access_amount reserve, limit; // limit 0: all pages
    uint32_t weight;
};

struct access_rules {
    uint32_t num_pools, num_namespaces;
    struct {
        char name[CORE_NAME_SIZE];
        struct access_list allow; // empty: no access list
    } pools[ACCESS_MAX_POOLS];
    struct access_ns namespaces[ACCESS_MAX_NAMESPACES]; // in the order of the file
};

struct access_who {
    uint32_t uid;
    const uint32_t *gids; // [num_gids] the process's own and its supplementary ones
    uint32_t num_gids;
    const char *identity; // "": none
};

bool access_list_empty(const struct access_list *list);

// The namespace of the pool that the client works in; *ret_ns is in the rules, or static.
// Errors: PERM (names the pool and the client).
int access_resolve(const struct access_rules *rules, const char *pool, const struct access_who *who,
                   const char **ret_ns, struct err *err);

// A namespace of the pool has members: the pool belongs to tenants.
bool access_has_tenants(const struct access_rules *rules, const char *pool);

// Pages of an amount, of a pool with num_pages. A percentage is rounded down, but is not 0 pages
// unless it is 0 %.
uint32_t access_pages(const struct access_amount *amount, uint32_t num_pages);

// Compares secrets: takes the same time wherever the first difference is.
bool access_equal(const void *a, const void *b, size_t size);

#endif
