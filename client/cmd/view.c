// SPDX-License-Identifier: Apache-2.0
// view.c: see view.h.
#include "client/cmd/view.h"

#include "client/cmd/format.h"
#include "client/cmd/lists.h"
#include "client/cmd/table.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

kvpool_status view_fetch(kvpool_client *client, const char *dir, struct view *ret) {
    struct view v = {.daemon.size = sizeof(v.daemon), .stats.size = sizeof(v.stats)};
    kvpool_status status = KVPOOL_OK;
    snprintf(v.dir, sizeof(v.dir), "%s", dir);
    if ((status = kvpool_get_stats(client, &v.stats)) != KVPOOL_OK) {
        return status;
    }
    v.taken_ns = now_ns();
    if (v.stats.queue_depth > 0) {
        v.stats.queue_depth--; // the request that asks
    }
    if ((status = kvpool_daemon(client, &v.daemon)) != KVPOOL_OK ||
        (status = list_pools(client, &v.pools, &v.num_pools)) != KVPOOL_OK ||
        (status = usage_sums(client, v.pools, v.num_pools, &v.usage)) != KVPOOL_OK ||
        (status = list_clients(client, &v.clients, &v.num_clients)) != KVPOOL_OK) {
        view_free(&v);
        return status;
    }
    *ret = v;
    return KVPOOL_OK;
}

void view_free(struct view *view) {
    free(view->pools);
    free(view->usage);
    free(view->clients);
    *view = (struct view){0};
}

// --- the caches of the pools ------------------------------------------------------------------

static bool usage_known(const struct view *view, uint32_t i) {
    return view->usage != NULL && view->usage[i].known;
}

// The same pool in an earlier view of the same daemon, or NULL.
static const struct usage_sum *usage_before(const struct view *before, const struct view *now,
                                            uint32_t i) {
    if (before == NULL || before->usage == NULL || !usage_known(now, i) ||
        before->stats.epoch != now->stats.epoch || now->taken_ns <= before->taken_ns) {
        return NULL;
    }
    for (uint32_t k = 0; k < before->num_pools; k++) {
        if (before->usage[k].known && before->usage[k].pool == now->usage[i].pool) {
            return &before->usage[k];
        }
    }
    return NULL;
}

double view_hit_rate(const struct view *before, const struct view *now, uint32_t i) {
    const struct usage_sum *old = usage_before(before, now, i);
    if (old == NULL) {
        return -1;
    }
    return usage_hit_rate(now->usage[i].hit_tokens - old->hit_tokens,
                          now->usage[i].miss_tokens - old->miss_tokens);
}

double view_evictions(const struct view *before, const struct view *now, uint32_t i) {
    const struct usage_sum *old = usage_before(before, now, i);
    if (old == NULL) {
        return -1;
    }
    return (double)(now->usage[i].evicted - old->evicted) * 1e9 /
           (double)(now->taken_ns - before->taken_ns);
}

static char *format_percent(double part, char buf[FORMAT_SIZE]) {
    if (part < 0) {
        snprintf(buf, FORMAT_SIZE, "-");
    } else {
        snprintf(buf, FORMAT_SIZE, "%.1f%%", 100 * part);
    }
    return buf;
}

// "####====....": pages in use, cached, free.
static char *format_bar(const struct usage_sum *u, char buf[FORMAT_SIZE]) {
    const uint32_t width = 20;
    uint64_t pages = u->num_pages > 0 ? u->num_pages : 1;
    uint32_t active = (uint32_t)((u->active * (uint64_t)width + pages / 2) / pages);
    uint32_t used = (uint32_t)(((uint64_t)u->active + u->cached) * width / pages);
    for (uint32_t i = 0; i < width; i++) {
        buf[i] = '.';
        if (i < active) {
            buf[i] = '#';
        } else if (i < used) {
            buf[i] = '=';
        }
    }
    buf[width] = 0;
    return buf;
}

static char *format_per_s(double per_s, char buf[FORMAT_SIZE]) {
    if (per_s < 0) {
        snprintf(buf, FORMAT_SIZE, "-");
    } else {
        snprintf(buf, FORMAT_SIZE, "%.1f", per_s);
    }
    return buf;
}

