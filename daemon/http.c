// SPDX-License-Identifier: Apache-2.0
// http.c: see http.h. A scrape is a request for /metrics on its way through the loop:
//
//   FREE -> WAITING -> ANSWERED (loop) | EXPIRED (timer) ... both have let go -> FREE
//
// Invariants (beside http.h's)
//  5. Who moves a scrape out of WAITING finishes its aio; nobody else touches it.
//  6. A scrape is reused only when the inbox and the timer both have let go of it.
//  7. NNG frees its two handlers on a thread of its own, some time after the server is released: our
//     memory is freed only after both are gone.
#include "daemon/http.h"

#include "daemon/bounded.h"
#include "daemon/inbox.h"
#include "daemon/leakcheck.h"
#include "daemon/log.h"

#include <arpa/inet.h>
#include <nng/nng.h>
#include <nng/supplemental/http/http.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SCRAPES = 8, // at once; more are answered 503
    ANSWER_MS = 2000,
    CLOSE_TIMEOUT_S = 3,
    HANDLERS = 2,
};
enum scrape_state { FREE, CLAIMED, WAITING, ANSWERED, EXPIRED };

struct scrape {
    struct inbox_item item;
    struct http *http;
    nng_aio *aio;   // NNG's, to finish
    nng_aio *timer; // ours
    uint64_t since_ns;
    atomic_int state;
    atomic_int holders; // inbox, timer
};

struct http {
    const struct health *health;
    http_metrics_fn metrics;
    void *arg;
    nng_http_server *server;
    struct inbox *inbox;
    struct scrape scrapes[SCRAPES];
    uint16_t port;
    atomic_bool closing;
    pthread_mutex_t lock; // of the rest
    pthread_cond_t gone;
    int handlers; // that NNG has not freed
};

// --- answers, on any thread ---

static void answer(nng_aio *aio, uint16_t status, const char *type, const char *text, size_t len) {
    nng_http_res *res = NULL;
    int rv = nng_http_res_alloc(&res);
    if (rv == 0) {
        rv = nng_http_res_set_status(res, status);
    }
    if (rv == 0) {
        rv = nng_http_res_set_header(res, "Content-Type", type);
    }
    if (rv == 0) {
        rv = nng_http_res_set_header(res, "Cache-Control", "no-store");
    }
    if (rv == 0) {
        rv = nng_http_res_copy_data(res, text, len);
    }
    if (rv != 0) {
        if (res != NULL) {
            nng_http_res_free(res);
        }
        nng_aio_finish(aio, rv);
        return;
    }
    nng_aio_set_output(aio, 0, res);
    nng_aio_finish(aio, 0);
}

static void refuse(nng_aio *aio, const char *why) {
    answer(aio, NNG_HTTP_STATUS_SERVICE_UNAVAILABLE, "text/plain", why, strlen(why));
}

static bool move(struct scrape *s, int from, int to) {
    return atomic_compare_exchange_strong(&s->state, &from, to);
}

static void let_go(struct scrape *s) {
    if (atomic_fetch_sub(&s->holders, 1) == 1) {
        atomic_store(&s->state, FREE);
    }
}

// --- NNG's threads ---

static void on_healthz(nng_aio *aio) {
    const struct http *h = nng_http_handler_get_data(nng_aio_get_input(aio, 1));
    char reason[HEALTH_REASON], text[HEALTH_REASON + 1];
    const bool ok = health_check(h->health, reason);
    const int len = snprintf(text, sizeof text, "%s\n", reason);
    answer(aio, ok ? NNG_HTTP_STATUS_OK : NNG_HTTP_STATUS_SERVICE_UNAVAILABLE, "text/plain", text,
           (size_t)len);
}

static void on_timer(void *arg) {
    struct scrape *s = arg;
    const uint64_t waited_ms = (uv_hrtime() - s->since_ns) / 1000000u;
    if (atomic_load(&s->state) == WAITING && waited_ms < ANSWER_MS &&
        !atomic_load(&s->http->closing)) { // NNG 1.5 may be early
        nng_sleep_aio((nng_duration)(ANSWER_MS - waited_ms), s->timer);
        return;
    }
    if (move(s, WAITING, EXPIRED)) {
        refuse(s->aio, "the loop does not answer\n");
    }
    let_go(s);
}

