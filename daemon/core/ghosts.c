// SPDX-License-Identifier: Apache-2.0
// ghosts.c: see ghosts.h.
#include "daemon/core/ghosts.h"

#include "daemon/core/bigmem.h"

#include <assert.h>

bool ghosts_init(struct ghosts *g, uint32_t limit) {
    uint32_t mask = 0;
    assert(limit > 0 && limit <= UINT32_C(1) << 31);
    while (mask < limit - 1) {
        mask = mask * 2 + 1;
    }
    struct ghost *table = bigmem_open((size_t)mask + 1, sizeof *table * GHOSTS_WAYS);
    if (table == NULL) {
        return false;
    }
    // What was never remembered has time 0: too long ago.
    *g = (struct ghosts){.table = table, .mask = mask, .limit = limit, .time = limit + 1};
    return true;
}

void ghosts_fini(struct ghosts *g) {
    bigmem_close(g->table, (size_t)g->mask + 1, sizeof *g->table * GHOSTS_WAYS);
    *g = (struct ghosts){0};
}

static bool is_there(const struct ghosts *g, const struct ghost *ghost, uint64_t tag) {
    return g->time - ghost->time <= g->limit && ghost->tag == (uint32_t)(tag >> 32);
}

void ghosts_remember(struct ghosts *g, uint64_t tag) {
    struct ghost *bucket = ghosts_bucket(g, tag);
    struct ghost *place = bucket;
    for (uint32_t i = 0; i < GHOSTS_WAYS; i++) {
        if (is_there(g, &bucket[i], tag)) {
            place = &bucket[i];
            break;
        }
        if (g->time - bucket[i].time > g->time - place->time) {
            place = &bucket[i];
        }
    }
    *place = (struct ghost){.tag = (uint32_t)(tag >> 32), .time = g->time++};
}

bool ghosts_forget(struct ghosts *g, uint64_t tag) {
    struct ghost *bucket = ghosts_bucket(g, tag);
    for (uint32_t i = 0; i < GHOSTS_WAYS; i++) {
        if (is_there(g, &bucket[i], tag)) {
            bucket[i].time = g->time - g->limit - 1;
            return true;
        }
    }
    return false;
}
