// SPDX-License-Identifier: Apache-2.0
// sim.c: see sim.h.
#include "sim.h"

#include "model.h"

#include <string.h>

struct job { // work in flight: holds its step, or pins its sequences
    uint64_t session, step;
    uint32_t layer;
    bool live, append;
    struct core_batch batch;
    struct core_item items[MODEL_BATCH];
    uint32_t rows[MODEL_BATCH], kv_len[MODEL_BATCH], qo_indptr[MODEL_BATCH + 1];
};

struct sim sim;
static struct job jobs[SIM_JOBS];

void sim_reset(struct core *core) {
    memset(&sim, 0, sizeof sim);
    memset(jobs, 0, sizeof jobs);
    sim.core = core;
}

static void saw(struct seen *s, uint64_t handle) {
    s->handles[s->next++ % SIM_SEEN] = handle;
}

// --- work in flight ---------------------------------------------------------------------------

static bool in_flight(uint64_t session, uint64_t step) { // step 0: any
    for (size_t i = 0; i < SIM_JOBS; i++)
        if (jobs[i].live && jobs[i].session == session && (step == 0 || jobs[i].step == step))
            return true;
    return false;
}

static void complete(struct job *j, bool ok) {
    if (!j->live)
        return;
    j->live = false;
    if (j->step == 0) {
        for (uint32_t i = 0; i < j->batch.n; i++) {
            struct core_seq_info info;
            ENSURE(core_seq_stat(sim.core, j->session, j->items[i].seq, &info, NULL) == 0);
            ENSURE(info.length >= j->kv_len[i] && info.row == j->rows[i]);
        }
        core_seq_unpin(sim.core, j->batch.n, j->items);
        return;
    }
    if (j->append) {
        model_layer_done(j->session, j->step, j->layer, ok, &j->batch);
        ENSURE(core_step_mark(sim.core, j->session, j->step, j->layer, ok, NULL) == 0);
    }
    ENSURE(core_step_release(sim.core, j->session, j->step, NULL) == 0);
}

void sim_complete_all(uint64_t session) {
    for (size_t i = 0; i < SIM_JOBS; i++)
        if (session == 0 || jobs[i].session == session)
            complete(&jobs[i], true);
}

void sim_complete(size_t job, bool ok) {
    complete(&jobs[job % SIM_JOBS], ok);
}

static struct job *new_job(uint64_t session, const struct core_batch *batch) {
    struct job *j = jobs;
    while (j < jobs + SIM_JOBS && j->live)
        j++;
    ENSURE(j < jobs + SIM_JOBS && batch->n <= MODEL_BATCH);
    *j = (struct job){.live = true, .session = session, .batch = *batch};
    memcpy(j->rows, batch->rows, batch->n * sizeof(uint32_t));
    memcpy(j->kv_len, batch->kv_len, batch->n * sizeof(uint32_t));
    memcpy(j->qo_indptr, batch->qo_indptr, (batch->n + 1) * sizeof(uint32_t));
    j->batch.rows = j->rows;
    j->batch.kv_len = j->kv_len;
    j->batch.qo_indptr = j->qo_indptr;
    return j;
}

// --- what the daemon does with a request ------------------------------------------------------

// At most MODEL_BATCH + 1 items: core refuses more by its own limit, which one more shows.
static uint32_t read_items(const struct proto_msg *msg, struct core_item ret[MODEL_BATCH + 1]) {
    uint32_t n = msg->count <= MODEL_BATCH ? msg->count : MODEL_BATCH + 1;
    for (uint32_t i = 0; i < n; i++) {
        struct proto_batch_item item;
        proto_record(msg, i, &item);
        ret[i] = (struct core_item){item.seq, item.tokens};
    }
    return n;
}

// Who a session is: told by its name, as the daemon tells by credentials.
static uint32_t ns_of(uint64_t session) {
    struct core_session_info info;
    return core_session_stat(sim.core, session, &info, NULL) == 0 &&
           strcmp(info.name, SIM_TENANT) == 0;
}

static int session_open(const struct proto_msg *msg, uint64_t *session, struct err *err) {
    const uint8_t token[CORE_TOKEN_SIZE] = {1};
    if (*session != 0)
        return err_set(err, KVPOOL_E_STATE, "has a session");
    return core_session_open(sim.core, 7, 8, msg->body.fd_hello.name, token, session, err);
}

int sim_session_close(uint64_t *session, struct err *err) {
    int rc = core_session_close(sim.core, *session, err);
    if (rc == KVPOOL_E_BUSY) {
        ENSURE(in_flight(*session, 0));
        sim_complete_all(*session);
        rc = core_session_close(sim.core, *session, err);
        ENSURE(rc == 0);
    }
    if (rc == 0) {
        ENSURE(!in_flight(*session, 0));
        model_session_closed(*session);
        *session = 0;
    }
    return rc;
}

