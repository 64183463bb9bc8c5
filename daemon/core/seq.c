// SPDX-License-Identifier: Apache-2.0
// seq.c: sequences outside of steps: create, fork, truncate, free, look at.
#include "daemon/core/state.h"

#include <inttypes.h>
#include <string.h>

int core_find_seq(const struct core *c, uint32_t session, uint64_t handle, uint32_t *ret,
                  struct err *err) {
    uint32_t seq = handle_index(handle);
    if (seq >= c->limits.max_seqs || c->t.seqs[seq].state != RECORD_LIVE ||
        c->t.seqs[seq].generation != handle_generation(handle)) {
        return err_set(err, KVPOOL_E_STALE, "sequence 0x%" PRIx64 " does not exist", handle);
    }
    if (c->t.seqs[seq].session != session) {
        return err_set(err, KVPOOL_E_PERM, "sequence 0x%" PRIx64 " belongs to another session",
                       handle);
    }
    *ret = seq;
    return 0;
}

int core_batch_seq(struct core *c, uint32_t session, uint32_t pool, uint64_t handle, uint64_t stamp,
                   uint32_t *ret, struct err *err) {
    uint32_t seq = 0;
    int rc = core_find_seq(c, session, handle, &seq, err);
    if (rc != 0) {
        return rc;
    }
    const struct seq_rec *rec = &c->t.seqs[seq];
    if (rec->pool != pool) {
        return err_set(err, KVPOOL_E_INVAL, "sequence 0x%" PRIx64 " is of another pool", handle);
    }
    if (c->seen[seq] == stamp) {
        return err_set(err, KVPOOL_E_INVAL, "sequence 0x%" PRIx64 " is in the batch twice", handle);
    }
    if (rec->step != LAYOUT_NONE) {
        return err_set(err, KVPOOL_E_BUSY, "sequence 0x%" PRIx64 " is in open step %" PRIu64,
                       handle, c->t.steps[rec->step].id);
    }
    c->seen[seq] = stamp;
    *ret = seq;
    return 0;
}

static int in_step(struct err *err, uint64_t handle) {
    return err_set(err, KVPOOL_E_BUSY, "sequence 0x%" PRIx64 " is in an open step", handle);
}

static int pinned(struct err *err, uint64_t handle) {
    return err_set(err, KVPOOL_E_BUSY, "sequence 0x%" PRIx64 " is read by work in flight", handle);
}

int core_seq_room(const struct core *c, uint32_t pool, uint32_t n, struct err *err) {
    if (n < 1 || n > c->limits.max_batch) {
        return err_set(err, KVPOOL_E_INVAL, "n %u is outside 1..%u", n, c->limits.max_batch);
    }
    if (ids_free(&c->pools[pool].rows) < n) {
        return err_set(err, KVPOOL_E_LIMIT, "pool \"%s\" has %u of %u sequences (max_seqs)",
                       c->t.pools[pool].name, c->pools[pool].seqs, c->t.pools[pool].max_seqs);
    }
    if (ids_free(&c->seq_ids) < n) {
        return err_set(err, KVPOOL_E_LIMIT, "%u of %u sequences exist (the daemon's max_seqs)",
                       ids_used(&c->seq_ids), c->limits.max_seqs);
    }
    return 0;
}

uint32_t core_seq_new(struct core *c, uint32_t session, uint32_t pool, uint32_t ns,
                      uint32_t priority, const struct prefix_value *root) {
    struct pool_live *live = &c->pools[pool];
    uint32_t seq = ids_take(&c->seq_ids);
    uint32_t row = ids_take(&live->rows);
    struct seq_rec *rec = &c->t.seqs[seq];
    *rec = (struct seq_rec){
        .state = RECORD_LIVE,
        .generation = core_generation(c, rec->generation, HANDLE_SEQ),
        .pool = pool,
        .session = session,
        .row = row,
        .step = LAYOUT_NONE,
        .ns = ns,
        .priority = priority,
        .root = *root,
    };
    live->row_seqs[row] = seq + 1;
    live->seqs++;
    live->ns[ns].seqs++;
    c->seqs[seq].pins = 0;
    core_link_seq(c, seq);
    return seq;
}

static struct release release_of(const struct seq_rec *rec, enum core_hint hint) {
    return (struct release){
        .pool = rec->pool, .ns = rec->ns, .priority = rec->priority, .drop = hint == CORE_DROP};
}

