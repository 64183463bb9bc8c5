// SPDX-License-Identifier: Apache-2.0
// tensor.h: is a tensor that a request names safe to touch?
//
//   element (t, h, d) at  offset + (t * token_stride + h * head_stride + d) * elem   bytes
//
//   region  |....[row 0: heads x head_dim]....[row 1]....[row T-1]....|
//                ^offset                                          ^offset + tensor_extent
//
// Invariants
//  1. After tensor_check returned 0, every element lies inside region_bytes and is aligned; the
//     elements of an output are distinct bytes.
//  2. tensor_overlap is exact or errs on the side of "overlaps".
//  3. All arithmetic on values from a request is checked for overflow.
// Pure functions; any thread.
#ifndef KVPOOL_DAEMON_TENSOR_H
#define KVPOOL_DAEMON_TENSOR_H

#include "proto/err.h"

struct tensor {
    uint64_t region; // identity of the memory; tensors of different regions never overlap
    uint64_t region_bytes;
    uint64_t offset;                    // bytes
    uint64_t token_stride, head_stride; // elements
    uint64_t tokens;                    // 0: nothing is accessed
    uint32_t heads, head_dim;           // not 0
    uint32_t elem;                      // bytes of one element
};

// Checks alignment, extent and, for an output, that its elements are distinct. `name` (q, out, ...)
// is for the message. Errors: INVAL.
int tensor_check(const struct tensor *t, const char *name, bool output, struct err *err);

// Both checked. True when some byte may belong to both.
bool tensor_overlap(const struct tensor *a, const struct tensor *b);

#endif
