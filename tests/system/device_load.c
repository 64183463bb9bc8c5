// SPDX-License-Identifier: Apache-2.0
// device_load.c: see device_load.h.
#include "tests/system/device_load.h"

#include "kernels/reference.h"
#include "tests/system/harness.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define Q_ROW ((size_t)DEVICE_QO_HEADS * DEVICE_HEAD_DIM)
#define KV_ROW ((size_t)DEVICE_KV_HEADS * DEVICE_HEAD_DIM)

// Where the tensors are, from the place's offset on; those that are written have a gap on both sides.
enum {
    GAP = 256,
    K_AT = 0,
    V_AT = K_AT + DEVICE_MAX_NEW * DEVICE_KV_HEADS * DEVICE_HEAD_DIM * 2,
    Q_AT = V_AT + DEVICE_MAX_NEW * DEVICE_KV_HEADS * DEVICE_HEAD_DIM * 2,
    OUT_AT = Q_AT + DEVICE_MAX_NEW * DEVICE_QO_HEADS * DEVICE_HEAD_DIM * 2 + GAP,
    LSE_AT = OUT_AT + DEVICE_MAX_NEW * DEVICE_QO_HEADS * DEVICE_HEAD_DIM * 2 + GAP,
    END = LSE_AT + DEVICE_MAX_NEW * DEVICE_QO_HEADS * 4 + GAP,
    WRITTEN_AT = OUT_AT - GAP, // what a request may write lies in WRITTEN_AT + GAP .. END - GAP
};
_Static_assert((int)END <= (int)DEVICE_BYTES, "the tensors fit");

const char *const device_kind_names[] = {"fd", "ipc", "host", "own"};

struct device_load {
    kvpool_client *client;
    kvpool_pool pool;
    struct device_place in, out;
    kvpool_seq seqs[DEVICE_SEQS];
    uint32_t len[DEVICE_SEQS];
    unsigned seed, turn;
    unsigned char bytes[DEVICE_BYTES]; // of the place, as this process sees it
    double k[DEVICE_MAX_LEN][KV_ROW], v[DEVICE_MAX_LEN][KV_ROW], q[DEVICE_MAX_NEW][Q_ROW];
    double expected[DEVICE_MAX_NEW][Q_ROW], lse[DEVICE_MAX_NEW][DEVICE_QO_HEADS];
    double scratch[DEVICE_MAX_LEN];
};

static uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Element `at` of a token's q (what 0), k (1) or v (2) row: multiples of 1/32 in [-2, 2), which bf16 has.
static float value(const struct device_load *l, uint32_t seq, uint32_t token, uint32_t layer,
                   uint32_t what, size_t at) {
    uint64_t h = mix(mix((uint64_t)l->seed << 32 | seq << 16 | token) ^
                     ((uint64_t)layer << 32 | what << 24 | at));
    return (float)((int)(h >> 40) % 128 - 64) / 32;
}

static void put_bf16(unsigned char *at, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t half = (uint16_t)(bits >> 16);
    memcpy(at, &half, sizeof half);
}

