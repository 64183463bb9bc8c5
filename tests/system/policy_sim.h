// SPDX-License-Identifier: Apache-2.0
// policy_sim.h: what a pool of one namespace and one client should find in its cache, simulated in
// pages from the rules of daemon/core/cache.h and core.h alone; it shares no code with daemon/core.
//
//   request: look up and reference whole pages of the prompt -> steps: take pages (evict), seal what
//            became full, a page whose content is there already gives way to that -> release the
//            pages from the last to the first
//
// Exact where the daemon may approximate: S3-FIFO's ghosts are the last num_pages tags.
// Thread: one.
#ifndef KVPOOL_TESTS_SYSTEM_POLICY_SIM_H
#define KVPOOL_TESTS_SYSTEM_POLICY_SIM_H

#include "client/cmd/trace_line.h"

enum sim_policy { SIM_LRU, SIM_S3FIFO };

struct policy_sim; // opaque

struct policy_sim *policy_sim_open(enum sim_policy policy, uint32_t num_pages, uint32_t page_size);
void policy_sim_close(struct policy_sim *s);

// Runs one request; its block size is a multiple of the page size. chunk: tokens of one step at most.
// Returns how many tokens of the prompt were found. Aborts when the request alone does not fit.
uint32_t policy_sim_run(struct policy_sim *s, const struct trace_line *line, uint32_t chunk);

uint64_t policy_sim_evicted(const struct policy_sim *s); // pages so far

#endif
