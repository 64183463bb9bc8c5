// SPDX-License-Identifier: Apache-2.0
// health.h: whether the daemon makes progress: the loop by a beat that it gives itself, the device
// thread by the time since when it has had work and finished none.
//
// Invariants
//  1. health_check reads atomics only: it answers also while the loop and the device hang.
//  2. Red is never sticky: who advances again is healthy again.
// Threads: health_check any; the rest the loop thread, before any check except health_beat.
#ifndef KVPOOL_DAEMON_HEALTH_H
#define KVPOOL_DAEMON_HEALTH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HEALTH_BEAT_MS 200
#define HEALTH_REASON 128

// uv_hrtime() since when the device has had work without finishing any; 0: no work. Any thread.
typedef uint64_t (*health_device_fn)(const void *arg);

struct health {
    atomic_uint_least64_t beat_ns; // uv_hrtime() of the loop's last beat
    uint64_t deadline_ns;
    health_device_fn device;
    const void *arg;
};

void health_init(struct health *h, uint32_t deadline_ms, health_device_fn device, const void *arg);
void health_beat(struct health *h);
// *reason is "ok", or says who has not advanced and for how long.
bool health_check(const struct health *h, char reason[HEALTH_REASON]);

#endif
