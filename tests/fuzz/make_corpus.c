// SPDX-License-Identifier: Apache-2.0
// make_corpus.c: writes the seeds of both fuzz targets:
//     build/fuzz/bin/make_corpus tests/fuzz/corpus
// parse/: the samples of tests/proto, one message a file. ops/: scripts for fuzz_ops.c.
#include "samples.h"

#include <stdio.h>

// Commands of fuzz_ops.c, in its order.
enum {
    OPEN,
    BYE,
    POOL_CREATE,
    POOL_OPEN,
    POOL_HANDLE,
    LIST,
    SEQ_CREATE,
    SEQ_FORK,
    SEQ_TRUNCATE,
    SEQ_FREE,
    SEQ_STAT,
    BEGIN,
    COMMIT,
    ABORT,
    LAYER,
    ATTEND,
    COMPLETE,
    STEP,
    CORRUPT,
    REATTACH,
    SEQ_OPEN,
    BEGIN_TOKENS,
    STEP_TOKENS,
    SEQ_RELEASE,
    SEQ_PRIORITY,
    PREFIX_PIN,
    PREFIX_UNPIN,
    CACHE_CLEAR,
    TIME,
};

// Session 0; pool "a": 2 layers, pages of 8 tokens, 12 pages, 8 sequences of at most 48 tokens;
// two sequences, seen as 0 and 1.
#define START OPEN, 0, POOL_CREATE, 0, 1, 0, 12, 8, 48, SEQ_CREATE, 0, 0, 2
// A second session with a sequence, seen as 2.
#define SECOND OPEN, 1, SEQ_CREATE, 1, 0, 1
// A committed step of session s: id, n, then (seq, tokens) each. Ids count from 0.
#define DONE(s, id, ...) STEP, s, id, 0, __VA_ARGS__
// The same with the tokens of a document: id, doc, n, then (seq, tokens) each.
#define KNOWN(s, id, doc, ...) STEP_TOKENS, s, id, 0, doc, __VA_ARGS__
// A sequence of session s on the first n tokens of a document.
#define OPEN_ON(s, doc, n) SEQ_OPEN, s, 0, doc, n, 4, 0
#define LAYERS(s, id) LAYER, s, id, 0, 0, LAYER, s, id, 1, 1

