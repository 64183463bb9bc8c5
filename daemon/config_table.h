// SPDX-License-Identifier: Apache-2.0
// config_table.h: the one list of settings, and their values as text. Internal to config.
//
// Invariants
//  1. A setting is a field of struct config: everything that walks the list (flags, environment,
//     file, --print-config, reload) finds it by its offset.
//  2. config_value_parse writes the field only when the text is a value inside the bounds;
//     config_value_format writes text that config_value_parse reads back to the same value.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_CONFIG_TABLE_H
#define KVPOOL_DAEMON_CONFIG_TABLE_H

#include "daemon/config.h"

#define CONFIG_DEFAULT_FILE "/etc/kvpool/kvpoold.conf" // read when it exists
#define CONFIG_TEXT_MAX 180 // bytes of a text value: it fits into one line of an INI file

enum config_type {
    CONFIG_TYPE_TEXT,
    CONFIG_TYPE_BACKEND, // auto, cpu, cuda
    CONFIG_TYPE_COUNT,
    CONFIG_TYPE_BOOL,  // yes, no; kept as 1, 0
    CONFIG_TYPE_BYTES, // with K, M, G, T
    CONFIG_TYPE_TIME,  // with ms, s, m; kept in milliseconds
    CONFIG_TYPE_MODE,  // octal
    CONFIG_TYPE_LEVEL,
    CONFIG_TYPE_POLICY, // lru, s3fifo
};

struct config_setting {
    const char *name; // in files; KVPOOLD_<NAME>; --<name> with dashes
    const char *arg;  // in --help
    const char *help;
    enum config_type type;
    bool reload;          // SIGHUP may change it
    size_t offset, size;  // of the field in struct config
    uint64_t min, max;    // numbers; text: bytes
    const char *fallback; // the default, NULL: config_defaults computes it
};

extern const struct config_setting config_settings[];
extern const size_t config_num_settings;

// Index of the setting of that name, or -1.
int config_find(const char *name);

// Reads text into the setting's field. Errors: INVAL; the text says what is wrong, `where` first.
int config_value_parse(const struct config_setting *s, const char *where, const char *text,
                       struct config *config, struct err *err);
void config_value_format(const struct config_setting *s, const struct config *config, char *ret,
                         size_t size);

// "64", "4G", "1536M". Returns false when it is no number, or over UINT64_MAX.
bool config_bytes_parse(const char *text, uint64_t *ret);
void config_bytes_format(uint64_t bytes, char *ret, size_t size);

// Reads an INI file over *config: settings, pools and namespaces (which replace the ones there).
// *ret_policies: bits of the pools that name a policy; the others get it once all sources are read.
// Errors: SYSTEM (unreadable), INVAL; the text names file, line and key.
int config_file_read(const char *path, struct config *config, uint32_t *ret_policies,
                     struct err *err);
const char *config_dtype_name(uint32_t dtype);
const char *config_export_name(uint32_t how);

#endif