void core_release_seq(struct core *c, uint32_t seq, enum core_hint hint) {
    struct seq_rec *rec = &c->t.seqs[seq];
    struct pool_live *live = &c->pools[rec->pool];
    assert(rec->step == LAYOUT_NONE && c->seqs[seq].pins == 0);
    const struct release by = release_of(rec, hint);
    core_unref_n(c, &by, pool_pages(live, rec->length), pool_row(live, rec->row));
    live->row_seqs[rec->row] = 0;
    ids_give(&live->rows, rec->row);
    live->seqs--;
    live->ns[rec->ns].seqs--;
    core_unlink_seq(c, seq);
    rec->state = RECORD_FREE;
    rec->generation = handle_next(rec->generation);
    ids_give(&c->seq_ids, seq);
}

int core_seq_create(struct core *c, uint64_t session_handle, uint64_t pool_handle, uint32_t ns,
                    uint32_t n, uint64_t *ret_seqs, struct err *err) {
    uint32_t session = 0;
    uint32_t pool = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_pool(c, pool_handle, &pool, err);
    }
    if (rc == 0) {
        rc = core_find_ns(c, pool, ns, err);
    }
    if (rc == 0) {
        rc = core_seq_room(c, pool, n, err);
    }
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        uint32_t seq = core_seq_new(c, session, pool, ns, CORE_NORMAL, &c->pools[pool].ns[ns].root);
        ret_seqs[i] = core_seq_handle(c, seq);
    }
    return rc;
}

int core_seq_fork(struct core *c, uint64_t session_handle, uint64_t seq_handle, uint32_t n,
                  uint64_t *ret_seqs, struct core_effects *ret_effects, struct err *err) {
    uint32_t session = 0;
    uint32_t from = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_seq(c, session, seq_handle, &from, err);
    }
    if (rc != 0) {
        return rc;
    }
    const struct seq_rec source = c->t.seqs[from];
    if (source.step != LAYOUT_NONE) {
        return in_step(err, seq_handle);
    }
    rc = core_seq_room(c, source.pool, n, err);
    if (rc != 0) {
        return rc;
    }
    struct pool_live *live = &c->pools[source.pool];
    const uint32_t *source_row = pool_row(live, source.row);
    uint32_t pages = pool_pages(live, source.length);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seq =
            core_seq_new(c, session, source.pool, source.ns, source.priority, &source.root);
        uint32_t row = c->t.seqs[seq].row;
        memcpy(pool_row(live, row), source_row, pages * sizeof *source_row);
        pages_ref_n(&live->pages, pages, source_row);
        c->t.seqs[seq].length = source.length;
        c->t.seqs[seq].tracked = source.tracked;
        c->deltas[i] = (struct core_delta){row, 0, pages};
        ret_seqs[i] = core_seq_handle(c, seq);
    }
    *ret_effects = (struct core_effects){
        .pool = core_pool_handle(c, source.pool),
        .deltas = c->deltas,
        .copies = c->copies,
        .num_deltas = pages > 0 ? n : 0,
    };
    return 0;
}

int core_seq_truncate(struct core *c, uint64_t session_handle, uint64_t seq_handle, uint32_t length,
                      struct err *err) {
    uint32_t session = 0;
    uint32_t seq = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_seq(c, session, seq_handle, &seq, err);
    }
    if (rc != 0) {
        return rc;
    }
    struct seq_rec *rec = &c->t.seqs[seq];
    if (rec->step != LAYOUT_NONE) {
        return in_step(err, seq_handle);
    }
    if (c->seqs[seq].pins > 0) {
        return pinned(err, seq_handle);
    }
    if (length > rec->length) {
        return err_set(err, KVPOOL_E_INVAL, "cannot truncate a sequence of %u tokens to %u",
                       rec->length, length);
    }
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t keep = pool_pages(live, length);
    uint32_t have = pool_pages(live, rec->length);
    const struct release by = release_of(rec, CORE_KEEP);
    core_unref_n(c, &by, have - keep, pool_row(live, rec->row) + keep);
    rec->length = length;
    rec->tracked = rec->tracked < length ? rec->tracked : length;
    return 0;
}

