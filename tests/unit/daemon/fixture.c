// SPDX-License-Identifier: Apache-2.0
// fixture.c: see fixture.h.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fixture.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WAIT_NS 10000000000ull

// --- counting allocations
// ------------------------------------------------------------------------- The linker sends malloc
// and its kin of our objects here (--wrap).

// volatile: the compiler takes it that malloc does not look at them.
static _Thread_local volatile bool counting;
static _Thread_local volatile uint32_t counted;
static _Thread_local volatile uint32_t failing; // allocations until the one that fails

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_reallocarray(void *old, size_t n, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_reallocarray(void *old, size_t n, size_t size);

// Is this the allocation that fails?
static bool fails(void) {
    counted += counting;
    return counting && failing > 0 && --failing == 0;
}

void *__wrap_malloc(size_t size) {
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size) {
    return fails() ? NULL : __real_realloc(old, size);
}

void *__wrap_reallocarray(void *old, size_t n, size_t size) {
    return fails() ? NULL : __real_reallocarray(old, n, size);
}

void allocation_fails(uint32_t nth) {
    failing = nth;
}

uint32_t allocations(void) {
    uint32_t n = counted;
    counted = 0;
    return n;
}

// --- the server double --------------------------------------------------------------------------

struct server {
    uint32_t busy, kept;
};
static struct server server;

void server_reply(struct server *s, struct server_req *req, const void *bytes, size_t len) {
    struct call *call = (struct call *)req;
    assert_ptr_equal(s, &server);
    assert_false(call->answered);
    call->answered = true;
    bool was_counting = counting;
    counting = false;
    call->reply = malloc(len > 0 ? len : 1);
    counting = was_counting;
    assert_non_null(call->reply);
    memcpy(call->reply, bytes, len);
    call->reply_len = len;
    server.busy--;
    // As in the server, the message is gone now.
    memset(call->bytes, 0xDD, req->len);
}

uint32_t server_busy(const struct server *s) {
    return s->busy;
}

uint64_t server_relistens(const struct server *s) {
    (void)s;
    return 0;
}

uint32_t server_kept(const struct server *s) {
    return s->kept;
}

void server_keeps(uint32_t n) {
    server.kept = n;
}

// --- the backend --------------------------------------------------------------------------------

#define MAX_HELD 4096
static struct {
    pthread_mutex_t lock;
    bool hold, fail;
    uint32_t n;
    struct {
        struct backend *b;
        struct backend_stream *s;
        const struct backend_program *program;
        backend_done_fn done;
        void *arg;
    } programs[MAX_HELD];
} holding = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int held_submit(struct backend *b, struct backend_stream *s,
                       const struct backend_program *program, backend_done_fn done, void *arg,
                       struct err *err) {
    pthread_mutex_lock(&holding.lock);
    bool hold = holding.hold, fail = holding.fail;
    if (hold && !fail) {
        holding.programs[holding.n].b = b;
        holding.programs[holding.n].s = s;
        holding.programs[holding.n].program = program;
        holding.programs[holding.n].done = done;
        holding.programs[holding.n++].arg = arg;
    }
    pthread_mutex_unlock(&holding.lock);
    if (fail)
        return err_set(err, KVPOOL_E_BACKEND, "device lost");
    return hold ? 0 : backend_cpu.submit(b, s, program, done, arg, err);
}

static int cpu_open(const struct backend_config *c, struct backend **ret, struct err *err) {
    return backend_cpu.open(c, ret, err);
}
static void cpu_close(struct backend *b) {
    backend_cpu.close(b);
}
static const char *cpu_describe(const struct backend *b) {
    return backend_cpu.describe(b);
}
static int cpu_mem_alloc(struct backend *b, uint64_t bytes, enum backend_place place,
                         enum backend_export how, struct backend_mem **ret, struct err *err) {
    return backend_cpu.mem_alloc(b, bytes, place, how, ret, err);
}
static void cpu_mem_free(struct backend *b, struct backend_mem *mem) {
    backend_cpu.mem_free(b, mem);
}
static uint64_t cpu_mem_bytes(const struct backend_mem *mem) {
    return backend_cpu.mem_bytes(mem);
}
static void cpu_mem_handle(const struct backend_mem *mem, struct backend_handle *ret) {
    backend_cpu.mem_handle(mem, ret);
}
static void *cpu_mem_host(const struct backend_mem *mem) {
    return backend_cpu.mem_host(mem);
}
static int cpu_pool_open(struct backend *b, const struct kv_geometry *g, enum backend_export how,
                         uint32_t pages, uint32_t rows, uint32_t entries, struct backend_pool **ret,
                         struct err *err) {
    return backend_cpu.pool_open(b, g, how, pages, rows, entries, ret, err);
}
static void cpu_pool_close(struct backend *b, struct backend_pool *pool) {
    backend_cpu.pool_close(b, pool);
}
static uint64_t cpu_pool_bytes(const struct backend_pool *pool) {
    return backend_cpu.pool_bytes(pool);
}
static void *cpu_pool_plane(const struct backend_pool *pool, uint32_t layer) {
    return backend_cpu.pool_plane(pool, layer);
}
static int cpu_stream_open(struct backend *b, struct backend_stream **ret, struct err *err) {
    return backend_cpu.stream_open(b, ret, err);
}
static void cpu_stream_close(struct backend *b, struct backend_stream *s) {
    backend_cpu.stream_close(b, s);
}

const struct backend_ops held = {.name = "cpu",
                                 .api_version = BACKEND_API_VERSION,
                                 .window = MAX_HELD,
                                 .open = cpu_open,
                                 .close = cpu_close,
                                 .describe = cpu_describe,
                                 .mem_alloc = cpu_mem_alloc,
                                 .mem_free = cpu_mem_free,
                                 .mem_bytes = cpu_mem_bytes,
                                 .mem_handle = cpu_mem_handle,
                                 .mem_host = cpu_mem_host,
                                 .pool_open = cpu_pool_open,
                                 .pool_close = cpu_pool_close,
                                 .pool_bytes = cpu_pool_bytes,
                                 .pool_plane = cpu_pool_plane,
                                 .stream_open = cpu_stream_open,
                                 .stream_close = cpu_stream_close,
                                 .submit = held_submit};

void backend_hold(bool hold) {
    pthread_mutex_lock(&holding.lock);
    holding.hold = hold;
    for (uint32_t i = 0; i < holding.n && !hold; i++) {
        struct err err;
        assert_int_equal(backend_cpu.submit(holding.programs[i].b, holding.programs[i].s,
                                            holding.programs[i].program, holding.programs[i].done,
                                            holding.programs[i].arg, &err),
                         0);
    }
    if (!hold)
        holding.n = 0;
    pthread_mutex_unlock(&holding.lock);
}

uint32_t backend_held(void) {
    pthread_mutex_lock(&holding.lock);
    uint32_t n = holding.n;
    pthread_mutex_unlock(&holding.lock);
    return n;
}

void backend_fail(bool fail) {
    pthread_mutex_lock(&holding.lock);
    holding.fail = fail;
    pthread_mutex_unlock(&holding.lock);
}

// --- start and stop -----------------------------------------------------------------------------

void fixture_init(struct fixture *f) {
    memset(f, 0, sizeof *f);
    f->config = (struct config){.threads = 1,
                                .socket_mode = 0600,
                                .dir_mode = 0700,
                                .slots = 64,
                                .max_inflight = 16,
                                .max_region_bytes = 1 << 20,
                                .max_regions = 4,
                                .max_pool_bytes = 1 << 24,
                                .limits = core_limits_default};
    f->config.limits.max_sessions = 16;
    snprintf(f->config.dir, sizeof f->config.dir, "/tmp/kvpool-test-XXXXXX");
    assert_non_null(mkdtemp(f->config.dir));
    snprintf(f->config.backend, sizeof f->config.backend, "cpu");
}

void fixture_start(struct fixture *f) {
    fixture_start_with(f, &held);
}

void fixture_start_with(struct fixture *f, const struct backend_ops *ops) {
    struct err err = {0};
    backend_hold(false);
    backend_fail(false);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    if (dispatch_open_with(&f->loop, &f->config, ops, &f->d, &err) != 0)
        fail_msg("dispatch_open: %s", err.text);
    dispatch_server(f->d, &server);
}

void fixture_stop(struct fixture *f) {
    backend_hold(false);
    dispatch_close(f->d);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    while (f->calls != NULL) {
        struct call *call = f->calls;
        assert_true(call->answered);
        f->calls = call->next;
        free(call->bytes);
        free(call->reply);
        free(call);
    }
    assert_int_equal(server.busy, 0);
    assert_int_equal(rmdir(f->config.dir), 0); // fd.sock is gone
}

static void on_nothing(uv_timer_t *timer) {
    (void)timer;
}

static void run_once(struct fixture *f) {
    counting = true;
    uv_run(&f->loop, UV_RUN_ONCE);
    counting = false;
}

static void pump_for(struct fixture *f, uint64_t ns, bool (*until)(void *arg), void *arg) {
    uint64_t end = uv_hrtime() + ns;
    uv_timer_t timer; // wakes the loop for things that it does not watch: the test's own sockets
    uv_timer_init(&f->loop, &timer);
    uv_timer_start(&timer, on_nothing, 1, 1);
    while ((until == NULL || !until(arg)) && uv_hrtime() < end)
        run_once(f);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

void pump_until(struct fixture *f, bool (*until)(void *arg), void *arg) {
    if (until(arg))
        return;
    pump_for(f, WAIT_NS, until, arg);
    assert_true(until(arg));
}

void pump(struct fixture *f, uint32_t ms) {
    pump_for(f, ms * 1000000ull, NULL, NULL);
}

// --- the fd socket ------------------------------------------------------------------------------

// op 0: the reply to something that was no request of a known op; always an error.
static void parse_reply(uint16_t op, const uint8_t *bytes, size_t len, struct proto_msg *ret) {
    struct err err = {0};
    if (op == 0) {
        assert_int_equal(len, sizeof ret->header + sizeof ret->body.error);
        memcpy(&ret->header, bytes, sizeof ret->header);
        memcpy(&ret->body.error, bytes + sizeof ret->header, sizeof ret->body.error);
        assert_true(ret->header.status < 0);
    } else if (proto_parse_reply(op, bytes, len, ret, &err) != 0) {
        fail_msg("reply to %s: %s", proto_op_name(op), err.text);
    }
}

int fd_connect(struct fixture *f) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int n = snprintf(addr.sun_path, sizeof addr.sun_path, "%.80s/fd.sock", f->config.dir);
    assert_true(n > 0);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    return fd;
}

void fd_send(int fd, uint16_t op, const void *body, size_t len, int extra_fd) {
    uint8_t bytes[256];
    struct proto_header header = {.version = 1, .op = op};
    size_t n = proto_write(bytes, sizeof bytes, &header, body, len, NULL, 0);
    assert_true(n > 0);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = bytes, .iov_len = n};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (extra_fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof extra_fd);
        memcpy(CMSG_DATA(c), &extra_fd, sizeof extra_fd);
    }
    assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), n);
}

