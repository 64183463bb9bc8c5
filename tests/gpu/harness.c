// SPDX-License-Identifier: Apache-2.0
// harness.c: see harness.h. Random numbers, elements, device memory, main.
#include "tests/gpu/harness.h"

#include "kernels/dtype.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- main -----------------------------------------------------------------------------------------

static struct cuda_device device;

const struct cuda_device *harness_device(void) {
    return &device;
}
bool harness_emulated(void) {
#ifdef KVPOOL_EMULATE
    return true;
#else
    return getenv("KVPOOL_TEST_SHORT") != NULL; // a sanitizer is as slow as the emulator
#endif
}

int harness_main(const char *name, const struct CMUnitTest *tests, size_t n) {
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0) {
        fprintf(stderr, "skipped: no CUDA device (%s)\n", cudaGetErrorString(e));
        return 77;
    }
    e = (cudaError_t)cuda_device_init(&device);
    if (e != cudaSuccess) {
        fprintf(stderr, "%s: cuda_device_init: %s\n", name, cudaGetErrorString(e));
        return 1;
    }
    const char *filter = getenv("KVPOOL_TEST_FILTER");
    if (filter != NULL)
        cmocka_set_test_filter(filter);
    return _cmocka_run_group_tests(name, tests, n, NULL, NULL);
}

// --- random numbers -------------------------------------------------------------------------------

uint64_t rng_next(struct harness_rng *r) { // splitmix64
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
uint32_t rng_below(struct harness_rng *r, uint32_t n) {
    return (uint32_t)((rng_next(r) >> 32) * n >> 32);
}
double rng_normal(struct harness_rng *r) { // Box and Muller's
    double u = ((double)(rng_next(r) >> 11) + 1) * 0x1p-53;
    double angle = (double)(rng_next(r) >> 11) * 0x1p-53 * 6.283185307179586;
    return sqrt(-2 * log(u)) * cos(angle);
}
void rng_shuffle(struct harness_rng *r, uint32_t *array, uint32_t n) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = rng_below(r, i), x = array[i - 1];
        array[i - 1] = array[j];
        array[j] = x;
    }
}

// --- elements -------------------------------------------------------------------------------------

size_t element_size(uint32_t dtype) {
    return dtype == CUDA_FP32 ? 4 : dtype == CUDA_E4M3 ? 1 : 2;
}
float e4m3_load(uint8_t b) {
    int exponent = b >> 3 & 15, mantissa = b & 7;
    float x =
        exponent == 0 ? (float)mantissa * 0x1p-9f : ldexpf((float)(8 + mantissa), exponent - 10);
    if ((b & 0x7f) == 0x7f)
        x = NAN;
    return (b & 0x80) != 0 ? -x : x;
}
uint8_t e4m3_store(float x) {
    // The nearest of the 127 magnitudes; of two equally near the one with the even code.
    if (isnan(x))
        return 0x7f;
    uint8_t sign = signbit(x) ? 0x80 : 0;
    double m = fabs((double)x);
    int low = 0, high = 0x7e;
    while (low < high) { // the last code whose value is <= m
        int middle = (low + high + 1) / 2;
        if ((double)e4m3_load((uint8_t)middle) <= m)
            low = middle;
        else
            high = middle - 1;
    }
    if (low < 0x7e) {
        double below = m - (double)e4m3_load((uint8_t)low);
        double above = (double)e4m3_load((uint8_t)(low + 1)) - m;
        if (above < below || (above == below && (low & 1) != 0))
            low++;
    }
    return (uint8_t)(sign | low);
}
double element_load(uint32_t dtype, const void *array, size_t i) {
    if (dtype == CUDA_E4M3)
        return (double)e4m3_load(((const uint8_t *)array)[i]);
    return (double)dtype_load((kvpool_dtype)dtype, array, i);
}
void element_store(uint32_t dtype, void *array, size_t i, double x) {
    if (dtype == CUDA_E4M3)
        ((uint8_t *)array)[i] = e4m3_store((float)x);
    else
        dtype_store((kvpool_dtype)dtype, array, i, (float)x);
}

// --- device memory --------------------------------------------------------------------------------

enum { GUARD = 4096, GUARD_BYTE = 0xa5 };

static void check(cudaError_t e, const char *what, const char *name) {
    if (e != cudaSuccess)
        fail_msg("%s: %s: %s", name, what, cudaGetErrorString(e));
}

struct buffer buffer_new(const char *name, size_t bytes) {
    struct buffer b = {.bytes = bytes, .name = name};
    void *p = NULL;
    size_t all = GUARD + bytes + GUARD;
    check(cudaMalloc(&p, all), "cudaMalloc", name);
    check(cudaMemset(p, GUARD_BYTE, all), "cudaMemset", name);
    b.allocation = p;
    b.device = b.allocation + GUARD;
    if (bytes != 0)
        check(cudaMemset(b.device, 0xff, bytes), "cudaMemset", name);
    b.host = malloc(bytes + 1);
    assert_non_null(b.host);
    memset(b.host, 0xff, bytes);
    return b;
}
void buffer_up(struct buffer *b) {
    if (b->bytes != 0)
        check(cudaMemcpy(b->device, b->host, b->bytes, cudaMemcpyHostToDevice), "copy to", b->name);
}

static void check_guards(const struct buffer *b) {
    static unsigned char guard[GUARD];
    const unsigned char *at[2] = {b->allocation, b->allocation + GUARD + b->bytes};
    for (int side = 0; side < 2; side++) {
        check(cudaMemcpy(guard, at[side], GUARD, cudaMemcpyDeviceToHost), "guard of", b->name);
        for (int i = 0; i < GUARD; i++)
            if (guard[i] != GUARD_BYTE)
                fail_msg("%s: written %d bytes %s it", b->name, side == 0 ? GUARD - i : i,
                         side == 0 ? "before" : "after the end of");
    }
}
void buffer_down(struct buffer *b) {
    if (b->bytes != 0)
        check(cudaMemcpy(b->host, b->device, b->bytes, cudaMemcpyDeviceToHost), "copy from",
              b->name);
    check_guards(b);
}
void buffer_unchanged(struct buffer *b) {
    if (b->allocation == NULL)
        return;
    unsigned char *now = malloc(b->bytes + 1);
    assert_non_null(now);
    if (b->bytes != 0)
        check(cudaMemcpy(now, b->device, b->bytes, cudaMemcpyDeviceToHost), "copy from", b->name);
    size_t i = 0;
    while (i < b->bytes && now[i] == b->host[i])
        i++;
    free(now);
    if (i < b->bytes)
        fail_msg("%s: byte %zu of %zu was written", b->name, i, b->bytes);
    check_guards(b);
}
void buffer_free(struct buffer *b) {
    if (b->allocation != NULL)
        check(cudaFree(b->allocation), "cudaFree", b->name);
    free(b->host);
    *b = (struct buffer){0};
}
void device_sync(void) {
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize", "kernel");
}
