// SPDX-License-Identifier: Apache-2.0
// kvpool.h: the whole C API of libkvpool, the client library of kvpoold. Here are its conventions, steps
// and attention; the rest is in parts, which this file includes:
//
//     base.h     status, connection          seq.h      sequences, prefix sharing
//     pool.h     pools                       observe.h  counters and lists
//     region.h   regions and tensors
//
// kvpoold owns a paged KV cache. A worker process connects, opens a pool (the pages of one KV
// geometry), creates sequences in it, and for each forward pass of its model runs one *step*:
//
//     kvpool_step_begin      reserve pages for the new tokens of a batch of sequences
//     kvpool_prefill/decode  once per layer: append K and V of the new tokens, then attend
//     kvpool_step_commit     the new tokens are now part of the sequences
//     (kvpool_step_abort     ... or nothing happened)
//
// Tensors (q, k, v, out, lse) never travel in messages: they live in *regions*, memory shared by
// the worker and the daemon, and a request names {region, offset, strides}.
//
// Conventions, true of every function here unless it says otherwise
//   Result    `kvpool_status`: KVPOOL_OK (0) or a negative KVPOOL_E_*. Outputs (`ret_*`) are
//             written only on KVPOOL_OK. A request that fails has changed nothing.
//   Message   `kvpool_last_error()` has one line of text for the calling thread's last failure.
//   Threads   Every function may be called from any thread at any time, except that an object must
//             not be used after, or while, it is being freed. Calls on one client from several
//             threads run at the same time. A call blocks until its reply or the time-out.
//   Order     Requests of one client are *started* by the daemon in the order in which the library
//             accepted them (kvpool_submit included); requests of one step also run in that order.
//   Time      A call that gets no reply within `timeout_ms` returns KVPOOL_E_TIMEOUT; the daemon
//             may still carry it out. begin and commit may be repeated safely (see there).
//   Fork      After fork() the child must not use the parent's objects: every call answers
//             KVPOOL_E_FORKED and changes nothing (kvpool_region_data() is NULL, kvpool_close() and
//             kvpool_region_free() do nothing). The child may kvpool_connect() anew; the memory of
//             what it inherited goes with the process.
//   Restart   When the daemon went away, calls fail with KVPOOL_E_CONN; one that was in flight
//             may or may not have been carried out. Every further call tries to reconnect by
//             itself. If only the connection was lost, nothing else changed: handles stay valid,
//             steps open, for as long as the daemon's `session_grace` (30 s). If the session ended
//             (the daemon is a new instance, or gave the client up), sequences, steps and regions
//             are gone, and pool handles too if it is a new instance: the next call that takes a
//             handle answers KVPOOL_E_LOST, once, and later uses of an old one KVPOOL_E_STALE (a
//             step: KVPOOL_E_NOTFOUND). So on KVPOOL_E_LOST: open the pools, make regions and
//             sequences again.
//   Growth    Every public struct begins with `size`; set it to sizeof the struct (the *_INIT
//             macros do) so that older programs work with newer libraries. Zero means "default"
//             in every field unless it says otherwise.
//   Handles   kvpool_pool, kvpool_seq are values: index and generation. 0 is never valid. A stale
//             one is an error (KVPOOL_E_STALE), never another object; one of another client is
//             KVPOOL_E_PERM.
//
// Units: lengths and strides count *elements* or *tokens* as said; offsets and sizes count bytes.
#ifndef KVPOOL_KVPOOL_H
#define KVPOOL_KVPOOL_H

#include <kvpool/base.h>
#include <kvpool/observe.h>
#include <kvpool/pool.h>
#include <kvpool/region.h>
#include <kvpool/seq.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---------------------------------------------------------------------------------------------
// Steps

typedef struct kvpool_step_args {
    size_t size;
    kvpool_pool pool;
    uint32_t n;                 // sequences, 1..max_batch
    uint32_t flags;             // 0
    const kvpool_seq *seqs;     // [n], each once
    const uint32_t *new_tokens; // [n], 0 or more each; their prefix sums are the step's qo_indptr
    kvpool_step step; // 0: the library chooses; else repeats a begin by its id (idempotent)
    const uint32_t
        *tokens; // ids of all new tokens, sequence after sequence; NULL: not known. At most
                 // KVPOOL_MAX_TOKENS. See "Prefix sharing"
} kvpool_step_args;
#define KVPOOL_STEP_ARGS_INIT \
    { sizeof(kvpool_step_args), 0, 0, 0, NULL, NULL, 0, NULL }

