// SPDX-License-Identifier: Apache-2.0
// test_device.c: the road of a worker that uses fp8 pages, scales, sinks and regions of the daemon's
// device, from the command to the numbers. The backend is the CPU's: its device memory is the host's.
#include "tests/system/harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, KV_HEADS = 2, DIM = 16, PAGE = 8, HEADS = 4, TOKENS = 21 };
enum { K_AT = 0, V_AT = 16384, Q_AT = 32768, OUT_AT = 49152, LSE_AT = 57344, SCALES_AT = 60000 };
enum { SINKS_AT = 60128, BYTES = 65536 };

static const float k_scales[KV_HEADS] = {0.25F, 0.5F}, v_scales[KV_HEADS] = {2, 0.125F};

// Numbers that e4m3 has, times the head's scale: what is read back is what was written.
static float exact(unsigned token, unsigned layer, unsigned head, unsigned i, const float *scales) {
    static const float values[] = {0, 0.5F, -0.75F, 1, -1.125F, 1.75F, -2, 3.5F};
    return values[(token * 7 + layer * 3 + head * 5 + i * 11) % 8] * scales[head];
}

static float query(unsigned token, unsigned head, unsigned i) {
    return (float)((token + head * 3 + i * 5) % 9) / 8 - 0.5F;
}

static float *at(kvpool_region *region, size_t offset) {
    return (float *)(void *)((char *)kvpool_region_data(region) + offset);
}

// Attention of the last query over n tokens, in double.
static void reference(unsigned n, unsigned layer, unsigned head, double sink, double *ret_out,
                      double *ret_lse) {
    double sum = exp(sink), out[DIM] = {0};
    unsigned kv = head / (HEADS / KV_HEADS);
    for (unsigned t = 0; t < n; t++) {
        double logit = 0;
        for (unsigned i = 0; i < DIM; i++)
            logit += (double)query(n - 1, head, i) * (double)exact(t, layer, kv, i, k_scales);
        double weight = exp(logit / sqrt(DIM));
        sum += weight;
        for (unsigned i = 0; i < DIM; i++)
            out[i] += weight * (double)exact(t, layer, kv, i, v_scales);
    }
    for (unsigned i = 0; i < DIM; i++)
        ret_out[i] = out[i] / sum;
    *ret_lse = log(sum);
}

static void check_row(kvpool_region *region, unsigned row, unsigned n, unsigned layer) {
    for (unsigned h = 0; h < HEADS; h++) {
        double out[DIM], lse;
        reference(n, layer, h, (double)at(region, SINKS_AT)[h], out, &lse);
        const float *got = at(region, OUT_AT) + ((size_t)row * HEADS + h) * DIM;
        for (unsigned i = 0; i < DIM; i++)
            if (fabs((double)got[i] - out[i]) > 1e-4)
                fail_msg("row %u head %u: %g, not %g", row, h, (double)got[i], out[i]);
        assert_true(fabs((double)at(region, LSE_AT)[row * HEADS + h] - lse) < 1e-4);
    }
}

static void write_inputs(kvpool_region *region, unsigned first, unsigned n, unsigned layer) {
    for (unsigned t = 0; t < n; t++) {
        for (unsigned h = 0; h < KV_HEADS; h++)
            for (unsigned i = 0; i < DIM; i++) {
                at(region, K_AT)[(t * KV_HEADS + h) * DIM + i] =
                    exact(first + t, layer, h, i, k_scales);
                at(region, V_AT)[(t * KV_HEADS + h) * DIM + i] =
                    exact(first + t, layer, h, i, v_scales);
            }
        for (unsigned h = 0; h < HEADS; h++)
            for (unsigned i = 0; i < DIM; i++)
                at(region, Q_AT)[(t * HEADS + h) * DIM + i] = query(first + t, h, i);
    }
}

static kvpool_attn_args attention(kvpool_region *region, kvpool_step step) {
    kvpool_attn_args a = KVPOOL_ATTN_ARGS_INIT;
    a.step = step;
    a.qo_heads = HEADS;
    a.q = (kvpool_tensor){.region = region, .offset = Q_AT};
    a.out = (kvpool_tensor){.region = region, .offset = OUT_AT};
    a.lse = (kvpool_tensor){.region = region, .offset = LSE_AT};
    a.kv_scales = (kvpool_tensor){.region = region, .offset = SCALES_AT};
    a.sinks = (kvpool_tensor){.region = region, .offset = SINKS_AT};
    return a;
}

// Appends n tokens to the sequence, checks every row of every layer.
static void forward(kvpool_client *client, kvpool_pool pool, kvpool_region *region, kvpool_seq seq,
                    unsigned length, unsigned n) {
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_step step;
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &n;
    expect_ok(client, kvpool_step_begin(client, &begin, &step, NULL));
    for (unsigned layer = 0; layer < LAYERS; layer++) {
        kvpool_attn_args a = attention(region, step);
        a.layer = layer;
        a.k = (kvpool_tensor){.region = region, .offset = K_AT};
        a.v = (kvpool_tensor){.region = region, .offset = V_AT};
        write_inputs(region, length, n, layer);
        expect_ok(client, n <= 8 ? kvpool_decode(client, &a) : kvpool_prefill(client, &a));
        for (unsigned t = 0; t < n; t++)
            check_row(region, t, length + t + 1, layer);
    }
    expect_ok(client, kvpool_step_commit(client, step));
}

