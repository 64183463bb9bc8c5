// SPDX-License-Identifier: Apache-2.0
// config_file.c: the INI file. libinih splits lines; sections, pools and every check are ours.
//
//   [kvpoold]            settings of config_table.c
//   slots = 256          ; a comment needs a blank before it; a line may also begin with # or ;
//   [pool NAME]          layers, kv_heads, head_dim, page_size, dtype, num_pages or size,
//   layers = 32          max_seqs, max_seq_len, policy, kv_dtype, export, allow_uids, allow_gids,
//                        allow_identities
//   [namespace POOL/NAME]  config_tenants.h
//
// Invariants
//  1. libinih sees lines without comments and leading blanks, so that neither its continuation
//     lines nor its line limit (200 bytes with the terminator) change a meaning silently.
//  2. The first error wins and carries file, line and key.
// Thread: loop thread.
#include "daemon/config_table.h"
#include "daemon/config_tenants.h"

#include "kernels/backend.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pool_key {
    const char *name;
    size_t offset; // of a uint32_t in struct core_pool_config
    bool required;
};

static const struct pool_key pool_keys[] = {
    {"layers", offsetof(struct core_pool_config, layers), true},
    {"kv_heads", offsetof(struct core_pool_config, kv_heads), true},
    {"head_dim", offsetof(struct core_pool_config, head_dim), true},
    {"page_size", offsetof(struct core_pool_config, page_size), true},
    {"dtype", offsetof(struct core_pool_config, dtype), true},
    {"num_pages", offsetof(struct core_pool_config, num_pages), false},
    {"size", 0, false},
    {"max_seqs", offsetof(struct core_pool_config, max_seqs), false},
    {"max_seq_len", offsetof(struct core_pool_config, max_seq_len), false},
    {"policy", offsetof(struct core_pool_config, policy), false},
    {"kv_dtype", offsetof(struct core_pool_config, kv_dtype), false},
    {"export", offsetof(struct core_pool_config, export), false},
};
enum {
    KEY_DTYPE = 4,
    KEY_NUM_PAGES = 5,
    KEY_SIZE = 6,
    KEY_POLICY = 9,
    KEY_KV_DTYPE = 10,
    KEY_EXPORT = 11,
    NUM_POOL_KEYS = 12
};
_Static_assert(sizeof pool_keys / sizeof *pool_keys == NUM_POOL_KEYS, "indices above");

enum section { SECTION_NONE, SECTION_SETTINGS, SECTION_POOL, SECTION_NAMESPACE };

struct parser {
    const char *path;
    FILE *file;
    struct config *config;
    char *line; // getline's
    size_t line_size;
    unsigned number; // of the line
    enum section section;
    unsigned section_line;
    uint64_t seen;                            // bits of the [kvpoold] keys given
    uint32_t seen_pool;                       // and of this pool's or namespace's
    uint32_t policies;                        // bits of the pools that name a policy
    uint64_t pool_size;                       // `size` of this pool
    unsigned ns_lines[ACCESS_MAX_NAMESPACES]; // where each section begins
    struct err err;                           // the first error
};
_Static_assert(CONFIG_MAX_SETTINGS <= 64 && CONFIG_MAX_POOLS <= 32, "bits of a struct parser");

static const char *const dtypes[] = {[KVPOOL_FP16] = "fp16",
                                     [KVPOOL_BF16] = "bf16",
                                     [KVPOOL_FP32] = "fp32",
                                     [KVPOOL_FP8_E4M3] = "fp8_e4m3"};
_Static_assert(KVPOOL_FP16 == 1 && KVPOOL_FP8_E4M3 == 4, "dtypes[] starts at 1");

const char *config_dtype_name(uint32_t dtype) {
    return dtype >= KVPOOL_FP16 && dtype <= KVPOOL_FP8_E4M3 ? dtypes[dtype] : "?";
}

const char *config_export_name(uint32_t how) {
    return how == KVPOOL_EXPORT_FD ? "fd" : how == KVPOOL_EXPORT_IPC ? "ipc" : "?";
}

// The type of that name up to `last`, 0: none.
static uint32_t dtype_parse(const char *name, uint32_t last) {
    for (uint32_t d = KVPOOL_FP16; d <= last; d++) {
        if (strcmp(dtypes[d], name) == 0) {
            return d;
        }
    }
    return 0;
}

__attribute__((format(printf, 3, 4))) static void fail(struct parser *p, unsigned line,
                                                       const char *fmt, ...) {
    char text[ERR_TEXT_MAX];
    va_list ap;
    if (p->err.status != 0) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(&p->err, KVPOOL_E_INVAL, "%s:%u: %s", p->path, line, text);
}

