// SPDX-License-Identifier: Apache-2.0
// events_reader.c: see events_reader.h.
#include "client/cmd/events_reader.h"

#include <errno.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/pubsub0/sub.h>
#include <nng/protocol/reqrep0/req.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TIMEOUT_MS = 10000,
    IDLE_MS = 500, // silence after which the replay socket is asked
    BUFFER = 8192, // live lines that may wait for us
    RECONNECT_MAX_MS = 1000,
};

struct events_reader {
    struct events_sink sink;
    nng_socket sub, req;
    bool follow;
    bool behind;    // the replay socket is to be asked
    char epoch[24]; // "0x..."; "": not known yet
    uint64_t next;  // 0: not known yet
};

struct reply {  // of the replay socket
    char *text; // NNG's
    size_t len;
    char epoch[24];
    uint64_t oldest, newest;
    const char *lines; // after the head
};

// --- asking the replay socket ---

static int failed(char *why, size_t size, const char *what, int rv) {
    snprintf(why, size, "%s: %s", what, nng_strerror(rv));
    return -1;
}

// The number after `key` in the head; UINT64_MAX: none.
static uint64_t number_after(const char *head, const char *key) {
    const char *at = strstr(head, key);
    at = at != NULL ? at + strlen(key) : NULL;
    return at != NULL && *at >= '0' && *at <= '9' ? strtoull(at, NULL, 10) : UINT64_MAX;
}

// {"type":"Replay","epoch":"0x..","oldest":O,"newest":N}, and the lines behind it.
static bool parse_head(struct reply *reply) {
    static const char begin[] = "{\"type\":\"Replay\",\"epoch\":\"";
    const char *end = memchr(reply->text, '\n', reply->len);
    char head[128];
    size_t len;
    if (end == NULL || (size_t)(end - reply->text) >= sizeof head) {
        return false;
    }
    snprintf(head, sizeof head, "%.*s", (int)(end - reply->text), reply->text);
    if (strncmp(head, begin, sizeof begin - 1) != 0) {
        return false;
    }
    len = strspn(head + sizeof begin - 1, "0123456789abcdefx");
    if (len == 0 || len >= sizeof reply->epoch) {
        return false;
    }
    snprintf(reply->epoch, sizeof reply->epoch, "%.*s", (int)len, head + sizeof begin - 1);
    reply->oldest = number_after(head, "\"oldest\":");
    reply->newest = number_after(head, "\"newest\":");
    reply->lines = end + 1;
    return reply->oldest != UINT64_MAX && reply->newest != UINT64_MAX;
}

static int ask(struct events_reader *r, uint64_t from, uint64_t max, struct reply *ret, char *why,
               size_t why_size) {
    char request[64];
    const int len = snprintf(request, sizeof request, "%" PRIu64 " %" PRIu64, from, max);
    int rv = nng_send(r->req, request, (size_t)len, 0);
    if (rv == 0) {
        rv = nng_recv(r->req, &ret->text, &ret->len, NNG_FLAG_ALLOC);
    }
    if (rv != 0) {
        return failed(why, why_size, "the daemon does not answer", rv);
    }
    if (!parse_head(ret)) {
        nng_free(ret->text, ret->len);
        snprintf(why, why_size, "the daemon's answer is not understood");
        return -1;
    }
    return 0;
}

// --- lines ---

// Of a line; 0: none.
static uint64_t seq_of(const char *line, size_t len) {
    static const char begin[] = "{\"seq\":";
    uint64_t seq = 0;
    if (len < sizeof begin || memcmp(line, begin, sizeof begin - 1) != 0) {
        return 0;
    }
    for (size_t i = sizeof begin - 1; i < len && line[i] >= '0' && line[i] <= '9'; i++) {
        seq = seq * 10 + (uint64_t)(line[i] - '0');
    }
    return seq;
}

static int hand_over(struct events_reader *r, uint64_t seq, const char *line, size_t len, char *why,
                     size_t why_size) {
    if (r->sink.line(r->sink.arg, line, len) != 0) {
        snprintf(why, why_size, "cannot write the output");
        return -1;
    }
    r->next = seq + 1;
    return 0;
}

static void say_lost(struct events_reader *r, uint64_t from, uint64_t until) {
    char text[128];
    snprintf(text, sizeof text, "events %" PRIu64 " to %" PRIu64 " are lost", from, until - 1);
    r->sink.say(r->sink.arg, text);
}

// The daemon's state as a reply tells it: another instance, or numbers that are gone.
static void adopt(struct events_reader *r, const struct reply *reply) {
    if (r->epoch[0] != '\0' && strcmp(r->epoch, reply->epoch) != 0) {
        r->sink.say(r->sink.arg, "the daemon was restarted, numbers begin with 1 again");
        r->next = 1;
    }
    snprintf(r->epoch, sizeof r->epoch, "%s", reply->epoch);
    if (r->next < reply->oldest) {
        say_lost(r, r->next, reply->oldest);
        r->next = reply->oldest;
    }
}

// Replays from `next` until nothing newer than the last answer is left.
static int catch_up(struct events_reader *r, char *why, size_t why_size) {
    for (;;) {
        struct reply reply;
        const char *at, *end, *stop;
        uint64_t newest;
        int rc = ask(r, r->next, UINT32_MAX, &reply, why, why_size);
        if (rc != 0) {
            return rc;
        }
        adopt(r, &reply);
        newest = reply.newest;
        stop = reply.text + reply.len;
        for (at = reply.lines; rc == 0 && (end = memchr(at, '\n', (size_t)(stop - at))) != NULL;
             at = end + 1) {
            const uint64_t seq = seq_of(at, (size_t)(end - at));
            if (seq == r->next) {
                rc = hand_over(r, seq, at, (size_t)(end - at), why, why_size);
            }
        }
        nng_free(reply.text, reply.len);
        if (rc != 0 || r->next > newest) {
            return rc;
        }
    }
}

