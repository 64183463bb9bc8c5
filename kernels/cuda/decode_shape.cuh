// SPDX-License-Identifier: Apache-2.0
// decode_shape.cuh: what the decode kernel, its plan and its launcher agree on: sizes of tiles and of
// shared memory, the records of a plan, the kernel's arguments. docs/kernels.md, "Decode".
//
// Words: an *item* is one sequence, one kv head and one block of 8*NT columns; a *column* is one
// (query token, head of the group) pair, query-major. A *tile* is K and V of 16 or 32 tokens of an
// item. The tiles of all items in a row (sequence-major, then head, then block) are the *line*, and
// every warp owns a *run*: consecutive tiles of the line. What a run has of one item is a *segment*.
// Large batches have eight lines, each with an eighth of the heads, one a warp: the warps of a CTA then
// read the same pages side by side, and only items cut by the end of a CTA are in more than one run.
// In batch-invariant mode an item is cut in *pieces* by its own length alone, and runs end where
// pieces end.
//
// Invariants
//  1. Every sequence with query tokens has at least one tile an item, also where kv_len is 0, so that
//     its rows are written.
//  2. Runs differ by at most one tile (outside batch-invariant mode).
// Any thread.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_SHAPE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_SHAPE_CUH

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

enum {
    DECODE_MAX_Q_LEN = 8,
    DECODE_MAX_GROUP = 32,
    DECODE_MAX_WARPS = 8,      // of a CTA; where its shared memory is small, fewer have runs
    DECODE_MAX_PIECES = 16,    // batch-invariant: of an item
    DECODE_PIECE_TOKENS = 128, // batch-invariant: of a piece, at least
    DECODE_PIECES_BYTES =
        64 << 20,            // batch-invariant: of a launch's pieces, unless one sequence has more
    DECODE_COUNTERS = 65536, // words at the beginning of a workspace; zero between launches
    DECODE_MAX_HEADS = 8192, // kv heads that decode_place can hold
    DECODE_LINE_SHIFT = 3,   // eight lines
    DECODE_LINE_PARTS = 3,   // items longer than so many CTAs have of them: one line for all heads
    DECODE_FIRST = 4,        // tiles of a run that the plan itself finds
    DECODE_STEP = 4,         // warps that go on together do so every so many tiles,
    DECODE_STEP_LEAST = 8,   // where they have so many
};

static constexpr uint32_t DECODE_NOWHERE = 0xffffffffu; // no token, no page id

// One sequence that has query tokens.
struct alignas(16) decode_sequence {
    uint32_t row; // its page ids: table + row * row_entries
    uint32_t kv_len;
    uint32_t q0;    // its first query token
    uint32_t parts; // q_len | column blocks << 8 | pieces << 16
    uint32_t first; // tile of its sequence where its items begin (sliding window)
    uint32_t tiles; // of each item
    uint32_t unused[2];
};
// A warp's share in summing the parts that its CTA has of one item, and those that earlier CTAs have posted.
struct alignas(16) decode_merge {
    uint32_t how;      // 0: none; see merge_parts .. merge_ends
    uint32_t q0, what; // of the item
    uint32_t from;     // the first CTA that posts a part
    uint32_t posted;   // so many CTAs do: the item ends in this one
    uint32_t unused[3];
};
// In this order: what is posted is waited for elsewhere, what was posted is waited for here. All warps of a CTA
// share both; an item of this CTA alone is summed by the warps that have parts of it.
enum decode_merges { MERGE_FORWARD, MERGE_INNER, MERGE_BACK, DECODE_MERGES };
// What the kernel has to know of a tile besides its bytes.
struct decode_place {
    uint32_t token; // its first
    uint32_t kv_len;
    uint32_t q0;
    uint32_t what;
    uint32_t slot; // index of the sequence among those with query tokens
};
// A tile that the plan has found: its place, and where K of every 8 tokens lies.
struct alignas(16) decode_first {
    struct decode_place place;
    uint32_t unused;
    int64_t at[4]; // bytes from the pool's K
    uint32_t unused2[2];
};
// Where a warp's run goes on behind its first tiles, how many tiles it has in all.
struct alignas(16) decode_run {
    uint32_t slot;
    uint32_t item; // of the sequence and line: head * blocks + block, from the line's first head on
    uint32_t tile; // of the item
    uint32_t count;
    uint32_t line_shift; // 1 << line_shift lines
    uint32_t
        alone; // the last item goes on in a later CTA, and no other warp of this one has a part
    uint32_t in_step; // all warps of the CTA have as many tiles, many: they go on together
    uint32_t unused;
    struct decode_sequence sequence;
    struct decode_merge merge[DECODE_MERGES];
};
// What one warp works on: one read, and its first copies can start.
struct alignas(16) decode_work {
    struct decode_run run;
    struct decode_first first[DECODE_FIRST];
};

