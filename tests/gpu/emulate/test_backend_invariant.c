// SPDX-License-Identifier: Apache-2.0
// Batch-invariant attention on the cuda backend: a sequence has the bits that it has alone however many
// neighbours it has, however many launches they take, however little memory there is. On the emulator:
// the device's memory is as small as a test wants it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/run.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
enum {
    KV_HEADS = 8,
    HEAD_DIM = 64,
    PAGE = 8,
    PAGES = 64,
    ROWS = 4,
    ENTRIES = 50,
    OUT_AT = 8 << 20, // in the memory of the tensors, bytes; q at 0
    ALONE_AT = 16 << 20,
    KEYS_AT = 24 << 20, // of new tokens
    MEM_BYTES = 25 << 20,
};

static struct backend *open_backend(void) {
    const struct backend_config config = {0};
    struct backend *b = NULL;
    struct err err = {0};
    if (backend_cuda.open(&config, &b, &err) != 0)
        fail_msg("%s", err.text);
    return b;
}

// --- a batch ------------------------------------------------------------------------------------

struct batch {
    uint32_t n, heads; // heads: query heads
    uint32_t *rows, *kv_len, *indptr;
};

static struct batch new_batch(uint32_t heads, uint32_t most) {
    struct batch batch = {.heads = heads};
    batch.rows = calloc(most, sizeof *batch.rows);
    batch.kv_len = calloc(most, sizeof *batch.kv_len);
    batch.indptr = calloc((size_t)most + 1, sizeof *batch.indptr);
    assert_true(batch.rows != NULL && batch.kv_len != NULL && batch.indptr != NULL);
    return batch;
}
static void add(struct batch *batch, uint32_t q_len, uint32_t kv_len) {
    uint32_t i = batch->n++;
    batch->rows[i] = i % ROWS;
    batch->kv_len[i] = kv_len;
    batch->indptr[i + 1] = batch->indptr[i] + q_len;
}
static void free_batch(struct batch *batch) {
    free(batch->rows);
    free(batch->kv_len);
    free(batch->indptr);
}

// --- a backend with keys, values and queries ----------------------------------------------------------

struct world {
    struct backend *b;
    struct backend_pool *pool;
    struct backend_stream *s;
    struct backend_mem *mem;
    unsigned char *bytes; // of mem
};

static void fill(uint16_t *to, size_t n, uint64_t seed) { // bf16 in (-2, 2)
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        float x = (float)(int32_t)(seed >> 32) * 0x1p-30f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        to[i] = (uint16_t)(bits >> 16);
    }
}

struct end {
    pthread_mutex_t lock;
    pthread_cond_t more;
    bool done;
    int status;
};
static void on_done(void *arg, int status) {
    struct end *end = arg;
    pthread_mutex_lock(&end->lock);
    end->done = true;
    end->status = status;
    pthread_cond_signal(&end->more);
    pthread_mutex_unlock(&end->lock);
}
// Submits the program and waits for its end: its status, or submit's error.
static int try_run(struct world *w, const struct backend_op *ops, uint32_t n, struct err *err) {
    struct end end = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    const struct backend_program program = {w->pool, ops, n};
    int status = backend_cuda.submit(w->b, w->s, &program, on_done, &end, err);
    if (status != 0)
        return status;
    pthread_mutex_lock(&end.lock);
    while (!end.done)
        pthread_cond_wait(&end.more, &end.lock);
    pthread_mutex_unlock(&end.lock);
    return end.status;
}
static void run(struct world *w, const struct backend_op *ops, uint32_t n) {
    struct err err = {0};
    int status = try_run(w, ops, n, &err);
    if (status != 0)
        fail_msg("%d: %s", status, err.text);
}

