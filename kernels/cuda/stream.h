// SPDX-License-Identifier: Apache-2.0
// stream.h: a stream and what of past programs it keeps on the device: the last batches, plans and
// workspaces, so that the layers of a step upload and plan once.
//
// Invariants
//  1. Everything here is written and read on the device in the order of the programs, so it may
//     be overwritten as soon as what used it was launched.
//  2. What the ops other than ATTEND need is there from the beginning: they do not fail for want of the
//     device's memory (up to CUDA_STREAM_SEQUENCES; 150 KB).
//  3. A buffer that was too small is kept until the stream closes: nothing here waits for the device.
//  4. A batch slot's contents never change while its id stays; a plan belongs to one id, one pool and
//     one state of its rows in the page table.
// Threads: those of backend.h: one at a time.
#ifndef KVPOOL_KERNELS_CUDA_STREAM_H
#define KVPOOL_KERNELS_CUDA_STREAM_H

#include "kernels/cuda/flight.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reaper.h"

enum {
    CUDA_STREAM_BATCHES = 8,
    CUDA_STREAM_PLANS = 16,
    CUDA_STREAM_PAIRS = 2048,     // pages copied by one launch
    CUDA_STREAM_SEQUENCES = 1024, // of a batch that takes no more memory: the daemon's largest
};

struct cuda_buffer { // of the device, grows
    void *address;
    size_t bytes;
};

// Sequences of a batch that one kernel works on.
struct cuda_part {
    uint32_t n, nnz, max_q_len;
    uint32_t index; // word of the slot where their list begins; all sequences: none
};

// A batch on the device: rows, kv_len, qo_indptr, then two lists of sequences.
struct cuda_batch_slot {
    uint64_t id;   // unique in the stream; 0: empty
    uint64_t used; // when last
    uint32_t n;
    uint32_t kv_len, indptr;         // words where these begin; rows at 0
    struct cuda_part all, few, many; // few: 1 .. CUDA_FEW new tokens; many: more
    uint32_t *host;                  // what `device` holds
    uint32_t words, capacity;
    struct cuda_buffer device;
};
enum { CUDA_FEW = 8 }; // query tokens of a sequence that the decode kernel takes

enum cuda_kernel { CUDA_DECODE, CUDA_PREFILL, CUDA_PLANNED_KERNELS };

// What a plan was made for, besides the batch.
struct cuda_plan_key {
    // A plan has page ids: of this pool (its id), as the last table update that wrote a row of the batch
    // left them.
    uint64_t pool, update;
    uint32_t kernel; // enum cuda_kernel
    uint32_t part;   // 0 all, 1 few, 2 many
    uint32_t first;  // of the part's sequences
    uint32_t each;   // sequences of a launch of the op; its last one takes those that are left
    uint32_t qo_heads, kv_heads, head_dim, page_shift;
    uint32_t dtype, kv_dtype;
    uint32_t causal, batch_invariant;
    int32_t window_left;
    uint32_t lse, sinks, soft_cap; // whether there are any
};
struct cuda_plan {
    uint64_t batch; // id; 0: none
    uint64_t used;
    struct cuda_plan_key key;
    struct cuda_buffer device;
};

struct backend_stream {
    struct cuda_garbage garbage; // first
    // Programs of few query tokens run on a stream of high priority: their blocks are next when one of a
    // long prompt's ends. What one of the two begins waits for what the other has begun.
    cudaStream_t stream; // the one that the last program ran on
    cudaStream_t usual, urgent;
    cudaEvent_t crossing;
    struct cuda_queue queue;
    struct cuda_batch_slot batches[CUDA_STREAM_BATCHES];
    struct cuda_plan plans[CUDA_STREAM_PLANS];
    struct cuda_buffer workspaces[CUDA_PLANNED_KERNELS];
    struct cuda_buffer pairs;
    uint64_t clock, next_id;
    uint64_t planned, uploaded; // how many plans and batches were made
    uint64_t bytes;             // of all buffers
    void **retired;             // too small buffers
    uint32_t num_retired, max_retired;
};

// Errors: NOMEM, BACKEND.
int cuda_stream_open(struct cuda_reaper *r, struct backend_stream **ret, struct err *err);
void cuda_stream_close(struct cuda_reaper *r,
                       struct backend_stream *s); // idle; gives it to the reaper
// What is enqueued from now on is urgent, or not. Errors: BACKEND.
int cuda_stream_turn(struct backend_stream *s, bool urgent, struct err *err);

// Makes the buffer at least so big; what it held is gone. False: no memory.
bool cuda_stream_grow(struct backend_stream *s, struct cuda_buffer *buffer, size_t bytes);

// The slot of the batch; *ret_new: it must be uploaded from slot->host. NULL: no memory.
struct cuda_batch_slot *cuda_stream_batch(struct backend_stream *s,
                                          const struct backend_batch *batch, bool *ret_new);

// The plan for the batch; *ret_new: it must be planned. NULL: no memory. The one least recently used gives
// way; but where all are one op's, the one most recently used: its launches come in the same order layer after
// layer, and all but (launches - CUDA_STREAM_PLANS) of them then find their plan.
struct cuda_plan *cuda_stream_plan(struct backend_stream *s, const struct cuda_batch_slot *batch,
                                   const struct cuda_plan_key *key, size_t bytes, bool *ret_new);

// A zeroed workspace of at least so many bytes; *ret_new: the zeroing was enqueued just now. NULL: no
// memory.
void *cuda_stream_workspace(struct backend_stream *s, enum cuda_kernel kernel, size_t bytes,
                            bool *ret_new);

#endif
