// SPDX-License-Identifier: Apache-2.0
// prefix_hash.c: see prefix_hash.h.

// The low-level functions are deprecated in OpenSSL 3, in favour of EVP: which costs about 400 ns a
// call, ten times what the compression of one page's tokens does, and shows no chaining value.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "daemon/core/prefix_hash.h"

#include <assert.h>
#include <openssl/sha.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token ids are hashed as they lie");

#define BLOCK_TOKENS 16u // of 64 bytes

static void add(SHA256_CTX *ctx, const void *bytes, size_t size) {
    if (size > 0) { // bytes may be NULL otherwise
        SHA256_Update(ctx, bytes, size);
    }
}

static void add_sized(SHA256_CTX *ctx, const void *bytes, size_t size) {
    uint32_t prefix = (uint32_t)size;
    add(ctx, &prefix, sizeof prefix);
    add(ctx, bytes, size);
}

void prefix_root(const struct prefix_salt *salt, const void *extra, size_t extra_size,
                 struct prefix_value *ret) {
    SHA256_CTX ctx;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA256_Init(&ctx);
    add(&ctx, salt->secret, 32);
    add(&ctx, &salt->is_group, sizeof salt->is_group);
    add(&ctx, salt->geometry, sizeof salt->geometry);
    add_sized(&ctx, salt->pool, strlen(salt->pool));
    add_sized(&ctx, salt->group, strlen(salt->group));
    add_sized(&ctx, extra, extra_size);
    SHA256_Final(digest, &ctx);
    for (size_t i = 0; i < 8; i++) {
        uint32_t word;
        memcpy(&word, digest + i * sizeof word, sizeof word);
        ret->h[i] = __builtin_bswap32(word);
    }
}

void prefix_next(const struct prefix_value *from, const uint32_t *tokens, uint32_t page_size,
                 struct prefix_value *ret) {
    SHA256_CTX ctx;
    assert(page_size % 8 == 0);
    memcpy(ctx.h, from->h, sizeof ctx.h);
    for (; page_size >= BLOCK_TOKENS; page_size -= BLOCK_TOKENS, tokens += BLOCK_TOKENS) {
        SHA256_Transform(&ctx, (const unsigned char *)tokens);
    }
    if (page_size > 0) {
        uint32_t block[BLOCK_TOKENS] = {0};
        memcpy(block, tokens, page_size * sizeof *tokens);
        SHA256_Transform(&ctx, (const unsigned char *)block);
    }
    memcpy(ret->h, ctx.h, sizeof ret->h);
}
