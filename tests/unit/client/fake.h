// SPDX-License-Identifier: Apache-2.0
// fake.h: a daemon that a test scripts: both sockets in a private directory, answered by one
// thread. It speaks SP by itself, so that it can also send what NNG never would.
//
// Invariants
//  1. Without a hook every request is answered well, in order, at once.
//  2. Hooks run on the fake's thread; fake_lock() keeps it out while a test looks at counters.
//  3. Every numbered request of a control connection carries seq 1, 2, 3 ...: fake_stop() fails the
//     test otherwise.
// Threads: the test's main thread, except what a hook calls.
#ifndef KVPOOL_TESTS_UNIT_CLIENT_FAKE_H
#define KVPOOL_TESTS_UNIT_CLIENT_FAKE_H

#include "proto/proto.h"

#include <pthread.h>

#define FAKE_CONNS 32
#define FAKE_OPS 40

struct fake;
struct fake_conn {
    int fd; // -1: free
    bool control;
    bool greeted;
    uint64_t seq;   // highest seen
    size_t have;    // bytes in buf
    uint8_t *buf;   // control only
    uint32_t sp_id; // of the request being handled
};

// Returns true when it has dealt with the request itself.
typedef bool (*fake_hook)(struct fake *f, struct fake_conn *c, const struct proto_msg *request);

struct fake {
    char dir[64];
    uint64_t epoch;
    uint32_t max_inflight;
    fake_hook hook; // NULL: none
    int hook_state; // the hook's own
    bool mute_control, mute_fd, mute_greeting, hold_reading;
    bool bad_greeting, close_at_greeting;
    uint64_t features;      // that it says it has
    uint32_t list_total;    // objects that lists show
    uint32_t cached_tokens; // how many of any prompt are found
    uint32_t kv_heads, head_dim;
    unsigned requests[FAKE_OPS]; // per op
    unsigned sessions, hellos;
    unsigned seq_errors;
    struct proto_attn last_attn;
    struct proto_attend last_attend;
    struct proto_pool_create_as last_pool; // of either form
    struct proto_batch_item last_items[8];
    struct proto_step_begin last_begin;
    uint64_t last_freed_region;
    struct proto_msg last_prefix; // the last request of prefix sharing, without what it points to
    uint32_t *last_ids;           // and its token ids; room for PROTO_MAX_TOKENS
    struct proto_fd_open last_open;
    uint64_t last_open_epoch; // of its header
    unsigned resumes;
    uint64_t session;

    pthread_mutex_t lock;
    pthread_t thread;
    bool running;
    int wake[2];
    int fd_listener, control_listener;
    struct fake_conn conns[FAKE_CONNS];
};

void fake_init(struct fake *f);    // directory and defaults, nothing listens
void fake_start(struct fake *f);   // a new instance: next epoch
void fake_stop(struct fake *f);    // closes every socket; the files go
void fake_cleanup(struct fake *f); // stops and removes the directory

void fake_lock(struct fake *f);
void fake_unlock(struct fake *f);
// Sets a field that the fake's thread reads.
#define fake_set(f, field, value) \
    do {                          \
        fake_lock(f);             \
        (f)->field = (value);     \
        fake_unlock(f);           \
    } while (0)
void fake_set_hook(struct fake *f, fake_hook hook);
void fake_wake(struct fake *f); // after setting hold_reading
unsigned fake_count(struct fake *f, uint16_t op);
// Waits until `op` was requested n times.
void fake_await(struct fake *f, uint16_t op, unsigned n);
// Closes connections from the daemon's side.
void fake_drop(struct fake *f, bool control);
// Closes and removes the control listener, or opens it again.
void fake_control_listen(struct fake *f, bool on);

// For hooks.
void fake_reply(struct fake *f, struct fake_conn *c, const struct proto_header *request, int status,
                const void *body, size_t body_len, const void *records, size_t records_len);
void fake_error(struct fake *f, struct fake_conn *c, const struct proto_header *request, int status,
                uint64_t detail, const char *text);
void fake_send(struct fake_conn *c, const void *bytes, size_t len); // control: SP header is added
void fake_send_raw(struct fake_conn *c, const void *bytes, size_t len);
void fake_send_fds(struct fake_conn *c, const void *bytes, size_t len, const int *fds, unsigned n);
void fake_close(struct fake_conn *c);

// A client of it with a short time-out (ms, 0: long). Fails the test when it cannot connect.
kvpool_client *fake_connect(struct fake *f, uint32_t timeout_ms);
kvpool_pool fake_pool(kvpool_client *c); // kv_heads 2, head_dim 64

// Asserts a status, with the library's message when it is another. Afterwards what the fake noted
// about the request may be read without its lock.
#define expect(client, expected, call) \
    expect_at((client), (expected), (call), #call, __FILE__, __LINE__)
void expect_at(const kvpool_client *client, kvpool_status expected, kvpool_status got,
               const char *what, const char *file, int line);
// Asserts that the client's last message contains a text.
void expect_message(const kvpool_client *client, const char *part);

unsigned open_fds(void); // of this process

#endif
