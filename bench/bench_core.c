// SPDX-License-Identifier: Apache-2.0
// bench_core.c: core without anything around it: page allocation and release, and the transaction
// of a decode step (begin, marking its one layer, commit) for batches of 1, 32 and 256 sequences.
#include "bench/bench.h"
#include "daemon/core/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// A core in sparse memory.
struct mapped_core {
    void *block;
    size_t size;
    struct core *core;
    struct err err;
};

static void unmap_core(struct mapped_core *at) {
    core_close(at->core);
    if (at->block != NULL) {
        munmap(at->block, at->size);
    }
}

static int map_core(const struct core_limits *limits, struct mapped_core *ret) {
    ret->size = core_block_size(limits);
    void *block = mmap(NULL, ret->size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
        return err_set(&ret->err, KVPOOL_E_NOMEM, "out of memory");
    }
    ret->block = block;
    return core_create(block, ret->size, limits, 1, (const uint8_t[CORE_SECRET_SIZE]){1},
                       &ret->core, &ret->err);
}

// --- alloc_free -------------------------------------------------------------------------------

#define POOL_PAGES 1000000u
#define PAGES_A_STEP 64u // a prompt of 1024 tokens with pages of 16
#define NUM_STEPS (POOL_PAGES / PAGES_A_STEP)

struct alloc {
    struct mapped_core at;
    uint64_t session, pool;
    uint64_t seqs[NUM_STEPS];
    uint32_t order[NUM_STEPS]; // of the aborts
};

static void shuffle(uint32_t *ids, uint32_t n, uint64_t *random) {
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(next_random(random) % (i + 1));
        uint32_t id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
}

static int open_alloc(struct alloc *a) {
    struct core_limits limits = core_limits_default;
    limits.max_seqs = limits.max_steps = limits.max_session_steps = NUM_STEPS;
    limits.max_batch = 1;
    const struct core_pool_config config = {.name = "bench",
                                            .layers = 1,
                                            .kv_heads = 1,
                                            .head_dim = 8,
                                            .page_size = 16,
                                            .dtype = KVPOOL_BF16,
                                            .num_pages = POOL_PAGES,
                                            .max_seqs = NUM_STEPS,
                                            .max_seq_len = PAGES_A_STEP * 16};
    uint8_t token[CORE_TOKEN_SIZE] = {1};
    bool created = false;
    int rc = map_core(&limits, &a->at);
    if (rc == 0) {
        rc = core_session_open(a->at.core, 1, 0, "bench", token, &a->session, &a->at.err);
    }
    if (rc == 0) {
        rc = core_pool_create(a->at.core, &config, &a->pool, &created, &a->at.err);
    }
    for (uint32_t i = 0; rc == 0 && i < NUM_STEPS; i++) {
        a->order[i] = i;
        rc = core_seq_create(a->at.core, a->session, a->pool, 0, 1, &a->seqs[i], &a->at.err);
    }
    return rc;
}

// Takes the whole pool, a step at a time, and gives it back in random order. Nanoseconds, 0: failed.
static uint64_t alloc_round(struct alloc *a, uint32_t round, uint64_t *random) {
    struct core_step_info info;
    struct core_effects effects;
    uint64_t first_step = (uint64_t)round * NUM_STEPS + 1;
    uint64_t start = bench_now_ns();
    for (uint32_t i = 0; i < NUM_STEPS; i++) {
        const struct core_item item = {a->seqs[i], PAGES_A_STEP * 16};
        if (core_step_begin(a->at.core, a->session, first_step + i, a->pool, 1, &item, NULL, &info,
                            &effects, &a->at.err) != 0) {
            return 0;
        }
    }
    uint64_t taken = bench_now_ns();
    shuffle(a->order, NUM_STEPS, random);
    uint64_t shuffled = bench_now_ns();
    for (uint32_t i = 0; i < NUM_STEPS; i++) {
        if (core_step_abort(a->at.core, a->session, first_step + a->order[i], &effects,
                            &a->at.err) != 0) {
            return 0;
        }
    }
    return (taken - start) + (bench_now_ns() - shuffled);
}

