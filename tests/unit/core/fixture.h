// SPDX-License-Identifier: Apache-2.0
// fixture.h: a core over a heap block for the tests of core, and short ways to fill it.
#ifndef KVPOOL_TESTS_UNIT_CORE_FIXTURE_H
#define KVPOOL_TESTS_UNIT_CORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/core.h"

struct fixture {
    struct core_limits limits;
    void *block;
    size_t size;
    struct core *core;
    uint64_t session, other; // two open sessions
    uint64_t pool;           // "p": 2 layers, page_size 8, 16 pages, 6 sequences of up to 96 tokens
    struct core_effects effects;
    struct core_step_info info;
    struct err err;
};

extern const uint8_t fixture_secret[CORE_SECRET_SIZE];
#define FIXTURE_EPOCH 77u
#define FIXTURE_PAGES 16u

// A zeroed block of n bytes; free() it.
void *fixture_block(size_t n);

struct core_pool_config fixture_config(const char *name);

int fixture_setup(void **state);
int fixture_teardown(void **state); // checks core once more

// One sequence of `session` in the pool, with `tokens` committed tokens.
uint64_t fixture_seq(struct fixture *f, uint64_t session, uint32_t tokens);

// begin of a batch of one, marking and commit of all layers.
int fixture_begin(struct fixture *f, uint64_t step, uint64_t seq, uint32_t tokens);
void fixture_mark(struct fixture *f, uint64_t session, uint64_t step);
void fixture_append(struct fixture *f, uint64_t session, uint64_t seq, uint32_t tokens);

uint32_t fixture_free_pages(const struct fixture *f);
struct core_seq_info fixture_stat(const struct fixture *f, uint64_t seq);

// core_check and core_rebuild_compare, with the message on failure.
void fixture_check(const struct fixture *f);

// Asserts that a call failed with `status`, filled f->err with it, and that its text has `part`.
#define assert_fails(f, status, part, call) \
    fixture_fails((f), (call), (status), (part), __FILE__, __LINE__)
void fixture_fails(struct fixture *f, int got, int status, const char *part, const char *file,
                   int line);
#define assert_ok(f, call) fixture_ok((f), (call), __FILE__, __LINE__)
void fixture_ok(struct fixture *f, int got, const char *file, int line);

// The block's bytes, to compare before and after an operation that must change nothing.
void *fixture_snapshot(const struct fixture *f);
void fixture_unchanged(const struct fixture *f, void *snapshot); // frees it

#endif
