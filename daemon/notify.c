// SPDX-License-Identifier: Apache-2.0
// notify.c: see notify.h. "@name" in NOTIFY_SOCKET is the abstract namespace.
#include "daemon/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

bool notify_send(const char *fmt, ...) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    char state[512];
    size_t path_len;
    socklen_t addr_len;
    ssize_t sent;
    va_list ap;
    int fd, len;

    if (path == NULL || path[0] == '\0') {
        return true;
    }
    path_len = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || path_len >= sizeof addr.sun_path) {
        return false;
    }
    va_start(ap, fmt);
    len = vsnprintf(state, sizeof state, fmt, ap);
    va_end(ap);
    if (len < 0) {
        return false;
    }
    if ((size_t)len >= sizeof state) {
        len = (int)sizeof state - 1;
    }

    memcpy(addr.sun_path, path, path_len);
    addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_len);
    if (path[0] == '@') {
        addr.sun_path[0] = '\0';
    } else {
        addr_len++;
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    sent = sendto(fd, state, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&addr,
                  addr_len);
    close(fd);
    return sent == len;
}

// Decimal value of an environment variable; false when unset or not a number.
static bool env_u64(const char *name, uint64_t *ret) {
    const char *text = getenv(name);
    char *end;
    if (text == NULL || text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

uint64_t notify_watchdog_us(void) {
    uint64_t usec, pid;
    if (!env_u64("WATCHDOG_USEC", &usec)) {
        return 0;
    }
    if (getenv("WATCHDOG_PID") != NULL &&
        (!env_u64("WATCHDOG_PID", &pid) || pid != (uint64_t)getpid())) {
        return 0;
    }
    return usec;
}
