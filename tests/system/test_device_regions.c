// SPDX-License-Identifier: Apache-2.0
// test_device_regions.c: kvpoold on a GPU and workers, processes of their own, whose tensors lie in the
// device's memory: the daemon's by file descriptor and by CUDA IPC handle, host memory, the workers' own;
// memory that cannot be shared; workers, and the daemon, that die with such memory in use.
//
// Needs KVPOOL_TEST_BACKEND=cuda and a GPU, or the emulated one; skipped without. The test's own process
// does not touch CUDA: a process that has may not fork.
#include "tests/system/device_load.h"
#include "tests/system/harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define MIB ((uint64_t)1 << 20)
enum { LIMIT_MS = 60000 };
static const char *const names[] = {"fd", "ipc", "host", "own"}; // of kinds of places

static struct shared { // by all processes
    atomic_uint arrived, ready, stop, rounds;
} * shared;

// Waits until `count` is n or more.
static void await(atomic_uint *count, unsigned n) {
    const uint64_t end = now_ns() + (uint64_t)LIMIT_MS * 1000000u;
    while (atomic_load(count) < n) {
        check(now_ns() < end);
        sleep_ms(1);
    }
}

static void start_gpu(void) {
    check(gpu_start());
}

static void turns(kvpool_client *client, kvpool_pool pool, const struct device_place *in,
                  const struct device_place *out, unsigned seed) {
    struct device_load *l = device_load_open(client, pool, in, out, seed);
    device_load_turns(l);
    device_load_close(l);
}

// --- memory of the daemon ------------------------------------------------------------------------

static void check_zero(const struct device_place *place, uint64_t bytes) {
    static unsigned char copy[4 << 20];
    check(bytes <= sizeof copy);
    gpu_get(copy, place->at, bytes);
    for (uint64_t i = 0; i < bytes; i++)
        check(copy[i] == 0);
    memset(copy, 0x5a, bytes); // for whoever is next
    gpu_put(place->at, copy, bytes);
}

static void check_handle(const struct device_place *place, enum device_kind kind) {
    kvpool_region_handle handle = {.size = sizeof handle};
    const uint64_t size = kvpool_region_size(place->region);
    check(kvpool_region_data(place->region) == NULL);
    check(size % (2 * MIB) == 0 && size > DEVICE_BYTES);
    check(kvpool_region_export(place->region, &handle) == KVPOOL_OK);
    check(handle.place == KVPOOL_PLACE_DEVICE);
    check(handle.export_as == (kind == BY_FD ? KVPOOL_EXPORT_FD : KVPOOL_EXPORT_IPC));
    check((handle.fd >= 0) == (kind == BY_FD));
    check(handle.offset + size <= handle.bytes);
}

// Its address is of one context, and is not made without one.
static void check_address(kvpool_client *client, const struct device_place *place) {
    void *again = NULL;
    expect_ok(client, kvpool_region_device_ptr(place->region, &again));
    check((uintptr_t)again == place->at);
    gpu_use(false);
    expect_status(client, KVPOOL_E_STATE, kvpool_region_device_ptr(place->region, &again));
    gpu_use(true);
}

static int worker_of_daemons_memory(void *arg) {
    const enum device_kind kind = *(const enum device_kind *)arg;
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, kind == BY_IPC ? "by-ipc" : "by-fd",
                                         kind == BY_IPC ? KVPOOL_EXPORT_IPC : KVPOOL_EXPORT_FD);
    for (unsigned round = 0; round < 2; round++) { // the second time it was somebody's
        struct device_place place = device_place_alloc(client, kind);
        check_zero(&place, kvpool_region_size(place.region));
        check_address(client, &place);
        if (kind == IN_HOST)
            check(((unsigned char *)kvpool_region_data(place.region))[1] == 0x5a);
        else
            check_handle(&place, kind);
        atomic_fetch_add(&shared->arrived, 1);
        await(&shared->arrived, 4 * (round + 1));
        place.offset = (uint64_t)16 * round;
        turns(client, pool, &place, &place, 10 * kind + round);
        kvpool_region_free(place.region);
    }
    kvpool_close(client);
    return 0;
}

