// SPDX-License-Identifier: Apache-2.0
// test_region_device.c: regions of device memory: what is asked for and taken, handles, addresses in a
// CUDA context, a process's own memory. The driver is fake_cuda.c.
#include "tests/unit/client/fake_cuda.h"
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

// --- the daemon's side --------------------------------------------------------------------------

static struct proto_region_handle answer; // to REGION_ALLOC
static bool with_fd;
static struct proto_region_alloc last_alloc;
static struct proto_region_register last_own;
static uint64_t own_bytes;     // that the reply says, 0: those asked for
static atomic_bool free_mute;  // no answer to REGION_FREE
static atomic_int free_status; // of it
static atomic_int free_drops;  // the next so many lose their connection
static unsigned freed_before_bye;

static bool device(struct fake *f, struct fake_conn *c, const struct proto_msg *m) {
    uint8_t bytes[256];
    struct proto_header h = proto_reply_header(&m->header, 0, f->epoch);
    if (m->header.op == PROTO_REGION_FREE && free_drops > 0) {
        free_drops--;
        fake_close(c);
        return true;
    }
    if (m->header.op == PROTO_REGION_FREE && free_status != 0)
        fake_error(f, c, &m->header, free_status, 0, "not freed");
    if (m->header.op == PROTO_REGION_FREE)
        return free_mute || free_status != 0;
    if (m->header.op == PROTO_BYE)
        freed_before_bye = f->requests[PROTO_REGION_FREE];
    if (m->header.op == PROTO_REGION_REGISTER) {
        last_own = m->body.region_register;
        struct proto_region_reply reply = {66, own_bytes != 0 ? own_bytes : last_own.bytes};
        fake_send_fds(c, bytes, proto_write(bytes, sizeof bytes, &h, &reply, sizeof reply, NULL, 0),
                      NULL, 0);
        return true;
    }
    if (m->header.op != PROTO_REGION_ALLOC)
        return false;
    last_alloc = m->body.region_alloc;
    size_t len = proto_write(bytes, sizeof bytes, &h, &answer, sizeof answer, NULL, 0);
    int fd = memfd_create("region", MFD_CLOEXEC);
    if (ftruncate(fd, 1 << 20) == 0)
        fake_send_fds(c, bytes, len, &fd, with_fd ? 1 : 0);
    close(fd);
    return true;
}

static kvpool_client *c;

static int setup(void **state) {
    kvd_setup(state);
    fake_cuda_reset();
    fake_set_hook(&kvd, device);
    c = fake_connect(&kvd, 5000);
    answer = (struct proto_region_handle){.region = 55,
                                          .bytes = 2 << 20,
                                          .place = KVPOOL_PLACE_DEVICE,
                                          .export = KVPOOL_EXPORT_FD,
                                          .handle_bytes = 2 << 20};
    with_fd = true;
    own_bytes = 0;
    free_mute = false;
    free_status = 0;
    free_drops = 0;
    freed_before_bye = 0;
    return 0;
}

static int teardown(void **state) {
    kvpool_close(c);
    assert_int_equal(fake_cuda.mappings, 0);
    assert_int_equal(fake_cuda.pushed, 0);
    return kvd_teardown(state);
}

static void answer_ipc(void) {
    answer.export = KVPOOL_EXPORT_IPC;
    answer.offset = 4096;
    answer.handle_bytes = 4 << 20;
    memset(answer.ipc, 0x31, sizeof answer.ipc);
    with_fd = false;
}

static void answer_host(void) {
    answer.place = KVPOOL_PLACE_HOST;
    answer.bytes = answer.handle_bytes = 1 << 20;
}

static kvpool_region_args want(uint32_t place, uint32_t how) {
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    args.bytes = 5000;
    args.place = place;
    args.export_as = how;
    return args;
}

static kvpool_region *make(uint32_t place, uint32_t how) {
    kvpool_region_args args = want(place, how);
    kvpool_region *region = NULL;
    expect(c, KVPOOL_OK, kvpool_region_alloc(c, &args, &region));
    return region;
}

// --- kvpool_region_alloc, kvpool_region_export -----------------------------------------------------

