// SPDX-License-Identifier: Apache-2.0
// upload.h: words gathered from many places of the host and written to many of the device by one
// launch: deltas of page tables, arrays of a batch, pairs of pages.
//
//   chunk:  | starts [CUDA_UPLOAD_SEGMENTS] | {destination, count, words} {destination, ...} ... |
//
// A copy of a few kilobytes by the copy engine would cost as much as the launch of a kernel, and
// another dependency between engines; so the kernel reads the pinned host memory itself.
//
// Invariants
//  1. Destinations of one launch do not overlap: whoever adds words flushes first where they would.
//  2. What was added is on the device for every kernel launched after cuda_upload_flush.
// Threads: the submitting thread.
#ifndef KVPOOL_KERNELS_CUDA_UPLOAD_H
#define KVPOOL_KERNELS_CUDA_UPLOAD_H

#include "kernels/cuda/flight.h"
#include "kernels/cuda/launch.h"

enum {
    CUDA_UPLOAD_SEGMENTS = 2048,      // of a chunk
    CUDA_UPLOAD_SEGMENT_WORDS = 1024, // longer ones are cut, so that many blocks share the work
};

struct cuda_upload {
    const struct cuda_device *device;
    struct cuda_flights *flights;
    struct cuda_flight *flight;
    cudaStream_t stream;
    struct cuda_chunk *chunk; // NULL: none yet
    // Of the chunk: used, and where what is not flushed begins.
    uint32_t starts, words;
    uint32_t first_start, first_word;
    uint32_t *lowest; // destination of what is not flushed
};

// Errors of both: BACKEND.
int cuda_upload_add(struct cuda_upload *u, uint32_t *destination, const uint32_t *words,
                    uint32_t count, struct err *err);
// *ret_launched (may be NULL): whether there was anything.
int cuda_upload_flush(struct cuda_upload *u, bool *ret_launched, struct err *err);

#endif