static void workers_share_the_daemons_memory(void **state) {
    (void)state;
    static enum device_kind kinds[] = {BY_FD, BY_IPC, IN_HOST, BY_FD};
    pid_t pids[4];
    memset(shared, 0, sizeof *shared);
    for (int i = 0; i < 4; i++)
        pids[i] = worker_start(worker_of_daemons_memory, &kinds[i]);
    for (int i = 0; i < 4; i++)
        if (process_wait(pids[i], LIMIT_MS) != 0)
            fail_msg("the worker with a region by %s failed; the daemon's log:\n%s",
                     names[kinds[i]], daemon_log(&kvd));
}

// --- memory of workers ----------------------------------------------------------------------------

static int worker_of_own_memory(void *arg) {
    const unsigned seed = *(const unsigned *)arg;
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    const uint64_t bytes = 6 * MIB;
    const gpu_ptr own = gpu_alloc(bytes);
    struct device_place all = device_place_own(client, own, bytes);
    // A piece of it, not where rows of 16 bytes begin, at the same time.
    struct device_place piece = device_place_own(client, own + 3 * MIB + 4004, DEVICE_BYTES);
    // The same where rows of 16 bytes begin.
    struct device_place row = device_place_own(client, own + 5 * MIB + 16, DEVICE_BYTES);
    struct device_place daemons = device_place_alloc(client, BY_FD);
    turns(client, pool, &all, &all, seed);
    turns(client, pool, &piece, &row, seed + 1);
    turns(client, pool, &row, &piece, seed + 2);
    turns(client, pool, &daemons, &row, seed + 3);
    kvpool_region_free(all.region); // the others stay
    turns(client, pool, &row, &daemons, seed + 4);
    kvpool_region_free(piece.region);
    kvpool_region_free(row.region);
    // Once nobody has it open it can be opened again, to the end of the allocation.
    struct device_place end = device_place_own(client, own + bytes - DEVICE_BYTES, DEVICE_BYTES);
    turns(client, pool, &end, &end, seed + 5);
    kvpool_region *none = NULL;
    void *last = (void *)(uintptr_t)(own + bytes - 4096);
    expect_status(client, KVPOOL_E_INVAL, kvpool_region_register(client, last, 4097, &none));
    check(none == NULL);
    kvpool_region_free(end.region);
    gpu_free(own);
    kvpool_close(client);
    return 0;
}

static void workers_register_their_own_memory(void **state) {
    (void)state;
    static unsigned seeds[] = {100, 200};
    pid_t pids[2];
    for (int i = 0; i < 2; i++)
        pids[i] = worker_start(worker_of_own_memory, &seeds[i]);
    for (int i = 0; i < 2; i++)
        if (process_wait(pids[i], LIMIT_MS) != 0)
            fail_msg("the worker failed; the daemon's log:\n%s", daemon_log(&kvd));
}

// Small allocations lie in one block of 2 MiB, which CUDA IPC shares whole. What is registered works.
static int worker_of_small_memory(void *arg) {
    (void)arg;
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    const gpu_ptr first = gpu_alloc(700);
    const gpu_ptr in = gpu_alloc(DEVICE_BYTES);
    const gpu_ptr out = gpu_alloc(DEVICE_BYTES + 512);
    fprintf(stderr, "small allocations: 0x%llx 0x%llx 0x%llx\n", first, in, out);
    struct device_place in_place = device_place_own(client, in, DEVICE_BYTES);
    struct device_place out_place = device_place_own(client, out + 512, DEVICE_BYTES);
    turns(client, pool, &in_place, &out_place, 300);
    turns(client, pool, &out_place, &in_place, 301);
    kvpool_region_free(in_place.region);
    turns(client, pool, &out_place, &out_place, 302);
    kvpool_region_free(out_place.region);
    gpu_free(out);
    gpu_free(in);
    gpu_free(first);
    kvpool_close(client);
    return 0;
}

static void small_allocations_work_too(void **state) {
    (void)state;
    if (process_wait(worker_start(worker_of_small_memory, NULL), LIMIT_MS) != 0)
        fail_msg("the worker failed; the daemon's log:\n%s", daemon_log(&kvd));
}

// --- memory that cannot be --------------------------------------------------------------------------

