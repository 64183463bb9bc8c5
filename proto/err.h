// SPDX-License-Identifier: Apache-2.0
// err.h: a status with its message, the currency of errors between the layers.
//
// Invariants
//  1. A function that takes `struct err *` returns the status it stored, or 0 and leaves it alone.
//  2. `text` is one line, terminated, without the status's own text.
//  3. The first function that *decides* an error fills it; callers hand it on.
// Threads: a struct err belongs to one thread at a time. `err` may be NULL everywhere.
#ifndef KVPOOL_PROTO_ERR_H
#define KVPOOL_PROTO_ERR_H

#include <kvpool/kvpool.h>

#define ERR_TEXT_MAX 200

struct err {
    int status;      // a KVPOOL_E_*
    uint64_t detail; // E_NOSPACE: pages missing; E_AGAIN: ns until a try is worth it; else 0
    char text[ERR_TEXT_MAX]; // one line
};

// Fills *err and returns `status`.
__attribute__((format(printf, 3, 4))) int err_set(struct err *err, int status, const char *fmt,
                                                  ...);

// The same with a detail value.
__attribute__((format(printf, 4, 5))) int err_set_detail(struct err *err, int status,
                                                         uint64_t detail, const char *fmt, ...);

#endif
