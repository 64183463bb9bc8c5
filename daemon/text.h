// SPDX-License-Identifier: Apache-2.0
// text.h: a text that grows as it is written.
//
// Invariants
//  1. data is terminated whenever it is not NULL.
//  2. Once memory ran out, failed stays true and nothing more is added.
// Thread: a struct text belongs to one thread.
#ifndef KVPOOL_DAEMON_TEXT_H
#define KVPOOL_DAEMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text { // zeroed: empty
    char *data;
    size_t len, size;
    bool failed;
};

__attribute__((format(printf, 2, 3))) void text_add(struct text *t, const char *fmt, ...);
void text_free(struct text *t);

#endif
