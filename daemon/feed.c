// SPDX-License-Identifier: Apache-2.0
// feed.c: see feed.h.
#include "daemon/feed.h"

#include "daemon/bounded.h"
#include "daemon/leakcheck.h"
#include "daemon/log.h"
#include "daemon/sp.h"

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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    CLOSE_TIMEOUT_S = 3,
    SEND_TIMEOUT_MS = 1000, // of a reply: its reader must take it
    RETRY_MS = 100,         // after a receive that failed
    SEND_BUFFER = 8192,     // lines that a subscriber may lag behind before it misses some
    MAX_REQUEST = 64,
    PROBE_MS = 2000,  // between looks whether the listeners live
    BEAT_MS = 10,     // see listener_answers
    PROBE_BEATS = 80, // for a probe's pipe
    PROBES = 2,       // in a row without one: the listener is dead
    PUBLISH_BYTES = EVENTS_BATCH * EVENTS_LINE_BYTES,
};

struct feed {
    struct events *events;
    char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char paths[2][sizeof(((struct sockaddr_un *)0)->sun_path)]; // events, replay
    nng_socket pub, rep;
    nng_listener listeners[2];
    atomic_uint own_pipes[2]; // made for probes
    nng_aio *beat;            // the replayer's
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

// --- listeners ---
// NNG before 1.6 loses a listener for good when a peer connects and goes away at the wrong moment,
// and then may still accept and shake hands, but makes no pipe. So a probe looks for its own pipe.

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

static void on_pipe(nng_pipe pipe, nng_pipe_ev what, void *arg) { // any NNG thread
    atomic_uint *own = arg;
    uint64_t pid;
    (void)what;
    if (nng_pipe_get_uint64(pipe, NNG_OPT_IPC_PEER_PID, &pid) == 0 && pid == (uint64_t)getpid()) {
        atomic_fetch_add(own, 1);
    }
}

static int listen_at(struct feed *f, int i, struct err *err) {
    char url[sizeof f->paths[i] + 8];
    struct stat st;
    int rv;
    if (lstat(f->paths[i], &st) == 0 && (!S_ISSOCK(st.st_mode) || unlink(f->paths[i]) != 0)) {
        return err_set(err, KVPOOL_E_INVAL, "%s is in the way and is no stale socket", f->paths[i]);
    }
    snprintf(url, sizeof url, "ipc://%s", f->paths[i]);
    rv = nng_listener_create(&f->listeners[i], i == 0 ? f->pub : f->rep, url);
    if (rv == 0) {
        rv = nng_listener_set_int(f->listeners[i], NNG_OPT_IPC_PERMISSIONS, 0600);
        if (rv == 0) {
            rv = nng_listener_start(f->listeners[i], 0);
        }
        if (rv != 0) {
            nng_listener_close(f->listeners[i]);
        }
    }
    return rv == 0 ? 0
                   : err_set(err, KVPOOL_E_SYSTEM, "cannot listen at %s: %s", f->paths[i],
                             nng_strerror(rv));
}

static void on_beat(void *arg) { // any NNG thread
    (void)arg;
}

// Connects as a SUB or REQ socket would. False: the listener makes no pipe for it. It is waited for
// while NNG's threads do PROBE_BEATS other things, one after another: where they get no time to run,
// those take as much longer as the pipe does.
static bool listener_answers(struct feed *f, int i, bool *ret_gone) {
    static const enum sp_protocol protocols[2] = {SP_SUB, SP_REQ};
    const unsigned before = atomic_load(&f->own_pipes[i]);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    enum sp_answer answer = SP_BUSY;
    bool answers = false;
    int fd = -1;
    memcpy(addr.sun_path, f->paths[i], sizeof addr.sun_path);
    for (int beats = 0; beats < PROBE_BEATS && !answers && !atomic_load(&f->closing); beats++) {
        if (answer == SP_BUSY) {
            answer = sp_connect(&addr, protocols[i], NULL, 0, &fd);
        }
        if (answer != SP_BUSY && answer != SP_CONNECTED) {
            break;
        }
        nng_sleep_aio(BEAT_MS, f->beat);
        nng_aio_wait(f->beat);
        answers = atomic_load(&f->own_pipes[i]) != before;
    }
    if (answer == SP_CONNECTED) {
        close(fd);
    }
    *ret_gone = answer == SP_GONE;
    return answers || answer == SP_UNTRIED; // of which nothing can be said
}

static bool listener_lives(struct feed *f, int i) {
    bool gone = false, answers = false;
    for (int n = 0; n < PROBES && !gone && !answers; n++) {
        answers = listener_answers(f, i, &gone);
    }
    return answers;
}

// Closing a listener disconnects its readers; they connect again by themselves.
static void probe_listeners(struct feed *f) {
    for (int i = 0; i < 2; i++) {
        struct err err;
        if (listener_lives(f, i) || atomic_load(&f->closing)) {
            continue;
        }
        log_warn("feed.relisten", "path=\"%s\"", f->paths[i]);
        leakcheck_give_up();
        nng_listener_close(f->listeners[i]); // again, where the last listen_at failed: no harm
        if (listen_at(f, i, &err) != 0) {
            log_error("feed.listen", "error=\"%s\"", err.text);
        }
    }
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
    uint64_t probed_ms = now_ms();
    while (!atomic_load(&f->closing)) {
        nng_msg *msg;
        size_t len;
        int rv = nng_recvmsg(f->rep, &msg, 0);
        if (rv == NNG_ECLOSED) {
            break;
        }
        if (now_ms() - probed_ms >= PROBE_MS) {
            probe_listeners(f);
            probed_ms = now_ms();
        }
        if (rv == NNG_ETIMEDOUT) {
            continue;
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
    if (rv == 0) {
        rv = nng_socket_set_ms(f->rep, NNG_OPT_RECVTIMEO, PROBE_MS);
    }
    if (rv == 0) {
        rv = nng_pipe_notify(f->pub, NNG_PIPE_EV_ADD_POST, on_pipe, &f->own_pipes[0]);
    }
    if (rv == 0) {
        rv = nng_pipe_notify(f->rep, NNG_PIPE_EV_ADD_POST, on_pipe, &f->own_pipes[1]);
    }
    rc = rv == 0 ? 0 : err_set(err, KVPOOL_E_SYSTEM, "event sockets: %s", nng_strerror(rv));
    if (rc == 0) {
        rc = listen_at(f, 0, err);
    }
    if (rc == 0) {
        rc = listen_at(f, 1, err);
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
    nng_aio_free(f->beat);
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
    if (f->reply == NULL || f->lines == NULL || nng_aio_alloc(&f->beat, on_beat, NULL) != 0) {
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
