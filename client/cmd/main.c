// SPDX-License-Identifier: Apache-2.0
// main.c: `kvpool`, the command for people: finds the subcommand and hands over.
// Thread: main.
#include "client/cmd/cmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct command {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv, struct cmd_globals *globals);
};

static const struct command commands[] = {
    {"status", "Pools, sequences, steps, clients and load of the daemon", cmd_status},
    {"ping", "Measure round trips to the daemon", cmd_ping},
    {"sequences", "List the sequences: length, pages, owner", cmd_sequences},
    {"clients", "List the connected clients", cmd_clients},
    {"pools", "List the pools", cmd_pools},
    {"pool", "Create or destroy a pool", cmd_pool},
    {"bench", "Time pings and one-token decodes on the running daemon", cmd_bench},
    {"doctor", "Check what commonly goes wrong, and say what to do about it", cmd_doctor},
    {"events", "Print the events of the cache: pages stored, removed, cleared", cmd_events},
    {"top", "Live view of pools and clients", cmd_top},
    {"usage", "What each namespace of a pool holds, and its hits", cmd_usage},
    {"trace", "Record, make and replay traces of requests", cmd_trace},
    {"version", "Versions of the library and of the daemon", cmd_version},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

struct line { // the command line up to the subcommand's name
    struct cmd_globals globals;
    int command; // index in argv, 0: none
};

static const char before[] = "Looks at, and tries out, a running kvpoold.\n\nCommands:\n";
static const char after[] =
    "Each command has its own --help. Examples:\n"
    "  kvpool status                     what the daemon of the default directory does\n"
    "  kvpool --dir /tmp/kv status --json\n"
    "  kvpool doctor                     when something does not work\n"
    "\nExit status: 0 done, 1 failed, 64 wrong usage. See also kvpool(1), kvpoold(8).";

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &line->globals;
        return 0;
    case ARGP_KEY_ARG:
        (void)arg;
        line->command = state->next - 1;
        state->next = state->argc; // the rest is the command's
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_version(FILE *out, struct argp_state *state) {
    (void)state;
    fprintf(out, "kvpool %s\n", kvpool_version());
}

// `before`, the list of commands, `after`: the text of kvpool --help.
static char *help_text(void) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return NULL;
    }
    fputs(before, out);
    for (size_t i = 0; i < COMMANDS; i++) {
        fprintf(out, "  %-10s  %s\n", commands[i].name, commands[i].help);
    }
    fprintf(out, "\v%s", after);
    fclose(out);
    return text;
}

static const struct command *find(const char *name) {
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

// Runs a command as "kvpool NAME", which is how its messages and its --help then call it.
static int run(const struct command *command, int argc, char **argv, struct cmd_globals *globals) {
    char title[64];
    snprintf(title, sizeof(title), "kvpool %s", command->name);
    argv[0] = title;
    return command->run(argc, argv, globals);
}

int main(int argc, char **argv) {
    struct line line = {0};
    char *doc = help_text();
    const struct argp argp = {
        .parser = parse, .args_doc = "COMMAND", .doc = doc, .children = cmd_global_child};
    char help_option[] = "--help";
    char *help_argv[] = {NULL, help_option, NULL};
    int rc = CMD_USAGE;

    argp_err_exit_status = CMD_USAGE;
    argp_program_version_hook = print_version;
    argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &line);
    argp_program_version_hook = NULL;

    if (line.command == 0) {
        argp_help(&argp, stderr, ARGP_HELP_USAGE | ARGP_HELP_SEE, program_invocation_short_name);
        goto out;
    }
    if (strcmp(argv[line.command], "help") == 0) {
        const struct command *topic = line.command + 1 < argc ? find(argv[line.command + 1]) : NULL;
        if (topic != NULL) {
            rc = run(topic, 2, help_argv, &line.globals);
        } else {
            argp_help(&argp, stdout, ARGP_HELP_STD_HELP & ~(unsigned)ARGP_HELP_EXIT_OK,
                      program_invocation_short_name);
            rc = 0;
        }
        goto out;
    }
    const struct command *command = find(argv[line.command]);
    if (command == NULL) {
        fprintf(stderr, "kvpool: no command '%s' (kvpool --help lists them)\n", argv[line.command]);
        goto out;
    }
    rc = run(command, argc - line.command, argv + line.command, &line.globals);
    if (cmd_flush() != 0 && rc == 0) {
        rc = 1;
    }
out:
    free(doc);
    return rc;
}
