// SPDX-License-Identifier: Apache-2.0
// The emulator itself: matrices against plain arithmetic, copies as late as they may be, barriers,
// shuffles, the order of blocks; and that what is undefined on a GPU ends the process with the reason.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include <cmocka.h>
}

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/start.cuh"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const unsigned ALL = 0xffffffffu;
// --- matrices -----------------------------------------------------------------------------------

// D = A B + C with A from ldmatrix, B from ldmatrix.trans; then movmatrix of one tile.
template <class T>
static __global__ void multiply(const uint16_t *a, const uint16_t *b, float *d, uint16_t *moved) {
    KVPOOL_SHARED smem[];
    uint16_t *sa = (uint16_t *)smem, *sb = sa + 256; // [16][16], [16][8]
    for (uint32_t i = threadIdx.x; i < 256; i += 32)
        sa[i] = a[i];
    for (uint32_t i = threadIdx.x; i < 128; i += 32)
        sb[i] = b[i];
    __syncwarp();
    uint32_t t = threadIdx.x, fa[4], fb[4];
    ldmatrix_x4(fa, smem_address(sa + (t & 15u) * 16 + t / 16 * 8));
    ldmatrix_x4_trans(fb, smem_address(sb + (t & 15u) * 8));
    float c[4] = {1, 2, 3, 4};
    mma_16816<T>(c, fa, fb[0], fb[1]);
    uint32_t g = t / 4, k = t % 4 * 2;
    d[g * 8 + k] = c[0];
    d[g * 8 + k + 1] = c[1];
    d[(g + 8) * 8 + k] = c[2];
    d[(g + 8) * 8 + k + 1] = c[3];
    uint32_t m = movmatrix_trans(fa[0]);
    moved[g * 8 + k] = (uint16_t)m;
    moved[g * 8 + k + 1] = (uint16_t)(m >> 16);
}
template <class T> static void check_multiply() {
    uint16_t a[256], b[128], moved[64];
    float x[256], y[128], d[128];
    for (int i = 0; i < 256; i++) {
        x[i] = (float)((i * 37 + i / 16) % 41 - 20);
        a[i] = (uint16_t)pack2<T>(x[i], 0);
    }
    for (int i = 0; i < 128; i++) {
        y[i] = (float)((i * 29 + i / 8) % 31 - 15);
        b[i] = (uint16_t)pack2<T>(y[i], 0);
    }
    assert_int_equal(start_kernel(multiply<T>, 1, 32, 768, nullptr, false, a, b, d, moved), 0);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = (float)(1 + (i >= 8 ? 2 : 0) + j % 2);
            for (int k = 0; k < 16; k++)
                sum += x[i * 16 + k] * y[k * 8 + j];
            assert_true(d[i * 8 + j] == sum);
        }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++)
            assert_int_equal(moved[i * 8 + j], a[j * 16 + i]);
}
static void test_matrices(void **) {
    check_multiply<fp16>();
    check_multiply<bf16>();
}

// --- numbers ------------------------------------------------------------------------------------

