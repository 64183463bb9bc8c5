// SPDX-License-Identifier: Apache-2.0
// attn.c: see request.h: append and attention. Tensors become handles with every stride given.
#include "client/lib/args.h"
#include "client/lib/region.h"
#include "client/lib/request.h"

#include <math.h>

static int check_dense(const kvpool_tensor *t, const char *name, struct err *err) {
    if (t->token_stride != 0 || t->head_stride != 0)
        return err_set(err, KVPOOL_E_INVAL, "%s is dense: its strides must be 0", name);
    if (t->region == NULL && t->offset != 0)
        return err_set(err, KVPOOL_E_INVAL, "%s has an offset and no region", name);
    return 0;
}

static int check_scale(float scale, const char *name, struct err *err) {
    if (!isfinite(scale) || scale < 0)
        return err_set(err, KVPOOL_E_INVAL, "%s must be finite and > 0, or 0 for 1", name);
    return 0;
}

// Scales and sinks. Whether the pool has scales is known to the daemon.
static int check_options(const kvpool_attn_args *args, struct err *err) {
    int rc = check_scale(args->k_scale, "k_scale", err);
    if (rc == 0)
        rc = check_scale(args->v_scale, "v_scale", err);
    if (rc == 0)
        rc = check_dense(&args->kv_scales, "kv_scales", err);
    if (rc == 0)
        rc = check_dense(&args->sinks, "sinks", err);
    if (rc == 0 && args->kv_scales.region != NULL && (args->k_scale != 0 || args->v_scale != 0))
        rc = err_set(err, KVPOOL_E_INVAL, "kv_scales are given instead of k_scale and v_scale");
    return rc;
}

