// SPDX-License-Identifier: Apache-2.0
// test_hostile.c: garbage, over-size and slow peers on both sockets; a well-behaved client beside
// them is served right all the time, or again within the self-probe's interval where NNG drops its
// listener.
#include "tests/system/harness.h"
#include "tests/system/load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/proto.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int setup(void **state) {
    (void)state;
    daemon_prepare(&kvd);
    const char *const extra[] = {"--probe-interval", "200ms", NULL};
    daemon_start(&kvd, extra);
    return 0;
}

static int raw_connect(const char *socket_name, int type) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%.60s/%s", kvd.dir, socket_name);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    check(fd >= 0);
    uint64_t end = now_ns() + 10000000000u;
    while (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) { // the listener may be coming back
        check(now_ns() < end);
        sleep_ms(10);
    }
    return fd;
}

// Whether the peer closes within the time.
static bool closes(int fd, int timeout_ms) {
    uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000u;
    char buf[4096];
    while (now_ns() < end) {
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 50) > 0) {
            ssize_t n = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN)) {
                return true;
            }
        }
    }
    return false;
}

// The daemon serves a new client within the time: the whole road once.
static void expect_served(unsigned within_ms) {
    uint64_t end = now_ns() + (uint64_t)within_ms * 1000000u;
    for (;;) {
        kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
        args.dir = kvd.dir;
        args.timeout_ms = 2000;
        kvpool_client *client;
        if (kvpool_connect(&args, &client) == KVPOOL_OK) {
            struct load *load = load_open(client, "hostile", 32, 3);
            int status = load == NULL ? KVPOOL_E_CONN : KVPOOL_OK;
            for (unsigned i = 0; status == KVPOOL_OK && i < 10; i++) {
                status = load_round(load);
            }
            if (load != NULL) {
                load_close(load);
            }
            kvpool_close(client);
            if (status == KVPOOL_OK) {
                return;
            }
        }
        assert_true(now_ns() < end);
        sleep_ms(20);
    }
}

static void garbage_on_the_control_socket_harms_nobody(void **state) {
    (void)state;
    srand(random_seed());
    for (unsigned i = 0; i < 30; i++) {
        int fd = raw_connect(PROTO_CONTROL_SOCKET, SOCK_STREAM);
        unsigned char junk[512];
        for (size_t j = 0; j < sizeof junk; j++) {
            junk[j] = (unsigned char)rand();
        }
        (void)!send(fd, junk, (size_t)rand() % sizeof junk, MSG_NOSIGNAL);
        close(fd);
    }
    expect_served(8000);
}

static void connects_that_close_at_once_harm_nobody(void **state) {
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        close(raw_connect(PROTO_CONTROL_SOCKET, SOCK_STREAM));
        close(raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET));
    }
    expect_served(8000);
}

// Speaks NNG's framing (SP over a stream: 8 bytes of greeting; 1 + 8 bytes before each message).
static int sp_connect(void) {
    int fd = raw_connect(PROTO_CONTROL_SOCKET, SOCK_STREAM);
    const unsigned char greeting[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0}; // REQ
    assert_int_equal(send(fd, greeting, 8, MSG_NOSIGNAL), 8);
    return fd;
}

static void sp_send(int fd, const void *body, size_t len, uint64_t claimed) {
    unsigned char frame[9 + 4] = {1};
    for (int i = 0; i < 8; i++) {
        frame[1 + i] = (unsigned char)((claimed + 4) >> (56 - 8 * i));
    }
    memcpy(frame + 9, "\x80\x00\x00\x01", 4); // request id
    assert_int_equal(send(fd, frame, sizeof frame, MSG_NOSIGNAL), sizeof frame);
    (void)!send(fd, body, len, MSG_NOSIGNAL);
}

// One reply: the protocol status it carries.
static int sp_status(int fd) {
    unsigned char buf[8 + 9 + 4 + PROTO_MAX_MESSAGE];
    size_t n = 0;
    uint64_t end = now_ns() + 5000000000u;
    while (n < 8 + 9 + 4 + sizeof(struct proto_header)) {
        struct pollfd p = {fd, POLLIN, 0};
        assert_true(now_ns() < end);
        if (poll(&p, 1, 100) > 0) {
            ssize_t r = recv(fd, buf + n, sizeof buf - n, 0);
            assert_true(r > 0);
            n += (size_t)r;
        }
    }
    struct proto_header header;
    memcpy(&header, buf + 8 + 9 + 4, sizeof header);
    return header.status;
}

static int answer_to(const void *message, size_t len) {
    int fd = sp_connect();
    sp_send(fd, message, len, len);
    int status = sp_status(fd);
    close(fd);
    return status;
}

