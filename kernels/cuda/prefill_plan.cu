// SPDX-License-Identifier: Apache-2.0
// prefill_plan.cu: makes the work list of a prefill on the device (prefill_work.cuh): which tiles of
// query rows there are, what each sees, which are cut, in the order longest first.
//
// Invariants
//  1. One CTA; it reads lengths, never page ids.
//  2. The list's content depends on the arguments only; the order among records of one length is free.
#include "kernels/cuda/prefill_work.cuh"

enum { THREADS = 1024, BUCKETS = 1024 };

// Inclusive sum over the block's threads.
static __device__ uint32_t block_sum(uint32_t x, uint32_t *warps, uint32_t *ret_total) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (uint32_t by = 1; by < 32; by *= 2) {
        uint32_t y = __shfl_up_sync(0xffffffffu, x, by);
        if (lane >= by)
            x += y;
    }
    __syncthreads(); // the last call's `warps` have been read
    if (lane == 31)
        warps[warp] = x;
    __syncthreads();
    uint32_t before = 0, total = 0;
    for (uint32_t w = 0; w < THREADS / 32; w++) {
        before += w < warp ? warps[w] : 0;
        total += warps[w];
    }
    *ret_total = total;
    return before + x;
}

struct tile_of {
    uint32_t q_first, q_len, kv_len, row, first_row;
    uint32_t begin, end; // in tiles of tokens
};

// Tile t of the batch: its sequence, by bisection, and what its rows see.
static __device__ struct tile_of find_tile(const struct prefill_planning &p, uint32_t t) {
    uint32_t low = 0, high = p.batch.n; // tile_first[low] <= t < tile_first[high]
    while (high - low > 1) {
        uint32_t mid = (low + high) / 2;
        if (p.tile_first[mid] <= t)
            low = mid;
        else
            high = mid;
    }
    uint32_t i = p.batch.index != nullptr ? p.batch.index[low] : low;
    struct tile_of r;
    r.q_first = p.batch.qo_indptr[i];
    r.q_len = p.batch.qo_indptr[i + 1] - r.q_first;
    r.kv_len = p.batch.kv_len[i];
    r.row = p.batch.rows[i];
    r.first_row = (t - p.tile_first[low]) * p.rows;

    uint32_t last_row = min(r.first_row + p.rows, r.q_len * p.group) - 1;
    int32_t origin = (int32_t)r.kv_len - (int32_t)r.q_len;
    int32_t first = origin + (int32_t)(r.first_row / p.group);
    int32_t last = origin + (int32_t)(last_row / p.group);
    int32_t end = p.causal ? last + 1 : (int32_t)r.kv_len;
    int32_t begin = p.window >= 0 ? max(0, first - p.window) : 0;
    bool any = end > begin;
    r.begin = any ? (uint32_t)begin / p.tokens : 0;
    r.end = any ? ((uint32_t)end + p.tokens - 1) / p.tokens : 0;
    return r;
}

// Ranges that a tile of `length` is cut into: as near to `chunk` each as can be.
static __device__ uint32_t splits_of(const struct prefill_planning &p, uint32_t length,
                                     uint64_t chunk) {
    if (p.max_slots == 0)
        return 1;
    uint64_t n = (2 * (uint64_t)length + chunk) / (2 * chunk);
    n = n < p.max_slots ? n : p.max_slots;
    return n < 2 ? 1 : n < PREFILL_MAX_SPLITS ? (uint32_t)n : PREFILL_MAX_SPLITS;
}

static __device__ uint32_t bucket_of(uint32_t length, uint32_t longest) {
    uint32_t shift = 0;
    while (longest >> shift >= BUCKETS)
        shift++;
    return BUCKETS - 1 - (length >> shift);
}