static int read_args(uint16_t op, const kvpool_attn_args *user_args, kvpool_attn_args *ret,
                     struct err *err) {
    int rc = args_read_grown(ret, sizeof *ret, offsetof(kvpool_attn_args, k_scale), user_args,
                             "args", err);
    if (rc != 0)
        return rc;
    if ((ret->flags & ~(KVPOOL_ATTN_CAUSAL | KVPOOL_ATTN_BATCH_INVARIANT)) != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", ret->flags);
    if (ret->reserved != 0)
        return err_set(err, KVPOOL_E_INVAL, "reserved is not 0");
    bool k = ret->k.region != NULL, v = ret->v.region != NULL, q = ret->q.region != NULL;
    bool out = ret->out.region != NULL, lse = ret->lse.region != NULL;
    if (k != v)
        return err_set(err, KVPOOL_E_INVAL, "%s is given without %s", k ? "k" : "v", k ? "v" : "k");
    if (op == PROTO_APPEND && ret->step == 0)
        return err_set(err, KVPOOL_E_INVAL, "append needs a step");
    if (k && ret->step == 0)
        return err_set(err, KVPOOL_E_INVAL, "k and v are given without a step");
    if (op == PROTO_APPEND) {
        if (!k)
            return err_set(err, KVPOOL_E_INVAL, "append needs k and v");
        if (q || out || lse)
            return err_set(err, KVPOOL_E_INVAL, "append takes no q, out or lse");
        if (ret->sinks.region != NULL)
            return err_set(err, KVPOOL_E_INVAL, "append takes no sinks");
        return check_options(ret, err);
    }
    if (!q || !out)
        return err_set(err, KVPOOL_E_INVAL, "%s is missing", q ? "out" : "q");
    if (ret->qo_heads == 0 || ret->qo_heads > KVPOOL_MAX_QO_HEADS)
        return err_set(err, KVPOOL_E_INVAL, "qo_heads is %u, not 1 to %d", ret->qo_heads,
                       KVPOOL_MAX_QO_HEADS);
    return check_options(ret, err);
}

static int check_batch(kvpool_client *c, const kvpool_attn_args *args, struct err *err) {
    if (args->pool == 0)
        return err_set(err, KVPOOL_E_INVAL, "neither a step nor a pool");
    if (args->n == 0)
        return err_set(err, KVPOOL_E_INVAL, "empty batch");
    uint32_t max = client_max_batch(c);
    if (args->n > max)
        return err_set(err, KVPOOL_E_TOOBIG, "%u sequences in a batch, the limit is %u", args->n,
                       max);
    if (args->seqs == NULL || args->q_len == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", args->seqs == NULL ? "seqs" : "q_len");
    return 0;
}

static bool has_default_stride(const kvpool_tensor *t) {
    return t->region != NULL && (t->token_stride == 0 || t->head_stride == 0);
}

// The geometry of the call's pool, when a stride is to be filled in from it. For a step that this
// client never began it stays 0: the daemon refuses the step before it looks at a tensor.
static int find_shape(kvpool_client *c, const kvpool_attn_args *args, struct pool_shape *ret,
                      struct err *err) {
    *ret = (struct pool_shape){0};
    if (!has_default_stride(&args->q) && !has_default_stride(&args->k) &&
        !has_default_stride(&args->v) && !has_default_stride(&args->out))
        return 0;
    kvpool_pool pool = args->pool;
    if (args->step != 0) {
        pthread_mutex_lock(&c->lock);
        pool = steptab_find(&c->steps, args->step);
        pthread_mutex_unlock(&c->lock);
        if (pool == 0)
            return 0;
    }
    if (client_pool_known(c, pool, ret))
        return 0;
    struct proto_handle body = {.handle = pool};
    struct proto_msg msg;
    int rc = call_simple(c, CLIENT_HANDLE, PROTO_POOL_STAT, &body, sizeof body, &msg, err);
    if (rc != 0)
        return rc;
    *ret = (struct pool_shape){pool, msg.body.pool_info.kv_heads, msg.body.pool_info.head_dim};
    client_pool_learn(c, ret);
    return 0;
}

// heads and head_dim: what dense strides are made of; 0 (unknown) counts as 1.
static int put_tensor(kvpool_client *c, const kvpool_tensor *t, const char *name, uint64_t heads,
                      uint64_t head_dim, struct proto_tensor *ret, struct err *err) {
    *ret = (struct proto_tensor){0};
    if (t->region == NULL)
        return 0;
    int rc = region_handle(c, t->region, name, &ret->region, err);
    if (rc != 0)
        return rc;
    ret->offset = t->offset;
    ret->head_stride = t->head_stride;
    if (ret->head_stride == 0)
        ret->head_stride = head_dim > 0 ? head_dim : 1;
    ret->token_stride = t->token_stride;
    if (ret->token_stride == 0 &&
        __builtin_mul_overflow(heads > 0 ? heads : 1, ret->head_stride, &ret->token_stride))
        return err_set(err, KVPOOL_E_INVAL, "the strides of %s overflow", name);
    return 0;
}

static int put_array(kvpool_client *c, const kvpool_tensor *t, const char *name,
                     struct proto_array *ret, struct err *err) {
    *ret = (struct proto_array){.offset = t->offset};
    return t->region == NULL ? 0 : region_handle(c, t->region, name, &ret->region, err);
}

// Whether the request needs more than any daemon knows. -0 is a 0 too.
static bool has_options(uint16_t op, const kvpool_attn_args *args) {
    return args->k_scale != 0 || args->v_scale != 0 || args->kv_scales.region != NULL ||
           args->sinks.region != NULL ||
           (op != PROTO_APPEND && (args->flags & KVPOOL_ATTN_BATCH_INVARIANT) != 0);
}

int request_attn(kvpool_client *c, uint16_t op, const kvpool_attn_args *user_args,
                 union request_body *body, struct call *ret, struct err *err) {
    kvpool_attn_args args;
    int rc = read_args(op, user_args, &args, err);
    if (rc == 0 && args.step == 0)
        rc = check_batch(c, &args, err);
    // Lost handles are told before stale regions are.
    if (rc == 0)
        rc = client_ensure(c, CLIENT_HANDLE, client_deadline(c), NULL, NULL, err);
    struct pool_shape shape;
    if (rc == 0)
        rc = find_shape(c, &args, &shape, err);
    if (rc != 0)
        return rc;

    body->attend =
        (struct proto_attend){.op = op, .k_scale = args.k_scale, .v_scale = args.v_scale};
    struct proto_attn *a = &body->attend.attn;
    *a = (struct proto_attn){.step = args.step, .layer = args.layer};
    if (args.step == 0) {
        a->pool = args.pool;
        a->count = args.n;
    }
    if (op != PROTO_APPEND) {
        a->qo_heads = args.qo_heads;
        a->flags = args.flags;
        a->sm_scale = args.sm_scale;
        a->soft_cap = args.soft_cap;
        a->window_left = args.window_left;
    }
    rc = put_tensor(c, &args.q, "q", args.qo_heads, shape.head_dim, &a->q, err);
    if (rc == 0)
        rc = put_tensor(c, &args.k, "k", shape.kv_heads, shape.head_dim, &a->k, err);
    if (rc == 0)
        rc = put_tensor(c, &args.v, "v", shape.kv_heads, shape.head_dim, &a->v, err);
    if (rc == 0)
        rc = put_tensor(c, &args.out, "out", args.qo_heads, shape.head_dim, &a->out, err);
    if (rc == 0)
        rc = put_tensor(c, &args.lse, "lse", args.qo_heads, 1, &a->lse, err);
    if (rc == 0)
        rc = put_array(c, &args.kv_scales, "kv_scales", &body->attend.kv_scales, err);
    if (rc == 0)
        rc = put_array(c, &args.sinks, "sinks", &body->attend.sinks, err);
    if (rc != 0)
        return rc;
    *ret = (struct call){.message = {.op = op, .body = a, .body_len = sizeof *a},
                         .need = CLIENT_HANDLE};
    if (has_options(op, &args)) {
        ret->message.op = PROTO_ATTEND;
        ret->message.body = &body->attend;
        ret->message.body_len = sizeof body->attend;
        ret->feature = PROTO_FEATURE_DEVICE;
    }
    if (args.step == 0) {
        ret->message.handles = args.seqs;
        ret->message.tokens = args.q_len;
        ret->message.count = args.n;
    }
    return 0;
}
