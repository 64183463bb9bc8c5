// SPDX-License-Identifier: Apache-2.0
// fake_dispatch.c: a dispatch without core and engine, so that main, server and configuration can
// be run as a process. The first byte of a request says what to do: 'h' is answered after 300 ms,
// 'H' never (until close), anything else at once; every answer is an echo. 'e' is also an event.
//
// FAKE_LEAKS: leaked pipes reported. FAKE_STUCK: a path; while it exists the engine is "stuck".
// FAKE_LOST: the device is lost.
#include "daemon/dispatch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_HELD = 256, HOLD_MS = 300 };

struct dispatch {
    uv_timer_t timer;
    struct server *server;
    struct server_req *held[MAX_HELD];
    unsigned num_held;
    core_event_fn observer;
    void *observer_arg;
};

int dispatch_open(uv_loop_t *loop, const struct config *config, struct dispatch **ret,
                  struct err *err) {
    struct dispatch *d;
    if (strcmp(config->backend, "cuda") == 0) {
        return err_set(err, KVPOOL_E_BACKEND, "this build has no cuda backend");
    }
    d = calloc(1, sizeof *d);
    if (d == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    uv_timer_init(loop, &d->timer);
    d->timer.data = d;
    *ret = d;
    return 0;
}

void dispatch_server(struct dispatch *d, struct server *s) {
    d->server = s;
}

static void answer(struct dispatch *d, unsigned i) {
    struct server_req *req = d->held[i];
    d->held[i] = d->held[--d->num_held];
    server_reply(d->server, req, req->bytes, req->len);
}

static void on_timer(uv_timer_t *timer) {
    struct dispatch *d = timer->data;
    for (unsigned i = d->num_held; i-- > 0;) {
        if (d->held[i]->bytes[0] == 'h') {
            answer(d, i);
        }
    }
}

void dispatch_request(void *arg_dispatch, struct server_req *req) {
    struct dispatch *d = arg_dispatch;
    const bool hold = req->len > 0 && (req->bytes[0] == 'h' || req->bytes[0] == 'H');
    if (hold && d->num_held < MAX_HELD) {
        d->held[d->num_held++] = req;
        uv_timer_start(&d->timer, on_timer, HOLD_MS, 0);
        return;
    }
    if (req->len > 0 && req->bytes[0] == 'e' && d->observer != NULL) {
        const struct core_event event = {.kind = CORE_CLEARED, .pool_name = "fake"};
        d->observer(d->observer_arg, &event);
    }
    server_reply(d->server, req, req->bytes, req->len);
}

void dispatch_pipe(void *arg_dispatch, uint32_t pipe, uint32_t pid, bool gone) {
    (void)arg_dispatch;
    (void)pipe;
    (void)pid;
    (void)gone;
}

const char *dispatch_backend(const struct dispatch *d) {
    (void)d;
    return "fake: no threads";
}

uint64_t dispatch_leaked_pipes(const struct dispatch *d) {
    const char *leaks = getenv("FAKE_LEAKS");
    (void)d;
    return leaks != NULL ? strtoull(leaks, NULL, 10) : 0;
}

bool dispatch_healthy(const struct dispatch *d) {
    const char *path = getenv("FAKE_STUCK");
    (void)d;
    return path == NULL || access(path, F_OK) != 0;
}

bool dispatch_lost(const struct dispatch *d) {
    (void)d;
    return getenv("FAKE_LOST") != NULL;
}

void dispatch_metrics(struct dispatch *d, uint64_t events, struct text *text) {
    text_add(text, "fake_requests_held %u\nfake_events %llu\n", d->num_held,
             (unsigned long long)events);
}

void dispatch_observe(struct dispatch *d, core_event_fn fn, void *arg) {
    d->observer = fn;
    d->observer_arg = arg;
}

uint64_t dispatch_stalled_since(const void *arg_dispatch) {
    return dispatch_healthy(arg_dispatch) ? 0 : 1; // since the machine was started
}

uint64_t dispatch_epoch(const struct dispatch *d) {
    (void)d;
    return 42;
}

void dispatch_reload(struct dispatch *d) {
    (void)d;
}

void dispatch_drain(struct dispatch *d) {
    (void)d;
}

bool dispatch_idle(const struct dispatch *d) {
    return d->num_held == 0;
}

static void on_closed(uv_handle_t *handle) {
    free(handle->data);
}

void dispatch_close(struct dispatch *d) {
    while (d->num_held > 0) {
        answer(d, 0);
    }
    uv_close((uv_handle_t *)&d->timer, on_closed);
}
