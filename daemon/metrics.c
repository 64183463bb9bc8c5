// SPDX-License-Identifier: Apache-2.0
// metrics.c: see metrics.h.
#include "daemon/metrics.h"

#include "proto/proto.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

// Room for a label value of `n` bytes with every byte escaped.
#define LABEL(n) (2 * (n) + 1)

static void head(struct text *t, const char *name, const char *type, const char *help) {
    text_add(t, "# HELP kvpool_%s %s\n# TYPE kvpool_%s %s\n", name, help, name, type);
}

static void one(struct text *t, const char *name, const char *type, const char *help,
                uint64_t value) {
    head(t, name, type, help);
    text_add(t, "kvpool_%s %" PRIu64 "\n", name, value);
}

static void one_seconds(struct text *t, const char *name, const char *type, const char *help,
                        uint64_t ns) {
    head(t, name, type, help);
    text_add(t, "kvpool_%s %.9f\n", name, (double)ns / 1e9);
}

static const char *label(const char *value, char *ret, size_t size) {
    size_t n = 0;
    for (; *value != '\0' && n + 3 <= size; value++) {
        if (*value == '\\' || *value == '"' || *value == '\n')
            ret[n++] = '\\';
        ret[n++] = *value == '\n' ? 'n' : *value;
    }
    ret[n] = '\0';
    return ret;
}

// --- histograms -------------------------------------------------------------------------------

// `labels`: "" or `name="value"`.
static void histogram(struct text *t, const char *name, const char *labels,
                      const struct histogram *h) {
    const char *comma = labels[0] != '\0' ? "," : "";
    const char *open = labels[0] != '\0' ? "{" : "", *close = labels[0] != '\0' ? "}" : "";
    uint64_t below = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BOUNDS; i++) {
        below += h->count[i];
        text_add(t, "kvpool_%s_bucket{%s%sle=\"%g\"} %" PRIu64 "\n", name, labels, comma,
                 (double)histogram_bounds_us[i] / 1e6, below);
    }
    text_add(t, "kvpool_%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", name, labels, comma, h->total);
    text_add(t, "kvpool_%s_sum%s%s%s %.9f\n", name, open, labels, close, (double)h->sum_ns / 1e9);
    text_add(t, "kvpool_%s_count%s%s%s %" PRIu64 "\n", name, open, labels, close, h->total);
}

static void add_histograms(const struct metrics *m, struct text *t) {
    char labels[64];
    head(t, "step_seconds", "histogram", "Time from the begin of a step to its commit.");
    histogram(t, "step_seconds", "", m->step);
    head(t, "queue_wait_seconds", "histogram",
         "Time from the submission of work to its start on the device, by kind.");
    for (uint32_t i = 0; i < m->num_work; i++) {
        snprintf(labels, sizeof labels, "kind=\"%s\"", m->work[i].kind);
        histogram(t, "queue_wait_seconds", labels, m->work[i].wait);
    }
    head(t, "run_seconds", "histogram", "Time that the device took for work, by kind.");
    for (uint32_t i = 0; i < m->num_work; i++) {
        snprintf(labels, sizeof labels, "kind=\"%s\"", m->work[i].kind);
        histogram(t, "run_seconds", labels, m->work[i].run);
    }
}

// --- the daemon -------------------------------------------------------------------------------

static void add_requests_of(const char *op, const uint64_t answered[STATS_STATUSES],
                            struct text *t) {
    for (int status = 0; status < STATS_STATUSES; status++)
        text_add(t, "kvpool_requests_total{op=\"%s\",status=\"%s\"} %" PRIu64 "\n", op,
                 kvpool_status_name((kvpool_status)-status), answered[status]);
}

static void add_requests(const struct stats *s, struct text *t) {
    uint64_t unknown[STATS_STATUSES] = {0}; // no readable header, or an operation we do not know
    head(t, "requests_total", "counter", "Requests answered, by operation and status.");
    for (uint16_t op = 0; op < STATS_OPS; op++) {
        const char *name = proto_op_name(op);
        if (strcmp(name, "?") != 0)
            add_requests_of(name, s->answered[op], t);
        for (int status = 0; status < STATS_STATUSES && strcmp(name, "?") == 0; status++)
            unknown[status] += s->answered[op][status];
    }
    add_requests_of("unknown", unknown, t);
}

