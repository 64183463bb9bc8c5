// SPDX-License-Identifier: Apache-2.0
// bench_control.c: what a request costs on its way: pings and one-token decodes through kvpoold,
// beside a bare NNG echo.
//
//     echo_1    one client, 64-byte messages, an NNG server that does nothing else
//     ping_1    one client of kvpoold; measured in turns with echo_1, so that both see the same
//               machine
//     ping_8    8 and 64 clients at once, each a process with a connection of its own
//     ping_64
//     decode_1  one client: attention of one token over 64
//
// It starts its own daemon (--backend cpu) in a private directory and stops it again.
// p50_us and p99_us are over all samples; `errors` counts failed requests and lost replies.
// Thread: main.
#include "bench/bench.h"
#include "bench/procs.h"
#include "bench/roles.h"
#include "client/cmd/trial.h"

#include <kvpool/kvpool.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define BENCH "control"
#define ROUNDS 20
#define ROUND_SAMPLES 500 // of each subject
#define MANY_PINGS 200    // of each of 8 or 64 clients
#define START_MS 15000u
#define MANY_MS 60000u
#define STOP_MS 8000u // more than the daemon takes to drain
#define ECHO_BYTES 64

struct control {
    char dir[64]; // private; the daemon's sockets are in dir/run
    char run[80];
    char log[80];         // of the daemon
    char url[96];         // of the echo server
    char self[512];       // path of this program
    struct procs servers; // kvpoold, the echo server
    nng_socket echo;      // valid when echo_open
    bool echo_open;
    kvpool_client *client;
};

struct samples {
    double *us;
    size_t n, cap;
    unsigned long errors;
};

static int samples_init(struct samples *s, size_t cap) {
    *s = (struct samples){.us = calloc(cap, sizeof(double)), .cap = cap};
    if (s->us == NULL) {
        fprintf(stderr, "kvpool-bench: out of memory\n");
        return 1;
    }
    return 0;
}

static void samples_emit(struct samples *s, const char *name) {
    bench_emit(BENCH, name, "p50_us", bench_percentile(s->us, s->n, 50));
    bench_emit(BENCH, name, "p99_us", bench_percentile(s->us, s->n, 99));
    bench_emit(BENCH, name, "errors", (double)s->errors);
}

static size_t scaled(size_t n) {
    size_t less = (size_t)((double)n * bench_quick_scale());
    return less < 5 ? 5 : less;
}

// ---- one client

static int do_echo(struct control *c) {
    nng_msg *msg = NULL;
    if (nng_msg_alloc(&msg, ECHO_BYTES) != 0) {
        return 1;
    }
    if (nng_sendmsg(c->echo, msg, 0) != 0) {
        nng_msg_free(msg);
        return 1;
    }
    if (nng_recvmsg(c->echo, &msg, 0) != 0) {
        return 1;
    }
    int bad = nng_msg_len(msg) != ECHO_BYTES;
    nng_msg_free(msg);
    return bad;
}

static int do_ping(struct control *c) {
    return kvpool_ping(c->client, NULL) != KVPOOL_OK;
}

// `n` samples of one subject, timed from outside in the same way for each.
static void sample(struct control *c, int (*subject)(struct control *), size_t n,
                   struct samples *s) {
    for (size_t i = 0; i < n && s->n < s->cap; i++) {
        uint64_t start = bench_now_ns();
        if (subject(c) != 0) {
            s->errors++;
        } else {
            s->us[s->n++] = (double)(bench_now_ns() - start) / 1e3;
        }
    }
}

static int measure_one(struct control *c) {
    const size_t round = scaled(ROUND_SAMPLES);
    struct samples echo = {0};
    struct samples ping = {0};
    int rc = 1;
    if (samples_init(&echo, ROUNDS * round) != 0 || samples_init(&ping, ROUNDS * round) != 0) {
        goto out;
    }
    sample(c, do_echo, round, &echo); // warm up
    sample(c, do_ping, round, &ping);
    echo.n = 0;
    ping.n = 0;
    for (int i = 0; i < ROUNDS; i++) { // A B B A A B ...: neither is always first
        if (i % 2 == 0) {
            sample(c, do_echo, round, &echo);
            sample(c, do_ping, round, &ping);
        } else {
            sample(c, do_ping, round, &ping);
            sample(c, do_echo, round, &echo);
        }
    }
    samples_emit(&echo, "echo_1");
    samples_emit(&ping, "ping_1");
    fprintf(stderr, "control: median ping / median echo = %.3f\n",
            bench_percentile(ping.us, ping.n, 50) / bench_percentile(echo.us, echo.n, 50));
    rc = 0;
out:
    free(echo.us);
    free(ping.us);
    return rc;
}

