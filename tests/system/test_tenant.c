// SPDX-License-Identifier: Apache-2.0
// test_tenant.c: two users on one pool, each in a namespace of its own: what the first one stores
// cannot be read, matched or seen by the second, nor told from the time that a match takes.
// Needs root (a child becomes another user); skipped without.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <grp.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OTHER = 65534, PROMPT = 49152, SAMPLES = 800, MAX_SAMPLES = 5 };

static struct shared { // between the two users' processes
    kvpool_pool pool, private_pool;
    kvpool_seq seq;
    uint64_t pin;
} * shared;

static const char settings[] = "[kvpoold]\n"
                               "socket_mode = 0666\n"
                               "dir_mode = 0755\n"
                               "[pool both]\n"
                               "layers = 1\nkv_heads = 1\nhead_dim = 8\npage_size = 16\n"
                               "dtype = fp32\nnum_pages = 16384\n"
                               "[pool private]\n"
                               "layers = 1\nkv_heads = 1\nhead_dim = 8\npage_size = 16\n"
                               "dtype = fp32\nnum_pages = 16\n"
                               "allow_uids = 0\n"
                               "[namespace both/first]\nuids = 0\n"
                               "[namespace both/second]\nuids = 65534\nreserve = 25%\n";

static int setup(void **state) {
    (void)state;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (geteuid() != 0 || shared == MAP_FAILED) {
        return shared == MAP_FAILED;
    }
    daemon_prepare(&kvd);
    static char path[192];
    snprintf(path, sizeof path, "%s.conf", kvd.log);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(settings, file);
    fclose(file);
    const char *const extra[] = {"--config", path, NULL};
    daemon_start(&kvd, extra);
    for (char *slash = strrchr(path, '/'); slash != NULL && slash != path;
         slash = strrchr(path, '/')) { // mkdtemp's directory is its owner's alone
        *slash = '\0';
        if (strncmp(path, "/tmp/", 5) == 0) {
            chmod(path, 0755);
        }
    }
    return 0;
}

static uint32_t tokens_of[PROMPT];
static const uint32_t *document(uint32_t d) {
    for (uint32_t i = 0; i < PROMPT; i++) {
        tokens_of[i] = d * 1000003u + i;
    }
    return tokens_of;
}

// A sequence with the document's tokens appended.
static kvpool_seq compute(kvpool_client *client, kvpool_pool pool, uint32_t d) {
    kvpool_seq seq;
    kvpool_step step;
    kvpool_region *region;
    uint32_t n = PROMPT;
    expect_ok(client, kvpool_seq_create(client, pool, 1, &seq));
    expect_ok(client, kvpool_region_create(client, (uint64_t)PROMPT * 8 * 4, &region));
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &n;
    begin.tokens = document(d);
    expect_ok(client, kvpool_step_begin(client, &begin, &step, NULL));
    kvpool_attn_args append = KVPOOL_ATTN_ARGS_INIT;
    append.step = step;
    append.flags = 0;
    append.k.region = append.v.region = region;
    expect_ok(client, kvpool_append(client, &append));
    expect_ok(client, kvpool_step_commit(client, step));
    kvpool_region_free(region);
    return seq;
}

static uint32_t match(kvpool_client *client, kvpool_pool pool, const uint32_t *tokens) {
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    uint32_t matched = 1;
    open.pool = pool;
    open.tokens = tokens;
    open.n = PROMPT;
    expect_ok(client, kvpool_seq_match(client, &open, NULL, &matched));
    return matched;
}

static uint32_t probe(kvpool_client *client, kvpool_pool pool, uint32_t d) {
    return match(client, pool, document(d));
}

// Probability that a measurement of the first kind is longer than one of the second (0.5: no
// difference): the Mann-Whitney statistic.
static double longer(const uint64_t *first, const uint64_t *second) {
    uint64_t wins = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        for (uint32_t k = 0; k < SAMPLES; k++) {
            wins += first[i] > second[k] ? 2 : first[i] == second[k];
        }
    }
    return (double)wins / (2.0 * SAMPLES * SAMPLES);
}

// Probes documents 1 (the other's), 2 (nobody's) and 3 (one's own), interleaved in all orders, so
// that whatever else the machine does is the same for all three.
static void measure(kvpool_client *client, kvpool_pool pool, double *ret_others, double *ret_own) {
    static const uint8_t orders[6][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0},
                                         {0, 2, 1}, {2, 0, 1}, {1, 0, 2}};
    static uint64_t ns[3][SAMPLES];
    for (uint32_t i = 0; i < SAMPLES; i++) {
        for (uint32_t k = 0; k < 3; k++) {
            const uint32_t d = orders[i % 6][k];
            const uint32_t *tokens = document(d + 1); // made outside the measured time
            uint64_t start = now_ns();
            match(client, pool, tokens);
            ns[d][i] = now_ns() - start;
        }
    }
    *ret_others = longer(ns[0], ns[1]);
    *ret_own = longer(ns[2], ns[1]);
}

// The other's document takes no longer than nobody's, in a sample whose control, the own document,
// shows that it could tell. A machine that is busy with other things drowns both: then another sample
// is taken. What leaked would show in the first as in the last.
static bool time_tells_nothing(kvpool_client *client, kvpool_pool pool) {
    for (unsigned sample = 0; sample < MAX_SAMPLES; sample++) {
        double others, own;
        measure(client, pool, &others, &own);
        printf("tenant: P(match of the other's document slower) %.3f, of the own one %.3f\n",
               others, own);
        fflush(stdout);
        // 0.014 is one standard deviation of the statistic. A busy machine brings `own` nearer to 0.5,
        // and so what a leak would show: hence also a limit relative to it.
        const double off = fabs(others - 0.5);
        if (own > 0.6 && off < 0.06 && off < (own - 0.5) / 2) {
            return true;
        }
    }
    return false;
}

