// SPDX-License-Identifier: Apache-2.0
// test_replay.c: what a replay does with a daemon that refuses: the library is a double that counts
// what is open and fails when it is told to.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/replay.h"
#include "client/cmd/replay_kv.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum call { OPEN, BEGIN, APPEND, COMMIT, FREE, CALLS };

struct kvpool_client {
    kvpool_status last;
};
struct kvpool_region {
    uint8_t bytes[1 << 16];
};

static struct {
    pthread_mutex_t lock;
    kvpool_status fail[CALLS]; // what the call answers,
    uint32_t times[CALLS];     // so many times
    uint32_t calls[CALLS];
    uint32_t seqs, steps, clients, regions; // open ones
    uint32_t tokens, pages, max_pages;      // begun; held; 0: no bound
    uint32_t longest;                       // tokens of a step
    uint32_t together; // workers whose first opens wait for each other; 0: nobody waits
    uint64_t retry_ns;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER};

static volatile int stop;

static kvpool_status answer(kvpool_client *client, enum call call) {
    pthread_mutex_lock(&fake.lock);
    fake.calls[call]++;
    client->last = fake.times[call] > 0 ? fake.fail[call] : KVPOOL_OK;
    fake.times[call] -= fake.times[call] > 0;
    pthread_mutex_unlock(&fake.lock);
    return client->last;
}

kvpool_status kvpool_connect(const kvpool_connect_args *args, kvpool_client **ret_client) {
    assert_string_equal(args->name, "test");
    *ret_client = calloc(1, sizeof(**ret_client));
    fake.clients++;
    return KVPOOL_OK;
}

void kvpool_close(kvpool_client *client) {
    fake.clients -= client != NULL;
    free(client);
}

const char *kvpool_last_error(const kvpool_client *client, char *buf, size_t buf_size) {
    snprintf(buf, buf_size, "text of %d", client->last);
    return buf;
}

uint64_t kvpool_retry_after_ns(const kvpool_client *client) {
    return client->last == KVPOOL_E_AGAIN ? fake.retry_ns : 0;
}

kvpool_status kvpool_pool_open(kvpool_client *client, const char *name, kvpool_pool *ret_pool) {
    client->last = strcmp(name, "kv") == 0 ? KVPOOL_OK : KVPOOL_E_NOTFOUND;
    *ret_pool = 1;
    return client->last;
}

kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                   kvpool_region **ret_region) {
    (void)client;
    assert_true(bytes <= sizeof((*ret_region)->bytes));
    *ret_region = calloc(1, sizeof(**ret_region));
    fake.regions++;
    return KVPOOL_OK;
}

void *kvpool_region_data(const kvpool_region *region) {
    return (void *)(uintptr_t)region->bytes;
}

kvpool_status kvpool_region_free(kvpool_region *region) {
    fake.regions -= region != NULL;
    free(region);
    return KVPOOL_OK;
}

static void wait_for_the_others(void) {
    const struct timespec ms = {0, 1000000};
    bool waiting = true;
    for (int i = 0; i < 5000 && waiting; i++) {
        pthread_mutex_lock(&fake.lock);
        waiting = fake.calls[OPEN] < fake.together;
        pthread_mutex_unlock(&fake.lock);
        if (waiting) {
            nanosleep(&ms, NULL);
        }
    }
    assert_false(waiting);
}

kvpool_status kvpool_seq_open_with(kvpool_client *client, const kvpool_open_args *args,
                                   kvpool_seq *ret_seq, uint32_t *ret_matched) {
    kvpool_status status = answer(client, OPEN);
    assert_int_equal(args->n, 99);
    wait_for_the_others();
    if (status == KVPOOL_OK) {
        pthread_mutex_lock(&fake.lock);
        *ret_seq = ++fake.seqs;
        *ret_matched = 32;
        pthread_mutex_unlock(&fake.lock);
    }
    return status;
}

