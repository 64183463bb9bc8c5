// SPDX-License-Identifier: Apache-2.0
// trace_pipe.c: see trace_pipe.h.
#include "daemon/trace_pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct trace_pipe {
    uv_poll_t poll;
    int fd;
    void (*gone)(void *arg, struct trace_pipe *p);
    void *arg;
    char *rest; // of a line that was begun; NULL: none
    size_t rest_len, rest_sent;
    uint64_t dropped; // lines since the last one that was written
    bool writable;    // polled for
};

static void on_event(uv_poll_t *handle, int status, int events);

static void on_closed(uv_handle_t *handle) {
    struct trace_pipe *p = handle->data;
    free(p->rest);
    free(p);
}

void trace_pipe_close(struct trace_pipe *p) {
    uv_close((uv_handle_t *)&p->poll, on_closed); // stops polling
    close(p->fd);
    p->fd = -1;
}

static void end(struct trace_pipe *p) {
    p->gone(p->arg, p);
    trace_pipe_close(p);
}

// Polls for room as long as there is something to say, always for the reader's end.
static void watch(struct trace_pipe *p) {
    bool writable = p->rest != NULL || p->dropped > 0;
    if (writable == p->writable)
        return;
    p->writable = writable;
    uv_poll_start(&p->poll, UV_DISCONNECT | (writable ? UV_WRITABLE : 0), on_event);
}

// Bytes written (0: no room), or -1: the reader is gone.
static ssize_t put(struct trace_pipe *p, const char *bytes, size_t len) {
    ssize_t n;
    do
        n = write(p->fd, bytes, len);
    while (n < 0 && errno == EINTR);
    return n < 0 && errno == EAGAIN ? 0 : n;
}

// Writes what is left of a begun line, then how many were dropped. False: no room for it, or gone
// (then p is closed).
static bool catch_up(struct trace_pipe *p) {
    ssize_t n = 0;
    if (p->rest != NULL) {
        n = put(p, p->rest + p->rest_sent, p->rest_len - p->rest_sent);
        p->rest_sent += n > 0 ? (size_t)n : 0;
        if (n >= 0 && p->rest_sent < p->rest_len)
            return false;
        free(p->rest);
        p->rest = NULL;
    }
    if (n >= 0 && p->dropped > 0) { // at most PIPE_BUF bytes: whole or not at all
        char line[48];
        int len = snprintf(line, sizeof line, "{\"dropped\":%" PRIu64 "}\n", p->dropped);
        n = put(p, line, (size_t)len);
        if (n == 0)
            return false;
        p->dropped = 0;
    }
    if (n < 0)
        end(p);
    return n >= 0;
}

static void on_event(uv_poll_t *handle, int status, int events) {
    struct trace_pipe *p = handle->data;
    if (status < 0 || (events & UV_DISCONNECT) != 0)
        end(p);
    else if (catch_up(p) || p->fd >= 0) // otherwise p is closed
        watch(p);
}

void trace_pipe_line(struct trace_pipe *p, const char *bytes, size_t len) {
    if ((p->rest != NULL || p->dropped > 0) && !catch_up(p)) {
        if (p->fd >= 0)
            trace_pipe_drop(p);
        return;
    }
    ssize_t n = put(p, bytes, len);
    if (n < 0) {
        end(p);
    } else if (n == 0) {
        trace_pipe_drop(p);
    } else if ((size_t)n < len) {
        p->rest_len = len - (size_t)n;
        p->rest_sent = 0;
        p->rest = malloc(p->rest_len);
        if (p->rest == NULL) {
            end(p); // rather than a torn line
            return;
        }
        memcpy(p->rest, bytes + n, p->rest_len);
    }
    if (p->fd >= 0)
        watch(p);
}

void trace_pipe_drop(struct trace_pipe *p) {
    p->dropped++;
    watch(p);
}

int trace_pipe_open(uv_loop_t *loop, void (*gone)(void *arg, struct trace_pipe *p), void *arg,
                    struct trace_pipe **ret, int *ret_fd, struct err *err) {
    int fds[2];
    struct trace_pipe *p = calloc(1, sizeof *p);
    if (p == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "trace: no memory");
    if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0) {
        free(p);
        return err_set(err, KVPOOL_E_SYSTEM, "trace: pipe: %s", strerror(errno));
    }
    int rc = uv_poll_init(loop, &p->poll, fds[1]);
    if (rc != 0) {
        close(fds[0]);
        close(fds[1]);
        free(p);
        return err_set(err, KVPOOL_E_SYSTEM, "trace: uv_poll_init: %s", uv_strerror(rc));
    }
    (void)fcntl(fds[1], F_SETPIPE_SZ, TRACE_PIPE_BYTES); // a smaller one drops more
    p->poll.data = p;
    p->fd = fds[1];
    p->gone = gone;
    p->arg = arg;
    uv_poll_start(&p->poll, UV_DISCONNECT, on_event);
    *ret = p;
    *ret_fd = fds[0];
    return 0;
}
