// SPDX-License-Identifier: Apache-2.0
// cmd_bench.c: `kvpool bench`: pings and one-token decodes on the running daemon.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/format.h"
#include "client/cmd/json.h"
#include "client/cmd/table.h"
#include "client/cmd/trial.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define WARM_UP 20u

struct bench_line {
    struct cmd_globals *globals;
    uint32_t count;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct bench_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'n':
        if (!parse_u32(arg, 1, 1000000, &line->count)) {
            argp_error(state, "--count: '%s' is not a number in 1..1000000", arg);
        }
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static double now_us(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

struct subject {
    kvpool_client *client;
    struct trial *trial;
};

static kvpool_status do_ping(struct subject *s) {
    return kvpool_ping(s->client, NULL);
}

static kvpool_status do_decode(struct subject *s) {
    return trial_decode(s->trial);
}

static kvpool_status do_step(struct subject *s) {
    return trial_step(s->trial);
}

static const struct {
    const char *name, *what;
    kvpool_status (*run)(struct subject *s);
} cases[] = {
    {"ping", "one round trip", do_ping},
    {"decode", "attention of one token over 64", do_decode},
    {"step", "begin, decode, commit, truncate", do_step},
};

#define CASES (sizeof(cases) / sizeof(cases[0]))

// Runs case i `count` times; on a failure or an interruption the samples so far count.
static int measure(struct subject *s, size_t i, uint32_t count, struct summary *ret) {
    double *us = cmd_realloc(NULL, count * sizeof(double));
    size_t n = 0;
    int rc = 0;
    for (uint32_t k = 0; k < count + WARM_UP && !interrupted; k++) {
        double start = now_us();
        if (cases[i].run(s) != KVPOOL_OK) {
            rc = cmd_fail(s->client, cases[i].name);
            break;
        }
        if (k >= WARM_UP) {
            us[n++] = now_us() - start;
        }
    }
    *ret = summarize(us, n);
    free(us);
    return rc;
}

static void print(const struct cmd_globals *globals, const struct summary *figures) {
    if (globals->json) {
        struct json j = json_start(stdout);
        json_object(&j, NULL);
        for (size_t i = 0; i < CASES; i++) {
            json_object(&j, cases[i].name);
            json_u64(&j, "count", figures[i].n);
            json_num(&j, "p50_us", figures[i].p50);
            json_num(&j, "p99_us", figures[i].p99);
            json_end(&j);
        }
        json_end(&j);
        json_finish(&j);
        return;
    }
    struct table *t = table_new(6, "<CASE", ">COUNT", ">P50", ">P99", ">PER SECOND", "<WHAT");
    for (size_t i = 0; i < CASES; i++) {
        char text[4][FORMAT_SIZE];
        double mean = figures[i].mean;
        table_row(t, cases[i].name, format_u64(figures[i].n, text[0]),
                  format_us(figures[i].p50, text[1]), format_us(figures[i].p99, text[2]),
                  format_u64(mean > 0 ? (uint64_t)(1e6 / mean) : 0, text[3]), cases[i].what);
    }
    table_print(t, stdout);
    table_free(t);
}

int cmd_bench(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"count", 'n', "N", 0, "How many of each (default 2000)", 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Times pings, one-token decodes and whole one-token steps against the running "
               "daemon, one at a time, in a private pool of 16 pages that is removed afterwards. "
               "kvpool-bench(1) measures more, on a daemon of its own.\vExamples:\n"
               "  kvpool bench\n"
               "  kvpool bench -n 10000 --json",
        .children = cmd_global_child};
    struct bench_line line = {globals, 2000};
    struct summary figures[CASES] = {0};
    struct subject subject = {0};
    const struct sigaction action = {.sa_handler = on_signal};
    int rc = 0;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-bench", &subject.client) != 0) {
        return 1;
    }
    sigaction(SIGINT, &action, NULL); // the pool must be removed: it would outlive this process
    sigaction(SIGTERM, &action, NULL);
    if (trial_open(subject.client, &subject.trial) != KVPOOL_OK) {
        rc = cmd_fail(subject.client, "cannot set up a pool to measure on");
        goto close_client;
    }
    for (size_t i = 0; i < CASES && rc == 0 && !interrupted; i++) {
        rc = measure(&subject, i, line.count, &figures[i]);
    }
    if (interrupted) {
        fprintf(stderr, "kvpool: interrupted\n");
        rc = 1;
    }
    if (rc == 0) {
        print(globals, figures);
    }
    trial_close(subject.trial);
close_client:
    kvpool_close(subject.client);
    return rc;
}