kvpool_status kvpool_step_begin(kvpool_client *client, const kvpool_step_args *args,
                                kvpool_step *ret_step, uint64_t *ret_missing_pages) {
    kvpool_status status = answer(client, BEGIN);
    (void)ret_missing_pages;
    assert_non_null(args->tokens);
    assert_int_equal(args->n, 1);
    pthread_mutex_lock(&fake.lock);
    if (status == KVPOOL_OK && fake.max_pages != 0 && fake.pages + 1 > fake.max_pages) {
        status = client->last = KVPOOL_E_NOSPACE;
    }
    if (status == KVPOOL_OK) {
        fake.pages++;
        fake.steps++;
        fake.tokens += args->new_tokens[0];
        fake.longest = args->new_tokens[0] > fake.longest ? args->new_tokens[0] : fake.longest;
        *ret_step = 5;
    }
    pthread_mutex_unlock(&fake.lock);
    return status;
}

kvpool_status kvpool_append(kvpool_client *client, const kvpool_attn_args *args) {
    assert_int_equal(args->step, 5);
    return answer(client, APPEND);
}

// Gives zeros, in the last layer.
kvpool_status kvpool_decode(kvpool_client *client, const kvpool_attn_args *args) {
    assert_int_equal(args->qo_heads, 1);
    if (args->layer == 1) {
        memset(args->out.region->bytes + args->out.offset, 0, 16);
    }
    client->last = KVPOOL_OK;
    return KVPOOL_OK;
}

static kvpool_status end_step(kvpool_status status) {
    pthread_mutex_lock(&fake.lock);
    fake.steps -= status == KVPOOL_OK;
    pthread_mutex_unlock(&fake.lock);
    return status;
}

kvpool_status kvpool_step_commit(kvpool_client *client, kvpool_step step) {
    (void)step;
    return end_step(answer(client, COMMIT));
}

kvpool_status kvpool_step_abort(kvpool_client *client, kvpool_step step) {
    (void)client;
    (void)step;
    return end_step(KVPOOL_OK);
}

// Frees the sequence, and with it all pages (of a test with one worker), or one of several workers'.
kvpool_status kvpool_seq_free(kvpool_client *client, uint32_t n, const kvpool_seq *seqs) {
    kvpool_status status = answer(client, FREE);
    (void)seqs;
    assert_int_equal(n, 1);
    if (status == KVPOOL_OK) {
        pthread_mutex_lock(&fake.lock);
        fake.seqs--;
        fake.pages = fake.seqs == 0 ? 0 : fake.pages;
        pthread_mutex_unlock(&fake.lock);
    }
    return status;
}

static uint64_t ids[] = {1, 2};
static struct trace_line lines[40];
static const struct trace_file file = {.lines = lines, .n = 40};

static int setup(void **state) {
    (void)state;
    stop = 0;
    memset(fake.fail, 0, sizeof(fake.fail));
    memset(fake.times, 0, sizeof(fake.times));
    memset(fake.calls, 0, sizeof(fake.calls));
    fake.seqs = fake.steps = fake.tokens = fake.pages = fake.max_pages = fake.longest = 0;
    fake.retry_ns = 0;
    fake.together = 0;
    for (int i = 0; i < 40; i++) {
        lines[i] = (struct trace_line){.input = 100,
                                       .output = 10,
                                       .opened = 99,
                                       .block_size = 64,
                                       .ids = ids,
                                       .blocks = 2,
                                       .timestamp = 10.0 * i};
    }
    return 0;
}

static struct replay_args make_args(uint32_t workers) {
    struct replay_args args = {.connect = KVPOOL_CONNECT_ARGS_INIT,
                               .pool = {.name = "kv",
                                        .layers = 2,
                                        .kv_heads = 1,
                                        .head_dim = 8,
                                        .page_size = 16,
                                        .dtype = KVPOOL_FP16},
                               .file = &file,
                               .workers = workers,
                               .chunk = 50,
                               .stop = &stop};
    args.connect.name = "test";
    return args;
}