static struct world open_world(void) {
    const struct kv_geometry g = {1, KV_HEADS, HEAD_DIM, PAGE, KVPOOL_BF16, 0};
    struct world w = {.b = open_backend()};
    struct err err = {0};
    if (backend_cuda.pool_open(w.b, &g, BACKEND_FD, PAGES, ROWS, ENTRIES, &w.pool, &err) != 0 ||
        backend_cuda.stream_open(w.b, &w.s, &err) != 0 ||
        backend_cuda.mem_alloc(w.b, MEM_BYTES, BACKEND_HOST, BACKEND_FD, &w.mem, &err) != 0)
        fail_msg("%s", err.text);
    w.bytes = backend_cuda.mem_host(w.mem);
    fill((uint16_t *)w.bytes, OUT_AT / 2, 1);
    fill((uint16_t *)(w.bytes + KEYS_AT), (MEM_BYTES - KEYS_AT) / 2, 3);
    size_t plane = PAGES * kv_page_bytes(&g);
    uint16_t *kv = malloc(plane);
    assert_non_null(kv);
    fill(kv, plane / 2, 2);
    assert_int_equal(backend_cuda.pool_write(w.b, w.pool, 0, 0, kv, plane, &err), 0);
    free(kv);
    uint32_t ids[ROWS][ENTRIES];
    struct backend_op ops[ROWS];
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t i = 0; i < ENTRIES; i++)
            ids[row][i] = (i * 13 + row * 5) % PAGES;
        ops[row] =
            (struct backend_op){.kind = BACKEND_TABLE, .u.table = {row, 0, ENTRIES, ids[row]}};
    }
    run(&w, ops, ROWS);
    return w;
}
static void close_world(struct world *w) {
    backend_cuda.mem_free(w->b, w->mem);
    backend_cuda.stream_close(w->b, w->s);
    backend_cuda.pool_close(w->b, w->pool);
    backend_cuda.close(w->b);
}

// Query tokens from `token` on; their results at `out`.
static struct backend_op attend(const struct world *w, const struct batch *batch, uint32_t token,
                                uint32_t out, bool invariant) {
    uint64_t row = (uint64_t)batch->heads * HEAD_DIM;
    return (struct backend_op){
        .kind = BACKEND_ATTEND,
        .u.attend = {.qo_heads = batch->heads,
                     .causal = true,
                     .sm_scale = 0.125f,
                     .window_left = -1,
                     .batch = {batch->n, batch->rows, batch->kv_len, batch->indptr},
                     .batch_invariant = invariant,
                     .q = {w->mem, token * row * 2, row, HEAD_DIM},
                     .out = {w->mem, out, row, HEAD_DIM}}};
}

// Runs the batch; then sequence i of it has the bits that it has alone, for every i that has query tokens.
static void check(struct world *w, const struct batch *batch) {
    size_t row = (size_t)batch->heads * HEAD_DIM * 2;
    assert_true(batch->indptr[batch->n] * row <= OUT_AT);
    memset(w->bytes + OUT_AT, 0xff, ALONE_AT - OUT_AT);
    struct backend_op op = attend(w, batch, 0, OUT_AT, true);
    run(w, &op, 1);
    for (uint32_t i = 0; i < batch->n; i++) {
        uint32_t token = batch->indptr[i], q_len = batch->indptr[i + 1] - token;
        uint32_t indptr[2] = {0, q_len};
        const struct batch one = {1, batch->heads, batch->rows + i, batch->kv_len + i, indptr};
        if (q_len == 0)
            continue;
        memset(w->bytes + ALONE_AT, 0xee, q_len * row);
        op = attend(w, &one, token, ALONE_AT, true);
        run(w, &op, 1);
        if (memcmp(w->bytes + OUT_AT + token * row, w->bytes + ALONE_AT, q_len * row) != 0)
            fail_msg("sequence %u of %u: other bits than alone", i, batch->n);
    }
}

// --- tests ------------------------------------------------------------------------------------------

// More items than a launch has counters for, nearly all of them of sequences without query tokens.
static void test_more_neighbours_than_a_launch_takes(void **state) {
    (void)state;
    enum { N = 8200 };
    struct world w = open_world();
    struct batch batch = new_batch(2 * KV_HEADS, N);
    for (uint32_t i = 0; i < N; i++) {
        static const uint32_t lengths[] = {300, 17, 390, 130};
        bool live = i % 2700 == 0; // 0, 2700, 5400, 8100
        add(&batch, live ? 1 + i % 3 : 0, live ? lengths[i / 2700] : 40);
    }
    check(&w, &batch);
    free_batch(&batch);
    close_world(&w);
}

