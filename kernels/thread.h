// SPDX-License-Identifier: Apache-2.0
// thread.h: starts a backend's thread. Signals are for the threads that asked for them: this one has none.
#ifndef KVPOOL_KERNELS_THREAD_H
#define KVPOOL_KERNELS_THREAD_H

#include <pthread.h>
#include <signal.h>

// name: at most 15 bytes. Returns 0 or an errno value.
static inline int thread_start(pthread_t *ret, const char *name, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(ret, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        pthread_setname_np(*ret, name);
    return rc;
}

#endif
