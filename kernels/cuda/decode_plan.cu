// SPDX-License-Identifier: Apache-2.0
// decode_plan.cu: divides a batch among the warps of the decode kernel. Every block scans the whole batch
// and writes its share of the warps' work; everything is read and written on the device. docs/kernels.md,
// "Decode".
//
// Invariants
//  1. The plan depends only on kv_len, the differences of qo_indptr, rows, index, the page ids, the
//     arguments' host numbers and the device.
//  2. Sequences without query tokens are left out; DECODE_PAD zeroed records follow the others.
//  3. What several blocks write they write alike.
#include "kernels/cuda/decode_plan.cuh"
#include "kernels/cuda/start.cuh"

enum { BLOCKS = 20, THREADS = 512, WARPS = THREADS / 32, KEPT = 512 };
// Threads of a warp's work: one for each of its first tiles, one for where its run goes on, one for each sum.
enum { ROLE_RUN = DECODE_FIRST, ROLE_MERGES, ROLES = ROLE_MERGES + DECODE_MERGES };
// Of runs of RUN_LONG tiles the bandwidth matters, not the ends. An item that several CTAs share is cut in runs of
// least_run tiles at least. Parts of FEW_BLOCKS at most cost less to sum: up to FEW_RUNS runs of one tile, and of two
// up to twice as many.
enum { RUN_LONG = 8, FEW_BLOCKS = 8, FEW_RUNS = 32 };

static constexpr uint32_t ALL = 0xffffffffu;

// Shared memory: the sums and records of the first sequences, and what the scan exchanges. Batches of
// more than KEPT sequences are searched in the plan itself.
struct plan_shared {
    uint64_t sums[KEPT + 1]; // tiles before each
    struct decode_sequence sequences[KEPT];
    uint64_t warp_tiles[WARPS];
    uint32_t warp_live[WARPS];
    uint32_t uneven;    // items differ in length
    uint32_t long_item; // some item is too long for eight lines
};

// What sequence i of the batch is for the decode kernel; false: it has no query tokens.
static __device__ __forceinline__ bool describe(const struct decode_plan_args &a, uint32_t i,
                                                struct decode_sequence *ret) {
    if (a.index)
        i = a.index[i];
    uint32_t kv_len = a.kv_len[i], q0 = a.qo_indptr[i], row = a.rows[i];
    uint32_t q_len = min(a.qo_indptr[i + 1] - q0, a.max_q_len);
    if (q_len == 0)
        return false;
    uint32_t first = 0;
    if (a.window_left >= 0) {
        int64_t seen = (int64_t)kv_len - q_len - a.window_left; // by the first query token
        first = seen > 0 ? (uint32_t)seen / a.tile_tokens : 0;
    }
    uint32_t tiles = (uint32_t)(((uint64_t)kv_len + a.tile_tokens - 1) / a.tile_tokens);
    tiles = tiles > first ? tiles - first : 1;
    uint32_t blocks = (q_len * a.group + a.columns - 1) / a.columns, pieces = 1;
    if (a.batch_invariant) {
        pieces = (uint32_t)((uint64_t)tiles * a.tile_tokens / DECODE_PIECE_TOKENS);
        pieces = min(max(pieces, 1u), (uint32_t)DECODE_MAX_PIECES);
    }
    *ret = {row, kv_len, q0, q_len | blocks << 8 | pieces << 16, first, tiles, {0, 0}};
    return true;
}

static __device__ __forceinline__ uint64_t line_tiles(const struct decode_plan_args &a,
                                                      const struct decode_sequence &s) {
    return (uint64_t)a.kv_heads * (s.parts >> 8 & 0xff) * s.tiles;
}

