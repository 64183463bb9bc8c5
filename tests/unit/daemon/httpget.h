// SPDX-License-Identifier: Apache-2.0
// httpget.h: one HTTP request over a plain socket, as a monitoring system makes it.
// Thread: any.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_HTTPGET_H
#define KVPOOL_TESTS_UNIT_DAEMON_HTTPGET_H

#include <stddef.h>
#include <stdint.h>

struct http_reply {
    int status;      // 0: none came within 10 s
    char head[2048]; // status line and headers
    char *body;      // terminated; free()
    size_t len;      // of the body
    long length;     // what Content-Length says, -1: nothing
    double took_s;
};

void http_request(uint16_t port, const char *method, const char *path, struct http_reply *ret);
// GET; the status. The body is dropped.
int http_get(uint16_t port, const char *path);

#endif
