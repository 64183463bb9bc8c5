// SPDX-License-Identifier: Apache-2.0
// cpu_attention.c: see cpu_attention.h.
//
//     sequence -> few rows:  a block of K/V heads                  -> unit, or group of units
//              -> many rows: one K/V head, a block of ATTN_ROWS rows -> unit, or group of units
//
// A unit alone writes out and lse. Where the rows of a sequence fit one block and see many keys,
// the keys are cut into chunks, one unit each: a *group*, whose last unit to finish merges the
// parts of all in the order of the keys. A part of a longer sequence has several blocks there, so
// it is not cut along the keys here either.
#include "kernels/cpu_attention.h"

#include "kernels/cpu_attention_isa.h"
#include "kernels/dtype.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    MAX_UNITS = 8192,       // of one wave
    MAX_CHUNKS = 64,        // of one group
    CHUNK_FEW = 256,        // least keys of a chunk, few rows and many heads
    CHUNK_MANY = 1024,      // the same, many rows and one head
    PART_FLOATS = 16 << 20, // of the parts of one wave
    ALONE_COST = 1 << 20,   // keys x rows x head_dim that are not worth waking a thread
};
#define NO_GROUP UINT32_MAX
_Static_assert(ATTN_ROWS == CPU_ATTENTION_ROW_BLOCK, "what the daemon cuts at is what is cut here");

struct unit {
    uint32_t sequence;
    uint32_t head, heads; // of K and V
    uint32_t rows;        // of each head
    uint64_t first_row;   // of the q_len * group_heads rows of a head
    uint32_t begin, end;  // keys
    uint32_t group;       // or NO_GROUP
    float *part;          // of a group, n indices: [n] max, [n] sum, [n][o_stride] o
};

struct group {
    atomic_uint left;    // units that have not finished
    uint32_t first_unit; // its units are neighbours, in the order of the keys
    uint32_t units;
};

struct wave { // the op at hand, and the units planned and not yet run
    const struct cpu_cache *cache;
    const struct backend_attend_op *op;
    struct cpu_attention_tensors at;
    uint32_t group_heads; // query heads per K/V head
    uint32_t units, groups;
    size_t part_floats;
    uint64_t cost;
};

struct cpu_attention {
    struct cpu_threads *threads;
    const struct attn_isa *isa;
    struct attn_work *work; // [threads]
    float *parts;           // [PART_FLOATS], taken on first touch
    struct wave wave;
    struct unit unit[MAX_UNITS];
    struct group group[MAX_UNITS];
};

// ---------------------------------------------------------------------------------------------
// One unit

// A row's query token and query head; rows go through the heads of a token first.
struct place {
    uint32_t token, head, turn; // turn: of head within its group
};
static struct place first_place(const struct wave *wave, const struct unit *u, uint32_t head) {
    uint32_t turn = (uint32_t)(u->first_row % wave->group_heads);
    return (struct place){
        .token =
            wave->op->batch.qo_indptr[u->sequence] + (uint32_t)(u->first_row / wave->group_heads),
        .head = (u->head + head) * wave->group_heads + turn,
        .turn = turn,
    };
}
static void next_place(const struct wave *wave, struct place *at) {
    at->head++;
    if (++at->turn == wave->group_heads) {
        at->token++;
        at->head -= wave->group_heads;
        at->turn = 0;
    }
}

// Keys lo..hi that query j of a sequence sees.
static void visible(const struct backend_attend_op *op, uint32_t sequence, uint32_t j, uint32_t *lo,
                    uint32_t *hi) {
    int64_t kv_len = op->batch.kv_len[sequence];
    int64_t q_len = op->batch.qo_indptr[sequence + 1] - op->batch.qo_indptr[sequence];
    int64_t position = kv_len - q_len + j;
    int64_t end = kv_len;
    int64_t begin = 0;
    if (op->causal && position + 1 < end)
        end = position + 1 < 0 ? 0 : position + 1;
    if (op->window_left >= 0 && position > op->window_left)
        begin = position - op->window_left;
    *lo = (uint32_t)(begin < end ? begin : end);
    *hi = (uint32_t)end;
}

static uint32_t clamp(uint32_t x, uint32_t low, uint32_t high) {
    return x < low ? low : x > high ? high : x;
}

