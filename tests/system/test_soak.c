// SPDX-License-Identifier: Apache-2.0
// test_soak.c: 64 workers on one pool, killed with SIGKILL at random moments and replaced. Every
// survivor's outputs are right, the pages of the dead are back within 100 ms (99th percentile), and
// at the end no page and no file descriptor is lost.
//
// Victims run in a namespace-less pool of their own each, so that the pages of the one that was
// killed can be told from those of the others; everybody else shares one.
//
//   KVPOOL_SOAK_S   how long (default 6 seconds). When it is given the 99th percentile is held to
//                   100 ms; else only what the daemon itself takes is: 64 busy workers on a machine
//                   of two cores delay this program's own requests, and a build that checks core
//                   after every operation delays everything.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { WORKERS = 64, VICTIMS = 8, SHARED_PAGES = 1024, OWN_PAGES = 24, MAX_KILLS = 100000 };

struct seen { // of one worker, shared with the test
    volatile unsigned stop;
    volatile uint64_t tokens, reused;
};
static struct seen *seen; // [WORKERS]

static int setup(void **state) {
    (void)state;
    daemon_prepare(&kvd);
    daemon_start(&kvd, NULL);
    seen = mmap(NULL, WORKERS * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                -1, 0);
    return seen == MAP_FAILED;
}

struct job {
    unsigned worker, seed;
};

// The first VICTIMS workers also have a load in a pool of their own.
static int work(void *arg) {
    const struct job job = *(const struct job *)arg;
    struct seen *s = &seen[job.worker];
    kvpool_client *client = client_open_timeout(&kvd, 60000);
    struct load *loads[2] = {load_open(client, "shared", SHARED_PAGES, job.seed), NULL};
    check(loads[0] != NULL);
    unsigned n = 1;
    if (job.worker < VICTIMS) {
        char name[16];
        snprintf(name, sizeof name, "own-%u", job.worker);
        loads[n++] = load_open(client, name, OWN_PAGES, job.seed + 1);
        check(loads[1] != NULL);
    } else {
        load_allow_pins(loads[0]);
    }
    while (s->stop == 0) {
        for (unsigned i = 0; i < n; i++) {
            expect_ok(client, load_round(loads[i]));
        }
        s->tokens = load_tokens(loads[0]);
        s->reused = load_reused(loads[0]);
    }
    for (unsigned i = 0; i < n; i++) {
        load_close(loads[i]);
    }
    kvpool_close(client);
    return 0;
}

