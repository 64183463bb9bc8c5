// SPDX-License-Identifier: Apache-2.0
// observe.h: observation, what `kvpool status` shows. None of it can fail a step or block other clients.
// Conventions: kvpool.h.
#ifndef KVPOOL_OBSERVE_H
#define KVPOOL_OBSERVE_H

#include <kvpool/pool.h>
#include <kvpool/seq.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvpool_stats {
    size_t size;
    uint64_t uptime_ns;
    uint64_t epoch;
    uint32_t pid;
    uint32_t pools, seqs, steps, clients, regions; // live objects
    uint32_t queue_depth;                          // requests accepted and not yet answered
    uint64_t requests;                             // answered since the start
    uint64_t errors;                               // of those, answered with an error
    uint64_t appends, prefills, decodes, commits, aborts;
    uint64_t tokens;          // committed since the start
    uint64_t sessions_died;   // clients that ended without saying so
    uint64_t relistens;       // listener re-created by the self-probe
    uint64_t leaked_pipes;    // connections that are over and NNG keeps
    double requests_per_s;    // over the last second
    uint64_t reclaim_last_ns; // death of the last died client to its pages being free
    uint64_t reclaim_max_ns;
} kvpool_stats;

typedef struct kvpool_client_info {
    size_t size;
    uint32_t pid, uid;
    uint32_t seqs, steps, regions, inflight;
    uint64_t region_bytes;
    uint64_t requests;
    char name[KVPOOL_NAME_MAX + 1];
} kvpool_client_info;

// What one namespace of a pool has and did. Hits and misses count tokens of kvpool_seq_open_with and
// kvpool_seq_match that were found, and not found.
typedef struct kvpool_usage {
    size_t size;
    char name[KVPOOL_NAME_MAX + 1];
    char group[KVPOOL_NAME_MAX + 1]; // namespaces of one group share; "": this one with nobody
    uint32_t num_pages, free_pages;  // of the whole pool
    uint32_t reserve, limit, weight; // pages, pages (0: no limit), share of what is borrowed
    uint32_t active, cached;         // pages in use, and kept until the space is needed
    uint32_t seqs;
    uint64_t hit_tokens, miss_tokens;
    uint64_t sealed, deduplicated, evicted, dropped; // pages
    uint64_t refused;                                // requests that got KVPOOL_E_NOSPACE
} kvpool_usage;

// Counters of the daemon. ret->size must be set.
KVPOOL_API kvpool_status kvpool_get_stats(kvpool_client *client, kvpool_stats *ret);

// Lists. The caller gives an array of `cap` (1 or more) structs, each with `size` set; ret_n is how
// many were written. `cursor` starts as 0 and is advanced; the list is complete when *ret_n < cap.
// Objects made or freed between calls may be missed or shown; no object is shown twice. After an
// error the array's contents are unspecified.
KVPOOL_API kvpool_status kvpool_list_pools(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                           kvpool_pool_info *ret, uint32_t *ret_n);
KVPOOL_API kvpool_status kvpool_list_seqs(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                          kvpool_seq_info *ret, uint32_t *ret_n);
// One's own namespace; root and the daemon's user see all.
KVPOOL_API kvpool_status kvpool_list_usage(kvpool_client *client, kvpool_pool pool,
                                           uint32_t *cursor, uint32_t cap, kvpool_usage *ret,
                                           uint32_t *ret_n);
KVPOOL_API kvpool_status kvpool_list_clients(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                             kvpool_client_info *ret, uint32_t *ret_n);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_OBSERVE_H
