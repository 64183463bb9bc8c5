// SPDX-License-Identifier: Apache-2.0
// recompute.h: the checker. The whole sequence through the model in one causal pass: no cache, no
// pages, no kvpool; attention is written out plainly (two passes, fp32).
// Threads: any; no state.
#ifndef KVPOOL_EXAMPLES_RECOMPUTE_H
#define KVPOOL_EXAMPLES_RECOMPUTE_H

#include "examples/llama.h"

// Logits after tokens first .. n-1 of the sequence: ret_logits[n - first][vocab], where row j
// predicts token first + j + 1. Costs O(n * n). 0 or -1 (out of memory, or too long: said on
// stderr).
int recompute(const struct llama *m, uint32_t n, const uint32_t *tokens, uint32_t first,
              float *ret_logits);

#endif
