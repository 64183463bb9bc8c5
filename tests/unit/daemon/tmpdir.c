// SPDX-License-Identifier: Apache-2.0
// tmpdir.c: see tmpdir.h.
#include "tests/unit/daemon/tmpdir.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool tmpdir_make(struct tmpdir *ret) {
    const char *base = getenv("TMPDIR");
    int n = snprintf(ret->path, sizeof ret->path, "%s/kvpool-XXXXXX", base != NULL ? base : "/tmp");
    if (n < 0 || (size_t)n >= sizeof ret->path) {
        snprintf(ret->path, sizeof ret->path, "/tmp/kvpool-XXXXXX");
    }
    return mkdtemp(ret->path) != NULL;
}

void tmpdir_remove(const struct tmpdir *dir) {
    DIR *d = opendir(dir->path);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            unlinkat(dirfd(d), e->d_name, 0);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    rmdir(dir->path);
}

void tmpdir_file(const struct tmpdir *dir, const char *name, char *ret, size_t size) {
    snprintf(ret, size, "%s/%s", dir->path, name);
}

bool tmpdir_write(const struct tmpdir *dir, const char *name, const char *text, char *ret_path,
                  size_t size) {
    FILE *f;
    bool ok;
    tmpdir_file(dir, name, ret_path, size);
    f = fopen(ret_path, "we");
    if (f == NULL) {
        return false;
    }
    ok = fputs(text, f) >= 0;
    return fclose(f) == 0 && ok;
}

const char *tmpdir_read(const char *path, char *ret, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, ret, size - 1) : 0;
    ret[n > 0 ? n : 0] = '\0';
    if (fd >= 0) {
        close(fd);
    }
    return ret;
}

unsigned tmpdir_count(const char *path, const char *what) {
    static char text[65536];
    unsigned n = 0;
    for (const char *at = tmpdir_read(path, text, sizeof text); (at = strstr(at, what)) != NULL;
         at++) {
        n++;
    }
    return n;
}