static int become_other(void) {
    return setgroups(0, NULL) == 0 && setgid(OTHER) == 0 && setuid(OTHER) == 0 ? 0 : 1;
}

static int second_user(void *arg) {
    (void)arg;
    check(become_other() == 0);
    kvpool_client *client = client_open(&kvd);
    // Not matchable.
    expect_status(client, KVPOOL_OK, probe(client, shared->pool, 1) == 0 ? 0 : 1);
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    kvpool_seq seq = 0;
    uint32_t matched = 1;
    open.pool = shared->pool;
    open.tokens = document(1);
    open.n = PROMPT;
    expect_ok(client, kvpool_seq_open_with(client, &open, &seq, &matched));
    check(matched == 0 && seq != 0);
    // Not readable.
    kvpool_seq_info info = {.size = sizeof info};
    kvpool_seq fork = 0;
    expect_status(client, KVPOOL_E_PERM, kvpool_seq_stat(client, shared->seq, &info));
    expect_status(client, KVPOOL_E_PERM, kvpool_seq_fork(client, shared->seq, 1, &fork));
    expect_status(client, KVPOOL_E_PERM, kvpool_seq_free(client, 1, &shared->seq));
    expect_status(client, KVPOOL_E_PERM, kvpool_prefix_unpin(client, shared->pool, shared->pin));
    kvpool_region *region;
    expect_ok(client, kvpool_region_create(client, 4096, &region));
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    uint32_t one = 1;
    attn.pool = shared->pool;
    attn.n = 1;
    attn.seqs = &shared->seq;
    attn.q_len = &one;
    attn.qo_heads = 1;
    attn.q.region = region;
    attn.out = (kvpool_tensor){region, 1024, 0, 0};
    expect_status(client, KVPOOL_E_PERM, kvpool_decode(client, &attn));
    // Not visible: neither its sequences, nor its process, nor its counters.
    kvpool_seq_info seqs[8];
    kvpool_client_info clients[8];
    kvpool_usage usage[8];
    uint32_t n = 0, cursor = 0;
    for (int i = 0; i < 8; i++) {
        seqs[i].size = sizeof seqs[i];
        clients[i].size = sizeof clients[i];
        usage[i].size = sizeof usage[i];
    }
    expect_ok(client, kvpool_list_seqs(client, &cursor, 8, seqs, &n));
    check(n == 1 && seqs[0].seq == seq);
    cursor = 0;
    expect_ok(client, kvpool_list_clients(client, &cursor, 8, clients, &n));
    check(n == 1 && clients[0].uid == OTHER);
    cursor = 0;
    expect_ok(client, kvpool_list_usage(client, shared->pool, &cursor, 8, usage, &n));
    check(n == 1 && strcmp(usage[0].name, "second") == 0 && usage[0].hit_tokens == 0);
    check(usage[0].reserve == 4096);
    // The other pool does not let it in, and says the same of one that does not exist.
    kvpool_pool pool = 0;
    uint32_t cleared = 0;
    expect_status(client, KVPOOL_E_PERM, kvpool_pool_open(client, "private", &pool));
    expect_status(client, KVPOOL_E_PERM, kvpool_seq_create(client, shared->private_pool, 1, &fork));
    expect_status(client, KVPOOL_E_PERM, kvpool_pool_destroy(client, shared->pool));
    expect_ok(client, kvpool_cache_clear(client, shared->pool, &cleared)); // of its own: nothing
    check(cleared == 0);
    // Its own pages are found, and by it alone.
    kvpool_seq own = compute(client, shared->pool, 3);
    check(probe(client, shared->pool, 3) == PROMPT);
    // Not to be told from the time it takes: document 1 is cached by the first user, 2 by nobody.
    check(time_tells_nothing(client, shared->pool));
    expect_ok(client, kvpool_seq_free(client, 1, &own));
    kvpool_close(client);
    return 0;
}

static void what_one_user_stores_is_nothing_to_another(void **state) {
    (void)state;
    if (geteuid() != 0) {
        skip();
    }
    kvpool_client *client = client_open(&kvd);
    expect_ok(client, kvpool_pool_open(client, "both", &shared->pool));
    expect_ok(client, kvpool_pool_open(client, "private", &shared->private_pool));
    shared->seq = compute(client, shared->pool, 1);
    expect_ok(client, kvpool_prefix_pin(client, shared->seq, 0, 600000, &shared->pin, NULL));
    assert_int_equal(probe(client, shared->pool, 1), PROMPT);
    pid_t pid = worker_start(second_user, NULL);
    assert_int_equal(process_wait(pid, 120000), 0);
    assert_int_equal(probe(client, shared->pool, 1), PROMPT);
    assert_int_equal(probe(client, shared->pool, 3), 0); // the second's
    expect_ok(client, kvpool_prefix_unpin(client, shared->pool, shared->pin));
    kvpool_close(client);
}

static int teardown(void **state) {
    return geteuid() == 0 ? kvd_teardown(state) : 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_one_user_stores_is_nothing_to_another),
    };
    return cmocka_run_group_tests_name("tenant", tests, setup, teardown);
}