// Sums of all threads before this one, added to tiles and live; returns those of all in *total.
static __device__ __forceinline__ void scan(struct plan_shared *shared, uint64_t &tiles,
                                            uint32_t &live, uint64_t *total_tiles,
                                            uint32_t *total_live) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t own_tiles = tiles;
    uint32_t own_live = live;
    for (int by = 1; by < 32; by *= 2) {
        uint64_t t = __shfl_up_sync(ALL, tiles, by);
        uint32_t l = __shfl_up_sync(ALL, live, by);
        if ((int)lane >= by) {
            tiles += t;
            live += l;
        }
    }
    if (lane == 31) {
        shared->warp_tiles[warp] = tiles;
        shared->warp_live[warp] = live;
    }
    __syncthreads();
    uint64_t before_tiles = lane < WARPS ? shared->warp_tiles[lane] : 0, all_tiles = before_tiles;
    uint32_t before_live = lane < WARPS ? shared->warp_live[lane] : 0, all_live = before_live;
    if (lane >= warp) {
        before_tiles = 0;
        before_live = 0;
    }
    for (int by = 16; by > 0; by /= 2) {
        before_tiles += __shfl_xor_sync(ALL, before_tiles, by);
        before_live += __shfl_xor_sync(ALL, before_live, by);
        all_tiles += __shfl_xor_sync(ALL, all_tiles, by);
        all_live += __shfl_xor_sync(ALL, all_live, by);
    }
    tiles += before_tiles - own_tiles;
    live += before_live - own_live;
    *total_tiles = all_tiles;
    *total_live = all_live;
}

// How the line is cut.
struct cut {
    uint32_t used;     // runs of a line that have tiles
    uint32_t cta_runs; // of a line
    uint32_t line_shift;
};
// All tiles of a line and its sequences; several lines are alike but for their heads.
struct line {
    const uint64_t *sums;
    const struct decode_sequence *sequences;
    uint32_t live;
    uint64_t all;
    struct cut cut;
};

// Tile x of a line, x < all: its sequence, item and place in the item.
static __device__ __forceinline__ void locate(const struct line &line, uint64_t x,
                                              struct decode_run *ret) {
    const uint64_t *sums = line.sums;
    uint32_t line_shift = line.cut.line_shift;
    uint32_t low = 0, high = line.live;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (sums[middle] >> line_shift <= x)
            low = middle;
        else
            high = middle;
    }
    struct decode_sequence s = line.sequences[low];
    uint64_t off = x - (sums[low] >> line_shift);
    ret->slot = low;
    ret->item = (uint32_t)(off / s.tiles);
    ret->tile = (uint32_t)(off % s.tiles);
    ret->sequence = s;
}

// Moves a run's beginning back to that of its piece; returns by how many tiles.
static __device__ __forceinline__ uint32_t snap(struct decode_run *run) {
    uint32_t tiles = run->sequence.tiles, pieces = run->sequence.parts >> 16;
    uint32_t piece = (uint32_t)((((uint64_t)run->tile + 1) * pieces - 1) / tiles);
    uint32_t begin = (uint32_t)((uint64_t)piece * tiles / pieces), by = run->tile - begin;
    run->tile = begin;
    return by;
}

// The runs that an item of so many tiles is cut in, at most.
static __device__ __forceinline__ uint64_t most_runs(const struct decode_plan_args &a,
                                                     uint64_t tiles) {
    uint64_t few = a.cta_warps;
    if (a.blocks <= FEW_BLOCKS)
        few = min(max((uint64_t)FEW_RUNS, tiles / 2), (uint64_t)(2 * FEW_RUNS));
    return min(tiles, max(few, tiles / a.least_run));
}

// Items of one length each: their number of warps, a power of two or whole CTAs, or the number of whole
// items of a warp: so that few items are shared, and few of them by CTAs. 0: there is no such number that keeps
// the memory busy, which it is with 15 of 16 warps; where runs are short, few parts are worth more.
static __device__ __forceinline__ uint32_t even_runs(const struct decode_plan_args &a, uint64_t all,
                                                     uint32_t tiles, uint32_t warps) {
    uint64_t items = all / tiles;
    uint32_t enough = warps - warps / 16;
    if (items <= warps) {
        uint32_t share = (uint32_t)min(warps / items, most_runs(a, tiles));
        if (share >= a.cta_warps)
            share -= share % a.cta_warps;
        else
            while (share & (share - 1))
                share &= share - 1;
        uint32_t used = (uint32_t)items * max(share, 1u);
        return all / used >= RUN_LONG && used < enough ? 0 : used;
    }
    uint64_t whole = (items + warps - 1) / warps;
    for (uint32_t more = 0; more < 3; more++, whole++)
        if (items % whole == 0 && (items / whole >= enough || whole * tiles < RUN_LONG))
            return (uint32_t)(items / whole);
    return 0;
}