static const struct {
    const char *name;
    uint8_t len, bytes[120];
} scripts[] = {
#define SCRIPT(name, ...)                         \
    {                                             \
        name, sizeof((uint8_t[]){__VA_ARGS__}), { \
            __VA_ARGS__                           \
        }                                         \
    }
    SCRIPT("start", START),
    SCRIPT("two_steps", START, DONE(0, 0, 1, 0, 12, 1, 3), DONE(0, 1, 1, 0, 1, 1, 1)),
    SCRIPT("step_by_hand", START, BEGIN, 0, 0, 0, 0, 0, 10, LAYERS(0, 0), COMPLETE, 0, 1, COMPLETE,
           1, 1, COMMIT, 0, 1, COMMIT, 0, 1),
    SCRIPT("begin_repeated", START, BEGIN, 0, 0, 0, 0, 0, 10, BEGIN, 0, 0, 0, 0, 0, 10, BEGIN, 0, 0,
           0, 0, 0, 11, ABORT, 0, 1, ABORT, 0, 1, BEGIN, 0, 0, 0, 0, 0, 10),
    SCRIPT("failed_layer", START, BEGIN, 0, 0, 0, 0, 0, 10, LAYERS(0, 0), COMPLETE, 0, 0, COMPLETE,
           1, 1, COMMIT, 0, 1, LAYER, 0, 0, 0, 0, COMPLETE, 0, 1, COMMIT, 0, 1),
    SCRIPT("failed_rewrite", START, BEGIN, 0, 0, 0, 0, 0, 10, LAYERS(0, 0), COMPLETE, 0, 1,
           COMPLETE, 1, 1, LAYER, 0, 0, 0, 0, COMPLETE, 0, 0, COMMIT, 0, 1),
    SCRIPT("fork_and_write_both", START, DONE(0, 0, 0, 0, 12), SEQ_FORK, 0, 0, 2,
           DONE(0, 1, 2, 0, 1, 2, 2, 3, 9)),
    SCRIPT("fork_in_two_steps", START, DONE(0, 0, 0, 0, 12), SEQ_FORK, 0, 0, 1, BEGIN, 0, 1, 0, 0,
           0, 4, BEGIN, 0, 2, 0, 0, 2, 7, LAYERS(0, 1), ABORT, 0, 2, COMPLETE, 0, 1, COMPLETE, 1, 1,
           ABORT, 0, 2, LAYERS(0, 2), COMPLETE, 0, 1, COMPLETE, 1, 1, COMMIT, 0, 3),
    SCRIPT("truncate_and_decode_again", START, DONE(0, 0, 0, 0, 20), SEQ_TRUNCATE, 0, 0, 11,
           DONE(0, 1, 0, 0, 3), SEQ_TRUNCATE, 0, 0, 0, SEQ_TRUNCATE, 0, 0, 1),
    SCRIPT("truncate_into_shared_page", START, DONE(0, 0, 0, 0, 20), SEQ_FORK, 0, 0, 1,
           SEQ_TRUNCATE, 0, 2, 9, DONE(0, 1, 0, 2, 3), SEQ_TRUNCATE, 0, 0, 3,
           DONE(0, 2, 1, 0, 9, 2, 1)),
    SCRIPT("out_of_pages", START, DONE(0, 0, 1, 0, 48, 1, 40), BEGIN, 0, 1, 0, 0, 1, 20, SEQ_FREE,
           0, 0, 0, DONE(0, 2, 0, 1, 8)),
    SCRIPT("too_long", START, DONE(0, 0, 0, 0, 48), DONE(0, 1, 0, 0, 1), BEGIN, 0, 2, 0, 0, 1, 63),
    SCRIPT("duplicates", START, BEGIN, 0, 0, 0, 1, 0, 1, 0, 1, SEQ_FREE, 0, 1, 0, 0, ATTEND, 0, 0,
           0, 1, 0, 1, 0, 1),
    SCRIPT("two_sessions", START, SECOND, DONE(0, 0, 0, 0, 9), DONE(1, 0, 0, 2, 9), BEGIN, 1, 1, 0,
           0, 0, 1, SEQ_FREE, 1, 0, 0, SEQ_STAT, 1, 0, BYE, 0, DONE(1, 2, 0, 2, 9)),
    SCRIPT("close_with_open_steps", START, SECOND, BEGIN, 0, 0, 0, 1, 0, 20, 1, 20, LAYERS(0, 0),
           BYE, 0, DONE(1, 0, 0, 2, 40)),
    SCRIPT("stale_handles", START, SEQ_FREE, 0, 0, 0, SEQ_STAT, 0, 0, SEQ_FORK, 0, 0, 1, SEQ_CREATE,
           0, 0, 1, SEQ_STAT, 0, 0, SEQ_STAT, 0, 2, BEGIN, 0, 0, 0, 0, 0, 1),
    SCRIPT("attention_alone", START, DONE(0, 0, 0, 0, 12), ATTEND, 0, 0, 0, 1, 0, 4, 1, 2, SEQ_FREE,
           0, 0, 0, SEQ_TRUNCATE, 0, 0, 1, BEGIN, 0, 1, 0, 0, 0, 9, COMPLETE, 0, 1, ABORT, 0, 2,
           SEQ_TRUNCATE, 0, 0, 1),
    SCRIPT("attention_in_step", START, DONE(0, 0, 0, 0, 12), BEGIN, 0, 1, 0, 0, 0, 1, ATTEND, 0, 0,
           0, 0, 0, 1, LAYER, 0, 1, 0, 3, LAYER, 0, 1, 2, 0),
    SCRIPT("pools", START, POOL_CREATE, 0, 1, 0, 12, 8, 48, POOL_CREATE, 0, 1, 0, 11, 8, 48,
           POOL_CREATE, 1, 0, 1, 16, 4, 0, POOL_CREATE, 2, 0, 0, 1, 1, 0, POOL_OPEN, 1, POOL_OPEN,
           2, LIST, 1, 0, LIST, 0, 0, POOL_HANDLE, 0, 0, POOL_HANDLE, 0, 1, POOL_HANDLE, 1, 1),
    SCRIPT("pool_again", START, SEQ_FREE, 0, 1, 0, 1, POOL_HANDLE, 0, 0, POOL_CREATE, 0, 0, 1, 16,
           4, 0, SEQ_CREATE, 0, 0, 1, SEQ_CREATE, 0, 1, 1, STEP, 0, 0, 1, 0, 2, 40),
    SCRIPT("limits", START, SEQ_CREATE, 0, 0, 4, SEQ_CREATE, 0, 0, 5, SEQ_CREATE, 0, 0, 3,
           SEQ_CREATE, 0, 0, 0, OPEN, 1, OPEN, 2, OPEN, 0, BEGIN, 0, 0, 0, 0, 0, 1, BEGIN, 0, 1, 0,
           0, 1, 1, BEGIN, 0, 2, 0, 0, 2, 1, BEGIN, 0, 3, 0, 4, 0, 1, 1, 1, 2, 1, 3, 1, 4, 1),
    SCRIPT("reattach", START, DONE(0, 0, 0, 0, 12), SEQ_FORK, 0, 0, 2, BEGIN, 0, 1, 0, 1, 0, 3, 2,
           4, LAYERS(0, 1), REATTACH, COMMIT, 0, 2, REATTACH, DONE(0, 2, 1, 0, 9, 3, 9)),
    SCRIPT("prefix_reused", START, KNOWN(0, 0, 3, 0, 0, 20), OPEN_ON(0, 3, 20), OPEN_ON(0, 5, 20),
           OPEN_ON(0, 4, 7), KNOWN(0, 1, 3, 1, 2, 9, 3, 9)),
    SCRIPT("prefix_of_a_freed_sequence", START, KNOWN(0, 0, 3, 0, 0, 24), SEQ_FREE, 0, 0, 0,
           OPEN_ON(0, 3, 24), SEQ_TRUNCATE, 0, 2, 13, KNOWN(0, 1, 4, 0, 2, 20)),
    SCRIPT("computed_twice", START, BEGIN_TOKENS, 0, 0, 0, 7, 1, 0, 17, 1, 30, LAYERS(0, 0),
           COMPLETE, 0, 1, COMPLETE, 1, 1, COMMIT, 0, 1, KNOWN(0, 1, 7, 1, 0, 9, 1, 1)),
    SCRIPT("ids_repeated", START, BEGIN_TOKENS, 0, 0, 0, 1, 0, 0, 9, BEGIN_TOKENS, 0, 0, 0, 1, 0, 0,
           9, BEGIN_TOKENS, 0, 0, 0, 2, 0, 0, 9, BEGIN, 0, 0, 0, 0, 0, 9, ABORT, 0, 1),
    SCRIPT("known_then_unknown", START, KNOWN(0, 0, 3, 0, 0, 12), DONE(0, 1, 0, 0, 9),
           KNOWN(0, 2, 3, 0, 0, 9), SEQ_TRUNCATE, 0, 0, 11, KNOWN(0, 3, 3, 0, 0, 9),
           OPEN_ON(0, 3, 40)),
    SCRIPT("evicted", START, KNOWN(0, 0, 1, 0, 0, 48), SEQ_FREE, 0, 0, 0, KNOWN(0, 1, 2, 0, 1, 40),
           OPEN_ON(0, 1, 48), SEQ_FREE, 0, 0, 1, OPEN_ON(0, 2, 40), SEQ_CREATE, 0, 0, 1,
           KNOWN(0, 2, 9, 0, 4, 40)),
    SCRIPT("dropped", START, KNOWN(0, 0, 1, 0, 0, 30), OPEN_ON(0, 1, 16), SEQ_RELEASE, 0, 1, 0, 0,
           SEQ_RELEASE, 0, 0, 0, 2, SEQ_RELEASE, 0, 2, 0, 1, OPEN_ON(0, 1, 30), CACHE_CLEAR, 0, 0,
           SEQ_RELEASE, 0, 1, 0, 3, OPEN_ON(0, 1, 30)),
    SCRIPT("priorities", START, KNOWN(0, 0, 2, 1, 0, 24, 1, 24), SEQ_PRIORITY, 0, 0, 2,
           SEQ_PRIORITY, 0, 1, 3, SEQ_PRIORITY, 0, 1, 0, KNOWN(0, 1, 5, 0, 1, 20), SEQ_FREE, 0, 1,
           0, 1, SEQ_CREATE, 0, 0, 1, KNOWN(0, 2, 6, 0, 2, 47), OPEN_ON(0, 2, 24)),
    SCRIPT("pins", START, KNOWN(0, 0, 1, 0, 0, 20), PREFIX_PIN, 0, 0, 0, 50, PREFIX_PIN, 0, 0, 9, 9,
           PREFIX_PIN, 0, 1, 0, 5, PREFIX_PIN, 0, 0, 5, 5, PREFIX_PIN, 0, 0, 0, 0, SEQ_RELEASE, 0,
           1, 0, 0, CACHE_CLEAR, 0, 0, TIME, 9, PREFIX_UNPIN, 2, 0, 0, REATTACH, PREFIX_UNPIN, 0, 0,
           0, PREFIX_UNPIN, 0, 0, 1, CACHE_CLEAR, 0, 0),
    SCRIPT("pins_of_a_pool", START, KNOWN(0, 0, 1, 0, 0, 20), PREFIX_PIN, 0, 0, 0, 50, SEQ_FREE, 0,
           1, 0, 1, POOL_HANDLE, 0, 0, TIME, 99),
    SCRIPT("tenants", START, OPEN, 2, SEQ_CREATE, 2, 0, 1, KNOWN(0, 0, 1, 0, 0, 24),
           KNOWN(2, 0, 1, 0, 2, 24), OPEN_ON(2, 1, 30), OPEN_ON(0, 1, 30), BEGIN, 2, 1, 0, 0, 2, 24,
           SEQ_FREE, 2, 1, 2, 3, KNOWN(0, 1, 2, 1, 0, 24, 1, 48), CACHE_CLEAR, 2, 0, BYE, 2),
    SCRIPT("key_material", START, SEQ_OPEN, 0, 0, 1, 16, 4, 1, SEQ_OPEN, 0, 0, 1, 16, 4, 2,
           KNOWN(0, 0, 1, 0, 2, 16), KNOWN(0, 1, 1, 0, 3, 16), SEQ_OPEN, 0, 0, 1, 16, 4, 1,
           SEQ_OPEN, 0, 0, 1, 16, 2, 0, SEQ_OPEN, 0, 0, 1, 16, 1, 2),
    SCRIPT("scan_resistant", START, POOL_CREATE, 1, 0, 0, 10, 8, 48, SEQ_CREATE, 0, 1, 2,
           STEP_TOKENS, 0, 0, 1, 1, 0, 2, 40, SEQ_FREE, 0, 0, 2, SEQ_OPEN, 0, 1, 1, 40, 4, 0,
           SEQ_FREE, 0, 0, 4, STEP_TOKENS, 0, 1, 1, 2, 0, 3, 40, SEQ_FREE, 0, 0, 3, SEQ_OPEN, 0, 1,
           1, 40, 4, 0),
    SCRIPT("reattach_with_prefixes", START, KNOWN(0, 0, 3, 1, 0, 24, 1, 40), SEQ_FREE, 0, 0, 0,
           SEQ_TRUNCATE, 0, 1, 13, REATTACH, OPEN_ON(0, 3, 40), BEGIN_TOKENS, 0, 1, 0, 3, 0, 1, 9,
           REATTACH, ABORT, 0, 2, KNOWN(0, 2, 3, 0, 1, 9)),
    SCRIPT("corrupt", START, CORRUPT, 6, 1, SEQ_STAT, 0, 0, CORRUPT, 40, 255, DONE(0, 0, 0, 0, 9),
           CORRUPT, 0, 1, LIST, 0, 0, CORRUPT, 48, 4, BEGIN, 0, 1, 0, 0, 0, 1),
};

static int write_file(const char *dir, const char *sub, const char *name, const void *bytes,
                      size_t len) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", dir, sub, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, len, file) != len || fclose(file) != 0) {
        perror(path);
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    static struct sample samples[SAMPLES_MAX];
    if (argc != 2)
        return fprintf(stderr, "usage: make_corpus FOLDER (which has parse/ and ops/)\n"), 2;
    int rc = 0;
    size_t n = samples_make(samples);
    for (size_t i = 0; i < n; i++)
        rc |= write_file(argv[1], "parse", samples[i].name, samples[i].bytes, samples[i].len);
    for (size_t i = 0; i < sizeof scripts / sizeof scripts[0]; i++)
        rc |= write_file(argv[1], "ops", scripts[i].name, scripts[i].bytes, scripts[i].len);
    return rc;
}
