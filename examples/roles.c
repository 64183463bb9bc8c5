// SPDX-License-Identifier: Apache-2.0
// roles.c: see roles.h.
#include "examples/roles.h"

#include "examples/forward.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BRANCHES 4u
#define TAKE_BACK 32u // tokens that ROLE_TRUNCATE takes back

struct branch { // one sequence, and what we know of it
    kvpool_seq seq;
    uint32_t reused; // tokens that it was opened with
    struct transcript text;
};

struct run {
    const struct role_args *args;
    kvpool_client *client;
    kvpool_pool pool;
    struct forward *forward;
    struct tally *tally;
    float *logits; // [BRANCHES][vocab]
};

bool role_parse(const char *name, enum role *ret) {
    static const char *const names[] = {"plain", "fork", "truncate"};
    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *ret = (enum role)i;
            return true;
        }
    }
    return false;
}

static int failed(const struct run *r, const char *call, kvpool_status status) {
    char text[256];
    fprintf(stderr, "%s: %s: %s\n", call, kvpool_strerror(status),
            kvpool_last_error(r->client, text, sizeof text));
    return -1;
}

// The cache must hold exactly what we think it holds.
static int verify_length(const struct run *r, const struct branch *b) {
    kvpool_seq_info info = {.size = sizeof info};
    const kvpool_status status = kvpool_seq_stat(r->client, b->seq, &info);
    if (status != KVPOOL_OK) {
        return failed(r, "kvpool_seq_stat", status);
    }
    if (info.length != b->text.committed) {
        fprintf(stderr, "sequence has %u tokens, committed were %u\n", info.length,
                b->text.committed);
        return -1;
    }
    return 0;
}

static uint32_t greedy(const struct run *r, uint32_t branch) {
    const uint32_t vocab = r->args->m->config.vocab;
    return llama_argmax(r->logits + (size_t)branch * vocab, vocab);
}

// What is left of the prompt into the cache, in chunks: every chunk attends to what is before it.
// Then the first generated token, which is not in the cache yet.
static int prefill(struct run *r, struct branch *b) {
    const struct role_args *a = r->args;
    for (uint32_t i = 0; i < a->prompt_len; i++) {
        if (transcript_push(&b->text, a->prompt[i], NULL) != 0) {
            return -1;
        }
    }
    b->text.committed = b->reused;
    while (b->text.committed < a->prompt_len) {
        const uint32_t left = a->prompt_len - b->text.committed;
        const uint32_t n = left < a->chunk ? left : a->chunk;
        const struct forward_batch batch = {.n = 1,
                                            .seqs = &b->seq,
                                            .start = &b->text.committed,
                                            .new_tokens = &n,
                                            .tokens = a->prompt + b->text.committed};
        if (forward_step(r->forward, &batch, false, r->logits) != KVPOOL_OK) {
            return -1;
        }
        b->text.committed += n;
    }
    return transcript_push(&b->text, greedy(r, 0), r->logits);
}

// `steps` steps of all n branches as one batch, one token of each a step.
static int decode(struct run *r, struct branch *branches, uint32_t n, uint32_t steps, bool submit) {
    const uint32_t vocab = r->args->m->config.vocab;
    kvpool_seq seqs[BRANCHES];
    uint32_t start[BRANCHES], ones[BRANCHES], tokens[BRANCHES];
    for (uint32_t s = 0; s < steps; s++) {
        for (uint32_t i = 0; i < n; i++) {
            const struct transcript *t = &branches[i].text;
            seqs[i] = branches[i].seq;
            start[i] = t->committed;
            ones[i] = 1;
            tokens[i] = t->tokens[t->committed];
        }
        const struct forward_batch batch = {
            .n = n, .seqs = seqs, .start = start, .new_tokens = ones, .tokens = tokens};
        if (forward_step(r->forward, &batch, submit, r->logits) != KVPOOL_OK) {
            return -1;
        }
        for (uint32_t i = 0; i < n; i++) {
            branches[i].text.committed++;
            if (transcript_push(&branches[i].text, greedy(r, i), r->logits + (size_t)i * vocab) !=
                0) {
                return -1;
            }
        }
    }
    return 0;
}

static int check(struct run *r, const struct branch *b, uint32_t from) {
    return verify_length(r, b) == 0 ? transcript_check(&b->text, r->args->m, from, r->tally) : -1;
}

static int run_plain(struct run *r, struct branch *b) {
    return decode(r, b, 1, r->args->tokens, false) == 0 ? check(r, b, 0) : -1;
}

