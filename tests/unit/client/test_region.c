// SPDX-License-Identifier: Apache-2.0
// test_region.c: regions: what the fd socket brings, and that every descriptor is closed.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void a_region_is_memory_shared_and_given_back(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_region *region;
    unsigned fds = open_fds();
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    assert_int_equal(open_fds(), fds); // mapped, its descriptor closed
    assert_int_equal(kvpool_region_size(region), 8192);
    unsigned char *data = kvpool_region_data(region);
    assert_int_equal((uintptr_t)data % 4096, 0);
    for (unsigned i = 0; i < 8192; i++)
        assert_int_equal(data[i], 0);
    memset(data, 1, 8192);
    kvpool_region_free(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), 1);
    assert_int_not_equal(kvd.last_freed_region, 0);
    kvpool_region_free(NULL);
    assert_null(kvpool_region_data(NULL));
    assert_int_equal(kvpool_region_size(NULL), 0);
    kvpool_close(c);
}

static void regions_left_over_go_with_the_client(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_region *regions[3];
    for (int i = 0; i < 3; i++)
        expect(c, KVPOOL_OK, kvpool_region_create(c, 100, &regions[i]));
    kvpool_region_free(regions[1]);
    kvpool_close(c); // the leak checker looks
}

static void bad_arguments_are_refused(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_region *region;
    expect(c, KVPOOL_E_INVAL, kvpool_region_create(c, 0, &region));
    expect(c, KVPOOL_E_INVAL, kvpool_region_create(c, 1, NULL));
    expect(NULL, KVPOOL_E_INVAL, kvpool_region_create(NULL, 1, &region));
    assert_int_equal(fake_count(&kvd, PROTO_REGION_CREATE), 0);
    kvpool_close(c);
}

static bool refuse(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    fake_error(f, c, &m->header, KVPOOL_E_LIMIT, 0, "64 regions");
    return true;
}

// Sends a region reply of `bytes` with n descriptors of `memory` bytes.
static bool send_region(struct fake *f, struct fake_conn *c, const struct proto_msg *m,
                        uint64_t bytes, off_t memory, unsigned n) {
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    uint8_t buf[256];
    int fds[8];
    struct proto_region_reply reply = {.region = 55, .bytes = bytes};
    struct proto_header h = proto_reply_header(&m->header, 0, f->epoch);
    for (unsigned i = 0; i < n; i++) {
        fds[i] = memfd_create("region", MFD_CLOEXEC);
        if (ftruncate(fds[i], memory) != 0)
            return false;
    }
    size_t len = proto_write(buf, sizeof buf, &h, &reply, sizeof reply, NULL, 0);
    fake_send_fds(c, buf, len, fds, n);
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
    return true;
}

static bool no_fd(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, 8192, 8192, 0);
}
static bool two_fds(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, 8192, 8192, 2);
}
static bool eight_fds(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, 8192, 8192, 8);
}
static bool small_memory(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, 8192, 4096, 1);
}
static bool small_region(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, 4096, 8192, 1);
}
static bool huge_region(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    return send_region(f, c, m, UINT64_MAX, 8192, 1);
}

static bool error_with_fd(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    uint8_t buf[512];
    struct err err = {.status = KVPOOL_E_NOMEM, .text = "none left"};
    size_t len = proto_write_error(buf, sizeof buf, &m->header, f->epoch, &err);
    int fd = memfd_create("region", MFD_CLOEXEC);
    fake_send_fds(c, buf, len, &fd, 1);
    close(fd);
    return true;
}

static bool garbage_with_fd(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    int fd = memfd_create("region", MFD_CLOEXEC);
    fake_send_fds(c, "?", 1, &fd, 1);
    close(fd);
    return true;
}

static bool other_epoch(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    f->epoch++;
    bool done = send_region(f, c, m, 8192, 8192, 1);
    f->epoch--;
    return done;
}

static bool hang_up(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    (void)f;
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    fake_close(c);
    return true;
}

struct bad_region {
    const char *name;
    fake_hook hook;
    const char *message;
    kvpool_status expected;
    bool connection_over;
};

static void refuse_bad_regions(bool can_resume) {
    static const struct bad_region cases[] = {
        {"refused", refuse, "64 regions", KVPOOL_E_LIMIT, false},
        {"no fd", no_fd, "without its descriptor", KVPOOL_E_PROTO, false},
        {"small memory", small_memory, "memory of 4096", KVPOOL_E_PROTO, false},
        {"small region", small_region, "region of 4096", KVPOOL_E_PROTO, false},
        {"huge region", huge_region, "memory of 8192", KVPOOL_E_PROTO, false},
        {"error with fd", error_with_fd, "none left", KVPOOL_E_NOMEM, false},
        {"two fds", two_fds, "over-long", KVPOOL_E_PROTO, true},
        {"eight fds", eight_fds, "over-long", KVPOOL_E_PROTO, true},
        {"garbage with fd", garbage_with_fd, "1 bytes", KVPOOL_E_PROTO, true},
        {"epoch", other_epoch, "another instance", KVPOOL_E_PROTO, true},
        {"hang up", hang_up, "closed", KVPOOL_E_CONN, true},
    };
    kvpool_client *c = fake_connect(&kvd, 3000);
    unsigned fds = open_fds(), connections = 1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kvpool_region *region = NULL;
        fake_set_hook(&kvd, cases[i].hook);
        kvpool_status got = kvpool_region_create(c, 5000, &region);
        if (got != cases[i].expected)
            print_error("case %s\n", cases[i].name);
        expect(c, cases[i].expected, got);
        expect_message(c, cases[i].message);
        assert_null(region);
        fake_set_hook(&kvd, NULL);
        expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
        kvpool_region_free(region);
        connections += cases[i].connection_over;
        expect(c, KVPOOL_OK, kvpool_ping(c, NULL));
        assert_int_equal(kvd.sessions, can_resume ? 1 : connections);
        assert_int_equal(kvd.sessions + kvd.resumes, connections);
    }
    fake_await(&kvd, PROTO_BYE, 0);
    usleep(20000); // the fake closes its ends of replaced connections
    assert_true(open_fds() <= fds);
    kvpool_close(c);
}