static void fp8_pages_with_scales_and_sinks_give_the_right_numbers(void **state) {
    (void)state;
    char text[4096], dir[160];
    snprintf(dir, sizeof dir, "%s", kvd.dir);
    const char *const make[] = {program_path("kvpool"),
                                "--dir",
                                dir,
                                "pool",
                                "create",
                                "fp8",
                                "--layers",
                                "2",
                                "--kv-heads",
                                "2",
                                "--head-dim",
                                "16",
                                "--page-size",
                                "8",
                                "--dtype",
                                "fp32",
                                "--kv-dtype",
                                "fp8_e4m3",
                                "--memory",
                                "64K",
                                "--max-seqs",
                                "8",
                                NULL};
    assert_int_equal(program_run(text, sizeof text, 20000, make), 0);
    assert_non_null(strstr(text, "fp32/fp8_e4m3"));
    kvpool_client *client = client_open(&kvd);
    kvpool_pool pool;
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_pool_open(client, "fp8", &pool));
    expect_ok(client, kvpool_pool_stat(client, pool, &info));
    assert_int_equal(info.kv_dtype, KVPOOL_FP8_E4M3);
    assert_int_equal(info.export_as, KVPOOL_EXPORT_FD);
    assert_int_equal(info.num_pages, 64); // 1,024 bytes each
    assert_int_equal(info.bytes, 65536);

    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    kvpool_region *region;
    args.bytes = BYTES;
    expect_ok(client, kvpool_region_alloc(client, &args, &region));
    assert_non_null(kvpool_region_data(region));
    memcpy(at(region, SCALES_AT), k_scales, sizeof k_scales);
    memcpy(at(region, SCALES_AT) + KV_HEADS, v_scales, sizeof v_scales);
    for (unsigned h = 0; h < HEADS; h++)
        at(region, SINKS_AT)[h] = (float)h - 1.5F;
    kvpool_seq seqs[2];
    expect_ok(client, kvpool_seq_create(client, pool, 2, seqs));
    forward(client, pool, region, seqs[0], 0, TOKENS);
    for (unsigned i = 0; i < 5; i++)
        forward(client, pool, region, seqs[0], TOKENS + i, 1);
    forward(client, pool, region, seqs[1], 0, 3);

    // Alone and beside another: the same bits.
    kvpool_attn_args alone = attention(region, 0);
    uint32_t q_len[2] = {1, 1};
    float bits[HEADS * DIM];
    alone.pool = pool;
    alone.n = 1;
    alone.seqs = seqs;
    alone.q_len = q_len;
    alone.flags |= KVPOOL_ATTN_BATCH_INVARIANT;
    expect_ok(client, kvpool_decode(client, &alone));
    memcpy(bits, at(region, OUT_AT), sizeof bits);
    alone.n = 2;
    expect_ok(client, kvpool_decode(client, &alone));
    assert_memory_equal(bits, at(region, OUT_AT), sizeof bits);
    kvpool_region_free(region);
    kvpool_close(client);
}

static void what_the_cpu_backend_has_not_is_said(void **state) {
    (void)state;
    kvpool_client *client = client_open(&kvd);
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    kvpool_region *region = NULL;
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool pool = 0;
    args.bytes = 1;
    args.export_as = KVPOOL_EXPORT_IPC;
    expect_status(client, KVPOOL_E_UNSUPPORTED, kvpool_region_alloc(client, &args, &region));
    config.name = "ipc";
    config.layers = config.kv_heads = config.num_pages = 1;
    config.head_dim = config.page_size = 8;
    config.dtype = KVPOOL_BF16;
    config.export_as = KVPOOL_EXPORT_IPC;
    expect_status(client, KVPOOL_E_UNSUPPORTED, kvpool_pool_create(client, &config, &pool));
    expect_status(client, KVPOOL_E_NOTFOUND, kvpool_pool_open(client, "ipc", &pool));
    kvpool_close(client);
}

static void doctor_says_how_regions_travel(void **state) {
    (void)state;
    char text[8192], dir[160];
    snprintf(dir, sizeof dir, "%s", kvd.dir);
    const char *const doctor[] = {program_path("kvpool"), "--dir", dir, "doctor", NULL};
    program_run(text, sizeof text, 20000, doctor);
    assert_non_null(strstr(text, "backend cpu computes in host memory"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_pages_with_scales_and_sinks_give_the_right_numbers),
        cmocka_unit_test(what_the_cpu_backend_has_not_is_said),
        cmocka_unit_test(doctor_says_how_regions_travel),
    };
    return cmocka_run_group_tests_name("device", tests, kvd_setup, kvd_teardown);
}
