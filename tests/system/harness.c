// SPDX-License-Identifier: Apache-2.0
// harness.c: see harness.h.
#include "tests/system/harness.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static bool in_worker;

static void fail_here(const char *file, int line) {
    if (in_worker) {
        fflush(NULL);
        _exit(3);
    }
    _fail(file, line);
}

void check_at(bool ok, const char *what, const char *file, int line) {
    if (!ok) {
        fprintf(stderr, "%s:%d: %s does not hold\n", file, line, what);
        fail_here(file, line);
    }
}

uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void sleep_ms(unsigned ms) {
    struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&ts, NULL);
}

unsigned random_seed(void) {
    const char *env = getenv("KVPOOL_SEED");
    unsigned seed = env != NULL ? (unsigned)strtoul(env, NULL, 10) : (unsigned)now_ns();
    fprintf(stderr, "KVPOOL_SEED=%u\n", seed);
    return seed;
}

const char *program_path(const char *name) {
    static char path[512];
    const char *bin = getenv("KVPOOL_BIN");
    snprintf(path, sizeof path, "%s/%s", bin != NULL ? bin : "build/dev/bin", name);
    return path;
}

const char *daemon_log(const struct daemon *d) {
    static char buf[1 << 20];
    FILE *f = fopen(d->log, "r");
    size_t n = f != NULL ? fread(buf, 1, sizeof buf - 1, f) : 0;
    buf[n] = 0;
    if (f != NULL) {
        fclose(f);
    }
    return buf;
}

static void fail_with_log(const struct daemon *d, const char *what) {
    fprintf(stderr, "%s; log of the daemon:\n%s\n", what, daemon_log(d));
    fail_msg("%s", what);
}

void daemon_prepare(struct daemon *d) {
    memset(d, 0, sizeof *d);
    snprintf(d->dir, sizeof d->dir, "/tmp/kvpool-test-XXXXXX");
    assert_non_null(mkdtemp(d->dir));
    snprintf(d->log, sizeof d->log, "%s/log", d->dir);
}

const char *daemon_backend(void) {
    const char *name = getenv("KVPOOL_TEST_BACKEND");
    return name != NULL ? name : "cpu";
}

static pid_t spawn(struct daemon *d, const char *const *extra) {
    const char *argv[64] = {program_path("kvpoold"), "--backend", daemon_backend(), "--dir",
                            d->dir};
    size_t n = 5;
    for (size_t i = 0; extra != NULL && extra[i] != NULL; i++) {
        assert_true(n + 1 < sizeof argv / sizeof argv[0]);
        argv[n++] = extra[i];
    }
    argv[n] = NULL;
    pid_t parent = getpid();
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(126);
        }
        int fd = open(d->log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
        dup2(fd, STDERR_FILENO);
        dup2(fd, STDOUT_FILENO);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    return pid;
}

static int decode_status(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Waits for pid until the deadline; -1 when it still runs.
static int wait_deadline(pid_t pid, unsigned timeout_ms) {
    uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        int status;
        pid_t r = waitpid(pid, &status, WNOHANG);
        if (r == pid) {
            return decode_status(status);
        }
        assert_true(r == 0);
        if (now_ns() > end) {
            return -1;
        }
        sleep_ms(2);
    }
}

void daemon_start(struct daemon *d, const char *const *extra) {
    d->pid = spawn(d, extra);
    uint64_t end = now_ns() + (uint64_t)20 * 1000000000u;
    for (;;) {
        kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
        args.dir = d->dir;
        args.timeout_ms = 5000;
        kvpool_client *client;
        if (kvpool_connect(&args, &client) == KVPOOL_OK) {
            kvpool_status status = kvpool_ping(client, NULL);
            kvpool_close(client);
            if (status == KVPOOL_OK) {
                return;
            }
        }
        int status;
        if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
            d->pid = 0;
            fail_with_log(d, "the daemon ended at start");
        }
        if (now_ns() > end) {
            fail_with_log(d, "the daemon does not answer");
        }
        sleep_ms(10);
    }
}

int daemon_run_to_end(struct daemon *d, const char *const *extra, unsigned timeout_ms) {
    pid_t pid = spawn(d, extra);
    int status = wait_deadline(pid, timeout_ms);
    if (status < 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        fail_with_log(d, "the daemon did not end");
    }
    return status;
}

int daemon_end(struct daemon *d, int sig, unsigned timeout_ms) {
    kill(d->pid, sig);
    int status = wait_deadline(d->pid, timeout_ms);
    if (status < 0) {
        fail_with_log(d, "the daemon did not end after the signal");
    }
    d->pid = 0;
    return status;
}

void daemon_cleanup(struct daemon *d) {
    if (d->pid != 0) {
        kill(d->pid, SIGKILL);
        waitpid(d->pid, NULL, 0);
        d->pid = 0;
    }
    const char *const argv[] = {"/bin/rm", "-rf", d->dir, NULL};
    char buf[256];
    program_run(buf, sizeof buf, 10000, argv);
}

struct daemon kvd;

int kvd_setup(void **state) {
    (void)state;
    daemon_prepare(&kvd);
    daemon_start(&kvd, NULL);
    return 0;
}

int kvd_teardown(void **state) {
    (void)state;
    daemon_cleanup(&kvd);
    return 0;
}

pid_t worker_start(int (*fn)(void *arg), void *arg) {
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(126);
        }
        in_worker = true;
        int status = fn(arg);
        fflush(NULL);
        _exit(status);
    }
    return pid;
}

int process_wait(pid_t pid, unsigned timeout_ms) {
    int status = wait_deadline(pid, timeout_ms);
    if (status < 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        fail_msg("process %d did not end within %u ms", (int)pid, timeout_ms);
    }
    return status;
}

int program_run(char *buf, size_t cap, unsigned timeout_ms, const char *const *argv) {
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fds[1], STDOUT_FILENO);
        dup2(fds[1], STDERR_FILENO);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(fds[1]);
    uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000u;
    size_t n = 0;
    for (;;) {
        uint64_t now = now_ns();
        struct pollfd p = {fds[0], POLLIN, 0};
        if (now >= end || poll(&p, 1, (int)((end - now) / 1000000u) + 1) == 0) {
            kill(pid, SIGKILL);
            break;
        }
        char chunk[4096];
        ssize_t r = read(fds[0], chunk, sizeof chunk);
        if (r <= 0) {
            break;
        }
        size_t take = (size_t)r < cap - 1 - n ? (size_t)r : cap - 1 - n;
        memcpy(buf + n, chunk, take);
        n += take;
    }
    buf[n] = 0;
    close(fds[0]);
    return process_wait(pid, timeout_ms);
}

kvpool_client *client_open_timeout(const struct daemon *d, uint32_t timeout_ms) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = d->dir;
    args.timeout_ms = timeout_ms;
    kvpool_client *client = NULL;
    expect_status(NULL, KVPOOL_OK, kvpool_connect(&args, &client));
    return client;
}

kvpool_client *client_open(const struct daemon *d) {
    return client_open_timeout(d, 30000);
}

void expect_status_at(const kvpool_client *client, kvpool_status expected, kvpool_status got,
                      const char *what, const char *file, int line) {
    if (got == expected) {
        return;
    }
    char text[256] = "";
    if (got != KVPOOL_OK) {
        kvpool_last_error(client, text, sizeof text);
    }
    fprintf(stderr, "%s:%d: %s gave %s (%s), expected %s\n", file, line, what,
            kvpool_status_name(got), text, kvpool_status_name(expected));
    fail_here(file, line);
}
