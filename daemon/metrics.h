// SPDX-License-Identifier: Apache-2.0
// metrics.h: the daemon's figures in Prometheus' text format, version 0.0.4.
//
//   # HELP kvpool_clients Connected clients.
//   # TYPE kvpool_clients gauge
//   kvpool_clients 3
//
// Invariants
//  1. Every series is in every text, from the first: counters that nothing has moved are 0.
//  2. HELP and TYPE come once, before all series of their name; no series comes twice.
//  3. Label values are escaped.
// Thread: any; no state.
#ifndef KVPOOL_DAEMON_METRICS_H
#define KVPOOL_DAEMON_METRICS_H

#include "daemon/core/core.h"
#include "daemon/histogram.h"
#include "daemon/stats.h"
#include "daemon/text.h"

struct metrics_pool {
    struct core_pool_info info;
    const struct core_ns_info *ns; // [num_ns]
    uint32_t num_ns;
};

struct metrics_work { // one kind of work of the device
    const char *kind;
    const struct histogram *wait, *run; // until its first slice starts; on the device
};

struct metrics {
    const char *version, *backend;
    uint64_t uptime_ns;
    uint32_t clients, steps, regions, queue_depth;
    uint64_t relistens, leaked_pipes, dropped_log_lines, events;
    const struct stats *stats;
    const struct metrics_pool *pools; // [num_pools]
    uint32_t num_pools;
    const struct histogram *step;
    const struct metrics_work *work; // [num_work]
    uint32_t num_work;
};

void metrics_format(const struct metrics *m, struct text *t);

#endif
