// SPDX-License-Identifier: Apache-2.0
// ops_attn.c: APPEND, PREFILL, DECODE, and ATTEND, which is one of them with options: one layer of
// one batch becomes one job.
//
//   resolve the batch -> check numbers -> resolve and check tensors -> cut into slices
//                                                                       nothing has changed yet
//   -> hold step or sequences, regions -> submit [APPEND][ATTEND]
//
// Invariants
//  1. Every refusal comes before any hold.
//  2. The job's arrays are copies: core may change while it runs.
// Thread: loop thread.
#include "daemon/dispatch_impl.h"
#include "daemon/tensor.h"

#include <inttypes.h>
#include <math.h>

enum { Q, K, V, SCALES, SINKS, OUT, LSE, NUM_TENSORS }; // outputs last
_Static_assert((int)NUM_TENSORS == JOB_MAX_REGIONS, "one region a tensor");

static const char *const tensor_names[NUM_TENSORS] = {"q",     "k",   "v",  "kv_scales",
                                                      "sinks", "out", "lse"};

struct asked {   // a request, in either form
    uint16_t op; // PROTO_APPEND, PROTO_PREFILL, PROTO_DECODE
    const struct proto_attn *attn;
    float k_scale, v_scale;
    struct proto_array scales, sinks;
};

struct tensors {
    struct region *regions[NUM_TENSORS]; // NULL: no tensor
    struct backend_tensor backend[NUM_TENSORS];
};

static struct asked read_request(const struct proto_msg *msg) {
    const struct proto_attend *e = &msg->body.attend;
    if (msg->header.op != PROTO_ATTEND)
        return (struct asked){.op = msg->header.op, .attn = &msg->body.attn};
    return (struct asked){.op = attention_op(msg),
                          .attn = &e->attn,
                          .k_scale = e->k_scale,
                          .v_scale = e->v_scale,
                          .scales = e->kv_scales,
                          .sinks = e->sinks};
}

static int find_batch(struct dispatch *d, struct request *r, const struct asked *asked,
                      struct job *job, struct core_batch *ret, struct err *err) {
    const struct proto_attn *a = asked->attn;
    struct session *s = r->session;
    if (a->step != 0) {
        if (r->msg.count != 0 || a->pool != 0)
            return err_set(err, KVPOOL_E_INVAL, "a step has its own batch and pool");
        if (session_step_ends(s, a->step))
            return err_set(err, KVPOOL_E_STATE, "step %" PRIu64 " is being finished", a->step);
        return core_step_batch(d->core, s->handle, a->step, ret, err);
    }
    if (asked->op == PROTO_APPEND)
        return err_set(err, KVPOOL_E_INVAL, "append needs a step");
    if (a->k.region != 0 || a->v.region != 0)
        return err_set(err, KVPOOL_E_INVAL, "k and v need a step");
    if (r->msg.count == 0)
        return err_set(err, KVPOOL_E_INVAL, "empty batch");
    if (r->msg.count > d->max_batch)
        return err_set(err, KVPOOL_E_TOOBIG, "%u sequences, at most %u in one batch", r->msg.count,
                       d->max_batch);
    for (uint32_t i = 0; i < r->msg.count; i++) {
        struct proto_batch_item item;
        proto_record(&r->msg, i, &item);
        job->items[i] = (struct core_item){.seq = item.seq, .tokens = item.tokens};
    }
    uint32_t ns;
    int status = session_pool_ns(s, a->pool, &ns, err);
    if (status != 0)
        return status;
    return core_batch_make(d->core, s->handle, a->pool, r->msg.count, job->items, ret, err);
}

static int check_scale(const char *name, float scale, struct err *err) {
    if (!isfinite(scale) || scale < 0)
        return err_set(err, KVPOOL_E_INVAL, "%s: must be finite and > 0, or 0 for 1", name);
    return 0;
}

static int check_scales(const struct asked *asked, const struct kv_geometry *g, struct err *err) {
    bool scalars = asked->k_scale != 0 || asked->v_scale != 0; // true of NaN, too
    if (kv_plane_dtype(g) != KVPOOL_FP8_E4M3 && (scalars || asked->scales.region != 0))
        return err_set(err, KVPOOL_E_INVAL, "%s: of an fp8 pool only",
                       scalars ? "k_scale, v_scale" : "kv_scales");
    if (scalars && asked->scales.region != 0)
        return err_set(err, KVPOOL_E_INVAL, "kv_scales: instead of k_scale and v_scale");
    int status = check_scale("k_scale", asked->k_scale, err);
    return status != 0 ? status : check_scale("v_scale", asked->v_scale, err);
}

