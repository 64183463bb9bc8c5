// SPDX-License-Identifier: Apache-2.0
// cmd_events.c: `kvpool events`: the daemon's event stream as lines of JSON on stdout; what was
// missed is asked for again, what is gone for good is said on stderr.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/events_reader.h"

#include <stdio.h>
#include <stdlib.h>

struct events_line {
    struct cmd_globals *globals;
    uint64_t from; // 0: not given
    bool follow;
};

enum { KEY_FROM = 0x200 };

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct events_line *line = state->input;
    char *end;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'f':
        line->follow = true;
        return 0;
    case KEY_FROM:
        line->from = strtoull(arg, &end, 10);
        if (arg[0] < '0' || arg[0] > '9' || *end != '\0' || line->from == 0) {
            argp_error(state, "--from: '%s' is not a sequence number (1 is the first)", arg);
        }
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int print_line(void *arg, const char *line, size_t len) {
    (void)arg;
    return fwrite(line, 1, len, stdout) == len && putc('\n', stdout) != EOF ? 0 : -1;
}

static void say(void *arg, const char *text) {
    (void)arg;
    fflush(stdout); // in its place among the lines
    fprintf(stderr, "kvpool events: %s\n", text);
}

int cmd_events(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"follow", 'f', NULL, 0, "Go on with new events until told to end", 0},
        {"from", KEY_FROM, "SEQ", 0,
         "First sequence number (default: the oldest there is; with --follow the next)", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Prints the events of the daemon's cache (pages stored, removed, cleared), one JSON "
               "object on a line. Only root and the daemon's user may: events tell of all tenants. "
               "The daemon must have them on (events = yes).\vExamples:\n"
               "  kvpool events\n"
               "  kvpool events --follow --from 1 > events.jsonl",
        .children = cmd_global_child};
    struct events_line line = {globals, 0, false};
    struct events_reader *reader = NULL;
    const struct events_sink sink = {.line = print_line, .say = say};
    char why[256];
    int rc;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (events_reader_open(cmd_dir(globals), line.from, line.follow, globals->timeout_ms, &sink,
                           &reader, why, sizeof why) != 0) {
        fprintf(stderr, "kvpool events: %s\n", why);
        return 1;
    }
    do {
        rc = events_reader_run(reader, why, sizeof why);
        if (cmd_flush() != 0) {
            rc = -1;
            why[0] = '\0';
        }
    } while (rc == 0 && line.follow);
    if (rc != 0 && why[0] != '\0') {
        fprintf(stderr, "kvpool events: %s\n", why);
    }
    events_reader_close(reader);
    return rc == 0 ? 0 : 1;
}
