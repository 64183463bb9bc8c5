// SPDX-License-Identifier: Apache-2.0
// bench_attention.c: attention through the backend's vtable, against what the memory can do.
//
//   roof           gb_per_s: plain reads of the pool's memory from end to end, much larger than the
//                  last-level cache, by as many threads as the backend has
//   roof_huge      gb_per_s: the same over private memory in huge pages, for comparison: a pool is a
//                  memfd, which has them only where the system allows it (docs/performance.md)
//   decode_b8_4k   gb_per_s: bytes of K and V over the time of one layer, 8 sequences of 4096
//                  tokens, bf16, 32 query and 8 key heads of 128, pages of 16 in random order;
//                  roof_fraction: that over the roof measured in the same round
//   decode_b1_16   us: one sequence of 16 tokens, in cache
//   prefill_1_2k   gflop_per_s: one causal prefill of 2048 tokens, same heads; only products that
//                  the mask leaves are counted
//
// Rounds of roof and decode alternate, decode takes another layer every round (so that its data is
// cold), and medians are printed. Thread: the bench's main thread.
#include "bench/bench.h"

#include "kernels/backend.h"
#include "kernels/cpu_threads.h"
#include "kernels/dtype.h"

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    QO_HEADS = 32,
    KV_HEADS = 8,
    HEAD_DIM = 128,
    PAGE_SIZE = 16,
    BATCH = 8,
    KV_LEN = 4096,
    PREFILL_LEN = 2048,
    LAYERS = 4,
    PAGES = BATCH * KV_LEN / PAGE_SIZE,
    ROW_PAGES = KV_LEN / PAGE_SIZE,
    ROUNDS = 40,
    ROOF_BLOCK = 1 << 20,
};
#define KV_BYTES ((size_t)BATCH * KV_LEN * 2 * KV_HEADS * HEAD_DIM * 2)
#define ROOF_BYTES (LAYERS * KV_BYTES) // the whole pool
#define MAX_ROUNDS 400

// ---------------------------------------------------------------------------------------------
// Roof

typedef uint64_t wide __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) uint64_t read_block(const char *block) {
    wide x[8] = {{0}};
    for (const char *p = block; p < block + ROOF_BLOCK; p += sizeof x)
        for (int i = 0; i < 8; i++)
            x[i] |= *(const wide *)(p + (size_t)i * sizeof *x);
    uint64_t all = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++)
            all |= x[i][j];
    return all;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t read_block_avx512(const char *block) {
    return read_block(block);
}
__attribute__((target("avx2"))) static uint64_t read_block_avx2(const char *block) {
    return read_block(block);
}
#endif
static uint64_t read_block_generic(const char *block) {
    return read_block(block);
}

struct roof {
    uint64_t (*read)(const char *);
    const char *parts[LAYERS]; // of ROOF_BYTES / LAYERS each
    atomic_uint_fast64_t sink; // so that the reads are not dropped
};

static void roof_index(void *arg, uint32_t index, uint32_t worker) {
    (void)worker;
    struct roof *r = arg;
    const uint32_t blocks = ROOF_BYTES / LAYERS / ROOF_BLOCK;
    const char *block = r->parts[index / blocks] + (size_t)(index % blocks) * ROOF_BLOCK;
    atomic_fetch_or_explicit(&r->sink, r->read(block), memory_order_relaxed);
}

static double roof_round(struct cpu_threads *threads, struct roof *r) {
    uint64_t begin = bench_now_ns();
    cpu_threads_run(threads, (uint32_t)(ROOF_BYTES / ROOF_BLOCK), roof_index, r);
    return (double)ROOF_BYTES / (double)(bench_now_ns() - begin);
}

// ---------------------------------------------------------------------------------------------
// The pool and its tensors

struct setup {
    const struct backend_ops *ops;
    struct backend *backend;
    struct backend_pool *pool;
    struct backend_stream *stream;
    struct backend_mem *kv; // K, V and q of PREFILL_LEN tokens or KV_LEN tokens
    struct backend_mem *io; // q, out, lse
    uint32_t rows[BATCH];
};

static void ignore_done(void *arg, int status) {
    *(int *)arg = status;
}

static int submit(struct setup *s, const struct backend_op *ops, uint32_t n) {
    struct err err = {0};
    struct backend_program program = {s->pool, ops, n};
    int status = 0;
    if (s->ops->submit(s->backend, s->stream, &program, ignore_done, &status, &err) != 0) {
        fprintf(stderr, "bench attention: %s\n", err.text);
        return 1;
    }
    return status != 0;
}

static uint64_t random_bits(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Every page differs from every other: equal ones could be merged and be read from the cache.
static void fill_random(void *to, size_t bytes) {
    uint64_t state = 0x9e3779b97f4a7c15u;
    uint64_t *words = to;
    for (size_t i = 0; i < bytes / sizeof *words; i++)
        words[i] = random_bits(&state);
}

static void fill_normal(uint16_t *to, size_t n, uint64_t *state) {
    for (size_t i = 0; i < n; i++) {
        double u = ((double)(random_bits(state) >> 11) + 1) * 0x1p-53;
        double v = (double)(random_bits(state) >> 11) * 0x1p-53;
        to[i] = dtype_fp32_to_bf16((float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v)));
    }
}

