// SPDX-License-Identifier: Apache-2.0
// pool.c: pools: their records, and the spans of page-table entries they have. A span is placed by
// first fit among those of the live pools, so the records alone say what is free.
#include "daemon/core/state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int core_find_pool(const struct core *c, uint64_t handle, uint32_t *ret, struct err *err) {
    uint32_t pool = handle_index(handle);
    if (pool >= c->limits.max_pools || c->t.pools[pool].state != RECORD_LIVE ||
        c->t.pools[pool].generation != handle_generation(handle)) {
        return err_set(err, KVPOOL_E_STALE, "pool 0x%" PRIx64 " does not exist", handle);
    }
    *ret = pool;
    return 0;
}

bool core_pool_live_init(struct core *c, uint32_t pool) {
    const struct pool_rec *rec = &c->t.pools[pool];
    struct pool_live *live = &c->pools[pool];
    *live = (struct pool_live){
        .table = c->t.entries + rec->first_entry,
        .row_entries = rec->row_entries,
        .page_shift = (uint32_t)__builtin_ctz(rec->page_size),
        .page_mask = rec->page_size - 1,
        .recs = c->t.pages + rec->first_page,
        .tokens = c->t.tokens + rec->first_token,
        .ns_recs = c->t.ns + (size_t)pool * CORE_MAX_NAMESPACES,
    };
    const struct index_values values = {.base = (const uint8_t *)&live->recs[0].value,
                                        .stride = sizeof *live->recs};
    live->row_seqs = calloc(rec->max_seqs, sizeof *live->row_seqs);
    live->probed = malloc(rec->row_entries * sizeof *live->probed);
    live->ns = calloc(CORE_MAX_NAMESPACES, sizeof *live->ns);
    live->cache = cache_open(rec->policy, rec->num_pages);
    if (live->row_seqs == NULL || live->probed == NULL || live->ns == NULL || live->cache == NULL ||
        !ids_init(&live->rows, rec->max_seqs) || !pages_init(&live->pages, rec->num_pages) ||
        !index_init(&live->index, rec->num_pages, values)) {
        core_pool_live_fini(c, pool);
        return false;
    }
    return true;
}

void core_pool_live_fini(struct core *c, uint32_t pool) {
    struct pool_live *live = &c->pools[pool];
    free(live->row_seqs);
    free(live->probed);
    free(live->ns);
    cache_close(live->cache);
    index_fini(&live->index);
    ids_fini(&live->rows);
    pages_fini(&live->pages);
    *live = (struct pool_live){0};
}

static struct core_pool_config config_of(const struct pool_rec *rec) {
    struct core_pool_config config = {
        .layers = rec->layers,
        .kv_heads = rec->kv_heads,
        .head_dim = rec->head_dim,
        .page_size = rec->page_size,
        .dtype = rec->dtype,
        .num_pages = rec->num_pages,
        .max_seqs = rec->max_seqs,
        .max_seq_len = rec->max_seq_len,
        .policy = rec->policy,
        .kv_dtype = rec->kv_dtype,
        .export = rec->export,
    };
    memcpy(config.name, rec->name, sizeof config.name);
    return config;
}

// Index of the live pool of that name, LAYOUT_NONE when there is none.
static uint32_t find_name(const struct core *c, const char *name) {
    for (uint32_t i = 0; i < c->limits.max_pools; i++) {
        if (c->t.pools[i].state == RECORD_LIVE &&
            strncmp(c->t.pools[i].name, name, CORE_NAME_SIZE) == 0) {
            return i;
        }
    }
    return LAYOUT_NONE;
}

// A pool has a span in three tables of the block. One function each says where it is.
struct span {
    uint64_t first, count;
};
typedef struct span (*span_fn)(const struct pool_rec *rec);

static struct span entries_of(const struct pool_rec *rec) {
    return (struct span){rec->first_entry, (uint64_t)rec->max_seqs * rec->row_entries};
}
static struct span pages_of(const struct pool_rec *rec) {
    return (struct span){rec->first_page, rec->num_pages};
}
static struct span tokens_of(const struct pool_rec *rec) {
    return (struct span){rec->first_token, (uint64_t)rec->num_pages * rec->page_size};
}

