// SPDX-License-Identifier: Apache-2.0
// step.c: steps: the transaction on a batch of sequences.
//
//               begin                 commit
//     (unknown) -----> open ---------------> finished: committed
//                       |  abort, session close
//                       +------------------> finished: aborted      (forgotten with its session)
//     Finished ids are remembered in the session's ring of CORE_FINISHED; older ones are unknown
//     again.
//
// What begin does to one sequence (page_size 4, length 6, 4 new tokens, last page b shared or
// sealed):
//     row before:   | a | b |            new pages needed: 1 for b's copy, 1 beyond
//     row in step:  | a | c | d |        old page b, copy b -> c, delta row[1..3)
//     committed:    | a | c | d |        b loses a reference
//     aborted:      | a | b |            c, d are free; delta row[1..2)
#include "daemon/core/state.h"

#include <inttypes.h>
#include <string.h>

static struct core_step_info info_of(const struct core *c, const struct step_rec *rec,
                                     uint32_t pages) {
    return (struct core_step_info){
        .step = rec->id,
        .pool = core_pool_handle(c, rec->pool),
        .tokens = rec->tokens,
        .pages = pages,
    };
}

// Where an id stands: 0: open, *ret is its slot; ABORTED or STATE (committed): *ret is its place in
// the session's ring; else NOTFOUND.
static int look_up(const struct core *c, uint32_t session, uint64_t id, uint32_t *ret) {
    uint32_t step = core_open_step(c, session, id);
    if (step != LAYOUT_NONE) {
        *ret = step;
        return 0;
    }
    uint32_t place = core_finished_step(c, session, id);
    if (id == 0 || place == LAYOUT_NONE) {
        return KVPOOL_E_NOTFOUND;
    }
    *ret = place;
    bool aborted = c->t.sessions[session].finished[place].outcome == OUTCOME_ABORTED;
    return aborted ? KVPOOL_E_ABORTED : KVPOOL_E_STATE;
}

static int not_open(struct err *err, int status, uint64_t id) {
    const char *text = status == KVPOOL_E_ABORTED ? "was aborted"
                       : status == KVPOOL_E_STATE ? "is already committed"
                                                  : "does not exist";
    return err_set(err, status, "step %" PRIu64 " %s", id, text);
}

// The slot of an open step, or why there is none.
static int find_open(const struct core *c, uint64_t session_handle, uint64_t id, uint32_t *ret,
                     struct err *err) {
    uint32_t session = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    uint32_t at = 0;
    rc = look_up(c, session, id, &at);
    if (rc != 0) {
        return not_open(err, rc, id);
    }
    *ret = at;
    return 0;
}

static int check_not_held(const struct core *c, uint32_t step, struct err *err) {
    if (c->steps[step].holds > 0) {
        return err_set(err, KVPOOL_E_BUSY, "step %" PRIu64 " has %u requests in flight",
                       c->t.steps[step].id, c->steps[step].holds);
    }
    return 0;
}

static void remember(struct core *c, uint32_t step, enum outcome outcome) {
    const struct step_rec *rec = &c->t.steps[step];
    struct session_rec *session = &c->t.sessions[rec->session];
    uint32_t slot = session->next_finished;
    session->finished_ids[slot] = rec->id;
    session->finished[slot] = (struct finished_rec){
        .pool = core_pool_handle(c, rec->pool),
        .tokens = rec->tokens,
        .pages = rec->added_pages,
        .outcome = (uint32_t)outcome,
    };
    session->next_finished = (slot + 1) % CORE_FINISHED;
}

static void free_slot(struct core *c, uint32_t step) {
    core_unlink_step(c, step);
    c->t.steps[step].state = RECORD_FREE;
    ids_give(&c->step_ids, step);
}

// --- begin ------------------------------------------------------------------------------------

// Where the id of the token at `position` of item i stands, and (of n tokens from there) those in
// the same page behind it.
static uint32_t *ids_at(const struct core *c, uint32_t step, uint32_t i, uint32_t position,
                        uint32_t n, uint32_t *ret_run) {
    const struct pool_live *live = &c->pools[c->t.steps[step].pool];
    const uint32_t *row = pool_row(live, tables_items(&c->t, step).rows[i]);
    uint32_t in_page = position & live->page_mask;
    uint32_t room = live->page_mask + 1 - in_page;
    *ret_run = n < room ? n : room;
    return pool_tokens(live, row[position >> live->page_shift]) + in_page;
}