static int run_fork(struct run *r, struct branch *parent) {
    const struct role_args *a = r->args;
    const uint32_t prompt_len = parent->text.committed;
    struct branch branches[BRANCHES] = {0};
    kvpool_seq seqs[BRANCHES];
    int result = -1;

    const kvpool_status status = kvpool_seq_fork(r->client, parent->seq, BRANCHES, seqs);
    if (status != KVPOOL_OK) {
        return failed(r, "kvpool_seq_fork", status);
    }
    for (uint32_t i = 0; i < BRANCHES; i++) {
        branches[i].seq = seqs[i];
        if (transcript_open(parent->text.capacity, &parent->text, &branches[i].text) != 0) {
            goto free_branches;
        }
        // Same prompt in the cache, another first token each.
        transcript_truncate(&branches[i].text, prompt_len);
        const uint32_t vocab = a->m->config.vocab;
        const uint32_t first = (parent->text.tokens[prompt_len] + i * (vocab / BRANCHES)) % vocab;
        if (transcript_push(&branches[i].text, first, NULL) != 0) {
            goto free_branches;
        }
    }
    if (decode(r, branches, BRANCHES, a->tokens, false) != 0) {
        goto free_branches;
    }
    for (uint32_t i = 0; i < BRANCHES; i++) {
        if (check(r, &branches[i], 0) != 0) {
            goto free_branches;
        }
    }
    if (decode(r, parent, 1, a->tokens, false) == 0 && check(r, parent, 0) == 0) {
        result = 0;
    }
free_branches:
    for (uint32_t i = 0; i < BRANCHES; i++) {
        transcript_close(&branches[i].text);
    }
    const kvpool_status freed = kvpool_seq_free(r->client, BRANCHES, seqs);
    if (freed != KVPOOL_OK) {
        result = failed(r, "kvpool_seq_free", freed);
    }
    return result;
}

static int run_truncate(struct run *r, struct branch *b) {
    const struct role_args *a = r->args;
    if (decode(r, b, 1, a->tokens, false) != 0 || check(r, b, 0) != 0) {
        return -1;
    }
    uint32_t length = b->text.committed - (a->tokens < TAKE_BACK ? a->tokens : TAKE_BACK);
    if (length % a->page_size == 0 && length > 1) {
        length--; // in the middle of a page: the kept part stays, the rest is overwritten
    }
    const uint32_t other = (b->text.tokens[length] + 1) % a->m->config.vocab;
    const kvpool_status status = kvpool_seq_truncate(r->client, b->seq, length);
    if (status != KVPOOL_OK) {
        return failed(r, "kvpool_seq_truncate", status);
    }
    transcript_truncate(&b->text, length);
    if (verify_length(r, b) != 0 || transcript_push(&b->text, other, NULL) != 0) {
        return -1;
    }
    return decode(r, b, 1, a->tokens, true) == 0 ? check(r, b, length) : -1;
}

// A sequence that begins with what is cached of the prompt: all but its last token at most, because
// that one's logits are wanted.
static int open_sequence(struct run *r, struct branch *b) {
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    open.pool = r->pool;
    open.tokens = r->args->prompt;
    open.n = r->args->prompt_len - 1;
    open.extra = &r->args->weights;
    open.extra_size = sizeof r->args->weights;
    const kvpool_status status = kvpool_seq_open_with(r->client, &open, &b->seq, &b->reused);
    if (status != KVPOOL_OK) {
        return failed(r, "kvpool_seq_open_with", status);
    }
    r->tally->reused += b->reused;
    return 0;
}

int role_run(enum role role, kvpool_client *client, kvpool_pool pool, const struct role_args *args,
             struct tally *tally) {
    static int (*const roles[])(struct run *, struct branch *) = {
        [ROLE_PLAIN] = run_plain, [ROLE_FORK] = run_fork, [ROLE_TRUNCATE] = run_truncate};
    struct run r = {.args = args, .client = client, .pool = pool, .tally = tally};
    struct branch b = {0};
    int result = -1;

    // Prompt, first generated token, one a step; truncation decodes as many again.
    if (transcript_open(args->prompt_len + 2 * args->tokens + 2, NULL, &b.text) != 0) {
        return -1;
    }
    r.logits = malloc(BRANCHES * (size_t)args->m->config.vocab * sizeof *r.logits);
    if (!r.logits) {
        fprintf(stderr, "no memory for logits\n");
        goto close_text;
    }
    const uint32_t max_tokens = args->chunk > BRANCHES ? args->chunk : BRANCHES;
    if (forward_open(args->m, client, pool, max_tokens, &r.forward) != KVPOOL_OK) {
        goto free_logits;
    }
    if (open_sequence(&r, &b) != 0) {
        goto close_forward;
    }
    if (prefill(&r, &b) == 0) {
        result = roles[role](&r, &b);
    }
    const kvpool_status freed = kvpool_seq_free(client, 1, &b.seq);
    if (freed != KVPOOL_OK) {
        result = failed(&r, "kvpool_seq_free", freed);
    }
close_forward:
    forward_close(r.forward);
free_logits:
    free(r.logits);
close_text:
    transcript_close(&b.text);
    return result;
}