static void add_daemon(const struct metrics *m, struct text *t) {
    const struct stats *s = m->stats;
    char version[LABEL(64)], backend[LABEL(128)];
    head(t, "info", "gauge", "Always 1; what runs.");
    text_add(t, "kvpool_info{version=\"%s\",backend=\"%s\"} 1\n",
             label(m->version, version, sizeof version),
             label(m->backend, backend, sizeof backend));
    one_seconds(t, "uptime_seconds", "gauge", "Time since the start.", m->uptime_ns);
    one(t, "clients", "gauge", "Connected clients.", m->clients);
    one(t, "open_steps", "gauge", "Steps begun and neither committed nor aborted.", m->steps);
    one(t, "regions", "gauge", "Regions of all clients.", m->regions);
    one(t, "queue_depth", "gauge", "Requests in the daemon.", m->queue_depth);
    add_requests(s, t);
    one(t, "request_errors_total", "counter", "Requests answered by an error.", s->errors);
    one(t, "commits_total", "counter", "Steps committed.", s->commits);
    one(t, "aborts_total", "counter", "Steps aborted by their client.", s->aborts);
    one(t, "tokens_total", "counter", "Tokens committed.", s->tokens);
    one(t, "sessions_died_total", "counter", "Clients that died or hung up.", s->sessions_died);
    one_seconds(t, "reclaim_last_seconds", "gauge",
                "Time from the last client's death to its pages being free.", s->reclaim_last_ns);
    one_seconds(t, "reclaim_max_seconds", "gauge", "The longest of these times.",
                s->reclaim_max_ns);
    one(t, "leaked_pipes", "gauge", "Connections that are over and NNG keeps.", m->leaked_pipes);
    one(t, "relistens_total", "counter", "Listeners that had to be made again.", m->relistens);
    one(t, "dropped_log_lines_total", "counter", "Log lines that could not be written.",
        m->dropped_log_lines);
    one(t, "events_total", "counter", "Events recorded; 0 when events are off.", m->events);
}

// --- pools ------------------------------------------------------------------------------------

struct pool_series {
    const char *name, *help;
    uint64_t (*value)(const struct core_pool_info *p);
};

static uint64_t pool_seqs(const struct core_pool_info *p) {
    return p->seqs;
}
static uint64_t pool_pins(const struct core_pool_info *p) {
    return p->pins;
}
static uint64_t pool_size(const struct core_pool_info *p) {
    return p->config.num_pages;
}
static uint32_t pool_active(const struct core_pool_info *p) {
    return p->config.num_pages - p->free_pages - p->cached_pages;
}

static void add_pools(const struct metrics *m, struct text *t) {
    static const struct pool_series series[] = {
        {"pool_size_pages", "Pages of the pool.", pool_size},
        {"pool_sequences", "Sequences of the pool.", pool_seqs},
        {"pool_pins", "Pinned prefixes of the pool.", pool_pins},
    };
    char name[LABEL(CORE_NAME_SIZE)];
    head(t, "pool_pages", "gauge",
         "Pages by state: free, cached and active are all pages; shared and sealed are parts.");
    for (uint32_t i = 0; i < m->num_pools; i++) {
        const struct core_pool_info *p = &m->pools[i].info;
        const struct {
            const char *state;
            uint32_t pages;
        } states[] = {{"free", p->free_pages},
                      {"cached", p->cached_pages},
                      {"active", pool_active(p)},
                      {"shared", p->shared_pages},
                      {"sealed", p->sealed_pages}};
        label(p->config.name, name, sizeof name);
        for (size_t j = 0; j < sizeof states / sizeof *states; j++)
            text_add(t, "kvpool_pool_pages{pool=\"%s\",state=\"%s\"} %u\n", name, states[j].state,
                     states[j].pages);
    }
    head(t, "pool_occupancy_ratio", "gauge", "Active pages of all pages: 1 is full.");
    for (uint32_t i = 0; i < m->num_pools; i++) {
        const struct core_pool_info *p = &m->pools[i].info;
        text_add(t, "kvpool_pool_occupancy_ratio{pool=\"%s\"} %.6f\n",
                 label(p->config.name, name, sizeof name),
                 p->config.num_pages > 0 ? (double)pool_active(p) / p->config.num_pages : 0.0);
    }
    for (size_t j = 0; j < sizeof series / sizeof *series; j++) {
        head(t, series[j].name, "gauge", series[j].help);
        for (uint32_t i = 0; i < m->num_pools; i++)
            text_add(t, "kvpool_%s{pool=\"%s\"} %" PRIu64 "\n", series[j].name,
                     label(m->pools[i].info.config.name, name, sizeof name),
                     series[j].value(&m->pools[i].info));
    }
}