// Turns `size` into num_pages, and both into one truth.
static void settle_pages(struct parser *p, struct core_pool_config *pool) {
    const struct kv_geometry g = {pool->layers,
                                  pool->kv_heads,
                                  pool->head_dim,
                                  pool->page_size,
                                  (kvpool_dtype)pool->dtype,
                                  (kvpool_dtype)pool->kv_dtype};
    uint64_t page, pages;
    if ((p->seen_pool & 1u << KEY_SIZE) == 0) {
        return;
    }
    // Geometry inside core's limits cannot overflow here; core checks it afterwards.
    if (pool->layers > 4096 || pool->kv_heads > 4096 || pool->head_dim > 4096 ||
        pool->page_size > 4096) {
        return;
    }
    page = (uint64_t)g.layers * kv_page_bytes(&g);
    if (page == 0) {
        return;
    }
    pages = p->pool_size / page;
    if (pages == 0 || pages > UINT32_MAX) {
        fail(p, p->section_line,
             "pool %s: size: %" PRIu64 " bytes make %" PRIu64 " pages of %" PRIu64 " bytes",
             pool->name, p->pool_size, pages, page);
    } else if ((p->seen_pool & 1u << KEY_NUM_PAGES) != 0 && pool->num_pages != pages) {
        fail(p, p->section_line,
             "pool %s: num_pages %" PRIu32 " contradicts size, which makes %" PRIu64 " pages",
             pool->name, pool->num_pages, pages);
    } else {
        pool->num_pages = (uint32_t)pages;
    }
}

// Checks the pool or namespace whose section ends here.
static void end_section(struct parser *p) {
    struct core_pool_config *pool;
    struct err err;
    if (p->section == SECTION_NAMESPACE && p->err.status == 0 &&
        config_ns_end(&p->config->access, &err) != 0) {
        fail(p, p->section_line, "%s", err.text);
    }
    if (p->section != SECTION_POOL || p->err.status != 0) {
        return;
    }
    pool = &p->config->pools[p->config->num_pools];
    for (size_t i = 0; i < NUM_POOL_KEYS; i++) {
        if (pool_keys[i].required && (p->seen_pool & 1u << i) == 0) {
            fail(p, p->section_line, "pool %s: %s is missing", pool->name, pool_keys[i].name);
            return;
        }
    }
    if ((p->seen_pool & (1u << KEY_NUM_PAGES | 1u << KEY_SIZE)) == 0) {
        fail(p, p->section_line, "pool %s: num_pages or size is missing", pool->name);
        return;
    }
    settle_pages(p, pool);
    if (p->err.status == 0 && core_pool_config_check(pool, &err) != 0) {
        fail(p, p->section_line, "pool %s: %s", pool->name, err.text);
    }
    if ((p->seen_pool & 1u << KEY_POLICY) != 0) {
        p->policies |= 1u << p->config->num_pools;
    }
    p->config->num_pools++;
}

static void begin_pool(struct parser *p, const char *name, size_t len) {
    struct config *c = p->config;
    struct err err;
    if (len == 0 || len >= CORE_NAME_SIZE) {
        fail(p, p->number, "a pool's name has 1 to %d bytes", CORE_NAME_SIZE - 1);
        return;
    }
    if (c->num_pools == CONFIG_MAX_POOLS) {
        fail(p, p->number, "more than %d pools", CONFIG_MAX_POOLS);
        return;
    }
    memset(&c->pools[c->num_pools], 0, sizeof *c->pools);
    memcpy(c->pools[c->num_pools].name, name, len);
    for (uint32_t i = 0; i < c->num_pools; i++) {
        if (strcmp(c->pools[i].name, c->pools[c->num_pools].name) == 0) {
            fail(p, p->number, "pool %s: there are two pools of this name", c->pools[i].name);
            return;
        }
    }
    if (config_pool_access(&c->access, c->pools[c->num_pools].name, &err) != 0) {
        fail(p, p->number, "%s", err.text);
        return;
    }
    p->section = SECTION_POOL;
    p->seen_pool = 0;
}

static void begin_namespace(struct parser *p, const char *name, size_t len) {
    struct access_rules *rules = &p->config->access;
    struct err err;
    if (config_ns_begin(rules, name, len, &err) != 0) {
        fail(p, p->number, "%s", err.text);
        return;
    }
    p->ns_lines[rules->num_namespaces - 1] = p->number;
    p->section = SECTION_NAMESPACE;
    p->seen_pool = 0;
}

