// SPDX-License-Identifier: Apache-2.0
// test_device_deaths.c: processes that die with the GPU's memory in use: a worker with a region of each
// kind and requests in flight costs the others nothing; memory by descriptor outlives the daemon.
#include "tests/system/device_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <string.h>

// A load over memory of a kind; of the worker's own: `own` bytes.
static struct device_load *open_load(kvpool_client *client, kvpool_pool pool, enum device_kind kind,
                                     uint64_t own, unsigned seed) {
    const struct device_place place = kind == OWN ? device_place_own(client, gpu_alloc(own), own)
                                                  : device_place_alloc(client, kind);
    return device_load_open(client, pool, &place, &place, seed + kind);
}

static int survivor(void *arg) {
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    struct device_load *l = open_load(client, pool, *(const enum device_kind *)arg, 2 * MIB, 500);
    atomic_fetch_add(&device_shared->ready, 1);
    while (atomic_load(&device_shared->stop) == 0) {
        device_load_turns(l);
        device_load_reset(l);
        atomic_fetch_add(&device_shared->rounds, 1);
    }
    device_load_close(l);
    kvpool_close(client);
    return 0;
}

_Noreturn static void send_forever(struct device_load *l) {
    for (;;)
        device_load_send(l);
}

static int victim(void *arg) {
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    const kvpool_pool pool = device_pool(client, "by-ipc", KVPOOL_EXPORT_IPC);
    struct device_load *l = open_load(client, pool, *(const enum device_kind *)arg, 4 * MIB, 600);
    device_load_send(l);
    atomic_fetch_add(&device_shared->ready, 1);
    send_forever(l);
}

static kvpool_stats stats_of(kvpool_client *client) {
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    return stats;
}

enum { SURVIVORS = 3 };

// Until the daemon has nothing more of the worker that was killed. The others have a step open, or not.
static void await_reclaim(kvpool_client *client, const kvpool_stats *before) {
    const uint64_t end = now_ns() + 10000000000u;
    kvpool_stats now = stats_of(client);
    while (now.sessions_died == before->sessions_died || now.regions != before->regions ||
           now.seqs != before->seqs || now.steps > SURVIVORS) {
        if (now_ns() > end)
            fail_msg("%u regions, %u sequences, %u steps are left of %u, %u, %u", now.regions,
                     now.seqs, now.steps, before->regions, before->seqs, (unsigned)SURVIVORS);
        sleep_ms(2);
        now = stats_of(client);
    }
}

static void a_dead_worker_costs_the_others_nothing(void **state) {
    (void)state;
    static enum device_kind alive[SURVIVORS] = {BY_FD, BY_IPC, OWN};
    static enum device_kind victims[] = {BY_FD, BY_IPC, OWN, IN_HOST, OWN, BY_IPC};
    kvpool_client *client = client_open(&kvd);
    pid_t survivors[SURVIVORS];
    for (int i = 0; i < SURVIVORS; i++)
        survivors[i] = worker_start(survivor, &alive[i]);
    device_await(&device_shared->ready, SURVIVORS);
    const kvpool_stats before = stats_of(client);
    assert_int_equal(before.regions, SURVIVORS);
    for (unsigned i = 0; i < sizeof victims / sizeof victims[0]; i++) {
        const kvpool_stats now = stats_of(client);
        const pid_t pid = worker_start(victim, &victims[i]);
        device_await(&device_shared->ready, SURVIVORS + 1 + i);
        sleep_ms(i * 3);
        kill(pid, SIGKILL);
        assert_int_equal(process_wait(pid, DEVICE_LIMIT_MS), 128 + SIGKILL);
        await_reclaim(client, &now);
        const unsigned rounds = atomic_load(&device_shared->rounds);
        device_await(&device_shared->rounds, rounds + 1);
    }
    atomic_store(&device_shared->stop, 1);
    for (int i = 0; i < SURVIVORS; i++)
        device_join(survivors[i], device_kind_names[alive[i]]);
    const kvpool_stats after = stats_of(client);
    assert_int_equal(after.epoch, before.epoch);
    assert_int_equal(after.regions, 0);
    assert_int_equal(after.seqs, 0);
    assert_int_equal(after.steps, 0);
    kvpool_close(client);
}

// Memory behind a descriptor outlives the daemon; an end in order follows whatever it was.
static int worker_that_outlives_the_daemon(void *arg) {
    (void)arg;
    unsigned char wrote[4096], read[4096];
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    const struct device_place by_fd = device_place_alloc(client, BY_FD),
                              by_ipc = device_place_alloc(client, BY_IPC);
    const struct device_place own = device_place_own(client, gpu_alloc(2 * MIB), 2 * MIB);
    for (size_t i = 0; i < sizeof wrote; i++)
        wrote[i] = (unsigned char)(i * 7 + 1);
    gpu_put(by_fd.at + MIB, wrote, sizeof wrote);
    gpu_put(own.at + MIB, wrote, sizeof wrote);
    atomic_fetch_add(&device_shared->ready, 1);
    device_await(&device_shared->stop, 1);
    gpu_get(read, by_fd.at + MIB, sizeof read);
    check(memcmp(wrote, read, sizeof read) == 0);
    gpu_get(read, own.at + MIB, sizeof read);
    check(memcmp(wrote, read, sizeof read) == 0);
    kvpool_region_free(by_ipc.region);
    kvpool_region_free(by_fd.region);
    kvpool_region_free(own.region);
    kvpool_close(client);
    return 0;
}

static void memory_by_descriptor_outlives_the_daemon(void **state) {
    (void)state;
    const pid_t pid = worker_start(worker_that_outlives_the_daemon, NULL);
    device_await(&device_shared->ready, 1);
    daemon_end(&kvd, SIGKILL, 20000);
    atomic_store(&device_shared->stop, 1);
    device_join(pid, "the worker");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_dead_worker_costs_the_others_nothing, device_setup),
        cmocka_unit_test_setup(memory_by_descriptor_outlives_the_daemon, device_setup), // the last
    };
    const int status = device_prepare();
    return status != 0
               ? status
               : cmocka_run_group_tests_name("device deaths", tests, kvd_setup, kvd_teardown);
}
