// SPDX-License-Identifier: Apache-2.0
// decode_plan.cu: divides a batch among the warps of the decode kernel. Every block scans the whole batch
// and writes the runs of its share; everything is read and written on the device. docs/kernels.md,
// "Decode".
//
// Invariants
//  1. The plan depends only on kv_len, the differences of qo_indptr, rows, index, the page ids, the
//     arguments' host numbers and the device.
//  2. Sequences without query tokens are left out; DECODE_PAD zeroed records follow the others.
//  3. What several blocks write they write alike.
#include "kernels/cuda/decode_plan.cuh"
#include "kernels/cuda/start.cuh"

enum { BLOCKS = 8, THREADS = 1024, WARPS = THREADS / 32, KEPT = 512 };
enum { ROLES = 8 }; // threads of a run
// Warps get at least so many tiles before there is one more.
enum { RUN_MIN = 1 };

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
    uint64_t before_tiles = shared->warp_tiles[lane], all_tiles = before_tiles;
    uint32_t before_live = shared->warp_live[lane], all_live = before_live;
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

// Tile x of a line, x < all: its sequence (of `live`), item and place in the item.
static __device__ __forceinline__ void locate(const uint64_t *sums, uint32_t line_shift,
                                              const struct decode_sequence *sequences,
                                              uint32_t live, uint64_t x, struct decode_run *ret) {
    uint32_t low = 0, high = live;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (sums[middle] >> line_shift <= x)
            low = middle;
        else
            high = middle;
    }
    struct decode_sequence s = sequences[low];
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

// How the line is cut.
struct cut {
    uint32_t used; // runs of a line that have tiles
    uint32_t line_shift;
};

// Items of one length each: their number of warps, a power of two or whole CTAs, or the number of whole
// items of a warp: so that few items are shared, and few of them by CTAs. The memory is busy with less
// than all warps. 0: there is no such number.
static __device__ __forceinline__ uint32_t even_runs(uint64_t all, uint32_t tiles, uint32_t warps,
                                                     uint32_t cta_warps) {
    uint64_t items = all / tiles;
    if (items <= warps) {
        uint32_t share = min((uint32_t)(warps / items), tiles / RUN_MIN);
        if (share >= cta_warps)
            share -= share % cta_warps;
        else
            while (share & (share - 1))
                share &= share - 1;
        return (uint32_t)items * max(share, 1u);
    }
    uint64_t whole = (items + warps - 1) / warps;
    for (uint32_t more = 0; more < 3; more++, whole++)
        if (items % whole == 0)
            return (uint32_t)(items / whole);
    return 0;
}

// Eight lines pay where items are not cut into many parts: then no two warps of a CTA share an item.
static __device__ __forceinline__ struct cut choose_cut(const struct decode_plan_args &a,
                                                        struct plan_shared *shared,
                                                        const struct decode_sequence *sequences,
                                                        uint32_t live, uint64_t all) {
    uint32_t warps = a.ctas * a.cta_warps;
    struct cut cut = {(uint32_t)min((uint64_t)warps, (all + RUN_MIN - 1) / RUN_MIN), 0};
    if (a.batch_invariant || live == 0)
        return cut;
    if (threadIdx.x == 0)
        shared->uneven = shared->long_item = 0;
    __syncthreads();
    uint64_t most = ((all >> DECODE_LINE_SHIFT) / a.ctas) * DECODE_LINE_PARTS;
    uint32_t tiles = sequences[0].tiles;
    for (uint32_t i = threadIdx.x; i < live; i += THREADS) {
        if (sequences[i].tiles != tiles)
            shared->uneven = 1;
        if (sequences[i].tiles > most)
            shared->long_item = 1;
    }
    __syncthreads();
    uint32_t even = shared->uneven ? 0 : even_runs(all, tiles, warps, a.cta_warps);
    if (even) {
        cut.used = even;
    } else if (!shared->long_item && a.cta_warps == 1u << DECODE_LINE_SHIFT &&
               a.kv_heads % (1u << DECODE_LINE_SHIFT) == 0) {
        cut.line_shift = DECODE_LINE_SHIFT;
        cut.used = (uint32_t)min((uint64_t)a.ctas, all >> DECODE_LINE_SHIFT);
    }
    return cut;
}

// Tile `at` as the kernel wants it. A line's heads are counted from its own first.
static __device__ __forceinline__ struct decode_first find(const struct decode_plan_args &a,
                                                           const struct decode_run &at) {
    const struct decode_sequence &s = at.sequence;
    struct decode_first ret = {
        decode_place_of(s, at.slot, at.item, at.tile, 0, a.tile_tokens), {0, 0, 0, 0}, {0, 0, 0}};
    const uint32_t *ids = a.table + (uint64_t)s.row * a.row_entries;
#pragma unroll
    for (uint32_t g = 0; g < 4; g++) {
        uint32_t token = ret.place.token + 8 * g;
        if (8 * g < a.tile_tokens && token < s.kv_len)
            ret.page[g] = __ldg(ids + (token >> a.page_shift));
    }
    return ret;
}