static bool span_is_free(const struct core *c, span_fn of, uint64_t cap, struct span wanted) {
    if (wanted.count > cap || wanted.first > cap - wanted.count) {
        return false;
    }
    for (uint32_t i = 0; i < c->limits.max_pools; i++) {
        struct span other = of(&c->t.pools[i]);
        if (c->t.pools[i].state == RECORD_LIVE && wanted.first < other.first + other.count &&
            other.first < wanted.first + wanted.count) {
            return false;
        }
    }
    return true;
}

// The lowest free span: it begins at 0 or where a live pool's span ends.
static bool place_span(const struct core *c, span_fn of, uint64_t cap, uint64_t count,
                       uint64_t *ret_first) {
    bool found = span_is_free(c, of, cap, (struct span){0, count});
    uint64_t best = 0;
    for (uint32_t i = 0; i < c->limits.max_pools && !(found && best == 0); i++) {
        struct span other = of(&c->t.pools[i]);
        uint64_t at = other.first + other.count;
        if (c->t.pools[i].state == RECORD_LIVE && (!found || at < best) &&
            span_is_free(c, of, cap, (struct span){at, count})) {
            found = true;
            best = at;
        }
    }
    if (found) {
        *ret_first = best;
    }
    return found;
}

// Places all spans of a record that has its sizes.
static int place(const struct core *c, struct pool_rec *rec, struct err *err) {
    uint64_t entries = entries_of(rec).count;
    uint64_t tokens = tokens_of(rec).count;
    if (!place_span(c, entries_of, c->limits.max_table_entries, entries, &rec->first_entry)) {
        return err_set(err, KVPOOL_E_LIMIT,
                       "max_seqs %u x max_seq_len %u needs %" PRIu64
                       " page-table entries in one piece, more than is free of %" PRIu64
                       " (max_table_entries)",
                       rec->max_seqs, rec->max_seq_len, entries, c->limits.max_table_entries);
    }
    if (!place_span(c, pages_of, c->limits.max_pages, rec->num_pages, &rec->first_page)) {
        return err_set(err, KVPOOL_E_LIMIT,
                       "num_pages %u: more in one piece than is free of %" PRIu64 " (max_pages)",
                       rec->num_pages, c->limits.max_pages);
    }
    if (!place_span(c, tokens_of, c->limits.max_page_tokens, tokens, &rec->first_token)) {
        return err_set(err, KVPOOL_E_LIMIT,
                       "num_pages %u x page_size %u: more in one piece than is free of %" PRIu64
                       " (max_page_tokens)",
                       rec->num_pages, rec->page_size, c->limits.max_page_tokens);
    }
    return 0;
}

static uint32_t free_slot(const struct core *c) {
    uint32_t i = 0;
    while (i < c->limits.max_pools && c->t.pools[i].state == RECORD_LIVE) {
        i++;
    }
    return i;
}

int core_pool_create(struct core *c, const struct core_pool_config *config, uint64_t *ret_pool,
                     bool *ret_created, struct err *err) {
    struct core_pool_config g = *config;
    int rc = core_pool_config_check(&g, err);
    if (rc != 0) {
        return rc;
    }
    uint32_t known = find_name(c, g.name);
    if (known != LAYOUT_NONE) {
        struct core_pool_config other = config_of(&c->t.pools[known]);
        g.policy = other.policy;
        if (config->export == 0) {
            g.export = other.export;
        }
        if (memcmp(&other, &g, sizeof g) != 0) {
            return err_set(err, KVPOOL_E_EXISTS, "pool \"%s\" exists with other properties",
                           g.name);
        }
        *ret_pool = core_pool_handle(c, known);
        *ret_created = false;
        return 0;
    }
    uint32_t slot = free_slot(c);
    if (slot == c->limits.max_pools) {
        return err_set(err, KVPOOL_E_LIMIT, "all %u pools exist (max_pools)", slot);
    }
    struct pool_rec *rec = &c->t.pools[slot];
    struct pool_rec made = {
        .state = RECORD_FREE,
        .generation = core_generation(c, rec->generation, HANDLE_POOL),
        .layers = g.layers,
        .kv_heads = g.kv_heads,
        .head_dim = g.head_dim,
        .page_size = g.page_size,
        .dtype = g.dtype,
        .num_pages = g.num_pages,
        .max_seqs = g.max_seqs,
        .max_seq_len = g.max_seq_len,
        .policy = g.policy,
        .kv_dtype = g.kv_dtype,
        .export = g.export,
        .row_entries = (uint32_t)(((uint64_t)g.max_seq_len + g.page_size - 1) / g.page_size),
    };
    rc = place(c, &made, err);
    if (rc != 0) {
        return rc;
    }
    const struct pool_rec before = *rec;
    *rec = made;
    memcpy(rec->name, g.name, sizeof rec->name);
    rec->checksum = layout_pool_checksum(rec);
    if (!core_pool_live_init(c, slot)) {
        *rec = before;
        return err_set(err, KVPOOL_E_NOMEM, "out of memory for the tables of %u pages",
                       g.num_pages);
    }
    memset(c->pools[slot].ns_recs, 0, CORE_MAX_NAMESPACES * sizeof *c->pools[slot].ns_recs);
    for (uint32_t i = 0; i < g.num_pages; i++) { // as a pool leaves them, unless they are damaged
        if (c->pools[slot].recs[i].state != RECORD_FREE) {
            c->pools[slot].recs[i].state = RECORD_FREE;
        }
    }
    core_ns_init(c, slot);
    rec->state = RECORD_LIVE;
    c->num_pools++;
    *ret_pool = core_pool_handle(c, slot);
    *ret_created = true;
    return 0;
}

