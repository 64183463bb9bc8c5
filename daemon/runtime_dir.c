// SPDX-License-Identifier: Apache-2.0
// runtime_dir.c: see runtime_dir.h.
#include "daemon/runtime_dir.h"

#include "proto/proto.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_NAME "kvpoold.lock"

struct runtime_dir {
    int dir_fd;
    int lock_fd; // holds the flock
    mode_t mode; // of the directory as found or made
};

// Opens the directory, making its last component when it is missing.
static int open_dir(const char *dir, uint32_t mode, int *ret_fd, struct err *err) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        if (mkdir(dir, 0700) != 0) {
            if (errno == ENOENT) {
                return err_set(err, KVPOOL_E_SYSTEM,
                               "socket directory %s: its parent directory does not exist", dir);
            }
            return err_set(err, KVPOOL_E_SYSTEM, "cannot create socket directory %s: %m", dir);
        }
        fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && fchmod(fd, (mode_t)mode) != 0) {
            const int rc =
                err_set(err, KVPOOL_E_SYSTEM, "cannot set the mode of directory %s: %m", dir);
            close(fd);
            return rc;
        }
    }
    if (fd < 0) {
        return err_set(err, errno == ENOTDIR ? KVPOOL_E_INVAL : KVPOOL_E_SYSTEM,
                       "cannot open socket directory %s: %m", dir);
    }
    *ret_fd = fd;
    return 0;
}

// The pid that a lock file names, 0 when it names none.
static long read_pid(int fd) {
    char text[24];
    char *end;
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    long pid;
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    pid = strtol(text, &end, 10);
    return end != text && pid > 0 ? pid : 0;
}

static int lock(int dir_fd, const char *dir, int *ret_fd, struct err *err) {
    char text[24];
    int fd = openat(dir_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0640);
    int rc, len;
    if (fd < 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot open %s/" LOCK_NAME ": %m", dir);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            rc = err_set(err, KVPOOL_E_BUSY,
                         "socket directory %s is held by a live kvpoold (pid %ld)", dir,
                         read_pid(fd));
        } else {
            rc = err_set(err, KVPOOL_E_SYSTEM, "cannot lock %s/" LOCK_NAME ": %m", dir);
        }
        goto close_fd;
    }
    // The pid is for people: without it (full disk) the lock holds all the same.
    len = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)len, 0) != len) {
        errno = 0;
    }
    *ret_fd = fd;
    return 0;

close_fd:
    close(fd);
    return rc;
}

static int remove_stale(int dir_fd, const char *dir, const char *name, struct err *err) {
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return errno == ENOENT
                   ? 0
                   : err_set(err, KVPOOL_E_SYSTEM, "cannot look at %s/%s: %m", dir, name);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return err_set(err, KVPOOL_E_INVAL, "%s/%s is in the way and is not a socket", dir, name);
    }
    if (unlinkat(dir_fd, name, 0) != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot remove stale socket %s/%s: %m", dir, name);
    }
    return 0;
}

int runtime_dir_open(const char *dir, uint32_t mode, struct runtime_dir **ret, struct err *err) {
    struct runtime_dir *d = calloc(1, sizeof *d);
    struct stat st;
    int rc;
    if (d == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    rc = open_dir(dir, mode, &d->dir_fd, err);
    if (rc != 0) {
        goto free_d;
    }
    if (fstat(d->dir_fd, &st) != 0) {
        rc = err_set(err, KVPOOL_E_SYSTEM, "cannot look at %s: %m", dir);
        goto close_dir;
    }
    d->mode = st.st_mode;
    rc = lock(d->dir_fd, dir, &d->lock_fd, err);
    if (rc != 0) {
        goto close_dir;
    }
    rc = remove_stale(d->dir_fd, dir, PROTO_CONTROL_SOCKET, err);
    if (rc == 0) {
        rc = remove_stale(d->dir_fd, dir, PROTO_FD_SOCKET, err);
    }
    if (rc != 0) {
        goto unlock;
    }
    *ret = d;
    return 0;

unlock:
    close(d->lock_fd);
close_dir:
    close(d->dir_fd);
free_d:
    free(d);
    return rc;
}

bool runtime_dir_is_open_to_all(const struct runtime_dir *d) {
    return (d->mode & (S_IWOTH | S_IXOTH)) == (S_IWOTH | S_IXOTH);
}

void runtime_dir_close(struct runtime_dir *d) {
    if (d == NULL) {
        return;
    }
    close(d->lock_fd);
    close(d->dir_fd);
    free(d);
}
