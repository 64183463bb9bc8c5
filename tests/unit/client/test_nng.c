// SPDX-License-Identifier: Apache-2.0
// test_nng.c: the library against a real NNG REP socket in the same process, and after fork(): what
// the library speaks is what NNG speaks, and a child may connect although NNG is in use here.
#include "tests/unit/client/fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTEXTS 8

static struct fake kvd; // its fd socket; the control socket is NNG's
static nng_socket rep;
static pthread_t servers[CONTEXTS];
static kvpool_client *client;
static kvpool_region *region;

// Of token ids 1, 2, 3 ...: how many; 0 for others.
static uint32_t last_id(const struct proto_msg *m) {
    uint32_t id = 0;
    for (uint32_t i = 0; i < m->num_tokens; i++) {
        memcpy(&id, m->tokens + i * sizeof id, sizeof id);
        if (id != i + 1)
            return 0;
    }
    return id;
}

static size_t answer(const void *bytes, size_t len, uint8_t *out, size_t cap) {
    struct proto_msg m;
    bool header_ok;
    struct err err;
    if (proto_parse_request(PROTO_ON_CONTROL, bytes, len, &m, &header_ok, &err) != 0)
        return proto_write_error(out, cap, NULL, kvd.epoch, &err);
    struct proto_header h = proto_reply_header(&m.header, 0, kvd.epoch);
    struct proto_hello_reply hello = {.version = 1,
                                      .features = PROTO_FEATURES,
                                      .max_message = PROTO_MAX_MESSAGE,
                                      .max_batch = 1024,
                                      .max_inflight = 64};
    struct proto_seq_open_reply open = {.seq = 9, .matched = last_id(&m)};
    struct proto_step_reply step = {.step = m.body.step_begin.step, .tokens = m.count};
    switch (m.header.op) {
    case PROTO_HELLO:
        return proto_write(out, cap, &h, &hello, sizeof hello, NULL, 0);
    case PROTO_PING:
        return proto_write(out, cap, &h, &m.body.ping, sizeof m.body.ping, NULL, 0);
    case PROTO_SEQ_OPEN:
        return proto_write(out, cap, &h, &open, sizeof open, NULL, 0);
    case PROTO_STEP_BEGIN:
        return proto_write(out, cap, &h, &step, sizeof step, NULL, 0);
    default:
        return proto_write(out, cap, &h, NULL, 0, NULL, 0);
    }
}

static void *serve(void *arg) {
    (void)arg;
    nng_ctx ctx;
    nng_aio *aio;
    uint8_t out[PROTO_MAX_MESSAGE];
    if (nng_ctx_open(&ctx, rep) != 0 || nng_aio_alloc(&aio, NULL, NULL) != 0)
        abort();
    for (;;) {
        nng_ctx_recv(ctx, aio);
        nng_aio_wait(aio);
        if (nng_aio_result(aio) != 0)
            break;
        nng_msg *msg = nng_aio_get_msg(aio);
        size_t len = answer(nng_msg_body(msg), nng_msg_len(msg), out, sizeof out);
        nng_msg_clear(msg);
        nng_msg_append(msg, out, len);
        nng_aio_set_msg(aio, msg);
        nng_ctx_send(ctx, aio);
        nng_aio_wait(aio);
        if (nng_aio_result(aio) != 0)
            nng_msg_free(msg);
    }
    nng_aio_free(aio);
    nng_ctx_close(ctx);
    return NULL;
}

static int setup(void **state) {
    (void)state;
    char url[128];
    fake_init(&kvd);
    fake_start(&kvd);
    fake_control_listen(&kvd, false);
    snprintf(url, sizeof url, "ipc://%s/%s", kvd.dir, PROTO_CONTROL_SOCKET);
    assert_int_equal(nng_rep0_open(&rep), 0);
    nng_socket_set_size(rep, NNG_OPT_RECVMAXSZ, PROTO_MAX_REQUEST + 4);
    assert_int_equal(nng_listen(rep, url, NULL, 0), 0);
    for (unsigned i = 0; i < CONTEXTS; i++)
        assert_int_equal(pthread_create(&servers[i], NULL, serve, NULL), 0);
    client = fake_connect(&kvd, 10000);
    expect(client, KVPOOL_OK, kvpool_region_create(client, 4096, &region));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    kvpool_region_free(region);
    kvpool_close(client);
    nng_close(rep);
    for (unsigned i = 0; i < CONTEXTS; i++)
        pthread_join(servers[i], NULL);
    fake_cleanup(&kvd);
    return 0;
}

static void requests_of_every_size_go_round(void **state) {
    (void)state;
    static kvpool_seq seqs[1024];
    static uint32_t tokens[1024];
    kvpool_step_args args = KVPOOL_STEP_ARGS_INIT;
    args.pool = 1;
    args.seqs = seqs;
    args.new_tokens = tokens;
    for (args.n = 1; args.n <= 1024; args.n += 31) {
        kvpool_step step;
        expect(client, KVPOOL_OK, kvpool_step_begin(client, &args, &step, NULL));
        expect(client, KVPOOL_OK, kvpool_ping(client, NULL));
    }
}

