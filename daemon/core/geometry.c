// SPDX-License-Identifier: Apache-2.0
// geometry.c: which pool configurations exist. Pure function.
#include "daemon/core/geometry.h"

#include <string.h>

static int out_of_range(struct err *err, const char *field, uint32_t value, uint32_t max) {
    return err_set(err, KVPOOL_E_INVAL, "%s %u is outside 1..%u", field, value, max);
}

int geometry_check_name(const char name[CORE_NAME_SIZE], struct err *err) {
    size_t len = strnlen(name, CORE_NAME_SIZE);
    if (len == 0 || len == CORE_NAME_SIZE) {
        return err_set(err, KVPOOL_E_INVAL, "name must have 1..%d bytes", CORE_NAME_SIZE - 1);
    }
    for (size_t i = 0; i < len; i++) {
        char b = name[i];
        bool ok = (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || (b >= '0' && b <= '9') ||
                  b == '_' || b == '.' || b == '-';
        if (!ok) {
            return err_set(err, KVPOOL_E_INVAL, "name has byte 0x%02x, allowed are [A-Za-z0-9_.-]",
                           (unsigned)(unsigned char)b);
        }
    }
    return 0;
}

// K and V of the whole pool must be a size that a file can have.
static bool bytes_fit(const struct core_pool_config *g) {
    uint32_t stored = g->kv_dtype != 0 ? g->kv_dtype : g->dtype;
    uint64_t element = stored == KVPOOL_FP32 ? 4 : stored == KVPOOL_FP8_E4M3 ? 1 : 2;
    uint64_t page = 2 * element * g->layers * g->kv_heads * g->page_size * g->head_dim;
    return page <= (uint64_t)INT64_MAX / g->num_pages; // page < 2^38 within the limits
}

int core_pool_config_check(struct core_pool_config *config, struct err *err) {
    struct core_pool_config g = *config;
    int rc = geometry_check_name(g.name, err);
    if (rc != 0) {
        return rc;
    }
    if (g.layers < 1 || g.layers > KVPOOL_MAX_LAYERS) {
        return out_of_range(err, "layers", g.layers, KVPOOL_MAX_LAYERS);
    }
    if (g.kv_heads < 1 || g.kv_heads > KVPOOL_MAX_KV_HEADS) {
        return out_of_range(err, "kv_heads", g.kv_heads, KVPOOL_MAX_KV_HEADS);
    }
    if (g.head_dim < 8 || g.head_dim > KVPOOL_MAX_HEAD_DIM || g.head_dim % 8 != 0) {
        return err_set(err, KVPOOL_E_INVAL, "head_dim %u is not a multiple of 8 (8..%d)",
                       g.head_dim, KVPOOL_MAX_HEAD_DIM);
    }
    if (g.page_size < KVPOOL_MIN_PAGE_SIZE || g.page_size > KVPOOL_MAX_PAGE_SIZE ||
        (g.page_size & (g.page_size - 1)) != 0) {
        return err_set(err, KVPOOL_E_INVAL, "page_size %u is not a power of two (%d..%d)",
                       g.page_size, KVPOOL_MIN_PAGE_SIZE, KVPOOL_MAX_PAGE_SIZE);
    }
    if (g.dtype != KVPOOL_FP16 && g.dtype != KVPOOL_BF16 && g.dtype != KVPOOL_FP32) {
        return err_set(err, KVPOOL_E_INVAL, "dtype %u is none of fp16 (%d), bf16 (%d), fp32 (%d)",
                       g.dtype, KVPOOL_FP16, KVPOOL_BF16, KVPOOL_FP32);
    }
    if (g.kv_dtype == g.dtype) {
        g.kv_dtype = 0;
    }
    if (g.kv_dtype != 0 && g.kv_dtype != KVPOOL_FP8_E4M3) {
        return err_set(err, KVPOOL_E_INVAL, "kv_dtype %u is neither dtype (0) nor fp8_e4m3 (%d)",
                       g.kv_dtype, KVPOOL_FP8_E4M3);
    }
    if (g.export == 0) {
        g.export = KVPOOL_EXPORT_FD;
    }
    if (g.export != KVPOOL_EXPORT_FD && g.export != KVPOOL_EXPORT_IPC) {
        return err_set(err, KVPOOL_E_INVAL, "export %u is none of fd (%d), ipc (%d)", g.export,
                       KVPOOL_EXPORT_FD, KVPOOL_EXPORT_IPC);
    }
    if (g.num_pages < 1 || g.num_pages > GEOMETRY_MAX_PAGES) {
        return out_of_range(err, "num_pages", g.num_pages, GEOMETRY_MAX_PAGES);
    }
    if (!bytes_fit(&g)) {
        return err_set(err, KVPOOL_E_INVAL, "num_pages %u makes the pool larger than 2^63 bytes",
                       g.num_pages);
    }
    if (g.policy >= CORE_POLICIES) {
        return err_set(err, KVPOOL_E_INVAL, "policy %u is none of lru (%d), s3fifo (%d)", g.policy,
                       CORE_LRU, CORE_S3FIFO);
    }
    if (g.max_seqs == 0) {
        g.max_seqs = GEOMETRY_DEFAULT_SEQS;
    }
    if (g.max_seqs > GEOMETRY_MAX_SEQS) {
        return out_of_range(err, "max_seqs", g.max_seqs, GEOMETRY_MAX_SEQS);
    }
    if (g.max_seq_len == 0) {
        uint64_t all = (uint64_t)g.num_pages * g.page_size;
        g.max_seq_len = all < CORE_MAX_TOKENS ? (uint32_t)all : CORE_MAX_TOKENS;
    }
    if (g.max_seq_len > CORE_MAX_TOKENS) {
        return out_of_range(err, "max_seq_len", g.max_seq_len, CORE_MAX_TOKENS);
    }
    memset(g.name + strlen(g.name), 0, sizeof g.name - strlen(g.name));
    *config = g;
    return 0;
}
