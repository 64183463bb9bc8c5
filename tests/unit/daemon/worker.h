// SPDX-License-Identifier: Apache-2.0
// worker.h: one client with a pool, four sequences and a region, and its requests in one line each.
//
// The pool: 2 layers, 2 kv heads of 8, fp32, page size 8, 32 pages. The region has room for the
// tensors of up to 16 tokens.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_WORKER_H
#define KVPOOL_TESTS_UNIT_DAEMON_WORKER_H

#include "fixture.h"

#define REGION_BYTES 65536
#define HEADS 4 // of q; the pool has 2 kv heads of 8, 2 layers, fp32, page size 8
#define Q_BYTES (HEADS * 8 * 4)
#define KV_BYTES (2 * 8 * 4)
// Where tensors of up to 16 tokens lie in the region.
#define Q_AT 0
#define K_AT 8192
#define V_AT 16384
#define OUT_AT 24576
#define LSE_AT 32768

extern struct fixture fx;
extern struct client me;
extern uint64_t pool, region, seqs[4];
extern uint8_t *data; // the region

int worker_setup(void **state);
int worker_setup_with(const struct backend_ops *ops, uint64_t features);
int worker_teardown(void **state);
float *floats(uint64_t offset);
struct proto_tensor tensor(uint64_t offset, uint64_t heads, uint64_t dim);
struct proto_attn step_attn(uint64_t step);
struct proto_attn append_attn(uint64_t step, uint32_t layer);
struct proto_attn batch_attn(uint32_t n);
int attn(uint16_t op, const struct proto_attn *a, const struct proto_batch_item *items,
         struct err *err);
struct call *attn_start(uint16_t op, const struct proto_attn *a);
struct call *handle_start(uint16_t op, uint64_t handle);
int commit(uint64_t step);
int begin_one(uint64_t step, uint64_t seq, uint32_t tokens);
void fill(uint64_t step, uint64_t seq, uint32_t tokens);
int free_seqs(uint32_t n, const uint64_t *handles);
int fork_seq(uint64_t seq, uint32_t n, uint64_t *ret);
int truncate_seq(uint64_t seq, uint32_t length);
struct proto_seq_info seq_info(uint64_t seq);

#endif
