// SPDX-License-Identifier: Apache-2.0
// starve.c: see starve.h. NNG's threads, known by their names, share one CPU with busy threads and run
// under SCHED_IDLE, which is a few milliseconds a second.
#include "tests/unit/daemon/starve.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUSY = 4 };

static atomic_bool stop;
static pthread_t threads[BUSY];
static cpu_set_t cpu, all;

static void *be_busy(void *arg) {
    (void)arg;
    sched_setaffinity(0, sizeof cpu, &cpu);
    while (!atomic_load(&stop)) {
    }
    return NULL;
}

static bool is_nng(const char *tid) {
    char path[300], name[32] = "";
    FILE *file;
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", tid);
    file = fopen(path, "r");
    if (file != NULL) {
        if (fgets(name, sizeof name, file) == NULL) {
            name[0] = '\0';
        }
        fclose(file);
    }
    return strncmp(name, "nng:", 4) == 0;
}

static unsigned schedule_nng(int policy, const cpu_set_t *cpus) {
    const struct sched_param param = {0};
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    unsigned done = 0;
    while (dir != NULL && (entry = readdir(dir)) != NULL) { // NOLINT(concurrency-mt-unsafe)
        const pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (tid > 0 && is_nng(entry->d_name) && sched_setaffinity(tid, sizeof *cpus, cpus) == 0 &&
            sched_setscheduler(tid, policy, &param) == 0) {
            done++;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return done;
}

bool starve_begin(void) {
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&cpu);
    CPU_SET((unsigned)sched_getcpu(), &cpu);
    atomic_store(&stop, false);
    for (int i = 0; i < BUSY; i++) {
        if (pthread_create(&threads[i], NULL, be_busy, NULL) != 0) {
            abort();
        }
    }
    return schedule_nng(SCHED_IDLE, &cpu) > 0;
}

void starve_end(void) {
    atomic_store(&stop, true);
    for (int i = 0; i < BUSY; i++) {
        pthread_join(threads[i], NULL);
    }
    schedule_nng(SCHED_OTHER, &all);
}
