// SPDX-License-Identifier: Apache-2.0
// config_rig.c: see config_rig.h.
#include "tests/unit/daemon/config_rig.h"

struct tmpdir dir;
char file[128];
struct err err;

int config_setup(void **state) {
    (void)state;
    for (char **e = environ; *e != NULL;) { // ours alone
        char name[64];
        if (strncmp(*e, "KVPOOLD_", 8) == 0) {
            snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
            unsetenv(name);
            e = environ;
        } else {
            e++;
        }
    }
    unsetenv("RUNTIME_DIRECTORY");
    memset(&err, 0, sizeof err);
    return tmpdir_make(&dir) && tmpdir_write(&dir, "conf", "", file, sizeof file) ? 0 : -1;
}

int config_teardown(void **state) {
    (void)state;
    tmpdir_remove(&dir);
    return 0;
}

void write_conf(const char *text) {
    assert_true(tmpdir_write(&dir, "conf", text, file, sizeof file));
}

// kvpoold --config FILE and the given words (NULL ends them).
struct args make_args(const char *a, const char *b, const char *c, const char *d) {
    const char *words[] = {"kvpoold", "--config", file, a, b, c, d};
    struct args args = {0};
    for (size_t i = 0; i < sizeof words / sizeof *words && words[i] != NULL; i++) {
        args.argv[args.argc++] = (char *)words[i];
    }
    return args;
}

int load(struct config *ret, const char *a, const char *b, const char *c, const char *d) {
    struct args args = make_args(a, b, c, d);
    return config_load(args.argc, args.argv, ret, &err);
}

void assert_error(const char *part) {
    assert_int_not_equal(0, err.status);
    if (strstr(err.text, part) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.text);
    }
}

// The file's text and the given flags are refused with a message that has `part`.
void assert_refused(const char *text, const char *flag, const char *part) {
    struct config c;
    write_conf(text);
    memset(&err, 0, sizeof err);
    assert_int_not_equal(0, load(&c, flag, NULL, NULL, NULL));
    assert_error(part);
}
