// SPDX-License-Identifier: Apache-2.0
// test_fairness.c: one client floods the daemon with prefills of a long prompt, as many at once as
// it may; another's decodes stay fast: their p99 rises at most three times over what it is alone, in
// most of the rounds.
//
// Both processes, the daemon's loop and its compute threads share the machine's processors; the
// flooder only waits. Where other processes take processor time during a round, every wake-up waits
// for one of theirs, and the ratio says more about them: LOOSE_RATIO holds for such a round. Under
// sanitizers compute threads are many times slower and the other threads are not, so the bound there
// only shows that the victim is served at all: MOST_RATIO.
#include "tests/system/harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    HEAD_DIM = 64,
    GROUP = 2, // query heads of a K/V head
    VICTIM_HEADS = 8,
    FLOOD_HEADS = 4,
    VICTIM_SEQS = 8,
    VICTIM_TOKENS = 2048 / SLOWNESS,
    FLOOD_TOKENS = 4096 / SLOWNESS,
    FLOOD_INFLIGHT = 64,      // max_inflight's default
    FILL = 256,               // tokens of one append
    DECODES = 200 / SLOWNESS, // of a round
    MAX_ROUNDS = 5,
    GOOD_ROUNDS = 3,
};
#define LOOSE_RATIO 20.0
#define MOST_RATIO (SLOWNESS == 1 ? 3.0 : LOOSE_RATIO)
#define MOST_OTHERS 0.1 // of one processor

struct shared { // between the processes
    _Atomic uint32_t flooding;
    _Atomic uint64_t prefills;
};
static struct shared *shared;

struct worker {
    kvpool_client *client;
    kvpool_pool pool;
    kvpool_region *region;
    kvpool_seq seqs[VICTIM_SEQS];
    uint32_t q_len[VICTIM_SEQS], n, kv_heads;
    size_t q_bytes, kv_bytes; // of a token
};

// n sequences of `tokens` committed tokens, and a region for q and out of `queries`.
static void open_worker(struct worker *w, const char *pool, uint32_t kv_heads, uint32_t n,
                        uint32_t tokens, uint32_t queries) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = pool;
    config.layers = 1;
    config.kv_heads = kv_heads;
    config.head_dim = HEAD_DIM;
    config.page_size = 16;
    config.dtype = KVPOOL_FP32;
    config.num_pages = n * tokens / 16;
    memset(w, 0, sizeof *w);
    w->client = client_open_timeout(&kvd, 60000);
    w->n = n;
    w->kv_heads = kv_heads;
    w->kv_bytes = (size_t)kv_heads * HEAD_DIM * sizeof(float);
    w->q_bytes = GROUP * w->kv_bytes;
    expect_ok(w->client, kvpool_pool_create(w->client, &config, &w->pool));
    expect_ok(w->client, kvpool_seq_create(w->client, w->pool, n, w->seqs));
    const size_t q_out = w->q_bytes * 2 * queries, k_v = w->kv_bytes * FILL;
    size_t bytes = q_out + 2 * k_v;
    expect_ok(w->client, kvpool_region_create(w->client, bytes, &w->region));
    float *data = kvpool_region_data(w->region);
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        data[i] = (float)(i * 2654435761u % 1000) / 1000 - 0.5F;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t done = 0; done < tokens; done += FILL) {
            uint32_t fill = tokens - done < FILL ? tokens - done : FILL;
            kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
            kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
            begin.pool = w->pool;
            begin.n = 1;
            begin.seqs = &w->seqs[i];
            begin.new_tokens = &fill;
            expect_ok(w->client, kvpool_step_begin(w->client, &begin, &attn.step, NULL));
            attn.k = (kvpool_tensor){w->region, q_out, 0, 0};
            attn.v = (kvpool_tensor){w->region, q_out + k_v, 0, 0};
            expect_ok(w->client, kvpool_append(w->client, &attn));
            expect_ok(w->client, kvpool_step_commit(w->client, attn.step));
        }
    }
}

static kvpool_attn_args attention(struct worker *w, uint32_t queries) {
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    for (uint32_t i = 0; i < w->n; i++)
        w->q_len[i] = queries / w->n;
    attn.pool = w->pool;
    attn.n = w->n;
    attn.seqs = w->seqs;
    attn.q_len = w->q_len;
    attn.qo_heads = GROUP * w->kv_heads;
    attn.q = (kvpool_tensor){w->region, 0, 0, 0};
    attn.out = (kvpool_tensor){w->region, queries * w->q_bytes, 0, 0};
    return attn;
}