// --- namespaces -------------------------------------------------------------------------------

struct ns_series {
    const char *name, *type, *help;
    size_t offset; // of the value in core_ns_info
    size_t size;   // 4 or 8
};
#define NS(name, type, field, help)                             \
    {                                                           \
        name, type, help, offsetof(struct core_ns_info, field), \
            sizeof(((struct core_ns_info *)0)->field)           \
    }

static const struct ns_series ns_series[] = {
    NS("hit_tokens_total", "counter", counters.hit_tokens, "Tokens found in the cache."),
    NS("miss_tokens_total", "counter", counters.miss_tokens, "Tokens asked for in vain."),
    NS("sealed_pages_total", "counter", counters.sealed, "Pages that entered the prefix index."),
    NS("deduplicated_pages_total", "counter", counters.deduplicated,
       "Pages given back because the index had their contents."),
    NS("evicted_pages_total", "counter", counters.evicted, "Cached pages evicted for space."),
    NS("dropped_pages_total", "counter", counters.dropped, "Cached pages dropped on request."),
    NS("refused_total", "counter", counters.refused, "Operations refused for want of pages."),
    NS("namespace_reserve_pages", "gauge", config.reserve, "Pages it can always have."),
    NS("namespace_limit_pages", "gauge", config.limit, "Pages it has at most."),
    NS("namespace_sequences", "gauge", seqs, "Sequences of the namespace."),
};

static uint64_t ns_value(const struct core_ns_info *ns, const struct ns_series *s) {
    const char *field = (const char *)ns + s->offset;
    uint64_t wide = 0;
    uint32_t narrow = 0;
    if (s->size == sizeof wide) {
        memcpy(&wide, field, sizeof wide);
        return wide;
    }
    memcpy(&narrow, field, sizeof narrow);
    return narrow;
}

static void add_namespaces(const struct metrics *m, struct text *t) {
    char pool[LABEL(CORE_NAME_SIZE)], ns[LABEL(CORE_NAME_SIZE)];
    for (size_t k = 0; k < sizeof ns_series / sizeof *ns_series; k++) {
        const struct ns_series *s = &ns_series[k];
        head(t, s->name, s->type, s->help);
        for (uint32_t i = 0; i < m->num_pools; i++)
            for (uint32_t j = 0; j < m->pools[i].num_ns; j++)
                text_add(t, "kvpool_%s{pool=\"%s\",namespace=\"%s\"} %" PRIu64 "\n", s->name,
                         label(m->pools[i].info.config.name, pool, sizeof pool),
                         label(m->pools[i].ns[j].config.name, ns, sizeof ns),
                         ns_value(&m->pools[i].ns[j], s));
    }
    head(t, "namespace_pages", "gauge", "Pages of the namespace by state.");
    for (uint32_t i = 0; i < m->num_pools; i++)
        for (uint32_t j = 0; j < m->pools[i].num_ns; j++) {
            const struct core_ns_info *info = &m->pools[i].ns[j];
            label(m->pools[i].info.config.name, pool, sizeof pool);
            label(info->config.name, ns, sizeof ns);
            text_add(t, "kvpool_namespace_pages{pool=\"%s\",namespace=\"%s\",state=\"%s\"} %u\n",
                     pool, ns, "active", info->active);
            text_add(t, "kvpool_namespace_pages{pool=\"%s\",namespace=\"%s\",state=\"%s\"} %u\n",
                     pool, ns, "cached", info->cached);
        }
}

void metrics_format(const struct metrics *m, struct text *t) {
    add_daemon(m, t);
    add_histograms(m, t);
    add_pools(m, t);
    add_namespaces(m, t);
}
