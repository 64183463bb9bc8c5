// SPDX-License-Identifier: Apache-2.0
// bench.h: what the benches of `kvpool-bench` share: one figure out, one clock, one percentile.
// One file a bench (bench_core.c, bench_control.c, ...; bench_prefix.c has a second); bench.c has
// main.
// Thread: the bench's main thread.
#ifndef KVPOOL_BENCH_BENCH_H
#define KVPOOL_BENCH_BENCH_H

#include <stddef.h>
#include <stdint.h>

// Prints one figure: with --json
// {"bench":"core","case":"alloc_free","metric":"pages_per_s","value":…}, else an aligned line for
// people.
void bench_emit(const char *bench, const char *case_name, const char *metric, double value);

uint64_t bench_now_ns(void);                                  // CLOCK_MONOTONIC
double bench_percentile(double *samples, size_t n, double p); // sorts; p in 0..100
double bench_quick_scale(void); // 1.0, or a small factor with --quick: multiplies repetitions

// Each returns 0, or 1 after saying on stderr what failed.
int bench_core(void);
int bench_control(void);
int bench_attention(void);
int bench_prefix(void);
int bench_prefix_core(void); // a part of bench_prefix

#endif