static struct replay_result run(uint32_t workers) {
    struct replay_args args = make_args(workers);
    struct replay_result result;
    assert_int_equal(replay_run(&args, &result), 0);
    assert_int_equal(fake.seqs, 0);
    assert_int_equal(fake.steps, 0);
    assert_int_equal(fake.clients, 0);
    assert_int_equal(fake.regions, 0);
    return result;
}

static void refuse(enum call call, kvpool_status status, uint32_t times) {
    fake.fail[call] = status;
    fake.times[call] = times;
}

static void every_line_is_run_once(void **state) {
    (void)state;
    struct replay_result r = run(3);
    assert_int_equal(r.requests, 40);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.input, 4000);
    assert_int_equal(r.looked_up, 3960);
    assert_int_equal(r.hit, 1280);
    assert_int_equal(r.output, 400);
    assert_int_equal(fake.tokens, 40 * (110 - 32));
    assert_int_equal(fake.longest, 50);
    assert_int_equal(fake.calls[BEGIN], 40 * 3); // 50 and 18 of the prompt, 10 of the output
    assert_int_equal(fake.calls[APPEND], 40 * 3 * 2);
    assert_true(r.open_p50_us > 0 && r.open_p99_us >= r.open_p50_us);
    assert_true(r.request_p50_us > r.open_p50_us);
}

static void again_is_tried_again_after_the_time_that_the_daemon_names(void **state) {
    (void)state;
    for (int call = 0; call < CALLS; call++) {
        setup(NULL);
        refuse((enum call)call, KVPOOL_E_AGAIN, 5);
        fake.retry_ns = 4000000;
        struct replay_result r = run(1);
        assert_int_equal(r.requests, 40);
        assert_int_equal(r.errors, 0);
        assert_int_equal(r.again, 5);
        assert_true(r.seconds >= 5 * 0.004);
    }
}

static void a_failed_line_is_counted_and_the_next_one_runs(void **state) {
    static const kvpool_status status[CALLS] = {KVPOOL_E_LIMIT, KVPOOL_E_INVAL, KVPOOL_E_BACKEND,
                                                KVPOOL_E_STATE, KVPOOL_E_BUSY};
    (void)state;
    for (int call = 0; call < CALLS - 1; call++) {
        char text[64];
        setup(NULL);
        refuse((enum call)call, status[call], 1);
        struct replay_result r = run(1);
        assert_int_equal(r.requests, 39);
        assert_int_equal(r.errors, 1);
        assert_int_equal(r.input, 3900);
        snprintf(text, sizeof(text), "text of %d (%s)", status[call],
                 kvpool_status_name(status[call]));
        assert_string_equal(r.first_error, text);
    }
}

static void a_lost_connection_ends_it(void **state) {
    (void)state;
    refuse(OPEN, KVPOOL_E_CONN, UINT32_MAX);
    struct replay_result r = run(2);
    assert_int_equal(r.requests, 0);
    assert_in_range(r.errors, 1, 2); // each worker's one
}

static void out_of_pages_alone_is_an_error(void **state) {
    (void)state;
    fake.max_pages = 2; // a line takes three in this double
    struct replay_result r = run(1);
    assert_int_equal(r.requests, 0);
    assert_int_equal(r.errors, 40);
    assert_int_equal(r.nospace, 0);
    assert_string_equal(r.first_error, "text of -4 (KVPOOL_E_NOSPACE)");
}

static void out_of_pages_beside_others_is_begun_again(void **state) {
    (void)state;
    fake.max_pages = 3; // one at a time
    struct replay_result r = run(4);
    assert_int_equal(r.requests, 40);
    assert_int_equal(r.errors, 0);
    assert_string_equal(r.first_error, "");
}

static void two_that_block_each_other_both_get_through(void **state) {
    (void)state;
    fake.together = 2;
    refuse(BEGIN, KVPOOL_E_NOSPACE, 2); // both: neither is alone, and then nobody is at work
    struct replay_result r = run(2);
    assert_int_equal(r.requests, 40);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.nospace, 2);
}

