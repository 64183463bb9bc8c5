// SPDX-License-Identifier: Apache-2.0
// prefix_rig.h: what the tests of prefix sharing do over and over: documents (token i of document d is
// the same everywhere), sequences on them, and looks at the pool. Every step of it checks core.
#ifndef KVPOOL_TESTS_UNIT_CORE_PREFIX_RIG_H
#define KVPOOL_TESTS_UNIT_CORE_PREFIX_RIG_H

#include "fixture.h"

#define PAGE 8u // tokens, of the fixture's pool

// The fixture with a pool in which one sequence may have all pages.
int prefix_setup(void **state);

// Events of core, in order: core_observe(core, hear, &heard).
struct heard {
    uint32_t n;
    struct core_event events[64];
};
void hear(void *arg, const struct core_event *event);

uint32_t token(uint32_t d, uint32_t i);
const uint32_t *document(uint32_t d, uint32_t n); // valid until the next call
struct core_open opening(uint32_t ns, const uint32_t *tokens, uint32_t n);

// Tokens of document d that are cached / a sequence that begins with them.
uint32_t probe(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n);
uint64_t open_on(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n, uint32_t *ret_matched);
// Appends tokens [from, to) of document d in one step.
void append(struct fixture *f, uint64_t seq, uint32_t d, uint32_t from, uint32_t to);
// open_on, and what is missing appended.
uint64_t make(struct fixture *f, uint32_t ns, uint32_t d, uint32_t n);
void release(struct fixture *f, uint64_t seq, enum core_hint hint);

struct core_pool_info pool_of(struct fixture *f);
struct core_ns_info ns_of(struct fixture *f, uint32_t ns);
uint32_t set_ns(struct fixture *f, const char *name, const char *group, uint32_t reserve,
                uint32_t limit);

#endif
