// SPDX-License-Identifier: Apache-2.0
// test_device_busy.c: memory is given up while the device is busy and takes none back: nobody else has to
// wait, and who needs that memory gets it. The device is the emulated one, which the test keeps busy.
#include "tests/system/device_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    LIMIT_MS = 4000
}; // of a call that does not wait for the device, on a machine with other work

// Of the device's 608 MiB pools leave 512 free and regions 256: room for one of either.
#define MEMORY (608 * MIB)
#define BIG_REGION (184 * MIB)
#define BIG_POOL_PAGES 1280 // of 32 KiB in each of 2 layers

static char busy[160], waiting[176];

static void keep_busy(void) {
    const int fd = open(busy, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
}

static void let_idle(void) {
    unlink(busy);
    unlink(waiting);
}

// Until a thread of the daemon waits for the device.
static void await_waiting(void) {
    const uint64_t end = now_ns() + (uint64_t)DEVICE_LIMIT_MS * 1000000u;
    while (access(waiting, F_OK) != 0) {
        assert_true(now_ns() < end);
        sleep_ms(1);
    }
}

static int setup(void **state) {
    char memory[32];
    device_setup(state);
    daemon_prepare(&kvd);
    snprintf(busy, sizeof busy, "%s/busy", kvd.dir);
    snprintf(waiting, sizeof waiting, "%s.waiting", busy);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)MEMORY);
    setenv("KVPOOL_EMULATE_BUSY", busy, 1); // the daemon's, not the workers'
    setenv("KVPOOL_EMULATE_MEMORY", memory, 1);
    daemon_start(&kvd, NULL);
    unsetenv("KVPOOL_EMULATE_BUSY");
    unsetenv("KVPOOL_EMULATE_MEMORY");
    return 0;
}

static int teardown(void **state) {
    let_idle();
    return kvd_teardown(state);
}

static void daemon_ends(void) {
    const int status = daemon_end(&kvd, SIGTERM, 20000);
    if (status != 0)
        fprintf(stderr, "the daemon's log:\n%s\n", daemon_log(&kvd));
    assert_int_equal(status, 0);
}

static void check_quick(uint64_t since_ns) {
    const uint64_t ms = (now_ns() - since_ns) / 1000000u;
    if (ms > LIMIT_MS)
        fail_msg("it took %llu ms", (unsigned long long)ms);
}

// --- others ---------------------------------------------------------------------------------------

static struct device_load *open_load(kvpool_client *client, enum device_kind kind) {
    const kvpool_pool pool = device_pool(client, "pool", KVPOOL_EXPORT_FD);
    const struct device_place place = kind == OWN
                                          ? device_place_own(client, gpu_alloc(2 * MIB), 2 * MIB)
                                          : device_place_alloc(client, kind);
    return device_load_open(client, pool, &place, &place, 700 + kind);
}

