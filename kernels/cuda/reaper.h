// SPDX-License-Identifier: Apache-2.0
// reaper.h: the thread that releases what is done with. CUDA waits for all work on the device before it
// takes most memory back, hundreds of milliseconds while a long prompt is being read: neither the loop nor
// the engine can.
//
//   loop thread:  object done with -> cuda_reaper_give
//   reaper:       takes all there are -> ready -> release(object), one by one -> takes what came meanwhile ...
//
// Invariants
//  1. Handing over takes no memory and waits for nothing: the link lies in the object.
//  2. Objects are released in the order in which they were given, each once, with nothing locked but what
//     cuda_reaper_hold has.
//  3. The bytes of an object count as pending from cuda_reaper_give until its release has returned.
//  4. cuda_reaper_close returns when everything that was given is released and the thread has ended.
//  5. Between cuda_reaper_hold and cuda_reaper_let nothing is being released: what would wait with it may be done.
// Threads: cuda_reaper_give, cuda_reaper_bytes, cuda_reaper_hold: any.
#ifndef KVPOOL_KERNELS_CUDA_REAPER_H
#define KVPOOL_KERNELS_CUDA_REAPER_H

#include "kernels/backend.h"

struct cuda_garbage { // in the object
    struct cuda_garbage *next;
    void (*release)(void *arg, struct cuda_garbage *garbage); // frees the object
    enum backend_place place;
    uint64_t bytes; // that come back where `place` says
};

struct cuda_reaper;

// What the thread calls.
struct cuda_reaper_calls {
    void (*started)(void *arg);  // once, first
    void (*ready)(void *arg);    // when there is something to release; returns when it may be
    void (*released)(void *arg); // after each object
    void *arg;                   // of all of them
};
// Errors: NOMEM, BACKEND.
int cuda_reaper_open(const struct cuda_reaper_calls *calls, struct cuda_reaper **ret,
                     struct err *err);
void cuda_reaper_close(struct cuda_reaper *r); // nothing more is given

void cuda_reaper_give(struct cuda_reaper *r, struct cuda_garbage *garbage);
// wait: for what is being released now. Else false, at once, when something is.
bool cuda_reaper_hold(struct cuda_reaper *r, bool wait);
void cuda_reaper_let(struct cuda_reaper *r);
// Bytes that are still to come back.
uint64_t cuda_reaper_bytes(struct cuda_reaper *r, enum backend_place place);

#endif
