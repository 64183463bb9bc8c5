// SPDX-License-Identifier: Apache-2.0
// test_decode_plan.cpp: how the decode plan divides batches among the warps of a GPU of 132 multiprocessors: every
// tile is somebody's, runs are of one length, and the memory is kept busy whatever the batch is.
#include "kernels/cuda/decode_plan.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

extern "C" {
#include <cmocka.h>
}

#include <vector>

enum { SMS = 132, HEADS = 8, PAGE_SHIFT = 7, TILE = 16 };

struct division {
    uint64_t tiles, all; // of all runs; that there are
    uint32_t runs, shortest, longest;
    uint32_t warps; // that there are
};

// The plan of a batch of one query token a sequence, 32 query heads of 128 on 8.
static division divide(const std::vector<uint32_t> &kv_len) {
    uint32_t n = (uint32_t)kv_len.size(), most = 0;
    std::vector<uint32_t> rows(n), indptr(n + 1);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = i;
        indptr[i + 1] = i + 1;
        most = kv_len[i] > most ? kv_len[i] : most;
    }
    cuda_attention a = {};
    a.batch.row_entries = (most >> PAGE_SHIFT) + 1;
    std::vector<uint32_t> table((size_t)n * a.batch.row_entries, 0);
    cuda_device d = {};
    d.sms = SMS;
    d.smem_optin = 227 * 1024;
    a.kv.kv_heads = HEADS;
    a.kv.head_dim = 128;
    a.kv.page_shift = PAGE_SHIFT;
    a.kv.dtype = a.dtype = CUDA_BF16;
    a.qo_heads = 4 * HEADS;
    a.window_left = -1;
    a.batch.n = a.batch.nnz = n;
    a.batch.max_q_len = 1;
    a.batch.table = table.data();
    a.batch.rows = rows.data();
    a.batch.kv_len = kv_len.data();
    a.batch.qo_indptr = indptr.data();
    std::vector<decode_work> plan(cuda_decode_plan_bytes(&d, &a) / sizeof(decode_work) + 1);
    a.plan = plan.data();
    assert_int_equal(cuda_decode_plan(&d, &a, nullptr), 0);

    division ret = {0, 0, 0, UINT32_MAX, 0, SMS * DECODE_MAX_WARPS};
    for (uint32_t i = 0; i < n; i++)
        ret.all += (uint64_t)HEADS * ((kv_len[i] + TILE - 1) / TILE);
    for (uint32_t w = 0; w < ret.warps; w++) {
        uint32_t count = plan[w].run.count;
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
    division x = divide(kv_len);
    if (x.tiles != x.all || x.longest > x.shortest + 1)
        fail_msg("%s: runs of %u to %u tiles, %lu of %lu tiles", what, x.shortest, x.longest,
                 (unsigned long)x.tiles, (unsigned long)x.all);
    // Runs of 8 tiles and more: nearly all warps have one.
    if (x.longest > 8 && x.runs < x.warps - x.warps / 16)
        fail_msg("%s: %u of %u warps have runs of %u tiles, the others none", what, x.runs, x.warps,
                 x.longest);
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

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_equal_lengths),
                                cmocka_unit_test(test_all_lengths)};
    return cmocka_run_group_tests_name("decode plan", tests, nullptr, nullptr);
}