// Are these the ids that the begin of item i brought?
static bool same_ids(const struct core *c, uint32_t step, uint32_t i, const uint32_t *ids) {
    const struct step_items items = tables_items(&c->t, step);
    uint32_t q_len = items.qo_indptr[i + 1] - items.qo_indptr[i];
    uint32_t run = 0;
    for (uint32_t k = 0; k < q_len; k += run) {
        const uint32_t *have = ids_at(c, step, i, items.kv_len[i] - q_len + k, q_len - k, &run);
        if (memcmp(have, ids + k, run * sizeof *ids) != 0) {
            return false;
        }
    }
    return true;
}

// A begin whose id is open: the same batch is a repeat.
static int repeat_begin(struct core *c, uint32_t step, uint64_t pool, uint32_t n,
                        const struct core_item *items, const uint32_t *ids,
                        struct core_step_info *ret, struct core_effects *ret_effects,
                        struct err *err) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items have = tables_items(&c->t, step);
    bool same = n == rec->n && pool == core_pool_handle(c, rec->pool) &&
                (ids != NULL) == (rec->ids_known != 0);
    for (uint32_t i = 0; same && i < n; i++) {
        same = items[i].seq == core_seq_handle(c, have.seqs[i]) &&
               items[i].tokens == have.qo_indptr[i + 1] - have.qo_indptr[i] &&
               (ids == NULL || same_ids(c, step, i, ids + have.qo_indptr[i]));
    }
    if (!same) {
        return err_set(err, KVPOOL_E_EXISTS, "step %" PRIu64 " is open with another batch",
                       rec->id);
    }
    *ret = info_of(c, rec, rec->reserved_pages);
    ret->repeated = true;
    *ret_effects = (struct core_effects){.pool = pool, .deltas = c->deltas, .copies = c->copies};
    return 0;
}

// Everything that can be wrong with the sizes.
static int check_begin(const struct core *c, uint32_t session, uint32_t n, struct err *err) {
    if (n == 0) {
        return err_set(err, KVPOOL_E_INVAL, "the batch is empty");
    }
    if (n > c->limits.max_batch) {
        return err_set(err, KVPOOL_E_TOOBIG, "the batch has %u sequences, the limit is %u", n,
                       c->limits.max_batch);
    }
    if (c->sessions[session].steps >= c->limits.max_session_steps) {
        return err_set(err, KVPOOL_E_LIMIT, "the session has %u open steps (max_session_steps)",
                       c->sessions[session].steps);
    }
    if (ids_free(&c->step_ids) == 0) {
        return err_set(err, KVPOOL_E_LIMIT, "%u steps are open (max_steps)", c->limits.max_steps);
    }
    return 0;
}

