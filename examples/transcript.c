// SPDX-License-Identifier: Apache-2.0
// transcript.c: see transcript.h.
#include "examples/transcript.h"

#include "examples/recompute.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

// Distance of the best value to the best of the others.
static float margin(const float *logits, uint32_t n, uint32_t best) {
    float second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (i != best) {
            second = fmaxf(second, logits[i]);
        }
    }
    return logits[best] - second;
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
        if (!t->generated[p]) {
            continue;
        }
        const float *row = logits + (size_t)(p - first) * vocab;
        const uint32_t best = llama_argmax(row, vocab);
        const float error = fabsf(row[t->tokens[p]] - t->logit[p]);
        tally->tokens++;
        // Written so that a NaN from the cache counts: its "argmax" could be right by chance.
        if (t->tokens[p] != best || !isfinite(t->logit[p])) {
            tally->mismatches++;
            fprintf(stderr, "position %u: the cache chose token %u, a full recompute %u\n", p,
                    t->tokens[p], best);
        }
        tally->max_error = fmaxf(tally->max_error, error);
        tally->min_margin = fminf(tally->min_margin, margin(row, vocab, best));
    }
    free(logits);
    return result;
}
