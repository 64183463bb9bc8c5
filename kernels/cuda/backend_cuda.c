// SPDX-License-Identifier: Apache-2.0
// backend_cuda.c: the backend of one NVIDIA GPU. See kernels/backend.h.
//
//   driver.[ch]  the CUDA functions in use (its head lists all of them), errors as text
//   memory.[ch]  device memory that processes share
//   import.[ch]  that of other processes, by IPC handle
//   reaper.[ch]  the thread that releases memory, pools and streams
//   pool.[ch]    planes and page table
//   stream.[ch]  a stream; batches, plans and workspaces that it keeps on the device
//   upload.[ch]  small arrays to the device
//   run.[ch]     a program as launches
//   flight.[ch]  programs in flight, and the thread that calls `done`
//
// Invariants
//  1. Neither submit nor mem_free, mem_close, pool_close and stream_close wait for the device: these give
//     what is done with to the reaper. close waits until it has released everything.
//  2. Any error of CUDA in a program is final: it is kept as text, and every later submit is refused
//     with it. Only a new process can use the device again. No memory for an ATTEND is none: it is left
//     out (KVPOOL_E_NOMEM).
//  3. Programs of different streams are not ordered. Whoever submits a program that reads what another
//     stream's program wrote does so after that one's `done`: the daemon seals pages for others when a
//     step is committed, which waits until the step's work is done.
// Threads: those of backend.h; the completion thread and the reaper live as long as the backend.
#include "kernels/backend.h"

#include "kernels/cpu_memory.h"
#include "kernels/cuda/run.h"

#include <inttypes.h>
#include <stdlib.h>

enum { WINDOW = 64, DESCRIPTION = 320 };

struct backend {
    struct cuda_memory memory;
    struct cuda_device device;
    struct cuda_flights *flights;
    struct cpu_ledger ledger; // of regions in host memory
    char description[DESCRIPTION];
};

struct backend_mem {
    struct cuda_garbage garbage; // first
    struct backend_close *close; // of mem_close, or NULL
    enum backend_place place;
    char *address;            // the device's
    struct cpu_block host;    // BACKEND_HOST
    struct cuda_block device; // BACKEND_DEVICE
};

// Makes the backend's device the thread's.
static void use(const struct backend *b) {
    cudaSetDevice(b->device.ordinal);
}

static int cuda_open(const struct backend_config *config, struct backend **ret, struct err *err) {
    struct backend *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for the backend");
    int status = cuda_device_find(config->device, b->description, sizeof b->description, err);
    if (status != 0)
        goto free_backend;
    int e = cuda_device_init(&b->device);
    if (e != 0) {
        status = cuda_error(err, KVPOOL_E_BACKEND, "properties of the GPU", (cudaError_t)e);
        goto free_backend;
    }
    status = cuda_flights_open(config->device, &b->flights, err);
    if (status != 0)
        goto free_backend;
    status = cuda_memory_open(&b->memory, config->device, b->flights, err);
    if (status != 0)
        goto close_flights;
    *ret = b;
    return 0;

close_flights:
    cuda_flights_close(b->flights);
free_backend:
    free(b);
    return status;
}

static void cuda_close(struct backend *b) {
    use(b);
    cuda_memory_close(&b->memory); // what the reaper has may fail, which flights are told
    cuda_flights_close(b->flights);
    free(b);
}

static const char *cuda_describe(const struct backend *b) {
    return b->description;
}

static const char *cuda_failure(const struct backend *b) {
    return cuda_flights_failure(b->flights);
}

static uint32_t cuda_lanes(const struct backend *b) {
    return (uint32_t)b->device.sms;
}

// --- memory -------------------------------------------------------------------------------------