static struct backend_tensor tensor(struct backend_mem *mem, size_t offset, uint32_t heads) {
    return (struct backend_tensor){mem, offset, (uint64_t)heads * HEAD_DIM, HEAD_DIM};
}

// Gives every sequence its pages, in random order, and its K and V in every layer.
static int fill_pool(struct setup *s, uint64_t *state) {
    static uint32_t ids[PAGES];
    for (uint32_t i = 0; i < PAGES; i++)
        ids[i] = i;
    for (uint32_t i = PAGES; i > 1; i--) {
        uint32_t j = (uint32_t)(random_bits(state) % i);
        uint32_t t = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = t;
    }
    const uint32_t len = KV_LEN;
    const uint32_t indptr[2] = {0, KV_LEN};
    size_t v_offset = (size_t)KV_LEN * KV_HEADS * HEAD_DIM * 2;
    for (uint32_t i = 0; i < BATCH; i++) {
        s->rows[i] = i;
        struct backend_op ops[1 + LAYERS] = {{
            .kind = BACKEND_TABLE,
            .u.table = {i, 0, ROW_PAGES, ids + (size_t)i * ROW_PAGES},
        }};
        for (uint32_t l = 0; l < LAYERS; l++)
            ops[1 + l] = (struct backend_op){
                .kind = BACKEND_APPEND,
                .u.append = {l,
                             {1, &s->rows[i], &len, indptr},
                             {0},
                             tensor(s->kv, 0, KV_HEADS),
                             tensor(s->kv, v_offset, KV_HEADS)},
            };
        if (submit(s, ops, 1 + LAYERS) != 0)
            return 1;
    }
    return 0;
}

static int setup_open(struct setup *s) {
    struct err err = {0};
    struct backend_config config = {0};
    struct kv_geometry g = {LAYERS, KV_HEADS, HEAD_DIM, PAGE_SIZE, KVPOOL_BF16, 0};
    uint64_t state = 88172645463325252u;
    size_t kv_elements = (size_t)2 * KV_LEN * KV_HEADS * HEAD_DIM;
    size_t q_elements = (size_t)PREFILL_LEN * QO_HEADS * HEAD_DIM;
    if (backend_find("cpu", &s->ops, &err) != 0 || s->ops->open(&config, &s->backend, &err) != 0 ||
        s->ops->pool_open(s->backend, &g, BACKEND_FD, PAGES, BATCH, ROW_PAGES, &s->pool, &err) !=
            0 ||
        s->ops->stream_open(s->backend, &s->stream, &err) != 0 ||
        s->ops->mem_alloc(s->backend, kv_elements * 2, BACKEND_HOST, BACKEND_FD, &s->kv, &err) !=
            0 ||
        s->ops->mem_alloc(s->backend, q_elements * 2 * 2 + (size_t)PREFILL_LEN * QO_HEADS * 4,
                          BACKEND_HOST, BACKEND_FD, &s->io, &err) != 0) {
        fprintf(stderr, "bench attention: %s\n", err.text);
        return 1;
    }
    fprintf(stderr, "attention: %s, pool of %.0f MB\n", s->ops->describe(s->backend),
            (double)s->ops->pool_bytes(s->pool) / 1e6);
    fill_normal(s->ops->mem_host(s->kv), kv_elements, &state);
    fill_normal(s->ops->mem_host(s->io), q_elements, &state);
    return fill_pool(s, &state);
}

static void setup_close(struct setup *s) {
    if (s->io != NULL)
        s->ops->mem_free(s->backend, s->io);
    if (s->kv != NULL)
        s->ops->mem_free(s->backend, s->kv);
    if (s->stream != NULL)
        s->ops->stream_close(s->backend, s->stream);
    if (s->pool != NULL)
        s->ops->pool_close(s->backend, s->pool);
    if (s->backend != NULL)
        s->ops->close(s->backend);
}

// Seconds of one attention, or a negative number.
static double attend(struct setup *s, uint32_t layer, uint32_t n, uint32_t q_len, uint32_t kv_len) {
    uint32_t lens[BATCH];
    uint32_t indptr[BATCH + 1] = {0};
    for (uint32_t i = 0; i < n; i++) {
        lens[i] = kv_len;
        indptr[i + 1] = indptr[i] + q_len;
    }
    size_t q_bytes = (size_t)PREFILL_LEN * QO_HEADS * HEAD_DIM * 2;
    struct backend_op op = {
        .kind = BACKEND_ATTEND,
        .u.attend =
            {
                .layer = layer,
                .qo_heads = QO_HEADS,
                .causal = true,
                .sm_scale = 1.0f / sqrtf(HEAD_DIM),
                .window_left = -1,
                .batch = {n, s->rows, lens, indptr},
                .q = tensor(s->io, 0, QO_HEADS),
                .out = tensor(s->io, q_bytes, QO_HEADS),
                .lse = {s->io, 2 * q_bytes, QO_HEADS, 1},
            },
    };
    uint64_t begin = bench_now_ns();
    if (submit(s, &op, 1) != 0)
        return -1;
    return (double)(bench_now_ns() - begin) * 1e-9;
}