struct decode_args {
    const unsigned char *k; // strides in bytes
    int64_t page_stride, value_stride, head_stride, token_stride;
    const unsigned char *q;
    int64_t q_token_stride, q_head_stride; // bytes
    unsigned char *out;
    int64_t out_token_stride, out_head_stride; // bytes
    float *lse;                                // NULL: none
    int64_t lse_token_stride, lse_head_stride; // elements
    const uint32_t *table;
    const float *sinks, *k_scales, *v_scales;
    const struct decode_work *works;
    const struct decode_sequence *sequences;
    uint32_t *counters;
    unsigned char *posts;  // of CTA c from c * DECODE_POST_BYTES on
    unsigned char *pieces; // batch-invariant
    uint32_t row_entries, page_shift, kv_heads, group;
    uint32_t group_inverse; // column / group = column * group_inverse >> 16, exact: column < 256
    uint32_t items;         // of a sequence, at most (batch-invariant: stride of counters)
    uint32_t run_warps;     // of a CTA's DECODE_MAX_WARPS: those that there is shared memory for
    float sm_scale, soft_cap, k_scale, v_scale;
    int32_t window_left;
    bool causal;
};

// --- places ----------------------------------------------------------------------------------------

// what = begins item | ends piece << 1 | q_len << 2 | block << 6 | piece << 10 | pieces << 14 |
//        head << 19
enum { DECODE_HEAD_SHIFT = 19 };
static __device__ __forceinline__ uint32_t place_q_len(uint32_t what) {
    return what >> 2 & 15;
}
static __device__ __forceinline__ uint32_t place_block(uint32_t what) {
    return what >> 6 & 15;
}
static __device__ __forceinline__ uint32_t place_piece(uint32_t what) {
    return what >> 10 & 15;
}
static __device__ __forceinline__ uint32_t place_pieces(uint32_t what) {
    return what >> 14 & 31;
}
static __device__ __forceinline__ uint32_t place_head(uint32_t what) {
    return what >> DECODE_HEAD_SHIFT;
}

// Tile `tile` of item `item` of a sequence; line_head: the line's first head.
static __device__ __forceinline__ struct decode_place
decode_place_of(const struct decode_sequence &s, uint32_t slot, uint32_t item, uint32_t tile,
                uint32_t line_head, uint32_t tile_tokens) {
    uint32_t tiles = max(s.tiles, 1u), blocks = max(s.parts >> 8 & 0xff, 1u),
             pieces = s.parts >> 16;
    uint32_t piece = 0, end = tiles;
    if (pieces > 1) {
        piece = ((tile + 1) * pieces - 1) / tiles;
        end = (piece + 1) * tiles / pieces;
    }
    uint32_t head = blocks > 1 ? item / blocks : item, block = item - head * blocks;
    return {(s.first + tile) * tile_tokens, s.kv_len, s.q0,
            (tile == 0 ? 1u : 0u) | (tile + 1 == end ? 2u : 0u) | (s.parts & 15) << 2 | block << 6 |
                piece << 10 | pieces << 14 | (line_head + head) << DECODE_HEAD_SHIFT,
            slot};
}

// Where K of 8 tokens from `token` on lies in the pool, in bytes.
static __device__ __forceinline__ int64_t decode_at(uint32_t page, uint32_t token, uint32_t head,
                                                    uint32_t page_shift, int64_t page_stride,
                                                    int64_t head_stride, int64_t token_stride) {
    return page * page_stride + head * head_stride +
           (token & ((1u << page_shift) - 1)) * token_stride;
}

// --- merges ---------------------------------------------------------------------------------------