static void load_unit(const struct wave *wave, const struct unit *u, struct attn_work *w) {
    const struct cpu_cache *c = wave->cache;
    const struct backend_attend_op *op = wave->op;
    size_t element = kv_dtype_size(c->geometry.dtype);
    w->keys = (struct attn_keys){
        .k = cpu_cache_plane(c, op->layer) + u->head * c->slab_bytes,
        .slab_bytes = c->slab_bytes,
        .v_offset = c->geometry.kv_heads * c->slab_bytes,
        .page_bytes = c->page_bytes,
        .row_bytes = c->row_bytes,
        .ids = cpu_cache_row(c, op->batch.rows[u->sequence]),
        .page_shift = c->page_shift,
    };
    w->head_dim = c->geometry.head_dim;
    w->o_stride = attn_o_stride(w->head_dim);
    w->heads = u->heads;
    w->rows = u->rows;
    w->head_rows = attn_head_rows(u->rows);
    w->begin = u->begin;
    w->end = u->end;
    w->widen = cpu_cache_is_fp8(c);
    w->soft_cap =
        op->soft_cap > 0 ? fminf(fmaxf(op->soft_cap, ATTN_LEAST_CAP), ATTN_WIDEST_CAP) : 0;
    uint32_t first = op->batch.qo_indptr[u->sequence];
    for (uint32_t head = 0; head < u->heads; head++) {
        struct place at = first_place(wave, u, head);
        w->sm_scale[head] =
            op->sm_scale * cpu_cache_scale(c, &op->scales, wave->at.scales, 0, u->head + head);
        for (uint32_t r = 0; r < u->rows; r++, next_place(wave, &at)) {
            w->row_q[head * w->head_rows + r] =
                wave->at.q +
                (at.token * op->q.token_stride + at.head * op->q.head_stride) * element;
            if (head != 0)
                continue;
            uint32_t lo;
            uint32_t hi;
            visible(op, u->sequence, at.token - first, &lo, &hi);
            w->lo[r] = clamp(lo, u->begin, u->end);
            w->hi[r] = clamp(hi, u->begin, u->end);
        }
    }
}

// What a sink, a natural logit, makes of a row that sees keys: the factor of its o. A NaN stays one.
static float take_sink(float sink, float *max, float *sum) {
    float x = sink * (float)M_LOG2E;
    float new = x > *max ? x : *max;
    float factor = exp2f(*max - new);
    *sum = *sum * factor + exp2f(x - new);
    *max = new;
    return factor;
}

static void write_row(const struct cpu_attention *a, const struct place *at, const float *o,
                      float max, float sum) {
    const struct wave *wave = &a->wave;
    const struct backend_attend_op *op = wave->op;
    const struct kv_geometry *g = &wave->cache->geometry;
    float sink =
        wave->at.sinks != NULL ? dtype_load(KVPOOL_FP32, wave->at.sinks, at->head) : -INFINITY;
    float lse = sink;
    float factor = 0;
    if (sum != 0) { // or NaN
        factor = wave->at.sinks != NULL ? take_sink(sink, &max, &sum) : 1;
        factor = factor / sum *
                 cpu_cache_scale(wave->cache, &op->scales, wave->at.scales, 1,
                                 at->head / wave->group_heads);
        lse = (float)((double)max * M_LN2) + logf(sum);
    }
    char *out = wave->at.out + (at->token * op->out.token_stride + at->head * op->out.head_stride) *
                                   kv_dtype_size(g->dtype);
    a->isa->finish(g->dtype, g->head_dim, o, factor, out);
    if (wave->at.lse != NULL) {
        memcpy(wave->at.lse +
                   (at->token * op->lse.token_stride + at->head * op->lse.head_stride) * sizeof lse,
               &lse, sizeof lse);
    }
}

// Adds up row `index` of all parts of a group in w->o.
static void merge_row(const struct unit *first, uint32_t units, size_t n, size_t index,
                      struct attn_work *w, float *ret_max, float *ret_sum) {
    size_t stride = w->o_stride;
    float max = -INFINITY;
    for (uint32_t i = 0; i < units; i++)
        max = fmaxf(max, first[i].part[index]);
    float sum = 0;
    memset(w->o, 0, stride * sizeof *w->o);
    for (uint32_t i = 0; i < units; i++) {
        const float *part = first[i].part;
        if (part[n + index] == 0)
            continue;
        float factor = exp2f(part[index] - max);
        const float *o = part + 2 * n + index * stride;
        sum += factor * part[n + index];
        for (size_t d = 0; d < stride; d++)
            w->o[d] += factor * o[d];
    }
    *ret_max = max;
    *ret_sum = sum;
}

static void merge_group(struct cpu_attention *a, const struct group *g, struct attn_work *w) {
    const struct unit *first = &a->unit[g->first_unit];
    uint32_t head_rows = attn_head_rows(first->rows);
    for (uint32_t head = 0; head < first->heads; head++) {
        struct place at = first_place(&a->wave, first, head);
        for (uint32_t r = 0; r < first->rows; r++, next_place(&a->wave, &at)) {
            float max;
            float sum;
            merge_row(first, g->units, (size_t)first->heads * head_rows, head * head_rows + r, w,
                      &max, &sum);
            write_row(a, &at, w->o, max, sum);
        }
    }
}

