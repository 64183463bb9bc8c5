// SPDX-License-Identifier: Apache-2.0
// flight.c: see flight.h.
#include "kernels/cuda/flight.h"

#include "kernels/cuda/driver.h"
#include "kernels/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum {
    SLAB_CHUNKS = 64,      // allocated at once
    SPIN_NS = 50000,       // how long the thread asks without sleeping: a short decode
    LEAST_SLEEP_NS = 2000, // then it sleeps a 32nd of the time that nothing ended
    MOST_SLEEP_NS = 50000,
};

struct slab { // pinned host memory, cut into chunks
    struct slab *next;
    uint32_t *memory;
    struct cuda_chunk chunks[SLAB_CHUNKS];
};

struct cuda_flights {
    int device;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    // Under the lock.
    struct cuda_flight *incoming, **incoming_end; // launched, in order
    struct cuda_flight *free_flights;
    struct cuda_chunk *free_chunks;
    bool stop;
    // Submitting thread's.
    struct slab *slabs;
    // The completion thread's.
    struct cuda_queue *active;
    // Any thread's.
    atomic_uint flying;
    pthread_mutex_t failing;
    atomic_bool failed; // `failure` is written
    char failure[ERR_TEXT_MAX];
};

const char *cuda_flights_failure(const struct cuda_flights *f) {
    return atomic_load(&f->failed) ? f->failure : NULL;
}

void cuda_flights_fail(struct cuda_flights *f, const char *text) {
    pthread_mutex_lock(&f->failing);
    if (!atomic_load(&f->failed)) {
        snprintf(f->failure, sizeof f->failure, "%s", text);
        atomic_store(&f->failed, true);
    }
    pthread_mutex_unlock(&f->failing);
}

// --- the completion thread ----------------------------------------------------------------------

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// Since when nothing has ended: since_ns.
static void pause_after(uint64_t since_ns) {
    uint64_t waited = now_ns() - since_ns;
    if (waited < SPIN_NS) {
        sched_yield();
        return;
    }
    uint64_t ns = waited / 32;
    ns = ns < LEAST_SLEEP_NS ? LEAST_SLEEP_NS : ns > MOST_SLEEP_NS ? MOST_SLEEP_NS : ns;
    const struct timespec t = {.tv_nsec = (long)ns};
    nanosleep(&t, NULL);
}

static void take_back(struct cuda_flights *f, struct cuda_flight *flight) {
    struct cuda_chunk *last = flight->chunks;
    pthread_mutex_lock(&f->lock);
    if (last != NULL) {
        while (last->next != NULL)
            last = last->next;
        last->next = f->free_chunks;
        f->free_chunks = flight->chunks;
    }
    flight->next = f->free_flights;
    f->free_flights = flight;
    pthread_mutex_unlock(&f->lock);
    atomic_fetch_sub(&f->flying, 1);
}

static void enqueue(struct cuda_flights *f, struct cuda_flight *flight) {
    struct cuda_queue *q = flight->queue;
    flight->next = NULL;
    if (q->head == NULL) {
        q->head = flight;
        q->next = f->active;
        f->active = q;
    } else {
        q->tail->next = flight;
    }
    q->tail = flight;
}

// Ends what has ended of the queue at *at; unlinks it when it is empty. Returns whether any has.
static bool advance(struct cuda_flights *f, struct cuda_queue **at) {
    struct cuda_queue *q = *at;
    bool any = false;
    while (q != NULL && q->head != NULL) {
        struct cuda_flight *flight = q->head;
        cudaError_t e = cudaEventQuery(flight->event);
        if (e == cudaErrorNotReady)
            return any;
        int status = flight->status;
        if (e != cudaSuccess) {
            struct err err;
            status = cuda_error(&err, KVPOOL_E_BACKEND, "a program failed on the GPU", e);
            cuda_flights_fail(f, err.text);
        }
        backend_done_fn done = flight->done;
        void *arg = flight->arg;
        q->head = flight->next;
        if (q->head == NULL) { // done may let the stream be closed
            *at = q->next;
            q = NULL;
        }
        take_back(f, flight);
        done(arg, status);
        any = true;
    }
    return any;
}

static bool advance_all(struct cuda_flights *f) {
    bool any = false;
    struct cuda_queue **at = &f->active;
    while (*at != NULL) {
        struct cuda_queue *q = *at;
        any = advance(f, at) || any;
        if (*at == q)
            at = &q->next;
    }
    return any;
}

// What was launched; waits for something when nothing is in flight. False: stop.
static bool receive(struct cuda_flights *f, bool *ret_new) {
    pthread_mutex_lock(&f->lock);
    while (f->incoming == NULL && f->active == NULL && !f->stop)
        pthread_cond_wait(&f->wake, &f->lock);
    struct cuda_flight *flight = f->incoming;
    f->incoming = NULL;
    f->incoming_end = &f->incoming;
    bool stop = f->stop;
    pthread_mutex_unlock(&f->lock);
    *ret_new = flight != NULL;
    while (flight != NULL) {
        struct cuda_flight *next = flight->next;
        enqueue(f, flight);
        flight = next;
    }
    return !stop || f->active != NULL;
}

static void *completion_main(void *arg) {
    struct cuda_flights *f = arg;
    uint64_t since = now_ns();
    bool fresh;
    prctl(PR_SET_TIMERSLACK, 1000ul);
    cudaSetDevice(f->device);
    while (receive(f, &fresh)) {
        if (advance_all(f) || fresh)
            since = now_ns();
        else
            pause_after(since);
    }
    return NULL;
}

// --- flights and chunks -------------------------------------------------------------------------