static int survivor(void *arg) {
    (void)arg;
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    struct device_load *l = open_load(client, BY_FD);
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

static int victim(void *arg) {
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    struct device_load *l = open_load(client, *(const enum device_kind *)arg);
    device_load_step(l, 9, 1); // so that its stream has buffers
    atomic_fetch_add(&device_shared->ready, 1);
    for (;;)
        device_load_send(l);
    return 1;
}

static kvpool_stats stats_of(kvpool_client *client) {
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    return stats;
}

// What another client does meanwhile: none of it waits.
static void check_calls(kvpool_client *client, kvpool_pool pool) {
    kvpool_seq seqs[2];
    kvpool_region *region;
    for (int i = 0; i < 20; i++) {
        const uint64_t begin = now_ns();
        expect_ok(client, kvpool_ping(client, NULL));
        expect_ok(client, kvpool_seq_create(client, pool, 2, seqs));
        expect_ok(client, kvpool_seq_free(client, 2, seqs));
        expect_ok(client, kvpool_region_create(client, 100000, &region));
        kvpool_region_free(region);
        check_quick(begin);
    }
    const uint64_t begin = now_ns();
    kvpool_client *another = client_open_timeout(&kvd, LIMIT_MS);
    expect_ok(another, kvpool_ping(another, NULL));
    kvpool_close(another);
    check_quick(begin);
}

static void nobody_waits_for_memory_to_be_taken_back(void **state) {
    (void)state;
    static enum device_kind kinds[] = {BY_FD, BY_IPC, IN_HOST, OWN};
    enum { VICTIMS = sizeof kinds / sizeof *kinds };
    pid_t pids[VICTIMS];
    kvpool_client *client = client_open_timeout(&kvd, LIMIT_MS);
    const kvpool_pool pool = device_pool(client, "pool", KVPOOL_EXPORT_FD);
    const kvpool_pool other = device_pool(client, "other", KVPOOL_EXPORT_IPC);
    const pid_t alive = worker_start(survivor, NULL);
    device_await(&device_shared->ready, 1);
    const kvpool_stats before = stats_of(client);
    for (unsigned i = 0; i < VICTIMS; i++)
        pids[i] = worker_start(victim, &kinds[i]);
    device_await(&device_shared->ready, 1 + VICTIMS);
    keep_busy();
    for (unsigned i = 0; i < VICTIMS; i++) {
        kill(pids[i], SIGKILL);
        assert_int_equal(process_wait(pids[i], DEVICE_LIMIT_MS), 128 + SIGKILL);
    }
    await_waiting();
    expect_ok(client, kvpool_pool_destroy(client, other));
    check_calls(client, pool);
    device_await(&device_shared->rounds, atomic_load(&device_shared->rounds) + 2);
    // For the clients all of it is over.
    kvpool_stats now = stats_of(client);
    const uint64_t end = now_ns() + (uint64_t)LIMIT_MS * 1000000u;
    while (now.sessions_died < before.sessions_died + VICTIMS && now_ns() < end) {
        sleep_ms(2);
        now = stats_of(client);
    }
    assert_int_equal(now.sessions_died, before.sessions_died + VICTIMS);
    assert_int_equal(now.regions, before.regions);
    assert_int_equal(now.pools, before.pools - 1);
    assert_int_equal(access(busy, F_OK), 0);
    let_idle();
    atomic_store(&device_shared->stop, 1);
    device_join(alive, "the survivor");
    kvpool_close(client);
    daemon_ends();
}

// --- who needs the memory ---------------------------------------------------------------------------

static kvpool_status get_region(kvpool_client *client, uint64_t bytes, uint32_t export_as,
                                kvpool_region **ret) {
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    args.bytes = bytes;
    args.export_as = export_as;
    return kvpool_region_alloc(client, &args, ret);
}

static kvpool_status get_pool(kvpool_client *client, kvpool_pool *ret) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = "big";
    config.layers = 2;
    config.kv_heads = 8;
    config.head_dim = 64;
    config.page_size = 16;
    config.dtype = KVPOOL_BF16;
    config.num_pages = BIG_POOL_PAGES;
    return kvpool_pool_create(client, &config, ret);
}

struct getter {
    uint32_t export_as; // of a region; 0: a pool
    kvpool_status status;
    char text[256];
    atomic_bool done;
};

// Gets it, and gives it back.
static void *get(void *arg) {
    struct getter *g = arg;
    kvpool_client *client = client_open(&kvd);
    kvpool_region *region = NULL;
    kvpool_pool pool = 0;
    g->status = g->export_as != 0 ? get_region(client, BIG_REGION, g->export_as, &region)
                                  : get_pool(client, &pool);
    if (g->status != KVPOOL_OK)
        kvpool_last_error(client, g->text, sizeof g->text);
    kvpool_region_free(region);
    if (pool != 0)
        kvpool_pool_destroy(client, pool);
    kvpool_close(client);
    atomic_store(&g->done, true);
    return NULL;
}

static void give_up(kvpool_client *client, uint32_t export_as) {
    kvpool_region *region = NULL;
    kvpool_pool pool = 0;
    if (export_as != 0)
        expect_ok(client, get_region(client, BIG_REGION, export_as, &region));
    else
        expect_ok(client, get_pool(client, &pool));
    keep_busy();
    kvpool_region_free(region);
    if (pool != 0)
        expect_ok(client, kvpool_pool_destroy(client, pool));
    await_waiting();
}

static void who_needs_the_memory_gets_it(void **state) {
    (void)state;
    static const uint32_t kinds[] = {KVPOOL_EXPORT_FD, KVPOOL_EXPORT_IPC, 0};
    kvpool_client *client = client_open_timeout(&kvd, LIMIT_MS);
    kvpool_client *hasty = client_open_timeout(&kvd, 250);
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct getter g = {.export_as = kinds[i]};
        kvpool_region *region = NULL;
        kvpool_pool pool = 0;
        pthread_t thread;
        give_up(client, kinds[i]);
        assert_int_equal(pthread_create(&thread, NULL, get, &g), 0);
        sleep_ms(100);
        assert_false(atomic_load(&g.done)); // it waits, and only it
        expect_ok(client, kvpool_ping(client, NULL));
        expect_status(hasty, KVPOOL_E_AGAIN,
                      kinds[i] != 0 ? get_region(hasty, BIG_REGION, kinds[i], &region)
                                    : get_pool(hasty, &pool));
        assert_true(kvpool_retry_after_ns(hasty) > 0);
        // What not even all of it would be enough for is refused at once.
        expect_status(client, KVPOOL_E_NOMEM,
                      get_region(client, MEMORY, KVPOOL_EXPORT_FD, &region));
        let_idle();
        pthread_join(thread, NULL);
        if (g.status != KVPOOL_OK)
            fail_msg("kind %u: %s: %s", kinds[i], kvpool_status_name(g.status), g.text);
    }
    kvpool_close(hasty);
    kvpool_close(client);
}