// Large parts of O: a launch takes seven sequences of them. One sequence is prefill's.
static struct batch large_batch(void) {
    struct batch batch = new_batch(32 * KV_HEADS, 18);
    for (uint32_t i = 0; i < 18; i++) {
        uint32_t kv_len = i % 5 == 0 ? 260 + i : 9 + i;
        add(&batch, i == 4 ? 12 : i % 3 == 0 ? 8 : 1, kv_len);
    }
    return batch;
}

static void test_more_parts_than_a_launch_takes(void **state) {
    (void)state;
    struct world w = open_world();
    struct batch batch = large_batch();
    const struct backend_op ops[2] = {attend(&w, &batch, 0, OUT_AT, true),
                                      attend(&w, &batch, 0, OUT_AT, true)};
    run(&w, ops, 2); // two layers
    assert_int_equal(w.s->planned, 4);
    run(&w, ops, 1);
    assert_int_equal(w.s->planned, 4);
    assert_true(w.s->workspaces[CUDA_DECODE].bytes <= 128 * MIB);
    check(&w, &batch);
    free_batch(&batch);
    close_world(&w);
}

// The device has so many bytes more than what is in use.
static void leave_memory(size_t bytes) {
    size_t left = 0, total = 0;
    char text[32];
    assert_int_equal(cudaMemGetInfo(&left, &total), cudaSuccess);
    snprintf(text, sizeof text, "%zu", total - left + bytes);
    assert_int_equal(setenv("KVPOOL_EMULATE_MEMORY", text, 1), 0);
}
static int memory_again(void **state) {
    (void)state;
    return unsetenv("KVPOOL_EMULATE_MEMORY");
}

static void test_little_memory_takes_more_launches(void **state) {
    (void)state;
    struct world w = open_world();
    struct batch batch = large_batch();
    struct backend_op op = attend(&w, &batch, 0, OUT_AT, true);
    leave_memory(12 * MIB); // a sequence a launch
    check(&w, &batch);
    uint64_t planned = w.s->planned;
    run(&w, &op, 1);
    assert_int_equal(w.s->planned - planned, batch.n);
    leave_memory(32 * MIB); // twice the last workspace and more: three sequences
    planned = w.s->planned;
    unsigned char *out = malloc(ALONE_AT - OUT_AT);
    assert_non_null(out);
    memcpy(out, w.bytes + OUT_AT, ALONE_AT - OUT_AT);
    memset(w.bytes + OUT_AT, 0xff, ALONE_AT - OUT_AT);
    run(&w, &op, 1); // with plans of their own
    assert_int_equal(w.s->planned - planned, 6);
    assert_memory_equal(out, w.bytes + OUT_AT, ALONE_AT - OUT_AT);
    free(out);
    free_batch(&batch);
    close_world(&w);
}

static void test_more_launches_than_plans_keep_most_plans(void **state) {
    (void)state;
    enum { N = CUDA_STREAM_PLANS + 3 };
    struct world w = open_world();
    struct batch batch = new_batch(32 * KV_HEADS, N);
    for (uint32_t i = 0; i < N; i++)
        add(&batch, i == 0 ? 8 : 1, 9 + i);
    struct backend_op op = attend(&w, &batch, 0, OUT_AT, true);
    size_t bytes = (size_t)batch.indptr[N] * batch.heads * HEAD_DIM * 2;
    unsigned char *out = malloc(bytes);
    assert_non_null(out);
    leave_memory(12 * MIB); // a sequence a launch
    for (int layer = 0; layer < 4; layer++) {
        memset(w.bytes + OUT_AT, 0xff, bytes);
        run(&w, &op, 1);
        assert_int_equal(w.s->planned, N + 3 * layer);
        if (layer == 0)
            memcpy(out, w.bytes + OUT_AT, bytes);
        assert_memory_equal(out, w.bytes + OUT_AT, bytes);
    }
    free(out);
    free_batch(&batch);
    close_world(&w);
}

// --- without memory ---------------------------------------------------------------------------------

