// SPDX-License-Identifier: Apache-2.0
// Finding and opening backends; the cpu backend's memory (that of cuda: tests/gpu).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool cuda_opens(void) {
    const struct backend_ops *ops = NULL;
    const struct backend_config config = {0};
    struct backend *b = NULL;
    if (backend_find("cuda", &ops, NULL) != 0 || ops->open(&config, &b, NULL) != 0)
        return false;
    ops->close(b);
    return true;
}

static void test_auto_is_the_gpu_where_there_is_one(void **state) {
    (void)state;
    const struct backend_ops *ops = NULL;
    struct err err = {0};
    assert_int_equal(backend_find("auto", &ops, &err), 0);
    assert_string_equal(ops->name, cuda_opens() ? "cuda" : "cpu");
    assert_int_equal(ops->api_version, BACKEND_API_VERSION);
    assert_int_equal(backend_find("cpu", &ops, &err), 0);
    assert_ptr_equal(ops, &backend_cpu);
}

// Where the build, the driver or the device lacks the text says which.
static void test_cuda_is_refused_plainly(void **state) {
    (void)state;
    const struct backend_ops *ops = NULL;
    const struct backend_config config = {.device = 1023};
    struct backend *b = NULL;
    struct err err = {0};
    if (backend_find("cuda", &ops, &err) != 0) {
        assert_int_equal(err.status, KVPOOL_E_BACKEND);
        assert_string_equal(err.text, "this build has no CUDA backend");
        assert_null(ops);
        return;
    }
    assert_string_equal(ops->name, "cuda");
    assert_int_equal(ops->api_version, BACKEND_API_VERSION);
    assert_true(ops->fatal);
    assert_int_equal(ops->open(&config, &b, &err), KVPOOL_E_BACKEND);
    assert_null(b);
    if (cuda_opens())
        assert_non_null(strstr(err.text, "no CUDA device 1023: this machine has 0 to "));
    else
        assert_non_null(strstr(err.text, "no CUDA device: "));
}

static void test_an_unknown_backend_is_invalid(void **state) {
    (void)state;
    const struct backend_ops *ops = NULL;
    struct err err = {0};
    assert_int_equal(backend_find("tpu", &ops, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "tpu"));
    assert_null(ops);
}

static struct backend *open_cpu(const char *isa, uint32_t threads) {
    const struct backend_config config = {.threads = threads};
    struct backend *b = NULL;
    struct err err = {0};
    if (isa != NULL)
        setenv("KVPOOL_CPU_ISA", isa, 1);
    int status = backend_cpu.open(&config, &b, &err);
    unsetenv("KVPOOL_CPU_ISA");
    if (status != 0)
        fail_msg("%s", err.text);
    return b;
}

static struct backend_mem *alloc_cpu(struct backend *b, size_t bytes) {
    struct backend_mem *mem = NULL;
    struct err err = {0};
    if (backend_cpu.mem_alloc(b, bytes, BACKEND_HOST, BACKEND_FD, &mem, &err) != 0)
        fail_msg("%s", err.text);
    return mem;
}

static void test_describe_names_threads_and_kernel(void **state) {
    (void)state;
    struct backend *b = open_cpu("generic", 3);
    assert_string_equal(backend_cpu.describe(b), "cpu: 3 threads, generic");
    backend_cpu.close(b);
    b = open_cpu("generic", 1);
    assert_string_equal(backend_cpu.describe(b), "cpu: 1 thread, generic");
    backend_cpu.close(b);
}

static void test_an_unknown_kernel_is_refused(void **state) {
    (void)state;
    struct backend_config config = {.threads = 1};
    struct backend *b = NULL;
    struct err err = {0};
    setenv("KVPOOL_CPU_ISA", "mmx", 1);
    assert_int_equal(backend_cpu.open(&config, &b, &err), KVPOOL_E_BACKEND);
    unsetenv("KVPOOL_CPU_ISA");
    assert_non_null(strstr(err.text, "mmx"));
    assert_null(b);
}

static int exported(const struct backend_mem *mem) {
    struct backend_handle handle;
    backend_cpu.mem_handle(mem, &handle);
    assert_int_equal(handle.how, BACKEND_FD);
    assert_int_equal(handle.bytes, backend_cpu.mem_bytes(mem));
    return handle.fd;
}

static void test_memory_is_zeroed_shared_and_rounded_up(void **state) {
    (void)state;
    struct backend *b = open_cpu(NULL, 1);
    struct backend_mem *mem = alloc_cpu(b, 5000);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t bytes = backend_cpu.mem_bytes(mem);
    assert_true(bytes >= 5000);
    assert_int_equal(bytes % page, 0);
    char *host = backend_cpu.mem_host(mem);
    for (uint64_t i = 0; i < bytes; i++)
        assert_int_equal(host[i], 0);
    char *other = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, exported(mem), 0);
    assert_ptr_not_equal(other, MAP_FAILED);
    other[4999] = 42;
    assert_int_equal(host[4999], 42);
    munmap(other, bytes);
    backend_cpu.mem_free(b, mem);
    backend_cpu.close(b);
}

