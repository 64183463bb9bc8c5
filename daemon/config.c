// SPDX-License-Identifier: Apache-2.0
// config.c: precedence, contradictions, reload and print. The settings are in config_table.c, the
// file in config_file.c, the command line in config_flags.c.
//
// Invariants
//  1. Sources are applied from the weakest to the strongest; `source` names the last writer.
//  2. A configuration leaves here only through check().
// Thread: loop thread.
#include "daemon/config.h"

#include "daemon/config_flags.h"
#include "daemon/config_table.h"
#include "daemon/config_tenants.h"
#include "daemon/credentials.h"
#include "daemon/http.h"
#include "kernels/backend.h"
#include "proto/proto.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

#define ENV_PREFIX "KVPOOLD_"
#define STRING_(x) #x
#define STRING(x) STRING_(x)

enum { VALUE_BYTES = CONFIG_PATH_MAX + 32 };

static const char *const source_names[] = {
    [CONFIG_DEFAULT] = "default",
    [CONFIG_FILE] = "file",
    [CONFIG_ENVIRONMENT] = "environment",
    [CONFIG_FLAG] = "flag",
};

const char *config_version(void) {
    return STRING(KVPOOL_VERSION_MAJOR) "." STRING(KVPOOL_VERSION_MINOR) "." STRING(
        KVPOOL_VERSION_PATCH);
}

static const char *source_of(const struct config *c, const char *name) {
    return source_names[c->source[config_find(name)]];
}

// The first directory systemd made for us, else a fixed one.
static int default_dir(struct config *c, struct err *err) {
    const char *list = getenv("RUNTIME_DIRECTORY");
    const struct config_setting *s = &config_settings[config_find("dir")];
    char first[CONFIG_PATH_MAX];
    size_t len;
    if (list == NULL || list[0] == '\0') {
        return config_value_parse(s, "default", "/run/kvpool/0", c, err);
    }
    len = strcspn(list, ":");
    snprintf(first, sizeof first, "%.*s", (int)(len < sizeof first ? len : sizeof first - 1), list);
    return config_value_parse(s, "environment RUNTIME_DIRECTORY", first, c, err);
}

static int defaults(struct config *c, struct err *err) {
    memset(c, 0, sizeof *c);
    c->limits = core_limits_default;
    for (size_t i = 0; i < config_num_settings; i++) {
        const struct config_setting *s = &config_settings[i];
        int rc = 0;
        if (s->fallback != NULL) {
            rc = config_value_parse(s, "default", s->fallback, c, err);
        }
        if (rc != 0) {
            return rc;
        }
    }
    return default_dir(c, err);
}

static void env_name(const char *setting, char *ret, size_t size) {
    snprintf(ret, size, ENV_PREFIX "%s", setting);
    for (char *s = ret; *s != '\0'; s++) {
        *s = (char)toupper((unsigned char)*s);
    }
}

static int read_environment(struct config *c, struct err *err) {
    char name[64], where[80];
    for (char **e = environ; *e != NULL; e++) { // a misspelt name is an error like one in a file
        bool known;
        if (strncmp(*e, ENV_PREFIX, strlen(ENV_PREFIX)) != 0) {
            continue;
        }
        known = strncmp(*e, ENV_PREFIX "CONFIG=", strlen(ENV_PREFIX "CONFIG=")) == 0;
        for (size_t i = 0; i < config_num_settings && !known; i++) {
            env_name(config_settings[i].name, name, sizeof name);
            known = strncmp(*e, name, strlen(name)) == 0 && (*e)[strlen(name)] == '=';
        }
        if (!known) {
            return err_set(err, KVPOOL_E_INVAL, "environment %.*s: unknown setting",
                           (int)(strcspn(*e, "=") < 60 ? strcspn(*e, "=") : 60), *e);
        }
    }
    for (size_t i = 0; i < config_num_settings; i++) {
        const char *value;
        int rc;
        env_name(config_settings[i].name, name, sizeof name);
        value = getenv(name);
        if (value == NULL) {
            continue;
        }
        snprintf(where, sizeof where, "environment %s", name);
        rc = config_value_parse(&config_settings[i], where, value, c, err);
        if (rc != 0) {
            return rc;
        }
        c->source[i] = CONFIG_ENVIRONMENT;
    }
    return 0;
}

