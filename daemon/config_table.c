// SPDX-License-Identifier: Apache-2.0
// config_table.c: the settings, and their values as text and back. See config_table.h.
#include "daemon/config_table.h"

#include "daemon/config_tenants.h"
#include "proto/proto.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define FIELD(path) offsetof(struct config, path), sizeof(((struct config *)0)->path)
#define GIB (1024ull * 1024 * 1024)
#define U32 UINT32_MAX
#define FIXED false
#define RELOAD true

// X(name, field, type, SIGHUP, min, max, default, argument, help)
#define SETTINGS(X)                                                                               \
    X(dir, dir, TEXT, FIXED, 1, CONFIG_TEXT_MAX, NULL, "PATH",                                    \
      "directory of the sockets and the lock file")                                               \
    X(backend, backend, BACKEND, FIXED, 0, 0, "auto", "NAME", "compute backend: auto, cpu, cuda") \
    X(device, device, COUNT, FIXED, 0, 1023, "0", "N", "GPU ordinal of the cuda backend")         \
    X(threads, threads, COUNT, FIXED, 0, 1024, "0", "N",                                          \
      "threads of the cpu backend, 0 = one per available core")                                   \
    X(socket_mode, socket_mode, MODE, FIXED, 0600, 0777, "0660", "MODE", "mode of the sockets")   \
    X(dir_mode, dir_mode, MODE, FIXED, 0700, 0777, "0750", "MODE",                                \
      "mode of the directory when it is created")                                                 \
    X(slots, slots, COUNT, FIXED, 1, 4096, "256", "N", "requests in the daemon at once")          \
    X(max_inflight, max_inflight, COUNT, RELOAD, 1, 4096, "64", "N",                              \
      "requests in flight of one client")                                                         \
    X(max_regions, max_regions, COUNT, RELOAD, 1, 65536, "64", "N", "regions of one client")      \
    X(max_region_bytes, max_region_bytes, BYTES, RELOAD, 4096, UINT64_MAX, "4G", "SIZE",          \
      "bytes of all regions of one client")                                                       \
    X(max_pool_bytes, max_pool_bytes, BYTES, FIXED, 0, UINT64_MAX, "0", "SIZE",                   \
      "bytes of all pools, 0 = what the machine has available")                                   \
    X(drain_timeout, drain_timeout_ms, TIME, RELOAD, 0, 600000, "5s", "TIME",                     \
      "how long work in flight may take after SIGTERM")                                           \
    X(probe_interval, probe_interval_ms, TIME, RELOAD, 0, 3600000, "5s", "TIME",                  \
      "time between self-probes of the listener, 0 = off")                                        \
    X(session_grace, session_grace_ms, TIME, RELOAD, 0, 86400000, "30s", "TIME",                  \
      "how long a session lives on without its connection, 0 = not at all")                       \
    X(credentials, credentials, TEXT, RELOAD, 0, CONFIG_TEXT_MAX, "", "PATH",                     \
      "file of the identities that clients can prove (IDENTITY SECRET), empty = none")            \
    X(policy, policy, POLICY, FIXED, 0, 0, "lru", "NAME",                                         \
      "which unused pages go first, of pools that name none: lru, s3fifo")                        \
    X(leak_limit, leak_limit, COUNT, FIXED, 1, 1000000, "256", "N",                               \
      "leaked NNG pipes before the daemon restarts itself")                                       \
    X(log_level, log_level, LEVEL, RELOAD, 0, 0, "info", "LEVEL",                                 \
      "error, warn, notice, info or debug")                                                       \
    X(log_file, log_file, TEXT, FIXED, 0, CONFIG_TEXT_MAX, "", "PATH",                            \
      "file for the log, empty = standard error")                                                 \
    X(http, http, TEXT, FIXED, 0, CONFIG_ADDRESS_MAX - 1, "", "ADDRESS",                          \
      "address and port of /metrics and /healthz, e.g. 127.0.0.1:9470, empty = off")              \
    X(http_public, http_public, BOOL, FIXED, 0, 0, "no", "yes|no",                                \
      "allow an http address that is not loopback")                                               \
    X(health_deadline, health_deadline_ms, TIME, FIXED, 500, 3600000, "5s", "TIME",               \
      "how long the loop or the device may stand still before /healthz is red")                   \
    X(events, events, BOOL, FIXED, 0, 0, "no", "yes|no", "stream of cache events")                \
    X(event_ring, event_ring, COUNT, FIXED, 2, 1u << 24, "65536", "N",                            \
      "events kept for readers that missed some")                                                 \
    X(event_tokens, event_tokens, BOOL, FIXED, 0, 0, "no", "yes|no",                              \
      "events carry the token ids of their pages")                                                \
    X(max_pools, limits.max_pools, COUNT, FIXED, 1, U32, NULL, "N", "pools")                      \
    X(max_sessions, limits.max_sessions, COUNT, FIXED, 1, U32, NULL, "N", "clients at once")      \
    X(max_seqs, limits.max_seqs, COUNT, FIXED, 1, U32, NULL, "N", "sequences of all pools")       \
    X(max_steps, limits.max_steps, COUNT, FIXED, 1, U32, NULL, "N", "open steps")                 \
    X(max_session_steps, limits.max_session_steps, COUNT, FIXED, 1, U32, NULL, "N",               \
      "open steps of one client")                                                                 \
    X(max_batch, limits.max_batch, COUNT, FIXED, 1, PROTO_MAX_BATCH, NULL, "N",                   \
      "sequences in one step")                                                                    \
    X(max_table_entries, limits.max_table_entries, COUNT, FIXED, 1, UINT64_MAX, NULL, "N",        \
      "page-table entries of all pools")                                                          \
    X(max_pages, limits.max_pages, COUNT, FIXED, 1, UINT64_MAX, NULL, "N", "pages of all pools")  \
    X(max_page_tokens, limits.max_page_tokens, COUNT, FIXED, 1, UINT64_MAX, NULL, "N",            \
      "tokens that the pages of all pools hold")                                                  \
    X(max_pins, limits.max_pins, COUNT, FIXED, 1, U32, NULL, "N", "pinned prefixes of all pools")