static int open_host(struct backend *b, uint64_t bytes, struct backend_mem *mem, struct err *err) {
    void *address = NULL;
    const uint64_t pending = cuda_reaper_bytes(b->memory.reaper, BACKEND_HOST);
    int status = cpu_block_open(&b->ledger, "kvpool-region", bytes, &mem->host, err);
    if (status == KVPOOL_E_NOMEM && pending > 0 &&
        bytes <= cpu_memory_available(&b->ledger) + pending)
        return cuda_memory_pending(&b->memory, "a region", err);
    if (status != 0)
        return status;
    cudaError_t e = cudaHostRegister(mem->host.base, mem->host.bytes,
                                     cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (e == cudaErrorMemoryAllocation && pending > 0) {
        cudaGetLastError();
        status = cuda_memory_pending(&b->memory, "pinning a region for the GPU", err);
        goto close_block;
    }
    if (e != cudaSuccess) {
        status = cuda_error(err, KVPOOL_E_NOMEM, "pinning a region for the GPU", e);
        goto close_block;
    }
    e = cudaHostGetDevicePointer(&address, mem->host.base, 0);
    if (e != cudaSuccess) {
        status = cuda_error(err, KVPOOL_E_BACKEND, "device address of a region", e);
        goto unregister;
    }
    mem->address = address;
    return 0;

unregister:
    cudaHostUnregister(mem->host.base);
close_block:
    cpu_block_close(&mem->host);
    return status;
}

static int open_device(struct backend *b, uint64_t bytes, enum backend_export how,
                       struct backend_mem *mem, struct err *err) {
    int status =
        cuda_block_open(&b->memory, "a region", bytes, CUDA_REGION_SPARE, how, &mem->device, err);
    if (status == 0)
        mem->address = mem->device.address;
    return status;
}

static int cuda_mem_alloc(struct backend *b, uint64_t bytes, enum backend_place place,
                          enum backend_export how, struct backend_mem **ret, struct err *err) {
    if (place == BACKEND_HOST && how != BACKEND_FD)
        return err_set(err, KVPOOL_E_UNSUPPORTED,
                       "host memory is exported as a file descriptor, not as an IPC handle");
    use(b);
    struct backend_mem *mem = calloc(1, sizeof *mem);
    if (mem == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region of %" PRIu64 " bytes", bytes);
    mem->place = place;
    int status = place == BACKEND_HOST ? open_host(b, bytes, mem, err)
                                       : open_device(b, bytes, how, mem, err);
    if (status != 0) {
        free(mem);
        return status;
    }
    *ret = mem;
    return 0;
}

static int cuda_mem_import(struct backend *b, const struct backend_handle *handle, uint64_t bytes,
                           struct backend_mem **ret, struct err *err) {
    use(b);
    struct backend_mem *mem = calloc(1, sizeof *mem);
    if (mem == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a region of %" PRIu64 " bytes", bytes);
    mem->place = BACKEND_DEVICE;
    int status = cuda_block_import(&b->memory, handle, bytes, &mem->device, err);
    if (status != 0) {
        free(mem);
        return status;
    }
    mem->address = mem->device.address;
    *ret = mem;
    return 0;
}

static void release_mem(void *arg, struct cuda_garbage *garbage) {
    struct backend_mem *mem = (struct backend_mem *)garbage;
    struct backend_close *close = mem->close;
    if (mem->place == BACKEND_HOST) {
        cudaHostUnregister(mem->host.base);
        cpu_block_unmap(&mem->host);
    } else {
        cuda_block_release(arg, &mem->device);
    }
    free(mem);
    cuda_close_end(arg, close);
}

static void cuda_mem_close(struct backend *b, struct backend_mem *mem,
                           struct backend_close *close) {
    if (mem->place == BACKEND_DEVICE && cuda_block_put(&b->memory, &mem->device, close)) {
        free(mem);
        return;
    }
    cuda_close_begin(&b->memory, close);
    mem->close = close;
    if (close != NULL)
        close->next = NULL;
    if (mem->place == BACKEND_HOST)
        cpu_block_unlink(&mem->host);
    mem->garbage = (struct cuda_garbage){.release = release_mem,
                                         .place = mem->place,
                                         .bytes = mem->place == BACKEND_HOST ? mem->host.bytes
                                                                             : mem->device.bytes};
    cuda_reaper_give(b->memory.reaper, &mem->garbage);
}

static void cuda_mem_free(struct backend *b, struct backend_mem *mem) {
    cuda_mem_close(b, mem, NULL);
}

static uint64_t cuda_mem_bytes(const struct backend_mem *mem) {
    return mem->place == BACKEND_HOST ? mem->host.bytes : mem->device.bytes;
}

static void cuda_mem_handle(const struct backend_mem *mem, struct backend_handle *ret) {
    if (mem->place == BACKEND_HOST)
        *ret = (struct backend_handle){
            .place = BACKEND_HOST, .how = BACKEND_FD, .fd = mem->host.fd, .bytes = mem->host.bytes};
    else
        cuda_block_handle(&mem->device, ret);
}

static void *cuda_mem_host(const struct backend_mem *mem) {
    return mem->place == BACKEND_HOST ? mem->host.base : NULL;
}

char *cuda_mem_address(const struct backend_mem *mem) {
    return mem->address;
}

// --- pools --------------------------------------------------------------------------------------

static int pool_open(struct backend *b, const struct kv_geometry *geometry, enum backend_export how,
                     uint32_t num_pages, uint32_t rows, uint32_t row_entries,
                     struct backend_pool **ret, struct err *err) {
    use(b);
    return cuda_pool_open(&b->memory, geometry, how, num_pages, rows, row_entries, ret, err);
}

static void pool_close(struct backend *b, struct backend_pool *pool) {
    cuda_pool_close(&b->memory, pool);
}

static uint64_t pool_bytes(const struct backend_pool *pool) {
    return pool->planes.plane_bytes * pool->planes.layers;
}

static void pool_handle(const struct backend_pool *pool, struct backend_handle *ret) {
    cuda_block_handle(&pool->block, ret);
}

static void *pool_plane(const struct backend_pool *pool, uint32_t layer) {
    (void)pool;
    (void)layer;
    return NULL;
}

static int pool_read(struct backend *b, const struct backend_pool *pool, uint32_t layer,
                     uint64_t offset, void *to, uint64_t bytes, struct err *err) {
    use(b);
    return cuda_memory_copy(&b->memory, to, cuda_pool_at(pool, layer, offset), bytes, err);
}

static int pool_write(struct backend *b, struct backend_pool *pool, uint32_t layer, uint64_t offset,
                      const void *from, uint64_t bytes, struct err *err) {
    use(b);
    return cuda_memory_copy(&b->memory, cuda_pool_at(pool, layer, offset), from, bytes, err);
}

// --- programs -----------------------------------------------------------------------------------

static int stream_open(struct backend *b, struct backend_stream **ret, struct err *err) {
    use(b);
    return cuda_stream_open(b->memory.reaper, ret, err);
}

static void stream_close(struct backend *b, struct backend_stream *s) {
    cuda_stream_close(b->memory.reaper, s);
}

// The device is lost: nothing on the stream runs any more when this returns.
static void lose(struct backend *b, struct backend_stream *s, const struct err *err) {
    cuda_flights_fail(b->flights, err->text);
    cudaStreamSynchronize(s->usual);
    cudaStreamSynchronize(s->urgent);
    cudaGetLastError();
}

// Takes the program's turn: attention of few query tokens a sequence is urgent, of more it is not; what
// attends to nothing goes where the last program went.
static int take_turn(struct backend_stream *s, const struct backend_program *program,
                     struct err *err) {
    bool attends = false, urgent = true;
    for (uint32_t i = 0; i < program->n; i++) {
        const struct backend_op *op = &program->ops[i];
        if (op->kind != BACKEND_ATTEND)
            continue;
        const struct backend_batch *batch = &op->u.attend.batch;
        attends = true;
        for (uint32_t j = 0; j < batch->n && urgent; j++)
            urgent = batch->qo_indptr[j + 1] - batch->qo_indptr[j] <= CUDA_FEW;
    }
    return attends ? cuda_stream_turn(s, urgent, err) : 0;
}

static int cuda_submit(struct backend *b, struct backend_stream *s,
                       const struct backend_program *program, backend_done_fn done, void *arg,
                       struct err *err) {
    const char *failure = cuda_flights_failure(b->flights);
    struct cuda_flight *flight = NULL;
    struct err why = {0};
    if (failure != NULL)
        return err_set(err, KVPOOL_E_BACKEND, "the GPU is lost: %.160s", failure);
    use(b);
    int status = cuda_flight_get(b->flights, &flight, &why);
    if (status != 0) {
        lose(b, s, &why);
        return err_set(err, status, "%s", why.text);
    }
    status = take_turn(s, program, &why);
    if (status == 0)
        status = cuda_run(&b->device, b->flights, s, flight, program, &why);
    if (status != 0)
        goto put;
    cudaError_t e = cudaEventRecord(flight->event, s->stream);
    if (e != cudaSuccess) {
        status = cuda_error(&why, KVPOOL_E_BACKEND, "recording an event", e);
        goto put;
    }
    flight->queue = &s->queue;
    flight->done = done;
    flight->arg = arg;
    cuda_flight_launch(b->flights, flight);
    return 0;

put:
    lose(b, s, &why);
    cuda_flight_put(b->flights, flight);
    return err_set(err, status, "%s", why.text);
}

const struct backend_ops backend_cuda = {
    .name = "cuda",
    .api_version = BACKEND_API_VERSION,
    .window = WINDOW,
    .row_block = 0,
    .fatal = true,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .failure = cuda_failure,
    .lanes = cuda_lanes,
    .mem_alloc = cuda_mem_alloc,
    .mem_import = cuda_mem_import,
    .mem_free = cuda_mem_free,
    .mem_close = cuda_mem_close,
    .mem_bytes = cuda_mem_bytes,
    .mem_handle = cuda_mem_handle,
    .mem_host = cuda_mem_host,
    .pool_open = pool_open,
    .pool_close = pool_close,
    .pool_bytes = pool_bytes,
    .pool_handle = pool_handle,
    .pool_plane = pool_plane,
    .pool_read = pool_read,
    .pool_write = pool_write,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .submit = cuda_submit,
};