static int pool_create(const struct proto_msg *msg, struct err *err) {
    const struct proto_pool_create *b = &msg->body.pool_create;
    struct core_pool_config config = {.layers = b->layers,
                                      .kv_heads = b->kv_heads,
                                      .head_dim = b->head_dim,
                                      .page_size = b->page_size,
                                      .dtype = b->dtype,
                                      .num_pages = b->num_pages,
                                      .max_seqs = b->max_seqs,
                                      .max_seq_len = b->max_seq_len};
    memcpy(config.name, b->name, sizeof config.name);
    config.policy = b->name[0] == 'b' ? CORE_S3FIFO : CORE_LRU;
    int rc = core_pool_config_check(&config, err);
    if (rc != 0)
        return rc;
    if (!model_pool_fits(&config)) // the daemon looks at the memory there is
        return err_set(err, KVPOOL_E_NOMEM, "too large");
    uint64_t pool = 0;
    bool created = false;
    rc = core_pool_create(sim.core, &config, &pool, &created, err);
    if (rc == 0 && created) {
        const struct core_ns_config tenant = {.name = SIM_TENANT,
                                              .reserve = config.num_pages / 4,
                                              .limit = (config.num_pages * 3 + 3) / 4,
                                              .weight = 2};
        uint32_t ns = 0;
        ENSURE(core_ns_set(sim.core, pool, &tenant, &ns, NULL) == 0 && ns == 1);
        model_pool_created(sim.core, pool);
        saw(&sim.pools, pool);
    }
    return rc;
}

static int pool_op(const struct proto_msg *msg, struct err *err) {
    uint64_t pool = msg->body.handle.handle;
    struct core_pool_info info;
    int rc = 0;
    switch (msg->header.op) {
    case PROTO_POOL_OPEN:
        rc = core_pool_find(sim.core, msg->body.name.name, &pool, err);
        if (rc == 0) {
            ENSURE(core_pool_stat(sim.core, pool, &info, err) == 0);
            ENSURE(strcmp(info.config.name, msg->body.name.name) == 0);
        }
        break;
    case PROTO_POOL_DESTROY:
        rc = core_pool_destroy(sim.core, pool, err);
        if (rc == 0)
            model_pool_destroyed(pool);
        break;
    case PROTO_POOL_STAT:
        rc = core_pool_stat(sim.core, pool, &info, err);
        break;
    default: {
        uint32_t cursor = msg->body.list.cursor, last = cursor, n = 0;
        while (core_pool_next(sim.core, &cursor, &info)) {
            ENSURE(cursor > last && ++n <= MODEL_POOLS);
            last = cursor;
        }
        break;
    }
    }
    return rc;
}

static int seq_create(uint64_t session, const struct proto_msg *msg, struct err *err) {
    uint64_t seqs[PROTO_MAX_BATCH];
    bool fork = msg->header.op == PROTO_SEQ_FORK;
    uint32_t n = fork ? msg->body.seq_fork.n : msg->body.seq_create.n;
    struct core_effects effects;
    int rc = fork ? core_seq_fork(sim.core, session, msg->body.seq_fork.seq, n, seqs, &effects, err)
                  : core_seq_create(sim.core, session, msg->body.seq_create.pool, ns_of(session), n,
                                    seqs, err);
    if (rc != 0)
        return rc;
    if (fork)
        model_seqs_forked(sim.core, session, msg->body.seq_fork.seq, n, seqs, &effects);
    else
        model_seqs_created(sim.core, session, n, seqs);
    for (uint32_t i = 0; i < n; i++)
        saw(&sim.seqs, seqs[i]);
    return 0;
}

static int seq_open(uint64_t session, const struct proto_msg *msg, struct err *err) {
    const struct proto_seq_open *b = &msg->body.seq_open;
    uint32_t tokens[SIM_TOKENS];
    ENSURE(msg->num_tokens <= SIM_TOKENS);
    proto_tokens(msg, tokens);
    const struct core_open open = {.ns = ns_of(session),
                                   .priority = b->priority,
                                   .tokens = tokens,
                                   .n = msg->num_tokens,
                                   .extra = b->extra,
                                   .extra_size = b->extra_size,
                                   .only_matched = (b->flags & PROTO_OPEN_MATCHED) != 0};
    uint32_t probed = 0, matched = 0;
    int rc = core_seq_probe(sim.core, b->pool, &open, &probed, err);
    if (rc != 0 || (b->flags & PROTO_OPEN_PROBE) != 0)
        return rc;
    uint64_t seq = 0;
    struct core_effects effects;
    rc = core_seq_open(sim.core, session, b->pool, &open, &seq, &matched, &effects, err);
    if (rc != 0)
        return rc;
    ENSURE(matched <= probed); // there may be no room for all of it
    if (seq == 0) {
        ENSURE(open.only_matched && matched == 0 && effects.num_deltas == 0);
        return 0;
    }
    ENSURE(!open.only_matched || matched > 0);
    model_seq_opened(sim.core, session, seq, &open, matched, &effects);
    saw(&sim.seqs, seq);
    return 0;
}