int core_seq_free(struct core *c, uint64_t session_handle, uint32_t n, const uint64_t *seqs,
                  enum core_hint hint, struct err *err) {
    uint32_t session = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    if (n == 0) {
        return err_set(err, KVPOOL_E_INVAL, "the list of sequences is empty");
    }
    if (hint != CORE_KEEP && hint != CORE_DROP) {
        return err_set(err, KVPOOL_E_INVAL, "hint %d is neither keep nor drop", (int)hint);
    }
    uint64_t stamp = ++c->stamp;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seq = 0;
        rc = core_find_seq(c, session, seqs[i], &seq, err);
        if (rc != 0) {
            return rc;
        }
        if (c->seen[seq] == stamp) {
            return err_set(err, KVPOOL_E_INVAL, "sequence 0x%" PRIx64 " is in the list twice",
                           seqs[i]);
        }
        c->seen[seq] = stamp;
        if (c->t.seqs[seq].step != LAYOUT_NONE) {
            return in_step(err, seqs[i]);
        }
        if (c->seqs[seq].pins > 0) {
            return pinned(err, seqs[i]);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        core_release_seq(c, handle_index(seqs[i]), hint);
    }
    return 0;
}

int core_seq_set_priority(struct core *c, uint64_t session_handle, uint64_t seq_handle,
                          uint32_t priority, struct err *err) {
    uint32_t session = 0;
    uint32_t seq = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_seq(c, session, seq_handle, &seq, err);
    }
    if (rc != 0) {
        return rc;
    }
    if (priority >= CORE_PRIORITIES) {
        return err_set(err, KVPOOL_E_INVAL, "priority %u is outside 0..%d", priority,
                       CORE_PRIORITIES - 1);
    }
    c->t.seqs[seq].priority = priority;
    return 0;
}

// Committed pages that something else refers to as well. The last one is the step's old page while
// a copy stands in its place.
static uint32_t count_shared(const struct core *c, const struct seq_rec *rec, uint32_t pages) {
    const struct pool_live *live = &c->pools[rec->pool];
    const uint32_t *row = pool_row(live, rec->row);
    uint32_t shared = 0;
    for (uint32_t i = 0; i < pages; i++) {
        shared += live->pages.refs[row[i]] > 1;
    }
    if (rec->step == LAYOUT_NONE || pages == 0) {
        return shared;
    }
    const struct step_items items = tables_items(&c->t, rec->step);
    uint32_t i = 0;
    while (items.rows[i] != rec->row) {
        i++;
    }
    if (items.old_pages[i] != LAYOUT_NONE) {
        shared += live->pages.refs[items.old_pages[i]] > 1; // the copy itself was not counted
    }
    return shared;
}

static void fill_info(const struct core *c, uint32_t seq, struct core_seq_info *ret) {
    const struct seq_rec *rec = &c->t.seqs[seq];
    uint32_t pages = pool_pages(&c->pools[rec->pool], rec->length);
    *ret = (struct core_seq_info){
        .seq = core_seq_handle(c, seq),
        .pool = core_pool_handle(c, rec->pool),
        .session = core_session_handle(c, rec->session),
        .length = rec->length,
        .tracked = rec->tracked,
        .ns = rec->ns,
        .priority = rec->priority,
        .pages = pages,
        .shared_pages = count_shared(c, rec, pages),
        .row = rec->row,
        .owner_pid = c->t.sessions[rec->session].pid,
        .in_step = rec->step != LAYOUT_NONE,
    };
}

int core_seq_stat(const struct core *c, uint64_t session_handle, uint64_t seq_handle,
                  struct core_seq_info *ret, struct err *err) {
    uint32_t seq = handle_index(seq_handle);
    uint32_t session = 0;
    if (session_handle == 0) { // whoever owns it
        session = seq < c->limits.max_seqs ? c->t.seqs[seq].session : 0;
    } else {
        int rc = core_find_session(c, session_handle, &session, err);
        if (rc != 0) {
            return rc;
        }
    }
    int rc = core_find_seq(c, session, seq_handle, &seq, err);
    if (rc == 0) {
        fill_info(c, seq, ret);
    }
    return rc;
}

bool core_seq_next_owner(const struct core *c, uint32_t *cursor, uint64_t *ret_seq,
                         uint64_t *ret_session) {
    for (uint32_t i = *cursor; i < c->seq_ids.fresh; i++) {
        if (c->t.seqs[i].state == RECORD_LIVE) {
            *ret_seq = core_seq_handle(c, i);
            *ret_session = core_session_handle(c, c->t.seqs[i].session);
            *cursor = i + 1;
            return true;
        }
    }
    return false;
}

bool core_seq_next(const struct core *c, uint32_t *cursor, struct core_seq_info *ret) {
    uint64_t seq = 0;
    uint64_t session = 0;
    bool found = core_seq_next_owner(c, cursor, &seq, &session);
    if (found) {
        fill_info(c, handle_index(seq), ret);
    }
    return found;
}