static bool readable(void *arg) {
    struct pollfd p = {.fd = *(int *)arg, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

int fd_recv(struct fixture *f, int fd, uint16_t op, struct proto_msg *ret, int *ret_fd) {
    static uint8_t bytes[PROTO_MAX_MESSAGE];
    struct proto_msg msg = {0};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = bytes, .iov_len = sizeof bytes};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    pump_until(f, readable, &fd);
    ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
    if (n <= 0)
        return KVPOOL_E_CONN;
    int got = -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c != NULL)
        memcpy(&got, CMSG_DATA(c), sizeof got);
    if (ret_fd != NULL)
        *ret_fd = got;
    else
        assert_int_equal(got, -1);
    if (ret == NULL)
        ret = &msg;
    parse_reply(op, bytes, (size_t)n, ret);
    assert_true(ret->header.epoch == dispatch_epoch(f->d));
    return ret->header.status;
}

void client_open(struct fixture *f, struct client *c, uint32_t pipe) {
    struct proto_fd_hello hello = {.version_min = 1, .version_max = 1, .name = "test"};
    struct proto_msg msg = {0};
    memset(c, 0, sizeof *c);
    c->fd = fd_connect(f);
    fd_send(c->fd, PROTO_FD_HELLO, &hello, sizeof hello, -1);
    assert_int_equal(fd_recv(f, c->fd, PROTO_FD_HELLO, &msg, NULL), 0);
    c->pid = (uint32_t)getpid();
    c->pipe = pipe;
    c->session = msg.body.fd_hello_reply.session;
    c->epoch = msg.body.fd_hello_reply.epoch;
    memcpy(c->token, msg.body.fd_hello_reply.token, sizeof c->token);
    assert_int_equal(client_hello(f, c, NULL), 0);
}