// From the second round on the free list itself is in random order.
static int alloc_free(void) {
    struct alloc *a = calloc(1, sizeof *a);
    if (a == NULL) {
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    int rc = open_alloc(a);
    uint64_t random = 88172645463325252ull;
    uint64_t total = 0;
    uint64_t done = 0;
    uint32_t rounds = 1 + (uint32_t)(20 * bench_quick_scale());
    for (uint32_t round = 0; rc == 0 && round <= rounds; round++) {
        uint64_t ns = alloc_round(a, round, &random);
        rc = ns == 0 ? 1 : 0;
        if (round > 0) { // the first one touches the memory for the first time
            total += ns;
            done += (uint64_t)NUM_STEPS * PAGES_A_STEP;
        }
    }
    if (rc == 0) {
        bench_emit("core", "alloc_free", "pages_per_s", (double)done * 1e9 / (double)total);
    } else {
        fprintf(stderr, "bench core: %s\n", a->at.err.text);
    }
    unmap_core(&a->at);
    free(a);
    return rc == 0 ? 0 : 1;
}

// --- steps ------------------------------------------------------------------------------------

#define MAX_BATCH 256u
#define MIN_LEN 1024u
#define MAX_LEN 4096u
#define PAGE_SIZE 16u

struct steps {
    struct mapped_core at;
    uint64_t session, pool, step;
    uint64_t seqs[MAX_BATCH];
    uint32_t len[MAX_BATCH];
    struct core_item items[MAX_BATCH];
};

static int failed(const struct steps *s) {
    fprintf(stderr, "bench core: %s: %s\n", kvpool_strerror((kvpool_status)s->at.err.status),
            s->at.err.text);
    return 1;
}

// One whole step; returns its nanoseconds, 0 on failure.
static uint64_t run_step(struct steps *s, uint32_t n) {
    struct core_step_info info;
    struct core_effects effects;
    uint64_t id = ++s->step;
    uint64_t start = bench_now_ns();
    if (core_step_begin(s->at.core, s->session, id, s->pool, n, s->items, NULL, &info, &effects,
                        &s->at.err) != 0 ||
        core_step_mark(s->at.core, s->session, id, 0, true, &s->at.err) != 0 ||
        core_step_commit(s->at.core, s->session, id, &info, &effects, &s->at.err) != 0) {
        return 0;
    }
    uint64_t ns = bench_now_ns() - start;
    return ns == 0 ? 1 : ns;
}

// A core with one pool, and MAX_BATCH sequences of lengths spread over MIN_LEN..MAX_LEN.
static int open_steps(struct steps *s) {
    struct core_pool_config config = {.name = "bench",
                                      .layers = 1,
                                      .kv_heads = 8,
                                      .head_dim = 128,
                                      .page_size = PAGE_SIZE,
                                      .dtype = KVPOOL_BF16,
                                      .num_pages = MAX_BATCH * (MAX_LEN / PAGE_SIZE),
                                      .max_seqs = MAX_BATCH,
                                      .max_seq_len = MAX_LEN};
    const uint8_t token[CORE_TOKEN_SIZE] = {0};
    bool created = false;
    if (map_core(&core_limits_default, &s->at) != 0 ||
        core_session_open(s->at.core, 1, 0, "bench", token, &s->session, &s->at.err) != 0 ||
        core_pool_create(s->at.core, &config, &s->pool, &created, &s->at.err) != 0 ||
        core_seq_create(s->at.core, s->session, s->pool, 0, MAX_BATCH, s->seqs, &s->at.err) != 0) {
        return failed(s);
    }
    for (uint32_t i = 0; i < MAX_BATCH; i++) {
        s->len[i] = MIN_LEN + (MAX_LEN - MIN_LEN) / MAX_BATCH * i;
        s->items[i] = (struct core_item){s->seqs[i], s->len[i]};
    }
    return run_step(s, MAX_BATCH) == 0 ? failed(s) : 0;
}

static int time_steps(struct steps *s, uint32_t n, const char *name) {
    size_t count = (size_t)(20000 * bench_quick_scale()) + 100;
    double *samples = malloc(count * sizeof *samples);
    if (samples == NULL) {
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        s->items[i].tokens = 1;
    }
    for (size_t k = 0; k < count + 100; k++) {
        for (uint32_t i = 0; i < n; i++) {
            if (s->len[i] == MAX_LEN) {
                s->len[i] = MIN_LEN;
                if (core_seq_truncate(s->at.core, s->session, s->seqs[i], MIN_LEN, &s->at.err) !=
                    0) {
                    free(samples);
                    return failed(s);
                }
            }
            s->len[i]++;
        }
        uint64_t ns = run_step(s, n);
        if (ns == 0) {
            free(samples);
            return failed(s);
        }
        if (k >= 100) { // warm
            samples[k - 100] = (double)ns / 1e3;
        }
    }
    bench_emit("core", name, "p50_us", bench_percentile(samples, count, 50));
    bench_emit("core", name, "p99_us", bench_percentile(samples, count, 99));
    free(samples);
    return 0;
}

static int step_cases(void) {
    struct steps *s = calloc(1, sizeof *s);
    if (s == NULL) {
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    int rc = open_steps(s);
    if (rc == 0) {
        rc = time_steps(s, 1, "step_1");
    }
    if (rc == 0) {
        rc = time_steps(s, 32, "step_32");
    }
    if (rc == 0) {
        rc = time_steps(s, MAX_BATCH, "step_256");
    }
    unmap_core(&s->at);
    free(s);
    return rc;
}

int bench_core(void) {
    int rc = alloc_free();
    return rc != 0 ? rc : step_cases();
}