static void refused(kvpool_client *client, kvpool_status status, gpu_ptr ptr, const char *says) {
    kvpool_region *region = NULL;
    char text[256] = "";
    expect_status(client, status,
                  kvpool_region_register(client, (void *)(uintptr_t)ptr, 4096, &region));
    kvpool_last_error(client, text, sizeof text);
    if (strstr(text, says) == NULL) {
        fprintf(stderr, "\"%s\" does not say \"%s\"\n", text, says);
        check_at(false, "the refusal says why", __FILE__, __LINE__);
    }
    check(region == NULL);
}

static int worker_of_the_rest(void *arg) {
    (void)arg;
    static unsigned char plain[8192];
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    const gpu_ptr own = gpu_alloc(2 * MIB);
    const gpu_ptr of_pool = gpu_alloc_from_pool(2 * MIB);
    refused(client, KVPOOL_E_UNSUPPORTED, gpu_alloc_segment(2 * MIB), "expandable_segments:False");
    refused(client, KVPOOL_E_UNSUPPORTED, gpu_alloc_managed(2 * MIB), "managed memory");
    if (of_pool != 0)
        refused(client, KVPOOL_E_UNSUPPORTED, of_pool, "memory pool");
    refused(client, KVPOOL_E_INVAL, gpu_alloc_host(8192), "kvpool_region_create()");
    refused(client, KVPOOL_E_INVAL, (uintptr_t)plain, "no memory of CUDA's");
    // An element that is not where its type lies would end the daemon's use of the device.
    refused(client, KVPOOL_E_INVAL, own + 1, "multiple of 4");
    refused(client, KVPOOL_E_INVAL, own + 4098, "multiple of 4");
    // Memory that is the daemon's already cannot come back by a handle.
    struct device_place daemons = device_place_alloc(client, BY_FD);
    refused(client, KVPOOL_E_UNSUPPORTED, daemons.at, "cuMemCreate");
    turns(client, pool, &daemons, &daemons, 400); // all is as before
    kvpool_region_free(daemons.region);
    kvpool_close(client);
    return 0;
}

static void memory_that_cannot_be_shared_is_refused(void **state) {
    (void)state;
    if (process_wait(worker_start(worker_of_the_rest, NULL), LIMIT_MS) != 0)
        fail_msg("the worker failed; the daemon's log:\n%s", daemon_log(&kvd));
}

// --- deaths -----------------------------------------------------------------------------------------

