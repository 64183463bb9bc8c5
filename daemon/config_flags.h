// SPDX-License-Identifier: Apache-2.0
// config_flags.h: the command line. Internal to config.
//
// Invariants
//  1. Every setting of the table is a long flag, with dashes for underscores.
//  2. Values are pointers into argv, not yet checked.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_CONFIG_FLAGS_H
#define KVPOOL_DAEMON_CONFIG_FLAGS_H

#include "daemon/config.h"

struct config_flags {
    const char *value[CONFIG_MAX_SETTINGS]; // NULL: not given
    const char *config;                     // --config
    bool print_config, check_config;
};

// --help and --version print and exit(0). Errors: INVAL.
int config_flags_parse(int argc, char **argv, struct config_flags *ret, struct err *err);

// "--drain-timeout" for drain_timeout.
void config_flag_name(const char *setting, char *ret, size_t size);

#endif
