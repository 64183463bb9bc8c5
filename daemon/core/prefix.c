// SPDX-License-Identifier: Apache-2.0
// prefix.c: sealed prefixes: finding them for a new sequence, and sealing what a commit completes.
//
//     open:   tokens -> chaining values, INDEX_BATCH at a time -> index -> longest run of hits
//             -> references, row, length = tracked = matched
//     commit: for each page that is full and known: value -> in the index?
//                 no:  the page is sealed, child of the row's page before it
//                 yes: the row gets the page that is there; the duplicate is free
//
// A duplicate may be free at once, although work of the same session has read it: a step commits
// when all of its work is done, and with it everything that stood before it on the session's stream.
// Whoever else could have read the page would have a reference.
#include "daemon/core/state.h"

#include <inttypes.h>

#define PREFETCH 16u // pages ahead

// --- matching -----------------------------------------------------------------------------------

// The first up to max_pages pages of `tokens` that are sealed, into ret_pages.
static uint32_t find_pages(const struct core *c, uint32_t pool, const struct core_open *open,
                           uint32_t max_pages, const struct prefix_value *root,
                           uint32_t *ret_pages) {
    const struct pool_live *live = &c->pools[pool];
    uint32_t page_size = live->page_mask + 1;
    struct prefix_value value = *root;
    uint32_t n = 0;
    while (n < max_pages) {
        struct prefix_key keys[INDEX_BATCH];
        uint32_t found[INDEX_BATCH];
        uint32_t batch = max_pages - n < INDEX_BATCH ? max_pages - n : INDEX_BATCH;
        for (uint32_t i = 0; i < batch; i++) {
            prefix_next(&value, open->tokens + ((size_t)(n + i) << live->page_shift), page_size,
                        &value);
            keys[i] = prefix_key_of(&value);
            index_prefetch_key(&live->index, keys[i]); // fetched while the next ones are hashed
        }
        index_find_n(&live->index, keys, batch, found);
        for (uint32_t i = 0; i < batch; i++) {
            if (found[i] == INDEX_NONE) {
                return n;
            }
            ret_pages[n++] = found[i];
        }
    }
    return n;
}

// Of n pages the first ones that the namespace has room to refer to.
static uint32_t fit_pages(const struct core *c, uint32_t pool, uint32_t ns, uint32_t n,
                          const uint32_t *pages) {
    const struct pool_live *live = &c->pools[pool];
    uint64_t room = core_room(c, pool, ns);
    for (uint32_t i = 0; i < n; i++) {
        if (live->pages.refs[pages[i]] == 0 && room-- == 0) {
            return i;
        }
    }
    return n;
}

static int check_open(const struct core *c, uint32_t pool, const struct core_open *open,
                      struct err *err) {
    int rc = core_find_ns(c, pool, open->ns, err);
    if (rc != 0) {
        return rc;
    }
    if (open->priority >= CORE_PRIORITIES) {
        return err_set(err, KVPOOL_E_INVAL, "priority %u is outside 0..%d", open->priority,
                       CORE_PRIORITIES - 1);
    }
    if (open->extra_size > CORE_EXTRA_MAX) {
        return err_set(err, KVPOOL_E_INVAL, "%u bytes of key material, the limit is %d",
                       open->extra_size, CORE_EXTRA_MAX);
    }
    if (open->n > c->t.pools[pool].max_seq_len) {
        return err_set(err, KVPOOL_E_INVAL, "%u tokens, the limit is %u (max_seq_len)", open->n,
                       c->t.pools[pool].max_seq_len);
    }
    return 0;
}

static void find_root(const struct core *c, uint32_t pool, const struct core_open *open,
                      struct prefix_value *ret) {
    if (open->extra_size == 0) {
        *ret = c->pools[pool].ns[open->ns].root;
    } else {
        core_ns_root(c, pool, open->ns, open->extra, open->extra_size, ret);
    }
}

int core_seq_probe(struct core *c, uint64_t pool_handle, const struct core_open *open,
                   uint32_t *ret_matched, struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc == 0) {
        rc = check_open(c, pool, open, err);
    }
    if (rc != 0) {
        return rc;
    }
    struct pool_live *live = &c->pools[pool];
    struct prefix_value root;
    find_root(c, pool, open, &root);
    uint32_t n = find_pages(c, pool, open, open->n >> live->page_shift, &root, live->probed);
    *ret_matched = n << live->page_shift;
    return 0;
}

