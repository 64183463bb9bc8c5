// SPDX-License-Identifier: Apache-2.0
// resume.c: see resume.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "resume.h"

#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

void allow_everybody(struct fixture *f) {
    f->config.socket_mode = 0777;
    assert_int_equal(chmod(f->config.dir, 0711), 0);
}

int fd_connect_as(struct fixture *f, uid_t uid, gid_t gid, gid_t other) {
    if (geteuid() != 0)
        skip();
    assert_int_equal(setgroups(1, &other), 0);
    assert_int_equal(setegid(gid), 0);
    assert_int_equal(seteuid(uid), 0);
    int fd = fd_connect(f);
    assert_int_equal(seteuid(0), 0);
    assert_int_equal(setegid(0), 0);
    assert_int_equal(setgroups(0, NULL), 0);
    return fd;
}

int fd_open(struct fixture *f, int fd, uint64_t session, const uint8_t token[PROTO_TOKEN_SIZE],
            const char *credential, struct proto_msg *ret) {
    struct proto_fd_open open = {
        .version_min = 1, .version_max = 1, .name = "test", .session = session};
    if (token != NULL)
        memcpy(open.token, token, sizeof open.token);
    snprintf(open.credential, sizeof open.credential, "%s", credential);
    fd_send(fd, PROTO_FD_OPEN, &open, sizeof open, -1);
    return fd_recv(f, fd, PROTO_FD_OPEN, ret, NULL);
}

int client_resume(struct fixture *f, struct client *c, struct proto_msg *ret) {
    c->fd = fd_connect(f);
    return fd_open(f, c->fd, c->session, c->token, "", ret);
}

void client_open_as(struct fixture *f, struct client *c, uint32_t pipe, uid_t uid, gid_t gid,
                    gid_t other, const char *credential) {
    struct proto_msg msg = {0};
    memset(c, 0, sizeof *c);
    c->fd = fd_connect_as(f, uid, gid, other);
    assert_int_equal(fd_open(f, c->fd, 0, NULL, credential, &msg), 0);
    c->pid = (uint32_t)getpid();
    c->pipe = pipe;
    c->session = msg.body.fd_hello_reply.session;
    c->epoch = msg.body.fd_hello_reply.epoch;
    memcpy(c->token, msg.body.fd_hello_reply.token, sizeof c->token);
    assert_int_equal(client_hello(f, c, NULL), 0);
}