static int read_flags(const struct config_flags *flags, struct config *c, struct err *err) {
    for (size_t i = 0; i < config_num_settings; i++) {
        char name[64];
        int rc;
        if (flags->value[i] == NULL) {
            continue;
        }
        config_flag_name(config_settings[i].name, name, sizeof name);
        rc = config_value_parse(&config_settings[i], name, flags->value[i], c, err);
        if (rc != 0) {
            return rc;
        }
        c->source[i] = CONFIG_FLAG;
    }
    return 0;
}

// --config, else KVPOOLD_CONFIG, else the default file if there is one.
static int read_file(const struct config_flags *flags, struct config *c, uint32_t *ret_policies,
                     struct err *err) {
    const char *path = flags->config != NULL ? flags->config : getenv(ENV_PREFIX "CONFIG");
    if (path == NULL) {
        if (access(CONFIG_DEFAULT_FILE, F_OK) != 0) {
            return 0;
        }
        path = CONFIG_DEFAULT_FILE;
    }
    if (strlen(path) >= sizeof c->file) {
        return err_set(err, KVPOOL_E_INVAL,
                       "path of the configuration file: %zu bytes, the limit is %zu", strlen(path),
                       sizeof c->file - 1);
    }
    snprintf(c->file, sizeof c->file, "%s", path);
    return config_file_read(path, c, ret_policies, err);
}

static int check_pool_bytes(const struct config *c, struct err *err) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->num_pools; i++) {
        const struct core_pool_config *p = &c->pools[i];
        const struct kv_geometry g = {p->layers,
                                      p->kv_heads,
                                      p->head_dim,
                                      p->page_size,
                                      (kvpool_dtype)p->dtype,
                                      (kvpool_dtype)p->kv_dtype};
        uint64_t bytes;
        if (__builtin_mul_overflow((uint64_t)p->layers * kv_page_bytes(&g), p->num_pages, &bytes) ||
            __builtin_add_overflow(total, bytes, &total)) {
            return err_set(err, KVPOOL_E_INVAL, "pool %s: larger than any memory", p->name);
        }
        if (c->max_pool_bytes != 0 && total > c->max_pool_bytes) {
            return err_set(err, KVPOOL_E_INVAL,
                           "pool %s: needs %" PRIu64 " bytes, which makes %" PRIu64
                           " of all pools; max_pool_bytes is %" PRIu64,
                           p->name, bytes, total, c->max_pool_bytes);
        }
    }
    return 0;
}

// Nobody can prove an identity without a file of credentials.
static int check_identities(const struct config *c, struct err *err) {
    for (uint32_t i = 0; i < c->access.num_namespaces; i++) {
        const struct access_ns *ns = &c->access.namespaces[i];
        if (ns->members.num_identities > 0) {
            return err_set(err, KVPOOL_E_INVAL,
                           "namespace %s/%s: identities needs the setting credentials", ns->pool,
                           ns->name);
        }
    }
    for (uint32_t i = 0; i < c->access.num_pools; i++) {
        if (c->access.pools[i].allow.num_identities > 0) {
            return err_set(err, KVPOOL_E_INVAL,
                           "pool %s: allow_identities needs the setting credentials",
                           c->access.pools[i].name);
        }
    }
    return 0;
}

// The file is there and good. What it says is read when it is used, and again at SIGHUP.
static int check_credentials(const struct config *c, struct err *err) {
    struct credentials *credentials;
    struct err why;
    if (c->credentials[0] == '\0') {
        return 0;
    }
    if (credentials_load(c->credentials, &credentials, &why) != 0) {
        return err_set(err, why.status, "credentials (%s): %s", source_of(c, "credentials"),
                       why.text);
    }
    credentials_free(credentials);
    return 0;
}

