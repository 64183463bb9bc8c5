// SPDX-License-Identifier: Apache-2.0
// The cuda backend on a device that is busy and takes no memory back: what gives up memory does not wait,
// what needs it is told to come again, and nothing is lost. The device is the emulated one.
//
// Another process is this program again, with the role and a handle as its arguments.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cpu_memory.h"
#include "kernels/cuda/run.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define MEMORY (608 * MIB) // of the device
#define BIG (184 * MIB)    // of one of which there is room for, beside what regions leave

static struct backend *b;
static char busy[64], waiting[80], programs[80];

static void make(const char *file) {
    const int fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        abort();
    close(fd);
}

static void keep_busy(void) {
    make(busy);
}

static void let_idle(void) {
    unlink(busy);
    unlink(waiting);
    unlink(programs);
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

#define await(condition)                       \
    do {                                       \
        const uint64_t end = now_ms() + 20000; \
        while (!(condition)) {                 \
            if (now_ms() > end)                \
                abort();                       \
            usleep(500);                       \
        }                                      \
    } while (0)

// Until the reaper waits for the device.
static void await_waiting(void) {
    await(access(waiting, F_OK) == 0);
}

static uint64_t available(void) {
    size_t bytes = 0, total = 0;
    cudaMemGetInfo(&bytes, &total);
    return bytes;
}

static int setup(void **state) {
    (void)state;
    const struct backend_config config = {0};
    struct err err;
    let_idle();
    return backend_cuda.open(&config, &b, &err);
}

static int get(uint64_t bytes, enum backend_place place, enum backend_export how,
               struct backend_mem **ret) {
    struct err err = {0};
    *ret = NULL;
    int status = backend_cuda.mem_alloc(b, bytes, place, how, ret, &err);
    if (status == KVPOOL_E_AGAIN) { // it says when
        assert_true(err.detail > 0);
        assert_non_null(strstr(err.text, "taken back"));
    }
    return status;
}

// As a client does: again while it is told to.
static struct backend_mem *alloc(uint64_t bytes, enum backend_place place,
                                 enum backend_export how) {
    struct backend_mem *mem;
    int status;
    await((status = get(bytes, place, how, &mem)) != KVPOOL_E_AGAIN);
    assert_int_equal(status, 0);
    return mem;
}

static struct backend_pool *open_pool(uint32_t num_pages, enum backend_export how, int *ret) {
    const struct kv_geometry g = {2, 8, 64, 16, KVPOOL_BF16, 0}; // 64 KiB a page
    struct backend_pool *pool = NULL;
    struct err err = {0};
    *ret = backend_cuda.pool_open(b, &g, how, num_pages, 8, 64, &pool, &err);
    return pool;
}

static struct backend_stream *open_stream(void) {
    struct backend_stream *s = NULL;
    struct err err = {0};
    assert_int_equal(backend_cuda.stream_open(b, &s, &err), 0);
    return s;
}

// --- programs go on ---------------------------------------------------------------------------------

struct end {
    pthread_mutex_t lock;
    pthread_cond_t more;
    int n, status;
};

static void on_done(void *arg, int status) {
    struct end *end = arg;
    pthread_mutex_lock(&end->lock);
    end->n++;
    end->status = status;
    pthread_cond_signal(&end->more);
    pthread_mutex_unlock(&end->lock);
}

static void wait_for(struct end *end) {
    pthread_mutex_lock(&end->lock);
    while (end->n == 0)
        pthread_cond_wait(&end->more, &end->lock);
    pthread_mutex_unlock(&end->lock);
    assert_int_equal(end->status, 0);
}

static void run(struct backend_pool *pool, struct backend_stream *s, uint32_t id) {
    struct end end = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    const struct backend_op op = {.kind = BACKEND_TABLE, .u.table = {1, 2, 1, &id}};
    const struct backend_program program = {pool, &op, 1};
    struct err err = {0};
    assert_int_equal(backend_cuda.submit(b, s, &program, on_done, &end, &err), 0);
    wait_for(&end);
    uint32_t found = 0;
    assert_int_equal(
        cudaMemcpyAsync(&found, pool->table + 64 + 2, sizeof found, cudaMemcpyDefault, NULL),
        cudaSuccess);
    assert_int_equal(found, id);
}

static void test_nothing_waits_and_all_comes_back(void **state) {
    (void)state;
    int status;
    const uint64_t before = available();
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_pool *gone = open_pool(16, BACKEND_IPC, &status);
    struct backend_stream *s = open_stream(), *closed = open_stream();
    run(gone, closed, 5);
    struct backend_mem *mems[3] = {alloc(MIB, BACKEND_HOST, BACKEND_FD),
                                   alloc(MIB, BACKEND_DEVICE, BACKEND_FD),
                                   alloc(MIB, BACKEND_DEVICE, BACKEND_IPC)};
    struct backend_handle h;
    backend_cuda.mem_handle(mems[1], &h);
    const uint64_t used = available();
    keep_busy();
    backend_cuda.stream_close(b, closed);
    await_waiting();
    for (size_t i = 0; i < 3; i++)
        backend_cuda.mem_free(b, mems[i]);
    backend_cuda.pool_close(b, gone);
    run(pool, s, 7); // others go on
    assert_int_equal(available(), used);
    assert_int_equal(access(busy, F_OK), 0);
    let_idle();
    await(fcntl(h.fd, F_GETFD) == -1);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    await(available() == before);
    assert_null(backend_cuda.failure(b));
    backend_cuda.close(b);
}

static void *idle_later(void *arg) {
    (void)arg;
    usleep(100000);
    let_idle();
    return NULL;
}

static void test_the_end_takes_all_back(void **state) {
    (void)state;
    int status;
    pthread_t thread;
    const uint64_t before = available();
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_stream *s = open_stream();
    struct backend_mem *host = alloc(MIB, BACKEND_HOST, BACKEND_FD);
    struct backend_mem *mem = alloc(MIB, BACKEND_DEVICE, BACKEND_IPC);
    void *at = backend_cuda.mem_host(host);
    run(pool, s, 9);
    keep_busy();
    backend_cuda.mem_free(b, mem);
    await_waiting();
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    backend_cuda.mem_free(b, host);
    const uint64_t begin = now_ms();
    assert_int_equal(pthread_create(&thread, NULL, idle_later, NULL), 0);
    backend_cuda.close(b);
    assert_true(now_ms() - begin >= 90);
    pthread_join(thread, NULL);
    assert_int_equal(available(), before);
    assert_int_equal(cudaHostUnregister(at), cudaErrorHostMemoryNotRegistered);
}

// The reaper waits for a pause, but not for ever, and not while somebody waits for the memory.
static void test_memory_is_taken_back_in_a_pause(void **state) {
    (void)state;
    enum { PAUSE, PATIENCE, WANTED, WAYS };
    struct end ends[WAYS];
    int status;
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_stream *s = open_stream();
    for (int way = 0; way < WAYS; way++) {
        struct backend_mem *mem = alloc(way == WANTED ? BIG : MIB, BACKEND_DEVICE, BACKEND_FD),
                           *other;
        const struct backend_program program = {pool, NULL, 0};
        struct err err = {0};
        const uint64_t used = available();
        ends[way] =
            (struct end){.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
        make(programs);
        assert_int_equal(backend_cuda.submit(b, s, &program, on_done, &ends[way], &err), 0);
        const uint64_t begin = now_ms();
        backend_cuda.mem_free(b, mem);
        usleep(100000);
        assert_int_equal(available(), used);
        if (way == PAUSE)
            let_idle();
        if (way == WANTED)
            assert_int_equal(get(BIG, BACKEND_DEVICE, BACKEND_FD, &other), KVPOOL_E_AGAIN);
        await(available() > used);
        if (way == PATIENCE)
            assert_true(now_ms() - begin >= 900);
        else
            assert_true(now_ms() - begin < 800);
        let_idle();
        wait_for(&ends[way]);
    }
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    backend_cuda.close(b);
}

// --- who needs the memory ---------------------------------------------------------------------------

static void test_memory_on_its_way_back_can_be_had_again(void **state) {
    (void)state;
    static const enum backend_export hows[] = {BACKEND_FD, BACKEND_IPC};
    struct end ends[2];
    int status;
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_stream *s = open_stream();
    const struct backend_program program = {pool, NULL, 0};
    for (size_t i = 0; i < 2; i++) {
        struct backend_mem *mem = alloc(BIG, BACKEND_DEVICE, hows[i]), *other;
        struct err err = {0};
        ends[i] = (struct end){.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
        keep_busy();
        make(programs);
        assert_int_equal(backend_cuda.submit(b, s, &program, on_done, &ends[i], &err), 0);
        backend_cuda.mem_free(b, mem);
        await_waiting();
        const enum backend_export how = hows[1 - i];
        assert_int_equal(get(BIG, BACKEND_DEVICE, how, &other), KVPOOL_E_AGAIN);
        assert_int_equal(get(MEMORY, BACKEND_DEVICE, how, &other), KVPOOL_E_NOMEM);
        // What is free would have to be zeroed, and that would wait with the reaper.
        assert_int_equal(get(MIB, BACKEND_DEVICE, how, &other), KVPOOL_E_AGAIN);
        assert_int_equal(get(MIB, BACKEND_HOST, BACKEND_FD, &other), 0);
        let_idle();
        wait_for(&ends[i]);
        backend_cuda.mem_free(b, other);
        backend_cuda.mem_free(b, alloc(BIG, BACKEND_DEVICE, how));
    }
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    backend_cuda.close(b);
}

// Nearly all that pools may have, made anew at once.
static void test_a_pool_is_made_anew_of_the_same_memory(void **state) {
    (void)state;
    static const enum backend_export hows[] = {BACKEND_FD, BACKEND_IPC};
    enum { PAGES = (80 << 20) / (64 << 10) };
    for (size_t i = 0; i < 2; i++) {
        int status;
        struct backend_pool *pool = NULL;
        await((pool = open_pool(PAGES, hows[i], &status)) != NULL || status != KVPOOL_E_AGAIN);
        assert_non_null(pool);
        keep_busy();
        backend_cuda.pool_close(b, pool);
        await_waiting();
        assert_null(open_pool(PAGES, hows[i], &status));
        assert_int_equal(status, KVPOOL_E_AGAIN);
        assert_null(open_pool(2 * PAGES, hows[i], &status));
        assert_int_equal(status, KVPOOL_E_NOMEM);
        let_idle();
        await((pool = open_pool(PAGES, hows[i], &status)) != NULL || status != KVPOOL_E_AGAIN);
        assert_non_null(pool);
        backend_cuda.pool_close(b, pool);
    }
    backend_cuda.close(b);
}

static void test_host_memory_too(void **state) {
    (void)state;
    const struct cpu_ledger none = {0};
    const uint64_t much = (uint64_t)4 << 30; // never touched
    struct backend_mem *mem = NULL, *other;
    if (cpu_memory_available(&none) < much + MIB)
        skip();
    mem = alloc(much, BACKEND_HOST, BACKEND_FD);
    keep_busy();
    backend_cuda.mem_free(b, mem);
    await_waiting();
    const uint64_t more = cpu_memory_available(&none) + much / 2;
    assert_int_equal(get(more, BACKEND_HOST, BACKEND_FD, &other), KVPOOL_E_AGAIN);
    assert_int_equal(get(more + 16 * much, BACKEND_HOST, BACKEND_FD, &other), KVPOOL_E_NOMEM);
    mem = alloc(MIB, BACKEND_HOST, BACKEND_FD);
    let_idle();
    int status;
    await((status = get(more, BACKEND_HOST, BACKEND_FD, &other)) != KVPOOL_E_AGAIN);
    assert_int_equal(status, KVPOOL_E_NOMEM); // nothing more comes
    backend_cuda.mem_free(b, mem);
    backend_cuda.close(b);
}

// --- imports ----------------------------------------------------------------------------------------

static void check_role(bool ok, int line) {
    if (!ok) {
        fprintf(stderr, "%s:%d: does not hold\n", __FILE__, line);
        _exit(1);
    }
}
#define CHECK(condition) check_role((condition), __LINE__)

static int import(const struct backend_handle *h, struct backend_mem **ret) {
    struct err err = {0};
    return backend_cuda.mem_import(b, h, h->bytes, ret, &err);
}

static unsigned char first_byte(const struct backend_mem *mem) {
    unsigned char byte = 0;
    CHECK(cudaMemcpyAsync(&byte, cuda_mem_address(mem), 1, cudaMemcpyDefault, NULL) == cudaSuccess);
    return byte;
}

// The other process. Its own memory keeps the reaper at work.
static int import_role(const struct backend_handle *h) {
    struct backend_mem *mem, *again, *own, *none;
    const uint64_t before = available();
    CHECK(setup(NULL) == 0);
    CHECK(import(h, &mem) == 0);
    CHECK(get(MIB, BACKEND_DEVICE, BACKEND_FD, &own) == 0);
    const char *address = cuda_mem_address(mem);
    // Given up, and not closed yet: it is taken up as it is, however often.
    keep_busy();
    backend_cuda.mem_free(b, own);
    await_waiting();
    for (int i = 0; i < 3; i++) {
        backend_cuda.mem_free(b, mem);
        CHECK(import(h, &mem) == 0);
        CHECK(cuda_mem_address(mem) == address);
    }
    CHECK(import(h, &again) == 0); // twice
    backend_cuda.mem_free(b, mem);
    let_idle();
    await(available() == before);
    usleep(20000);
    CHECK(first_byte(again) == 0x77);
    // While it is being closed.
    keep_busy();
    backend_cuda.mem_free(b, again);
    await_waiting();
    CHECK(import(h, &none) == KVPOOL_E_AGAIN);
    let_idle();
    int status;
    await((status = import(h, &mem)) != KVPOOL_E_AGAIN);
    CHECK(status == 0);
    CHECK(first_byte(mem) == 0x77);
    // A range outside of it: opened, refused, closed.
    struct backend_handle outside = *h;
    outside.offset = h->bytes;
    backend_cuda.mem_free(b, mem);
    await((status = import(&outside, &none)) != KVPOOL_E_AGAIN);
    CHECK(status == KVPOOL_E_INVAL);
    backend_cuda.close(b);
    return 0;
}

struct told {                   // of a close
    struct backend_close close; // first
    atomic_uint times;
};

static void on_close(struct backend_close *close) {
    atomic_fetch_add(&((struct told *)close)->times, 1);
}

static void close_mem(struct backend_mem *mem, struct told *told) {
    *told = (struct told){.close.done = on_close};
    backend_cuda.mem_close(b, mem, &told->close);
}

// Another process, which is told when the memory is closed.
static int close_role(const struct backend_handle *h) {
    struct told told, first;
    struct backend_mem *mem, *again, *own;
    struct end ran = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    int status;
    CHECK(setup(NULL) == 0);
    CHECK(import(h, &mem) == 0);
    // Not before it is closed.
    keep_busy();
    close_mem(mem, &told);
    await_waiting();
    usleep(20000);
    CHECK(told.times == 0);
    let_idle();
    await(told.times == 1);
    CHECK(import(h, &mem) == 0); // it is gone already: not AGAIN
    // Another import keeps it open.
    CHECK(import(h, &again) == 0);
    close_mem(mem, &told);
    CHECK(told.times == 1);
    CHECK(first_byte(again) == 0x77);
    // So does one that comes before the reaper does.
    CHECK(get(MIB, BACKEND_DEVICE, BACKEND_FD, &own) == 0);
    keep_busy();
    backend_cuda.mem_free(b, own);
    await_waiting();
    close_mem(again, &first);
    CHECK(first.times == 0);
    CHECK(import(h, &mem) == 0);
    CHECK(first.times == 1);
    close_mem(mem, &told);
    CHECK(told.times == 0);
    let_idle();
    await(told.times == 1);
    // Two at once, of other memory than an import too.
    CHECK(get(MIB, BACKEND_DEVICE, BACKEND_FD, &own) == 0);
    CHECK(import(h, &mem) == 0);
    keep_busy();
    close_mem(own, &first);
    await_waiting();
    close_mem(mem, &told);
    CHECK(first.times == 0);
    let_idle();
    await(first.times == 1 && told.times == 1);
    // Who waits for a close does not wait for a pause of the device, whatever else the reaper has.
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_stream *s = open_stream();
    const struct backend_program program = {pool, NULL, 0};
    struct err err = {0};
    CHECK(import(h, &mem) == 0);
    CHECK(get(MIB, BACKEND_DEVICE, BACKEND_FD, &own) == 0);
    make(programs);
    CHECK(backend_cuda.submit(b, s, &program, on_done, &ran, &err) == 0);
    const uint64_t begin = now_ms();
    backend_cuda.mem_free(b, own);
    usleep(20000); // the reaper is at it
    close_mem(mem, &told);
    await(told.times == 1);
    CHECK(now_ms() - begin < 800);
    let_idle();
    wait_for(&ran);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    // The end of the backend closes it.
    pthread_t thread;
    CHECK(import(h, &mem) == 0);
    keep_busy();
    close_mem(mem, &told);
    CHECK(pthread_create(&thread, NULL, idle_later, NULL) == 0);
    backend_cuda.close(b);
    CHECK(told.times == 1);
    pthread_join(thread, NULL);
    return 0;
}

// Runs this program in a role with a handle; returns its exit status.
static int run_role(const char *role, const struct backend_handle *h) {
    char text[2 * sizeof *h + 1];
    unsigned char bytes[sizeof *h];
    memcpy(bytes, h, sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "test_backend_busy", role, text, (char *)NULL);
        _exit(126);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void run_with_memory(const char *role) {
    struct backend_handle h;
    struct backend_mem *mem = alloc(2 * MIB, BACKEND_DEVICE, BACKEND_IPC);
    backend_cuda.mem_handle(mem, &h);
    assert_int_equal(cudaMemcpyAsync(cuda_mem_address(mem), "\x77", 1, cudaMemcpyDefault, NULL),
                     cudaSuccess);
    assert_int_equal(run_role(role, &h), 0);
    backend_cuda.mem_free(b, mem);
    backend_cuda.close(b);
}

static void test_an_import_given_up_can_be_had_again(void **state) {
    (void)state;
    run_with_memory("import");
}

static void test_the_end_of_an_import_is_told(void **state) {
    (void)state;
    run_with_memory("close");
}

// --- the device is lost -----------------------------------------------------------------------------

// A kernel that is no program's faults: the reaper is the first to learn of it.
static int lost_role(void) {
    struct cuda_device device;
    struct backend_mem *mem;
    const uint32_t page = 0;
    const struct cuda_planes nowhere = {
        .base = (void *)(uintptr_t)4096, .plane_bytes = 4096, .page_bytes = 4096, .layers = 1};
    int status;
    CHECK(setup(NULL) == 0);
    CHECK(cuda_device_init(&device) == 0);
    struct backend_pool *pool = open_pool(16, BACKEND_FD, &status);
    struct backend_stream *s = open_stream();
    CHECK(get(MIB, BACKEND_DEVICE, BACKEND_FD, &mem) == 0);
    uint32_t *ids = NULL;
    CHECK(cudaMalloc((void **)&ids, sizeof page) == cudaSuccess);
    CHECK(cudaMemcpyAsync(ids, &page, sizeof page, cudaMemcpyDefault, NULL) == cudaSuccess);
    CHECK(backend_cuda.failure(b) == NULL);
    (void)cuda_scrub_pages(&device, &nowhere, ids, 1, 0, NULL);
    CHECK(backend_cuda.failure(b) == NULL);
    backend_cuda.mem_free(b, mem);
    await(backend_cuda.failure(b) != NULL);
    fprintf(stderr, "failure: %s\n", backend_cuda.failure(b));
    CHECK(strstr(backend_cuda.failure(b), "releasing memory of the GPU") != NULL);
    CHECK(strstr(backend_cuda.failure(b), "CUDA error") != NULL);
    const struct backend_program program = {pool, NULL, 0};
    struct err err = {0};
    CHECK(backend_cuda.submit(b, s, &program, on_done, NULL, &err) == KVPOOL_E_BACKEND);
    CHECK(strstr(err.text, "the GPU is lost") != NULL);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
    backend_cuda.close(b); // and it ends
    return 0;
}

static void test_a_loss_that_the_reaper_sees_is_final(void **state) {
    (void)state;
    const struct backend_handle none = {.fd = -1};
    assert_int_equal(run_role("lost", &none), 0);
    backend_cuda.close(b);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_nothing_waits_and_all_comes_back, setup),
        cmocka_unit_test_setup(test_the_end_takes_all_back, setup),
        cmocka_unit_test_setup(test_memory_is_taken_back_in_a_pause, setup),
        cmocka_unit_test_setup(test_memory_on_its_way_back_can_be_had_again, setup),
        cmocka_unit_test_setup(test_a_pool_is_made_anew_of_the_same_memory, setup),
        cmocka_unit_test_setup(test_host_memory_too, setup),
        cmocka_unit_test_setup(test_an_import_given_up_can_be_had_again, setup),
        cmocka_unit_test_setup(test_the_end_of_an_import_is_told, setup),
        cmocka_unit_test_setup(test_a_loss_that_the_reaper_sees_is_final, setup),
    };
    char memory[32];
    alarm(100); // what should not wait does
    snprintf(busy, sizeof busy, "/tmp/kvpool-busy-%d", (int)getpid());
    snprintf(waiting, sizeof waiting, "%s.waiting", busy);
    snprintf(programs, sizeof programs, "%s.programs", busy);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)MEMORY);
    setenv("KVPOOL_EMULATE_BUSY", busy, 1);
    setenv("KVPOOL_EMULATE_MEMORY", memory, 1);
    if (argc == 3) {
        struct backend_handle h;
        for (size_t i = 0; i < sizeof h; i++) {
            const char two[3] = {argv[2][2 * i], argv[2][2 * i + 1], 0};
            ((unsigned char *)&h)[i] = (unsigned char)strtoul(two, NULL, 16);
        }
        return strcmp(argv[1], "import") == 0  ? import_role(&h)
               : strcmp(argv[1], "close") == 0 ? close_role(&h)
                                               : lost_role();
    }
    const int failed = cmocka_run_group_tests_name("backend_busy", tests, NULL, NULL);
    let_idle();
    return failed;
}