// Checks the sequences and writes the batch into a free step's record and items, which nobody
// sees yet.
static int plan(struct core *c, uint32_t session, uint32_t pool, uint32_t n,
                const struct core_item *items, uint32_t step, struct err *err) {
    const struct pool_live *live = &c->pools[pool];
    const struct step_items plan = tables_items(&c->t, step);
    uint32_t max_seq_len = c->t.pools[pool].max_seq_len;
    uint64_t stamp = ++c->stamp;
    uint64_t tokens = 0;
    uint64_t copied = 0;
    uint64_t added = 0;
    uint32_t max_q_len = 0;
    uint32_t ns = 0;
    plan.qo_indptr[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seq = 0;
        int rc = core_batch_seq(c, session, pool, items[i].seq, stamp, &seq, err);
        if (rc != 0) {
            return rc;
        }
        const struct seq_rec *rec = &c->t.seqs[seq];
        uint32_t q_len = items[i].tokens;
        if (i > 0 && rec->ns != ns) {
            return err_set(err, KVPOOL_E_INVAL, "the batch has sequences of two namespaces");
        }
        ns = rec->ns;
        if (q_len > max_seq_len - rec->length) {
            return err_set(err, KVPOOL_E_INVAL,
                           "sequence 0x%" PRIx64 " would have %" PRIu64
                           " tokens, the limit is %u (max_seq_len)",
                           items[i].seq, (uint64_t)rec->length + q_len, max_seq_len);
        }
        tokens += q_len;
        if (tokens > CORE_MAX_TOKENS) {
            return err_set(err, KVPOOL_E_TOOBIG, "the batch has more than %u tokens",
                           CORE_MAX_TOKENS);
        }
        uint32_t kv_len = rec->length + q_len;
        uint32_t pages = pool_pages(live, rec->length);
        uint32_t old_page = LAYOUT_NONE;
        if (q_len > 0 && (rec->length & live->page_mask) != 0) {
            uint32_t last = pool_row(live, rec->row)[pages - 1];
            if (live->pages.refs[last] > 1 || pages_is_sealed(&live->pages, last)) {
                old_page = last;
                copied++;
            }
        }
        added += pool_pages(live, kv_len) - pages;
        max_q_len = q_len > max_q_len ? q_len : max_q_len;
        plan.seqs[i] = seq;
        plan.rows[i] = rec->row;
        plan.kv_len[i] = kv_len;
        plan.old_pages[i] = old_page;
        plan.qo_indptr[i + 1] = (uint32_t)tokens;
    }
    uint64_t room = core_room(c, pool, ns);
    if (added + copied > room) {
        c->pools[pool].ns[ns].counters.refused++;
        return err_set_detail(err, KVPOOL_E_NOSPACE, added + copied - room,
                              "the step needs %" PRIu64 " pages, pool \"%s\" has %" PRIu64
                              " free for namespace \"%s\"",
                              added + copied, c->t.pools[pool].name, room, live->ns_recs[ns].name);
    }
    struct step_rec *rec = &c->t.steps[step];
    *rec = (struct step_rec){
        .state = RECORD_FREE,
        .session = session,
        .pool = pool,
        .n = n,
        .tokens = (uint32_t)tokens,
        .max_q_len = max_q_len,
        .reserved_pages = (uint32_t)(added + copied),
        .added_pages = (uint32_t)added,
        .ns = ns,
    };
    return 0;
}

// Writes the ids of the new tokens of item i, and with a copied page those before them.
static void put_ids(struct core *c, uint32_t step, uint32_t i, const uint32_t *ids) {
    const struct step_items items = tables_items(&c->t, step);
    uint32_t q_len = items.qo_indptr[i + 1] - items.qo_indptr[i];
    uint32_t length = items.kv_len[i] - q_len;
    uint32_t run = 0;
    if (items.old_pages[i] != LAYOUT_NONE) {
        const struct pool_live *live = &c->pools[c->t.steps[step].pool];
        uint32_t kept = length & live->page_mask;
        memcpy(ids_at(c, step, i, length - kept, kept, &run), pool_tokens(live, items.old_pages[i]),
               kept * sizeof *ids);
    }
    for (uint32_t k = 0; ids != NULL && k < q_len; k += run) {
        uint32_t *at = ids_at(c, step, i, length + k, q_len - k, &run);
        memcpy(at, ids + k, run * sizeof *ids);
    }
}

// Carries a plan out; cannot fail.
static void reserve(struct core *c, uint32_t step, const uint32_t *ids,
                    struct core_effects *ret_effects) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t num_deltas = 0;
    uint32_t num_copies = 0;
    core_reserve(c, rec->pool, rec->ns, rec->reserved_pages);
    for (uint32_t i = 0; i < rec->n; i++) {
        struct seq_rec *seq = &c->t.seqs[items.seqs[i]];
        seq->step = step;
        bool copy = items.old_pages[i] != LAYOUT_NONE;
        uint32_t first = pool_pages(live, seq->length) - copy;
        uint32_t count = pool_pages(live, items.kv_len[i]) - first;
        if (count > 0) {
            uint32_t *row = pool_row(live, items.rows[i]);
            pages_take_n(&live->pages, count, row + first);
            c->deltas[num_deltas++] = (struct core_delta){items.rows[i], first, count};
            if (copy) {
                c->copies[num_copies++] = (struct core_copy){items.old_pages[i], row[first]};
            }
        }
        put_ids(c, step, i, ids == NULL ? NULL : ids + items.qo_indptr[i]);
    }
    *ret_effects = (struct core_effects){
        .pool = core_pool_handle(c, rec->pool),
        .deltas = c->deltas,
        .copies = c->copies,
        .num_deltas = num_deltas,
        .num_copies = num_copies,
    };
}

