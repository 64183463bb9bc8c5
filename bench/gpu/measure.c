// SPDX-License-Identifier: Apache-2.0
// measure.c: see measure.h.
#include "bench/gpu/measure.h"

#include "bench/gpu/roof.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FLUSH_BYTES = 256 << 20, CONTENDERS_MAX = 8, WARM_UP = 2 };

void gpu_check(int e, const char *what) {
    if (e == 0)
        return;
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString((cudaError_t)e));
    exit(1);
}

void *gpu_alloc(uint64_t bytes) {
    void *p = NULL;
    gpu_check((int)cudaMalloc(&p, bytes == 0 ? 16 : bytes), "cudaMalloc");
    gpu_check((int)cudaMemset(p, 0, bytes == 0 ? 16 : bytes), "cudaMemset");
    return p;
}

void gpu_free(void *p) {
    gpu_check((int)cudaFree(p), "cudaFree");
}

void gpu_upload(void *to, const void *from, uint64_t bytes) {
    gpu_check((int)cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload");
}

void gpu_download(void *to, const void *from, uint64_t bytes) {
    gpu_check((int)cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download");
}

void gpu_measure_open(struct gpu_measure *m) {
    memset(m, 0, sizeof(*m));
    gpu_check(cuda_device_init(&m->device), "device");
    cudaStream_t stream;
    gpu_check((int)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    m->stream = stream;
    m->flush = gpu_alloc(FLUSH_BYTES);
    m->words = gpu_alloc(CUDA_ROOF_WORDS * sizeof(uint32_t));
    cudaEvent_t *events = calloc(2 * CONTENDERS_MAX, sizeof(*events));
    if (events == NULL)
        gpu_check((int)cudaErrorMemoryAllocation, "events");
    for (int i = 0; i < 2 * CONTENDERS_MAX; i++)
        gpu_check((int)cudaEventCreate(&events[i]), "event");
    m->begin = events;
    m->end = events + CONTENDERS_MAX;
}

void gpu_measure_close(struct gpu_measure *m) {
    cudaEvent_t *events = m->begin;
    for (int i = 0; i < 2 * CONTENDERS_MAX; i++)
        gpu_check((int)cudaEventDestroy(events[i]), "event");
    free(events);
    gpu_free(m->words);
    gpu_free(m->flush);
    gpu_check((int)cudaStreamDestroy(m->stream), "stream");
}

void gpu_measure_flush(struct gpu_measure *m) {
    for (int pass = 0; pass < 2; pass++)
        gpu_check(cuda_roof_read(&m->device, m->flush, FLUSH_BYTES, 4, m->words, m->stream),
                  "flush");
}

static cudaGraphExec_t capture(const struct gpu_measure *m, const struct gpu_contender *c) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    gpu_check(c->body(c->arg, m->stream), "first launch");
    gpu_check((int)cudaStreamSynchronize(m->stream), "first launch");
    gpu_check((int)cudaStreamBeginCapture(m->stream, cudaStreamCaptureModeThreadLocal), "capture");
    gpu_check(c->body(c->arg, m->stream), "captured launch");
    gpu_check((int)cudaStreamEndCapture(m->stream, &graph), "capture");
    gpu_check((int)cudaGraphInstantiate(&exec, graph, 0), "graph");
    gpu_check((int)cudaGraphDestroy(graph), "graph");
    gpu_check((int)cudaGraphUpload(exec, m->stream), "graph");
    return exec;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void gpu_measure_run(struct gpu_measure *m, struct gpu_contender *c, uint32_t n, uint32_t samples,
                     bool cold) {
    static double us[CONTENDERS_MAX][GPU_SAMPLES_MAX];
    cudaGraphExec_t exec[CONTENDERS_MAX];
    cudaEvent_t *begin = m->begin, *end = m->end;
    if (n > CONTENDERS_MAX || samples > GPU_SAMPLES_MAX || samples == 0)
        gpu_check((int)cudaErrorInvalidValue, "samples");
    for (uint32_t i = 0; i < n; i++)
        exec[i] = capture(m, &c[i]);
    for (uint32_t turn = 0; turn < WARM_UP + samples; turn++) {
        for (uint32_t i = 0; i < n; i++) {
            if (cold)
                gpu_measure_flush(m);
            gpu_check((int)cudaEventRecord(begin[i], m->stream), "event");
            gpu_check((int)cudaGraphLaunch(exec[i], m->stream), "replay");
            gpu_check((int)cudaEventRecord(end[i], m->stream), "event");
        }
        gpu_check((int)cudaStreamSynchronize(m->stream), "replay");
        for (uint32_t i = 0; turn >= WARM_UP && i < n; i++) {
            float ms;
            gpu_check((int)cudaEventElapsedTime(&ms, begin[i], end[i]), "event");
            us[i][turn - WARM_UP] = 1e3 * (double)ms;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        gpu_check((int)cudaGraphExecDestroy(exec[i]), "graph");
        qsort(us[i], samples, sizeof(double), by_size);
        c[i].median = samples % 2 == 1 ? us[i][samples / 2]
                                       : (us[i][samples / 2 - 1] + us[i][samples / 2]) / 2;
        c[i].low = us[i][samples / 10];
        c[i].high = us[i][samples - 1 - samples / 10];
    }
}
