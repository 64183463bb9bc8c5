// SPDX-License-Identifier: Apache-2.0
// layout.c: see layout.h.
#include "daemon/core/layout.h"

#include <inttypes.h>
#include <string.h>

const struct core_limits core_limits_default = {
    .max_pools = 16,
    .max_sessions = 256,
    .max_seqs = 16384,
    .max_steps = 1024,
    .max_session_steps = 64,
    .max_batch = 1024,
    .max_table_entries = UINT64_C(256) << 20,
    .max_pages = UINT64_C(16) << 20,
    .max_page_tokens = UINT64_C(256) << 20,
    .max_pins = 1024,
};

static bool in(uint64_t value, uint64_t max) {
    return value >= 1 && value <= max;
}

// Appends a table of `bytes` at the next multiple of 64 and returns its offset.
static uint64_t place(uint64_t *end, uint64_t bytes) {
    uint64_t at = (*end + 63) & ~UINT64_C(63);
    *end = at + bytes;
    return at;
}

bool layout_make(const struct core_limits *l, struct layout *ret) {
    // With these bounds no product below leaves 64 bits.
    if (!in(l->max_pools, 1024) || !in(l->max_sessions, 1 << 16) || !in(l->max_seqs, 1 << 20) ||
        !in(l->max_steps, 1 << 16) || !in(l->max_session_steps, 1 << 16) ||
        !in(l->max_batch, 1 << 16) || !in(l->max_table_entries, UINT64_C(1) << 40) ||
        !in(l->max_pages, UINT64_C(1) << 40) || !in(l->max_page_tokens, UINT64_C(1) << 48) ||
        !in(l->max_pins, 1 << 20) || l->reserved != 0) {
        return false;
    }
    struct layout m = {0};
    uint64_t end = sizeof(struct header_rec);
    m.item_words = ((uint64_t)l->max_batch * 5 + 1 + 15) & ~UINT64_C(15);
    m.pools = place(&end, l->max_pools * sizeof(struct pool_rec));
    m.ns = place(&end, (uint64_t)l->max_pools * CORE_MAX_NAMESPACES * sizeof(struct ns_rec));
    m.sessions = place(&end, l->max_sessions * sizeof(struct session_rec));
    m.seqs = place(&end, l->max_seqs * sizeof(struct seq_rec));
    m.pins = place(&end, l->max_pins * sizeof(struct pin_rec));
    m.steps = place(&end, l->max_steps * sizeof(struct step_rec));
    m.items = place(&end, l->max_steps * m.item_words * sizeof(uint32_t));
    m.entries = place(&end, l->max_table_entries * sizeof(uint32_t));
    m.pages = place(&end, l->max_pages * sizeof(struct page_rec));
    m.tokens = place(&end, l->max_page_tokens * sizeof(uint32_t));
    m.size = (end + LAYOUT_ALIGN - 1) & ~(uint64_t)(LAYOUT_ALIGN - 1);
    *ret = m;
    return true;
}

size_t core_block_size(const struct core_limits *limits) {
    struct layout m;
    return layout_make(limits, &m) ? (size_t)m.size : 0;
}

// FNV-1a of 64 bits (Fowler, Noll, Vo): against damage, not against forgery.
static uint64_t checksum(const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    uint64_t h = 0xCBF29CE484222325ull;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 0x100000001B3ull;
    }
    return h;
}

static uint64_t header_checksum(const struct header_rec *h) {
    return checksum(h, offsetof(struct header_rec, checksum));
}

uint64_t layout_pool_checksum(const struct pool_rec *pool) {
    size_t from = offsetof(struct pool_rec, layers);
    return checksum((const uint8_t *)pool + from, offsetof(struct pool_rec, checksum) - from);
}

uint64_t layout_ns_checksum(const struct ns_rec *ns) {
    return checksum(ns, offsetof(struct ns_rec, checksum));
}

static int check_memory(const void *block, size_t size, size_t need, struct err *err) {
    if (block == NULL || (uintptr_t)block % LAYOUT_ALIGN != 0) {
        return err_set(err, KVPOOL_E_INVAL, "core's block is not aligned to %u bytes",
                       LAYOUT_ALIGN);
    }
    if (size < need) {
        return err_set(err, KVPOOL_E_INVAL, "core's block has %zu bytes, needs %zu", size, need);
    }
    return 0;
}

int layout_format(void *block, size_t size, const struct core_limits *limits, uint64_t epoch,
                  const uint8_t secret[CORE_SECRET_SIZE], struct err *err) {
    struct layout m;
    if (!layout_make(limits, &m)) {
        return err_set(err, KVPOOL_E_INVAL, "a limit of core is out of range");
    }
    int rc = check_memory(block, size, (size_t)m.size, err);
    if (rc != 0) {
        return rc;
    }
    static const struct header_rec zero;
    struct header_rec *h = block;
    if (memcmp(h, &zero, sizeof zero) != 0) {
        return err_set(err, KVPOOL_E_INVAL, "core's block is not zeroed");
    }
    h->magic = LAYOUT_MAGIC;
    h->version = LAYOUT_VERSION;
    h->epoch = epoch;
    memcpy(h->secret, secret, sizeof h->secret);
    h->limits = *limits;
    h->layout = m;
    h->checksum = header_checksum(h);
    return 0;
}

int layout_open(void *block, size_t size, struct tables *ret, struct err *err) {
    int rc = check_memory(block, size, sizeof(struct header_rec), err);
    if (rc != 0) {
        return rc;
    }
    struct header_rec *h = block;
    if (h->magic != LAYOUT_MAGIC) {
        return err_set(err, KVPOOL_E_INVAL, "block damaged: no header (magic 0x%" PRIx64 ")",
                       h->magic);
    }
    if (h->version != LAYOUT_VERSION) {
        return err_set(err, KVPOOL_E_VERSION, "the block has layout version %u, this core reads %u",
                       h->version, LAYOUT_VERSION);
    }
    struct layout m;
    if (h->checksum != header_checksum(h) || !layout_make(&h->limits, &m) ||
        memcmp(&m, &h->layout, sizeof m) != 0) {
        return err_set(err, KVPOOL_E_INVAL, "block damaged: header");
    }
    rc = check_memory(block, size, (size_t)m.size, err);
    if (rc != 0) {
        return rc;
    }
    uint8_t *base = block;
    *ret = (struct tables){
        .header = h,
        .pools = (struct pool_rec *)(base + m.pools),
        .ns = (struct ns_rec *)(base + m.ns),
        .sessions = (struct session_rec *)(base + m.sessions),
        .seqs = (struct seq_rec *)(base + m.seqs),
        .pins = (struct pin_rec *)(base + m.pins),
        .steps = (struct step_rec *)(base + m.steps),
        .items = (uint32_t *)(base + m.items),
        .entries = (uint32_t *)(base + m.entries),
        .pages = (struct page_rec *)(base + m.pages),
        .tokens = (uint32_t *)(base + m.tokens),
        .item_words = (size_t)m.item_words,
        .max_batch = h->limits.max_batch,
    };
    return 0;
}
