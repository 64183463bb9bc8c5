// SPDX-License-Identifier: Apache-2.0
// batch.c: batches without a step: attention alone over committed tokens, and the pins that keep
// its sequences from being freed or truncated while it runs.
#include "daemon/core/state.h"

#include <inttypes.h>

int core_batch_make(struct core *c, uint64_t session_handle, uint64_t pool_handle, uint32_t n,
                    const struct core_item *items, struct core_batch *ret, struct err *err) {
    uint32_t session = 0;
    uint32_t pool = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    if (n == 0) {
        return err_set(err, KVPOOL_E_INVAL, "the batch is empty");
    }
    if (n > c->limits.max_batch) {
        return err_set(err, KVPOOL_E_TOOBIG, "the batch has %u sequences, the limit is %u", n,
                       c->limits.max_batch);
    }
    rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc != 0) {
        return rc;
    }
    uint64_t stamp = ++c->stamp;
    uint64_t tokens = 0;
    uint32_t max_q_len = 0;
    c->qo_indptr[0] = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seq = 0;
        rc = core_batch_seq(c, session, pool, items[i].seq, stamp, &seq, err);
        if (rc != 0) {
            return rc;
        }
        const struct seq_rec *rec = &c->t.seqs[seq];
        tokens += items[i].tokens;
        if (tokens > CORE_MAX_TOKENS) {
            return err_set(err, KVPOOL_E_TOOBIG, "the batch has more than %u query tokens",
                           CORE_MAX_TOKENS);
        }
        max_q_len = items[i].tokens > max_q_len ? items[i].tokens : max_q_len;
        c->rows[i] = rec->row;
        c->kv_len[i] = rec->length;
        c->qo_indptr[i + 1] = (uint32_t)tokens;
    }
    *ret = (struct core_batch){
        .pool = pool_handle,
        .n = n,
        .tokens = (uint32_t)tokens,
        .max_q_len = max_q_len,
        .rows = c->rows,
        .kv_len = c->kv_len,
        .qo_indptr = c->qo_indptr,
    };
    return 0;
}

int core_seq_pin(struct core *c, uint64_t session_handle, uint32_t n, const struct core_item *items,
                 struct err *err) {
    uint32_t session = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        uint32_t seq = 0;
        rc = core_find_seq(c, session, items[i].seq, &seq, err);
    }
    if (rc != 0) {
        return rc;
    }
    for (uint32_t i = 0; i < n; i++) {
        c->seqs[handle_index(items[i].seq)].pins++;
    }
    c->sessions[session].busy += n;
    return 0;
}

void core_seq_unpin(struct core *c, uint32_t n, const struct core_item *items) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t seq = handle_index(items[i].seq);
        bool pinned = seq < c->limits.max_seqs && c->t.seqs[seq].state == RECORD_LIVE &&
                      core_seq_handle(c, seq) == items[i].seq && c->seqs[seq].pins > 0;
        assert(pinned); // it could not be freed meanwhile
        if (pinned) {
            c->seqs[seq].pins--;
            c->sessions[c->t.seqs[seq].session].busy--;
        }
    }
}