static void *idle_later(void *arg) {
    (void)arg;
    sleep_ms(200);
    let_idle();
    return NULL;
}

// --- a worker's own memory ------------------------------------------------------------------------

enum own_way { OWN_FREE, OWN_CLOSE, OWN_HASTY, OWN_KILLED, OWN_SHUTDOWN, OWN_WAYS };

// Registers memory and, when it is told to, takes it back.
static int owner(void *arg) {
    const enum own_way way = *(const enum own_way *)arg;
    kvpool_client *client =
        client_open_timeout(&kvd, way == OWN_HASTY ? 600 : (uint32_t)DEVICE_LIMIT_MS);
    device_gpu();
    const gpu_ptr at = gpu_alloc(2 * MIB);
    kvpool_region *region = device_place_own(client, at, 2 * MIB).region;
    atomic_fetch_add(&device_shared->ready, 1);
    device_await(&device_shared->stop, 1);
    if (way == OWN_CLOSE)
        kvpool_close(client);
    else
        expect_status(client, way == OWN_HASTY ? KVPOOL_E_TIMEOUT : KVPOOL_OK,
                      kvpool_region_free(region));
    atomic_fetch_add(&device_shared->arrived, 1);
    if (way == OWN_HASTY) { // the daemon may have it open: as kvpool.h says
        device_await(&device_shared->stop, 2);
        region = device_place_own(client, at, 2 * MIB).region;
        expect_ok(client, kvpool_region_free(region));
    }
    gpu_free(at);
    if (way != OWN_CLOSE)
        kvpool_close(client);
    return 0;
}

static void own_memory_is_closed_when_its_owner_may_free_it(void **state) {
    (void)state;
    static enum own_way ways[OWN_WAYS] = {OWN_FREE, OWN_CLOSE, OWN_HASTY, OWN_KILLED, OWN_SHUTDOWN};
    kvpool_client *client = client_open_timeout(&kvd, LIMIT_MS);
    const kvpool_pool pool = device_pool(client, "pool", KVPOOL_EXPORT_FD);
    for (int i = 0; i < OWN_WAYS; i++) {
        pthread_t thread;
        atomic_store(&device_shared->ready, 0);
        atomic_store(&device_shared->arrived, 0);
        atomic_store(&device_shared->stop, 0);
        const pid_t pid = worker_start(owner, &ways[i]);
        device_await(&device_shared->ready, 1);
        keep_busy();
        atomic_store(&device_shared->stop, 1);
        await_waiting();
        check_calls(client, pool);
        sleep_ms(100);
        if (ways[i] == OWN_HASTY)
            device_await(&device_shared->arrived, 1);
        else
            assert_int_equal(atomic_load(&device_shared->arrived), 0);
        assert_int_equal(access(busy, F_OK), 0);
        if (ways[i] == OWN_KILLED) {
            kill(pid, SIGKILL);
            assert_int_equal(process_wait(pid, DEVICE_LIMIT_MS), 128 + SIGKILL);
            check_calls(client, pool);
        }
        if (ways[i] == OWN_SHUTDOWN) {
            kvpool_close(client);
            assert_int_equal(pthread_create(&thread, NULL, idle_later, NULL), 0);
            daemon_ends();
            pthread_join(thread, NULL);
        }
        let_idle();
        atomic_store(&device_shared->stop, 2);
        if (ways[i] != OWN_KILLED)
            device_join(pid, "the owner");
    }
}

// --- the end --------------------------------------------------------------------------------------

static void the_daemon_ends_when_all_is_taken_back(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    pthread_t thread;
    device_pool(client, "pool", KVPOOL_EXPORT_FD);
    kvpool_region *regions[3];
    for (int i = 0; i < 3; i++)
        expect_ok(client, get_region(client, 3 * MIB, KVPOOL_EXPORT_FD, &regions[i]));
    give_up(client, KVPOOL_EXPORT_IPC);
    kvpool_region_free(regions[1]);
    const uint64_t begin = now_ns();
    assert_int_equal(pthread_create(&thread, NULL, idle_later, NULL), 0);
    daemon_ends();
    assert_true(now_ns() - begin >= 200000000u);
    pthread_join(thread, NULL);
    kvpool_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nobody_waits_for_memory_to_be_taken_back, setup, teardown),
        cmocka_unit_test_setup_teardown(who_needs_the_memory_gets_it, setup, teardown),
        cmocka_unit_test_setup_teardown(own_memory_is_closed_when_its_owner_may_free_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_daemon_ends_when_all_is_taken_back, setup, teardown),
    };
    const int status = device_prepare();
    return status != 0 ? status : cmocka_run_group_tests_name("device busy", tests, NULL, NULL);
}