int core_pool_find(const struct core *c, const char *name, uint64_t *ret_pool, struct err *err) {
    uint32_t pool = find_name(c, name);
    if (pool == LAYOUT_NONE) {
        return err_set(err, KVPOOL_E_NOTFOUND, "no pool \"%.*s\"", CORE_NAME_SIZE, name);
    }
    *ret_pool = core_pool_handle(c, pool);
    return 0;
}

int core_pool_destroy(struct core *c, uint64_t handle, struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, handle, &pool, err);
    if (rc != 0) {
        return rc;
    }
    if (c->pools[pool].seqs > 0) {
        return err_set(err, KVPOOL_E_BUSY, "pool \"%s\" has %u sequences", c->t.pools[pool].name,
                       c->pools[pool].seqs);
    }
    core_pins_end(c, pool);
    core_emit(c, CORE_CLEARED, pool, 0);
    for (uint32_t i = 0; i < c->t.pools[pool].end_page; i++) { // the next pool finds them free
        c->pools[pool].recs[i].state = RECORD_FREE;
    }
    core_pool_live_fini(c, pool);
    c->t.pools[pool].state = RECORD_FREE;
    c->t.pools[pool].generation = handle_next(c->t.pools[pool].generation);
    c->num_pools--;
    return 0;
}

static void fill_info(const struct core *c, uint32_t pool, struct core_pool_info *ret) {
    const struct pool_live *live = &c->pools[pool];
    uint32_t cached = 0;
    for (uint32_t ns = 0; ns < live->num_ns; ns++) {
        cached += cache_count(live->cache, ns);
    }
    *ret = (struct core_pool_info){
        .pool = core_pool_handle(c, pool),
        .index = pool,
        .config = config_of(&c->t.pools[pool]),
        .row_entries = live->row_entries,
        .free_pages = pages_free(&live->pages),
        .cached_pages = cached,
        .sealed_pages = live->index.count,
        .pins = live->pins,
        .shared_pages = live->pages.shared,
        .seqs = live->seqs,
    };
}

int core_pool_stat(const struct core *c, uint64_t handle, struct core_pool_info *ret,
                   struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, handle, &pool, err);
    if (rc == 0) {
        fill_info(c, pool, ret);
    }
    return rc;
}

bool core_pool_next(const struct core *c, uint32_t *cursor, struct core_pool_info *ret) {
    for (uint32_t i = *cursor; i < c->limits.max_pools; i++) {
        if (c->t.pools[i].state == RECORD_LIVE) {
            fill_info(c, i, ret);
            *cursor = i + 1;
            return true;
        }
    }
    return false;
}

const uint32_t *core_row(const struct core *c, uint64_t handle, uint32_t row) {
    uint32_t pool = 0;
    if (core_find_pool(c, handle, &pool, NULL) != 0 || row >= c->t.pools[pool].max_seqs) {
        return NULL;
    }
    return pool_row(&c->pools[pool], row);
}
