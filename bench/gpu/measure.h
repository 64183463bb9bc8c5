// SPDX-License-Identifier: Apache-2.0
// measure.h: how the GPU bench times a kernel: it is captured into a graph, and each sample is one
// replay between two events, after a clean flush of the L2.
//
// Invariants
//  1. The flush READS a buffer of 256 MB twice. Writing one would leave dirty lines, whose write-back
//     the kernel that is measured would pay.
//  2. Contenders take turns (A, B, A, B, ...), so that clocks and heat are the same for all.
//  3. The host is ahead of the device throughout: the launch itself is not in the figure.
// A failing CUDA call ends the process with a line on stderr. One thread.
#ifndef KVPOOL_BENCH_GPU_MEASURE_H
#define KVPOOL_BENCH_GPU_MEASURE_H

#include "kernels/cuda/launch.h"

enum { GPU_SAMPLES_MAX = 101 };

struct gpu_measure {
    struct cuda_device device;
    void *stream;
    void *flush; // 256 MB
    uint32_t *words;
    void *begin, *end; // events, a pair for each contender of a turn
};

// Enqueues what is measured; 0 or the cudaError_t.
typedef int (*gpu_body)(void *arg, void *stream);

struct gpu_contender {
    gpu_body body;
    void *arg;
    // Set by gpu_measure_run: microseconds.
    double median, low, high; // low, high: the 10th and 90th of a hundred
};

void gpu_measure_open(struct gpu_measure *m);
void gpu_measure_close(struct gpu_measure *m);
// Enqueues the flush on m->stream.
void gpu_measure_flush(struct gpu_measure *m);
// Samples: at most GPU_SAMPLES_MAX, after two unmeasured turns. cold: with the flush.
void gpu_measure_run(struct gpu_measure *m, struct gpu_contender *c, uint32_t n, uint32_t samples,
                     bool cold);

// Ends the process unless e is 0.
void gpu_check(int e, const char *what);
// Device memory, zeroed; ends the process when there is none.
void *gpu_alloc(uint64_t bytes);
void gpu_free(void *p);
void gpu_upload(void *to, const void *from, uint64_t bytes);
void gpu_download(void *to, const void *from, uint64_t bytes);

#endif
