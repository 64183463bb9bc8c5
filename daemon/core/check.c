// SPDX-License-Identifier: Apache-2.0
// check.c: is a live core sound? A second core is attached to the same block: its rebuilding
// checks the block, and what it derived must be what the live one has.
#include "daemon/core/soundness.h"

// --- pages and other ids ----------------------------------------------------------------------

static int check_ids(const struct ids *ids, ids_used_fn used, const void *arg, const char *what,
                     struct err *err) {
    uint32_t bad = 0;
    int rc = ids_check(ids, used, arg, &bad);
    if (rc < 0) {
        return core_violated(err, "out of memory for the check");
    }
    return rc == 0 ? 0 : core_violated(err, "free %s: %u is wrong", what, bad);
}

// `live` against the rebuilt `want`, pool by pool.
static int compare_pages(const struct core *live, const struct core *want, struct err *err) {
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < live->limits.max_pools; i++) {
        if (live->t.pools[i].state != RECORD_LIVE) {
            continue;
        }
        const struct pages *a = &live->pools[i].pages;
        const struct pages *b = &want->pools[i].pages;
        uint32_t end = a->free.fresh > b->free.fresh ? a->free.fresh : b->free.fresh;
        for (uint32_t p = 0; p < end; p++) {
            if (a->refs[p] != b->refs[p]) {
                return core_violated(err,
                                     "page %u of pool %u has %u references, the tables name it %u"
                                     " times",
                                     p, i, a->refs[p], b->refs[p]);
            }
        }
        if (a->shared != b->shared) {
            return core_violated(err, "pool %u counts %u shared pages, has %u", i, a->shared,
                                 b->shared);
        }
        rc = check_ids(&a->free, core_page_used, &want->pools[i], "pages", err);
    }
    return rc;
}

static int compare_slots(const struct core *live, const struct core *want, struct err *err) {
    int rc = check_ids(&live->session_ids, core_session_used, live, "sessions", err);
    if (rc == 0) {
        rc = check_ids(&live->seq_ids, core_seq_used, live, "sequences", err);
    }
    if (rc == 0) {
        rc = check_ids(&live->step_ids, core_step_used, live, "steps", err);
    }
    if (rc == 0) {
        rc = check_ids(&live->pin_ids, core_pin_used, live, "pins", err);
    }
    if (rc == 0 && live->num_pools != want->num_pools) {
        rc = core_violated(err, "%u pools counted, %u exist", live->num_pools, want->num_pools);
    }
    for (uint32_t i = 0; rc == 0 && i < live->limits.max_pools; i++) {
        if (live->t.pools[i].state != RECORD_LIVE) {
            continue;
        }
        const struct pool_live *a = &live->pools[i];
        const struct pool_live *b = &want->pools[i];
        if (a->seqs != b->seqs) {
            return core_violated(err, "pool %u counts %u sequences, has %u", i, a->seqs, b->seqs);
        }
        for (uint32_t r = 0; r < a->rows.fresh; r++) {
            if (a->row_seqs[r] != b->row_seqs[r]) {
                return core_violated(err, "row %u of pool %u has another owner", r, i);
            }
        }
        rc = check_ids(&a->rows, core_row_used, b, "rows", err);
    }
    return rc;
}

// --- chains -----------------------------------------------------------------------------------

// Walks a session's chain of sequences; *ret_busy grows by their pins.
static int check_seq_chain(const struct core *live, uint32_t session, uint64_t *ret_busy,
                           struct err *err) {
    const struct session_live *s = &live->sessions[session];
    uint32_t prev = LAYOUT_NONE;
    uint32_t n = 0;
    for (uint32_t i = s->first_seq; i != LAYOUT_NONE; i = live->seqs[i].chain.next) {
        if (i >= live->limits.max_seqs || live->t.seqs[i].state != RECORD_LIVE ||
            live->t.seqs[i].session != session || live->seqs[i].chain.prev != prev ||
            n++ == s->seqs) {
            return core_violated(err, "chain of sequences of session %u at %u", session, i);
        }
        *ret_busy += live->seqs[i].pins;
        prev = i;
    }
    return n == s->seqs
               ? 0
               : core_violated(err, "session %u counts %u sequences, has %u", session, s->seqs, n);
}

static int check_step_chain(const struct core *live, uint32_t session, uint64_t *ret_busy,
                            struct err *err) {
    const struct session_live *s = &live->sessions[session];
    uint32_t prev = LAYOUT_NONE;
    uint32_t n = 0;
    for (uint32_t i = s->first_step; i != LAYOUT_NONE; i = live->steps[i].chain.next) {
        if (i >= live->limits.max_steps || live->t.steps[i].state != RECORD_LIVE ||
            live->t.steps[i].session != session || live->steps[i].chain.prev != prev ||
            core_open_step(live, session, live->t.steps[i].id) != i || n++ == s->steps) {
            return core_violated(err, "chain of steps of session %u at %u", session, i);
        }
        *ret_busy += live->steps[i].holds;
        prev = i;
    }
    return n == s->steps
               ? 0
               : core_violated(err, "session %u counts %u steps, has %u", session, s->steps, n);
}

static int compare_chains(const struct core *live, const struct core *want, struct err *err) {
    for (uint32_t i = 0; i < live->session_ids.fresh; i++) {
        const struct session_live *a = &live->sessions[i];
        const struct session_live *b = &want->sessions[i];
        if (a->seqs != b->seqs || a->steps != b->steps) {
            return core_violated(err, "session %u counts %u sequences and %u steps, has %u and %u",
                                 i, a->seqs, a->steps, b->seqs, b->steps);
        }
        uint64_t busy = 0;
        int rc = check_seq_chain(live, i, &busy, err);
        if (rc == 0) {
            rc = check_step_chain(live, i, &busy, err);
        }
        if (rc == 0 && busy != a->busy) {
            rc = core_violated(err, "session %u: the sum of pins and holds is wrong", i);
        }
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

// ----------------------------------------------------------------------------------------------

static int attach_again(const struct core *c, struct core **ret, struct err *err) {
    struct err why = {0};
    if (core_attach(c->block, c->block_size, ret, &why) != 0) {
        return core_violated(err, "%s", why.text);
    }
    return 0;
}

int core_rebuild_compare(const struct core *c, struct err *err) {
    struct core *want = NULL;
    int rc = attach_again(c, &want, err);
    if (rc == 0) {
        rc = compare_pages(c, want, err);
        core_close(want);
    }
    return rc;
}

int core_check(const struct core *c, struct err *err) {
    struct core *want = NULL;
    int rc = attach_again(c, &want, err);
    if (rc != 0) {
        return rc;
    }
    rc = compare_pages(c, want, err);
    if (rc == 0) {
        rc = core_compare_cache(c, want, err);
    }
    if (rc == 0) {
        rc = compare_slots(c, want, err);
    }
    if (rc == 0) {
        rc = compare_chains(c, want, err);
    }
    core_close(want);
    return rc;
}
