// SPDX-License-Identifier: Apache-2.0
// log.c: see log.h. A line is made on the caller's stack and leaves in one write under one lock.
//
// Invariants
//  1. Nothing waits for the sink: a pipe or socket that would block loses the line. A pipe that
//     polls writable takes PIPE_BUF bytes at once, and no line is longer than that.
//  2. `pending` counts the lines lost since the last line that got through; it is reported before
//     the next one.
//  3. After a short write the next line starts on a new line of its own.
// Threads: any.
#include "daemon/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 2048, PATH_BYTES = 256 };

static struct {
    pthread_mutex_t lock;
    int fd;                // STDERR_FILENO or a file of our own
    bool is_socket;        // fd takes send()
    bool journal;          // lines begin with <n>
    bool torn;             // the last write was short
    uint64_t pending;      // invariant 2
    char path[PATH_BYTES]; // "" = stderr
    atomic_int level;
    atomic_uint_least64_t dropped; // ever
} sink = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = STDERR_FILENO, .level = LOG_INFO};

static const struct {
    enum log_level level;
    const char *name;
} names[] = {
    {LOG_ERROR, "error"}, {LOG_WARN, "warn"},   {LOG_NOTICE, "notice"},
    {LOG_INFO, "info"},   {LOG_DEBUG, "debug"},
};

const char *log_level_name(enum log_level level) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (names[i].level == level) {
            return names[i].name;
        }
    }
    return "?";
}

bool log_level_parse(const char *name, enum log_level *ret) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, name) == 0) {
            *ret = names[i].level;
            return true;
        }
    }
    return false;
}

void log_level_set(enum log_level level) {
    atomic_store_explicit(&sink.level, (int)level, memory_order_relaxed);
}

bool log_enabled(enum log_level level) {
    return (int)level <= atomic_load_explicit(&sink.level, memory_order_relaxed);
}

uint64_t log_dropped(void) {
    return atomic_load_explicit(&sink.dropped, memory_order_relaxed);
}

// Lock held. Moves the sink to `fd`.
static void use(int fd, const char *path) {
    struct stat st;
    if (sink.fd != STDERR_FILENO) {
        close(sink.fd);
    }
    sink.fd = fd;
    sink.is_socket = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
    sink.journal = fd == STDERR_FILENO && getenv("JOURNAL_STREAM") != NULL;
    sink.torn = false;
    if (path != sink.path) {
        snprintf(sink.path, sizeof sink.path, "%s", path);
    }
}

// O_NONBLOCK: a FIFO without a reader is an error instead of a hang.
static int open_file(const char *path) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
    return fd < 0 ? -errno : fd;
}

int log_open(const char *path, enum log_level level) {
    int fd = STDERR_FILENO;
    if (path != NULL && path[0] != '\0') {
        if (strlen(path) >= PATH_BYTES) {
            return -ENAMETOOLONG;
        }
        fd = open_file(path);
        if (fd < 0) {
            return fd;
        }
    }
    log_level_set(level);
    pthread_mutex_lock(&sink.lock);
    use(fd, path != NULL ? path : "");
    pthread_mutex_unlock(&sink.lock);
    return 0;
}

int log_reopen(void) {
    int rc = 0;
    pthread_mutex_lock(&sink.lock);
    if (sink.path[0] != '\0') {
        int fd = open_file(sink.path);
        if (fd < 0) {
            rc = fd;
        } else {
            use(fd, sink.path);
        }
    }
    pthread_mutex_unlock(&sink.lock);
    return rc;
}

// Lock held. One write; true when the whole line left.
static bool put(const char *line, size_t len) {
    struct pollfd p = {.fd = sink.fd, .events = POLLOUT};
    ssize_t n;
    if (poll(&p, 1, 0) != 1 || (p.revents & POLLOUT) == 0) {
        return false;
    }
    n = sink.is_socket ? send(sink.fd, line, len, MSG_DONTWAIT | MSG_NOSIGNAL)
                       : write(sink.fd, line, len);
    if (n > 0 && (size_t)n < len) {
        sink.torn = true;
    }
    return n == (ssize_t)len;
}

// Where a line begins: "<6>" or "2026-01-31T12:00:00.123Z info   ", then "event ".
static size_t begin_line(char *line, size_t size, enum log_level level, const char *event) {
    struct timespec now;
    struct tm tm;
    char stamp[24];
    int n;
    if (sink.journal) {
        n = snprintf(line, size, "<%d>%s ", (int)level, event);
    } else {
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
        n = snprintf(line, size, "%s.%03dZ %-6s %s ", stamp, (int)(now.tv_nsec / 1000000),
                     log_level_name(level), event);
    }
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}

// Copies text with control characters as \xNN; what does not fit ends in "...". Room for the
// newline is kept. Returns the new length.
static size_t escape(char *line, size_t at, size_t size, const char *text) {
    static const char hex[] = "0123456789abcdef";
    const size_t end = size - 1 - 3;
    for (const unsigned char *s = (const unsigned char *)text; *s != '\0'; s++) {
        const bool control = *s < 0x20 || *s == 0x7f;
        if (at + (control ? 4 : 1) > end) {
            memset(line + at, '.', 3);
            return at + 3;
        }
        if (control) {
            line[at++] = '\\';
            line[at++] = 'x';
            line[at++] = hex[*s >> 4];
            line[at++] = hex[*s & 15];
        } else {
            line[at++] = (char)*s;
        }
    }
    return at;
}

// Lock held. Formats and writes one line.
static bool emit(enum log_level level, const char *event, const char *text) {
    char buf[1 + LINE_MAX_BYTES];
    char *line = buf + 1; // room for the newline that ends a torn line
    size_t len = begin_line(line, LINE_MAX_BYTES / 2, level, event);
    buf[0] = '\n';
    len = escape(line, len, LINE_MAX_BYTES, text);
    while (len > 0 && line[len - 1] == ' ') {
        len--;
    }
    line[len++] = '\n';
    if (!sink.torn) {
        return put(line, len);
    }
    if (!put(buf, len + 1)) {
        return false;
    }
    sink.torn = false;
    return true;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...) {
    char text[LINE_MAX_BYTES];
    const int saved_errno = errno;
    va_list ap;
    if (!log_enabled(level)) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);

    pthread_mutex_lock(&sink.lock);
    if (sink.pending > 0) {
        char count[48];
        snprintf(count, sizeof count, "count=%llu", (unsigned long long)sink.pending);
        if (emit(LOG_WARN, "log.dropped", count)) {
            sink.pending = 0;
        }
    }
    if (sink.pending > 0 || !emit(level, event, text)) {
        sink.pending++;
        atomic_fetch_add_explicit(&sink.dropped, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&sink.lock);
    errno = saved_errno;
}

bool log_limit_passes(struct log_limit *limit, uint64_t now_ns, uint64_t *ret_suppressed) {
    if (limit->since_ns != 0 && now_ns - limit->since_ns < LOG_LIMIT_NS) {
        limit->suppressed++;
        return false;
    }
    *ret_suppressed = limit->suppressed;
    *limit = (struct log_limit){.since_ns = now_ns};
    return true;
}
