// SPDX-License-Identifier: Apache-2.0
// rebuild.c: the derived tables, made from the block alone. The block may hold anything: what is
// read is checked before it is used as an index or a size, and what breaks an invariant of core.h
// or layout.h is said and refused.
//
// Order: pools with their namespaces, sessions, sequences (rows), steps (items), then pages and the
// page-table rows, which need all of them (rebuild_pages.c).
#include "daemon/core/geometry.h"
#include "daemon/core/soundness.h"

#include <stdlib.h>
#include <string.h>

// --- pools ------------------------------------------------------------------------------------

static bool fits(uint64_t first, uint64_t count, uint64_t cap) {
    return count <= cap && first <= cap - count;
}

static bool overlap(uint64_t a, uint64_t a_count, uint64_t b, uint64_t b_count) {
    return a < b + b_count && b < a + a_count;
}

static int check_pool(const struct core *c, uint32_t pool, struct err *err) {
    const struct pool_rec *rec = &c->t.pools[pool];
    if (rec->checksum != layout_pool_checksum(rec) || rec->generation == 0) {
        return core_damaged(err, "pool %u", pool);
    }
    struct core_pool_config g = {
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
    memcpy(g.name, rec->name, sizeof g.name);
    if (rec->max_seqs == 0 || rec->max_seq_len == 0 || rec->export == 0 ||
        core_pool_config_check(&g, NULL) != 0 ||
        rec->row_entries != ((uint64_t)rec->max_seq_len + rec->page_size - 1) / rec->page_size) {
        return core_damaged(err, "configuration of pool %u", pool);
    }
    const struct core_limits *l = &c->limits;
    uint64_t span = (uint64_t)rec->max_seqs * rec->row_entries;
    uint64_t tokens = (uint64_t)rec->num_pages * rec->page_size;
    if (!fits(rec->first_entry, span, l->max_table_entries)) {
        return core_damaged(err, "page table of pool %u leaves the block", pool);
    }
    if (!fits(rec->first_page, rec->num_pages, l->max_pages) ||
        !fits(rec->first_token, tokens, l->max_page_tokens) || rec->end_page > rec->num_pages) {
        return core_damaged(err, "pages of pool %u leave the block", pool);
    }
    for (uint32_t i = 0; i < pool; i++) {
        const struct pool_rec *other = &c->t.pools[i];
        if (other->state != RECORD_LIVE) {
            continue;
        }
        uint64_t other_span = (uint64_t)other->max_seqs * other->row_entries;
        if (overlap(rec->first_entry, span, other->first_entry, other_span)) {
            return core_damaged(err, "page tables of pools %u and %u overlap", i, pool);
        }
        if (overlap(rec->first_page, rec->num_pages, other->first_page, other->num_pages) ||
            overlap(rec->first_token, tokens, other->first_token,
                    (uint64_t)other->num_pages * other->page_size)) {
            return core_damaged(err, "pages of pools %u and %u overlap", i, pool);
        }
        if (strncmp(other->name, rec->name, sizeof rec->name) == 0) {
            return core_damaged(err, "pools %u and %u have one name", i, pool);
        }
    }
    return 0;
}

static bool text_ends(const char text[CORE_NAME_SIZE]) {
    return memchr(text, 0, CORE_NAME_SIZE) != NULL;
}

static int rebuild_namespaces(struct core *c, uint32_t pool, struct err *err) {
    struct pool_live *live = &c->pools[pool];
    uint32_t num_pages = c->t.pools[pool].num_pages;
    for (uint32_t i = 0; i < CORE_MAX_NAMESPACES; i++) {
        const struct ns_rec *rec = &live->ns_recs[i];
        if (rec->state == RECORD_FREE && i > 0) {
            continue;
        }
        bool sound = rec->state == RECORD_LIVE && i == live->num_ns &&
                     rec->checksum == layout_ns_checksum(rec) && text_ends(rec->name) &&
                     text_ends(rec->group) && rec->limit >= 1 && rec->limit <= num_pages &&
                     rec->reserve <= rec->limit && rec->weight >= 1;
        for (uint32_t k = 0; sound && k < i; k++) {
            sound = strncmp(live->ns_recs[k].name, rec->name, sizeof rec->name) != 0;
        }
        if (!sound || live->promised + rec->reserve > num_pages) {
            return core_damaged(err, "namespace %u of pool %u", i, pool);
        }
        core_ns_derive(c, pool, i);
    }
    return 0;
}

static int rebuild_pools(struct core *c, struct err *err) {
    for (uint32_t i = 0; i < c->limits.max_pools; i++) {
        uint32_t state = c->t.pools[i].state;
        if (state == RECORD_FREE) {
            continue;
        }
        if (state != RECORD_LIVE) {
            return core_damaged(err, "pool %u has state %u", i, state);
        }
        int rc = check_pool(c, i, err);
        if (rc != 0) {
            return rc;
        }
        if (!core_pool_live_init(c, i)) {
            return err_set(err, KVPOOL_E_NOMEM, "out of memory for the tables of %u pages",
                           c->t.pools[i].num_pages);
        }
        c->num_pools++;
        rc = rebuild_namespaces(c, i, err);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

// --- sessions ---------------------------------------------------------------------------------

static int check_session(const struct core *c, uint32_t session, struct err *err) {
    const struct session_rec *rec = &c->t.sessions[session];
    if (rec->generation == 0 || rec->next_finished >= CORE_FINISHED ||
        memchr(rec->name, 0, sizeof rec->name) == NULL) {
        return core_damaged(err, "session %u", session);
    }
    for (uint32_t i = 0; i < CORE_FINISHED; i++) {
        uint32_t outcome = rec->finished[i].outcome;
        if (rec->finished_ids[i] != 0 && outcome != OUTCOME_COMMITTED &&
            outcome != OUTCOME_ABORTED) {
            return core_damaged(err, "session %u has a finished step of outcome %u", session,
                                outcome);
        }
    }
    return 0;
}

static int rebuild_sessions(struct core *c, struct err *err) {
    for (uint32_t i = 0; i < c->limits.max_sessions; i++) {
        uint32_t state = c->t.sessions[i].state;
        if (state == RECORD_FREE) {
            continue;
        }
        if (state != RECORD_LIVE) {
            return core_damaged(err, "session %u has state %u", i, state);
        }
        int rc = check_session(c, i, err);
        if (rc != 0) {
            return rc;
        }
        ids_seen(&c->session_ids, i);
    }
    ids_fill(&c->session_ids, core_session_used, c);
    return 0;
}

// --- sequences --------------------------------------------------------------------------------

static int check_seq(const struct core *c, uint32_t seq, struct err *err) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    if (rec->generation == 0 || rec->pool >= c->limits.max_pools ||
        c->t.pools[rec->pool].state != RECORD_LIVE || rec->session >= c->limits.max_sessions ||
        c->t.sessions[rec->session].state != RECORD_LIVE) {
        return core_damaged(err, "sequence %u", seq);
    }
    const struct pool_rec *pool = &c->t.pools[rec->pool];
    if (rec->length > pool->max_seq_len) {
        return core_damaged(err, "sequence %u has %u tokens, more than its pool's %u", seq,
                            rec->length, pool->max_seq_len);
    }
    if (rec->ns >= c->pools[rec->pool].num_ns || rec->priority >= CORE_PRIORITIES ||
        rec->tracked > rec->length) {
        return core_damaged(err, "namespace, priority or known tokens of sequence %u", seq);
    }
    if (rec->row >= pool->max_seqs || c->pools[rec->pool].row_seqs[rec->row] != 0) {
        return core_damaged(err, "row %u of sequence %u", rec->row, seq);
    }
    if (rec->step != LAYOUT_NONE &&
        (rec->step >= c->limits.max_steps || c->t.steps[rec->step].state != RECORD_LIVE)) {
        return core_damaged(err, "step %u of sequence %u", rec->step, seq);
    }
    return 0;
}

static int rebuild_seqs(struct core *c, struct err *err) {
    for (uint32_t i = 0; i < c->limits.max_seqs; i++) {
        const struct seq_rec *rec = &c->t.seqs[i];
        if (rec->state == RECORD_FREE) {
            continue;
        }
        if (rec->state != RECORD_LIVE) {
            return core_damaged(err, "sequence %u has state %u", i, rec->state);
        }
        int rc = check_seq(c, i, err);
        if (rc != 0) {
            return rc;
        }
        struct pool_live *pool = &c->pools[rec->pool];
        pool->row_seqs[rec->row] = i + 1;
        pool->seqs++;
        pool->ns[rec->ns].seqs++;
        ids_seen(&pool->rows, rec->row);
        ids_seen(&c->seq_ids, i);
        core_link_seq(c, i);
    }
    ids_fill(&c->seq_ids, core_seq_used, c);
    for (uint32_t i = 0; i < c->limits.max_pools; i++) {
        if (c->t.pools[i].state == RECORD_LIVE) {
            ids_fill(&c->pools[i].rows, core_row_used, &c->pools[i]);
        }
    }
    return 0;
}

// --- steps ------------------------------------------------------------------------------------

// Item i of a step whose record is checked: the sequence is there, once, and the numbers agree.
static bool item_is_sound(const struct core *c, uint32_t step, const struct step_items *items,
                          uint32_t i) {
    const struct step_rec *rec = &c->t.steps[step];
    uint32_t seq = items->seqs[i];
    if (seq >= c->limits.max_seqs || c->seen[seq] == c->stamp) {
        return false;
    }
    const struct seq_rec *owner = &c->t.seqs[seq];
    uint32_t kv_len = items->kv_len[i];
    if (owner->state != RECORD_LIVE || owner->step != step || owner->session != rec->session ||
        owner->pool != rec->pool || owner->ns != rec->ns || owner->row != items->rows[i] ||
        kv_len < owner->length || kv_len > c->t.pools[rec->pool].max_seq_len ||
        items->qo_indptr[i + 1] - items->qo_indptr[i] != kv_len - owner->length) {
        return false;
    }
    c->seen[seq] = c->stamp;
    uint32_t old_page = items->old_pages[i];
    return old_page == LAYOUT_NONE ||
           (old_page < c->t.pools[rec->pool].num_pages && kv_len > owner->length &&
            (owner->length & c->pools[rec->pool].page_mask) != 0);
}

static int check_step(const struct core *c, uint32_t step, struct err *err) {
    const struct step_rec *rec = &c->t.steps[step];
    if (rec->id == 0 || rec->session >= c->limits.max_sessions ||
        c->t.sessions[rec->session].state != RECORD_LIVE || rec->pool >= c->limits.max_pools ||
        c->t.pools[rec->pool].state != RECORD_LIVE || rec->n < 1 || rec->n > c->limits.max_batch ||
        rec->tokens > CORE_MAX_TOKENS ||
        c->sessions[rec->session].steps >= c->limits.max_session_steps ||
        core_open_step(c, rec->session, rec->id) != LAYOUT_NONE ||
        core_finished_step(c, rec->session, rec->id) != LAYOUT_NONE) {
        return core_damaged(err, "step %u", step);
    }
    const struct step_items items = tables_items(&c->t, step);
    const struct pool_live *pool = &c->pools[rec->pool];
    uint64_t tokens = 0;
    uint64_t added = 0;
    uint64_t copied = 0;
    uint32_t max_q_len = 0;
    for (uint32_t i = 0; i < rec->n; i++) {
        if (items.qo_indptr[i] != tokens || !item_is_sound(c, step, &items, i)) {
            return core_damaged(err, "item %u of step %u", i, step);
        }
        uint32_t length = c->t.seqs[items.seqs[i]].length;
        uint32_t q_len = items.kv_len[i] - length;
        tokens += q_len;
        max_q_len = q_len > max_q_len ? q_len : max_q_len;
        added += pool_pages(pool, items.kv_len[i]) - pool_pages(pool, length);
        copied += items.old_pages[i] != LAYOUT_NONE;
    }
    if (rec->ids_known > 1) {
        return core_damaged(err, "step %u", step);
    }
    uint32_t layers = c->t.pools[rec->pool].layers;
    bool beyond = false; // layers that the pool does not have
    for (uint32_t l = layers; l < KVPOOL_MAX_LAYERS; l++) {
        beyond = beyond || (rec->written[l / 64] >> (l % 64) & 1) != 0;
    }
    if (beyond || rec->tokens != tokens || rec->max_q_len != max_q_len ||
        rec->added_pages != added || rec->reserved_pages != added + copied) {
        return core_damaged(err, "sums of step %u", step);
    }
    return 0;
}

static int rebuild_steps(struct core *c, struct err *err) {
    c->stamp++;
    for (uint32_t i = 0; i < c->limits.max_steps; i++) {
        uint32_t state = c->t.steps[i].state;
        if (state == RECORD_FREE) {
            continue;
        }
        if (state != RECORD_LIVE) {
            return core_damaged(err, "step %u has state %u", i, state);
        }
        int rc = check_step(c, i, err);
        if (rc != 0) {
            return rc;
        }
        ids_seen(&c->step_ids, i);
        core_link_step(c, i);
    }
    ids_fill(&c->step_ids, core_step_used, c);
    for (uint32_t i = 0; i < c->seq_ids.fresh; i++) {
        const struct seq_rec *rec = &c->t.seqs[i];
        if (rec->state == RECORD_LIVE && rec->step != LAYOUT_NONE && c->seen[i] != c->stamp) {
            return core_damaged(err, "sequence %u is in step %u, which does not have it", i,
                                rec->step);
        }
    }
    return 0;
}

// ----------------------------------------------------------------------------------------------

int core_rebuild(struct core *c, struct err *err) {
    int rc = rebuild_pools(c, err);
    if (rc == 0) {
        rc = rebuild_sessions(c, err);
    }
    if (rc == 0) {
        rc = rebuild_seqs(c, err);
    }
    if (rc == 0) {
        rc = rebuild_steps(c, err);
    }
    if (rc == 0) {
        rc = core_rebuild_pages(c, err);
    }
    return rc;
}
