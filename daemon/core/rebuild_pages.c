// SPDX-License-Identifier: Apache-2.0
// rebuild_pages.c: the last part of rebuilding: sealed pages and their index, references from rows,
// steps and pins, the accounts of the namespaces, the order of eviction. The rest of the block is
// checked by then (rebuild.c).
//
// What a restart forgets: classes, hits and the order in which pages were last used. Cached pages are
// put in order of their depth, so that chains still go from their ends.
#include "daemon/core/soundness.h"

#include <stdlib.h>
#include <string.h>

static bool is_sealed(const struct pool_live *live, uint32_t page) {
    return live->recs[page].state == RECORD_LIVE;
}

// --- sealed pages -----------------------------------------------------------------------------

static int check_sealed(const struct core *c, uint32_t pool, uint32_t page, struct err *err) {
    const struct pool_live *live = &c->pools[pool];
    const struct page_rec *rec = &live->recs[page];
    uint32_t end = c->t.pools[pool].end_page;
    if (rec->state != RECORD_LIVE || rec->ns >= live->num_ns) {
        return core_damaged(err, "page %u of pool %u", page, pool);
    }
    if (rec->parent == LAYOUT_NONE) {
        return rec->depth == 0 ? 0 : core_damaged(err, "depth of page %u of pool %u", page, pool);
    }
    // Depths that grow by one make the parents a forest.
    if (rec->parent >= end || !is_sealed(live, rec->parent) || rec->depth == 0 ||
        live->recs[rec->parent].depth != rec->depth - 1) {
        return core_damaged(err, "parent of page %u of pool %u", page, pool);
    }
    struct prefix_value value;
    prefix_next(&live->recs[rec->parent].value, pool_tokens(live, page), live->page_mask + 1,
                &value);
    if (memcmp(&value, &rec->value, sizeof value) != 0) {
        return core_damaged(err, "key of page %u of pool %u", page, pool);
    }
    return 0;
}

static int rebuild_index(struct core *c, uint32_t pool, struct err *err) {
    struct pool_live *live = &c->pools[pool];
    for (uint32_t page = 0; page < c->t.pools[pool].end_page; page++) {
        if (live->recs[page].state == RECORD_FREE) {
            continue;
        }
        int rc = check_sealed(c, pool, page, err);
        if (rc != 0) {
            return rc;
        }
        uint32_t other = index_find(&live->index, prefix_key_of(&live->recs[page].value));
        if (other != INDEX_NONE) {
            return core_damaged(err, "pages %u and %u of pool %u have one key", other, page, pool);
        }
        index_insert(&live->index, page);
        pages_keep(&live->pages, page);
    }
    for (uint32_t page = c->t.pools[pool].end_page; page < c->t.pools[pool].num_pages; page++) {
        if (live->recs[page].state != RECORD_FREE) { // nothing above would have looked at it
            return core_damaged(err, "page %u of pool %u is behind its sealed pages", page, pool);
        }
    }
    return 0;
}

// --- references -------------------------------------------------------------------------------

// One more reference; the first one puts the page on an account. ns: of who took it.
static void count(struct pool_live *live, uint32_t ns, uint32_t page) {
    if (live->pages.refs[page] == 0) {
        ns_active_add(live, is_sealed(live, page) ? live->recs[page].ns : ns, 1);
    }
    pages_count(&live->pages, page);
}

// The same for a sequence, which is the last one now that named the page. False: it is on the account
// of one namespace and a sequence of another has it.
static bool count_named(struct core *c, uint32_t seq, uint32_t page, uint32_t *last) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t before = last[page];
    if (before != 0 && !is_sealed(live, page) && c->t.seqs[before - 1].ns != rec->ns) {
        return false;
    }
    last[page] = seq + 1;
    count(live, rec->ns, page);
    return true;
}

// A page that is or was entry i of the row: if it is sealed, the entry before is its parent. Else
// who has the page could let the parent go before it.
static bool is_in_place(const struct core *c, uint32_t seq, uint32_t i, uint32_t page) {
    const struct pool_live *live = &c->pools[c->t.seqs[seq].pool];
    const struct page_rec *rec = &live->recs[page];
    const uint32_t *row = pool_row(live, c->t.seqs[seq].row);
    return !is_sealed(live, page) || (rec->depth == i && (i == 0 || rec->parent == row[i - 1]));
}

