// SPDX-License-Identifier: Apache-2.0
// bench_prefix.c: what prefix sharing costs: hashing tokens into page keys and looking keys up.
// Matching and evicting through core are in bench_prefix_core.c.
//
//     hash_16         one chain of pages of 16 tokens
//     lookup          random keys of 1e6 sealed pages, in batches; one in eight is not there
// Both are medians of short samples.
#include "bench/bench.h"
#include "daemon/core/index.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_SIZE 16u

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

static struct prefix_value random_value(uint64_t *random) {
    struct prefix_value value;
    for (size_t i = 0; i < 8; i++) {
        value.h[i] = (uint32_t)(next_random(random) * 0x9E3779B97F4A7C15u >> 32);
    }
    return value;
}

// --- hash_16 ----------------------------------------------------------------------------------

static int hash_case(void) {
    const struct prefix_salt salt = {.secret = (const uint8_t[32]){1},
                                     .pool = "bench",
                                     .group = "default",
                                     .geometry = {32, 8, 128, PAGE_SIZE, 2}};
    const uint32_t pages = 1u << 10; // of a round: 16 Ki tokens
    uint32_t rounds = 1 + (uint32_t)(1000 * bench_quick_scale());
    struct prefix_value value;
    double *samples = malloc(rounds * sizeof *samples);
    uint32_t *tokens = malloc((size_t)pages * PAGE_SIZE * sizeof *tokens);
    if (samples == NULL || tokens == NULL) {
        free(tokens);
        free(samples);
        return out_of_memory();
    }
    for (uint32_t i = 0; i < pages * PAGE_SIZE; i++) {
        tokens[i] = i * 2654435761u % 128000;
    }
    prefix_root(&salt, NULL, 0, &value);
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t start = bench_now_ns();
        for (uint32_t i = 0; i < pages; i++) {
            prefix_next(&value, tokens + (size_t)i * PAGE_SIZE, PAGE_SIZE, &value);
        }
        samples[round] = (double)(bench_now_ns() - start);
    }
    bench_emit("prefix", "hash_16", "tokens_per_s",
               pages * PAGE_SIZE * 1e9 / bench_percentile(samples, rounds, 50));
    free(tokens);
    free(samples);
    return 0;
}

// --- lookup -----------------------------------------------------------------------------------

#define LOOKUP_PAGES 1000000u
#define LOOKUP_SAMPLE 2000u // lookups that are timed together
_Static_assert(LOOKUP_PAGES % LOOKUP_SAMPLE == 0 && LOOKUP_SAMPLE % INDEX_BATCH == 0,
               "whole batches");

// Looks keys[0..LOOKUP_SAMPLE) up; returns how many were found.
static uint32_t look_up(const struct index *x, const struct prefix_key *keys) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < LOOKUP_SAMPLE; i += INDEX_BATCH) {
        uint32_t pages[INDEX_BATCH];
        index_find_n(x, keys + i, INDEX_BATCH, pages);
        for (uint32_t j = 0; j < INDEX_BATCH; j++) {
            found += pages[j] != INDEX_NONE;
        }
    }
    return found;
}

static int lookup(struct index *x, struct prefix_value *values, struct prefix_key *keys) {
    uint64_t random = 88172645463325252u;
    for (uint32_t i = 0; i < LOOKUP_PAGES; i++) {
        values[i] = random_value(&random);
        index_insert(x, i);
    }
    uint32_t known = 0;
    for (uint32_t i = 0; i < LOOKUP_PAGES; i++) {
        struct prefix_value value = values[next_random(&random) % LOOKUP_PAGES];
        if (i % 8 == 7) {
            value = random_value(&random);
        }
        known += i % 8 != 7;
        keys[i] = prefix_key_of(&value);
    }
    uint32_t rounds = 1 + (uint32_t)(20 * bench_quick_scale());
    uint32_t n = 0;
    double *samples = malloc((size_t)rounds * (LOOKUP_PAGES / LOOKUP_SAMPLE) * sizeof *samples);
    if (samples == NULL) {
        return out_of_memory();
    }
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t found = 0;
        for (uint32_t i = 0; i < LOOKUP_PAGES; i += LOOKUP_SAMPLE) {
            uint64_t start = bench_now_ns();
            found += look_up(x, keys + i);
            samples[n++] = (double)(bench_now_ns() - start);
        }
        if (found != known) {
            fprintf(stderr, "bench prefix: %u keys were found, not %u\n", found, known);
            free(samples);
            return 1;
        }
    }
    bench_emit("prefix", "lookup", "per_s", LOOKUP_SAMPLE * 1e9 / bench_percentile(samples, n, 50));
    free(samples);
    return 0;
}

static int lookup_case(void) {
    struct index x = {0};
    struct prefix_value *values = malloc(LOOKUP_PAGES * sizeof *values);
    struct prefix_key *keys = malloc(LOOKUP_PAGES * sizeof *keys);
    int rc = 1;
    if (values == NULL || keys == NULL ||
        !index_init(&x, LOOKUP_PAGES,
                    (struct index_values){(const uint8_t *)values, sizeof *values})) {
        out_of_memory();
    } else {
        rc = lookup(&x, values, keys);
    }
    index_fini(&x);
    free(keys);
    free(values);
    return rc;
}

int bench_prefix(void) {
    int rc = hash_case();
    rc |= lookup_case();
    rc |= bench_prefix_core();
    return rc;
}
