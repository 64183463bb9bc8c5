// SPDX-License-Identifier: Apache-2.0
// soundness.c: see soundness.h.
#include "daemon/core/soundness.h"

#include <stdarg.h>
#include <stdio.h>

#define TEXT_MAX 128

int core_damaged(struct err *err, const char *fmt, ...) {
    char text[TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(err, KVPOOL_E_INVAL, "block damaged: %s", text);
}

int core_violated(struct err *err, const char *fmt, ...) {
    char text[TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(err, KVPOOL_E_INTERNAL, "core: %s", text);
}

bool core_session_used(const void *arg, uint32_t id) {
    const struct core *c = arg;
    return c->t.sessions[id].state == RECORD_LIVE;
}

bool core_seq_used(const void *arg, uint32_t id) {
    const struct core *c = arg;
    return c->t.seqs[id].state == RECORD_LIVE;
}

bool core_pin_used(const void *arg, uint32_t id) {
    const struct core *c = arg;
    return c->t.pins[id].state == RECORD_LIVE;
}

bool core_step_used(const void *arg, uint32_t id) {
    const struct core *c = arg;
    return c->t.steps[id].state == RECORD_LIVE;
}

bool core_row_used(const void *arg, uint32_t id) {
    const struct pool_live *pool = arg;
    return pool->row_seqs[id] != 0;
}

bool core_page_used(const void *arg, uint32_t id) {
    const struct pool_live *pool = arg;
    return pool->pages.refs[id] > 0 || pool->recs[id].state == RECORD_LIVE;
}