// The first `n` pools; nothing when the daemon tells no usage. Returns the lines written.
static int print_caches(const struct view *before, const struct view *now, uint32_t n, FILE *out) {
    struct table *t = table_new(8, "<CACHE", ">ACTIVE", ">CACHED", ">FREE", "<OCCUPANCY",
                                ">HITS NOW", ">HITS EVER", ">EVICTED/S");
    int rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        char text[7][FORMAT_SIZE];
        if (!usage_known(now, i)) {
            continue;
        }
        const struct usage_sum *u = &now->usage[i];
        table_row(t, now->pools[i].name, format_u64(u->active, text[0]),
                  format_u64(u->cached, text[1]), format_u64(u->free_pages, text[2]),
                  format_bar(u, text[3]), format_percent(view_hit_rate(before, now, i), text[4]),
                  format_percent(usage_hit_rate(u->hit_tokens, u->miss_tokens), text[5]),
                  format_per_s(view_evictions(before, now, i), text[6]));
    }
    if (table_rows(t) > 0) {
        putc('\n', out);
        table_print(t, out);
        rows = table_rows(t) + 2;
    }
    table_free(t);
    return rows;
}

static void json_part(struct json *j, const char *key, double value) {
    json_num(j, key, value < 0 ? (double)INFINITY : value); // null: not known
}

static void json_caches(struct json *j, const struct view *before, const struct view *now) {
    json_array(j, "caches");
    for (uint32_t i = 0; i < now->num_pools; i++) {
        if (!usage_known(now, i)) {
            continue;
        }
        const struct usage_sum *u = &now->usage[i];
        json_object(j, NULL);
        json_str(j, "pool", now->pools[i].name);
        json_u64(j, "num_pages", u->num_pages);
        json_u64(j, "active_pages", u->active);
        json_u64(j, "cached_pages", u->cached);
        json_u64(j, "free_pages", u->free_pages);
        json_u64(j, "hit_tokens", u->hit_tokens);
        json_u64(j, "miss_tokens", u->miss_tokens);
        json_part(j, "hit_rate", usage_hit_rate(u->hit_tokens, u->miss_tokens));
        json_part(j, "hit_rate_now", view_hit_rate(before, now, i));
        json_u64(j, "sealed", u->sealed);
        json_u64(j, "deduplicated", u->deduplicated);
        json_u64(j, "evicted", u->evicted);
        json_part(j, "evicted_per_s", view_evictions(before, now, i));
        json_u64(j, "refused", u->refused);
        json_end(j);
    }
    json_end(j);
}

// --- status -----------------------------------------------------------------------------------

void view_print_status(const struct view *view, FILE *out) {
    const kvpool_stats *s = &view->stats;
    const kvpool_daemon_info *d = &view->daemon;
    char version[sizeof(d->version)];
    char backend[sizeof(d->backend)];
    char text[8][FORMAT_SIZE];
    fprintf(out, "kvpoold %s in %s: backend %s, pid %" PRIu32 ", up %s, protocol %" PRIu32 "\n",
            format_plain(d->version, version, sizeof(version)), view->dir,
            format_plain(d->backend, backend, sizeof(backend)), d->pid,
            format_uptime(s->uptime_ns, text[0]), d->protocol);
    fprintf(out, "load       %.1f requests/s, %" PRIu32 " queued\n", s->requests_per_s,
            s->queue_depth);
    fprintf(out,
            "objects    %" PRIu32 " pools, %" PRIu32 " sequences, %" PRIu32 " open steps, %" PRIu32
            " clients, %" PRIu32 " regions\n",
            s->pools, s->seqs, s->steps, s->clients, s->regions);
    fprintf(out, "answered   %s requests, %s of them with an error\n",
            format_count(s->requests, text[0]), format_count(s->errors, text[1]));
    fprintf(out,
            "work       %s tokens: %s appends, %s prefills, %s decodes, %s commits, %s aborts\n",
            format_count(s->tokens, text[0]), format_count(s->appends, text[1]),
            format_count(s->prefills, text[2]), format_count(s->decodes, text[3]),
            format_count(s->commits, text[4]), format_count(s->aborts, text[5]));
    if (s->sessions_died != 0) {
        fprintf(out, "deaths     %s clients; pages back after %s (last), %s (worst)\n",
                format_count(s->sessions_died, text[0]),
                format_us((double)s->reclaim_last_ns / 1e3, text[1]),
                format_us((double)s->reclaim_max_ns / 1e3, text[2]));
    }
    if (s->relistens != 0 || s->leaked_pipes != 0) {
        fprintf(out, "listener   re-created %s times, %s connections leaked\n",
                format_count(s->relistens, text[0]), format_count(s->leaked_pipes, text[1]));
    }
    putc('\n', out);
    print_pools(view->pools, view->num_pools, out);
    print_caches(NULL, view, view->num_pools, out);
}