// how = parts here | slot of the first << 4 | first block << 9 | end of blocks << 15 | ends item << 21
static __device__ __forceinline__ uint32_t merge_how(uint32_t parts, uint32_t slot, uint32_t block,
                                                     uint32_t end, bool ends) {
    return parts | slot << 4 | block << 9 | end << 15 | (ends ? 1u << 21 : 0);
}
static __device__ __forceinline__ uint32_t merge_parts(uint32_t how) {
    return how & 15;
}
static __device__ __forceinline__ uint32_t merge_slot(uint32_t how) {
    return how >> 4 & 31;
}
static __device__ __forceinline__ uint32_t merge_block(uint32_t how) {
    return how >> 9 & 63;
}
static __device__ __forceinline__ uint32_t merge_end(uint32_t how) {
    return how >> 15 & 63;
}
static __device__ __forceinline__ bool merge_ends(uint32_t how) {
    return how >> 21 & 1;
}

// --- sizes ---------------------------------------------------------------------------------------

static constexpr __host__ __device__ uint32_t decode_tile_tokens(uint32_t head_dim, bool kv8) {
    return head_dim == 64 || (head_dim == 128 && kv8) ? 32 : 16;
}
static constexpr __host__ __device__ uint32_t decode_tile_bytes(uint32_t head_dim, bool kv8) {
    return 2 * decode_tile_tokens(head_dim, kv8) * head_dim * (kv8 ? 1 : 2);
}
// Of a ring. Where O is larger, less of them: more warps are worth more.
static constexpr __host__ __device__ uint32_t decode_stages(uint32_t head_dim, bool kv8,
                                                            uint32_t nt) {
    bool small = decode_tile_bytes(head_dim, kv8) == 4096;
    return small ? 4 : nt == 1 ? 3 : nt == 2 ? 2 : head_dim == 64 ? 2 : 3;
}
// Fragments of Q beyond 32 registers are kept in shared memory.
static constexpr __host__ __device__ bool decode_q_shared(uint32_t head_dim, uint32_t nt) {
    return nt * head_dim / 8 > 32;
}
static constexpr __host__ __device__ uint32_t decode_o_bytes(uint32_t head_dim, uint32_t nt) {
    return nt * 8 * head_dim * 4;
}
static constexpr __host__ __device__ uint32_t decode_ml_bytes(uint32_t nt) {
    return nt * 8 * 8;
}
// A partial result: O in the order of fragments, then (m, l) of each column.
static constexpr __host__ __device__ uint32_t decode_partial_bytes(uint32_t head_dim, uint32_t nt) {
    return decode_o_bytes(head_dim, nt) + decode_ml_bytes(nt);
}
// A posted one: each block with the (m, l) of its columns.
enum { DECODE_POST_BLOCK = 32 * 16 + 4 * 16 };
static constexpr __host__ __device__ uint32_t decode_post_bytes(uint32_t head_dim, uint32_t nt) {
    return nt * head_dim / 16 * DECODE_POST_BLOCK;
}
// Of one CTA, in all instances: one for each of eight lines, or one.
enum { DECODE_POST_BYTES = 8 * 16 * DECODE_POST_BLOCK };
static constexpr __host__ __device__ uint32_t decode_ring_bytes(uint32_t head_dim, bool kv8,
                                                                uint32_t nt) {
    return decode_stages(head_dim, kv8, nt) * decode_tile_bytes(head_dim, kv8);
}
// Of one warp, besides its ring: O of its first segment, Q, (m, l) of both, its merges, places.
static constexpr __host__ __device__ uint32_t decode_own_bytes(uint32_t head_dim, bool kv8,
                                                               uint32_t nt) {
    return decode_o_bytes(head_dim, nt) + (decode_q_shared(head_dim, nt) ? nt * head_dim * 16 : 0) +
           2 * decode_ml_bytes(nt) + DECODE_MERGES * 32 + decode_stages(head_dim, kv8, nt) * 32;
}
static constexpr __host__ __device__ uint32_t decode_smem_bytes(uint32_t head_dim, bool kv8,
                                                                uint32_t nt, uint32_t warps) {
    return warps * (decode_ring_bytes(head_dim, kv8, nt) + decode_own_bytes(head_dim, kv8, nt));
}

// Starts the kernel of one instance; defined by decode_inst_*.cu.
template <class T, class KV, int D, int NT>
int decode_start(const struct decode_args &args, uint32_t ctas, void *stream, bool after_previous);

#endif
