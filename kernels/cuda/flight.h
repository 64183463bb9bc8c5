// SPDX-License-Identifier: Apache-2.0
// flight.h: programs that are with the device, and the thread that learns of their end.
//
//   engine thread:      cuda_flight_get -> fill chunks, launch kernels -> cuda_flight_launch
//   completion thread:  cudaEventQuery of every queue's first flight -> its resources back -> done
//
// The thread asks, since nothing else tells it without blocking: at once at first, then ever more
// seldom (at most every 50 us) while nothing ends; it sleeps while nothing is in flight. Payload that
// kernels read lies in chunks of pinned host memory that the device reaches.
//
// Invariants
//  1. Flights of one queue end in the order of cuda_flight_launch; `done` is called once for each,
//     on the completion thread, with nothing locked.
//  2. A chunk belongs to one flight, from cuda_flight_chunk until the flight has ended: the host
//     writes no payload that the device may still read.
//  3. After a flight's `done` nothing of it, and if it was the last one nothing of its queue, is touched.
//  4. The first failure is kept as text; there is no way back from it.
// Threads: get, chunk, put and launch: one at a time. cuda_flights_idle, cuda_flights_failure and
// cuda_flights_fail: any.
#ifndef KVPOOL_KERNELS_CUDA_FLIGHT_H
#define KVPOOL_KERNELS_CUDA_FLIGHT_H

#include "kernels/backend.h"

#include <cuda_runtime_api.h>

enum { CUDA_CHUNK_WORDS = 16384 };

struct cuda_flights;

struct cuda_chunk {
    uint32_t *host, *device; // [CUDA_CHUNK_WORDS], the same memory
    struct cuda_chunk *next;
};

struct cuda_queue { // of one stream; zero when new
    struct cuda_flight *head, *tail;
    struct cuda_queue *next; // of those that are not empty
};

struct cuda_flight {
    cudaEvent_t event; // to be recorded behind the program's last kernel
    struct cuda_chunk *chunks;
    struct cuda_queue *queue;
    backend_done_fn done;
    void *arg;
    int status; // done's if the device does its part: 0, or NOMEM
    struct cuda_flight *next;
};

// Errors: NOMEM, BACKEND.
int cuda_flights_open(int device, struct cuda_flights **ret, struct err *err);
void cuda_flights_close(struct cuda_flights *f); // nothing is in flight

// Errors: BACKEND (out of host memory, or CUDA's).
int cuda_flight_get(struct cuda_flights *f, struct cuda_flight **ret, struct err *err);
int cuda_flight_chunk(struct cuda_flights *f, struct cuda_flight *flight, struct cuda_chunk **ret,
                      struct err *err);
void cuda_flight_put(struct cuda_flights *f, struct cuda_flight *flight); // not launched
void cuda_flight_launch(struct cuda_flights *f, struct cuda_flight *flight);
// No program is with the device, or on its way there: every flight that was got has ended or was put back.
bool cuda_flights_idle(const struct cuda_flights *f);

// Why the device is lost, or NULL.
const char *cuda_flights_failure(const struct cuda_flights *f);
void cuda_flights_fail(struct cuda_flights *f, const char *text);

#endif
