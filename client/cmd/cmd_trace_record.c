// SPDX-License-Identifier: Apache-2.0
// cmd_trace_record.c: `kvpool trace record FILE`: asks the daemon for its trace over the fd socket and
// writes what comes through the pipe.
//
// Invariants
//  1. The file has whole lines only, whenever this ends.
// Thread: main.
#include "client/cmd/format.h"
#include "client/cmd/json.h"
#include "client/cmd/trace_cmd.h"
#include "proto/proto.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PACKET_MAX 1024u // requests and replies of this socket are shorter
#define LINE_MAX_BYTES (16u << 20)
#define READ_BYTES 65536u
#define LAST_READS 32u // more than a pipe holds

struct record_line {
    struct cmd_globals *globals;
    const char *path;
    bool tokens;
    uint32_t seconds_ms; // 0: until told to end
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct record_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 't':
        line->tokens = true;
        return 0;
    case 's':
        if (!parse_duration_ms(arg, &line->seconds_ms)) {
            argp_error(state, "--seconds: '%s' is not a time of 1ms to 24h, e.g. 60 or 500ms", arg);
        }
        return 0;
    default:
        return trace_file_argument(key, arg, state, &line->path);
    }
}

// --- the fd socket ----------------------------------------------------------------------------

static int connect_fd_socket(const char *dir, uint32_t timeout_ms, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    uint32_t ms = timeout_ms == 0 ? 10000 : timeout_ms;
    struct timeval limit = {ms / 1000, (suseconds_t)(ms % 1000) * 1000};
    int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", dir, PROTO_FD_SOCKET);
    if (n < 0 || (size_t)n >= sizeof(addr.sun_path)) {
        return err_set(err, KVPOOL_E_INVAL, "the path is too long for a socket");
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "socket: %s", strerror(errno));
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
        err_set(err, KVPOOL_E_CONN, "%s: %s", PROTO_FD_SOCKET, strerror(errno));
        close(fd);
        return KVPOOL_E_CONN;
    }
    return fd;
}

// One request and its reply; *ret_fd (-1: none) is a descriptor that came with it.
static int fd_call(int fd, uint16_t op, uint64_t seq, uint64_t epoch, const void *body, size_t len,
                   struct proto_msg *ret, int *ret_fd, struct err *err) {
    uint8_t packet[PACKET_MAX];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct proto_header header = {
        .version = PROTO_VERSION_MIN, .op = op, .seq = seq, .epoch = epoch};
    size_t n = proto_write(packet, sizeof(packet), &header, body, len, NULL, 0);
    struct iovec iov = {.iov_base = packet, .iov_len = sizeof(packet)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    *ret_fd = -1;
    if (send(fd, packet, n, MSG_NOSIGNAL) != (ssize_t)n) {
        return err_set(err, KVPOOL_E_CONN, "the daemon closed the connection");
    }
    ssize_t got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return err_set(err, KVPOOL_E_TIMEOUT, "no reply in time");
    }
    if (got <= 0) {
        return err_set(err, KVPOOL_E_CONN, "the daemon closed the connection");
    }
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        memcpy(ret_fd, CMSG_DATA(c), sizeof(*ret_fd));
    }
    int status = proto_parse_reply(op, packet, (size_t)got, ret, err);
    if (status == 0 && ret->header.status != 0) {
        status = err_set(err, ret->header.status, "%s", ret->body.error.text);
    }
    if (status != 0 && *ret_fd >= 0) {
        close(*ret_fd);
        *ret_fd = -1;
    }
    return status;
}

// A session, and in it a trace: *ret_pipe is the end to read from.
static int start_trace(int fd, bool tokens, int *ret_pipe, struct err *err) {
    struct proto_fd_hello hello = {.version_min = PROTO_VERSION_MIN,
                                   .version_max = PROTO_VERSION_MAX,
                                   .features = PROTO_FEATURES,
                                   .name = "kvpool-trace"};
    struct proto_trace trace = {.flags = tokens ? PROTO_TRACE_TOKENS : 0};
    struct proto_msg msg = {0};
    int none = -1;
    int status = fd_call(fd, PROTO_FD_HELLO, 1, 0, &hello, sizeof(hello), &msg, &none, err);
    if (status != 0) {
        return status;
    }
    if (none >= 0) {
        close(none);
    }
    if ((msg.body.fd_hello_reply.features & PROTO_FEATURE_TRACE) == 0) {
        return err_set(err, KVPOOL_E_UNSUPPORTED, "this daemon writes no traces");
    }
    status = fd_call(fd, PROTO_TRACE, 2, msg.body.fd_hello_reply.epoch, &trace, sizeof(trace), &msg,
                     ret_pipe, err);
    if (status == 0 && *ret_pipe < 0) {
        return err_set(err, KVPOOL_E_PROTO, "the reply brought no pipe");
    }
    return status;
}

// --- the file ---------------------------------------------------------------------------------

struct recording {
    FILE *out;
    char *bytes; // what was read and is not a whole line yet
    size_t len, cap;
    uint64_t requests, sequences, dropped;
};

static bool starts_with(const char *line, size_t len, const char *word) {
    return len >= strlen(word) && memcmp(line, word, strlen(word)) == 0;
}