int core_seq_open(struct core *c, uint64_t session_handle, uint64_t pool_handle,
                  const struct core_open *open, uint64_t *ret_seq, uint32_t *ret_matched,
                  struct core_effects *ret_effects, struct err *err) {
    uint32_t session = 0;
    uint32_t pool = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_pool(c, pool_handle, &pool, err);
    }
    if (rc == 0) {
        rc = check_open(c, pool, open, err);
    }
    if (rc != 0) {
        return rc;
    }
    struct pool_live *live = &c->pools[pool];
    struct prefix_value root;
    find_root(c, pool, open, &root);
    uint32_t n = find_pages(c, pool, open, open->n >> live->page_shift, &root, live->probed);
    n = fit_pages(c, pool, open->ns, n, live->probed);
    uint32_t matched = n << live->page_shift;
    uint64_t handle = 0;
    struct core_effects effects = {
        .pool = pool_handle, .deltas = c->deltas, .copies = c->copies, .num_deltas = n > 0};
    if (n > 0 || !open->only_matched) {
        rc = core_seq_room(c, pool, 1, err);
        if (rc != 0) {
            return rc;
        }
        uint32_t seq = core_seq_new(c, session, pool, open->ns, open->priority, &root);
        struct seq_rec *rec = &c->t.seqs[seq];
        for (uint32_t i = 0; i < n; i++) {
            if (i + PREFETCH < n) {
                cache_prefetch(live->cache, live->probed[i + PREFETCH]);
            }
            core_ref_sealed(c, pool, open->ns, live->probed[i]);
        }
        memcpy(pool_row(live, rec->row), live->probed, n * sizeof *live->probed);
        rec->length = matched;
        rec->tracked = matched;
        core_trim(c, pool, open->ns);
        c->deltas[0] = (struct core_delta){rec->row, 0, n};
        handle = core_seq_handle(c, seq);
    }
    live->ns[open->ns].counters.hit_tokens += matched;
    live->ns[open->ns].counters.miss_tokens += open->n - matched;
    *ret_seq = handle;
    *ret_matched = matched;
    *ret_effects = effects;
    return 0;
}

// --- sealing ------------------------------------------------------------------------------------

static void seal_page(struct core *c, uint32_t pool, uint32_t ns, uint32_t page, uint32_t parent,
                      const struct prefix_value *value) {
    struct pool_live *live = &c->pools[pool];
    struct pool_rec *pool_rec = &c->t.pools[pool];
    struct page_rec *rec = &live->recs[page];
    rec->ns = ns;
    rec->parent = parent;
    rec->depth = parent == LAYOUT_NONE ? 0 : live->recs[parent].depth + 1;
    rec->value = *value;
    if (page >= pool_rec->end_page) {
        pool_rec->end_page = page + 1;
    }
    rec->state = RECORD_LIVE;
    pages_seal(&live->pages, page);
    index_insert(&live->index, page);
    cache_seal(live->cache, page, parent, ns, prefix_key_of(value).b);
    live->ns[ns].counters.sealed++;
    core_emit(c, CORE_STORED, pool, page);
}

void core_seal(struct core *c, uint32_t seq, uint32_t tracked, uint32_t *ret_first,
               uint32_t *ret_count, struct core_step_info *info) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t *row = pool_row(live, rec->row);
    uint32_t page_size = live->page_mask + 1;
    uint32_t first_redirected = LAYOUT_NONE;
    uint32_t end_redirected = 0;
    for (uint32_t i = tracked >> live->page_shift; i < rec->tracked >> live->page_shift; i++) {
        uint32_t page = row[i];
        uint32_t parent = i == 0 ? LAYOUT_NONE : row[i - 1];
        const struct prefix_value *before = i == 0 ? &rec->root : &live->recs[parent].value;
        struct prefix_value value;
        prefix_next(before, pool_tokens(live, page), page_size, &value);
        uint32_t known = index_find(&live->index, prefix_key_of(&value));
        if (known == INDEX_NONE) {
            seal_page(c, rec->pool, rec->ns, page, parent, &value);
            info->sealed++;
            continue;
        }
        uint32_t left = pages_unref(&live->pages, page);
        assert(left == 0); // invariant 4 of core.h
        (void)left;
        ns_active_add(live, rec->ns, -1);
        pages_give(&live->pages, page);
        core_ref_sealed(c, rec->pool, rec->ns, known);
        row[i] = known;
        live->ns[rec->ns].counters.deduplicated++;
        info->deduplicated++;
        first_redirected = first_redirected == LAYOUT_NONE ? i : first_redirected;
        end_redirected = i + 1;
    }
    *ret_first = first_redirected;
    *ret_count = end_redirected > 0 ? end_redirected - first_redirected : 0;
}
