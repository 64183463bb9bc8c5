// SPDX-License-Identifier: Apache-2.0
// transcript.c: see transcript.h.
#include "examples/transcript.h"

#include "examples/recompute.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SHOWN 5u // mismatches of a worker that are described

int transcript_open(uint32_t capacity, const struct transcript *copy, struct transcript *ret) {
    struct transcript t = {
        .tokens = calloc(capacity, sizeof *t.tokens),
        .logit = calloc(capacity, sizeof *t.logit),
        .generated = calloc(capacity, sizeof *t.generated),
        .capacity = capacity,
    };
    if (!t.tokens || !t.logit || !t.generated || (copy && copy->length > capacity)) {
        fprintf(stderr, "transcript: no memory or room for %u tokens\n", capacity);
        transcript_close(&t);
        return -1;
    }
    if (copy) {
        memcpy(t.tokens, copy->tokens, copy->length * sizeof *t.tokens);
        memcpy(t.logit, copy->logit, copy->length * sizeof *t.logit);
        memcpy(t.generated, copy->generated, copy->length * sizeof *t.generated);
        t.length = copy->length;
        t.committed = copy->committed;
    }
    *ret = t;
    return 0;
}

void transcript_close(struct transcript *t) {
    free(t->tokens);
    free(t->logit);
    free(t->generated);
    *t = (struct transcript){0};
}

int transcript_push(struct transcript *t, uint32_t token, const float *logits) {
    if (t->length == t->capacity) {
        fprintf(stderr, "transcript: full at %u tokens\n", t->capacity);
        return -1;
    }
    t->tokens[t->length] = token;
    t->generated[t->length] = logits != NULL;
    t->logit[t->length] = logits ? logits[token] : 0;
    t->length++;
    return 0;
}

void transcript_truncate(struct transcript *t, uint32_t length) {
    t->length = t->committed = length;
}

static float largest(const float *logits, uint32_t n) {
    float max = 0;
    for (uint32_t i = 0; i < n; i++) {
        max = fmaxf(max, fabsf(logits[i]));
    }
    return max;
}

// Compares the generated token at position p with the recomputed logits that choose it.
static void compare(const struct transcript *t, uint32_t p, const float *row, uint32_t vocab,
                    struct tally *tally) {
    const uint32_t token = t->tokens[p], best = llama_argmax(row, vocab);
    const float scale = largest(row, vocab);
    const float error = fabsf(row[token] - t->logit[p]) / scale;
    const float behind = (row[best] - row[token]) / scale;
    tally->tokens++;
    // Written so that NaN is a mismatch.
    if (!(error <= TRANSCRIPT_TOLERANCE && behind <= TRANSCRIPT_TOLERANCE)) {
        if (tally->mismatches++ < MAX_SHOWN) {
            fprintf(stderr,
                    "position %u: the cache gives token %u with logit %g, a recompute %u with %g\n",
                    p, token, (double)t->logit[p], best, (double)row[best]);
        }
    } else if (token != best) {
        tally->ties++;
    }
    tally->max_error = fmaxf(tally->max_error, error);
}

int transcript_check(const struct transcript *t, const struct llama *m, uint32_t from,
                     struct tally *tally) {
    const uint32_t vocab = m->config.vocab;
    uint32_t first = from; // first generated token
    while (first < t->length && !t->generated[first]) {
        first++;
    }
    if (first == t->length || first == 0) {
        return 0; // nothing generated: nothing to check
    }
    // The logits after token p - 1 chose token p: rows first - 1 .. length - 2.
    const uint32_t rows = t->length - first;
    float *logits = malloc((size_t)rows * vocab * sizeof *logits);
    if (!logits) {
        fprintf(stderr, "transcript: no memory for %u rows of logits\n", rows);
        return -1;
    }
    const int result = recompute(m, t->length - 1, t->tokens, first - 1, logits);
    for (uint32_t p = first; result == 0 && p < t->length; p++) {
        if (t->generated[p]) {
            compare(t, p, logits + (size_t)(p - first) * vocab, vocab, tally);
        }
    }
    free(logits);
    return result;
}