static void test_numbers_round_to_nearest_even(void **) {
    for (uint32_t i = 0; i < 65536; i++) {
        float x = emu_fp16_to_fp32((uint16_t)i);
        if ((i & 0x7fffu) <= 0x7c00u)
            assert_int_equal(emu_fp32_to_fp16(x), i);
        else
            assert_true(isnan(x));
    }
    for (uint32_t i = 0; i < 0x7bffu; i++) { // half way: to even
        float middle = (emu_fp16_to_fp32((uint16_t)i) + emu_fp16_to_fp32((uint16_t)(i + 1))) / 2;
        assert_int_equal(emu_fp32_to_fp16(middle), i + (i & 1u));
        assert_int_equal(emu_fp32_to_fp16(nextafterf(middle, 0)), i);
        assert_int_equal(emu_fp32_to_fp16(nextafterf(middle, 1e9f)), i + 1);
    }
    assert_int_equal(emu_fp32_to_fp16(65519.996f), 0x7bff);
    assert_int_equal(emu_fp32_to_fp16(65520.0f), 0x7c00);
    for (uint32_t i = 0; i < 0x7eu; i++) {
        float low = emu_e4m3_to_fp32((uint8_t)i), high = emu_e4m3_to_fp32((uint8_t)(i + 1));
        float middle = (low + high) / 2;
        assert_int_equal(emu_fp32_to_e4m3(low), i);
        assert_int_equal(emu_fp32_to_e4m3(-high), (i + 1) | 0x80u);
        assert_int_equal(emu_fp32_to_e4m3(middle), i + (i & 1u));
        assert_int_equal(emu_fp32_to_e4m3(nextafterf(middle, 0)), i);
        assert_int_equal(emu_fp32_to_e4m3(nextafterf(middle, 1e9f)), i + 1);
    }
    assert_int_equal(emu_fp32_to_e4m3(1e30f), 0x7e);
    assert_int_equal(emu_fp32_to_e4m3(NAN) & 0x7f, 0x7f);
    assert_true(emu_e4m3_to_fp32(0x7e) == 448);
    assert_true(emu_e4m3_to_fp32(0x01) == 0x1p-9f);
    assert_int_equal(emu_fp32_to_bf16(1.00390625f), 0x3f80);             // tie to even
    assert_int_equal(emu_fp32_to_bf16(1.01171875f), 0x3f82);             // tie to even, upwards
    assert_int_equal(pack2<bf16>(1, -2), 0xc0003f80u);
    assert_true(exp2_fast(-INFINITY) == 0 && exp2_fast(3) == 8 && exp2_fast(-140) == 0);
}

// --- copies -------------------------------------------------------------------------------------

static __global__ void copies(const float4 *src, float *seen) {
    KVPOOL_SHARED smem[];
    float *f = (float *)smem;
    uint32_t to = smem_address(smem);
    seen[0] = f[0]; // never written: NaN
    f[0] = 7;
    cp_async_16(to, src, true);
    cp_async_commit();
    cp_async_16(to + 16, src + 1, true);
    cp_async_commit();
    cp_async_16(to + 32, src + 2, false);
    cp_async_commit();
    seen[1] = f[0]; // under way: NaN
    cp_async_wait<2>();
    seen[2] = f[0];
    seen[3] = f[4]; // the second group may still be under way
    cp_async_wait<0>();
    seen[4] = f[4];
    seen[5] = f[8]; // zeros
}
static void test_copies_come_late(void **) {
    float4 src[3] = {make_float4(1, 2, 3, 4), make_float4(5, 6, 7, 8), make_float4(9, 9, 9, 9)};
    float seen[6];
    assert_int_equal(start_kernel(copies, 1, 1, 48, nullptr, false, src, seen), 0);
    assert_true(isnan(seen[0]) && isnan(seen[1]) && isnan(seen[3]));
    assert_true(seen[2] == 1 && seen[4] == 5 && seen[5] == 0);
}

// --- warps and blocks ---------------------------------------------------------------------------

static __global__ void collectives(uint32_t *out) {
    uint32_t t = threadIdx.x, at = t;
    out[at] = __shfl_sync(ALL, t * 3, 5);
    out[at += 32] = __shfl_xor_sync(ALL, t, 9);
    out[at += 32] = __shfl_up_sync(ALL, t, 3);
    out[at += 32] = __shfl_down_sync(ALL, t, 3, 8);
    out[at += 32] = __ballot_sync(ALL, t % 3 == 0);
    out[at += 32] = __reduce_max_sync(ALL, t ^ 21u);
    out[at += 32] = (uint32_t)__reduce_min_sync(ALL, (int)t - 7);
    out[at += 32] = (t & 1u) != 0 ? __reduce_add_sync(0xaaaaaaaau, t) : 0; // half of the warp
    out[at += 32] = __match_any_sync(ALL, t / 8);
    out[at += 32] = (uint32_t)__any_sync(ALL, t == 31) + 2 * (uint32_t)__all_sync(ALL, t == 31);
}
static void test_collectives(void **) {
    uint32_t out[10][32];
    assert_int_equal(start_kernel(collectives, 1, 32, 0, nullptr, false, &out[0][0]), 0);
    for (uint32_t t = 0; t < 32; t++) {
        assert_int_equal(out[0][t], 15);
        assert_int_equal(out[1][t], t ^ 9u);
        assert_int_equal(out[2][t], t < 3 ? t : t - 3);
        assert_int_equal(out[3][t], t % 8 < 5 ? t + 3 : t);
        assert_int_equal(out[4][t], 0x49249249u);
        assert_int_equal(out[5][t], 31);
        assert_int_equal((int)out[6][t], -7);
        assert_int_equal(out[7][t], t % 2 != 0 ? 256 : 0);
        assert_int_equal(out[8][t], 0xffu << t / 8 * 8);
        assert_int_equal(out[9][t], 1);
    }
}

