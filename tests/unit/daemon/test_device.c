// SPDX-License-Identifier: Apache-2.0
// test_device.c: what the daemon does for a backend with a device: pools of fp8 pages and with
// another export, regions of device memory and of a client's own, scales, sinks. The backend is the
// CPU's, changed to have places and handles like a device's; it shows the ops that reach it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/log.h"
#include "tmpdir.h"
#include "worker.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

// --- the backend --------------------------------------------------------------------------------

static struct {
    struct backend_ops ops;
    enum backend_place place; // of the last mem_alloc
    enum backend_export how;  // of the last mem_alloc, or pool_open
    struct kv_geometry geometry;
    struct backend_handle imported;
    uint64_t imported_bytes;
    struct backend_append_op append; // the last ones, without arrays
    struct backend_attend_op attend;
    atomic_bool no_memory; // for attention
} device;

static int device_alloc(struct backend *b, uint64_t bytes, enum backend_place place,
                        enum backend_export how, struct backend_mem **ret, struct err *err) {
    device.place = place;
    device.how = how;
    return backend_cpu.mem_alloc(b, bytes, place, BACKEND_FD, ret, err);
}

static int device_import(struct backend *b, const struct backend_handle *handle, uint64_t bytes,
                         struct backend_mem **ret, struct err *err) {
    device.imported = *handle;
    device.imported_bytes = bytes;
    if (handle->ipc[0] == 0xBD)
        return err_set(err, KVPOOL_E_INVAL, "the handle is of another device");
    return backend_cpu.mem_alloc(b, bytes, BACKEND_HOST, BACKEND_FD, ret, err);
}

static void device_handle(const struct backend_mem *mem, struct backend_handle *ret) {
    backend_cpu.mem_handle(mem, ret);
    ret->place = device.place;
    ret->how = device.how;
    if (device.how == BACKEND_IPC) {
        ret->fd = -1;
        memset(ret->ipc, 0x49, sizeof ret->ipc);
        ret->offset = 512;
        ret->bytes += 512;
    }
}

static void *device_host(const struct backend_mem *mem) {
    return device.place == BACKEND_HOST ? backend_cpu.mem_host(mem) : NULL;
}

static int device_pool_open(struct backend *b, const struct kv_geometry *g, enum backend_export how,
                            uint32_t pages, uint32_t rows, uint32_t entries,
                            struct backend_pool **ret, struct err *err) {
    device.geometry = *g;
    device.how = how;
    return backend_cpu.pool_open(b, g, BACKEND_FD, pages, rows, entries, ret, err);
}

struct left_out { // a program's end
    backend_done_fn done;
    void *arg;
};

static void done_without(void *arg, int status) {
    struct left_out *end = arg;
    end->done(end->arg, status == 0 ? KVPOOL_E_NOMEM : status);
    free(end);
}

static int submit_without_attention(struct backend *b, struct backend_stream *s,
                                    const struct backend_program *program, backend_done_fn done,
                                    void *arg, struct err *err) {
    struct backend_op ops[1];
    struct backend_program rest = {.pool = program->pool, .ops = ops, .n = program->n - 1};
    struct left_out *end = malloc(sizeof *end);
    assert_true(end != NULL && rest.n <= 1);
    *end = (struct left_out){done, arg};
    if (rest.n > 0)
        ops[0] = program->ops[0];
    return held.submit(b, s, &rest, done_without, end, err);
}

static int device_submit(struct backend *b, struct backend_stream *s,
                         const struct backend_program *program, backend_done_fn done, void *arg,
                         struct err *err) {
    for (uint32_t i = 0; i < program->n; i++) {
        if (program->ops[i].kind == BACKEND_APPEND)
            device.append = program->ops[i].u.append;
        else if (program->ops[i].kind == BACKEND_ATTEND)
            device.attend = program->ops[i].u.attend;
    }
    if (device.no_memory && program->ops[program->n - 1].kind == BACKEND_ATTEND)
        return submit_without_attention(b, s, program, done, arg, err);
    return held.submit(b, s, program, done, arg, err);
}