static double get_bf16(const unsigned char *at) {
    uint16_t half;
    float x;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

kvpool_pool device_pool(kvpool_client *client, const char *name, uint32_t export_as) {
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_pool pool = 0;
    config.name = name;
    config.layers = DEVICE_LAYERS;
    config.kv_heads = DEVICE_KV_HEADS;
    config.head_dim = DEVICE_HEAD_DIM;
    config.page_size = 16;
    config.dtype = KVPOOL_BF16;
    config.num_pages = 256;
    config.export_as = export_as;
    expect_ok(client, kvpool_pool_create(client, &config, &pool));
    kvpool_pool_info info = {.size = sizeof info};
    expect_ok(client, kvpool_pool_stat(client, pool, &info));
    check(info.export_as == export_as);
    return pool;
}

struct device_place device_place_alloc(kvpool_client *client, enum device_kind kind) {
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    struct device_place place = {0};
    void *at = NULL;
    args.bytes = DEVICE_BYTES + 1000;
    args.export_as = kind == BY_IPC ? KVPOOL_EXPORT_IPC : KVPOOL_EXPORT_FD;
    if (kind == IN_HOST)
        expect_ok(client, kvpool_region_create(client, args.bytes, &place.region));
    else
        expect_ok(client, kvpool_region_alloc(client, &args, &place.region));
    expect_ok(client, kvpool_region_device_ptr(place.region, &at));
    place.at = (uintptr_t)at;
    return place;
}

struct device_place device_place_own(kvpool_client *client, gpu_ptr at, uint64_t bytes) {
    struct device_place place = {.at = at};
    void *same = NULL;
    expect_ok(client, kvpool_region_register(client, (void *)(uintptr_t)at, bytes, &place.region));
    check(kvpool_region_size(place.region) == bytes);
    check(kvpool_region_data(place.region) == NULL);
    expect_ok(client, kvpool_region_device_ptr(place.region, &same));
    check((uintptr_t)same == at);
    return place;
}

struct device_load *device_load_open(kvpool_client *client, kvpool_pool pool,
                                     const struct device_place *in, const struct device_place *out,
                                     unsigned seed) {
    struct device_load *l = calloc(1, sizeof *l);
    if (l == NULL)
        abort();
    l->client = client;
    l->pool = pool;
    l->in = *in;
    l->out = *out;
    l->seed = seed;
    expect_ok(client, kvpool_seq_create(client, pool, DEVICE_SEQS, l->seqs));
    return l;
}

void device_load_close(struct device_load *l) {
    expect_ok(l->client, kvpool_seq_free(l->client, DEVICE_SEQS, l->seqs));
    free(l);
}

void device_load_reset(struct device_load *l) {
    for (uint32_t i = 0; i < DEVICE_SEQS; i++) {
        expect_ok(l->client, kvpool_seq_truncate(l->client, l->seqs[i], 0));
        l->len[i] = 0;
    }
    l->seed += 1000003; // and other tokens
}

static kvpool_tensor tensor(const struct device_place *place, uint64_t at) {
    return (kvpool_tensor){.region = place->region, .offset = place->offset + at};
}

static kvpool_attn_args attention(const struct device_load *l, kvpool_step step, uint32_t layer) {
    kvpool_attn_args a = KVPOOL_ATTN_ARGS_INIT;
    a.step = step;
    a.layer = layer;
    a.qo_heads = DEVICE_QO_HEADS;
    a.k = tensor(&l->in, K_AT);
    a.v = tensor(&l->in, V_AT);
    a.q = tensor(&l->in, Q_AT);
    a.out = tensor(&l->out, OUT_AT);
    a.lse = tensor(&l->out, LSE_AT);
    return a;
}

// K, V and q of the new tokens of both sequences, one after the other.
static void write_inputs(struct device_load *l, uint32_t layer, const uint32_t *news) {
    uint32_t row = 0;
    for (uint32_t i = 0; i < DEVICE_SEQS; i++)
        for (uint32_t t = l->len[i]; t < l->len[i] + news[i]; t++, row++) {
            for (size_t e = 0; e < KV_ROW; e++) {
                put_bf16(l->bytes + K_AT + (row * KV_ROW + e) * 2, value(l, i, t, layer, 1, e));
                put_bf16(l->bytes + V_AT + (row * KV_ROW + e) * 2, value(l, i, t, layer, 2, e));
            }
            for (size_t e = 0; e < Q_ROW; e++)
                put_bf16(l->bytes + Q_AT + (row * Q_ROW + e) * 2, value(l, i, t, layer, 0, e));
        }
    gpu_put(l->in.at + l->in.offset, l->bytes, WRITTEN_AT);
    memset(l->bytes + WRITTEN_AT, 0xff, END - WRITTEN_AT);
    gpu_put(l->out.at + l->out.offset + WRITTEN_AT, l->bytes + WRITTEN_AT, END - WRITTEN_AT);
}

static void refer(struct device_load *l, uint32_t seq, uint32_t layer, uint32_t n) {
    const uint32_t kv_len = l->len[seq] + n;
    for (uint32_t t = 0; t < kv_len; t++)
        for (size_t e = 0; e < KV_ROW; e++) {
            l->k[t][e] = (double)value(l, seq, t, layer, 1, e);
            l->v[t][e] = (double)value(l, seq, t, layer, 2, e);
        }
    for (uint32_t j = 0; j < n; j++)
        for (size_t e = 0; e < Q_ROW; e++)
            l->q[j][e] = (double)value(l, seq, l->len[seq] + j, layer, 0, e);
    const struct reference_attention a = {
        .qo_heads = DEVICE_QO_HEADS,
        .kv_heads = DEVICE_KV_HEADS,
        .head_dim = DEVICE_HEAD_DIM,
        .q_len = n,
        .kv_len = kv_len,
        .causal = true,
        .window_left = -1,
        .sm_scale = 1 / sqrt(DEVICE_HEAD_DIM),
        .q = l->q[0],
        .k = l->k[0],
        .v = l->v[0],
        .out = l->expected[0],
        .lse = l->lse[0],
        .scratch = l->scratch,
    };
    reference_attend(&a);
}

static void compare(const struct device_load *l, uint32_t seq, uint32_t layer, uint32_t row,
                    uint32_t n) {
    for (uint32_t j = 0; j < n; j++) {
        for (size_t e = 0; e < Q_ROW; e++) {
            double got = get_bf16(l->bytes + OUT_AT + ((row + j) * Q_ROW + e) * 2);
            if (!(fabs(got - l->expected[j][e]) < 0.02)) {
                fprintf(stderr, "out %zu of layer %u token %u of sequence %u is %g, not %g\n", e,
                        layer, l->len[seq] + j, seq, got, l->expected[j][e]);
                check_at(false, "attention is right", __FILE__, __LINE__);
            }
        }
        for (uint32_t h = 0; h < DEVICE_QO_HEADS; h++) {
            float got;
            memcpy(&got, l->bytes + LSE_AT + ((size_t)(row + j) * DEVICE_QO_HEADS + h) * 4,
                   sizeof got);
            if (!(fabs((double)got - l->lse[j][h]) < 0.005)) {
                fprintf(stderr,
                        "lse of head %u of layer %u token %u of sequence %u is %g, not %g\n", h,
                        layer, l->len[seq] + j, seq, (double)got, l->lse[j][h]);
                check_at(false, "lse is right", __FILE__, __LINE__);
            }
        }
    }
}

static void check_untouched(const struct device_load *l, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        check(l->bytes[i] == 0xff);
}

static void check_outputs(struct device_load *l, uint32_t layer, const uint32_t *news) {
    uint32_t row = 0;
    gpu_get(l->bytes + WRITTEN_AT, l->out.at + l->out.offset + WRITTEN_AT, END - WRITTEN_AT);
    for (uint32_t i = 0; i < DEVICE_SEQS; i++) {
        refer(l, i, layer, news[i]);
        compare(l, i, layer, row, news[i]);
        row += news[i];
    }
    check_untouched(l, WRITTEN_AT, OUT_AT);
    check_untouched(l, OUT_AT + row * Q_ROW * 2, LSE_AT);
    check_untouched(l, LSE_AT + (size_t)row * DEVICE_QO_HEADS * 4, END);
}

void device_load_step(struct device_load *l, uint32_t first, uint32_t second) {
    const uint32_t news[DEVICE_SEQS] = {first, second};
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_step step;
    check(first + second <= DEVICE_MAX_NEW);
    check(l->len[0] + first <= DEVICE_MAX_LEN && l->len[1] + second <= DEVICE_MAX_LEN);
    begin.pool = l->pool;
    begin.n = DEVICE_SEQS;
    begin.seqs = l->seqs;
    begin.new_tokens = news;
    expect_ok(l->client, kvpool_step_begin(l->client, &begin, &step, NULL));
    for (uint32_t layer = 0; layer < DEVICE_LAYERS; layer++) {
        kvpool_attn_args a = attention(l, step, layer);
        write_inputs(l, layer, news);
        expect_ok(l->client, first <= 8 && second <= 8 ? kvpool_decode(l->client, &a)
                                                       : kvpool_prefill(l->client, &a));
        check_outputs(l, layer, news);
    }
    expect_ok(l->client, kvpool_step_commit(l->client, step));
    l->len[0] += first;
    l->len[1] += second;
}

void device_load_turns(struct device_load *l) {
    device_load_step(l, 37, 3);
    device_load_step(l, 1, 1);
    device_load_step(l, 20, 28);
    device_load_step(l, 1, 1);
    device_load_step(l, 5, 2);
    device_load_step(l, 1, 33);
}

void device_load_send(struct device_load *l) {
    const uint32_t news[DEVICE_SEQS] = {20, 1};
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_op *ops[DEVICE_LAYERS + 2];
    uint32_t n = 0;
    begin.pool = l->pool;
    begin.n = DEVICE_SEQS;
    begin.seqs = l->seqs;
    begin.new_tokens = news;
    begin.step = kvpool_step_id(l->client);
    kvpool_request request = {.size = sizeof request, .kind = KVPOOL_OP_BEGIN, .begin = &begin};
    expect_ok(l->client, kvpool_submit(l->client, &request, &ops[n++]));
    for (uint32_t layer = 0; layer < DEVICE_LAYERS; layer++) {
        const kvpool_attn_args a = attention(l, begin.step, layer);
        request = (kvpool_request){.size = sizeof request, .kind = KVPOOL_OP_PREFILL, .attn = &a};
        expect_ok(l->client, kvpool_submit(l->client, &request, &ops[n++]));
    }
    request = (kvpool_request){.size = sizeof request, .kind = KVPOOL_OP_ABORT, .step = begin.step};
    expect_ok(l->client, kvpool_submit(l->client, &request, &ops[n++]));
    for (uint32_t i = 0; i < n; i++)
        expect_ok(l->client, kvpool_wait(l->client, ops[i], UINT32_MAX));
}