// "[WORD NAME]": moves *name behind the word and the blanks.
static bool has_word(const char *word, const char **name, size_t *len) {
    const size_t n = strlen(word);
    if (*len <= n + 1 || memcmp(*name, word, n) != 0 || !isblank((unsigned char)(*name)[n])) {
        return false;
    }
    for (*name += n, *len -= n; *len > 0 && isblank((unsigned char)**name); (*len)--) {
        (*name)++;
    }
    return true;
}

// `line` is without blanks at its ends.
static void begin_section(struct parser *p, const char *line) {
    const size_t len = strlen(line);
    const char *name = line + 1;
    size_t name_len = len - 2;
    end_section(p);
    p->section = SECTION_NONE;
    p->section_line = p->number;
    if (len < 2 || line[len - 1] != ']') {
        fail(p, p->number, "section without ']'");
        return;
    }
    if (name_len == 7 && memcmp(name, "kvpoold", 7) == 0) {
        p->section = SECTION_SETTINGS;
    } else if (has_word("pool", &name, &name_len)) {
        begin_pool(p, name, name_len);
    } else if (has_word("namespace", &name, &name_len)) {
        begin_namespace(p, name, name_len);
    } else {
        fail(p, p->number,
             "unknown section [%.*s]; there are [kvpoold], [pool NAME] and [namespace POOL/NAME]",
             (int)(name_len < 40 ? name_len : 40), name);
    }
}

// Cuts a comment (';' at the start or after a blank, '#' at the start) and blanks at the ends.
static char *strip(char *line) {
    char *end;
    while (isspace((unsigned char)*line)) {
        line++;
    }
    if (*line == '#') {
        *line = '\0';
    }
    for (char *s = line; *s != '\0'; s++) {
        if (*s == ';' && (s == line || isspace((unsigned char)s[-1]))) {
            *s = '\0';
            break;
        }
    }
    end = line + strlen(line);
    while (end > line && isspace((unsigned char)end[-1])) {
        *--end = '\0';
    }
    return line;
}

// libinih's reader: the next line, clean.
static char *next_line(char *ret, int size, void *arg) {
    struct parser *p = arg;
    char *text;
    ssize_t n;
    if (p->err.status != 0) {
        return NULL;
    }
    n = getline(&p->line, &p->line_size, p->file);
    if (n < 0) {
        return NULL;
    }
    p->number++;
    if (strlen(p->line) != (size_t)n) {
        fail(p, p->number, "the file has a zero byte");
        return NULL;
    }
    text = p->line;
    if (p->number == 1 && strncmp(text, "\xEF\xBB\xBF", 3) == 0) {
        text += 3; // byte-order mark
    }
    text = strip(text);
    if (strlen(text) + 3 > (size_t)size) {
        fail(p, p->number, "line of %zu bytes, the limit is %d", strlen(text), size - 3);
        return NULL;
    }
    if (*text == '[') {
        begin_section(p, text);
        *text = '\0'; // libinih need not know
    }
    snprintf(ret, (size_t)size, "%s\n", text);
    return ret;
}

