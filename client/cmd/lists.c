// SPDX-License-Identifier: Apache-2.0
// lists.c: see lists.h.
#include "client/cmd/lists.h"

#include "client/cmd/format.h"
#include "client/cmd/table.h"

#include <inttypes.h>
#include <stdlib.h>

#define LIST_PAGE 128u

// list_NAME: asks page by page until a page is not full.
#define LIST_FETCH(function, call, type)                                                \
    kvpool_status function(kvpool_client *client, type **ret, uint32_t *ret_n) {        \
        type *all = NULL;                                                               \
        uint32_t total = 0;                                                             \
        uint32_t cursor = 0;                                                            \
        uint32_t got = LIST_PAGE;                                                       \
        while (got == LIST_PAGE && total < LISTS_MAX) {                                 \
            all = cmd_realloc(all, (total + LIST_PAGE) * sizeof(type));                 \
            for (uint32_t i = 0; i < LIST_PAGE; i++) {                                  \
                all[total + i] = (type){.size = sizeof(type)};                          \
            }                                                                           \
            kvpool_status status = call(client, &cursor, LIST_PAGE, all + total, &got); \
            if (status != KVPOOL_OK) {                                                  \
                free(all);                                                              \
                return status;                                                          \
            }                                                                           \
            total += got;                                                               \
        }                                                                               \
        *ret = all;                                                                     \
        *ret_n = total;                                                                 \
        return KVPOOL_OK;                                                               \
    }

LIST_FETCH(list_pools, kvpool_list_pools, kvpool_pool_info)
LIST_FETCH(list_seqs, kvpool_list_seqs, kvpool_seq_info)
LIST_FETCH(list_clients, kvpool_list_clients, kvpool_client_info)

static uint32_t used_pages(const kvpool_pool_info *p) {
    return p->num_pages > p->free_pages ? p->num_pages - p->free_pages : 0;
}

void print_pools(const kvpool_pool_info *pools, uint32_t n, FILE *out) {
    struct table *t = table_new(9, "<POOL", "<GEOMETRY", "<DTYPE", ">PAGES", ">USED", ">FREE",
                                ">SHARED", ">SEQUENCES", ">MEMORY");
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_pool_info *p = &pools[i];
        char geometry[64];
        char used[64];
        char text[6][FORMAT_SIZE];
        snprintf(geometry, sizeof(geometry), "%" PRIu32 "x%" PRIu32 "x%" PRIu32 "/%" PRIu32,
                 p->layers, p->kv_heads, p->head_dim, p->page_size);
        snprintf(used, sizeof(used), "%" PRIu32 " (%.0f%%)", used_pages(p),
                 p->num_pages == 0 ? 0.0 : 100.0 * used_pages(p) / p->num_pages);
        table_row(t, p->name, geometry, pool_dtype_name(p, text[5]),
                  format_u64(p->num_pages, text[0]), used, format_u64(p->free_pages, text[1]),
                  format_u64(p->shared_pages, text[2]), format_u64(p->seqs, text[3]),
                  format_bytes(p->bytes, text[4]));
    }
    if (n == 0) {
        fprintf(out, "no pools\n");
    } else {
        table_print(t, out);
    }
    table_free(t);
}

void json_pools(struct json *j, const char *key, const kvpool_pool_info *pools, uint32_t n) {
    json_array(j, key);
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_pool_info *p = &pools[i];
        json_object(j, NULL);
        json_hex(j, "pool", p->pool);
        json_str(j, "name", p->name);
        json_u64(j, "layers", p->layers);
        json_u64(j, "kv_heads", p->kv_heads);
        json_u64(j, "head_dim", p->head_dim);
        json_u64(j, "page_size", p->page_size);
        json_str(j, "dtype", dtype_name(p->dtype));
        json_str(j, "kv_dtype", dtype_name(p->kv_dtype != 0 ? p->kv_dtype : p->dtype));
        json_str(j, "export", export_name(p->export_as));
        json_u64(j, "num_pages", p->num_pages);
        json_u64(j, "used_pages", used_pages(p));
        json_u64(j, "free_pages", p->free_pages);
        json_u64(j, "shared_pages", p->shared_pages);
        json_u64(j, "sequences", p->seqs);
        json_u64(j, "max_seqs", p->max_seqs);
        json_u64(j, "max_seq_len", p->max_seq_len);
        json_u64(j, "bytes", p->bytes);
        json_end(j);
    }
    json_end(j);
}

