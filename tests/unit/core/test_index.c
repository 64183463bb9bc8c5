// SPDX-License-Identifier: Apache-2.0
// The index against an array that is searched from end to end, with keys chosen so that homes
// collide and probes run over the end of the table.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/core/bigmem.h"
#include "daemon/core/index.h"

#include <stdlib.h>

#define MAX_PAGES 200u

static uint64_t random_state = 88172645463325252u;

static uint32_t next_random(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 33) % n);
}

// --- out of memory: the linker sends index.c's calls of bigmem_open here -------------------------

static bool no_memory;
void *__real_bigmem_open(size_t n, size_t size); // NOLINT(bugprone-reserved-identifier)
void *__wrap_bigmem_open(size_t n, size_t size); // NOLINT(bugprone-reserved-identifier)

void *__wrap_bigmem_open(size_t n, size_t size) { // NOLINT(bugprone-reserved-identifier)
    return no_memory ? NULL : __real_bigmem_open(n, size);
}

// --- the array ----------------------------------------------------------------------------------

struct record { // a stride that is not the size of a value
    struct prefix_value value;
    uint32_t other[5];
};

struct table {
    struct index index;
    struct record records[MAX_PAGES];
    bool there[MAX_PAGES];
    uint32_t num_pages;
};

static uint32_t naive_find(const struct table *t, struct prefix_key key) {
    for (uint32_t page = 0; page < t->num_pages; page++) {
        struct prefix_key there = prefix_key_of(&t->records[page].value);
        if (t->there[page] && there.a == key.a && there.b == key.b) {
            return page;
        }
    }
    return INDEX_NONE;
}

// A key whose home is one of a few: the last slots of the table, the first, one in the middle. Tags
// are often equal in all bits, or equal but for their lower ones.
static struct prefix_value close_value(void) {
    static const uint32_t tags[] = {0xffffffff, 0xfffffffe, 0xff000000, 0xffff0000,
                                    0,          1,          0x80000000, 0x80000001};
    struct prefix_value value = {{0}};
    value.h[0] = next_random(4) == 0 ? next_random(UINT32_MAX) : tags[next_random(8)];
    value.h[1] = next_random(4); // rest of key.a
    value.h[2] = next_random(64);
    value.h[3] = next_random(4);
    return value;
}

// No empty slot between a page's home and its slot; every slot's tag is its page's.
static void check_slots(const struct table *t) {
    const struct index *x = &t->index;
    uint32_t used = 0;
    for (uint64_t at = 0; at <= x->mask; at++) {
        if (x->slots[at] == 0) {
            continue;
        }
        uint32_t page = (uint32_t)x->slots[at] - 1;
        assert_true(page < t->num_pages && t->there[page]);
        assert_true((uint32_t)(x->slots[at] >> 32) == t->records[page].value.h[0]);
        uint64_t home = (uint64_t)t->records[page].value.h[0] * (x->mask + 1) >> 32;
        for (uint64_t i = home; i != at; i = (i + 1) & x->mask) {
            assert_true(x->slots[i] != 0);
        }
        used++;
    }
    assert_int_equal(used, x->count);
}

static void check_all(const struct table *t) {
    uint32_t count = 0;
    for (uint32_t page = 0; page < t->num_pages; page++) {
        if (t->there[page]) {
            count++;
            assert_int_equal(index_find(&t->index, prefix_key_of(&t->records[page].value)), page);
        }
    }
    assert_int_equal(count, t->index.count);
    check_slots(t);
}

static void check_batch(const struct table *t) {
    struct prefix_key keys[INDEX_BATCH];
    uint32_t pages[INDEX_BATCH];
    uint32_t n = next_random(INDEX_BATCH + 1);
    for (uint32_t i = 0; i < n; i++) {
        struct prefix_value value =
            next_random(2) == 0 ? close_value() : t->records[next_random(t->num_pages)].value;
        keys[i] = prefix_key_of(&value);
        index_prefetch_key(&t->index, keys[i]);
    }
    for (uint32_t i = 0; i < INDEX_BATCH; i++) {
        pages[i] = 12345;
    }
    index_find_n(&t->index, keys, n, pages);
    for (uint32_t i = 0; i < INDEX_BATCH; i++) {
        assert_int_equal(pages[i], i < n ? naive_find(t, keys[i]) : 12345);
    }
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(index_find(&t->index, keys[i]), naive_find(t, keys[i]));
    }
}

