// SPDX-License-Identifier: Apache-2.0
// events_reader.c: see events_reader.h.
#include "client/cmd/events_reader.h"

#include "client/cmd/sp_client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TIMEOUT_MS = 10000,
    IDLE_MS = 500,       // silence after which the replay socket is asked
    LINES_A_RUN = 16384, // more wait for the next run: those of before are to be written
};

struct events_reader {
    struct events_sink sink;
    struct sp_client *sub, *req; // sub: NULL without follow
    uint32_t connection;         // of sub: the one whose lines were last read
    uint32_t timeout_ms;
    bool behind;    // the replay socket is to be asked
    char epoch[24]; // "0x..."; "": not known yet
    uint64_t next;  // 0: not known yet
};

struct reply {        // of the replay socket
    const char *text; // until the next one
    size_t len;
    char epoch[24];
    uint64_t oldest, newest;
    const char *lines; // after the head
};

// --- asking the replay socket ---

static uint64_t deadline(uint32_t ms) {
    return sp_client_now_ns() + ms * 1000000ull;
}

static int failed(char *why, size_t size, const struct err *err) {
    snprintf(why, size, "%s", err->text);
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
    struct err err;
    if (sp_client_ask(r->req, request, (size_t)len, deadline(r->timeout_ms), &ret->text, &ret->len,
                      &err) != 0) {
        return failed(why, why_size, &err);
    }
    if (!parse_head(ret)) {
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

static int open_socket(const char *dir, const char *name, enum sp_client_role role,
                       struct sp_client **ret, char *why, size_t why_size) {
    char path[256];
    struct err err;
    const int len = snprintf(path, sizeof path, "%s/private/%s", dir, name);
    if (len < 0 || (size_t)len >= sizeof path) {
        snprintf(why, why_size, "the path of %s is too long", name);
        return -1;
    }
    if (access(path, W_OK) != 0) {
        snprintf(why, why_size, "cannot reach %s: %s (%s)", path,
                 strerror(errno), // NOLINT(concurrency-mt-unsafe): one thread
                 errno == EACCES ? "only root and the daemon's user may"
                                 : "are events on? events = yes");
        return -1;
    }
    return sp_client_open(path, role, ret, &err) == 0 ? 0 : failed(why, why_size, &err);
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
    r->timeout_ms = timeout_ms != 0 ? timeout_ms : TIMEOUT_MS;
    r->behind = true;
    r->next = from;
    if (open_socket(dir, "replay.sock", SP_CLIENT_REQ, &r->req, why, why_size) != 0 ||
        (follow && open_socket(dir, "events.sock", SP_CLIENT_SUB, &r->sub, why, why_size) != 0) ||
        ask(r, 1, 0, &reply, why, why_size) != 0) {
        events_reader_close(r);
        return -1;
    }
    if (r->next == 0) {
        r->next = follow ? reply.newest + 1 : reply.oldest;
    }
    snprintf(r->epoch, sizeof r->epoch, "%s", reply.epoch);
    *ret = r;
    return 0;
}

int events_reader_run(struct events_reader *r, char *why, size_t why_size) {
    uint64_t until; // of the first line only
    if (r->behind) {
        int rc = catch_up(r, why, why_size);
        if (rc != 0 || r->sub == NULL) {
            return rc;
        }
        r->behind = false;
    }
    until = deadline(IDLE_MS);
    for (unsigned lines = 0; lines < LINES_A_RUN; lines++, until = 0) {
        const char *line;
        size_t len;
        struct err err;
        int rc = sp_client_receive(r->sub, until, &line, &len, &err);
        if (rc < 0) {
            return failed(why, why_size, &err);
        }
        if (rc == 0) {
            r->behind = lines == 0; // what was published last may have been lost
            return 0;
        }
        rc = 0;
        if (sp_client_connections(r->sub) != r->connection) { // perhaps to another instance
            r->connection = sp_client_connections(r->sub);
            rc = catch_up(r, why, why_size);
        }
        if (rc == 0) {
            rc = on_line(r, line, len, why, why_size);
        }
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

uint64_t events_reader_next(const struct events_reader *r) {
    return r->next;
}

void events_reader_close(struct events_reader *r) {
    if (r == NULL) {
        return;
    }
    sp_client_close(r->sub);
    sp_client_close(r->req);
    free(r);
}
