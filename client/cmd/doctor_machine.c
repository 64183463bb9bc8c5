// SPDX-License-Identifier: Apache-2.0
// doctor_machine.c: what `kvpool doctor` checks of this machine and this process.
// Thread: main.
#include "client/cmd/doctor.h"
#include "client/cmd/format.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void check_library(struct doctor *d) {
    // Looked up by name: this command does not use NNG itself, and the library need not.
    const char *(*nng)(void) = NULL;
    *(void **)&nng = dlsym(RTLD_DEFAULT, "nng_version");
    doctor_report(d, DOCTOR_OK, "library", NULL, "libkvpool %s%s%s", kvpool_version(),
                  nng == NULL ? ", without NNG" : ", NNG ", nng == NULL ? "" : nng());
}

static void check_files(struct doctor *d) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        doctor_report(d, DOCTOR_WARN, "open files", "see ulimit -n", "cannot read the limit: %s",
                      strerror(errno));
    } else if (limit.rlim_cur < 256) {
        doctor_report(d, DOCTOR_WARN, "open files", "raise it: ulimit -n 4096 (LimitNOFILE=)",
                      "at most %" PRIu64 " (RLIMIT_NOFILE); each region needs one",
                      (uint64_t)limit.rlim_cur);
    } else {
        doctor_report(d, DOCTOR_OK, "open files", NULL, "at most %" PRIu64 " (RLIMIT_NOFILE)",
                      (uint64_t)limit.rlim_cur);
    }
}

static void check_locked_memory(struct doctor *d) {
    struct rlimit limit;
    char text[FORMAT_SIZE];
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
        doctor_report(d, DOCTOR_WARN, "locked memory", "see ulimit -l", "cannot read the limit: %s",
                      strerror(errno));
    } else if (limit.rlim_cur == RLIM_INFINITY) {
        doctor_report(d, DOCTOR_OK, "locked memory", NULL, "unlimited (RLIMIT_MEMLOCK)");
    } else if (limit.rlim_cur < (64u << 20)) {
        doctor_report(
            d, DOCTOR_WARN, "locked memory",
            "only regions pinned for a GPU need more: ulimit -l unlimited (LimitMEMLOCK=)",
            "at most %s (RLIMIT_MEMLOCK)", format_bytes(limit.rlim_cur, text));
    } else {
        doctor_report(d, DOCTOR_OK, "locked memory", NULL, "at most %s (RLIMIT_MEMLOCK)",
                      format_bytes(limit.rlim_cur, text));
    }
}

// Regions and the CPU backend's pools are memfds.
static void check_memfd(struct doctor *d) {
    const size_t size = 1u << 16;
    void *memory = MAP_FAILED;
    int fd = memfd_create("kvpool-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0 ||
        (memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        doctor_report(d, DOCTOR_FAIL, "shared memory",
                      "a sandbox (seccomp, SystemCallFilter=) or a memory limit forbids it",
                      "memfd_create or mmap does not work: %s", strerror(errno));
    } else {
        *(volatile char *)memory = 1;
        doctor_report(d, DOCTOR_OK, "shared memory", NULL, "memfd_create and mmap work");
    }
    if (memory != MAP_FAILED) {
        munmap(memory, size);
    }
    if (fd >= 0) {
        close(fd);
    }
}

// The daemon learns of a worker's death by a pidfd.
static void check_pidfd(struct doctor *d) {
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (fd < 0) {
        doctor_report(d, DOCTOR_FAIL, "process handles",
                      "needs Linux 5.3 and a sandbox that allows pidfd_open",
                      "pidfd_open does not work: %s", strerror(errno));
        return;
    }
    close(fd);
    doctor_report(d, DOCTOR_OK, "process handles", NULL, "pidfd_open works");
}

static void check_cpu(struct doctor *d) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl");
    if (!avx2 && !avx512) {
        doctor_report(d, DOCTOR_WARN, "cpu",
                      "the CPU backend runs its plain C kernels, several times slower",
                      "%ld CPUs without AVX2 and AVX-512", cpus);
        return;
    }
    doctor_report(d, DOCTOR_OK, "cpu", NULL, "%ld CPUs, AVX2%s", cpus,
                  avx512 ? " and AVX-512" : ", no AVX-512");
#else
    doctor_report(d, DOCTOR_OK, "cpu", NULL, "%ld CPUs, plain C kernels", cpus);
#endif
}

static void check_clock(struct doctor *d) {
    static const char path[] = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    char source[FORMAT_SIZE] = "unknown source";
    struct timespec resolution = {0};
    struct timespec from;
    struct timespec to;
    FILE *f = fopen(path, "re");
    if (f != NULL) {
        if (fgets(source, sizeof(source), f) != NULL) {
            source[strcspn(source, "\n")] = 0;
        }
        fclose(f);
    }
    clock_getres(CLOCK_MONOTONIC, &resolution);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < 1000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &to);
    }
    double ns =
        ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / 1e3;
    if (resolution.tv_sec != 0 || resolution.tv_nsec > 1000 || ns > 1000) {
        doctor_report(d, DOCTOR_WARN, "clock", "time-outs work, measured latencies are coarse",
                      "%s: %.0f ns a reading, resolution %ld ns", source, ns, resolution.tv_nsec);
        return;
    }
    doctor_report(d, DOCTOR_OK, "clock", NULL, "%s, %.0f ns a reading", source, ns);
}

void doctor_machine(struct doctor *d) {
    check_library(d);
    check_cpu(d);
    check_files(d);
    check_locked_memory(d);
    check_memfd(d);
    check_pidfd(d);
    check_clock(d);
}