static void device_memory_is_a_region_with_a_descriptor(void **state) {
    (void)state;
    unsigned fds = open_fds();
    kvpool_region *region = make(0, 0); // the defaults
    assert_int_equal(last_alloc.bytes, 5000);
    assert_int_equal(last_alloc.place, KVPOOL_PLACE_DEVICE);
    assert_int_equal(last_alloc.export, KVPOOL_EXPORT_FD);
    assert_null(kvpool_region_data(region));
    assert_int_equal(kvpool_region_size(region), 2 << 20);
    kvpool_region_handle handle = {.size = sizeof handle};
    expect(c, KVPOOL_OK, kvpool_region_export(region, &handle));
    assert_int_equal(handle.size, sizeof handle);
    assert_int_equal(handle.place, KVPOOL_PLACE_DEVICE);
    assert_int_equal(handle.export_as, KVPOOL_EXPORT_FD);
    assert_true(fcntl(handle.fd, F_GETFD) == FD_CLOEXEC); // ours, open
    assert_int_equal(handle.offset, 0);
    assert_int_equal(handle.bytes, 2 << 20);
    assert_int_equal(open_fds(), fds + 1);
    kvpool_region_free(region);
    assert_int_equal(open_fds(), fds);
    assert_int_equal(kvd.last_freed_region, 55);
}

static void or_with_a_handle(void **state) {
    (void)state;
    answer_ipc();
    kvpool_region *region = make(KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_IPC);
    assert_int_equal(last_alloc.export, KVPOOL_EXPORT_IPC);
    kvpool_region_handle handle = {.size = sizeof handle};
    expect(c, KVPOOL_OK, kvpool_region_export(region, &handle));
    assert_int_equal(handle.export_as, KVPOOL_EXPORT_IPC);
    assert_int_equal(handle.fd, -1);
    assert_memory_equal(handle.ipc, answer.ipc, 64);
    assert_int_equal(handle.offset, 4096);
    assert_int_equal(handle.bytes, 4 << 20);
    // left over: goes with the client
}

static void what_the_cpu_reaches_is_mapped(void **state) {
    (void)state;
    answer_host();
    kvpool_region *region = make(KVPOOL_PLACE_HOST, 0);
    assert_int_equal(last_alloc.place, KVPOOL_PLACE_HOST);
    memset(kvpool_region_data(region), 1, 1 << 20);
    kvpool_region_handle handle = {.size = sizeof handle};
    expect(c, KVPOOL_OK, kvpool_region_export(region, &handle));
    assert_int_equal(handle.place, KVPOOL_PLACE_HOST);
    unsigned char *again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, handle.fd, 0);
    assert_true(again != MAP_FAILED && again[4095] == 1);
    munmap(again, 4096);
    kvpool_region_free(region);
}

static void bad_arguments_are_refused(void **state) {
    (void)state;
    kvpool_region_args args = want(0, 0);
    kvpool_region *region = NULL;
    void *ptr = &args;
    kvpool_region_handle handle = {.size = sizeof handle};
    expect(c, KVPOOL_E_INVAL, kvpool_region_alloc(c, NULL, &region));
    expect(c, KVPOOL_E_INVAL, kvpool_region_alloc(c, &args, NULL));
    args.size = 8;
    expect(c, KVPOOL_E_INVAL, kvpool_region_alloc(c, &args, &region));
    args = want(0, 0);
    args.bytes = 0;
    expect(c, KVPOOL_E_INVAL, kvpool_region_alloc(c, &args, &region));
    expect(c, KVPOOL_E_INVAL, kvpool_region_register(c, NULL, 1, &region));
    expect(c, KVPOOL_E_INVAL, kvpool_region_register(c, (void *)FAKE_BASE, 0, &region));
    expect(c, KVPOOL_E_INVAL, kvpool_region_register(c, (void *)FAKE_BASE, 1, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_region_register(c, (void *)(FAKE_BASE + 2), 1, &region));
    expect_message(c, "no multiple of 4");
    assert_null(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_ALLOC), 0);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_REGISTER), 0);
    expect(NULL, KVPOOL_E_INVAL, kvpool_region_export(NULL, &handle));
    expect(NULL, KVPOOL_E_INVAL, kvpool_region_device_ptr(NULL, &ptr));
    region = make(0, 0);
    expect(c, KVPOOL_E_INVAL, kvpool_region_device_ptr(region, NULL));
    expect(c, KVPOOL_E_INVAL, kvpool_region_export(region, NULL));
    handle.size = 8;
    expect(c, KVPOOL_E_INVAL, kvpool_region_export(region, &handle));
    kvpool_region *plain;
    handle.size = sizeof handle;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 1, &plain));
    expect(c, KVPOOL_E_STATE, kvpool_region_export(plain, &handle));
    expect_message(c, "kvpool_region_alloc()");
    assert_ptr_equal(ptr, &args); // no output was written
}