// ---------------------------------------------------------------------------------------------

static uint32_t rounds_of(uint32_t full) {
    double rounds = full * bench_quick_scale();
    return rounds < 3 ? 3 : rounds > MAX_ROUNDS ? MAX_ROUNDS : (uint32_t)rounds;
}

static int measure_decode(struct setup *s, struct cpu_threads *threads, struct roof *roof,
                          struct roof *huge) {
    double roofs[MAX_ROUNDS];
    double huges[MAX_ROUNDS];
    double speeds[MAX_ROUNDS];
    double fractions[MAX_ROUNDS];
    uint32_t rounds = rounds_of(ROUNDS);
    for (uint32_t i = 0; i < rounds; i++) {
        huges[i] = roof_round(threads, huge);
        roofs[i] = roof_round(threads, roof);
        double seconds = attend(s, i % LAYERS, BATCH, 1, KV_LEN);
        if (seconds < 0)
            return 1;
        speeds[i] = (double)KV_BYTES / seconds * 1e-9;
        fractions[i] = speeds[i] / roofs[i];
    }
    double median_roof = bench_percentile(roofs, rounds, 50);
    double median_speed = bench_percentile(speeds, rounds, 50);
    fprintf(stderr, "attention: roof best %.1f GB/s, decode best %.1f GB/s\n",
            bench_percentile(roofs, rounds, 100), bench_percentile(speeds, rounds, 100));
    bench_emit("attention", "roof", "gb_per_s", median_roof);
    bench_emit("attention", "roof_huge", "gb_per_s", bench_percentile(huges, rounds, 50));
    bench_emit("attention", "decode_b8_4k", "gb_per_s", median_speed);
    bench_emit("attention", "decode_b8_4k", "roof_fraction",
               bench_percentile(fractions, rounds, 50));
    return 0;
}

static int measure_short(struct setup *s) {
    double times[MAX_ROUNDS];
    uint32_t rounds = rounds_of(MAX_ROUNDS);
    for (uint32_t i = 0; i < rounds; i++) {
        times[i] = attend(s, 0, 1, 1, 16) * 1e6;
        if (times[i] < 0)
            return 1;
    }
    bench_emit("attention", "decode_b1_16", "us", bench_percentile(times, rounds, 50));
    return 0;
}

static int measure_prefill(struct setup *s) {
    double speeds[MAX_ROUNDS];
    uint32_t rounds = rounds_of(10);
    double visible = (double)PREFILL_LEN * (PREFILL_LEN + 1) / 2;
    double flops = 2.0 * 2.0 * HEAD_DIM * QO_HEADS * visible;
    for (uint32_t i = 0; i < rounds; i++) {
        double seconds = attend(s, i % LAYERS, 1, PREFILL_LEN, PREFILL_LEN);
        if (seconds < 0)
            return 1;
        speeds[i] = flops / seconds * 1e-9;
    }
    double median = bench_percentile(speeds, rounds, 50);
    fprintf(stderr, "attention: prefill best %.0f GFLOP/s\n",
            bench_percentile(speeds, rounds, 100));
    bench_emit("attention", "prefill_1_2k", "gflop_per_s", median);
    return 0;
}

int bench_attention(void) {
    int failed = 1;
    struct setup s = {0};
    struct roof roof = {.read = read_block_generic};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        roof.read = read_block_avx512;
    else if (__builtin_cpu_supports("avx2"))
        roof.read = read_block_avx2;
#endif
    struct cpu_threads *threads = cpu_threads_new(0);
    if (threads == NULL) {
        fprintf(stderr, "bench attention: cannot start threads\n");
        return 1;
    }
    char *buffer =
        mmap(NULL, ROOF_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        fprintf(stderr, "bench attention: no memory for the roof\n");
        goto free_threads;
    }
    madvise(buffer, ROOF_BYTES, MADV_HUGEPAGE);
    fill_random(buffer, ROOF_BYTES);
    if (setup_open(&s) != 0)
        goto close_setup;
    struct roof huge = {.read = roof.read};
    for (uint32_t l = 0; l < LAYERS; l++) {
        roof.parts[l] = s.ops->pool_plane(s.pool, l);
        if (roof.parts[l] == NULL) {
            fprintf(
                stderr,
                "bench attention: for the cpu backend: this one's planes are not mapped here\n");
            goto close_setup;
        }
        huge.parts[l] = buffer + l * KV_BYTES;
    }
    if (measure_decode(&s, threads, &roof, &huge) == 0 && measure_short(&s) == 0 &&
        measure_prefill(&s) == 0)
        failed = 0;
close_setup:
    setup_close(&s);
    munmap(buffer, ROOF_BYTES);
free_threads:
    cpu_threads_free(threads);
    return failed;
}