int core_step_begin(struct core *c, uint64_t session_handle, uint64_t id, uint64_t pool_handle,
                    uint32_t n, const struct core_item *items, const uint32_t *ids,
                    struct core_step_info *ret, struct core_effects *ret_effects, struct err *err) {
    uint32_t session = 0;
    uint32_t pool = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    if (id == 0) {
        return err_set(err, KVPOOL_E_INVAL, "step id 0 is not valid");
    }
    uint32_t at = 0;
    rc = look_up(c, session, id, &at);
    if (rc == 0) {
        return repeat_begin(c, at, pool_handle, n, items, ids, ret, ret_effects, err);
    }
    if (rc != KVPOOL_E_NOTFOUND) {
        return err_set(err, KVPOOL_E_STATE, "step %" PRIu64 " is already %s", id,
                       rc == KVPOOL_E_ABORTED ? "aborted" : "committed");
    }
    rc = check_begin(c, session, n, err);
    if (rc == 0) {
        rc = core_find_pool(c, pool_handle, &pool, err);
    }
    if (rc != 0) {
        return rc;
    }
    uint32_t step = ids_peek(&c->step_ids);
    rc = plan(c, session, pool, n, items, step, err);
    if (rc != 0) {
        return rc;
    }
    ids_take(&c->step_ids);
    struct step_rec *rec = &c->t.steps[step];
    rec->id = id;
    rec->ids_known = ids != NULL;
    rec->state = RECORD_LIVE;
    core_link_step(c, step);
    reserve(c, step, ids, ret_effects);
    *ret = info_of(c, rec, rec->reserved_pages);
    return 0;
}

// --- while open -------------------------------------------------------------------------------

int core_step_batch(const struct core *c, uint64_t session, uint64_t id, struct core_batch *ret,
                    struct err *err) {
    uint32_t step = 0;
    int rc = find_open(c, session, id, &step, err);
    if (rc != 0) {
        return rc;
    }
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    *ret = (struct core_batch){
        .pool = core_pool_handle(c, rec->pool),
        .n = rec->n,
        .tokens = rec->tokens,
        .max_q_len = rec->max_q_len,
        .rows = items.rows,
        .kv_len = items.kv_len,
        .qo_indptr = items.qo_indptr,
    };
    return 0;
}

int core_step_hold(struct core *c, uint64_t session, uint64_t id, struct err *err) {
    uint32_t step = 0;
    int rc = find_open(c, session, id, &step, err);
    if (rc == 0) {
        c->steps[step].holds++;
        c->sessions[c->t.steps[step].session].busy++;
    }
    return rc;
}

int core_step_release(struct core *c, uint64_t session, uint64_t id, struct err *err) {
    uint32_t step = 0;
    int rc = find_open(c, session, id, &step, err);
    if (rc != 0) {
        return rc;
    }
    if (c->steps[step].holds == 0) {
        return err_set(err, KVPOOL_E_STATE, "step %" PRIu64 " is not held", id);
    }
    c->steps[step].holds--;
    c->sessions[c->t.steps[step].session].busy--;
    return 0;
}

int core_step_mark(struct core *c, uint64_t session, uint64_t id, uint32_t layer, bool written,
                   struct err *err) {
    uint32_t step = 0;
    int rc = find_open(c, session, id, &step, err);
    if (rc != 0) {
        return rc;
    }
    struct step_rec *rec = &c->t.steps[step];
    uint32_t layers = c->t.pools[rec->pool].layers;
    if (layer >= layers) {
        return err_set(err, KVPOOL_E_INVAL, "layer %u is outside 0..%u", layer, layers - 1);
    }
    uint64_t bit = UINT64_C(1) << (layer % 64);
    if (written) {
        rec->written[layer / 64] |= bit;
    } else {
        rec->written[layer / 64] &= ~bit;
    }
    return 0;
}

// --- commit and abort -------------------------------------------------------------------------

static int check_written(const struct core *c, const struct step_rec *rec, struct err *err) {
    uint32_t layers = c->t.pools[rec->pool].layers;
    for (uint32_t first = 0; rec->tokens > 0 && first < layers; first += 64) {
        uint64_t missing = ~rec->written[first / 64];
        uint32_t layer = first + (missing != 0 ? (uint32_t)__builtin_ctzll(missing) : 64);
        if (missing != 0 && layer < layers) {
            return err_set(err, KVPOOL_E_STATE, "layer %u of step %" PRIu64 " was not appended to",
                           layer, rec->id);
        }
    }
    return 0;
}

