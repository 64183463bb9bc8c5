// SPDX-License-Identifier: Apache-2.0
// run.h: a program as launches on a stream.
//
//   TABLE   gathered; one launch for all of them, the batch's arrays and a copy's pairs with them
//   COPY    one launch
//   APPEND  one launch
//   ATTEND  sequences of 1..8 new tokens: decode; of more: prefill; what these do not take: generic.
//           A plan before them where the stream has none for this batch and shape.
//           Of large batch-invariant batches, several launches and plans
//
// So a step of a new batch is table update, append, plan, attention: four launches, the last three
// each overlapping the end of the one before it; its further layers are two.
//
// Invariants
//  1. Ops take effect in their order.
//  2. Which kernel works on a sequence depends on the shape and on its own query length only, so that
//     batch_invariant holds, however many neighbours it has; a part of a longer op is never given to
//     decode (the backend's row_block is 0: nobody cuts ops for it).
//  3. Without memory for a plan or workspace the generic kernel runs instead: slow, and correct. Its bits
//     are others: what is batch-invariant is worked on by fewer sequences a launch, or left out.
//  4. An ATTEND is left out alone: what comes before and after it in the program is done.
// Threads: the submitting thread.
#ifndef KVPOOL_KERNELS_CUDA_RUN_H
#define KVPOOL_KERNELS_CUDA_RUN_H

#include "kernels/cuda/pool.h"
#include "kernels/cuda/stream.h"

// Device address of memory that a tensor can be in.
struct backend_mem;
char *cuda_mem_address(const struct backend_mem *mem);

// Enqueues the program's work; the flight holds its payload, and its status says whether an ATTEND was left
// out. Errors: BACKEND.
int cuda_run(const struct cuda_device *device, struct cuda_flights *flights,
             struct backend_stream *s, struct cuda_flight *flight,
             const struct backend_program *program, struct err *err);

#endif