static void a_daemon_that_contradicts_itself_is_refused(void **state) {
    (void)state;
    unsigned fds = open_fds();
    const struct proto_region_handle good = answer;
    kvpool_region_args args = want(0, 0);
    kvpool_region *region = NULL;
#define CONTRADICTS(...)                                                      \
    do {                                                                      \
        answer = good;                                                        \
        with_fd = true;                                                       \
        __VA_ARGS__;                                                          \
        kvd.last_freed_region = 0;                                            \
        expect(c, KVPOOL_E_PROTO, kvpool_region_alloc(c, &args, &region));    \
        assert_int_equal(kvd.last_freed_region, 55); /* and it is not kept */ \
        assert_int_equal(open_fds(), fds);                                    \
    } while (0)
    CONTRADICTS(with_fd = false);
    CONTRADICTS(answer.export = KVPOOL_EXPORT_IPC);
    CONTRADICTS(answer.export = KVPOOL_EXPORT_IPC; with_fd = false);
    CONTRADICTS(answer.bytes = 4999);
    CONTRADICTS(answer.offset = 1);
    CONTRADICTS(answer.offset = (2 << 20) + 1; answer.handle_bytes = 2 << 20);
    CONTRADICTS(answer.place = 0);
    CONTRADICTS(answer.place = 3);
    CONTRADICTS(answer_host(); answer.offset = 8; answer.handle_bytes += 8);
    CONTRADICTS(answer.place = KVPOOL_PLACE_HOST); // of 2 MiB, but the descriptor has 1 MiB
    args.export_as = KVPOOL_EXPORT_IPC;
    CONTRADICTS(answer_ipc(); with_fd = true);
    own_bytes = 4096;
    expect(c, KVPOOL_E_PROTO, kvpool_region_register(c, (void *)FAKE_BASE, 5000, &region));
    assert_int_equal(kvd.last_freed_region, 66);
    assert_null(region);
}

static bool refuse(struct fake *f, struct fake_conn *conn, const struct proto_msg *m) {
    if (m->header.op != PROTO_REGION_ALLOC && m->header.op != PROTO_REGION_REGISTER)
        return false;
    fake_error(f, conn, &m->header, KVPOOL_E_UNSUPPORTED, 0, "not this backend");
    return true;
}

static void the_daemons_refusal_is_the_answer(void **state) {
    (void)state;
    kvpool_region_args args = want(0, 0);
    kvpool_region *region = NULL;
    fake_set_hook(&kvd, refuse);
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_alloc(c, &args, &region));
    expect_message(c, "not this backend");
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_register(c, (void *)FAKE_BASE, 1, &region));
    expect_message(c, "not this backend");
    assert_null(region);
}

static void an_older_daemon_is_not_asked(void **state) {
    (void)state;
    kvpool_region_args args = want(0, 0);
    kvpool_region *region = NULL;
    kvpool_close(c);
    kvd.features = PROTO_FEATURES & ~PROTO_FEATURE_DEVICE;
    c = fake_connect(&kvd, 5000);
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_alloc(c, &args, &region));
    expect_message(c, "no device regions (REGION_ALLOC)");
    expect(c, KVPOOL_E_UNSUPPORTED, kvpool_region_register(c, (void *)FAKE_BASE, 1, &region));
    expect_message(c, "no device regions (REGION_REGISTER)");
    assert_int_equal(fake_count(&kvd, PROTO_REGION_ALLOC), 0);
    expect(c, KVPOOL_OK, kvpool_region_create(c, 1, &region)); // as before
    kvpool_region_free(region);
}