// Lets the sequences of a step advance. Returns how many deltas there are.
static uint32_t finish_items(struct core *c, uint32_t step, struct core_step_info *info) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    uint32_t num_deltas = 0;
    for (uint32_t i = 0; i < rec->n; i++) {
        struct seq_rec *seq = &c->t.seqs[items.seqs[i]];
        uint32_t tracked = seq->tracked;
        if (rec->ids_known != 0 && tracked == seq->length) {
            seq->tracked = items.kv_len[i];
        }
        seq->length = items.kv_len[i];
        seq->step = LAYOUT_NONE;
        if (items.old_pages[i] != LAYOUT_NONE) {
            const struct release by = {.pool = rec->pool, .ns = rec->ns, .priority = seq->priority};
            core_unref(c, &by, items.old_pages[i]);
        }
        struct core_delta delta = {.row = items.rows[i]};
        core_seal(c, items.seqs[i], tracked, &delta.first, &delta.count, info);
        if (delta.count > 0) {
            c->deltas[num_deltas++] = delta;
        }
    }
    return num_deltas;
}

int core_step_commit(struct core *c, uint64_t session_handle, uint64_t id,
                     struct core_step_info *ret, struct core_effects *ret_effects,
                     struct err *err) {
    uint32_t session = 0;
    uint32_t at = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    rc = look_up(c, session, id, &at);
    if (rc == KVPOOL_E_STATE) { // committed before
        const struct finished_rec *finished = &c->t.sessions[session].finished[at];
        *ret_effects =
            (struct core_effects){.pool = finished->pool, .deltas = c->deltas, .copies = c->copies};
        *ret = (struct core_step_info){
            .step = id,
            .pool = finished->pool,
            .tokens = finished->tokens,
            .pages = finished->pages,
            .repeated = true,
        };
        return 0;
    }
    if (rc != 0) {
        return not_open(err, rc, id);
    }
    uint32_t step = at;
    const struct step_rec *rec = &c->t.steps[step];
    rc = check_not_held(c, step, err);
    if (rc == 0) {
        rc = check_written(c, rec, err);
    }
    if (rc != 0) {
        return rc;
    }
    struct core_step_info info = info_of(c, rec, rec->added_pages);
    const struct core_effects effects = {
        .pool = info.pool,
        .deltas = c->deltas,
        .copies = c->copies,
        .num_deltas = finish_items(c, step, &info),
    };
    *ret = info;
    *ret_effects = effects;
    remember(c, step, OUTCOME_COMMITTED);
    free_slot(c, step);
    return 0;
}

uint32_t core_drop_step(struct core *c, uint32_t step, struct core_delta *deltas) {
    const struct step_rec *rec = &c->t.steps[step];
    const struct step_items items = tables_items(&c->t, step);
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t num_deltas = 0;
    const struct release by = {
        .pool = rec->pool, .ns = rec->ns, .priority = SPACE_NO_CLASS}; // none of them is sealed
    for (uint32_t i = 0; i < rec->n; i++) {
        struct seq_rec *seq = &c->t.seqs[items.seqs[i]];
        uint32_t *row = pool_row(live, items.rows[i]);
        bool copy = items.old_pages[i] != LAYOUT_NONE;
        uint32_t first = pool_pages(live, seq->length) - copy;
        core_unref_n(c, &by, pool_pages(live, items.kv_len[i]) - first, row + first);
        if (copy) {
            row[first] = items.old_pages[i];
            if (deltas != NULL) {
                deltas[num_deltas++] = (struct core_delta){items.rows[i], first, 1};
            }
        }
        seq->step = LAYOUT_NONE;
    }
    free_slot(c, step);
    return num_deltas;
}

int core_step_abort(struct core *c, uint64_t session_handle, uint64_t id,
                    struct core_effects *ret_effects, struct err *err) {
    uint32_t session = 0;
    uint32_t at = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    struct core_effects effects = {.deltas = c->deltas, .copies = c->copies};
    rc = look_up(c, session, id, &at);
    if (rc == KVPOOL_E_ABORTED) { // aborted before
        effects.pool = c->t.sessions[session].finished[at].pool;
        *ret_effects = effects;
        return 0;
    }
    if (rc != 0) {
        return not_open(err, rc, id);
    }
    rc = check_not_held(c, at, err);
    if (rc != 0) {
        return rc;
    }
    effects.pool = core_pool_handle(c, c->t.steps[at].pool);
    remember(c, at, OUTCOME_ABORTED);
    effects.num_deltas = core_drop_step(c, at, c->deltas);
    *ret_effects = effects;
    return 0;
}
