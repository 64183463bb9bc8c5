// SPDX-License-Identifier: Apache-2.0
// log.h: structured single-line logs on stderr (or a file), for people and journald.
//
//   under systemd (JOURNAL_STREAM set):  <6>session.open pid=4711 uid=1000 name="worker 1"
//   otherwise:  2026-01-31T12:00:00.123Z info  session.open pid=4711 uid=1000 name="worker 1"
//
// Invariants
//  1. One event is one write of one line; control characters inside values are escaped as \xNN.
//  2. A failing or full log file never fails, blocks or ends the daemon: the line is dropped,
//  counted,
//     and the count is logged when writing works again.
// Threads: any.
#ifndef KVPOOL_DAEMON_LOG_H
#define KVPOOL_DAEMON_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR = 3, LOG_WARN = 4, LOG_NOTICE = 5, LOG_INFO = 6, LOG_DEBUG = 7 };

// path NULL: stderr. Returns 0 or a negative errno (the file cannot be opened; logging stays as it
// was).
int log_open(const char *path, enum log_level level);
int log_reopen(void);
void log_level_set(enum log_level level);
bool log_enabled(enum log_level level);
bool log_level_parse(const char *name, enum log_level *ret);
const char *log_level_name(enum log_level level);
uint64_t log_dropped(void);

// `event` is a dotted name, fmt makes "key=value" pairs; values with spaces are in double quotes.
__attribute__((format(printf, 3, 4))) void log_event(enum log_level level, const char *event,
                                                     const char *fmt, ...);

// An event that somebody else can make happen at will: one line in LOG_LIMIT_NS, which has the number of
// those before it that had none.
#define LOG_LIMIT_NS 60000000000ull
struct log_limit { // zero at first; its owner's thread
    uint64_t since_ns, suppressed;
};
// True: this one is a line. `now_ns` > 0; *ret_suppressed is written only then.
bool log_limit_passes(struct log_limit *limit, uint64_t now_ns, uint64_t *ret_suppressed);

#define log_error(event, ...) log_event(LOG_ERROR, event, __VA_ARGS__)
#define log_warn(event, ...) log_event(LOG_WARN, event, __VA_ARGS__)
#define log_notice(event, ...) log_event(LOG_NOTICE, event, __VA_ARGS__)
#define log_info(event, ...) log_event(LOG_INFO, event, __VA_ARGS__)
#define log_debug(event, ...) log_event(LOG_DEBUG, event, __VA_ARGS__)

#endif
