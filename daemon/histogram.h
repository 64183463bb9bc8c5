// SPDX-License-Identifier: Apache-2.0
// histogram.h: how long things take: counts of durations between fixed bounds, in the shape of a
// Prometheus histogram.
//
//   count[i]: durations in (bound[i-1], bound[i]]     bounds: 10 us .. 10 s in steps of 1, 2.5, 5
//   count[HISTOGRAM_BOUNDS]: those above the last bound (le="+Inf")
//
// Invariants
//  1. total is the sum of count; no duration is lost, however long.
//  2. Every bucket exists from the start: a zeroed struct is an empty histogram.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_HISTOGRAM_H
#define KVPOOL_DAEMON_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BOUNDS 19

// Upper bounds in microseconds, each inclusive, rising.
extern const uint32_t histogram_bounds_us[HISTOGRAM_BOUNDS];

struct histogram {
    uint64_t count[HISTOGRAM_BOUNDS + 1]; // not cumulative
    uint64_t total;
    uint64_t sum_ns;
};

void histogram_add(struct histogram *h, uint64_t ns);

// Durations of at most bound i; all of them for i == HISTOGRAM_BOUNDS: Prometheus's le buckets.
uint64_t histogram_below(const struct histogram *h, uint32_t i);

// The bound that the fraction `q` (0 < q <= 1) of the durations does not exceed, in microseconds;
// 0 when empty, UINT64_MAX when it lies above the last bound.
uint64_t histogram_quantile_us(const struct histogram *h, double q);

#endif