// Eight lines pay where items are not cut into too many parts, each of which the warp in which the item ends adds
// by itself: a part costs as much as eight tiles a run gain by being read side by side.
static __device__ __forceinline__ struct cut choose_cut(const struct decode_plan_args &a,
                                                        struct plan_shared *shared,
                                                        const struct decode_sequence *sequences,
                                                        uint32_t live, uint64_t all) {
    uint32_t warps = a.ctas * a.cta_warps;
    struct cut cut = {(uint32_t)min((uint64_t)warps, all), a.cta_warps, 0};
    if (a.batch_invariant || live == 0)
        return cut;
    uint64_t items =
        (uint64_t)live * a.kv_heads * (sequences[0].parts >> 8 & 0xff); // as if of one q_len
    cut.used = (uint32_t)min((uint64_t)cut.used, items * most_runs(a, (all + items - 1) / items));
    if (threadIdx.x == 0)
        shared->uneven = shared->long_item = 0;
    __syncthreads();
    uint64_t run = (all >> DECODE_LINE_SHIFT) / a.ctas;
    uint64_t most = run * max((uint64_t)DECODE_LINE_PARTS, run / DECODE_LINE_GAIN);
    uint32_t tiles = sequences[0].tiles;
    for (uint32_t i = threadIdx.x; i < live; i += THREADS) {
        if (sequences[i].tiles != tiles)
            shared->uneven = 1;
        if (sequences[i].tiles > most)
            shared->long_item = 1;
    }
    __syncthreads();
    uint32_t even = shared->uneven ? 0 : even_runs(a, all, tiles, warps);
    if (even) {
        cut.used = even;
    } else if (!shared->long_item && a.cta_warps == 1u << DECODE_LINE_SHIFT &&
               a.kv_heads % (1u << DECODE_LINE_SHIFT) == 0) {
        cut.line_shift = DECODE_LINE_SHIFT;
        cut.cta_runs = 1;
        cut.used = (uint32_t)min((uint64_t)a.ctas, all >> DECODE_LINE_SHIFT);
    }
    return cut;
}

// Tile `at` as the kernel wants it. A line's heads are counted from its own first.
static __device__ __forceinline__ struct decode_first find(const struct decode_plan_args &a,
                                                           const struct decode_run &at) {
    const struct decode_sequence &s = at.sequence;
    struct decode_first ret = {
        decode_place_of(s, at.slot, at.item, at.tile, 0, a.tile_tokens), 0, {0, 0, 0, 0}, {0, 0}};
    const uint32_t *ids = a.table + (uint64_t)s.row * a.row_entries;
#pragma unroll
    for (uint32_t g = 0; g < 4; g++) {
        uint32_t token = ret.place.token + 8 * g;
        if (8 * g < a.tile_tokens && token < s.kv_len)
            ret.at[g] = decode_at(load_word(ids + (token >> a.page_shift)), token,
                                  place_head(ret.place.what), a.page_shift, a.page_stride,
                                  a.head_stride, a.token_stride);
    }
    return ret;
}

// Where an item lies: runs go as x = i * all / used, cut.cta_runs of them are one CTA's.
struct extent {
    struct decode_run at; // some tile of it
    uint64_t first, last; // its tiles
    uint32_t run0, run1;  // their runs
    uint32_t cta0, cta1;
    bool begins_run; // where run0 does
};
static __device__ __forceinline__ struct extent extent_of(const struct line &line, uint64_t x) {
    struct extent e;
    uint64_t used = line.cut.used;
    locate(line, x, &e.at);
    e.first = x - e.at.tile;
    e.last = e.first + e.at.sequence.tiles - 1;
    e.run0 = (uint32_t)(((e.first + 1) * used - 1) / line.all);
    e.run1 = (uint32_t)(((e.last + 1) * used - 1) / line.all);
    e.cta0 = e.run0 / line.cut.cta_runs;
    e.cta1 = e.run1 / line.cut.cta_runs;
    e.begins_run = e.run0 * line.all / used == e.first;
    return e;
}

// The sum of the parts that CTA `cta` has of an item, of blocks [begin, end).
static __device__ __forceinline__ struct decode_merge merge_of(const struct decode_plan_args &a,
                                                               const struct line &line,
                                                               const struct extent &e, uint32_t cta,
                                                               uint32_t begin, uint32_t end) {
    uint32_t cta_runs = line.cut.cta_runs;
    uint32_t warp0 = e.cta0 < cta ? 0 : e.run0 % cta_runs;
    uint32_t warp1 = e.cta1 > cta ? cta_runs - 1 : e.run1 % cta_runs;
    uint32_t slot = 2 * warp0 + (e.cta0 < cta || e.begins_run ? 0 : 1);
    bool ends = e.cta1 == cta;
    struct decode_place place =
        decode_place_of(e.at.sequence, e.at.slot, e.at.item, 0, 0, a.tile_tokens);
    return {merge_how(warp1 - warp0 + 1, slot, begin, end, ends),
            place.q0,
            place.what,
            e.cta0,
            ends ? cta - e.cta0 : 0,
            {0, 0, 0}};
}

