// SPDX-License-Identifier: Apache-2.0
// sock.c: see sock.h.
#include "client/lib/sock.h"

#include <errno.h>
#include <grp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

int64_t clock_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

int64_t clock_deadline(uint32_t ms) {
    return clock_now_ns() + (int64_t)ms * 1000000;
}

struct timespec clock_timespec(int64_t time_ns) {
    return (struct timespec){.tv_sec = time_ns / NS_PER_S, .tv_nsec = time_ns % NS_PER_S};
}

void clock_sleep_until(int64_t time_ns) {
    struct timespec ts = clock_timespec(time_ns);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

int sock_poll(int fd, short events, int64_t deadline_ns) {
    for (;;) {
        int64_t left = deadline_ns - clock_now_ns();
        struct timespec ts = clock_timespec(left > 0 ? left : 0);
        struct pollfd p = {.fd = fd, .events = events};
        int n = ppoll(&p, 1, &ts, NULL);
        if (n > 0)
            return p.revents;
        if (n == 0)
            return 0;
        if (errno != EINTR)
            return -errno;
    }
}

static void group_name(gid_t gid, char *buf, size_t size) {
    struct group group, *found = NULL;
    char scratch[4096];
    if (getgrgid_r(gid, &group, scratch, sizeof scratch, &found) == 0 && found != NULL)
        snprintf(buf, size, "%s", group.gr_name);
    else
        snprintf(buf, size, "%u", (unsigned)gid);
}

// Why connect() to <dir>/<file> failed, for people. The directory is left out where the text would
// not fit: what to do comes first.
static int explain(int errnum, const char *dir, const char *file, struct err *err) {
    struct stat st;
    char group[64];
    switch (errnum) {
    case ENOENT:
        if (stat(dir, &st) != 0 && errno == ENOENT)
            return err_set(err, KVPOOL_E_CONN, "no daemon: directory %s does not exist", dir);
        return err_set(err, KVPOOL_E_CONN, "no daemon: there is no %s in %s", file, dir);
    case ENOTDIR:
        return err_set(err, KVPOOL_E_CONN, "no daemon: %s is not a directory", dir);
    case EACCES:
    case EPERM:
        if (stat(dir, &st) != 0)
            return err_set(err, KVPOOL_E_CONN, "permission denied: user %u may not look into %s",
                           (unsigned)geteuid(), dir);
        group_name(st.st_gid, group, sizeof group);
        return err_set(err, KVPOOL_E_CONN, "permission denied: user %u is not in group '%s' of %s",
                       (unsigned)geteuid(), group, dir);
    case ECONNREFUSED:
        return err_set(err, KVPOOL_E_CONN,
                       "connection refused: no daemon listens on %s/%s (left by one that ended)",
                       dir, file);
    case EPROTOTYPE:
    case ENOTSOCK:
        return err_set(err, KVPOOL_E_CONN, "%s/%s is not a socket of kvpoold", dir, file);
    case EAGAIN: // SO_SNDTIMEO passed: the listener's backlog stayed full
    case EINPROGRESS:
        return err_set(err, KVPOOL_E_TIMEOUT, "the daemon at %s does not accept connections", dir);
    default:
        return err_set(err, KVPOOL_E_CONN, "connect to %s/%s: %s", dir, file,
                       strerrordesc_np(errnum));
    }
}

int sock_connect(const char *dir, const char *file, int type, int64_t deadline_ns, int *ret_fd,
                 struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int n = snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s", dir, file);
    if (n < 0 || (size_t)n >= sizeof addr.sun_path)
        return err_set(err, KVPOOL_E_INVAL,
                       "socket path of %d bytes, the system's limit is %d: use a shorter directory",
                       n, SOCK_PATH_MAX);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, KVPOOL_E_SYSTEM, "socket: %s", strerrordesc_np(errno));

    int rc;
    for (;;) {
        // The time-out makes a full backlog end at the deadline; 0 would mean "for ever".
        int64_t left_us = (deadline_ns - clock_now_ns()) / 1000;
        if (left_us < 1)
            left_us = 1;
        struct timeval tv = {.tv_sec = left_us / 1000000, .tv_usec = left_us % 1000000};
        if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) != 0) {
            rc = err_set(err, KVPOOL_E_SYSTEM, "setsockopt: %s", strerrordesc_np(errno));
            goto close_fd;
        }
        if (connect(fd, (const struct sockaddr *)&addr, sizeof addr) == 0)
            break;
        if (errno == EINTR)
            continue;
        rc = explain(errno, dir, file, err);
        goto close_fd;
    }
    *ret_fd = fd;
    return 0;

close_fd:
    close(fd);
    return rc;
}
