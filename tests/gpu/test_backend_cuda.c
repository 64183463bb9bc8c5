// SPDX-License-Identifier: Apache-2.0
// The cuda backend beside what every backend is tested for (tests/unit/kernels): memory that processes
// share, what a stream keeps, many streams, how it ends when the device is lost.
//
// Other processes are this program again, with the role as its first argument.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/run.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define BYTES (4 * MIB)
#define OFFSET (3 * MIB + 256)

static struct backend *b;

static struct backend *open_backend(void) {
    const char *device = getenv("KVPOOL_TEST_DEVICE");
    const struct backend_config config = {.device =
                                              device != NULL ? (int)strtol(device, NULL, 10) : 0};
    struct backend *opened = NULL;
    struct err err = {0};
    if (backend_cuda.open(&config, &opened, &err) != 0)
        print_message("%s\n", err.text);
    return opened;
}

static struct backend_mem *alloc(enum backend_place place, enum backend_export how) {
    struct backend_mem *mem = NULL;
    struct err err = {0};
    if (backend_cuda.mem_alloc(b, BYTES - 1000, place, how, &mem, &err) != 0)
        fail_msg("%s", err.text);
    assert_true(backend_cuda.mem_bytes(mem) >= BYTES - 1000);
    return mem;
}

// --- programs -----------------------------------------------------------------------------------

struct ends { // of programs, in order
    pthread_mutex_t lock;
    pthread_cond_t more;
    uint32_t n;
    int status;
};

struct program {
    struct ends *ends;
    uint32_t number; // of its stream
    uint32_t *next;  // number that must end next
};

static void on_done(void *arg, int status) {
    struct program *p = arg;
    pthread_mutex_lock(&p->ends->lock);
    if (p->next != NULL && *p->next != p->number)
        p->ends->status = 1;
    if (p->next != NULL)
        ++*p->next;
    p->ends->n++;
    if (status != 0)
        p->ends->status = status;
    pthread_cond_signal(&p->ends->more);
    pthread_mutex_unlock(&p->ends->lock);
}

static void wait_for(struct ends *ends, uint32_t n) {
    pthread_mutex_lock(&ends->lock);
    while (ends->n < n)
        pthread_cond_wait(&ends->more, &ends->lock);
    pthread_mutex_unlock(&ends->lock);
}

static struct ends no_ends(void) {
    return (struct ends){.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
}

static void run(struct backend_pool *pool, struct backend_stream *s, const struct backend_op *ops,
                uint32_t n) {
    struct ends ends = no_ends();
    struct program p = {.ends = &ends};
    const struct backend_program program = {pool, ops, n};
    struct err err = {0};
    if (backend_cuda.submit(b, s, &program, on_done, &p, &err) != 0)
        fail_msg("%s", err.text);
    wait_for(&ends, 1);
    assert_int_equal(ends.status, 0);
}

static struct backend_pool *open_pool(uint32_t num_pages, uint32_t rows, uint32_t row_entries,
                                      enum backend_export how) {
    const struct kv_geometry g = {2, 2, 64, 8, KVPOOL_BF16, 0};
    struct backend_pool *pool = NULL;
    struct err err = {0};
    if (backend_cuda.pool_open(b, &g, how, num_pages, rows, row_entries, &pool, &err) != 0)
        fail_msg("%s", err.text);
    return pool;
}

static struct backend_stream *open_stream(void) {
    struct backend_stream *s = NULL;
    struct err err = {0};
    if (backend_cuda.stream_open(b, &s, &err) != 0)
        fail_msg("%s", err.text);
    return s;
}

// --- memory -------------------------------------------------------------------------------------

static void fetch(void *to, const char *from, size_t bytes) {
    assert_int_equal(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, NULL), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(NULL), cudaSuccess);
}

