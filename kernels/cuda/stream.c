// SPDX-License-Identifier: Apache-2.0
// stream.c: see stream.h.
#include "kernels/cuda/stream.h"

#include "kernels/cuda/driver.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN_WORDS = 4 }; // of the arrays of a batch, so that 16 bytes can be loaded at once

static uint32_t aligned(uint32_t words) {
    return (words + ALIGN_WORDS - 1) / ALIGN_WORDS * ALIGN_WORDS;
}

// Where the lists of a batch of n sequences begin, and how many words all of it may take.
static uint32_t lists_at(uint32_t n) {
    return 2 * aligned(n) + aligned(n + 1);
}
static uint32_t words_for(uint32_t n) {
    return lists_at(n) + aligned(n) + ALIGN_WORDS;
}

static void free_buffers(struct backend_stream *s) {
    for (size_t i = 0; i < CUDA_STREAM_BATCHES; i++) {
        cudaFree(s->batches[i].device.address);
        free(s->batches[i].host);
    }
    for (size_t i = 0; i < CUDA_STREAM_PLANS; i++)
        cudaFree(s->plans[i].device.address);
    for (size_t i = 0; i < CUDA_PLANNED_KERNELS; i++)
        cudaFree(s->workspaces[i].address);
    cudaFree(s->pairs.address);
    for (uint32_t i = 0; i < s->num_retired; i++)
        cudaFree(s->retired[i]);
    free(s->retired);
}

static void destroy(struct backend_stream *s) {
    free_buffers(s);
    if (s->crossing != NULL)
        cudaEventDestroy(s->crossing);
    if (s->urgent != NULL)
        cudaStreamDestroy(s->urgent);
    if (s->usual != NULL)
        cudaStreamDestroy(s->usual);
}

int cuda_stream_open(struct cuda_reaper *r, struct backend_stream **ret, struct err *err) {
    int status;
    struct backend_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for a stream");
    int least, most;
    cudaError_t e = cudaDeviceGetStreamPriorityRange(&least, &most);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithPriority(&s->usual, cudaStreamNonBlocking, least);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithPriority(&s->urgent, cudaStreamNonBlocking, most);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&s->crossing, cudaEventDisableTiming);
    if (e != cudaSuccess) {
        status = cuda_error(err, e == cudaErrorMemoryAllocation ? KVPOOL_E_NOMEM : KVPOOL_E_BACKEND,
                            "a stream", e);
        goto close;
    }
    s->stream = s->usual;
    bool enough = cuda_stream_grow(s, &s->pairs, (size_t)2 * CUDA_STREAM_PAIRS * sizeof(uint32_t));
    for (size_t i = 0; i < CUDA_STREAM_BATCHES && enough; i++)
        enough = cuda_stream_grow(s, &s->batches[i].device,
                                  words_for(CUDA_STREAM_SEQUENCES) * sizeof(uint32_t));
    if (!enough) {
        status = err_set(err, KVPOOL_E_NOMEM, "a stream: no memory on the GPU");
        goto close;
    }
    *ret = s;
    return 0;

close:
    cuda_stream_close(r, s); // here its buffers would wait for the device
    return status;
}

int cuda_stream_turn(struct backend_stream *s, bool urgent, struct err *err) {
    cudaStream_t to = urgent ? s->urgent : s->usual;
    if (to == s->stream)
        return 0;
    cudaError_t e = cudaEventRecord(s->crossing, s->stream);
    if (e == cudaSuccess)
        e = cudaStreamWaitEvent(to, s->crossing, 0);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_BACKEND, "ordering two streams", e);
    s->stream = to;
    return 0;
}

static void release(void *arg, struct cuda_garbage *garbage) {
    (void)arg;
    struct backend_stream *s = (struct backend_stream *)garbage;
    if (s->usual != NULL)
        cudaStreamSynchronize(s->usual);
    if (s->urgent != NULL)
        cudaStreamSynchronize(s->urgent);
    destroy(s);
    free(s);
}

void cuda_stream_close(struct cuda_reaper *r, struct backend_stream *s) {
    s->garbage =
        (struct cuda_garbage){.release = release, .place = BACKEND_DEVICE, .bytes = s->bytes};
    cuda_reaper_give(r, &s->garbage);
}

static bool retire(struct backend_stream *s, void *address) {
    if (s->num_retired == s->max_retired) {
        uint32_t more = s->max_retired == 0 ? 16 : 2 * s->max_retired;
        // NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers
        void **grown = reallocarray(s->retired, more, sizeof *grown);
        if (grown == NULL)
            return false;
        s->retired = grown;
        s->max_retired = more;
    }
    s->retired[s->num_retired++] = address;
    return true;
}