// K of the tokens that an append of the batch wrote, where the table says that they are.
static void check_appended(struct world *w, const struct batch *batch, uint32_t i,
                           const uint32_t ids[ENTRIES], const unsigned char *k) {
    const struct kv_geometry g = {1, KV_HEADS, HEAD_DIM, PAGE, KVPOOL_BF16, 0};
    const size_t head = (size_t)HEAD_DIM * 2;
    unsigned char got[HEAD_DIM * 2];
    struct err err = {0};
    uint32_t q_len = batch->indptr[i + 1] - batch->indptr[i];
    for (uint32_t t = 0; t < q_len; t++)
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            uint32_t position = batch->kv_len[i] - q_len + t;
            uint64_t at = ids[position / PAGE] * kv_page_bytes(&g) +
                          ((size_t)h * PAGE + position % PAGE) * head;
            assert_int_equal(backend_cuda.pool_read(w->b, w->pool, 0, at, got, head, &err), 0);
            assert_memory_equal(got, k + ((batch->indptr[i] + t) * KV_HEADS + h) * head, head);
        }
}

// A program without memory for its attention: updates, copies and appends on both sides of that are done.
static void program_without_memory(struct world *w, const struct batch *batch) {
    const struct kv_geometry g = {1, KV_HEADS, HEAD_DIM, PAGE, KVPOOL_BF16, 0};
    static unsigned char pages[2][2 * KV_HEADS * PAGE * HEAD_DIM * 2];
    uint32_t ids[2][ENTRIES], src = 62, dst = 63; // no row has these two any more
    for (uint32_t i = 0; i < ENTRIES; i++) {
        ids[0][i] = i;
        ids[1][i] = 50 + i % 12;
    }
    const uint64_t row = (uint64_t)KV_HEADS * HEAD_DIM;
    struct backend_batch appended = {1, batch->rows, batch->kv_len, batch->indptr};
    const uint32_t last = batch->n - 1,
                   indptr[2] = {0, batch->indptr[last + 1] - batch->indptr[last]};
    struct backend_op append = {.kind = BACKEND_APPEND,
                                .u.append = {.batch = appended,
                                             .k = {w->mem, KEYS_AT, row, HEAD_DIM},
                                             .v = {w->mem, KEYS_AT + 65536, row, HEAD_DIM}}};
    struct backend_op ops[] = {
        {.kind = BACKEND_TABLE, .u.table = {batch->rows[0], 0, ENTRIES, ids[0]}},
        append,
        attend(w, batch, 0, OUT_AT, true),
        {.kind = BACKEND_TABLE, .u.table = {ROWS - 1, 0, ENTRIES, ids[1]}},
        {.kind = BACKEND_COPY, .u.copy = {1, &src, &dst}},
        append,
    };
    const uint32_t last_row = ROWS - 1;
    ops[5].u.append.batch = (struct backend_batch){1, &last_row, batch->kv_len + last, indptr};
    ops[5].u.append.k.offset += batch->indptr[last] * row * 2;
    ops[5].u.append.v.offset += batch->indptr[last] * row * 2;
    struct err err = {0};
    assert_int_equal(try_run(w, ops, 6, &err), KVPOOL_E_NOMEM);
    assert_null(backend_cuda.failure(w->b));
    check_appended(w, batch, 0, ids[0], w->bytes + KEYS_AT);
    check_appended(w, batch, last, ids[1], w->bytes + KEYS_AT);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(backend_cuda.pool_read(w->b, w->pool, 0, (src + i) * kv_page_bytes(&g),
                                                pages[i], sizeof pages[i], &err),
                         0);
    assert_memory_equal(pages[0], pages[1], sizeof pages[0]);
}

// Without memory for a single sequence other attention still runs, batch-invariant attention is left out,
// and nothing else.
static void test_no_memory_leaves_attention_out_alone(void **state) {
    (void)state;
    static const uint32_t q_lens[][2] = {{1, 0}, {12, 0}, {3, 12}}; // decode, prefill, both
    for (size_t i = 0; i < 3; i++) {
        struct world w = open_world();
        struct batch batch = new_batch(2 * KV_HEADS, 2);
        struct err err = {0};
        add(&batch, q_lens[i][0], 100);
        if (q_lens[i][1] > 0)
            add(&batch, q_lens[i][1], 130);
        struct backend_op op = attend(&w, &batch, 0, OUT_AT, false);
        leave_memory(0);
        memset(w.bytes + OUT_AT, 0xff, 4096);
        run(&w, &op, 1);
        assert_int_equal(w.s->planned, 0);
        assert_true(w.bytes[OUT_AT] != 0xff || w.bytes[OUT_AT + 1] != 0xff);
        program_without_memory(&w, &batch);
        op.u.attend.batch_invariant = true;
        assert_int_equal(try_run(&w, &op, 1, &err), KVPOOL_E_NOMEM); // still
        op.u.attend.batch_invariant = false;
        run(&w, &op, 1);
        assert_int_equal(w.s->planned, 0);
        memory_again(NULL);
        check(&w, &batch);
        assert_true(w.s->planned > 0);
        free_batch(&batch);
        close_world(&w);
    }
}