static void a_trace_can_be_stopped(void **state) {
    (void)state;
    struct replay_args args = make_args(2);
    struct replay_result r;
    stop = 1;
    assert_int_equal(replay_run(&args, &r), 0);
    assert_int_equal(r.requests, 0);
    stop = 0;
    args.speed = 2; // 390 ms of trace
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(replay_run(&args, &r), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_int_equal(r.requests, 40);
    assert_true((double)(after.tv_sec - before.tv_sec) +
                    (double)(after.tv_nsec - before.tv_nsec) / 1e9 >=
                0.195);
}

static void wrong_attention_is_counted(void **state) {
    (void)state;
    struct replay_args args = make_args(2);
    struct replay_result r;
    args.check = true;
    assert_int_equal(replay_run(&args, &r), 0);
    assert_int_equal(r.requests, 40);
    assert_int_equal(r.errors, 0);
    assert_int_equal(r.wrong, 40);
    assert_int_equal(run(1).wrong, 0); // not asked for
}

// Attention over one token is its V; over two, something between.
static void attention_is_checked_in_every_type(void **state) {
    static const uint32_t dtypes[] = {KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32};
    static const uint32_t tokens[] = {77, 78};
    (void)state;
    for (int i = 0; i < 3; i++) {
        kvpool_pool_info pool = {.kv_heads = 2, .head_dim = 8, .dtype = dtypes[i]};
        uint8_t k[64], v[64], other[64];
        const size_t bytes = replay_kv_bytes(&pool);
        assert_int_equal(bytes, i == 2 ? 64 : 32);
        replay_kv_fill(&pool, 77, 3, k, v);
        assert_true(replay_kv_check(&pool, tokens, 1, 3, v));
        assert_false(replay_kv_check(&pool, tokens, 1, 2, v)); // another layer's
        assert_false(replay_kv_check(&pool, tokens + 1, 1, 3, v));
        assert_false(replay_kv_check(&pool, tokens, 2, 3, v));
        replay_kv_fill(&pool, 77, 3, other, k);
        assert_memory_equal(v, k, bytes);
        assert_memory_not_equal(v, other, bytes);
        v[bytes - 1] ^= 0x80; // a sign
        assert_false(replay_kv_check(&pool, tokens, 1, 3, v));
        memset(v, 0xFF, bytes); // NaN
        assert_false(replay_kv_check(&pool, tokens, 1, 3, v));
        replay_kv_query(&pool, v);
        assert_memory_equal(v, v + bytes / 16, bytes - bytes / 16); // all the same
        assert_int_equal(v[bytes - 1], 0x3C + 3 * (i > 0));         // 1 begins with 0x3C or 0x3F80
    }
}

static void a_worker_that_cannot_start_is_told(void **state) {
    (void)state;
    struct replay_args args = make_args(2);
    struct replay_result r;
    snprintf(args.pool.name, sizeof(args.pool.name), "other");
    assert_int_equal(replay_run(&args, &r), 1);
    assert_int_equal(fake.clients, 0);
    assert_int_equal(fake.regions, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup(name, setup)
        TEST(every_line_is_run_once),
        TEST(again_is_tried_again_after_the_time_that_the_daemon_names),
        TEST(a_failed_line_is_counted_and_the_next_one_runs),
        TEST(a_lost_connection_ends_it),
        TEST(out_of_pages_alone_is_an_error),
        TEST(out_of_pages_beside_others_is_begun_again),
        TEST(two_that_block_each_other_both_get_through),
        TEST(a_trace_can_be_stopped),
        TEST(wrong_attention_is_counted),
        TEST(attention_is_checked_in_every_type),
        TEST(a_worker_that_cannot_start_is_told),
    };
    return cmocka_run_group_tests_name("cmd/replay", tests, NULL, NULL);
}
