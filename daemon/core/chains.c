// SPDX-License-Identifier: Apache-2.0
// chains.c: who owns what: the chains of a session's sequences and open steps, and the hash that
// finds an open step by (session, id). See state.h.
#include "daemon/core/state.h"

void core_link_seq(struct core *c, uint32_t seq) {
    struct session_live *session = &c->sessions[c->t.seqs[seq].session];
    uint32_t head = session->first_seq;
    c->seqs[seq].chain = (struct chain){LAYOUT_NONE, head};
    if (head != LAYOUT_NONE) {
        c->seqs[head].chain.prev = seq;
    }
    session->first_seq = seq;
    session->seqs++;
}

void core_unlink_seq(struct core *c, uint32_t seq) {
    struct session_live *session = &c->sessions[c->t.seqs[seq].session];
    struct chain at = c->seqs[seq].chain;
    if (at.prev != LAYOUT_NONE) {
        c->seqs[at.prev].chain.next = at.next;
    } else {
        session->first_seq = at.next;
    }
    if (at.next != LAYOUT_NONE) {
        c->seqs[at.next].chain.prev = at.prev;
    }
    session->seqs--;
}

static uint32_t *bucket_of(const struct core *c, uint32_t session, uint64_t id) {
    return &c->buckets[handle_mix(id + ((uint64_t)session << 48)) & c->bucket_mask];
}

void core_link_step(struct core *c, uint32_t step) {
    const struct step_rec *rec = &c->t.steps[step];
    struct session_live *session = &c->sessions[rec->session];
    uint32_t head = session->first_step;
    uint32_t *bucket = bucket_of(c, rec->session, rec->id);
    c->steps[step] = (struct step_live){.chain = {LAYOUT_NONE, head}, .bucket_next = *bucket};
    *bucket = step;
    if (head != LAYOUT_NONE) {
        c->steps[head].chain.prev = step;
    }
    session->first_step = step;
    session->steps++;
}

void core_unlink_step(struct core *c, uint32_t step) {
    const struct step_rec *rec = &c->t.steps[step];
    struct session_live *session = &c->sessions[rec->session];
    struct chain at = c->steps[step].chain;
    if (at.prev != LAYOUT_NONE) {
        c->steps[at.prev].chain.next = at.next;
    } else {
        session->first_step = at.next;
    }
    if (at.next != LAYOUT_NONE) {
        c->steps[at.next].chain.prev = at.prev;
    }
    session->steps--;
    uint32_t *link = bucket_of(c, rec->session, rec->id);
    while (*link != step) {
        assert(*link != LAYOUT_NONE);
        link = &c->steps[*link].bucket_next;
    }
    *link = c->steps[step].bucket_next;
}

uint32_t core_open_step(const struct core *c, uint32_t session, uint64_t id) {
    uint32_t step = *bucket_of(c, session, id);
    while (step != LAYOUT_NONE &&
           (c->t.steps[step].id != id || c->t.steps[step].session != session)) {
        step = c->steps[step].bucket_next;
    }
    return step;
}

uint32_t core_finished_step(const struct core *c, uint32_t session, uint64_t id) {
    const uint64_t *ids = c->t.sessions[session].finished_ids;
    for (uint32_t i = 0; i < CORE_FINISHED; i++) {
        if (ids[i] == id) {
            return i;
        }
    }
    return LAYOUT_NONE;
}
