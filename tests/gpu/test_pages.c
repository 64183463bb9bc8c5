// SPDX-License-Identifier: Apache-2.0
// test_pages.c: copies and scrubbing of pages, and updates of page tables: all memory is compared.
#include "tests/gpu/harness.h"

#include <stdlib.h>
#include <string.h>

struct pages_case {
    uint32_t layers, pages, page_bytes, n;
    uint32_t plane_gap; // bytes between planes
};

static const struct pages_case cases[] = {
    {1, 4, 16, 1, 0},       // one vector
    {3, 20, 48, 5, 16},     // few
    {2, 12, 4096, 4, 0},    // a small block
    {2, 9, 8208, 3, 4096},  // a vector more than a piece of a small block
    {3, 7, 32768, 3, 0},    // just a piece
    {2, 5, 32784, 2, 0},    // a vector more
    {1, 5, 131056, 2, 0},   // several, the last one vector short
    {2, 3000, 32, 1400, 0}, // many pages
    {70000, 2, 16, 1, 0},   // more layers than a grid is high
};

static struct buffer random_planes(const struct pages_case *c, struct cuda_planes *ret) {
    struct harness_rng rng = {c->page_bytes};
    uint64_t plane = (uint64_t)c->pages * c->page_bytes + c->plane_gap;
    struct buffer b = buffer_new("planes", plane * c->layers);
    for (size_t i = 0; i < b.bytes; i++)
        b.host[i] = (unsigned char)rng_next(&rng);
    buffer_up(&b);
    *ret = (struct cuda_planes){b.device, plane, c->page_bytes, c->layers};
    return b;
}
static unsigned char *copy_of(const struct buffer *b) {
    unsigned char *copy = malloc(b->bytes + 1);
    assert_non_null(copy);
    memcpy(copy, b->host, b->bytes);
    return copy;
}
// n different pages, in random order.
static struct buffer random_ids(const struct pages_case *c, uint32_t n) {
    struct harness_rng rng = {c->pages};
    uint32_t *order = malloc(c->pages * sizeof *order);
    assert_non_null(order);
    assert_true(n <= c->pages);
    for (uint32_t i = 0; i < c->pages; i++)
        order[i] = i;
    rng_shuffle(&rng, order, c->pages);
    struct buffer ids = buffer_new("ids", (size_t)n * 4);
    memcpy(ids.host, order, (size_t)n * 4);
    buffer_up(&ids);
    free(order);
    return ids;
}
static void compare(struct buffer *b, const unsigned char *expected, size_t number) {
    device_sync();
    buffer_down(b);
    for (size_t i = 0; i < b->bytes; i++)
        if (b->host[i] != expected[i])
            fail_msg("case %zu: byte %zu: got 0x%02x, expected 0x%02x", number, i, b->host[i],
                     expected[i]);
}

static void test_copies(void **state) {
    (void)state;
    for (size_t number = 0; number < sizeof cases / sizeof *cases; number++) {
        const struct pages_case *c = &cases[number];
        struct cuda_planes planes;
        struct buffer b = random_planes(c, &planes), pairs = random_ids(c, 2 * c->n);
        unsigned char *expected = copy_of(&b);
        for (uint32_t l = 0; l < c->layers; l++)
            for (uint32_t i = 0; i < c->n; i++) {
                const uint32_t *pair = (const uint32_t *)pairs.host + 2 * (size_t)i;
                unsigned char *plane = expected + l * planes.plane_bytes;
                memcpy(plane + pair[1] * planes.page_bytes, plane + pair[0] * planes.page_bytes,
                       c->page_bytes);
            }
        assert_int_equal(cuda_copy_pages(harness_device(), &planes, pairs.device, c->n, NULL), 0);
        compare(&b, expected, number);
        buffer_unchanged(&pairs);
        free(expected);
        buffer_free(&pairs);
        buffer_free(&b);
    }
}