// Until it is killed.
static int flood(void *arg) {
    (void)arg;
    struct worker w;
    kvpool_op *ops[FLOOD_INFLIGHT];
    open_worker(&w, "flood", FLOOD_HEADS, 1, FLOOD_TOKENS, FLOOD_TOKENS);
    kvpool_attn_args attn = attention(&w, FLOOD_TOKENS);
    const kvpool_request request = {
        .size = sizeof request, .kind = KVPOOL_OP_PREFILL, .attn = &attn};
    for (uint32_t i = 0; i < FLOOD_INFLIGHT; i++)
        expect_ok(w.client, kvpool_submit(w.client, &request, &ops[i]));
    shared->flooding = 1;
    for (uint32_t i = 0;; i = (i + 1) % FLOOD_INFLIGHT) {
        expect_ok(w.client, kvpool_wait(w.client, ops[i], UINT32_MAX));
        shared->prefills++;
        expect_ok(w.client, kvpool_submit(w.client, &request, &ops[i]));
    }
    return 0;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// p99 of the victim's decodes, in microseconds; *ret_p50 beside it.
static double measure(struct worker *w, double *ret_p50) {
    static double took[DECODES];
    kvpool_attn_args attn = attention(w, VICTIM_SEQS);
    for (uint32_t i = 0; i < DECODES; i++) {
        uint64_t begin = now_ns();
        expect_ok(w->client, kvpool_decode(w->client, &attn));
        took[i] = (double)(now_ns() - begin) / 1000;
    }
    qsort(took, DECODES, sizeof took[0], by_value);
    *ret_p50 = took[DECODES / 2];
    return took[DECODES - 1 - DECODES / 100];
}

// The first line of a file of /proc (static buffer).
static char *first_line(const char *path) {
    static char line[1024];
    FILE *f = fopen(path, "r");
    check(f != NULL);
    check(fgets(line, sizeof line, f) != NULL);
    fclose(f);
    return line;
}

// Processor time in clock ticks: of the whole machine, of one process.
static uint64_t machine_ticks(void) {
    char *at = first_line("/proc/stat") + strlen("cpu");
    uint64_t busy = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t ticks = strtoull(at, &at, 10);
        busy += i == 3 || i == 4 ? 0 : ticks; // all but idle and waiting
    }
    return busy;
}

static uint64_t process_ticks(pid_t pid) {
    char path[64];
    uint64_t ticks = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    char *at = strrchr(first_line(path), ')');
    check(at != NULL);
    at = at != NULL ? at + strlen(") S") : path;
    for (int field = 4; field <= 15; field++) {
        uint64_t value = strtoull(at, &at, 10);
        ticks += field >= 14 ? value : 0; // utime and stime
    }
    return ticks;
}

static uint64_t others_ticks(pid_t flooder) {
    uint64_t own = process_ticks(getpid()) + process_ticks(kvd.pid) + process_ticks(flooder);
    uint64_t all = machine_ticks();
    return all > own ? all - own : 0;
}

static pid_t start_flood(void) {
    shared->flooding = 0;
    pid_t pid = worker_start(flood, NULL);
    for (int i = 0; shared->flooding == 0 && i < 6000; i++)
        sleep_ms(10);
    assert_int_equal(shared->flooding, 1);
    return pid;
}

// A dead flooder's queue is dropped: its session ends long before that could have run. Returns
// after how many ms it has.
static double end_flood(pid_t pid, kvpool_client *client) {
    uint64_t begin = now_ns();
    kill(pid, SIGKILL);
    assert_int_equal(process_wait(pid, 10000), 128 + SIGKILL);
    kvpool_stats stats = {.size = sizeof stats};
    do {
        expect_ok(client, kvpool_get_stats(client, &stats));
        sleep_ms(1);
    } while (stats.clients > 1 && now_ns() - begin < 10000000000u);
    assert_int_equal(stats.clients, 1);
    return (double)(now_ns() - begin) / 1e6;
}

// Rounds alone and beside the flood take turns until two have kept the bound: what else runs on the
// machine comes and goes, and can only add. Without fair scheduling a decode waits for the whole
// queue of the flood, a thousand times its own length, in every round.
static void a_flood_of_prefills_triples_a_decodes_p99_at_most(void **state) {
    (void)state;
    struct worker victim;
    double p50 = 0, flooded_p50 = 0;
    open_worker(&victim, "victim", VICTIM_HEADS, VICTIM_SEQS, VICTIM_TOKENS, VICTIM_SEQS);
    (void)measure(&victim, &p50); // warm
    int good = 0;
    for (int round = 0; round < MAX_ROUNDS && good < GOOD_ROUNDS; round++) {
        double p99 = measure(&victim, &p50);
        pid_t flooder = start_flood();
        uint64_t before = shared->prefills, others = others_ticks(flooder), begin = now_ns();
        double flooded_p99 = measure(&victim, &flooded_p50);
        double seconds = (double)(now_ns() - begin) / 1e9;
        double taken =
            ((double)others_ticks(flooder) - (double)others) / (double)sysconf(_SC_CLK_TCK);
        double bound = taken / seconds > MOST_OTHERS ? LOOSE_RATIO : MOST_RATIO;
        // It is a flood, and it advances: an eighth of the device's time is its own.
        for (int i = 0; shared->prefills == before && i < 6000; i++)
            sleep_ms(10);
        assert_true(shared->prefills > before);
        double ended = end_flood(flooder, victim.client);
        double ratio = flooded_p99 / p99;
        good += ratio <= bound;
        print_message(
            "fairness: decode p50 %.0f p99 %.0f us alone, p50 %.0f p99 %.0f us beside a "
            "flood for %.1f s: ratio %.2f of at most %.0f (others took %.2f of a processor); "
            "its session ended in %.0f ms\n",
            p50, p99, flooded_p50, flooded_p99, seconds, ratio, bound, taken / seconds, ended);
    }
    assert_int_equal(good, GOOD_ROUNDS);
    kvpool_close(victim.client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flood_of_prefills_triples_a_decodes_p99_at_most),
    };
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    return cmocka_run_group_tests_name("fairness", tests, kvd_setup, kvd_teardown);
}
