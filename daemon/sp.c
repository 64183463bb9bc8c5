// SPDX-License-Identifier: Apache-2.0
// sp.c: see sp.h.
#include "daemon/sp.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void sp_handshake(enum sp_protocol protocol, uint8_t ret[SP_HANDSHAKE]) {
    const uint8_t bytes[SP_HANDSHAKE] = {0, 'S', 'P', 0, 0, (uint8_t)protocol, 0, 0};
    memcpy(ret, bytes, SP_HANDSHAKE);
}

static enum sp_answer answer_of(int error) {
    switch (error) {
    case EAGAIN:
        return SP_BUSY;
    case ENOMEM:
    case ENOBUFS:
    case EMFILE:
    case ENFILE:
        return SP_UNTRIED;
    case ECONNREFUSED:
    case ENOENT:
        return SP_GONE;
    default:
        return SP_REFUSED;
    }
}

enum sp_answer sp_connect(const struct sockaddr_un *addr, enum sp_protocol protocol,
                          const void *more, size_t len, int *ret_fd) {
    uint8_t handshake[SP_HANDSHAKE];
    struct iovec iov[2] = {{handshake, sizeof handshake}, {(void *)(uintptr_t)more, len}};
    const struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    enum sp_answer answer = SP_REFUSED;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return answer_of(errno);
    }
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) != 0) {
        answer = answer_of(errno);
        goto close_fd;
    }
    sp_handshake(protocol, handshake);
    if (sendmsg(fd, &msg, MSG_NOSIGNAL) != (ssize_t)(sizeof handshake + len)) {
        goto close_fd;
    }
    *ret_fd = fd;
    return SP_CONNECTED;

close_fd:
    close(fd);
    return answer;
}
