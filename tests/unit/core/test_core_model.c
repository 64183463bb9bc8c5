// SPDX-License-Identifier: Apache-2.0
// Core against a naive model (model.h) under random operations, valid and invalid. Every result,
// status, count and event must be the model's, every sequence must read its own tokens, and core_check
// must hold: after every operation in a small configuration, now and then in others.
//
//   KVPOOL_SEED       seed of the random numbers (printed; default: fixed)
//   KVPOOL_MODEL_OPS  operations in the small configuration (default 1,000,000, under
//                     AddressSanitizer 100,000, under ThreadSanitizer 5,000); the others have a half
//                     and a fifth of them
#include "model_run.h"

#include <stdlib.h>

#if defined(__SANITIZE_THREAD__) // there is one thread
#define DEFAULT_OPS 20000
#elif defined(__SANITIZE_ADDRESS__)
#define DEFAULT_OPS 100000
#else
#define DEFAULT_OPS 1000000
#endif

static uint64_t ops_wanted(void) {
    const char *env = getenv("KVPOOL_MODEL_OPS");
    return env != NULL ? strtoull(env, NULL, 0) : DEFAULT_OPS;
}

static void small_configuration_checked_after_every_operation(void **state) {
    (void)state;
    static const struct scale scale = {
        RUN_SMALL,
        .check_every = 1,
        .verify_every = 1,
        .attach_every = 500,
    };
    run_model(&scale, ops_wanted(), NULL);
}

// A few long sequences in few pages: whatever is taken was evicted just before.
static void tight_configuration_checked_often(void **state) {
    (void)state;
    static const struct scale scale = {
        .limits = {.max_pools = 2,
                   .max_sessions = 2,
                   .max_seqs = 14,
                   .max_steps = 4,
                   .max_session_steps = 3,
                   .max_batch = 4,
                   .max_table_entries = 300,
                   .max_pages = 70,
                   .max_page_tokens = 600,
                   .max_pins = 2},
        .pools = {{RUN_GEOMETRY("tight", 1, 8), .num_pages = 40, .max_seqs = 7, .max_seq_len = 150},
                  {RUN_GEOMETRY("other", 1, 8), .num_pages = 30, .max_seqs = 7, .max_seq_len = 150,
                   .policy = CORE_S3FIFO}},
        .check_every = 3,
        .verify_every = 2,
        .attach_every = 400,
    };
    run_model(&scale, ops_wanted() / 2, NULL);
}

static void larger_configuration_checked_now_and_then(void **state) {
    (void)state;
    static const struct scale scale = {
        .limits = {.max_pools = 3,
                   .max_sessions = 12,
                   .max_seqs = 200,
                   .max_steps = 30,
                   .max_session_steps = 8,
                   .max_batch = 40,
                   .max_table_entries = 30000,
                   .max_pages = 600,
                   .max_page_tokens = 7000,
                   .max_pins = 12},
        .pools = {{RUN_GEOMETRY("large", 4, 8), .num_pages = 500, .max_seqs = 190,
                   .max_seq_len = 700},
                  {RUN_GEOMETRY("other", 1, 32), .num_pages = 70, .max_seqs = 60,
                   .max_seq_len = 640, .policy = CORE_S3FIFO}},
        .check_every = 50,
        .verify_every = 20,
        .attach_every = 2000,
    };
    run_model(&scale, ops_wanted() / 5, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_configuration_checked_after_every_operation),
        cmocka_unit_test(tight_configuration_checked_often),
        cmocka_unit_test(larger_configuration_checked_now_and_then),
    };
    return cmocka_run_group_tests_name("core model", tests, NULL, NULL);
}
