// SPDX-License-Identifier: Apache-2.0
// prefill_work.cuh: what the prefill's plan kernel, its attention kernels and their launcher agree on:
// the work list, the workspace, the arguments of a kernel.
//
// A sequence's query rows are packed by key head: row r is query token r / group of query head
// r % group of the key head's group, so that K and V are read once for all heads that share them.
//
//   packed rows      |-- tile 0 --|-- tile 1 --|-- tile 2 |        of `rows` rows
//   record           a tile, or one of the splits of a tile's KV range; served for every key head
//   item             record x key head: what one CTA does; item i is record i / kv_heads, head
//                    i % kv_heads, and records are in the order longest first
//
//   plan:       | header (64 bytes) | first tile of sequence 0..n (u32) | records |
//   workspace:  | counters | partial out fp32 [slots][rows][head_dim] | {max, sum} fp32 [slots][rows] |
//               slot = (record.slot + split) * kv_heads + head
//
// Invariants
//  1. Sizes and grids follow from the host numbers of cuda_batch: `prefill_bounds_of`.
//  2. The counters of the workspace are 0 between launches, whatever the shapes of the launches.
//  3. Which ranges of keys a tile is cut into depends on lengths only, never on the order of threads.
#ifndef KVPOOL_KERNELS_CUDA_PREFILL_WORK_CUH
#define KVPOOL_KERNELS_CUDA_PREFILL_WORK_CUH

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

enum {
    PREFILL_COUNTERS = 4096, // u32s at the start of a workspace
    PREFILL_MIN_CHUNK = 512, // tokens: what is cut off a tile's KV range is at least so long
    PREFILL_MAX_SPLITS = 64, // ranges that a tile is cut into: one CTA merges them
    PREFILL_FAR = 1 << 30,   // more than any position
};

struct __align__(16) prefill_record {
    uint32_t q_first;                // the sequence's first query token in the tensors
    uint32_t q_len, kv_len;          // of the sequence
    uint32_t row;                    // of the page table
    uint32_t first_row;              // of the tile, in the sequence's packed rows
    uint32_t begin, end;             // KV range, in tiles of `tokens`; empty: nothing is seen
    uint32_t split, splits;          // which range of how many
    uint32_t slot;                   // splits > 1: the tile's first partial result
    uint32_t whole_begin, whole_end; // tiles of tokens that all its rows see whole
};

// What a CTA keeps in shared memory of its item.
struct prefill_item : prefill_record {
    uint32_t head; // key head
    float factor;  // from q . k, as stored, to units of ln 2
};

struct __align__(64) prefill_plan {
    uint32_t records;
    uint32_t slots; // partial results in use, for each key head
};

// A tile of one kernel.
struct prefill_tile {
    uint32_t rows, tokens;
    uint32_t ctas; // that run side by side on a multiprocessor
};

// Host numbers of a launch.
struct prefill_bounds {
    uint32_t tiles, records; // at most
    uint32_t lanes;          // CTAs side by side
    uint32_t slots;          // of partial results, for each key head; 0: nothing is cut
    uint32_t slot_rows;      // rows of a tile that can be in use
    size_t sums;             // where {max, sum} begins in the workspace, bytes
    size_t workspace_bytes, records_at, plan_bytes;
};

static inline uint64_t prefill_ceil_div(uint64_t x, uint64_t by) {
    return (x + by - 1) / by;
}

static inline struct prefill_bounds prefill_bounds_of(const struct cuda_device *d,
                                                      const struct cuda_attention *a,
                                                      const struct prefill_tile *tile) {
    struct prefill_bounds b;
    uint64_t group = a->qo_heads / a->kv.kv_heads;
    uint64_t each = prefill_ceil_div((uint64_t)a->batch.max_q_len * group, tile->rows);
    uint64_t all = (uint64_t)a->batch.nnz * group / tile->rows + a->batch.n;
    uint64_t tiles = each * a->batch.n < all ? each * a->batch.n : all;
    uint64_t lanes = a->max_ctas > 0 ? a->max_ctas : (uint64_t)d->sms * tile->ctas;
    lanes = lanes < PREFILL_COUNTERS / 2 ? lanes : PREFILL_COUNTERS / 2;
    b.tiles = (uint32_t)tiles;
    b.lanes = (uint32_t)lanes;
    // A range is no longer than 3/2 of an even share of a lane, and no tile is cut that is: the cut
    // ones' parts are at most 4/3 of the lanes.
    b.slots = a->batch_invariant ? 0 : (uint32_t)(4 * lanes / (3 * (uint64_t)a->kv.kv_heads));
    b.slots = b.slots < 2 ? 0 : b.slots;
    b.records = b.tiles + b.slots;
    uint64_t rows = (uint64_t)a->batch.max_q_len * group;
    b.slot_rows = (uint32_t)(rows < tile->rows ? rows : tile->rows);
    uint64_t slot_rows = (uint64_t)b.slots * a->kv.kv_heads * b.slot_rows;
    b.sums = PREFILL_COUNTERS * sizeof(uint32_t) + slot_rows * a->kv.head_dim * sizeof(float);
    b.workspace_bytes = b.slots == 0 ? 0 : b.sums + slot_rows * sizeof(float2);
    b.records_at = sizeof(struct prefill_plan) +
                   prefill_ceil_div((a->batch.n + 1) * sizeof(uint32_t), 64) * 64;
    b.plan_bytes = b.records_at + (size_t)b.records * sizeof(struct prefill_record);
    return b;
}

// Arguments of a plan kernel.
struct prefill_planning {
    struct cuda_batch batch;
    struct prefill_plan *plan;
    uint32_t *tile_first; // [n + 1]
    struct prefill_record *records;
    uint32_t max_records, max_slots, lanes;
    uint32_t rows, tokens; // of a tile
    uint32_t group, kv_heads;
    int32_t window; // -1: none
    bool causal;
};

int prefill_start_plan(const struct prefill_planning *p, bool after_previous, void *stream);

// Arguments of an attention kernel. Strides in bytes.
struct prefill_args {
    const struct prefill_plan *plan;
    const struct prefill_record *records;
    const unsigned char *k;
    int64_t value, head;
    uint32_t page, token;
    uint32_t page_shift, row_entries;
    const uint32_t *table;
    const unsigned char *q;
    unsigned char *out;
    float *lse; // or NULL
    int64_t q_token, q_head, out_token, out_head, lse_token, lse_head;
    const float *sinks, *k_scales, *v_scales; // or NULL
    float k_scale, v_scale;
    float sm_scale, soft_cap;
    uint32_t group, kv_heads;
    int32_t window; // -1: none
    bool causal;
    uint32_t slot_rows;
    uint32_t *counters;
    float *partial;
    float2 *sums;
};

#endif