static int setup(void **state) {
    (void)state;
    memset(&device, 0, sizeof device);
    device.ops = held;
    device.ops.mem_alloc = device_alloc;
    device.ops.mem_import = device_import;
    device.ops.mem_handle = device_handle;
    device.ops.mem_host = device_host;
    device.ops.pool_open = device_pool_open;
    device.ops.submit = device_submit;
    return worker_setup_with(&device.ops, PROTO_FEATURES);
}

static int cpu_setup(void **state) {
    (void)state;
    return worker_setup_with(&held, PROTO_FEATURES);
}

static int old_setup(void **state) {
    (void)state;
    return worker_setup_with(&held, PROTO_FEATURES & ~PROTO_FEATURE_DEVICE);
}

// --- pools --------------------------------------------------------------------------------------

static struct proto_pool_create_as create_as(const char *name, uint32_t kv_dtype, uint32_t how) {
    struct proto_pool_create_as c = {.create = {.layers = 2,
                                                .kv_heads = 2,
                                                .head_dim = 8,
                                                .page_size = 8,
                                                .dtype = KVPOOL_FP32,
                                                .num_pages = 32,
                                                .max_seqs = 16},
                                     .kv_dtype = kv_dtype,
                                     .export = how};
    snprintf(c.create.name, sizeof c.create.name, "%s", name);
    return c;
}

static int create(const struct proto_pool_create_as *c, uint64_t *ret, struct err *err) {
    struct proto_msg msg = {0};
    int status = call(&fx, &me, PROTO_POOL_CREATE_AS, c, sizeof *c, NULL, 0, &msg, err);
    if (status == 0)
        *ret = msg.body.handle.handle;
    return status;
}

static struct proto_pool_info stat_of(uint64_t handle) {
    struct proto_handle body = {.handle = handle};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &me, PROTO_POOL_STAT, &body, sizeof body, NULL, 0, &msg, NULL), 0);
    return msg.body.pool_info;
}

