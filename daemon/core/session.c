// SPDX-License-Identifier: Apache-2.0
// session.c: who may use what: one session a client process.
#include "daemon/core/state.h"

#include <inttypes.h>
#include <string.h>

int core_find_session(const struct core *c, uint64_t handle, uint32_t *ret, struct err *err) {
    uint32_t session = handle_index(handle);
    if (session >= c->limits.max_sessions || c->t.sessions[session].state != RECORD_LIVE ||
        c->t.sessions[session].generation != handle_generation(handle)) {
        return err_set(err, KVPOOL_E_STALE, "session 0x%" PRIx64 " does not exist", handle);
    }
    *ret = session;
    return 0;
}

int core_session_open(struct core *c, uint32_t pid, uint32_t uid, const char *name,
                      const uint8_t token[CORE_TOKEN_SIZE], uint64_t *ret_session,
                      struct err *err) {
    if (ids_free(&c->session_ids) == 0) {
        return err_set(err, KVPOOL_E_LIMIT, "all %u sessions are open (max_sessions)",
                       c->limits.max_sessions);
    }
    uint32_t session = ids_take(&c->session_ids);
    struct session_rec *rec = &c->t.sessions[session];
    uint32_t generation = core_generation(c, rec->generation, HANDLE_SESSION);
    *rec = (struct session_rec){
        .state = RECORD_LIVE, .generation = generation, .pid = pid, .uid = uid};
    size_t len = name == NULL ? 0 : strnlen(name, sizeof rec->name - 1);
    if (len > 0) {
        memcpy(rec->name, name, len);
    }
    memcpy(rec->token, token, sizeof rec->token);
    *ret_session = core_session_handle(c, session);
    return 0;
}

int core_session_close(struct core *c, uint64_t handle, struct err *err) {
    uint32_t session = 0;
    int rc = core_find_session(c, handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    struct session_live *live = &c->sessions[session];
    if (live->busy > 0) {
        return err_set(err, KVPOOL_E_BUSY, "session 0x%" PRIx64 " has work in flight", handle);
    }
    while (live->first_step != LAYOUT_NONE) {
        core_drop_step(c, live->first_step, NULL);
    }
    while (live->first_seq != LAYOUT_NONE) {
        core_release_seq(c, live->first_seq, CORE_KEEP);
    }
    struct session_rec *rec = &c->t.sessions[session];
    uint32_t generation = handle_next(rec->generation);
    *rec = (struct session_rec){.state = RECORD_FREE, .generation = generation};
    ids_give(&c->session_ids, session);
    return 0;
}

int core_session_stat(const struct core *c, uint64_t handle, struct core_session_info *ret,
                      struct err *err) {
    uint32_t session = 0;
    int rc = core_find_session(c, handle, &session, err);
    if (rc != 0) {
        return rc;
    }
    const struct session_rec *rec = &c->t.sessions[session];
    struct core_session_info info = {
        .session = handle,
        .pid = rec->pid,
        .uid = rec->uid,
        .seqs = c->sessions[session].seqs,
        .steps = c->sessions[session].steps,
    };
    memcpy(info.name, rec->name, sizeof info.name);
    memcpy(info.token, rec->token, sizeof info.token);
    *ret = info;
    return 0;
}