static int measure_decode(struct control *c) {
    const size_t n = ROUNDS * scaled(ROUND_SAMPLES) / 4;
    struct samples s = {0};
    struct trial *trial = NULL;
    char text[256];
    int rc = 1;
    if (samples_init(&s, n) != 0) {
        return 1;
    }
    if (trial_open(c->client, &trial) != KVPOOL_OK) {
        fprintf(stderr, "kvpool-bench: cannot set up a pool: %s\n",
                kvpool_last_error(c->client, text, sizeof(text)));
        goto out;
    }
    for (int i = 0; i < 20; i++) { // warm up
        trial_decode(trial);
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t start = bench_now_ns();
        if (trial_decode(trial) != KVPOOL_OK) {
            s.errors++;
        } else {
            s.us[s.n++] = (double)(bench_now_ns() - start) / 1e3;
        }
    }
    trial_close(trial);
    samples_emit(&s, "decode_1");
    rc = 0;
out:
    free(s.us);
    return rc;
}

// ---- many clients

// Waits until `n` clients wrote their byte.
static bool all_ready(int fd, unsigned n) {
    const uint64_t end = bench_now_ns() + MANY_MS * 1000000ull;
    while (n > 0) {
        struct pollfd in = {.fd = fd, .events = POLLIN};
        uint64_t now = bench_now_ns();
        char bytes[64];
        if (now >= end || poll(&in, 1, (int)((end - now) / 1000000) + 1) <= 0) {
            return false;
        }
        ssize_t got = read(fd, bytes, sizeof(bytes));
        if (got <= 0) { // every client is gone
            return false;
        }
        n -= (unsigned)got;
    }
    return true;
}

static void collect(const struct role_slot *slots, unsigned n, struct samples *s) {
    const char *first = NULL;
    for (unsigned i = 0; i < n; i++) {
        const struct role_slot *slot = &slots[i];
        s->errors += slot->count - slot->received; // failed, lost, or never sent
        for (uint32_t k = 0; k < slot->received; k++) {
            s->us[s->n++] = slot->us[k];
        }
        first = first == NULL && slot->error[0] != 0 ? slot->error : first;
    }
    if (first != NULL) {
        fprintf(stderr, "control: %u clients: %s\n", n, first);
    }
}

// Starts the clients; returns false when one could not be started.
static bool start_clients(const struct control *c, struct procs *clients, unsigned n, int memory_fd,
                          int ready_fd, int start_fd) {
    char fds[3][16];
    snprintf(fds[0], sizeof(fds[0]), "%d", memory_fd);
    snprintf(fds[1], sizeof(fds[1]), "%d", ready_fd);
    snprintf(fds[2], sizeof(fds[2]), "%d", start_fd);
    for (unsigned i = 0; i < n; i++) {
        char index[16];
        snprintf(index, sizeof(index), "%u", i);
        const char *argv[] = {c->self, ROLE_PING, c->run, index, fds[0], fds[1], fds[2], NULL};
        if (procs_start(clients, argv, NULL) < 0) {
            return false;
        }
    }
    return true;
}