static void on_metrics(nng_aio *aio) {
    struct http *h = nng_http_handler_get_data(nng_aio_get_input(aio, 1));
    for (int i = 0; i < SCRAPES && !atomic_load(&h->closing); i++) {
        struct scrape *s = &h->scrapes[i];
        if (!move(s, FREE, CLAIMED)) {
            continue;
        }
        s->aio = aio;
        s->since_ns = uv_hrtime();
        atomic_store(&s->holders, 2);
        atomic_store(&s->state, WAITING);
        nng_sleep_aio(ANSWER_MS, s->timer);
        if (!inbox_push(h->inbox, &s->item)) {
            if (move(s, WAITING, EXPIRED)) {
                refuse(aio, "the daemon ends\n");
            }
            nng_aio_cancel(s->timer);
            let_go(s);
        }
        return;
    }
    refuse(aio, "too many requests at once\n");
}

static void on_handler_gone(void *arg) {
    struct http *h = arg;
    pthread_mutex_lock(&h->lock);
    h->handlers--;
    pthread_cond_signal(&h->gone);
    pthread_mutex_unlock(&h->lock);
}

// --- the loop thread ---

static void on_item(void *arg, struct inbox_item *item) {
    struct http *h = arg;
    struct scrape *s = (struct scrape *)((char *)item - offsetof(struct scrape, item));
    if (move(s, WAITING, ANSWERED)) {
        struct text text = {0};
        if (!atomic_load(&h->closing)) {
            h->metrics(h->arg, &text);
        }
        if (text.data != NULL && !text.failed) {
            answer(s->aio, NNG_HTTP_STATUS_OK, HTTP_TYPE_METRICS, text.data, text.len);
        } else {
            refuse(s->aio, text.failed ? "out of memory\n" : "the daemon ends\n");
        }
        text_free(&text);
        nng_aio_cancel(s->timer);
    }
    let_go(s);
}

// --- the address ---