// Every thread reads what another warp wrote, over and over, in dynamic and in static shared memory.
static __global__ void exchange(uint32_t *out, uint32_t rounds) {
    KVPOOL_SHARED smem[];
    __shared__ uint32_t also[128];
    uint32_t *dynamic = (uint32_t *)smem, t = threadIdx.x, x = blockIdx.x * 1000 + t;
    for (uint32_t i = 0; i < rounds; i++) {
        dynamic[t] = x;
        also[127 - t] = x;
        __syncthreads();
        x = dynamic[(t + 37) % 128] + also[127 - (t + 41) % 128];
        __syncthreads();
    }
    out[blockIdx.x * 128 + t] = x;
}
static void test_blocks_have_shared_memory_of_their_own(void **) {
    static uint32_t out[20 * 128];
    assert_int_equal(start_kernel(exchange, 20, 128, 512, nullptr, false, out, 6), 0);
    for (uint32_t b = 0; b < 20; b++) {
        uint32_t now[128], next[128];
        for (uint32_t t = 0; t < 128; t++)
            now[t] = b * 1000 + t;
        for (uint32_t i = 0; i < 6; i++) {
            for (uint32_t t = 0; t < 128; t++)
                next[t] = now[(t + 37) % 128] + now[(t + 41) % 128];
            memcpy(now, next, sizeof now);
        }
        for (uint32_t t = 0; t < 128; t++)
            assert_int_equal(out[b * 128 + t], now[t]);
    }
}

// Without the barrier some warp reads too early: the order is not the one that hides it.
static __global__ void no_barrier(uint32_t *wrong) {
    KVPOOL_SHARED smem[];
    uint32_t *x = (uint32_t *)smem;
    x[threadIdx.x] = threadIdx.x;
    __syncwarp();
    if (x[(threadIdx.x + 32) % 128] != (threadIdx.x + 32) % 128)
        atomicAdd(wrong, 1);
}
static void test_missing_barrier_is_seen(void **) {
    uint32_t wrong = 0;
    assert_int_equal(start_kernel(no_barrier, 10, 128, 512, nullptr, false, &wrong), 0);
    assert_true(wrong > 0);
}

static __global__ void half_barriers(uint32_t *out) { // two pairs of warps, barriers 1 and 2
    KVPOOL_SHARED smem[];
    uint32_t *x = (uint32_t *)smem, pair = threadIdx.x / 64;
    for (uint32_t i = 0; i < 5; i++) {
        x[threadIdx.x] = i * 1000 + threadIdx.x;
        emu_barrier(1 + pair, 64, true);
        uint32_t y = x[threadIdx.x ^ 32u];
        emu_barrier(1 + pair, 64, true);
        out[i * 128 + threadIdx.x] = y;
    }
}
static void test_named_barriers(void **) {
    uint32_t out[5 * 128];
    assert_int_equal(start_kernel(half_barriers, 1, 128, 512, nullptr, false, out), 0);
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t t = 0; t < 128; t++)
            assert_int_equal(out[i * 128 + t], i * 1000 + (t ^ 32u));
}

// The last block adds up what all have written.
static __global__ void last_adds(uint32_t *partial, uint32_t *counter, uint32_t *sum, uint32_t *who) {
    if (threadIdx.x != 0)
        return;
    partial[blockIdx.x] = blockIdx.x + 1;
    if (atomic_inc_acq_rel(counter, gridDim.x - 1) == gridDim.x - 1) {
        for (uint32_t i = 0; i < gridDim.x; i++)
            *sum += partial[i];
        *who = blockIdx.x;
    }
}
static void test_blocks_run_in_varying_order(void **) {
    uint32_t counter = 0, seen = 0;
    for (int i = 0; i < 20; i++) {
        uint32_t partial[16] = {}, sum = 0, who = 99;
        assert_int_equal(
            start_kernel(last_adds, 16, 32, 0, nullptr, false, partial, &counter, &sum, &who), 0);
        assert_int_equal(sum, 136);
        assert_int_equal(counter, 0);
        seen |= 1u << who;
    }
    assert_true(__builtin_popcount(seen) > 4);
}

