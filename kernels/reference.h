// SPDX-License-Identifier: Apache-2.0
// reference.h: append and attention written down as their definitions, in fp64 and without any
// cleverness: what every backend is tested against.
//
// K and V are the values that pages stand for: those of an fp8 pool times their scale.
//
// Invariant: shares no code with a backend, except the conversions of dtype.h.
// Any thread; no state.
#ifndef KVPOOL_KERNELS_REFERENCE_H
#define KVPOOL_KERNELS_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct reference_attention {
    uint32_t qo_heads, kv_heads, head_dim;
    uint32_t q_len, kv_len;
    bool causal;
    int32_t window_left; // -1: none
    double sm_scale, soft_cap;
    const double *q;     // [q_len][qo_heads][head_dim]
    const double *k;     // [kv_len][kv_heads][head_dim]
    const double *v;     // [kv_len][kv_heads][head_dim]
    const double *sinks; // [qo_heads], NULL: none
    double *out;         // [q_len][qo_heads][head_dim]
    double *lse;         // [q_len][qo_heads]
    double *scratch;     // [kv_len]
};

void reference_attend(const struct reference_attention *a);
// Query tokens first..first+count only: q, out and lse hold count tokens, that of `first` first.
// Cost: count * qo_heads * (keys that they see) * head_dim; nothing is allocated.
void reference_attend_rows(const struct reference_attention *a, uint32_t first, uint32_t count);

// Index, in elements, of element d of head h of token `position` of one sequence in a plane
// [num_pages][2][kv_heads][page_size][head_dim]; value: 0 for K, 1 for V.
size_t reference_element(const uint32_t *page_ids, uint32_t kv_heads, uint32_t page_size,
                         uint32_t head_dim, uint32_t value, uint32_t position, uint32_t h,
                         uint32_t d);

#endif
