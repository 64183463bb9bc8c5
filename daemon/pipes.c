// SPDX-License-Identifier: Apache-2.0
// pipes.c: see pipes.h.
#include "daemon/pipes.h"

#include <stddef.h>
#include <stdlib.h>

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(record) ((void)((record)->inserted = false))
#include <uthash.h>

struct record {
    struct pipe pub; // first
    bool inserted;
    bool leaked;        // counted
    uint64_t orphan_ns; // since when, 0: not
    UT_hash_handle hh;
};

struct pipes {
    struct record *table;
    uint64_t leaked;
};

int pipes_open(struct pipes **ret, struct err *err) {
    struct pipes *ps = calloc(1, sizeof *ps);
    if (ps == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "connections: no memory");
    *ret = ps;
    return 0;
}

struct pipe *pipes_find(const struct pipes *ps, uint32_t id) {
    struct record *r;
    HASH_FIND(hh, ps->table, &id, sizeof id, r);
    return r != NULL ? &r->pub : NULL;
}

static void not_leaked(struct pipes *ps, struct record *r) {
    ps->leaked -= r->leaked;
    r->leaked = false;
    r->orphan_ns = 0;
}

int pipes_add(struct pipes *ps, uint32_t id, struct pipe **ret, struct err *err) {
    struct record *r = (struct record *)pipes_find(ps, id);
    if (r != NULL) {
        not_leaked(ps, r);
        *ret = &r->pub;
        return 0;
    }
    r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->pub.id = id;
        r->inserted = true;
        HASH_ADD(hh, ps->table, pub.id, sizeof r->pub.id, r);
        if (r->inserted) {
            *ret = &r->pub;
            return 0;
        }
        free(r);
    }
    return err_set(err, KVPOOL_E_NOMEM, "connection: no memory");
}

void pipes_remove(struct pipes *ps, struct pipe *p) {
    struct record *r = (struct record *)p;
    not_leaked(ps, r);
    HASH_DELETE(hh, ps->table, r);
    free(r);
}

void pipes_orphan(struct pipes *ps, struct pipe *p, uint64_t now_ns) {
    struct record *r = (struct record *)p;
    (void)ps;
    p->session = NULL;
    r->orphan_ns = now_ns;
}

void pipes_tick(struct pipes *ps, uint64_t now_ns) {
    for (struct record *r = ps->table; r != NULL; r = r->hh.next) {
        if (r->orphan_ns != 0 && !r->leaked && now_ns - r->orphan_ns >= PIPES_LEAK_NS) {
            r->leaked = true;
            ps->leaked++;
        }
    }
}

uint64_t pipes_leaked(const struct pipes *ps) {
    return ps->leaked;
}

struct pipe *pipes_first(const struct pipes *ps) {
    return ps->table != NULL ? &ps->table->pub : NULL;
}

struct pipe *pipes_after(const struct pipe *p) {
    struct record *next = ((const struct record *)p)->hh.next;
    return next != NULL ? &next->pub : NULL;
}

void pipes_close(struct pipes *ps) {
    if (ps == NULL)
        return;
    struct record *next, *r = ps->table;
    HASH_CLEAR(hh, ps->table); // the records stay linked
    for (; r != NULL; r = next) {
        next = r->hh.next;
        free(r);
    }
    free(ps);
}
