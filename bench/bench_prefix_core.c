// SPDX-License-Identifier: Apache-2.0
// bench_prefix_core.c: prefix sharing through core: matching a long prompt, and taking pages when all
// of the pool's are cached.
//
//     match_50k       core_seq_open and core_seq_probe of 50,000 tokens that are sealed, pages of 16
//                     tokens, hashing included; the prompts take turns, so that none is in the
//                     processor's caches
//     evict_1eN       core_step_begin of 64 new pages in a pool of 1eN pages that are all cached:
//                     nanoseconds a page for everything, evicting and taking, the median of the
//                     begins. evict_s3_1e6 has the policy S3-FIFO, the others have LRU.
//
// Pages that follow each other in a chain, in the list of eviction or in a batch lie far from each
// other, as in a pool that has been in use for long.
#include "bench/bench.h"
#include "daemon/core/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE_SIZE 16u
#define CHAIN 64u // pages of a sequence
#define CHAIN_TOKENS (CHAIN * PAGE_SIZE)
#define SPREAD 16384u // sequences that share the pool before it is filled
#define BATCH 1024u

struct prefix {
    void *block;
    size_t size;
    struct core *core;
    uint64_t session, pool, step;
    uint32_t num_pages;
    uint64_t seqs[SPREAD];
    struct core_item items[BATCH];
    struct core_step_info info;
    struct core_effects effects;
    uint64_t random;
    struct err err;
};

static int failed(const struct prefix *p) {
    fprintf(stderr, "bench prefix: %s: %s\n", kvpool_strerror((kvpool_status)p->err.status),
            p->err.text);
    return 1;
}

static int out_of_memory(void) {
    fprintf(stderr, "bench prefix: out of memory\n");
    return 1;
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// --- a pool -----------------------------------------------------------------------------------

static int open_core(struct prefix *p, uint32_t policy, uint32_t max_seq_len) {
    struct core_limits limits = core_limits_default;
    limits.max_pages = p->num_pages;
    limits.max_page_tokens = (uint64_t)p->num_pages * PAGE_SIZE;
    limits.max_table_entries = (uint64_t)SPREAD * ((max_seq_len + PAGE_SIZE - 1) / PAGE_SIZE);
    p->random = 88172645463325252u;
    p->size = core_block_size(&limits);
    p->block = mmap(NULL, p->size, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->block == MAP_FAILED) {
        p->block = NULL;
        return out_of_memory();
    }
    struct core_pool_config config = {.name = "bench",
                                      .layers = 1,
                                      .kv_heads = 8,
                                      .head_dim = 128,
                                      .page_size = PAGE_SIZE,
                                      .dtype = KVPOOL_BF16,
                                      .num_pages = p->num_pages,
                                      .max_seqs = SPREAD,
                                      .max_seq_len = max_seq_len,
                                      .policy = policy};
    const uint8_t token[CORE_TOKEN_SIZE] = {0};
    bool created = false;
    if (core_create(p->block, p->size, &limits, 1, (const uint8_t[CORE_SECRET_SIZE]){1}, &p->core,
                    &p->err) != 0 ||
        core_session_open(p->core, 1, 0, "bench", token, &p->session, &p->err) != 0 ||
        core_pool_create(p->core, &config, &p->pool, &created, &p->err) != 0) {
        return failed(p);
    }
    return 0;
}

static void close_core(struct prefix *p) {
    if (p->core != NULL) {
        core_close(p->core);
    }
    if (p->block != NULL) {
        munmap(p->block, p->size);
    }
    free(p);
}

// One step of the n sequences in p->items. *ret_ns: of its beginning.
static int run_step(struct prefix *p, uint32_t n, const uint32_t *ids, uint64_t *ret_ns) {
    uint64_t id = ++p->step;
    uint64_t start = bench_now_ns();
    int rc = core_step_begin(p->core, p->session, id, p->pool, n, p->items, ids, &p->info,
                             &p->effects, &p->err);
    *ret_ns = bench_now_ns() - start;
    if (rc != 0 || core_step_mark(p->core, p->session, id, 0, true, &p->err) != 0 ||
        core_step_commit(p->core, p->session, id, &p->info, &p->effects, &p->err) != 0) {
        return failed(p);
    }
    return 0;
}

static int create_seqs(struct prefix *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i += BATCH) {
        uint32_t part = n - i < BATCH ? n - i : BATCH;
        if (core_seq_create(p->core, p->session, p->pool, 0, part, p->seqs + i, &p->err) != 0) {
            return failed(p);
        }
    }
    return 0;
}

