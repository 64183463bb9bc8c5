// SPDX-License-Identifier: Apache-2.0
// cpu_attention.c: see cpu_attention.h.
//
//     sequence -> (kv head, block of ATTN_ROWS rows) -> one unit, written
//     straight to out and lse
//              -> (kv head), few rows, many keys     -> a *group* of units, one
//              per chunk of keys,
//                                                       whose last one to
//                                                       finish merges all parts
//                                                       in the order of the
//                                                       keys
#include "kernels/cpu_attention.h"

#include "kernels/cpu_attention_isa.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    MAX_UNITS = 8192,       // of one wave
    MAX_CHUNKS = 64,        // of one group
    CHUNK_TOKENS = 1024,    // least length of a chunk: fixed, see invariant 1 of the header
    PART_FLOATS = 16 << 20, // of the parts of one wave
    ALONE_COST = 1 << 20,   // keys x rows x head_dim that are not worth waking a thread
};

struct unit {
    uint32_t sequence, head; // head: of K and V
    uint32_t rows;
    uint64_t first_row;  // of the sequence's q_len * group rows
    uint32_t begin, end; // keys
    uint32_t group;      // UINT32_MAX: none
    float *part;         // in a group: [rows] max, [rows] sum, [rows][o_stride] o
};

struct group {
    atomic_uint left;    // units that have not finished
    uint32_t first_unit; // its units are neighbours, in the order of the keys
    uint32_t units;
};

struct wave { // the op at hand
    const struct cpu_cache *cache;
    const struct backend_attend_op *op;
    const char *q;
    char *out, *lse;
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

// A row of the sequence: its query token and head.
struct row_place {
    uint32_t token, head;
};
static struct row_place place_of(const struct wave *wave, const struct unit *u, uint32_t row) {
    uint64_t r = u->first_row + row;
    return (struct row_place){
        .token = wave->op->batch.qo_indptr[u->sequence] + (uint32_t)(r / wave->group_heads),
        .head = u->head * wave->group_heads + (uint32_t)(r % wave->group_heads),
    };
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
        .v_offset = c->geometry.kv_heads * c->slab_bytes,
        .page_bytes = c->page_bytes,
        .row_bytes = c->row_bytes,
        .ids = cpu_cache_row(c, op->batch.rows[u->sequence]),
        .page_shift = c->page_shift,
    };
    w->head_dim = c->geometry.head_dim;
    w->o_stride = attn_o_stride(w->head_dim);
    w->rows = u->rows;
    w->begin = u->begin;
    w->end = u->end;
    w->sm_scale = op->sm_scale;
    w->soft_cap = op->soft_cap;
    uint32_t first = op->batch.qo_indptr[u->sequence];
    for (uint32_t r = 0; r < u->rows; r++) {
        struct row_place at = place_of(wave, u, r);
        w->row_q[r] =
            wave->q + (at.token * op->q.token_stride + at.head * op->q.head_stride) * element;
        uint32_t lo;
        uint32_t hi;
        visible(op, u->sequence, at.token - first, &lo, &hi);
        w->lo[r] = clamp(lo, u->begin, u->end);
        w->hi[r] = clamp(hi, u->begin, u->end);
    }
}

static void write_row(const struct cpu_attention *a, const struct unit *u, uint32_t row,
                      const float *o, float max, float sum) {
    const struct wave *wave = &a->wave;
    const struct backend_attend_op *op = wave->op;
    const struct kv_geometry *g = &wave->cache->geometry;
    struct row_place at = place_of(wave, u, row);
    char *out = wave->out + (at.token * op->out.token_stride + at.head * op->out.head_stride) *
                                kv_dtype_size(g->dtype);
    a->isa->finish(g->dtype, g->head_dim, o, sum == 0 ? 0 : 1 / sum, out);
    if (wave->lse != NULL) {
        float lse = sum == 0 ? -INFINITY : (float)((double)max * M_LN2 + log((double)sum));
        memcpy(wave->lse +
                   (at.token * op->lse.token_stride + at.head * op->lse.head_stride) * sizeof lse,
               &lse, sizeof lse);
    }
}

