// SPDX-License-Identifier: Apache-2.0
// health.c: see health.h.
#include "daemon/health.h"

#include <stdio.h>
#include <uv.h>

void health_init(struct health *h, uint32_t deadline_ms, health_device_fn device, const void *arg) {
    h->deadline_ns = (uint64_t)deadline_ms * 1000000u;
    h->device = device;
    h->arg = arg;
    atomic_init(&h->beat_ns, uv_hrtime());
}

void health_beat(struct health *h) {
    atomic_store(&h->beat_ns, uv_hrtime());
}

// A time of another thread may lie just after ours.
static uint64_t since(uint64_t then_ns, uint64_t now_ns) {
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

bool health_check(const struct health *h, char reason[HEALTH_REASON]) {
    const uint64_t now = uv_hrtime();
    const uint64_t loop = since(atomic_load(&h->beat_ns), now);
    const uint64_t began = h->device(h->arg);
    const uint64_t device = began != 0 ? since(began, now) : 0;
    if (loop > h->deadline_ns) {
        snprintf(reason, HEALTH_REASON, "the loop has not advanced for %.1f s", (double)loop / 1e9);
        return false;
    }
    if (device > h->deadline_ns) {
        snprintf(reason, HEALTH_REASON, "the device thread has not advanced for %.1f s",
                 (double)device / 1e9);
        return false;
    }
    snprintf(reason, HEALTH_REASON, "ok");
    return true;
}