static void close_fd(int *fd) {
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

static int measure_many(struct control *c, unsigned n, const char *name) {
    const size_t pings = scaled(MANY_PINGS);
    const size_t size = n * sizeof(struct role_slot);
    struct procs clients = {.n = 0};
    struct role_slot *slots = MAP_FAILED;
    struct samples s = {0};
    int ready[2] = {-1, -1};
    int start[2] = {-1, -1};
    int rc = 1;
    int memory_fd = memfd_create("bench-slots", 0); // inherited by the clients
    if (memory_fd < 0 || ftruncate(memory_fd, (off_t)size) != 0 ||
        (slots = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0)) ==
            MAP_FAILED ||
        pipe(ready) != 0 || pipe(start) != 0 || fcntl(ready[0], F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(start[1], F_SETFD, FD_CLOEXEC) != 0) {
        fprintf(stderr, "kvpool-bench: cannot set up %u clients: %s\n", n, strerror(errno));
        goto out;
    }
    if (samples_init(&s, n * pings) != 0) {
        goto out;
    }
    for (unsigned i = 0; i < n; i++) {
        slots[i].count = (uint32_t)pings;
    }
    bool started = start_clients(c, &clients, n, memory_fd, ready[1], start[0]);
    close_fd(&ready[1]); // so that the end of all clients is seen
    if (!started || !all_ready(ready[0], n)) {
        fprintf(stderr, "control: not all of %u clients started\n", n);
    }
    close_fd(&start[1]); // go
    if (!procs_wait(&clients, MANY_MS)) {
        fprintf(stderr, "control: some of %u clients did not end in %u s\n", n, MANY_MS / 1000);
    }
    procs_stop(&clients, STOP_MS);
    collect(slots, n, &s);
    samples_emit(&s, name);
    rc = 0;
out:
    procs_stop(&clients, STOP_MS);
    free(s.us);
    for (int i = 0; i < 2; i++) {
        close_fd(&ready[i]);
        close_fd(&start[i]);
    }
    if (slots != MAP_FAILED) {
        munmap(slots, size);
    }
    close_fd(&memory_fd);
    return rc;
}

// ---- the servers

static void sleep_ms(long ms) {
    const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

static int start_echo(struct control *c) {
    const char *argv[] = {c->self, ROLE_ECHO, c->url, NULL};
    const uint64_t end = bench_now_ns() + START_MS * 1000000ull;
    pid_t pid = procs_start(&c->servers, argv, NULL);
    int rc = pid < 0 ? NNG_ESYSERR : nng_req0_open(&c->echo);
    if (rc != 0) {
        return 1;
    }
    c->echo_open = true;
    nng_socket_set_ms(c->echo, NNG_OPT_RECVTIMEO, 10000);
    nng_socket_set_ms(c->echo, NNG_OPT_SENDTIMEO, 10000);
    nng_socket_set_ms(c->echo, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    while ((rc = nng_dial(c->echo, c->url, NULL, 0)) != 0) {
        if (!procs_alive(&c->servers, pid) || bench_now_ns() > end) {
            fprintf(stderr, "kvpool-bench: cannot reach the echo server: %s\n", nng_strerror(rc));
            return 1;
        }
        sleep_ms(10);
    }
    return 0;
}

static void show_log(const struct control *c) {
    char line[512];
    FILE *f = fopen(c->log, "re");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        fputs(line, stderr);
    }
    if (f != NULL) {
        fclose(f);
    }
}

static int start_daemon(struct control *c) {
    const uint64_t end = bench_now_ns() + START_MS * 1000000ull;
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    char program[512];
    char text[256];
    if (!procs_find("kvpoold", program, sizeof(program))) {
        fprintf(stderr, "kvpool-bench: no kvpoold beside this program or in $KVPOOL_BIN\n");
        return 1;
    }
    const char *argv[] = {program, "--config",  "/dev/null", "--dir",
                          c->run,  "--backend", "cpu",       NULL};
    pid_t pid = procs_start(&c->servers, argv, c->log);
    args.dir = c->run;
    args.name = "kvpool-bench";
    while (pid > 0) {
        kvpool_status status = kvpool_connect(&args, &c->client);
        if (status == KVPOOL_OK) {
            return 0;
        }
        if (!procs_alive(&c->servers, pid) || bench_now_ns() > end) {
            fprintf(stderr, "kvpool-bench: cannot reach kvpoold: %s; it said:\n",
                    kvpool_last_error(NULL, text, sizeof(text)));
            show_log(c);
            return 1;
        }
        sleep_ms(20);
    }
    return 1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static int paths_init(struct control *c) {
    const char *tmp = getenv("TMPDIR"); // NOLINT(concurrency-mt-unsafe): main thread
    int len = snprintf(c->dir, sizeof(c->dir), "%s/kvpool-bench-XXXXXX",
                       tmp != NULL && strlen(tmp) < 40 ? tmp : "/tmp");
    ssize_t self = readlink("/proc/self/exe", c->self, sizeof(c->self) - 1);
    if (len <= 0 || self <= 0 || mkdtemp(c->dir) == NULL) {
        fprintf(stderr, "kvpool-bench: no private directory: %s\n", strerror(errno));
        return 1;
    }
    snprintf(c->run, sizeof(c->run), "%s/run", c->dir);
    snprintf(c->log, sizeof(c->log), "%s/log", c->dir);
    snprintf(c->url, sizeof(c->url), "ipc://%s/echo.sock", c->dir);
    return 0;
}

int bench_control(void) {
    struct control c = {0};
    int rc = 1;
    if (paths_init(&c) != 0) {
        return 1;
    }
    if (start_echo(&c) == 0 && start_daemon(&c) == 0) {
        rc = measure_one(&c) | measure_decode(&c) | measure_many(&c, 8, "ping_8") |
             measure_many(&c, 64, "ping_64");
    }
    if (c.echo_open) {
        nng_close(c.echo);
    }
    kvpool_close(c.client);
    procs_stop(&c.servers, STOP_MS);
    nftw(c.dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return rc;
}