// Settings that contradict each other.
static int check(const struct config *c, struct err *err) {
    const size_t limit = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    const size_t path = strlen(c->dir) + 1 + strlen(PROTO_CONTROL_SOCKET);
    int rc;
    if (path > limit) {
        return err_set(err, KVPOOL_E_INVAL,
                       "dir: socket path %.60s.../" PROTO_CONTROL_SOCKET
                       " is %zu bytes, the limit is %zu",
                       c->dir, path, limit);
    }
    if (c->max_inflight > c->slots) {
        return err_set(err, KVPOOL_E_INVAL,
                       "max_inflight (%" PRIu32 ", %s) is more than slots (%" PRIu32 ", %s)",
                       c->max_inflight, source_of(c, "max_inflight"), c->slots,
                       source_of(c, "slots"));
    }
    if (strcmp(c->backend, "cpu") == 0 && c->source[config_find("device")] != CONFIG_DEFAULT) {
        return err_set(err, KVPOOL_E_INVAL,
                       "device (%s) contradicts backend cpu (%s), which has no devices",
                       source_of(c, "device"), source_of(c, "backend"));
    }
    rc = http_address_check(c->http, c->http_public != 0, err);
    if (rc != 0) {
        return rc;
    }
    if (core_block_size(&c->limits) == 0) {
        return err_set(err, KVPOOL_E_INVAL,
                       "max_pools, max_sessions, max_seqs, max_steps, max_session_steps, "
                       "max_batch, max_table_entries, max_pages, max_page_tokens or max_pins is "
                       "out of range");
    }
    if (c->credentials[0] == '\0') {
        rc = check_identities(c, err);
        if (rc != 0) {
            return rc;
        }
    }
    return check_pool_bytes(c, err);
}

