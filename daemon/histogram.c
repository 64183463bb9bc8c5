// SPDX-License-Identifier: Apache-2.0
// histogram.c: see histogram.h.
#include "daemon/histogram.h"

const uint32_t histogram_bounds_us[HISTOGRAM_BOUNDS] = {
    10,    25,    50,     100,    250,    500,     1000,    2500,    5000,     10000,
    25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000,
};

void histogram_add(struct histogram *h, uint64_t ns) {
    uint32_t i = 0;
    while (i < HISTOGRAM_BOUNDS && ns > histogram_bounds_us[i] * UINT64_C(1000))
        i++;
    h->count[i]++;
    h->total++;
    h->sum_ns += ns;
}

uint64_t histogram_below(const struct histogram *h, uint32_t i) {
    uint64_t n = 0;
    for (uint32_t j = 0; j <= i && j <= HISTOGRAM_BOUNDS; j++)
        n += h->count[j];
    return n;
}

uint64_t histogram_quantile_us(const struct histogram *h, double q) {
    double wanted = q * (double)h->total;
    uint64_t n = 0;
    if (h->total == 0)
        return 0;
    for (uint32_t i = 0; i < HISTOGRAM_BOUNDS; i++) {
        n += h->count[i];
        if ((double)n >= wanted)
            return histogram_bounds_us[i];
    }
    return UINT64_MAX;
}
