// SPDX-License-Identifier: Apache-2.0
// exports.c: libkvpool_gpu_bench.so: the launchers, with names that are visible outside, for a process
// that has tensors and streams of its own (bench.py). Structs as in launch.h; kvpool_gpu_sizeof says
// how large they are here, so that a mirror of them in another language can be checked.
//
// Thread: as launch.h.
#include "bench/gpu/probe.h"
#include "bench/gpu/roof.h"
#include "bench/gpu/shapes.h"

#include <string.h>

#define EXPORT __attribute__((visibility("default")))

// Bytes of the struct of that name, 0 when there is none.
EXPORT size_t kvpool_gpu_sizeof(const char *name);
EXPORT int kvpool_gpu_device(struct cuda_device *ret);
EXPORT bool kvpool_gpu_decode_takes(const struct cuda_attention *a);
EXPORT size_t kvpool_gpu_decode_plan_bytes(const struct cuda_device *d,
                                           const struct cuda_attention *a);
EXPORT size_t kvpool_gpu_decode_workspace_bytes(const struct cuda_device *d,
                                                const struct cuda_attention *a);
EXPORT int kvpool_gpu_decode_plan(const struct cuda_device *d, const struct cuda_attention *a,
                                  void *stream);
EXPORT int kvpool_gpu_decode(const struct cuda_device *d, const struct cuda_attention *a,
                             void *stream);
EXPORT bool kvpool_gpu_prefill_takes(const struct cuda_attention *a);
EXPORT size_t kvpool_gpu_prefill_plan_bytes(const struct cuda_device *d,
                                            const struct cuda_attention *a);
EXPORT size_t kvpool_gpu_prefill_workspace_bytes(const struct cuda_device *d,
                                                 const struct cuda_attention *a);
EXPORT int kvpool_gpu_prefill_plan(const struct cuda_device *d, const struct cuda_attention *a,
                                   void *stream);
EXPORT int kvpool_gpu_prefill(const struct cuda_device *d, const struct cuda_attention *a,
                              void *stream);
EXPORT int kvpool_gpu_generic(const struct cuda_device *d, const struct cuda_attention *a,
                              void *stream);
EXPORT int kvpool_gpu_append(const struct cuda_device *d, const struct cuda_append *a,
                             void *stream);
EXPORT int kvpool_gpu_roof_read(const struct cuda_device *d, const void *from, uint64_t bytes,
                                uint32_t ctas_per_sm, uint32_t *words, void *stream);
EXPORT int kvpool_gpu_roof_copy(const struct cuda_device *d, void *to, const void *from,
                                uint64_t bytes, uint32_t ctas_per_sm, void *stream);
EXPORT int kvpool_gpu_empty(void *stream);
EXPORT size_t kvpool_gpu_shapes(const struct gpu_shape **ret);
EXPORT void kvpool_gpu_shape_lengths(const struct gpu_shape *s, uint32_t *kv_len);
EXPORT double kvpool_gpu_shape_kv_bytes(const struct gpu_shape *s);
EXPORT double kvpool_gpu_shape_flops(const struct gpu_shape *s);

size_t kvpool_gpu_sizeof(const char *name) {
    static const struct {
        const char *name;
        size_t bytes;
    } sizes[] = {
        {"device", sizeof(struct cuda_device)},       {"kv", sizeof(struct cuda_kv)},
        {"batch", sizeof(struct cuda_batch)},         {"tensor", sizeof(struct cuda_tensor)},
        {"attention", sizeof(struct cuda_attention)}, {"append", sizeof(struct cuda_append)},
        {"shape", sizeof(struct gpu_shape)},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (strcmp(sizes[i].name, name) == 0)
            return sizes[i].bytes;
    return 0;
}

int kvpool_gpu_device(struct cuda_device *ret) {
    return cuda_device_init(ret);
}

bool kvpool_gpu_decode_takes(const struct cuda_attention *a) {
    return cuda_decode_takes(a);
}
size_t kvpool_gpu_decode_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    return cuda_decode_plan_bytes(d, a);
}
size_t kvpool_gpu_decode_workspace_bytes(const struct cuda_device *d,
                                         const struct cuda_attention *a) {
    return cuda_decode_workspace_bytes(d, a);
}
int kvpool_gpu_decode_plan(const struct cuda_device *d, const struct cuda_attention *a,
                           void *stream) {
    return cuda_decode_plan(d, a, stream);
}
int kvpool_gpu_decode(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    return cuda_decode(d, a, stream);
}

bool kvpool_gpu_prefill_takes(const struct cuda_attention *a) {
    return cuda_prefill_takes(a);
}
size_t kvpool_gpu_prefill_plan_bytes(const struct cuda_device *d, const struct cuda_attention *a) {
    return cuda_prefill_plan_bytes(d, a);
}
size_t kvpool_gpu_prefill_workspace_bytes(const struct cuda_device *d,
                                          const struct cuda_attention *a) {
    return cuda_prefill_workspace_bytes(d, a);
}
int kvpool_gpu_prefill_plan(const struct cuda_device *d, const struct cuda_attention *a,
                            void *stream) {
    return cuda_prefill_plan(d, a, stream);
}
int kvpool_gpu_prefill(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    return cuda_prefill(d, a, stream);
}

int kvpool_gpu_generic(const struct cuda_device *d, const struct cuda_attention *a, void *stream) {
    return cuda_generic(d, a, stream);
}
int kvpool_gpu_append(const struct cuda_device *d, const struct cuda_append *a, void *stream) {
    return cuda_append(d, a, stream);
}

int kvpool_gpu_roof_read(const struct cuda_device *d, const void *from, uint64_t bytes,
                         uint32_t ctas_per_sm, uint32_t *words, void *stream) {
    return cuda_roof_read(d, from, bytes, ctas_per_sm, words, stream);
}
int kvpool_gpu_roof_copy(const struct cuda_device *d, void *to, const void *from, uint64_t bytes,
                         uint32_t ctas_per_sm, void *stream) {
    return cuda_roof_copy(d, to, from, bytes, ctas_per_sm, stream);
}
int kvpool_gpu_empty(void *stream) {
    return gpu_probe_empty(stream);
}

size_t kvpool_gpu_shapes(const struct gpu_shape **ret) {
    return gpu_shapes(ret);
}
void kvpool_gpu_shape_lengths(const struct gpu_shape *s, uint32_t *kv_len) {
    gpu_shape_lengths(s, kv_len);
}
double kvpool_gpu_shape_kv_bytes(const struct gpu_shape *s) {
    return gpu_shape_kv_bytes(s);
}
double kvpool_gpu_shape_flops(const struct gpu_shape *s) {
    return gpu_shape_flops(s);
}
