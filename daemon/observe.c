// SPDX-License-Identifier: Apache-2.0
// observe.c: what dispatch shows of itself to monitoring: its figures as text, the changes of the
// cache as events, the progress of the device.
// Thread: loop thread, but for dispatch_stalled_since.
#include "daemon/dispatch_impl.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

#include <stdlib.h>

// The namespaces of a pool, in memory of the caller's. False when there is none.
static bool collect_ns(const struct core *c, struct metrics_pool *pool) {
    struct core_ns_info *ns = calloc(CORE_MAX_NAMESPACES, sizeof *ns);
    uint32_t cursor = 0;
    if (ns == NULL)
        return false;
    while (pool->num_ns < CORE_MAX_NAMESPACES &&
           core_ns_next(c, pool->info.pool, &cursor, &ns[pool->num_ns]))
        pool->num_ns++;
    pool->ns = ns;
    return true;
}

void dispatch_metrics(struct dispatch *d, uint64_t events, struct text *t) {
    struct metrics_pool *pools = calloc(d->config->limits.max_pools, sizeof *pools);
    struct core_totals totals;
    const struct engine_stats *engine = engine_stats(d->engine);
    struct metrics_work work[COST_KINDS];
    uint32_t cursor = 0;
    for (uint32_t i = 0; i < COST_KINDS; i++)
        work[i] = (struct metrics_work){cost_kind_name((enum cost_kind)i), &engine->wait[i],
                                        &engine->run[i]};
    core_totals(d->core, &totals);
    struct metrics m = {
        .version = config_version(),
        .backend = d->describe,
        .uptime_ns = uv_hrtime() - d->started_ns,
        .clients = d->sessions.count,
        .steps = totals.steps,
        .regions = regions_count(d->regions),
        .queue_depth = d->server != NULL ? server_busy(d->server) : 0,
        .relistens = d->server != NULL ? server_relistens(d->server) : 0,
        .leaked_pipes = dispatch_leaked_pipes(d),
        .dropped_log_lines = log_dropped(),
        .events = events,
        .stats = &d->stats,
        .pools = pools,
        .step = &d->step_time,
        .work = work,
        .num_work = COST_KINDS,
    };
    t->failed = t->failed || pools == NULL;
    while (!t->failed && m.num_pools < d->config->limits.max_pools &&
           core_pool_next(d->core, &cursor, &pools[m.num_pools].info)) {
        t->failed = !collect_ns(d->core, &pools[m.num_pools]);
        m.num_pools++;
    }
    if (!t->failed)
        metrics_format(&m, t);
    for (uint32_t i = 0; i < m.num_pools; i++)
        free((void *)pools[i].ns);
    free(pools);
}

void dispatch_observe(struct dispatch *d, core_event_fn fn, void *arg) {
    core_observe(d->core, fn, arg);
}

uint64_t dispatch_stalled_since(const void *arg_dispatch) {
    const struct dispatch *d = arg_dispatch;
    struct engine_progress p;
    engine_progress(d->engine, &p);
    if (!p.busy)
        return 0;
    return p.last_ns > p.busy_since_ns ? p.last_ns : p.busy_since_ns;
}
