// SPDX-License-Identifier: Apache-2.0
// decode.cuh: attention of few query tokens a sequence over paged K and V. One CTA on each
// multiprocessor, of independent warps: each streams the tiles of its run through its own ring in
// shared memory and keeps its own softmax. docs/kernels.md, "Decode".
//
// A tile: S (tokens x columns) = K Q, on the matrix unit with K as the first operand, so that 8
// columns are enough to fill it; online softmax over the tokens; O (head_dim x columns) += V P. The
// columns of S, P and O are the same lanes' (2c, 2c+1 of lane 4*g + c), so that m, l and the scaling
// of O need no exchange between lanes.
//
// Invariants
//  1. Warps need not meet in the loop; they do once, after all of them have read their tiles. Where all of a CTA
//     have runs of one length they meet every DECODE_STEP tiles.
//  2. A stage is copied to only after __syncwarp behind its last read.
//  3. STAGES copies are committed at any time (empty ones past the end), so that waiting for all but
//     STAGES - 1 waits for the oldest.
#ifndef KVPOOL_KERNELS_CUDA_DECODE_CUH
#define KVPOOL_KERNELS_CUDA_DECODE_CUH

#include "kernels/cuda/decode_attend.cuh"
#include "kernels/cuda/decode_lines.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_pieces.cuh"
#include "kernels/cuda/decode_queries.cuh"
#include "kernels/cuda/start.cuh"

// The end of a segment: a whole item is written; what others have parts of is kept in shared memory, or posted
// where its CTA has no other part of it.
template <class C>
static __device__ __forceinline__ void
end_segment(const struct decode_args &a, const struct decode_shared<C> &shared,
            const struct decode_place &place, struct decode_state<C> &state, bool begun,
            bool first_segment, bool alone, bool lines) {
    uint32_t warp = threadIdx.x / 32, slot = first_segment ? 0 : 1;
    bool ended = place.what & 2;
    sum_lanes<C>(state);
    if (place_pieces(place.what) > 1)
        end_piece<C>(a, place, state);
    else if (begun && ended)
        write_state<C>(a, place, state);
    else if (alone && !ended)
        post_state<C>(a, place, state, part_of_cta<C>(a, blockIdx.x, lines));
    else
        keep_state<C>(state, shared.o(warp, slot), shared.ml(warp, slot));
}

// --- the kernel ----------------------------------------------------------------------------------

