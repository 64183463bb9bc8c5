// SPDX-License-Identifier: Apache-2.0
// cmd.c: see cmd.h.
#include "client/cmd/cmd.h"

#include "client/cmd/format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_DIR = 0x100, KEY_JSON, KEY_TIMEOUT };

static const struct argp_option global_options[] = {
    {"dir", KEY_DIR, "DIR", 0,
     "Directory of the daemon's sockets (default: $KVPOOL_DIR, else " KVPOOL_DEFAULT_DIR ")", 20},
    {"json", KEY_JSON, NULL, 0, "Machine-readable output: JSON on one line", 20},
    {"timeout", KEY_TIMEOUT, "TIME", 0, "Limit of every request, e.g. 500ms or 2s (default 10s)",
     20},
    {0},
};

static error_t parse_global(int key, char *arg, struct argp_state *state) {
    struct cmd_globals *globals = state->input;
    switch (key) {
    case KEY_DIR:
        globals->dir = arg;
        return 0;
    case KEY_JSON:
        globals->json = true;
        return 0;
    case KEY_TIMEOUT:
        if (!parse_duration_ms(arg, &globals->timeout_ms)) {
            argp_error(state, "--timeout: '%s' is not a time of 1ms to 24h, e.g. 500ms or 2s", arg);
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp cmd_global_argp = {.options = global_options, .parser = parse_global};
const struct argp_child cmd_global_child[] = {{&cmd_global_argp, 0, "Global options:", 20}, {0}};

static error_t parse_plain(int key, char *arg, struct argp_state *state) {
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = state->input;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", arg);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void cmd_parse_plain(const char *doc, int argc, char **argv, struct cmd_globals *globals) {
    const struct argp argp = {.parser = parse_plain, .doc = doc, .children = cmd_global_child};
    argp_parse(&argp, argc, argv, 0, NULL, globals);
}

const char *cmd_dir(const struct cmd_globals *globals) {
    const char *from_env = getenv("KVPOOL_DIR"); // NOLINT(concurrency-mt-unsafe): one thread
    if (globals->dir != NULL) {
        return globals->dir;
    }
    return from_env != NULL && from_env[0] != 0 ? from_env : KVPOOL_DEFAULT_DIR;
}

int cmd_connect(const struct cmd_globals *globals, const char *name, kvpool_client **ret_client) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    char text[512];
    char plain[512];
    args.dir = globals->dir;
    args.name = name;
    args.timeout_ms = globals->timeout_ms;
    kvpool_status status = kvpool_connect(&args, ret_client);
    if (status == KVPOOL_OK) {
        return 0;
    }
    kvpool_last_error(NULL, text, sizeof(text));
    fprintf(stderr, "kvpool: cannot reach the daemon in %s: %s (kvpool doctor tells more)\n",
            cmd_dir(globals),
            text[0] != 0 ? format_plain(text, plain, sizeof(plain)) : kvpool_strerror(status));
    return 1;
}

int cmd_fail(const kvpool_client *client, const char *what) {
    char text[512];
    char plain[512];
    kvpool_last_error(client, text, sizeof(text));
    fprintf(stderr, "kvpool: %s: %s\n", what, format_plain(text, plain, sizeof(plain)));
    return 1;
}

int cmd_flush(void) {
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "kvpool: cannot write the output: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}