// The item that CTA `cta` shares with others; at_end: one that goes on in later ones, else one that began in earlier
// ones and ends here. False: there is none. *ret_alone: only the last of the CTA's runs has a part of it.
static __device__ __forceinline__ bool shared_item(const struct line &line, uint32_t cta,
                                                   bool at_end, struct extent *e, bool *ret_alone) {
    uint32_t used = line.cut.used, first = cta * line.cut.cta_runs;
    uint32_t after = min(first + line.cut.cta_runs, used);
    if (first >= used)
        return false;
    uint64_t x = first * line.all / used, end = after * line.all / used;
    *e = extent_of(line, at_end ? end - 1 : x);
    *ret_alone = after - first == 1 || e->run0 + 1 == after;
    if (at_end)
        return e->cta1 > cta;
    return e->first < x && e->cta1 == cta;
}

// What warp `warp` of CTA `cta` sums. Warps without a run share what one with a run has of the CTA's own items.
static __device__ __forceinline__ struct decode_merge
merge_of_warp(const struct decode_plan_args &a, const struct line &line, uint32_t cta,
              uint32_t warp, uint32_t which) {
    struct decode_merge none = {};
    struct extent e;
    uint32_t cta_runs = line.cut.cta_runs, used = line.cut.used, begin = 0, end = a.blocks;
    bool lines = line.cut.line_shift > 0; // warps of different lines share nothing
    if (which != MERGE_INNER) {
        bool alone;
        if (!shared_item(line, cta, which == MERGE_FORWARD, &e, &alone) ||
            (which == MERGE_FORWARD && alone))
            return none;
        if (!lines) {
            begin = warp * a.blocks / DECODE_MAX_WARPS;
            end = (warp + 1) * a.blocks / DECODE_MAX_WARPS;
        }
        return merge_of(a, line, e, cta, begin, end);
    }
    uint32_t run = cta * cta_runs + warp % cta_runs;
    if (lines || run >= used)
        return none;
    e = extent_of(line, run * line.all / used);
    if (e.cta0 < cta || e.cta1 > cta || e.run0 == e.run1)
        return none;
    // Of the warps whose runs begin in the item or with it.
    uint32_t team = e.run0 + (e.begins_run ? 0 : 1), size = e.run1 - team + 1, number = run - team;
    uint32_t sharers = (DECODE_MAX_WARPS - warp % cta_runs + cta_runs - 1) / cta_runs;
    begin = number * a.blocks / size;
    uint32_t blocks = (number + 1) * a.blocks / size - begin, k = warp / cta_runs;
    return merge_of(a, line, e, cta, begin + k * blocks / sharers,
                    begin + (k + 1) * blocks / sharers);
}

// All but the merges.
static __device__ __forceinline__ void set_run(struct decode_run *to,
                                               const struct decode_run &run) {
    to->slot = run.slot;
    to->item = run.item;
    to->tile = run.tile;
    to->count = run.count;
    to->line_shift = run.line_shift;
    to->alone = run.alone;
    to->in_step = run.in_step;
    to->sequence = run.sequence;
}

// All warps of the CTA have runs of one length.
static __device__ __forceinline__ bool alike(const struct decode_plan_args &a,
                                             const struct cut &cut, uint64_t all, uint32_t cta) {
    if (a.batch_invariant || a.cta_warps != DECODE_MAX_WARPS)
        return false;
    return cut.line_shift > 0 || (all % cut.used == 0 && (cta + 1) * cut.cta_runs <= cut.used);
}

