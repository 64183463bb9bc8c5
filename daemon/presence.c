// SPDX-License-Identifier: Apache-2.0
// presence.c: see presence.h.
#include "daemon/presence.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD // Linux 6.5
#define SO_PEERPIDFD 77
#endif

struct presence {
    uv_poll_t poll;
    int pidfd;
    presence_ended_fn ended;
    void *arg;
};

int presence_pidfd(int socket, uint32_t pid, int *ret_fd, struct err *err) {
    int fd = -1;
    socklen_t size = sizeof fd;
    // The kernel's own answer cannot be another process.
    if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0 && fd >= 0) {
        *ret_fd = fd;
        return 0;
    }
    fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (fd < 0)
        return errno == ESRCH
                   ? err_set(err, KVPOOL_E_CONN, "process %u is gone", pid)
                   : err_set(err, KVPOOL_E_SYSTEM, "pidfd_open(%u): %s", pid, strerror(errno));
    // The pid may have been reused before pidfd_open: then the peer's end is closed by now.
    struct pollfd peer = {.fd = socket, .events = POLLRDHUP};
    if (poll(&peer, 1, 0) > 0 && (peer.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) {
        close(fd);
        return err_set(err, KVPOOL_E_CONN, "process %u is gone", pid);
    }
    *ret_fd = fd;
    return 0;
}

static void on_readable(uv_poll_t *poll_handle, int status, int events) {
    (void)status; // an error means that the process cannot be watched any more: the same
    (void)events;
    struct presence *p = poll_handle->data;
    uv_poll_stop(&p->poll);
    p->ended(p->arg);
}

static void on_closed(uv_handle_t *handle) {
    struct presence *p = handle->data;
    close(p->pidfd);
    free(p);
}

int presence_open(uv_loop_t *loop, int pidfd, presence_ended_fn ended, void *arg,
                  struct presence **ret, struct err *err) {
    struct presence *p = calloc(1, sizeof *p);
    if (p == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "presence: no memory");
    p->pidfd = pidfd;
    p->ended = ended;
    p->arg = arg;
    int rc = uv_poll_init(loop, &p->poll, pidfd);
    if (rc != 0) {
        free(p);
        return err_set(err, KVPOOL_E_SYSTEM, "watching a process: %s", uv_strerror(rc));
    }
    p->poll.data = p;
    uv_poll_start(&p->poll, UV_READABLE, on_readable);
    *ret = p;
    return 0;
}

void presence_close(struct presence *p) {
    if (p == NULL)
        return;
    uv_poll_stop(&p->poll);
    uv_close((uv_handle_t *)&p->poll, on_closed);
}