// Invariant 9 of core.h, beside the above: entry i of the row is sealed, the first one under the
// sequence's root.
static bool is_tracked_page(const struct core *c, uint32_t seq, uint32_t i) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    const struct pool_live *live = &c->pools[rec->pool];
    const uint32_t *row = pool_row(live, rec->row);
    if (i > 0 || !is_sealed(live, row[i])) {
        return is_sealed(live, row[i]);
    }
    struct prefix_value value;
    prefix_next(&rec->root, pool_tokens(live, row[0]), live->page_mask + 1, &value);
    return memcmp(&value, &live->recs[row[0]].value, sizeof value) == 0;
}

// Where the pages of a sequence's pool begin in a table of all pages of the block.
static uint32_t *of_pool(const struct core *c, uint32_t seq, uint32_t *last) {
    return last + c->t.pools[c->t.seqs[seq].pool].first_page;
}

// Counts the pages of entries first..end of a sequence's row. last[page of the block] is the
// sequence (index + 1) that named the page last: none names one twice.
static int count_row(struct core *c, uint32_t seq, uint32_t first, uint32_t end, uint32_t *last,
                     struct err *err) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    struct pool_live *live = &c->pools[rec->pool];
    const uint32_t *row = pool_row(live, rec->row);
    last = of_pool(c, seq, last);
    for (uint32_t i = first; i < end; i++) {
        uint32_t page = row[i];
        if (page >= c->t.pools[rec->pool].num_pages || last[page] == seq + 1 ||
            !count_named(c, seq, page, last)) {
            return core_damaged(err, "entry %u of sequence %u names page %u", i, seq, page);
        }
        if (!is_in_place(c, seq, i, page) ||
            (i < rec->tracked >> live->page_shift && !is_tracked_page(c, seq, i))) {
            return core_damaged(err,
                                "entry %u of sequence %u names page %u, which is not its prefix", i,
                                seq, page);
        }
    }
    return 0;
}

static int count_committed(struct core *c, uint32_t *last, struct err *err) {
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < c->seq_ids.fresh; i++) {
        const struct seq_rec *rec = &c->t.seqs[i];
        if (rec->state == RECORD_LIVE) {
            rc = count_row(c, i, 0, pool_pages(&c->pools[rec->pool], rec->length), last, err);
        }
    }
    return rc;
}

static int count_reserved(struct core *c, uint32_t step, uint32_t *last, struct err *err) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    struct pool_live *pool = &c->pools[rec->pool];
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < rec->n; i++) {
        uint32_t seq = items.seqs[i];
        uint32_t committed = pool_pages(pool, c->t.seqs[seq].length);
        uint32_t old_page = items.old_pages[i];
        rc = count_row(c, seq, committed, pool_pages(pool, items.kv_len[i]), last, err);
        if (rc != 0 || old_page == LAYOUT_NONE) {
            continue;
        }
        // An abort puts it back into the row, which must not have it yet.
        const uint32_t *row = pool_row(pool, items.rows[i]);
        for (uint32_t p = 0; p < committed; p++) {
            if (row[p] == old_page) {
                return core_damaged(err, "old page %u of item %u of step %u", old_page, i, step);
            }
        }
        if (!is_in_place(c, seq, committed - 1, old_page) ||
            !count_named(c, seq, old_page, of_pool(c, seq, last))) {
            return core_damaged(err, "old page %u of item %u of step %u", old_page, i, step);
        }
    }
    return rc;
}

// Invariants 4 and 5 of core.h: what a step writes to is named by nothing else.
static int check_written_pages(const struct core *c, uint32_t step, struct err *err) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    const struct pool_live *pool = &c->pools[rec->pool];
    for (uint32_t i = 0; i < rec->n; i++) {
        uint32_t length = c->t.seqs[items.seqs[i]].length;
        if (items.kv_len[i] == length) {
            continue;
        }
        const uint32_t *row = pool_row(pool, items.rows[i]);
        for (uint32_t p = length >> pool->page_shift; p < pool_pages(pool, items.kv_len[i]); p++) {
            if (is_sealed(pool, row[p])) {
                return core_damaged(err, "page %u is written by step %u and sealed", row[p], step);
            }
            if (pool->pages.refs[row[p]] != 1) {
                return core_damaged(err, "page %u is written by step %u and has %u references",
                                    row[p], step, pool->pages.refs[row[p]]);
            }
        }
    }
    return 0;
}

static int count_pins(struct core *c, struct err *err) {
    for (uint32_t i = 0; i < c->limits.max_pins; i++) {
        const struct pin_rec *rec = &c->t.pins[i];
        if (rec->state == RECORD_FREE) {
            continue;
        }
        if (rec->state != RECORD_LIVE || rec->generation == 0 || rec->pool >= c->limits.max_pools ||
            c->t.pools[rec->pool].state != RECORD_LIVE || rec->ns >= c->pools[rec->pool].num_ns ||
            rec->page >= c->t.pools[rec->pool].end_page ||
            !is_sealed(&c->pools[rec->pool], rec->page)) {
            return core_damaged(err, "pin %u", i);
        }
        struct pool_live *live = &c->pools[rec->pool];
        for (uint32_t page = rec->page; page != LAYOUT_NONE; page = live->recs[page].parent) {
            count(live, rec->ns, page);
        }
        live->pins++;
        live->ns[rec->ns].pins++;
        ids_seen(&c->pin_ids, i);
    }
    return 0;
}