static void merge_group(struct cpu_attention *a, const struct group *g, struct attn_work *w) {
    const struct unit *first = &a->unit[g->first_unit];
    size_t stride = w->o_stride;
    for (uint32_t r = 0; r < first->rows; r++) {
        float max = -INFINITY;
        for (uint32_t i = 0; i < g->units; i++)
            max = fmaxf(max, first[i].part[r]);
        float sum = 0;
        memset(w->o, 0, stride * sizeof *w->o);
        for (uint32_t i = 0; i < g->units; i++) {
            const float *part = first[i].part;
            float part_sum = part[first->rows + r];
            if (part_sum == 0)
                continue;
            float factor = exp2f(part[r] - max);
            const float *o = part + (size_t)2 * first->rows + r * stride;
            sum += factor * part_sum;
            for (size_t d = 0; d < stride; d++)
                w->o[d] += factor * o[d];
        }
        write_row(a, first, r, w->o, max, sum);
    }
}

static void run_unit(void *arg, uint32_t index, uint32_t worker) {
    struct cpu_attention *a = arg;
    const struct unit *u = &a->unit[index];
    struct attn_work *w = &a->work[worker];
    load_unit(&a->wave, u, w);
    a->isa->run(w, a->wave.cache->geometry.dtype);
    if (u->group == UINT32_MAX) {
        for (uint32_t r = 0; r < u->rows; r++)
            write_row(a, u, r, w->o + r * w->o_stride, w->max[r], w->sum[r]);
        return;
    }
    memcpy(u->part, w->max, u->rows * sizeof(float));
    memcpy(u->part + u->rows, w->sum, u->rows * sizeof(float));
    memcpy(u->part + (size_t)2 * u->rows, w->o, u->rows * w->o_stride * sizeof(float));
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

static void add_unit(struct cpu_attention *a, struct unit unit) {
    struct wave *wave = &a->wave;
    wave->cost += (uint64_t)(unit.end - unit.begin) * unit.rows * wave->cache->geometry.head_dim;
    a->unit[wave->units++] = unit;
}

// Rows of one sequence and K/V head whose keys begin..end are long enough to be
// cut.
static void add_group(struct cpu_attention *a, struct unit unit, uint32_t chunk) {
    struct wave *wave = &a->wave;
    uint32_t first = unit.begin / chunk;
    uint32_t count = (unit.end - 1) / chunk - first + 1;
    size_t floats = unit.rows * (2 + attn_o_stride(wave->cache->geometry.head_dim));
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
        add_unit(a, unit);
    }
}

static void add_sequence(struct cpu_attention *a, uint32_t sequence) {
    struct wave *wave = &a->wave;
    const struct backend_batch *batch = &wave->op->batch;
    uint32_t q_len = batch->qo_indptr[sequence + 1] - batch->qo_indptr[sequence];
    uint64_t rows = (uint64_t)q_len * wave->group_heads;
    uint64_t blocks = (rows + ATTN_ROWS - 1) / ATTN_ROWS;
    uint32_t chunk = CHUNK_TOKENS;
    while (batch->kv_len[sequence] / chunk >= MAX_CHUNKS)
        chunk *= 2;
    for (uint32_t head = 0; head < wave->cache->geometry.kv_heads; head++)
        for (uint64_t block = blocks; block-- > 0;) { // the longest first
            struct unit unit = {
                .sequence = sequence,
                .head = head,
                .first_row = block * ATTN_ROWS,
                .group = UINT32_MAX,
            };
            uint64_t left = rows - unit.first_row;
            unit.rows = (uint32_t)(left < ATTN_ROWS ? left : ATTN_ROWS);
            uint32_t ignored;
            uint32_t first = (uint32_t)(unit.first_row / wave->group_heads);
            uint32_t last = (uint32_t)((unit.first_row + unit.rows - 1) / wave->group_heads);
            visible(wave->op, sequence, first, &unit.begin, &ignored);
            visible(wave->op, sequence, last, &ignored, &unit.end);
            if (blocks == 1 && unit.end > unit.begin &&
                unit.begin / chunk != (unit.end - 1) / chunk) {
                add_group(a, unit, chunk);
                continue;
            }
            if (wave->units == MAX_UNITS)
                run_wave(a);
            add_unit(a, unit);
        }
}

void cpu_attention_run(struct cpu_attention *a, const struct cpu_cache *cache,
                       const struct backend_attend_op *op, const char *q, char *out, char *lse) {
    a->wave = (struct wave){
        .cache = cache,
        .op = op,
        .q = q,
        .out = out,
        .lse = lse,
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
