// SPDX-License-Identifier: Apache-2.0
// Page keys: the chain is SHA-256's own, the root's message is what prefix_hash.h says, and nothing
// that goes into a key can be exchanged for something else.
#define OPENSSL_SUPPRESS_DEPRECATED // the low-level state is what the chain is compared with
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/prefix_hash.h"

#include <openssl/sha.h>
#include <stdbool.h>

static uint8_t secret[32], other_secret[32];

static struct prefix_salt some_salt(void) {
    return (struct prefix_salt){.secret = secret,
                                .pool = "pool",
                                .group = "team",
                                .is_group = 1,
                                .geometry = {32, 8, 128, 16, 2}};
}

static int setup(void **state) {
    (void)state;
    for (uint8_t i = 0; i < 32; i++) {
        secret[i] = i;
        other_secret[i] = i;
    }
    other_secret[31] ^= 1;
    return 0;
}

static void a_chain_is_the_state_of_sha256_over_the_same_bytes(void **state) {
    static const uint32_t page_sizes[] = {8, 16, 24, 32, 256};
    (void)state;
    for (size_t s = 0; s < sizeof page_sizes / sizeof *page_sizes; s++) {
        uint32_t page_size = page_sizes[s];
        SHA256_CTX ctx;
        struct prefix_value value;
        SHA256_Init(&ctx);
        memcpy(value.h, ctx.h, sizeof value.h);
        for (uint32_t page = 0; page < 5; page++) {
            uint32_t tokens[256];
            uint8_t bytes[1024] = {0};
            size_t padded = ((size_t)page_size * 4 + 63) / 64 * 64;
            for (uint32_t i = 0; i < page_size; i++) {
                tokens[i] = page * 1000003 + i * 77777 + 1;
                for (uint32_t b = 0; b < 4; b++) { // little-endian
                    bytes[i * 4 + b] = (uint8_t)(tokens[i] >> (8 * b));
                }
            }
            struct prefix_value next;
            prefix_next(&value, tokens, page_size, &next);
            prefix_next(&value, tokens, page_size, &value); // in place
            SHA256_Update(&ctx, bytes, padded);
            assert_memory_equal(next.h, ctx.h, sizeof ctx.h);
            assert_memory_equal(value.h, ctx.h, sizeof ctx.h);
        }
    }
}

// The digest of the message that prefix_hash.h describes, computed elsewhere.
static void the_root_is_the_digest_of_its_message(void **state) {
    static const uint32_t expected[8] = {0x0f0ec51f, 0x0b1b7475, 0x03af7a4b, 0x5d724c81,
                                         0x6fe988ad, 0x86a8a621, 0x85e79d0c, 0xcc961be1};
    struct prefix_salt salt = some_salt();
    struct prefix_value root;
    (void)state;
    prefix_root(&salt, "lora-7", 6, &root);
    assert_memory_equal(root.h, expected, sizeof expected);
}

static void a_key_is_the_first_16_bytes_of_its_value(void **state) {
    const struct prefix_value value = {{1, 2, 3, 4, 5, 6, 7, 8}};
    struct prefix_key key = prefix_key_of(&value);
    (void)state;
    assert_true(key.a == (UINT64_C(2) << 32 | 1));
    assert_true(key.b == (UINT64_C(4) << 32 | 3));
}

#define MAX_ROOTS 64

static struct {
    struct prefix_value roots[MAX_ROOTS];
    size_t n;
} seen;

// Fails when an earlier call came to the same key.
static void expect_new(const struct prefix_salt *salt, const void *extra, size_t extra_size) {
    struct prefix_value root;
    struct prefix_value again;
    prefix_root(salt, extra, extra_size, &root);
    prefix_root(salt, extra, extra_size, &again);
    assert_memory_equal(&root, &again, sizeof root);
    struct prefix_key key = prefix_key_of(&root);
    for (size_t i = 0; i < seen.n; i++) {
        struct prefix_key old = prefix_key_of(&seen.roots[i]);
        assert_false(key.a == old.a && key.b == old.b);
    }
    assert_true(seen.n < MAX_ROOTS);
    seen.roots[seen.n++] = root;
}

