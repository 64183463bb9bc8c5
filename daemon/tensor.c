// SPDX-License-Identifier: Apache-2.0
// tensor.c: see tensor.h.
#include "daemon/tensor.h"

#include <inttypes.h>

// Bytes from offset to the end of the last element. False on overflow. tokens > 0.
static bool extent(const struct tensor *t, uint64_t *ret) {
    uint64_t rows, cols, n;
    if (__builtin_mul_overflow(t->tokens - 1, t->token_stride, &rows) ||
        __builtin_mul_overflow((uint64_t)t->heads - 1, t->head_stride, &cols) ||
        __builtin_add_overflow(rows, cols, &n) || __builtin_add_overflow(n, t->head_dim, &n) ||
        __builtin_mul_overflow(n, t->elem, &n))
        return false;
    *ret = n;
    return true;
}

// Elements from the start of a row to the end of its last head. Cannot overflow once checked.
static uint64_t row_width(const struct tensor *t) {
    return ((uint64_t)t->heads - 1) * t->head_stride + t->head_dim;
}

// Rows one after the other, or heads one after the other (a transposed tensor).
static bool distinct(const struct tensor *t) {
    bool one_head = t->heads == 1, one_token = t->tokens == 1;
    bool by_rows = (one_head || t->head_stride >= t->head_dim) &&
                   (one_token || t->token_stride >= row_width(t));
    bool by_heads = (one_token || t->token_stride >= t->head_dim) &&
                    (one_head || t->head_stride >= (t->tokens - 1) * t->token_stride + t->head_dim);
    return by_rows || by_heads;
}

int tensor_check(const struct tensor *t, const char *name, bool output, struct err *err) {
    if (t->token_stride == 0 || t->head_stride == 0)
        return err_set(err, KVPOOL_E_INVAL, "%s: a stride is 0", name);
    if (t->offset % t->elem != 0)
        return err_set(err, KVPOOL_E_INVAL,
                       "%s: offset %" PRIu64 " is not a multiple of the element size %u", name,
                       t->offset, t->elem);
    if (t->tokens == 0)
        return 0;
    uint64_t bytes;
    if (!extent(t, &bytes) || t->offset > t->region_bytes || bytes > t->region_bytes - t->offset)
        return err_set(err, KVPOOL_E_INVAL,
                       "%s: leaves its region: %" PRIu64 " tokens at offset %" PRIu64
                       ", the region has %" PRIu64 " bytes",
                       name, t->tokens, t->offset, t->region_bytes);
    if (output && !distinct(t))
        return err_set(err, KVPOOL_E_INVAL, "%s: its strides make elements overlap", name);
    return 0;
}

// Do the byte columns of two tensors with rows `stride` bytes apart stay apart? A row may wrap
// around the stride, so columns are arcs on a circle of `stride` bytes.
static bool columns_disjoint(const struct tensor *a, const struct tensor *b, uint64_t stride) {
    uint64_t wa = row_width(a) * a->elem, wb = row_width(b) * b->elem;
    if (wa > stride || wb > stride)
        return false;
    uint64_t ca = a->offset % stride, cb = b->offset % stride;
    uint64_t distance = cb >= ca ? cb - ca : stride - (ca - cb); // from a's start to b's
    return distance >= wa && stride - distance >= wb;
}

bool tensor_overlap(const struct tensor *a, const struct tensor *b) {
    uint64_t na, nb;
    if (a->region != b->region || a->tokens == 0 || b->tokens == 0)
        return false;
    if (!extent(a, &na) || !extent(b, &nb))
        return true;
    if (a->offset + na <= b->offset || b->offset + nb <= a->offset)
        return false;
    // A single row has whatever stride the other one has.
    const struct tensor *rows = a->tokens > 1 ? a : b;
    if (rows->tokens == 1)
        return true;
    uint64_t stride = rows->token_stride * rows->elem;
    if (a->tokens > 1 && b->tokens > 1 && a->token_stride * a->elem != b->token_stride * b->elem)
        return true;
    return !columns_disjoint(a, b, stride);
}
