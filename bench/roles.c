// SPDX-License-Identifier: Apache-2.0
// roles.c: see roles.h.
#include "bench/roles.h"

#include "bench/bench.h"

#include <kvpool/kvpool.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ECHO_SLOTS 4

// One context of the echo server: receive, send the same message back, receive ... It replies in
// NNG's callback, which is the fastest that NNG's API allows.
struct echo_slot {
    nng_aio *aio;
    nng_ctx ctx;
    bool sending;
};

static void echo_callback(void *arg) {
    struct echo_slot *slot = arg;
    if (nng_aio_result(slot->aio) != 0) {
        if (slot->sending) { // the message is still ours
            nng_msg_free(nng_aio_get_msg(slot->aio));
        }
    } else if (!slot->sending) {
        slot->sending = true;
        nng_ctx_send(slot->ctx, slot->aio); // the aio already holds the message
        return;
    }
    slot->sending = false;
    nng_ctx_recv(slot->ctx, slot->aio);
}

static int role_echo(const char *url) {
    static struct echo_slot slots[ECHO_SLOTS];
    nng_socket socket;
    int rc = nng_rep0_open(&socket);
    for (int i = 0; rc == 0 && i < ECHO_SLOTS; i++) {
        rc = nng_ctx_open(&slots[i].ctx, socket);
        if (rc == 0) {
            rc = nng_aio_alloc(&slots[i].aio, echo_callback, &slots[i]);
        }
    }
    for (int i = 0; rc == 0 && i < ECHO_SLOTS; i++) {
        nng_ctx_recv(slots[i].ctx, slots[i].aio);
    }
    if (rc == 0) {
        rc = nng_listen(socket, url, NULL, 0);
    }
    if (rc != 0) {
        fprintf(stderr, "kvpool-bench: echo server: %s\n", nng_strerror(rc));
        return 1;
    }
    for (;;) {
        pause(); // until the parent kills it
    }
}

static void keep_error(struct role_slot *slot, const kvpool_client *client) {
    if (slot->error[0] == 0) {
        kvpool_last_error(client, slot->error, sizeof(slot->error));
    }
}

static void ping_all(kvpool_client *client, struct role_slot *slot) {
    while (slot->sent < slot->count) {
        uint64_t ns = 0;
        slot->sent++;
        if (kvpool_ping(client, &ns) == KVPOOL_OK) {
            slot->us[slot->received++] = (double)ns / 1e3;
        } else {
            keep_error(slot, client);
        }
    }
}

static int role_ping(const char *dir, size_t index, int memory_fd, int ready_fd, int start_fd) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    kvpool_client *client = NULL;
    const size_t offset = index * sizeof(struct role_slot);
    char byte = 0;
    struct role_slot *slots =
        mmap(NULL, offset + sizeof(*slots), PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    if (slots == MAP_FAILED) {
        return 1;
    }
    struct role_slot *slot = &slots[index];
    args.dir = dir;
    args.name = "bench-ping";
    args.timeout_ms = 20000;
    if (kvpool_connect(&args, &client) == KVPOOL_OK) {
        slot->connected = 1;
    } else {
        keep_error(slot, NULL);
    }
    if (write(ready_fd, "r", 1) != 1 || read(start_fd, &byte, 1) != 0 || client == NULL) {
        return 1;
    }
    ping_all(client, slot);
    kvpool_close(client);
    return 0;
}

int role_main(int argc, char **argv) {
    if (strcmp(argv[0], ROLE_ECHO) == 0 && argc == 2) {
        return role_echo(argv[1]);
    }
    if (strcmp(argv[0], ROLE_PING) == 0 && argc == 6) {
        int fds[3];
        for (int i = 0; i < 3; i++) {
            fds[i] = (int)strtol(argv[3 + i], NULL, 10);
        }
        return role_ping(argv[1], strtoul(argv[2], NULL, 10), fds[0], fds[1], fds[2]);
    }
    fprintf(stderr, "kvpool-bench: no role '%s'\n", argv[0]);
    return 64;
}