// --- what is undefined ends the process -----------------------------------------------------------

static __global__ void bad_some_lanes_shuffle() {
    if (threadIdx.x < 16)
        __shfl_sync(ALL, 1, 0);
    else
        __syncwarp();
}
static __global__ void bad_exited_lane() {
    if (threadIdx.x != 3)
        __syncwarp();
}
static __global__ void bad_half_at_barrier() {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncwarp();
}
static __global__ void bad_warp_missing_at_barrier() {
    if (threadIdx.x < 32)
        __syncthreads();
}
static __global__ void bad_other_mask() { __syncwarp(threadIdx.x < 16 ? 0xffffu : ALL); }
static __global__ void bad_misaligned_copy() {
    KVPOOL_SHARED smem[];
    static const float4 zero = {};
    cp_async_16(smem_address(smem) + 8, &zero, true);
}
static __global__ void bad_copy_outside() {
    KVPOOL_SHARED smem[];
    static const float4 zero = {};
    cp_async_16(smem_address(smem) + 64, &zero, true);
}
static __global__ void bad_ldmatrix_outside() {
    KVPOOL_SHARED smem[];
    uint32_t r[4];
    ldmatrix_x4(r, smem_address(smem) + threadIdx.x * 16);
}
static __global__ void bad_source_of_shuffle() {
    if (threadIdx.x < 8)
        __shfl_sync(0xffu, 1, 9);
}
static __global__ void bad_misaligned_load() {
    KVPOOL_SHARED smem[];
    __ldcg((const float4 *)(smem + 4));
}

static void check_dies(void (*kernel)(), const char *text) {
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(fds[1], 2);
        start_kernel(kernel, 1, 64, 64, nullptr, false);
        _exit(0);
    }
    close(fds[1]);
    static char said[65536];
    size_t n = 0;
    for (ssize_t got; n < sizeof said - 1 && (got = read(fds[0], said + n, sizeof said - 1 - n)) > 0;)
        n += (size_t)got;
    said[n] = 0;
    close(fds[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strstr(said, text) == nullptr)
        fail_msg("status %x, wanted \"%s\", said: %s", status, text, said);
}
static void test_undefined_ends_with_the_reason(void **) {
    check_dies(bad_some_lanes_shuffle, "lane  3 waits in __shfl_sync with mask ffffffff");
    check_dies(bad_some_lanes_shuffle, "lane 16 waits in __syncwarp with mask ffffffff");
    check_dies(bad_exited_lane, "lane  3 has exited");
    check_dies(bad_half_at_barrier, "lane  0 waits at barrier 0 of 64 threads");
    check_dies(bad_warp_missing_at_barrier, "deadlock at a barrier");
    check_dies(bad_other_mask, "divergent collective");
    check_dies(bad_misaligned_copy, "shared address 8 is not a multiple of 16");
    check_dies(bad_copy_outside, "shared address 64 is outside the block's 64 bytes");
    check_dies(bad_ldmatrix_outside, "ldmatrix: shared address 64 is outside");
    check_dies(bad_source_of_shuffle, "reads lane 9, which is not in mask");
    check_dies(bad_misaligned_load, "misaligned");
}
static void test_wrong_launches_are_refused(void **) {
    assert_int_equal(start_kernel(bad_exited_lane, 0, 32, 0, nullptr, false), 9);
    assert_int_equal(start_kernel(bad_exited_lane, 1, 1025, 0, nullptr, false), 9);
    assert_int_equal(start_kernel(bad_exited_lane, 1, 32, 228 * 1024, nullptr, false), 1);
}

int main() {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_numbers_round_to_nearest_even),
        cmocka_unit_test(test_copies_come_late),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_blocks_have_shared_memory_of_their_own),
        cmocka_unit_test(test_missing_barrier_is_seen),
        cmocka_unit_test(test_named_barriers),
        cmocka_unit_test(test_blocks_run_in_varying_order),
        cmocka_unit_test(test_undefined_ends_with_the_reason),
        cmocka_unit_test(test_wrong_launches_are_refused),
    };
    return cmocka_run_group_tests_name("emulator", tests, nullptr, nullptr);
}
