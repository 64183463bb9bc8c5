// SPDX-License-Identifier: Apache-2.0
// cpu_attention_isa.h: one work unit of attention, and the kernels that can run it.
//
// A unit is a block of *rows* of one sequence, for one or more neighbouring K/V heads, over keys
// begin..end. A row is one query token of one query head; the rows of a head are ordered by token,
// so that lo and hi never fall from row to row, and are the same for every head. Row r of head h
// has index h * head_rows + r. Few rows come with many heads, many rows with one head.
//
// K and V are of the dtype of q, or e4m3 (`widen`): then each tile of them is widened to it first.
//
// A kernel leaves, for each row, o = sum(2^(x - max) v), sum = sum(2^(x - max)) and max, where x is
// the logit times log2(e).
//
// Invariants
//  1. Keys outside a row's lo..hi have no influence on it, be they NaN. Keys outside begin..end are
//     not read at all.
//  2. The bits of a row depend on its own q, lo, hi, on begin, end, rows and head_dim, and on the
//     keys: not on where in memory anything lies.
//  3. A row that sees nothing has o = 0, sum = 0, max = -infinity.
// Threads: a struct attn_work belongs to one thread at a time; kernels have no state.
#ifndef KVPOOL_KERNELS_CPU_ATTENTION_ISA_H
#define KVPOOL_KERNELS_CPU_ATTENTION_ISA_H

#include <kvpool/kvpool.h>
#include <stdbool.h>

enum {
    ATTN_ROWS = 120,                  // indices of a unit: a multiple of every kernel's row block
    ATTN_STREAM_ROWS = 16,            // up to here K and V are used as they stream by
    ATTN_TILE = 64,                   // most keys of one online-softmax step
    ATTN_WORDS = KVPOOL_MAX_HEAD_DIM, // 32-bit words of a row: a multiple of 64
};

// A soft cap between these, times log2(e), is a normal number, and so is its reciprocal. One beyond is
// taken for the nearest of them: the widest leaves logits up to 2^112 as they are, as wider ones do;
// the least leaves nothing of any.
#define ATTN_LEAST_CAP 0x1p-125f
#define ATTN_WIDEST_CAP 0x1p125f

struct attn_keys {     // K and V of a layer from the unit's first head on, through a page table
    const char *k;     // K slab of the first head in page 0
    size_t slab_bytes; // from head to head
    size_t v_offset;   // from a K row to its V row
    size_t page_bytes, row_bytes;
    const uint32_t *ids; // pages of the sequence
    uint32_t page_shift; // log2 of tokens a page
};

struct attn_work {
    // The unit.
    struct attn_keys keys;
    uint32_t heads, rows, head_rows; // head_rows: attn_head_rows(rows)
    uint32_t head_dim, begin, end;
    bool widen;                // K and V are e4m3
    float soft_cap;            // 0: none; else ATTN_LEAST_CAP to ATTN_WIDEST_CAP
    float sm_scale[ATTN_ROWS]; // of each head
    const void *row_q[ATTN_ROWS];
    uint32_t lo[ATTN_ROWS], hi[ATTN_ROWS]; // of row r of every head; within begin..end, lo <= hi

    // The result, with `o` below.
    size_t o_stride; // floats from row to row of o: attn_o_stride(head_dim)
    float max[ATTN_ROWS], sum[ATTN_ROWS];

    // Scratch.
    float alpha[ATTN_ROWS];       // factor for what was accumulated before the tile
    const char *at[2][ATTN_TILE]; // K rows of this tile and of the next

    _Alignas(64) float o[ATTN_ROWS * ATTN_WORDS]; // result
    float q[ATTN_ROWS * ATTN_WORDS];
    float s[ATTN_ROWS * ATTN_TILE];  // logits, then probabilities
    float k[ATTN_WORDS * ATTN_TILE]; // K tile, transposed
    float v[ATTN_TILE * ATTN_WORDS];
    const char *wide_at[ATTN_TILE];                      // K rows in `wide`
    _Alignas(64) float wide[2 * ATTN_TILE * ATTN_WORDS]; // K rows, then V rows
};

static inline size_t attn_o_stride(size_t head_dim) {
    return (head_dim + 31) / 32 * 32;
}

// Indices that the rows of one head take: whole register blocks.
static inline uint32_t attn_head_rows(uint32_t rows) {
    uint32_t block = rows > ATTN_STREAM_ROWS ? 12 : rows > 2 ? 4 : rows;
    return (rows + block - 1) / block * block;
}

struct attn_isa {
    const char *name;
    void (*run)(struct attn_work *w, kvpool_dtype dtype);
    // out[i] = o[i] * factor, i < head_dim (a multiple of 8), narrowed to dtype.
    void (*finish)(kvpool_dtype dtype, size_t head_dim, const float *o, float factor, void *out);
};

extern const struct attn_isa attn_generic;
#if defined(__x86_64__)
extern const struct attn_isa attn_avx2;
extern const struct attn_isa attn_avx512;
extern const struct attn_isa attn_avx512bf16;
#endif

#endif
