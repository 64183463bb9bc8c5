// SPDX-License-Identifier: Apache-2.0
// config_flags.c: the command line by argp, made from the table. See config_flags.h.
//
// argp's own messages and exits are off, so that every error takes the same way as one in a file;
// with that argp also prints no --help, so help and version are options of ours.
#include "daemon/config_flags.h"

#include "daemon/config_table.h"

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>

enum { KEY_SETTING = 0x1000, KEY_CONFIG = 0x2000, KEY_PRINT, KEY_CHECK, KEY_HELP, KEY_VERSION };
enum { NUM_OTHER = 5, NAME_BYTES = 32, HELP_BYTES = 160 };

struct state {
    struct config_flags *flags;
    const struct argp *argp;
    struct err *err;
    int rc; // the first error
};

static const char doc[] = "Owns a paged KV cache and serves it to the worker processes of this "
                          "machine.\v"
                          "Every setting comes from the command line, else from the environment "
                          "(KVPOOLD_<NAME>), else from the INI file (section [kvpoold]), else it "
                          "has its default. Pools come from [pool NAME] sections. SIGHUP reads "
                          "everything again; SIGTERM finishes what is in flight and exits.";

void config_flag_name(const char *setting, char *ret, size_t size) {
    snprintf(ret, size, "--%s", setting);
    for (char *s = ret; *s != '\0'; s++) {
        *s = *s == '_' ? '-' : *s;
    }
}

static error_t on_option(int key, char *arg, struct argp_state *state) {
    struct state *st = state->input;
    const char *name = state->name != NULL ? state->name : "kvpoold";
    if (key >= KEY_SETTING && key < KEY_SETTING + (int)config_num_settings) {
        st->flags->value[key - KEY_SETTING] = arg;
        return 0;
    }
    switch (key) {
    case KEY_CONFIG:
        st->flags->config = arg;
        return 0;
    case KEY_PRINT:
        st->flags->print_config = true;
        return 0;
    case KEY_CHECK:
        st->flags->check_config = true;
        return 0;
    case KEY_HELP:
        argp_help(st->argp, stdout, ARGP_HELP_LONG | ARGP_HELP_USAGE | ARGP_HELP_DOC,
                  program_invocation_short_name);
        exit(EXIT_SUCCESS); // NOLINT(concurrency-mt-unsafe): before any thread
    case KEY_VERSION:
        printf("kvpoold %s\n", config_version());
        exit(EXIT_SUCCESS); // NOLINT(concurrency-mt-unsafe): before any thread
    case ARGP_KEY_ARG:
        st->rc = err_set(st->err, KVPOOL_E_INVAL, "unexpected argument '%.60s'; try %.60s --help",
                         arg, name);
        return EINVAL;
    case ARGP_KEY_ERROR: // unknown, ambiguous, or without its value: the word just read
        if (st->rc == 0) {
            st->rc = err_set(st->err, KVPOOL_E_INVAL,
                             "%.60s: unknown flag, or one without its value; try %.60s --help",
                             state->argv[state->next > 0 ? state->next - 1 : 0], name);
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int config_flags_parse(int argc, char **argv, struct config_flags *ret, struct err *err) {
    static const struct argp_option others[NUM_OTHER] = {
        {"config", KEY_CONFIG, "FILE", 0,
         "INI file (KVPOOLD_CONFIG; default " CONFIG_DEFAULT_FILE " if it exists)", 0},
        {"print-config", KEY_PRINT, NULL, 0, "print every setting and its source, then exit", 0},
        {"check-config", KEY_CHECK, NULL, 0, "check the configuration, then exit", 0},
        {"help", KEY_HELP, NULL, 0, "print this help, then exit", -1},
        {"version", KEY_VERSION, NULL, 0, "print the version, then exit", -1},
    };
    struct argp_option options[CONFIG_MAX_SETTINGS + NUM_OTHER + 1] = {0};
    char names[CONFIG_MAX_SETTINGS][NAME_BYTES], help[CONFIG_MAX_SETTINGS][HELP_BYTES];
    struct argp argp = {.options = options, .parser = on_option, .doc = doc};
    struct config_flags flags = {0};
    struct state state = {.flags = &flags, .argp = &argp, .err = err};
    size_t n = 0;

    for (size_t i = 0; i < config_num_settings; i++) {
        const struct config_setting *s = &config_settings[i];
        config_flag_name(s->name, names[i], sizeof names[i]);
        snprintf(help[i], sizeof help[i], "%s%s%s%s%s", s->help,
                 s->fallback != NULL && s->fallback[0] != '\0' ? " (default " : "",
                 s->fallback != NULL ? s->fallback : "",
                 s->fallback != NULL && s->fallback[0] != '\0' ? ")" : "",
                 s->reload ? " [SIGHUP]" : "");
        options[n++] = (struct argp_option){
            .name = names[i] + 2, .key = KEY_SETTING + (int)i, .arg = s->arg, .doc = help[i]};
    }
    for (size_t i = 0; i < NUM_OTHER; i++) {
        options[n++] = others[i];
    }
    if (argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP, NULL, &state) != 0 ||
        state.rc != 0) {
        return state.rc != 0 ? state.rc : err_set(err, KVPOOL_E_INVAL, "bad command line");
    }
    *ret = flags;
    return 0;
}
