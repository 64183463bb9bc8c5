// SPDX-License-Identifier: Apache-2.0
// procs.c: see procs.h.
#include "bench/procs.h"

#include "bench/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms) {
    const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

// In the child, after fork: async-signal-safe calls only.
static _Noreturn void exec_child(const char *const *argv, int in, int out, pid_t parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent && dup2(in, 0) == 0 &&
        dup2(out, 1) == 1 && dup2(out, 2) == 2) {
        execv(argv[0], (char *const *)argv);
    }
    _exit(127);
}

pid_t procs_start(struct procs *p, const char *const *argv, const char *log_path) {
    const pid_t parent = getpid();
    pid_t pid = -1;
    int out = -1;
    int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log_path != NULL) {
        out = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    } else {
        out = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    }
    if (p->n == PROCS_MAX) {
        errno = EAGAIN;
    } else if (in >= 0 && out >= 0) {
        pid = fork();
    }
    if (pid == 0) {
        exec_child(argv, in, out, parent);
    }
    if (pid > 0) {
        p->pids[p->n++] = pid;
    } else {
        fprintf(stderr, "kvpool-bench: cannot start %s: %s\n", argv[0], strerror(errno));
    }
    if (in >= 0) {
        close(in);
    }
    if (out >= 0) {
        close(out);
    }
    return pid;
}

// Reaps child i when it ended. Returns whether it did.
static bool reap(struct procs *p, size_t i) {
    pid_t got = waitpid(p->pids[i], NULL, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR)) {
        return false;
    }
    p->pids[i] = p->pids[--p->n];
    return true;
}

bool procs_alive(struct procs *p, pid_t pid) {
    for (size_t i = 0; i < p->n; i++) {
        if (p->pids[i] == pid) {
            return !reap(p, i);
        }
    }
    return false;
}

bool procs_wait(struct procs *p, uint32_t timeout_ms) {
    const uint64_t end = bench_now_ns() + timeout_ms * 1000000ull;
    for (;;) {
        for (size_t i = p->n; i > 0; i--) {
            reap(p, i - 1);
        }
        if (p->n == 0) {
            return true;
        }
        if (bench_now_ns() > end) {
            return false;
        }
        sleep_ms(5);
    }
}

void procs_stop(struct procs *p, uint32_t patience_ms) {
    for (size_t i = 0; i < p->n; i++) {
        kill(p->pids[i], SIGTERM);
    }
    if (procs_wait(p, patience_ms)) {
        return;
    }
    for (size_t i = 0; i < p->n; i++) {
        fprintf(stderr, "kvpool-bench: process %ld does not end, killing it\n", (long)p->pids[i]);
        kill(p->pids[i], SIGKILL);
        while (waitpid(p->pids[i], NULL, 0) < 0 && errno == EINTR) {
        }
    }
    p->n = 0;
}

// True when dir + tail + "/" + name is a program; it is then in ret.
static bool is_program(const char *dir, const char *tail, const char *name, char *ret,
                       size_t size) {
    int len = snprintf(ret, size, "%s%s/%s", dir, tail, name);
    return len > 0 && (size_t)len < size && access(ret, X_OK) == 0;
}

bool procs_find(const char *name, char *ret, size_t size) {
    const char *dir = getenv("KVPOOL_BIN"); // NOLINT(concurrency-mt-unsafe): main thread
    char self[512];
    if (dir != NULL && dir[0] != 0) {
        return is_program(dir, "", name, ret, size);
    }
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len <= 0) {
        return false;
    }
    self[len] = 0;
    *strrchr(self, '/') = 0;
    return is_program(self, "", name, ret, size) || is_program(self, "/../sbin", name, ret, size);
}
