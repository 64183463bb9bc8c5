// SPDX-License-Identifier: Apache-2.0
// usage.h: what the namespaces of pools hold and did: fetched, summed up, printed, as JSON.
//
// Invariants
//  1. The JSON keys are stable: added to, never renamed.
// Thread: main.
#ifndef KVPOOL_CMD_USAGE_H
#define KVPOOL_CMD_USAGE_H

#include "client/cmd/json.h"

#include <kvpool/kvpool.h>

// The namespaces of a pool that this user may see; the caller frees *ret.
kvpool_status list_usage(kvpool_client *client, kvpool_pool pool, kvpool_usage **ret,
                         uint32_t *ret_n);

struct usage_sum { // of a pool's namespaces
    kvpool_pool pool;
    bool known; // false: the daemon tells no usage
    uint32_t active, cached, free_pages, num_pages;
    uint64_t hit_tokens, miss_tokens, sealed, deduplicated, evicted, dropped, refused;
};
// One for each pool, complete as far as this user may see; the caller frees *ret. A daemon that
// cannot tell (UNSUPPORTED), and a pool that went away meanwhile, gives sums that are not known.
kvpool_status usage_sums(kvpool_client *client, const kvpool_pool_info *pools, uint32_t n,
                         struct usage_sum **ret);

// Hits of all tokens looked up, 0..1; negative when there were none.
double usage_hit_rate(uint64_t hit_tokens, uint64_t miss_tokens);

void print_usage(const char *pool, const kvpool_usage *usage, uint32_t n, FILE *out);
// The members of one namespace, into an open object.
void json_usage(struct json *j, const char *pool, const kvpool_usage *usage);

#endif
