// SPDX-License-Identifier: Apache-2.0
// cmd.h: what the subcommands of `kvpool` share: global options, the connection, errors.
//
//     kvpool [--dir DIR] [--json] [--timeout TIME] COMMAND [OPTION...]
//
// Global options are taken before and after the command's name. One cmd_NAME function per command,
// each in its own file; main.c has the list.
//
// Exit status: 0 done, 1 failed (one line on stderr says why), 64 wrong usage.
// Thread: main.
#ifndef KVPOOL_CMD_CMD_H
#define KVPOOL_CMD_CMD_H

#include <kvpool/kvpool.h>

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#define CMD_USAGE 64

struct cmd_globals {
    const char *dir;     // as given; NULL: $KVPOOL_DIR, else the default
    bool json;           // --json
    uint32_t timeout_ms; // 0: the library's default
};

// The argp child that parses the global options. Its input is a struct cmd_globals *.
extern const struct argp cmd_global_argp;
// {cmd_global_argp}, for the `children` of a command's argp; the command's parser hands its globals
// on with state->child_inputs[0] at ARGP_KEY_INIT.
extern const struct argp_child cmd_global_child[];

// Parses a command that has no options of its own and no arguments. Exits on wrong usage and after
// --help.
void cmd_parse_plain(const char *doc, int argc, char **argv, struct cmd_globals *globals);

// The directory that `globals` names.
const char *cmd_dir(const struct cmd_globals *globals);

// Connects as `name`. Returns 0, or 1 after saying why not on stderr.
int cmd_connect(const struct cmd_globals *globals, const char *name, kvpool_client **ret_client);

// Says "kvpool: <what>: <last error of the client>" on stderr and returns 1.
int cmd_fail(const kvpool_client *client, const char *what);

// Flushes stdout. Returns 0, or 1 after saying that it could not be written (a full disk).
int cmd_flush(void);

int cmd_status(int argc, char **argv, struct cmd_globals *globals);
int cmd_ping(int argc, char **argv, struct cmd_globals *globals);
int cmd_sequences(int argc, char **argv, struct cmd_globals *globals);
int cmd_clients(int argc, char **argv, struct cmd_globals *globals);
int cmd_pools(int argc, char **argv, struct cmd_globals *globals);
int cmd_pool(int argc, char **argv, struct cmd_globals *globals);
int cmd_bench(int argc, char **argv, struct cmd_globals *globals);
int cmd_doctor(int argc, char **argv, struct cmd_globals *globals);
int cmd_events(int argc, char **argv, struct cmd_globals *globals);
int cmd_trace(int argc, char **argv, struct cmd_globals *globals);
int cmd_top(int argc, char **argv, struct cmd_globals *globals);
int cmd_usage(int argc, char **argv, struct cmd_globals *globals);
int cmd_version(int argc, char **argv, struct cmd_globals *globals);

#endif
