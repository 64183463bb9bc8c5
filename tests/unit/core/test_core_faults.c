// SPDX-License-Identifier: Apache-2.0
// The run of test_core_model.c with every allocation of core failing once: whatever opens, checks
// or extends core is called with its first allocation failing, then its second, until it has all
// that it asks for. Each failing call answers that memory is out, leaves the block and the
// allocations as they were, and the run goes on equal to the model. Everything else allocates
// nothing at all.
//
//   KVPOOL_SEED       seed of the random numbers (printed; default: fixed)
//   KVPOOL_FAULT_OPS  operations (default 40,000, under AddressSanitizer 8,000, ThreadSanitizer 3,000)
// Linked with --wrap of the allocation functions below.
#include "model_run.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_THREAD__) // there is one thread
#define DEFAULT_OPS 3000
#elif defined(__SANITIZE_ADDRESS__)
#define DEFAULT_OPS 8000
#else
#define DEFAULT_OPS 40000
#endif

static struct {
    bool armed;
    uint64_t left; // allocations that succeed before the one that fails
    bool failed;
    uint64_t made, live;
} faults;

// --- the allocator ------------------------------------------------------------------------------

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *p);
void *__real_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *p);
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *p, size_t size);

// Is this the allocation that fails?
static bool fails(void) {
    faults.made++;
    if (!faults.armed || faults.left-- > 0) {
        return false;
    }
    faults.armed = false; // the others succeed
    faults.failed = true;
    return true;
}

static void *count(void *p) {
    faults.live += p != NULL;
    return p;
}

void *__wrap_malloc(size_t size) {
    return fails() ? NULL : count(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : count(__real_calloc(n, size));
}

void *__wrap_realloc(void *old, size_t size) {
    if (fails()) {
        return NULL;
    }
    void *p = __real_realloc(old, size);
    return old == NULL ? count(p) : p;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : count(__real_aligned_alloc(alignment, size));
}

void __wrap_free(void *p) {
    faults.live -= p != NULL;
    __real_free(p);
}

void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (fails()) {
        return MAP_FAILED;
    }
    void *p = __real_mmap(at, size, protection, flags, fd, offset);
    faults.live += p != MAP_FAILED;
    return p;
}

int __wrap_munmap(void *p, size_t size) {
    faults.live--;
    return __real_munmap(p, size);
}

static uint64_t allocations(void) {
    return faults.made;
}

// --- the run ------------------------------------------------------------------------------------

static uint64_t num_failed; // calls

// Calls with the k-th allocation failing, for every k; returns what the call returns when none does.
static int fail_each(struct run *r, run_call_fn call, void *arg, int want) {
    void *before = malloc(r->size);
    assert_non_null(before);
    for (uint64_t k = 0;; k++) {
        memcpy(before, r->block, r->size);
        uint64_t live = faults.live;
        r->err = (struct err){0};
        faults.failed = false;
        faults.left = k;
        faults.armed = true;
        int got = call(r, arg);
        faults.armed = false;
        if (!faults.failed) {
            free(before);
            return got;
        }
        num_failed++;
        run_same(r, "status without memory", (uint64_t)-got, (uint64_t)-want);
        run_same(r, "recorded status", (uint64_t)-r->err.status, (uint64_t)-want);
        if (strstr(r->err.text, "memory") == NULL) {
            fail_msg(WHERE "allocation %" PRIu64 " failed: \"%s\"", AT(r), k, r->err.text);
        }
        run_same(r, "allocations that are left", faults.live, live);
        run_same(r, "the block differs", memcmp(before, r->block, r->size) != 0, 0);
    }
}

static void every_allocation_fails_once(void **state) {
    (void)state;
    static const struct scale scale = {
        RUN_SMALL,
        .check_every = 10,
        .verify_every = 1,
        .attach_every = 50,
    };
    const char *env = getenv("KVPOOL_FAULT_OPS");
    uint64_t num_ops = env != NULL ? strtoull(env, NULL, 0) : DEFAULT_OPS;
    uint64_t live = faults.live;
    run_model(&scale, num_ops, &(struct run_hooks){fail_each, allocations});
    print_message("  %" PRIu64 " calls failed\n", num_failed);
    assert_int_equal(faults.live, live);
    assert_true(num_failed > num_ops / 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_fails_once),
    };
    return cmocka_run_group_tests_name("core faults", tests, NULL, NULL);
}