static void run_unit(void *arg, uint32_t index, uint32_t worker) {
    struct cpu_attention *a = arg;
    const struct unit *u = &a->unit[index];
    struct attn_work *w = &a->work[worker];
    load_unit(&a->wave, u, w);
    a->isa->run(w, a->wave.cache->geometry.dtype);
    if (u->group == NO_GROUP) {
        for (uint32_t head = 0; head < u->heads; head++) {
            struct place at = first_place(&a->wave, u, head);
            for (uint32_t r = 0; r < u->rows; r++, next_place(&a->wave, &at)) {
                size_t i = head * w->head_rows + r;
                write_row(a, &at, w->o + i * w->o_stride, w->max[i], w->sum[i]);
            }
        }
        return;
    }
    size_t n = (size_t)u->heads * w->head_rows;
    memcpy(u->part, w->max, n * sizeof(float));
    memcpy(u->part + n, w->sum, n * sizeof(float));
    memcpy(u->part + 2 * n, w->o, n * w->o_stride * sizeof(float));
    struct group *g = &a->group[u->group];
    if (atomic_fetch_sub_explicit(&g->left, 1, memory_order_acq_rel) == 1)
        merge_group(a, g, w);
}

// ---------------------------------------------------------------------------------------------
// Planning

static void run_wave(struct cpu_attention *a) {
    struct wave *wave = &a->wave;
    if (wave->cost < ALONE_COST)
        for (uint32_t i = 0; i < wave->units; i++)
            run_unit(a, i, 0);
    else
        cpu_threads_run(a->threads, wave->units, run_unit, a);
    wave->units = 0;
    wave->groups = 0;
    wave->part_floats = 0;
    wave->cost = 0;
}

static void put_unit(struct cpu_attention *a, struct unit unit) {
    struct wave *wave = &a->wave;
    wave->cost +=
        (uint64_t)(unit.end - unit.begin) * unit.heads * unit.rows * wave->cache->geometry.head_dim;
    a->unit[wave->units++] = unit;
}

// The chunks of a unit whose keys are to be cut.
static void put_group(struct cpu_attention *a, struct unit unit, uint32_t chunk) {
    struct wave *wave = &a->wave;
    uint32_t first = unit.begin / chunk;
    uint32_t count = (unit.end - 1) / chunk - first + 1;
    size_t floats = (size_t)unit.heads * attn_head_rows(unit.rows) *
                    (2 + attn_o_stride(wave->cache->geometry.head_dim));
    if (wave->units + count > MAX_UNITS || wave->part_floats + count * floats > PART_FLOATS)
        run_wave(a);
    struct group *g = &a->group[wave->groups];
    g->first_unit = wave->units;
    g->units = count;
    atomic_store_explicit(&g->left, count, memory_order_relaxed);
    uint32_t begin = unit.begin;
    uint32_t end = unit.end;
    unit.group = wave->groups++;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t from = (uint64_t)(first + i) * chunk;
        uint64_t to = from + chunk;
        unit.begin = from < begin ? begin : (uint32_t)from;
        unit.end = to < end ? (uint32_t)to : end;
        unit.part = a->parts + wave->part_floats;
        wave->part_floats += floats;
        put_unit(a, unit);
    }
}

// One block of rows, for all K/V heads. Only a sequence's single block is cut along the keys.
static void add_block(struct cpu_attention *a, struct unit unit, bool single) {
    struct wave *wave = &a->wave;
    uint32_t kv_heads = wave->cache->geometry.kv_heads;
    uint32_t ignored;
    visible(wave->op, unit.sequence, (uint32_t)(unit.first_row / wave->group_heads), &unit.begin,
            &ignored);
    visible(wave->op, unit.sequence,
            (uint32_t)((unit.first_row + unit.rows - 1) / wave->group_heads), &ignored, &unit.end);

    // Few rows: as many heads as there are indices for, evenly.
    bool few = unit.rows <= ATTN_STREAM_ROWS;
    uint32_t most = few ? ATTN_ROWS / attn_head_rows(unit.rows) : 1;
    uint32_t parts = (kv_heads + most - 1) / most;
    uint32_t chunk = few ? CHUNK_FEW : CHUNK_MANY;
    while (wave->op->batch.kv_len[unit.sequence] / chunk >= MAX_CHUNKS)
        chunk *= 2;
    bool cut = single && unit.end > unit.begin && unit.begin / chunk != (unit.end - 1) / chunk;
    for (uint32_t i = 0; i < parts; i++) {
        unit.head = (uint32_t)((uint64_t)kv_heads * i / parts);
        unit.heads = (uint32_t)((uint64_t)kv_heads * (i + 1) / parts) - unit.head;
        if (cut) {
            put_group(a, unit, chunk);
            continue;
        }
        if (wave->units == MAX_UNITS)
            run_wave(a);
        put_unit(a, unit);
    }
}