static void pool_value(struct parser *p, const char *key, const char *value) {
    struct core_pool_config *pool = &p->config->pools[p->config->num_pools];
    struct access_rules *rules = &p->config->access;
    uint32_t number = 0;
    size_t k = 0;
    struct err err;
    int rc;
    if (config_list_value("allow_", key, value, &rules->pools[rules->num_pools - 1].allow, &rc,
                          &err)) {
        if (rc != 0) {
            fail(p, p->number, "%s", err.text);
        }
        return;
    }
    while (k < NUM_POOL_KEYS && strcmp(pool_keys[k].name, key) != 0) {
        k++;
    }
    if (k == NUM_POOL_KEYS) {
        fail(p, p->number, "%.40s: unknown key of a pool", key);
        return;
    }
    if ((p->seen_pool & 1u << k) != 0) {
        fail(p, p->number, "%s: given twice", key);
        return;
    }
    p->seen_pool |= 1u << k;
    if (k == KEY_SIZE) {
        if (!config_bytes_parse(value, &p->pool_size)) {
            fail(p, p->number, "size: '%.40s' is not a size (e.g. 512M, 4G)", value);
        }
        return;
    }
    if (k == KEY_DTYPE) {
        number = dtype_parse(value, KVPOOL_FP32);
        if (number == 0) {
            fail(p, p->number, "dtype: '%.40s' is not one of fp16, bf16, fp32", value);
            return;
        }
    } else if (k == KEY_KV_DTYPE) {
        number = dtype_parse(value, KVPOOL_FP8_E4M3);
        if (number == 0) {
            fail(p, p->number, "kv_dtype: '%.40s' is neither fp8_e4m3 nor the dtype", value);
            return;
        }
    } else if (k == KEY_EXPORT) {
        number = strcmp(value, "fd") == 0    ? KVPOOL_EXPORT_FD
                 : strcmp(value, "ipc") == 0 ? KVPOOL_EXPORT_IPC
                                             : 0;
        if (number == 0) {
            fail(p, p->number, "export: '%.40s' is not one of fd, ipc", value);
            return;
        }
    } else if (k == KEY_POLICY) {
        if (!config_policy_parse(value, &number)) {
            fail(p, p->number, "policy: '%.40s' is not one of lru, s3fifo", value);
            return;
        }
    } else {
        char *end = NULL;
        unsigned long long wide = 0;
        errno = 0;
        if (isdigit((unsigned char)*value)) {
            wide = strtoull(value, &end, 10);
        }
        if (end == NULL || *end != '\0' || errno != 0 || wide == 0 || wide > UINT32_MAX) {
            fail(p, p->number, "%s: '%.40s' is not a number from 1 to %" PRIu32, key, value,
                 UINT32_MAX);
            return;
        }
        number = (uint32_t)wide;
    }
    memcpy((char *)pool + pool_keys[k].offset, &number, sizeof number);
}

static void setting_value(struct parser *p, const char *key, const char *value) {
    const int i = config_find(key);
    char where[CONFIG_PATH_MAX + 64];
    struct err err;
    if (i < 0) {
        fail(p, p->number, "%.40s: unknown setting", key);
        return;
    }
    if ((p->seen & UINT64_C(1) << i) != 0) {
        fail(p, p->number, "%s: given twice", key);
        return;
    }
    p->seen |= UINT64_C(1) << i;
    snprintf(where, sizeof where, "%s:%u: %s", p->path, p->number, key);
    if (config_value_parse(&config_settings[i], where, value, p->config, &err) != 0) {
        if (p->err.status == 0) {
            p->err = err;
        }
        return;
    }
    p->config->source[i] = CONFIG_FILE;
}

// libinih's handler; 0 is an error there.
static int on_value(void *arg, const char *section, const char *key, const char *value) {
    struct parser *p = arg;
    struct err err;
    (void)section;
    if (p->err.status != 0) {
        return 0;
    }
    if (p->section == SECTION_NONE) {
        fail(p, p->number, "%.40s: before any section", key);
    } else if (p->section == SECTION_SETTINGS) {
        setting_value(p, key, value);
    } else if (p->section == SECTION_POOL) {
        pool_value(p, key, value);
    } else if (config_ns_value(&p->config->access, key, value, &p->seen_pool, &err) != 0) {
        fail(p, p->number, "%s", err.text);
    }
    return p->err.status == 0;
}

// What only the whole file tells.
static void check_namespaces(struct parser *p) {
    struct err err;
    for (uint32_t i = 0; i < p->config->access.num_namespaces && p->err.status == 0; i++) {
        if (config_ns_check(p->config, i, &err) != 0) {
            fail(p, p->ns_lines[i], "%s", err.text);
        }
    }
}

int config_file_read(const char *path, struct config *config, uint32_t *ret_policies,
                     struct err *err) {
    struct parser p = {.path = path, .config = config};
    int rc;
    config->num_pools = 0;
    memset(&config->access, 0, sizeof config->access);
    p.file = fopen(path, "re");
    if (p.file == NULL) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot read %s: %m", path);
    }
    errno = 0;
    rc = ini_parse_stream(next_line, &p, on_value, &p);
    if (ferror(p.file)) {
        err_set(&p.err, KVPOOL_E_SYSTEM, "cannot read %s: %m", path);
    } else if (rc > 0) { // an inih error that is not ours is a line without '='
        fail(&p, (unsigned)rc, "expected [section] or key = value");
    } else if (rc < 0) {
        err_set(&p.err, KVPOOL_E_NOMEM, "cannot read %s: out of memory", path);
    }
    end_section(&p);
    check_namespaces(&p);
    free(p.line);
    fclose(p.file);
    if (p.err.status != 0) {
        return err_set(err, p.err.status, "%s", p.err.text);
    }
    *ret_policies = p.policies;
    return 0;
}