static void test_scrubs(void **state) {
    (void)state;
    const uint32_t pattern = 0x7fc1a5e3;
    for (size_t number = 0; number < sizeof cases / sizeof *cases; number++) {
        const struct pages_case *c = &cases[number];
        struct cuda_planes planes;
        struct buffer b = random_planes(c, &planes), ids = random_ids(c, c->n);
        unsigned char *expected = copy_of(&b);
        for (uint32_t l = 0; l < c->layers; l++)
            for (uint32_t i = 0; i < c->n; i++)
                for (uint32_t at = 0; at < c->page_bytes; at += 4)
                    memcpy(expected + l * planes.plane_bytes +
                               ((const uint32_t *)ids.host)[i] * planes.page_bytes + at,
                           &pattern, 4);
        assert_int_equal(
            cuda_scrub_pages(harness_device(), &planes, ids.device, c->n, pattern, NULL), 0);
        compare(&b, expected, number);
        buffer_unchanged(&ids);
        free(expected);
        buffer_free(&ids);
        buffer_free(&b);
    }
}

static void test_empty_lists(void **state) {
    (void)state;
    struct cuda_planes planes;
    struct buffer b = random_planes(&cases[1], &planes);
    uint32_t *nothing = NULL;
    assert_int_equal(cuda_copy_pages(harness_device(), &planes, nothing, 0, NULL), 0);
    assert_int_equal(cuda_scrub_pages(harness_device(), &planes, nothing, 0, 1, NULL), 0);
    assert_int_equal(cuda_table_update(harness_device(), nothing, nothing, nothing, 0, NULL), 0);
    device_sync();
    buffer_unchanged(&b);
    buffer_free(&b);
}

// Segments of the counts given, one after the other in `words`, to places that do not overlap.
static void check_table(const uint32_t *counts, uint32_t n) {
    struct harness_rng rng = {n};
    size_t words_n = 0, longest = 1;
    for (uint32_t i = 0; i < n; i++) {
        words_n += 3 + counts[i];
        longest = counts[i] > longest ? counts[i] : longest;
    }
    struct buffer table = buffer_new("table", (n + 2) * (longest + 5) * 4);
    struct buffer words = buffer_new("words", words_n * 4),
                  starts = buffer_new("starts", (size_t)n * 4);
    unsigned char *expected = copy_of(&table);
    uint32_t *order = malloc((n + 2) * sizeof *order);
    assert_non_null(order);
    for (uint32_t i = 0; i < n + 2; i++)
        order[i] = i;
    rng_shuffle(&rng, order, n + 2);
    // As if it were the end of a table of 16 GB: places need both their words.
    const uint64_t before = (uint64_t)1 << 32;
    uint32_t *start = (uint32_t *)((uintptr_t)table.device - before * 4);
    uint32_t *to = (uint32_t *)words.host;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = order[i] * (longest + 5) + rng_below(&rng, 6);
        ((uint32_t *)starts.host)[i] = (uint32_t)(to - (uint32_t *)words.host);
        *to++ = (uint32_t)(before + at);
        *to++ = (uint32_t)((before + at) >> 32);
        *to++ = counts[i];
        for (uint32_t j = 0; j < counts[i]; j++, to++) {
            *to = (uint32_t)rng_next(&rng);
            memcpy(expected + (at + j) * 4, to, 4);
        }
    }
    buffer_up(&words);
    buffer_up(&starts);
    assert_int_equal(
        cuda_table_update(harness_device(), start, words.device, starts.device, n, NULL), 0);
    compare(&table, expected, n);
    buffer_unchanged(&words);
    buffer_unchanged(&starts);
    free(order);
    free(expected);
    buffer_free(&starts);
    buffer_free(&words);
    buffer_free(&table);
}

static void test_table_updates(void **state) {
    (void)state;
    // Around the ids that come with the header (125), and around a turn of the rest (1,024).
    static const uint32_t around[] = {0,    1,    28,   29,   124,  125,  126,  127,
                                      128,  129,  255,  999,  1023, 1024, 1025, 1149,
                                      1150, 1151, 8191, 8192, 8193, 20000};
    uint32_t n = sizeof around / sizeof *around;
    for (uint32_t i = 0; i < n; i++) // the last segment's words end with it
        check_table(around + i, 1);
    for (uint32_t i = 0; i + 3 <= n; i++)
        check_table(around + i, 3);
    check_table(around, n); // more than 15: a block each
    uint32_t one[300];
    for (uint32_t i = 0; i < 300; i++)
        one[i] = i % 7 == 3 ? 0 : 1;
    check_table(one, 300);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_scrubs),
        cmocka_unit_test(test_empty_lists),
        cmocka_unit_test(test_table_updates),
    };
    return harness_main("pages", tests, sizeof tests / sizeof *tests);
}