// The work of this block's share of all warps. Warps of eight lines: one run, eight copies.
static __device__ __forceinline__ void divide(const struct decode_plan_args &a,
                                              const struct line &line) {
    const struct cut cut = line.cut;
    uint32_t line_shift = cut.line_shift;
    uint64_t all = line.all;
    uint32_t most = line_shift > 0 ? a.ctas : a.ctas * DECODE_MAX_WARPS;
    uint32_t share = (most + gridDim.x - 1) / gridDim.x, before = blockIdx.x * share;
    uint32_t copies = line_shift > 0 ? DECODE_MAX_WARPS : 1;
    uint32_t heads = a.kv_heads >> line_shift; // of a line
    uint64_t used = cut.used;
    for (uint32_t t = threadIdx.x; t < share * ROLES; t += THREADS) {
        uint32_t at = before + t / ROLES, role = t % ROLES;
        if (at >= most)
            continue;
        uint32_t cta = line_shift > 0 ? at : at / DECODE_MAX_WARPS;
        uint32_t warp = line_shift > 0 ? 0 : at % DECODE_MAX_WARPS, i = cta * cut.cta_runs + warp;
        struct decode_work *to = a.works + (size_t)cta * DECODE_MAX_WARPS + warp;
        if (role >= ROLE_MERGES) {
            uint32_t which = role - ROLE_MERGES;
            struct decode_merge merge = {};
            if (!a.batch_invariant)
                merge = merge_of_warp(a, line, cta, warp, which);
            for (uint32_t w = 0; w < copies; w++) {
                to[w].run.merge[which] = merge;
                merge.what += heads << DECODE_HEAD_SHIFT;
            }
            continue;
        }
        struct decode_run run = {};
        uint64_t x = 0, end = 0;
        if (i < used && warp < cut.cta_runs) {
            x = i * all / used;
            end = (i + 1) * all / used;
            if (a.batch_invariant) {
                locate(line, x, &run);
                x -= snap(&run);
                if (end < all) {
                    locate(line, end, &run);
                    end -= snap(&run);
                }
            }
            if (x + role < end)
                locate(line, x + role, &run);
        }
        run.count = (uint32_t)(end - x);
        if (role == ROLE_RUN) {
            struct extent e;
            bool alone = false;
            bool is_last = (uint64_t)i + 1 == min((cta + 1) * (uint64_t)cut.cta_runs, used);
            run.alone =
                !a.batch_invariant && is_last && shared_item(line, cta, true, &e, &alone) && alone;
            run.in_step = run.count >= DECODE_STEP_LEAST && alike(a, cut, all, cta);
            run.line_shift = line_shift;
            for (uint32_t w = 0; w < copies; w++)
                set_run(&to[w].run, run);
            continue;
        }
        struct decode_first first = {};
        if (role < run.count)
            first = find(a, run);
        for (uint32_t w = 0; w < copies; w++) {
            to[w].first[role] = first;
            first.place.what += heads << DECODE_HEAD_SHIFT;
            for (uint32_t g = 0; g < 4; g++)
                first.at[g] += heads * a.head_stride;
        }
    }
}

static __global__ void __launch_bounds__(THREADS, 1) decode_plan_kernel(struct decode_plan_args a) {
    KVPOOL_SHARED smem[];
    struct plan_shared *shared = reinterpret_cast<struct plan_shared *>(smem);
    bool kept = a.n <= KEPT;
    uint64_t *sums = kept ? shared->sums : a.sums;
    struct decode_sequence *sequences = kept ? shared->sequences : a.sequences;

    wait_previous_kernel();
    start_next_kernel();

    uint64_t all = 0;
    uint32_t live = 0;
    for (uint32_t i = 0; i < a.n; i += THREADS) {
        struct decode_sequence s;
        bool is = i + threadIdx.x < a.n && describe(a, i + threadIdx.x, &s);
        uint64_t before = is ? line_tiles(a, s) : 0, tiles;
        uint32_t slot = is, count;
        scan(shared, before, slot, &tiles, &count);
        if (is) {
            sums[live + slot] = all + before;
            sequences[live + slot] = s;
            if (kept && blockIdx.x == 0)
                a.sequences[live + slot] = s;
        }
        all += tiles;
        live += count;
        __syncthreads(); // the scan's memory is used again
    }
    if (threadIdx.x < DECODE_PAD && blockIdx.x == 0)
        a.sequences[live + threadIdx.x] = {0, 0, 0, 0, 0, 0, {0, 0}};
    __syncthreads();
    struct cut cut = choose_cut(a, shared, sequences, live, all);
    divide(a, {sums, sequences, live, all >> cut.line_shift, cut});
}

int decode_plan_start(const struct decode_plan_args &args, void *stream, bool after_previous) {
    return start_kernel(decode_plan_kernel, dim3(BLOCKS), dim3(THREADS), sizeof(struct plan_shared),
                        stream, after_previous, args);
}
