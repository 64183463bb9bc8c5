// SPDX-License-Identifier: Apache-2.0
// main.c: kvpoold's start, signals, health and end. What requests mean is dispatch's, how they
// arrive is the server's.
//
//   configuration -> log -> directory and lock -> dispatch -> server -> READY=1 -> loop
//   SIGTERM, SIGINT: drain -> all answered, or drain_timeout -> close -> exit 0; the second: at once
//   SIGHUP: read the configuration again, reopen the log
//
// Invariants
//  1. READY=1 is sent after the socket listens, STOPPING=1 before anything closes.
//  2. The watchdog is fed by the loop itself and only while the engine is healthy: a stuck loop or
//     device ends in a restart.
//  3. From the first SIGTERM on, SIGALRM ends the process whatever hangs.
// Exit status: 0 clean end, 1 cannot start, or the end hung, 3 too many leaked pipes, 4 the device is
// lost (both: restart me).
// Thread: loop thread.
#include "daemon/config.h"
#include "daemon/dispatch.h"
#include "daemon/feed.h"
#include "daemon/health.h"
#include "daemon/http.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "daemon/runtime_dir.h"
#include "daemon/server.h"

#include <inttypes.h>
#include <nng/nng.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    EXIT_LEAKED = 3,
    EXIT_DEVICE = 4,
    DRAIN_POLL_MS = 5,   // how often a drain looks whether it is done
    HEALTH_MS = 1000,    // leak guard, lost device
    CLOSE_GRACE_S = 10,  // after drain_timeout, for closing
    REPORT_BYTES = 8192, // of a reload
};

struct daemon {
    uv_loop_t loop;
    int argc;
    char **argv;
    struct config config;
    struct runtime_dir *dir;
    struct dispatch *dispatch;
    struct server *server;
    struct events *events; // NULL: off; with them the feed
    struct feed *feed;
    struct http *http; // NULL: off
    struct health progress;
    uv_signal_t signals[3];
    uv_timer_t health;   // leak guard, lost device
    uv_timer_t watchdog; // feeds systemd
    uv_timer_t drain;    // runs while stopping
    uv_timer_t beat;     // of the loop, for /healthz
    uint64_t drain_until;
    bool stopping;
    bool unhealthy; // said so in the log
    int status;     // exit status
};

// --- stopping ---

static void on_alarm(int signum) {
    static const char text[] = "kvpoold: the end hangs, leaving\n";
    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n;
    (void)signum;
    _exit(EXIT_FAILURE);
}

static void close_handle(void *handle) {
    if (!uv_is_closing((uv_handle_t *)handle)) {
        uv_close((uv_handle_t *)handle, NULL);
    }
}

static void close_all(struct daemon *d) {
    // Dispatch may still reply while it closes, and gets no request before the server is closed:
    // those are handed out by the loop, which does not run in between.
    bool ended = http_close(d->http); // first: it looks at dispatch
    dispatch_close(d->dispatch);
    ended = server_close(d->server) && ended;
    ended = feed_close(d->feed) && ended;
    for (size_t i = 0; i < sizeof d->signals / sizeof *d->signals; i++) {
        close_handle(&d->signals[i]);
    }
    close_handle(&d->health);
    close_handle(&d->watchdog);
    close_handle(&d->drain);
    close_handle(&d->beat);
    if (ended) {
        events_close(d->events);
    }
    if (!ended) {
        log_notice("daemon.exit", "status=%d", d->status);
        _exit(d->status);
    }
}

static void on_drain(uv_timer_t *timer) {
    struct daemon *d = timer->data;
    const bool done = dispatch_idle(d->dispatch) && server_drained(d->server);
    if (!done && uv_now(&d->loop) < d->drain_until) {
        return;
    }
    if (!done) {
        log_warn("daemon.drain", "result=timeout busy=%" PRIu32, server_busy(d->server));
    }
    uv_timer_stop(timer);
    close_all(d);
}

static void stop(struct daemon *d, const char *why) {
    const uint32_t timeout = d->config.drain_timeout_ms;
    if (d->stopping) {
        return;
    }
    d->stopping = true;
    log_notice("daemon.stop", "reason=%s drain_timeout_ms=%" PRIu32, why, timeout);
    notify_send("STOPPING=1\nSTATUS=Finishing what is in flight");
    alarm(timeout / 1000 + CLOSE_GRACE_S);
    dispatch_drain(d->dispatch);
    server_drain(d->server);
    uv_update_time(&d->loop);
    d->drain_until = uv_now(&d->loop) + timeout;
    uv_timer_start(&d->drain, on_drain, 0, DRAIN_POLL_MS);
}

// --- signals ---

