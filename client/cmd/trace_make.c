// SPDX-License-Identifier: Apache-2.0
// trace_make.c: see trace_make.h.
#include "client/cmd/trace_make.h"

#include "client/cmd/format.h"

#include <math.h>
#include <stdlib.h>

static uint64_t mix(uint64_t x) { // splitmix64 (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// [n] cumulated probabilities.
static double *zipf_table(uint32_t n, double s) {
    double *sum = cmd_realloc(NULL, n * sizeof(double));
    double total = 0;
    for (uint32_t k = 0; k < n; k++) {
        total += pow((double)k + 1, -s);
        sum[k] = total;
    }
    for (uint32_t k = 0; k < n; k++) {
        sum[k] /= total;
    }
    return sum;
}

// First k with u < sum[k].
static uint32_t draw(const double *sum, uint32_t n, double u) {
    uint32_t low = 0;
    uint32_t high = n - 1;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (u < sum[mid]) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return low;
}

void trace_make_write(const struct trace_make *make, FILE *out) {
    const uint32_t shared = make->prefix_len / make->block_size; // whole blocks of a prefix
    const uint32_t longest = make->prefix_len + make->suffix_len > make->scan_len
                                 ? make->prefix_len + make->suffix_len
                                 : make->scan_len;
    double *sum = zipf_table(make->prefixes, make->zipf);
    uint64_t fresh = (uint64_t)make->prefixes * shared; // ids below are the prefixes'
    uint64_t rng = mix(make->seed);
    struct trace_line line = {.block_size = make->block_size};
    line.ids = cmd_realloc(NULL, (longest / make->block_size + 1) * sizeof(line.ids[0]));
    for (uint32_t i = 0; i < make->requests; i++) {
        bool scan = make->scan_every > 0 && i % make->scan_every == make->scan_every - 1;
        line.timestamp = (double)i * make->interval_us / 1e3;
        line.input = scan ? make->scan_len : make->prefix_len + make->suffix_len;
        line.output = make->output_len;
        line.blocks = (line.input + make->block_size - 1) / make->block_size;
        rng = mix(rng);
        uint64_t prefix = draw(sum, make->prefixes, (double)(rng >> 11) * 0x1p-53);
        for (uint32_t b = 0; b < line.blocks; b++) {
            line.ids[b] = !scan && b < shared ? prefix * shared + b : fresh++;
        }
        trace_line_write(&line, out);
    }
    trace_line_free(&line);
    free(sum);
}
