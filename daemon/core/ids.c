// SPDX-License-Identifier: Apache-2.0
// ids.c: see ids.h.
#include "daemon/core/ids.h"

#include <stdlib.h>

bool ids_init(struct ids *ids, uint32_t cap) {
    uint32_t *stack = malloc((size_t)cap * sizeof *stack);
    if (stack == NULL) {
        return false;
    }
    *ids = (struct ids){.stack = stack, .cap = cap};
    return true;
}

void ids_fini(struct ids *ids) {
    free(ids->stack);
    *ids = (struct ids){0};
}

void ids_fill(struct ids *ids, ids_used_fn used, const void *arg) {
    ids->top = 0;
    for (uint32_t id = ids->fresh; id-- > 0;) {
        if (!used(arg, id)) {
            ids->stack[ids->top++] = id;
        }
    }
}

int ids_check(const struct ids *ids, ids_used_fn used, const void *arg, uint32_t *ret_bad) {
    if (ids->fresh > ids->cap || ids->top > ids->fresh) {
        *ret_bad = ids->fresh;
        return 1;
    }
    uint64_t *on_stack = calloc((size_t)ids->fresh / 64 + 1, sizeof *on_stack);
    if (on_stack == NULL) {
        return -1;
    }
    int rc = 0;
    for (uint32_t i = 0; i < ids->top && rc == 0; i++) {
        uint32_t id = ids->stack[i];
        if (id >= ids->fresh || (on_stack[id / 64] >> (id % 64) & 1) != 0) {
            *ret_bad = id;
            rc = 1;
        } else {
            on_stack[id / 64] |= UINT64_C(1) << (id % 64);
        }
    }
    for (uint32_t id = 0; id < ids->fresh && rc == 0; id++) {
        bool is_free = (on_stack[id / 64] >> (id % 64) & 1) != 0;
        if (is_free == used(arg, id)) {
            *ret_bad = id;
            rc = 1;
        }
    }
    free(on_stack);
    return rc;
}