static unsigned count_fds(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    unsigned n = 0;
    while (dir != NULL && readdir(dir) != NULL) {
        n++;
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return n;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static pid_t start(unsigned worker, unsigned *seed) {
    struct job job = {worker, *seed += 2};
    return worker_start(work, &job);
}

static void survivors_are_right_and_the_dead_leave_nothing(void **state) {
    (void)state;
    const char *env = getenv("KVPOOL_SOAK_S");
    const uint64_t run_ns = (env != NULL ? strtoull(env, NULL, 0) : 6) * 1000000000u;
    unsigned seed = random_seed();
    srand(seed);
    kvpool_client *client = client_open_timeout(&kvd, 60000);
    kvpool_pool own[VICTIMS];
    for (unsigned i = 0; i < VICTIMS; i++) { // the pools outlive their workers
        char name[16];
        snprintf(name, sizeof name, "own-%u", i);
        struct load *load = load_open(client, name, OWN_PAGES, seed);
        assert_non_null(load);
        own[i] = load_pool(load);
        load_close(load);
    }
    struct load *load = load_open(client, "shared", SHARED_PAGES, seed);
    assert_non_null(load);
    const kvpool_pool shared = load_pool(load);
    load_close(load);
    sleep_ms(200);
    const unsigned fds = count_fds(kvd.pid);
    pid_t pids[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        pids[i] = start(i, &seed);
    }
    double *delay_ms = calloc(MAX_KILLS, sizeof *delay_ms);
    assert_non_null(delay_ms);
    unsigned kills = 0, measured = 0;
    const uint64_t end = now_ns() + run_ns;
    const uint64_t last = end + 60000000000u; // on a busy machine few victims hold pages yet
    while ((now_ns() < end || (measured == 0 && now_ns() < last)) && kills < MAX_KILLS) {
        sleep_ms((unsigned)rand() % 60);
        unsigned worker =
            (unsigned)rand() % 3 == 0 ? (unsigned)rand() % WORKERS : (unsigned)rand() % VICTIMS;
        bool holds = worker < VICTIMS && load_active(client, own[worker]) > 0;
        uint64_t killed = now_ns();
        kill(pids[worker], SIGKILL);
        while (holds && load_active(client, own[worker]) > 0 && now_ns() - killed < 5000000000u) {
        }
        if (holds) {
            assert_int_equal(load_active(client, own[worker]), 0);
            delay_ms[measured++] = (double)(now_ns() - killed) / 1e6;
        }
        int status = process_wait(pids[worker], 10000);
        assert_int_equal(status, 128 + SIGKILL); // any other: a wrong output ended it before
        kills++;
        pids[worker] = start(worker, &seed);
    }
    uint64_t tokens = 0, reused = 0;
    for (unsigned i = 0; i < WORKERS; i++) {
        seen[i].stop = 1;
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        assert_int_equal(process_wait(pids[i], 120000), 0);
        tokens += seen[i].tokens;
        reused += seen[i].reused;
    }
    qsort(delay_ms, measured, sizeof delay_ms[0], compare);
    const double p99 = measured > 0 ? delay_ms[(measured - 1) * 99 / 100] : 0;
    printf("soak: %u kills, %u measured, reclaim p50 %.1f ms p99 %.1f ms max %.1f ms; survivors: "
           "%llu tokens checked, %llu reused\n",
           kills, measured, measured > 0 ? delay_ms[measured / 2] : 0, p99,
           measured > 0 ? delay_ms[measured - 1] : 0, (unsigned long long)tokens,
           (unsigned long long)reused);
    sleep_ms(2500); // pins end
    for (unsigned i = 0; i < VICTIMS; i++) {
        assert_int_equal(load_active(client, own[i]), 0);
    }
    assert_int_equal(load_active(client, shared), 0);
    uint32_t pages = 0;
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_cache_clear(client, shared, &pages));
    expect_ok(client, kvpool_pool_stat(client, shared, &info));
    assert_int_equal(info.free_pages, SHARED_PAGES);
    assert_true(pages > 0);
    assert_int_equal(info.seqs, 0);
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    assert_int_equal(stats.regions, 0);
    assert_int_equal(stats.clients, 1);
    // NNG before 1.10 loses some removals of connections whose client died, and with them a
    // descriptor each: those are counted as leaked.
    printf("soak: the daemon's own longest reclaim %.1f ms; relistens %llu\n",
           (double)stats.reclaim_max_ns / 1e6, (unsigned long long)stats.relistens);
    // The daemon's probes of its own sockets have one for a moment, and count what a lost listener leaves.
    unsigned now = count_fds(kvd.pid);
    for (unsigned i = 0; i < 100 && now > fds + stats.leaked_pipes; i++) {
        sleep_ms(100);
        now = count_fds(kvd.pid);
        expect_ok(client, kvpool_get_stats(client, &stats));
    }
    printf("soak: daemon has %u descriptors, had %u; leaked pipes %llu\n", now, fds,
           (unsigned long long)stats.leaked_pipes);
    assert_true(now <= fds + stats.leaked_pipes);
    assert_true(kills >= 5 && measured > 0);
    assert_true(tokens > 0 && reused > 0);
    assert_true(p99 < (env != NULL ? 100.0 : 1000.0) * SLOWNESS);
    assert_true((double)stats.reclaim_max_ns / 1e6 < 100.0 * SLOWNESS);
    free(delay_ms);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(survivors_are_right_and_the_dead_leave_nothing),
    };
    return cmocka_run_group_tests_name("soak", tests, setup, kvd_teardown);
}