// Everything but tensors. ret_scale: with the default filled in.
static int check_numbers(const struct asked *asked, const struct pool *pool,
                         const struct core_batch *batch, float *ret_scale, struct err *err) {
    const struct kv_geometry *g = &pool->geometry;
    const struct proto_attn *a = asked->attn;
    const uint16_t op = asked->op;
    const uint32_t unknown = a->flags & ~(KVPOOL_ATTN_CAUSAL | KVPOOL_ATTN_BATCH_INVARIANT);
    if (unknown != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", unknown);
    if (a->layer >= g->layers)
        return err_set(err, KVPOOL_E_INVAL, "layer %u: the pool has %u", a->layer, g->layers);
    if ((a->k.region != 0) != (a->v.region != 0))
        return err_set(err, KVPOOL_E_INVAL, "k and v must be given together");
    if (op == PROTO_APPEND) {
        if (a->k.region == 0)
            return err_set(err, KVPOOL_E_INVAL, "append needs k and v");
        if (a->q.region != 0 || a->out.region != 0 || a->lse.region != 0 ||
            asked->sinks.region != 0)
            return err_set(err, KVPOOL_E_INVAL, "append takes no q, out, lse or sinks");
        if (a->qo_heads != 0)
            return err_set(err, KVPOOL_E_INVAL, "qo_heads: append has none");
        return check_scales(asked, g, err);
    }
    if (a->q.region == 0 || a->out.region == 0)
        return err_set(err, KVPOOL_E_INVAL, "attention needs q and out");
    if (a->qo_heads == 0 || a->qo_heads > KVPOOL_MAX_QO_HEADS || a->qo_heads % g->kv_heads != 0)
        return err_set(err, KVPOOL_E_INVAL,
                       "qo_heads %u: must be a multiple of kv_heads %u, at most %u", a->qo_heads,
                       g->kv_heads, KVPOOL_MAX_QO_HEADS);
    if (!isfinite(a->sm_scale) || a->sm_scale < 0)
        return err_set(err, KVPOOL_E_INVAL,
                       "sm_scale: must be finite and > 0, or 0 for the default");
    if (!isfinite(a->soft_cap) || a->soft_cap < 0)
        return err_set(err, KVPOOL_E_INVAL, "soft_cap: must be finite and > 0, or 0 for none");
    if (a->window_left < -1)
        return err_set(err, KVPOOL_E_INVAL, "window_left %d: must be >= 0, or -1 for all",
                       a->window_left);
    if (op == PROTO_DECODE && batch->max_q_len > PROTO_DECODE_MAX_Q)
        return err_set(err, KVPOOL_E_INVAL,
                       "decode: %u query tokens of one sequence, at most %u: use prefill",
                       batch->max_q_len, PROTO_DECODE_MAX_Q);
    *ret_scale = a->sm_scale > 0 ? a->sm_scale : 1.0F / sqrtf((float)g->head_dim);
    return check_scales(asked, g, err);
}

// The request's tensors in order, with the size and shape that each has. A region of 0: none.
static void shape_tensors(const struct asked *asked, const struct kv_geometry *g, uint32_t tokens,
                          struct proto_tensor ret_given[NUM_TENSORS],
                          struct tensor ret[NUM_TENSORS]) {
    const struct proto_attn *a = asked->attn;
    const struct proto_tensor given[NUM_TENSORS] = {
        [Q] = a->q,
        [K] = a->k,
        [V] = a->v,
        [SCALES] = {asked->scales.region, asked->scales.offset, g->kv_heads, 1},
        [SINKS] = {asked->sinks.region, asked->sinks.offset, a->qo_heads, 1},
        [OUT] = a->out,
        [LSE] = a->lse};
    for (int i = 0; i < NUM_TENSORS; i++) {
        bool numbers = i == LSE || i == SCALES || i == SINKS; // fp32, one a head
        bool kv = i == K || i == V || i == SCALES;
        ret_given[i] = given[i];
        ret[i] = (struct tensor){.offset = given[i].offset,
                                 .token_stride = given[i].token_stride,
                                 .head_stride = given[i].head_stride,
                                 .tokens = i == SCALES  ? 2
                                           : i == SINKS ? 1
                                                        : tokens,
                                 .heads = kv ? g->kv_heads : a->qo_heads,
                                 .head_dim = numbers ? 1 : g->head_dim,
                                 .elem = numbers ? (uint32_t)sizeof(float)
                                                 : (uint32_t)kv_dtype_size(g->dtype)};
    }
}

static int check_tensors(struct dispatch *d, const struct session *s, const struct asked *asked,
                         const struct kv_geometry *g, uint32_t tokens, struct tensors *ret,
                         struct err *err) {
    struct proto_tensor given[NUM_TENSORS];
    struct tensor checked[NUM_TENSORS];
    *ret = (struct tensors){0};
    shape_tensors(asked, g, tokens, given, checked);
    for (int i = 0; i < NUM_TENSORS; i++) {
        if (given[i].region == 0)
            continue;
        struct region *region;
        int status = region_find(d->regions, s->handle, given[i].region, &region, err);
        if (status != 0)
            return status;
        checked[i].region = region->handle;
        checked[i].region_bytes = region->bytes;
        status = tensor_check(&checked[i], tensor_names[i], i >= OUT, err);
        if (status != 0)
            return status;
        ret->regions[i] = region;
        ret->backend[i] = (struct backend_tensor){.mem = region->mem,
                                                  .offset = given[i].offset,
                                                  .token_stride = given[i].token_stride,
                                                  .head_stride = given[i].head_stride};
    }
    for (int output = OUT; output <= LSE; output++)
        for (int i = 0; i < output && ret->regions[output] != NULL; i++)
            if (ret->regions[i] != NULL && tensor_overlap(&checked[output], &checked[i]))
                return err_set(err, KVPOOL_E_INVAL, "%s overlaps %s", tensor_names[output],
                               tensor_names[i]);
    return 0;
}

// Returns how many of [APPEND][ATTEND] the request wants.
static uint32_t make_ops(const struct asked *asked, float sm_scale,
                         const struct backend_batch *batch, const struct tensors *t,
                         struct backend_op ret[2]) {
    const struct proto_attn *a = asked->attn;
    const struct backend_scales scales = {
        .k = asked->k_scale, .v = asked->v_scale, .heads = t->backend[SCALES]};
    uint32_t n = 0;
    if (t->regions[K] != NULL)
        ret[n++] = (struct backend_op){.kind = BACKEND_APPEND,
                                       .u.append = {.layer = a->layer,
                                                    .batch = *batch,
                                                    .scales = scales,
                                                    .k = t->backend[K],
                                                    .v = t->backend[V]}};
    if (t->regions[Q] != NULL)
        ret[n++] = (struct backend_op){
            .kind = BACKEND_ATTEND,
            .u.attend = {.layer = a->layer,
                         .qo_heads = a->qo_heads,
                         .causal = (a->flags & KVPOOL_ATTN_CAUSAL) != 0,
                         .sm_scale = sm_scale,
                         .soft_cap = a->soft_cap,
                         .window_left = a->window_left,
                         .batch = *batch,
                         .batch_invariant = (a->flags & KVPOOL_ATTN_BATCH_INVARIANT) != 0,
                         .scales = scales,
                         .sinks = t->backend[SINKS],
                         .q = t->backend[Q],
                         .out = t->backend[OUT],
                         .lse = t->backend[LSE]}};
    return n;
}

static enum cost_kind kind_of(uint16_t op) {
    return op == PROTO_APPEND ? COST_APPEND : op == PROTO_DECODE ? COST_DECODE : COST_PREFILL;
}

int op_attention(struct dispatch *d, struct request *r, struct err *err) {
    const struct asked asked = read_request(&r->msg);
    const struct proto_attn *a = asked.attn;
    struct session *s = r->session;
    struct core_batch batch = {0};
    struct backend_batch backend_batch;
    struct backend_op ops[2];
    struct tensors tensors = {0};
    struct job *job;
    float sm_scale = 0;
    int status = job_get(d->jobs, JOB_ATTENTION, &job, err);
    if (status != 0)
        return status;
    status = find_batch(d, r, &asked, job, &batch, err);
    if (status != 0)
        goto put_job;
    struct pool *pool = pools_find(d->pools, batch.pool);
    assert(pool != NULL); // pools.h, invariant 1
    status = check_numbers(&asked, pool, &batch, &sm_scale, err);
    if (status == 0)
        status = check_tensors(d, s, &asked, &pool->geometry, batch.tokens, &tensors, err);
    if (status != 0)
        goto put_job;
    job_set_batch(job, &batch, &backend_batch);
    uint32_t num_ops = make_ops(&asked, sm_scale, &backend_batch, &tensors, ops);
    struct slicer slicer = dispatch_slicer(d, pool);
    status = job_set_ops(job, &slicer, ops, num_ops, err);
    if (status != 0)
        goto put_job;
    if (a->step != 0)
        status = core_step_hold(d->core, s->handle, a->step, err);
    else
        status = core_seq_pin(d->core, s->handle, r->msg.count, job->items, err);
    if (status != 0)
        goto put_job;
    job->d = d;
    job->session = s;
    job->request = r;
    job->pool = pool;
    job->step = a->step;
    job->num_items = a->step != 0 ? 0 : r->msg.count;
    job->appends = tensors.regions[K] != NULL;
    job->layer = a->layer;
    job->engine.kind = kind_of(asked.op);
    job->engine.class = asked.op == PROTO_PREFILL || batch.max_q_len > PROTO_DECODE_MAX_Q
                            ? SCHED_BULK
                            : SCHED_LATENCY;
    for (int i = 0; i < NUM_TENSORS; i++) {
        if (tensors.regions[i] == NULL)
            continue;
        region_hold(tensors.regions[i]);
        job->regions[job->num_regions++] = tensors.regions[i];
    }
    job_submit(job);
    return 0;
put_job:
    job_put(d->jobs, job);
    return status;
}