static void prompts_of_every_length_go_round(void **state) {
    (void)state;
    uint32_t *ids = malloc(KVPOOL_MAX_TOKENS * sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < KVPOOL_MAX_TOKENS; i++)
        ids[i] = i + 1;
    kvpool_open_args args = KVPOOL_OPEN_ARGS_INIT;
    args.tokens = ids;
    for (uint32_t n = 1; n <= KVPOOL_MAX_TOKENS; n *= 3) {
        kvpool_seq seq;
        uint32_t matched;
        args.n = n;
        expect(client, KVPOOL_OK, kvpool_seq_open_with(client, &args, &seq, &matched));
        assert_int_equal(matched, n);
        expect(client, KVPOOL_OK, kvpool_ping(client, NULL));
    }
    args.n = KVPOOL_MAX_TOKENS;
    kvpool_seq seq;
    uint32_t matched;
    expect(client, KVPOOL_OK, kvpool_seq_open_with(client, &args, &seq, &matched));
    assert_int_equal(matched, KVPOOL_MAX_TOKENS);
    free(ids);
}

static void many_are_in_flight_at_once(void **state) {
    (void)state;
    kvpool_op *ops[60];
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 60; i++) {
            kvpool_request request = {
                .size = sizeof request, .kind = KVPOOL_OP_ABORT, .step = i + 1};
            expect(client, KVPOOL_OK, kvpool_submit(client, &request, &ops[i]));
        }
        for (unsigned i = 0; i < 60; i++)
            expect(client, KVPOOL_OK, kvpool_wait(client, ops[i], UINT32_MAX));
    }
}

static bool child_is_refused(void) {
    kvpool_seq seq = 1;
    kvpool_pool pool;
    kvpool_op *op;
    kvpool_region *other;
    uint32_t cursor = 0, n;
    kvpool_client_info info = {.size = sizeof info};
    kvpool_daemon_info daemon = {.size = sizeof daemon};
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_COMMIT, .step = 1};
    char text[256];
    bool ok = kvpool_ping(client, NULL) == KVPOOL_E_FORKED;
    ok = ok && strstr(kvpool_last_error(client, text, sizeof text), "connects anew") != NULL;
    ok = ok && kvpool_daemon(client, &daemon) == KVPOOL_E_FORKED;
    ok = ok && kvpool_pool_open(client, "p", &pool) == KVPOOL_E_FORKED;
    ok = ok && kvpool_seq_create(client, 1, 1, &seq) == KVPOOL_E_FORKED;
    ok = ok && kvpool_seq_free(client, 1, &seq) == KVPOOL_E_FORKED;
    ok = ok && kvpool_step_commit(client, 1) == KVPOOL_E_FORKED;
    ok = ok && kvpool_submit(client, &request, &op) == KVPOOL_E_FORKED;
    ok = ok && kvpool_wait(client, NULL, 0) == KVPOOL_E_FORKED;
    ok = ok && kvpool_step_id(client) == 0;
    ok = ok && kvpool_region_create(client, 1, &other) == KVPOOL_E_FORKED;
    ok = ok && kvpool_list_clients(client, &cursor, 1, &info, &n) == KVPOOL_E_FORKED;
    ok = ok && kvpool_region_data(region) == NULL && kvpool_region_size(region) == 0;
    kvpool_region_free(region); // both harmless
    kvpool_close(client);
    return ok;
}

static int child(void) {
    if (!child_is_refused())
        return 2;
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = kvd.dir;
    kvpool_client *own;
    if (kvpool_connect(&args, &own) != KVPOOL_OK)
        return 3;
    kvpool_region *mine;
    for (unsigned i = 0; i < 50; i++)
        if (kvpool_ping(own, NULL) != KVPOOL_OK)
            return 4;
    if (kvpool_region_create(own, 100, &mine) != KVPOOL_OK)
        return 5;
    memset(kvpool_region_data(mine), 1, 100);
    kvpool_close(own);
    return 0;
}

static void *ping_meanwhile(void *arg) {
    unsigned *failures = arg;
    for (unsigned i = 0; i < 300; i++)
        *failures += kvpool_ping(client, NULL) != KVPOOL_OK;
    return NULL;
}

// Forks while another thread is inside the library, so that its locks may be held.
static void a_child_is_refused_and_connects_anew(void **state) {
    (void)state;
    unsigned failures = 0;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, ping_meanwhile, &failures), 0);
    for (unsigned i = 0; i < 5; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(child());
        int status = -1;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        expect(client, KVPOOL_OK, kvpool_ping(client, NULL));
    }
    pthread_join(thread, NULL);
    assert_int_equal(failures, 0);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 0); // the child freed none of ours
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_of_every_size_go_round),
        cmocka_unit_test(prompts_of_every_length_go_round),
        cmocka_unit_test(many_are_in_flight_at_once),
        cmocka_unit_test(a_child_is_refused_and_connects_anew),
    };
    return cmocka_run_group_tests_name("client and NNG", tests, setup, teardown);
}