static __global__ void __launch_bounds__(THREADS, 1) plan_kernel(struct prefill_planning p) {
    __shared__ uint32_t warps[THREADS / 32];
    __shared__ uint32_t buckets[BUCKETS]; // records of each length, then where the next one goes
    __shared__ uint64_t work_of[THREADS / 32]; // of each warp's tiles: KV ranges in tiles of tokens
    __shared__ uint32_t longest, slots;
    wait_previous_kernel();
    start_next_kernel();

    if (threadIdx.x == 0) {
        longest = 0;
        slots = 0;
    }
    buckets[threadIdx.x] = 0;

    uint32_t tiles = 0;
    for (uint32_t first = 0; first < p.batch.n; first += THREADS) {
        uint32_t at = first + threadIdx.x, count = 0;
        if (at < p.batch.n) {
            uint32_t i = p.batch.index != nullptr ? p.batch.index[at] : at;
            uint32_t q_len = p.batch.qo_indptr[i + 1] - p.batch.qo_indptr[i];
            count = (q_len * p.group + p.rows - 1) / p.rows;
        }
        uint32_t total, sum = block_sum(count, warps, &total);
        if (at < p.batch.n)
            p.tile_first[at + 1] = tiles + sum;
        tiles += total;
    }
    if (threadIdx.x == 0)
        p.tile_first[0] = 0;
    __syncthreads();

    struct tile_of mine = {};
    if (threadIdx.x < tiles)
        mine = find_tile(p, threadIdx.x);
    uint64_t work = 0;
    uint32_t most = 0;
    for (uint32_t t = threadIdx.x; t < tiles; t += THREADS) {
        struct tile_of r = t == threadIdx.x ? mine : find_tile(p, t);
        work += r.end - r.begin;
        most = max(most, r.end - r.begin);
    }
    for (int by = 16; by > 0; by /= 2) {
        work += __shfl_xor_sync(0xffffffffu, work, by);
        most = max(most, __shfl_xor_sync(0xffffffffu, most, by));
    }
    if (threadIdx.x % 32 == 0) {
        work_of[threadIdx.x / 32] = work;
        atomicMax(&longest, most);
    }
    __syncthreads();
    work = 0;
    for (uint32_t w = 0; w < THREADS / 32; w++)
        work += work_of[w];
    uint64_t chunk = (work * p.kv_heads + p.lanes - 1) / p.lanes;
    chunk = max(chunk, (uint64_t)(PREFILL_MIN_CHUNK / p.tokens));

    for (uint32_t t = threadIdx.x; t < tiles; t += THREADS) {
        struct tile_of r = t == threadIdx.x ? mine : find_tile(p, t);
        uint32_t length = r.end - r.begin, splits = splits_of(p, length, chunk);
        for (uint32_t s = 0; s < splits; s++) {
            uint32_t begin = (uint32_t)((uint64_t)length * s / splits);
            uint32_t end = (uint32_t)((uint64_t)length * (s + 1) / splits);
            atomicAdd(&buckets[bucket_of(end - begin, longest)], 1u);
        }
    }
    __syncthreads();
    uint32_t records, here = buckets[threadIdx.x];
    uint32_t before = block_sum(here, warps, &records) - here;
    buckets[threadIdx.x] = before;
    __syncthreads();

    for (uint32_t t = threadIdx.x; t < tiles; t += THREADS) {
        struct tile_of r = t == threadIdx.x ? mine : find_tile(p, t);
        uint32_t length = r.end - r.begin, splits = splits_of(p, length, chunk);
        uint32_t slot = splits > 1 ? atomicAdd(&slots, splits) : 0;
        for (uint32_t s = 0; s < splits; s++) {
            uint32_t begin = (uint32_t)((uint64_t)length * s / splits);
            uint32_t end = (uint32_t)((uint64_t)length * (s + 1) / splits);
            uint32_t at = atomicAdd(&buckets[bucket_of(end - begin, longest)], 1u);
            struct prefill_record record = {
                r.q_first, r.q_len, r.kv_len, r.row, r.first_row, r.begin + begin, r.begin + end,
                s,         splits,  slot,     0, 0,
            };
            if (at < p.max_records && slot + splits <= max(p.max_slots, 1u))
                p.records[at] = record;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        p.plan->records = min(records, p.max_records);
        p.plan->slots = slots;
    }
}

int prefill_start_plan(const struct prefill_planning *p, bool after_previous, void *stream) {
    return start_kernel(plan_kernel, dim3(1), dim3(THREADS), 0, stream, after_previous, *p);
}