int client_hello(struct fixture *f, struct client *c, struct proto_msg *ret) {
    struct proto_hello hello = {
        .version_min = 1, .version_max = 1, .features = f->features, .session = c->session};
    memcpy(hello.token, c->token, sizeof hello.token);
    return call(f, c, PROTO_HELLO, &hello, sizeof hello, NULL, 0, ret, NULL);
}

uint64_t client_region(struct fixture *f, struct client *c, uint64_t bytes, void **ret_data) {
    struct proto_region_create create = {.bytes = bytes};
    struct proto_msg msg = {0};
    int fd = -1;
    fd_send(c->fd, PROTO_REGION_CREATE, &create, sizeof create, -1);
    assert_int_equal(fd_recv(f, c->fd, PROTO_REGION_CREATE, &msg, &fd), 0);
    assert_true(fd >= 0);
    assert_true(msg.body.region_reply.bytes >= bytes);
    if (ret_data != NULL) {
        *ret_data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(*ret_data != MAP_FAILED);
    }
    close(fd);
    return msg.body.region_reply.region;
}

int client_region_free(struct fixture *f, struct client *c, uint64_t region) {
    struct proto_handle handle = {.handle = region};
    fd_send(c->fd, PROTO_REGION_FREE, &handle, sizeof handle, -1);
    return fd_recv(f, c->fd, PROTO_REGION_FREE, NULL, NULL);
}

