// SPDX-License-Identifier: Apache-2.0
// http.h: /metrics and /healthz for monitoring, on NNG's HTTP server.
//
//   /healthz   an NNG thread answers at once: 200 "ok", or 503 with the reason
//   /metrics   NNG thread: slot -> inbox ... loop thread: text -> 200
//                          `-> timer of 2 s ... NNG thread:        503
//
// Invariants
//  1. /healthz needs no thread but the one it runs on: it turns red when the loop hangs.
//  2. Each request for /metrics is answered once, by the loop or by its timer, whoever is first.
//  3. GET and HEAD only (else 405); every other path is 404.
//  4. Only a loopback address is listened at, unless the configuration says that the world may look.
// Threads: http_address_check any; the rest the loop thread.
#ifndef KVPOOL_DAEMON_HTTP_H
#define KVPOOL_DAEMON_HTTP_H

#include "daemon/health.h"
#include "daemon/text.h"
#include "proto/err.h"

#include <uv.h>

#define HTTP_TYPE_METRICS "text/plain; version=0.0.4; charset=utf-8"

struct http;
typedef void (*http_metrics_fn)(void *arg, struct text *text); // loop thread

// "127.0.0.1:9470", "[::1]:9470"; "" is allowed: off. Port 0: any free one. Errors: INVAL, PERM
// (not loopback, and not `world`).
int http_address_check(const char *address, bool world, struct err *err);

// `health` must outlive the server. Errors: those of http_address_check, SYSTEM, NOMEM.
int http_open(uv_loop_t *loop, const char *address, bool world, const struct health *health,
              http_metrics_fn metrics, void *arg, struct http **ret, struct err *err);
uint16_t http_port(const struct http *h);

// Answers who waits for the loop with 503 and closes. Never hangs: false when NNG did not end within
// 3 s; memory and `health` must then be left to process exit.
bool http_close(struct http *h); // NULL is allowed

#endif
