// SPDX-License-Identifier: Apache-2.0
// view.h: one look at the daemon: what `kvpool status` and `kvpool top` show, fetched and printed.
//
// The lists come page by page, each from its own moment: numbers of different lists need not add
// up.
//
// Invariants
//  1. A view that view_fetch filled is complete; on a failure it is empty and needs no view_free.
//  2. queue_depth does not count the request that asked for it; clients and requests count this
//     program too.
//  3. The JSON keys are stable: added to, never renamed.
// Thread: main.
#ifndef KVPOOL_CMD_VIEW_H
#define KVPOOL_CMD_VIEW_H

#include "client/cmd/usage.h"

struct view {
    char dir[256];
    uint64_t taken_ns; // CLOCK_MONOTONIC
    kvpool_daemon_info daemon;
    kvpool_stats stats;
    kvpool_pool_info *pools;
    uint32_t num_pools;
    struct usage_sum *usage; // [num_pools]; NULL: not known
    kvpool_client_info *clients;
    uint32_t num_clients;
    uint32_t own_pid; // this process: hidden from the list of clients; 0: nothing is hidden
};

kvpool_status view_fetch(kvpool_client *client, const char *dir, struct view *ret);
void view_free(struct view *view);

void view_print_status(const struct view *view, FILE *out);
void view_json_status(const struct view *view, FILE *out);

// Requests per second of client i of `now` since `before` (NULL: no rate). Negative: not known
// (the client is new).
double view_client_rate(const struct view *before, const struct view *now, uint32_t i);

// Since `before` (NULL: not known) in pool i of `now`: part of the tokens looked up that were found,
// and pages evicted per second. Negative: not known, or nothing was looked up.
double view_hit_rate(const struct view *before, const struct view *now, uint32_t i);
double view_evictions(const struct view *before, const struct view *now, uint32_t i);

// One frame of `top`; `before` may be NULL. `rows`: lines of the terminal, 0: no limit.
void view_print_top(const struct view *before, const struct view *now, int rows, FILE *out);
void view_json_top(const struct view *before, const struct view *now, FILE *out);

#endif