const struct config_setting config_settings[] = {
#define ENTRY(name, field, type, reload, min, max, fallback, arg, help) \
    {#name, arg, help, CONFIG_TYPE_##type, reload, FIELD(field), min, max, fallback},
    SETTINGS(ENTRY)
#undef ENTRY
};
const size_t config_num_settings = sizeof config_settings / sizeof *config_settings;
_Static_assert(sizeof config_settings / sizeof *config_settings <= CONFIG_MAX_SETTINGS,
               "struct config has a source for every setting");

int config_find(const char *name) {
    for (size_t i = 0; i < config_num_settings; i++) {
        if (strcmp(config_settings[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

// Number fields are int, uint32_t or uint64_t; none is negative.
static void store(const struct config_setting *s, struct config *config, uint64_t value) {
    char *field = (char *)config + s->offset;
    if (s->size == sizeof(uint64_t)) {
        memcpy(field, &value, sizeof value);
    } else {
        const uint32_t narrow = (uint32_t)value;
        memcpy(field, &narrow, sizeof narrow);
    }
}

static uint64_t load(const struct config_setting *s, const struct config *config) {
    const char *field = (const char *)config + s->offset;
    uint64_t wide = 0;
    uint32_t narrow = 0;
    if (s->size == sizeof wide) {
        memcpy(&wide, field, sizeof wide);
        return wide;
    }
    memcpy(&narrow, field, sizeof narrow);
    return narrow;
}

// Digits only (no sign, no blanks), then whatever follows.
static bool digits(const char *text, int base, uint64_t *ret, const char **ret_end) {
    char *end;
    unsigned long long value;
    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    errno = 0;
    value = strtoull(text, &end, base);
    if (errno != 0) {
        return false;
    }
    *ret = value;
    *ret_end = end;
    return true;
}

bool config_bytes_parse(const char *text, uint64_t *ret) {
    static const char units[] = "KMGT";
    const char *end;
    uint64_t value;
    if (!digits(text, 10, &value, &end)) {
        return false;
    }
    if (*end != '\0') {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        const unsigned shift = unit == NULL ? 0 : 10 * (unsigned)(unit - units + 1);
        end++;
        if (strcmp(end, "iB") == 0) {
            end += 2;
        }
        if (unit == NULL || *end != '\0' || value > UINT64_MAX >> shift) {
            return false;
        }
        value <<= shift;
    }
    *ret = value;
    return true;
}

void config_bytes_format(uint64_t bytes, char *ret, size_t size) {
    static const char *const units[] = {"", "K", "M", "G", "T"};
    size_t unit = 0;
    while (unit < 4 && bytes != 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    snprintf(ret, size, "%" PRIu64 "%s", bytes, units[unit]);
}

static bool time_parse(const char *text, uint64_t *ret_ms) {
    const char *end;
    uint64_t value, scale;
    if (!digits(text, 10, &value, &end)) {
        return false;
    }
    if (strcmp(end, "ms") == 0 || (*end == '\0' && value == 0)) {
        scale = 1;
    } else if (strcmp(end, "s") == 0) {
        scale = 1000;
    } else if (strcmp(end, "m") == 0) {
        scale = 60000;
    } else {
        return false;
    }
    return !__builtin_mul_overflow(value, scale, ret_ms);
}

static bool known_backend(const char *text) {
    return strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0;
}

// Text goes into one line of an INI file and comes back: no control characters, no comment sign,
// no blanks at the ends.
static int check_text(const struct config_setting *s, const char *where, const char *text,
                      struct err *err) {
    const size_t len = strlen(text);
    if (len < s->min || len > s->max) {
        return err_set(err, KVPOOL_E_INVAL, "%s: text of %zu bytes, allowed are %u to %u", where,
                       len, (unsigned)s->min, (unsigned)s->max);
    }
    for (size_t i = 0; i < len; i++) {
        if (iscntrl((unsigned char)text[i]) || text[i] == ';') {
            return err_set(err, KVPOOL_E_INVAL,
                           "%s: control characters and ';' are not allowed in text", where);
        }
    }
    if (len > 0 && (isspace((unsigned char)text[0]) || isspace((unsigned char)text[len - 1]))) {
        return err_set(err, KVPOOL_E_INVAL, "%s: text begins or ends with a blank", where);
    }
    return 0;
}

static void bound(const struct config_setting *s, uint64_t value, char *ret, size_t size) {
    if (s->type == CONFIG_TYPE_BYTES) {
        config_bytes_format(value, ret, size);
    } else if (s->type == CONFIG_TYPE_MODE) {
        snprintf(ret, size, "%04" PRIo64, value);
    } else {
        snprintf(ret, size, "%" PRIu64 "%s", value, s->type == CONFIG_TYPE_TIME ? "ms" : "");
    }
}

int config_value_parse(const struct config_setting *s, const char *where, const char *text,
                       struct config *config, struct err *err) {
    const char *what = "a number";
    const char *end = "";
    uint64_t value = 0;
    bool ok = false;
    int rc;

    switch (s->type) {
    case CONFIG_TYPE_TEXT:
        rc = check_text(s, where, text, err);
        if (rc == 0) {
            snprintf((char *)config + s->offset, s->size, "%s", text);
        }
        return rc;
    case CONFIG_TYPE_BACKEND:
        if (!known_backend(text)) {
            return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not one of auto, cpu, cuda", where,
                           text);
        }
        snprintf((char *)config + s->offset, s->size, "%s", text);
        return 0;
    case CONFIG_TYPE_LEVEL:
        if (!log_level_parse(text, (enum log_level *)(void *)((char *)config + s->offset))) {
            return err_set(err, KVPOOL_E_INVAL,
                           "%s: '%.40s' is not one of error, warn, notice, info, debug", where,
                           text);
        }
        return 0;
    case CONFIG_TYPE_BOOL:
        if (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0) {
            return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not one of yes, no", where, text);
        }
        store(s, config, text[0] == 'y');
        return 0;
    case CONFIG_TYPE_POLICY: {
        uint32_t policy;
        if (!config_policy_parse(text, &policy)) {
            return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not one of lru, s3fifo", where,
                           text);
        }
        store(s, config, policy);
        return 0;
    }
    case CONFIG_TYPE_COUNT:
        ok = digits(text, 10, &value, &end) && *end == '\0';
        break;
    case CONFIG_TYPE_BYTES:
        what = "a size (e.g. 512M, 4G)";
        ok = config_bytes_parse(text, &value);
        break;
    case CONFIG_TYPE_TIME:
        what = "a time (e.g. 500ms, 5s)";
        ok = time_parse(text, &value);
        break;
    case CONFIG_TYPE_MODE:
        what = "an octal mode (e.g. 0660)";
        ok = digits(text, 8, &value, &end) && *end == '\0';
        break;
    }
    if (!ok) {
        return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not %s", where, text, what);
    }
    if (value < s->min || value > s->max) {
        char min[32], max[32];
        bound(s, s->min, min, sizeof min);
        bound(s, s->max, max, sizeof max);
        return err_set(err, KVPOOL_E_INVAL, "%s: %.40s is not between %s and %s", where, text, min,
                       max);
    }
    store(s, config, value);
    return 0;
}

void config_value_format(const struct config_setting *s, const struct config *config, char *ret,
                         size_t size) {
    const char *field = (const char *)config + s->offset;
    if (s->type == CONFIG_TYPE_TEXT || s->type == CONFIG_TYPE_BACKEND) {
        snprintf(ret, size, "%s", field);
    } else if (s->type == CONFIG_TYPE_BOOL) {
        snprintf(ret, size, "%s", load(s, config) != 0 ? "yes" : "no");
    } else if (s->type == CONFIG_TYPE_LEVEL) {
        snprintf(ret, size, "%s", log_level_name((enum log_level)load(s, config)));
    } else if (s->type == CONFIG_TYPE_POLICY) {
        snprintf(ret, size, "%s", config_policy_name((uint32_t)load(s, config)));
    } else {
        bound(s, load(s, config), ret, size);
    }
}
