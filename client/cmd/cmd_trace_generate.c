// SPDX-License-Identifier: Apache-2.0
// cmd_trace_generate.c: `kvpool trace generate FILE`: a synthetic trace.
// Thread: main.
#include "client/cmd/format.h"
#include "client/cmd/trace_cmd.h"
#include "client/cmd/trace_make.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum {
    KEY_REQUESTS = 0x300,
    KEY_PREFIXES,
    KEY_ZIPF,
    KEY_PREFIX_LEN,
    KEY_SUFFIX_LEN,
    KEY_OUTPUT_LEN,
    KEY_SCAN_EVERY,
    KEY_SCAN_LEN,
    KEY_SEED,
    KEY_BLOCK_SIZE,
    KEY_INTERVAL
};

struct generate_line {
    struct cmd_globals *globals;
    const char *path;
    struct trace_make make;
};

static const struct argp_option options[] = {
    {"requests", KEY_REQUESTS, "N", 0, "How many, scans included (default 1000)", 0},
    {"prefixes", KEY_PREFIXES, "P", 0, "Prefixes to choose from (default 100)", 0},
    {"zipf", KEY_ZIPF, "S", 0, "Prefix k is taken with a weight of 1/(k+1)^S (default 1)", 0},
    {"prefix-len", KEY_PREFIX_LEN, "L", 0, "Tokens of a prefix (default 256)", 0},
    {"suffix-len", KEY_SUFFIX_LEN, "M", 0, "Tokens of a request's own suffix (default 64)", 0},
    {"output-len", KEY_OUTPUT_LEN, "O", 0, "Tokens of an answer (default 32)", 0},
    {"scan-every", KEY_SCAN_EVERY, "N", 0,
     "Every so many requests is a scan: a prompt that shares nothing (default 0: none)", 0},
    {"scan-len", KEY_SCAN_LEN, "L", 0, "Tokens of a scan's prompt (default 2048)", 0},
    {"block-size", KEY_BLOCK_SIZE, "B", 0, "Tokens for each hash id (default 16)", 0},
    {"interval", KEY_INTERVAL, "US", 0, "Microseconds between requests (default 10000)", 0},
    {"seed", KEY_SEED, "X", 0, "Equal seeds make equal traces (default 1)", 0},
    {0}};

static uint32_t *number_of(struct trace_make *make, int key, uint32_t *ret_min, uint32_t *ret_max) {
    *ret_min = 0;
    *ret_max = 1u << 20;
    switch (key) {
    case KEY_REQUESTS:
        *ret_min = 1;
        *ret_max = 1u << 30;
        return &make->requests;
    case KEY_PREFIXES:
        *ret_min = 1;
        *ret_max = 1u << 24;
        return &make->prefixes;
    case KEY_PREFIX_LEN:
        return &make->prefix_len;
    case KEY_SUFFIX_LEN:
        return &make->suffix_len;
    case KEY_OUTPUT_LEN:
        return &make->output_len;
    case KEY_SCAN_EVERY:
        *ret_max = 1u << 30;
        return &make->scan_every;
    case KEY_SCAN_LEN:
        *ret_min = 1;
        return &make->scan_len;
    case KEY_BLOCK_SIZE:
        *ret_min = 1;
        return &make->block_size;
    case KEY_INTERVAL:
        *ret_max = 1000000000;
        return &make->interval_us;
    default:
        return NULL;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct generate_line *line = state->input;
    uint32_t min = 0;
    uint32_t max = 0;
    uint32_t seed = 0;
    uint32_t *number = number_of(&line->make, key, &min, &max);
    if (number != NULL) {
        if (!parse_u32(arg, min, max, number)) {
            argp_error(state, "'%s' is not a number in %" PRIu32 "..%" PRIu32, arg, min, max);
        }
        return 0;
    }
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case KEY_ZIPF:
        if (!parse_double(arg, 0, 100, &line->make.zipf)) {
            argp_error(state, "--zipf: '%s' is not a number in 0..100", arg);
        }
        return 0;
    case KEY_SEED:
        if (!parse_u32(arg, 0, UINT32_MAX, &seed)) {
            argp_error(state, "--seed: '%s' is not a number in 0..%" PRIu32, arg, UINT32_MAX);
        }
        line->make.seed = seed;
        return 0;
    case ARGP_KEY_END:
        if (line->make.prefix_len + line->make.suffix_len == 0) {
            argp_error(state, "--prefix-len and --suffix-len: one must be more than 0");
        }
        return trace_file_argument(key, arg, state, &line->path);
    default:
        return trace_file_argument(key, arg, state, &line->path);
    }
}

int trace_generate(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "FILE",
        .doc = "Makes a trace: each request is a shared prefix, chosen by Zipf's law, and a suffix "
               "of its own. FILE - is standard output. Needs no daemon.\vExamples:\n"
               "  kvpool trace generate zipf.jsonl --requests 5000 --prefixes 200 --zipf 1.1\n"
               "  kvpool trace generate - --scan-every 10 --scan-len 4096 | head",
        .children = cmd_global_child};
    struct generate_line line = {.globals = globals,
                                 .make = {.requests = 1000,
                                          .prefixes = 100,
                                          .zipf = 1,
                                          .prefix_len = 256,
                                          .suffix_len = 64,
                                          .output_len = 32,
                                          .scan_len = 2048,
                                          .block_size = 16,
                                          .interval_us = 10000,
                                          .seed = 1}};
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (strcmp(line.path, "-") == 0) {
        trace_make_write(&line.make, stdout);
        return 0;
    }
    FILE *out = fopen(line.path, "we");
    if (out == NULL) {
        fprintf(stderr, "kvpool: %s: %s\n", line.path, strerror(errno));
        return 1;
    }
    trace_make_write(&line.make, out);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        fprintf(stderr, "kvpool: %s: cannot write: %s\n", line.path, strerror(errno));
        return 1;
    }
    return 0;
}