void client_bye(struct fixture *f, struct client *c) {
    fd_send(c->fd, PROTO_BYE, NULL, 0, -1);
    assert_int_equal(fd_recv(f, c->fd, PROTO_BYE, NULL, NULL), 0);
    assert_int_equal(fd_recv(f, c->fd, PROTO_BYE, NULL, NULL), KVPOOL_E_CONN);
    close(c->fd);
}

// --- the control socket -------------------------------------------------------------------------

struct call *call_raw(struct fixture *f, struct client *c, const void *bytes, size_t len) {
    struct call *call = calloc(1, sizeof *call);
    assert_non_null(call);
    call->bytes = malloc(len > 0 ? len : 1);
    assert_non_null(call->bytes);
    if (len > 0)
        memcpy(call->bytes, bytes, len);
    call->req = (struct server_req){.pipe = c->pipe,
                                    .pid = c->pid,
                                    .bytes = call->bytes,
                                    .len = len,
                                    .received_ns = uv_hrtime()};
    call->next = f->calls;
    f->calls = call;
    server.busy++;
    counting = true;
    dispatch_request(f->d, &call->req);
    counting = false;
    return call;
}

struct call *call_start(struct fixture *f, struct client *c, uint64_t seq, uint16_t op,
                        const void *body, size_t len, const void *records, size_t records_len) {
    static uint8_t bytes[PROTO_MAX_MESSAGE];
    if (seq == UINT64_MAX)
        seq = ++c->seq;
    struct proto_header header = {.version = 1, .op = op, .seq = seq, .epoch = c->epoch};
    size_t n = proto_write(bytes, sizeof bytes, &header, body, len, records, records_len);
    assert_true(n > 0);
    struct call *call = call_raw(f, c, bytes, n);
    call->op = op;
    return call;
}

static bool is_answered(void *arg) {
    return ((struct call *)arg)->answered;
}

