// SPDX-License-Identifier: Apache-2.0
// cmd_trace.c: `kvpool trace record|generate|replay FILE ...`: finds the action and hands over.
// Thread: main.
#include "client/cmd/trace_cmd.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

volatile int trace_interrupted;

static void on_signal(int number) {
    (void)number;
    trace_interrupted = 1;
}

void trace_catch_signals(void) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    const struct sigaction action = {.sa_handler = on_signal}; // waits end: no SA_RESTART
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        sigaction(signals[i], &action, NULL);
    }
}

error_t trace_file_argument(int key, char *arg, struct argp_state *state, const char **ret_path) {
    if (key == ARGP_KEY_ARG && state->arg_num == 0) {
        *ret_path = arg;
        return 0;
    }
    if (key == ARGP_KEY_ARG) {
        argp_error(state, "unexpected argument '%s'", arg);
    }
    if (key == ARGP_KEY_END && *ret_path == NULL) {
        argp_error(state, "needs a FILE");
    }
    return key == ARGP_KEY_ARG || key == ARGP_KEY_END ? 0 : ARGP_ERR_UNKNOWN;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, struct cmd_globals *globals);
} actions[] = {{"record", trace_record}, {"generate", trace_generate}, {"replay", trace_replay}};

#define ACTIONS (sizeof(actions) / sizeof(actions[0]))

struct trace_options {
    struct cmd_globals *globals;
    int action; // index in argv, 0: none
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct trace_options *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case ARGP_KEY_ARG:
        (void)arg;
        line->action = state->next - 1;
        state->next = state->argc; // the rest is the action's
        return 0;
    case ARGP_KEY_END:
        if (line->action == 0) {
            argp_error(state, "needs an action: record, generate or replay");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cmd_trace(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp argp = {
        .parser = parse,
        .args_doc = "record FILE\ngenerate FILE\nreplay FILE",
        .doc = "Writes what a live daemon is asked into a file, makes such a file, or drives a "
               "daemon with one. Public traces with block hashes (Mooncake's format) can be "
               "replayed too. Each action has its own --help.\vExamples:\n"
               "  kvpool trace record load.jsonl --seconds 60\n"
               "  kvpool trace generate zipf.jsonl --requests 5000 --prefixes 200 --zipf 1.1\n"
               "  kvpool trace replay zipf.jsonl --pages 4096 --workers 4 --json",
        .children = cmd_global_child};
    struct trace_options line = {globals, 0};
    char title[64];
    argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &line);
    for (size_t i = 0; i < ACTIONS; i++) {
        if (strcmp(argv[line.action], actions[i].name) == 0) {
            snprintf(title, sizeof(title), "kvpool trace %s", actions[i].name);
            argv[line.action] = title;
            return actions[i].run(argc - line.action, argv + line.action, globals);
        }
    }
    fprintf(stderr, "kvpool: trace has no action '%s' (kvpool trace --help lists them)\n",
            argv[line.action]);
    return CMD_USAGE;
}
