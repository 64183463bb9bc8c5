// SPDX-License-Identifier: Apache-2.0
// cpu_memory.c: see cpu_memory.h.
#include "kernels/cpu_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_MAX = 512, PATH_BYTES = 600 };

// First number of a file, or UINT64_MAX ("max", or no such file).
static uint64_t read_number(const char *path) {
    uint64_t value = UINT64_MAX;
    char text[64];
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return value;
    if (fgets(text, sizeof text, f) != NULL && text[0] >= '0' && text[0] <= '9')
        value = strtoull(text, NULL, 10);
    fclose(f);
    return value;
}

static uint64_t machine_available(void) {
    uint64_t value = UINT64_MAX;
    char text[TEXT_MAX];
    FILE *f = fopen("/proc/meminfo", "re");
    if (f == NULL)
        return value;
    while (fgets(text, sizeof text, f) != NULL)
        if (strncmp(text, "MemAvailable:", 13) == 0) {
            value = strtoull(text + 13, NULL, 10) * 1024;
            break;
        }
    fclose(f);
    return value;
}

// The tightest limit of this process's cgroup (version 2) and of those above it.
static uint64_t cgroup_available(void) {
    uint64_t least = UINT64_MAX;
    char group[TEXT_MAX] = "";
    char text[TEXT_MAX];
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f == NULL)
        return least;
    while (fgets(text, sizeof text, f) != NULL)
        if (strncmp(text, "0::/", 4) == 0)
            snprintf(group, sizeof group, "%s", text + 3);
    fclose(f);
    group[strcspn(group, "\n")] = '\0';
    while (group[0] != '\0') {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        uint64_t limit = read_number(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", group);
        uint64_t used = read_number(path);
        if (limit != UINT64_MAX && used != UINT64_MAX) {
            uint64_t left = limit > used ? limit - used : 0;
            least = left < least ? left : least;
        }
        *strrchr(group, '/') = '\0';
    }
    return least;
}

uint64_t cpu_memory_available(const struct cpu_ledger *ledger) {
    uint64_t available = machine_available();
    uint64_t group = cgroup_available();
    if (group < available)
        available = group;
    for (const struct cpu_block *b = ledger->first; b != NULL; b = b->next) {
        struct stat st;
        uint64_t untouched = b->bytes;
        if (fstat(b->fd, &st) == 0) {
            uint64_t touched = (uint64_t)st.st_blocks * 512;
            untouched = touched < untouched ? untouched - touched : 0;
        }
        available = untouched < available ? available - untouched : 0;
    }
    return available;
}

int cpu_block_open(struct cpu_ledger *ledger, const char *name, uint64_t bytes,
                   struct cpu_block *ret, struct err *err) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t available = cpu_memory_available(ledger);
    if (bytes > available)
        return err_set(err, KVPOOL_E_NOMEM, "%s wants %" PRIu64 " bytes, %" PRIu64 " are available",
                       name, bytes, available);
    bytes = (bytes + page - 1) / page * page;

    int status = 0;
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set(err, KVPOOL_E_NOMEM, "%s: memfd_create: %s", name, strerror(errno));
    if (ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        status = err_set(err, KVPOOL_E_NOMEM, "%s: memfd of %" PRIu64 " bytes: %s", name, bytes,
                         strerror(errno));
        goto close_fd;
    }
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        status = err_set(err, KVPOOL_E_NOMEM, "%s: cannot map %" PRIu64 " of %" PRIu64 " bytes: %s",
                         name, bytes, available, strerror(errno));
        goto close_fd;
    }
    madvise(base, bytes, MADV_HUGEPAGE); // where the system allows it
    ret->base = base;
    ret->bytes = bytes;
    ret->fd = fd;
    ret->next = ledger->first;
    ret->link = &ledger->first;
    if (ret->next != NULL)
        ret->next->link = &ret->next;
    ledger->first = ret;
    return 0;

close_fd:
    close(fd);
    return status;
}

void cpu_block_unlink(struct cpu_block *block) {
    if (block->next != NULL)
        block->next->link = block->link;
    *block->link = block->next;
}

void cpu_block_unmap(struct cpu_block *block) {
    munmap(block->base, block->bytes);
    close(block->fd);
}

void cpu_block_close(struct cpu_block *block) {
    cpu_block_unlink(block);
    cpu_block_unmap(block);
}
