// SPDX-License-Identifier: Apache-2.0
// pins.c: pins: sealed prefixes that stay referenced until a time, whoever computed them. A pin's
// record names the last page; the others are its parents, which cannot go before it.
//
// A namespace has at most PINS_SHARE times as many pins as are free. So one alone gets three quarters
// of them, two get three sevenths each, and there is always one for whoever has none.
#include "daemon/core/state.h"

#include <inttypes.h>

#define PINS_SHARE 3u
#define EXPIRE_PAGES 65536u // of one call, short of one pin

int core_prefix_pin(struct core *c, uint64_t session_handle, uint64_t seq_handle, uint32_t tokens,
                    uint64_t until, uint64_t *ret_pin, uint32_t *ret_tokens, struct err *err) {
    uint32_t session = 0;
    uint32_t seq = 0;
    int rc = core_find_session(c, session_handle, &session, err);
    if (rc == 0) {
        rc = core_find_seq(c, session, seq_handle, &seq, err);
    }
    if (rc != 0) {
        return rc;
    }
    const struct seq_rec *rec = &c->t.seqs[seq];
    struct pool_live *live = &c->pools[rec->pool];
    uint32_t n = (tokens == 0 || tokens > rec->tracked ? rec->tracked : tokens) >> live->page_shift;
    if (n == 0) {
        return err_set(err, KVPOOL_E_STATE, "sequence 0x%" PRIx64 " has no sealed page there",
                       seq_handle);
    }
    uint32_t left = ids_free(&c->pin_ids);
    if (live->ns[rec->ns].pins >= PINS_SHARE * (uint64_t)left) {
        return err_set(err, KVPOOL_E_LIMIT,
                       "namespace \"%s\" has %u pins, and %u of %u are left for all (max_pins)",
                       live->ns_recs[rec->ns].name, live->ns[rec->ns].pins, left,
                       c->limits.max_pins);
    }
    const uint32_t *row = pool_row(live, rec->row);
    pages_ref_n(&live->pages, n, row);
    uint32_t pin = ids_take(&c->pin_ids);
    struct pin_rec *pin_rec = &c->t.pins[pin];
    *pin_rec = (struct pin_rec){
        .state = RECORD_LIVE,
        .generation = core_generation(c, pin_rec->generation, HANDLE_PIN),
        .pool = rec->pool,
        .ns = rec->ns,
        .until = until,
        .page = row[n - 1],
    };
    live->pins++;
    live->ns[rec->ns].pins++;
    *ret_pin = handle_make(pin_rec->generation, pin);
    *ret_tokens = n << live->page_shift;
    return 0;
}

// Returns how many pages it held.
static uint32_t end_pin(struct core *c, uint32_t pin) {
    struct pin_rec *rec = &c->t.pins[pin];
    struct pool_live *live = &c->pools[rec->pool];
    const struct release by = {.pool = rec->pool, .ns = rec->ns, .priority = SPACE_NO_CLASS};
    uint32_t pages = 0;
    rec->state = RECORD_FREE;
    for (uint32_t page = rec->page; page != LAYOUT_NONE;) {
        uint32_t parent = live->recs[page].parent;
        core_unref(c, &by, page);
        page = parent;
        pages++;
    }
    live->pins--;
    live->ns[rec->ns].pins--;
    rec->generation = handle_next(rec->generation);
    ids_give(&c->pin_ids, pin);
    return pages;
}

int core_prefix_unpin(struct core *c, uint64_t pool_handle, uint32_t ns, uint64_t handle,
                      struct err *err) {
    uint32_t pool = 0;
    int rc = core_find_pool(c, pool_handle, &pool, err);
    if (rc != 0) {
        return rc;
    }
    uint32_t pin = handle_index(handle);
    if (pin >= c->limits.max_pins || c->t.pins[pin].state != RECORD_LIVE ||
        c->t.pins[pin].generation != handle_generation(handle) || c->t.pins[pin].pool != pool) {
        return err_set(err, KVPOOL_E_STALE, "pin 0x%" PRIx64 " does not exist", handle);
    }
    if (c->t.pins[pin].ns != ns) {
        return err_set(err, KVPOOL_E_PERM, "pin 0x%" PRIx64 " is of another namespace", handle);
    }
    end_pin(c, pin);
    return 0;
}

uint32_t core_pins_expire(struct core *c, uint64_t now) {
    uint32_t n = 0;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < c->pin_ids.fresh && ids_used(&c->pin_ids) > 0 && pages < EXPIRE_PAGES;
         i++) {
        if (c->t.pins[i].state == RECORD_LIVE && c->t.pins[i].until <= now) {
            pages += end_pin(c, i);
            n++;
        }
    }
    return n;
}

void core_pins_end(struct core *c, uint32_t pool) {
    for (uint32_t i = 0; i < c->pin_ids.fresh; i++) {
        if (c->t.pins[i].state == RECORD_LIVE && c->t.pins[i].pool == pool) {
            end_pin(c, i);
        }
    }
}
