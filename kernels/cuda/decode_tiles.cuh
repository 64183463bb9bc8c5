// SPDX-License-Identifier: Apache-2.0
// decode_tiles.cuh: the stream of K/V tiles of a warp's run: where tiles lie, found for 32 of them at
// a time (one a lane), and their copies to the warp's ring.
//
// Invariants
//  1. All lanes of the warp call together.
//  2. Page ids of positions >= kv_len are not read; rows of a tile at positions >= kv_len are zeros.
// Runs in the decode kernel.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_TILES_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_TILES_CUH

#include "kernels/cuda/decode_shape.cuh"

static constexpr uint32_t ALL_LANES = 0xffffffffu;

// x, which all lanes have alike, as something that the compiler knows to be so: shared memory and the plan tell it
// nothing of that. Where a branch of the kernel may part a warp, all behind it is compiled for lanes that are apart
// (BRA.DIV before each shuffle, and the shuffle once more lane by lane): a third more code.
static __device__ __forceinline__ uint32_t warp_uniform(uint32_t x) {
    return __shfl_sync(ALL_LANES, x, 0);
}

template <class T> struct decode_is_8bit { static constexpr bool value = false; };
template <> struct decode_is_8bit<e4m3> { static constexpr bool value = true; };
template <class T, class KV> struct decode_matrix_type { using type = T; };
template <class T> struct decode_matrix_type<T, e4m3> { using type = fp16; };

template <class T_, class KV_, int D_, int NT_> struct decode_config {
    using T = T_;
    using M = typename decode_matrix_type<T_, KV_>::type; // elements of the matrix instructions
    static constexpr int D = D_, NT = NT_;
    static constexpr bool KV8 = decode_is_8bit<KV_>::value;
    static constexpr int TOKENS = (int)decode_tile_tokens(D, KV8);
    static constexpr int STAGES = (int)decode_stages(D, KV8, NT);
    static constexpr int TILE = (int)decode_tile_bytes(D, KV8);
    static constexpr int ROW = D * (KV8 ? 1 : 2); // bytes of a row of K or V
    static constexpr int GROUPS = TOKENS / 8;     // 8 rows lie in one page
    static constexpr int MT = TOKENS / 16;        // row tiles of K times Q
    static constexpr int DT = D / 16;             // steps of K times Q, row tiles of V times P
    static constexpr bool Q_SHARED = decode_q_shared(D, NT);
    static_assert(STAGES * TILE >= (int)decode_o_bytes(D, NT), "the ring holds O at the end");
};

// 32 tiles, one a lane.
template <int GROUPS> struct decode_lane {
    struct decode_place place;
    int64_t at[GROUPS]; // of K of every 8 tokens, in bytes from the pool's K
};
// The tiles that the plan has found, in the last DECODE_FIRST lanes.
template <class C>
static __device__ __forceinline__ struct decode_lane<C::GROUPS>
decode_load_first(const struct decode_work *work) {
    int i = (int)(threadIdx.x % 32) - (32 - DECODE_FIRST);
    const uint4 *p = reinterpret_cast<const uint4 *>(&work->first[max(i, 0)]);
    uint4 x = load_now(p), y = load_now(p + 1), z = load_now(p + 2), w = {};
    if constexpr (C::GROUPS > 3)
        w = load_now(p + 3);
    uint2 at[4] = {{y.z, y.w}, {z.x, z.y}, {z.z, z.w}, {w.x, w.y}};
    struct decode_lane<C::GROUPS> ret;
    ret.place = {x.x, x.y, x.z, x.w, y.x};
#pragma unroll
    for (int g = 0; g < C::GROUPS; g++)
        ret.at[g] = (int64_t)((uint64_t)at[g].y << 32 | at[g].x);
    return ret;
}
// The first of the next 32; line of 1 << line_shift.
struct decode_cursor {
    uint32_t slot, item, tile;
    uint32_t line, line_shift;
    struct decode_sequence sequence;
};

static __device__ __forceinline__ struct decode_sequence
decode_load(const struct decode_sequence *p) {
    uint4 a = load_now(p);
    uint4 b = load_now(&p->first);
    return {a.x, a.y, a.z, a.w, b.x, b.y, {b.z, b.w}};
}
// Items of the sequence in one line.
static __device__ __forceinline__ uint32_t decode_items(const struct decode_args &a,
                                                        const struct decode_cursor &at,
                                                        const struct decode_sequence &s) {
    return (a.kv_heads >> at.line_shift) * (s.parts >> 8 & 0xff);
}

// The sequences from at's on, one a lane, and which of them has the tile `lane` tiles after at:
// changes s, slot, item and tile from those of at's sequence to those of the tile's.
static __device__ __forceinline__ void decode_cross(const struct decode_args &a,
                                                    const struct decode_cursor &at, uint64_t rest,
                                                    struct decode_sequence &s, uint32_t &slot,
                                                    uint32_t &item, uint32_t &tile) {
    uint32_t lane = threadIdx.x % 32;
    struct decode_sequence mine = at.sequence;
    uint64_t tiles = rest;
    if (lane > 0) {
        mine = decode_load(a.sequences + at.slot + lane);
        tiles = (uint64_t)decode_items(a, at, mine) * mine.tiles;
    }
    uint32_t end = (uint32_t)min(tiles, (uint64_t)64);
    for (int by = 1; by < 32; by *= 2) {
        uint32_t up = __shfl_up_sync(ALL_LANES, end, by);
        if ((int)lane >= by)
            end += up;
    }
    uint32_t ends = end < 32 ? 1u << end : 0; // bit i: a sequence begins i tiles after at
    for (int by = 16; by > 0; by /= 2)
        ends |= __shfl_xor_sync(ALL_LANES, ends, by);
    int which = __popc(ends & (ALL_LANES >> (31 - lane)));
    uint32_t begin = __shfl_sync(ALL_LANES, end, max(which - 1, 0));
    s.row = __shfl_sync(ALL_LANES, mine.row, which);
    s.kv_len = __shfl_sync(ALL_LANES, mine.kv_len, which);
    s.q0 = __shfl_sync(ALL_LANES, mine.q0, which);
    s.parts = __shfl_sync(ALL_LANES, mine.parts, which);
    s.first = __shfl_sync(ALL_LANES, mine.first, which);
    s.tiles = __shfl_sync(ALL_LANES, mine.tiles, which);
    if (which > 0) {
        slot += (uint32_t)which;
        item = 0;
        tile = lane - begin;
    }
}