static void test_memory_is_zeroed(void **state) {
    (void)state;
    const enum backend_place places[] = {BACKEND_HOST, BACKEND_DEVICE, BACKEND_DEVICE};
    const enum backend_export hows[] = {BACKEND_FD, BACKEND_FD, BACKEND_IPC};
    unsigned char *copy = malloc(BYTES);
    assert_non_null(copy);
    for (int round = 0; round < 2; round++) // the second time it was somebody's
        for (size_t i = 0; i < 3; i++) {
            struct backend_mem *mem = alloc(places[i], hows[i]);
            size_t bytes = BYTES - 1000;
            fetch(copy, cuda_mem_address(mem), bytes);
            for (size_t at = 0; at < bytes; at++)
                if (copy[at] != 0)
                    fail_msg("byte %zu of memory %zu is %d", at, i, copy[at]);
            memset(copy, 0xa5, bytes);
            fetch(cuda_mem_address(mem), (const char *)copy, bytes);
            void *host = backend_cuda.mem_host(mem);
            assert_true((host != NULL) == (places[i] == BACKEND_HOST));
            if (host != NULL)
                assert_memory_equal(host, copy, bytes);
            backend_cuda.mem_free(b, mem);
        }
    free(copy);
}

static void test_memory_is_described_by_its_handle(void **state) {
    (void)state;
    struct backend_handle h;
    struct backend_mem *mem = alloc(BACKEND_HOST, BACKEND_FD);
    backend_cuda.mem_handle(mem, &h);
    assert_int_equal(h.place, BACKEND_HOST);
    assert_int_equal(h.bytes, backend_cuda.mem_bytes(mem));
    unsigned char *other = mmap(NULL, h.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    assert_ptr_not_equal(other, MAP_FAILED);
    other[OFFSET] = 7;
    unsigned char seen = 0;
    fetch(&seen, cuda_mem_address(mem) + OFFSET, 1);
    assert_int_equal(seen, 7);
    munmap(other, h.bytes);
    backend_cuda.mem_free(b, mem);

    mem = alloc(BACKEND_DEVICE, BACKEND_IPC);
    backend_cuda.mem_handle(mem, &h);
    assert_int_equal(h.place, BACKEND_DEVICE);
    assert_int_equal(h.how, BACKEND_IPC);
    assert_int_equal(h.fd, -1);
    assert_int_equal(h.bytes % (2 * MIB), 0);
    backend_cuda.mem_free(b, mem);

    mem = alloc(BACKEND_DEVICE, BACKEND_FD);
    backend_cuda.mem_handle(mem, &h);
    assert_int_equal(h.how, BACKEND_FD);
    assert_int_equal(fcntl(h.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    backend_cuda.mem_free(b, mem);
    for (int ms = 0; ms < 10000 && fcntl(h.fd, F_GETFD) != -1; ms++) // soon
        usleep(1000);
    assert_int_equal(fcntl(h.fd, F_GETFD), -1);

    struct err err = {0};
    assert_int_equal(backend_cuda.mem_alloc(b, 1, BACKEND_HOST, BACKEND_IPC, &mem, &err),
                     KVPOOL_E_UNSUPPORTED);
}

// Runs this program in a role with a handle; returns its exit status.
static int run_role(const char *role, const struct backend_handle *h) {
    unsigned char bytes[sizeof *h];
    char text[2 * sizeof bytes + 1];
    memcpy(bytes, h, sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    pid_t pid = fork();
    if (pid == 0) {
        if (h->fd >= 0)
            fcntl(h->fd, F_SETFD, 0);
        execl("/proc/self/exe", "test_backend_cuda", role, text, (char *)NULL);
        _exit(126);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static unsigned char pattern(size_t at) {
    return (unsigned char)(at * 7 + at / 4096);
}

// The other process: imports the memory twice, sees the pattern, and leaves a mark.
static int import_role(struct backend_handle h) {
    struct backend_mem *all = NULL;
    struct backend_mem *piece = NULL;
    struct backend_mem *none = NULL;
    struct err err = {0};
    const struct backend_handle part = {h.place, h.how, h.fd, {0}, OFFSET, h.bytes};
    struct backend_handle second = part;
    memcpy(second.ipc, h.ipc, sizeof second.ipc);
    b = open_backend();
    if (b == NULL || backend_cuda.mem_import(b, &h, h.bytes, &all, &err) != 0 ||
        backend_cuda.mem_import(b, &second, 4096, &piece, &err) != 0) {
        fprintf(stderr, "import: %s\n", err.text);
        return 1;
    }
    if (backend_cuda.mem_import(b, &second, h.bytes, &none, &err) != KVPOOL_E_INVAL ||
        strstr(err.text, "outside") == NULL)
        return 2;
    unsigned char *copy = malloc(h.bytes);
    if (copy == NULL)
        return 3;
    fetch(copy, cuda_mem_address(all), h.bytes);
    for (size_t i = 0; i < h.bytes; i++)
        if (copy[i] != pattern(i))
            return 4;
    backend_cuda.mem_free(b, all); // the other import stays
    fetch(copy, cuda_mem_address(piece), 4096);
    if (copy[5] != pattern(OFFSET + 5))
        return 5;
    fetch(cuda_mem_address(piece) + 9, "\x2a", 1);
    free(copy);
    backend_cuda.mem_free(b, piece);
    // It can be opened again once nobody has it, though not while it is being closed.
    int status;
    while ((status = backend_cuda.mem_import(b, &second, 4096, &piece, &err)) == KVPOOL_E_AGAIN)
        usleep(1000);
    if (status != 0)
        return 6;
    backend_cuda.mem_free(b, piece);
    backend_cuda.close(b);
    return 0;
}

static void check_other_process(enum backend_export how) {
    struct backend_mem *mem = alloc(BACKEND_DEVICE, how);
    struct backend_handle h;
    backend_cuda.mem_handle(mem, &h);
    unsigned char *bytes = malloc(h.bytes);
    assert_non_null(bytes);
    for (size_t i = 0; i < h.bytes; i++)
        bytes[i] = pattern(i);
    fetch(cuda_mem_address(mem), (const char *)bytes, h.bytes);
    assert_int_equal(run_role("import", &h), 0);
    fetch(bytes, cuda_mem_address(mem), h.bytes);
    assert_int_equal(bytes[OFFSET + 9], 0x2a);
    assert_int_equal(bytes[OFFSET + 8], pattern(OFFSET + 8));
    free(bytes);
    backend_cuda.mem_free(b, mem);
}

static void test_another_process_imports_a_file_descriptor(void **state) {
    (void)state;
    check_other_process(BACKEND_FD);
}

static void test_another_process_imports_an_ipc_handle(void **state) {
    (void)state;
    check_other_process(BACKEND_IPC);
}

static void refused(const struct backend_handle *h, const char *text) {
    struct backend_mem *mem = NULL;
    struct err err = {0};
    assert_int_equal(backend_cuda.mem_import(b, h, 4096, &mem, &err), KVPOOL_E_INVAL);
    if (strstr(err.text, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.text, text);
    assert_null(mem);
}

static void test_bad_imports_are_refused(void **state) {
    (void)state;
    struct backend_handle h = {.place = BACKEND_DEVICE, .how = BACKEND_IPC, .fd = -1};
    refused(&h, "IPC handle");
    h.place = BACKEND_HOST;
    refused(&h, "only memory of a GPU");
    int fd = memfd_create("not the GPU's", MFD_CLOEXEC);
    h = (struct backend_handle){
        .place = BACKEND_DEVICE, .how = BACKEND_FD, .fd = fd, .bytes = 2 * MIB};
    refused(&h, "file descriptor opens no memory");
    h.bytes = 4096;
    refused(&h, "multiple");
    h.bytes = 2 * MIB;
    h.offset = 2 * MIB - 4095;
    refused(&h, "outside");
    h.offset = UINT64_MAX;
    refused(&h, "outside");
    close(fd);
    h.offset = 0;
    refused(&h, "not a file descriptor");
    struct backend_mem *mem = alloc(BACKEND_DEVICE, BACKEND_IPC);
    backend_cuda.mem_handle(mem, &h); // its own memory, come back
    refused(&h, "another process");
    backend_cuda.mem_free(b, mem);
    mem = alloc(BACKEND_DEVICE, BACKEND_FD); // it still works
    backend_cuda.mem_free(b, mem);
}

static void test_too_much_memory_is_refused_with_the_bytes(void **state) {
    (void)state;
    const struct kv_geometry g = {32, 8, 128, 16, KVPOOL_BF16, 0};
    const struct kv_geometry huge = {512, 256, 576, 256, KVPOOL_FP32, 0};
    static const enum backend_export hows[] = {BACKEND_FD, BACKEND_IPC};
    for (size_t i = 0; i < 2; i++) {
        struct backend_pool *pool = NULL;
        struct backend_mem *mem = NULL;
        struct err err = {0};
        assert_int_equal(backend_cuda.pool_open(b, &g, hows[i], 1u << 28, 1, 1, &pool, &err),
                         KVPOOL_E_NOMEM);
        assert_non_null(strstr(err.text, "562949953421312 bytes"));
        assert_non_null(strstr(err.text, "available"));
        assert_int_equal(backend_cuda.pool_open(b, &huge, hows[i], UINT32_MAX, 1, 1, &pool, &err),
                         KVPOOL_E_NOMEM);
        assert_int_equal(backend_cuda.mem_alloc(b, UINT64_MAX, BACKEND_DEVICE, hows[i], &mem, &err),
                         KVPOOL_E_NOMEM);
        assert_non_null(strstr(err.text, "18446744073709551615 bytes"));
        assert_null(pool);
        assert_null(mem);
    }
    const struct kv_geometry odd = {1, 1, 12, 8, KVPOOL_BF16, 0};
    struct backend_pool *pool = NULL;
    struct backend_mem *mem = NULL;
    struct err err = {0};
    size_t available = 0, total = 0;
    assert_int_equal(cudaMemGetInfo(&available, &total), cudaSuccess);
    for (size_t i = 0; i < 2; i++) // what the daemon itself needs is not a client's
        assert_int_equal(backend_cuda.mem_alloc(b, available - ((uint64_t)64 << 20), BACKEND_DEVICE,
                                                hows[i], &mem, &err),
                         KVPOOL_E_NOMEM);
    assert_null(mem);
    assert_int_equal(backend_cuda.pool_open(b, &odd, BACKEND_FD, 4, 1, 1, &pool, &err),
                     KVPOOL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "head_dim 12"));
}

// --- programs -----------------------------------------------------------------------------------

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

// Long rows, many rows, the same row again in one program: more than a chunk holds.
static void test_table_updates_of_every_size(void **state) {
    (void)state;
    enum { ROWS = 300, ENTRIES = 5000, OPS = 2500 };
    struct backend_pool *pool = open_pool(8, ROWS, ENTRIES, BACKEND_FD);
    struct backend_stream *s = open_stream();
    uint32_t *expected = calloc((size_t)ROWS * ENTRIES, sizeof *expected);
    uint32_t *found = calloc((size_t)ROWS * ENTRIES, sizeof *found);
    uint32_t *ids = malloc(ENTRIES * sizeof *ids);
    struct backend_op *ops = calloc(OPS, sizeof *ops);
    assert_true(expected != NULL && found != NULL && ids != NULL && ops != NULL);
    uint64_t rng = 5;
    for (uint32_t i = 0; i < ENTRIES; i++)
        ids[i] = next_random(&rng);
    for (uint32_t i = 0; i < OPS; i++) {
        uint32_t first = next_random(&rng) % ENTRIES;
        uint32_t most = ENTRIES - first;
        uint32_t count = i % 50 == 0 ? most : 1 + next_random(&rng) % (most < 9 ? most : 9);
        ops[i] = (struct backend_op){
            .kind = BACKEND_TABLE,
            .u.table = {next_random(&rng) % ROWS, first, count, ids + next_random(&rng) % 100}};
        if (ops[i].u.table.ids + count > ids + ENTRIES)
            ops[i].u.table.ids = ids;
        memcpy(expected + (size_t)ops[i].u.table.row * ENTRIES + first, ops[i].u.table.ids,
               count * sizeof *ids);
    }
    run(pool, s, ops, OPS);
    fetch(found, (const char *)pool->table, (size_t)ROWS * ENTRIES * sizeof *found);
    assert_memory_equal(found, expected, (size_t)ROWS * ENTRIES * sizeof *found);
    free(ops);
    free(ids);
    free(found);
    free(expected);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
}

static void test_more_pages_are_copied_than_one_launch_takes(void **state) {
    (void)state;
    enum { PAGES = 2 * CUDA_STREAM_PAIRS + 77 };
    struct backend_pool *pool = open_pool(2 * PAGES, 1, 1, BACKEND_IPC);
    struct backend_stream *s = open_stream();
    size_t page = kv_page_bytes(&pool->geometry);
    size_t bytes = (size_t)2 * PAGES * page;
    unsigned char *plane = malloc(bytes);
    uint32_t *src = malloc(PAGES * sizeof *src);
    uint32_t *dst = malloc(PAGES * sizeof *dst);
    struct err err = {0};
    assert_non_null(plane);
    assert_non_null(src);
    assert_non_null(dst);
    for (size_t i = 0; i < bytes; i++)
        plane[i] = pattern(i);
    for (uint32_t i = 0; i < PAGES; i++) {
        src[i] = PAGES - 1 - i;
        dst[i] = PAGES + i;
    }
    for (uint32_t l = 0; l < 2; l++)
        assert_int_equal(backend_cuda.pool_write(b, pool, l, 0, plane, bytes, &err), 0);
    const struct backend_op op = {.kind = BACKEND_COPY, .u.copy = {PAGES, src, dst}};
    run(pool, s, &op, 1);
    for (uint32_t i = 0; i < PAGES; i++)
        memcpy(plane + dst[i] * page, plane + src[i] * page, page);
    unsigned char *found = malloc(bytes);
    assert_non_null(found);
    for (uint32_t l = 0; l < 2; l++) {
        assert_int_equal(backend_cuda.pool_read(b, pool, l, 0, found, bytes, &err), 0);
        assert_memory_equal(found, plane, bytes);
    }
    free(found);
    free(dst);
    free(src);
    free(plane);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
}

// A step's attention on one layer: sequences 0..n-1, sequence i with i % 3 == 2 of many new tokens.
struct step {
    uint32_t n, rows[8], kv_len[8], indptr[9], ids[1];
    struct backend_tensor kv, q, out;
};

static struct step make_step(struct backend_mem *mem, uint32_t n, uint32_t longer) {
    struct step s = {.n = n,
                     .kv = {mem, 0, 128, 64},
                     .q = {mem, 64 << 10, 256, 64},
                     .out = {mem, 512 << 10, 256, 64}};
    for (uint32_t i = 0; i < n; i++) {
        s.rows[i] = i;
        s.kv_len[i] = 30 + i + longer;
        s.indptr[i + 1] = s.indptr[i] + (i % 3 == 2 ? 20 : 1);
    }
    return s;
}

static struct backend_op step_op(const struct step *s, uint32_t layer, int32_t window) {
    return (struct backend_op){.kind = BACKEND_ATTEND,
                               .u.attend = {.layer = layer,
                                            .qo_heads = 4,
                                            .causal = true,
                                            .sm_scale = 0.125f,
                                            .window_left = window,
                                            .batch = {s->n, s->rows, s->kv_len, s->indptr},
                                            .q = s->q,
                                            .out = s->out}};
}

static void test_a_batch_is_uploaded_and_planned_once(void **state) {
    (void)state;
    struct backend_pool *pool = open_pool(64, 8, 8, BACKEND_FD);
    struct backend_stream *s = open_stream();
    struct backend_mem *mem = alloc(BACKEND_DEVICE, BACKEND_FD);
    struct step decode = make_step(mem, 2, 0);
    struct step mixed = make_step(mem, 6, 0);
    struct step longer = make_step(mem, 2, 1);
    struct backend_op ops[4] = {step_op(&decode, 0, -1), step_op(&decode, 1, -1)};
    run(pool, s, ops, 2);
    run(pool, s, ops, 2);
    assert_int_equal(s->uploaded, 1);
    assert_int_equal(s->planned, 1);
    ops[0] = step_op(&decode, 0, 9); // another mask: another plan
    run(pool, s, ops, 1);
    assert_int_equal(s->uploaded, 1);
    assert_int_equal(s->planned, 2);
    ops[0] = step_op(&mixed, 0, -1); // decode and prefill
    ops[1] = step_op(&mixed, 1, -1);
    run(pool, s, ops, 2);
    assert_int_equal(s->uploaded, 2);
    assert_int_equal(s->planned, 4);
    ops[0] = step_op(&longer, 0, -1); // one token more: another batch
    run(pool, s, ops, 1);
    assert_int_equal(s->uploaded, 3);
    assert_int_equal(s->planned, 5);
    for (uint32_t i = 2; i < 2 + CUDA_STREAM_BATCHES; i++) { // the first one is forgotten
        struct step other = make_step(mem, 2, i);
        ops[0] = step_op(&other, 0, -1);
        run(pool, s, ops, 1);
    }
    uint64_t uploaded = s->uploaded;
    ops[0] = step_op(&decode, 0, -1);
    run(pool, s, ops, 1);
    assert_int_equal(s->uploaded, uploaded + 1);
    backend_cuda.mem_free(b, mem);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
}

// The value of page p is 1 + p + more everywhere.
static void fill_pages(struct backend_pool *pool, uint32_t pages, uint32_t more) {
    size_t page = kv_page_bytes(&pool->geometry);
    uint16_t *plane = calloc(pages, page);
    struct err err = {0};
    assert_non_null(plane);
    for (size_t i = 0; i < pages * page / sizeof *plane; i++) {
        size_t number = i / (page / sizeof *plane);
        float value = (float)(1 + number + more);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        plane[i] = (uint16_t)(bits >> 16); // small integers are bf16
    }
    assert_int_equal(backend_cuda.pool_write(b, pool, 0, 0, plane, pages * page, &err), 0);
    free(plane);
}

// The batch is the same each time, but not where its pages are.
static void test_a_batch_is_planned_again_when_its_pages_are_others(void **state) {
    (void)state;
    struct backend_pool *pools[2] = {open_pool(64, 8, 8, BACKEND_FD),
                                     open_pool(64, 8, 8, BACKEND_FD)};
    struct backend_stream *s = open_stream();
    struct backend_mem *mem = alloc(BACKEND_HOST, BACKEND_FD);
    const uint16_t *out = (const uint16_t *)backend_cuda.mem_host(mem) + (512 << 10) / 2;
    struct step step = make_step(mem, 1, 0);
    static const struct {
        uint32_t pool, page;
        float expected;
    } turns[] = {{0, 10, 11}, {0, 10, 11}, {0, 20, 21}, {1, 20, 41}, {0, 20, 21}, {0, 10, 11}};
    step.kv_len[0] = 8; // one page
    fill_pages(pools[0], 64, 0);
    fill_pages(pools[1], 64, 20);
    for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) {
        const struct backend_op ops[2] = {
            {.kind = BACKEND_TABLE, .u.table = {0, 0, 1, &turns[i].page}}, step_op(&step, 0, -1)};
        run(pools[turns[i].pool], s, ops, 2);
        run(pools[turns[i].pool], s, ops + 1, 1); // its next layer
        uint32_t bits = (uint32_t)out[0] << 16;
        float found;
        memcpy(&found, &bits, sizeof found);
        if (found != turns[i].expected)
            fail_msg("turn %zu: %g where %g was expected", i, (double)found,
                     (double)turns[i].expected);
    }
    assert_int_equal(s->uploaded, 1);
    assert_int_equal(s->planned, sizeof turns / sizeof *turns);
    backend_cuda.mem_free(b, mem);
    backend_cuda.stream_close(b, s);
    for (size_t i = 0; i < 2; i++)
        backend_cuda.pool_close(b, pools[i]);
}

static void test_many_streams_at_once(void **state) {
    (void)state;
    enum { STREAMS = 24, ROUNDS = 40 };
    struct backend_pool *pool = open_pool(64, STREAMS, 8, BACKEND_FD);
    struct backend_stream *streams[STREAMS];
    static struct program programs[STREAMS][ROUNDS];
    static uint32_t ids[STREAMS][ROUNDS][8];
    uint32_t next[STREAMS] = {0};
    struct ends ends = no_ends();
    for (uint32_t i = 0; i < STREAMS; i++)
        streams[i] = open_stream();
    uint32_t submitted = 0;
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (uint32_t i = 0; i < STREAMS; i++) {
            struct err err = {0};
            for (uint32_t e = 0; e < 8; e++)
                ids[i][round][e] = (i << 20) + (round << 4) + e;
            const struct backend_op op = {.kind = BACKEND_TABLE,
                                          .u.table = {i, 0, 8, ids[i][round]}};
            const struct backend_program program = {pool, &op, 1};
            programs[i][round] = (struct program){&ends, round, &next[i]};
            if (submitted >= backend_cuda.window)
                wait_for(&ends, submitted + 1 - backend_cuda.window);
            if (backend_cuda.submit(b, streams[i], &program, on_done, &programs[i][round], &err))
                fail_msg("%s", err.text);
            submitted++;
        }
    wait_for(&ends, submitted);
    assert_int_equal(ends.status, 0); // and every stream's in order
    uint32_t table[STREAMS][8];
    fetch(table, (const char *)pool->table, sizeof table);
    for (uint32_t i = 0; i < STREAMS; i++) {
        assert_int_equal(next[i], ROUNDS);
        assert_memory_equal(table[i], ids[i][ROUNDS - 1], sizeof table[i]);
        backend_cuda.stream_close(b, streams[i]);
    }
    backend_cuda.pool_close(b, pool);
}

static void test_an_empty_program_ends_too(void **state) {
    (void)state;
    struct backend_pool *pool = open_pool(8, 1, 1, BACKEND_FD);
    struct backend_stream *s = open_stream();
    const uint32_t row = 0;
    const uint32_t kv_len = 5;
    const uint32_t indptr[2] = {0, 0};
    const struct backend_op ops[] = {
        {.kind = BACKEND_ATTEND, .u.attend = {.qo_heads = 4, .batch = {1, &row, &kv_len, indptr}}},
        {.kind = BACKEND_APPEND, .u.append = {.batch = {0, NULL, NULL, indptr}}},
        {.kind = BACKEND_COPY},
        {.kind = BACKEND_TABLE},
    };
    run(pool, s, NULL, 0);
    run(pool, s, ops, 4);
    backend_cuda.stream_close(b, s);
    backend_cuda.pool_close(b, pool);
}

// --- the device is lost -------------------------------------------------------------------------

// A program whose kernel reads where nothing is: everything fails from then on, and says why.
static int lost_role(void) {
    struct err err = {0};
    struct ends ends = no_ends();
    struct program p[2] = {{.ends = &ends}, {.ends = &ends}};
    b = open_backend();
    if (b == NULL)
        return 1;
    struct backend_pool *pool = open_pool(64, 8, 8, BACKEND_FD);
    struct backend_stream *s = open_stream();
    struct backend_stream *other = open_stream();
    struct backend_mem *mem = alloc(BACKEND_DEVICE, BACKEND_FD);
    struct step step = make_step(mem, 2, 0);
    step.q.offset = (uint64_t)1 << 44;
    struct backend_op op = step_op(&step, 0, -1);
    struct backend_program program = {pool, &op, 1};
    if (backend_cuda.failure(b) != NULL)
        return 2;
    if (backend_cuda.submit(b, s, &program, on_done, &p[0], &err) != 0)
        return 3;
    wait_for(&ends, 1);
    if (ends.status != KVPOOL_E_BACKEND)
        return 4;
    const char *why = backend_cuda.failure(b);
    if (why == NULL || strstr(why, "CUDA error") == NULL)
        return 5;
    fprintf(stderr, "failure: %s\n", why);
    program.n = 0;
    if (backend_cuda.submit(b, other, &program, on_done, &p[1], &err) != KVPOOL_E_BACKEND ||
        strstr(err.text, "the GPU is lost") == NULL || strstr(err.text, "CUDA error") == NULL)
        return 6;
    // What is left can be closed without hanging or crashing.
    backend_cuda.mem_free(b, mem);
    backend_cuda.stream_close(b, s);
    backend_cuda.stream_close(b, other);
    backend_cuda.pool_close(b, pool);
    backend_cuda.close(b);
    return ends.n == 1 ? 0 : 7;
}

static void test_a_lost_device_refuses_everything(void **state) {
    (void)state;
    const struct backend_handle none = {.fd = -1};
    assert_int_equal(run_role("lost", &none), 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_zeroed),
        cmocka_unit_test(test_memory_is_described_by_its_handle),
        cmocka_unit_test(test_another_process_imports_a_file_descriptor),
        cmocka_unit_test(test_another_process_imports_an_ipc_handle),
        cmocka_unit_test(test_bad_imports_are_refused),
        cmocka_unit_test(test_too_much_memory_is_refused_with_the_bytes),
        cmocka_unit_test(test_table_updates_of_every_size),
        cmocka_unit_test(test_more_pages_are_copied_than_one_launch_takes),
        cmocka_unit_test(test_a_batch_is_uploaded_and_planned_once),
        cmocka_unit_test(test_a_batch_is_planned_again_when_its_pages_are_others),
        cmocka_unit_test(test_many_streams_at_once),
        cmocka_unit_test(test_an_empty_program_ends_too),
        cmocka_unit_test(test_a_lost_device_refuses_everything),
    };
    if (argc == 3) {
        struct backend_handle h;
        for (size_t i = 0; i < sizeof h; i++) {
            const char two[3] = {argv[2][2 * i], argv[2][2 * i + 1], 0};
            ((unsigned char *)&h)[i] = (unsigned char)strtoul(two, NULL, 16);
        }
        return strcmp(argv[1], "import") == 0 ? import_role(h) : lost_role();
    }
    b = open_backend();
    if (b == NULL) {
        print_message("skipped: no GPU\n");
        return 77;
    }
    int failed = cmocka_run_group_tests_name("backend_cuda", tests, NULL, NULL);
    backend_cuda.close(b);
    return failed;
}