// A batch for which the stream has no room from the beginning.
static void test_no_memory_for_a_large_batch(void **state) {
    (void)state;
    enum { N = CUDA_STREAM_SEQUENCES + 8 };
    struct world w = open_world();
    struct batch batch = new_batch(2 * KV_HEADS, N);
    struct err err = {0};
    for (uint32_t i = 0; i < N; i++)
        add(&batch, i == 7, 40);
    struct backend_op op = attend(&w, &batch, 0, OUT_AT, false);
    leave_memory(0);
    assert_int_equal(try_run(&w, &op, 1, &err), KVPOOL_E_NOMEM);
    assert_null(backend_cuda.failure(w.b));
    op.u.attend.batch.n = CUDA_STREAM_SEQUENCES;
    run(&w, &op, 1);
    const uint64_t row = (uint64_t)KV_HEADS * HEAD_DIM;
    op = (struct backend_op){.kind = BACKEND_APPEND,
                             .u.append = {.batch = {N, batch.rows, batch.kv_len, batch.indptr},
                                          .k = {w.mem, KEYS_AT, row, HEAD_DIM},
                                          .v = {w.mem, KEYS_AT + 65536, row, HEAD_DIM}}};
    assert_int_equal(try_run(&w, &op, 1, &err), KVPOOL_E_BACKEND);
    assert_non_null(strstr(err.text, "no memory for a batch of 1032 sequences"));
    assert_non_null(backend_cuda.failure(w.b));
    memory_again(NULL);
    free_batch(&batch);
    close_world(&w);
}

static void test_a_stream_without_memory_is_refused(void **state) {
    (void)state;
    static const size_t left[] = {0, 20000,
                                  100000}; // the first buffer fails, the second, a later one
    struct world w = open_world();
    for (size_t i = 0; i < 3; i++) {
        size_t before = 0, after = 0, total = 0;
        struct backend_stream *s = NULL;
        struct err err = {0};
        leave_memory(left[i]);
        cudaMemGetInfo(&before, &total);
        assert_int_equal(backend_cuda.stream_open(w.b, &s, &err), KVPOOL_E_NOMEM);
        assert_null(s);
        do
            cudaMemGetInfo(&after, &total);
        while (before != after);
        memory_again(NULL);
    }
    close_world(&w);
}

// The last test: the process has no device any more.
static void test_a_lost_device_says_more_than_no_memory(void **state) {
    (void)state;
    struct world w = open_world();
    struct batch batch = new_batch(2 * KV_HEADS, 1);
    struct err err = {0};
    add(&batch, 1, 100);
    struct backend_op ops[2] = {attend(&w, &batch, 0, OUT_AT, true),
                                attend(&w, &batch, 0, OUT_AT, false)};
    ops[1].u.attend.q.offset = (uint64_t)1 << 44;
    leave_memory(0);
    assert_int_equal(try_run(&w, ops, 2, &err), KVPOOL_E_BACKEND);
    assert_non_null(backend_cuda.failure(w.b));
    memory_again(NULL);
    free_batch(&batch);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_more_neighbours_than_a_launch_takes),
        cmocka_unit_test(test_more_parts_than_a_launch_takes),
        cmocka_unit_test_teardown(test_little_memory_takes_more_launches, memory_again),
        cmocka_unit_test_teardown(test_more_launches_than_plans_keep_most_plans, memory_again),
        cmocka_unit_test_teardown(test_no_memory_leaves_attention_out_alone, memory_again),
        cmocka_unit_test_teardown(test_no_memory_for_a_large_batch, memory_again),
        cmocka_unit_test_teardown(test_a_stream_without_memory_is_refused, memory_again),
        cmocka_unit_test_teardown(test_a_lost_device_says_more_than_no_memory, memory_again),
    };
    return cmocka_run_group_tests_name("backend_invariant", tests, NULL, NULL);
}
