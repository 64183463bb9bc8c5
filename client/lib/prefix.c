// SPDX-License-Identifier: Apache-2.0
// prefix.c: the public functions of prefix sharing: sequences opened on what is cached, pins, and
// the end of a cache.
//
// Invariants
//  1. Of a prompt longer than KVPOOL_MAX_TOKENS the first ones are looked up; the token ids are sent
//     from where the caller has them.
//  2. A reply that contradicts its request (more tokens than were asked about, a sequence that was
//     not wanted or none where one was) is KVPOOL_E_PROTO: no output is written.
// Threads: any.
#include "client/lib/args.h"
#include "client/lib/call.h"

static int check_open(const kvpool_open_args *args, const uint32_t *ret_matched, struct err *err) {
    if (ret_matched == NULL)
        return err_set(err, KVPOOL_E_INVAL, "ret_matched is NULL");
    if (args->flags != 0)
        return err_set(err, KVPOOL_E_INVAL, "unknown flags 0x%x", args->flags);
    if (args->tokens == NULL && args->n > 0)
        return err_set(err, KVPOOL_E_INVAL, "tokens is NULL, n is %u", args->n);
    if (args->priority > KVPOOL_PRIORITY_HIGH)
        return err_set(err, KVPOOL_E_INVAL, "priority is %u, which is no kvpool_priority",
                       args->priority);
    if (args->extra_size > KVPOOL_EXTRA_MAX)
        return err_set(err, KVPOOL_E_INVAL, "extra_size is %u, the limit is %d", args->extra_size,
                       KVPOOL_EXTRA_MAX);
    if (args->extra == NULL && args->extra_size > 0)
        return err_set(err, KVPOOL_E_INVAL, "extra is NULL, extra_size is %u", args->extra_size);
    return 0;
}

// Whether the reply is one that a request with these flags can have.
static int check_opened(uint32_t flags, uint32_t asked, const struct proto_seq_open_reply *r,
                        struct err *err) {
    if (r->matched > asked)
        return err_set(err, KVPOOL_E_PROTO, "the daemon matched %u tokens of %u", r->matched,
                       asked);
    bool wanted = flags == 0 || (flags == PROTO_OPEN_MATCHED && r->matched > 0);
    if ((r->seq != 0) != wanted)
        return err_set(err, KVPOOL_E_PROTO, "the daemon made %s sequence for %u matched tokens",
                       wanted ? "no" : "a", r->matched);
    return 0;
}

// flags: PROTO_OPEN_*. ret_seq may be NULL.
static int do_open(kvpool_client *c, const kvpool_open_args *user_args, uint32_t flags,
                   kvpool_seq *ret_seq, uint32_t *ret_matched, struct err *err) {
    kvpool_open_args args;
    int rc = args_read(&args, sizeof args, user_args, "args", err);
    if (rc == 0)
        rc = check_open(&args, ret_matched, err);
    if (rc != 0)
        return rc;
    struct proto_seq_open body = {.pool = args.pool,
                                  .num_tokens =
                                      args.n < KVPOOL_MAX_TOKENS ? args.n : KVPOOL_MAX_TOKENS,
                                  .flags = flags,
                                  .priority = args.priority,
                                  .extra_size = args.extra_size};
    if (args.extra_size > 0)
        memcpy(body.extra, args.extra, args.extra_size);
    struct call call = {.message = {.op = PROTO_SEQ_OPEN,
                                    .body = &body,
                                    .body_len = sizeof body,
                                    .ids = args.tokens,
                                    .num_ids = body.num_tokens},
                        .need = CLIENT_HANDLE,
                        .feature = PROTO_FEATURE_PREFIX};
    struct proto_msg msg;
    rc = call_run(c, &call, 0, &msg, err);
    if (rc != 0)
        return rc;
    const struct proto_seq_open_reply *r = &msg.body.seq_open_reply;
    rc = check_opened(flags, body.num_tokens, r, err);
    if (rc != 0)
        return rc;
    if (r->seq != 0)
        client_gave_handle(c);
    if (ret_seq != NULL)
        *ret_seq = r->seq;
    *ret_matched = r->matched;
    return 0;
}

kvpool_status kvpool_seq_open_with(kvpool_client *client, const kvpool_open_args *args,
                                   kvpool_seq *ret_seq, uint32_t *ret_matched) {
    struct err err = {0};
    int rc = client_enter(client, &err);
    if (rc == 0 && ret_seq == NULL)
        rc = err_set(&err, KVPOOL_E_INVAL, "ret_seq is NULL");
    if (rc == 0)
        rc = do_open(client, args, 0, ret_seq, ret_matched, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_seq_match(kvpool_client *client, const kvpool_open_args *args,
                               kvpool_seq *ret_seq, uint32_t *ret_matched) {
    struct err err = {0};
    uint32_t flags = ret_seq != NULL ? PROTO_OPEN_MATCHED : PROTO_OPEN_PROBE;
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = do_open(client, args, flags, ret_seq, ret_matched, &err);
    return client_leave(client, rc, &err);
}

// A request that is an op of prefix sharing and a body.
static int run(kvpool_client *c, uint16_t op, const void *body, size_t body_len,
               struct proto_msg *ret, struct err *err) {
    struct call call = {.message = {.op = op, .body = body, .body_len = body_len},
                        .need = CLIENT_HANDLE,
                        .feature = PROTO_FEATURE_PREFIX};
    return call_run(c, &call, 0, ret, err);
}

kvpool_status kvpool_prefix_pin(kvpool_client *client, kvpool_seq seq, uint32_t tokens,
                                uint32_t ttl_ms, uint64_t *ret_pin, uint32_t *ret_tokens) {
    struct err err = {0};
    struct proto_prefix_pin body = {.seq = seq, .tokens = tokens, .ttl_ms = ttl_ms};
    struct proto_msg msg;
    int rc = client_enter(client, &err);
    if (rc == 0 && ttl_ms == 0)
        rc = err_set(&err, KVPOOL_E_INVAL, "ttl_ms is 0");
    if (rc == 0)
        rc = run(client, PROTO_PREFIX_PIN, &body, sizeof body, &msg, &err);
    if (rc == 0 && ret_pin != NULL)
        *ret_pin = msg.body.prefix_pin_reply.pin;
    if (rc == 0 && ret_tokens != NULL)
        *ret_tokens = msg.body.prefix_pin_reply.tokens;
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_prefix_unpin(kvpool_client *client, kvpool_pool pool, uint64_t pin) {
    struct err err = {0};
    struct proto_prefix_unpin body = {.pool = pool, .pin = pin};
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = run(client, PROTO_PREFIX_UNPIN, &body, sizeof body, NULL, &err);
    return client_leave(client, rc, &err);
}

kvpool_status kvpool_cache_clear(kvpool_client *client, kvpool_pool pool, uint32_t *ret_pages) {
    struct err err = {0};
    struct proto_handle body = {.handle = pool};
    struct proto_msg msg;
    int rc = client_enter(client, &err);
    if (rc == 0)
        rc = run(client, PROTO_CACHE_CLEAR, &body, sizeof body, &msg, &err);
    if (rc == 0 && ret_pages != NULL)
        *ret_pages = msg.body.cleared.pages;
    return client_leave(client, rc, &err);
}