static void log_report(char *report) {
    char *rest = report;
    const char *line;
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (line[0] != '\0') {
            log_notice("config.reload", "change=\"%s\"", line);
        }
    }
}

static void reload(struct daemon *d) {
    char report[REPORT_BYTES];
    struct timespec now;
    struct err err;
    int rc;
    clock_gettime(CLOCK_MONOTONIC, &now);
    notify_send("RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
                (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u);
    rc = log_reopen();
    if (rc != 0) {
        log_error("log.reopen", "path=\"%s\" error=\"%s\"", d->config.log_file, strerror(-rc));
    }
    if (config_reload(&d->config, d->argc, d->argv, report, sizeof report, &err) != 0) {
        log_error("config.reload", "result=kept error=\"%s\"", err.text);
    } else {
        log_level_set(d->config.log_level);
        log_report(report);
        dispatch_reload(d->dispatch);
        log_notice("config.reload", "result=ok file=\"%s\"", d->config.file);
    }
    notify_send("READY=1");
}

static void on_signal(uv_signal_t *handle, int signum) {
    struct daemon *d = handle->data;
    if (signum == SIGHUP) {
        if (!d->stopping) {
            reload(d);
        }
        return;
    }
    if (d->stopping) {
        log_warn("daemon.exit", "reason=\"second signal\" signal=%d", signum);
        _exit(EXIT_FAILURE);
    }
    stop(d, signum == SIGTERM ? "SIGTERM" : "SIGINT");
}

// --- health ---

static void on_health(uv_timer_t *timer) {
    struct daemon *d = timer->data;
    const uint64_t leaked = dispatch_leaked_pipes(d->dispatch);
    const bool healthy = dispatch_healthy(d->dispatch);
    if (healthy == d->unhealthy) {
        d->unhealthy = !healthy;
        log_event(healthy ? LOG_NOTICE : LOG_ERROR, "daemon.health", "engine=%s",
                  healthy ? "advancing" : "stuck");
    }
    if (leaked > d->config.leak_limit && !d->stopping) {
        log_error("daemon.leak", "leaked_pipes=%" PRIu64 " limit=%" PRIu32 " action=restart",
                  leaked, d->config.leak_limit);
        d->status = EXIT_LEAKED;
        stop(d, "leaked_pipes");
    }
    if (dispatch_lost(d->dispatch) && !d->stopping) {
        log_error("daemon.device", "backend=\"%s\" result=lost action=restart",
                  dispatch_backend(d->dispatch));
        d->status = EXIT_DEVICE;
        stop(d, "device_lost");
    }
}

static void on_watchdog(uv_timer_t *timer) {
    struct daemon *d = timer->data;
    if (dispatch_healthy(d->dispatch)) {
        notify_send("WATCHDOG=1");
    }
}

static void on_beat(uv_timer_t *timer) {
    struct daemon *d = timer->data;
    health_beat(&d->progress);
}

static void on_metrics(void *arg, struct text *text) {
    struct daemon *d = arg;
    struct events_range range = {0};
    if (d->events != NULL) {
        events_range(d->events, &range);
    }
    dispatch_metrics(d->dispatch, range.newest, text);
}

// --- start ---

static void raise_fd_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
            log_warn("daemon.start", "error=\"cannot raise the limit of open files: %m\"");
        }
    }
}

static void handle_signals(struct daemon *d) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction alarm_action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &alarm_action, NULL);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uv_signal_init(&d->loop, &d->signals[i]);
        d->signals[i].data = d;
        uv_signal_start(&d->signals[i], on_signal, numbers[i]);
    }
}

static void start_timers(struct daemon *d) {
    const uint64_t watchdog_ms = notify_watchdog_us() / 3000;
    uv_timer_init(&d->loop, &d->health);
    uv_timer_init(&d->loop, &d->watchdog);
    uv_timer_init(&d->loop, &d->drain);
    uv_timer_init(&d->loop, &d->beat);
    d->health.data = d;
    d->watchdog.data = d;
    d->drain.data = d;
    d->beat.data = d;
    uv_timer_start(&d->beat, on_beat, 0, HEALTH_BEAT_MS);
    uv_timer_start(&d->health, on_health, HEALTH_MS, HEALTH_MS);
    if (watchdog_ms > 0) {
        uv_timer_start(&d->watchdog, on_watchdog, 0, watchdog_ms);
    }
}