static struct proto_msg late_request;
static bool late(struct fake *f, struct fake_conn *conn, const struct proto_msg *m) {
    if (m->header.op == PROTO_REGION_ALLOC && f->hook_state++ == 0) {
        late_request = *m;
        return true;
    }
    if (m->header.op == PROTO_REGION_ALLOC)
        device(f, conn, &late_request);
    return device(f, conn, m);
}

static void a_region_that_comes_too_late_is_freed(void **state) {
    (void)state;
    kvpool_close(c);
    c = fake_connect(&kvd, 60);
    fake_set_hook(&kvd, late);
    kvpool_region_args args = want(0, 0);
    kvpool_region *region = NULL;
    expect(c, KVPOOL_E_TIMEOUT, kvpool_region_alloc(c, &args, &region));
    expect(c, KVPOOL_OK, kvpool_region_alloc(c, &args, &region));
    fake_await(&kvd, PROTO_REGION_FREE, 1);
    assert_int_equal(kvd.last_freed_region, 55);
}

// --- kvpool_region_device_ptr ----------------------------------------------------------------------

static void a_descriptor_is_mapped_once_into_the_current_context(void **state) {
    (void)state;
    kvpool_region *region = make(0, 0);
    kvpool_region_handle handle = {.size = sizeof handle};
    void *ptr = NULL, *again = NULL;
    expect(c, KVPOOL_OK, kvpool_region_export(region, &handle));
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &ptr));
    assert_true((uintptr_t)ptr == FAKE_MAPPED);
    assert_int_equal(fake_cuda.imported_fd, handle.fd);
    assert_int_equal(fake_cuda.mapped_bytes, 2 << 20);
    assert_int_equal(fake_cuda.mappings, 2); // addresses and mapping; the import is released
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &again));
    assert_ptr_equal(again, ptr);
    assert_int_equal(fake_cuda.mappings, 2);
    void *context = fake_cuda.current;
    fake_cuda.current = &answer;
    expect(c, KVPOOL_E_STATE, kvpool_region_device_ptr(region, &again));
    expect_message(c, "another CUDA context");
    fake_cuda.current = context;
    kvpool_region_free(region);
    assert_int_equal(fake_cuda.mappings, 0);
}

static void a_handle_is_opened_and_its_offset_added(void **state) {
    (void)state;
    void *ptr = NULL;
    answer_ipc();
    kvpool_region *region = make(0, KVPOOL_EXPORT_IPC);
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &ptr));
    assert_true((uintptr_t)ptr == FAKE_OPENED + 4096);
    assert_memory_equal(fake_cuda.opened, answer.ipc, 64);
    assert_int_equal(fake_cuda.mappings, 1);
    kvpool_region_free(region);
    assert_int_equal(fake_cuda.mappings, 0);
}

static void host_memory_is_registered(void **state) {
    (void)state;
    void *ptr = NULL;
    kvpool_region *region;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &ptr));
    assert_ptr_equal(fake_cuda.registered, kvpool_region_data(region));
    assert_int_equal(fake_cuda.mapped_bytes, 8192);
    assert_true((uintptr_t)ptr == (uintptr_t)kvpool_region_data(region) + FAKE_MAPPED);
    kvpool_region_free(region);
    assert_int_equal(fake_cuda.mappings, 0);
    // Registered by the caller: it stays so.
    expect(c, KVPOOL_OK, kvpool_region_create(c, 5000, &region));
    fake_cuda.fails = "cuMemHostRegister";
    fake_cuda.error = 712;
    fake_cuda.mappings = 1;
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &ptr));
    kvpool_region_free(region);
    assert_int_equal(fake_cuda.mappings, 1);
    fake_cuda.mappings = 0;
}

