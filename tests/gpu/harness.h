// SPDX-License-Identifier: Apache-2.0
// harness.h: what tests of the CUDA kernels share: device memory, batches over a poisoned paged cache,
// the fp64 reference, comparison. The same tests run on a GPU (test_gpu_X) and on the emulator
// (test_gpu_X_emulated, at most a few thousand tokens a test: ask harness_emulated()).
//
// How to test an attention kernel:
//
//     static const struct attention_kernel decode = {
//         .name = "decode", .takes = cuda_decode_takes,
//         .plan_bytes = cuda_decode_plan_bytes, .workspace_bytes = cuda_decode_workspace_bytes,
//         .plan = cuda_decode_plan, .run = cuda_decode,
//     };
//     static void test_page_edges(void **state) {
//         struct attention_case c = attention_case("page edges", CUDA_BF16);
//         c.head_dim = 64;
//         case_add(&c, 1, 17); // q_len, kv_len
//         case_add(&c, 1, 0);
//         attention_check(&decode, &c);
//     }
//     int main(void) {
//         const struct CMUnitTest tests[] = {cmocka_unit_test(test_page_edges)};
//         return harness_main("decode", tests, sizeof tests / sizeof *tests);
//     }
//
// attention_check fails the test (with the case's name, shape and the worst element) unless: the
// results are those of the reference; rows of sequences outside the launch, gaps between rows, guard
// bytes around every buffer and everything that is read only are as they were; a second run in the
// used workspace gives the same bits. K and V of other sequences, tails of pages, and everything
// unwritten are 0xFF (NaN); unused table entries are 2147480000, also those of pages that lie left of
// the tile (of 64 tokens) in which a sequence's window begins: a kernel that visits them faults.
// The test's thread only (cmocka's assertions jump).
#ifndef KVPOOL_TESTS_GPU_HARNESS_H
#define KVPOOL_TESTS_GPU_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/launch.h"

// Runs the tests; returns main's exit status: 77 (skipped, with a line why) where there is no device.
// argv-less: KVPOOL_TEST_FILTER is a cmocka filter of tests ("*edges*").
int harness_main(const char *name, const struct CMUnitTest *tests, size_t n);
bool harness_emulated(void); // or $KVPOOL_TEST_SHORT is set: short tests, please
const struct cuda_device *harness_device(void);

// --- random numbers: the same everywhere for one seed -------------------------------------------
struct harness_rng {
    uint64_t state;
};
uint64_t rng_next(struct harness_rng *r);
uint32_t rng_below(struct harness_rng *r, uint32_t n); // 0..n-1
double rng_normal(struct harness_rng *r);
void rng_shuffle(struct harness_rng *r, uint32_t *array, uint32_t n);

// --- elements: CUDA_FP16 ... CUDA_E4M3 ----------------------------------------------------------
size_t element_size(uint32_t dtype);
double element_load(uint32_t dtype, const void *array, size_t i);
void element_store(uint32_t dtype, void *array, size_t i, double x); // rounded to nearest even
float e4m3_load(uint8_t b);
uint8_t e4m3_store(float x); // nearest even, saturated to +-448, NaN stays

// --- device memory ------------------------------------------------------------------------------
// A buffer in device memory with guard bytes before and after, and its copy on the host. Filled with
// 0xff when made. All calls fail the test on an error. bytes 0: device is still a valid pointer.
struct buffer {
    void *device;
    unsigned char *host; // the test fills or reads this one
    size_t bytes;
    const char *name; // for messages
    unsigned char *allocation;
};
struct buffer buffer_new(const char *name, size_t bytes);
void buffer_up(struct buffer *b);        // host -> device
void buffer_down(struct buffer *b);      // device -> host; checks the guards
void buffer_unchanged(struct buffer *b); // fails unless device == host; checks the guards
void buffer_free(struct buffer *b);
void device_sync(void); // fails the test on an error of the device