// Which CTAs share the items at the ends of CTA `cta`; run r of a line has tile x if
// r * all / used <= x < (r + 1) * all / used.
static __device__ __forceinline__ struct decode_span
span_of(uint32_t cta, uint32_t cta_runs, const uint64_t *sums,
        const struct decode_sequence *sequences, uint32_t live, uint64_t all, struct cut cut) {
    uint64_t used = cut.used, i = (uint64_t)cta * cta_runs, after = i + cta_runs;
    struct decode_span span = {0, 0, 0, cut.line_shift};
    struct decode_run run;
    if (i < used) {
        uint64_t x = i * all / used;
        locate(sums, cut.line_shift, sequences, live, x, &run);
        if (run.tile > 0) {
            uint64_t first = x - run.tile, last = first + run.sequence.tiles - 1;
            span.back_first = (uint32_t)(((first + 1) * used - 1) / all) / cta_runs;
            span.back_last = (uint32_t)(((last + 1) * used - 1) / all) / cta_runs;
        }
    }
    if (after < used) {
        uint64_t x = after * all / used;
        locate(sums, cut.line_shift, sequences, live, x, &run);
        if (run.tile > 0) {
            uint64_t last = x - run.tile + run.sequence.tiles - 1;
            span.forward_last = (uint32_t)(((last + 1) * used - 1) / all) / cta_runs;
        }
    }
    return span;
}

// The runs of this block over `all` tiles: ROLES threads each, one for each of the first tiles, one for where
// the run goes on.
static __device__ __forceinline__ void divide(const struct decode_plan_args &a,
                                              const uint64_t *sums,
                                              const struct decode_sequence *sequences,
                                              uint32_t live, uint64_t all, struct cut cut) {
    uint32_t line_shift = cut.line_shift;
    bool lines = line_shift > 0;
    uint32_t cta_runs = lines ? 1 : a.cta_warps; // of a line
    uint32_t most = a.ctas * cta_runs, copies = lines ? a.cta_warps : 1;
    uint32_t share = (most + gridDim.x - 1) / gridDim.x, before = blockIdx.x * share;
    all >>= line_shift;
    uint64_t used = cut.used;
    for (uint32_t t = threadIdx.x; t < share * ROLES; t += THREADS) {
        uint32_t i = before + t / ROLES, k = t % ROLES;
        if (i >= most || k > DECODE_FIRST)
            continue;
        struct decode_run run = {};
        uint64_t x = 0, end = 0;
        if (i < used) {
            x = i * all / used;
            end = (i + 1) * all / used;
            if (a.batch_invariant) {
                locate(sums, line_shift, sequences, live, x, &run);
                x -= snap(&run);
                if (end < all) {
                    locate(sums, line_shift, sequences, live, end, &run);
                    end -= snap(&run);
                }
            }
            if (x + k < end)
                locate(sums, line_shift, sequences, live, x + k, &run);
        }
        run.count = (uint32_t)(end - x);
        struct decode_work *to = a.works + (size_t)i * copies;
        if (k == DECODE_FIRST) {
            run.span = {0, 0, 0, line_shift};
            if (!a.batch_invariant)
                run.span = span_of(i / cta_runs, cta_runs, sums, sequences, live, all, cut);
            for (uint32_t w = 0; w < copies; w++)
                to[w].run = run;
            continue;
        }
        struct decode_first first = {};
        if (k < run.count)
            first = find(a, run);
        for (uint32_t w = 0; w < copies; w++) {
            to[w].first[k] = first;
            first.place.what += (a.kv_heads >> line_shift) << DECODE_HEAD_SHIFT;
        }
    }
}

static __global__ void __launch_bounds__(THREADS, 1) decode_plan_kernel(struct decode_plan_args a) {
    KVPOOL_SHARED smem[];
    struct plan_shared *shared = reinterpret_cast<struct plan_shared *>(smem);
    bool kept = a.n <= KEPT;
    uint64_t *sums = kept ? shared->sums : a.sums;
    struct decode_sequence *sequences = kept ? shared->sequences : a.sequences;

    start_next_kernel();
    wait_previous_kernel();

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
    divide(a, sums, sequences, live, all, choose_cut(a, shared, sequences, live, all));
}

int decode_plan_start(const struct decode_plan_args &args, void *stream, bool after_previous) {
    return start_kernel(decode_plan_kernel, dim3(BLOCKS), dim3(THREADS), sizeof(struct plan_shared),
                        stream, after_previous, args);
}
