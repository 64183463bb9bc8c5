// SPDX-License-Identifier: Apache-2.0
// bounded.c: see bounded.h. The last of the two sides frees the struct.
#include "daemon/bounded.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct bounded {
    void (*fn)(void *arg);
    void *arg;
    pthread_mutex_t lock; // of the rest
    pthread_cond_t ended;
    bool done;
    bool abandoned; // the caller has gone
};

static void release(struct bounded *b) {
    pthread_cond_destroy(&b->ended);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

static void *run(void *arg) {
    struct bounded *b = arg;
    bool abandoned;
    b->fn(b->arg);
    pthread_mutex_lock(&b->lock);
    b->done = true;
    abandoned = b->abandoned;
    pthread_cond_signal(&b->ended);
    pthread_mutex_unlock(&b->lock);
    if (abandoned) {
        release(b);
    }
    return NULL;
}

bool bounded_run(void (*fn)(void *arg), void *arg, unsigned seconds) {
    struct bounded *b = calloc(1, sizeof *b);
    pthread_condattr_t attr;
    struct timespec until;
    pthread_t thread;
    bool done;
    int rc = 0;
    if (b == NULL) {
        fn(arg);
        return true;
    }
    b->fn = fn;
    b->arg = arg;
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b->ended, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&thread, NULL, run, b) != 0) {
        fn(arg);
        release(b);
        return true;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    pthread_mutex_lock(&b->lock);
    while (!b->done && rc == 0) {
        rc = pthread_cond_timedwait(&b->ended, &b->lock, &until);
    }
    done = b->done;
    b->abandoned = !done;
    pthread_mutex_unlock(&b->lock);
    if (done) {
        pthread_join(thread, NULL);
        release(b);
    } else {
        pthread_detach(thread);
    }
    return done;
}
