// SPDX-License-Identifier: Apache-2.0
// feed.c: see feed.h.
#include "daemon/feed.h"

#include "daemon/bounded.h"
#include "daemon/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <nng/nng.h>
#include <nng/protocol/pubsub0/pub.h>
#include <nng/protocol/reqrep0/rep.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    CLOSE_TIMEOUT_S = 3,
    SEND_TIMEOUT_MS = 1000, // of a reply: its reader must take it
    RETRY_MS = 100,         // after a receive that failed
    SEND_BUFFER = 8192,     // lines that a subscriber may lag behind before it misses some
    MAX_REQUEST = 64,
    PUBLISH_BYTES = EVENTS_BATCH * EVENTS_LINE_BYTES,
};

struct feed {
    struct events *events;
    char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char paths[2][sizeof(((struct sockaddr_un *)0)->sun_path)]; // events, replay
    nng_socket pub, rep;
    pthread_t publisher, replayer;
    atomic_bool closing;
    char *reply; // [FEED_REPLY_BYTES], the replayer's
    char *lines; // [PUBLISH_BYTES], the publisher's
};

// --- the publisher's thread ---

static void publish_lines(struct feed *f, const char *lines, size_t len) {
    while (len > 0) {
        const char *end = memchr(lines, '\n', len);
        const size_t n = (size_t)(end - lines);
        nng_msg *msg;
        if (nng_msg_alloc(&msg, n) == 0) { // else it is missed: the reader sees the gap
            memcpy(nng_msg_body(msg), lines, n);
            if (nng_sendmsg(f->pub, msg, NNG_FLAG_NONBLOCK) != 0) {
                nng_msg_free(msg);
            }
        }
        lines += n + 1;
        len -= n + 1;
    }
}

static void *publish(void *arg) {
    struct feed *f = arg;
    uint64_t next = 1;
    while (events_wait(f->events, next)) {
        size_t len = events_read(f->events, next, EVENTS_BATCH, f->lines, PUBLISH_BYTES, &next);
        if (len == 0) { // the ring has passed us
            struct events_range range;
            events_range(f->events, &range);
            next = range.oldest;
        }
        publish_lines(f, f->lines, len);
    }
    return NULL;
}

// --- the replayer's thread ---

// "FROM" or "FROM MAX"; FROM 1 at least.
static bool parse_request(const char *text, size_t len, uint64_t *ret_from, uint32_t *ret_max) {
    char copy[MAX_REQUEST + 1];
    char *end;
    unsigned long long value;
    if (len == 0 || len > MAX_REQUEST || memchr(text, '\0', len) != NULL) {
        return false;
    }
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (copy[0] < '0' || copy[0] > '9') {
        return false;
    }
    errno = 0;
    *ret_from = strtoull(copy, &end, 10);
    *ret_max = UINT32_MAX;
    if (errno == 0 && *end == ' ' && end[1] >= '0' && end[1] <= '9') {
        value = strtoull(end + 1, &end, 10);
        *ret_max = value < UINT32_MAX ? (uint32_t)value : UINT32_MAX;
    }
    return errno == 0 && *end == '\0' && *ret_from >= 1;
}

static size_t make_reply(struct feed *f, const char *request, size_t len) {
    struct events_range range;
    uint64_t from, next;
    uint32_t max;
    size_t n;
    if (!parse_request(request, len, &from, &max)) {
        return (size_t)snprintf(f->reply, FEED_REPLY_BYTES,
                                "{\"type\":\"Error\",\"error\":\"want: FROM [MAX]\"}\n");
    }
    events_range(f->events, &range);
    n = (size_t)snprintf(f->reply, FEED_REPLY_BYTES,
                         "{\"type\":\"Replay\",\"epoch\":\"0x%016" PRIx64 "\",\"oldest\":%" PRIu64
                         ",\"newest\":%" PRIu64 "}\n",
                         range.epoch, range.oldest, range.newest);
    return n + events_read(f->events, from, max, f->reply + n, FEED_REPLY_BYTES - n, &next);
}

static void *replay(void *arg) {
    struct feed *f = arg;
    while (!atomic_load(&f->closing)) {
        nng_msg *msg;
        size_t len;
        int rv = nng_recvmsg(f->rep, &msg, 0);
        if (rv == NNG_ECLOSED) {
            break;
        }
        if (rv != 0) {
            log_warn("feed.receive", "error=\"%s\"", nng_strerror(rv));
            usleep(1000u * RETRY_MS);
            continue;
        }
        len = make_reply(f, nng_msg_body(msg), nng_msg_len(msg));
        nng_msg_clear(msg);
        if (nng_msg_append(msg, f->reply, len) != 0 || nng_sendmsg(f->rep, msg, 0) != 0) {
            nng_msg_free(msg);
        }
    }
    return NULL;
}

// --- open and close ---

static int make_private_dir(struct feed *f, const char *dir, struct err *err) {
    struct stat st;
    const int len = snprintf(f->dir, sizeof f->dir, "%s/" FEED_DIR, dir);
    if (len < 0 || (size_t)len >= sizeof f->dir) {
        return err_set(err, KVPOOL_E_INVAL, "path %.60s.../" FEED_DIR " is too long", dir);
    }
    if (mkdir(f->dir, 0700) != 0 && errno != EEXIST) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot create %s: %m", f->dir);
    }
    if (lstat(f->dir, &st) != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot look at %s: %m", f->dir);
    }
    if (!S_ISDIR(st.st_mode)) {
        return err_set(err, KVPOOL_E_INVAL, "%s is in the way and is not a directory", f->dir);
    }
    if (st.st_uid != geteuid()) {
        return err_set(err, KVPOOL_E_PERM, "%s belongs to user %u, not to the daemon's", f->dir,
                       (unsigned)st.st_uid);
    }
    if (chmod(f->dir, 0700) != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot set the mode of %s: %m", f->dir);
    }
    return 0;
}

