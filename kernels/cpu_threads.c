// SPDX-License-Identifier: Apache-2.0
// cpu_threads.c: see cpu_threads.h.
//
//     caller                                    worker
//     write job; state = OPEN                   sleep on `wakeups` (futex)
//     wakeups++; wake                           join: state OPEN|n -> OPEN|n+1
//     take indices until none is left           take indices until none is left
//     clear OPEN; wait until state is 0         leave: state - 1; the last one wakes the caller
//
// The job's fields are written only while state is 0, and read only between join and leave.
#include "kernels/cpu_threads.h"

#include "kernels/thread.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SPINS_WORKER = 200, // pauses before a worker sleeps: a few microseconds
    SPINS_CALLER = 500,
    MAX_THREADS = 1024,
};
#define OPEN 0x80000000u

struct worker {
    struct cpu_threads *threads;
    uint32_t id;
    pthread_t thread;
};

struct cpu_threads {
    cpu_threads_fn fn; // the job
    void *arg;
    uint32_t n;
    _Alignas(64) atomic_uint next;    // first index not taken
    _Alignas(64) atomic_uint state;   // OPEN | workers inside
    _Alignas(64) atomic_uint wakeups; // counts jobs; what idle workers sleep on
    atomic_bool quit;
    uint32_t count;
    struct worker workers[]; // count - 1
};

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void futex_wait(atomic_uint *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void futex_wake(atomic_uint *word, uint32_t count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void take_indices(struct cpu_threads *t, uint32_t worker) {
    for (;;) {
        uint32_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);
        if (i >= t->n)
            return;
        t->fn(t->arg, i, worker);
    }
}

static bool join(struct cpu_threads *t) {
    uint32_t state = atomic_load_explicit(&t->state, memory_order_relaxed);
    while ((state & OPEN) != 0)
        if (atomic_compare_exchange_weak_explicit(&t->state, &state, state + 1,
                                                  memory_order_acquire, memory_order_relaxed))
            return true;
    return false;
}

static void leave(struct cpu_threads *t) {
    uint32_t before = atomic_fetch_sub_explicit(&t->state, 1, memory_order_release);
    if (before == 1)
        futex_wake(&t->state, 1);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct cpu_threads *t = w->threads;
    for (;;) {
        uint32_t seen = atomic_load_explicit(&t->wakeups, memory_order_acquire);
        if (atomic_load_explicit(&t->quit, memory_order_relaxed))
            return NULL;
        if (join(t)) {
            take_indices(t, w->id);
            leave(t);
        }
        for (int i = 0; i < SPINS_WORKER; i++) {
            if (atomic_load_explicit(&t->wakeups, memory_order_relaxed) != seen)
                break;
            pause_cpu();
        }
        futex_wait(&t->wakeups, seen);
    }
}

void cpu_threads_run(struct cpu_threads *t, uint32_t n, cpu_threads_fn fn, void *arg) {
    if (t->count == 1 || n <= 1) {
        for (uint32_t i = 0; i < n; i++)
            fn(arg, i, 0);
        return;
    }
    t->fn = fn;
    t->arg = arg;
    t->n = n;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->state, OPEN, memory_order_release);
    atomic_fetch_add_explicit(&t->wakeups, 1, memory_order_release);
    futex_wake(&t->wakeups, n - 1 < t->count - 1 ? n - 1 : t->count - 1);

    take_indices(t, 0);

    uint32_t state = atomic_fetch_and_explicit(&t->state, ~OPEN, memory_order_acquire) & ~OPEN;
    for (int i = 0; state != 0 && i < SPINS_CALLER; i++) {
        pause_cpu();
        state = atomic_load_explicit(&t->state, memory_order_acquire);
    }
    while (state != 0) {
        futex_wait(&t->state, state);
        state = atomic_load_explicit(&t->state, memory_order_acquire);
    }
}

uint32_t cpu_threads_count(const struct cpu_threads *t) {
    return t->count;
}

static void stop(struct cpu_threads *t, uint32_t started) {
    atomic_store_explicit(&t->quit, true, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->wakeups, 1, memory_order_release);
    futex_wake(&t->wakeups, INT_MAX);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(t->workers[i].thread, NULL);
    free(t);
}

void cpu_threads_free(struct cpu_threads *t) {
    if (t != NULL)
        stop(t, t->count - 1);
}

struct cpu_threads *cpu_threads_new(uint32_t count) {
    if (count == 0) {
        cpu_set_t set;
        count = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    }
    if (count > MAX_THREADS)
        count = MAX_THREADS;
    size_t bytes = sizeof(struct cpu_threads) + (count - 1) * sizeof(struct worker);
    struct cpu_threads *t = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (t == NULL)
        return NULL;
    t->count = count;
    t->n = 0;
    atomic_init(&t->next, 0);
    atomic_init(&t->state, 0);
    atomic_init(&t->wakeups, 0);
    atomic_init(&t->quit, false);
    uint32_t started = 0;
    for (; started < count - 1; started++) {
        struct worker *w = &t->workers[started];
        w->threads = t;
        w->id = started + 1;
        if (thread_start(&w->thread, "kvpool-compute", worker_main, w) != 0)
            break;
    }
    if (started < count - 1) {
        stop(t, started);
        return NULL;
    }
    return t;
}