static void malformed_messages_get_typed_errors(void **state) {
    (void)state;
    unsigned char buf[256] = {0};
    struct proto_header header = {.magic = PROTO_MAGIC, .version = 1, .op = PROTO_PING};
    const struct proto_ping ping = {42};
    size_t len = proto_write(buf, sizeof buf, &header, &ping, sizeof ping, NULL, 0);
    assert_int_equal(answer_to(buf, len), KVPOOL_OK);
    assert_int_equal(answer_to(buf, len - 1), KVPOOL_E_PROTO); // truncated
    assert_int_equal(answer_to(buf, len + 1), KVPOOL_E_PROTO); // over-long
    assert_int_equal(answer_to(buf, 0), KVPOOL_E_PROTO);       // nothing
    assert_int_equal(answer_to("GET / HTTP/1.1\r\n\r\n", 18), KVPOOL_E_PROTO);
    header.op = 999; // unknown operation
    len = proto_write(buf, sizeof buf, &header, NULL, 0, NULL, 0);
    assert_int_equal(answer_to(buf, len), KVPOOL_E_UNSUPPORTED);
    header.op = PROTO_PING;
    header.version = 77; // wrong protocol version
    len = proto_write(buf, sizeof buf, &header, &ping, sizeof ping, NULL, 0);
    assert_int_equal(answer_to(buf, len), KVPOOL_E_VERSION);
    header.version = 1;
    header.flags = 0x80; // unknown flags
    len = proto_write(buf, sizeof buf, &header, &ping, sizeof ping, NULL, 0);
    assert_int_equal(answer_to(buf, len), KVPOOL_E_PROTO);
    header.flags = 0;
    header.op = PROTO_STEP_BEGIN; // a count whose product overflows
    struct proto_step_begin begin = {.pool = 1, .step = 1, .count = 0x10000001u};
    struct proto_batch_item item = {.seq = 1, .tokens = 1};
    len = proto_write(buf, sizeof buf, &header, &begin, sizeof begin, &item, sizeof item);
    int status = answer_to(buf, len);
    assert_true(status == KVPOOL_E_TOOBIG || status == KVPOOL_E_PROTO);
    header.op = PROTO_SEQ_CREATE; // well-formed, but the connection has no session
    const struct proto_seq_create create = {.pool = 1, .n = 1};
    len = proto_write(buf, sizeof buf, &header, &create, sizeof create, NULL, 0);
    assert_int_equal(answer_to(buf, len), KVPOOL_E_STATE);
    header.op = PROTO_HELLO; // a token that is not the session's
    const struct proto_hello hello = {1, 1, 0, 1, {0}};
    len = proto_write(buf, sizeof buf, &header, &hello, sizeof hello, NULL, 0);
    status = answer_to(buf, len);
    assert_true(status == KVPOOL_E_STALE || status == KVPOOL_E_PERM);
    expect_served(8000);
}

static void an_over_size_message_drops_its_connection_only(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    int fd = sp_connect();
    unsigned char buf[64] = {0};
    sp_send(fd, buf, sizeof buf, 1u << 30); // claims a gigabyte
    assert_true(closes(fd, 5000));
    close(fd);
    fd = sp_connect();
    unsigned char *big = calloc(1, PROTO_MAX_REQUEST + 1);
    assert_non_null(big);
    sp_send(fd, big, PROTO_MAX_REQUEST + 1, PROTO_MAX_REQUEST + 1);
    assert_true(closes(fd, 5000));
    close(fd);
    free(big);
    expect_ok(client, kvpool_ping(client, NULL));
    kvpool_close(client);
    expect_served(8000);
}

static void a_long_message_is_taken_with_tokens_only(void **state) {
    (void)state;
    unsigned char *big = calloc(1, PROTO_MAX_REQUEST);
    assert_non_null(big);
    struct proto_header header = {.magic = PROTO_MAGIC, .version = 1, .op = PROTO_PING};
    const size_t sizes[] = {PROTO_MAX_MESSAGE + 1, PROTO_MAX_REQUEST};
    for (unsigned i = 0; i < 2; i++) {
        header.len = (uint32_t)(sizes[i] - sizeof header);
        memcpy(big, &header, sizeof header);
        assert_int_equal(answer_to(big, sizes[i]), KVPOOL_E_TOOBIG);
    }
    header.op = PROTO_SEQ_OPEN; // as many tokens as there may be, but no session
    const struct proto_seq_open open = {.pool = 1, .num_tokens = PROTO_MAX_TOKENS};
    const size_t len = sizeof header + sizeof open + 4 * (size_t)PROTO_MAX_TOKENS;
    header.len = (uint32_t)(len - sizeof header);
    memcpy(big, &header, sizeof header);
    memcpy(big + sizeof header, &open, sizeof open);
    int status = answer_to(big, len); // its form is accepted
    assert_true(status == KVPOOL_E_STATE || status == KVPOOL_E_UNSUPPORTED);
    memcpy(big + sizeof header, &(struct proto_seq_open){.pool = 1, .num_tokens = 1}, sizeof open);
    assert_int_equal(answer_to(big, len), KVPOOL_E_PROTO);
    free(big);
    expect_served(8000);
}