static void a_pool_has_pages_and_export_as_asked(void **state) {
    (void)state;
    uint64_t handle = 0, again = 0;
    struct err err;
    struct proto_pool_create_as c = create_as("fp8", KVPOOL_FP8_E4M3, KVPOOL_EXPORT_IPC);
    assert_int_equal(create(&c, &handle, &err), 0);
    assert_int_equal(device.how, BACKEND_IPC);
    assert_int_equal(device.geometry.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(device.geometry.dtype, KVPOOL_FP32);
    struct proto_pool_info info = stat_of(handle);
    assert_int_equal(info.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(info.export, KVPOOL_EXPORT_IPC);
    assert_int_equal(info.bytes, 32 * 2 * 2 * 2 * 8 * 8); // pages, layers, K and V, heads, 8 x 8
    c.export = 0;
    assert_int_equal(create(&c, &again, &err), 0);
    assert_int_equal(again, handle);
    // A request without the properties is for dtype's own.
    assert_int_equal(
        call(&fx, &me, PROTO_POOL_CREATE, &c.create, sizeof c.create, NULL, 0, NULL, &err),
        KVPOOL_E_EXISTS);
    c = create_as("plain", 0, 0);
    assert_int_equal(create(&c, &handle, &err), 0);
    assert_int_equal(device.how, BACKEND_FD);
    assert_int_equal(device.geometry.kv_dtype, 0);
    info = stat_of(handle);
    assert_int_equal(info.kv_dtype, 0);
    assert_int_equal(info.export, KVPOOL_EXPORT_FD);
    c = create_as("bad", KVPOOL_FP16, 0);
    assert_int_equal(create(&c, &again, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "kv_dtype 1"));
    c = create_as("bad", 0, 3);
    assert_int_equal(create(&c, &again, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "export 3"));
}

static void what_the_backend_has_not_is_unsupported_and_leaves_no_pool(void **state) {
    (void)state;
    struct err err;
    uint64_t handle;
    struct proto_name name = {.name = "ipc"};
    struct proto_pool_create_as c = create_as("ipc", 0, KVPOOL_EXPORT_IPC);
    assert_int_equal(create(&c, &handle, &err), KVPOOL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "file descriptors only"));
    assert_int_equal(call(&fx, &me, PROTO_POOL_OPEN, &name, sizeof name, NULL, 0, NULL, NULL),
                     KVPOOL_E_NOTFOUND);
}

static void a_client_without_the_feature_finds_0(void **state) {
    (void)state;
    uint64_t handle = 0;
    struct err err;
    struct proto_pool_create_as c = create_as("fp8", KVPOOL_FP8_E4M3, 0);
    assert_int_equal(create(&c, &handle, &err), 0); // as another client would
    struct proto_pool_info info = stat_of(handle);
    assert_int_equal(info.kv_dtype, 0);
    assert_int_equal(info.export, 0);
    struct proto_list list = {0, 4};
    struct proto_msg msg = {0};
    assert_int_equal(call(&fx, &me, PROTO_POOL_LIST, &list, sizeof list, NULL, 0, &msg, NULL), 0);
    assert_int_equal(msg.count, 2);
    proto_record(&msg, 1, &info);
    assert_int_equal(info.kv_dtype, 0);
    assert_int_equal(info.export, 0);
}

// --- regions ------------------------------------------------------------------------------------

static int alloc(uint64_t bytes, uint32_t place, uint32_t how, struct proto_region_handle *ret,
                 int *ret_fd) {
    struct proto_region_alloc body = {.bytes = bytes, .place = place, .export = how};
    struct proto_msg msg = {0};
    fd_send(me.fd, PROTO_REGION_ALLOC, &body, sizeof body, -1);
    int status = fd_recv(&fx, me.fd, PROTO_REGION_ALLOC, &msg, ret_fd);
    *ret = status == 0 ? msg.body.region_handle : (struct proto_region_handle){0};
    return status;
}

static int own(uint64_t bytes, uint64_t offset, uint64_t all, uint8_t first, uint64_t *ret) {
    struct proto_region_register body = {
        .bytes = bytes, .offset = offset, .handle_bytes = all, .ipc = {first, 2, 3}};
    struct proto_msg msg = {0};
    fd_send(me.fd, PROTO_REGION_REGISTER, &body, sizeof body, -1);
    int status = fd_recv(&fx, me.fd, PROTO_REGION_REGISTER, &msg, NULL);
    if (status == 0) {
        *ret = msg.body.region_reply.region;
        assert_int_equal(msg.body.region_reply.bytes, bytes);
    }
    return status;
}

static const struct region_quota *quota(void) {
    return &session_find(fx.d, me.session)->quota;
}

static void device_memory_comes_by_descriptor_or_by_handle(void **state) {
    (void)state;
    static const uint8_t zero[PROTO_IPC_SIZE];
    struct proto_region_handle h = {0};
    uint64_t before = quota()->bytes;
    int fd = -1;
    assert_int_equal(alloc(5000, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_FD, &h, &fd), 0);
    assert_int_equal(device.place, BACKEND_DEVICE);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(h.bytes, 8192);
    assert_int_equal(h.place, KVPOOL_PLACE_DEVICE);
    assert_int_equal(h.export, KVPOOL_EXPORT_FD);
    assert_int_equal(h.offset, 0);
    assert_int_equal(h.handle_bytes, 8192);
    assert_memory_equal(h.ipc, zero, sizeof zero);
    assert_int_equal(quota()->bytes, before + 8192);
    assert_int_equal(client_region_free(&fx, &me, h.region), 0);
    fd = -1;
    assert_int_equal(alloc(5000, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_IPC, &h, &fd), 0);
    assert_int_equal(fd, -1);
    assert_int_equal(h.export, KVPOOL_EXPORT_IPC);
    assert_int_equal(h.offset, 512);
    assert_int_equal(h.handle_bytes, 8192 + 512);
    assert_int_equal(h.ipc[0], 0x49);
    assert_int_equal(h.ipc[63], 0x49);
    assert_int_equal(alloc(1, KVPOOL_PLACE_HOST, KVPOOL_EXPORT_FD, &h, &fd), 0);
    close(fd);
    assert_int_equal(device.place, BACKEND_HOST);
    assert_int_equal(h.place, KVPOOL_PLACE_HOST);
    assert_int_equal(quota()->count, 3);
}

static void regions_that_cannot_be_are_refused(void **state) {
    (void)state;
    struct proto_region_handle h = {0};
    uint64_t handle;
    assert_int_equal(alloc(0, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_FD, &h, NULL), KVPOOL_E_INVAL);
    assert_int_equal(alloc(1, 0, KVPOOL_EXPORT_FD, &h, NULL), KVPOOL_E_INVAL);
    assert_int_equal(alloc(1, 3, KVPOOL_EXPORT_FD, &h, NULL), KVPOOL_E_INVAL);
    assert_int_equal(alloc(1, KVPOOL_PLACE_DEVICE, 0, &h, NULL), KVPOOL_E_INVAL);
    assert_int_equal(alloc(1, KVPOOL_PLACE_DEVICE, 3, &h, NULL), KVPOOL_E_INVAL);
    assert_int_equal(alloc(2 << 20, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_FD, &h, NULL),
                     KVPOOL_E_LIMIT); // max_region_bytes
    assert_int_equal(own(0, 0, 4096, 1, &handle), KVPOOL_E_INVAL);
    assert_int_equal(own(4096, 1, 4096, 1, &handle), KVPOOL_E_INVAL);
    assert_int_equal(own(1, 4097, 4096, 1, &handle), KVPOOL_E_INVAL);
    assert_int_equal(own(4096, UINT64_MAX - 100, UINT64_MAX, 1, &handle), KVPOOL_E_INVAL);
    assert_int_equal(own(1, 0, 0, 1, &handle), KVPOOL_E_INVAL);
    assert_int_equal(own(4096, 4097, 16384, 1, &handle), KVPOOL_E_INVAL); // where no bf16 may lie
    assert_int_equal(own(4096, 4098, 16384, 1, &handle), KVPOOL_E_INVAL); // where no fp32 may
    assert_int_equal(device.imported_bytes, 0); // the backend was not asked
    assert_int_equal(own(2 << 20, 0, 4 << 20, 1, &handle), KVPOOL_E_LIMIT);
    assert_int_equal(own(4096, 0, 4096, 0xBD, &handle), KVPOOL_E_INVAL); // the backend's word
    assert_int_equal(quota()->count, 1);                                 // the worker's own
}

static void a_clients_own_memory_is_a_region_of_its_quota(void **state) {
    (void)state;
    uint64_t handle = 0, more;
    const uint64_t before = quota()->bytes;
    assert_int_equal(own(5000, 3000, 8000, 9, &handle), 0);
    assert_int_equal(device.imported.how, BACKEND_IPC);
    assert_int_equal(device.imported.place, BACKEND_DEVICE);
    assert_int_equal(device.imported.fd, -1);
    assert_int_equal(device.imported.ipc[0], 9);
    assert_int_equal(device.imported.ipc[2], 3);
    assert_int_equal(device.imported.offset, 3000);
    assert_int_equal(device.imported.bytes, 8000);
    assert_int_equal(device.imported_bytes, 5000);
    assert_int_equal(quota()->bytes, before + 5000); // and not what the pages of it have
    assert_int_equal(own(1, 0, 1, 1, &more), 0);
    assert_int_equal(own(1, 0, 1, 1, &more), 0);
    assert_int_equal(own(1, 0, 1, 1, &more), KVPOOL_E_LIMIT); // max_regions is 4
    // A tensor stays in what was registered, whatever the backend had to open.
    struct proto_attn a = step_attn(1);
    struct err err;
    assert_int_equal(begin_one(1, seqs[0], 2), 0);
    a.q = (struct proto_tensor){handle, 4744, (uint64_t)HEADS * 8, 8};
    assert_int_equal(attn(PROTO_DECODE, &a, NULL, &err), 0);
    a.q.offset += 4;
    assert_int_equal(attn(PROTO_DECODE, &a, NULL, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "the region has 5000 bytes"));
    assert_int_equal(client_region_free(&fx, &me, handle), 0);
    assert_int_equal(quota()->bytes, before + 2);
}

static void the_cpu_backend_has_device_memory_in_the_host_only(void **state) {
    (void)state;
    struct proto_region_handle h = {0};
    uint64_t handle;
    int fd = -1;
    assert_int_equal(alloc(5000, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_FD, &h, &fd), 0);
    assert_true(fd >= 0);
    assert_int_equal(h.place, KVPOOL_PLACE_HOST);
    void *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(at != MAP_FAILED);
    munmap(at, 8192);
    close(fd);
    assert_int_equal(alloc(5000, KVPOOL_PLACE_DEVICE, KVPOOL_EXPORT_IPC, &h, NULL),
                     KVPOOL_E_UNSUPPORTED);
    assert_int_equal(alloc(5000, KVPOOL_PLACE_HOST, KVPOOL_EXPORT_IPC, &h, NULL),
                     KVPOOL_E_UNSUPPORTED);
    assert_int_equal(own(4096, 0, 4096, 1, &handle), KVPOOL_E_UNSUPPORTED);
    assert_int_equal(own(4097, 0, 4096, 1, &handle), KVPOOL_E_UNSUPPORTED);
    assert_int_equal(quota()->count, 2);
}

// --- scales and sinks ---------------------------------------------------------------------------

#define SCALES_AT 40960
#define SINKS_AT 45056

static uint64_t fp8_seq(void) {
    uint64_t handle = 0, seq = 0;
    struct err err;
    struct proto_pool_create_as c = create_as("fp8", KVPOOL_FP8_E4M3, 0);
    assert_int_equal(create(&c, &handle, &err), 0);
    pool = handle;
    make_seqs(&fx, &me, handle, 1, &seq);
    return seq;
}

static struct proto_attend attend(uint16_t op, struct proto_attn a) {
    return (struct proto_attend){.attn = a, .op = op};
}

static int run(const struct proto_attend *e, struct err *err) {
    return call(&fx, &me, PROTO_ATTEND, e, sizeof *e, NULL, 0, NULL, err);
}

static void options_reach_the_backend(void **state) {
    (void)state;
    struct err err;
    assert_int_equal(begin_one(1, fp8_seq(), 1), 0);
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.k_scale = 0.5F;
    e.v_scale = 2;
    e.sinks = (struct proto_array){region, SINKS_AT};
    assert_int_equal(run(&e, &err), 0);
    assert_true(device.append.scales.k == 0.5F && device.append.scales.v == 2);
    assert_null(device.append.scales.heads.mem);
    assert_true(device.attend.scales.k == 0.5F && device.attend.scales.v == 2);
    assert_non_null(device.attend.sinks.mem);
    assert_int_equal(device.attend.sinks.offset, SINKS_AT);
    assert_int_equal(device.attend.sinks.token_stride, HEADS);
    assert_int_equal(device.attend.sinks.head_stride, 1);
    assert_false(device.attend.batch_invariant);
    e = attend(PROTO_DECODE, step_attn(1));
    e.kv_scales = (struct proto_array){region, SCALES_AT};
    e.attn.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    for (int i = 0; i < 4; i++)
        floats(SCALES_AT)[i] = 1;
    assert_int_equal(run(&e, &err), 0);
    assert_true(device.attend.batch_invariant && device.attend.causal);
    assert_null(device.attend.sinks.mem);
    assert_int_equal(device.append.scales.heads.offset, SCALES_AT);
    assert_int_equal(device.attend.scales.heads.offset, SCALES_AT);
    assert_int_equal(device.attend.scales.heads.token_stride, 2);
    e = attend(PROTO_APPEND, append_attn(1, 1));
    e.k_scale = 3;
    device.attend.layer = 7; // it stays
    assert_int_equal(run(&e, &err), 0);
    assert_true(device.append.layer == 1 && device.append.scales.k == 3);
    assert_int_equal(device.attend.layer, 7);
    assert_int_equal(fx.d->stats.decodes, 2); // counted as what they are
    assert_int_equal(fx.d->stats.appends, 1);
    // The old form has none of it.
    assert_int_equal(attn(PROTO_DECODE, &(struct proto_attn){0}, NULL, &err), KVPOOL_E_PROTO);
    struct proto_attn a = step_attn(1);
    assert_int_equal(attn(PROTO_DECODE, &a, NULL, &err), 0);
    assert_true(device.attend.scales.k == 0 && device.attend.scales.heads.mem == NULL);
    assert_null(device.attend.sinks.mem);
}

// A step goes on, and ends, as if the request had been done.
static void without_memory_a_request_fails_alone(void **state) {
    (void)state;
    struct err err;
    float *q = floats(Q_AT), *k = floats(K_AT), *v = floats(V_AT), *out = floats(OUT_AT);
    memset(q, 0, 128);
    memset(k, 0, 128);
    for (int i = 0; i < 16; i++)
        v[i] = 8;
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.attn.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    device.no_memory = true;
    for (e.attn.layer = 0; e.attn.layer < 2; e.attn.layer++) {
        assert_int_equal(run(&e, &err), KVPOOL_E_NOMEM);
        assert_non_null(strstr(err.text, "no memory"));
        assert_non_null(strstr(err.text, "k and v were appended"));
    }
    device.no_memory = false;
    assert_int_equal(fx.d->stats.decodes, 0);
    assert_false(dispatch_lost(fx.d));
    assert_int_equal(commit(1), 0);
    assert_int_equal(seq_info(seqs[0]).length, 1);
    // Attention alone, without memory and with: what was appended is there.
    struct proto_batch_item item = {.seq = seqs[0], .tokens = 1};
    e = attend(PROTO_DECODE, batch_attn(1));
    for (int round = 0; round < 2; round++) {
        device.no_memory = round == 0;
        int status = call(&fx, &me, PROTO_ATTEND, &e, sizeof e, &item, sizeof item, NULL, &err);
        assert_int_equal(status, round == 0 ? KVPOOL_E_NOMEM : 0);
        if (round == 0)
            assert_null(strstr(err.text, "appended"));
    }
    assert_true(out[0] == 8);
    assert_int_equal(truncate_seq(seqs[0], 0), 0); // nothing holds it
    assert_int_equal(free_seqs(4, seqs), 0);
}

static void without_memory_again_and_again_is_a_line_a_minute(void **state) {
    (void)state;
    struct tmpdir dir;
    char path[128];
    assert_true(tmpdir_make(&dir));
    tmpdir_file(&dir, "log", path, sizeof path);
    assert_int_equal(log_open(path, LOG_INFO), 0);
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.attn.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    for (int i = 0; i < 7; i++) { // what is done in between does not count
        struct err err;
        device.no_memory = i % 2 == 0;
        assert_int_equal(run(&e, &err), device.no_memory ? KVPOOL_E_NOMEM : 0);
    }
    assert_int_equal(tmpdir_count(path, "attention.nomem"), 1);
    assert_int_equal(tmpdir_count(path, " suppressed=0 "), 1);
    session_find(fx.d, me.session)->nomem.since_ns -= LOG_LIMIT_NS;
    device.no_memory = true;
    for (int i = 0; i < 2; i++)
        assert_int_equal(run(&e, NULL), KVPOOL_E_NOMEM);
    assert_int_equal(tmpdir_count(path, "attention.nomem"), 2);
    assert_int_equal(tmpdir_count(path, " suppressed=3 "), 1);
    // Another client's is a line of its own.
    client_bye(&fx, &me);
    munmap(data, REGION_BYTES);
    client_open(&fx, &me, 2);
    region = client_region(&fx, &me, REGION_BYTES, (void **)&data);
    make_seqs(&fx, &me, pool, 1, seqs);
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    e.attn = step_attn(1);
    assert_int_equal(run(&e, NULL), KVPOOL_E_NOMEM);
    assert_int_equal(tmpdir_count(path, "attention.nomem"), 3);
    log_open(NULL, LOG_INFO);
    tmpdir_remove(&dir);
}

static void options_that_cannot_be_are_refused_before_any_work(void **state) {
    (void)state;
    struct err err;
    uint64_t plain = seqs[0];
    assert_int_equal(begin_one(2, plain, 1), 0);
    assert_int_equal(begin_one(1, fp8_seq(), 1), 0);
#define REFUSED(kind, step, status, why, ...)                   \
    do {                                                        \
        struct proto_attend e = attend(kind, step_attn(step));  \
        if ((kind) == PROTO_APPEND)                             \
            e.attn = append_attn(step, 0);                      \
        __VA_ARGS__;                                            \
        assert_int_equal(run(&e, &err), status);                \
        if (strstr(err.text, why) == NULL)                      \
            fail_msg("\"%s\" is not in \"%s\"", why, err.text); \
    } while (0)
#define INVAL(why, ...) REFUSED(PROTO_PREFILL, 1, KVPOOL_E_INVAL, why, __VA_ARGS__)
    INVAL("k_scale", e.k_scale = NAN);
    INVAL("k_scale", e.k_scale = -1);
    INVAL("v_scale", e.v_scale = INFINITY);
    INVAL("v_scale", e.v_scale = -0.5F);
    INVAL("instead of", e.v_scale = 1; e.kv_scales = (struct proto_array){region, SCALES_AT});
    INVAL("kv_scales: leaves", e.kv_scales = (struct proto_array){region, REGION_BYTES - 12});
    INVAL("kv_scales: offset", e.kv_scales = (struct proto_array){region, 2});
    INVAL("out overlaps kv_scales", e.kv_scales = (struct proto_array){region, OUT_AT});
    INVAL("lse overlaps kv_scales", e.kv_scales = (struct proto_array){region, LSE_AT + 8});
    INVAL("sinks: leaves", e.sinks = (struct proto_array){region, REGION_BYTES - 12});
    INVAL("sinks: leaves", e.sinks = (struct proto_array){region, UINT64_MAX - 3});
    INVAL("sinks: offset", e.sinks = (struct proto_array){region, 6});
    INVAL("out overlaps sinks", e.sinks = (struct proto_array){region, OUT_AT + 124});
    INVAL("lse overlaps sinks", e.sinks = (struct proto_array){region, LSE_AT - 12});
    REFUSED(PROTO_PREFILL, 1, KVPOOL_E_STALE, "region",
            e.sinks = (struct proto_array){region + (1ull << 32), 0});
    REFUSED(PROTO_PREFILL, 1, KVPOOL_E_STALE, "region",
            e.kv_scales = (struct proto_array){UINT64_MAX, 0});
    REFUSED(PROTO_APPEND, 1, KVPOOL_E_INVAL, "v_scale", e.v_scale = NAN);
    REFUSED(PROTO_APPEND, 1, KVPOOL_E_PROTO, "append with options",
            e.sinks = (struct proto_array){region, 0});
    REFUSED(PROTO_DECODE, 2, KVPOOL_E_INVAL, "of an fp8 pool only", e.k_scale = 1);
    REFUSED(PROTO_DECODE, 2, KVPOOL_E_INVAL, "of an fp8 pool only", e.v_scale = NAN);
    REFUSED(PROTO_APPEND, 2, KVPOOL_E_INVAL, "of an fp8 pool only",
            e.kv_scales = (struct proto_array){region, SCALES_AT});
    assert_int_equal(fx.d->stats.prefills + fx.d->stats.decodes + fx.d->stats.appends, 0);
}

static void fp8_pages_round_saturate_and_are_scaled(void **state) {
    (void)state;
    struct err err;
    float *q = floats(Q_AT), *k = floats(K_AT), *v = floats(V_AT), *out = floats(OUT_AT);
    assert_int_equal(begin_one(1, fp8_seq(), 1), 0);
    memset(q, 0, 128);
    memset(k, 0, 128);
    for (int i = 0; i < 16; i++)
        v[i] = 3.3F; // 6.6 of a scale of 0.5: stored as 6.5
    v[1] = -1e6F;    // 448 times the scale
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.v_scale = 0.5F;
    assert_int_equal(run(&e, &err), 0);
    assert_true(out[0] == 3.25F);
    assert_true(out[1] == -224);
    // A scale for each head: 6.6 of 0.5 for the first, 13.2 of 0.25 (stored as 13) for the second.
    const float scales[4] = {1, 1, 0.5F, 0.25F};
    memcpy(floats(SCALES_AT), scales, sizeof scales);
    e.v_scale = 0;
    e.kv_scales = (struct proto_array){region, SCALES_AT};
    assert_int_equal(run(&e, &err), 0);
    assert_true(out[0] == 3.25F);
    assert_true(out[16] == 3.25F); // heads 2 and 3 share the second: 13 x 0.25
    assert_true(out[17] == 3.25F);
    assert_true(out[1] == -224);
}

static void a_sink_takes_its_share_and_is_in_lse(void **state) {
    (void)state;
    struct err err;
    float *q = floats(Q_AT), *k = floats(K_AT), *v = floats(V_AT), *out = floats(OUT_AT);
    float *lse = floats(LSE_AT), *sinks = floats(SINKS_AT);
    memset(q, 0, 128);
    memset(k, 0, 128);
    for (int i = 0; i < 16; i++)
        v[i] = 8;
    for (int h = 0; h < HEADS; h++)
        sinks[h] = logf((float)h + 1); // beside one key with logit 0: 1 of h + 2
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.sinks = (struct proto_array){region, SINKS_AT};
    assert_int_equal(run(&e, &err), 0);
    for (int h = 0; h < HEADS; h++) {
        assert_true(fabsf(out[(size_t)h * 8] - 8.0F / ((float)h + 2)) < 1e-4F);
        assert_true(fabsf(lse[h] - logf((float)h + 2)) < 1e-4F);
    }
    // A query that sees nothing: 0, and the sink.
    struct proto_batch_item item = {.seq = seqs[1], .tokens = 1};
    e = attend(PROTO_DECODE, batch_attn(1));
    e.sinks = (struct proto_array){region, SINKS_AT};
    assert_int_equal(call(&fx, &me, PROTO_ATTEND, &e, sizeof e, &item, sizeof item, NULL, &err), 0);
    for (int h = 0; h < HEADS; h++) {
        assert_true(out[(size_t)h * 8] == 0);
        assert_true(fabsf(lse[h] - sinks[h]) < 1e-6F);
    }
}

static void a_region_of_sinks_lives_until_the_work_is_done(void **state) {
    (void)state;
    uint64_t sinks = client_region(&fx, &me, 4096, NULL);
    struct proto_attend e = attend(PROTO_DECODE, step_attn(1));
    e.sinks = (struct proto_array){sinks, 0};
    assert_int_equal(begin_one(1, seqs[0], 1), 0);
    backend_hold(true);
    struct call *decode = call_start(&fx, &me, UINT64_MAX, PROTO_ATTEND, &e, sizeof e, NULL, 0);
    assert_int_equal(client_region_free(&fx, &me, sinks), 0);
    assert_int_equal(quota()->count, 2);
    backend_hold(false);
    assert_int_equal(call_end(&fx, decode, NULL, NULL), 0);
    assert_int_equal(quota()->count, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, worker_teardown)
#define CPU_TEST(name) cmocka_unit_test_setup_teardown(name, cpu_setup, worker_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_pool_has_pages_and_export_as_asked),
        CPU_TEST(what_the_backend_has_not_is_unsupported_and_leaves_no_pool),
        cmocka_unit_test_setup_teardown(a_client_without_the_feature_finds_0, old_setup,
                                        worker_teardown),
        TEST(device_memory_comes_by_descriptor_or_by_handle),
        TEST(regions_that_cannot_be_are_refused),
        TEST(a_clients_own_memory_is_a_region_of_its_quota),
        CPU_TEST(the_cpu_backend_has_device_memory_in_the_host_only),
        TEST(options_reach_the_backend),
        TEST(without_memory_a_request_fails_alone),
        TEST(without_memory_again_and_again_is_a_line_a_minute),
        TEST(options_that_cannot_be_are_refused_before_any_work),
        CPU_TEST(fp8_pages_round_saturate_and_are_scaled),
        CPU_TEST(a_sink_takes_its_share_and_is_in_lse),
        CPU_TEST(a_region_of_sinks_lives_until_the_work_is_done),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