static void a_bad_region_is_refused_and_leaves_nothing_open(void **state) {
    (void)state;
    refuse_bad_regions(true);
}

static void without_resuming_it_may_cost_the_session(void **state) {
    (void)state;
    kvd.features = PROTO_FEATURES & ~PROTO_FEATURE_RESUME; // before any connection
    refuse_bad_regions(false);
}

static struct proto_msg late_request;
static bool late(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if (m->header.op != PROTO_REGION_CREATE)
        return false;
    if (f->hook_state++ == 0) {
        late_request = *m;
        return true;
    }
    send_region(f, c, &late_request, 8192, 8192, 1);
    return false;
}

static void a_region_that_comes_too_late_is_freed(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 60);
    kvpool_region *region;
    fake_set_hook(&kvd, late);
    expect(c, KVPOOL_E_TIMEOUT, kvpool_region_create(c, 5000, &region));
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    fake_await(&kvd, PROTO_REGION_FREE, 1);
    assert_int_equal(kvd.last_freed_region, 55);
    kvpool_region_free(region);
    assert_int_equal(kvd.sessions, 1);
    kvpool_close(c);
}

#define PAUSE_NS ((uint64_t)30000000)

// The first `hook_state` requests for memory come too early.
static bool try_again(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    if ((m->header.op != PROTO_REGION_CREATE && m->header.op != PROTO_POOL_CREATE) ||
        f->hook_state == 0)
        return false;
    f->hook_state--;
    fake_error(f, c, &m->header, KVPOOL_E_AGAIN, PAUSE_NS, "on its way back");
    return true;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void memory_on_its_way_back_is_waited_for(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_region *region = NULL;
    fake_set_hook(&kvd, try_again);
    fake_set(&kvd, hook_state, 3);
    const uint64_t begin = now_ns();
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    assert_true(now_ns() - begin >= 3 * PAUSE_NS);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_CREATE), 4);
    kvpool_region_free(region);
    fake_set(&kvd, hook_state, 2);
    fake_pool(c);
    assert_true(now_ns() - begin >= 5 * PAUSE_NS);
    assert_int_equal(fake_count(&kvd, PROTO_POOL_CREATE), 3);
    kvpool_close(c);
}

static void but_not_past_the_time_out(void **state) {
    (void)state;
    kvpool_client *c = fake_connect(&kvd, 300);
    kvpool_region *region = NULL;
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool pool = 0;
    config.name = "p";
    fake_set_hook(&kvd, try_again);
    fake_set(&kvd, hook_state, 1000);
    uint64_t begin = now_ns();
    expect(c, KVPOOL_E_AGAIN, kvpool_region_create(c, 5000, &region));
    assert_int_equal(kvpool_retry_after_ns(c), PAUSE_NS);
    expect_message(c, "on its way back");
    expect(c, KVPOOL_E_AGAIN, kvpool_pool_create(c, &config, &pool));
    assert_true(now_ns() - begin < 600000000u);
    assert_true(fake_count(&kvd, PROTO_REGION_CREATE) > 3); // it did try
    assert_true(fake_count(&kvd, PROTO_POOL_CREATE) > 3);
    assert_null(region);
    assert_int_equal(pool, 0);
    kvpool_close(c);
}

static void without_a_cuda_driver_regions_stay_host_memory(void **state) {
    (void)state;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver != NULL) {
        dlclose(driver);
        skip(); // test_region_device.c
    }
    kvpool_client *c = fake_connect(&kvd, 0);
    kvpool_region *region, *own = NULL;
    void *ptr = NULL;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_device_ptr(region, &ptr));
    expect_message(c, "no CUDA driver on this machine (libcuda.so.1");
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_register(c, &ptr, 1, &own));
    expect_message(c, "no CUDA driver on this machine");
    assert_null(ptr);
    assert_null(own);
    kvpool_region_free(region);
    kvpool_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, kvd_setup, kvd_teardown)
        T(a_region_is_memory_shared_and_given_back),
        T(regions_left_over_go_with_the_client),
        T(bad_arguments_are_refused),
        T(a_bad_region_is_refused_and_leaves_nothing_open),
        T(without_resuming_it_may_cost_the_session),
        T(a_region_that_comes_too_late_is_freed),
        T(memory_on_its_way_back_is_waited_for),
        T(but_not_past_the_time_out),
        T(without_a_cuda_driver_regions_stay_host_memory),
    };
    return cmocka_run_group_tests_name("client regions", tests, NULL, NULL);
}