// --- cases --------------------------------------------------------------------------------------
enum { CASE_MAX_SEQUENCES = 1200 };
enum case_layout {
    CASE_HND,      // a page is [2][kv_heads][page_size][head_dim]
    CASE_NHD,      // a page is [2][page_size][kv_heads][head_dim]
    CASE_SEPARATE, // K and V pools of their own, HND
    CASE_STRIDED,  // NHD with gaps between tokens and pages
};
enum case_scales { CASE_SCALES_NONE, CASE_SCALES_SCALAR, CASE_SCALES_HEADS }; // of CUDA_E4M3
enum case_tables {
    CASE_ROWS, // rows of a table, in random order
    CASE_FLAT, // kv_indptr and kv_indices: row_entries 1
};

struct attention_case {
    const char *name;
    uint32_t dtype, kv_dtype; // kv_dtype: dtype or CUDA_E4M3
    uint32_t qo_heads, kv_heads, head_dim, page_size;
    enum case_layout layout;
    enum case_tables tables;
    enum case_scales scales;
    bool causal, lse, sinks;
    bool batch_invariant, after_previous;
    bool indexed;      // launched: a shuffled half of the sequences, by index
    bool strided;      // q, out and lse have gaps between heads and tokens
    bool loose_bounds; // batch.nnz and max_q_len are upper bounds, not exact
    float sm_scale;    // 0: 1/sqrt(head_dim)
    float soft_cap;    // 0: none
    int32_t window_left;
    uint32_t max_ctas;
    float q_times; // queries are N(0, q_times^2); 0: 1. Large: softmax is nearly one-hot
    uint64_t seed;
    uint32_t n;
    uint32_t q_len[CASE_MAX_SEQUENCES], kv_len[CASE_MAX_SEQUENCES];
};
// 8 query heads over 2 key heads of 128, pages of 16, causal, lse, no window, seed 1.
struct attention_case attention_case(const char *name, uint32_t dtype);
void case_add(struct attention_case *c, uint32_t q_len, uint32_t kv_len);

struct attention_kernel {
    const char *name;
    bool (*takes)(const struct cuda_attention *a); // may be NULL: everything
    // NULL: no plan / no workspace.
    size_t (*plan_bytes)(const struct cuda_device *d, const struct cuda_attention *a);
    size_t (*workspace_bytes)(const struct cuda_device *d, const struct cuda_attention *a);
    int (*plan)(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
    int (*run)(const struct cuda_device *d, const struct cuda_attention *a, void *stream);
    // Leading bytes of a workspace that are zeros between launches; the rest is filled with 0xff. NULL: all of it is
    // zeroed, and may be anything later.
    size_t (*zeroed_bytes)(const struct cuda_device *d, const struct cuda_attention *a);
};
void attention_check(const struct attention_kernel *k, const struct attention_case *c);

// --- in steps, for what attention_check does not do ------------------------------------------------
// A case in device memory, with `attention` filled in. plan and workspace are made by attention_plan.
struct attention_setup {
    const struct attention_case *c;
    struct cuda_attention attention;
    struct buffer k, v; // v: CASE_SEPARATE only
    struct buffer q, out, lse, table, rows, kv_len, qo_indptr, index, sinks, k_scales, v_scales;
    struct buffer plan, workspace;
    uint32_t *launched, launched_n; // sequences of the launch
    double *keys, *values;          // what the cache holds, [sum of kv_len][kv_heads][head_dim]
    size_t *kv_first;               // [n]: where sequence i begins there, tokens
};
struct attention_setup *attention_setup(const struct attention_case *c);
void attention_plan(struct attention_setup *s, const struct attention_kernel *k);
void attention_run(struct attention_setup *s, const struct attention_kernel *k); // and waits
// out and lse become 0xff again, on the device.
void attention_clear(struct attention_setup *s);
// Fetches out and lse, compares with the reference; checks that the rest is as it was.
void attention_compare(struct attention_setup *s, const struct attention_kernel *k);
void attention_free(struct attention_setup *s);

// The reference for row (query j of sequence i, query head h): what attention_compare compares with.
// out has head_dim doubles.
void attention_reference(const struct attention_setup *s, uint32_t i, double *out, double *lse);

// Byte offset of element d of head h of token t of page p in the buffer of K (value false) or V (in
// CASE_SEPARATE: of its own buffer).
size_t kv_element(const struct cuda_kv *kv, bool value, uint64_t page, uint32_t h, uint32_t t,
                  uint32_t d);

#endif
