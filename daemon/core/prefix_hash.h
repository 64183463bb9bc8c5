// SPDX-License-Identifier: Apache-2.0
// prefix_hash.h: the keys of sealed pages: a chain of hashes over all tokens up to a page's end.
//
//     root = SHA-256(secret | is_group | geometry | pool | group | extra), as a chaining value
//     root --tokens of page 0--> value 0 --tokens of page 1--> value 1 --> ...
//                                 key 0 = first 16 bytes        key 1
//
// In the root's message names and extra are preceded by their sizes (u32), so that none can run into
// the next.
//
// Each arrow is SHA-256's compression function over the page's token ids (u32, little-endian) in
// blocks of 64 bytes, the last one padded with zeros: at 16 tokens a page one compression a page.
// What is shown of the 32 bytes of a chaining value are 16: the chop construction, which is
// indifferentiable from a random oracle without any padding or final block (Coron, Dodis, Malinaud,
// Puniya, "Merkle-Damgard Revisited", CRYPTO 2005). Nobody outside the daemon knows root, so nobody
// can compute, or search for, a key of another salt.
//
// Invariants
//  1. Equal keys: equal secret, pool, group, geometry, extra, number of tokens and tokens, but for a
//     collision of 128 bits.
//  2. No allocation, no state; SHA-256 is OpenSSL's, with the processor's SHA instructions where
//     there are any.
// Thread: any.
#ifndef KVPOOL_DAEMON_CORE_PREFIX_HASH_H
#define KVPOOL_DAEMON_CORE_PREFIX_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct prefix_value { // a chaining value, in host words
    uint32_t h[8];
};
struct prefix_key {
    uint64_t a, b;
};

struct prefix_salt {          // what the root is made of, beside extra
    const uint8_t *secret;    // [32]
    const char *pool, *group; // names, terminated: the pool's, and the share group or the namespace
    uint32_t is_group;        // 1: `group` is a share group, 0: the namespace's own name
    uint32_t geometry[5];     // layers, kv_heads, head_dim, page_size, dtype | kv_dtype << 16
};

// extra may be NULL with size 0; at most 64 bytes.
void prefix_root(const struct prefix_salt *salt, const void *extra, size_t extra_size,
                 struct prefix_value *ret);

// The value after one more page. page_size: a multiple of 8. ret may be `from`.
void prefix_next(const struct prefix_value *from, const uint32_t *tokens, uint32_t page_size,
                 struct prefix_value *ret);

static inline struct prefix_key prefix_key_of(const struct prefix_value *value) {
    struct prefix_key key;
    memcpy(&key, value->h, sizeof key);
    return key;
}

#endif
