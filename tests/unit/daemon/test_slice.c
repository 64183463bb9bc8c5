// SPDX-License-Identifier: Apache-2.0
// test_slice.c: ops cut into pieces do, on the real CPU backend and every kernel that this CPU has,
// what the whole op does, to the bit; and no piece is larger than it must be.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/slice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CASES 6
#else
#define CASES 60
#endif
#define MAX_SEQS 6
#define MAX_OPS 8192
#define MAX_WORDS 32768

static uint64_t rng;

static uint32_t pick(uint32_t n) { // splitmix64
    uint64_t z = (rng += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

struct batch {
    uint32_t n, rows[MAX_SEQS], kv_len[MAX_SEQS], indptr[MAX_SEQS + 1];
};

static struct backend_op ops[MAX_OPS];
static struct slice slices[MAX_OPS];
static uint32_t words[MAX_WORDS];

static void on_done(void *arg, int status) {
    assert_int_equal(status, 0);
    ++*(uint32_t *)arg;
}

static void run(struct backend *b, struct backend_pool *pool, const struct backend_op *op,
                uint32_t n) {
    const struct backend_program program = {.pool = pool, .ops = op, .n = n};
    struct err err;
    uint32_t done = 0;
    assert_int_equal(backend_cpu.submit(b, NULL, &program, on_done, &done, &err), 0);
    assert_int_equal(done, 1);
}

static struct slicer slicer_for(const struct kv_geometry *g, struct backend_pool *pool,
                                uint64_t budget_ns) {
    struct slicer s = {.geometry = g,
                       .pool = pool,
                       .budget_ns = budget_ns,
                       .row_block = backend_cpu.row_block,
                       .lanes = 1};
    cost_rates_init(&s.rates);
    return s;
}

// Cuts, checks what slice_need promised, and returns the number of slices.
static uint32_t cut(const struct slicer *s, const struct backend_op *whole) {
    struct slice_need need = {0};
    uint32_t *at = words;
    slice_need(s, whole, &need);
    assert_true(need.ops <= MAX_OPS && need.words <= MAX_WORDS);
    uint32_t n = slice_cut(s, whole, ops, &at);
    assert_int_equal(n, need.ops);
    assert_int_equal(at - words, need.words);
    uint32_t num = slice_group(s, ops, n, slices);
    uint32_t covered = 0;
    for (uint32_t i = 0; i < num; i++) {
        assert_ptr_equal(slices[i].program.ops, ops + covered);
        assert_ptr_equal(slices[i].program.pool, s->pool);
        assert_true(slices[i].estimate_ns <= s->budget_ns || slices[i].program.n == 1);
        covered += slices[i].program.n;
    }
    assert_int_equal(covered, n);
    return num;
}

static void run_slices(struct backend *b, uint32_t num) {
    for (uint32_t i = 0; i < num; i++)
        run(b, slices[i].program.pool, slices[i].program.ops, slices[i].program.n);
}

static void fill_random(void *at, size_t bytes, kvpool_dtype dtype) {
    if (dtype == KVPOOL_FP32) {
        for (size_t i = 0; i < bytes / 4; i++)
            ((float *)at)[i] = (float)pick(2001) / 500 - 2;
    } else { // finite whatever the format: the exponent's highest bits are not all set
        for (size_t i = 0; i < bytes / 2; i++)
            ((uint16_t *)at)[i] = (uint16_t)(pick(65536) & 0xbfff);
    }
}

static uint32_t round_up(uint32_t n, uint32_t to) {
    return (n + to - 1) / to * to;
}

static const uint32_t dims[] = {64, 80, 128}, groups[] = {1, 2, 3, 4, 7, 8, 16};

static void random_case(const char *isa) {
    const struct kv_geometry g = {
        .layers = 2,
        .kv_heads = 1 + pick(4),
        .head_dim = dims[pick(3)],
        .page_size = 1u << (2 + pick(5)),
        .dtype = (kvpool_dtype[]){KVPOOL_FP32, KVPOOL_FP16, KVPOOL_BF16}[pick(3)]};
    const uint32_t qo_heads = g.kv_heads * groups[pick(sizeof groups / sizeof groups[0])];
    const size_t element = kv_dtype_size(g.dtype);
    struct batch batch = {.n = 1 + pick(MAX_SEQS)};
    uint32_t entries = 0, pages = 0, first_page[MAX_SEQS];
    for (uint32_t i = 0; i < batch.n; i++) {
        uint32_t q = pick(3) == 0 ? 1 + pick(4) : 1 + pick(400);
        batch.rows[i] = batch.n - 1 - i;
        batch.kv_len[i] = q + (pick(2) == 0 ? 0 : pick(1500));
        batch.indptr[i + 1] = batch.indptr[i] + q;
        first_page[i] = pages;
        uint32_t own = round_up(batch.kv_len[i], g.page_size) / g.page_size;
        pages += own;
        entries = own > entries ? own : entries;
    }
    uint32_t tokens = batch.indptr[batch.n];

    struct backend *b;
    struct backend_pool *pools[2]; // appended to whole, and in pieces
    struct backend_mem *kv, *q, *outs[2];
    struct err err;
    const struct backend_config config = {.threads = 2};
    setenv("KVPOOL_CPU_ISA", isa, 1);
    int status = backend_cpu.open(&config, &b, &err);
    unsetenv("KVPOOL_CPU_ISA");
    if (status == KVPOOL_E_BACKEND)
        return; // this CPU has not got it
    assert_int_equal(status, 0);
    // One sequence's keys at a time come from kv, q and out are the batch's; gaps between tokens.
    size_t kv_stride = (size_t)g.kv_heads * g.head_dim + 8;
    size_t q_stride = (size_t)qo_heads * g.head_dim + 16, lse_stride = qo_heads + 1;
    size_t longest = round_up(entries * g.page_size, 1);
    size_t out_bytes = (size_t)tokens * q_stride * element, lse_bytes = tokens * lse_stride * 4;
    size_t lse_at = (out_bytes + 63) / 64 * 64;
    assert_int_equal(backend_cpu.mem_alloc(b, 2 * longest * kv_stride * element, BACKEND_HOST,
                                           BACKEND_FD, &kv, &err),
                     0);
    assert_int_equal(backend_cpu.mem_alloc(b, (size_t)tokens * q_stride * element, BACKEND_HOST,
                                           BACKEND_FD, &q, &err),
                     0);
    fill_random(backend_cpu.mem_host(kv), 2 * longest * kv_stride * element, g.dtype);
    fill_random(backend_cpu.mem_host(q), (size_t)tokens * q_stride * element, g.dtype);
    struct slicer slicers[2];
    uint32_t *ids = calloc(pages + 1, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < pages; i++)
        ids[i] = pages - 1 - i;
    for (int way = 0; way < 2; way++) {
        assert_int_equal(
            backend_cpu.pool_open(b, &g, BACKEND_FD, pages, batch.n, entries, &pools[way], &err),
            0);
        assert_int_equal(backend_cpu.mem_alloc(b, lse_at + lse_bytes, BACKEND_HOST, BACKEND_FD,
                                               &outs[way], &err),
                         0);
        slicers[way] = slicer_for(&g, pools[way], way == 0 ? UINT64_MAX : 3000 + pick(2000000));
        for (uint32_t i = 0; i < batch.n; i++) {
            struct batch one = {.n = 1,
                                .rows = {batch.rows[i]},
                                .kv_len = {batch.kv_len[i]},
                                .indptr = {0, batch.kv_len[i]}};
            struct backend_op table = {
                .kind = BACKEND_TABLE,
                .u.table = {.row = batch.rows[i],
                            .count = round_up(batch.kv_len[i], g.page_size) / g.page_size,
                            .ids = ids + first_page[i]}};
            struct backend_op append = {
                .kind = BACKEND_APPEND,
                .u.append = {.layer = 1,
                             .batch = {1, one.rows, one.kv_len, one.indptr},
                             .k = {kv, 0, kv_stride, g.head_dim},
                             .v = {kv, longest * kv_stride * element, kv_stride, g.head_dim}}};
            run(b, pools[way], &table, 1);
            run_slices(b, cut(&slicers[way], &append));
        }
    }
    assert_memory_equal(backend_cpu.pool_plane(pools[0], 1), backend_cpu.pool_plane(pools[1], 1),
                        pages * kv_page_bytes(&g));

    struct backend_op attend = {
        .kind = BACKEND_ATTEND,
        .u.attend = {.layer = 1,
                     .qo_heads = qo_heads,
                     .causal = pick(4) != 0,
                     .sm_scale = 1.0F / sqrtf((float)g.head_dim),
                     .soft_cap = pick(3) == 0 ? 5.0F : 0,
                     .window_left = pick(2) == 0 ? -1 : (int32_t)pick(500),
                     .batch = {batch.n, batch.rows, batch.kv_len, batch.indptr},
                     .q = {q, 0, q_stride, g.head_dim},
                     .out = {NULL, 0, q_stride, g.head_dim},
                     .lse = {NULL, lse_at, lse_stride, 1}}};
    bool lse = pick(4) != 0;
    uint32_t num = 0;
    for (int way = 0; way < 2; way++) {
        attend.u.attend.out.mem = outs[way];
        attend.u.attend.lse.mem = lse ? outs[way] : NULL;
        num = cut(&slicers[way], &attend);
        assert_true(way == 1 || num == 1);
        run_slices(b, num);
    }
    if (memcmp(backend_cpu.mem_host(outs[0]), backend_cpu.mem_host(outs[1]), lse_at + lse_bytes) !=
        0)
        fail_msg("%s: %u slices give other bits: heads %u/%u of %u, causal %d, window %d", isa, num,
                 qo_heads, g.kv_heads, g.head_dim, attend.u.attend.causal,
                 attend.u.attend.window_left);
    free(ids);
    for (int way = 0; way < 2; way++) {
        backend_cpu.pool_close(b, pools[way]);
        backend_cpu.mem_free(b, outs[way]);
    }
    backend_cpu.mem_free(b, kv);
    backend_cpu.mem_free(b, q);
    backend_cpu.close(b);
}

static void pieces_give_the_bits_of_the_whole(void **state) {
    (void)state;
    static const char *const isas[] = {"generic", "avx2", "avx512", "avx512bf16"};
    const char *seed = getenv("KVPOOL_SEED");
    rng = seed != NULL ? strtoull(seed, NULL, 0) : 20261122;
    for (int i = 0; i < CASES; i++)
        random_case(isas[i % 4]);
}

static const struct kv_geometry eight = {
    .layers = 4, .kv_heads = 8, .head_dim = 64, .page_size = 16, .dtype = KVPOOL_FP16};

static struct backend_op causal(const struct batch *batch, uint32_t qo_heads) {
    return (struct backend_op){
        .kind = BACKEND_ATTEND,
        .u.attend = {.qo_heads = qo_heads,
                     .causal = true,
                     .window_left = -1,
                     .batch = {batch->n, batch->rows, batch->kv_len, batch->indptr}}};
}

static void a_long_prompt_is_cut_between_blocks_of_rows(void **state) {
    (void)state;
    const struct batch batch = {.n = 1, .rows = {7}, .kv_len = {5000}, .indptr = {0, 4000}};
    struct backend_op whole = causal(&batch, 32); // 4 heads a K/V head: blocks of 30 queries
    struct slicer s = slicer_for(&eight, NULL, 50000000);
    uint32_t n = cut(&s, &whole), at = 0;
    assert_true(n > 10);
    for (uint32_t i = 0; i < n; i++) {
        const struct backend_attend_op *a = &slices[i].program.ops->u.attend;
        assert_int_equal(slices[i].program.n, 1);
        assert_true(a->part && a->batch.n == 1 && a->batch.rows[0] == 7);
        assert_int_equal(a->batch.qo_indptr[0], 0);
        assert_int_equal(at % 30, 0);
        at += a->batch.qo_indptr[1];
        assert_int_equal(a->batch.kv_len[0], 1000 + at); // no query moves
    }
    assert_int_equal(at, 4000);
    // Later queries see more: pieces get shorter. Where one block is too much it is one block.
    assert_true(ops[0].u.attend.batch.qo_indptr[1] > ops[n - 2].u.attend.batch.qo_indptr[1]);
    s.budget_ns = 10000;
    n = cut(&s, &whole);
    for (uint32_t i = 0; i + 1 < n; i++)
        assert_int_equal(ops[i].u.attend.batch.qo_indptr[1], 30);
    // With 16 lanes and 8 K/V heads a piece keeps two blocks for each.
    s.lanes = 16;
    (void)cut(&s, &whole);
    assert_int_equal(ops[0].u.attend.batch.qo_indptr[1], 4 * 30);
}

static void what_may_not_be_cut_is_not(void **state) {
    (void)state;
    const struct batch batch = {
        .n = 3, .rows = {0, 1, 2}, .kv_len = {900, 900, 900}, .indptr = {0, 900, 1800, 2700}};
    struct backend_op whole = causal(&batch, 8);
    struct slicer s = slicer_for(&eight, NULL, 10000);
    whole.u.attend.causal = false; // every query sees every key: by sequences only
    assert_int_equal(cut(&s, &whole), 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(ops[i].u.attend.batch.n, 1);
        assert_int_equal(ops[i].u.attend.batch.rows[0], i);
        assert_int_equal(ops[i].u.attend.batch.qo_indptr[1], 900);
        assert_false(ops[i].u.attend.part);
    }
    whole.u.attend.causal = true;
    s.row_block = 0; // the backend cannot
    assert_int_equal(cut(&s, &whole), 3);
    s.row_block = 120;
    assert_true(cut(&s, &whole) > 3);
    s.budget_ns = UINT64_MAX;
    assert_int_equal(cut(&s, &whole), 1);
    assert_ptr_equal(ops[0].u.attend.batch.qo_indptr, batch.indptr); // as it was
}

static void a_decode_is_cut_by_sequences_and_keeps_its_append(void **state) {
    (void)state;
    struct batch batch = {.n = MAX_SEQS};
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        batch.rows[i] = i;
        batch.kv_len[i] = 2000;
        batch.indptr[i + 1] = i + 1;
    }
    struct backend_op two[2] = {
        {.kind = BACKEND_APPEND,
         .u.append = {.batch = {batch.n, batch.rows, batch.kv_len, batch.indptr}}},
        causal(&batch, 8)};
    // 2000 keys x 8 heads x 64: about 0.5 ms at the first rate.
    struct slicer s = slicer_for(&eight, NULL, 1100000);
    uint32_t *at = words;
    uint32_t n = slice_cut(&s, &two[0], ops, &at);
    assert_int_equal(n, 1);
    n += slice_cut(&s, &two[1], ops + n, &at);
    assert_int_equal(n, 4);
    assert_int_equal(ops[1].u.attend.batch.n, 2);
    assert_int_equal(slice_group(&s, ops, n, slices), 3);
    assert_int_equal(slices[0].program.n, 2); // [APPEND][ATTEND of the first two]
    assert_true(slices[0].cost.units[COST_APPEND] > 0 && slices[0].cost.units[COST_DECODE] > 0);
}

static void copies_are_cut_by_pages(void **state) {
    (void)state;
    uint32_t src[100], dst[100];
    for (uint32_t i = 0; i < 100; i++) {
        src[i] = i;
        dst[i] = 100 + i;
    }
    const struct backend_op copy = {.kind = BACKEND_COPY,
                                    .u.copy = {.count = 100, .src = src, .dst = dst}};
    // A page: 4 layers x 2 x 8 x 16 x 64 x 2 = 128 KiB: 66 us at the first rate.
    struct slicer s = slicer_for(&eight, NULL, SLICE_BUDGET_NS);
    uint32_t n = cut(&s, &copy), pages = 0;
    assert_int_equal(n, 15);
    for (uint32_t i = 0; i < n; i++) {
        assert_ptr_equal(ops[i].u.copy.src, src + pages);
        assert_ptr_equal(ops[i].u.copy.dst, dst + pages);
        pages += ops[i].u.copy.count;
    }
    assert_int_equal(pages, 100);
}

static void rates_follow_what_is_measured(void **state) {
    (void)state;
    struct cost_rates r;
    cost_rates_init(&r);
    const struct cost prefill = {.units = {[COST_PREFILL] = 10000000}};
    const double append_rate = r.ns[COST_APPEND], first = r.ns[COST_PREFILL];
    cost_learn(&r, &prefill, 1000000000); // absurd once: bounded
    assert_true(r.ns[COST_PREFILL] > first && r.ns[COST_PREFILL] < 2 * first);
    for (int i = 0; i < 200; i++)
        cost_learn(&r, &prefill, 502000); // 0.05 ns a unit
    assert_true(fabs(r.ns[COST_PREFILL] - 0.05) < 0.001);
    assert_in_range(cost_estimate_ns(&r, &prefill), 490000, 515000);
    assert_true(r.ns[COST_APPEND] == append_rate);
    const struct cost none = {0};
    cost_learn(&r, &none, 1000000);
    assert_true(cost_estimate_ns(&r, &none) > 0);
}

static void narrower_pages_cost_a_decode_and_an_append_less(void **state) {
    (void)state;
    const uint32_t kv_len = 1000, indptr[2] = {0, 1};
    struct kv_geometry g = {
        .layers = 4, .kv_heads = 8, .head_dim = 64, .page_size = 16, .dtype = KVPOOL_BF16};
    const struct backend_batch batch = {.n = 1, .kv_len = &kv_len, .qo_indptr = indptr};
    const struct backend_op decode = {
        .kind = BACKEND_ATTEND,
        .u.attend = {.qo_heads = 32, .causal = true, .window_left = -1, .batch = batch}};
    const struct backend_op append = {.kind = BACKEND_APPEND, .u.append = {.batch = batch}};
    struct cost wide = {0}, narrow = {0};
    cost_add_op(&g, &decode, &wide);
    cost_add_op(&g, &append, &wide);
    g.kv_dtype = KVPOOL_FP8_E4M3;
    cost_add_op(&g, &decode, &narrow);
    cost_add_op(&g, &append, &narrow);
    assert_int_equal(wide.units[COST_DECODE], 1000ull * 32 * 64);
    assert_int_equal(narrow.units[COST_DECODE] * 2, wide.units[COST_DECODE]);
    assert_int_equal(narrow.units[COST_APPEND] * 2, wide.units[COST_APPEND]);
    // Arithmetic limits a prefill: nothing changes.
    const uint32_t many[2] = {0, 100};
    struct backend_op prefill = decode;
    prefill.u.attend.batch.qo_indptr = many;
    struct cost a = {0}, b = {0};
    cost_add_op(&g, &prefill, &a);
    g.kv_dtype = 0;
    cost_add_op(&g, &prefill, &b);
    assert_int_equal(a.units[COST_PREFILL], b.units[COST_PREFILL]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrower_pages_cost_a_decode_and_an_append_less),
        cmocka_unit_test(pieces_give_the_bits_of_the_whole),
        cmocka_unit_test(a_long_prompt_is_cut_between_blocks_of_rows),
        cmocka_unit_test(what_may_not_be_cut_is_not),
        cmocka_unit_test(a_decode_is_cut_by_sequences_and_keeps_its_append),
        cmocka_unit_test(copies_are_cut_by_pages),
        cmocka_unit_test(rates_follow_what_is_measured),
    };
    return cmocka_run_group_tests_name("slice", tests, NULL, NULL);
}