// Counts and writes the whole lines that are there.
static void take_lines(struct recording *r) {
    size_t done = 0;
    for (char *end; (end = memchr(r->bytes + done, '\n', r->len - done)) != NULL;) {
        const char *line = r->bytes + done;
        size_t len = (size_t)(end - line) + 1;
        static const char dropped[] = "{\"dropped\":";
        if (starts_with(line, len, "{\"timestamp\":")) {
            r->sequences++;
        } else if (starts_with(line, len, dropped)) {
            r->dropped += strtoull(line + strlen(dropped), NULL, 10);
        } else {
            r->requests++;
        }
        fwrite(line, 1, len, r->out);
        done += len;
    }
    memmove(r->bytes, r->bytes + done, r->len - done);
    r->len -= done;
}

// Reads what is there. 1: something, 0: nothing now, -1: the daemon has closed it.
static int take_bytes(struct recording *r, int pipe_fd) {
    if (r->cap - r->len < READ_BYTES) {
        if (r->len > LINE_MAX_BYTES) {
            return -1; // not a daemon of ours
        }
        r->cap = r->cap == 0 ? 2 * (size_t)READ_BYTES : 2 * r->cap;
        r->bytes = cmd_realloc(r->bytes, r->cap);
    }
    ssize_t n = read(pipe_fd, r->bytes + r->len, READ_BYTES);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    if (n <= 0) {
        return -1;
    }
    r->len += (size_t)n;
    take_lines(r);
    return 1;
}

static uint64_t now_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

// Until the time is over, the user asks to end, or the daemon goes. Returns whether it went.
static bool record(struct recording *r, int pipe_fd, uint32_t seconds_ms) {
    uint64_t end = now_ms() + seconds_ms;
    while (trace_interrupted == 0 && !ferror(r->out)) {
        struct pollfd p = {pipe_fd, POLLIN, 0};
        uint64_t now = now_ms();
        if (seconds_ms != 0 && now >= end) {
            break;
        }
        int wait = seconds_ms == 0 || end - now > 1000 ? 1000 : (int)(end - now);
        int ready = poll(&p, 1, wait);
        if (ready == 0) {
            fflush(r->out); // so that others can watch the file
        }
        if (ready > 0 && take_bytes(r, pipe_fd) < 0) {
            return true;
        }
    }
    int more = 1;
    for (uint32_t i = 0; more > 0 && i < LAST_READS; i++) { // what was written up to now
        more = take_bytes(r, pipe_fd);
    }
    return more < 0;
}

static void summary(const struct record_line *line, const struct recording *r) {
    FILE *out = strcmp(line->path, "-") == 0 ? stderr : stdout;
    if (line->globals->json) {
        struct json j = json_start(out);
        json_object(&j, NULL);
        json_str(&j, "file", line->path);
        json_u64(&j, "requests", r->requests);
        json_u64(&j, "sequences", r->sequences);
        json_u64(&j, "dropped", r->dropped);
        json_end(&j);
        json_finish(&j);
        return;
    }
    fprintf(out, "%s: %" PRIu64 " requests, %" PRIu64 " sequences, %" PRIu64 " lines dropped\n",
            line->path, r->requests, r->sequences, r->dropped);
}

int trace_record(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"tokens", 't', NULL, 0, "With the token ids of prompts: the trace then has their content",
         0},
        {"seconds", 's', "N", 0, "End after N seconds (default: at Ctrl-C)", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "FILE",
        .doc = "Writes the daemon's requests and sequences into a file, one JSON object a line, "
               "until Ctrl-C. For root and the daemon's own user. FILE - is standard output."
               "\vExamples:\n"
               "  kvpool trace record load.jsonl\n"
               "  kvpool trace record - --seconds 10 | grep '\"op\":\"DECODE\"'",
        .children = cmd_global_child};
    struct record_line line = {.globals = globals};
    struct recording r = {0};
    struct err err = {0};
    char plain[ERR_TEXT_MAX];
    int pipe_fd = -1;
    int rc = 1;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    int fd = connect_fd_socket(cmd_dir(globals), globals->timeout_ms, &err);
    if (fd < 0) {
        fprintf(stderr, "kvpool: cannot reach the daemon in %s: %s (kvpool doctor tells more)\n",
                cmd_dir(globals), err.text);
        return 1;
    }
    if (start_trace(fd, line.tokens, &pipe_fd, &err) != 0) {
        fprintf(stderr, "kvpool: cannot start the trace: %s\n",
                format_plain(err.text, plain, sizeof(plain)));
        goto close_fd;
    }
    r.out = strcmp(line.path, "-") == 0 ? stdout : fopen(line.path, "we");
    if (r.out == NULL) {
        fprintf(stderr, "kvpool: %s: %s\n", line.path, strerror(errno));
        goto close_pipe;
    }
    trace_catch_signals();
    bool gone = record(&r, pipe_fd, line.seconds_ms);
    bool failed = fflush(r.out) != 0 || ferror(r.out);
    if ((r.out != stdout && fclose(r.out) != 0) || failed) {
        fprintf(stderr, "kvpool: %s: cannot write: %s\n", line.path, strerror(errno));
        goto close_pipe;
    }
    summary(&line, &r);
    if (gone) {
        fprintf(stderr, "kvpool: the daemon ended the trace\n");
    }
    rc = gone ? 1 : 0;
close_pipe:
    free(r.bytes);
    close(pipe_fd);
    struct proto_msg msg = {0};
    int none = -1;
    fd_call(fd, PROTO_BYE, 3, 0, NULL, 0, &msg, &none, NULL);
close_fd:
    close(fd);
    return rc;
}
