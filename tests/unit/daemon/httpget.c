// SPDX-License-Identifier: Apache-2.0
// httpget.c: see httpget.h.
#include "tests/unit/daemon/httpget.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_REPLY = 4 << 20 };

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int connect_to(uint16_t port) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    const struct timeval timeout = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

void http_request(uint16_t port, const char *method, const char *path, struct http_reply *ret) {
    const double began = now_s();
    char request[512];
    const char *end, *length;
    size_t n = 0;
    ssize_t got;
    char *all = malloc(MAX_REPLY + 1);
    const int fd = connect_to(port);
    const int len =
        snprintf(request, sizeof request,
                 "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", method, path);
    *ret = (struct http_reply){.length = -1};
    if (fd < 0 || all == NULL || send(fd, request, (size_t)len, MSG_NOSIGNAL) != len) {
        goto out;
    }
    while (n < MAX_REPLY && (got = recv(fd, all + n, MAX_REPLY - n, 0)) > 0) {
        n += (size_t)got;
    }
    all[n] = '\0';
    end = strstr(all, "\r\n\r\n");
    if (end == NULL || strncmp(all, "HTTP/1.1 ", 9) != 0) {
        goto out;
    }
    ret->status = (int)strtol(all + 9, NULL, 10);
    snprintf(ret->head, sizeof ret->head, "%.*s", (int)(end - all), all);
    length = strcasestr(ret->head, "\r\nContent-Length:");
    if (length != NULL) {
        ret->length = strtol(strchr(length, ':') + 1, NULL, 10);
    }
    ret->len = n - (size_t)(end + 4 - all);
    ret->body = strdup(end + 4);
    ret->took_s = now_s() - began;
out:
    free(all);
    if (fd >= 0) {
        close(fd);
    }
}

int http_get(uint16_t port, const char *path) {
    struct http_reply reply;
    http_request(port, "GET", path, &reply);
    free(reply.body);
    return reply.status;
}