static int free_seqs(struct prefix *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i += BATCH) {
        uint32_t part = n - i < BATCH ? n - i : BATCH;
        if (core_seq_free(p->core, p->session, part, p->seqs + i, CORE_KEEP, &p->err) != 0) {
            return failed(p);
        }
    }
    return 0;
}

// Takes every page and gives it back, so that the free list goes to and fro in the pool.
static int scatter(struct prefix *p) {
    uint32_t n = p->num_pages < 4 * SPREAD ? p->num_pages / 4 + 1 : SPREAD;
    uint32_t next = 0;
    uint64_t ns = 0;
    if (create_seqs(p, n) != 0) {
        return 1;
    }
    for (uint32_t left = p->num_pages; left > 0;) {
        uint32_t batch = left < BATCH ? left : BATCH;
        batch = batch < n ? batch : n;
        for (uint32_t i = 0; i < batch; i++) {
            p->items[i] = (struct core_item){p->seqs[next], PAGE_SIZE};
            next = (next + 1) % n;
        }
        if (run_step(p, batch, NULL, &ns) != 0) {
            return 1;
        }
        left -= batch;
    }
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(next_random(&p->random) % (i + 1));
        uint64_t seq = p->seqs[i];
        p->seqs[i] = p->seqs[j];
        p->seqs[j] = seq;
    }
    return free_seqs(p, n);
}

// A prompt of n tokens passes through; its pages stay, cached.
static int cache_prompt(struct prefix *p, const uint32_t *tokens, uint32_t n) {
    uint64_t ns = 0;
    if (create_seqs(p, 1) != 0) {
        return 1;
    }
    p->items[0] = (struct core_item){p->seqs[0], n};
    return run_step(p, 1, tokens, &ns) == 0 ? free_seqs(p, 1) : 1;
}

// --- match_50k --------------------------------------------------------------------------------

#define PROMPT 50000u // tokens
#define PROMPT_PAGES (PROMPT / PAGE_SIZE)

static int time_matches(struct prefix *p, const uint32_t *tokens, uint32_t prompts, double *opens,
                        double *probes, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct core_open open = {.priority = CORE_NORMAL,
                                 .tokens = tokens + (size_t)(i % prompts) * PROMPT,
                                 .n = PROMPT};
        uint64_t seq = 0;
        uint32_t matched = 0;
        uint32_t probed = 0;
        uint64_t start = bench_now_ns();
        int rc = core_seq_open(p->core, p->session, p->pool, &open, &seq, &matched, &p->effects,
                               &p->err);
        opens[i] = (double)(bench_now_ns() - start) / 1e6;
        if (rc != 0 || core_seq_free(p->core, p->session, 1, &seq, CORE_KEEP, &p->err) != 0) {
            return failed(p);
        }
        open.tokens = tokens + (size_t)((i + prompts / 2) % prompts) * PROMPT;
        start = bench_now_ns();
        rc = core_seq_probe(p->core, p->pool, &open, &probed, &p->err);
        probes[i] = (double)(bench_now_ns() - start) / 1e6;
        if (rc != 0) {
            return failed(p);
        }
        if (matched != PROMPT || probed != PROMPT) {
            fprintf(stderr, "bench prefix: %u and %u tokens matched, not %u\n", matched, probed,
                    PROMPT);
            return 1;
        }
    }
    bench_emit("prefix", "match_50k", "p50_ms", bench_percentile(opens, count, 50));
    bench_emit("prefix", "match_50k", "probe_p50_ms", bench_percentile(probes, count, 50));
    return 0;
}

static int match_case(void) {
    uint32_t prompts = 2 + (uint32_t)(300 * bench_quick_scale());
    uint32_t count = 3 * prompts;
    struct prefix *p = calloc(1, sizeof *p);
    uint32_t *tokens = malloc((size_t)prompts * PROMPT * sizeof *tokens);
    double *samples = malloc(2 * (size_t)count * sizeof *samples);
    int rc = 1;
    if (p == NULL || tokens == NULL || samples == NULL) {
        out_of_memory();
        free(p);
        p = NULL;
        goto done;
    }
    p->num_pages = prompts * PROMPT_PAGES;
    rc = open_core(p, CORE_LRU, PROMPT);
    if (rc == 0) {
        rc = scatter(p);
    }
    for (uint32_t i = 0; i < prompts && rc == 0; i++) {
        for (uint32_t k = 0; k < PROMPT; k++) {
            tokens[(size_t)i * PROMPT + k] = (uint32_t)(next_random(&p->random) % 128000);
        }
        rc = cache_prompt(p, tokens + (size_t)i * PROMPT, PROMPT);
    }
    if (rc == 0) {
        rc = time_matches(p, tokens, prompts, samples, samples + count, count);
    }
done:
    if (p != NULL) {
        close_core(p);
    }
    free(samples);
    free(tokens);
    return rc;
}

