// SPDX-License-Identifier: Apache-2.0
// stats.c: see stats.h.
#include "daemon/stats.h"

void stats_answered(struct stats *s, uint16_t op, int status, uint64_t now_ns) {
    uint64_t number = now_ns / STATS_BUCKET_NS;
    uint32_t at = (uint32_t)(number % STATS_BUCKETS);
    if (s->bucket_number[at] != number) {
        s->bucket_number[at] = number;
        s->bucket_count[at] = 0;
    }
    s->bucket_count[at]++;
    s->requests++;
    s->errors += status != 0;
    s->answered[op < STATS_OPS ? op : 0][-status < STATS_STATUSES ? -status : STATS_STATUSES - 1]++;
}

void stats_reclaimed(struct stats *s, uint64_t ns) {
    s->sessions_died++;
    s->reclaim_last_ns = ns;
    if (ns > s->reclaim_max_ns)
        s->reclaim_max_ns = ns;
}

double stats_rate(const struct stats *s, uint64_t now_ns) {
    uint64_t now = now_ns / STATS_BUCKET_NS, sum = 0;
    for (uint32_t i = 0; i < STATS_BUCKETS; i++)
        if (s->bucket_number[i] < now && s->bucket_number[i] + STATS_BUCKETS - 1 >= now)
            sum += s->bucket_count[i];
    return (double)sum; // ten whole buckets are one second
}
