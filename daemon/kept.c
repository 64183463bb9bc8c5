// SPDX-License-Identifier: Apache-2.0
// kept.c: see kept.h.
#include "daemon/kept.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static bool is_bound(int fd, const char *path) {
    struct sockaddr_un addr = {.sun_family = AF_UNSPEC};
    socklen_t len = sizeof addr;
    return getsockname(fd, (struct sockaddr *)&addr, &len) == 0 && addr.sun_family == AF_UNIX &&
           strncmp(addr.sun_path, path, sizeof addr.sun_path) == 0;
}

// Counts the marked sockets that are bound to the path, or marks all of them.
static uint32_t walk(const char *path, bool mark) {
    const int marked = 1;
    uint32_t n = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL)
        return 0;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        int fd = (int)strtol(e->d_name, NULL, 10), value = 0;
        socklen_t len = sizeof value;
        if (e->d_name[0] == '.' || !is_bound(fd, path))
            continue;
        if (mark)
            setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &marked, sizeof marked);
        else if (getsockopt(fd, SOL_SOCKET, SO_PRIORITY, &value, &len) == 0 && value == marked)
            n++;
    }
    closedir(dir);
    return n;
}

void kept_mark(const char *path) {
    walk(path, true);
}

uint32_t kept_count(const char *path) {
    return walk(path, false);
}
