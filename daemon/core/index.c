// SPDX-License-Identifier: Apache-2.0
// index.c: see index.h.
#include "daemon/core/index.h"

#include "daemon/core/bigmem.h"

#include <assert.h>

static uint32_t tag_of(struct prefix_key key) {
    return (uint32_t)key.a;
}

static uint64_t home_of(const struct index *x, uint32_t tag) {
    return ((uint64_t)tag << x->bits) >> 32;
}

static uint32_t slot_tag(uint64_t slot) {
    return (uint32_t)(slot >> 32);
}

static uint32_t slot_page(uint64_t slot) {
    return (uint32_t)slot - 1;
}

static const void *value_at(const struct index *x, uint32_t page) {
    return x->values.base + (size_t)page * x->values.stride;
}

static struct prefix_key key_at(const struct index *x, uint32_t page) {
    struct prefix_key key;
    memcpy(&key, value_at(x, page), sizeof key);
    return key;
}

static bool is_key(const struct index *x, uint32_t page, struct prefix_key key) {
    struct prefix_key there = key_at(x, page);
    return there.a == key.a && there.b == key.b;
}

bool index_init(struct index *x, uint32_t num_pages, struct index_values values) {
    uint32_t bits = 1;
    while (UINT64_C(1) << bits < 2 * (uint64_t)num_pages) {
        bits++;
    }
    assert(bits <= 32);
    uint64_t *slots = bigmem_open((size_t)1 << bits, sizeof *slots);
    if (slots == NULL) {
        return false;
    }
    *x = (struct index){
        .slots = slots, .mask = (UINT64_C(1) << bits) - 1, .bits = bits, .values = values};
    return true;
}

void index_fini(struct index *x) {
    bigmem_close(x->slots, (size_t)x->mask + 1, sizeof *x->slots);
    *x = (struct index){0};
}

// The first slot at or behind `at` that is empty or has the tag.
static uint64_t next_candidate(const struct index *x, uint64_t at, uint32_t tag) {
    while (x->slots[at] != 0 && slot_tag(x->slots[at]) != tag) {
        at = (at + 1) & x->mask;
    }
    return at;
}

static uint32_t find_from(const struct index *x, uint64_t at, struct prefix_key key) {
    for (;;) {
        at = next_candidate(x, at, tag_of(key));
        if (x->slots[at] == 0) {
            return INDEX_NONE;
        }
        if (is_key(x, slot_page(x->slots[at]), key)) {
            return slot_page(x->slots[at]);
        }
        at = (at + 1) & x->mask;
    }
}

uint32_t index_find(const struct index *x, struct prefix_key key) {
    return find_from(x, home_of(x, tag_of(key)), key);
}

void index_prefetch_key(const struct index *x, struct prefix_key key) {
    __asm__ volatile(""); // link-time GCC drops calls of a function that does nothing but prefetch
    __builtin_prefetch(&x->slots[home_of(x, tag_of(key))]);
}

void index_find_n(const struct index *x, const struct prefix_key *keys, uint32_t n,
                  uint32_t *ret_pages) {
    uint64_t at[INDEX_BATCH];
    assert(n <= INDEX_BATCH);
    for (uint32_t i = 0; i < n; i++) {
        at[i] = home_of(x, tag_of(keys[i]));
        __builtin_prefetch(&x->slots[at[i]]);
    }
    for (uint32_t i = 0; i < n; i++) {
        at[i] = next_candidate(x, at[i], tag_of(keys[i]));
        if (x->slots[at[i]] != 0) {
            __builtin_prefetch(value_at(x, slot_page(x->slots[at[i]])));
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        ret_pages[i] = find_from(x, at[i], keys[i]);
    }
}

void index_insert(struct index *x, uint32_t page) {
    uint32_t tag = tag_of(key_at(x, page));
    uint64_t at = home_of(x, tag);
    assert(2 * (uint64_t)x->count <= x->mask);
    while (x->slots[at] != 0) {
        at = (at + 1) & x->mask;
    }
    x->slots[at] = (uint64_t)tag << 32 | (page + 1);
    x->count++;
}

void index_remove(struct index *x, uint32_t page) {
    uint32_t tag = tag_of(key_at(x, page));
    uint64_t slot = (uint64_t)tag << 32 | (page + 1);
    uint64_t hole = home_of(x, tag);
    while (x->slots[hole] != slot) {
        assert(x->slots[hole] != 0);
        hole = (hole + 1) & x->mask;
    }
    // Whatever follows without a gap, and would not be found behind an empty slot, moves up.
    for (uint64_t at = (hole + 1) & x->mask; x->slots[at] != 0; at = (at + 1) & x->mask) {
        uint64_t home = home_of(x, slot_tag(x->slots[at]));
        if (((at - home) & x->mask) >= ((at - hole) & x->mask)) {
            x->slots[hole] = x->slots[at];
            hole = at;
        }
    }
    x->slots[hole] = 0;
    x->count--;
}

void index_prefetch(const struct index *x, uint32_t page) {
    index_prefetch_key(x, key_at(x, page));
}
