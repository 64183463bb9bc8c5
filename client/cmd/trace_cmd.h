// SPDX-License-Identifier: Apache-2.0
// trace_cmd.h: the three actions of `kvpool trace`, each in a file of its own.
// Thread: main.
#ifndef KVPOOL_CMD_TRACE_CMD_H
#define KVPOOL_CMD_TRACE_CMD_H

#include "client/cmd/cmd.h"

int trace_record(int argc, char **argv, struct cmd_globals *globals);
int trace_generate(int argc, char **argv, struct cmd_globals *globals);
int trace_replay(int argc, char **argv, struct cmd_globals *globals);

// Becomes 1 when the user asks to end (Ctrl-C, SIGTERM, SIGHUP), from trace_catch_signals() on.
extern volatile int trace_interrupted;
void trace_catch_signals(void);

// For ARGP_KEY_ARG and ARGP_KEY_END of an action with one argument, the FILE.
error_t trace_file_argument(int key, char *arg, struct argp_state *state, const char **ret_path);

#endif
