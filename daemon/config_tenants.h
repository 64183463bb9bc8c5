// SPDX-License-Identifier: Apache-2.0
// config_tenants.h: the part of the INI file that says who may use what: the access list of a
// [pool NAME] section and [namespace POOL/NAME] sections. Internal to config.
//
//   [namespace main/search]
//   uids = 1001, alice        ; and gids, identities: members; may be given again, lists add up
//   share = team              ; namespaces of one share find each other's pages
//   reserve = 10%             ; pages, or of the pool's pages
//   limit = 4096
//   weight = 3
//
// Invariants
//  1. Names of users and groups become numbers here; what is printed has numbers alone.
//  2. Messages name the key; who calls adds file and line.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_CONFIG_TENANTS_H
#define KVPOOL_DAEMON_CONFIG_TENANTS_H

#include "daemon/config.h"

#include <stdio.h>

#define CONFIG_MAX_WEIGHT 1000

// Adds "1000, alice" to the list that `key` (PREFIXuids, PREFIXgids, PREFIXidentities) names.
// Returns false when the key is none of them; else *ret_rc is 0 or the error.
bool config_list_value(const char *prefix, const char *key, const char *text,
                       struct access_list *list, int *ret_rc, struct err *err);

// Adds the pool's record, and the namespace of a section: `name` is POOL/NAME. Errors: INVAL.
int config_pool_access(struct access_rules *rules, const char *pool, struct err *err);
int config_ns_begin(struct access_rules *rules, const char *name, size_t len, struct err *err);
// A key of the last namespace. *seen: bits of those that came already.
int config_ns_value(struct access_rules *rules, const char *key, const char *text, uint32_t *seen,
                    struct err *err);
int config_ns_end(const struct access_rules *rules, struct err *err); // of the last one
// After the whole file: namespace i beside the others and its pool.
int config_ns_check(const struct config *config, uint32_t i, struct err *err);

bool config_policy_parse(const char *text, uint32_t *ret);
const char *config_policy_name(uint32_t policy);

// Print "KEY = ..." lines that the above reads back, through `line(key, value)`.
void config_list_print(const char *prefix, const struct access_list *list,
                       void (*line)(const char *key, const char *value));
void config_ns_print(const struct access_ns *ns, void (*line)(const char *key, const char *value));

#endif
