// SPDX-License-Identifier: Apache-2.0
// config_rig.h: what the tests of the configuration share: a directory with one file, an environment
// without settings, and loads that must succeed or fail.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_CONFIG_RIG_H
#define KVPOOL_TESTS_UNIT_DAEMON_CONFIG_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/config.h"
#include "tests/unit/daemon/tmpdir.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern struct tmpdir dir;
extern char file[128]; // path of the configuration
extern struct err err; // of the last load

int config_setup(void **state);
int config_teardown(void **state);

void write_conf(const char *text);

struct args {
    int argc;
    char *argv[16];
};
// kvpoold --config FILE and the given words (NULL ends them).
struct args make_args(const char *a, const char *b, const char *c, const char *d);
int load(struct config *ret, const char *a, const char *b, const char *c, const char *d);

void assert_error(const char *part);
// The file's text and the given flags are refused with a message that has `part`.
void assert_refused(const char *text, const char *flag, const char *part);

#define POOL \
    "layers = 2\nkv_heads = 2\nhead_dim = 64\npage_size = 16\ndtype = fp16\nnum_pages = 32\n"

#endif
