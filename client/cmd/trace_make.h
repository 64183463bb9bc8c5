// SPDX-License-Identifier: Apache-2.0
// trace_make.h: synthetic traces: each request is a shared prefix, chosen by Zipf's law, and a suffix
// of its own; now and then a scan, a long prompt that shares nothing.
//
//     | prefix k: prefix_len tokens | suffix: suffix_len tokens |  -> output_len tokens
//     P(prefix k) ~ 1 / (k + 1)^zipf,  k = 0..prefixes-1
//
// Invariants
//  1. The same arguments give the same trace.
//  2. Blocks of equal content, and only those, have equal ids: the block in which a prefix ends and a
//     suffix begins is the request's own.
// Thread: any; no state.
#ifndef KVPOOL_CMD_TRACE_MAKE_H
#define KVPOOL_CMD_TRACE_MAKE_H

#include "client/cmd/trace_line.h"

struct trace_make {
    uint32_t requests; // scans included
    uint32_t prefixes;
    double zipf; // 0: all alike
    uint32_t prefix_len, suffix_len, output_len;
    uint32_t scan_every; // every so many requests is a scan; 0: none
    uint32_t scan_len;   // tokens of its prompt
    uint32_t block_size;
    uint32_t interval_us; // between requests
    uint64_t seed;
};

void trace_make_write(const struct trace_make *make, FILE *out);

#endif
