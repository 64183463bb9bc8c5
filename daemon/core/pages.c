// SPDX-License-Identifier: Apache-2.0
// pages.c: see pages.h.
#include "daemon/core/pages.h"

#include <stdlib.h>

bool pages_init(struct pages *p, uint32_t num_pages) {
    *p = (struct pages){0};
    p->refs = calloc(num_pages, sizeof *p->refs);
    p->sealed = calloc((size_t)num_pages / 64 + 1, sizeof *p->sealed);
    if (p->refs == NULL || p->sealed == NULL || !ids_init(&p->free, num_pages)) {
        pages_fini(p);
        return false;
    }
    return true;
}

void pages_fini(struct pages *p) {
    free(p->refs);
    free(p->sealed);
    ids_fini(&p->free);
    *p = (struct pages){0};
}

void pages_count(struct pages *p, uint32_t page) {
    ids_seen(&p->free, page);
    if (p->refs[page]++ == 1) {
        p->shared++;
    }
}

void pages_take_n(struct pages *p, uint32_t n, uint32_t *ret_pages) {
    assert(n <= pages_free(p));
    uint32_t *refs = p->refs;
    uint32_t from_stack = n < p->free.top ? n : p->free.top;
    const uint32_t *top = p->free.stack + p->free.top;
    for (uint32_t i = 0; i < from_stack; i++) {
        uint32_t page = *--top;
        assert(refs[page] == 0);
        refs[page] = 1;
        ret_pages[i] = page;
    }
    p->free.top -= from_stack;
    uint32_t fresh = p->free.fresh;
    for (uint32_t i = from_stack; i < n; i++) {
        refs[fresh] = 1;
        ret_pages[i] = fresh++;
    }
    p->free.fresh = fresh;
}

void pages_ref_n(struct pages *p, uint32_t n, const uint32_t *pages) {
    for (uint32_t i = 0; i < n; i++) {
        pages_ref(p, pages[i]);
    }
}