static void a_peer_that_sends_half_a_message_and_waits_blocks_nobody(void **state) {
    (void)state;
    int fds[20];
    for (unsigned i = 0; i < 20; i++) {
        fds[i] = sp_connect();
        sp_send(fds[i], "KV", 2, 100);
    }
    expect_served(8000);
    for (unsigned i = 0; i < 20; i++) {
        close(fds[i]);
    }
    expect_served(8000);
}

static void a_peer_that_never_reads_its_replies_blocks_nobody(void **state) {
    (void)state;
    int fd = sp_connect();
    unsigned char buf[64];
    const struct proto_header header = {.magic = PROTO_MAGIC, .version = 1, .op = PROTO_PING};
    const struct proto_ping ping = {42};
    size_t len = proto_write(buf, sizeof buf, &header, &ping, sizeof ping, NULL, 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (unsigned i = 0; i < 20000; i++) { // until the kernel's buffers are full
        unsigned char frame[9 + 4] = {1, 0, 0, 0, 0, 0, 0, 0, (unsigned char)(len + 4)};
        memcpy(frame + 9, "\x80\x00\x00\x01", 4);
        struct iovec parts[2] = {{frame, sizeof frame}, {buf, len}};
        const struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
        if (sendmsg(fd, &msg, MSG_NOSIGNAL) != (ssize_t)(sizeof frame + len)) {
            break;
        }
    }
    expect_served(8000);
    close(fd);
}

// The status of the next packet from the fd socket.
static int fd_status(int fd) {
    unsigned char buf[1024];
    struct pollfd p = {fd, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 5000), 1);
    assert_true(recv(fd, buf, sizeof buf, 0) >= (ssize_t)sizeof(struct proto_header));
    struct proto_header header;
    memcpy(&header, buf, sizeof header);
    return header.status;
}

static void the_fd_socket_refuses_garbage_and_foreign_descriptors(void **state) {
    (void)state;
    int fd = raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET);
    assert_int_equal(send(fd, "garbage", 7, MSG_NOSIGNAL), 7);
    assert_int_equal(fd_status(fd), KVPOOL_E_PROTO);
    close(fd);
    fd = raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET); // over-size packet
    char *big = calloc(1, PROTO_MAX_MESSAGE + 100);
    assert_non_null(big);
    assert_true(send(fd, big, PROTO_MAX_MESSAGE + 100, MSG_NOSIGNAL) > 0);
    assert_int_equal(fd_status(fd), KVPOOL_E_TOOBIG);
    free(big);
    close(fd);
    fd = raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET); // a descriptor nobody asked for
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {(void *)(uintptr_t) "x", 1};
    struct msghdr msg = {.msg_iov = &part,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), 1);
    assert_int_equal(fd_status(fd), KVPOOL_E_PROTO);
    close(fd);
    expect_served(8000);
}

static void silent_peers_of_the_fd_socket_are_closed(void **state) {
    (void)state;
    int fds[30];
    for (unsigned i = 0; i < 30; i++) {
        fds[i] = raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET);
    }
    expect_served(8000);
    for (unsigned i = 0; i < 30; i++) {
        assert_true(closes(fds[i], 15000));
        close(fds[i]);
    }
}

static void no_descriptor_is_lost_by_hostile_peers(void **state) {
    (void)state;
    char path[64], buf[8192];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)kvd.pid);
    const char *const argv[] = {"/bin/ls", path, NULL};
    expect_served(8000);
    sleep_ms(500);
    program_run(buf, sizeof buf, 5000, argv);
    unsigned before = 0, after = 0;
    for (const char *p = buf; *p != 0; p++) {
        before += *p == '\n';
    }
    for (unsigned i = 0; i < 50; i++) {
        int fd = raw_connect(PROTO_FD_SOCKET, SOCK_SEQPACKET);
        (void)!send(fd, "garbage", 7, MSG_NOSIGNAL);
        close(fd);
    }
    expect_served(8000);
    sleep_ms(500);
    program_run(buf, sizeof buf, 5000, argv);
    for (const char *p = buf; *p != 0; p++) {
        after += *p == '\n';
    }
    assert_true(after <= before + 2); // NNG's own connections come and go
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_on_the_control_socket_harms_nobody),
        cmocka_unit_test(connects_that_close_at_once_harm_nobody),
        cmocka_unit_test(malformed_messages_get_typed_errors),
        cmocka_unit_test(an_over_size_message_drops_its_connection_only),
        cmocka_unit_test(a_long_message_is_taken_with_tokens_only),
        cmocka_unit_test(a_peer_that_sends_half_a_message_and_waits_blocks_nobody),
        cmocka_unit_test(a_peer_that_never_reads_its_replies_blocks_nobody),
        cmocka_unit_test(the_fd_socket_refuses_garbage_and_foreign_descriptors),
        cmocka_unit_test(silent_peers_of_the_fd_socket_are_closed),
        cmocka_unit_test(no_descriptor_is_lost_by_hostile_peers),
    };
    return cmocka_run_group_tests_name("hostile", tests, setup, kvd_teardown);
}