// Opens a step: reserves every page that the new tokens need, or none. A sequence is in at most one
// open step. ret_missing_pages (may be NULL) is written on KVPOOL_E_NOSPACE only: how many more
// free pages the step needs. Errors: NOSPACE, STALE, PERM, BUSY (a sequence is in another step),
// INVAL (empty batch, duplicate sequence, sequence of another pool, longer than max_seq_len, too many
// tokens with ids), LIMIT (open steps), TOOBIG, EXISTS (the id is open with another batch), STATE (the
// id is already finished), UNSUPPORTED (ids for a daemon without prefix sharing).
KVPOOL_API kvpool_status kvpool_step_begin(kvpool_client *client, const kvpool_step_args *args,
                                           kvpool_step *ret_step, uint64_t *ret_missing_pages);

// Makes the step's tokens part of its sequences. Waits in the daemon for the step's own requests in
// flight. Every layer must have been appended to. Committing a committed step again is KVPOOL_OK.
// Errors: STATE (a layer was not appended, or one of its appends failed: the step stays open),
// ABORTED, NOTFOUND.
KVPOOL_API kvpool_status kvpool_step_commit(kvpool_client *client, kvpool_step step);

// Gives the reserved pages back; the sequences are as before begin. Aborting an aborted step again
// is KVPOOL_OK. Errors: STATE (already committed), NOTFOUND.
KVPOOL_API kvpool_status kvpool_step_abort(kvpool_client *client, kvpool_step step);

// ---------------------------------------------------------------------------------------------
// Attention
//
// One layer of one batch. Of sequence i, let q_len be its number of query tokens and kv_len its
// length including the new tokens of an open step. Query j (0..q_len-1) stands at position
// p = kv_len - q_len + j; it sees key position s when
//     s < kv_len,  s <= p if causal,  s >= p - window_left if window_left >= 0
// and, for query head h with key head h / (qo_heads / kv_heads),
//     logit = sm_scale * (q . k);  if soft_cap > 0: logit = soft_cap * tanh(logit / soft_cap)
//     out = sum(softmax(logit) * v);  lse = ln(sum(exp(logit)))
// A query that sees nothing (kv_len 0, or p < 0 when causal) gives out = 0 and lse = -infinity.
//
// Sinks ("attention sinks"): with `sinks` the softmax of every row of query head h has one logit
// more, sinks[h], used as it is (neither scaled nor capped), that has no value:
//     out = sum(exp(logit) * v) / (exp(sinks[h]) + sum(exp(logit)))
//     lse = ln(exp(sinks[h]) + sum(exp(logit)))
// A query that sees nothing then gives out = 0 and lse = sinks[h].
//
// A pool with kv_dtype KVPOOL_FP8_E4M3 stores x as the e4m3 number nearest to x / scale (ties to
// even), at most +-448 (an infinity too); a NaN stays one. What is read back is that number times
// the scale. The scales of K and V are k_scale and v_scale, or one for each K/V head in kv_scales;
// they must be the same in every request on the same tokens, which the daemon does not check.
//
// The same inputs give the same bits. With KVPOOL_ATTN_BATCH_INVARIANT a sequence's bits also do not
// depend on which other sequences are in the batch; that may cost speed, and memory of the device:
// where there is none left for it the request fails with NOMEM.
//
// Softmax is computed online (Milakov & Gimelshein, "Online normalizer calculation for softmax",
// 2018), accumulated in fp32; the KV pages are read in place ("paged attention", Kwon et al.,
// 2023).

#define KVPOOL_ATTN_CAUSAL 1u          // flag: causal mask
#define KVPOOL_ATTN_BATCH_INVARIANT 2u // flag: bits do not depend on the rest of the batch

typedef struct kvpool_attn_args {
    size_t size;
    kvpool_step step;       // an open step: its batch, its new tokens as queries; or 0:
    kvpool_pool pool;       //   attention alone over a batch of committed sequences of this pool,
    uint32_t n;             //   n of them (1..max_batch),
    uint32_t layer;         // (0..layers-1)
    const kvpool_seq *seqs; //   [n], each once,
    const uint32_t *q_len;  //   [n] query tokens each; their prefix sums are qo_indptr
    uint32_t qo_heads;      // query heads, a multiple of kv_heads, at most 4096
    uint32_t flags;         // KVPOOL_ATTN_*
    float sm_scale;         // > 0 and finite; 0: 1/sqrt(head_dim)
    float soft_cap;         // 0: none; else > 0 and finite
    int32_t window_left;    // tokens to the left that are seen besides the own; -1: all
    uint32_t reserved;      // 0
    kvpool_tensor q;        // in, [tokens][qo_heads][head_dim]
    kvpool_tensor k;        // in, [tokens][kv_heads][head_dim]; region NULL: no append
    kvpool_tensor v;        // in, as k; given or not given together with it
    kvpool_tensor out;      // out, as q; must overlap none of the others
    kvpool_tensor lse;      // out, fp32 [tokens][qo_heads]; region NULL: not wanted
    float k_scale, v_scale; // of an fp8 pool, > 0 and finite; 0: 1
    kvpool_tensor
        kv_scales;       // of an fp8 pool, in, fp32 [2][kv_heads]: of K, then of V, each > 0 and
                         // finite, instead of the two above; region NULL: none
    kvpool_tensor sinks; // in, fp32 [qo_heads]; region NULL: none. The strides of this and of
                         // kv_scales are 0: they are dense
} kvpool_attn_args;
#define KVPOOL_ATTN_ARGS_INIT \
    { .size = sizeof(kvpool_attn_args), .flags = KVPOOL_ATTN_CAUSAL, .window_left = -1 }