// A line of the live stream.
static int on_line(struct events_reader *r, const char *line, size_t len, char *why,
                   size_t why_size) {
    const uint64_t seq = seq_of(line, len);
    char text[128];
    if (seq == r->next) {
        return hand_over(r, seq, line, len, why, why_size);
    }
    if (seq == 1) { // another instance's first
        return catch_up(r, why, why_size);
    }
    if (seq < r->next) {
        return 0; // replayed before
    }
    snprintf(text, sizeof text, "gap: %" PRIu64 " to %" PRIu64 " missed, asking for them", r->next,
             seq - 1);
    r->sink.say(r->sink.arg, text);
    return catch_up(r, why, why_size);
}

// --- open, run, close ---

// The connection is made behind our back, so that a socket whose daemon hangs does not hang us.
static int dial(nng_socket s, const char *dir, const char *name, char *why, size_t why_size) {
    char url[256];
    const int len = snprintf(url, sizeof url, "ipc://%s/private/%s", dir, name);
    if (len < 0 || (size_t)len >= sizeof url) {
        snprintf(why, why_size, "the path of %s is too long", name);
        return -1;
    }
    if (access(url + strlen("ipc://"), W_OK) != 0) {
        snprintf(why, why_size, "cannot reach %s: %s (%s)", url + strlen("ipc://"),
                 strerror(errno), // NOLINT(concurrency-mt-unsafe): one thread
                 errno == EACCES ? "only root and the daemon's user may"
                                 : "are events on? events = yes");
        return -1;
    }
    const int rv = nng_dial(s, url, NULL, NNG_FLAG_NONBLOCK);
    return rv == 0 ? 0 : failed(why, why_size, "cannot connect", rv);
}

static int open_sockets(struct events_reader *r, const char *dir, uint32_t timeout_ms, char *why,
                        size_t why_size) {
    int rv = nng_req0_open(&r->req);
    if (rv != 0) {
        return failed(why, why_size, "cannot open a socket", rv);
    }
    rv = nng_sub0_open(&r->sub);
    if (rv != 0) {
        nng_close(r->req);
        return failed(why, why_size, "cannot open a socket", rv);
    }
    nng_socket_set_size(r->req, NNG_OPT_RECVMAXSZ, 0);
    nng_socket_set_ms(r->req, NNG_OPT_RECVTIMEO, (nng_duration)timeout_ms);
    nng_socket_set_ms(r->req, NNG_OPT_SENDTIMEO, (nng_duration)timeout_ms);
    nng_socket_set_ms(r->req, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    nng_socket_set_ms(r->req, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS);
    nng_socket_set_ms(r->sub, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS);
    nng_socket_set_ms(r->sub, NNG_OPT_RECVTIMEO, IDLE_MS);
    nng_socket_set_int(r->sub, NNG_OPT_RECVBUF, BUFFER);
    nng_socket_set(r->sub, NNG_OPT_SUB_SUBSCRIBE, "", 0);
    if (dial(r->req, dir, "replay.sock", why, why_size) != 0 ||
        (r->follow && dial(r->sub, dir, "events.sock", why, why_size) != 0)) {
        nng_close(r->req);
        nng_close(r->sub);
        return -1;
    }
    return 0;
}

int events_reader_open(const char *dir, uint64_t from, bool follow, uint32_t timeout_ms,
                       const struct events_sink *sink, struct events_reader **ret, char *why,
                       size_t why_size) {
    struct events_reader *r = calloc(1, sizeof *r);
    struct reply reply;
    if (r == NULL) {
        snprintf(why, why_size, "out of memory");
        return -1;
    }
    r->sink = *sink;
    r->follow = follow;
    r->behind = true;
    r->next = from;
    if (open_sockets(r, dir, timeout_ms != 0 ? timeout_ms : TIMEOUT_MS, why, why_size) != 0) {
        free(r);
        return -1;
    }
    if (ask(r, 1, 0, &reply, why, why_size) != 0) {
        events_reader_close(r);
        return -1;
    }
    if (r->next == 0) {
        r->next = follow ? reply.newest + 1 : reply.oldest;
    }
    snprintf(r->epoch, sizeof r->epoch, "%s", reply.epoch);
    nng_free(reply.text, reply.len);
    *ret = r;
    return 0;
}

int events_reader_run(struct events_reader *r, char *why, size_t why_size) {
    int flags = NNG_FLAG_ALLOC; // wait for the first line only
    if (r->behind) {
        int rc = catch_up(r, why, why_size);
        if (rc != 0 || !r->follow) {
            return rc;
        }
        r->behind = false;
    }
    for (;;) {
        char *line;
        size_t len;
        int rc, rv = nng_recv(r->sub, &line, &len, flags);
        if (rv == NNG_ETIMEDOUT) { // what was published last may have been lost
            r->behind = true;
            return 0;
        }
        if (rv == NNG_EAGAIN) {
            return 0;
        }
        if (rv != 0) {
            return failed(why, why_size, "cannot read events", rv);
        }
        rc = on_line(r, line, len, why, why_size);
        nng_free(line, len);
        if (rc != 0) {
            return rc;
        }
        flags = (int)(NNG_FLAG_ALLOC | NNG_FLAG_NONBLOCK);
    }
}

uint64_t events_reader_next(const struct events_reader *r) {
    return r->next;
}

void events_reader_close(struct events_reader *r) {
    if (r == NULL) {
        return;
    }
    nng_close(r->sub);
    nng_close(r->req);
    free(r);
}