// "HOST:PORT" or "[HOST]:PORT" with a numeric host.
static bool parse_address(const char *address, bool *ret_loopback) {
    const char *colon = strrchr(address, ':');
    char host[64], *end;
    struct in_addr v4;
    struct in6_addr v6;
    unsigned long port;
    size_t len;
    if (colon == NULL || colon[1] < '0' || colon[1] > '9') {
        return false;
    }
    port = strtoul(colon + 1, &end, 10);
    len = (size_t)(colon - address);
    if (*end != '\0' || port > UINT16_MAX || len < 2 || len >= sizeof host) {
        return false;
    }
    memcpy(host, address, len);
    host[len] = '\0';
    if (host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        *ret_loopback = inet_pton(AF_INET6, host + 1, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
        return inet_pton(AF_INET6, host + 1, &v6) == 1;
    }
    if (inet_pton(AF_INET, host, &v4) != 1) {
        return false;
    }
    *ret_loopback = ntohl(v4.s_addr) >> 24 == 127;
    return true;
}

int http_address_check(const char *address, bool world, struct err *err) {
    bool loopback;
    if (address[0] == '\0') {
        return 0;
    }
    if (!parse_address(address, &loopback)) {
        return err_set(err, KVPOOL_E_INVAL,
                       "http: '%.60s' is not a numeric address and port (127.0.0.1:9470, "
                       "[::1]:9470)",
                       address);
    }
    if (!loopback && !world) {
        return err_set(err, KVPOOL_E_PERM,
                       "http: %.60s is not a loopback address; http_public = yes lets others look",
                       address);
    }
    return 0;
}

// --- open and close ---

static int add_handler(struct http *h, const char *path, void (*fn)(nng_aio *)) {
    nng_http_handler *handler;
    int rv = nng_http_handler_alloc(&handler, path, fn);
    if (rv != 0) {
        return rv;
    }
    rv = nng_http_handler_set_method(handler, "GET"); // and HEAD
    if (rv == 0) {
        rv = nng_http_handler_set_data(handler, h, on_handler_gone);
    }
    if (rv != 0) {
        nng_http_handler_free(handler);
        return rv;
    }
    pthread_mutex_lock(&h->lock);
    h->handlers++;
    pthread_mutex_unlock(&h->lock);
    rv = nng_http_server_add_handler(h->server, handler);
    if (rv != 0) {
        nng_http_handler_free(handler);
    }
    return rv;
}

// NNG's end. Invariant 7.
static void tear_down(void *arg) { // a thread of its own
    struct http *h = arg;
    if (h->server != NULL) {
        nng_http_server_stop(h->server);
        nng_http_server_release(h->server);
    }
    pthread_mutex_lock(&h->lock);
    while (h->handlers > 0) {
        pthread_cond_wait(&h->gone, &h->lock);
    }
    pthread_mutex_unlock(&h->lock);
    for (int i = 0; i < SCRAPES; i++) {
        if (h->scrapes[i].timer != NULL) {
            nng_aio_stop(h->scrapes[i].timer);
        }
    }
}

bool http_close(struct http *h) {
    if (h == NULL) {
        return true;
    }
    atomic_store(&h->closing, true);
    inbox_shut(h->inbox);
    inbox_drain(h->inbox); // answers who waits
    if (!bounded_run(tear_down, h, CLOSE_TIMEOUT_S)) {
        log_error("http.close", "error=\"NNG does not end\" waited_s=%d", CLOSE_TIMEOUT_S);
        leakcheck_give_up();
        inbox_abandon(h->inbox);
        return false;
    }
    for (int i = 0; i < SCRAPES; i++) {
        nng_aio_free(h->scrapes[i].timer);
    }
    inbox_close(h->inbox);
    pthread_cond_destroy(&h->gone);
    pthread_mutex_destroy(&h->lock);
    free(h);
    return true;
}

static int start(struct http *h, const char *address) {
    char text[128];
    nng_sockaddr sa;
    nng_url *url;
    int rv;
    for (int i = 0; i < SCRAPES; i++) {
        h->scrapes[i].http = h;
        rv = nng_aio_alloc(&h->scrapes[i].timer, on_timer, &h->scrapes[i]);
        if (rv != 0) {
            return rv;
        }
    }
    snprintf(text, sizeof text, "http://%s", address);
    rv = nng_url_parse(&url, text);
    if (rv != 0) {
        return rv;
    }
    rv = nng_http_server_hold(&h->server, url);
    nng_url_free(url);
    if (rv == 0) {
        rv = add_handler(h, "/healthz", on_healthz);
    }
    if (rv == 0) {
        rv = add_handler(h, "/metrics", on_metrics);
    }
    if (rv == 0) {
        rv = nng_http_server_start(h->server);
    }
    if (rv == 0) {
        rv = nng_http_server_get_addr(h->server, &sa);
    }
    if (rv == 0) {
        h->port = ntohs(sa.s_family == NNG_AF_INET6 ? sa.s_in6.sa_port : sa.s_in.sa_port);
    }
    return rv;
}

int http_open(uv_loop_t *loop, const char *address, bool world, const struct health *health,
              http_metrics_fn metrics, void *arg, struct http **ret, struct err *err) {
    struct http *h;
    int rc = http_address_check(address, world, err);
    int rv;
    if (rc != 0) {
        return rc;
    }
    h = calloc(1, sizeof *h);
    if (h == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    h->health = health;
    h->metrics = metrics;
    h->arg = arg;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->gone, NULL);
    rc = inbox_open(loop, on_item, h, &h->inbox, err);
    if (rc != 0) {
        pthread_cond_destroy(&h->gone);
        pthread_mutex_destroy(&h->lock);
        free(h);
        return rc;
    }
    rv = start(h, address);
    if (rv != 0) {
        rc =
            err_set(err, KVPOOL_E_SYSTEM, "cannot serve HTTP at %s: %s", address, nng_strerror(rv));
        http_close(h);
        return rc;
    }
    *ret = h;
    return 0;
}

uint16_t http_port(const struct http *h) {
    return h->port;
}