static void a_failing_call_is_named_and_leaves_nothing(void **state) {
    (void)state;
    static const char *const of_fd[] = {"cuMemImportFromShareableHandle", "cuCtxGetDevice",
                                        "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"};
    static const char *const of_host[] = {"cuMemHostRegister", "cuMemHostGetDevicePointer"};
    void *ptr = NULL;
    kvpool_region *device_region = make(0, 0);
    kvpool_region *host_region;
    expect(c, KVPOOL_OK, kvpool_region_create(c, 1, &host_region));
    answer_ipc();
    kvpool_region *ipc_region = make(0, KVPOOL_EXPORT_IPC);
    for (size_t i = 0; i < 8; i++) {
        kvpool_region *region = i < 5 ? device_region : i < 7 ? host_region : ipc_region;
        fake_cuda.fails = i < 5 ? of_fd[i] : i < 7 ? of_host[i - 5] : "cuIpcOpenMemHandle";
        expect(c, KVPOOL_E_BACKEND, kvpool_region_device_ptr(region, &ptr));
        expect_message(c, fake_cuda.fails);
        expect_message(c, "CUDA_ERROR_UNKNOWN");
        // A call that failed after it had begun is the fake's own to count.
        if (fake_cuda.mappings != 0)
            fail_msg("%s leaves %d mappings", fake_cuda.fails, fake_cuda.mappings);
    }
    assert_null(ptr);
    fake_cuda.fails = NULL;
    fake_cuda.current = NULL;
    expect(c, KVPOOL_E_STATE, kvpool_region_device_ptr(device_region, &ptr));
    expect_message(c, "no CUDA context is current");
    fake_cuda.current = fake_cuda.owner;
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(device_region, &ptr)); // it works afterwards
}

static void a_child_touches_nothing(void **state) {
    (void)state;
    kvpool_region *region = make(0, 0);
    kvpool_region_handle handle = {.size = sizeof handle};
    void *ptr;
    pid_t pid = fork();
    if (pid == 0)
        _exit(kvpool_region_export(region, &handle) == KVPOOL_E_FORKED &&
                      kvpool_region_device_ptr(region, &ptr) == KVPOOL_E_FORKED
                  ? 0
                  : 1);
    int status = 1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

// --- kvpool_region_register ------------------------------------------------------------------------

static void own_memory_goes_by_its_bases_handle(void **state) {
    (void)state;
    void *at = (void *)(FAKE_BASE + 1536), *ptr = NULL;
    kvpool_region *region = NULL;
    expect(c, KVPOOL_OK, kvpool_region_register(c, at, 5000, &region));
    assert_int_equal(last_own.bytes, 5000);
    assert_int_equal(last_own.offset, 1536);
    assert_int_equal(last_own.handle_bytes, FAKE_BYTES);
    assert_int_equal(last_own.ipc[0], 0x77);
    assert_int_equal(last_own.ipc[63], 0x77);
    assert_int_equal(kvpool_region_size(region), 5000);
    assert_null(kvpool_region_data(region));
    expect(c, KVPOOL_OK, kvpool_region_device_ptr(region, &ptr));
    assert_ptr_equal(ptr, at);
    kvpool_region_handle handle = {.size = sizeof handle};
    expect(c, KVPOOL_OK, kvpool_region_export(region, &handle));
    assert_int_equal(handle.export_as, KVPOOL_EXPORT_IPC);
    assert_int_equal(handle.offset, 1536);
    assert_int_equal(handle.bytes, FAKE_BYTES);
    kvpool_region_free(region);
    assert_int_equal(kvd.last_freed_region, 66);
    at = (void *)(FAKE_BASE + FAKE_BYTES - 100);
    expect(c, KVPOOL_OK, kvpool_region_register(c, at, 100, &region)); // to the very end
}

static kvpool_region *register_own(kvpool_client *client) {
    kvpool_region *region = NULL;
    expect(client, KVPOOL_OK,
           kvpool_region_register(client, (void *)(FAKE_BASE + 512), 5000, &region));
    return region;
}

static void own_memory_is_the_callers_again_when_it_is_closed(void **state) {
    (void)state;
    kvpool_client *hasty = fake_connect(&kvd, 60);
    fake_set_hook(&kvd, device);
    kvpool_region *region = register_own(hasty);
    expect(hasty, KVPOOL_OK, kvpool_region_free(region));
    region = register_own(hasty);
    free_mute = true;
    expect(hasty, KVPOOL_E_TIMEOUT, kvpool_region_free(region));
    expect_message(hasty, "does not answer");
    free_mute = false;
    expect(hasty, KVPOOL_OK, kvpool_region_free(register_own(hasty))); // so it is for both
    region = register_own(hasty);
    free_status = KVPOOL_E_STALE; // as in another session
    expect(hasty, KVPOOL_E_STALE, kvpool_region_free(region));
    expect_message(hasty, "not freed");
    region = register_own(hasty);
    free_drops = 1; // the lost request did it
    expect(hasty, KVPOOL_OK, kvpool_region_free(region));
    // Of the daemon's memory nobody needs to know.
    expect(c, KVPOOL_OK, kvpool_region_free(make(0, 0)));
    expect(c, KVPOOL_OK, kvpool_region_free(NULL));
    free_status = 0;
    // Of an earlier session.
    region = register_own(hasty);
    kvpool_region *other = NULL;
    kvpool_region_args args = want(0, 0);
    expect(hasty, KVPOOL_OK, kvpool_region_alloc(hasty, &args, &other));
    fake_stop(&kvd);
    fake_start(&kvd);
    while (kvpool_ping(hasty, NULL) != KVPOOL_OK)
        continue;
    expect(hasty, KVPOOL_E_STALE, kvpool_region_free(region));
    expect_message(hasty, "earlier session");
    expect(hasty, KVPOOL_OK, kvpool_region_free(other));
    kvpool_close(hasty);
}

// So that what is freed next is closed after it, as kvpool.h says.
static void what_the_daemon_may_not_have_done_is_asked_once_more(void **state) {
    (void)state;
    kvpool_client *client = fake_connect(&kvd, 3000);
    fake_set_hook(&kvd, device);
    unsigned told = fake_count(&kvd, PROTO_REGION_FREE);
    kvpool_region *region = register_own(client);
    free_status = KVPOOL_E_NOMEM;
    expect(client, KVPOOL_E_NOMEM, kvpool_region_free(region));
    expect_message(client, "not freed");
    region = register_own(client);
    expect(client, KVPOOL_E_NOMEM, kvpool_region_free(region)); // the first one's answer
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), told + 2);
    free_status = 0;
    expect(client, KVPOOL_OK, kvpool_region_free(register_own(client)));
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), told + 5);
    told += 5;
    const unsigned resumes = kvd.resumes;
    region = register_own(client);
    free_drops = 2;
    expect(client, KVPOOL_E_CONN, kvpool_region_free(region));
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), told + 2);
    assert_int_equal(kvd.resumes, resumes + 1);
    free_drops = 1; // once more, for that
    expect(client, KVPOOL_OK, kvpool_region_free(register_own(client)));
    assert_int_equal(fake_count(&kvd, PROTO_REGION_FREE), told + 5);
    // The end of the client does so, too.
    told += 5;
    region = register_own(client);
    free_drops = 2;
    expect(client, KVPOOL_E_CONN, kvpool_region_free(region));
    kvpool_close(client);
    fake_lock(&kvd);
    assert_int_equal(freed_before_bye, told + 3);
    fake_unlock(&kvd);
}

