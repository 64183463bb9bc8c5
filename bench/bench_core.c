// SPDX-License-Identifier: Apache-2.0
// bench_core.c: core without anything around it: page allocation and release, and the transaction
// of a decode step (begin, marking its one layer, commit) for batches of 1, 32 and 256 sequences.
#include "bench/bench.h"
#include "daemon/core/core.h"
#include "daemon/core/pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// --- alloc_free -------------------------------------------------------------------------------

#define POOL_PAGES 1000000u
#define PAGES_A_BATCH 64u // a prompt of 1024 tokens with pages of 16

static void shuffle(uint32_t *ids, uint32_t n, uint64_t *random) {
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(next_random(random) % (i + 1));
        uint32_t id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
}

// Takes the whole pool in batches and gives it back in random order, again and again: from the
// second round on the free list itself is in random order.
static int alloc_free(void) {
    struct pages pages;
    if (!pages_init(&pages, POOL_PAGES)) {
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    uint32_t *ids = malloc(POOL_PAGES * sizeof *ids);
    if (ids == NULL) {
        pages_fini(&pages);
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    uint64_t random = 88172645463325252ull;
    uint64_t ns = 0;
    uint64_t done = 0;
    unsigned rounds = 1 + (unsigned)(20 * bench_quick_scale());
    for (unsigned round = 0; round <= rounds; round++) {
        uint64_t start = bench_now_ns();
        for (uint32_t i = 0; i < POOL_PAGES; i += PAGES_A_BATCH) {
            pages_take_n(&pages, PAGES_A_BATCH, ids + i);
        }
        uint64_t taken = bench_now_ns();
        shuffle(ids, POOL_PAGES, &random);
        uint64_t shuffled = bench_now_ns();
        for (uint32_t i = 0; i < POOL_PAGES; i += PAGES_A_BATCH) {
            pages_unref_n(&pages, PAGES_A_BATCH, ids + i);
        }
        if (round > 0) { // the first one touches the memory for the first time
            ns += (taken - start) + (bench_now_ns() - shuffled);
            done += POOL_PAGES;
        }
    }
    int failed = pages_free(&pages) == POOL_PAGES ? 0 : 1;
    free(ids);
    pages_fini(&pages);
    if (failed != 0) {
        fprintf(stderr, "bench core: pages were lost\n");
        return 1;
    }
    bench_emit("core", "alloc_free", "pages_per_s", (double)done * 1e9 / (double)ns);
    return 0;
}

// --- steps ------------------------------------------------------------------------------------

#define MAX_BATCH 256u
#define MIN_LEN 1024u
#define MAX_LEN 4096u
#define PAGE_SIZE 16u

struct steps {
    void *block;
    struct core *core;
    uint64_t session, pool, step;
    uint64_t seqs[MAX_BATCH];
    uint32_t len[MAX_BATCH];
    struct core_item items[MAX_BATCH];
    struct err err;
};

static int failed(const struct steps *s) {
    fprintf(stderr, "bench core: %s: %s\n", kvpool_strerror((kvpool_status)s->err.status),
            s->err.text);
    return 1;
}

// One whole step; returns its nanoseconds, 0 on failure.
static uint64_t run_step(struct steps *s, uint32_t n) {
    struct core_step_info info;
    struct core_effects effects;
    uint64_t id = ++s->step;
    uint64_t start = bench_now_ns();
    if (core_step_begin(s->core, s->session, id, s->pool, n, s->items, NULL, &info, &effects,
                        &s->err) != 0 ||
        core_step_mark(s->core, s->session, id, 0, true, &s->err) != 0 ||
        core_step_commit(s->core, s->session, id, &info, &effects, &s->err) != 0) {
        return 0;
    }
    uint64_t ns = bench_now_ns() - start;
    return ns == 0 ? 1 : ns;
}

// A core with one pool, and MAX_BATCH sequences of lengths spread over MIN_LEN..MAX_LEN.
static int open_steps(struct steps *s) {
    const struct core_limits *limits = &core_limits_default;
    size_t size = core_block_size(limits);
    s->block = aligned_alloc(4096, size); // sparse: only the tables before the entries are zeroed
    if (s->block == NULL) {
        fprintf(stderr, "bench core: out of memory\n");
        return 1;
    }
    memset(s->block, 0, size - limits->max_table_entries * sizeof(uint32_t));
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
    if (core_create(s->block, size, limits, 1, (const uint8_t[CORE_SECRET_SIZE]){1}, &s->core,
                    &s->err) != 0 ||
        core_session_open(s->core, 1, 0, "bench", token, &s->session, &s->err) != 0 ||
        core_pool_create(s->core, &config, &s->pool, &created, &s->err) != 0 ||
        core_seq_create(s->core, s->session, s->pool, 0, MAX_BATCH, s->seqs, &s->err) != 0) {
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
                if (core_seq_truncate(s->core, s->session, s->seqs[i], MIN_LEN, &s->err) != 0) {
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
    core_close(s->core);
    free(s->block);
    free(s);
    return rc;
}

int bench_core(void) {
    int rc = alloc_free();
    return rc != 0 ? rc : step_cases();
}