static void everything_in_the_salt_changes_the_key(void **state) {
    struct prefix_salt salt = some_salt();
    (void)state;
    seen.n = 0;
    expect_new(&salt, NULL, 0);
    salt.secret = other_secret;
    expect_new(&salt, NULL, 0);
    salt = some_salt();
    salt.is_group = 0;
    expect_new(&salt, NULL, 0);
    salt = some_salt();
    salt.group = "tean";
    expect_new(&salt, NULL, 0);
    salt.group = "";
    expect_new(&salt, NULL, 0);
    salt = some_salt();
    salt.pool = "Pool";
    expect_new(&salt, NULL, 0);
    for (size_t i = 0; i < 5; i++) {
        salt = some_salt();
        salt.geometry[i]++;
        expect_new(&salt, NULL, 0);
    }
}

static void extra_of_any_length_changes_the_key(void **state) {
    static const uint8_t zeros[64] = {0};
    struct prefix_salt salt = some_salt();
    (void)state;
    seen.n = 0;
    for (size_t size = 0; size <= sizeof zeros; size += size < 8 ? 1 : 8) {
        expect_new(&salt, zeros, size);
    }
    expect_new(&salt, "lora-7", 6);
    expect_new(&salt, "lora-8", 6);
    expect_new(&salt, "lora-7", 5);
}

static void fields_cannot_run_into_each_other(void **state) {
    static const char *const splits[][3] = {
        {"ab", "cd", "ef"}, {"abc", "d", "ef"}, {"a", "bcd", "ef"}, {"ab", "cde", "f"},
        {"ab", "c", "def"}, {"abcdef", "", ""}, {"", "abcdef", ""}, {"", "", "abcdef"}};
    (void)state;
    seen.n = 0;
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        struct prefix_salt salt = some_salt();
        salt.pool = splits[i][0];
        salt.group = splits[i][1];
        expect_new(&salt, splits[i][2], strlen(splits[i][2]));
    }
}

static void a_token_changes_its_page_and_all_behind_it(void **state) {
    enum { PAGES = 6, SIZE = 16 };
    struct prefix_salt salt = some_salt();
    struct prefix_value root;
    struct prefix_value values[PAGES];
    uint32_t tokens[PAGES * SIZE] = {0};
    (void)state;
    prefix_root(&salt, NULL, 0, &root);
    for (uint32_t i = 0; i < PAGES; i++) { // equal pages have different keys in different places
        prefix_next(i == 0 ? &root : &values[i - 1], tokens + (size_t)i * SIZE, SIZE, &values[i]);
        for (uint32_t j = 0; j < i; j++) {
            assert_true(prefix_key_of(&values[i]).a != prefix_key_of(&values[j]).a);
        }
    }
    for (uint32_t at = 0; at < PAGES * SIZE; at++) {
        struct prefix_value value = root;
        tokens[at] = 1u << (at % 32);
        for (uint32_t i = 0; i < PAGES; i++) {
            prefix_next(&value, tokens + (size_t)i * SIZE, SIZE, &value);
            bool same = memcmp(&value, &values[i], sizeof value) == 0;
            assert_int_equal(same, i < at / SIZE);
        }
        tokens[at] = 0;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_is_the_state_of_sha256_over_the_same_bytes),
        cmocka_unit_test(the_root_is_the_digest_of_its_message),
        cmocka_unit_test(a_key_is_the_first_16_bytes_of_its_value),
        cmocka_unit_test(everything_in_the_salt_changes_the_key),
        cmocka_unit_test(extra_of_any_length_changes_the_key),
        cmocka_unit_test(fields_cannot_run_into_each_other),
        cmocka_unit_test(a_token_changes_its_page_and_all_behind_it),
    };
    return cmocka_run_group_tests_name("core/prefix_hash", tests, setup, NULL);
}