static void test_memory_cannot_be_resized_through_its_fd(void **state) {
    (void)state;
    struct backend *b = open_cpu(NULL, 1);
    struct backend_mem *mem = alloc_cpu(b, 1 << 16);
    int fd = exported(mem);
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 1 << 20), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    memset(backend_cpu.mem_host(mem), 1, 1 << 16);
    backend_cpu.mem_free(b, mem);
    backend_cpu.close(b);
}

static void test_an_absurd_region_is_refused_with_the_bytes(void **state) {
    (void)state;
    struct backend *b = open_cpu(NULL, 1);
    struct backend_mem *mem = NULL;
    struct err err = {0};
    const uint64_t sizes[] = {(uint64_t)1 << 50, UINT64_MAX};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(backend_cpu.mem_alloc(b, sizes[i], BACKEND_HOST, BACKEND_FD, &mem, &err),
                         KVPOOL_E_NOMEM);
        assert_non_null(strstr(err.text, "bytes"));
        assert_non_null(strstr(err.text, "available"));
        assert_null(mem);
    }
    backend_cpu.close(b);
}

static void test_an_absurd_pool_is_refused_with_the_bytes(void **state) {
    (void)state;
    struct backend *b = open_cpu(NULL, 1);
    struct backend_pool *pool = NULL;
    struct err err = {0};
    struct kv_geometry g = {32, 8, 128, 16, KVPOOL_BF16, 0};
    assert_int_equal(backend_cpu.pool_open(b, &g, BACKEND_FD, 1u << 28, 1, 1, &pool, &err),
                     KVPOOL_E_NOMEM);
    assert_non_null(strstr(err.text, "562949953421312 bytes")); // 2^28 pages x 64 KiB x 32 layers
    assert_non_null(strstr(err.text, "available"));
    assert_null(pool);
    struct kv_geometry huge = {512, 256, 576, 256, KVPOOL_FP32, 0};
    assert_int_equal(backend_cpu.pool_open(b, &huge, BACKEND_FD, UINT32_MAX, 1, 1, &pool, &err),
                     KVPOOL_E_NOMEM);
    assert_null(pool);
    backend_cpu.close(b);
}

// Pools that fit one by one but not together: the second one is refused although the first has
// touched nothing.
static void test_promised_memory_is_not_promised_twice(void **state) {
    (void)state;
    struct backend *b = open_cpu(NULL, 1);
    struct backend_pool *pools[16] = {0};
    struct err err = {0};
    // 1/4 of what is available, in pages of 64 KiB; other programs come and go meanwhile.
    struct kv_geometry g = {1, 8, 128, 16, KVPOOL_BF16, 0};
    struct backend_mem *mem = NULL;
    assert_int_equal(backend_cpu.mem_alloc(b, UINT64_MAX, BACKEND_HOST, BACKEND_FD, &mem, &err),
                     KVPOOL_E_NOMEM);
    const char *comma = strchr(err.text, ',');
    assert_non_null(comma);
    uint64_t available = strtoull(comma + 1, NULL, 10);
    assert_true(available > 1 << 20);
    uint32_t pages = (uint32_t)(available / 4 / kv_page_bytes(&g));
    uint32_t opened = 0;
    while (opened < 16 &&
           backend_cpu.pool_open(b, &g, BACKEND_FD, pages, 1, 1, &pools[opened], &err) == 0)
        opened++;
    assert_in_range(opened, 1, 8);
    assert_int_equal(err.status, KVPOOL_E_NOMEM);
    for (uint32_t i = 0; i < opened; i++)
        backend_cpu.pool_close(b, pools[i]);
    assert_int_equal(backend_cpu.pool_open(b, &g, BACKEND_FD, pages, 1, 1, &pools[0], &err), 0);
    backend_cpu.pool_close(b, pools[0]);
    backend_cpu.close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auto_is_the_gpu_where_there_is_one),
        cmocka_unit_test(test_cuda_is_refused_plainly),
        cmocka_unit_test(test_an_unknown_backend_is_invalid),
        cmocka_unit_test(test_describe_names_threads_and_kernel),
        cmocka_unit_test(test_an_unknown_kernel_is_refused),
        cmocka_unit_test(test_memory_is_zeroed_shared_and_rounded_up),
        cmocka_unit_test(test_memory_cannot_be_resized_through_its_fd),
        cmocka_unit_test(test_an_absurd_region_is_refused_with_the_bytes),
        cmocka_unit_test(test_an_absurd_pool_is_refused_with_the_bytes),
        cmocka_unit_test(test_promised_memory_is_not_promised_twice),
    };
    return cmocka_run_group_tests_name("backend", tests, NULL, NULL);
}
