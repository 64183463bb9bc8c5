// SPDX-License-Identifier: Apache-2.0
// request.c: see request.h: steps. (attn.c: attention.)
#include "client/lib/request.h"

#include "client/lib/args.h"

static int check_batch(kvpool_client *c, uint32_t n, const void *seqs, const void *tokens,
                       struct err *err) {
    if (n == 0)
        return err_set(err, KVPOOL_E_INVAL, "empty batch");
    uint32_t max = client_max_batch(c);
    if (n > max)
        return err_set(err, KVPOOL_E_TOOBIG, "%u sequences in a batch, the limit is %u", n, max);
    if (seqs == NULL || tokens == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", seqs == NULL ? "seqs" : "new_tokens");
    return 0;
}

// An id given by the caller is never given out by kvpool_step_id() later.
static void note_step_id(kvpool_client *c, kvpool_step step) {
    uint64_t last = atomic_load(&c->last_step);
    while (step > last && !atomic_compare_exchange_weak(&c->last_step, &last, step))
        ;
}

// How many token ids the batch sends: those of all new tokens, or none.
static int check_tokens(const kvpool_step_args *args, uint32_t *ret_tokens, struct err *err) {
    uint64_t total = 0;
    if (args->tokens != NULL)
        for (uint32_t i = 0; i < args->n; i++)
            total += args->new_tokens[i];
    if (total > KVPOOL_MAX_TOKENS)
        return err_set(err, KVPOOL_E_INVAL, "%llu tokens in one step, with ids at most %u",
                       (unsigned long long)total, KVPOOL_MAX_TOKENS);
    *ret_tokens = (uint32_t)total;
    return 0;
}

int request_begin(kvpool_client *c, const kvpool_step_args *user_args, union request_body *body,
                  struct call *ret, struct err *err) {
    kvpool_step_args args;
    int rc = args_read_grown(&args, sizeof args, offsetof(kvpool_step_args, tokens), user_args,
                             "args", err);
    if (rc != 0)
        return rc;
    if (args.flags != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", args.flags);
    if (args.step == UINT64_MAX)
        return err_set(err, KVPOOL_E_INVAL, "no step may have the highest id");
    rc = check_batch(c, args.n, args.seqs, args.new_tokens, err);
    uint32_t num_tokens = 0;
    if (rc == 0)
        rc = check_tokens(&args, &num_tokens, err);
    if (rc != 0)
        return rc;
    if (args.step == 0)
        args.step = atomic_fetch_add(&c->last_step, 1) + 1;
    else
        note_step_id(c, args.step);
    *ret = (struct call){.message = {.op = PROTO_STEP_BEGIN,
                                     .body = body,
                                     .body_len = sizeof body->begin,
                                     .handles = args.seqs,
                                     .tokens = args.new_tokens,
                                     .count = args.n},
                         .need = CLIENT_HANDLE,
                         .repeat = true,
                         .step = args.step,
                         .pool = args.pool};
    if (num_tokens == 0) {
        body->begin =
            (struct proto_step_begin){.pool = args.pool, .step = args.step, .count = args.n};
        return 0;
    }
    body->begin_tokens = (struct proto_step_begin_tokens){
        .pool = args.pool, .step = args.step, .count = args.n, .num_tokens = num_tokens};
    ret->message.op = PROTO_STEP_BEGIN_TOKENS;
    ret->message.body_len = sizeof body->begin_tokens;
    ret->message.ids = args.tokens;
    ret->message.num_ids = num_tokens;
    ret->feature = PROTO_FEATURE_PREFIX;
    return 0;
}

int request_end(uint16_t op, kvpool_step step, union request_body *body, struct call *ret,
                struct err *err) {
    if (step == 0)
        return err_set(err, KVPOOL_E_INVAL, "step is 0");
    body->handle = (struct proto_handle){.handle = step};
    *ret =
        (struct call){.message = {.op = op, .body = &body->handle, .body_len = sizeof body->handle},
                      .need = CLIENT_HANDLE,
                      .repeat = op == PROTO_STEP_COMMIT,
                      .step = step};
    return 0;
}
