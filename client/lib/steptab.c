// SPDX-License-Identifier: Apache-2.0
// steptab.c: see steptab.h.
#include "client/lib/steptab.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 64u

static uint32_t home(const struct steptab *t, kvpool_step step) {
    // Ids count up: their low bits spread them best. The high half is for ids chosen by callers.
    return (uint32_t)(step ^ step >> 32) & (t->capacity - 1);
}

// The slot that has the step, or the empty one where it would go.
static struct steptab_slot *slot_of(const struct steptab *t, kvpool_step step) {
    uint32_t i = home(t, step);
    while (t->slots[i].step != 0 && t->slots[i].step != step)
        i = (i + 1) & (t->capacity - 1);
    return &t->slots[i];
}

static bool grow(struct steptab *t) {
    struct steptab next = {.capacity = t->capacity == 0 ? FIRST_CAPACITY : t->capacity * 2,
                           .count = t->count};
    next.slots = calloc(next.capacity, sizeof *next.slots);
    if (next.slots == NULL)
        return false;
    for (uint32_t i = 0; i < t->capacity; i++)
        if (t->slots[i].step != 0)
            *slot_of(&next, t->slots[i].step) = t->slots[i];
    free(t->slots);
    *t = next;
    return true;
}

bool steptab_add(struct steptab *t, kvpool_step step, kvpool_pool pool, bool *ret_added) {
    if ((t->count + 1) * 2 > t->capacity && !grow(t))
        return false;
    struct steptab_slot *slot = slot_of(t, step);
    *ret_added = slot->step == 0;
    if (slot->step == 0) {
        *slot = (struct steptab_slot){step, pool};
        t->count++;
    }
    return true;
}

kvpool_pool steptab_find(const struct steptab *t, kvpool_step step) {
    return t->capacity == 0 || step == 0 ? 0 : slot_of(t, step)->pool;
}

void steptab_remove(struct steptab *t, kvpool_step step) {
    if (t->capacity == 0 || step == 0)
        return;
    struct steptab_slot *slot = slot_of(t, step);
    if (slot->step == 0)
        return;
    uint32_t mask = t->capacity - 1;
    uint32_t hole = (uint32_t)(slot - t->slots);
    for (uint32_t i = (hole + 1) & mask; t->slots[i].step != 0; i = (i + 1) & mask) {
        // An entry may move back only as far as its home.
        if (((i - home(t, t->slots[i].step)) & mask) < ((i - hole) & mask))
            continue;
        t->slots[hole] = t->slots[i];
        hole = i;
    }
    t->slots[hole] = (struct steptab_slot){0, 0};
    t->count--;
}

void steptab_clear(struct steptab *t) {
    if (t->capacity > 0)
        memset(t->slots, 0, t->capacity * sizeof *t->slots);
    t->count = 0;
}

void steptab_fini(struct steptab *t) {
    free(t->slots);
    *t = (struct steptab){0};
}
