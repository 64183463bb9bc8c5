// SPDX-License-Identifier: Apache-2.0
// test_decode_plan.cpp: how the decode plan divides batches among the warps of a GPU of 132 multiprocessors: every
// tile is somebody's, runs are of one length, warps that go in step meet as often, and the memory is kept busy
// whatever the batch is.
#include "kernels/cuda/decode_plan.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

extern "C" {
#include <cmocka.h>
}

#include <vector>

enum { SMS = 132, PAGE_SHIFT = 7, TILE = 16 };

struct division {
    uint64_t tiles, all; // of all runs; that there are
    uint32_t runs, shortest, longest;
    uint32_t warps; // that there are
};

// The plan of a batch of q_len query tokens a sequence, 4 query heads of 128 on each of `heads`.
static division divide(const std::vector<uint32_t> &kv_len, uint32_t heads, uint32_t q_len = 1) {
    uint32_t n = (uint32_t)kv_len.size(), most = 0;
    std::vector<uint32_t> rows(n), indptr(n + 1);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = i;
        indptr[i + 1] = (i + 1) * q_len;
        most = kv_len[i] > most ? kv_len[i] : most;
    }
    cuda_attention a = {};
    a.batch.row_entries = (most >> PAGE_SHIFT) + 1;
    std::vector<uint32_t> table((size_t)n * a.batch.row_entries, 0);
    cuda_device d = {};
    d.sms = SMS;
    d.smem_optin = 227 * 1024;
    a.kv.kv_heads = heads;
    a.kv.head_dim = 128;
    a.kv.page_shift = PAGE_SHIFT;
    a.kv.dtype = a.dtype = CUDA_BF16;
    a.qo_heads = 4 * heads;
    a.window_left = -1;
    a.batch.n = n;
    a.batch.nnz = n * q_len;
    a.batch.max_q_len = q_len;
    a.batch.table = table.data();
    a.batch.rows = rows.data();
    a.batch.kv_len = kv_len.data();
    a.batch.qo_indptr = indptr.data();
    std::vector<decode_work> plan(cuda_decode_plan_bytes(&d, &a) / sizeof(decode_work) + 1);
    a.plan = plan.data();
    assert_int_equal(cuda_decode_plan(&d, &a, nullptr), 0);

    division ret = {0, 0, 0, UINT32_MAX, 0, SMS * DECODE_MAX_WARPS};
    for (uint32_t i = 0; i < n; i++)
        ret.all += (uint64_t)heads * ((kv_len[i] + TILE - 1) / TILE);
    for (uint32_t w = 0; w < ret.warps; w++) {
        const decode_run &run = plan[w].run, &first = plan[w - w % DECODE_MAX_WARPS].run;
        uint32_t count = run.count;
        if (run.in_step != first.in_step ||
            (run.in_step && count / DECODE_STEP != first.count / DECODE_STEP))
            fail_msg("warp %u: in step %u and %u, tiles %u and %u", w, run.in_step, first.in_step,
                     count, first.count);
        if (count == 0)
            continue;
        ret.tiles += count;
        ret.runs++;
        ret.shortest = count < ret.shortest ? count : ret.shortest;
        ret.longest = count > ret.longest ? count : ret.longest;
    }
    return ret;
}

static void check(const std::vector<uint32_t> &kv_len, const char *what) {
    static const uint32_t HEADS[] = {8, 4, 8, 2};
    uint32_t heads = HEADS[kv_len.size() % 4];
    division x = divide(kv_len, heads);
    if (x.tiles != x.all || x.longest > x.shortest + 1)
        fail_msg("%s, %u heads: runs of %u to %u tiles, %lu of %lu tiles", what, heads, x.shortest,
                 x.longest, (unsigned long)x.tiles, (unsigned long)x.all);
    // Runs of 8 tiles and more: nearly all warps have one.
    if (x.longest > 8 && x.runs < x.warps - x.warps / 16)
        fail_msg("%s, %u heads: %u of %u warps have runs of %u tiles, the others none", what, heads,
                 x.runs, x.warps, x.longest);
}

static void test_equal_lengths(void **state) {
    (void)state;
    static const uint32_t LENGTHS[] = {100, 1024, 2048, 8192};
    for (uint32_t n = 1; n <= 260; n += n < 24 ? 1 : 7)
        for (uint32_t length : LENGTHS) {
            char what[64];
            snprintf(what, sizeof what, "%u x %u", n, length);
            check(std::vector<uint32_t>(n, length), what);
        }
}

static void test_all_lengths(void **state) {
    (void)state;
    srand(11);
    for (uint32_t n = 1; n <= 600; n += 1 + n / 3) {
        std::vector<uint32_t> kv_len(n);
        for (uint32_t &x : kv_len)
            x = 1 + (uint32_t)rand() % (1u << rand() % 15);
        char what[64];
        snprintf(what, sizeof what, "%u of all lengths", n);
        check(kv_len, what);
    }
}

// Items of few tiles are not cut finer than the sum of their parts is worth.
static void test_few_tiles(void **state) {
    (void)state;
    static const struct {
        std::vector<uint32_t> kv_len;
        uint32_t q_len, runs;
    } cases[] = {
        {{100}, 1, 32},       {{1024}, 1, 256},     {{2048}, 1, 512},  {{4096}, 1, 512},
        {{8192}, 1, 1024},    {{100}, 4, 32},       {{500}, 4, 64},    {{1024}, 4, 128},
        {{2048}, 4, 256},     {{4096}, 4, 512},     {{8192}, 4, 1024}, {{1024}, 8, 128},
        {{300, 500}, 4, 128}, {{300, 500}, 1, 408},
    };
    for (const auto &c : cases) {
        division x = divide(c.kv_len, 8, c.q_len);
        if (x.runs != c.runs)
            fail_msg("%u tokens, %u query tokens: %u runs, not %u", c.kv_len.back(), c.q_len,
                     x.runs, c.runs);
    }
}

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_equal_lengths),
                                cmocka_unit_test(test_all_lengths),
                                cmocka_unit_test(test_few_tiles)};
    return cmocka_run_group_tests_name("decode plan", tests, nullptr, nullptr);
}
