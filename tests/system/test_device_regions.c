// SPDX-License-Identifier: Apache-2.0
// test_device_regions.c: kvpoold on a GPU and workers, processes of their own, whose tensors lie in the
// device's memory: the daemon's by file descriptor and by CUDA IPC handle, host memory, the workers' own;
// other processes with a handle; memory that cannot be shared.
#include "tests/system/device_test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

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
    device_gpu();
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
        atomic_fetch_add(&device_shared->arrived, 1);
        device_await(&device_shared->arrived, 4 * (round + 1));
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
    for (int i = 0; i < 4; i++)
        pids[i] = worker_start(worker_of_daemons_memory, &kinds[i]);
    for (int i = 0; i < 4; i++)
        device_join(pids[i], device_kind_names[kinds[i]]);
}

// --- memory of workers ----------------------------------------------------------------------------

static int worker_of_own_memory(void *arg) {
    const unsigned seed = *(const unsigned *)arg;
    kvpool_client *client = client_open(&kvd);
    device_gpu();
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
        device_join(pids[i], "the worker");
}

// Small allocations lie in one block of 2 MiB, which CUDA IPC shares whole. What is registered works.
static int worker_of_small_memory(void *arg) {
    (void)arg;
    kvpool_client *client = client_open(&kvd);
    device_gpu();
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
    device_join(worker_start(worker_of_small_memory, NULL), "the worker");
}

// --- who else has the handle ------------------------------------------------------------------------

static void publish(unsigned i, const struct device_place *place, const unsigned char bytes[4096]) {
    device_shared->handles[i].size = sizeof device_shared->handles[i];
    check(kvpool_region_export(place->region, &device_shared->handles[i]) == KVPOOL_OK);
    gpu_put(place->at + MIB, bytes, 4096);
}

static int owner(void *arg) {
    (void)arg;
    unsigned char bytes[4096], mark;
    kvpool_client *client = client_open(&kvd);
    device_gpu();
    const struct device_place places[] = {
        device_place_alloc(client, BY_IPC),
        device_place_own(client, gpu_alloc(6 * MIB) + 2 * MIB + 512, 2 * MIB)};
    for (unsigned i = 0; i < 2; i++) {
        memset(bytes, (int)(i + 3), sizeof bytes);
        publish(i, &places[i], bytes);
    }
    atomic_store(&device_shared->ready, 1);
    device_await(&device_shared->stop, 1);
    for (unsigned i = 0; i < 2; i++) {
        gpu_get(&mark, places[i].at + MIB + 7, 1);
        check(mark == 0x60 + i);
        kvpool_region_free(places[i].region);
    }
    kvpool_close(client);
    return 0;
}

static int guest(void *arg) {
    (void)arg;
    unsigned char bytes[4096];
    device_gpu();
    device_await(&device_shared->ready, 1);
    for (unsigned i = 0; i < 2; i++) {
        const kvpool_region_handle *h = &device_shared->handles[i];
        const gpu_ptr opened = gpu_open(h->ipc), at = opened + h->offset + MIB;
        const unsigned char mark = (unsigned char)(0x60 + i);
        gpu_get(bytes, at, sizeof bytes);
        for (size_t j = 0; j < sizeof bytes; j++)
            check(bytes[j] == i + 3);
        gpu_put(at + 7, &mark, 1);
        gpu_close(opened);
    }
    return 0;
}

static void another_process_opens_an_exported_handle(void **state) {
    (void)state;
    const pid_t a = worker_start(owner, NULL), b = worker_start(guest, NULL);
    device_join(b, "the guest");
    atomic_store(&device_shared->stop, 1);
    device_join(a, "the owner");
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
    device_gpu();
    const kvpool_pool pool = device_pool(client, "by-fd", KVPOOL_EXPORT_FD);
    const gpu_ptr own = gpu_alloc(2 * MIB);
    const gpu_ptr of_pool = gpu_alloc_from_pool(2 * MIB);
    refused(client, KVPOOL_E_UNSUPPORTED, gpu_alloc_segment(2 * MIB), "expandable_segments:False");
    refused(client, KVPOOL_E_UNSUPPORTED, gpu_alloc_managed(2 * MIB), "managed memory");
    if (of_pool != 0)
        refused(client, KVPOOL_E_UNSUPPORTED, of_pool, "memory pool");
    refused(client, KVPOOL_E_INVAL, gpu_alloc_host(8192), "kvpool_region_create()");
    refused(client, KVPOOL_E_INVAL, (uintptr_t)plain, "no memory of CUDA's");
    // An element where its type may not lie would end the daemon's use of the device.
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
    device_join(worker_start(worker_of_the_rest, NULL), "the worker");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(workers_share_the_daemons_memory, device_setup),
        cmocka_unit_test_setup(workers_register_their_own_memory, device_setup),
        cmocka_unit_test_setup(small_allocations_work_too, device_setup),
        cmocka_unit_test_setup(another_process_opens_an_exported_handle, device_setup),
        cmocka_unit_test_setup(memory_that_cannot_be_shared_is_refused, device_setup),
    };
    const int status = device_prepare();
    return status != 0
               ? status
               : cmocka_run_group_tests_name("device regions", tests, kvd_setup, kvd_teardown);
}