template <class T, class KV, int D, int NT>
__global__ void __launch_bounds__(DECODE_MAX_WARPS * 32, 1)
    decode_kernel(const __grid_constant__ struct decode_args a) {
    using C = decode_config<T, KV, D, NT>;
    KVPOOL_SHARED smem[];
    struct decode_shared<C> shared = {
        smem, a.run_warps
    };
    uint32_t lane = threadIdx.x % 32, warp = warp_uniform(threadIdx.x / 32);

    wait_previous_kernel();
    start_next_kernel();

    const struct decode_work *work = a.works + blockIdx.x * DECODE_MAX_WARPS + warp;
    struct decode_lane<C::GROUPS> tiles = decode_load_first<C>(work);
    uint4 begin = load_now(&work->run), more = load_now(&work->run.line_shift);
    const struct decode_copier copier = decode_copier_of<C>(a);
    const uint32_t line_shift = warp_uniform(more.x);
    const bool alone = warp_uniform(more.y), in_step = warp_uniform(more.z);
    struct decode_cursor at = {begin.x,    begin.y,
                               begin.z,    warp & ((1u << line_shift) - 1),
                               line_shift, decode_load(&work->run.sequence)};
    // No tile is at DECODE_NOWHERE: to look ties the reads together, else they would be one after the other,
    // the tiles' behind the count's.
    uint32_t count = warp_uniform(
        tiles.place.token != DECODE_NOWHERE ? begin.w : 0); // 0: the warp only helps to sum
    uint32_t ring = smem_address(smem) + warp * shared.RING;
    const unsigned char *copied = shared.own(warp);

    // The plan's tiles, and, between the first and the others, Q and what the warp has to sum.
    static_assert(C::STAGES <= DECODE_FIRST, "the plan finds the first tiles");
#pragma unroll 1
    for (uint32_t stage = 0; stage < C::STAGES; stage++) {
        if (stage < count) {
            uint32_t from = 32 - DECODE_FIRST + stage;
            uint32_t what = decode_fetch<C>(a, copier, tiles, from, ring + stage * C::TILE,
                                            shared.place(warp, stage));
            uint32_t q0 = __shfl_sync(ALL_LANES, tiles.place.q0, (int)from);
            if (stage > 0) {
                if (what & 1)
                    prefetch_queries<C>(a, q0, what);
            } else {
                copy_queries<C>(a, smem_address(copied), q0, what);
                if (lane < DECODE_MERGES * 2)
                    cp_async_16(
                        smem_address(shared.merge(warp)) + lane * 16,
                        reinterpret_cast<const unsigned char *>(work->run.merge) + lane * 16, true);
            }
        }
        cp_async_commit();
    }

    struct decode_lanes lanes = decode_lanes_of<C>();
    struct decode_queries<C, C::Q_SHARED> queries(shared.q(warp));
    struct decode_state<C> state;
    float before = 1, after = 1; // of tanh; k_scale is in them
    bool is_new = true, begun = false, first_segment = true;
    uint32_t stage = 0;
#pragma unroll 1
    for (uint32_t turn = 0; turn < count; turn++) {
        uint32_t bytes = ring + stage * C::TILE;
        if (first_segment) { // Q comes with the first tile
            cp_async_wait<C::STAGES - 1>();
            __syncwarp();
        }
        struct decode_place place = *shared.place(warp, stage);
        place.what = warp_uniform(place.what);
        if (is_new) {
            load_queries<C>(a, first_segment ? copied : nullptr, place.q0, place.what, queries);
            reset_state<C>(state);
            before = a.sm_scale;
            if constexpr (C::KV8)
                before *= a.k_scales ? a.k_scales[place_head(place.what)] : a.k_scale;
            if (a.soft_cap > 0) {
                before = divide_fast(before, a.soft_cap);
                after = a.soft_cap * DECODE_LOG2E;
            } else {
                before *= DECODE_LOG2E;
            }
            begun = place.what & 1;
            is_new = false;
        }
        if (!first_segment) {
            cp_async_wait<C::STAGES - 1>();
            __syncwarp();
        }

        float s[C::MT][C::NT][4];
        times_queries<C>(bytes, lanes, queries, before, s);
        if (a.soft_cap > 0)
            cap_tile<C>(after, s);
        if (needs_mask<C>(a, place))
            mask_tile<C>(a, place, s);
        weigh<C>(s, state);
        add_values<C>(bytes, lanes, s, state);
        __syncwarp();

        // Warps that work on the heads of the same pages stay side by side: pages are then read whole.
        if (in_step && turn % DECODE_STEP == DECODE_STEP - 1)
            __syncthreads();
        uint32_t next = turn + C::STAGES;
        if (next < count) {
            // The plan's tiles are in the last lanes: they end with one.
            uint32_t from = (next - DECODE_FIRST) % 32;
            if (from == 0)
                decode_find<C>(a, at, count - next, tiles);
            uint32_t what =
                decode_fetch<C>(a, copier, tiles, from, bytes, shared.place(warp, stage));
            if (what & 1)
                prefetch_queries<C>(a, __shfl_sync(ALL_LANES, tiles.place.q0, (int)from), what);
        }
        cp_async_commit();
        // Behind the next copy, which need not wait for it.
        if (place.what & 2 || turn + 1 == count) {
            end_segment<C>(a, shared, place, state, begun, first_segment, alone, line_shift > 0);
            first_segment = false;
            is_new = true;
        }
        __syncwarp();
        stage = stage + 1 == C::STAGES ? 0 : stage + 1;
    }
    const struct decode_merge *merges = count > 0 ? shared.merge(warp) : work->run.merge;
    const bool lines = C::LINES && line_shift > 0;
    merge_cut<C>(a, shared, merges, lines);
    if constexpr (C::LINES)
        if (lines)
            merge_line<C>(a, shared, merges);
}

// Instances are explicit: one file a few of them.
#define DECODE_INSTANCE(T, KV, D, NT)                                                             \
    template <>                                                                                   \
    int decode_start<T, KV, D, NT>(const struct decode_args &args, uint32_t ctas, void *stream,   \
                                   bool after_previous) {                                         \
        return start_kernel(decode_kernel<T, KV, D, NT>, dim3(ctas), dim3(DECODE_MAX_WARPS * 32), \
                            decode_smem_bytes(D, decode_is_8bit<KV>::value, NT, args.run_warps),  \
                            stream, after_previous, args);                                        \
    }

#endif