static int count_all(struct core *c, uint32_t *last, struct err *err) {
    int rc = count_committed(c, last, err);
    for (uint32_t s = 0; rc == 0 && s < c->step_ids.fresh; s++) {
        rc = core_step_used(c, s) ? count_reserved(c, s, last, err) : 0;
    }
    for (uint32_t s = 0; rc == 0 && s < c->step_ids.fresh; s++) {
        rc = core_step_used(c, s) ? check_written_pages(c, s, err) : 0;
    }
    if (rc == 0) {
        rc = count_pins(c, err);
        ids_fill(&c->pin_ids, core_pin_used, c);
    }
    return rc;
}

// --- the cache --------------------------------------------------------------------------------

// The sealed pages of a pool by depth, into order[count of them]; heads: scratch [num_pages + 1].
static uint32_t sort_by_depth(const struct core *c, uint32_t pool, uint32_t *heads,
                              uint32_t *order) {
    const struct pool_live *live = &c->pools[pool];
    uint32_t end = c->t.pools[pool].end_page;
    memset(heads, 0, ((size_t)end + 1) * sizeof *heads);
    for (uint32_t page = 0; page < end; page++) {
        if (is_sealed(live, page)) { // else its depth may be anything
            heads[live->recs[page].depth + 1]++;
        }
    }
    for (uint32_t depth = 0; depth < end; depth++) {
        heads[depth + 1] += heads[depth];
    }
    uint32_t n = 0;
    for (uint32_t page = 0; page < end; page++) {
        if (is_sealed(live, page)) {
            order[heads[live->recs[page].depth]++] = page;
            n++;
        }
    }
    return n;
}

static int rebuild_cache(struct core *c, uint32_t pool, uint32_t *heads, uint32_t *order,
                         struct err *err) {
    struct pool_live *live = &c->pools[pool];
    uint32_t n = sort_by_depth(c, pool, heads, order);
    for (uint32_t i = 0; i < n; i++) { // parents first
        const struct page_rec *rec = &live->recs[order[i]];
        cache_seal(live->cache, order[i], rec->parent, rec->ns, prefix_key_of(&rec->value).b);
    }
    for (uint32_t i = n; i-- > 0;) { // children first
        if (live->pages.refs[order[i]] == 0) {
            cache_release(live->cache, order[i]);
        }
    }
    for (uint32_t ns = 0; ns < live->num_ns; ns++) {
        if (ns_used(live, ns) > live->ns_recs[ns].limit) {
            return core_damaged(err, "namespace %u of pool %u is over its limit", ns, pool);
        }
    }
    if (live->promised > c->t.pools[pool].num_pages) {
        return core_damaged(err, "pool %u promises more pages than it has", pool);
    }
    return 0;
}

int core_rebuild_pages(struct core *c, struct err *err) {
    uint32_t max_pages = 1;
    uint64_t end = 1; // of the last pool's pages
    for (uint32_t i = 0; i < c->limits.max_pools; i++) {
        const struct pool_rec *rec = &c->t.pools[i];
        if (rec->state == RECORD_LIVE) {
            max_pages = rec->num_pages > max_pages ? rec->num_pages : max_pages;
            end = rec->first_page + rec->num_pages > end ? rec->first_page + rec->num_pages : end;
        }
    }
    uint32_t *last = calloc((size_t)end + 1, sizeof *last);
    uint32_t *order = calloc(max_pages, sizeof *order);
    if (last == NULL || order == NULL) {
        free(last);
        free(order);
        return err_set(err, KVPOOL_E_NOMEM, "out of memory for the tables of %u pages", max_pages);
    }
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < c->limits.max_pools; i++) {
        rc = c->t.pools[i].state == RECORD_LIVE ? rebuild_index(c, i, err) : 0;
    }
    if (rc == 0) {
        rc = count_all(c, last, err);
    }
    for (uint32_t i = 0; rc == 0 && i < c->limits.max_pools; i++) {
        if (c->t.pools[i].state == RECORD_LIVE) {
            pages_fill(&c->pools[i].pages, core_page_used, &c->pools[i]);
            rc = rebuild_cache(c, i, last, order, err);
        }
    }
    free(order);
    free(last);
    return rc;
}
