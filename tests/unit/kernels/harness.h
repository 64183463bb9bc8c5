// SPDX-License-Identifier: Apache-2.0
// harness.h: what the tests of the kernels share: random numbers, backends through the vtable, and
// an attention case that is built, run and compared with the reference.
//
// KVPOOL_TEST_BACKEND names the backend (default cpu), KVPOOL_TEST_DEVICE its device (default 0),
// KVPOOL_SEED the seed of the random cases. On the cpu backend every kernel that this CPU can run is
// tested. KVPOOL_TEST_SHORT asks for few and short cases: a kernel on the emulator, or under a
// sanitizer, is a thousand times slower.
#ifndef KVPOOL_TESTS_HARNESS_H
#define KVPOOL_TESTS_HARNESS_H

#include "kernels/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// splitmix64
uint64_t random_bits(uint64_t *state);
uint32_t random_below(uint64_t *state, uint32_t n);
double random_normal(uint64_t *state);
void random_permutation(uint64_t *state, uint32_t *ret, uint32_t n);
uint64_t seed_from_env(uint64_t otherwise); // prints it

bool harness_short(void); // KVPOOL_TEST_SHORT is set
const struct backend_ops *harness_ops(void);
// Whether the backend's device is there; says so where it is not: main then returns 77 (skipped).
bool harness_has_device(void);
// A backend of `threads` threads with the kernel `isa` (NULL: the default); NULL when this CPU has
// not got the kernel. Fails the test on other errors.
struct backend *harness_open(const char *isa, uint32_t threads);
enum { HARNESS_MAX_ISAS = 4 };
extern const char *const harness_isas[HARNESS_MAX_ISAS];
// Runs ops on a pool and waits. Fails the test on an error.
void harness_run(struct backend *b, struct backend_pool *pool, const struct backend_op *ops,
                 uint32_t n);
// The beginning of one plane, with nothing in flight.
void harness_pool_read(struct backend *b, const struct backend_pool *pool, uint32_t layer, void *to,
                       size_t bytes);
void harness_pool_write(struct backend *b, struct backend_pool *pool, uint32_t layer,
                        const void *from, size_t bytes);
struct backend_mem *harness_alloc(struct backend *b, size_t bytes);

enum { CASE_MAX_SEQUENCES = 40 };

struct attention_case {
    const char *name;
    kvpool_dtype dtype;
    kvpool_dtype kv_dtype; // of the planes; 0: dtype
    uint32_t qo_heads, kv_heads, head_dim, page_size;
    uint32_t n;
    uint32_t q_len[CASE_MAX_SEQUENCES], kv_len[CASE_MAX_SEQUENCES];
    bool causal;
    int32_t window_left;
    float soft_cap;
    float sm_scale;       // 0: 1/sqrt(head_dim)
    uint32_t extra_heads; // unused heads between a tensor's tokens (a fused qkv tensor)
    uint32_t extra_dims;  // unused elements between heads, a multiple of 1
    bool no_lse;
    bool ones;  // V is 1 everywhere
    bool codes; // V goes through all e4m3 values, NaN included, along each token's elements
    float k_scale, v_scale; // of fp8 planes; 0: 1
    bool head_scales;       // each key head has its own; k_scale and v_scale must then not matter
    bool sinks;             // of either sign, about as large as a logit
    bool batch_invariant;
    uint32_t cut;      // attention of each sequence in parts of so many queries; 0: whole
    uint32_t nan_from; // K and V of positions from here on are NaN; 0: none
    uint64_t seed;
};

// The data of a case: K, V and q rounded to the dtype, what pages then stand for, what the reference
// makes of that.
struct attention_data {
    struct attention_case c;
    uint32_t tokens_q, tokens_kv; // sums
    double *k, *v;                // [tokens_kv][kv_heads][head_dim], as given
    double *k_kept, *v_kept;      // the same, as kept in pages of kv_dtype
    float *scales;                // [2][kv_heads]
    float *sinks;                 // [qo_heads]
    double *q;                    // [tokens_q][qo_heads][head_dim]
    double *out, *lse;            // expected
};
// The same with at most about `limit` keys a sequence.
struct attention_case attention_shorter(const struct attention_case *c, uint32_t limit);
struct attention_data *attention_data_new(const struct attention_case *c);
void attention_data_free(struct attention_data *d);

// Runs the sequences `first .. first+n` of the data on a backend: a pool three times too big, pages
// in random order, all else poisoned with NaN. Checks the guard bytes around out and lse. Returns
// out (elements of the dtype, dense) followed by lse; free() it.
unsigned char *attention_run(struct backend *b, const struct attention_data *d, uint32_t first,
                             uint32_t n, uint64_t page_seed, size_t *ret_bytes);

// Compares with the reference, within the dtype's tolerance. Fails the test with a message.
void attention_compare(const struct attention_data *d, const unsigned char *result,
                       const char *what);

// All of it: on every kernel of the CPU. Where tests are to be short: one case in twelve and the first of
// each name, with at most about 400 keys a sequence.
void attention_check(struct backend *const *backends, const struct attention_case *c);

#endif