static int pin_op(uint64_t session, const struct proto_msg *msg, struct err *err) {
    if (msg->header.op == PROTO_PREFIX_UNPIN) {
        const struct proto_prefix_unpin *b = &msg->body.prefix_unpin;
        int rc = core_prefix_unpin(sim.core, b->pool, ns_of(session), b->pin, err);
        if (rc == 0)
            model_unpinned(b->pool, b->pin);
        return rc;
    }
    const struct proto_prefix_pin *b = &msg->body.prefix_pin;
    uint64_t pin = 0, until = sim.now + b->ttl_ms;
    uint32_t tokens = 0;
    if (b->ttl_ms == 0)
        return err_set(err, KVPOOL_E_INVAL, "ttl_ms is 0");
    int rc = core_prefix_pin(sim.core, session, b->seq, b->tokens, until, &pin, &tokens, err);
    if (rc == 0) {
        model_pinned(b->seq, pin, until, tokens);
        saw(&sim.pins, pin);
    }
    return rc;
}

void sim_expire(uint64_t now) {
    sim.now = now;
    model_expired(now, core_pins_expire(sim.core, now));
}

static int cache_clear(uint64_t session, const struct proto_msg *msg, struct err *err) {
    uint64_t pool = msg->body.handle.handle;
    uint32_t ns = ns_of(session), pages = 0;
    struct core_ns_info before, after;
    int rc = core_ns_stat(sim.core, pool, ns, &before, NULL);
    ENSURE(core_cache_clear(sim.core, pool, ns, &pages, err) == rc);
    if (rc == 0) {
        ENSURE(core_ns_stat(sim.core, pool, ns, &after, NULL) == 0);
        ENSURE(before.cached == pages && after.cached == 0 && after.active == before.active);
    }
    return rc;
}

static int seq_op(uint64_t session, const struct proto_msg *msg, struct err *err) {
    struct core_seq_info info;
    uint64_t seqs[PROTO_MAX_BATCH];
    int rc = 0;
    switch (msg->header.op) {
    case PROTO_SEQ_TRUNCATE:
        rc = core_seq_truncate(sim.core, session, msg->body.seq_truncate.seq,
                               msg->body.seq_truncate.length, err);
        if (rc == 0)
            model_seq_truncated(msg->body.seq_truncate.seq, msg->body.seq_truncate.length);
        break;
    case PROTO_SEQ_PRIORITY:
        rc = core_seq_set_priority(sim.core, session, msg->body.seq_priority.seq,
                                   msg->body.seq_priority.priority, err);
        break;
    case PROTO_SEQ_FREE:
    case PROTO_SEQ_RELEASE:
        for (uint32_t i = 0; i < msg->count; i++)
            proto_record(msg, i, &seqs[i]);
        rc = core_seq_free(sim.core, session, msg->count, seqs,
                           msg->header.op == PROTO_SEQ_RELEASE
                               ? (enum core_hint)msg->body.seq_release.hint
                               : CORE_KEEP,
                           err);
        if (rc == 0)
            model_seqs_freed(msg->count, seqs);
        break;
    case PROTO_SEQ_STAT:
        rc = core_seq_stat(sim.core, session, msg->body.handle.handle, &info, err);
        break;
    default: {
        uint32_t cursor = msg->body.list.cursor, last = cursor, n = 0;
        while (core_seq_next(sim.core, &cursor, &info)) {
            ENSURE(cursor > last && ++n <= MODEL_SEQS);
            last = cursor;
        }
        break;
    }
    }
    return rc;
}