// The members that `status` and `top` share, into an open object.
static void json_daemon(struct json *j, const struct view *view) {
    const kvpool_stats *s = &view->stats;
    const kvpool_daemon_info *d = &view->daemon;
    json_str(j, "dir", view->dir);
    json_str(j, "version", d->version);
    json_str(j, "library_version", kvpool_version());
    json_str(j, "backend", d->backend);
    json_u64(j, "protocol", d->protocol);
    json_u64(j, "pid", d->pid);
    json_hex(j, "epoch", d->epoch);
    json_num(j, "uptime_s", (double)s->uptime_ns / 1e9);
    json_num(j, "requests_per_s", s->requests_per_s);
    json_u64(j, "queue_depth", s->queue_depth);
    json_u64(j, "requests", s->requests);
    json_u64(j, "errors", s->errors);
    json_u64(j, "tokens", s->tokens);
    json_u64(j, "appends", s->appends);
    json_u64(j, "prefills", s->prefills);
    json_u64(j, "decodes", s->decodes);
    json_u64(j, "commits", s->commits);
    json_u64(j, "aborts", s->aborts);
    json_u64(j, "sequences", s->seqs);
    json_u64(j, "steps", s->steps);
    json_u64(j, "clients", s->clients);
    json_u64(j, "regions", s->regions);
    json_u64(j, "sessions_died", s->sessions_died);
    json_num(j, "reclaim_last_us", (double)s->reclaim_last_ns / 1e3);
    json_num(j, "reclaim_max_us", (double)s->reclaim_max_ns / 1e3);
    json_u64(j, "relistens", s->relistens);
    json_u64(j, "leaked_pipes", s->leaked_pipes);
    json_u64(j, "max_batch", d->max_batch);
    json_u64(j, "max_inflight", d->max_inflight);
    json_u64(j, "max_message", d->max_message);
    json_pools(j, "pools", view->pools, view->num_pools);
}

void view_json_status(const struct view *view, FILE *out) {
    struct json j = json_start(out);
    json_object(&j, NULL);
    json_daemon(&j, view);
    json_caches(&j, NULL, view);
    json_end(&j);
    json_finish(&j);
}

static bool same_client(const kvpool_client_info *a, const kvpool_client_info *b) {
    return a->pid == b->pid && strcmp(a->name, b->name) == 0;
}

double view_client_rate(const struct view *before, const struct view *now, uint32_t i) {
    const kvpool_client_info *c = &now->clients[i];
    uint32_t twins = 0; // earlier clients of the same process and name: matched by their order
    double seconds = 0;
    if (before == NULL || before->stats.epoch != now->stats.epoch ||
        now->taken_ns <= before->taken_ns) {
        return -1;
    }
    seconds = (double)(now->taken_ns - before->taken_ns) / 1e9;
    for (uint32_t k = 0; k < i; k++) {
        twins += same_client(&now->clients[k], c) ? 1 : 0;
    }
    for (uint32_t k = 0; k < before->num_clients; k++) {
        const kvpool_client_info *old = &before->clients[k];
        if (same_client(old, c) && twins-- == 0) {
            return c->requests < old->requests ? -1
                                               : (double)(c->requests - old->requests) / seconds;
        }
    }
    return -1;
}

// Per second since the last frame; negative when not known.
static double rate(const struct view *before, const struct view *now, uint64_t old,
                   uint64_t value) {
    if (before == NULL || before->stats.epoch != now->stats.epoch ||
        now->taken_ns <= before->taken_ns || value < old) {
        return -1;
    }
    return (double)(value - old) * 1e9 / (double)(now->taken_ns - before->taken_ns);
}

#define TOP_RATES(X) X(requests) X(tokens) X(appends) X(prefills) X(decodes) X(commits) X(errors)

static void print_rates(const struct view *before, const struct view *now, FILE *out) {
    char text[FORMAT_SIZE];
    fprintf(out, "per second ");
#define TOP_PRINT(field)       \
    fprintf(                   \
        out, " " #field " %s", \
        format_per_s(          \
            rate(before, now, before == NULL ? 0 : before->stats.field, now->stats.field), text));
    TOP_RATES(TOP_PRINT)
#undef TOP_PRINT
    putc('\n', out);
}