bool cuda_stream_grow(struct backend_stream *s, struct cuda_buffer *buffer, size_t bytes) {
    if (bytes <= buffer->bytes)
        return true;
    void *address = NULL;
    if (bytes < 2 * buffer->bytes) // so that what is retired is less than what is in use
        bytes = 2 * buffer->bytes;
    if (cudaMalloc(&address, bytes) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    if (buffer->address != NULL && !retire(s, buffer->address)) {
        cudaFree(address);
        return false;
    }
    s->bytes += bytes;
    buffer->address = address;
    buffer->bytes = bytes;
    return true;
}

// --- batches ------------------------------------------------------------------------------------

static bool same(const struct cuda_batch_slot *slot, const struct backend_batch *batch) {
    size_t bytes = (size_t)batch->n * sizeof(uint32_t);
    return slot->id != 0 && slot->n == batch->n && memcmp(slot->host, batch->rows, bytes) == 0 &&
           memcmp(slot->host + slot->kv_len, batch->kv_len, bytes) == 0 &&
           memcmp(slot->host + slot->indptr, batch->qo_indptr, bytes + sizeof(uint32_t)) == 0;
}

static void add(struct cuda_part *part, uint32_t q_len) {
    part->n++;
    part->nnz += q_len;
    part->max_q_len = q_len > part->max_q_len ? q_len : part->max_q_len;
}

// Sorts the sequences into few and many, and writes their lists.
static void divide(struct cuda_batch_slot *slot, uint32_t at) {
    const uint32_t *indptr = slot->host + slot->indptr;
    slot->all = slot->few = slot->many = (struct cuda_part){0};
    for (uint32_t i = 0; i < slot->n; i++) {
        uint32_t q_len = indptr[i + 1] - indptr[i];
        add(&slot->all, q_len);
        if (q_len > 0)
            add(q_len <= CUDA_FEW ? &slot->few : &slot->many, q_len);
    }
    slot->few.index = at;
    slot->many.index = at + aligned(slot->few.n);
    uint32_t few = slot->few.index;
    uint32_t many = slot->many.index;
    for (uint32_t i = 0; i < slot->n; i++) {
        uint32_t q_len = indptr[i + 1] - indptr[i];
        if (q_len > 0)
            slot->host[q_len <= CUDA_FEW ? few++ : many++] = i;
    }
    // The lists are needed only where both kinds are.
    slot->words = slot->few.n > 0 && slot->many.n > 0 ? slot->many.index + slot->many.n : at;
}

static bool fill(struct backend_stream *s, struct cuda_batch_slot *slot,
                 const struct backend_batch *batch) {
    uint32_t n = batch->n;
    uint32_t kv_len = aligned(n);
    uint32_t indptr = 2 * kv_len;
    uint32_t need = words_for(n);
    slot->id = 0;
    if (need > slot->capacity) {
        uint32_t *grown = realloc(slot->host, (size_t)need * sizeof *grown);
        if (grown == NULL)
            return false;
        slot->host = grown;
        slot->capacity = need;
    }
    if (!cuda_stream_grow(s, &slot->device, (size_t)need * sizeof(uint32_t)))
        return false;
    memset(slot->host, 0, (size_t)need * sizeof(uint32_t));
    memcpy(slot->host, batch->rows, n * sizeof(uint32_t));
    memcpy(slot->host + kv_len, batch->kv_len, n * sizeof(uint32_t));
    memcpy(slot->host + indptr, batch->qo_indptr, ((size_t)n + 1) * sizeof(uint32_t));
    slot->n = n;
    slot->kv_len = kv_len;
    slot->indptr = indptr;
    divide(slot, lists_at(n));
    slot->id = ++s->next_id;
    return true;
}

struct cuda_batch_slot *cuda_stream_batch(struct backend_stream *s,
                                          const struct backend_batch *batch, bool *ret_new) {
    struct cuda_batch_slot *oldest = &s->batches[0];
    for (size_t i = 0; i < CUDA_STREAM_BATCHES; i++) {
        struct cuda_batch_slot *slot = &s->batches[i];
        if (same(slot, batch)) {
            slot->used = ++s->clock;
            *ret_new = false;
            return slot;
        }
        if (slot->used < oldest->used)
            oldest = slot;
    }
    if (!fill(s, oldest, batch))
        return NULL;
    oldest->used = ++s->clock;
    s->uploaded++;
    *ret_new = true;
    return oldest;
}

// --- plans and workspaces -----------------------------------------------------------------------

// The plan is of another launch of the same op.
static bool same_op(const struct cuda_plan *plan, uint64_t batch, const struct cuda_plan_key *key) {
    struct cuda_plan_key launch = plan->key;
    launch.first = key->first;
    return plan->batch == batch && memcmp(&launch, key, sizeof launch) == 0;
}

struct cuda_plan *cuda_stream_plan(struct backend_stream *s, const struct cuda_batch_slot *batch,
                                   const struct cuda_plan_key *key, size_t bytes, bool *ret_new) {
    struct cuda_plan *oldest = NULL; // of other ops
    struct cuda_plan *newest = NULL; // of this one
    for (size_t i = 0; i < CUDA_STREAM_PLANS; i++) {
        struct cuda_plan *plan = &s->plans[i];
        if (plan->batch == batch->id && memcmp(&plan->key, key, sizeof *key) == 0) {
            plan->used = ++s->clock;
            *ret_new = false;
            return plan;
        }
        if (same_op(plan, batch->id, key)) {
            if (newest == NULL || plan->used > newest->used)
                newest = plan;
        } else if (oldest == NULL || plan->used < oldest->used) {
            oldest = plan;
        }
    }
    struct cuda_plan *plan = oldest != NULL ? oldest : newest;
    plan->batch = 0;
    if (!cuda_stream_grow(s, &plan->device, bytes))
        return NULL;
    plan->batch = batch->id;
    plan->key = *key;
    plan->used = ++s->clock;
    s->planned++;
    *ret_new = true;
    return plan;
}

void *cuda_stream_workspace(struct backend_stream *s, enum cuda_kernel kernel, size_t bytes,
                            bool *ret_new) {
    struct cuda_buffer *workspace = &s->workspaces[kernel];
    *ret_new = bytes > workspace->bytes;
    if (*ret_new) {
        if (!cuda_stream_grow(s, workspace, bytes))
            return NULL;
        if (cudaMemsetAsync(workspace->address, 0, workspace->bytes, s->stream) != cudaSuccess) {
            cudaGetLastError();
            workspace->bytes = 0; // never used as it is
            return NULL;
        }
    }
    return workspace->address;
}