// The next min(left, 32) tiles; at moves on past them where there are more.
template <class C>
static __device__ __forceinline__ void decode_find(const struct decode_args &a,
                                                   struct decode_cursor &at, uint32_t left,
                                                   struct decode_lane<C::GROUPS> &ret) {
    uint32_t lane = threadIdx.x % 32;
    uint32_t limit = min(left, 32u);
    struct decode_sequence s = at.sequence;
    uint32_t slot = at.slot, item = at.item, tile = at.tile + lane;
    uint64_t rest = (uint64_t)(decode_items(a, at, s) - item) * s.tiles - at.tile;
    if (rest < limit)
        decode_cross(a, at, rest, s, slot, item, tile);
    uint32_t tiles = max(s.tiles, 1u); // lanes past the end of the line have none
    if (tile >= tiles) {
        item += tile / tiles;
        tile %= tiles;
    }

    ret.place =
        decode_place_of(s, slot, item, tile, at.line * (a.kv_heads >> at.line_shift), C::TOKENS);
    const uint32_t *ids = a.table + (uint64_t)s.row * a.row_entries;
#pragma unroll
    for (int g = 0; g < C::GROUPS; g++) {
        uint32_t token = ret.place.token + 8 * g;
        bool valid = lane < limit && token < s.kv_len;
        uint32_t page = valid ? load_word(ids + (token >> a.page_shift)) : 0;
        ret.at[g] = decode_at(page, token, place_head(ret.place.what), a.page_shift, a.page_stride,
                              a.head_stride, a.token_stride);
    }
    if (left > 32) {
        uint32_t items = __shfl_sync(ALL_LANES, decode_items(a, at, s), 31), last = at.slot;
        at.slot = __shfl_sync(ALL_LANES, slot, 31);
        at.item = __shfl_sync(ALL_LANES, item, 31);
        at.tile = __shfl_sync(ALL_LANES, tile, 31) + 1;
        if (at.tile == __shfl_sync(ALL_LANES, tiles, 31)) {
            at.tile = 0;
            if (++at.item == items) {
                at.item = 0;
                at.slot++;
            }
        }
        if (at.slot != last)
            at.sequence = decode_load(a.sequences + at.slot);
    }
}

// 16-byte chunk c of row r lies at chunk c ^ decode_swizzle(r): 8 rows of one chunk are in 8
// different groups of banks.
template <class C> static __device__ __forceinline__ uint32_t decode_swizzle(uint32_t row) {
    return C::ROW >= 128 ? row & 7 : row >> 1 & 3;
}

// What a lane copies of every tile: where its chunk of its first row is, in the pool and in a stage.
struct decode_copier {
    const unsigned char *k;
    uint32_t spot, row;
};
template <class C>
static __device__ __forceinline__ struct decode_copier
decode_copier_of(const struct decode_args &a) {
    constexpr uint32_t CHUNKS = C::ROW / 16; // of a row
    uint32_t lane = threadIdx.x % 32, row = lane / CHUNKS, chunk = lane % CHUNKS;
    return {a.k + row * a.token_stride + chunk * 16,
            row * C::ROW + (chunk ^ decode_swizzle<C>(row)) * 16, row};
}

// Copies the tile of lane `from` to the stage at `stage` (a shared address) and its place to `place`.
// Returns what it is.
template <class C>
static __device__ __forceinline__ uint32_t decode_fetch(const struct decode_args &a,
                                                        const struct decode_copier &copier,
                                                        const struct decode_lane<C::GROUPS> &tiles,
                                                        uint32_t from, uint32_t stage,
                                                        struct decode_place *place) {
    constexpr int ROWS = 32 / (C::ROW / 16); // of one copy of the warp
    uint32_t token = __shfl_sync(ALL_LANES, tiles.place.token, (int)from);
    uint32_t kv_len = __shfl_sync(ALL_LANES, tiles.place.kv_len, (int)from);
    int left = (int)(kv_len - token - copier.row);
#pragma unroll
    for (int g = 0; g < C::GROUPS; g++) {
        const unsigned char *k = copier.k + __shfl_sync(ALL_LANES, tiles.at[g], (int)from);
#pragma unroll
        for (int i = 0; i < 8; i += ROWS) {
            // i and row share no bits; stages are aligned.
            uint32_t to =
                ((stage + copier.spot) ^ (decode_swizzle<C>(i) * 16)) + (8 * g + i) * C::ROW;
            cp_async_16(to, k, 8 * g + i < left);
            cp_async_16(to + C::TILE / 2, k + a.value_stride, 8 * g + i < left);
            k += ROWS * a.token_stride;
        }
    }
    if (threadIdx.x % 32 == from)
        *place = tiles.place;
    return __shfl_sync(ALL_LANES, tiles.place.what, (int)from);
}

#endif