// The clients with the most requests per second first, as many as fit.
static void print_top_clients(const struct view *before, const struct view *now, int rows,
                              FILE *out) {
    struct table *t = table_new(9, ">PID", ">UID", "<NAME", ">SEQUENCES", ">STEPS", ">REGION",
                                ">IN FLIGHT", ">REQUESTS", ">PER S");
    double *rates = cmd_realloc(NULL, (now->num_clients + 1) * sizeof(double));
    int hidden = 0;
    for (uint32_t i = 0; i < now->num_clients; i++) {
        rates[i] = view_client_rate(before, now, i);
        if (now->clients[i].pid == now->own_pid) {
            rates[i] = -2; // this program itself
        }
    }
    for (;;) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < now->num_clients; i++) {
            best = rates[i] > rates[best] ? i : best;
        }
        if (now->num_clients == 0 || rates[best] < -1) {
            break;
        }
        const kvpool_client_info *c = &now->clients[best];
        char text[8][FORMAT_SIZE];
        if (rows > 0 && table_rows(t) + 2 >= rows) { // the heading and the line of hidden ones
            hidden++;
        } else {
            table_row(t, format_u64(c->pid, text[0]), format_u64(c->uid, text[1]), c->name,
                      format_u64(c->seqs, text[2]), format_u64(c->steps, text[3]),
                      format_bytes(c->region_bytes, text[4]), format_u64(c->inflight, text[5]),
                      format_u64(c->requests, text[6]), format_per_s(rates[best], text[7]));
        }
        rates[best] = -2; // shown
    }
    if (table_rows(t) == 0) {
        fprintf(out, hidden == 0 ? "no clients\n" : "%d clients\n", hidden);
    } else {
        table_print(t, out);
        if (hidden != 0) {
            fprintf(out, "... and %d more\n", hidden);
        }
    }
    free(rates);
    table_free(t);
}

void view_print_top(const struct view *before, const struct view *now, int rows, FILE *out) {
    const kvpool_stats *s = &now->stats;
    char backend[sizeof(now->daemon.backend)];
    char text[FORMAT_SIZE];
    uint32_t pools = now->num_pools;
    int caches = 0;
    int room = 0;
    if (rows > 0 && (int)pools > rows / 5) { // each has a line twice
        pools = rows < 5 ? 1 : (uint32_t)(rows / 5);
    }
    fprintf(out, "kvpool top: %s, backend %s, pid %" PRIu32 ", up %s\n", now->dir,
            format_plain(now->daemon.backend, backend, sizeof(backend)), now->daemon.pid,
            format_uptime(s->uptime_ns, text));
    fprintf(out,
            "now         %.1f requests/s, %" PRIu32 " queued, %" PRIu32 " open steps, %" PRIu32
            " sequences, %" PRIu32 " clients\n",
            s->requests_per_s, s->queue_depth, s->steps, s->seqs, s->clients);
    print_rates(before, now, out);
    putc('\n', out);
    print_pools(now->pools, pools, out);
    if (pools < now->num_pools) {
        fprintf(out, "... and %" PRIu32 " more\n", now->num_pools - pools);
    }
    caches = print_caches(before, now, pools, out);
    putc('\n', out);
    // above: 3 lines, a blank, the heading, the pools, perhaps "more", the caches, a blank; below:
    // the prompt
    room = rows - 7 - (int)pools - (pools < now->num_pools ? 1 : 0) - caches;
    print_top_clients(before, now, rows == 0 ? 0 : room < 3 ? 3 : room, out);
}

void view_json_top(const struct view *before, const struct view *now, FILE *out) {
    struct json j = json_start(out);
    json_object(&j, NULL);
    json_daemon(&j, now);
    json_object(&j, "rates"); // per second since the last frame; null in the first
#define TOP_JSON(field)                                                                    \
    do {                                                                                   \
        double per_s =                                                                     \
            rate(before, now, before == NULL ? 0 : before->stats.field, now->stats.field); \
        json_num(&j, #field, per_s < 0 ? (double)INFINITY : per_s);                        \
    } while (0);
    TOP_RATES(TOP_JSON)
#undef TOP_JSON
    json_end(&j);
    json_caches(&j, before, now);
    json_array(&j, "client_list");
    for (uint32_t i = 0; i < now->num_clients; i++) {
        double per_s = view_client_rate(before, now, i);
        json_object(&j, NULL);
        json_client(&j, &now->clients[i]);
        json_num(&j, "requests_per_s", per_s < 0 ? (double)INFINITY : per_s);
        json_end(&j);
    }
    json_end(&j);
    json_end(&j);
    json_finish(&j);
}