enum { CROWD = 12 };
static pthread_barrier_t crowd;

static void *free_in_a_crowd(void *arg) {
    pthread_barrier_wait(&crowd);
    kvpool_region_free(arg);
    return NULL;
}

// At once, while no request is answered.
static void free_a_crowd(kvpool_client *crowded) {
    pthread_t threads[CROWD];
    free_mute = true;
    for (int i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, free_in_a_crowd, register_own(crowded)),
                         0);
    for (int i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    free_mute = false;
}

// Each waits for the fd socket until its time is over; some have no time left to send their request.
static void what_could_not_be_sent_is_sent_with_the_next(void **state) {
    (void)state;
    kvpool_client *crowded = fake_connect(&kvd, 60);
    fake_set_hook(&kvd, device);
    pthread_barrier_init(&crowd, NULL, CROWD);
    const unsigned before = fake_count(&kvd, PROTO_REGION_FREE);
    free_a_crowd(crowded);
    while (kvpool_region_free(register_own(crowded)) != KVPOOL_OK)
        continue;
    assert_true(fake_count(&kvd, PROTO_REGION_FREE) >= before + CROWD + 1);
    free_a_crowd(crowded);
    kvpool_close(crowded);
    fake_await(&kvd, PROTO_REGION_FREE, before + 2 * CROWD + 1);
    pthread_barrier_destroy(&crowd);
}