static void announce(const struct daemon *d) {
    const char *nng = nng_version();
    unsigned major = 0, minor = 0;
    char *end;
    major = (unsigned)strtoul(nng, &end, 10);
    minor = *end == '.' ? (unsigned)strtoul(end + 1, NULL, 10) : 0;
    log_info("daemon.start",
             "version=%s pid=%ld dir=\"%s\" backend=\"%s\" epoch=%" PRIu64 " pools=%" PRIu32
             " nng=%s config=\"%s\"",
             config_version(), (long)getpid(), d->config.dir, dispatch_backend(d->dispatch),
             dispatch_epoch(d->dispatch), d->config.num_pools, nng, d->config.file);
    if (major == 1 && minor < 10) {
        log_info("daemon.nng", "version=%s note=\"production wants 1.10 or newer\"", nng);
    }
    if (runtime_dir_is_open_to_all(d->dir)) {
        log_warn("daemon.dir", "dir=\"%s\" note=\"every user may write here\"", d->config.dir);
    }
    notify_send("READY=1\nMAINPID=%ld\nSTATUS=Serving %" PRIu32 " pools of the configuration on %s",
                (long)getpid(), d->config.num_pools, dispatch_backend(d->dispatch));
}

// The event stream and the HTTP server, as far as they are configured.
static int open_observers(struct daemon *d, struct err *err) {
    const struct config *c = &d->config;
    int rc = 0;
    health_init(&d->progress, c->health_deadline_ms, dispatch_stalled_since, d->dispatch);
    if (c->events) {
        rc = events_open(c->event_ring, c->event_tokens != 0, dispatch_epoch(d->dispatch),
                         &d->events, err);
        if (rc == 0) {
            rc = feed_open(c->dir, d->events, &d->feed, err);
        }
        if (rc == 0) {
            dispatch_observe(d->dispatch, events_observe, d->events);
        }
    }
    if (rc == 0 && c->http[0] != '\0') {
        rc = http_open(&d->loop, c->http, c->http_public != 0, &d->progress, on_metrics, d,
                       &d->http, err);
    }
    if (rc == 0 && d->http != NULL) {
        log_info("http.listen", "address=%s port=%u", c->http, http_port(d->http));
    }
    return rc;
}

static int run(struct daemon *d, struct err *err) {
    int rc = runtime_dir_open(d->config.dir, d->config.dir_mode, &d->dir, err);
    if (rc != 0) {
        return rc;
    }
    uv_loop_init(&d->loop);
    handle_signals(d);
    rc = dispatch_open(&d->loop, &d->config, &d->dispatch, err);
    if (rc != 0) {
        goto close_loop;
    }
    rc = open_observers(d, err);
    if (rc != 0) {
        goto close_observers;
    }
    rc = server_open(&d->loop, &d->config, dispatch_request, dispatch_pipe, d->dispatch, &d->server,
                     err);
    if (rc != 0) {
        goto close_observers;
    }
    dispatch_server(d->dispatch, d->server);
    start_timers(d);
    announce(d);
    uv_run(&d->loop, UV_RUN_DEFAULT); // ends when close_all has closed every handle
    uv_loop_close(&d->loop);
    runtime_dir_close(d->dir);
    return 0;

close_observers:
    http_close(d->http);
    dispatch_close(d->dispatch);
    if (feed_close(d->feed)) {
        events_close(d->events);
    }
close_loop:
    for (size_t i = 0; i < sizeof d->signals / sizeof *d->signals; i++) {
        close_handle(&d->signals[i]);
    }
    uv_run(&d->loop, UV_RUN_DEFAULT);
    uv_loop_close(&d->loop);
    runtime_dir_close(d->dir);
    return rc;
}

int main(int argc, char **argv) {
    static struct daemon d;
    struct err err;
    int rc;

    d.argc = argc;
    d.argv = argv;
    signal(SIGPIPE, SIG_IGN);
    if (config_load(argc, argv, &d.config, &err) != 0) {
        fprintf(stderr, "kvpoold: %s\n", err.text);
        return EXIT_FAILURE;
    }
    if (d.config.print_config) {
        config_print(&d.config);
        return EXIT_SUCCESS;
    }
    if (d.config.check_config) {
        puts("configuration ok");
        return EXIT_SUCCESS;
    }
    rc = log_open(d.config.log_file[0] != '\0' ? d.config.log_file : NULL, d.config.log_level);
    if (rc != 0) {
        fprintf(stderr, "kvpoold: cannot open log file %s: %s\n", d.config.log_file, strerror(-rc));
        return EXIT_FAILURE;
    }
    raise_fd_limit();
    if (run(&d, &err) != 0) {
        log_error("daemon.start", "error=\"%s\"", err.text);
        if (d.config.log_file[0] != '\0') { // who starts it by hand looks at the terminal
            fprintf(stderr, "kvpoold: %s\n", err.text);
        }
        return EXIT_FAILURE;
    }
    log_notice("daemon.exit", "status=%d dropped_log_lines=%" PRIu64, d.status, log_dropped());
    return d.status;
}
