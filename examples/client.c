// SPDX-License-Identifier: Apache-2.0
// client.c: the C client of README.md, word for word below this comment (a test compares them):
// caches one token of one layer and attends to it. With a single key the softmax is 1, so what
// comes back is v. Kept as dense as README shows it.
// Thread: main only.
// clang-format off

#include <kvpool/kvpool.h>
#include <err.h>
#include <stdio.h>
static void ok(kvpool_status s) { if (s != KVPOOL_OK) errx(1, "%s", kvpool_strerror(s)); }
int main(void) {
    kvpool_client *client; kvpool_pool pool; kvpool_seq seq; kvpool_step step; kvpool_region *mem;
    ok(kvpool_connect(NULL, &client));              // to $KVPOOL_DIR, else /run/kvpool/0
    kvpool_pool_config config = {.size = sizeof config, .name = "hello", .layers = 1, .kv_heads = 1,
        .head_dim = 8, .page_size = 16, .dtype = KVPOOL_FP32, .num_pages = 64};
    ok(kvpool_pool_create(client, &config, &pool)); // 1 layer, 1 head of 8; 64 pages of 16 tokens
    ok(kvpool_seq_create(client, pool, 1, &seq));
    ok(kvpool_region_create(client, 128, &mem));    // shared memory: q, k, v, out of 32 bytes each
    float *x = kvpool_region_data(mem); for (int i = 0; i < 24; i++) x[i] = (float)i;
    kvpool_step_args batch = {.size = sizeof batch, .pool = pool, .n = 1, .seqs = &seq,
        .new_tokens = (uint32_t[]){1}};
    ok(kvpool_step_begin(client, &batch, &step, NULL)); // a step with one new token
    kvpool_attn_args attn = {.size = sizeof attn, .step = step, .qo_heads = 1, .window_left = -1,
        .q = {mem, 0, 0, 0}, .k = {mem, 32, 0, 0}, .v = {mem, 64, 0, 0}, .out = {mem, 96, 0, 0}};
    ok(kvpool_decode(client, &attn));               // append k and v, attend, fill out
    ok(kvpool_step_commit(client, step));           // the token is part of the sequence now
    printf("out[7] = %g\n", (double)x[31]); kvpool_region_free(mem); kvpool_close(client); // 23
}
