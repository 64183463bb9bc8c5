// SPDX-License-Identifier: Apache-2.0
// cmd_ping.c: `kvpool ping`: round trips to the daemon and back.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/format.h"
#include "client/cmd/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct ping_line {
    struct cmd_globals *globals;
    uint32_t count;
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct ping_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'c':
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

static void print(const struct cmd_globals *globals, struct summary s, uint32_t lost) {
    char text[4][FORMAT_SIZE];
    if (globals->json) {
        struct json j = json_start(stdout);
        json_object(&j, NULL);
        json_str(&j, "dir", cmd_dir(globals));
        json_u64(&j, "pings", s.n);
        json_u64(&j, "errors", lost);
        json_num(&j, "min_us", s.min);
        json_num(&j, "p50_us", s.p50);
        json_num(&j, "p99_us", s.p99);
        json_num(&j, "max_us", s.max);
        json_end(&j);
        json_finish(&j);
        return;
    }
    printf("%s: %zu pings, %" PRIu32 " errors, min %s, p50 %s, p99 %s, max %s\n", cmd_dir(globals),
           s.n, lost, format_us(s.min, text[0]), format_us(s.p50, text[1]),
           format_us(s.p99, text[2]), format_us(s.max, text[3]));
}

int cmd_ping(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"count", 'c', "N", 0, "How many pings (default 100)", 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Measures round trips to the daemon's loop and back: least, median, 99th "
               "percentile, most. Exit status 1 when the daemon cannot be reached or a ping fails."
               "\vExamples:\n"
               "  kvpool ping\n"
               "  kvpool ping -c 10000 --json",
        .children = cmd_global_child};
    struct ping_line line = {globals, 100};
    kvpool_client *client = NULL;
    uint32_t lost = 0;
    size_t n = 0;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-ping", &client) != 0) {
        return 1;
    }
    double *us = cmd_realloc(NULL, line.count * sizeof(double));
    for (uint32_t i = 0; i < line.count; i++) {
        uint64_t ns = 0;
        if (kvpool_ping(client, &ns) == KVPOOL_OK) {
            us[n++] = (double)ns / 1e3;
        } else {
            if (lost == 0) {
                cmd_fail(client, "a ping failed");
            }
            lost++;
            if (n == 0) {
                break; // nothing comes back: say so at once
            }
        }
    }
    print(globals, summarize(us, n), lost);
    free(us);
    kvpool_close(client);
    return lost == 0 ? 0 : 1;
}
