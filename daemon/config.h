// SPDX-License-Identifier: Apache-2.0
// config.h: everything an operator can set, from one place and with one precedence:
//     command-line flag  >  environment (KVPOOLD_<NAME>)  >  INI file  >  built-in default
// One table (config.c) lists every setting: name, type, bounds, default, whether SIGHUP may change
// it, help text. --help, --print-config, --check-config and the file parser are all made from it.
//
// Invariants
//  1. A config that config_load returned is complete and every value is inside its bounds.
//  2. An unknown key, an unreadable file, a value out of bounds or settings that contradict each
//  other
//     are errors that name file, line and key; nothing is guessed.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_CONFIG_H
#define KVPOOL_DAEMON_CONFIG_H

#include "daemon/access.h"
#include "daemon/core/core.h"
#include "daemon/log.h"

#define CONFIG_MAX_POOLS ACCESS_MAX_POOLS
#define CONFIG_PATH_MAX 256
#define CONFIG_ADDRESS_MAX 64
#define CONFIG_MAX_SETTINGS 64

enum config_source { CONFIG_DEFAULT, CONFIG_FILE, CONFIG_ENVIRONMENT, CONFIG_FLAG };

struct config {
    char dir[CONFIG_PATH_MAX];         // of the sockets and the lock file
    char backend[16];                  // auto, cpu, cuda
    int device;                        // cuda ordinal
    uint32_t threads;                  // cpu backend, 0 = one per available core
    uint32_t socket_mode;              // e.g. 0660
    uint32_t dir_mode;                 // 0750
    uint32_t slots;                    // NNG contexts: requests in the daemon at once (admission)
    uint32_t max_inflight;             // of one client
    uint64_t max_region_bytes;         // of one client, all its regions
    uint32_t max_regions;              // of one client
    uint64_t max_pool_bytes;           // of all pools, 0 = what the machine has available
    uint32_t drain_timeout_ms;         // SIGTERM: how long work in flight may take
    uint32_t probe_interval_ms;        // self-probe of the listener, 0 = off
    uint32_t leak_limit;               // leaked NNG pipes before the daemon restarts itself
    enum log_level log_level;          // [SIGHUP]
    char log_file[CONFIG_PATH_MAX];    // "" = stderr
    uint32_t session_grace_ms;         // [SIGHUP] of a session without its connection, 0 = none
    uint32_t policy;                   // enum core_policy, of pools that name none
    char credentials[CONFIG_PATH_MAX]; // [SIGHUP] file of identities and secrets, "" = none
    char http[CONFIG_ADDRESS_MAX];     // of /metrics and /healthz, "" = off
    uint32_t http_public;              // 0, 1: an address that is not loopback is allowed
    uint32_t health_deadline_ms;       // how long the loop or the device may stand still
    uint32_t events;                   // 0, 1: the event stream is on
    uint32_t event_ring;               // events kept for replay
    uint32_t event_tokens;             // 0, 1: with token ids
    struct core_limits limits;
    struct core_pool_config pools[CONFIG_MAX_POOLS]; // from [pool NAME] sections
    uint32_t num_pools;
    struct access_rules access;          // from [pool NAME] and [namespace POOL/NAME] sections
    bool print_config, check_config;     // flags only: what to do instead of running
    char file[CONFIG_PATH_MAX];          // the INI file in use, "" = none
    uint8_t source[CONFIG_MAX_SETTINGS]; // enum config_source of each setting, in the table's order
};

// Reads flags, environment and the file that they name. On an error *err has the one line to show.
// --help and --version print and exit(0) (argp).
int config_load(int argc, char **argv, struct config *ret, struct err *err);

// Reads the same sources again (SIGHUP). Applies to *live what may change at run time, and writes
// to `report` (one line per setting) what changed, and what differs but needs a restart.
int config_reload(struct config *live, int argc, char **argv, char *report, size_t report_size,
                  struct err *err);

// Prints every setting as an INI file that config_load reads back, each with the source that won.
void config_print(const struct config *config);

// "0.1.0": of this daemon.
const char *config_version(void);

#endif
