// SPDX-License-Identifier: Apache-2.0
// replay_kv.h: K and V of a replay's tokens, and what attention over them must give.
//
// Every element is made from (token, layer, K or V, its place) by a hash, with a magnitude of 0.5 to 2:
// whoever computed a page, its contents are known.
// Thread: any; no state.
#ifndef KVPOOL_CMD_REPLAY_KV_H
#define KVPOOL_CMD_REPLAY_KV_H

#include <kvpool/kvpool.h>

// Bytes of one token's K (or V) of a layer.
size_t replay_kv_bytes(const kvpool_pool_info *pool);

// Writes K and V of a token, replay_kv_bytes() each.
void replay_kv_fill(const kvpool_pool_info *pool, uint32_t token, uint32_t layer, void *k, void *v);

// Whether `out`, one query of ones (kv_heads heads, scale 1/sqrt(head_dim)) over tokens[0..n), n > 0,
// of a layer, is what it must be, but for rounding.
bool replay_kv_check(const kvpool_pool_info *pool, const uint32_t *tokens, uint32_t n,
                     uint32_t layer, const void *out);

// Writes such a query.
void replay_kv_query(const kvpool_pool_info *pool, void *q);

#endif
