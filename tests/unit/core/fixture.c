// SPDX-License-Identifier: Apache-2.0
// fixture.c: see fixture.h.
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const uint8_t fixture_secret[CORE_SECRET_SIZE] = {7, 7, 7};

void *fixture_block(size_t n) {
    void *block = aligned_alloc(4096, n);
    assert_non_null(block);
    memset(block, 0, n);
    return block;
}

struct core_pool_config fixture_config(const char *name) {
    struct core_pool_config config = {
        .layers = 2,
        .kv_heads = 2,
        .head_dim = 64,
        .page_size = 8,
        .dtype = KVPOOL_BF16,
        .num_pages = FIXTURE_PAGES,
        .max_seqs = 6,
        .max_seq_len = 96,
    };
    snprintf(config.name, sizeof config.name, "%s", name);
    return config;
}

int fixture_setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->limits = (struct core_limits){.max_pools = 3,
                                     .max_sessions = 3,
                                     .max_seqs = 10,
                                     .max_steps = 4,
                                     .max_session_steps = 3,
                                     .max_batch = 5,
                                     .max_table_entries = 256,
                                     .max_pages = 128,
                                     .max_page_tokens = 2048,
                                     .max_pins = 4};
    f->size = core_block_size(&f->limits);
    f->block = fixture_block(f->size);
    assert_int_equal(core_create(f->block, f->size, &f->limits, FIXTURE_EPOCH, fixture_secret,
                                 &f->core, &f->err),
                     0);
    uint8_t token[CORE_TOKEN_SIZE] = {1, 2, 3};
    assert_int_equal(core_session_open(f->core, 101, 1, "one", token, &f->session, &f->err), 0);
    assert_int_equal(core_session_open(f->core, 102, 1, "two", token, &f->other, &f->err), 0);
    struct core_pool_config config = fixture_config("p");
    bool created = false;
    assert_int_equal(core_pool_create(f->core, &config, &f->pool, &created, &f->err), 0);
    assert_true(created);
    *state = f;
    return 0;
}

int fixture_teardown(void **state) {
    struct fixture *f = *state;
    fixture_check(f);
    core_close(f->core);
    free(f->block);
    free(f);
    return 0;
}

uint64_t fixture_seq(struct fixture *f, uint64_t session, uint32_t tokens) {
    uint64_t seq = 0;
    assert_ok(f, core_seq_create(f->core, session, f->pool, 0, 1, &seq, &f->err));
    if (tokens > 0) {
        fixture_append(f, session, seq, tokens);
    }
    return seq;
}

int fixture_begin(struct fixture *f, uint64_t step, uint64_t seq, uint32_t tokens) {
    struct core_item item = {seq, tokens};
    return core_step_begin(f->core, f->session, step, f->pool, 1, &item, NULL, &f->info,
                           &f->effects, &f->err);
}

void fixture_mark(struct fixture *f, uint64_t session, uint64_t step) {
    assert_ok(f, core_step_mark(f->core, session, step, 0, true, &f->err));
    assert_ok(f, core_step_mark(f->core, session, step, 1, true, &f->err));
}

void fixture_append(struct fixture *f, uint64_t session, uint64_t seq, uint32_t tokens) {
    static uint64_t last_step = 1000000;
    uint64_t step = ++last_step;
    struct core_item item = {seq, tokens};
    assert_ok(f, core_step_begin(f->core, session, step, f->pool, 1, &item, NULL, &f->info,
                                 &f->effects, &f->err));
    fixture_mark(f, session, step);
    assert_ok(f, core_step_commit(f->core, session, step, &f->info, &f->effects, &f->err));
}

uint32_t fixture_free_pages(const struct fixture *f) {
    struct core_pool_info info;
    assert_int_equal(core_pool_stat(f->core, f->pool, &info, NULL), 0);
    return info.free_pages;
}

struct core_seq_info fixture_stat(const struct fixture *f, uint64_t seq) {
    struct core_seq_info info = {0};
    assert_int_equal(core_seq_stat(f->core, 0, seq, &info, NULL), 0);
    return info;
}

void fixture_check(const struct fixture *f) {
    struct err err = {0};
    if (core_check(f->core, &err) != 0 || core_rebuild_compare(f->core, &err) != 0) {
        fail_msg("core_check: %s", err.text);
    }
}

void fixture_fails(struct fixture *f, int got, int status, const char *part, const char *file,
                   int line) {
    if (got != status || f->err.status != status || strstr(f->err.text, part) == NULL) {
        print_error("%s: wanted %s with \"%s\", got %s, %s: \"%s\"\n", __func__,
                    kvpool_status_name((kvpool_status)status), part,
                    kvpool_status_name((kvpool_status)got),
                    kvpool_status_name((kvpool_status)f->err.status), f->err.text);
        _fail(file, line);
    }
    f->err = (struct err){0};
    fixture_check(f);
}

void fixture_ok(struct fixture *f, int got, const char *file, int line) {
    if (got != 0 || f->err.status != 0) {
        print_error("wanted success, got %s: \"%s\"\n", kvpool_status_name((kvpool_status)got),
                    f->err.text);
        _fail(file, line);
    }
}

void *fixture_snapshot(const struct fixture *f) {
    void *copy = malloc(f->size);
    assert_non_null(copy);
    memcpy(copy, f->block, f->size);
    return copy;
}

void fixture_unchanged(const struct fixture *f, void *snapshot) {
    assert_memory_equal(f->block, snapshot, f->size);
    free(snapshot);
}
