// SPDX-License-Identifier: Apache-2.0
// bench.c: `kvpool-bench`: picks the benches, prints their figures.
//
//     kvpool-bench core|prefix|control|attention|all [--json] [--quick]
//
// Invariants
//  1. With --json stdout has figures only, one object a line; everything else goes to stderr.
//  2. The exit status is 0 only when every chosen bench ran to its end and its output was written.
// Thread: main.
#include "bench/bench.h"

#include "bench/roles.h"

#include <kvpool/kvpool.h>

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define QUICK_SCALE 0.05
#define USAGE_STATUS 64

static struct {
    bool json, quick;
    const char *name; // of the bench, or "all"
} options;

static const struct {
    const char *name;
    int (*run)(void);
} benches[] = {{"core", bench_core},
               {"prefix", bench_prefix},
               {"control", bench_control},
               {"attention", bench_attention}};

#define BENCHES (sizeof(benches) / sizeof(benches[0]))

// Three names and a number; names are plain ASCII of this program's own.
void bench_emit(const char *bench, const char *case_name, const char *metric, double value) {
    if (!options.json) {
        printf("%-10s %-14s %-14s %14.3f\n", bench, case_name, metric, value);
    } else if (isfinite(value)) {
        printf("{\"bench\":\"%s\",\"case\":\"%s\",\"metric\":\"%s\",\"value\":%.6g}\n", bench,
               case_name, metric, value);
    } else {
        printf("{\"bench\":\"%s\",\"case\":\"%s\",\"metric\":\"%s\",\"value\":null}\n", bench,
               case_name, metric);
    }
    fflush(stdout); // figures of a bench that fails later are not lost
}

uint64_t bench_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_percentile(double *samples, size_t n, double p) {
    if (n == 0) {
        return (double)NAN;
    }
    qsort(samples, n, sizeof(samples[0]), compare);
    double rank = ceil(p / 100 * (double)n); // nearest rank, 1..n
    return samples[rank < 1 ? 0 : rank > (double)n ? n - 1 : (size_t)rank - 1];
}

double bench_quick_scale(void) {
    return options.quick ? QUICK_SCALE : 1.0;
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    switch (key) {
    case 'j':
        options.json = true;
        return 0;
    case 'q':
        options.quick = true;
        return 0;
    case ARGP_KEY_ARG:
        if (options.name != NULL) {
            argp_error(state, "unexpected argument '%s'", arg);
        }
        options.name = arg;
        for (size_t i = 0; i < BENCHES; i++) {
            if (strcmp(arg, benches[i].name) == 0) {
                return 0;
            }
        }
        if (strcmp(arg, "all") != 0) {
            argp_error(state, "no bench '%s'", arg);
        }
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_version(FILE *out, struct argp_state *state) {
    (void)state;
    fprintf(out, "kvpool-bench %s\n", kvpool_version());
}

int main(int argc, char **argv) {
    static const struct argp_option argp_options[] = {
        {"json", 'j', NULL, 0, "One JSON object a line", 0},
        {"quick", 'q', NULL, 0, "A twentieth of the repetitions: shows that it works, no figures",
         0},
        {0}};
    static const struct argp argp = {
        .options = argp_options,
        .parser = parse,
        .args_doc = "core|prefix|control|attention|all",
        .doc = "Measures kvpool, without a daemon of yours: `control` starts its own.\v"
               "  core       allocation and steps of the daemon's core, in this process\n"
               "  prefix     page keys, matching and eviction, in this process\n"
               "  control    round trips through NNG beside a bare NNG echo\n"
               "  attention  the CPU backend beside the memory's read speed\n\n"
               "Example:\n"
               "  kvpool-bench control --json"};
    int rc = 0;
    if (argc > 1 && strncmp(argv[1], ROLE_PREFIX, strlen(ROLE_PREFIX)) == 0) {
        return role_main(argc - 1, argv + 1);
    }
    argp_err_exit_status = USAGE_STATUS;
    argp_program_version_hook = print_version;
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    for (size_t i = 0; i < BENCHES; i++) {
        if (strcmp(options.name, "all") == 0 || strcmp(options.name, benches[i].name) == 0) {
            rc |= benches[i].run();
        }
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "kvpool-bench: cannot write the output: %s\n", strerror(errno));
        rc = 1;
    }
    return rc;
}