// Appends K and V of one layer's new tokens of an open step, without attention. Uses step, layer,
// k and v, and the scales of an fp8 pool; q, out, lse and sinks must be absent. Repeating a layer
// overwrites it.
// Errors: as kvpool_prefill.
KVPOOL_API kvpool_status kvpool_append(kvpool_client *client, const kvpool_attn_args *args);

// Append (when k and v are given, which needs a step) and attention of one layer; any q_len.
// kvpool_decode is the same for at most 8 query tokens per sequence (its kernels are made for it).
// Errors, all decided before any work: INVAL (sm_scale NaN or negative, head counts that do not
// divide, a layer out of range, a tensor that leaves its region, is misaligned or overlaps an
// output, unknown flags, empty batch, duplicate sequence; a scale NaN or negative, scales for a pool
// that is not fp8), STALE, PERM (another client's sequence,
// region), NOTFOUND (no such step), BUSY (a sequence without this step while in one), AGAIN,
// TOOBIG, BACKEND, UNSUPPORTED (scales, sinks or BATCH_INVARIANT for a daemon that knows none).
// Not before: NOMEM (BATCH_INVARIANT, and the device has no memory for it: out and lse hold nothing
// certain, and the rest is done: k and v are appended, the step can be committed. The call may be
// repeated, or made without the flag).
KVPOOL_API kvpool_status kvpool_prefill(kvpool_client *client, const kvpool_attn_args *args);
KVPOOL_API kvpool_status kvpool_decode(kvpool_client *client, const kvpool_attn_args *args);

// ---------------------------------------------------------------------------------------------
// Many requests in flight

typedef enum kvpool_op_kind {
    KVPOOL_OP_APPEND = 1,  // attn
    KVPOOL_OP_PREFILL = 2, // attn
    KVPOOL_OP_DECODE = 3,  // attn
    KVPOOL_OP_BEGIN = 4,   // begin, whose `step` must not be 0: use kvpool_step_id()
    KVPOOL_OP_COMMIT = 5,  // step
    KVPOOL_OP_ABORT = 6,   // step
} kvpool_op_kind;

typedef struct kvpool_request {
    size_t size;
    uint32_t kind;  // kvpool_op_kind
    uint32_t flags; // 0
    const kvpool_attn_args *attn;
    const kvpool_step_args *begin;
    kvpool_step step;
} kvpool_request;

// A step id never used before by this client, so that a whole step can be submitted without
// waiting. 0 on an error (client NULL, or of the parent process).
KVPOOL_API kvpool_step kvpool_step_id(kvpool_client *client);

// Sends a request and returns at once; its arguments may be reused, its tensors must stay until it
// is done. A whole step (begin, every layer, commit) may be in flight; what follows a failed begin
// fails with NOTFOUND. The op is owned by the caller until kvpool_wait() returns something other
// than KVPOOL_E_TIMEOUT for it. Errors: those that can be decided here (INVAL, TOOBIG), AGAIN
// (max_inflight reached: wait for an op first), CONN, LOST, TIMEOUT (the daemon reads nothing).
KVPOOL_API kvpool_status kvpool_submit(kvpool_client *client, const kvpool_request *request,
                                       kvpool_op **ret_op);

// Waits for one op at most timeout_ms (0: just look; UINT32_MAX: the client's time-out), and
// returns the request's own status, after which the op is gone. KVPOOL_E_TIMEOUT: not done yet, the
// op is still the caller's. One thread at a time may wait for one op.
KVPOOL_API kvpool_status kvpool_wait(kvpool_client *client, kvpool_op *op, uint32_t timeout_ms);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_KVPOOL_H