static int add_slab(struct cuda_flights *f, struct err *err) {
    void *memory = NULL;
    void *device = NULL;
    struct slab *slab = malloc(sizeof *slab);
    if (slab == NULL)
        return err_set(err, KVPOOL_E_BACKEND, "no host memory for a program's payload");
    cudaError_t e =
        cudaHostAlloc(&memory, (size_t)SLAB_CHUNKS * CUDA_CHUNK_WORDS * sizeof(uint32_t),
                      cudaHostAllocPortable | cudaHostAllocMapped);
    if (e != cudaSuccess) {
        free(slab);
        return cuda_error(err, KVPOOL_E_BACKEND, "pinned host memory for a program's payload", e);
    }
    e = cudaHostGetDevicePointer(&device, memory, 0);
    if (e != cudaSuccess) {
        cudaFreeHost(memory);
        free(slab);
        return cuda_error(err, KVPOOL_E_BACKEND, "device address of pinned host memory", e);
    }
    slab->memory = memory;
    slab->next = f->slabs;
    f->slabs = slab;
    pthread_mutex_lock(&f->lock);
    for (size_t i = SLAB_CHUNKS; i-- > 0;) {
        slab->chunks[i] = (struct cuda_chunk){.host = (uint32_t *)memory + i * CUDA_CHUNK_WORDS,
                                              .device = (uint32_t *)device + i * CUDA_CHUNK_WORDS,
                                              .next = f->free_chunks};
        f->free_chunks = &slab->chunks[i];
    }
    pthread_mutex_unlock(&f->lock);
    return 0;
}

static struct cuda_chunk *pop_chunk(struct cuda_flights *f) {
    pthread_mutex_lock(&f->lock);
    struct cuda_chunk *chunk = f->free_chunks;
    if (chunk != NULL)
        f->free_chunks = chunk->next;
    pthread_mutex_unlock(&f->lock);
    return chunk;
}

int cuda_flight_chunk(struct cuda_flights *f, struct cuda_flight *flight, struct cuda_chunk **ret,
                      struct err *err) {
    struct cuda_chunk *chunk = pop_chunk(f);
    if (chunk == NULL) {
        int status = add_slab(f, err);
        if (status != 0)
            return status;
        chunk = pop_chunk(f); // nobody else takes any
    }
    chunk->next = flight->chunks;
    flight->chunks = chunk;
    *ret = chunk;
    return 0;
}

int cuda_flight_get(struct cuda_flights *f, struct cuda_flight **ret, struct err *err) {
    pthread_mutex_lock(&f->lock);
    struct cuda_flight *flight = f->free_flights;
    if (flight != NULL)
        f->free_flights = flight->next;
    pthread_mutex_unlock(&f->lock);
    if (flight == NULL) {
        flight = calloc(1, sizeof *flight);
        if (flight == NULL)
            return err_set(err, KVPOOL_E_BACKEND, "no host memory for a program");
        cudaError_t e = cudaEventCreateWithFlags(&flight->event, cudaEventDisableTiming);
        if (e != cudaSuccess) {
            free(flight);
            return cuda_error(err, KVPOOL_E_BACKEND, "an event", e);
        }
    }
    flight->chunks = NULL;
    flight->status = 0;
    atomic_fetch_add(&f->flying, 1);
    *ret = flight;
    return 0;
}

bool cuda_flights_idle(const struct cuda_flights *f) {
    return atomic_load(&f->flying) == 0;
}

void cuda_flight_put(struct cuda_flights *f, struct cuda_flight *flight) {
    take_back(f, flight);
}

void cuda_flight_launch(struct cuda_flights *f, struct cuda_flight *flight) {
    flight->next = NULL;
    pthread_mutex_lock(&f->lock);
    *f->incoming_end = flight;
    f->incoming_end = &flight->next;
    pthread_cond_signal(&f->wake);
    pthread_mutex_unlock(&f->lock);
}

// --- open and close -----------------------------------------------------------------------------

static void free_slabs(struct cuda_flights *f) {
    while (f->slabs != NULL) {
        struct slab *slab = f->slabs;
        f->slabs = slab->next;
        cudaFreeHost(slab->memory);
        free(slab);
    }
}

int cuda_flights_open(int device, struct cuda_flights **ret, struct err *err) {
    struct cuda_flights *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for the backend");
    f->device = device;
    f->incoming_end = &f->incoming;
    pthread_mutex_init(&f->lock, NULL);
    pthread_mutex_init(&f->failing, NULL);
    pthread_cond_init(&f->wake, NULL);
    int status = add_slab(f, err);
    if (status != 0)
        goto free_all;
    int rc = thread_start(&f->thread, "kvpool-done", completion_main, f);
    if (rc != 0) {
        status =
            err_set(err, KVPOOL_E_BACKEND, "cannot start the completion thread: %s", strerror(rc));
        goto free_all;
    }
    *ret = f;
    return 0;

free_all:
    free_slabs(f);
    pthread_cond_destroy(&f->wake);
    pthread_mutex_destroy(&f->failing);
    pthread_mutex_destroy(&f->lock);
    free(f);
    return status;
}

void cuda_flights_close(struct cuda_flights *f) {
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_signal(&f->wake);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    while (f->free_flights != NULL) {
        struct cuda_flight *flight = f->free_flights;
        f->free_flights = flight->next;
        cudaEventDestroy(flight->event);
        free(flight);
    }
    free_slabs(f);
    pthread_cond_destroy(&f->wake);
    pthread_mutex_destroy(&f->failing);
    pthread_mutex_destroy(&f->lock);
    free(f);
}
