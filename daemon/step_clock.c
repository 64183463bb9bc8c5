// SPDX-License-Identifier: Apache-2.0
// step_clock.c: see step_clock.h.
#include "daemon/step_clock.h"

#include <stdlib.h>

struct entry {
    uint64_t session, step; // step 0: free
    uint64_t began_ns;
};

struct step_clock {
    uint64_t mask;
    uint32_t n, max;
    struct entry entries[];
};

static uint64_t home(const struct step_clock *c, uint64_t session, uint64_t step) {
    uint64_t h = (session ^ step * 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u;
    return (h >> 32) & c->mask;
}

int step_clock_open(uint32_t max_steps, struct step_clock **ret, struct err *err) {
    uint64_t size = 2;
    while (size < 2 * (uint64_t)max_steps)
        size *= 2;
    struct step_clock *c = calloc(1, sizeof *c + size * sizeof c->entries[0]);
    if (c == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "clock of %u steps: no memory", max_steps);
    c->mask = size - 1;
    c->max = max_steps;
    *ret = c;
    return 0;
}

void step_clock_close(struct step_clock *c) {
    free(c);
}

// Of the step's entry, or of the free one where it belongs.
static uint64_t find(const struct step_clock *c, uint64_t session, uint64_t step) {
    uint64_t i = home(c, session, step);
    while (c->entries[i].step != 0 &&
           (c->entries[i].step != step || c->entries[i].session != session))
        i = (i + 1) & c->mask;
    return i;
}

// Takes an entry out and closes the gap, so that no search stops too early.
static void take(struct step_clock *c, uint64_t gap) {
    for (uint64_t i = (gap + 1) & c->mask; c->entries[i].step != 0; i = (i + 1) & c->mask) {
        uint64_t at = home(c, c->entries[i].session, c->entries[i].step);
        if (((i - at) & c->mask) >= ((i - gap) & c->mask)) {
            c->entries[gap] = c->entries[i];
            gap = i;
        }
    }
    c->entries[gap] = (struct entry){0};
    c->n--;
}

void step_clock_begin(struct step_clock *c, uint64_t session, uint64_t step, uint64_t now_ns) {
    struct entry *e = &c->entries[find(c, session, step)];
    if (e->step == 0 && c->n == c->max)
        return;
    c->n += e->step == 0;
    *e = (struct entry){session, step, now_ns};
}

bool step_clock_end(struct step_clock *c, uint64_t session, uint64_t step, uint64_t *ret_began_ns) {
    uint64_t i = find(c, session, step);
    if (c->entries[i].step == 0)
        return false;
    *ret_began_ns = c->entries[i].began_ns;
    take(c, i);
    return true;
}

void step_clock_forget(struct step_clock *c, uint64_t session) {
    for (uint64_t i = 0; i <= c->mask && c->n > 0;) {
        if (c->entries[i].step != 0 && c->entries[i].session == session)
            take(c, i); // another entry may have moved here
        else
            i++;
    }
}