static int step_op(uint64_t session, const struct proto_msg *msg, struct err *err) {
    struct core_item items[MODEL_BATCH + 1];
    struct core_step_info info;
    struct core_effects effects;
    uint64_t id = msg->body.handle.handle;
    int rc = 0;
    switch (msg->header.op) {
    case PROTO_STEP_BEGIN:
    case PROTO_STEP_BEGIN_TOKENS: {
        uint32_t n = read_items(msg, items);
        bool known = msg->header.op == PROTO_STEP_BEGIN_TOKENS;
        uint32_t tokens[SIM_TOKENS];
        ENSURE(msg->num_tokens <= SIM_TOKENS);
        proto_tokens(msg, tokens);
        const uint32_t *ids = known ? tokens : NULL;
        uint64_t pool = known ? msg->body.step_begin_tokens.pool : msg->body.step_begin.pool;
        id = known ? msg->body.step_begin_tokens.step : msg->body.step_begin.step;
        rc = core_step_begin(sim.core, session, id, pool, n, items, ids, &info, &effects, err);
        if (rc == 0)
            model_step_begun(sim.core, session, n, items, ids, &info, &effects);
        ENSURE(rc != KVPOOL_E_NOSPACE || err->detail > 0);
        break;
    }
    case PROTO_STEP_COMMIT:
        rc = core_step_commit(sim.core, session, id, &info, &effects, err);
        if (rc == 0)
            model_step_committed(sim.core, session, &info, &effects);
        break;
    default:
        rc = core_step_abort(sim.core, session, id, &effects, err);
        if (rc == 0)
            model_step_aborted(sim.core, session, id, &effects);
    }
    bool begin = msg->header.op == PROTO_STEP_BEGIN || msg->header.op == PROTO_STEP_BEGIN_TOKENS;
    ENSURE(rc != KVPOOL_E_BUSY || begin || in_flight(session, id));
    return rc;
}

static int attention(uint64_t session, const struct proto_msg *msg, struct err *err) {
    const struct proto_attn *a = &msg->body.attn;
    struct core_item items[MODEL_BATCH + 1];
    uint32_t n = read_items(msg, items);
    bool append = a->k.region != 0;
    struct core_batch batch;
    struct core_pool_info pool;
    if (a->step == 0 && append)
        return err_set(err, KVPOOL_E_INVAL, "append without a step");
    if (jobs[SIM_JOBS - 1].live)
        return err_set(err, KVPOOL_E_AGAIN, "queue full");
    int rc = a->step != 0 ? core_step_batch(sim.core, session, a->step, &batch, err)
                          : core_batch_make(sim.core, session, a->pool, n, items, &batch, err);
    if (rc != 0)
        return rc;
    ENSURE(core_pool_stat(sim.core, batch.pool, &pool, err) == 0);
    if (a->layer >= pool.config.layers)
        return err_set(err, KVPOOL_E_INVAL, "layer");
    rc = a->step != 0 ? core_step_hold(sim.core, session, a->step, err)
                      : core_seq_pin(sim.core, session, n, items, err);
    ENSURE(rc == 0); // the batch was fine
    struct job *j = new_job(session, &batch);
    j->step = a->step;
    j->append = append;
    j->layer = a->layer;
    memcpy(j->items, items, sizeof j->items);
    return 0;
}

int sim_execute(uint64_t *session, const struct proto_msg *msg, struct err *err) {
    switch (msg->header.op) {
    case PROTO_FD_HELLO:
        return session_open(msg, session, err);
    case PROTO_BYE:
        return sim_session_close(session, err);
    case PROTO_POOL_CREATE:
        return pool_create(msg, err);
    case PROTO_POOL_OPEN:
    case PROTO_POOL_DESTROY:
    case PROTO_POOL_STAT:
    case PROTO_POOL_LIST:
        return pool_op(msg, err);
    case PROTO_SEQ_CREATE:
    case PROTO_SEQ_FORK:
        return seq_create(*session, msg, err);
    case PROTO_SEQ_OPEN:
        return seq_open(*session, msg, err);
    case PROTO_SEQ_TRUNCATE:
    case PROTO_SEQ_FREE:
    case PROTO_SEQ_RELEASE:
    case PROTO_SEQ_PRIORITY:
    case PROTO_SEQ_STAT:
    case PROTO_SEQ_LIST:
        return seq_op(*session, msg, err);
    case PROTO_PREFIX_PIN:
    case PROTO_PREFIX_UNPIN:
        return pin_op(*session, msg, err);
    case PROTO_CACHE_CLEAR:
        return cache_clear(*session, msg, err);
    case PROTO_STEP_BEGIN:
    case PROTO_STEP_BEGIN_TOKENS:
    case PROTO_STEP_COMMIT:
    case PROTO_STEP_ABORT:
        return step_op(*session, msg, err);
    case PROTO_APPEND:
    case PROTO_PREFILL:
    case PROTO_DECODE:
        return attention(*session, msg, err);
    default:
        return 0; // not core's
    }
}
