// SPDX-License-Identifier: Apache-2.0
// pool.h: pools, the pages of one KV geometry, which clients share. Conventions: kvpool.h.
#ifndef KVPOOL_POOL_H
#define KVPOOL_POOL_H

#include <kvpool/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kvpool_dtype {
    KVPOOL_FP16 = 1,
    KVPOOL_BF16 = 2,
    KVPOOL_FP32 = 3,
    KVPOOL_FP8_E4M3 = 4, // of a pool's pages only: see kv_dtype
} kvpool_dtype;

#define KVPOOL_MAX_LAYERS 512
#define KVPOOL_MAX_KV_HEADS 256
#define KVPOOL_MAX_HEAD_DIM 576
#define KVPOOL_MIN_PAGE_SIZE 8
#define KVPOOL_MAX_PAGE_SIZE 256
#define KVPOOL_MAX_QO_HEADS 4096
#define KVPOOL_NAME_MAX 31

typedef struct kvpool_pool_config {
    size_t size;
    const char *name;     // 1..31 bytes of [A-Za-z0-9_.-]; unique in the daemon
    uint32_t layers;      // 1..512
    uint32_t kv_heads;    // 1..256
    uint32_t head_dim;    // a multiple of 8 up to 576
    uint32_t page_size;   // tokens a page: a power of two, 8..256
    uint32_t dtype;       // kvpool_dtype, of K, V, q and out
    uint32_t num_pages;   // one page holds page_size tokens of K and V in every layer
    uint32_t max_seqs;    // 0: the daemon's default
    uint32_t max_seq_len; // tokens; 0: num_pages * page_size
    uint32_t kv_dtype;    // kvpool_dtype that the pages hold K and V in: 0 (as dtype), or
                          // KVPOOL_FP8_E4M3: see "Attention" in kvpool.h
    uint32_t export_as;   // kvpool_export of the pages; 0: the daemon's default (fd), and that of
                          // the pool if it exists
} kvpool_pool_config;
#define KVPOOL_POOL_CONFIG_INIT \
    { sizeof(kvpool_pool_config), NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

// Creates a pool, or opens it if one of that name and the same geometry, pages and limits exists
// (so that several workers can all "create"). A pool outlives its creator's connection.
// Errors: INVAL (the message names the field and the limit), EXISTS (same name, other properties),
// NOMEM (larger than the memory available; says how many bytes), AGAIN (as kvpool_region_create(): memory
// that was freed did not come back before the client's time-out), LIMIT, UNSUPPORTED (a kv_dtype,
// export or geometry that the daemon's backend has not, or a daemon that knows neither of the two).
KVPOOL_API kvpool_status kvpool_pool_create(kvpool_client *client, const kvpool_pool_config *config,
                                            kvpool_pool *ret_pool);

// Opens an existing pool by name. Errors: NOTFOUND, INVAL.
KVPOOL_API kvpool_status kvpool_pool_open(kvpool_client *client, const char *name,
                                          kvpool_pool *ret_pool);

// Removes a pool and gives its memory back. Errors: BUSY (sequences of any client exist), STALE.
KVPOOL_API kvpool_status kvpool_pool_destroy(kvpool_client *client, kvpool_pool pool);

typedef struct kvpool_pool_info {
    size_t size;
    kvpool_pool pool;
    char name[KVPOOL_NAME_MAX + 1];
    uint32_t layers, kv_heads, head_dim, page_size, dtype;
    uint32_t num_pages;
    uint32_t max_seqs;
    uint32_t max_seq_len;  // tokens
    uint32_t free_pages;   // neither used by a sequence nor cached
    uint32_t shared_pages; // pages that more than one sequence refers to
    uint32_t seqs;         // live sequences
    uint64_t bytes;        // of K and V memory, all layers
    uint32_t kv_dtype;     // kvpool_dtype of the pages; 0: as dtype
    uint32_t export_as;    // kvpool_export of the pages; 0: the daemon does not say
} kvpool_pool_info;

// Properties and occupancy of a pool. ret->size must be set. Errors: STALE, INVAL.
KVPOOL_API kvpool_status kvpool_pool_stat(kvpool_client *client, kvpool_pool pool,
                                          kvpool_pool_info *ret);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_POOL_H
