// SPDX-License-Identifier: Apache-2.0
// args.h: public structs that grow: `size` says how much of one the caller knows.
//
// Invariants
//  1. A struct smaller than the first version's, or one that ends inside a field, is refused; fields
//     that the caller does not know read as 0. Of a larger one only what this library knows is read
//     or written.
//  2. `size` itself is never written.
// Threads: any, no state.
#ifndef KVPOOL_CLIENT_LIB_ARGS_H
#define KVPOOL_CLIENT_LIB_ARGS_H

#include "proto/err.h"

// Copies the `known` bytes of *src, which begins with its size. Errors: INVAL.
int args_read(void *dst, size_t known, const void *src, const char *name, struct err *err);

// The same for a struct whose first version ended at `first`: one of exactly that size will do, and
// the fields after it are 0.
int args_read_grown(void *dst, size_t known, size_t first, const void *src, const char *name,
                    struct err *err);

// Checks a struct to be written later. Errors: INVAL.
int args_check(size_t known, const void *dst, const char *name, struct err *err);

// The same for a struct whose first version ended at `first`: one of exactly that size will do.
int args_check_grown(size_t known, size_t first, const void *dst, const char *name,
                     struct err *err);

// Writes all but the size, and no more than the caller knows.
void args_write(void *dst, const void *src, size_t known);

// Copies a name of 1..KVPOOL_NAME_MAX bytes into a zero-padded field of KVPOOL_NAME_MAX + 1.
int args_name(char *dst, const char *name, const char *what, struct err *err);

#endif
