// SPDX-License-Identifier: Apache-2.0
// reaper.c: see reaper.h.
#include "kernels/cuda/reaper.h"

#include "kernels/thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = BACKEND_DEVICE + 1 };

struct cuda_reaper {
    struct cuda_reaper_calls calls;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_mutex_t releasing; // held while an object is released, or nothing may be
    // Under the lock.
    struct cuda_garbage *first, **end;
    uint64_t bytes[PLACES];
    bool stop;
};

// All there are, in order; NULL: the end.
static struct cuda_garbage *take(struct cuda_reaper *r) {
    pthread_mutex_lock(&r->lock);
    while (r->first == NULL && !r->stop)
        pthread_cond_wait(&r->wake, &r->lock);
    struct cuda_garbage *garbage = r->first;
    r->first = NULL;
    r->end = &r->first;
    pthread_mutex_unlock(&r->lock);
    return garbage;
}

static void came_back(struct cuda_reaper *r, enum backend_place place, uint64_t bytes) {
    pthread_mutex_lock(&r->lock);
    r->bytes[place] -= bytes;
    pthread_mutex_unlock(&r->lock);
}

static struct cuda_garbage *release(struct cuda_reaper *r, struct cuda_garbage *garbage) {
    struct cuda_garbage *next = garbage->next;
    enum backend_place place = garbage->place;
    uint64_t bytes = garbage->bytes;
    pthread_mutex_lock(&r->releasing);
    garbage->release(r->calls.arg, garbage);
    pthread_mutex_unlock(&r->releasing);
    came_back(r, place, bytes);
    r->calls.released(r->calls.arg);
    return next;
}

static void *reaper_main(void *arg) {
    struct cuda_reaper *r = arg;
    struct cuda_garbage *garbage;
    r->calls.started(r->calls.arg);
    while ((garbage = take(r)) != NULL) {
        r->calls.ready(r->calls.arg);
        while (garbage != NULL)
            garbage = release(r, garbage);
    }
    return NULL;
}

static void destroy(struct cuda_reaper *r) {
    pthread_mutex_destroy(&r->releasing);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

int cuda_reaper_open(const struct cuda_reaper_calls *calls, struct cuda_reaper **ret,
                     struct err *err) {
    struct cuda_reaper *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "no memory for the backend");
    r->calls = *calls;
    r->end = &r->first;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    pthread_mutex_init(&r->releasing, NULL);
    int rc = thread_start(&r->thread, "kvpool-reap", reaper_main, r);
    if (rc != 0) {
        destroy(r);
        return err_set(err, KVPOOL_E_BACKEND, "cannot start the thread that releases memory: %s",
                       strerror(rc));
    }
    *ret = r;
    return 0;
}

void cuda_reaper_close(struct cuda_reaper *r) {
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    destroy(r);
}

void cuda_reaper_give(struct cuda_reaper *r, struct cuda_garbage *garbage) {
    garbage->next = NULL;
    pthread_mutex_lock(&r->lock);
    *r->end = garbage;
    r->end = &garbage->next;
    r->bytes[garbage->place] += garbage->bytes;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

bool cuda_reaper_hold(struct cuda_reaper *r, bool wait) {
    return (wait ? pthread_mutex_lock(&r->releasing) : pthread_mutex_trylock(&r->releasing)) == 0;
}

void cuda_reaper_let(struct cuda_reaper *r) {
    pthread_mutex_unlock(&r->releasing);
}

uint64_t cuda_reaper_bytes(struct cuda_reaper *r, enum backend_place place) {
    pthread_mutex_lock(&r->lock);
    uint64_t bytes = r->bytes[place];
    pthread_mutex_unlock(&r->lock);
    return bytes;
}