static int listen_at(nng_socket s, const char *path, struct err *err) {
    char url[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
    nng_listener listener;
    struct stat st;
    int rv;
    if (lstat(path, &st) == 0 && (!S_ISSOCK(st.st_mode) || unlink(path) != 0)) {
        return err_set(err, KVPOOL_E_INVAL, "%s is in the way and is no stale socket", path);
    }
    snprintf(url, sizeof url, "ipc://%s", path);
    rv = nng_listener_create(&listener, s, url);
    if (rv == 0) {
        rv = nng_listener_set_int(listener, NNG_OPT_IPC_PERMISSIONS, 0600);
    }
    if (rv == 0) {
        rv = nng_listener_start(listener, 0);
    }
    return rv == 0
               ? 0
               : err_set(err, KVPOOL_E_SYSTEM, "cannot listen at %s: %s", path, nng_strerror(rv));
}

static int open_sockets(struct feed *f, const char *dir, struct err *err) {
    static const char *const names[2] = {FEED_EVENTS_SOCKET, FEED_REPLAY_SOCKET};
    int rv, rc;
    for (int i = 0; i < 2; i++) {
        const int len = snprintf(f->paths[i], sizeof f->paths[i], "%s/%s", dir, names[i]);
        if (len < 0 || (size_t)len >= sizeof f->paths[i]) {
            return err_set(err, KVPOOL_E_INVAL,
                           "socket path %.60s.../%s is %d bytes, the limit is %zu", dir, names[i],
                           len, sizeof f->paths[i] - 1);
        }
    }
    rv = nng_pub0_open(&f->pub);
    if (rv != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot open a PUB socket: %s", nng_strerror(rv));
    }
    rv = nng_rep0_open(&f->rep);
    if (rv != 0) {
        rc = err_set(err, KVPOOL_E_SYSTEM, "cannot open a REP socket: %s", nng_strerror(rv));
        goto close_pub;
    }
    rv = nng_socket_set_int(f->pub, NNG_OPT_SENDBUF, SEND_BUFFER);
    if (rv == 0) {
        rv = nng_socket_set_size(f->rep, NNG_OPT_RECVMAXSZ, MAX_REQUEST + 8);
    }
    if (rv == 0) {
        rv = nng_socket_set_ms(f->rep, NNG_OPT_SENDTIMEO, SEND_TIMEOUT_MS);
    }
    rc = rv == 0 ? 0 : err_set(err, KVPOOL_E_SYSTEM, "event sockets: %s", nng_strerror(rv));
    if (rc == 0) {
        rc = listen_at(f->pub, f->paths[0], err);
    }
    if (rc == 0) {
        rc = listen_at(f->rep, f->paths[1], err);
    }
    if (rc == 0) {
        return 0;
    }
    nng_close(f->rep);
close_pub:
    nng_close(f->pub);
    return rc;
}

static void remove_files(const struct feed *f) {
    unlink(f->paths[0]);
    unlink(f->paths[1]);
    rmdir(f->dir);
}

static void free_feed(struct feed *f) {
    free(f->reply);
    free(f->lines);
    free(f);
}

int feed_open(const char *dir, struct events *events, struct feed **ret, struct err *err) {
    struct feed *f = calloc(1, sizeof *f);
    int rc;
    if (f == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    f->events = events;
    f->reply = malloc(FEED_REPLY_BYTES);
    f->lines = malloc(PUBLISH_BYTES);
    if (f->reply == NULL || f->lines == NULL) {
        rc = err_set(err, KVPOOL_E_NOMEM, "out of memory");
        goto free_f;
    }
    rc = make_private_dir(f, dir, err);
    if (rc == 0) {
        rc = open_sockets(f, dir, err);
    }
    if (rc != 0) {
        goto free_f;
    }
    if (pthread_create(&f->publisher, NULL, publish, f) != 0) {
        rc = err_set(err, KVPOOL_E_SYSTEM, "cannot start the thread of the event stream");
        goto close_sockets;
    }
    if (pthread_create(&f->replayer, NULL, replay, f) != 0) {
        rc = err_set(err, KVPOOL_E_SYSTEM, "cannot start the thread of the event replay");
        goto join_publisher;
    }
    *ret = f;
    return 0;

join_publisher:
    events_stop(events);
    pthread_join(f->publisher, NULL);
close_sockets:
    nng_close(f->rep);
    nng_close(f->pub);
    remove_files(f);
free_f:
    free_feed(f);
    return rc;
}

static void tear_down(void *arg) { // a thread of its own
    struct feed *f = arg;
    atomic_store(&f->closing, true);
    events_stop(f->events);
    pthread_join(f->publisher, NULL);
    nng_close(f->rep);
    pthread_join(f->replayer, NULL);
    nng_close(f->pub);
}

bool feed_close(struct feed *f) {
    bool ended;
    if (f == NULL) {
        return true;
    }
    ended = bounded_run(tear_down, f, CLOSE_TIMEOUT_S);
    remove_files(f);
    if (ended) {
        free_feed(f);
    } else {
        log_error("feed.close", "error=\"NNG does not end\" waited_s=%d", CLOSE_TIMEOUT_S);
    }
    return ended;
}