static void add_sequence(struct cpu_attention *a, uint32_t sequence) {
    const struct backend_batch *batch = &a->wave.op->batch;
    uint32_t q_len = batch->qo_indptr[sequence + 1] - batch->qo_indptr[sequence];
    uint64_t rows = (uint64_t)q_len * a->wave.group_heads;
    uint64_t blocks = (rows + ATTN_ROWS - 1) / ATTN_ROWS;
    for (uint64_t block = blocks; block-- > 0;) { // those that see the most first
        uint64_t first_row = block * ATTN_ROWS;
        uint64_t left = rows - first_row;
        struct unit unit = {
            .sequence = sequence,
            .rows = (uint32_t)(left < ATTN_ROWS ? left : ATTN_ROWS),
            .first_row = first_row,
            .group = NO_GROUP,
        };
        add_block(a, unit, blocks == 1 && !a->wave.op->part);
    }
}

void cpu_attention_run(struct cpu_attention *a, const struct cpu_cache *cache,
                       const struct backend_attend_op *op,
                       const struct cpu_attention_tensors *tensors) {
    a->wave = (struct wave){
        .cache = cache,
        .op = op,
        .at = *tensors,
        .group_heads = op->qo_heads / cache->geometry.kv_heads,
    };
    for (uint32_t i = 0; i < op->batch.n; i++)
        add_sequence(a, i);
    run_wave(a);
}

// ---------------------------------------------------------------------------------------------
// Choice of the kernel

// The best first.
static const struct attn_isa *const KERNELS[] = {
#if defined(__x86_64__)
    &attn_avx512bf16, &attn_avx512, &attn_avx2,
#endif
    &attn_generic,    NULL,
};

static bool cpu_has(const struct attn_isa *isa) {
#if defined(__x86_64__)
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == &attn_avx512bf16)
        return avx512 && __builtin_cpu_supports("avx512bf16");
    if (isa == &attn_avx512)
        return avx512;
    if (isa == &attn_avx2) // every processor with AVX2 and FMA has F16C
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return isa == &attn_generic;
}

static int choose(const struct attn_isa **ret, struct err *err) {
    const char *name = getenv("KVPOOL_CPU_ISA");
    for (const struct attn_isa *const *isa = KERNELS; *isa != NULL; isa++) {
        if (name != NULL && strcmp(name, (*isa)->name) != 0)
            continue;
        if (cpu_has(*isa)) {
            *ret = *isa;
            return 0;
        }
        if (name != NULL)
            return err_set(err, KVPOOL_E_BACKEND, "KVPOOL_CPU_ISA=%s: this CPU has not got it",
                           name);
    }
    return err_set(err, KVPOOL_E_BACKEND,
                   "KVPOOL_CPU_ISA=%.32s: no such kernel (generic, avx2, avx512, "
                   "avx512bf16)",
                   name);
}

int cpu_attention_open(struct cpu_threads *threads, struct cpu_attention **ret, struct err *err) {
    const struct attn_isa *isa = NULL;
    int status = choose(&isa, err);
    if (status != 0)
        return status;
    size_t work_bytes = cpu_threads_count(threads) * sizeof(struct attn_work);
    struct cpu_attention *a = malloc(sizeof *a);
    if (a == NULL)
        goto no_memory;
    struct attn_work *work = aligned_alloc(64, work_bytes);
    if (work == NULL)
        goto free_attention;
    void *parts = mmap(NULL, PART_FLOATS * sizeof(float), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (parts == MAP_FAILED)
        goto free_work;
    a->threads = threads;
    a->isa = isa;
    a->work = work;
    a->parts = parts;
    *ret = a;
    return 0;

free_work:
    free(work);
free_attention:
    free(a);
no_memory:
    return err_set(err, KVPOOL_E_NOMEM, "no memory for the scratch of %u threads",
                   cpu_threads_count(threads));
}

void cpu_attention_close(struct cpu_attention *a) {
    munmap(a->parts, PART_FLOATS * sizeof(float));
    free(a->work);
    free(a);
}

const char *cpu_attention_isa(const struct cpu_attention *a) {
    return a->isa->name;
}
