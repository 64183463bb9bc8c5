// SPDX-License-Identifier: Apache-2.0
// ns.c: namespaces: the tenants of a pool, their salt and their share of its pages. See core.h.
//
// The salt is no number that is stored anywhere: the root of a namespace's keys is a hash of the
// daemon's secret, the pool's name and geometry, and the name of the namespace, or of its group when
// it has one (prefix_hash.h).
#include "daemon/core/geometry.h"

#include <string.h>

#define MAX_WEIGHT 1000u

int core_find_ns(const struct core *c, uint32_t pool, uint32_t ns, struct err *err) {
    if (ns >= c->pools[pool].num_ns) {
        return err_set(err, KVPOOL_E_NOTFOUND, "pool \"%s\" has no namespace %u",
                       c->t.pools[pool].name, ns);
    }
    return 0;
}

void core_ns_root(const struct core *c, uint32_t pool, uint32_t ns, const void *extra,
                  uint32_t extra_size, struct prefix_value *ret) {
    const struct pool_rec *rec = &c->t.pools[pool];
    const struct ns_rec *n = &c->pools[pool].ns_recs[ns];
    bool is_group = n->group[0] != '\0';
    const struct prefix_salt salt = {
        .secret = c->t.header->secret,
        .pool = rec->name,
        .group = is_group ? n->group : n->name,
        .is_group = is_group,
        .geometry = {rec->layers, rec->kv_heads, rec->head_dim, rec->page_size,
                     rec->dtype | rec->kv_dtype << 16},
    };
    prefix_root(&salt, extra, extra_size, ret);
}

void core_ns_derive(struct core *c, uint32_t pool, uint32_t ns) {
    struct pool_live *live = &c->pools[pool];
    live->ns[ns] = (struct ns_live){0};
    live->promised += live->ns_recs[ns].reserve;
    if (ns >= live->num_ns) {
        live->num_ns = ns + 1;
    }
    core_ns_root(c, pool, ns, NULL, 0, &live->ns[ns].root);
}

static void put(struct core *c, uint32_t pool, uint32_t ns, const struct core_ns_config *config) {
    struct ns_rec *rec = &c->pools[pool].ns_recs[ns];
    *rec = (struct ns_rec){
        .state = RECORD_LIVE,
        .reserve = config->reserve,
        .limit = config->limit,
        .weight = config->weight,
    };
    memcpy(rec->name, config->name, sizeof rec->name);
    memcpy(rec->group, config->group, sizeof rec->group);
    rec->checksum = layout_ns_checksum(rec);
}

void core_ns_init(struct core *c, uint32_t pool) {
    const struct core_ns_config config = {
        .name = "default", .limit = c->t.pools[pool].num_pages, .weight = 1};
    put(c, pool, 0, &config);
    core_ns_derive(c, pool, 0);
}

// Checks a configuration by itself and fills in its zeros; pads names.
static int check_config(struct core_ns_config *config, uint32_t num_pages, struct err *err) {
    int rc = geometry_check_name(config->name, err);
    if (rc == 0 && config->group[0] != '\0') {
        rc = geometry_check_name(config->group, err);
    }
    if (rc != 0) {
        return rc;
    }
    memset(config->name + strlen(config->name), 0, sizeof config->name - strlen(config->name));
    memset(config->group + strlen(config->group), 0, sizeof config->group - strlen(config->group));
    if (config->limit == 0 || config->limit > num_pages) {
        config->limit = num_pages;
    }
    if (config->weight == 0) {
        config->weight = 1;
    }
    if (config->reserve > config->limit) {
        return err_set(err, KVPOOL_E_INVAL, "namespace \"%s\" reserves %u pages, its limit is %u",
                       config->name, config->reserve, config->limit);
    }
    if (config->weight > MAX_WEIGHT) {
        return err_set(err, KVPOOL_E_INVAL, "weight %u of namespace \"%s\" is outside 1..%u",
                       config->weight, config->name, MAX_WEIGHT);
    }
    return 0;
}