int config_load(int argc, char **argv, struct config *ret, struct err *err) {
    struct config_flags flags;
    struct config *c;
    uint32_t policies = 0;
    int rc = config_flags_parse(argc, argv, &flags, err);
    if (rc != 0) {
        return rc;
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    rc = defaults(c, err);
    if (rc == 0) {
        rc = read_file(&flags, c, &policies, err);
    }
    if (rc == 0) {
        rc = read_environment(c, err);
    }
    if (rc == 0) {
        rc = read_flags(&flags, c, err);
    }
    for (uint32_t i = 0; i < c->num_pools; i++) {
        if ((policies & 1u << i) == 0) {
            c->pools[i].policy = c->policy;
        }
    }
    if (rc == 0) {
        rc = check(c, err);
    }
    if (rc == 0 && !flags.print_config) { // printing needs no right to read secrets
        rc = check_credentials(c, err);
    }
    if (rc == 0) {
        c->print_config = flags.print_config;
        c->check_config = flags.check_config;
        *ret = *c;
    }
    free(c);
    return rc;
}

static bool same(const struct config_setting *s, const struct config *a, const struct config *b) {
    char text_a[VALUE_BYTES], text_b[VALUE_BYTES];
    config_value_format(s, a, text_a, sizeof text_a);
    config_value_format(s, b, text_b, sizeof text_b);
    return strcmp(text_a, text_b) == 0;
}

static bool same_pools(const struct config *a, const struct config *b) {
    bool equal = a->num_pools == b->num_pools;
    for (uint32_t i = 0; equal && i < a->num_pools; i++) {
        const struct core_pool_config *p = &a->pools[i], *q = &b->pools[i];
        equal = strcmp(p->name, q->name) == 0 && p->layers == q->layers &&
                p->kv_heads == q->kv_heads && p->head_dim == q->head_dim &&
                p->page_size == q->page_size && p->dtype == q->dtype &&
                p->num_pages == q->num_pages && p->max_seqs == q->max_seqs &&
                p->max_seq_len == q->max_seq_len && p->policy == q->policy &&
                p->kv_dtype == q->kv_dtype && p->export == q->export;
    }
    return equal;
}

// Appends a whole line or nothing.
static void add_line(char *report, size_t size, const char *line) {
    const size_t at = strlen(report);
    if (at + strlen(line) + 2 <= size) {
        snprintf(report + at, size - at, "%s\n", line);
    }
}

int config_reload(struct config *live, int argc, char **argv, char *report, size_t report_size,
                  struct err *err) {
    struct config *fresh = calloc(2, sizeof *fresh);
    struct config *next = fresh == NULL ? NULL : fresh + 1; // live, with what may change
    int rc;
    if (fresh == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    rc = config_load(argc, argv, fresh, err);
    if (rc != 0) {
        goto free_fresh;
    }
    *next = *live;
    for (size_t i = 0; i < config_num_settings; i++) {
        const struct config_setting *s = &config_settings[i];
        if (s->reload) {
            memcpy((char *)next + s->offset, (const char *)fresh + s->offset, s->size);
        }
        if (same(s, next, fresh)) {
            next->source[i] = fresh->source[i];
        }
    }
    rc = check(next, err); // new values beside old ones
    if (rc != 0) {
        goto free_fresh;
    }
    if (report_size > 0) {
        report[0] = '\0';
    }
    for (size_t i = 0; i < config_num_settings && report_size > 0; i++) {
        const struct config_setting *s = &config_settings[i];
        char from[VALUE_BYTES], to[VALUE_BYTES], line[2 * VALUE_BYTES + 64];
        if (same(s, live, fresh)) {
            continue;
        }
        config_value_format(s, live, from, sizeof from);
        config_value_format(s, fresh, to, sizeof to);
        snprintf(line, sizeof line, "%s: %s -> %s%s", s->name, from, to,
                 s->reload ? "" : " needs a restart");
        add_line(report, report_size, line);
    }
    if (!same_pools(live, fresh) && report_size > 0) {
        add_line(report, report_size, "pools: other [pool] sections -> needs a restart");
    }
    // Unused parts are zero in both.
    if (memcmp(&live->access, &fresh->access, sizeof live->access) != 0 && report_size > 0) {
        add_line(report, report_size,
                 "access: other access lists or [namespace] sections -> needs a restart");
    }
    snprintf(next->file, sizeof next->file, "%s", fresh->file);
    *live = *next;

free_fresh:
    free(fresh);
    return rc;
}

static void print_line(const char *key, const char *value, const char *source) {
    char line[VALUE_BYTES + 64];
    snprintf(line, sizeof line, "%s = %s", key, value);
    printf("%-40s ; %s\n", line, source);
}

static void print_count(const char *key, uint32_t value) {
    char text[16];
    snprintf(text, sizeof text, "%" PRIu32, value);
    print_line(key, text, source_names[CONFIG_FILE]);
}

static void print_file_line(const char *key, const char *value) {
    print_line(key, value, source_names[CONFIG_FILE]);
}

static bool device_is_moot(const struct config *c) {
    return strcmp(c->backend, "cpu") == 0;
}

void config_print(const struct config *config) {
    printf("# kvpoold %s, configuration file: %s\n[kvpoold]\n", config_version(),
           config->file[0] != '\0' ? config->file : "none");
    for (size_t i = 0; i < config_num_settings; i++) {
        char value[VALUE_BYTES];
        config_value_format(&config_settings[i], config, value, sizeof value);
        if (device_is_moot(config) && config_find("device") == (int)i) {
            printf("# "); // given explicitly it would contradict the backend
        }
        print_line(config_settings[i].name, value, source_names[config->source[i]]);
    }
    for (uint32_t i = 0; i < config->num_pools; i++) {
        const struct core_pool_config *p = &config->pools[i];
        printf("\n[pool %s]\n", p->name);
        print_count("layers", p->layers);
        print_count("kv_heads", p->kv_heads);
        print_count("head_dim", p->head_dim);
        print_count("page_size", p->page_size);
        print_file_line("dtype", config_dtype_name(p->dtype));
        print_file_line("kv_dtype", config_dtype_name(p->kv_dtype != 0 ? p->kv_dtype : p->dtype));
        print_file_line("export", config_export_name(p->export));
        print_count("num_pages", p->num_pages);
        print_count("max_seqs", p->max_seqs);
        print_count("max_seq_len", p->max_seq_len);
        print_file_line("policy", config_policy_name(p->policy));
        config_list_print("allow_", &config->access.pools[i].allow, print_file_line);
    }
    for (uint32_t i = 0; i < config->access.num_namespaces; i++) {
        const struct access_ns *ns = &config->access.namespaces[i];
        printf("\n[namespace %s/%s]\n", ns->pool, ns->name);
        config_ns_print(ns, print_file_line);
    }
}
