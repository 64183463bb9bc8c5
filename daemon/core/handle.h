// SPDX-License-Identifier: Apache-2.0
// handle.h: the values by which clients name objects: generation << 32 | index.
//
// Invariants
//  1. A generation is never 0, so a handle is never 0.
//  2. Freeing a slot moves its generation on: an old handle never names the slot's next object.
//  3. First generations come from the epoch and the kind of object, mixed: handles of another
//     instance of the daemon, or of another kind, do not match.
// Thread: any (pure functions).
#ifndef KVPOOL_DAEMON_CORE_HANDLE_H
#define KVPOOL_DAEMON_CORE_HANDLE_H

#include <stdint.h>

enum handle_kind { HANDLE_SESSION = 1, HANDLE_POOL = 2, HANDLE_SEQ = 3, HANDLE_PIN = 4 };

static inline uint64_t handle_make(uint32_t generation, uint32_t index) {
    return (uint64_t)generation << 32 | index;
}

static inline uint32_t handle_index(uint64_t handle) {
    return (uint32_t)handle;
}

static inline uint32_t handle_generation(uint64_t handle) {
    return (uint32_t)(handle >> 32);
}

static inline uint32_t handle_next(uint32_t generation) {
    return generation == UINT32_MAX ? 1 : generation + 1;
}

// The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", 2014): every bit of x reaches every bit of the result.
static inline uint64_t handle_mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

static inline uint32_t handle_first(uint64_t epoch, enum handle_kind kind) {
    uint32_t g = (uint32_t)handle_mix(handle_mix(epoch) ^ (uint64_t)kind);
    return g == 0 ? 1 : g;
}

#endif
