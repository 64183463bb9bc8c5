// SPDX-License-Identifier: Apache-2.0
// soundness.h: what rebuilding from a block and checking a live core have in common: which ids are in
// use, and the two things that can be wrong. Internal to daemon/core.
// Thread: the loop thread.
#ifndef KVPOOL_DAEMON_CORE_SOUNDNESS_H
#define KVPOOL_DAEMON_CORE_SOUNDNESS_H

#include "daemon/core/state.h"

// The block holds what it must not: INVAL. / A live core breaks an invariant: INTERNAL.
__attribute__((format(printf, 2, 3))) int core_damaged(struct err *err, const char *fmt, ...);
__attribute__((format(printf, 2, 3))) int core_violated(struct err *err, const char *fmt, ...);

// ids_used_fn of each kind of id. arg: a struct core, of pages and rows a struct pool_live.
bool core_session_used(const void *arg, uint32_t id);
bool core_seq_used(const void *arg, uint32_t id);
bool core_pin_used(const void *arg, uint32_t id);
bool core_step_used(const void *arg, uint32_t id);
bool core_row_used(const void *arg, uint32_t id);
bool core_page_used(const void *arg, uint32_t id);

#endif