void print_clients(const kvpool_client_info *clients, uint32_t n, FILE *out) {
    struct table *t = table_new(9, ">PID", ">UID", "<NAME", ">SEQUENCES", ">STEPS", ">REGIONS",
                                ">MEMORY", ">IN FLIGHT", ">REQUESTS");
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_client_info *c = &clients[i];
        char text[8][FORMAT_SIZE];
        table_row(t, format_u64(c->pid, text[0]), format_u64(c->uid, text[1]), c->name,
                  format_u64(c->seqs, text[2]), format_u64(c->steps, text[3]),
                  format_u64(c->regions, text[4]), format_bytes(c->region_bytes, text[5]),
                  format_u64(c->inflight, text[6]), format_u64(c->requests, text[7]));
    }
    if (n == 0) {
        fprintf(out, "no clients\n");
    } else {
        table_print(t, out);
    }
    table_free(t);
}

void json_clients(struct json *j, const char *key, const kvpool_client_info *clients, uint32_t n) {
    json_array(j, key);
    for (uint32_t i = 0; i < n; i++) {
        json_object(j, NULL);
        json_client(j, &clients[i]);
        json_end(j);
    }
    json_end(j);
}

void json_client(struct json *j, const kvpool_client_info *c) {
    json_u64(j, "pid", c->pid);
    json_u64(j, "uid", c->uid);
    json_str(j, "name", c->name);
    json_u64(j, "sequences", c->seqs);
    json_u64(j, "steps", c->steps);
    json_u64(j, "regions", c->regions);
    json_u64(j, "region_bytes", c->region_bytes);
    json_u64(j, "inflight", c->inflight);
    json_u64(j, "requests", c->requests);
}

static const char *pool_name(kvpool_pool pool, const kvpool_pool_info *pools, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (pools[i].pool == pool) {
            return pools[i].name;
        }
    }
    return NULL; // made or destroyed between the two lists
}

void print_seqs(const kvpool_seq_info *seqs, uint32_t n, const kvpool_pool_info *pools,
                uint32_t num_pools, kvpool_pool only, FILE *out) {
    struct table *t = table_new(7, "<SEQUENCE", "<POOL", ">LENGTH", ">PAGES", ">SHARED",
                                ">OWNER PID", "<IN STEP");
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_seq_info *s = &seqs[i];
        const char *name = pool_name(s->pool, pools, num_pools);
        char text[5][FORMAT_SIZE];
        if (only != 0 && s->pool != only) {
            continue;
        }
        table_row(t, format_handle(s->seq, text[0]), name == NULL ? "?" : name,
                  format_u64(s->length, text[1]), format_u64(s->pages, text[2]),
                  format_u64(s->shared_pages, text[3]), format_u64(s->owner_pid, text[4]),
                  s->in_step != 0 ? "yes" : "no");
    }
    if (table_rows(t) == 0) {
        fprintf(out, "no sequences\n");
    } else {
        table_print(t, out);
    }
    table_free(t);
}

void json_seqs(struct json *j, const char *key, const kvpool_seq_info *seqs, uint32_t n,
               const kvpool_pool_info *pools, uint32_t num_pools, kvpool_pool only) {
    json_array(j, key);
    for (uint32_t i = 0; i < n; i++) {
        const kvpool_seq_info *s = &seqs[i];
        if (only != 0 && s->pool != only) {
            continue;
        }
        json_object(j, NULL);
        json_hex(j, "sequence", s->seq);
        json_str(j, "pool", pool_name(s->pool, pools, num_pools));
        json_u64(j, "length", s->length);
        json_u64(j, "pages", s->pages);
        json_u64(j, "shared_pages", s->shared_pages);
        json_u64(j, "owner_pid", s->owner_pid);
        json_bool(j, "in_step", s->in_step != 0);
        json_end(j);
    }
    json_end(j);
}