// --- evict ------------------------------------------------------------------------------------

static int cached_pages(struct prefix *p, uint32_t *ret) {
    struct core_pool_info info;
    if (core_pool_stat(p->core, p->pool, &info, &p->err) != 0) {
        return failed(p);
    }
    *ret = info.cached_pages;
    return 0;
}

// Makes all free pages cached ones.
static int fill(struct prefix *p, uint32_t pages) {
    uint32_t tokens[CHAIN_TOKENS];
    int rc = 0;
    for (uint32_t n = 0; pages > 0 && rc == 0; pages -= n) {
        n = pages < CHAIN ? pages : CHAIN;
        for (uint32_t i = 0; i < n * PAGE_SIZE; i++) {
            tokens[i] = (uint32_t)(next_random(&p->random) % 128000);
        }
        rc = cache_prompt(p, tokens, n * PAGE_SIZE);
    }
    return rc;
}

// n sequences of CHAIN pages each, which all must be evicted. ret_ns[n]: nanoseconds a page, of the
// begins alone.
static int take(struct prefix *p, uint32_t n, double *ret_ns) {
    uint32_t before = 0;
    uint32_t after = 0;
    if (cached_pages(p, &before) != 0) {
        return 1;
    }
    if (create_seqs(p, n) != 0) {
        return 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t ns = 0;
        p->items[0] = (struct core_item){p->seqs[i], CHAIN_TOKENS};
        if (run_step(p, 1, NULL, &ns) != 0) {
            return 1;
        }
        ret_ns[i] = (double)ns / CHAIN;
    }
    if (cached_pages(p, &after) != 0) {
        return 1;
    }
    if (before - after != n * CHAIN) {
        fprintf(stderr, "bench prefix: %u pages were evicted, not %u\n", before - after, n * CHAIN);
        return 1;
    }
    return free_seqs(p, n);
}

#define MAX_CHAINS 4096u // of a round

static int evict_rounds(struct prefix *p, const char *name, double *samples, uint32_t rounds) {
    uint32_t chains = p->num_pages / 2 / CHAIN;
    uint32_t n = 0;
    int rc = scatter(p);
    chains = chains < MAX_CHAINS ? chains : MAX_CHAINS;
    if (rc == 0) {
        rc = fill(p, p->num_pages);
    }
    for (uint32_t round = 0; round <= rounds && rc == 0; round++) {
        n = round == 1 ? 0 : n; // the first round touches some memory for the first time
        rc = take(p, chains, samples + n);
        n += chains;
        if (rc == 0) {
            rc = fill(p, chains * CHAIN);
        }
    }
    if (rc == 0) {
        bench_emit("prefix", name, "ns_per_page", bench_percentile(samples, n, 50));
    }
    return rc;
}

static int evict_case(const char *name, uint32_t num_pages, uint32_t policy) {
    uint32_t row = num_pages / SPREAD + 1;
    uint32_t rounds = 1 + (uint32_t)(3 * bench_quick_scale());
    struct prefix *p = calloc(1, sizeof *p);
    double *samples = malloc((size_t)(rounds + 1) * MAX_CHAINS * sizeof *samples);
    int rc = 1;
    if (p == NULL || samples == NULL) {
        out_of_memory();
        free(samples);
        free(p);
        return 1;
    }
    p->num_pages = num_pages;
    rc = open_core(p, policy, (row < CHAIN ? CHAIN : row) * PAGE_SIZE);
    if (rc == 0) {
        rc = evict_rounds(p, name, samples, rounds);
    }
    close_core(p);
    free(samples);
    return rc;
}

int bench_prefix_core(void) {
    int rc = match_case();
    rc |= evict_case("evict_1e4", 10000, CORE_LRU);
    rc |= evict_case("evict_1e5", 100000, CORE_LRU);
    if (bench_quick_scale() == 1.0) { // gigabytes, seconds
        rc |= evict_case("evict_1e6", 1000000, CORE_LRU);
        rc |= evict_case("evict_s3_1e6", 1000000, CORE_S3FIFO);
        rc |= evict_case("evict_1e7", 10000000, CORE_LRU);
    }
    return rc;
}
