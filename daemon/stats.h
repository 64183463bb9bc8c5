// SPDX-License-Identifier: Apache-2.0
// stats.h: the daemon's counters since its start, and the request rate of the last second.
//
//   ring of 100 ms buckets:  | 12 | 9 | ... |   rate = sum of the last ten, whatever the idle time
//
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_STATS_H
#define KVPOOL_DAEMON_STATS_H

#include <stdbool.h>
#include <stdint.h>

#define STATS_BUCKETS 11 // ten whole ones and the current one
#define STATS_BUCKET_NS 100000000ull
#define STATS_OPS 64      // operations counted apart; 0: what is none
#define STATS_STATUSES 25 // KVPOOL_OK to KVPOOL_E_INTERNAL

struct stats {
    uint64_t requests, errors;
    uint64_t appends, prefills, decodes, commits, aborts, tokens;
    uint64_t sessions_died, leaked_pipes;
    uint64_t reclaim_last_ns, reclaim_max_ns;
    uint64_t bucket_number[STATS_BUCKETS];
    uint32_t bucket_count[STATS_BUCKETS];
    uint64_t answered[STATS_OPS][STATS_STATUSES]; // by -status
};

// A request was answered. op 0: it had no readable header.
void stats_answered(struct stats *s, uint16_t op, int status, uint64_t now_ns);
// The pages of a client that died are free, `ns` after its death was seen.
void stats_reclaimed(struct stats *s, uint64_t ns);
double stats_rate(const struct stats *s, uint64_t now_ns); // requests per second

#endif