static void the_end_of_the_client_closes_it_first(void **state) {
    (void)state;
    kvpool_client *another = fake_connect(&kvd, 0);
    fake_set_hook(&kvd, device);
    kvpool_region_args args = want(0, 0);
    kvpool_region *region;
    expect(another, KVPOOL_OK, kvpool_region_alloc(another, &args, &region));
    register_own(another);
    register_own(another);
    const unsigned before = fake_count(&kvd, PROTO_REGION_FREE);
    kvpool_close(another);
    fake_lock(&kvd);
    assert_int_equal(freed_before_bye, before + 2);
    assert_int_equal(kvd.requests[PROTO_REGION_FREE], before + 2);
    fake_unlock(&kvd);
    // A daemon that does not answer does not hold it for ever.
    another = fake_connect(&kvd, 100);
    register_own(another);
    free_mute = true;
    kvpool_close(another);
    fake_await(&kvd, PROTO_BYE, 2);
}

static void memory_that_cannot_be_shared_is_refused_with_advice(void **state) {
    (void)state;
    void *at = (void *)(FAKE_BASE + 512);
    kvpool_region *region = NULL;
#define NOT_SHARED(status, why, ...)                                     \
    do {                                                                 \
        fake_cuda_reset();                                               \
        __VA_ARGS__;                                                     \
        expect(c, status, kvpool_region_register(c, at, 5000, &region)); \
        expect_message(c, why);                                          \
        assert_int_equal(fake_cuda.pushed, 0);                           \
    } while (0)
    NOT_SHARED(KVPOOL_E_UNSUPPORTED,
               "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False, or use "
               "kvpool_region_alloc()",
               fake_cuda.owner = NULL);
    NOT_SHARED(KVPOOL_E_UNSUPPORTED, "expandable_segments:False", fake_cuda.incapable = 1);
    NOT_SHARED(KVPOOL_E_UNSUPPORTED, "cudaMallocAsync", fake_cuda.mempool = &region);
    NOT_SHARED(KVPOOL_E_UNSUPPORTED, "managed memory", fake_cuda.managed = 1);
    NOT_SHARED(KVPOOL_E_INVAL, "host memory", fake_cuda.memory_type = 1);
    NOT_SHARED(KVPOOL_E_INVAL, "no memory of CUDA's", at = &region);
    at = (void *)(FAKE_BASE + FAKE_BYTES - 4996);
    NOT_SHARED(KVPOOL_E_INVAL, "5000 bytes, but the allocation has 4996", (void)0);
    at = (void *)(FAKE_BASE + 512);
    NOT_SHARED(KVPOOL_E_BACKEND, "cuMemGetAddressRange: CUDA_ERROR_UNKNOWN",
               fake_cuda.fails = "cuMemGetAddressRange");
    NOT_SHARED(KVPOOL_E_BACKEND, "cuIpcGetMemHandle", fake_cuda.fails = "cuIpcGetMemHandle");
    NOT_SHARED(KVPOOL_E_BACKEND, "cuCtxPushCurrent", fake_cuda.fails = "cuCtxPushCurrent");
    assert_null(region);
    assert_int_equal(fake_count(&kvd, PROTO_REGION_REGISTER), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        T(device_memory_is_a_region_with_a_descriptor),
        T(or_with_a_handle),
        T(what_the_cpu_reaches_is_mapped),
        T(bad_arguments_are_refused),
        T(a_daemon_that_contradicts_itself_is_refused),
        T(the_daemons_refusal_is_the_answer),
        T(an_older_daemon_is_not_asked),
        T(a_region_that_comes_too_late_is_freed),
        T(a_descriptor_is_mapped_once_into_the_current_context),
        T(a_handle_is_opened_and_its_offset_added),
        T(host_memory_is_registered),
        T(a_failing_call_is_named_and_leaves_nothing),
        T(a_child_touches_nothing),
        T(own_memory_goes_by_its_bases_handle),
        T(own_memory_is_the_callers_again_when_it_is_closed),
        T(what_the_daemon_may_not_have_done_is_asked_once_more),
        T(what_could_not_be_sent_is_sent_with_the_next),
        T(the_end_of_the_client_closes_it_first),
        T(memory_that_cannot_be_shared_is_refused_with_advice),
    };
    fake_cuda_reset();
    return cmocka_run_group_tests_name("client device regions", tests, NULL, NULL);
}