static struct table *open_table(uint32_t num_pages) {
    struct table *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->num_pages = num_pages;
    assert_true(index_init(
        &t->index, num_pages,
        (struct index_values){(const uint8_t *)&t->records[0].value, sizeof t->records[0]}));
    assert_true(t->index.mask + 1 >= 2 * (uint64_t)num_pages);
    assert_true(t->index.mask + 1 < 4 * (uint64_t)num_pages || num_pages == 1);
    return t;
}

static void close_table(struct table *t) {
    index_fini(&t->index);
    assert_null(t->index.slots);
    index_fini(&t->index);
    free(t);
}

static void add(struct table *t, uint32_t page, struct prefix_value value) {
    t->records[page].value = value;
    index_insert(&t->index, page);
    t->there[page] = true;
}

static void take(struct table *t, uint32_t page) {
    index_prefetch(&t->index, page);
    index_remove(&t->index, page);
    t->there[page] = false;
}

static void it_does_what_an_array_does(void **state) {
    static const uint32_t sizes[] = {1, 2, 3, 7, 16, 33, 128, MAX_PAGES};
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        struct table *t = open_table(sizes[s]);
        for (uint32_t round = 0; round < 10000; round++) {
            uint32_t page = next_random(t->num_pages);
            bool filling = round / 500 % 2 == 0; // to the brim, and empty again
            if (t->there[page] && next_random(8) < (filling ? 1 : 7)) {
                take(t, page);
            } else if (!t->there[page] && next_random(8) < (filling ? 7 : 1)) {
                struct prefix_value value = close_value();
                if (naive_find(t, prefix_key_of(&value)) == INDEX_NONE) {
                    add(t, page, value);
                }
            }
            check_batch(t);
            if (round % 16 == 0 || t->num_pages <= 16) {
                check_all(t);
            }
        }
        close_table(t);
    }
}

// All pages have the same home, the last slot: the table is one run over its end.
static void one_home_for_all_is_a_list_and_works(void **state) {
    struct table *t = open_table(64);
    (void)state;
    for (uint32_t page = 0; page < 64; page++) {
        add(t, page, (struct prefix_value){{UINT32_MAX, 0, page}});
    }
    check_all(t);
    assert_true(t->index.slots[0] != 0); // it did wrap around
    assert_int_equal(index_find(&t->index, (struct prefix_key){UINT32_MAX, 64}), INDEX_NONE);
    for (uint32_t i = 0; i < 64; i++) {
        take(t, (i * 37 + 11) % 64);
        check_all(t);
    }
    for (uint64_t at = 0; at <= t->index.mask; at++) {
        assert_true(t->index.slots[at] == 0);
    }
    close_table(t);
}

static void keys_that_differ_in_any_word_are_others(void **state) {
    struct table *t = open_table(8);
    (void)state;
    for (uint32_t word = 0; word < 4; word++) {
        struct prefix_value value = {{7, 7, 7, 7}};
        value.h[word]++;
        add(t, word, value);
    }
    assert_int_equal(
        index_find(&t->index, (struct prefix_key){UINT64_C(7) << 32 | 7, UINT64_C(7) << 32 | 7}),
        INDEX_NONE);
    // Only the first 16 bytes of a value are its key.
    struct prefix_value longer = t->records[2].value;
    longer.h[7]++;
    assert_int_equal(index_find(&t->index, prefix_key_of(&longer)), 2);
    check_all(t);
    close_table(t);
}

static void without_memory_it_does_not_open(void **state) {
    struct index x = {0};
    (void)state;
    no_memory = true;
    assert_false(index_init(&x, 100, (struct index_values){0}));
    no_memory = false;
    assert_null(x.slots);
    index_fini(&x);
}

static void big_memory_is_zeroed_and_refuses_what_cannot_be(void **state) {
    (void)state;
    assert_null(bigmem_open(0, 8));
    assert_null(bigmem_open(((size_t)1 << 61) + 1, 8)); // 8 bytes, but for the overflow
    assert_null(bigmem_open(SIZE_MAX / 8, 4));          // more than there are addresses
    static const size_t sizes[] = {1, 63, 64, 21845, 21846, (size_t)1 << 20}; // of three elements
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint8_t *memory = bigmem_open(3, sizes[s]);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        for (size_t i = 0; i < 3 * sizes[s]; i++) {
            assert_int_equal(memory[i], 0);
            memory[i] = 1;
        }
        bigmem_close(memory, 3, sizes[s]);
    }
    bigmem_close(NULL, 3, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_does_what_an_array_does),
        cmocka_unit_test(one_home_for_all_is_a_list_and_works),
        cmocka_unit_test(keys_that_differ_in_any_word_are_others),
        cmocka_unit_test(without_memory_it_does_not_open),
        cmocka_unit_test(big_memory_is_zeroed_and_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests_name("core/index", tests, NULL, NULL);
}
