// SPDX-License-Identifier: Apache-2.0
// cmd_top.c: `kvpool top`: frame after frame of pools, clients and rates, until told to end.
// It goes on when the daemon goes away and comes back.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/format.h"
#include "client/cmd/terminal.h"
#include "client/cmd/view.h"

#include <stdio.h>
#include <unistd.h>

struct top_line {
    struct cmd_globals *globals;
    uint32_t delay_ms;
    uint32_t frames; // 0: without end
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct top_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'd':
        if (!parse_duration_ms(arg, &line->delay_ms) || line->delay_ms < 50) {
            argp_error(state, "--delay: '%s' is not a time of 50ms or more, e.g. 2 or 500ms", arg);
        }
        return 0;
    case 'n':
        if (!parse_u32(arg, 1, UINT32_MAX, &line->frames)) {
            argp_error(state, "--iterations: '%s' is not a positive number", arg);
        }
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void show(const struct cmd_globals *globals, const struct view *before,
                 const struct view *now) {
    if (globals->json) {
        view_json_top(before, now, stdout);
        return;
    }
    terminal_frame();
    view_print_top(before, now, terminal_rows(), stdout);
    if (terminal_is_screen()) {
        fputs("q ends, space refreshes", stdout);
    }
}

int cmd_top(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"delay", 'd', "SECONDS", 0, "Time between frames (default 1)", 0},
        {"iterations", 'n', "N", 0, "End after N frames", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Shows pools, clients and rates again and again; q or Ctrl-C ends. When stdout is "
               "no terminal, frames follow one another; with --json each is an object on its own "
               "line.\vExamples:\n"
               "  kvpool top\n"
               "  kvpool top -d 5 -n 12 --json > load.jsonl",
        .children = cmd_global_child};
    struct top_line line = {globals, 1000, 0};
    kvpool_client *client = NULL;
    struct view views[2] = {0};
    int rc = 0;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-top", &client) != 0) {
        return 1;
    }
    terminal_open(!globals->json);
    for (uint32_t i = 0; line.frames == 0 || i < line.frames; i++) {
        struct view *now = &views[i % 2];
        struct view *before = &views[(i + 1) % 2];
        kvpool_status status = KVPOOL_OK;
        if (i > 0 && !terminal_wait(line.delay_ms)) {
            break;
        }
        view_free(now);
        status = view_fetch(client, cmd_dir(globals), now);
        if (status == KVPOOL_E_LOST) { // a new daemon: said once, then it answers
            status = view_fetch(client, cmd_dir(globals), now);
        }
        if (status != KVPOOL_OK && !terminal_is_screen()) {
            rc = cmd_fail(client, "cannot read the status");
            break;
        }
        if (status != KVPOOL_OK) {
            terminal_frame();
            printf("kvpool top: %s: %s (waiting for it, q ends)\n", cmd_dir(globals),
                   kvpool_strerror(status));
        } else {
            now->own_pid = (uint32_t)getpid();
            show(globals, before->taken_ns == 0 ? NULL : before, now);
        }
        if (cmd_flush() != 0) {
            rc = 1;
            break;
        }
    }
    terminal_close();
    view_free(&views[0]);
    view_free(&views[1]);
    kvpool_close(client);
    return rc;
}