int call_end(struct fixture *f, struct call *call, struct proto_msg *ret, struct err *err) {
    static uint8_t bytes[PROTO_MAX_MESSAGE]; // of the last one: records stay readable
    static struct proto_msg msg;
    pump_until(f, is_answered, call);
    if (ret == NULL)
        ret = &msg;
    memcpy(bytes, call->reply, call->reply_len);
    parse_reply(call->op, bytes, call->reply_len, ret);
    assert_true(ret->header.epoch == dispatch_epoch(f->d));
    if (err != NULL)
        *err = (struct err){0};
    if (err != NULL && ret->header.status != 0) {
        err->status = ret->header.status;
        err->detail = ret->body.error.detail;
        memcpy(err->text, ret->body.error.text, sizeof err->text);
        assert_true(err->text[0] != '\0');
    }
    struct call **at = &f->calls;
    while (*at != NULL && *at != call)
        at = &(*at)->next;
    assert_ptr_equal(*at, call);
    *at = call->next;
    free(call->bytes);
    free(call->reply);
    free(call);
    return ret->header.status;
}

int call(struct fixture *f, struct client *c, uint16_t op, const void *body, size_t len,
         const void *records, size_t records_len, struct proto_msg *ret, struct err *err) {
    return call_end(f, call_start(f, c, UINT64_MAX, op, body, len, records, records_len), ret, err);
}

// --- operations in one line ---------------------------------------------------------------------

uint64_t make_pool(struct fixture *f, struct client *c, const char *name, uint32_t pages) {
    struct proto_pool_create create = {.layers = 2,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .page_size = 8,
                                       .dtype = KVPOOL_FP32,
                                       .num_pages = pages,
                                       .max_seqs = 16};
    struct proto_msg msg = {0};
    struct err err;
    snprintf(create.name, sizeof create.name, "%s", name);
    if (call(f, c, PROTO_POOL_CREATE, &create, sizeof create, NULL, 0, &msg, &err) != 0)
        fail_msg("pool: %s", err.text);
    return msg.body.handle.handle;
}

void make_seqs(struct fixture *f, struct client *c, uint64_t pool, uint32_t n, uint64_t *ret) {
    struct proto_seq_create create = {.pool = pool, .n = n};
    struct proto_msg msg = {0};
    assert_int_equal(call(f, c, PROTO_SEQ_CREATE, &create, sizeof create, NULL, 0, &msg, NULL), 0);
    assert_int_equal(msg.count, n);
    for (uint32_t i = 0; i < n; i++)
        proto_record(&msg, i, &ret[i]);
}

int begin(struct fixture *f, struct client *c, uint64_t step, uint64_t pool, uint32_t n,
          const uint64_t *seqs, uint32_t tokens, struct err *err) {
    struct proto_step_begin body = {.pool = pool, .step = step, .count = n};
    struct proto_batch_item items[16];
    for (uint32_t i = 0; i < n; i++)
        items[i] = (struct proto_batch_item){.seq = seqs[i], .tokens = tokens};
    return call(f, c, PROTO_STEP_BEGIN, &body, sizeof body, items, n * sizeof items[0], NULL, err);
}

int by_handle(struct fixture *f, struct client *c, uint16_t op, uint64_t handle, struct err *err) {
    struct proto_handle body = {.handle = handle};
    return call(f, c, op, &body, sizeof body, NULL, 0, NULL, err);
}

uint32_t free_pages(struct fixture *f, struct client *c, uint64_t pool) {
    struct proto_handle body = {.handle = pool};
    struct proto_msg msg = {0};
    assert_int_equal(call(f, c, PROTO_POOL_STAT, &body, sizeof body, NULL, 0, &msg, NULL), 0);
    return msg.body.pool_info.free_pages;
}

int client_ping(struct fixture *f, struct client *c) {
    struct proto_ping body = {.payload = 77};
    struct proto_msg msg = {0};
    int status = call(f, c, PROTO_PING, &body, sizeof body, NULL, 0, &msg, NULL);
    if (status == 0)
        assert_int_equal(msg.body.ping.payload, 77);
    return status;
}

int client_stats(struct fixture *f, struct client *c, struct proto_stats *ret) {
    struct proto_msg msg = {0};
    int status = call(f, c, PROTO_STATS, NULL, 0, NULL, 0, &msg, NULL);
    if (status == 0)
        *ret = msg.body.stats;
    return status;
}
