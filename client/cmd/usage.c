// SPDX-License-Identifier: Apache-2.0
// usage.c: see usage.h.
#include "client/cmd/usage.h"

#include "client/cmd/format.h"
#include "client/cmd/table.h"

#include <stdlib.h>

#define USAGE_PAGE 64u // as many as a pool has namespaces

kvpool_status list_usage(kvpool_client *client, kvpool_pool pool, kvpool_usage **ret,
                         uint32_t *ret_n) {
    kvpool_usage *all = NULL;
    uint32_t total = 0;
    uint32_t cursor = 0;
    uint32_t got = USAGE_PAGE;
    while (got == USAGE_PAGE && total < 16 * USAGE_PAGE) {
        all = cmd_realloc(all, (total + USAGE_PAGE) * sizeof(all[0]));
        for (uint32_t i = 0; i < USAGE_PAGE; i++) {
            all[total + i] = (kvpool_usage){.size = sizeof(all[0])};
        }
        kvpool_status status =
            kvpool_list_usage(client, pool, &cursor, USAGE_PAGE, all + total, &got);
        if (status != KVPOOL_OK) {
            free(all);
            return status;
        }
        total += got;
    }
    *ret = all;
    *ret_n = total;
    return KVPOOL_OK;
}

static struct usage_sum sum_up(kvpool_pool pool, const kvpool_usage *usage, uint32_t n) {
    struct usage_sum sum = {.pool = pool, .known = n > 0};
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_usage *u = &usage[i];
        sum.num_pages = u->num_pages; // of the whole pool, in each
        sum.free_pages = u->free_pages;
        sum.active += u->active;
        sum.cached += u->cached;
        sum.hit_tokens += u->hit_tokens;
        sum.miss_tokens += u->miss_tokens;
        sum.sealed += u->sealed;
        sum.deduplicated += u->deduplicated;
        sum.evicted += u->evicted;
        sum.dropped += u->dropped;
        sum.refused += u->refused;
    }
    return sum;
}

kvpool_status usage_sums(kvpool_client *client, const kvpool_pool_info *pools, uint32_t n,
                         struct usage_sum **ret) {
    struct usage_sum *sums = cmd_realloc(NULL, (n + 1) * sizeof(sums[0]));
    for (uint32_t i = 0; i < n; i++) {
        kvpool_usage *usage = NULL;
        uint32_t got = 0;
        kvpool_status status = list_usage(client, pools[i].pool, &usage, &got);
        if (status != KVPOOL_OK && status != KVPOOL_E_UNSUPPORTED && status != KVPOOL_E_STALE &&
            status != KVPOOL_E_PERM) {
            free(sums);
            return status;
        }
        sums[i] = sum_up(pools[i].pool, usage, got);
        free(usage);
    }
    *ret = sums;
    return KVPOOL_OK;
}

double usage_hit_rate(uint64_t hit_tokens, uint64_t miss_tokens) {
    uint64_t all = hit_tokens + miss_tokens;
    return all == 0 ? -1 : (double)hit_tokens / (double)all;
}

static char *format_rate(const kvpool_usage *u, char buf[FORMAT_SIZE]) {
    double rate = usage_hit_rate(u->hit_tokens, u->miss_tokens);
    if (rate < 0) {
        snprintf(buf, FORMAT_SIZE, "-");
    } else {
        snprintf(buf, FORMAT_SIZE, "%.1f%%", 100 * rate);
    }
    return buf;
}

void print_usage(const char *pool, const kvpool_usage *usage, uint32_t n, FILE *out) {
    struct table *t = table_new(15, "<POOL", "<NAMESPACE", "<GROUP", ">RESERVE", ">LIMIT",
                                ">WEIGHT", ">ACTIVE", ">CACHED", ">SEQUENCES", ">HIT TOKENS",
                                ">MISSED", ">HIT RATE", ">SEALED", ">EVICTED", ">REFUSED");
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_usage *u = &usage[i];
        char text[12][FORMAT_SIZE];
        table_row(t, pool, u->name, u->group[0] != 0 ? u->group : "-",
                  format_u64(u->reserve, text[0]),
                  u->limit != 0 ? format_u64(u->limit, text[1]) : "-",
                  format_u64(u->weight, text[2]), format_u64(u->active, text[3]),
                  format_u64(u->cached, text[4]), format_u64(u->seqs, text[5]),
                  format_count(u->hit_tokens, text[6]), format_count(u->miss_tokens, text[7]),
                  format_rate(u, text[8]), format_count(u->sealed, text[9]),
                  format_count(u->evicted, text[10]), format_count(u->refused, text[11]));
    }
    table_print(t, out);
    table_free(t);
}

void json_usage(struct json *j, const char *pool, const kvpool_usage *u) {
    double rate = usage_hit_rate(u->hit_tokens, u->miss_tokens);
    json_str(j, "pool", pool);
    json_str(j, "namespace", u->name);
    json_str(j, "group", u->group[0] != 0 ? u->group : NULL);
    json_u64(j, "num_pages", u->num_pages);
    json_u64(j, "free_pages", u->free_pages);
    json_u64(j, "reserve", u->reserve);
    json_u64(j, "limit", u->limit);
    json_u64(j, "weight", u->weight);
    json_u64(j, "active_pages", u->active);
    json_u64(j, "cached_pages", u->cached);
    json_u64(j, "sequences", u->seqs);
    json_u64(j, "hit_tokens", u->hit_tokens);
    json_u64(j, "miss_tokens", u->miss_tokens);
    if (rate < 0) {
        json_str(j, "hit_rate", NULL);
    } else {
        json_num(j, "hit_rate", rate);
    }
    json_u64(j, "sealed", u->sealed);
    json_u64(j, "deduplicated", u->deduplicated);
    json_u64(j, "evicted", u->evicted);
    json_u64(j, "dropped", u->dropped);
    json_u64(j, "refused", u->refused);
}
