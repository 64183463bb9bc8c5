// SPDX-License-Identifier: Apache-2.0
// lists.h: the daemon's lists of pools, sequences and clients: fetched whole, printed, as JSON.
//
// Invariants
//  1. Fetching ends: at most LISTS_MAX entries are taken.
//  2. The JSON keys are stable: added to, never renamed.
// Thread: main.
#ifndef KVPOOL_CMD_LISTS_H
#define KVPOOL_CMD_LISTS_H

#include "client/cmd/json.h"

#include <kvpool/kvpool.h>

#define LISTS_MAX 1000000u

// Complete lists; the caller frees *ret. On a failure nothing is written.
kvpool_status list_pools(kvpool_client *client, kvpool_pool_info **ret, uint32_t *ret_n);
kvpool_status list_seqs(kvpool_client *client, kvpool_seq_info **ret, uint32_t *ret_n);
kvpool_status list_clients(kvpool_client *client, kvpool_client_info **ret, uint32_t *ret_n);

void print_pools(const kvpool_pool_info *pools, uint32_t n, FILE *out);
void json_pools(struct json *j, const char *key, const kvpool_pool_info *pools, uint32_t n);
void print_clients(const kvpool_client_info *clients, uint32_t n, FILE *out);
// The members of one client, into an open object.
void json_client(struct json *j, const kvpool_client_info *client);
void json_clients(struct json *j, const char *key, const kvpool_client_info *clients, uint32_t n);
// `pools` gives the names; `only` (0: all) keeps one pool's sequences.
void print_seqs(const kvpool_seq_info *seqs, uint32_t n, const kvpool_pool_info *pools,
                uint32_t num_pools, kvpool_pool only, FILE *out);
void json_seqs(struct json *j, const char *key, const kvpool_seq_info *seqs, uint32_t n,
               const kvpool_pool_info *pools, uint32_t num_pools, kvpool_pool only);

#endif
