// SPDX-License-Identifier: Apache-2.0
// test_fork.c: a process that uses kvpool and then forks: the child's use of inherited objects is a
// clean error, its own connection works, and the parent goes on undisturbed.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct inherited {
    kvpool_client *client;
    kvpool_region *region;
    kvpool_seq seq;
    kvpool_pool pool;
    kvpool_op *op;
};

static int child(void *arg) {
    const struct inherited *in = arg;
    kvpool_seq seq;
    kvpool_region *region;
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_COMMIT, .step = 1};
    kvpool_op *op;
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_ping(in->client, NULL));
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_seq_create(in->client, in->pool, 1, &seq));
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_seq_free(in->client, 1, &in->seq));
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_region_create(in->client, 64, &region));
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_submit(in->client, &request, &op));
    expect_status(in->client, KVPOOL_E_FORKED, kvpool_wait(in->client, in->op, 0));
    char text[256];
    kvpool_last_error(in->client, text, sizeof text);
    check(text[0] != 0);
    kvpool_close(in->client); // harmless
    kvpool_client *own = client_open(&kvd);
    struct load *load = load_open(own, "fork", 64, 11);
    check(load != NULL);
    for (unsigned i = 0; i < 100; i++) {
        expect_ok(own, load_round(load));
    }
    load_close(load);
    kvpool_close(own);
    return 0;
}

static void a_child_gets_clean_errors_and_may_connect_anew(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    struct load *load = load_open(client, "fork", 64, 12);
    assert_non_null(load);
    struct inherited in = {.client = client, .pool = load_pool(load)};
    expect_ok(client, kvpool_seq_create(client, in.pool, 1, &in.seq));
    expect_ok(client, kvpool_region_create(client, 4096, &in.region));
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_COMMIT, .step = 424242};
    expect_ok(client, kvpool_submit(client, &request, &in.op));
    for (unsigned i = 0; i < 3; i++) {
        pid_t pid = worker_start(child, &in);
        for (unsigned j = 0; j < 20; j++) {
            expect_ok(client, load_round(load));
        }
        assert_int_equal(process_wait(pid, 60000), 0);
    }
    expect_status(client, KVPOOL_E_NOTFOUND, kvpool_wait(client, in.op, UINT32_MAX));
    expect_ok(client, kvpool_seq_free(client, 1, &in.seq)); // still there
    kvpool_region_free(in.region);
    load_close(load);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_gets_clean_errors_and_may_connect_anew),
    };
    return cmocka_run_group_tests_name("fork", tests, kvd_setup, kvd_teardown);
}