static int survivor(void *arg) {
    const enum device_kind kind = *(const enum device_kind *)arg;
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    const struct device_place place = kind == OWN
                                          ? device_place_own(client, gpu_alloc(2 * MIB), 2 * MIB)
                                          : device_place_alloc(client, kind);
    struct device_load *l = device_load_open(client, pool, &place, &place, 500 + kind);
    atomic_fetch_add(&shared->ready, 1);
    while (atomic_load(&shared->stop) == 0) {
        device_load_turns(l);
        device_load_reset(l);
        atomic_fetch_add(&shared->rounds, 1);
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
    const enum device_kind kind = *(const enum device_kind *)arg;
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const kvpool_pool pool = device_pool(client, "by-ipc", KVPOOL_EXPORT_IPC);
    const struct device_place place = kind == OWN
                                          ? device_place_own(client, gpu_alloc(4 * MIB), 4 * MIB)
                                          : device_place_alloc(client, kind);
    struct device_load *l = device_load_open(client, pool, &place, &place, 600 + kind);
    device_load_send(l);
    atomic_fetch_add(&shared->ready, 1);
    send_forever(l);
}

static kvpool_stats stats_of(kvpool_client *client) {
    kvpool_stats stats = {.size = sizeof stats};
    expect_ok(client, kvpool_get_stats(client, &stats));
    return stats;
}

// Until the daemon has nothing more of the worker that was killed.
static void await_reclaim(kvpool_client *client, const kvpool_stats *before) {
    const uint64_t end = now_ns() + 10000000000u;
    kvpool_stats now = stats_of(client);
    while (now.sessions_died == before->sessions_died || now.regions != before->regions ||
           now.seqs != before->seqs || now.steps != before->steps) {
        if (now_ns() > end)
            fail_msg("%u regions, %u sequences, %u steps are left of %u, %u, %u", now.regions,
                     now.seqs, now.steps, before->regions, before->seqs, before->steps);
        sleep_ms(2);
        now = stats_of(client);
    }
}

static void a_dead_worker_costs_the_others_nothing(void **state) {
    (void)state;
    static enum device_kind alive[] = {BY_FD, BY_IPC, OWN};
    static enum device_kind victims[] = {BY_FD, BY_IPC, OWN, IN_HOST, OWN, BY_IPC};
    kvpool_client *client = client_open(&kvd);
    pid_t survivors[3];
    memset(shared, 0, sizeof *shared);
    for (int i = 0; i < 3; i++)
        survivors[i] = worker_start(survivor, &alive[i]);
    await(&shared->ready, 3);
    const kvpool_stats before = stats_of(client);
    assert_int_equal(before.regions, 3);
    for (unsigned i = 0; i < sizeof victims / sizeof victims[0]; i++) {
        const kvpool_stats now = stats_of(client);
        const pid_t pid = worker_start(victim, &victims[i]);
        await(&shared->ready, 4 + i);
        sleep_ms(i * 3);
        kill(pid, SIGKILL);
        assert_int_equal(process_wait(pid, LIMIT_MS), 128 + SIGKILL);
        await_reclaim(client, &now);
        const unsigned rounds = atomic_load(&shared->rounds);
        await(&shared->rounds, rounds + 1);
    }
    atomic_store(&shared->stop, 1);
    for (int i = 0; i < 3; i++)
        if (process_wait(survivors[i], LIMIT_MS) != 0)
            fail_msg("the survivor by %s failed; the daemon's log:\n%s", names[alive[i]],
                     daemon_log(&kvd));
    const kvpool_stats after = stats_of(client);
    assert_int_equal(after.epoch, before.epoch);
    assert_int_equal(after.regions, 0);
    assert_int_equal(after.seqs, 0);
    kvpool_close(client);
}

// Memory behind a descriptor outlives the daemon; an end in order follows whatever it was.
static int worker_that_outlives_the_daemon(void *arg) {
    (void)arg;
    unsigned char wrote[4096], read[4096];
    kvpool_client *client = client_open(&kvd);
    start_gpu();
    const struct device_place by_fd = device_place_alloc(client, BY_FD),
                              by_ipc = device_place_alloc(client, BY_IPC);
    const struct device_place own = device_place_own(client, gpu_alloc(2 * MIB), 2 * MIB);
    for (size_t i = 0; i < sizeof wrote; i++)
        wrote[i] = (unsigned char)(i * 7 + 1);
    gpu_put(by_fd.at + MIB, wrote, sizeof wrote);
    gpu_put(own.at + MIB, wrote, sizeof wrote);
    atomic_fetch_add(&shared->ready, 1);
    await(&shared->stop, 1);
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
    memset(shared, 0, sizeof *shared);
    const pid_t pid = worker_start(worker_that_outlives_the_daemon, NULL);
    await(&shared->ready, 1);
    daemon_end(&kvd, SIGKILL, 20000);
    atomic_store(&shared->stop, 1);
    assert_int_equal(process_wait(pid, LIMIT_MS), 0);
}

static int probe(void *arg) {
    (void)arg;
    return gpu_start() ? 0 : 77;
}

static int skip_all(void) {
    printf("skipped: needs KVPOOL_TEST_BACKEND=cuda and a GPU\n");
    return 77;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_share_the_daemons_memory),
        cmocka_unit_test(workers_register_their_own_memory),
        cmocka_unit_test(small_allocations_work_too),
        cmocka_unit_test(memory_that_cannot_be_shared_is_refused),
        cmocka_unit_test(a_dead_worker_costs_the_others_nothing),
        cmocka_unit_test(memory_by_descriptor_outlives_the_daemon), // the last one
    };
    if (strcmp(daemon_backend(), "cuda") != 0)
        return skip_all();
    const int probed = process_wait(worker_start(probe, NULL), LIMIT_MS);
    if (probed != 0)
        return probed == 77 ? skip_all() : 1;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    return cmocka_run_group_tests_name("device regions", tests, kvd_setup, kvd_teardown);
}
