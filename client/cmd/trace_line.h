// SPDX-License-Identifier: Apache-2.0
// trace_line.h: one line of a trace file, read and written.
//
// The shape is that of Mooncake's public traces (Qin et al., "Mooncake: Trading more storage for less
// computation", FAST 2025), one object on a line, with keys of our own beside its four:
//
//   {"timestamp":27,"input_length":40,"output_length":8,"hash_ids":[7,9,12],"block_size":16, ...}
//
//   timestamp      ms; when the request came
//   input_length   tokens of the prompt
//   output_length  tokens after it
//   hash_ids       one number for each block_size tokens of the prompt, the last block perhaps short:
//                  equal numbers, equal tokens up to the block's end
//   block_size     tokens a block; the caller's default where it is missing
//   opened         how many tokens of the prompt were looked up in the cache; all but the last where
//                  it is missing, since one must be computed
//   matched        how many of them were found, when it was recorded
//
// Invariants
//  1. A line is taken whole or refused with a reason; unknown keys with flat values are skipped.
//  2. Lines that are no sequence's ({"op":...}, {"dropped":...}) are told apart, not refused.
// Thread: any; no state.
#ifndef KVPOOL_CMD_TRACE_LINE_H
#define KVPOOL_CMD_TRACE_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TRACE_LINE_MAX_TOKENS (1u << 24) // of a prompt, and of an output
#define TRACE_REASON_SIZE 128

enum trace_kind { TRACE_SEQUENCE, TRACE_REQUEST, TRACE_DROPPED };

struct trace_line {
    double timestamp; // ms
    uint64_t dropped; // TRACE_DROPPED: lines
    uint64_t *ids;    // [blocks], malloc
    uint32_t blocks;
    enum trace_kind kind;
    uint32_t input, output, block_size;
    uint32_t opened, matched;
};

// text is terminated; a newline at its end is fine. False: *reason says why not, *ret is untouched.
bool trace_line_parse(const char *text, uint32_t default_block_size, struct trace_line *ret,
                      char reason[TRACE_REASON_SIZE]);
void trace_line_free(struct trace_line *line);

// Writes a TRACE_SEQUENCE line in Mooncake's shape, with block_size.
void trace_line_write(const struct trace_line *line, FILE *out);

// Reads a whole file, "-" is stdin: its sequences only, at most `limit` (0: all), and the sum of what
// was dropped while it was recorded. False after saying file, line and reason on stderr.
struct trace_file {
    struct trace_line *lines;
    size_t n;
    uint64_t dropped;
};
bool trace_file_read(const char *path, uint32_t default_block_size, uint32_t limit,
                     struct trace_file *ret);
void trace_file_free(struct trace_file *file);

#endif