static uint32_t find_name(const struct pool_live *live, const char *name) {
    for (uint32_t i = 0; i < live->num_ns; i++) {
        if (strncmp(live->ns_recs[i].name, name, CORE_NAME_SIZE) == 0) {
            return i;
        }
    }
    return live->num_ns;
}

int core_ns_set(struct core *c, uint64_t pool_handle, const struct core_ns_config *given,
                uint32_t *ret_ns, struct err *err) {
    uint32_t pool = 0;
    struct core_ns_config config = *given;
    int rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc != 0) {
        return rc;
    }
    struct pool_live *live = &c->pools[pool];
    uint32_t num_pages = c->t.pools[pool].num_pages;
    rc = check_config(&config, num_pages, err);
    if (rc != 0) {
        return rc;
    }
    uint32_t ns = find_name(live, config.name);
    bool is_new = ns == live->num_ns;
    if (is_new && ns == CORE_MAX_NAMESPACES) {
        return err_set(err, KVPOOL_E_LIMIT, "pool \"%s\" has %u namespaces, the limit",
                       c->t.pools[pool].name, ns);
    }
    struct ns_rec *rec = &live->ns_recs[ns];
    if (!is_new && strncmp(rec->group, config.group, CORE_NAME_SIZE) != 0) {
        return err_set(err, KVPOOL_E_EXISTS, "namespace \"%s\" exists with group \"%s\"",
                       config.name, rec->group);
    }
    uint64_t reserves = config.reserve;
    for (uint32_t i = 0; i < live->num_ns; i++) {
        reserves += i == ns ? 0 : live->ns_recs[i].reserve;
    }
    if (reserves > num_pages) {
        return err_set(err, KVPOOL_E_INVAL,
                       "the namespaces of pool \"%s\" reserve more than its %u"
                       " pages",
                       c->t.pools[pool].name, num_pages);
    }
    uint32_t active = is_new ? 0 : live->ns[ns].active;
    uint32_t reserve_now = is_new ? 0 : rec->reserve;
    uint32_t promised_now = active > reserve_now ? active : reserve_now;
    uint32_t promised_then = active > config.reserve ? active : config.reserve;
    if (active > config.limit || live->promised - promised_now + promised_then > num_pages) {
        return err_set(err, KVPOOL_E_NOSPACE,
                       "pages in use leave no room for reserve %u and limit %u of namespace \"%s\"",
                       config.reserve, config.limit, config.name);
    }
    if (is_new) {
        put(c, pool, ns, &config);
        core_ns_derive(c, pool, ns);
    } else {
        live->promised = live->promised - promised_now + promised_then;
        put(c, pool, ns, &config);
        core_trim(c, pool, ns);
    }
    *ret_ns = ns;
    return 0;
}

static void fill_info(const struct core *c, uint32_t pool, uint32_t ns, struct core_ns_info *ret) {
    const struct pool_live *live = &c->pools[pool];
    const struct ns_rec *rec = &live->ns_recs[ns];
    *ret = (struct core_ns_info){
        .ns = ns,
        .config = {.reserve = rec->reserve, .limit = rec->limit, .weight = rec->weight},
        .active = live->ns[ns].active,
        .cached = cache_count(live->cache, ns),
        .seqs = live->ns[ns].seqs,
        .counters = live->ns[ns].counters,
    };
    memcpy(ret->config.name, rec->name, sizeof rec->name);
    memcpy(ret->config.group, rec->group, sizeof rec->group);
}

int core_ns_stat(const struct core *c, uint64_t pool_handle, uint32_t ns, struct core_ns_info *ret,
                 struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc == 0) {
        rc = core_find_ns(c, pool, ns, err);
    }
    if (rc == 0) {
        fill_info(c, pool, ns, ret);
    }
    return rc;
}

bool core_ns_next(const struct core *c, uint64_t pool_handle, uint32_t *cursor,
                  struct core_ns_info *ret) {
    uint32_t pool = 0;
    if (core_find_pool(c, pool_handle, &pool, NULL) != 0 || *cursor >= c->pools[pool].num_ns) {
        return false;
    }
    fill_info(c, pool, (*cursor)++, ret);
    return true;
}
